"""A ledger that somebody had a hand in: what the audit finds in PostgreSQL, without any Kafka."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace

import psycopg
import pytest

from durabill.schemas import encode_total
from durabill.stream_processors.audit.ledger_rows import COLUMNS, LedgerRows, line_of
from durabill.stream_processors.audit.ledger_view import open_ledger
from durabill.stream_processors.audit.totals_log import Published
from tests.broker.ledger_kit import new_ledger_dsn
from tests.unit.test_schemas import TOTAL

TOPIC = "totals"
RECORDS = [
    Published(2 * at, name.encode(), encode_total(total), 1_000 + at)
    for at, name in enumerate(["SO1", "SO2", "SO3", "SO4"])
    for total in [replace(TOTAL, service_order_number=name, source_partition=0)]
]
END = 8
_WRITTEN = ", ".join(each for each in COLUMNS if each != "gap_ms")
_ROW = f"{_WRITTEN}, totals_topic, totals_partition"
_ASIDE = f"""
    INSERT INTO set_aside_totals ({_ROW}, content_sha256)
    SELECT {_ROW}, 'x' FROM order_totals WHERE service_order_number = 'SO2';
"""
_DELETE = "DELETE FROM order_totals WHERE service_order_number = 'SO2';"
_OF_ANOTHER = f"""
    INSERT INTO order_totals ({_ROW})
    SELECT {_ROW.replace("service_order_number", "'SO9'").replace("totals_topic", "'other'")}
    FROM order_totals WHERE service_order_number = 'SO2';
    INSERT INTO ledger_offsets (topic, partition, next_offset) VALUES ('other', 0, 9);
"""


@pytest.fixture
def dsn(postgres_dsn: str) -> Iterator[str]:
    """A ledger that has recorded all records, and doesn't defend itself."""
    made = new_ledger_dsn(postgres_dsn)
    with psycopg.connect(made, autocommit=True) as connection:
        with connection.cursor().copy(f"COPY order_totals ({_ROW}) FROM STDIN") as copy:
            for record in RECORDS:
                fields = (line_of(record) or "").split("\t")
                del fields[COLUMNS.index("gap_ms")]
                copy.write("\t".join([*fields, TOPIC, "0"]) + "\n")
        connection.execute(
            "INSERT INTO ledger_offsets (topic, partition, next_offset) VALUES (%s, 0, %s)",
            (TOPIC, END),
        )
        connection.execute("ALTER TABLE order_totals DISABLE TRIGGER append_only")
        connection.execute(
            "ALTER TABLE set_aside_totals DROP CONSTRAINT"
            " set_aside_totals_service_order_number_revision_fkey"
        )
        (schema,) = connection.execute("SELECT current_schema()").fetchone() or ("",)
        yield made
        connection.execute(f"DROP SCHEMA {schema} CASCADE")


def found(dsn: str, others: tuple[str, ...] = ()) -> list[tuple[str, str, str, str]]:
    """What an audit finds: kind, order, field, and the first word of the place."""
    with open_ledger(dsn, TOPIC) as ledger:
        with closing(LedgerRows(ledger.view, TOPIC, 0)) as rows:
            rows.open()
            for record in RECORDS:
                rows.add_record(record)
            rows.finish(END)
        findings = [
            *rows.findings,
            *ledger.strangers(TOPIC, 1, None, others),
            *ledger.as_a_whole(None),
        ]
    return sorted(
        (e.kind.value, e.service_order_number, e.field, e.place.partition(",")[0]) for e in findings
    )


MISSING = ("missing_row", "SO2", "", f"{TOPIC}/0/2")
FALSIFICATIONS = {
    "set aside, though nothing stands": (_ASIDE + _DELETE, [MISSING]),
    "set aside besides": (_ASIDE, [("row_without_total", "SO2", "", "set_aside_totals")]),
    "deleted, and the offset moved back": (
        _DELETE + "UPDATE ledger_offsets SET next_offset = 2",
        [MISSING],
    ),
    "the offset moved on": (
        "UPDATE ledger_offsets SET next_offset = 9",
        [("ledger_differs", "", "next_offset", "ledger_offsets")],
    ),
    "invented, of a topic that the ledger says it has read": (
        _OF_ANOTHER,
        [("row_without_total", "SO9", "", "order_totals")],
    ),
    "a time beside its milliseconds": (
        "ALTER TABLE order_totals ALTER settled_at DROP EXPRESSION;"
        "UPDATE order_totals SET settled_at = '2001-01-01' WHERE service_order_number = 'SO2'",
        [("ledger_differs", "SO2", "settled_at", "order_totals")],
    ),
    "a view of its own": (
        "CREATE OR REPLACE VIEW latest_order_totals AS SELECT * FROM order_totals"
        " WHERE service_order_number <> 'SO2'",
        [
            ("ledger_differs", "", "", "view latest_order_totals"),
            ("ledger_differs", "", "", "view ledger_status"),
            ("ledger_differs", "", "", "view tenant_totals"),
        ],
    ),
    "a view in a table's place": (
        "ALTER TABLE order_totals RENAME TO hidden;"
        "CREATE VIEW order_totals AS SELECT * FROM hidden",
        [("ledger_differs", "", "", "order_totals")],
    ),
    "a view that is gone": (
        "DROP VIEW disputed_totals",
        [("ledger_differs", "", "", "view disputed_totals")],
    ),
}


def test_a_ledger_as_it_is_written(dsn: str) -> None:
    assert found(dsn) == []


@pytest.mark.parametrize("how", FALSIFICATIONS)
def test_what_somebody_did_to_the_ledger_is_found(dsn: str, how: str) -> None:
    statement, expected = FALSIFICATIONS[how]
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(statement)
    assert found(dsn) == expected


def test_rows_of_another_topic_and_a_guard_that_is_off_are_told(dsn: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(_OF_ANOTHER)
    assert found(dsn, ("other",)) == []
    with open_ledger(dsn, TOPIC) as ledger:
        assert ledger.other_topics(TOPIC) == ["other"]
        guard, rows = ledger.notes(TOPIC, ["other"])
    assert "order_totals isn't kept from changes" in guard
    assert "1 row of the ledger are of the topic other" in rows
