"""Refusals say what is so: which bound was broken, and which unit a time seems to have."""

import pytest

from durabill.producers.gateway.api import SegmentRequest, TimeRules, check_segments
from durabill.producers.gateway.problems import ApiError
from durabill.schemas import BadRecord, Reason, SegmentEvent
from durabill.schemas.limits import LONG_MAX
from durabill.schemas.units import unit_hint
from durabill.stream_processors.core.order import Policy
from tests.unit.test_table import Log

NOW_MS = 1_735_689_660_123
POLICY = Policy(30_000, 300_000, 86_400_000, 0)


def detail_of(number: int, start_ms: int, end_ms: int, *, end: bool = False) -> str:
    with pytest.raises(BadRecord) as raised:
        SegmentEvent("A", number, start_ms, end_ms, end)
    return raised.value.detail


def test_a_number_that_is_too_large_is_not_called_too_small() -> None:
    assert detail_of(0, 1, 2) == "is 0, the first number is 1"
    assert f"is too large, the largest number is {LONG_MAX}" == detail_of(LONG_MAX + 1, 1, 2)
    assert "is too large" in detail_of(10**5000, 1, 2)  # Python shows no number of so many digits
    assert "a number of more than 64 bits" in detail_of(-(10**5000), 1, 2)


@pytest.mark.parametrize(
    ("times_ms", "why"),
    [
        ((5, 3), "[5, 3) ends before it begins"),
        ((-5, 3), "[-5, 3) begins before the epoch"),
        ((5, LONG_MAX + 1), f"[5, {LONG_MAX + 1}) does not fit into 64 bits"),
        ((7, 7), "[7, 7) is empty without the end identifier"),
    ],
)
def test_a_time_sequence_that_is_none_is_told_why(times_ms: tuple[int, int], why: str) -> None:
    assert why == detail_of(1, *times_ms)
    assert "64 bits" in detail_of(1, 5, 10**5000)


@pytest.mark.parametrize(
    ("time", "unit"),
    [
        (NOW_MS // 1000, "seconds"),
        (NOW_MS / 1000, "seconds"),
        (NOW_MS * 1000, "microseconds"),
        (NOW_MS * 10**6, "nanoseconds"),
        (NOW_MS, ""),
        (0, ""),
        (LONG_MAX, ""),
    ],
)
def test_a_times_unit_is_guessed(time: float, unit: str) -> None:
    hint = f"; {time:.0f} looks like {unit}, and times are milliseconds since the epoch"
    assert unit_hint(5, time) == (hint if unit else "")


@pytest.mark.parametrize(
    ("start_ms", "end_ms", "reason", "unit"),
    [
        (NOW_MS // 1000, NOW_MS // 1000 + 5, Reason.TOO_LATE, "seconds"),
        (NOW_MS * 1000, NOW_MS * 1000 + 5, Reason.IN_THE_FUTURE, "microseconds"),
        (NOW_MS // 1000, NOW_MS, Reason.TOO_LONG, "seconds"),
        (NOW_MS, NOW_MS // 1000, Reason.BAD_TIME_SEQUENCE, "seconds"),
    ],
)
def test_gateway_and_dead_letter_say_it(
    start_ms: int, end_ms: int, reason: Reason, unit: str
) -> None:
    with pytest.raises(ApiError) as refused:
        check_segments(
            "A",
            [SegmentRequest(1, start_ms, end_ms, False)],
            TimeRules(POLICY.correction_window_ms, NOW_MS),
        )
    (error,) = refused.value.errors
    assert (reason, True) == (error.reason, f"looks like {unit}" in error.detail)
    if reason is not Reason.BAD_TIME_SEQUENCE:
        log = Log()
        log.table.set_policy(POLICY)
        (letter,) = log.segment("A", start_ms=start_ms, end_ms=end_ms, at_ms=NOW_MS).dead_letters
        assert (reason, True) == (letter.reason, f"looks like {unit}" in letter.detail)


def test_seconds_with_a_fraction_are_told_too() -> None:
    rules = TimeRules(None, NOW_MS)
    with pytest.raises(ApiError) as refused:
        check_segments("A", [SegmentRequest(1, NOW_MS / 1000, NOW_MS, False)], rules)
    body = refused.value
    assert body.reason == "BAD_SHAPE"
    assert "1735689660 looks like seconds" in body.detail


def test_the_gateway_says_of_a_number_what_is_so() -> None:
    rules = TimeRules(None, NOW_MS)

    def detail(number: float) -> str:
        with pytest.raises(ApiError) as refused:
            check_segments("A", [SegmentRequest(number, NOW_MS - 9, NOW_MS, False)], rules)
        error = refused.value
        return error.errors[0].detail if error.errors else error.detail

    assert f"is too large, the largest number is {LONG_MAX}" == detail(LONG_MAX + 1)
    assert detail(-LONG_MAX - 1) == "is too small, the first number is 1"
    assert detail(2.0**60).endswith("beyond 2^53 a float isn't exact")


def test_a_gateways_error_hides_nothing() -> None:
    error = ApiError(400, "BAD_SHAPE", "unknown field `a\u202eb\u2028`")
    assert error.detail == r"unknown field `a\u202eb\u2028`"
