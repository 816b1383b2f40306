"""The ledger's table `orders`: every opening once, as the orders topic has it.

An opening is known by its order number and its offset in the segments. So reading a stretch of the
topic again changes nothing, and an order that was forgotten and opened again has a row for each.
What isn't an opening, or is another one than the recorded one, is kept as it came.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass

import psycopg

from durabill.schemas import BadRecord, OrderOpened, is_opening, read_opening
from durabill.stream_processors.ledger.lookups import Connection
from durabill.stream_processors.ledger.records import (
    AGAINST_RULES,
    RawRecord,
    UnreadableRecord,
)

NOT_AN_OPENING = "NOT_AN_OPENING"
"""Reason of a record of the orders topic that cannot be read as an opening."""

OTHER_OPENING = "OTHER_OPENING"
"""Reason of an opening where another one of the same place in the log is recorded."""

COLUMNS = (
    *OrderOpened._fields,
    *("source_partition", "source_offset"),
    *("orders_topic", "orders_partition", "orders_offset", "orders_append_ms"),
)
_CONTENT = COLUMNS[: COLUMNS.index("orders_topic")]
_INSERT = f"""
    INSERT INTO orders ({", ".join(COLUMNS)}) VALUES ({", ".join(["%s"] * len(COLUMNS))})
    ON CONFLICT (service_order_number, source_offset) DO NOTHING
"""
_STANDS = f"""
    SELECT {", ".join(_CONTENT)} FROM orders WHERE service_order_number = %s AND source_offset = %s
"""


@dataclass(frozen=True, slots=True)
class RecordedOpening:
    """An opening with the record that brought it, and where in the log it lies."""

    opened: OrderOpened
    record: RawRecord
    source_offset: int


def read_opened(record: RawRecord, source_offset: int | None) -> RecordedOpening | UnreadableRecord:
    """Return a record of the orders topic as an opening, or why it is none.

    `source_offset` is what its header says, None where that says nothing.
    """
    if record.value is None or not is_opening(record.value):
        return UnreadableRecord(record, NOT_AN_OPENING, "the value is no OrderOpened")
    try:
        opened = read_opening(record.key, record.value)
    except BadRecord as error:
        return UnreadableRecord(record, NOT_AN_OPENING, str(error))
    if source_offset is None:
        detail = "no header says where in the segments it lies: no worker wrote it"
        return UnreadableRecord(record, NOT_AN_OPENING, detail)
    return RecordedOpening(opened, record, source_offset)


def insert_openings(
    conn: Connection, topic: str, openings: Sequence[RecordedOpening]
) -> tuple[int, int, list[UnreadableRecord]]:
    """Insert openings in the caller's transaction; return how many are new, how many repeats.

    Besides, those that the tables refuse, or that differ from what is recorded in their place.
    """
    new, refused = 0, list[UnreadableRecord]()
    try:
        with conn.transaction(), conn.cursor() as cursor:  # a savepoint
            cursor.executemany(_INSERT, [_row(topic, each) for each in openings])
            new = cursor.rowcount
    except (psycopg.DataError, psycopg.IntegrityError):
        new = 0
        for each in openings:
            try:
                with conn.transaction():
                    new += conn.execute(_INSERT, _row(topic, each)).rowcount
            except (psycopg.DataError, psycopg.IntegrityError) as error:
                refused.append(UnreadableRecord(each.record, AGAINST_RULES, str(error)))
    if new + len(refused) == len(openings):
        return new, 0, refused
    without_row = {id(each.record) for each in refused}
    different = [
        UnreadableRecord(
            each.record,
            OTHER_OPENING,
            f"another opening of {each.opened.service_order_number!r} at offset"
            f" {each.source_offset} is recorded",
        )
        for each in openings
        if id(each.record) not in without_row and not _stands(conn, topic, each)
    ]
    repeated = len(openings) - new - len(refused) - len(different)
    return new, repeated, [*refused, *different]


def _stands(conn: Connection, topic: str, recorded: RecordedOpening) -> bool:
    """Tell whether what is recorded in an opening's place is the same opening."""
    number = recorded.opened.service_order_number
    row = conn.execute(_STANDS, (number, recorded.source_offset)).fetchone()
    expected = dict(zip(COLUMNS, _row(topic, recorded), strict=True))
    expected["attributes"] = dict(recorded.opened.attributes)
    return row == tuple(expected[name] for name in _CONTENT)


def _row(topic: str, recorded: RecordedOpening) -> tuple[object, ...]:
    """Return the values of `COLUMNS`."""
    opened, record = recorded.opened, recorded.record
    attributes = json.dumps(dict(opened.attributes), ensure_ascii=False)
    return (
        *opened._replace(attributes=attributes),  # type: ignore[arg-type]
        *(record.partition, recorded.source_offset),
        *(topic, record.partition, record.offset, record.append_ms),
    )
