"""Whether a ledger's tables and views show what its rows say, looked at as a whole.

Rows are compared with the topic by `ledger_rows`. But finance reads the times beside the
milliseconds, and the views. PostgreSQL keeps those right by itself, unless somebody has had a hand
in it; so they are worked out again here, by SQL that shares nothing with the migrations.
"""

from collections.abc import Iterator
from typing import LiteralString

import psycopg

from durabill.stream_processors.audit.findings import Finding, Kind
from durabill.stream_processors.audit.ledger_walk import Connection

TABLES = ("order_totals", "set_aside_totals", "ledger_offsets", "unreadable_totals", "orders")
_TIMES_MAX = 1_000
_TOTALS_TIMES = """
    SELECT service_order_number, revision, name, shown, totals_topic, totals_partition,
           totals_offset, ms
    FROM (SELECT * FROM {table} WHERE %s::text IS NULL OR service_order_number = %s) AS row,
    LATERAL (VALUES ('started_at', started_at, started_ms), ('ended_at', ended_at, ended_ms),
                    ('settled_at', settled_at, settled_at_ms)) AS time (name, shown, ms)
"""
_ORDERS_TIMES = """
    SELECT service_order_number, NULL, name, shown, orders_topic, orders_partition,
           orders_offset, ms
    FROM (SELECT * FROM {table} WHERE %s::text IS NULL OR service_order_number = %s) AS row,
    LATERAL (VALUES ('server_timestamp', server_timestamp, server_timestamp_ms),
                    ('accept_until', accept_until, accept_until_ms)) AS time (name, shown, ms)
"""
_WRONG = """
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
_ORDERS_VIEWS = {
    "tenant_totals": (
        f"tenant, client, service, attributes, server_timestamp_ms, accept_until_ms, {_GIST}",
        f"""
        SELECT opened.tenant, opened.client, opened.service, opened.attributes,
               opened.server_timestamp_ms, opened.accept_until_ms, total.*
        FROM ({_LATEST}) AS total LEFT JOIN orders AS opened
          ON (opened.service_order_number, opened.source_offset) = (
              SELECT service_order_number, max(source_offset) FROM orders
              WHERE service_order_number = total.service_order_number
                AND source_offset <= total.source_offset
              GROUP BY 1)
        """,
    ),
    "orders_without_total": (
        "service_order_number, tenant, source_offset, orders_topic, orders_offset",
        """
        SELECT opened.* FROM orders AS opened LEFT JOIN (
            SELECT service_order_number, max(source_offset) AS last FROM order_totals GROUP BY 1
        ) AS total USING (service_order_number)
        WHERE coalesce(total.last, -1) <= opened.source_offset
        """,
    ),
}
"""What each view must show: the columns that are compared, and where else they can be had from."""

_SUM = "SELECT count(*), sum(hashtextextended(ROW({})::text, 0)::numeric) FROM {} AS shown"


def table_findings(connection: Connection, order: str | None) -> Iterator[Finding]:
    """Yield what the ledger shows otherwise than its rows say. Raises psycopg.Error."""
    has_orders = _has_orders(connection)
    for table in TABLES if has_orders else TABLES[:-1]:
        found = connection.execute(
            "SELECT relkind FROM pg_class WHERE oid = to_regclass(%s)", (table,)
        ).fetchone()
        if found != ("r",):
            yield _differs("", "a table", "none" if found is None else "a view, or the like", table)
    for table in ("order_totals", "set_aside_totals"):
        yield from _wrong_times(connection, table, _TOTALS_TIMES, order)
    if has_orders:
        yield from _wrong_times(connection, "orders", _ORDERS_TIMES, order)
    views = {**_VIEWS, **(_ORDERS_VIEWS if has_orders else {})}
    for view, (columns, rows) in views.items():
        if why := _why_other(connection, view, columns, rows):
            yield _differs("", "what the rows give", why, f"view {view}")


def _has_orders(connection: Connection) -> bool:
    """Tell whether there is a table of orders: a ledger from before has none."""
    row = connection.execute("SELECT to_regclass('orders') IS NOT NULL").fetchone()
    return row == (True,)


def _wrong_times(
    connection: Connection, table: str, times: LiteralString, order: str | None
) -> Iterator[Finding]:
    query = (times + _WRONG).format(table=table)
    for row in connection.execute(query, (order, order, _TIMES_MAX)):
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
    """Return the tables whose trigger against changes is off, or gone."""
    guarded = ["order_totals", "set_aside_totals", *["orders"] * _has_orders(connection)]
    return [
        table
        for table in guarded
        if connection.execute(
            "SELECT FROM pg_trigger WHERE tgrelid = to_regclass(%s) AND tgname = 'append_only'"
            " AND tgenabled IN ('O', 'A')",
            (table,),
        ).fetchone()
        is None
    ]
