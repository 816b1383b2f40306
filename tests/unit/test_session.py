"""The session: whatever the instants of reporting, the segments tile the service's time."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from durabill.producers.sdk.session import GAP_MAX_MS, ClockWentBackwards, Session, SessionState
from durabill.schemas import BadRecord, SegmentEvent
from durabill.schemas.limits import SEGMENT_LENGTH_MAX_MS

SERVER_MS = 1_700_000_000_000
DAY_MS = SEGMENT_LENGTH_MAX_MS


def session(interval_ms: int = 1_000, anchor_ms: int = 50) -> Session:
    return Session("SO1", SERVER_MS, interval_ms, anchor_ms)


def spans(segments: list[SegmentEvent]) -> list[tuple[int, int, int, bool]]:
    """Numbers, starts and ends relative to the server's go, end identifiers."""
    return [
        (s.business_data_number, s.start_ms - SERVER_MS, s.end_ms - SERVER_MS, s.end_identifier)
        for s in segments
    ]


def test_nothing_is_due_before_the_first_interval_is_over() -> None:
    service = session()
    assert service.due_at() == 1_050
    assert service.report(1_049) == []
    assert spans(service.report(1_050)) == [(1, 0, 1_000, False)]
    assert service.due_at() == 2_050


def test_a_late_report_gives_whole_intervals_only() -> None:
    service = session()
    assert spans(service.report(50 + 3_999)) == [(1, 0, 3_000, False)]
    assert service.due_at() == 4_050


def test_end_gives_the_rest_with_the_end_identifier() -> None:
    service = session()
    service.report(1_050)
    assert spans(service.end(2_700)) == [(2, 1_000, 2_650, True)]
    assert service.state.ended


def test_end_right_after_a_report_is_of_zero_length() -> None:
    service = session()
    service.report(1_050)
    assert spans(service.end(1_050)) == [(2, 1_000, 1_000, True)]


def test_end_at_once_is_one_empty_segment() -> None:
    assert spans(session().end(50)) == [(1, 0, 0, True)]


def test_no_segment_is_longer_than_the_contract_allows() -> None:
    service = session(interval_ms=1_000)
    assert spans(service.report(50 + DAY_MS)) == [(1, 0, DAY_MS, False)]
    assert spans(service.end(50 + 3 * DAY_MS + 7)) == [
        (2, DAY_MS, 2 * DAY_MS, False),
        (3, 2 * DAY_MS, 3 * DAY_MS, False),
        (4, 3 * DAY_MS, 3 * DAY_MS + 7, True),
    ]


def test_long_gaps_are_cut_at_whole_intervals() -> None:
    service = session(interval_ms=50_000_000)
    assert spans(service.report(50 + 100_000_000)) == [
        (1, 0, 50_000_000, False),
        (2, 50_000_000, 100_000_000, False),
    ]


def test_a_clock_that_goes_backwards_is_an_error() -> None:
    service = session()
    service.report(5_000)
    with pytest.raises(ClockWentBackwards, match="4999 ms after 5000 ms"):
        service.report(4_999)
    with pytest.raises(ClockWentBackwards):
        session(anchor_ms=50).end(49)


def test_nothing_comes_after_the_end() -> None:
    service = session()
    service.end(60)
    for ask in (service.report, service.end):
        with pytest.raises(ValueError, match="has ended"):
            ask(5_000)


def test_a_restored_report_is_cut_again_as_a_longer_one() -> None:
    service = session()
    before = service.state
    service.report(1_050)
    service.restore(before)
    assert spans(service.report(2_050)) == [(1, 0, 2_000, False)]
    before = service.state
    service.end(2_060)
    service.restore(before)
    assert spans(service.end(2_070)) == [(2, 2_000, 2_020, True)]


def test_resume_does_not_count_the_gap() -> None:
    old = session()
    old.report(1_050)
    service = Session.resume(old.state, SERVER_MS + 60_000, 7)
    assert service.due_at() == 1_007
    assert spans(service.end(107)) == [(2, 60_000, 60_100, True)]


def test_resume_counts_the_gap_if_told_so() -> None:
    old = session()
    old.report(1_050)
    service = Session.resume(old.state, SERVER_MS + 60_000, 7, count_gap=True)
    assert service.due_at() < 7
    assert spans(service.report(7)) == [(2, 1_000, 60_000, False)]


def test_resume_counts_a_gap_of_a_year_at_most() -> None:
    """A server's time without sense would be cut into thousands of segments, again and again."""
    old = session()
    old.report(1_050)
    until_ms = old.state.reported_until_ms
    for gap_ms in (GAP_MAX_MS - 1, GAP_MAX_MS):
        service = Session.resume(old.state, until_ms + gap_ms, 0, count_gap=True)
        segments = service.end(0)
        assert len(segments) == 366
        assert gap_ms == segments[-1].end_ms - until_ms
    with pytest.raises(ValueError, match="at most a year counts"):
        Session.resume(old.state, until_ms + GAP_MAX_MS + 1, 0, count_gap=True)
    later_ms = until_ms + 100 * GAP_MAX_MS
    assert len(Session.resume(old.state, later_ms, 0).end(0)) == 1


@pytest.mark.parametrize("count_gap", [False, True])
def test_resume_never_counts_twice_where_the_server_is_behind(count_gap: bool) -> None:
    old = session()
    old.report(5_050)
    service = Session.resume(old.state, SERVER_MS + 4_000, 0, count_gap=count_gap)
    assert spans(service.end(10)) == [(2, 5_000, 5_010, True)]


def test_an_ended_session_can_not_be_resumed() -> None:
    with pytest.raises(ValueError, match="has ended"):
        Session.resume(SessionState("SO1", 1_000, 3, SERVER_MS, ended=True), SERVER_MS, 0)


@pytest.mark.parametrize("interval_ms", [0, -1, DAY_MS + 1])
def test_a_report_interval_without_sense_is_refused(interval_ms: int) -> None:
    with pytest.raises(ValueError, match="report_interval_ms"):
        session(interval_ms)


def test_an_order_number_against_the_contract_is_refused() -> None:
    with pytest.raises(BadRecord):
        Session("", SERVER_MS, 1_000, 0)


steps = st.lists(st.integers(0, 3 * DAY_MS) | st.integers(0, 5_000), max_size=30)


@given(interval_ms=st.integers(1, DAY_MS), steps=steps, last_step=st.integers(0, 2 * DAY_MS))
def test_segments_tile_the_elapsed_time(interval_ms: int, steps: list[int], last_step: int) -> None:
    now = anchor = 123
    service = session(interval_ms, anchor)
    segments: list[SegmentEvent] = []
    for step in steps:
        now += step
        was_due = now >= service.due_at()
        reported = service.report(now)
        assert bool(reported) == was_due
        assert service.due_at() > now
        segments += reported
        assert all((s.end_ms - s.start_ms) % interval_ms == 0 for s in reported)
    now += last_step
    segments += service.end(now)
    assert [s.business_data_number for s in segments] == list(range(1, len(segments) + 1))
    assert segments[0].start_ms == SERVER_MS
    assert all(a.end_ms == b.start_ms for a, b in pairwise(segments))
    assert segments[-1].end_ms - SERVER_MS == now - anchor
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
    service, server_ms, now = session(anchor_ms=0), SERVER_MS, 0
    for count_gap, dead_ms, life_steps, new_anchor in lives:
        for step in life_steps:
            now, server_ms = now + step, server_ms + step
            segments += service.report(now)
        server_ms, now = server_ms + dead_ms, new_anchor
        until_ms = service.state.reported_until_ms
        service = Session.resume(service.state, server_ms, now, count_gap=count_gap)
        assert service.state.reported_until_ms == (until_ms if count_gap else server_ms)
    segments += service.end(now + 5)
    assert [s.business_data_number for s in segments] == list(range(1, len(segments) + 1))
    assert all(a.end_ms <= b.start_ms for a, b in pairwise(segments))
    assert segments[-1].end_ms == server_ms + 5
