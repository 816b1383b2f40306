"""The ledger's tables with interim totals, unknown bounds and gaps; and how they come to be."""

import shutil
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from durabill.deploy.migrate import MIGRATIONS_DIR, migrate
from durabill.schemas import NumberRange, OrderTotal, Status, encode_total
from durabill.stream_processors.ledger.lookups import Connection, revisions, status
from durabill.stream_processors.ledger.records import RawRecord, RecordedTotal
from durabill.stream_processors.ledger.store import Batch, LedgerStore, Written
from tests.broker.ledger_kit import a_total, complete

FIRST_MISSING = (NumberRange(1, 2), NumberRange(5, 5))


@pytest.fixture
def dsn(postgres_dsn: str) -> str:
    schema = f"interim_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(postgres_dsn, autocommit=True) as conn:
        conn.execute(f"CREATE SCHEMA {schema}")
    return make_conninfo(postgres_dsn, options=f"-csearch_path={schema}")


@pytest.fixture
def conn(dsn: str) -> Iterator[Connection]:
    migrate(dsn)
    with psycopg.connect(dsn, autocommit=True) as conn:
        yield conn


def write(conn: Connection, *totals: OrderTotal) -> Written:
    """Write these totals as the first records of a topic of their own."""
    topic = uuid.uuid4().hex
    store = LedgerStore(conn)
    store.open_partitions(topic, None, {0: 0})
    recorded = [recorded_at(at, each) for at, each in enumerate(totals)]
    return store.write(Batch(topic, {0: (0, len(totals))}, recorded))


def recorded_at(offset: int, total: OrderTotal) -> RecordedTotal:
    """A total as the ledger reads it."""
    key = total.service_order_number.encode()
    return RecordedTotal(total, RawRecord(0, offset, 1_000, key, encode_total(total)))


def running(total: OrderTotal) -> OrderTotal:
    """An interim total of the same order, of which no end has been seen."""
    return replace(total, status=Status.RUNNING, end_number=None, upper_bound_ms=None)


def finished(total: OrderTotal) -> OrderTotal:
    """The next revision of an order that ran, with everything found."""
    ended = replace(total, status=Status.INCOMPLETE, end_number=5, upper_bound_ms=total.duration_ms)
    return complete(ended)


def test_interim_totals_are_revisions_like_any_other(conn: Connection) -> None:
    first = running(a_total("SO1"))
    second = replace(running(a_total("SO1", 2, 2_000)), previous_digest=first.digest)
    third = finished(second)
    assert write(conn, first, second, third).recorded == 3
    assert [first, second, third] == revisions(conn, "SO1")
    repeated = write(conn, first, second, third)
    assert (repeated.recorded, repeated.repeated, repeated.set_aside) == (0, 3, ())
    different = replace(second, settled_at_ms=second.settled_at_ms + 1)
    assert len(write(conn, different).set_aside) == 1


def test_status_tells_unknown_bounds_gaps_and_what_is_a_correction(conn: Connection) -> None:
    bounded, unbounded = (
        a_total("SO1"),
        replace(a_total("SO2"), upper_bound_ms=None, missing_numbers=FIRST_MISSING),
    )
    ran = running(a_total("SO3"))
    settled = finished(ran)
    corrected = replace(
        settled, revision=3, digest="d" * 64, previous_digest=settled.digest, gap_ms=500
    )
    still = running(a_total("SO4"))
    write(conn, bounded, unbounded, ran, settled, corrected, still)
    rows = conn.execute(
        "SELECT status, orders, duration_ms, upper_bound_ms, corrections, unknown_bounds, gap_ms, "
        "numbers_after_end FROM ledger_status ORDER BY status"
    ).fetchall()
    assert rows == [
        ("ABANDONED", 0, 0, 0, 0, 0, 0, 0),
        ("COMPLETE", 1, 1_000, 1_000, 1, 0, 500, 1),
        ("INCOMPLETE", 2, 2_000, None, 0, 1, 1_000, 2),
        ("RUNNING", 1, 1_000, None, 0, 1, 500, 1),
    ]
    counted = {"COMPLETE": 1, "INCOMPLETE": 2, "ABANDONED": 0, "RUNNING": 1}
    assert counted == status(conn).orders
    latest = conn.execute(
        "SELECT gap_ms FROM latest_order_totals WHERE service_order_number = 'SO3'"
    ).fetchall()
    assert latest == [(500,)]


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("status", "'PAUSED'"),
        ("upper_bound_ms", "NULL"),
        ("upper_bound_ms", "1501"),
        ("upper_bound_ms", "999"),
    ],
)
def test_tables_refuse_what_no_total_says(conn: Connection, column: str, value: str) -> None:
    write(conn, a_total("SO1"))
    columns = "service_order_number, revision, status, duration_ms, upper_bound_ms, started_ms, "
    columns += (
        "ended_ms, intervals, end_number, missing_numbers, segments, duplicates, overlap_ms, "
    )
    columns += "numbers_after_end, digest, previous_digest, source_partition, source_offset, "
    columns += "settled_at_ms, totals_topic, totals_partition, totals_offset, totals_append_ms"
    chosen = columns.replace("revision", "2").replace(column, value)
    with pytest.raises(psycopg.errors.CheckViolation):
        conn.execute(f"INSERT INTO order_totals ({columns}) SELECT {chosen} FROM order_totals")
    chosen = columns.replace("revision", "2")
    conn.execute(f"INSERT INTO order_totals ({columns}) SELECT {chosen} FROM order_totals")


def test_totals_recorded_before_keep_all_they_said_and_get_their_gap(
    dsn: str, tmp_path: Path
) -> None:
    for file in sorted(MIGRATIONS_DIR.glob("000[12]_*.sql")):
        shutil.copy(file, tmp_path)
    migrate(dsn, tmp_path)
    # Bounded though its first number is missing, as totals were before.
    old = replace(a_total("SO1"), missing_numbers=FIRST_MISSING)
    with psycopg.connect(dsn, autocommit=True) as conn:
        assert LedgerStore(conn)._insert_distinct("topic", [recorded_at(0, old)])[0]
        assert migrate(dsn)[0] == "0003_interim_totals.sql"
        assert [old] == revisions(conn, "SO1")
        assert old.gap_ms == 500
        assert write(conn, old).repeated == 1
