"""The ledger's rows beside the records of the topic, on a real PostgreSQL, without Kafka."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import psycopg
import pytest

from durabill.schemas import OrderTotal, encode_total
from durabill.stream_processors.audit.findings import Kind
from durabill.stream_processors.audit.ledger_rows import LedgerRows
from durabill.stream_processors.audit.ledger_view import open_ledger
from durabill.stream_processors.audit.ledger_walk import LedgerView
from durabill.stream_processors.audit.totals_log import Published
from durabill.stream_processors.ledger.records import (
    RawRecord,
    RecordedTotal,
    UnreadableRecord,
    read_record,
)
from durabill.stream_processors.ledger.store import Batch, LedgerStore
from tests.broker.ledger_kit import a_total, complete, new_ledger_dsn

TOPIC = "billing.totals"
FIRST = a_total("a\\b\\tä \u2028'\"")
SECOND = complete(FIRST)
AGAIN = replace(FIRST, source_offset=500, duplicates=3)
"""The number was used again: this is the first revision of its second life."""


def records(*totals: OrderTotal | bytes) -> list[Published]:
    """Records of the topic at the offsets 0, 2, 4 …: a marker stands after each."""
    return [
        Published(2 * at, FIRST.service_order_number.encode(), value, 1_700_000_000_000 + at)
        for at, each in enumerate(totals)
        for value in [each if isinstance(each, bytes) else encode_total(each)]
    ]


@pytest.fixture
def dsn(postgres_dsn: str) -> str:
    return new_ledger_dsn(postgres_dsn)


def record_all(dsn: str, published: list[Published]) -> None:
    """Have the ledger record them."""
    store = LedgerStore(psycopg.connect(dsn))
    store.open_partitions(TOPIC, None, {0: 0})
    read = [
        read_record(RawRecord(0, each.offset, each.append_ms, each.key, each.value))
        for each in published
    ]
    store.write(
        Batch(
            TOPIC,
            {0: (0, 2 * len(published))},
            [each for each in read if isinstance(each, RecordedTotal)],
            [each for each in read if isinstance(each, UnreadableRecord)],
        )
    )
    store.close()


@contextmanager
def opened(dsn: str) -> Iterator[LedgerView]:
    with open_ledger(dsn, TOPIC) as ledger:
        yield ledger.view


def compared(view: LedgerView, published: list[Published]) -> LedgerRows:
    """What comparing comes to."""
    rows = LedgerRows(view, TOPIC, 0)
    rows.open()
    try:
        for each in published:
            rows.add_record(each)
        rows.finish(2 * len(published))
    finally:
        rows.close()
    return rows


def test_repeats_other_lives_and_what_is_no_total_are_in_order(dsn: str) -> None:
    published = records(FIRST, SECOND, FIRST, AGAIN, b"junk", AGAIN)
    record_all(dsn, published)
    with opened(dsn) as view:
        rows = compared(view, published)
    assert rows.findings == []
    assert (rows.rows, rows.proven, rows.set_aside, rows.not_yet_recorded) == (2, 2, 1, 0)


def test_a_ledger_may_lag_but_not_leave_out(dsn: str) -> None:
    published = records(FIRST, SECOND, complete(SECOND))
    record_all(dsn, published[:2])
    with opened(dsn) as view:
        rows = compared(view, published)
    assert (rows.findings, rows.not_yet_recorded) == ([], 1)
    with psycopg.connect(dsn) as connection:
        connection.execute("UPDATE ledger_offsets SET next_offset = 5")
    with opened(dsn) as view:
        (missing,) = compared(view, published).findings
    assert (missing.kind, missing.revision) == (Kind.MISSING_ROW, 3)


def test_rows_written_after_the_moment_are_not_seen(dsn: str) -> None:
    published = records(FIRST, SECOND)
    with opened(dsn) as view:
        record_all(dsn, published)
        rows = compared(view, published)
    assert (rows.findings, rows.rows, rows.not_yet_recorded) == ([], 0, 2)


@pytest.mark.parametrize(
    ("change", "kind", "field"),
    [
        ('intervals = \'[{"start_ms": 1, "end_ms": 2}]\'', Kind.LEDGER_DIFFERS, "intervals"),
        ("settled_at_ms = settled_at_ms + 1", Kind.LEDGER_DIFFERS, "settled_at_ms"),
        ("totals_append_ms = 7", Kind.LEDGER_DIFFERS, "totals_append_ms"),
        ("totals_offset = 3", Kind.ROW_WITHOUT_TOTAL, ""),
    ],
)
def test_what_was_set_aside_is_compared_as_well(
    dsn: str, change: str, kind: Kind, field: str
) -> None:
    published = records(FIRST, AGAIN)
    record_all(dsn, published)
    with psycopg.connect(dsn) as connection:
        connection.execute("ALTER TABLE set_aside_totals DISABLE TRIGGER append_only")
        connection.execute(f"UPDATE set_aside_totals SET {change}")
    with opened(dsn) as view:
        found = compared(view, published).findings
    assert (kind, field) in {(each.kind, each.field) for each in found}
    assert {each.service_order_number for each in found} == {FIRST.service_order_number}
