"""The layout of a spool's file: SQLite tables, with the format's number in PRAGMA user_version.

Each row that money depends on has a sum (CRC-32) of its own: a disk that returns other bytes than
it was given is noticed, and such a row is never sent. Rows of format 1 have none (NULL), which is
fine in a file that was of format 1 once, and there alone.

Few pages change for a segment, since every changed page is written whole: no index by order (the
spool counts in memory), sessions are updated in place by their id, and leases, which are long and
seldom change, have a table of their own.
"""

import dataclasses
import json
import sqlite3
import zlib
from collections.abc import Sequence
from typing import Any

from durabill.producers.sdk.session import SessionState
from durabill.producers.sdk.uplink import OrderTerms
from durabill.schemas import BadRecord, SegmentEvent

FORMAT = 2  # another number is another layout
PAGE_BYTES = 1_024  # of a new file: a commit writes whole pages
_SEGMENT_COLUMNS = """
    service_order_number TEXT NOT NULL, business_data_number INTEGER NOT NULL,
    start_ms INTEGER NOT NULL, end_ms INTEGER NOT NULL, end_identifier INTEGER NOT NULL"""
TABLES = (
    f"CREATE TABLE pending (id INTEGER PRIMARY KEY, {_SEGMENT_COLUMNS}, sum INTEGER)",
    f"""CREATE TABLE rejected (id INTEGER PRIMARY KEY, {_SEGMENT_COLUMNS},
        reason TEXT NOT NULL, detail TEXT NOT NULL, sum INTEGER)""",
)
TABLES_SINCE_2 = (
    """CREATE TABLE services (id INTEGER PRIMARY KEY, service_order_number TEXT NOT NULL,
        report_interval_ms INTEGER NOT NULL, next_number INTEGER NOT NULL,
        reported_until_ms INTEGER NOT NULL, ended INTEGER NOT NULL, extra TEXT NOT NULL,
        sum INTEGER)""",
    # The id is that of the service.
    "CREATE TABLE terms (id INTEGER PRIMARY KEY, content TEXT NOT NULL)",
    """CREATE TABLE receipts (id INTEGER PRIMARY KEY, kept_ms INTEGER NOT NULL,
        content TEXT NOT NULL)""",
)
ID_MAX = 2**62  # of a row: a greater one was never given
NAMES = "service_order_number, business_data_number, start_ms, end_ms, end_identifier"
SERVICE_NAMES = (
    "service_order_number, report_interval_ms, next_number, reported_until_ms, ended, extra, sum"
)
_STATE_FIELDS = [field.name for field in dataclasses.fields(SessionState)]
_OWN_COLUMNS = 5  # of a state; what it has besides goes into `extra`

Row = tuple[Any, ...]


def make_tables(db: sqlite3.Connection) -> None:
    """Make the tables of a new file."""
    for table in (*TABLES, *TABLES_SINCE_2):
        db.execute(table)
    db.execute(f"PRAGMA user_version={FORMAT}")


def migrate_from_1(db: sqlite3.Connection) -> None:
    """Bring the tables of format 1 to this one, inside a transaction of the caller's.

    The segments stay where they are: there may be no room for a copy.
    """
    db.execute("DROP INDEX pending_by_order")
    for table in ("pending", "rejected"):
        db.execute(f"ALTER TABLE {table} ADD COLUMN sum INTEGER")
    for table in TABLES_SINCE_2:
        db.execute(table)
    rows = db.execute(
        "SELECT service_order_number, report_interval_ms, next_number, reported_until_ms, ended"
        " FROM sessions ORDER BY rowid"
    ).fetchall()
    for service_id, row in enumerate(rows, 1):
        insert_service(db, service_id, SessionState(row[0], row[1], row[2], row[3], bool(row[4])))
    db.execute("DROP TABLE sessions")
    db.execute(f"PRAGMA user_version={FORMAT}")


def row_sum(*values: object) -> int:
    """Return the sum of a row's values, signed: so it takes four bytes in a row."""
    return zlib.crc32(repr(values).encode()) - 2**31


def segment_row(segment: SegmentEvent) -> Row:
    """Return a segment's values and their sum."""
    values = (
        segment.service_order_number,
        segment.business_data_number,
        segment.start_ms,
        segment.end_ms,
        int(segment.end_identifier),
    )
    return (*values, row_sum(*values))


def may_lack_sums(db: sqlite3.Connection) -> bool:
    """Tell whether a file's segments were of format 1 once: that one alone counted its ids."""
    query = "SELECT count(*) FROM sqlite_master WHERE name = 'sqlite_sequence'"
    return bool(db.execute(query).fetchone()[0])


def segment_of(row: Sequence[Any], *, may_lack_sum: bool) -> SegmentEvent | None:
    """Return the segment of a row of `NAMES` and `sum`; None where it isn't what was written."""
    *values, found = row
    if found is None:
        if not may_lack_sum or [type(each) for each in values] != [str, int, int, int, int]:
            return None
    elif found != row_sum(*values):
        return None
    try:
        return SegmentEvent(values[0], values[1], values[2], values[3], bool(values[4]))
    except (BadRecord, TypeError):
        return None


def words_of(value: object) -> str:
    """Return the server's words in a row of a refused segment: none where they are damaged."""
    return value if isinstance(value, str) else ""


def insert_service(db: sqlite3.Connection, service_id: int, state: SessionState) -> None:
    """Write the row of a service that has none yet."""
    marks = ", ".join("?" * 8)
    db.execute(
        f"INSERT INTO services (id, {SERVICE_NAMES}) VALUES ({marks})",
        (service_id, *service_row(state)),
    )


def service_row(state: SessionState) -> Row:
    """Return the values of `SERVICE_NAMES` for a state."""
    values = [getattr(state, name) for name in _STATE_FIELDS]
    rest = dict(zip(_STATE_FIELDS[_OWN_COLUMNS:], values[_OWN_COLUMNS:], strict=True))
    row = (*values[:4], int(values[4]), json.dumps(rest) if rest else "")
    return (*row, row_sum(*row))


def state_of(row: Sequence[Any]) -> SessionState | None:
    """Return the state of a row of `SERVICE_NAMES`; None where it is damaged."""
    *values, found = row
    if found != row_sum(*values):
        return None
    rest = json.loads(values[5]) if values[5] else {}
    return SessionState(values[0], values[1], values[2], values[3], bool(values[4]), **rest)


def terms_row(terms: OrderTerms) -> str:
    """Return an order's terms as they are kept."""
    return json.dumps(dataclasses.asdict(terms))


def terms_of(content: str) -> OrderTerms:
    """Return the terms of a row; empty ones where it is damaged: the server can be asked again."""
    try:
        return OrderTerms(**json.loads(content))
    except (ValueError, TypeError):
        return OrderTerms()
