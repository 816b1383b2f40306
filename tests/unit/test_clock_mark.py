"""Clock marks: their bytes, and what tables make of them."""

import io
from typing import Any

import avro.io
import avro.schema
import pytest

from durabill.producers.fleet import truth
from durabill.producers.fleet.truth import LogRecord
from durabill.producers.fleet.truth_order import Policy as Oracle
from durabill.schemas import (
    CLOCK_MARK_HEADER,
    CLOCK_MARK_SCHEMA,
    OWN_SCHEMA_ONLY,
    BadRecord,
    ClockMark,
    Reason,
    SegmentEvent,
    encode_clock_mark,
    encode_segment,
    is_clock_mark,
    read_clock_mark,
)
from durabill.stream_processors.core.order import Policy
from durabill.stream_processors.engine.batch import Chunk
from durabill.stream_processors.engine.columns import ColumnTable
from durabill.stream_processors.engine.plain import PlainTable
from durabill.stream_processors.engine.table import Effects, IntervalTable, Place
from tests.property.batches import Entry, encode_batch
from tests.property.histories import totals_in

POLICY = Policy(settle_grace_ms=5, idle_timeout_ms=9, correction_window_ms=60_000)
NOW = 300_000_000
MARK = ClockMark("durabill", NOW)
VALUE = encode_clock_mark(MARK)
TABLES: dict[str, type[IntervalTable]] = {"plain": PlainTable, "columns": ColumnTable}

NO_MARKS: dict[str, tuple[bytes | None, bytes, Reason]] = {
    "no body": (None, CLOCK_MARK_HEADER, Reason.NOT_AVRO),
    "cut off": (None, VALUE[:-1], Reason.NOT_AVRO),
    "cut off in the name": (None, VALUE[:14], Reason.NOT_AVRO),
    "a byte too many": (None, VALUE + b"\0", Reason.NOT_AVRO),
    "no name": (None, CLOCK_MARK_HEADER + b"\0\0", Reason.NOT_AVRO),
    "a name of 101 bytes": (
        None,
        CLOCK_MARK_HEADER + b"\xca\x01" + b"a" * 101 + b"\0",
        Reason.NOT_AVRO,
    ),
    "a name that is no UTF-8": (None, CLOCK_MARK_HEADER + b"\x02\xff\0", Reason.NOT_AVRO),
    "a key": (b"SO1", VALUE, Reason.KEY_MISMATCH),
    "an empty key": (b"", VALUE, Reason.KEY_MISMATCH),
    "a long key": (b"k" * 70, VALUE, Reason.KEY_MISMATCH),
    "a key and a byte too many": (b"SO1", VALUE + b"\0", Reason.NOT_AVRO),
}


def test_avro_reads_what_we_write() -> None:
    schema = avro.schema.make_avsc_object(CLOCK_MARK_SCHEMA)
    decoder = avro.io.BinaryDecoder(io.BytesIO(VALUE[10:]))
    record: Any = avro.io.DatumReader(schema).read(decoder)
    assert record == {"application_id": "durabill", "due_ms": NOW}


def test_a_mark_comes_back() -> None:
    longest = ClockMark("é" * 50, 2**63 - 1)
    for mark in (MARK, longest, ClockMark("a", 0)):
        assert read_clock_mark(None, encode_clock_mark(mark)) == mark


def test_nothing_else_claims_to_be_a_mark() -> None:
    segment = encode_segment(SegmentEvent("SO1", 1, 1, 2, False))
    assert not any(map(is_clock_mark, (None, b"", segment, VALUE[:9])))


@pytest.mark.parametrize("name", NO_MARKS)
def test_what_is_no_mark(name: str) -> None:
    key, value, reason = NO_MARKS[name]
    with pytest.raises(BadRecord) as caught:
        read_clock_mark(key, value)
    assert caught.value.reason is reason


class Log:
    """A partition's log that a table of either kind folds."""

    def __init__(self, kind: str) -> None:
        self.table = TABLES[kind](Place(0, 1), POLICY, OWN_SCHEMA_ONLY)
        self.next_offset = 0

    def append(self, at_ms: int, *entries: Entry) -> Effects:
        """Append a batch."""
        numbered = list(enumerate(entries, self.next_offset))
        data = encode_batch(self.next_offset, at_ms, numbered)
        chunk = Chunk(self.next_offset, self.next_offset + len(entries), data)
        self.next_offset += len(entries)
        return self.table.fold(chunk)


def segment(number: int = 1, end: bool = False) -> Entry:
    value = encode_segment(SegmentEvent("SO1", number, NOW - 10, NOW, end))
    return b"SO1", value, ()


@pytest.mark.parametrize("kind", TABLES)
def test_a_mark_moves_the_time_and_nothing_else(kind: str) -> None:
    log = Log(kind)
    log.append(NOW, segment())
    assert totals_in([log.append(NOW + 8, (None, VALUE, ()))]) == []
    (total,) = totals_in([log.append(NOW + 9, (None, VALUE, ()))])
    assert (total.settled_at_ms, total.source_offset) == (NOW + 9, 0)
    effects = log.append(NOW + 9, (None, VALUE, ()))
    assert (effects.totals, effects.dead_letters, effects.forwards) == ([], [], [])
    assert log.table.clock_marks == 3


@pytest.mark.parametrize("kind", TABLES)
def test_a_mark_that_is_late_by_its_own_clock_moves_nothing_back(kind: str) -> None:
    log = Log(kind)
    log.append(NOW, segment())
    log.append(NOW - 1000, (None, VALUE, ()))
    assert log.table.clock_ms == NOW


@pytest.mark.parametrize("kind", TABLES)
@pytest.mark.parametrize("name", NO_MARKS)
def test_what_is_no_mark_is_a_dead_letter(name: str, kind: str) -> None:
    key, value, reason = NO_MARKS[name]
    log = Log(kind)
    letters = log.append(NOW, (key, value, ()), segment()).dead_letters
    assert [(each.reason, each.record.offset) for each in letters] == [(reason, 0)]
    assert log.table.clock_marks == 0
    record = LogRecord(0, 0, NOW, key, value, ())
    assert not truth.is_clock_mark(record)
    assert truth.judge(record, NOW, Oracle(), 1) is reason


@pytest.mark.parametrize("kind", TABLES)
def test_marks_between_an_orders_records(kind: str) -> None:
    log = Log(kind)
    mark: Entry = (None, VALUE, (("trace", b"x"),))
    effects = log.append(NOW, mark, segment(1), mark, segment(2, end=True), mark)
    (total,) = totals_in([effects])
    assert (total.segments, total.source_offset, log.table.clock_marks) == (2, 3, 3)
    assert truth.is_clock_mark(LogRecord(0, 0, NOW, *mark[:2], ()))
