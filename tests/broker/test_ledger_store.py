"""The ledger's tables and transactions against real PostgreSQL, without Kafka."""

import itertools
from collections.abc import Iterator
from dataclasses import replace

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from durabill.schemas import Interval, OrderTotal
from durabill.stream_processors.ledger.lookups import (
    Connection,
    revisions,
    set_aside_totals,
    status,
)
from durabill.stream_processors.ledger.records import Fenced, RawRecord, RecordedTotal
from durabill.stream_processors.ledger.store import Batch, LedgerStore, Written
from tests.broker.ledger_kit import a_total, complete, new_ledger_dsn

TOPIC = "totals"
_case = itertools.count()


@pytest.fixture(scope="module")
def dsn(postgres_dsn: str) -> str:
    return new_ledger_dsn(postgres_dsn)


@pytest.fixture(scope="module")
def conn(dsn: str) -> Iterator[Connection]:
    with psycopg.connect(dsn, autocommit=True) as conn:
        yield conn


@pytest.fixture(scope="module")
def store(conn: Connection) -> LedgerStore:
    return LedgerStore(conn)


def write(store: LedgerStore, topic: str, start: int, totals: list[OrderTotal]) -> Written:
    """Writes totals as the records of partition 0 from offset `start` on."""
    store.open_partitions(topic, None, {0: 0})
    records = [
        RecordedTotal(each, RawRecord(0, offset, 1_770_000_000_000, b"", b""))
        for offset, each in enumerate(totals, start)
    ]
    return store.write(Batch(topic, {0: (start, start + len(totals))}, records))


CONTENTS = st.tuples(st.integers(0, 2), st.integers(1, 3), st.integers(1, 3))
"""(order, revision, duration_ms): the same order and revision may come with another duration."""


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    log=st.lists(CONTENTS, min_size=1, max_size=25),
    cuts=st.lists(st.integers(1, 8), min_size=25, max_size=25),
    rewinds=st.lists(st.integers(0, 25), max_size=3),
)
def test_any_repetition_and_any_cut_gives_the_same_tables(
    store: LedgerStore,
    conn: Connection,
    log: list[tuple[int, int, int]],
    cuts: list[int],
    rewinds: list[int],
) -> None:
    topic = f"property-{next(_case)}"
    totals = [a_total(f"{topic}-{order}", revision, ms) for order, revision, ms in log]
    stands: dict[tuple[str, int], OrderTotal] = {}
    aside: set[OrderTotal] = set()
    for total in totals:
        first = stands.setdefault((total.service_order_number, total.revision), total)
        if first != total:
            aside.add(total)
    sizes = itertools.cycle(cuts)
    for back_to in [0, *(min(at, len(totals)) for at in rewinds)]:
        conn.execute(
            "UPDATE ledger_offsets SET next_offset = %s WHERE topic = %s", (back_to, topic)
        )
        at = back_to
        while at < len(totals):
            size = next(sizes)
            write(store, topic, at, totals[at : at + size])
            at += size if at + size < len(totals) else len(totals)
    found, found_aside = [], []
    for order in range(3):
        found += revisions(conn, f"{topic}-{order}")
        found_aside += set_aside_totals(conn, f"{topic}-{order}")
    assert [stands[key] for key in sorted(stands)] == found
    assert len(aside) == len(found_aside)
    assert aside == set(found_aside)


def test_bad_total_in_a_batch_takes_nothing_with_it(store: LedgerStore, conn: Connection) -> None:
    good = [a_total(f"halves-{n:02}") for n in range(20)]
    bad = replace(a_total("halves-bad"), digest="none")
    same_key = a_total("halves-bad")
    also_bad = replace(good[3], digest="none")
    written = write(store, "halves", 0, [*good[:7], bad, *good[7:], same_key, also_bad])
    assert (written.recorded, written.repeated, len(written.unreadable)) == (21, 0, 2)
    assert {"AGAINST_RULES"} == {each.reason for each in written.unreadable}
    assert [same_key] == revisions(conn, "halves-bad")


def test_batch_behind_the_fence_writes_nothing(store: LedgerStore, conn: Connection) -> None:
    write(store, "fence", 0, [a_total("fence-1")])
    with pytest.raises(Fenced, match="this ledger is at offset 0, the database at 1"):
        write(store, "fence", 0, [a_total("fence-2")])
    assert revisions(conn, "fence-2") == []
    with pytest.raises(Fenced, match="database at None"):
        store.write(Batch("fence", {7: (0, 1)}, []))


@pytest.mark.parametrize("order", ['"', "\\", "{}", "a,b", "NULL", " ", "'", "%s", "\u2028", "Ω𝄞"])
def test_any_order_number_comes_back_as_it_went(
    store: LedgerStore, conn: Connection, order: str
) -> None:
    topic = f"order-{next(_case)}"
    write(store, topic, 0, [a_total(order), a_total(f"{order}2")])
    assert [a_total(order)] == revisions(conn, order)
    assert [a_total(f"{order}2")] == revisions(conn, f"{order}2")


def test_latest_is_the_greatest_revision(store: LedgerStore, conn: Connection) -> None:
    first = a_total("latest")
    write(store, "latest", 0, [complete(first), first])
    rows = conn.execute(
        "SELECT revision FROM latest_order_totals WHERE service_order_number = 'latest'"
    ).fetchall()
    assert rows == [(2,)]


def test_times_stand_beside_the_milliseconds(store: LedgerStore, conn: Connection) -> None:
    exact = a_total("times")
    write(store, "times", 0, [exact])
    rows = conn.execute(
        "SELECT to_char(started_at AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.US'), "
        "extract(epoch FROM settled_at) * 1000 = settled_at_ms, ended_at - started_at "
        "= (ended_ms - started_ms) * interval '1 millisecond' "
        "FROM order_totals WHERE service_order_number = 'times'"
    ).fetchall()
    assert rows == [("2026-02-02 02:40:00.123000", True, True)]


@pytest.mark.parametrize(
    ("end_ms", "readable"),
    [(253_402_300_799_999, True), (253_402_300_800_000, False), (2**63 - 1, False)],
)
def test_time_that_nobody_can_read_is_null_not_an_error(
    store: LedgerStore, conn: Connection, end_ms: int, readable: bool
) -> None:
    order = f"far-{end_ms}"
    far = replace(
        a_total(order, 1, 1_000),
        started_ms=0,
        ended_ms=end_ms,
        gap_ms=end_ms - 1_000,
        intervals=(Interval(end_ms - 1_000, end_ms),),
    )
    write(store, order, 0, [far])
    assert [far] == revisions(conn, order)
    row = conn.execute(
        "SELECT to_char(ended_at AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.MS') "
        "FROM order_totals WHERE service_order_number = %s",
        (order,),
    ).fetchone()
    assert ("9999-12-31 23:59:59.999" if readable else None,) == row


@pytest.mark.parametrize("table", ["order_totals", "set_aside_totals"])
@pytest.mark.parametrize(
    "change", ["UPDATE {} SET duration_ms = 0", "DELETE FROM {}", "TRUNCATE {} CASCADE"]
)
def test_recorded_totals_cannot_be_changed(
    store: LedgerStore, conn: Connection, table: str, change: str
) -> None:
    with pytest.raises(psycopg.errors.RestrictViolation, match="append only"):
        conn.execute(change.format(table))


def test_status_counts_orders_by_their_latest_revision(postgres_dsn: str) -> None:
    dsn = new_ledger_dsn(postgres_dsn)
    with psycopg.connect(dsn, autocommit=True) as conn:
        first = a_total("SO-1")
        write(LedgerStore(conn), TOPIC, 0, [first, complete(first), a_total("SO-2")])
    found = status(dsn)
    assert found.orders == {"COMPLETE": 1, "INCOMPLETE": 1, "ABANDONED": 0, "RUNNING": 0}
    assert (found.totals, found.set_aside, found.unreadable) == (3, 0, 0)
    assert found.next_offsets == {(TOPIC, 0): 3}
