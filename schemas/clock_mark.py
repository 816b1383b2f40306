"""Clock marks: records by which the time of a silent partition of segments goes on.

Arrival is the broker's append time, and a partition's time is the greatest one read so far. Where
no record comes, a worker that waits for a deadline appends a mark and reads it back: whatever was
appended before it has been read by then, however far the replicas are behind.

A mark is a record without a key whose value is an Avro `billing.ClockMark` in single-object
encoding. Nothing in it counts but that it is there.
"""

from typing import NamedTuple

from durabill.schemas.codec import HEADER_SIZE, MARKER, load_schema, schema_fingerprint
from durabill.schemas.errors import BadRecord, Reason
from durabill.schemas.limits import APPLICATION_ID_BYTES_MAX
from durabill.schemas.wire import read_long, zigzag

CLOCK_MARK_SCHEMA = load_schema("clock_mark.avsc")
CLOCK_MARK_HEADER = MARKER + schema_fingerprint(CLOCK_MARK_SCHEMA)


class ClockMark(NamedTuple):
    """Who asked for the partition's time, and the deadline (ms since the epoch) that it awaits."""

    application_id: str
    due_ms: int


def encode_clock_mark(mark: ClockMark) -> bytes:
    """Return the record value of a mark; its record has no key."""
    name = mark.application_id.encode()
    assert 1 <= len(name) <= APPLICATION_ID_BYTES_MAX
    return CLOCK_MARK_HEADER + zigzag(len(name)) + name + zigzag(mark.due_ms)


def is_clock_mark(value: bytes | None) -> bool:
    """Tell whether a value claims to be a mark: whether it has the schema's fingerprint."""
    return value is not None and value.startswith(CLOCK_MARK_HEADER)


def read_clock_mark(key: bytes | None, value: bytes) -> ClockMark:
    """Return the mark in a record for which `is_clock_mark` holds.

    Raises BadRecord: NOT_AVRO for a body that is none, KEY_MISMATCH for a key.
    """
    size, at = read_long(value, HEADER_SIZE)
    if not 1 <= size <= min(APPLICATION_ID_BYTES_MAX, len(value) - at):
        raise BadRecord(Reason.NOT_AVRO, f"the application id has {size} bytes")
    try:
        name = value[at : at + size].decode()
    except UnicodeDecodeError as error:
        raise BadRecord(Reason.NOT_AVRO, "the application id is no UTF-8") from error
    due_ms, at = read_long(value, at + size)
    if at != len(value):
        raise BadRecord(Reason.NOT_AVRO, f"{len(value) - at} bytes follow the record")
    if key is not None:
        raise BadRecord(Reason.KEY_MISMATCH, "a clock mark has no key")
    return ClockMark(name, due_ms)
