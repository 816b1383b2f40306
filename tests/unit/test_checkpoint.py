"""What a checkpoint's marks refuse, and which totals a replay keeps to itself."""

import re
from dataclasses import replace

import msgspec
import pytest

from durabill.schemas import WriterSchemas, decode_total, encode_segment, encode_total
from durabill.schemas.errors import StateError
from durabill.schemas.records import SegmentEvent
from durabill.stream_processors.core.order import Policy
from durabill.stream_processors.engine.batch import Chunk
from durabill.stream_processors.engine.columns import ColumnTable
from durabill.stream_processors.engine.table import Place, Total
from durabill.stream_processors.kafka.reading import Tail
from durabill.stream_processors.worker.checkpoint import (
    META,
    Lane,
    Marks,
    Origin,
    entry_key,
    marks_of,
    restore_lane,
)
from tests.property.batches import encode_batch

ORIGIN = Origin("billing.segments", "topic-1", 4)
NOW_MS = 1_800_000_000_000


def marks_entry(**changes: object) -> dict[bytes, bytes]:
    """A changelog that holds the marks of partition 1 alone."""
    marks = Marks(2, 4, 100, NOW_MS, 7, "billing.segments", "topic-1")
    for name, value in changes.items():
        setattr(marks, name, value)
    return {entry_key(1, META): msgspec.msgpack.encode(marks)}


def test_marks_decide_not_the_group() -> None:
    for committed in (None, 0, 99, 1_000):
        marks = marks_of(marks_entry(), 1, ORIGIN, committed)
        assert marks is not None
        assert (marks.next_offset, marks.totals_offset) == (100, 7)
    assert marks_of({}, 1, ORIGIN, None) is None
    assert marks_of(marks_entry(), 2, ORIGIN, None) is None


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"version": 3}, "marks have version 3, not 2"),
        ({"partitions": 5}, "the checkpoint was made with 5 partitions, the segments topic has 4"),
        ({"topic": "other"}, "two deployments share an application id"),
        ({"topic_id": "topic-0"}, "was deleted and recreated since the checkpoint"),
    ],
)
def test_marks_of_something_else_are_refused(changes: dict[str, object], said: str) -> None:
    with pytest.raises(StateError, match=re.escape(said)):
        marks_of(marks_entry(**changes), 1, ORIGIN, 100)


def test_damaged_and_missing_marks_are_refused() -> None:
    for raw in (b"", b"\xc1", b"\x90", msgspec.msgpack.encode([2, 4, "x"])):
        with pytest.raises(StateError, match="marks"):
            marks_of({entry_key(1, META): raw}, 1, ORIGIN, 100)
    with pytest.raises(StateError, match="its checkpoint is empty"):
        marks_of({}, 1, ORIGIN, 100)


def test_unknown_topic_ids_are_let_through() -> None:
    assert marks_of(marks_entry(topic_id=""), 1, ORIGIN, None) is not None
    assert marks_of(marks_entry(), 1, replace(ORIGIN, topic_id=""), None) is not None


def test_marks_of_version_1_need_the_groups_offset() -> None:
    old = {entry_key(1, META): msgspec.msgpack.encode([1, 4, [(100, NOW_MS), (120, NOW_MS + 5)]])}
    marks = marks_of(old, 1, ORIGIN, 120)
    assert marks is not None
    assert (marks.next_offset, marks.clock_ms, marks.totals_offset) == (120, NOW_MS + 5, None)
    assert marks_of(old, 1, ORIGIN, None) is None
    with pytest.raises(StateError, match="somebody moved the group's offsets"):
        marks_of(old, 1, ORIGIN, 110)


# -- what has been said -------------------------------------------------------------------------

PLACE = Place(0, 1)
LONE = Origin("billing.segments", "topic-1", 1)


def chunk(offset: int, *events: SegmentEvent) -> Chunk:
    """These segments as the log's next batch."""
    entries = [
        (offset + at, (each.service_order_number.encode(), encode_segment(each), ()))
        for at, each in enumerate(events)
    ]
    return Chunk(offset, offset + len(events), encode_batch(offset, NOW_MS, entries))


def ended(order: str) -> SegmentEvent:
    return SegmentEvent(order, 1, NOW_MS - 1_000, NOW_MS, True)


def lane(tail: list[tuple[int, bytes, bytes | None]], *, read: list[SegmentEvent]) -> Lane:
    """A lane that a checkpoint after `read` gives, where `tail` has been said since."""
    table = ColumnTable(PLACE, Policy(), WriterSchemas())
    table.fold(chunk(0, *read))
    entries = {entry_key(0, str(at)): block for at, block in table.take_changed_entries() if block}
    marks = Marks(2, 1, len(read), table.clock_ms, 40)
    fresh = ColumnTable(PLACE, Policy(), WriterSchemas())
    return restore_lane(fresh, entries, LONE, marks, first_offset=0, tail=Tail(tail, 50))


def totals_of(*orders: str, offset: int = 1) -> list[Total]:
    """What a worker says of these orders, each of one segment from this offset on."""
    table = ColumnTable(PLACE, Policy(), WriterSchemas())
    return table.fold(chunk(offset, *map(ended, orders))).totals


def test_a_replay_keeps_what_was_said_to_itself() -> None:
    said, unsaid = totals_of("A", "B")
    restored = lane([(44, said.key, said.value)], read=[ended("Z")])
    assert restored.unsaid([said, unsaid]) == [unsaid]
    assert restored.said == {}
    assert restored.unsaid([said]) == [said]  # only once: this is a later revision's business


def test_a_checkpoint_starts_before_what_a_replay_has_yet_to_repeat() -> None:
    said, other = totals_of("A", "B")
    restored = lane([(44, said.key, said.value), (46, other.key, other.value)], read=[ended("Z")])

    def noted(totals_end: int) -> int | None:
        restored.next_offset += 1
        cut = restored.cut(totals_end)
        assert cut is not None
        return msgspec.msgpack.decode(cut.marks, type=Marks).totals_offset

    assert noted(50) == 44
    restored.unsaid([said])
    assert noted(51) == 46
    restored.unsaid([other])
    assert noted(52) == 52


def test_totals_that_the_table_knows_are_not_waited_for() -> None:
    (known,) = totals_of("Z", offset=0)
    assert lane([(44, known.key, known.value)], read=[ended("Z")]).said == {}


def test_what_others_put_into_the_totals_is_passed_over() -> None:
    foreign: list[tuple[int, bytes, bytes | None]] = [(44, b"A", None), (45, b"A", b"junk")]
    assert lane(foreign, read=[ended("Z")]).said == {}


def test_another_total_than_the_one_that_was_said_is_refused() -> None:
    (said,) = totals_of("A")
    other = Total(said.key, encode_total(replace(decode_total(said.value), source_offset=9)))
    restored = lane([(44, said.key, said.value)], read=[ended("Z")])
    with pytest.raises(StateError, match="order A, revision 1: the log gives another total"):
        restored.unsaid([other])


def test_a_later_revision_is_not_taken_for_the_one_that_was_said() -> None:
    (said,) = totals_of("A")
    total = decode_total(said.value)
    second = replace(total, revision=2, previous_digest=total.digest)
    later = Total(said.key, encode_total(second))
    restored = lane([(44, said.key, said.value)], read=[ended("Z")])
    assert restored.unsaid([later, said]) == [later]


def test_nothing_new_needs_no_checkpoint() -> None:
    restored = lane([], read=[ended("Z")])
    first = restored.cut(50)
    assert first is not None  # nothing is known to be written yet
    restored.is_written(first)
    assert restored.cut(50) is None
