"""Encoding and decoding of totals, in Avro's single-object encoding or in a registry's framing.

The framing stands before the same body: C3 01 and the schema's fingerprint, or 00 and the schema's
id in a registry.
"""

from io import BytesIO
from typing import Any

import fastavro
from fastavro.schema import parse_schema

from durabill.schemas.codec import (
    FRAMING_SIZE,
    HEADER_SIZE,
    MARKER,
    UNREADABLE,
    load_schema,
    schema_fingerprint,
)
from durabill.schemas.errors import BadRecord, BadTotal
from durabill.schemas.records import Interval, NumberRange, OrderTotal, Status
from durabill.schemas.wire import read_long

TOTAL_SCHEMA = load_schema("order_total.avsc")
TOTAL_SCHEMA_V1 = load_schema("order_total_v1.avsc")
"""What totals were written with before there were interim totals and unknown bounds."""

TOTAL_HEADER = MARKER + schema_fingerprint(TOTAL_SCHEMA)
_TOTAL_HEADER_V1 = MARKER + schema_fingerprint(TOTAL_SCHEMA_V1)
_TOTAL = parse_schema(TOTAL_SCHEMA)
_TOTAL_V1 = parse_schema(TOTAL_SCHEMA_V1)


def encode_total(total: OrderTotal) -> bytes:
    """Return the record value of a total: the same total always gives the same bytes."""
    record: dict[str, Any] = {name: getattr(total, name) for name in OrderTotal.__slots__}
    record["status"] = total.status.value
    record["intervals"] = [interval._asdict() for interval in total.intervals]
    record["missing_numbers"] = [numbers._asdict() for numbers in total.missing_numbers]
    out = BytesIO()
    out.write(TOTAL_HEADER)
    fastavro.schemaless_writer(out, _TOTAL, record)
    return out.getvalue()


def framed_total(value: bytes, framing: bytes) -> bytes:
    """Return an encoded total in another framing: TOTAL_HEADER, or 00 and its schema's id."""
    assert value.startswith(TOTAL_HEADER)
    return value if framing == TOTAL_HEADER else framing + value[HEADER_SIZE:]


def plain_total(value: bytes) -> bytes:
    """Return a total's value in the single-object encoding, whichever framing it has.

    Two totals are the same bytes but for their framing where this gives the same.
    """
    is_framed = value[:1] == b"\0" and len(value) >= FRAMING_SIZE
    return TOTAL_HEADER + value[FRAMING_SIZE:] if is_framed else value


def total_revision(value: bytes) -> int:
    """Return the revision of an encoded total, read alone; raise BadTotal if it has none."""
    _, begins = _total_body(value)
    try:
        size, at = read_long(value, begins)
        return read_long(value, at + size)[0]
    except BadRecord as error:
        raise BadTotal(error.detail) from error


def total_record(value: bytes | None) -> dict[str, Any]:
    """Return the fields of an encoded total as Avro gives them; raise BadTotal if it is none.

    Whether they fit together is not looked at; see `decode_total`.
    """
    writer, begins = _total_body(value)
    assert value is not None
    body = BytesIO(value)
    body.seek(begins)
    try:
        record: Any = fastavro.schemaless_reader(body, writer, None)
    except UNREADABLE as error:
        raise BadTotal(f"the body can't be read: {type(error).__name__}") from error
    if body.tell() != len(value):
        raise BadTotal("bytes follow the record")
    record.setdefault("gap_ms", record["ended_ms"] - record["started_ms"] - record["duration_ms"])
    return record  # type: ignore[no-any-return]


def _total_body(value: bytes | None) -> tuple[Any, int]:
    """Return (schema of the writer, position of the body); raise BadTotal for another framing.

    Workers alone write totals, and only with the schema of now in a registry's framing. So the id
    isn't looked up.
    """
    if value is not None:
        if value.startswith(TOTAL_HEADER):
            return _TOTAL, HEADER_SIZE
        if value.startswith(_TOTAL_HEADER_V1):
            return _TOTAL_V1, HEADER_SIZE
        if value[:1] == b"\0" and len(value) > FRAMING_SIZE:
            return _TOTAL, FRAMING_SIZE
    raise BadTotal("the value does not start with the fingerprint of billing.OrderTotal")


def decode_total(value: bytes | None) -> OrderTotal:
    """Return the total in a record value; raise BadTotal if it is none.

    A total of the schema before keeps its `upper_bound_ms` as it was written, also where by now it
    would be unknown, so that it equals what consumers have of it; its `gap_ms` is worked out.
    """
    record = total_record(value)
    record["status"] = Status(record["status"])
    record["intervals"] = tuple(Interval(**interval) for interval in record["intervals"])
    record["missing_numbers"] = tuple(NumberRange(**each) for each in record["missing_numbers"])
    return OrderTotal(**record)
