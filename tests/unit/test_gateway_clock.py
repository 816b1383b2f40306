"""The estimate of the broker's clock, and what the gateway judges by it."""

from hypothesis import given
from hypothesis import strategies as st

from durabill.producers.gateway.api import SegmentResult, TimeRules
from durabill.producers.gateway.broker_clock import KEPT_MS, BrokerClock
from durabill.schemas import SegmentEvent
from durabill.schemas.limits import FUTURE_TOLERANCE_MS


class Clocks:
    """A wall clock and a monotonic one, in ms, moved by hand."""

    def __init__(self, wall_ms: int) -> None:
        self.wall_ms = wall_ms
        self.tick_ms = 5_000_000

    def of_broker(self) -> BrokerClock:
        return BrokerClock(lambda: self.wall_ms * 1_000_000, lambda: self.tick_ms * 1_000_000)


def test_before_the_first_acknowledgement_the_own_clock_is_all_there_is() -> None:
    clock = Clocks(1_000).of_broker()
    assert (clock.now_ms(), clock.offset_ms(), clock.error_ms()) == (1_000, None, None)


@given(
    st.integers(-(10**8), 10**8),
    st.lists(st.tuples(st.integers(0, 3_000), st.integers(0, 3_000)), min_size=1),
)
def test_the_estimate_is_within_its_stated_error(
    offset_ms: int, waits: list[tuple[int, int]]
) -> None:
    clocks = Clocks(10**12)
    clock = clocks.of_broker()
    ahead_ms = clocks.wall_ms + offset_ms - clocks.tick_ms
    for before_ms, after_ms in waits:
        sent_ms = clocks.tick_ms
        append_ms = sent_ms + before_ms + ahead_ms
        clocks.tick_ms += before_ms + after_ms
        clocks.wall_ms += before_ms + after_ms
        clock.learn(sent_ms, clocks.tick_ms, append_ms)
        error_ms, found_ms = clock.error_ms(), clock.offset_ms()
        assert error_ms is not None
        assert found_ms is not None
        assert abs(found_ms - offset_ms) <= error_ms
        assert abs(clock.now_ms() - (clocks.tick_ms + ahead_ms)) <= error_ms


def test_a_narrow_estimate_is_kept_for_a_minute() -> None:
    clocks = Clocks(0)
    clock = clocks.of_broker()
    clock.learn(0, 10, 1_005)
    clock.learn(100, 300, 1_200)
    clocks.tick_ms = 300
    assert clock.error_ms() == 6
    clock.learn(KEPT_MS, KEPT_MS + 9, KEPT_MS + 1_005)
    clock.learn(2 * KEPT_MS, 2 * KEPT_MS + 200, 2 * KEPT_MS + 1_100)
    clocks.tick_ms = 2 * KEPT_MS + 200
    assert clock.error_ms() == 101


def test_an_estimate_that_nothing_confirms_counts_for_a_minute() -> None:
    clocks = Clocks(0)
    clock = clocks.of_broker()
    for tick_ms in (0, KEPT_MS - 500):
        clock.learn(tick_ms, tick_ms + tick_ms // 1_000, tick_ms + 1_000)
    clocks.tick_ms = clock_heard_ms = KEPT_MS - 500 + (KEPT_MS - 500) // 1_000
    clocks.tick_ms = clock_heard_ms + KEPT_MS
    assert clock.error_ms() is not None
    clocks.tick_ms += 1
    assert clock.error_ms() is None
    assert clock.now_ms() == clocks.tick_ms + 1_000


def test_a_broker_whose_clock_is_set_is_believed_at_once() -> None:
    clocks = Clocks(0)
    clock = clocks.of_broker()
    clock.learn(0, 10, 1_005)
    clock.learn(20, 60, 90_040)
    assert clock.now_ms() - clocks.tick_ms == 90_000


def test_setting_the_own_clock_right_ends_the_offset() -> None:
    clocks = Clocks(1_000_000)
    clock = clocks.of_broker()
    clock.learn(clocks.tick_ms, clocks.tick_ms, 880_000)
    assert clock.offset_ms() == -120_000
    clocks.wall_ms -= 120_000
    assert (clock.offset_ms(), clock.now_ms()) == (0, 880_000)


DAY_MS = 86_400_000
ARRIVAL_MS = 10 * DAY_MS


def judged(end_ms: int, append_ms: int | None, window_ms: int | None = DAY_MS) -> SegmentResult:
    segment = SegmentEvent("SO1", 7, end_ms - 1, end_ms, False)
    return TimeRules(window_ms, now_ms=0).judge(segment, append_ms)


def test_what_counts_is_judged_by_the_arrival_to_the_millisecond() -> None:
    expected = {
        FUTURE_TOLERANCE_MS + 1: (False, "IN_THE_FUTURE"),
        FUTURE_TOLERANCE_MS: (True, None),
        FUTURE_TOLERANCE_MS - 1: (True, None),
        -DAY_MS + 1: (True, None),
        -DAY_MS: (True, None),
        -DAY_MS - 1: (False, "TOO_LATE"),
    }
    for ahead_ms, (counts, reason) in expected.items():
        result = judged(ARRIVAL_MS + ahead_ms, ARRIVAL_MS)
        assert (7, counts, reason) == (result.business_data_number, result.counts, result.reason)
        assert (result.detail is None) == counts


def test_what_nobody_can_know_is_not_said() -> None:
    assert judged(ARRIVAL_MS, None).counts
    assert judged(1, ARRIVAL_MS, window_ms=None).counts


@given(st.lists(st.tuples(st.integers(-2 * DAY_MS, 100_000), st.integers(0, 50_000)), min_size=1))
def test_all_at_once_are_judged_like_each(segments: list[tuple[int, int]]) -> None:
    rules = TimeRules(DAY_MS, now_ms=0)
    events = [
        SegmentEvent("SO1", number, ARRIVAL_MS + ahead_ms, ARRIVAL_MS + ahead_ms, True)
        for number, (ahead_ms, _) in enumerate(segments, 1)
    ]
    appends_ms: list[int | None] = [ARRIVAL_MS + later_ms for _, later_ms in segments]
    expected = [rules.judge(event, at) for event, at in zip(events, appends_ms, strict=True)]
    assert rules.judge_all(events, appends_ms) == expected
