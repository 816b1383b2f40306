"""Orders that began anew: which of the totals that the topic holds a replay would say again."""

import time

import msgspec
import pytest

from durabill.schemas import OWN_SCHEMA_ONLY, SegmentEvent, encode_segment
from durabill.stream_processors.core.order import Policy
from durabill.stream_processors.engine.batch import Chunk
from durabill.stream_processors.engine.columns import ColumnTable
from durabill.stream_processors.engine.plain import PlainTable
from durabill.stream_processors.engine.table import IntervalTable, Place, Total
from durabill.stream_processors.kafka.reading import Tail
from durabill.stream_processors.worker.checkpoint import (
    META,
    Lane,
    Origin,
    entry_key,
    marks_of,
    restore_lane,
)
from tests.property.batches import encode_batch

POLICY = Policy(settle_grace_ms=5, idle_timeout_ms=9, correction_window_ms=60)
PLACE = Place(0, 1)
ORIGIN = Origin("segments", "id", 1)
FIRST_MS = 1_000_000
LATER_MS = FIRST_MS + 60 + 60_000 + 1
"""When an order of the first life is forgotten."""

TABLES = pytest.mark.parametrize("make", [PlainTable, ColumnTable])


def whole_order(offset: int, at_ms: int, name: str = "SO1", *, end: bool = True) -> Chunk:
    """Return a chunk with the one segment of an order."""
    value = encode_segment(SegmentEvent(name, 1, at_ms - 10, at_ms, end))
    data = encode_batch(offset, at_ms, [(offset, (name.encode(), value, ()))])
    return Chunk(offset, offset + 1, data)


def take(lane: Lane, chunk: Chunk) -> list[Total]:
    """Fold a chunk; return what is still to be said."""
    lane.next_offset = chunk.next_offset
    return lane.unsaid(lane.table.fold(chunk).totals)


def write(lane: Lane, totals_end: int, entries: dict[bytes, bytes], *, marks: bool = True) -> None:
    """Write a checkpoint, or only its blocks, as a crash may leave it."""
    cut = lane.cut(totals_end)
    assert cut is not None
    for batch in cut.snapshots(32, 1_000):
        entries.update({key: each.pack() for key, each in batch if each is not None})
    if marks:
        entries[entry_key(0, META)] = cut.marks


def recover(
    make: type[IntervalTable], entries: dict[bytes, bytes], tail: list[tuple[int, Total]]
) -> Lane:
    """Return the lane that a new owner gets."""
    marks = marks_of(entries, 0, ORIGIN, None)
    totals = [(offset, key, value) for offset, (key, value) in tail]
    return restore_lane(
        make(PLACE, POLICY, OWN_SCHEMA_ONLY),
        entries,
        ORIGIN,
        marks,
        first_offset=0,
        tail=Tail(list(totals), len(totals)),
    )


@TABLES
def test_first_total_of_an_order_that_began_anew_is_not_said_again(
    make: type[IntervalTable],
) -> None:
    lane = Lane(make(PLACE, POLICY, OWN_SCHEMA_ONLY), ORIGIN, 0)
    entries: dict[bytes, bytes] = {}
    take(lane, whole_order(0, FIRST_MS))
    write(lane, 1, entries)
    [total] = take(lane, whole_order(1, LATER_MS))
    again = recover(make, entries, [(1, total)])
    assert take(again, whole_order(1, LATER_MS)) == []
    assert again.said == {}


@TABLES
def test_total_of_an_order_before_it_began_anew_is_not_waited_for(
    make: type[IntervalTable],
) -> None:
    lane = Lane(make(PLACE, POLICY, OWN_SCHEMA_ONLY), ORIGIN, 0)
    entries: dict[bytes, bytes] = {}
    take(lane, whole_order(0, FIRST_MS, "SO2"))
    write(lane, 1, entries)
    [first] = take(lane, whole_order(1, FIRST_MS))
    assert take(lane, whole_order(2, LATER_MS, end=False)) == []
    write(lane, 2, entries, marks=False)  # the block is ahead of the marks
    again = recover(make, entries, [(1, first)])
    assert again.said == {}
    assert take(again, whole_order(1, FIRST_MS)) == []
    assert take(again, whole_order(2, LATER_MS, end=False)) == []
    assert len(take(again, whole_order(3, LATER_MS + 1))) == 1


@TABLES
def test_total_of_an_order_that_is_not_known_any_more_is_not_waited_for(
    make: type[IntervalTable],
) -> None:
    lane = Lane(make(PLACE, POLICY, OWN_SCHEMA_ONLY), ORIGIN, 0)
    entries: dict[bytes, bytes] = {}
    [first] = take(lane, whole_order(0, FIRST_MS))
    take(lane, whole_order(1, LATER_MS, "SO2"))
    lane.table.confirm(LATER_MS)
    write(lane, 0, entries)
    assert recover(make, entries, [(0, first)]).said == {}


def test_marks_name_the_oldest_total_that_is_yet_to_be_repeated() -> None:
    make = PlainTable
    log = [whole_order(at, FIRST_MS + at, f"SO{at}") for at in range(4)]
    lane = Lane(make(PLACE, POLICY, OWN_SCHEMA_ONLY), ORIGIN, 0)
    tail = [(at, total) for at, each in enumerate(log) for total in take(lane, each)]
    again = recover(make, {}, tail[::-1])  # in whichever order they are read
    starts = []
    for each in log:
        starts.append(msgspec.msgpack.decode(again.first_marks(9)[1])[4])
        assert take(again, each) == []
    starts.append(msgspec.msgpack.decode(again.first_marks(9)[1])[4])
    assert [0, 1, 2, 3, 9] == starts


def test_a_checkpoint_holds_up_nobody_where_many_totals_are_yet_to_be_repeated() -> None:
    said = {b"%d" % at: [(at, b"")] for at in range(300_000)}
    lane = Lane(PlainTable(PLACE, POLICY, OWN_SCHEMA_ONLY), ORIGIN, 0, said=said)
    began_s = time.perf_counter()
    lane.first_marks(300_000)
    assert time.perf_counter() - began_s < 0.01
