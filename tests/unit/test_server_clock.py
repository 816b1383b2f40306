"""The server's time as an interval, sample by sample. Instants are in us, the server's in ms."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from durabill.producers.sdk.server_clock import (
    APART_US,
    DRIFT_PPM_MAX,
    TIMESTAMP_MAX_MS,
    ServerClock,
    ServerStamps,
    Step,
)
from durabill.schemas.limits import FUTURE_TOLERANCE_MS

MS, S = 1_000, 1_000_000
SERVER_MS = 1_770_000_000_000
SLACK_US = 10  # what is rounded along the way


def learn(
    clock: ServerClock,
    asked_us: int,
    out_us: int,
    back_us: int,
    *,
    ahead_us: int = 0,
    clock_id: str = "a",
) -> Step | None:
    """An exchange with a server that is `SERVER_MS` and `ahead_us` ahead of the local clock."""
    taken_us = asked_us + out_us
    stamp_ms = SERVER_MS + (taken_us + ahead_us) / 1_000
    stamps = ServerStamps(stamp_ms, stamp_ms, clock_id)
    return clock.learn(asked_us, taken_us + back_us, stamps)


def ahead_us(clock: ServerClock, local_us: int) -> int:
    return clock.at(local_us)[0] - local_us - SERVER_MS * MS


def bound_us(clock: ServerClock, local_us: int) -> int:
    return clock.at(local_us)[1]


def doubt_us_of(clock: ServerClock) -> int:
    return clock.doubt_us + clock.swapped_us


def clock_without_drift() -> ServerClock:
    return ServerClock(0, drift_ppm=0)


def test_without_a_sample_it_is_the_local_clock_with_its_drift() -> None:
    clock = ServerClock(5 * S, drift_ppm=500)
    assert not clock.is_known
    assert clock.at(5 * S)[0] == 5 * S
    now_us, bound = clock.at(1_005 * S)
    assert now_us == 1_005 * S
    assert 500_000 <= bound <= 500_000 + 300  # 500 ppm, and of what a slow clock doesn't show


@pytest.mark.parametrize(("out_us", "back_us"), [(0, 2 * S), (2 * S, 0), (S, S)])
def test_error_is_at_most_half_of_the_ways_however_uneven(out_us: int, back_us: int) -> None:
    clock = clock_without_drift()
    assert learn(clock, 0, out_us, back_us) == Step(clock.jumped_us, was_known=False)
    off_us = ahead_us(clock, 2 * S)
    assert abs(off_us - (out_us - back_us) // 2) <= SLACK_US + MS
    assert abs(off_us) <= bound_us(clock, 2 * S) <= S + SLACK_US + MS


def test_what_the_server_took_itself_makes_no_error() -> None:
    clock = clock_without_drift()
    clock.learn(0, 3_000 * MS, ServerStamps(SERVER_MS + 5.001, SERVER_MS + 2_995.001, "a"))
    assert bound_us(clock, 3 * S) <= 5 * MS + SLACK_US


def test_whole_ms_are_taken_to_be_rounded() -> None:
    exact, rounded = clock_without_drift(), clock_without_drift()
    exact.learn(0, 10 * MS, ServerStamps(SERVER_MS + 5.5, SERVER_MS + 5.5, "a"))
    rounded.learn(0, 10 * MS, ServerStamps(SERVER_MS + 5, SERVER_MS + 5, "a"))
    assert bound_us(rounded, 0) - bound_us(exact, 0) == MS - 1


def test_samples_of_one_server_are_intersected() -> None:
    clock = clock_without_drift()
    learn(clock, 0, 0, 100 * MS)
    learn(clock, S, 100 * MS, 0)
    assert abs(ahead_us(clock, 2 * S)) <= bound_us(clock, 2 * S) <= SLACK_US + 2 * MS
    learn(clock, 2 * S, 500 * MS, 500 * MS)  # tells nothing new
    assert bound_us(clock, 3 * S) <= SLACK_US + 2 * MS


def test_bound_grows_with_the_age_of_what_was_heard() -> None:
    clock = ServerClock(0, drift_ppm=500)
    learn(clock, 0, MS, MS)
    grown_us = bound_us(clock, 3_602 * S) - bound_us(clock, 2 * S)
    assert abs(grown_us - 1_800 * MS) <= 2 * MS
    learn(clock, 3_602 * S, MS, MS)
    assert bound_us(clock, 3_602 * S) <= 4 * MS


def test_two_servers_that_are_apart_are_both_within_the_bound() -> None:
    clock = clock_without_drift()
    learn(clock, 0, MS, MS)
    assert learn(clock, S, MS, MS, ahead_us=300 * MS, clock_id="b") is None
    off_us, bound = ahead_us(clock, 2 * S), bound_us(clock, 2 * S)
    assert abs(off_us - 150 * MS) <= MS
    assert 150 * MS <= bound <= 153 * MS
    assert off_us - bound <= 0
    assert off_us + bound >= 300 * MS


def test_a_server_that_is_not_heard_any_more_is_dropped_and_what_hung_on_it_is_in_doubt() -> None:
    clock = ServerClock(0, drift_ppm=500)
    learn(clock, 0, MS, MS)
    doubt_us = doubt_us_of(clock)
    for at in range(1, 40):
        learn(clock, at * 10 * S, MS, MS, ahead_us=300 * MS, clock_id="b")
    assert abs(ahead_us(clock, 391 * S) - 300 * MS) <= 2 * MS
    assert bound_us(clock, 391 * S) <= 10 * MS
    assert 300 * MS <= doubt_us_of(clock) - doubt_us <= 315 * MS


def test_a_server_that_is_seldom_heard_is_held_by_its_distance_to_the_others() -> None:
    """Else its interval would be as wide as its age makes it."""
    clock = ServerClock(0, drift_ppm=500)
    learn(clock, 0, MS, MS)
    learn(clock, S, MS, MS, clock_id="b")
    for hour in range(1, 10):
        learn(clock, hour * 3_600 * S, MS, MS, clock_id="b")
    assert bound_us(clock, 9 * 3_600 * S) <= 10 * MS


def test_more_than_so_far_apart_is_a_step_and_a_new_epoch() -> None:
    clock = clock_without_drift()
    learn(clock, 0, MS, MS)
    epoch, doubt_us = clock.epoch, doubt_us_of(clock)
    step = learn(clock, S, MS, MS, ahead_us=7_200 * S)
    assert step is not None
    assert step.was_known
    assert abs(step.by_us - 7_200 * S) <= 2 * MS
    assert clock.epoch == epoch + 1
    assert clock.skipped_us == step.by_us
    assert doubt_us_of(clock) - doubt_us >= step.by_us
    assert abs(ahead_us(clock, 2 * S) - 7_200 * S) <= bound_us(clock, 2 * S) <= 3 * MS
    back = learn(clock, 3 * S, MS, MS)
    assert back is not None
    assert abs(back.by_us + step.by_us) <= 4 * MS
    assert abs(clock.skipped_us) <= 4 * MS


def test_another_server_so_far_away_is_a_step_as_well() -> None:
    clock = clock_without_drift()
    learn(clock, 0, MS, MS)
    assert learn(clock, S, MS, MS, ahead_us=APART_US + 5 * MS, clock_id="b") is not None


@pytest.mark.parametrize("pause_s", [10, 9_000])
def test_a_step_that_an_answer_on_its_way_hides_is_within_the_bound(pause_s: int) -> None:
    """A gateway was set by two seconds; its first answer took one, so it shows one and a bit."""
    clock = ServerClock(0)
    learn(clock, 0, 0, 0)
    begun_us, begun_bound_us, doubt_us = ahead_us(clock, 0), bound_us(clock, 0), doubt_us_of(clock)
    at_us = 600 * S
    assert learn(clock, at_us, 0, S, ahead_us=2 * S, clock_id="b") is None
    for _ in range(20):
        at_us += pause_s * S
        assert learn(clock, at_us, 0, 0, ahead_us=2 * S, clock_id="b") is None
    error_us = ahead_us(clock, at_us) - begun_us
    bound = begun_bound_us + bound_us(clock, at_us) + doubt_us_of(clock) - doubt_us
    assert error_us <= bound


def test_uneven_stamps_are_trusted_less_and_it_is_no_step() -> None:
    clock = clock_without_drift()
    learn(clock, 0, 0, 0)
    assert learn(clock, S, 0, 0, ahead_us=40 * MS) is None
    assert abs(ahead_us(clock, S) - 40 * MS) <= bound_us(clock, S) <= 42 * MS
    doubt_us = doubt_us_of(clock)
    for at in range(2, 50):
        assert learn(clock, at * S, 0, 0, ahead_us=40 * MS * (at % 2)) is None
    assert doubt_us_of(clock) == doubt_us  # it is known by now
    assert bound_us(clock, 50 * S) >= 19 * MS


def test_unevenness_is_forgotten_in_time() -> None:
    clock = clock_without_drift()
    learn(clock, 0, 0, 0)
    learn(clock, S, 0, 0, ahead_us=800 * MS)
    for hour in range(1, 20):
        learn(clock, hour * 3_700 * S, 0, 0, ahead_us=800 * MS)
    assert bound_us(clock, 19 * 3_700 * S) <= 3 * MS


def test_a_server_that_took_longer_than_the_exchange_says_nothing() -> None:
    clock = clock_without_drift()
    learn(clock, 0, MS, MS)
    before = clock.at(10 * S)
    stamps = ServerStamps(SERVER_MS + 1_000.5, SERVER_MS + 9_000.5, "a")
    assert clock.learn(S, S + 10 * MS, stamps) is None
    assert clock.at(10 * S) == before


def test_at_most_so_many_servers_are_kept() -> None:
    clock = clock_without_drift()
    for at in range(1_000):
        learn(clock, at * S, MS, MS, clock_id=f"c{at}")
    assert len(clock._sources) <= 8
    assert len(clock._links_us) <= 28
    assert abs(ahead_us(clock, 1_001 * S)) <= bound_us(clock, 1_001 * S)


def test_time_told_is_never_so_late_that_a_segment_would_lie_in_the_future() -> None:
    clock = ServerClock(0, drift_ppm=500)
    learn(clock, 0, MS, MS)
    three_days_us = 3 * 86_400 * S
    now_us, bound = clock.at(three_days_us)
    slowest_us = three_days_us + SERVER_MS * MS - three_days_us * 500 // 1_000_000
    assert now_us < slowest_us + FUTURE_TOLERANCE_MS * MS
    fastest_us = three_days_us + SERVER_MS * MS + three_days_us * 500 // 1_000_000
    assert bound >= fastest_us - now_us


def test_after_a_sleep_the_past_is_trusted_less() -> None:
    clock = clock_without_drift()
    learn(clock, 0, MS, MS)
    clock.loosen(S)
    assert bound_us(clock, 0) >= S
    learn(clock, 10 * S, MS, MS, ahead_us=900 * MS)
    assert abs(ahead_us(clock, 10 * S) - 900 * MS) <= bound_us(clock, 10 * S) <= 3 * MS


@pytest.mark.parametrize(
    ("received_ms", "sent_ms", "clock_id"),
    [
        (-1, 0, ""),
        (0, TIMESTAMP_MAX_MS + 1, ""),
        (2, 1, ""),
        (float("nan"), 1, ""),
        (1, float("inf"), ""),
        (1, 1, "c" * 201),
    ],
)
def test_stamps_without_sense_are_refused(
    received_ms: float, sent_ms: float, clock_id: str
) -> None:
    with pytest.raises(ValueError, match=r"stamps|sent at|clock_id"):
        ServerStamps(received_ms, sent_ms, clock_id)


@pytest.mark.parametrize("drift_ppm", [-1, DRIFT_PPM_MAX + 1])
def test_a_drift_without_sense_is_refused(drift_ppm: int) -> None:
    with pytest.raises(ValueError, match="drift_ppm"):
        ServerClock(0, drift_ppm=drift_ppm)


exchanges = st.tuples(
    st.integers(0, 4 * 3_600 * S), st.integers(0, 2 * S), st.integers(0, 2 * S), st.integers(0, S)
)


@given(st.integers(-500, 500), st.lists(exchanges, min_size=1, max_size=30))
def test_told_time_is_within_its_bound_of_the_server(
    drift_ppm: int, exchanges: list[tuple[int, int, int, int]]
) -> None:
    def local(true_us: int) -> int:
        return true_us + true_us * drift_ppm // 1_000_000

    clock, true_us = ServerClock(0, drift_ppm=501), 0
    for after_us, out_us, back_us, later_us in exchanges:
        asked_us = true_us + after_us
        taken_us = asked_us + out_us
        true_us = taken_us + back_us
        stamp_ms = SERVER_MS + taken_us / 1_000
        assert learn_is_quiet(clock, local(asked_us), local(true_us), stamp_ms)
        true_us += later_us
        now_us, bound = clock.at(local(true_us))
        assert abs(now_us - true_us - SERVER_MS * MS) <= bound


def learn_is_quiet(clock: ServerClock, asked_us: int, answered_us: int, stamp_ms: float) -> bool:
    was_known, doubt_us = clock.is_known, doubt_us_of(clock)
    step = clock.learn(asked_us, answered_us, ServerStamps(stamp_ms, stamp_ms, "a"))
    return (step is None and doubt_us_of(clock) == doubt_us) or not was_known
