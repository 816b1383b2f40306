"""One moment of a ledger, for all processes of an audit; and what concerns no partition of it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psycopg

from durabill.stream_processors.audit.errors import AuditError
from durabill.stream_processors.audit.findings import Finding, Kind
from durabill.stream_processors.audit.ledger_rows import Connection, LedgerView
from durabill.stream_processors.dsn import connect, shown_dsn

_STRANGERS_MAX = 10_000
_STRANGERS = """
    SELECT service_order_number, revision, status, duration_ms,
           totals_topic, totals_partition, totals_offset
    FROM {table} AS row
    WHERE NOT (totals_topic = %s AND totals_partition BETWEEN 0 AND %s)
      AND (%s::text IS NULL OR service_order_number = %s)
      AND NOT EXISTS (SELECT FROM ledger_offsets AS known WHERE known.topic = row.totals_topic
                      AND known.topic <> %s)
    LIMIT %s
"""


@dataclass(frozen=True, slots=True)
class OpenLedger:
    """A ledger whose moment is held as long as this is open."""

    view: LedgerView
    source: str
    _connection: Connection

    def strangers(self, topic: str, partitions: int, order: str | None) -> list[Finding]:
        """Return a finding for each row that names no partition of the topic.

        Rows that come from another topic which the ledger has read are none of ours.
        """
        findings = []
        for table in ("order_totals", "set_aside_totals"):
            which = (topic, partitions - 1, order, order, topic, _STRANGERS_MAX)
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
        view = LedgerView(dsn, row[1], dict(offsets))
        yield OpenLedger(view, shown_dsn(dsn), connection)
