"""One moment of a ledger, for all processes of an audit; and what concerns no partition of it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import LiteralString

import psycopg

from durabill.schemas.text import counted
from durabill.stream_processors.audit.errors import AuditError
from durabill.stream_processors.audit.findings import Finding, Kind
from durabill.stream_processors.audit.ledger_tables import table_findings, unguarded
from durabill.stream_processors.audit.ledger_walk import Connection, LedgerView
from durabill.stream_processors.dsn import connect, shown_dsn

_OFFSETS = "SELECT partition, next_offset FROM ledger_offsets WHERE topic = %s"
_ROWS_TO = """
    SELECT totals_partition, max(totals_offset) + 1 FROM order_totals
    WHERE totals_topic = %s GROUP BY 1
"""
_ORDERS_TO = """
    SELECT orders_partition, max(orders_offset) + 1 FROM orders WHERE orders_topic = %s GROUP BY 1
"""
_STRANGERS_MAX = 10_000
_STRANGE_ORDERS = """
    SELECT service_order_number, tenant, orders_topic, orders_partition, orders_offset
    FROM orders
    WHERE NOT (orders_topic = %s AND orders_partition BETWEEN 0 AND %s)
      AND (%s::text IS NULL OR service_order_number = %s)
      AND orders_topic <> ALL (%s)
    LIMIT %s
"""
_STRANGERS = """
    SELECT service_order_number, revision, status, duration_ms,
           totals_topic, totals_partition, totals_offset
    FROM {table} AS row
    WHERE NOT (totals_topic = %s AND totals_partition BETWEEN 0 AND %s)
      AND (%s::text IS NULL OR service_order_number = %s)
      AND totals_topic <> ALL (%s)
    LIMIT %s
"""


@dataclass(frozen=True, slots=True)
class OpenLedger:
    """A ledger whose moment is held as long as this is open."""

    view: LedgerView
    source: str
    _connection: Connection

    def other_topics(self, *topics: str) -> list[str]:
        """Return the topics besides these that the ledger says it has read."""
        rows = self._connection.execute(
            "SELECT DISTINCT topic FROM ledger_offsets WHERE topic <> ALL (%s) ORDER BY 1",
            (list(topics),),
        )
        return [each for (each,) in rows]

    def notes(self, topic: str, others: Sequence[str]) -> list[str]:
        """Return what an auditor should know of the ledger besides."""
        notes = [
            f"the ledger's table {table} isn't kept from changes: its trigger append_only is off"
            for table in unguarded(self._connection)
        ]
        rows = self._connection.execute(
            "SELECT totals_topic, count(*) FROM order_totals WHERE totals_topic = ANY (%s)"
            " GROUP BY 1 ORDER BY 1",
            (list(others),),
        )
        for other, count in rows:
            told = counted(count, "row")
            notes.append(f"{told} of the ledger are of the topic {other}, and not of {topic}")
        if not self.view.next_offsets:
            notes.append(f"the ledger {self.source} has never read {topic}")
        if not self.view.has_orders:
            notes.append(
                f"the ledger {self.source} has no table of orders yet: `durabill ledger` makes it"
            )
        return notes

    def as_a_whole(self, order: str | None) -> list[Finding]:
        """Return what tables and views show otherwise than the rows say."""
        return list(table_findings(self._connection, order))

    def strangers(
        self, topic: str, partitions: int, order: str | None, others: Sequence[str]
    ) -> list[Finding]:
        """Return a finding for each row that names no partition of the topic, nor of the others."""
        findings = []
        for table in ("order_totals", "set_aside_totals"):
            which = (topic, partitions - 1, order, order, list(others), _STRANGERS_MAX)
            for row in self._connection.execute(_STRANGERS.format(table=table), which):
                number, revision, status, duration_ms, *place = row
                where = f"{table}, of {place[0]}/{place[1]}/{place[2]}"
                found = f"{status}, {duration_ms} ms"
                findings.append(
                    Finding(
                        Kind.ROW_WITHOUT_TOTAL, number, revision, "", "no such topic", found, where
                    )
                )
        return findings

    def strange_orders(
        self, topic: str, partitions: int, order: str | None, others: Sequence[str]
    ) -> list[Finding]:
        """Return the same of the table of orders."""
        which = (topic, partitions - 1, order, order, list(others), _STRANGERS_MAX)
        rows = self._connection.execute(_STRANGE_ORDERS, which) if self.view.has_orders else ()
        return [
            Finding(
                Kind.ROW_WITHOUT_TOTAL,
                number,
                expected="no such topic",
                found=f"an opening by {tenant}",
                place=f"orders, of {name}/{partition}/{offset}",
            )
            for number, tenant, name, partition, offset in rows
        ]

    def unreadable(self, topic: str) -> int:
        """Return how many records of the topic the ledger has found to be no totals."""
        row = self._connection.execute(
            "SELECT count(*) FROM unreadable_totals WHERE totals_topic = %s", (topic,)
        ).fetchone()
        assert row is not None, "an aggregate has one row"
        return int(row[0])


@contextmanager
def open_ledger(dsn: str, topic: str, orders_topic: str = "") -> Iterator[OpenLedger]:
    """Give the ledger as it is now. Raises psycopg.Error, and AuditError where it has no tables."""
    with connect(dsn) as connection:
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        connection.read_only = True
        row = connection.execute(
            "SELECT to_regclass('ledger_offsets') IS NOT NULL, pg_export_snapshot(),"
            " to_regclass('orders') IS NOT NULL"
        ).fetchone()
        assert row is not None, "a SELECT without FROM has one row"
        if not row[0]:
            raise AuditError(
                f"{shown_dsn(dsn)} has no ledger: apply deploy/migrations, or leave it out with"
                " --no-ledger"
            )
        view = LedgerView(
            dsn,
            row[1],
            _pairs(connection, _OFFSETS, topic),
            _pairs(connection, _ROWS_TO, topic),
            has_orders=row[2],
            orders_next=_pairs(connection, _OFFSETS, orders_topic),
            orders_rows_to=_pairs(connection, _ORDERS_TO, orders_topic) if row[2] else {},
        )
        yield OpenLedger(view, shown_dsn(dsn), connection)


def _pairs(connection: Connection, query: LiteralString, topic: str) -> dict[int, int]:
    return dict(connection.execute(query, (topic,)).fetchall())
