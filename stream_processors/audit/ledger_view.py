"""One moment of a ledger, for all processes of an audit; and what concerns no partition of it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import psycopg

from durabill.schemas.text import counted
from durabill.stream_processors.audit.errors import AuditError
from durabill.stream_processors.audit.findings import Finding, Kind
from durabill.stream_processors.audit.ledger_rows import Connection, LedgerView
from durabill.stream_processors.audit.ledger_tables import table_findings, unguarded
from durabill.stream_processors.dsn import connect, shown_dsn

_STRANGERS_MAX = 10_000
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

    def other_topics(self, topic: str) -> list[str]:
        """Return the other topics that the ledger says it has read."""
        rows = self._connection.execute(
            "SELECT DISTINCT topic FROM ledger_offsets WHERE topic <> %s ORDER BY 1", (topic,)
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

    def unreadable(self, topic: str) -> int:
        """Return how many records of the topic the ledger has found to be no totals."""
        row = self._connection.execute(
            "SELECT count(*) FROM unreadable_totals WHERE totals_topic = %s", (topic,)
        ).fetchone()
        assert row is not None, "an aggregate has one row"
        return int(row[0])


@contextmanager
def open_ledger(dsn: str, topic: str) -> Iterator[OpenLedger]:
    """Give the ledger as it is now. Raises psycopg.Error, and AuditError where it has no tables."""
    with connect(dsn) as connection:
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        connection.read_only = True
        row = connection.execute(
            "SELECT to_regclass('ledger_offsets') IS NOT NULL, pg_export_snapshot()"
        ).fetchone()
        assert row is not None, "a SELECT without FROM has one row"
        if not row[0]:
            raise AuditError(
                f"{shown_dsn(dsn)} has no ledger: apply deploy/migrations, or leave it out with"
                " --no-ledger"
            )
        offsets = connection.execute(
            "SELECT partition, next_offset FROM ledger_offsets WHERE topic = %s", (topic,)
        ).fetchall()
        recorded = connection.execute(
            "SELECT totals_partition, max(totals_offset) + 1 FROM order_totals"
            " WHERE totals_topic = %s GROUP BY 1",
            (topic,),
        ).fetchall()
        view = LedgerView(dsn, row[1], dict(offsets), dict(recorded))
        yield OpenLedger(view, shown_dsn(dsn), connection)
