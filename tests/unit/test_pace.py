"""How the load comes back after an outage: 100,000 clients, each with dice of its own."""

import random
from array import array
from collections import Counter

import pytest

from durabill.producers.sdk.pace import Pace
from durabill.producers.sdk.uplink import WISH_MAX_S, Backoff

CLIENTS = 100_000
INTERVAL_S = 10.0
LONG_S = 300.0


def busiest_to_mean(instants_s: "array[float]", since_s: float) -> float:
    """Return how the busiest second compares with the mean of all."""
    seconds = int(max(instants_s) - since_s) + 1
    counts = [0] * seconds
    for each in instants_s:
        counts[int(each - since_s)] += 1
    return max(counts) * seconds / len(instants_s)


@pytest.mark.parametrize(
    ("outage_s", "at_once", "wish_s", "requests", "interval_s"),
    [
        (12.0, True, None, 1, INTERVAL_S),
        (47.0, True, None, 1, INTERVAL_S),
        (25.0, False, 2.0, 1, INTERVAL_S),
        (31.0, True, None, 4, INTERVAL_S),
        (700.0, True, None, 1, LONG_S),
    ],
)
def test_load_comes_back_spread_out(
    outage_s: float, at_once: bool, wish_s: float | None, requests: int, interval_s: float
) -> None:
    """Whether all failed in one moment or not; with what waits in one request or in several.

    Nor has any second more than twice of what each has when nothing is wrong.
    """
    dice = random.Random(7).random
    backoff = Backoff()
    uploads = array("d")
    for _ in range(CLIENTS // requests):
        pace = Pace(backoff, dice)
        now_s = 0.0 if at_once else dice() * interval_s
        while now_s < outage_s:
            now_s += pace.after_failure_s(wish_s, interval_s)
        uploads.append(now_s)
        pace.worked()
        for _ in range(requests - 1):
            now_s += pace.between_s(interval_s, 1, 1_000)
            uploads.append(now_s)
    assert busiest_to_mean(uploads, outage_s) <= 2.0
    counts = Counter(int(each) for each in uploads)
    assert max(counts.values()) <= 2 * (CLIENTS // requests) / interval_s


def test_the_measure_sees_a_herd() -> None:
    herd = array("d", [5.0 + each / 10_000 for each in range(10_000)] + [24.0] * 10)
    assert busiest_to_mean(herd, 5.0) > 10


def pauses(wish_s: float | None, dice: float, count: int = 4) -> list[float]:
    pace = Pace(Backoff(first_s=0.2, max_s=30.0), lambda: dice)
    return [pace.after_failure_s(wish_s, INTERVAL_S) for _ in range(count)]


def test_one_failure_is_no_outage() -> None:
    assert pauses(None, 0.0) == [0.2, 0.0, 10.0, 10.0]
    assert pauses(None, 0.5) == pytest.approx([0.15, 5.0, 10.5, 10.5])


@pytest.mark.parametrize("wish_s", [0.0, 1.0, 20.0, 3_600.0])
@pytest.mark.parametrize("dice", [0.0, 0.5, 0.999])
def test_wish_is_never_undercut(wish_s: float, dice: float) -> None:
    found = pauses(wish_s, dice)
    assert min(found) >= wish_s
    assert max(found) <= wish_s + 30.0 + wish_s * 0.1


def test_wish_of_ages_is_cut_to_a_day() -> None:
    assert max(pauses(10**9, 0.5)) <= WISH_MAX_S * 1.1


def test_what_has_waited_is_sent_a_few_times_as_fast_as_it_comes() -> None:
    pace = Pace(Backoff(), lambda: 0.5)
    assert pace.between_s(10.0, 10_000, 1_000) == 0.0  # there was no outage
    pace.after_failure_s(None, 10.0)
    pace.worked()
    assert pace.between_s(10.0, 10_000, 1_000) == 0.0  # nor is one failure one
    for _ in range(2):
        pace.after_failure_s(None, 10.0)
    pace.worked()
    assert pace.between_s(10.0, 1, 1_000) == 10.0
    assert pace.between_s(10.0, 10_000, 1_000) == 0.25
    pace.drained()
    assert pace.between_s(10.0, 1, 1_000) == 0.0
