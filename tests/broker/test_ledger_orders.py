"""The ledger's table of orders: every opening once, beside the totals that rest on it."""

from functools import partial
from typing import Any

import psycopg
import pytest

from durabill.schemas import OrderOpened, encode_opening, partition_for
from durabill.stream_processors.ledger.lookups import status
from durabill.stream_processors.ledger.records import LedgerError
from tests.broker.ledger_kit import (
    RunningLedger,
    a_total,
    forget_offsets,
    new_ledger_dsn,
    publish,
    running_ledger,
)
from tests.broker.opening_kit import opened, put
from tests.conftest import Topics
from tests.waiting import HANG_S, wait_until

NOW = 1_800_000_000_000


def opening(number: str, tenant: str = "acme", **more: Any) -> OrderOpened:
    return opened(
        number, tenant, **({"server_timestamp_ms": NOW, "accept_until_ms": NOW + 1} | more)
    )


def as_record(opening: OrderOpened, source: int | None) -> tuple[bytes, bytes, int | None]:
    return opening.service_order_number.encode(), encode_opening(opening), source


def rows(dsn: str, query: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(dsn) as conn:
        return conn.execute(query).fetchall()


def has_read(dsn: str, topics: Topics, records: int) -> bool:
    """Tell whether so many records of the orders topic have been read."""
    offsets = status(dsn).next_offsets.items()
    return sum(at for (topic, _), at in offsets if topic == topics.orders) == records


def test_every_opening_is_recorded_once_beside_its_totals(
    bootstrap_servers: str, topics: Topics, postgres_dsn: str
) -> None:
    kafka, dsn = {"bootstrap.servers": bootstrap_servers}, new_ledger_dsn(postgres_dsn)
    many = [as_record(opening(f"SO-{at}", f"t{at % 3}"), at) for at in range(60)]
    reported = as_record(opening("SO-again"), 70)  # a_total has seen the log up to offset 77
    reopened = as_record(opening("SO-again", "other", attributes=()), 90)
    strange = [
        as_record(opening("SO-stranger"), None),
        (b"SO-0", b"junk", 0),
        (b"SO-0", many[1][1], 0),
        as_record(opening("SO-0", "thief"), 0),
    ]
    put(bootstrap_servers, topics.orders, [*many, reported, reopened, *many[:5], *strange])
    publish(kafka, topics.totals, [a_total("SO-again"), a_total("SO-nobody"), a_total("SO-7")])
    ledger = RunningLedger(kafka, topics.totals, dsn, "orders", 7, orders_topic=topics.orders)
    with running_ledger(kafka, topics.totals, dsn, ledger=ledger):
        wait_until(partial(has_read, dsn, topics, 71), "the ledger reads the openings")
        before = rows(dsn, "SELECT * FROM orders ORDER BY 1")
        assert forget_offsets(dsn, topics.orders) == 4
        put(bootstrap_servers, topics.orders, many[:1])  # wakes it up
        wait_until(partial(has_read, dsn, topics, 72), "the ledger reads the openings again")
        wait_until(lambda: status(dsn).totals == 3, "the ledger reads the totals")
    assert rows(dsn, "SELECT * FROM orders ORDER BY 1") == before
    assert ledger.stats.opened == 62 == len(before)
    assert rows(dsn, "SELECT * FROM orders WHERE service_order_number = 'SO-7'")[0][:10] == (
        *opening("SO-7", "t1", attributes={"plan": "gøld", "site": ""}),
        *(partition_for(b"SO-7", 4), 7),
    )
    kept = rows(dsn, "SELECT reason, key FROM unreadable_totals ORDER BY reason, key")
    assert kept == [
        ("NOT_AN_OPENING", b"SO-0"),
        ("NOT_AN_OPENING", b"SO-0"),
        ("NOT_AN_OPENING", b"SO-stranger"),
        ("OTHER_OPENING", b"SO-0"),
    ]
    tenants = "SELECT service_order_number, tenant, service, duration_ms FROM tenant_totals"
    assert rows(dsn, f"{tenants} ORDER BY 1") == [
        ("SO-7", "t1", "gpu", 1_000),
        ("SO-again", "acme", "gpu", 1_000),
        ("SO-nobody", None, None, 1_000),
    ]
    without = "SELECT count(*), min(source_offset) FROM orders_without_total WHERE tenant = 'other'"
    assert rows(dsn, without) == [(1, 90)]
    assert rows(dsn, "SELECT count(*) FROM orders_without_total") == [(60,)]
    for change in ("UPDATE orders SET tenant = 'x'", "DELETE FROM orders", "TRUNCATE orders"):
        with pytest.raises(psycopg.Error, match="append only"):
            rows(dsn, change)


def test_without_the_orders_topic_it_says_what_to_do(
    bootstrap_servers: str, topics: Topics, postgres_dsn: str
) -> None:
    kafka, dsn = {"bootstrap.servers": bootstrap_servers}, new_ledger_dsn(postgres_dsn)
    gone = f"{topics.orders}-gone"
    ledger = RunningLedger(kafka, topics.totals, dsn, "gone", 7, orders_topic=gone)
    with (
        pytest.raises(LedgerError, match=f"{gone} does not exist.*durabill topics create"),
        running_ledger(kafka, topics.totals, dsn, ledger=ledger),
    ):
        ledger.thread.join(HANG_S)
