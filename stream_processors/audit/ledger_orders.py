"""Compares the ledger's table `orders` with the records of the orders topic that they stand for.

As `ledger_rows` does it for totals: both are streams in the order of the topic's offsets, and the
snapshot of the database is older than the end of the topic. A record can lack a row of its own
rightly: where it repeats an opening that is recorded already, or where another one (of another log)
is recorded under its order and place, so that it was set aside.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from psycopg import ServerCursor

from durabill.stream_processors.audit.findings import Finding, Kind
from durabill.stream_processors.audit.ledger_rows import Connection, LedgerView, look_at
from durabill.stream_processors.audit.totals_log import Published
from durabill.stream_processors.ledger.openings import RecordedOpening, read_opened
from durabill.stream_processors.ledger.records import RawRecord

COLUMNS = (
    *("orders_offset", "orders_append_ms", "service_order_number", "source_offset"),
    *("source_partition", "tenant", "client", "service", "attributes", "server_timestamp_ms"),
    *("report_interval_ms", "accept_until_ms"),
)
"""The columns that are compared."""

_NUMBER_AT = COLUMNS.index("service_order_number")
_ROWS = (
    f"SELECT {', '.join(COLUMNS)} FROM orders WHERE orders_topic = %s AND orders_partition = %s"
    " AND (%s::text IS NULL OR service_order_number = %s)"
    " ORDER BY orders_offset, service_order_number, source_offset"
)
_SAME_KEY = (
    f"SELECT {', '.join(COLUMNS)} FROM orders WHERE service_order_number = %s"
    " AND source_offset = %s"
)
_SET_ASIDE = (
    "SELECT 1 FROM unreadable_totals"
    " WHERE totals_topic = %s AND totals_partition = %s AND totals_offset = %s"
)
_AT_ONCE = 2_000

Row = tuple[Any, ...]


@dataclass(slots=True)
class OrderRows:
    """The rows of one partition, told of its records as they pass by; must be closed."""

    view: LedgerView
    topic: str
    partition: int
    only_order: str | None = None
    findings: list[Finding] = field(default_factory=list)
    rows: int = 0
    proven: int = 0
    not_yet_recorded: int = 0
    _absent: list[Row] = field(default_factory=list)
    _connection: Connection | None = None
    _cursor: ServerCursor[Row] | None = None
    _lines: Iterator[Row] = field(default_factory=lambda: iter(()))
    _row: Row | None = None

    def open(self) -> None:
        """Begin to read. Raises psycopg.Error."""
        self._connection = look_at(self.view)
        self._cursor = self._connection.cursor("durabill_orders")
        self._cursor.itersize = _AT_ONCE
        which = (self.topic, self.partition, self.only_order, self.only_order)
        self._cursor.execute(_ROWS, which)
        self._lines = iter(self._cursor)
        self._step()

    def close(self) -> None:
        """Close the connection."""
        if self._cursor is not None:
            self._cursor.close()
        if self._connection is not None:
            self._connection.close()

    def _step(self) -> None:
        self._row = next(self._lines, None)
        self.rows += self._row is not None

    def add_record(self, record: Published) -> None:
        """Compare the next record of the topic with the rows up to its offset."""
        while self._row is not None and self._row[0] < record.offset:
            self._stranger(self._row, "no record at this offset")
            self._step()
        expected = self._row_of(record)
        if self._row is None or self._row[0] != record.offset:
            if record.offset >= self.view.orders_read_to(self.partition):
                self.not_yet_recorded += 1
            elif expected is not None:
                self._absent.append(expected)
            return
        if expected is None:
            self._stranger(self._row, "the record is no opening")
        elif expected == self._row:
            self.proven += 1
        else:
            self._differs(expected, self._row)
        self._step()
        while self._row is not None and self._row[0] == record.offset:
            self._stranger(self._row, "once more for the same record")
            self._step()

    def finish(self, end: int) -> None:
        """Judge what is left, once all records before `end`, the topic's, have passed by."""
        while self._row is not None:
            self._stranger(self._row, "no record at this offset")
            self._step()
        read_to = self.view.orders_next.get(self.partition, 0)
        if read_to > end:
            self.findings.append(
                Finding(
                    Kind.LEDGER_DIFFERS,
                    field="next_offset",
                    expected=f"at most {end}, the end of the topic",
                    found=f"{read_to}: what comes before would never be recorded",
                    place=f"ledger_offsets, of {self.topic}/{self.partition}",
                )
            )
        assert self._connection is not None, "it is open"
        for expected in self._absent:
            key = (expected[_NUMBER_AT], expected[COLUMNS.index("source_offset")])
            row = self._connection.execute(_SAME_KEY, key).fetchone()
            # An opening that is there twice has one row, at the place that was read first.
            if row is None or (row[2:] != expected[2:] and not self._is_set_aside(expected[0])):
                place = f"{self.topic}/{self.partition}/{expected[0]}"
                tenant = f"an opening by {expected[COLUMNS.index('tenant')]}"
                self.findings.append(
                    Finding(Kind.MISSING_ROW, key[0], None, "", tenant, "no row", place)
                )

    def _is_set_aside(self, offset: int) -> bool:
        """Tell whether the ledger has kept a record as it came, beside what stands."""
        assert self._connection is not None, "it is open"
        which = (self.topic, self.partition, offset)
        return self._connection.execute(_SET_ASIDE, which).fetchone() is not None

    def _row_of(self, record: Published) -> Row | None:
        """Return the row that a record must have, None where it is no opening."""
        raw = RawRecord(self.partition, record.offset, record.append_ms, record.key, record.value)
        read = read_opened(raw, record.source_offset)
        if not isinstance(read, RecordedOpening):
            return None
        opened = read.opened._asdict() | {
            "attributes": dict(read.opened.attributes),
            "orders_offset": record.offset,
            "orders_append_ms": record.append_ms,
            "source_offset": read.source_offset,
            "source_partition": self.partition,
        }
        return tuple(opened[name] for name in COLUMNS)

    def _differs(self, expected: Row, row: Row) -> None:
        for name, want, found in zip(COLUMNS, expected, row, strict=True):
            if want != found:
                self.findings.append(
                    Finding(
                        Kind.LEDGER_DIFFERS,
                        expected[_NUMBER_AT],
                        None,
                        name,
                        str(want),
                        str(found),
                        self._place(row),
                    )
                )

    def _stranger(self, row: Row, why: str) -> None:
        found = f"an opening by {row[COLUMNS.index('tenant')]}"
        self.findings.append(
            Finding(Kind.ROW_WITHOUT_TOTAL, row[_NUMBER_AT], None, "", why, found, self._place(row))
        )

    def _place(self, row: Row) -> str:
        return f"orders, of {self.topic}/{self.partition}/{row[0]}"
