"""Whether a ledger's tables and views show what its rows say, looked at as a whole.

Rows are compared with the topic by `ledger_rows`. But finance reads the times beside the
milliseconds, and the views. PostgreSQL keeps those right by itself, unless somebody has had a hand
in it; so they are worked out again here, by SQL that shares nothing with the migrations.
"""

from collections.abc import Iterator

import psycopg

from durabill.stream_processors.audit.findings import Finding, Kind
from durabill.stream_processors.audit.ledger_rows import Connection

TABLES = ("order_totals", "set_aside_totals", "ledger_offsets", "unreadable_totals")
_TIMES_MAX = 1_000
_TIMES = """
    SELECT service_order_number, revision, name, shown, totals_topic, totals_partition,
           totals_offset, ms
    FROM (SELECT * FROM {table} WHERE %s::text IS NULL OR service_order_number = %s) AS row,
    LATERAL (VALUES ('started_at', started_at, started_ms), ('ended_at', ended_at, ended_ms),
                    ('settled_at', settled_at, settled_at_ms)) AS time (name, shown, ms)
    WHERE shown IS DISTINCT FROM CASE WHEN ms BETWEEN 0 AND 253402300799999 THEN
          timestamptz '1970-01-01 00:00:00+00' + ms / 1000 * interval '1 second'
          + ms %% 1000 * interval '1 millisecond' END
    LIMIT %s
"""
_LATEST = """
    SELECT DISTINCT ON (service_order_number) * FROM order_totals
    ORDER BY service_order_number DESC, revision DESC
"""
_GIST = (
    "service_order_number, revision, status, duration_ms, upper_bound_ms, gap_ms, started_ms,"
    " ended_ms, started_at, ended_at, settled_at, end_number, numbers_after_end, digest,"
    " md5(intervals::text), md5(missing_numbers::text), totals_topic, totals_partition,"
    " totals_offset"
)
_VIEWS = {
    "latest_order_totals": (_GIST, _LATEST),
    "ledger_status": (
        "status, orders, duration_ms, gap_ms, upper_bound_ms",
        f"""
        SELECT known.status, count(each.status) AS orders,
               coalesce(sum(each.duration_ms), 0) AS duration_ms,
               coalesce(sum(each.gap_ms), 0) AS gap_ms,
               CASE WHEN count(each.status) = count(each.upper_bound_ms)
                    THEN coalesce(sum(each.upper_bound_ms), 0) END AS upper_bound_ms
        FROM (VALUES ('COMPLETE'), ('INCOMPLETE'), ('ABANDONED'), ('RUNNING')) AS known (status)
        LEFT JOIN ({_LATEST}) AS each ON each.status = known.status
        GROUP BY known.status
        """,
    ),
    "disputed_totals": (
        "service_order_number, revision, recorded_duration_ms, set_aside_duration_ms,"
        " recorded_digest, set_aside_digest",
        """
        SELECT other.service_order_number, other.revision,
               row.duration_ms AS recorded_duration_ms, other.duration_ms AS set_aside_duration_ms,
               row.digest AS recorded_digest, other.digest AS set_aside_digest
        FROM set_aside_totals AS other, order_totals AS row
        WHERE row.service_order_number = other.service_order_number
          AND row.revision = other.revision
        """,
    ),
}
"""What each view must show: the columns that are compared, and where else they can be had from."""

_SUM = "SELECT count(*), sum(hashtextextended(ROW({})::text, 0)::numeric) FROM {} AS shown"


def table_findings(connection: Connection, order: str | None) -> Iterator[Finding]:
    """Yield what the ledger shows otherwise than its rows say. Raises psycopg.Error."""
    for table in TABLES:
        found = connection.execute(
            "SELECT relkind FROM pg_class WHERE oid = to_regclass(%s)", (table,)
        ).fetchone()
        if found != ("r",):
            yield _differs("", "a table", "none" if found is None else "a view, or the like", table)
    for table in ("order_totals", "set_aside_totals"):
        yield from _wrong_times(connection, table, order)
    for view, (columns, rows) in _VIEWS.items():
        if why := _why_other(connection, view, columns, rows):
            yield _differs("", "what the rows give", why, f"view {view}")


def _wrong_times(connection: Connection, table: str, order: str | None) -> Iterator[Finding]:
    for row in connection.execute(_TIMES.format(table=table), (order, order, _TIMES_MAX)):
        number, revision, name, shown, topic, partition, offset, ms = row
        yield Finding(
            Kind.LEDGER_DIFFERS,
            number,
            revision,
            name,
            f"{ms} ms since the epoch",
            "-" if shown is None else str(shown),
            f"{table}, of {topic}/{partition}/{offset}",
        )


def _why_other(connection: Connection, view: str, columns: str, rows: str) -> str:
    try:
        with connection.transaction():
            shown = connection.execute(_SUM.format(columns, view)).fetchone()
    except (psycopg.errors.UndefinedTable, psycopg.errors.UndefinedColumn):
        return "no such view, or one without some columns"
    right = connection.execute(_SUM.format(columns, f"({rows})")).fetchone()
    return "" if shown == right else "other rows"


def _differs(field: str, expected: str, found: str, place: str) -> Finding:
    return Finding(Kind.LEDGER_DIFFERS, "", None, field, expected, found, place)


def unguarded(connection: Connection) -> list[str]:
    """Return the tables of totals whose trigger against changes is off, or gone."""
    return [
        table
        for table in ("order_totals", "set_aside_totals")
        if connection.execute(
            "SELECT FROM pg_trigger WHERE tgrelid = to_regclass(%s) AND tgname = 'append_only'"
            " AND tgenabled IN ('O', 'A')",
            (table,),
        ).fetchone()
        is None
    ]
