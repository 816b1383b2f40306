"""What commands ask the ledger, and what they show of it: no more is read than is shown."""

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import psycopg
import pytest

from durabill.schemas import Interval, NumberRange, OrderTotal, Status
from durabill.stream_processors.ledger.lookups import (
    SUMMARY_FIELDS,
    Connection,
    Recorded,
    every_total,
    latest_summaries,
    latest_totals,
    recorded,
    revision_summaries,
    revisions,
    summary_of,
)
from durabill.stream_processors.ledger.store import LedgerStore
from tests.broker.ledger_kit import a_total, complete, new_ledger_dsn, publish
from tests.broker.test_ledger_store import write
from tests.broker.test_secrets import Shell, shell
from tests.conftest import Topics

__all__ = ["shell"]  # a fixture


@pytest.fixture(scope="module")
def totals() -> list[OrderTotal]:
    """Orders of one to three revisions, which settled at times of their own and at equal ones."""
    found: list[OrderTotal] = []
    for order in range(30):
        first = replace(
            a_total(f"SO-{order:02}", duration_ms=1_000 + order),
            settled_at_ms=1_770_000_000_000 + 1_000 * (order * 7 % 10),
        )
        found.append(first)
        if order % 3 == 0:
            found.append(complete(first))
        if order % 9 == 0:
            found.append(replace(found[-1], revision=3, status=Status.INCOMPLETE))
    return found


@pytest.fixture(scope="module")
def dsn(postgres_dsn: str, totals: list[OrderTotal]) -> str:
    dsn = new_ledger_dsn(postgres_dsn)
    with psycopg.connect(dsn, autocommit=True) as conn:
        write(LedgerStore(conn), "totals", 0, totals)
    return dsn


def test_what_is_recorded(dsn: str, totals: list[OrderTotal], postgres_dsn: str) -> None:
    found = recorded(dsn)
    assert (len(totals), 0, 0) == (found.totals, found.disputed, found.unreadable)
    assert max(each.settled_at_ms for each in totals) == found.last_settled_at_ms
    key = (found.last_order_number, found.last_revision)
    assert key in {(each.service_order_number, each.revision) for each in totals}
    assert found.last_recorded_at_ms is not None
    empty = new_ledger_dsn(postgres_dsn)
    assert Recorded(0, 0, 0, None, None, None, None, orders=0) == recorded(empty)


@pytest.mark.parametrize("status", [None, *Status])
@pytest.mark.parametrize("limit", [1, 29, 30, 31, None])
def test_the_latest_are_those_of_the_view_and_the_last_settled_come_first(
    dsn: str, totals: list[OrderTotal], status: Status | None, limit: int | None
) -> None:
    latest = {each.service_order_number: each for each in totals}
    wanted = [each for each in latest.values() if status in (None, each.status)]
    wanted.sort(key=lambda each: (-each.settled_at_ms, each.service_order_number))
    assert wanted[:limit] == list(latest_totals(dsn, status=status, limit=limit))
    summaries = list(latest_summaries(dsn, status=status, limit=limit))
    assert [summary_of(each) for each in wanted[:limit]] == summaries
    assert not any(hasattr(each, "intervals") for each in summaries)
    with psycopg.connect(dsn) as conn:
        by_view = conn.execute(
            "SELECT service_order_number, revision FROM latest_order_totals "
            "WHERE status = coalesce(%s, status)",
            (status,),
        ).fetchall()
    found = latest_totals(dsn, status=status)
    assert sorted(by_view) == sorted((each.service_order_number, each.revision) for each in found)


@pytest.mark.parametrize(
    ("limit", "shown"), [(1, [3]), (2, [2, 3]), (3, [1, 2, 3]), (4, [1, 2, 3])]
)
def test_the_latest_revisions_of_an_order_and_how_many_there_are(
    dsn: str, limit: int, shown: list[int]
) -> None:
    found, count = revision_summaries(dsn, "SO-09", limit)
    assert (shown, 3) == ([each.revision for each in found], count)
    whole = revisions(dsn, "SO-09")
    assert [summary_of(each) for each in whole] == revision_summaries(dsn, "SO-09")[0]
    assert revision_summaries(dsn, "SO-none", limit) == ([], 0)


def test_every_total_comes_once_and_a_caller_may_stop_early(
    dsn: str, totals: list[OrderTotal]
) -> None:
    def key(total: OrderTotal) -> tuple[str, int]:
        return total.service_order_number, total.revision

    assert sorted(totals, key=key) == sorted(every_total(dsn), key=key)
    some = every_total(dsn)
    assert next(some) in totals
    del some
    with psycopg.connect(dsn, autocommit=True) as conn:
        assert len(totals) == len(list(every_total(conn)))
        assert conn.execute("SELECT 1").fetchone() == (1,)


def rows_read(conn: Connection, ask: Callable[[], object]) -> int:
    """How many rows of the table PostgreSQL went through for a question."""
    look = (
        "SELECT seq_tup_read + idx_tup_fetch FROM pg_stat_xact_user_tables "
        "WHERE relname = 'order_totals' AND schemaname = current_schema()"
    )
    with conn.transaction():
        ask()
        row = conn.execute(look).fetchone()
    assert row is not None
    return int(row[0])


def test_a_few_of_many_orders_are_found_without_reading_them_all(postgres_dsn: str) -> None:
    dsn = new_ledger_dsn(postgres_dsn)
    many = [
        replace(a_total(f"SO-{n:05}"), settled_at_ms=1_770_000_000_000 + n) for n in range(20_000)
    ]
    with psycopg.connect(dsn, autocommit=True) as conn:
        write(LedgerStore(conn), "totals", 0, many)
        conn.execute("ANALYZE order_totals")
        conn.execute("VACUUM order_totals")
        for status in (None, "INCOMPLETE"):
            read = rows_read(conn, partial(few, conn, status))
            assert 5 <= read <= 200
        assert rows_read(conn, lambda: list(latest_summaries(conn))) >= 20_000


def few(conn: Connection, status: str | None) -> None:
    assert len(list(latest_summaries(conn, status=status, limit=5))) == 5


def in_pieces(total: OrderTotal, pieces: int) -> OrderTotal:
    length = total.duration_ms // pieces
    starts = [total.started_ms + n * (length + 1) for n in range(pieces)]
    return replace(
        total,
        intervals=tuple(Interval(start, start + length) for start in starts),
        duration_ms=length * pieces,
        upper_bound_ms=total.ended_ms - total.started_ms,
        gap_ms=total.ended_ms - total.started_ms - length * pieces,
    )


@pytest.mark.parametrize("by_ledger", [True, False])
def test_commands_show_the_latest_and_say_that_there_are_more(
    shell: Shell,
    topics: Topics,
    bootstrap_servers: str,
    postgres_dsn: str,
    monkeypatch: pytest.MonkeyPatch,
    by_ledger: bool,
) -> None:
    first = a_total("SO-many", duration_ms=100_000)
    ended_ms = 1_770_000_200_123
    gap_ms = ended_ms - first.started_ms - first.duration_ms
    first = replace(first, ended_ms=ended_ms, gap_ms=gap_ms)
    many = [
        replace(in_pieces(first, n + 1), revision=n + 1, previous_digest="b" * 64 if n else "")
        for n in range(40)
    ]
    other = replace(a_total("SO-other"), settled_at_ms=1_770_000_000_000)
    publish({"bootstrap.servers": bootstrap_servers}, topics.totals, [*many, many[-1], other])
    if by_ledger:
        dsn = new_ledger_dsn(postgres_dsn)
        with psycopg.connect(dsn, autocommit=True) as conn:
            write(LedgerStore(conn), topics.totals, 0, [*many, other])
        monkeypatch.setenv("DURABILL_LEDGER_DSN", dsn)

    code, output = shell.run("totals", "--limit", "1")
    assert code == 0
    assert "SO-many  revision 40" in output
    assert "1 order; there are more, see --limit" in output
    assert "2 orders\n" in shell.run("totals", "--limit", "2")[1]
    assert "0 orders\n" in shell.run("totals", "--status", "COMPLETE")[1]
    _, output = shell.run("totals", "--json", "--limit", "1")
    assert len(json.loads(output.splitlines()[0])["intervals"]) == 40

    for rows, shown in (("0", 40), ("39", 39), ("40", 40), ("41", 40)):
        code, output = shell.run("order", "SO-many", "--rows", rows)
        assert code == 0
        assert shown == output.count("  revision ")
        assert "40 totals in " in output
        assert (shown < 40) == (f"the latest {shown}; --rows 0 shows all" in output)
        assert "revision 40 " in output
    # A revision takes three lines of 320 characters (300 before the third said what caused it),
    # however many intervals it has: the 40 of the last one alone would take over a thousand.
    assert len(output) < 350 * 40
    _, output = shell.run("order", "SO-many", "--json")
    found = json.loads(next(line for line in output.splitlines() if line.startswith("{")))
    assert [n + 1 for n in range(40)] == [len(each["intervals"]) for each in found["totals"]]


WORDS: tuple[tuple[str, dict[str, Any], str], ...] = (
    ("bounded", {}, "INCOMPLETE  1.000 s (at most 1.500 s), gaps of 0.500 s"),
    (
        "no-first",
        {"missing_numbers": (NumberRange(1, 3),), "upper_bound_ms": None},
        "INCOMPLETE  1.000 s (upper bound unknown), gaps of 0.500 s",
    ),
    (
        "no-end",
        {"status": Status.ABANDONED, "end_number": None, "upper_bound_ms": None},
        "ABANDONED  1.000 s (upper bound unknown), gaps of 0.500 s",
    ),
    (
        "runs-on",
        {"status": Status.RUNNING, "end_number": None, "upper_bound_ms": None},
        "RUNNING  1.000 s (upper bound unknown), gaps of 0.500 s",
    ),
    (
        "a-lost-number-sent-as-a-millisecond",
        {"status": Status.COMPLETE, "missing_numbers": (), "upper_bound_ms": 1_000},
        "COMPLETE  1.000 s (at most 1.000 s), gaps of 0.500 s",
    ),
    (
        "two-after-the-end",
        {"numbers_after_end": 2},
        "INCOMPLETE  1.000 s (at most 1.500 s), gaps of 0.500 s, 2 numbers after the end",
    ),
    (
        "whole",
        {
            "status": Status.COMPLETE,
            "missing_numbers": (),
            "upper_bound_ms": 1_000,
            "ended_ms": 1_770_000_001_123,
            "gap_ms": 0,
        },
        "COMPLETE  1.000 s (at most 1.000 s)",
    ),
)
"""Order number, what is other in its total, and what people read of it."""


@pytest.mark.parametrize("by_ledger", [True, False])
def test_the_text_says_what_is_unknown_and_where_gaps_are(
    shell: Shell,
    topics: Topics,
    bootstrap_servers: str,
    postgres_dsn: str,
    monkeypatch: pytest.MonkeyPatch,
    by_ledger: bool,
) -> None:
    kinds: list[tuple[str, dict[str, Any], str]] = list(WORDS)
    found = [
        replace(replace(a_total(number), numbers_after_end=0), **changes)
        for number, changes, _ in kinds
    ]
    if by_ledger:
        dsn = new_ledger_dsn(postgres_dsn)
        with psycopg.connect(dsn, autocommit=True) as conn:
            write(LedgerStore(conn), topics.totals, 0, found)
        monkeypatch.setenv("DURABILL_LEDGER_DSN", dsn)
    else:
        publish({"bootstrap.servers": bootstrap_servers}, topics.totals, found)
    code, output = shell.run("totals")
    assert code == 0
    lines = {f"{number}  revision 1  {words}" for number, _, words in WORDS}
    assert lines == {each for each in output.splitlines() if "revision" in each}


def test_a_summary_is_all_of_a_total_but_its_intervals() -> None:
    assert set(OrderTotal.__slots__) - {"intervals"} == set(SUMMARY_FIELDS)
    assert len(SUMMARY_FIELDS) + 1 == len(OrderTotal.__slots__)
