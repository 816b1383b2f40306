"""A crash between two steps of timers, and other terms right after: the steps' own terms hold."""

import pytest

from durabill.schemas import OWN_SCHEMA_ONLY, SegmentEvent, encode_segment
from durabill.stream_processors.core.order import Policy
from durabill.stream_processors.engine.batch import Chunk
from durabill.stream_processors.engine.columns import ColumnTable
from durabill.stream_processors.engine.effects import Step
from durabill.stream_processors.engine.plain import PlainTable
from durabill.stream_processors.engine.policies import History, PolicyRecord, Terms, split
from durabill.stream_processors.engine.table import IntervalTable, Place, Total
from tests.property.batches import Entry, encode_batch

HOUR_MS = 3_600_000
AT_MS = 300_000_000
OLD = Policy(idle_timeout_ms=24 * HOUR_MS, interim_interval_ms=1000)
NEW = Policy(idle_timeout_ms=24 * HOUR_MS, interim_interval_ms=HOUR_MS)
ORDERS = 6_000
LATER_MS = AT_MS + 1_500
"""When each order is due one interim total by the old policy, and none by the new one."""


def chunk(first: int, at_ms: int, *entries: Entry) -> Chunk:
    data = encode_batch(first, at_ms, [*enumerate(entries, first)])
    return Chunk(first, first + len(entries), data)


def segment(order: int) -> Entry:
    number = f"SO{order}"
    event = SegmentEvent(number, 1, AT_MS - 10, AT_MS, False)
    return number.encode(), encode_segment(event), ()


@pytest.mark.parametrize("make", [PlainTable, ColumnTable])
def test_a_crash_between_two_steps_of_timers(make: type[IntervalTable]) -> None:
    table = make(Place(0, 1), OLD, OWN_SCHEMA_ONLY)
    orders = chunk(0, AT_MS, *map(segment, range(ORDERS)))
    assert not table.fold(orders).totals
    # Behind the last record lies what nobody sees: an aborted batch and its marker.
    last = chunk(ORDERS, LATER_MS, segment(0))
    whole = Chunk(ORDERS, ORDERS + 9, last.data)
    published: list[Total] = []
    step = Step(0, table.fold(Chunk(0, 0, b"")))
    for step in table.steps(whole):
        published += step.effects.totals
        if published:
            break
    assert 0 < len(published) < ORDERS, "it ends in the midst of the timers"
    blocks = [content for _, content in table.take_changed_entries() if content is not None]

    again = make(Place(0, 1), NEW, OWN_SCHEMA_ONLY)
    again.restore(blocks, table.clock_ms)
    history: History = (
        PolicyRecord(0, Terms(OLD)),
        PolicyRecord(whole.next_offset, Terms(NEW)),
    )
    rest = Chunk(step.next_offset, whole.next_offset, last.data)
    after = chunk(whole.next_offset, LATER_MS + 1, segment(1))
    # What has been read to its end isn't fetched again.
    for tail in (rest, after) if step.next_offset < whole.next_offset else (after,):
        for terms, piece in split(tail, history):
            if terms is not None:
                again.set_policy(terms.policy)
            published += again.fold(piece).totals
    assert ORDERS == len(published) == len({each.key for each in published})


@pytest.mark.parametrize("make", [PlainTable, ColumnTable])
def test_nothing_is_due_by_what_has_no_record(make: type[IntervalTable]) -> None:
    """Else terms under which no record ever came would give totals that the log doesn't know."""
    table = make(Place(0, 1), NEW, OWN_SCHEMA_ONLY)
    table.fold(chunk(0, AT_MS, segment(0)))
    table.fold(chunk(1, LATER_MS, segment(1)))
    table.set_policy(OLD)
    assert not table.fold(Chunk(2, 9, b"")).totals
    assert len(table.fold(chunk(9, LATER_MS, segment(1))).totals) == 1
