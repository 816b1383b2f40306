"""Compares the ledger's table `orders` with the records of the orders topic that they stand for.

As `ledger_rows` does it for totals. A record can lack a row of its own rightly: where it repeats an
opening that is recorded already, or where another one (of another log) is recorded under its order
and place, so that it was set aside.
"""

from collections.abc import Generator
from typing import Any

from durabill.stream_processors.audit.findings import Finding, Kind
from durabill.stream_processors.audit.ledger_walk import LedgerView, LedgerWalk
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


class OrderRows(LedgerWalk[Row]):
    """The rows of one partition."""

    def __init__(
        self, view: LedgerView, topic: str, partition: int, only_order: str | None = None
    ) -> None:
        next_offset = view.orders_next.get(partition, 0)
        rows_to = view.orders_rows_to.get(partition, 0)
        super().__init__(view, topic, partition, next_offset, rows_to)
        self._only_order = only_order
        self._absent: list[Row] = []

    def _begin(self) -> Generator[Row, None, None]:
        which = (self.topic, self.partition, self._only_order, self._only_order)
        with self.connection.cursor("durabill_orders") as cursor:
            cursor.itersize = _AT_ONCE
            yield from cursor.execute(_ROWS, which)

    def _judge(self, record: Published, row: Row) -> None:
        expected = self._row_of(record)
        if expected is None:
            self._stranger(row, "the record is no opening")
        elif expected == row:
            self.proven += 1
        else:
            self._differs(expected, row)

    def _note_absent(self, record: Published) -> None:
        expected = self._row_of(record)
        if expected is not None:
            self._absent.append(expected)

    def _judge_absent(self) -> None:
        for expected in self._absent:
            key = (expected[_NUMBER_AT], expected[COLUMNS.index("source_offset")])
            row = self.connection.execute(_SAME_KEY, key).fetchone()
            # An opening that is there twice has one row, at the place that was read first.
            if row is None or (row[2:] != expected[2:] and not self._is_set_aside(expected[0])):
                place = f"{self.topic}/{self.partition}/{expected[0]}"
                tenant = f"an opening by {expected[COLUMNS.index('tenant')]}"
                self.findings.append(
                    Finding(Kind.MISSING_ROW, key[0], None, "", tenant, "no row", place)
                )

    def _is_set_aside(self, offset: int) -> bool:
        """Tell whether the ledger has kept a record as it came, beside what stands."""
        which = (self.topic, self.partition, offset)
        return self.connection.execute(_SET_ASIDE, which).fetchone() is not None

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
