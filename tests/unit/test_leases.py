"""Leases: what a gateway takes for its own word, and what it doesn't."""

import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from joserfc import jws
from joserfc.jwk import OctKey

from durabill.producers.gateway.api import TimeRules
from durabill.producers.gateway.caller import ALL_SCOPES, Caller
from durabill.producers.gateway.key_files import WatchedKeys, make_keys, read_keys, replace_keys
from durabill.producers.gateway.key_sets import (
    HAND_OVER_MS,
    KeySet,
    Kind,
    SigningKeyError,
    new_keys,
    rotated,
)
from durabill.producers.gateway.leases import (
    LEASE_CHARS_MAX,
    Lease,
    LeaseBook,
    bounds_for,
    rules_under,
)
from durabill.producers.gateway.problems import ApiError
from durabill.schemas import SegmentEvent
from durabill.schemas.base64url import encode64
from durabill.schemas.errors import BadRecord
from durabill.schemas.limits import FUTURE_TOLERANCE_MS
from tests.waiting import HANG_S

NOW_MS = 1_800_000_000_000
DAY_MS = 86_400_000
LEASE_MS = 7 * DAY_MS
ANNA = Caller("acme", "anna", ALL_SCOPES, "key-1")
NOBODY = Caller("default", "192.0.2.1", ALL_SCOPES)


class Ticks:
    """A monotonic clock, moved by hand."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "leases.json"
    assert make_keys(path, new_keys(Kind.LEASE))
    return path


def book(path: Path | None, ticks: Ticks | None = None, *, is_required: bool = True) -> LeaseBook:
    watched = WatchedKeys(path, Kind.LEASE, ticks or Ticks())
    return LeaseBook(watched, lease_ms=LEASE_MS, is_required=is_required)


def mint(leases: LeaseBook, caller: Caller = ANNA, number: str = "SO1") -> str:
    token, _ = leases.mint(number, caller.tenant, caller.client, now_ms=NOW_MS, interval_ms=10_000)
    return token


def refused(
    leases: LeaseBook, token: str | None, caller: Caller = ANNA, at_ms: int = NOW_MS
) -> tuple[int, str]:
    with pytest.raises(ApiError) as error:
        leases.check(token, "SO1", caller, at_ms)
    return error.value.status, error.value.reason


def test_a_lease_says_what_was_put_into_it() -> None:
    leases = book(None)
    until_ms = NOW_MS + LEASE_MS
    expected = Lease("SO1", "acme", "anna", NOW_MS, NOW_MS, 10_000, until_ms, until_ms)
    token = mint(leases)
    for at_ms in (NOW_MS - DAY_MS, NOW_MS, until_ms - 1):  # also by a clock that was set back
        assert leases.check(token, "SO1", ANNA, at_ms) == expected


def test_somebody_elses_jws_library_reads_it(file: Path) -> None:
    token = mint(book(file))
    key = OctKey.import_key({"kty": "oct", "k": read_keys(file, Kind.LEASE).keys[0].k})
    found = jws.deserialize_compact(token, key, algorithms=["HS256"])
    assert found.headers()["typ"] == "lease+jwt"
    assert json.loads(found.payload)["ord"] == "SO1"


@given(
    st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=64),
    st.text("abc._-", min_size=1, max_size=64),
    st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=64),
    st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=64),
)
@example('"' * 64, "t" * 64, "\\" * 64, '"' * 64)
def test_any_names_come_back_and_fit(number: str, tenant: str, client: str, service: str) -> None:
    number, client, service = _cut(number) or "x", _cut(client), _cut(service)
    watched = WatchedKeys(None, Kind.LEASE, Ticks())
    leases = LeaseBook(watched, lease_ms=LEASE_MS, is_required=True, correction_window_ms=0)
    caller = Caller(tenant, client, ALL_SCOPES, "k")
    who = number, caller.tenant, caller.client
    token, _ = leases.mint(*who, service, now_ms=NOW_MS, interval_ms=86_400_000)
    token, _, _ = leases.renew(token, number, caller, NOW_MS + 2 * LEASE_MS)
    assert len(token) <= LEASE_CHARS_MAX
    lease = leases.check(token, number, caller, NOW_MS)
    assert lease is not None
    assert (*lease[:3], lease.service) == (number, tenant, client, service)


def _cut(text: str) -> str:
    return text.encode()[:64].decode(errors="ignore")


# -- what is forged


def _with_head(token: str, head: dict[str, Any]) -> str:
    return f"{encode64(json.dumps(head).encode())}.{token.partition('.')[2]}"


def _unsigned(token: str) -> str:
    return _with_head(token, {"alg": "none", "typ": "lease+jwt"}).rpartition(".")[0] + "."


FORGED: dict[str, Callable[[str], str]] = {
    "alg none": _unsigned,
    "alg none, our head": lambda token: token.rpartition(".")[0] + ".",
    "no signature at all": lambda token: token.rpartition(".")[0],
    "another algorithm": lambda token: _with_head(token, {"alg": "HS512", "typ": "lease+jwt"}),
    "a kid that isn't there": lambda token: _with_head(
        token, {"alg": "HS256", "kid": "aaaaaaaaaaaa", "typ": "lease+jwt"}
    ),
    "a key of its own": lambda token: _with_head(
        token, {"alg": "HS256", "jwk": {"kty": "oct", "k": "AA"}, "typ": "lease+jwt"}
    ),
    "a part too many": lambda token: token + ".x",
    "blanks": lambda token: f" {token}",
    "a padded signature": lambda token: token + "=",
    "only points": lambda _: "..",
    "another script": lambda token: token + "é",
    "endless": lambda token: token + "A" * LEASE_CHARS_MAX,
}


@pytest.mark.parametrize("how", FORGED)
def test_what_is_forged_is_refused(how: str) -> None:
    leases = book(None)
    assert refused(leases, FORGED[how](mint(leases))) == (401, "LEASE_INVALID")


def test_a_payload_that_was_changed_is_refused() -> None:
    leases = book(None)
    head, body, signature = mint(leases).split(".")
    other, _ = leases.mint("SO2", "acme", "anna", now_ms=NOW_MS, interval_ms=10_000)
    assert refused(leases, f"{head}.{other.split('.')[1]}.{signature}") == (401, "LEASE_INVALID")
    assert refused(leases, f"{head}.{body}A.{signature}") == (401, "LEASE_INVALID")


@given(st.data())
def test_no_character_of_it_can_be_another(data: st.DataObject) -> None:
    leases = book(None)
    token = mint(leases)
    at = data.draw(st.integers(0, len(token) - 1))
    other = data.draw(st.sampled_from("ABab01-_.").filter(lambda char: char != token[at]))
    assert refused(leases, token[:at] + other + token[at + 1 :]) == (401, "LEASE_INVALID")


def test_a_receipt_or_a_lease_of_another_deployment_is_none() -> None:
    assert refused(book(None), mint(book(None))) == (401, "LEASE_INVALID")


# -- whose it is, and for how long


def test_it_is_its_orders_and_its_holders_alone() -> None:
    leases = book(None)
    token = mint(leases)
    for caller in (
        Caller("other", "anna", ALL_SCOPES, "key-2"),
        Caller("acme", "bert", ALL_SCOPES, "key-3"),
    ):
        assert refused(leases, token, caller) == (403, "LEASE_OF_ANOTHER")
    assert refused(leases, mint(leases, number="SO2")) == (403, "LEASE_OF_ANOTHER")
    assert leases.check(token, "SO1", Caller("acme", "anna", ALL_SCOPES, "its new key"), NOW_MS)


def test_without_authentication_an_address_may_change() -> None:
    leases = book(None)
    token = mint(leases, NOBODY)
    assert leases.check(token, "SO1", Caller("default", "192.0.2.9", ALL_SCOPES), NOW_MS)


def test_it_ends_and_can_be_renewed() -> None:
    leases = book(None)
    token, until_ms = mint(leases), NOW_MS + LEASE_MS
    assert refused(leases, token, at_ms=until_ms) == (401, "LEASE_EXPIRED")
    now_ms = until_ms + DAY_MS
    renewed, lease, is_longer = leases.renew(token, "SO1", ANNA, now_ms)
    assert is_longer
    assert leases.check(renewed, "SO1", ANNA, now_ms) == lease
    assert (lease.opened_ms, lease.issued_ms) == (NOW_MS, now_ms)
    assert lease.expires_ms == lease.accept_until_ms == now_ms + LEASE_MS


def test_a_renewal_never_shortens_it() -> None:
    leases = book(None)
    token = mint(leases)
    _, lease, is_longer = leases.renew(token, "SO1", ANNA, NOW_MS - DAY_MS)
    assert not is_longer
    assert lease.expires_ms == lease.accept_until_ms == NOW_MS + LEASE_MS


def test_who_renews_every_second_extends_his_order_eight_times_in_a_leases_life() -> None:
    leases = book(None)
    token, extended = mint(leases), 0
    for now_ms in range(NOW_MS, NOW_MS + LEASE_MS + 1, LEASE_MS // 1_000):
        token, lease, is_longer = leases.renew(token, "SO1", ANNA, now_ms)
        extended += is_longer
        assert lease.expires_ms == lease.accept_until_ms >= now_ms + LEASE_MS * 7 // 8
        assert lease.oldest_ms == 0
    assert extended == 8


def test_who_shows_his_oldest_lease_each_time_extends_his_order_no_more_often() -> None:
    leases = book(None)
    oldest, extended = mint(leases), 0
    for now_ms in range(NOW_MS, NOW_MS + LEASE_MS + 1, LEASE_MS // 1_000):
        token, lease, is_longer = leases.renew(oldest, "SO1", ANNA, now_ms)
        if is_longer:
            leases.note_logged(lease)
        extended += is_longer
        assert lease.expires_ms == lease.accept_until_ms >= now_ms + LEASE_MS * 7 // 8
        assert leases.check(token, "SO1", ANNA, now_ms) == lease
    assert extended == 8
    # What Kafka has not acknowledged is not counted on, and of another order it says nothing.
    fresh = book(None)
    oldest = mint(fresh)
    for _ in range(2):
        assert fresh.renew(oldest, "SO1", ANNA, NOW_MS + LEASE_MS)[2]
    fresh.note_logged(lease._replace(number="SO2"))
    assert fresh.renew(oldest, "SO1", ANNA, NOW_MS + LEASE_MS)[2]


@pytest.mark.parametrize(("after_ms", "is_over"), [(0, False), (1, True), (9 * DAY_MS, True)])
def test_where_its_order_may_have_been_forgotten_what_was_billed_stays_so(
    after_ms: int, is_over: bool
) -> None:
    """A segment that was in time in the life before can't come again; later ones can, late."""
    watched = WatchedKeys(None, Kind.LEASE, Ticks())
    leases = LeaseBook(
        watched, lease_ms=LEASE_MS, is_required=True, correction_window_ms=2 * DAY_MS
    )
    now_ms = NOW_MS + LEASE_MS + after_ms
    token, lease, _ = leases.renew(mint(leases), "SO1", ANNA, now_ms)
    oldest_ms = now_ms - 2 * DAY_MS if is_over else 0
    assert lease.oldest_ms == oldest_ms
    rules = TimeRules(2 * DAY_MS, now_ms + 5 * DAY_MS)
    assert bounds_for(lease, rules) == rules_under(lease, rules).bounds_ms()
    assert bounds_for(lease, rules).earliest_end_ms == oldest_ms
    _, lease, _ = leases.renew(token, "SO1", ANNA, now_ms + DAY_MS)
    assert lease.oldest_ms == oldest_ms


@pytest.mark.parametrize("token", [None, "", "x.y.z"])
def test_nobody_renews_without_one(token: str | None) -> None:
    with pytest.raises(ApiError) as error:
        book(None).renew(token, "SO1", ANNA, NOW_MS)
    assert error.value.status == 401


def test_who_needs_none() -> None:
    required, optional = book(None), book(None, is_required=False)
    for caller in (ANNA, NOBODY):
        assert refused(required, None, caller) == (401, "LEASE_MISSING")
    assert optional.check(None, "SO1", NOBODY, NOW_MS) is None
    assert optional.check(None, "acme:SO1", ANNA, NOW_MS) is None
    assert refused(optional, None) == (401, "LEASE_MISSING")  # it may be another's
    for number in ("acme", "acmeSO1", "other:acme:SO1", ":SO1"):
        with pytest.raises(ApiError):
            optional.check(None, number, ANNA, NOW_MS)
    assert refused(optional, "x.y.z", NOBODY) == (401, "LEASE_INVALID")


# -- keys that change


def test_two_gateways_with_one_file_while_its_key_changes(file: Path) -> None:
    """At no moment does one refuse what the other has signed, however late it looks."""
    ticks = [Ticks(), Ticks()]
    both = [book(file, each) for each in ticks]
    tokens = [mint(both[0])]
    kids = set()
    for step_ms in range(0, 2 * HAND_OVER_MS, 500):
        if step_ms == 10_000:
            replace_keys(file, rotated(read_keys(file, Kind.LEASE), NOW_MS + step_ms))
        for each in ticks:
            each.now_s = step_ms / 1000
        signer, reader = both if step_ms % 1000 else both[::-1]
        token, _ = signer.mint("SO1", "acme", "anna", now_ms=NOW_MS + step_ms, interval_ms=10_000)
        kids.add(token.partition(".")[0])
        tokens.append(token)
        for old in (tokens[0], token):
            assert reader.check(old, "SO1", ANNA, NOW_MS + step_ms)
    assert len(kids) == 2


def test_a_key_that_has_gone_is_known_no_more(file: Path) -> None:
    ticks = Ticks()
    leases = book(file, ticks)
    token = mint(leases)
    assert leases.check(token, "SO1", ANNA, NOW_MS)  # so it is kept
    replace_keys(file, new_keys(Kind.LEASE))
    ticks.now_s += 2
    assert refused(leases, token) == (401, "LEASE_INVALID")


def test_a_key_that_isnt_known_is_looked_for_at_once(file: Path) -> None:
    ticks = Ticks()
    reader = book(file, ticks)
    replace_keys(file, new_keys(Kind.LEASE))
    token = mint(book(file))
    ticks.now_s += 0.2
    assert reader.check(token, "SO1", ANNA, NOW_MS)


def test_strangers_keys_make_it_look_ten_times_a_second_at_most(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = Ticks()
    leases = book(file, ticks)
    looked, stat = [], Path.stat

    def counted(path: Path, **more: bool) -> os.stat_result:
        looked.append(path)
        return stat(path, **more)

    monkeypatch.setattr(Path, "stat", counted)
    for step in range(1_000):
        ticks.now_s = step / 1000
        refused(leases, FORGED["a kid that isn't there"](f"{step}.x.y"))
    assert 1 <= len(looked) <= 11


@pytest.mark.parametrize(
    "content", [b"", b"{", b'{"keys":[]}', b'{"keys":[{"kid":"a"}]}', b'{"x":' + b"[" * 100_000]
)
def test_a_file_that_is_damaged_changes_nothing(file: Path, content: bytes) -> None:
    ticks = Ticks()
    leases = book(file, ticks)
    token = mint(leases)
    file.write_bytes(content)
    ticks.now_s += 2
    assert leases.check(token, "SO1", ANNA, NOW_MS)
    assert leases.check(mint(leases), "SO1", ANNA, NOW_MS)
    with pytest.raises(SigningKeyError) as error:
        read_keys(file, Kind.LEASE)
    assert error.value.exit_code == 2
    file.unlink()
    ticks.now_s += 2
    assert leases.check(token, "SO1", ANNA, NOW_MS)


def test_a_pipe_in_its_place_holds_up_nobody(file: Path) -> None:
    file.unlink()
    os.mkfifo(file, 0o600)
    told: list[str] = []

    def read() -> None:
        with pytest.raises(SigningKeyError) as refused:
            read_keys(file, Kind.LEASE)
        told.append(str(refused.value).partition(", or ")[0])

    reading = threading.Thread(target=read, daemon=True)
    reading.start()
    reading.join(HANG_S)
    assert told == [f"{file} is no file of lease keys"]


def test_a_file_that_others_can_read_is_refused(file: Path) -> None:
    secret = read_keys(file, Kind.LEASE).keys[0].k
    file.chmod(0o640)
    with pytest.raises(SigningKeyError, match="chmod 600") as error:
        read_keys(file, Kind.LEASE)
    assert secret not in str(error.value)


def test_a_file_of_the_other_kind_is_refused(file: Path, tmp_path: Path) -> None:
    with pytest.raises(SigningKeyError, match="no file of receipt keys"):
        read_keys(file, Kind.RECEIPT)
    with pytest.raises(SigningKeyError, match="durabill keys make"):
        read_keys(tmp_path / "none.json", Kind.LEASE)


def test_files_are_private_whatever_the_umask_and_never_overwritten(tmp_path: Path) -> None:
    path, before = tmp_path / "keys.json", os.umask(0)
    try:
        assert make_keys(path, new_keys(Kind.LEASE))
        content = path.read_bytes()
        assert not make_keys(path, new_keys(Kind.LEASE))
        assert path.read_bytes() == content
        replace_keys(path, new_keys(Kind.LEASE))
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o600
    assert [each.name for each in tmp_path.iterdir()] == ["keys.json"]


def test_what_is_told_of_keys_has_no_secret() -> None:
    for kind in Kind:
        keys = new_keys(kind)
        for text in (repr(keys), str(keys), repr(keys.keys[0])):
            assert keys.keys[0].kid in text
            for secret in (keys.keys[0].k, keys.keys[0].d, keys.number_secret):
                assert not secret or secret not in text


def test_of_leases_two_keys_hold_and_none_goes_too_early() -> None:
    first = new_keys(Kind.LEASE)
    second = rotated(first, NOW_MS, keep_ms=LEASE_MS)
    assert second.number_secret == first.number_secret
    assert second.signer(NOW_MS).kid == first.keys[0].kid
    begins_ms = NOW_MS + HAND_OVER_MS
    assert second.signer(begins_ms).kid == second.keys[0].kid
    with pytest.raises(SigningKeyError, match="doesn't sign yet"):
        rotated(second, begins_ms - 1)
    with pytest.raises(SigningKeyError, match="--force"):
        rotated(second, begins_ms + LEASE_MS - 1, keep_ms=LEASE_MS)
    for third in (
        rotated(second, begins_ms + LEASE_MS, keep_ms=LEASE_MS),
        rotated(second, begins_ms),
    ):
        assert [each.kid for each in third.keys[1:]] == [second.keys[0].kid]


def test_a_clock_far_behind_signs_all_the_same() -> None:
    keys = rotated(KeySet(new_keys(Kind.LEASE).keys[:1]), NOW_MS)
    assert keys.signer(0).kid == keys.keys[1].kid
    late = KeySet(keys.keys[:1])
    assert late.signer(0).kid == keys.keys[0].kid


def test_what_is_kept_of_tokens_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("durabill.producers.gateway.leases._CACHED_MAX", 10)
    leases = book(None)
    tokens = [mint(leases, number=f"SO{at}") for at in range(30)]
    for _ in range(2):
        for at, token in enumerate(tokens):
            assert leases.check(token, f"SO{at}", ANNA, NOW_MS)
            assert len(leases._cache) <= 10


# -- what its segments may be


def lease(opened_ms: int, accept_until_ms: int) -> Lease:
    return Lease("SO1", "acme", "anna", opened_ms, opened_ms, 10_000, 0, accept_until_ms)


times = st.integers(0, 40).map(lambda days: NOW_MS + (days - 20) * DAY_MS)


@given(times, times, times, times, st.integers(0, DAY_MS), st.integers(0, DAY_MS))
def test_what_a_lease_refuses_would_never_count(
    opened_ms: int, until_ms: int, end_ms: int, arrives_ms: int, early_ms: int, late_ms: int
) -> None:
    """Against the engine's rules, said once more: whatever they would take must be let through."""
    window_ms = DAY_MS
    segment = SegmentEvent("SO1", 1, end_ms - 1_000, end_ms, False)
    would_count = (
        end_ms - arrives_ms <= FUTURE_TOLERANCE_MS
        and (arrives_ms - end_ms <= window_ms or arrives_ms <= until_ms)
        and segment.start_ms >= opened_ms
    )
    # The gateway's clock now, from which the arrival is as far off as the margins say.
    for now_ms in (arrives_ms - early_ms, arrives_ms + late_ms):
        rules = TimeRules(window_ms, now_ms, early_ms, late_ms)
        under = rules_under(lease(opened_ms, until_ms), rules)
        assert bounds_for(lease(opened_ms, until_ms), rules) == under.bounds_ms()
        try:
            under.check(segment)
        except BadRecord:
            assert not would_count
        if segment.start_ms >= opened_ms:
            assert under.judge(segment, arrives_ms).counts == would_count


def test_bounds_of_a_lease() -> None:
    rules = TimeRules(DAY_MS, NOW_MS, 0, 0)
    latest_ms = NOW_MS + FUTURE_TOLERANCE_MS
    assert bounds_for(None, rules) == (0, NOW_MS - DAY_MS, latest_ms)
    opened_ms = NOW_MS - 3 * DAY_MS
    assert bounds_for(lease(opened_ms, NOW_MS), rules) == (opened_ms, 0, latest_ms)
    past = lease(opened_ms, NOW_MS - 1)
    assert bounds_for(past, rules) == (opened_ms, NOW_MS - DAY_MS, latest_ms)
