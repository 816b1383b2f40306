"""The session: whatever the instants of reporting, the segments tile the server's time."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from durabill.producers.sdk.reading import Reading
from durabill.producers.sdk.server_clock import APART_US
from durabill.producers.sdk.session import GAP_MAX_MS, ClockWentBackwards, Session, SessionState
from durabill.schemas import BadRecord, SegmentEvent
from durabill.schemas.limits import SEGMENT_LENGTH_MAX_MS

SERVER_MS = 1_700_000_000_000
DAY_MS = SEGMENT_LENGTH_MAX_MS


def at(elapsed_ms: int, bound_ms: int = 0, **others: int) -> Reading:
    """The client's time so long after the server's go."""
    return Reading(elapsed_ms, SERVER_MS + elapsed_ms, bound_ms, **others)


def session(interval_ms: int = 1_000, reading: Reading | None = None) -> Session:
    return Session("SO1", SERVER_MS, interval_ms, at(0) if reading is None else reading)


def spans(segments: list[SegmentEvent]) -> list[tuple[int, int, int, bool]]:
    """Numbers, starts and ends relative to the server's go, end identifiers."""
    return [
        (s.business_data_number, s.start_ms - SERVER_MS, s.end_ms - SERVER_MS, s.end_identifier)
        for s in segments
    ]


def test_nothing_is_due_before_the_first_interval_is_over() -> None:
    service = session()
    assert service.due_at() == SERVER_MS + 1_000
    assert service.report(at(999)) == []
    assert spans(service.report(at(1_000))) == [(1, 0, 1_000, False)]
    assert service.due_at() == SERVER_MS + 2_000


def test_a_late_report_gives_whole_intervals_only() -> None:
    service = session()
    assert spans(service.report(at(3_999))) == [(1, 0, 3_000, False)]
    assert service.due_at() == SERVER_MS + 4_000


def test_end_gives_the_rest_with_the_end_identifier() -> None:
    service = session()
    service.report(at(1_000))
    assert spans(service.end(at(2_650))) == [(2, 1_000, 2_650, True)]
    assert service.state.ended


def test_an_end_that_a_better_estimate_leaves_ahead_is_within_the_bound() -> None:
    """It was cut two seconds ahead while nobody knew better; right after that somebody does."""
    service = session()
    service.report(at(5_000, bound_ms=3_000))  # it is 3,000 in truth
    service.end(Reading(5_001, SERVER_MS + 3_010, 20))
    assert service.state.reported_until_ms - SERVER_MS - 3_010 <= service.state.clock_bound_ms


def test_end_right_after_a_report_is_of_zero_length() -> None:
    service = session()
    service.report(at(1_000))
    assert spans(service.end(at(1_000))) == [(2, 1_000, 1_000, True)]


def test_end_at_once_is_one_empty_segment() -> None:
    assert spans(session().end(at(0))) == [(1, 0, 0, True)]


def test_first_segment_starts_at_the_servers_timestamp_though_its_answer_came_late() -> None:
    service = session(reading=at(700, bound_ms=300))
    assert spans(service.report(at(1_000))) == [(1, 0, 1_000, False)]
    assert service.state.clock_bound_ms == 700 + 300


def test_first_segment_starts_at_the_servers_timestamp_though_the_estimate_is_behind() -> None:
    service = session(reading=at(-400, bound_ms=500))
    assert service.report(at(-100)) == []
    assert spans(service.end(at(-50, bound_ms=500))) == [(1, 0, 0, True)]
    assert service.state.clock_bound_ms == 400 + 500 + 500 + 50  # which lie ahead at the end


def test_what_happened_to_the_clock_while_the_server_was_asked_is_in_doubt() -> None:
    asked, answered = at(-60, doubt_ms=10, unsettled_ms=3), at(40, doubt_ms=500)
    service = Session("SO1", SERVER_MS, 1_000, answered, asked=asked)
    assert service.state.clock_bound_ms == 40 + 490 + 3


def test_a_better_estimate_moves_the_next_end_alone() -> None:
    service = session()
    service.report(at(10_000))
    back = Reading(10_001, SERVER_MS + 9_200, 5)
    assert service.report(back) == []
    assert service.due_at() == SERVER_MS + 11_000
    assert spans(service.report(at(11_000))) == [(2, 10_000, 11_000, False)]


def test_an_end_before_the_last_end_is_of_zero_length() -> None:
    service = session()
    service.report(at(10_000))
    assert spans(service.end(Reading(10_001, SERVER_MS + 9_200, 5))) == [(2, 10_000, 10_000, True)]


def test_bound_is_of_the_start_and_the_end_and_of_what_happened_in_between() -> None:
    service = session(reading=at(40, bound_ms=20, doubt_ms=1_000))
    service.report(at(1_000, bound_ms=7, doubt_ms=1_000))
    assert service.state.clock_bound_ms == 40 + 20 + 7
    service.end(at(1_500, bound_ms=9, doubt_ms=1_003))
    assert service.state.clock_bound_ms == 40 + 20 + 9 + 3


def test_what_is_paused_or_skipped_is_left_out() -> None:
    service = session()
    service.report(at(2_000))
    later = at(5_500, paused_ms=2_000, skipped_ms=500, suspends=1)
    assert spans(service.report(later)) == [(2, 4_500, 5_500, False)]
    found = service.state.excluded_ms, service.state.suspends
    assert found == (2_500, 1)
    assert spans(service.end(later)) == [(3, 5_500, 5_500, True)]


def test_a_pause_is_left_out_of_the_report_that_covers_a_lost_one() -> None:
    service = session()
    before = service.state
    service.report(at(5_000, paused_ms=2_000))
    service.restore(before)
    assert spans(service.report(at(6_000, paused_ms=2_000))) == [(1, 2_000, 6_000, False)]


def test_nothing_is_due_until_it_is_settled_how_long_the_machine_slept() -> None:
    service = session()
    asleep = at(5_000, paused_ms=2_000, unsettled_ms=900)
    assert service.report(asleep) == []
    assert service.due_at() == SERVER_MS + 6_000
    assert spans(service.report(at(6_500, paused_ms=2_100))) == [(1, 2_100, 6_100, False)]


def test_an_end_that_can_not_wait_for_that_says_so() -> None:
    service = session()
    service.end(at(5_000, paused_ms=2_000, unsettled_ms=900))
    assert service.state.clock_bound_ms == 900


def test_own_time_is_not_moved_by_steps() -> None:
    """The caller gave the server's time: what a server says later doesn't change it."""
    unknown = Reading(50, 50, 0)
    service = Session("SO1", SERVER_MS, 1_000, unknown, own_time=True)
    assert spans(service.report(Reading(1_050, 1_050, 0))) == [(1, 0, 1_000, False)]
    heard = Reading(2_050, 77_002_050, 0, jumped_ms=77_000_000, skipped_ms=77_000_000)
    assert spans(service.report(heard)) == [(2, 1_000, 2_000, False)]


def test_no_segment_is_longer_than_the_contract_allows() -> None:
    service = session(interval_ms=1_000)
    assert spans(service.report(at(DAY_MS))) == [(1, 0, DAY_MS, False)]
    assert spans(service.end(at(3 * DAY_MS + 7))) == [
        (2, DAY_MS, 2 * DAY_MS, False),
        (3, 2 * DAY_MS, 3 * DAY_MS, False),
        (4, 3 * DAY_MS, 3 * DAY_MS + 7, True),
    ]


def test_long_gaps_are_cut_at_whole_intervals() -> None:
    service = session(interval_ms=50_000_000)
    assert spans(service.report(at(100_000_000))) == [
        (1, 0, 50_000_000, False),
        (2, 50_000_000, 100_000_000, False),
    ]


def test_a_clock_that_goes_backwards_is_an_error() -> None:
    service = session()
    service.report(at(5_000))
    with pytest.raises(ClockWentBackwards, match="4999 ms after 5000 ms"):
        service.report(at(4_999))
    with pytest.raises(ClockWentBackwards):
        session(reading=at(50)).end(at(49))


def test_nothing_comes_after_the_end() -> None:
    service = session()
    service.end(at(60))
    for ask in (service.report, service.end):
        with pytest.raises(ValueError, match="has ended"):
            ask(at(5_000))


def test_a_restored_report_is_cut_again_as_a_longer_one() -> None:
    service = session()
    before = service.state
    service.report(at(1_000))
    service.restore(before)
    assert spans(service.report(at(2_000))) == [(1, 0, 2_000, False)]
    before = service.state
    service.end(at(2_010))
    service.restore(before)
    assert spans(service.end(at(2_020))) == [(2, 2_000, 2_020, True)]


def reported(reading: Reading) -> SessionState:
    old = session()
    old.report(reading)
    return old.state


def test_resume_does_not_count_the_gap() -> None:
    state = reported(at(1_000, bound_ms=3))
    service = Session.resume(state, at(60_000, bound_ms=20))
    assert service.due_at() == SERVER_MS + 61_000
    assert spans(service.end(at(60_100, bound_ms=5))) == [(2, 60_000, 60_100, True)]
    assert service.state.clock_bound_ms == 3 + 20 + 5


def test_resume_counts_the_gap_if_told_so() -> None:
    service = Session.resume(reported(at(1_000, bound_ms=3)), at(60_000), count_gap=True)
    assert service.due_at() < SERVER_MS + 60_000
    assert spans(service.report(at(60_000, bound_ms=20))) == [(2, 1_000, 60_000, False)]
    assert service.state.clock_bound_ms == 3 + 20 + APART_US // 1_000


def test_resume_at_a_time_that_the_caller_gives() -> None:
    state = reported(at(1_000))
    service = Session.resume(state, Reading(7, 7, 0), server_timestamp_ms=SERVER_MS + 60_000)
    assert spans(service.end(Reading(107, 107, 0))) == [(2, 60_000, 60_100, True)]


def test_resume_counts_a_gap_of_a_year_at_most() -> None:
    """A server's time without sense would be cut into thousands of segments, again and again."""
    state = reported(at(1_000))
    for gap_ms in (GAP_MAX_MS - 1, GAP_MAX_MS):
        service = Session.resume(state, at(1_000 + gap_ms), count_gap=True)
        segments = service.end(at(1_000 + gap_ms))
        assert len(segments) == 366
        assert gap_ms == segments[-1].end_ms - state.reported_until_ms
    with pytest.raises(ValueError, match="at most a year counts"):
        Session.resume(state, at(1_000 + GAP_MAX_MS + 1), count_gap=True)
    later = at(1_000 + 100 * GAP_MAX_MS)
    assert len(Session.resume(state, later).end(later)) == 1


@pytest.mark.parametrize("count_gap", [False, True])
def test_resume_never_counts_twice_where_the_server_is_behind(count_gap: bool) -> None:
    """Time goes on being counted when the server has come to where it was reported already."""
    state = reported(at(5_000))
    service = Session.resume(state, at(4_000), count_gap=count_gap)
    assert service.report(at(4_999)) == []
    assert spans(service.end(at(5_010))) == [(2, 5_000, 5_010, True)]
    # A time that the caller gives is the server's, which is then taken to be behind.
    service = Session.resume(
        state, Reading(7, 7, 0), count_gap=count_gap, server_timestamp_ms=SERVER_MS + 4_000
    )
    assert spans(service.end(Reading(17, 17, 0))) == [(2, 5_000, 5_010, True)]


@pytest.mark.parametrize("count_gap", [False, True])
def test_a_server_that_was_set_back_meanwhile_is_within_the_bound(count_gap: bool) -> None:
    """Two hours of service, of which one lies before what was reported already: it isn't billed."""
    state = reported(at(7_200_000))
    service = Session.resume(state, at(3_600_000), count_gap=count_gap)
    billed_ms = sum(each.end_ms - each.start_ms for each in service.end(at(10_800_000)))
    assert billed_ms == 3_600_000
    assert 7_200_000 - billed_ms <= service.state.clock_bound_ms


def test_an_ended_session_can_not_be_resumed() -> None:
    with pytest.raises(ValueError, match="has ended"):
        Session.resume(SessionState("SO1", 1_000, 3, SERVER_MS, ended=True), at(0))


@pytest.mark.parametrize("interval_ms", [0, -1, DAY_MS + 1])
def test_a_report_interval_without_sense_is_refused(interval_ms: int) -> None:
    with pytest.raises(ValueError, match="report_interval_ms"):
        session(interval_ms)


def test_an_order_number_against_the_contract_is_refused() -> None:
    with pytest.raises(BadRecord):
        Session("", SERVER_MS, 1_000, at(0))


steps = st.lists(st.integers(0, 3 * DAY_MS) | st.integers(0, 5_000), max_size=30)


@given(interval_ms=st.integers(1, DAY_MS), steps=steps, last_step=st.integers(0, 2 * DAY_MS))
def test_segments_tile_the_elapsed_time(interval_ms: int, steps: list[int], last_step: int) -> None:
    now = 0
    service = session(interval_ms)
    segments: list[SegmentEvent] = []
    for step in steps:
        now += step
        was_due = SERVER_MS + now >= service.due_at()
        reported = service.report(at(now))
        assert bool(reported) == was_due
        assert service.due_at() > SERVER_MS + now
        segments += reported
        assert all((s.end_ms - s.start_ms) % interval_ms == 0 for s in reported)
    now += last_step
    segments += service.end(at(now))
    assert [s.business_data_number for s in segments] == list(range(1, len(segments) + 1))
    assert segments[0].start_ms == SERVER_MS
    assert all(a.end_ms == b.start_ms for a, b in pairwise(segments))
    assert segments[-1].end_ms - SERVER_MS == now
    assert [s.end_identifier for s in segments] == [False] * (len(segments) - 1) + [True]
    assert all(s.end_ms - s.start_ms <= DAY_MS for s in segments)


@given(
    lives=st.lists(
        st.tuples(st.booleans(), st.integers(0, 10_000), steps, st.integers(0, 10**9)), max_size=5
    )
)
def test_crashes_leave_no_hole_in_the_numbers_and_no_time_twice(
    lives: list[tuple[bool, int, list[int], int]],
) -> None:
    segments: list[SegmentEvent] = []
    service, server_ms, now = session(), SERVER_MS, 0
    for count_gap, dead_ms, life_steps, clock_ms in lives:
        for step in life_steps:
            now, server_ms = now + step, server_ms + step
            segments += service.report(Reading(now, server_ms, 0))
        server_ms, now = server_ms + dead_ms, clock_ms
        until_ms = service.state.reported_until_ms
        reading = Reading(now, server_ms, 0)
        service = Session.resume(service.state, reading, count_gap=count_gap)
        assert service.state.reported_until_ms == (until_ms if count_gap else server_ms)
    segments += service.end(Reading(now + 5, server_ms + 5, 0))
    assert [s.business_data_number for s in segments] == list(range(1, len(segments) + 1))
    assert all(a.end_ms <= b.start_ms for a, b in pairwise(segments))
    assert segments[-1].end_ms == server_ms + 5
