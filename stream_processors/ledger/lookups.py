"""Reads totals and status from the ledger. `where` is a DSN, or a connection to ask by."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import psycopg
from psycopg.rows import TupleRow

from durabill.schemas import Interval, NumberRange, OrderTotal, Status
from durabill.stream_processors.dsn import connect

Connection = psycopg.Connection[TupleRow]

TOTAL_FIELDS: tuple[str, ...] = tuple(OrderTotal.__slots__)
"""OrderTotal's fields, which are the names of the columns too."""

SUMMARY_FIELDS = tuple(name for name in TOTAL_FIELDS if name != "intervals")

Summary = SimpleNamespace
"""A total without its intervals: the other fields of OrderTotal as attributes."""

_AT_ONCE = 200  # rows; a total has at most a megabyte or so


@dataclass(frozen=True)
class LedgerStatus:
    """`orders` counts each order by its latest revision; `next_offsets` by (topic, partition)."""

    orders: Mapping[Status, int]
    totals: int
    set_aside: int
    unreadable: int
    next_offsets: Mapping[tuple[str, int], int]


@dataclass(frozen=True)
class Recorded:
    """How many rows the ledger has, and which settled last (None: there is none)."""

    totals: int
    disputed: int
    unreadable: int
    last_order_number: str | None
    last_revision: int | None
    last_settled_at_ms: int | None
    last_recorded_at_ms: int | None
    orders: int | None = None
    """Openings; None: its tables are from before there were any."""


def latest_total(where: str | Connection, order_number: str) -> OrderTotal | None:
    """Return the order's greatest revision, None where there is none."""
    newest = "WHERE service_order_number = %s ORDER BY revision DESC LIMIT 1"
    with connected(where) as conn:
        return next(iter(read_totals(conn, newest, (order_number,))), None)


def revisions(where: str | Connection, order_number: str) -> list[OrderTotal]:
    """Return every recorded revision of the order, from the first to the latest."""
    with connected(where) as conn:
        all_of_it = "WHERE service_order_number = %s ORDER BY revision"
        return read_totals(conn, all_of_it, (order_number,))


def latest_totals(
    where: str | Connection, *, status: str | None = None, limit: int | None = None
) -> Iterator[OrderTotal]:
    """Yield each order's greatest revision, the last settled first, whole."""
    clause, parameters = _latest(status, limit)
    return map(_total, _stream(where, TOTAL_FIELDS, clause, parameters))


def latest_summaries(
    where: str | Connection, *, status: str | None = None, limit: int | None = None
) -> Iterator[Summary]:
    """Yield the same without the intervals, which are most of a total of many pieces."""
    clause, parameters = _latest(status, limit)
    return map(_summary, _stream(where, SUMMARY_FIELDS, clause, parameters))


def revision_summaries(
    where: str | Connection, order_number: str, limit: int | None = None
) -> tuple[list[Summary], int]:
    """Return the order's latest revisions, oldest first, without intervals; and their count."""
    newest = "WHERE service_order_number = %s ORDER BY revision DESC LIMIT %s"
    with connected(where) as conn:
        rows = conn.execute(
            f"SELECT {', '.join(SUMMARY_FIELDS)} FROM order_totals {newest}", (order_number, limit)
        ).fetchall()
        count = conn.execute(
            "SELECT count(*) FROM order_totals WHERE service_order_number = %s", (order_number,)
        ).fetchone()
    assert count is not None, "an aggregate has one row"
    return [_summary(row) for row in reversed(rows)], count[0]


def every_total(where: str | Connection) -> Iterator[OrderTotal]:
    """Yield every revision of every order, a few at a time in memory."""
    return map(_total, _stream(where, TOTAL_FIELDS, "", ()))


def summary_of(total: OrderTotal) -> Summary:
    """Return the total without its intervals, as the summaries are."""
    return Summary(**{name: getattr(total, name) for name in SUMMARY_FIELDS})


def opened_orders(where: str) -> tuple[int, Iterator[tuple[Any, ...]]]:
    """Return how many openings are recorded, and those of orders that have no total since.

    A row has number, tenant, service, server timestamp, latest acceptable arrival, and the offset
    in the segments. A ledger from before there were openings has none.
    """
    with connect(where) as conn:
        if conn.execute("SELECT to_regclass('orders')").fetchone() == (None,):
            return 0, iter(())
        count = conn.execute("SELECT count(*) FROM orders").fetchone()
    assert count is not None, "an aggregate has one row"

    def rows() -> Iterator[tuple[Any, ...]]:
        with connect(where) as conn, conn.transaction(), conn.cursor("durabill_orders") as cursor:
            cursor.itersize = _AT_ONCE
            cursor.execute(
                "SELECT service_order_number, tenant, service, server_timestamp_ms,"
                " accept_until_ms, source_offset FROM orders_without_total"
            )
            yield from cursor

    return count[0], rows()


def set_aside_totals(where: str | Connection, order_number: str) -> list[OrderTotal]:
    """Return the order's totals that differ from the recorded one of the same revision."""
    with connected(where) as conn:
        rows = conn.execute(
            f"SELECT {', '.join(TOTAL_FIELDS)} FROM set_aside_totals "
            "WHERE service_order_number = %s ORDER BY revision, recorded_at, content_sha256",
            (order_number,),
        ).fetchall()
    return [_total(row) for row in rows]


def status(where: str | Connection) -> LedgerStatus:
    """Return how many orders stand where, and how far the ledger has read; one snapshot."""
    with connected(where) as conn:
        row = conn.execute(
            "SELECT (SELECT jsonb_object_agg(status, orders) FROM ledger_status), "
            "(SELECT count(*) FROM order_totals), (SELECT count(*) FROM set_aside_totals), "
            "(SELECT count(*) FROM unreadable_totals), "
            "(SELECT coalesce(jsonb_agg(jsonb_build_array(topic, partition, next_offset)), '[]') "
            "FROM ledger_offsets)"
        ).fetchone()
    assert row is not None, "a SELECT without FROM has one row"
    orders, totals, set_aside, unreadable, places = row
    return LedgerStatus(
        orders={Status(name): count for name, count in orders.items()},
        totals=totals,
        set_aside=set_aside,
        unreadable=unreadable,
        next_offsets={(topic, partition): offset for topic, partition, offset in places},
    )


def recorded(where: str | Connection) -> Recorded:
    """Return how many rows there are, and the last one, without a look at every order."""
    with connected(where) as conn:
        row = conn.execute(
            "SELECT (SELECT count(*) FROM order_totals), (SELECT count(*) FROM set_aside_totals), "
            "(SELECT count(*) FROM unreadable_totals), last.service_order_number, last.revision, "
            "last.settled_at_ms, floor(extract(epoch FROM last.recorded_at) * 1000)::bigint "
            "FROM (VALUES (1)) AS one LEFT JOIN LATERAL "
            "(SELECT * FROM order_totals ORDER BY settled_at DESC LIMIT 1) AS last ON true"
        ).fetchone()
        has_orders = conn.execute("SELECT to_regclass('orders') IS NOT NULL").fetchone() == (True,)
        orders = conn.execute("SELECT count(*) FROM orders").fetchone() if has_orders else None
    assert row is not None, "the VALUES have one row"
    return Recorded(*row, *(orders or (None,)))


def forget_offsets(where: str | Connection, topic: str, partition: int | None = None) -> int:
    """Make the ledger read `topic` (or one partition) from its first record again.

    Always safe: what is recorded stays, repeats change nothing, a running ledger notices and
    follows. Returns how many partitions were forgotten.
    """
    with connected(where) as conn:
        return conn.execute(
            "DELETE FROM ledger_offsets WHERE topic = %s AND partition = coalesce(%s, partition)",
            (topic, partition),
        ).rowcount


@contextmanager
def connected(where: str | Connection) -> Iterator[Connection]:
    """Give the given connection, or one of its own that is committed and closed at the end."""
    if isinstance(where, str):
        with connect(where) as conn:
            yield conn
    else:
        yield where


def read_totals(conn: Connection, where: str, parameters: Sequence[object]) -> list[OrderTotal]:
    """Return the recorded totals that the SQL clause `where` picks."""
    query = f"SELECT {', '.join(TOTAL_FIELDS)} FROM order_totals {where}"
    rows = conn.execute(query, parameters).fetchall()
    return [_total(row) for row in rows]


def _latest(status: str | None, limit: int | None) -> tuple[str, Sequence[object]]:
    """Return the rows of latest_order_totals as a clause that reads no more than is asked for.

    The view has to find all latest revisions before it can pick by status or by time. This goes
    down the index of `settled_at`, and looks up by the primary key whether a row is a latest one.
    """
    clause = (
        "AS total WHERE status = coalesce(%s::text, status) AND NOT EXISTS ("
        "SELECT FROM order_totals AS later WHERE later.revision > total.revision "
        "AND later.service_order_number = total.service_order_number) "
        "ORDER BY settled_at DESC, service_order_number LIMIT %s"
    )
    return clause, (status, limit)


def _stream(
    where: str | Connection, fields: Sequence[str], clause: str, parameters: Sequence[object]
) -> Iterator[Sequence[Any]]:
    """Yield rows of order_totals by a cursor of the server's."""
    with (
        connected(where) as conn,
        conn.transaction(),
        conn.cursor("durabill_totals") as cursor,
    ):
        cursor.itersize = _AT_ONCE
        cursor.execute(f"SELECT {', '.join(fields)} FROM order_totals {clause}", parameters)
        yield from cursor


def _summary(row: Sequence[Any]) -> Summary:
    values = dict(zip(SUMMARY_FIELDS, row, strict=True))
    values["status"] = Status(values["status"])
    values["missing_numbers"] = tuple(NumberRange(**each) for each in values["missing_numbers"])
    return Summary(**values)


def _total(row: Sequence[Any]) -> OrderTotal:
    values = dict(zip(TOTAL_FIELDS, row, strict=True))
    values["status"] = Status(values["status"])
    values["intervals"] = tuple(Interval(**each) for each in values["intervals"])
    values["missing_numbers"] = tuple(NumberRange(**each) for each in values["missing_numbers"])
    return OrderTotal(**values)
