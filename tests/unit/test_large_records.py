"""Records of any size: what is sent on, and what a dead letter keeps, by every reader the same."""

import hashlib

import pytest

from durabill.producers.fleet import truth
from durabill.producers.fleet.truth_order import Policy as Oracle
from durabill.schemas import OWN_SCHEMA_ONLY, Reason, SegmentEvent, encode_segment, partition_for
from durabill.schemas.headers import FORWARDED_FROM
from durabill.schemas.limits import (
    DETAIL_CHARS_MAX,
    FORWARD_BYTES_MAX,
    LETTER_BYTES_MAX,
    LETTER_CUT_BYTES,
)
from durabill.schemas.wire import Headers
from durabill.stream_processors.core.order import Policy
from durabill.stream_processors.engine.batch import HEADERS_MAX, Chunk, Record
from durabill.stream_processors.engine.columns import ColumnTable
from durabill.stream_processors.engine.effects import DeadLetter, Effects, dead_letter
from durabill.stream_processors.engine.kernel import parse
from durabill.stream_processors.engine.plain import PlainTable
from durabill.stream_processors.engine.table import IntervalTable, Place
from tests.property.batches import encode_batch, encode_record

NOW_MS = 1_700_000_000_000
PARTITIONS = 4
AWAY = (partition_for(b"SO1", PARTITIONS) + 1) % PARTITIONS
VALUE = encode_segment(SegmentEvent("SO1", 1, NOW_MS - 10, NOW_MS, True))
BARE = len(b"SO1") + len(VALUE)


def headers_of(size: int) -> Headers:
    """Headers that make the record of this size: some with a name of more bytes than letters."""
    used = BARE + 10 + len("ü".encode()) + 10
    return (("ü", None), ("h", bytes(size - used - 1)))


def effects_of(kind: type[IntervalTable], headers: Headers) -> Effects:
    """What a segment in the wrong partition gives."""
    table = kind(Place(AWAY, PARTITIONS), Policy(), OWN_SCHEMA_ONLY)
    return table.fold(Chunk(7, 8, encode_batch(7, NOW_MS, [(7, (b"SO1", VALUE, headers))])))


@pytest.mark.parametrize("kind", [PlainTable, ColumnTable])
@pytest.mark.parametrize("more", [0, 1])
def test_segment_that_is_too_large_is_not_sent_on(kind: type[IntervalTable], more: int) -> None:
    headers = headers_of(FORWARD_BYTES_MAX + more)
    effects = effects_of(kind, headers)
    log = [truth.LogRecord(AWAY, 7, NOW_MS, b"SO1", VALUE, headers)]
    expected = truth.read_log(log, Oracle(), PARTITIONS)
    assert len(effects.forwards) == len(expected.sent_on) == 1 - more
    assert len(effects.dead_letters) == len(expected.dead_letters) == more
    if more:
        (letter,) = effects.dead_letters
        assert (letter.reason, letter.record.headers) == (Reason.WRONG_PARTITION, headers)
        assert expected.dead_letters == [(Reason.WRONG_PARTITION, AWAY, 7)]
        assert "is too large to be sent on: 1000001 bytes" in letter.detail


def test_what_is_sent_on_fits_the_least_segments_topic() -> None:
    (forward,) = effects_of(PlainTable, headers_of(FORWARD_BYTES_MAX)).forwards
    assert forward.headers[-1][0] == FORWARDED_FROM
    assert in_a_batch(forward.record._replace(headers=forward.headers)) < 1_048_588 - 1_000


@pytest.mark.parametrize("kind", [PlainTable, ColumnTable])
def test_a_record_has_at_most_so_many_headers(kind: type[IntervalTable]) -> None:
    """Each takes time to read, however small; with one more, the batch doesn't count from there."""
    effects = effects_of(kind, (("", b""),) * HEADERS_MAX)
    assert (len(effects.forwards), effects.dead_letters) == (1, [])
    effects = effects_of(kind, (("", b""),) * (HEADERS_MAX + 1))
    assert [each.reason for each in effects.dead_letters] == [Reason.BAD_BATCH]
    assert HEADERS_MAX == parse.HEADERS_MAX


def test_an_empty_header_is_large_too() -> None:
    """It takes bytes in the batch as well."""
    assert Record(0, 0, b"k", None, (("", b""),) * 7).size == 1 + 7 * 10


def in_a_batch(record: Record) -> int:
    """The bytes of a batch with this record alone."""
    return 61 + len(encode_record(0, (record.key, record.value, record.headers)))


def letter_of(record: Record) -> DeadLetter:
    """The record as a dead letter."""
    return dead_letter(record, Reason.NOT_AVRO, "x")


def test_letter_that_fits_is_whole() -> None:
    whole = Record(5, NOW_MS, b"k", bytes(LETTER_BYTES_MAX - 13), (("h", b"v"),))
    assert whole.size == LETTER_BYTES_MAX
    assert letter_of(whole).record is whole


def test_letter_that_is_too_large_is_cut_and_says_so() -> None:
    key, value = b"k" * (LETTER_CUT_BYTES + 1), b"v" * LETTER_BYTES_MAX
    cut = letter_of(Record(5, NOW_MS, key, value, (("h", b"v"), ("h", None)))).record
    assert (cut.offset, cut.append_ms) == (5, NOW_MS)
    assert (cut.key, cut.value) == (key[:LETTER_CUT_BYTES], value[:LETTER_CUT_BYTES])
    assert cut.headers == (
        ("cut_key", b"65537 " + hashlib.sha256(key).hexdigest().encode()),
        ("cut_value", b"2000000 " + hashlib.sha256(value).hexdigest().encode()),
        ("cut_headers", b"2"),
    )


@pytest.mark.parametrize("key", [None, b"", b"k" * LETTER_CUT_BYTES])
def test_only_what_was_cut_is_told(key: bytes | None) -> None:
    cut = letter_of(Record(5, NOW_MS, key, None, (("h", bytes(LETTER_BYTES_MAX)),))).record
    assert (cut.key, cut.value, cut.headers) == (key, None, (("cut_headers", b"1"),))


@pytest.mark.parametrize("kind", [PlainTable, ColumnTable])
def test_detail_does_not_grow_with_the_record(kind: type[IntervalTable]) -> None:
    """The detail of a KEY_MISMATCH shows the key: four letters for each byte of this one."""
    table = kind(Place(0, 1), Policy(), OWN_SCHEMA_ONLY)
    data = encode_batch(0, NOW_MS, [(0, (bytes(200_000), VALUE, ()))])
    (letter,) = table.fold(Chunk(0, 1, data)).dead_letters
    assert (letter.reason, len(letter.detail)) == (Reason.KEY_MISMATCH, DETAIL_CHARS_MAX)
    assert letter.detail.endswith("…")


def test_greatest_letter_fits_the_least_topic() -> None:
    ours = (("reason", b"r" * 30), ("detail", b"d" * 4 * DETAIL_CHARS_MAX), ("s", bytes(400)))
    whole = Record(5, NOW_MS, None, None, ((("", b""),) * (LETTER_BYTES_MAX // 10)))
    large = Record(5, NOW_MS, None, bytes(LETTER_BYTES_MAX), ())
    for record in (whole, large):
        assert record.size == LETTER_BYTES_MAX
        headers = (*record.headers, *ours)
        assert in_a_batch(record._replace(headers=headers)) < 2 * 1024 * 1024 - 10_000


def test_the_kernel_looks_for_the_header_of_the_contract() -> None:
    """Its name is written there again: numba's cache notices changes of its own files only."""
    assert parse.FORWARDED_FROM.tobytes().decode() == FORWARDED_FROM
