"""Fetched bytes of a log: which batches count, and what each offset is."""

import struct
import threading

import pytest
from aiokafka.record.util import calc_crc32c

from durabill.schemas.errors import CorruptBatch
from durabill.stream_processors.audit import raw_log
from durabill.stream_processors.audit.errors import AuditError
from durabill.stream_processors.audit.raw_log import FetchedLog, part_of
from durabill.stream_processors.engine.batch import (
    CONTROL,
    CRC_FROM,
    HEADER,
    LOG_APPEND_TIME,
    TRANSACTIONAL,
    records,
)
from durabill.stream_processors.engine.standing import whole_batches
from durabill.stream_processors.settings import Settings
from tests.property.batches import encode_record

ABORT, COMMIT = 0, 1


def batch(base: int, count: int, producer: int = -1, attributes: int = 0, span: int = 0) -> bytes:
    """A batch of `count` records, which takes `span` offsets (0: as many)."""
    entries = [(b"k", b"v", ())] * count
    if attributes & CONTROL:
        entries = [(struct.pack(">hh", 0, count), b"", ())]
        count = 1
    body = b"".join(encode_record(at, each) for at, each in enumerate(entries))
    fields = (
        *(base, len(body) + 49, 0, 2, 0, attributes | LOG_APPEND_TIME, (span or count) - 1),
        *(7, 7, producer, 0, 0, count),
    )
    data = HEADER.pack(*fields) + body
    crc = calc_crc32c(data[CRC_FROM:])
    return HEADER.pack(*fields[:4], crc, *fields[5:]) + body


def marker(base: int, producer: int, kind: int) -> bytes:
    return batch(base, kind, producer, CONTROL | TRANSACTIONAL)


def test_aborted_transactions_and_markers_are_told_and_left_out() -> None:
    data = b"".join(
        (
            batch(0, 2),
            batch(2, 3, producer=5, attributes=TRANSACTIONAL),
            batch(5, 1, producer=6, attributes=TRANSACTIONAL),
            marker(6, 5, ABORT),
            marker(7, 6, COMMIT),
            batch(8, 2, producer=5, attributes=TRANSACTIONAL),
            marker(10, 5, COMMIT),
        )
    )
    part = part_of(data, [(5, 2)], 0, 11)
    assert (part.data, part.control, part.aborted, part.missing) == (5, 3, 3, ())
    assert [each.offset for each in records(part.chunk)] == [0, 1, 5, 8, 9]
    assert (part.chunk.first_offset, part.chunk.next_offset) == (0, 11)


def test_holes_between_batches_and_inside_of_one_are_told() -> None:
    part = part_of(batch(0, 2) + batch(4, 2, span=5), [], 0, 9)
    assert (part.data, part.missing) == (4, ((2, 4), (6, 9)))


def test_what_was_deleted_of_the_first_batch_is_not_counted() -> None:
    part = part_of(batch(0, 5), [], 3, 5)
    assert (part.data, part.missing) == (2, ())
    assert [each.offset for each in records(part.chunk)] == [3, 4]


def test_a_batch_that_reaches_beyond_the_end_is_left_out() -> None:
    part = part_of(batch(0, 2) + batch(2, 4), [], 0, 5)
    assert (part.data, part.chunk.next_offset) == (2, 2)


def test_a_batch_that_was_cut_through_is_fetched_again_and_a_flipped_bit_is_refused() -> None:
    data = batch(0, 2) + batch(2, 4)
    assert whole_batches(data[:-1]) == batch(0, 2)
    flipped = bytearray(data)
    flipped[-3] ^= 1
    with pytest.raises(CorruptBatch, match="CRC"):
        part_of(bytes(flipped), [], 0, 6)


def test_a_kafka_that_is_not_there_ends_the_reading_and_its_thread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(raw_log, "PATIENCE_S", 0.3)
    log = FetchedLog(Settings(bootstrap_servers="127.0.0.1:1"), "segments", 0, 0, 10)
    with pytest.raises(AuditError, match="hasn't answered"):
        list(log.parts())
    assert not [each for each in threading.enumerate() if each.name == "raw-log"]


def test_an_empty_log_asks_nobody() -> None:
    assert list(FetchedLog(Settings(), "segments", 0, 7, 7).parts()) == []
