"""Rate limits against a naive bucket: tokens as fractions, refilled step by step."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from durabill.producers.gateway.auth.gcra import NS_PER_S, Gcra, Policy


class Bucket:
    """Holds at most `quota` tokens; gets one each `interval_ns`, evenly."""

    def __init__(self, quota: int, interval_ns: int) -> None:
        self.quota, self.interval_ns = quota, interval_ns
        self.tokens = Fraction(quota)
        self.at_ns = 0

    def take(self, now_ns: int, count: int) -> tuple[bool, int]:
        self.tokens += Fraction(now_ns - self.at_ns, self.interval_ns)
        self.tokens = min(self.tokens, Fraction(self.quota))
        self.at_ns = now_ns
        is_allowed = self.tokens >= count
        if is_allowed:
            self.tokens -= count
        return is_allowed, int(self.tokens)  # whole ones, rounded down: none is below nothing


policies = st.builds(Policy, st.integers(1, 20), st.integers(20, 10**12))
asks = st.lists(
    st.tuples(st.sampled_from("ab"), st.integers(0, 10**12), st.integers(1, 25)), max_size=60
)


@given(policies, asks)
def test_it_allows_what_a_bucket_allows(policy: Policy, asked: list[tuple[str, int, int]]) -> None:
    limit = Gcra(policy)
    buckets = {key: Bucket(policy.quota, policy.interval_ns) for key in "ab"}
    now_ns = 0
    for key, pause_ns, count in asked:
        now_ns += pause_ns % (3 * policy.window_ns)
        seen = limit.look(key, now_ns, count)
        taken = limit.take(key, now_ns, count)
        assert seen.is_allowed == taken.is_allowed
        assert (taken.is_allowed, taken.remaining) == buckets[key].take(now_ns, count)
        if not taken.is_allowed and count <= policy.quota:
            assert not limit.look(key, now_ns + taken.retry_ns - 1, count).is_allowed
            assert limit.look(key, now_ns + taken.retry_ns, count).is_allowed
        assert limit.look(key, now_ns + taken.reset_ns, policy.quota).is_allowed


@given(st.lists(st.integers(0, 9).map(str), max_size=40), st.integers(1, 5))
def test_it_remembers_so_many_keys(keys: list[str], keys_max: int) -> None:
    limit = Gcra(Policy(1, NS_PER_S), keys_max)
    for key in keys:
        limit.take(key, 0)
        assert len(limit) <= keys_max


def test_who_asked_longest_ago_is_forgotten_first() -> None:
    limit = Gcra(Policy(2, NS_PER_S), keys_max=2)
    for key in ("a", "b", "a", "c"):  # b is forgotten
        limit.take(key, 0)
    assert [limit.take(key, 0).is_allowed for key in "acba"] == [False, True, True, True]


def test_what_is_refused_takes_nothing() -> None:
    limit = Gcra(Policy(1, NS_PER_S))
    assert limit.take("a", 0).is_allowed
    for _ in range(1_000):
        assert not limit.take("a", NS_PER_S - 1).is_allowed
    assert limit.take("a", NS_PER_S).is_allowed


def test_a_wait_is_told_in_whole_seconds() -> None:
    limit = Gcra(Policy(1, 10 * NS_PER_S))
    assert limit.take("a", 0).retry_after_s == 1
    assert limit.take("a", 1).retry_after_s == 10
    assert limit.take("a", 10 * NS_PER_S - 1).retry_after_s == 1


@pytest.mark.parametrize(("quota", "window_ns"), [(0, 5), (-1, 5), (6, 5)])
def test_what_is_no_limit(quota: int, window_ns: int) -> None:
    with pytest.raises(ValueError, match="no rate limit"):
        Policy(quota, window_ns)
