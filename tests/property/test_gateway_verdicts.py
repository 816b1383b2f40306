"""What the gateway says of a segment against what the engine makes of it, at every limit.

Stored without an error: the engine counts it. Refused for good: it never would have, whenever the
segment had arrived. Not final: it will count once its time has come.
"""

from types import SimpleNamespace
from typing import Any, NamedTuple

from hypothesis import example, given
from hypothesis import strategies as st

from durabill.producers.gateway.api import SegmentRequest, check_segments
from durabill.producers.gateway.leases import Lease, rules_under
from durabill.producers.gateway.problems import ApiError
from durabill.producers.gateway.uploads import CLOCK_WANDER_MS
from durabill.schemas.errors import BadRecord
from durabill.schemas.limits import FUTURE_TOLERANCE_MS, LONG_MAX, SEGMENT_LENGTH_MAX_MS
from durabill.stream_processors.core.admission import Known, Place, accept, admit
from durabill.stream_processors.core.opening import Opened
from durabill.stream_processors.core.order import Policy
from tests.unit.test_uploads import NOW_MS, WINDOW_MS, Stand, upload

POLICY = Policy(correction_window_ms=WINDOW_MS)
EARLIEST_MS, LATEST_MS = NOW_MS - CLOCK_WANDER_MS - 1, NOW_MS + CLOCK_WANDER_MS + 10_001
"""Between them a segment arrives that is posted now, as far as the gateway can know."""
NEAR = st.integers(-1, 1)
ARRIVALS = st.sampled_from((EARLIEST_MS, NOW_MS, LATEST_MS))
LATER_MS = (0, 1, CLOCK_WANDER_MS, FUTURE_TOLERANCE_MS, WINDOW_MS, 10 * WINDOW_MS)


class Case(NamedTuple):
    """A segment, its order's opening and lease where it has one, and when it arrives."""

    row: tuple[int, int, int, bool]
    opened_ms: int | None
    accept_until_ms: int
    arrival_ms: int


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Any segment; nearly all of its times lie a ms or less from some limit."""
    arrival_ms = draw(ARRIVALS)
    limits = (
        arrival_ms,
        arrival_ms + FUTURE_TOLERANCE_MS,
        arrival_ms - WINDOW_MS,
        *(LATEST_MS + FUTURE_TOLERANCE_MS, EARLIEST_MS - WINDOW_MS, 0, LONG_MAX - 1),
        NOW_MS + 1_000 * WINDOW_MS,
    )
    end_ms = draw(st.sampled_from(limits)) + draw(NEAR)
    length_ms = draw(st.sampled_from((0, 10_000, SEGMENT_LENGTH_MAX_MS, 400 * WINDOW_MS)))
    start_ms = end_ms - length_ms - draw(NEAR)
    number = draw(st.sampled_from((-1, 0, 1, LONG_MAX)))
    opened_ms = draw(st.none() | NEAR.map(lambda near: min(start_ms, NOW_MS) + near))
    until_ms = draw(st.sampled_from((arrival_ms, EARLIEST_MS, LATEST_MS))) + draw(NEAR)
    return Case((number, start_ms, end_ms, draw(st.booleans())), opened_ms, until_ms, arrival_ms)


def engine_says(case: Case, arrival_ms: int) -> str | None:
    """Return why the engine rejects the segment of an order that has not begun; None: it counts."""
    opening = None
    if case.opened_ms is not None:
        opening = Opened(case.opened_ms, case.accept_until_ms, 7, "default", "")
    record: Any = SimpleNamespace(headers=(), key=b"SO1", size=9)
    try:
        event = accept((b"SO1", *case.row), b"SO1", arrival_ms)
        admit(record, event, Known(None, opening), Place(0, 1), arrival_ms, POLICY)
    except BadRecord as bad:
        return bad.reason
    return None


def lease_of(stand: Stand, case: Case) -> tuple[str, Lease] | None:
    if case.opened_ms is None:
        return None
    leases = stand.authority.leases
    times_ms = case.opened_ms, 10_000, NOW_MS + leases.lease_ms, case.accept_until_ms
    lease = Lease("SO1", "default", "", NOW_MS, *times_ms)
    return leases._sign(lease, NOW_MS), lease


def check(case: Case, *, is_final: bool, is_stored: bool, counts: bool) -> None:
    """Compare a verdict with the engine's, now and whenever else it may arrive."""
    if counts:
        assert engine_says(case, case.arrival_ms) is None
        return
    first_ms = case.arrival_ms if is_stored else EARLIEST_MS
    if is_stored:
        assert engine_says(case, first_ms) is not None
    if is_final:
        assert all(engine_says(case, first_ms + later_ms) for later_ms in LATER_MS)
    else:
        assert engine_says(case, case.row[2]) is None


@given(cases())
@example(Case((1, NOW_MS, NOW_MS + FUTURE_TOLERANCE_MS + 1, False), None, 0, NOW_MS))
@example(Case((1, NOW_MS, NOW_MS + 2 * WINDOW_MS, False), None, 0, NOW_MS))
@example(Case((1, NOW_MS, NOW_MS + WINDOW_MS, False), NOW_MS + 1, NOW_MS + WINDOW_MS, NOW_MS))
def test_every_verdict_is_the_engines(case: Case) -> None:
    stand = Stand()
    stand.kafka.append_ms = lambda: case.arrival_ms
    lease = lease_of(stand, case)
    if lease is not None and lease[1].expires_ms <= NOW_MS:
        return  # it would be told to renew it
    shown = {} if lease is None else {"lease": lease[0]}
    (answer,) = stand.post({"uploads": [upload("SO1", [case.row], **shown)]}).uploads
    if not answer.errors:
        check(case, is_final=True, is_stored=True, counts=True)
    for error in answer.errors:
        check(case, is_final=error.final, is_stored=error.stored, counts=False)


@given(cases())
def test_so_it_is_by_the_route_for_one_order(case: Case) -> None:
    """It has no word for what isn't final: of what lies ahead it says no more than that."""
    stand = Stand()
    lease = lease_of(stand, case)
    rules = rules_under(lease and lease[1], stand.desk._rules())
    try:
        (segment,) = check_segments("SO1", [SegmentRequest(*case.row)], rules)
    except ApiError as refused:
        (error,) = refused.errors
        is_final = error.reason != "IN_THE_FUTURE"
        if is_final or engine_says(case, case.row[2]) is None:
            check(case, is_final=is_final, is_stored=False, counts=False)
        return
    result = rules.judge(segment, case.arrival_ms)
    is_final = result.reason != "IN_THE_FUTURE"
    check(case, is_final=is_final, is_stored=True, counts=result.counts)
