"""Which meta of a checkpoint is refused, and which totals a replay suppresses."""

import re
from dataclasses import replace

import cramjam
import msgspec
import pytest

from durabill.schemas import WriterSchemas, decode_total, encode_segment, encode_total
from durabill.schemas.errors import StateError
from durabill.schemas.records import SegmentEvent
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
from durabill.stream_processors.engine.table import Place, Total
from durabill.stream_processors.worker.partition_task import PartitionTask
from durabill.stream_processors.worker.ports import Ends, Tail
from durabill.stream_processors.worker.recovery import restore_task
from tests.property.batches import encode_batch

SEGMENTS = SegmentsTopic("billing.segments", "topic-1", 4)
NOW_MS = 1_800_000_000_000


def meta_entry(**changes: object) -> dict[bytes, bytes]:
    """A changelog that holds the meta of partition 1 alone."""
    meta = CheckpointMeta(2, 4, 100, NOW_MS, 7, "billing.segments", "topic-1")
    for name, value in changes.items():
        setattr(meta, name, value)
    return {entry_key(1, META): msgspec.msgpack.encode(meta)}


def test_the_meta_decides_not_the_group() -> None:
    for committed in (None, 0, 99, 1_000):
        meta = find_meta(meta_entry(), 1, SEGMENTS, committed)
        assert meta is not None
        assert (meta.next_offset, meta.totals_offset) == (100, 7)
    assert find_meta({}, 1, SEGMENTS, None) is None
    assert find_meta(meta_entry(), 2, SEGMENTS, None) is None


@pytest.mark.parametrize(
    ("changes", "refusal"),
    [
        ({"version": 4}, "the meta of a checkpoint has version 4, not 3"),
        ({"partitions": 5}, "the checkpoint was made with 5 partitions, the segments topic has 4"),
        ({"topic": "other"}, "two deployments share an application id"),
        ({"topic_id": "topic-0"}, "was deleted and recreated since the checkpoint"),
    ],
)
def test_the_meta_of_something_else_is_refused(changes: dict[str, object], refusal: str) -> None:
    with pytest.raises(StateError, match=re.escape(refusal)):
        find_meta(meta_entry(**changes), 1, SEGMENTS, 100)


def test_a_damaged_and_a_missing_meta_are_refused() -> None:
    for raw in (b"", b"\xc1", b"\x90", msgspec.msgpack.encode([2, 4, "x"])):
        with pytest.raises(StateError, match="the meta of a checkpoint"):
            find_meta({entry_key(1, META): raw}, 1, SEGMENTS, 100)
    with pytest.raises(StateError, match="its checkpoint is empty"):
        find_meta({}, 1, SEGMENTS, 100)


def test_unknown_topic_ids_are_let_through() -> None:
    assert find_meta(meta_entry(topic_id=""), 1, SEGMENTS, None) is not None
    assert find_meta(meta_entry(), 1, replace(SEGMENTS, topic_id=""), None) is not None


def test_a_meta_of_version_1_needs_the_groups_offset() -> None:
    old = {entry_key(1, META): msgspec.msgpack.encode([1, 4, [(100, NOW_MS), (120, NOW_MS + 5)]])}
    meta = find_meta(old, 1, SEGMENTS, 120)
    assert meta is not None
    assert (meta.next_offset, meta.clock_ms, meta.totals_offset) == (120, NOW_MS + 5, None)
    assert find_meta(old, 1, SEGMENTS, None) is None
    with pytest.raises(StateError, match="somebody moved the group's offsets"):
        find_meta(old, 1, SEGMENTS, 110)


# -- what has been published --------------------------------------------------------------------

PLACE = Place(0, 1)
LONE = SegmentsTopic("billing.segments", "topic-1", 1)


def chunk(offset: int, *events: SegmentEvent) -> Chunk:
    """These segments as the log's next batch."""
    entries = [
        (offset + at, (each.service_order_number.encode(), encode_segment(each), ()))
        for at, each in enumerate(events)
    ]
    return Chunk(offset, offset + len(events), encode_batch(offset, NOW_MS, entries))


def ended(order: str) -> SegmentEvent:
    return SegmentEvent(order, 1, NOW_MS - 1_000, NOW_MS, True)


def task(tail: list[tuple[int, bytes, bytes | None]], *, read: list[SegmentEvent]) -> PartitionTask:
    """A task that a checkpoint after `read` gives, where `tail` has been published since."""
    table = ColumnTable(PLACE, Policy(), WriterSchemas())
    table.fold(chunk(0, *read))
    entries = {entry_key(0, str(at)): block for at, block in table.take_changed_entries() if block}
    meta = CheckpointMeta(2, 1, len(read), table.clock_ms, 40)
    fresh = ColumnTable(PLACE, Policy(), WriterSchemas())
    return restore_task(fresh, entries, LONE, meta, first_offset=0, tail=Tail(tail, 50))


def totals_of(*orders: str, offset: int = 1) -> list[Total]:
    """The totals of these orders, each of one segment from this offset on."""
    table = ColumnTable(PLACE, Policy(), WriterSchemas())
    return table.fold(chunk(offset, *map(ended, orders))).totals


MISFIT = bytes(cramjam.zstd.compress(msgspec.msgpack.encode([b"\0" * 9, b"\0" * 7, b"", []])))


@pytest.mark.parametrize("block", [b"\x02junk", b"\x06junk", b"\x02" + MISFIT, b"\x04" + MISFIT])
def test_what_somebody_has_written_into_a_checkpoint_is_refused(block: bytes) -> None:
    entries = {entry_key(0, "0"): block, entry_key(7, "0"): b"junk", b"no key of ours": b"junk"}
    fresh = ColumnTable(PLACE, Policy(), WriterSchemas())
    with pytest.raises(StateError, match=r"is damaged.*`durabill rebuild checkpoint`"):
        restore_task(fresh, entries, LONE, None, first_offset=0, tail=Tail([], 0))
    del entries[entry_key(0, "0")]
    fresh = ColumnTable(PLACE, Policy(), WriterSchemas())
    assert not restore_task(fresh, entries, LONE, None, first_offset=0, tail=Tail([], 0)).published


def test_a_replay_suppresses_what_was_published() -> None:
    published, new = totals_of("A", "B")
    restored = task([(44, published.key, published.value)], read=[ended("Z")])
    assert restored.not_yet_published([published, new]) == [new]
    assert restored.published == {}
    assert restored.not_yet_published([published]) == [published]  # only once


def test_a_checkpoint_starts_before_what_a_replay_has_yet_to_repeat() -> None:
    published, other = totals_of("A", "B")
    restored = task(
        [(44, published.key, published.value), (46, other.key, other.value)], read=[ended("Z")]
    )

    def noted(totals_end: int) -> int | None:
        restored.next_offset += 1
        barrier = restored.begin_checkpoint(Ends(totals_end, 0))
        assert barrier is not None
        return msgspec.msgpack.decode(barrier.meta, type=CheckpointMeta).totals_offset

    assert noted(50) == 44
    restored.not_yet_published([published])
    assert noted(51) == 46
    restored.not_yet_published([other])
    assert noted(52) == 52


def test_totals_that_the_table_knows_are_not_waited_for() -> None:
    (known,) = totals_of("Z", offset=0)
    assert task([(44, known.key, known.value)], read=[ended("Z")]).published == {}


def test_what_others_put_into_the_totals_is_passed_over() -> None:
    foreign: list[tuple[int, bytes, bytes | None]] = [(44, b"A", None), (45, b"A", b"junk")]
    assert task(foreign, read=[ended("Z")]).published == {}


def test_another_total_than_the_published_one_is_refused() -> None:
    (published,) = totals_of("A")
    other = Total(
        published.key, encode_total(replace(decode_total(published.value), source_offset=9))
    )
    restored = task([(44, published.key, published.value)], read=[ended("Z")])
    with pytest.raises(StateError, match="order A, revision 1: the log gives another total"):
        restored.not_yet_published([other])


def test_a_later_revision_is_not_taken_for_the_published_one() -> None:
    (published,) = totals_of("A")
    total = decode_total(published.value)
    second = replace(total, revision=2, previous_digest=total.digest)
    later = Total(published.key, encode_total(second))
    restored = task([(44, published.key, published.value)], read=[ended("Z")])
    assert restored.not_yet_published([later, published]) == [later]


def test_nothing_new_needs_no_checkpoint() -> None:
    restored = task([], read=[ended("Z")])
    first = restored.begin_checkpoint(Ends(50, 0))
    assert first is not None  # nothing is known to be written yet
    restored.note_written(first)
    assert restored.begin_checkpoint(Ends(50, 0)) is None
