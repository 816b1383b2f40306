"""Orders that began anew: which of the totals in the topic a replay would publish again."""

import timeit

import msgspec
import pytest

from durabill.schemas import OWN_SCHEMA_ONLY, SegmentEvent, encode_segment, partition_for
from durabill.schemas.errors import StateError
from durabill.stream_processors.core.order import Policy
from durabill.stream_processors.engine.batch import Chunk
from durabill.stream_processors.engine.checkpoint import (
    META,
    CheckpointMeta,
    SegmentsTopic,
    entry_key,
    find_meta,
)
from durabill.stream_processors.engine.columns import ColumnTable
from durabill.stream_processors.engine.plain import PlainTable
from durabill.stream_processors.engine.table import IntervalTable, Place, Total
from durabill.stream_processors.worker.partition_task import PartitionTask
from durabill.stream_processors.worker.ports import Ends, Tail
from durabill.stream_processors.worker.recovery import restore_task
from tests.property.batches import encode_batch

POLICY = Policy(settle_grace_ms=5, idle_timeout_ms=9, correction_window_ms=60)
PLACE = Place(0, 1)
SEGMENTS = SegmentsTopic("segments", "id", 1)
FIRST_MS = 1_000_000
LATER_MS = FIRST_MS + 60 + 60_000 + 1
"""When an order of the first life is forgotten."""

TABLES = pytest.mark.parametrize("make", [PlainTable, ColumnTable])


def whole_order(offset: int, at_ms: int, name: str = "SO1", *, end: bool = True) -> Chunk:
    """Return a chunk with the one segment of an order."""
    value = encode_segment(SegmentEvent(name, 1, at_ms - 10, at_ms, end))
    data = encode_batch(offset, at_ms, [(offset, (name.encode(), value, ()))])
    return Chunk(offset, offset + 1, data)


def take(task: PartitionTask, chunk: Chunk) -> list[Total]:
    """Fold a chunk; return the totals that are not yet published."""
    task.next_offset = chunk.next_offset
    return task.not_yet_published(task.table.fold(chunk).totals)


def write(
    task: PartitionTask, totals_end: int, entries: dict[bytes, bytes], *, meta: bool = True
) -> None:
    """Write a checkpoint, or only its blocks, as a crash may leave it."""
    barrier = task.begin_checkpoint(Ends(totals_end, 0))
    assert barrier is not None
    for batch in barrier.snapshots(32, 1_000):
        entries.update({key: each.pack() for key, each in batch if each is not None})
    if meta:
        entries[entry_key(0, META)] = barrier.meta


def recover(
    make: type[IntervalTable], entries: dict[bytes, bytes], tail: list[tuple[int, Total]]
) -> PartitionTask:
    """Return the task that a new owner gets."""
    meta = find_meta(entries, 0, SEGMENTS, None)
    totals = [(offset, key, value) for offset, (key, value) in tail]
    return restore_task(
        make(PLACE, POLICY, OWN_SCHEMA_ONLY),
        entries,
        SEGMENTS,
        meta,
        first_offset=0,
        tail=Tail(list(totals), len(totals)),
    )


def test_strays_are_passed_over_where_there_is_a_checkpoint(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A total that belongs in another partition, one under another key, and what is no total."""
    [total] = PlainTable(PLACE, POLICY, OWN_SCHEMA_ONLY).fold(whole_order(0, FIRST_MS)).totals
    away = Place((partition_for(total.key, 64) + 1) % 64, 64)
    strays = [total, Total(b"\xff", total.value), Total(total.key, b"no total")]
    tail = Tail([(7 + at, *each) for at, each in enumerate(strays)], 10)

    def restore(meta: CheckpointMeta | None) -> PartitionTask:
        table = PlainTable(away, POLICY, OWN_SCHEMA_ONLY)
        return restore_task(table, {}, SEGMENTS, meta, first_offset=0, tail=tail)

    task = restore(CheckpointMeta(3, 64, 0, FIRST_MS, 0))
    assert (task.published, task.strays) == ({}, 3)
    assert "3 of them, the first at offset 7" in caplog.text
    with pytest.raises(StateError, match=r"at offset 7.*durabill rebuild totals --into TOPIC"):
        restore(None)


@TABLES
def test_first_total_of_an_order_that_began_anew_is_not_published_again(
    make: type[IntervalTable],
) -> None:
    task = PartitionTask(make(PLACE, POLICY, OWN_SCHEMA_ONLY), SEGMENTS, 0)
    entries: dict[bytes, bytes] = {}
    take(task, whole_order(0, FIRST_MS))
    write(task, 1, entries)
    [total] = take(task, whole_order(1, LATER_MS))
    again = recover(make, entries, [(1, total)])
    assert take(again, whole_order(1, LATER_MS)) == []
    assert again.published == {}


@TABLES
def test_total_of_an_order_before_it_began_anew_is_not_waited_for(
    make: type[IntervalTable],
) -> None:
    task = PartitionTask(make(PLACE, POLICY, OWN_SCHEMA_ONLY), SEGMENTS, 0)
    entries: dict[bytes, bytes] = {}
    take(task, whole_order(0, FIRST_MS, "SO2"))
    write(task, 1, entries)
    [first] = take(task, whole_order(1, FIRST_MS))
    assert take(task, whole_order(2, LATER_MS, end=False)) == []
    write(task, 2, entries, meta=False)  # the block is ahead of the meta
    again = recover(make, entries, [(1, first)])
    assert again.published == {}
    assert take(again, whole_order(1, FIRST_MS)) == []
    assert take(again, whole_order(2, LATER_MS, end=False)) == []
    assert len(take(again, whole_order(3, LATER_MS + 1))) == 1


@TABLES
def test_total_of_an_order_that_is_not_known_any_more_is_not_waited_for(
    make: type[IntervalTable],
) -> None:
    task = PartitionTask(make(PLACE, POLICY, OWN_SCHEMA_ONLY), SEGMENTS, 0)
    entries: dict[bytes, bytes] = {}
    [first] = take(task, whole_order(0, FIRST_MS))
    take(task, whole_order(1, LATER_MS, "SO2"))
    task.table.confirm(LATER_MS)
    write(task, 0, entries)
    assert recover(make, entries, [(0, first)]).published == {}


def test_the_meta_names_the_oldest_total_that_is_yet_to_be_repeated() -> None:
    make = PlainTable
    log = [whole_order(at, FIRST_MS + at, f"SO{at}") for at in range(4)]
    task = PartitionTask(make(PLACE, POLICY, OWN_SCHEMA_ONLY), SEGMENTS, 0)
    tail = [(at, total) for at, each in enumerate(log) for total in take(task, each)]
    again = recover(make, {}, tail[::-1])  # in whichever order they are read
    starts = []
    for each in log:
        starts.append(msgspec.msgpack.decode(again.first_meta(Ends(9, 0))[1])[4])
        assert take(again, each) == []
    starts.append(msgspec.msgpack.decode(again.first_meta(Ends(9, 0))[1])[4])
    assert starts == [0, 1, 2, 3, 9]


def test_a_checkpoint_holds_up_nobody_where_many_totals_are_yet_to_be_repeated() -> None:
    published = {b"%d" % at: [(at, b"")] for at in range(300_000)}
    task = PartitionTask(
        PlainTable(PLACE, POLICY, OWN_SCHEMA_ONLY), SEGMENTS, 0, published=published
    )
    # The fastest of many, for a busy machine takes its time now and then.
    assert min(timeit.repeat(lambda: task.first_meta(Ends(300_000, 0)), number=1, repeat=30)) < 0.01
