"""The ledger's table of orders after somebody had a hand in it: what the audit finds, no Kafka."""

from collections.abc import Iterator
from contextlib import closing

import psycopg
import pytest

from durabill.schemas import encode_opening
from durabill.stream_processors.audit.ledger_orders import OrderRows
from durabill.stream_processors.audit.ledger_view import open_ledger
from durabill.stream_processors.audit.totals_log import Published
from durabill.stream_processors.ledger.openings import (
    RecordedOpening,
    insert_openings,
    read_opened,
)
from durabill.stream_processors.ledger.records import RawRecord
from durabill.stream_processors.ledger.store import Batch, LedgerStore
from tests.broker.ledger_kit import new_ledger_dsn
from tests.broker.opening_kit import opened

TOPIC, END = "orders", 6
RECORDS = [
    Published(2 * at, name.encode(), encode_opening(opened(name)), 1_000 + at, 10 + at)
    for at, name in enumerate(["SO1", "SO2", "SO3"])
]
COPY = (
    "INSERT INTO orders (service_order_number, tenant, client, service, attributes,"
    " server_timestamp_ms, report_interval_ms, accept_until_ms, source_partition, source_offset,"
    " orders_topic, orders_partition, orders_offset, orders_append_ms) SELECT {}, tenant, client,"
    " service, attributes, server_timestamp_ms, report_interval_ms, accept_until_ms,"
    " source_partition, source_offset, orders_topic, orders_partition, {}, orders_append_ms"
    " FROM orders WHERE service_order_number = 'SO2'"
)


@pytest.fixture
def dsn(postgres_dsn: str) -> Iterator[str]:
    """A ledger that has recorded all of it, and doesn't defend itself."""
    made = new_ledger_dsn(postgres_dsn)
    with psycopg.connect(made, autocommit=True) as connection:
        read = [
            read_opened(RawRecord(0, each.offset, each.append_ms, each.key, each.value), at)
            for each in RECORDS
            if (at := each.source_offset) is not None
        ]
        openings = [each for each in read if isinstance(each, RecordedOpening)]
        assert insert_openings(connection, TOPIC, openings) == (3, 0, [])
        assert insert_openings(connection, TOPIC, openings) == (0, 3, [])
        connection.execute(
            "INSERT INTO ledger_offsets (topic, partition, next_offset) VALUES (%s, 0, %s)",
            (TOPIC, END),
        )
        connection.execute("ALTER TABLE orders DISABLE TRIGGER append_only")
        (schema,) = connection.execute("SELECT current_schema()").fetchone() or ("",)
        yield made
        connection.execute(f"DROP SCHEMA {schema} CASCADE")


def found(dsn: str, records: list[Published] = RECORDS) -> list[tuple[str, str, str]]:
    """What an audit finds: kind, order, field."""
    with open_ledger(dsn, "totals", TOPIC) as ledger:
        assert ledger.view.has_orders
        with closing(OrderRows(ledger.view, TOPIC, 0)) as rows:
            rows.open()
            for record in records:
                rows.add_record(record)
            rows.finish(END)
        findings = [
            *rows.findings,
            *ledger.strange_orders(TOPIC, 1, None, ()),
            *ledger.as_a_whole(None),
        ]
    return sorted((each.kind.value, each.service_order_number, each.field) for each in findings)


FALSIFICATIONS = {
    "deleted": (
        "DELETE FROM orders WHERE service_order_number = 'SO2'",
        [("missing_row", "SO2", "")],
    ),
    "deleted, and the offset moved back": (
        "DELETE FROM orders WHERE service_order_number = 'SO2';"
        "UPDATE ledger_offsets SET next_offset = 0",
        [("missing_row", "SO2", "")],
    ),
    "another tenant": (
        "UPDATE orders SET tenant = 'thief' WHERE service_order_number = 'SO2'",
        [("ledger_differs", "SO2", "tenant")],
    ),
    "other attributes": (
        "UPDATE orders SET attributes = '{}' WHERE service_order_number = 'SO2'",
        [("ledger_differs", "SO2", "attributes")],
    ),
    "invented": (COPY.format("'SO9'", 3), [("row_without_total", "SO9", "")]),
    "invented, of another's record": (
        COPY.format("'SO9'", "orders_offset"),
        [("row_without_total", "SO9", "")],
    ),
    "of no topic": (
        "UPDATE orders SET orders_topic = 'nowhere' WHERE service_order_number = 'SO2'",
        [("row_without_total", "SO2", "")],
    ),
    "the offset moved on": (
        "UPDATE ledger_offsets SET next_offset = 9",
        [("ledger_differs", "", "next_offset")],
    ),
    "a time beside its milliseconds": (
        "ALTER TABLE orders ALTER accept_until DROP EXPRESSION;"
        "UPDATE orders SET accept_until = '2001-01-01' WHERE service_order_number = 'SO2'",
        [("ledger_differs", "SO2", "accept_until")],
    ),
    "a view of its own": (
        "CREATE OR REPLACE VIEW orders_without_total AS SELECT * FROM orders"
        " WHERE service_order_number <> 'SO2'",
        [("ledger_differs", "", "")],
    ),
}


def test_a_table_as_it_is_written(dsn: str) -> None:
    assert found(dsn) == []
    again = RECORDS[1]._replace(offset=5)  # its row has the place that was read first
    stranger = Published(5, b"SO1", b"junk", 5, 77)
    assert found(dsn, [*RECORDS, again, stranger]) == []


def test_an_opening_of_another_log_in_anothers_place_was_set_aside(dsn: str) -> None:
    """The segments topic was made anew, and gave a number again, at the same offset."""
    value = encode_opening(opened("SO2", "next"))
    other = RECORDS[1]._replace(offset=5, value=value, log_id="another")
    assert found(dsn, [*RECORDS, other]) == [("missing_row", "SO2", "")]
    raw = RawRecord(0, other.offset, other.append_ms, other.key, other.value)
    read = read_opened(raw, other.source_offset)
    assert isinstance(read, RecordedOpening)
    with closing(LedgerStore(psycopg.connect(dsn))) as store:
        written = store.write(Batch(TOPIC, {0: (END, END)}, (), (), [read]))
    assert [each.reason for each in written.unreadable] == ["OTHER_OPENING"]
    assert found(dsn, [*RECORDS, other]) == []
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("DELETE FROM orders WHERE service_order_number = 'SO2'")
    assert found(dsn, [*RECORDS, other]) == [("missing_row", "SO2", "")] * 2


@pytest.mark.parametrize("how", FALSIFICATIONS)
def test_what_somebody_did_to_the_table_is_found(dsn: str, how: str) -> None:
    statement, expected = FALSIFICATIONS[how]
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(statement)
    assert found(dsn) == expected


def test_a_ledger_from_before_there_were_openings_is_told(dsn: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("DROP TABLE orders CASCADE")
    with open_ledger(dsn, "totals", TOPIC) as ledger:
        assert not ledger.view.has_orders
        assert any("has no table of orders yet" in each for each in ledger.notes("totals", ()))
        assert ledger.strange_orders(TOPIC, 1, None, ()) == []
        assert ledger.as_a_whole(None) == []
