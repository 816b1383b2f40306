"""GET /v1/orders/{number}: the gateway asks workers, then a real ledger."""

import asyncio
import contextlib
import http.server
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any, cast

import msgspec
import psycopg
import pytest
from psycopg.types.json import Jsonb

from durabill.producers.gateway.backends import TotalsReader, WorkerPool
from durabill.producers.gateway.lookup import Lookup
from durabill.producers.gateway.server import GatewayConfig
from durabill.schemas.web import problem
from durabill.stream_processors.ledger.openings import RecordedOpening, insert_openings
from durabill.stream_processors.ledger.records import RawRecord
from tests.broker.gateway_kit import answer, call, gateway, serving
from tests.broker.ledger_kit import a_total, new_ledger_dsn
from tests.broker.opening_kit import opened
from tests.conftest import Topics
from tests.state_kit import a_state, as_json
from tests.waiting import HANG_S

NOTHING_HERE = "127.0.0.1:1"  # a port that nobody listens on


@contextmanager
def worker(
    orders: dict[str, object], status: int = 200, elsewhere: int = 404, pause_s: float = 0.0
) -> Iterator[str]:
    """A stand-in for a worker's web server: it answers as `worker.pages` does.

    `elsewhere` is what it says of other orders: that there is none, or that they aren't its own.
    """
    reason = {404: "UNKNOWN_ORDER", 421: "NOT_OWNED", 503: "CATCHING_UP"}[elsewhere]

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append((self.path, self.headers["authorization"]))
            time.sleep(pause_s)
            found = orders.get(self.path.partition("?")[0])
            refused = problem(elsewhere, reason, "-")
            body = msgspec.json.encode(refused if found is None else found)
            with contextlib.suppress(ConnectionError):
                answer(self, status if found is not None else elsewhere, body)

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    with serving(Handler) as url:
        yield url


asked: list[tuple[str, str | None]] = []
"""Path and authorization of all questions to workers, of all tests."""

LIVE = as_json(a_state("a/b"))


def order_gateway(workers: tuple[str, ...], ledger_dsn: str | None = None) -> GatewayConfig:
    kafka = {"bootstrap.servers": NOTHING_HERE}
    return GatewayConfig(kafka, worker_urls=workers, ledger_dsn=ledger_dsn, delivery_timeout_ms=100)


def test_all_workers_are_asked_and_the_owner_decides() -> None:
    with (
        worker({"/orders/a%2Fb": LIVE}) as good,
        worker({"/orders/a%2Fb": LIVE}, 500) as broken,
        worker({}, elsewhere=421) as another,
        gateway(order_gateway((f"http://{NOTHING_HERE}", broken, another, good))) as url,
    ):
        status, answer, _ = call(url, "GET", "/v1/orders/a%2Fb")
        assert status == 200
        assert answer == {
            "service_order_number": "a/b",
            "live": LIVE,
            "live_unknown": None,
            "total": None,
            "total_unavailable": None,
        }
        status, answer, _ = call(url, "GET", "/v1/orders/other")
        assert (status, answer["reason"]) == (404, "UNKNOWN_ORDER")


def test_no_worker_is_not_the_same_as_no_order() -> None:
    with gateway(order_gateway((f"http://{NOTHING_HERE}",))) as url:
        status, answer, headers = call(url, "GET", "/v1/orders/SO1")
        assert (status, answer["reason"]) == (503, "NO_WORKER_REACHABLE")
        assert headers["retry-after"]
    with gateway(order_gateway(())) as url:
        status, answer, _ = call(url, "GET", "/v1/orders/SO1")
        assert (status, answer["reason"]) == (503, "NOT_CONFIGURED")


def insert_total(connection: psycopg.Connection[Any], number: str) -> dict[str, Any]:
    """Give a ledger a total of an order; gives what it says."""
    total = asdict(a_total(number))
    total["intervals"] = [each._asdict() for each in a_total().intervals]
    total["missing_numbers"] = [each._asdict() for each in a_total().missing_numbers]
    row = {
        name: Jsonb(value) if isinstance(value, list) else value
        for name, value in total.items()
        if name != "gap_ms"  # the table's own
    } | {"totals_topic": "t", "totals_partition": 0, "totals_offset": 0, "totals_append_ms": 0}
    row["totals_offset"] = int.from_bytes(number.encode()[:6], "big")  # each has its own
    names, values = ", ".join(row), ", ".join(f"%({name})s" for name in row)
    connection.execute(f"INSERT INTO order_totals ({names}) VALUES ({values})".encode(), row)
    return total


def test_totals_come_from_the_ledger(postgres_dsn: str) -> None:
    dsn = new_ledger_dsn(postgres_dsn)
    with psycopg.connect(dsn) as connection:
        total = insert_total(connection, "SO1")
    settled = LIVE | {"phase": "SETTLED"}
    with (
        worker({"/orders/SO1": settled}) as knows,
        worker({}) as knows_not,
        gateway(order_gateway((knows,), dsn)) as one,
        gateway(order_gateway((knows_not,), dsn)) as two,
        gateway(order_gateway((f"http://{NOTHING_HERE}",), dsn)) as three,
    ):
        for url, live in ((one, settled), (two, None), (three, None)):
            status, answer, _ = call(url, "GET", "/v1/orders/SO1")
            counts = {"interval_count": 1, "missing_range_count": 2, "next": None}
            assert (200, live, total | counts) == (status, answer["live"], answer["total"])
            assert (url is three) == (answer["live_unknown"] is not None)
        assert call(two, "GET", "/v1/orders/SO2")[1]["reason"] == "UNKNOWN_ORDER"
        assert call(three, "GET", "/v1/orders/SO2")[1]["reason"] == "NO_WORKER_REACHABLE"


def test_attributes_are_those_of_the_last_opening_that_has_any(postgres_dsn: str) -> None:
    dsn = new_ledger_dsn(postgres_dsn)
    told: list[tuple[str, Any]] = [
        *(("acme", (("plan", "gøld"),)), ("acme", (("plan", "new"), ("a", "")))),
        *(("acme", ()), ("thief", (("plan", "free"),))),
    ]
    with psycopg.connect(dsn) as connection:
        openings = [
            RecordedOpening(
                opened("SO1", tenant, attributes=attributes), RawRecord(0, at, 1, None, None), at
            )
            for at, (tenant, attributes) in enumerate(told)
        ]
        assert insert_openings(connection, "orders", openings) == (4, 0, [])

    async def ask(where: str | None, *who: str) -> tuple[tuple[str, str], ...]:
        reader = TotalsReader(lambda: where, 30)
        try:
            return await reader.attributes(*who)
        finally:
            await reader.close()

    for where, who, expected in (
        (dsn, ("SO1", "acme", "meter-7"), (("a", ""), ("plan", "new"))),
        (dsn, ("SO1", "acme", "another"), ()),
        (dsn, ("SO2", "acme", "meter-7"), ()),
        (None, ("SO1", "acme", "meter-7"), ()),
    ):
        assert asyncio.run(ask(where, *who)) == expected


def test_a_dead_ledger_does_not_hide_what_the_worker_knows() -> None:
    dsn = f"postgresql://nobody@{NOTHING_HERE}/none"
    settled = LIVE | {"phase": "SETTLED"}
    with worker({"/orders/SO1": settled}) as base, gateway(order_gateway((base,), dsn)) as url:
        status, answer, _ = call(url, "GET", "/v1/orders/SO1")
        assert (status, answer["live"], answer["total"]) == (200, settled, None)
        assert "ledger" in answer["total_unavailable"]
        status, answer, _ = call(url, "GET", "/v1/orders/SO2")
        assert (status, answer["reason"]) == (503, "LEDGER_UNREACHABLE")


def test_a_worker_that_hangs_holds_nobody_up() -> None:
    with (
        worker({"/orders/a%2Fb": LIVE}) as good,
        worker({}, pause_s=HANG_S) as hangs,
        gateway(replace(order_gateway((hangs, good)), lookup_timeout_s=HANG_S)) as url,
    ):
        started_s = time.monotonic()
        assert call(url, "GET", "/v1/orders/a%2Fb")[1]["live"] == LIVE
        assert time.monotonic() - started_s < HANG_S / 2


def test_of_two_that_think_they_own_it_the_newer_view_counts() -> None:
    views = [LIVE | {"source_offset": offset} for offset in (7, 9, 8)]
    with contextlib.ExitStack() as stack:
        urls = [stack.enter_context(worker({"/orders/a%2Fb": view})) for view in views]
        url = stack.enter_context(gateway(order_gateway(tuple(urls))))
        assert views[1] == call(url, "GET", "/v1/orders/a%2Fb")[1]["live"]


@pytest.mark.parametrize(
    ("elsewhere", "why"),
    [(421, "no worker that was asked owns"), (503, "has not read all segments yet")],
)
def test_where_no_owner_answers_nobody_says_that_there_is_no_order(
    elsewhere: int, why: str, postgres_dsn: str
) -> None:
    dsn = new_ledger_dsn(postgres_dsn)
    with worker({}, elsewhere=elsewhere) as other, gateway(order_gateway((other,), dsn)) as url:
        status, answer, headers = call(url, "GET", "/v1/orders/SO1")
        assert (status, answer["reason"]) == (503, "NO_WORKER_REACHABLE")
        assert why in answer["detail"]
        assert headers["retry-after"]


def test_what_was_stored_a_moment_ago_is_not_denied(
    bootstrap_servers: str, topics: Topics, monkeypatch: pytest.MonkeyPatch
) -> None:
    moment_s = "durabill.producers.gateway.lookup._STORED_KEPT_S"
    monkeypatch.setattr(moment_s, 600.0)
    kafka = {"bootstrap.servers": bootstrap_servers}
    item = {"business_data_number": 1, "start_ms": 0, "end_ms": 5, "end_identifier": False}
    with (
        worker({}) as base,
        gateway(GatewayConfig(kafka, topics.segments, worker_urls=(base,))) as url,
    ):
        assert call(url, "GET", "/v1/orders/SO1")[0] == 404
        assert call(url, "POST", "/v1/orders/SO1/segments", item)[0] == 200
        status, answer, _ = call(url, "GET", "/v1/orders/SO1")
        assert (status, answer["reason"]) == (503, "NO_WORKER_REACHABLE")
        assert "stored a moment ago" in answer["detail"]
        assert call(url, "GET", "/v1/orders/SO2")[0] == 404
        monkeypatch.setattr(moment_s, 0.0)  # it has been read by now: it was a dead letter
        assert call(url, "GET", "/v1/orders/SO1")[0] == 404


def test_a_flood_of_others_orders_makes_nobodys_forgotten() -> None:
    now_s = [100.0]
    lookup = Lookup(cast(WorkerPool, None), cast(TotalsReader, None), lambda: now_s[0])
    lookup.note_stored("SO1", "acme")
    for at in range(60_000):
        lookup.note_stored(f"flood-{at}", "greedy")
    assert lookup._was_stored_just_now("SO1", "acme")
    assert not lookup._was_stored_just_now("SO1", "greedy")
    for at in range(200_000):
        lookup.note_stored(f"flood-{at}", "greedy")
    assert len(lookup._stored) + len(lookup._stored_before) <= 100_000
    lookup.note_stored("SO1", "acme")
    now_s[0] += 1.9
    lookup.note_stored("SO2", "acme")
    assert lookup._was_stored_just_now("SO1", None)
    now_s[0] += 0.2
    assert not lookup._was_stored_just_now("SO1", None)


def test_a_settled_state_of_a_worker_that_lags_is_doubted() -> None:
    lagging: dict[str, object] = {
        f"/orders/{phase}": LIVE | {"phase": phase, "lag": 7} for phase in ("SETTLED", "OPEN")
    }
    with worker(lagging) as base, gateway(order_gateway((base,))) as url:
        assert "7 records" in call(url, "GET", "/v1/orders/SETTLED")[1]["live_unknown"]
        assert call(url, "GET", "/v1/orders/OPEN")[1]["live_unknown"] is None


def test_the_404_of_something_else_is_no_word_of_a_worker() -> None:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer(self, 404, b'{"detail":"Not Found"}')

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    with serving(Handler) as something, gateway(order_gateway((something,))) as url:
        assert call(url, "GET", "/v1/orders/SO1")[0] == 503


def test_workers_and_ledger_may_come_later(postgres_dsn: str) -> None:
    urls: list[str] = []
    dsns: list[str] = []
    config = GatewayConfig(
        {"bootstrap.servers": NOTHING_HERE},
        find_workers=lambda: tuple(urls),
        find_ledger=lambda: dsns[0] if dsns else None,
    )
    with worker({"/orders/a%2Fb": LIVE}) as base, gateway(config) as url:

        def soon(number: str, expected: tuple[int, str | None]) -> None:
            give_up_s = time.monotonic() + HANG_S
            while True:
                status, answer, _ = call(url, "GET", f"/v1/orders/{number}")
                found = status, answer["reason"] if status >= 400 else None
                if found == expected:
                    return
                assert time.monotonic() < give_up_s, (found, expected)
                time.sleep(0.1)

        soon("a%2Fb", (503, "NOT_CONFIGURED"))
        dsns.append(new_ledger_dsn(postgres_dsn))
        soon("a%2Fb", (503, "NO_WORKER_REACHABLE"))  # the ledger alone can't know
        urls.append(base)
        soon("a%2Fb", (200, None))
        soon("SO1", (404, "UNKNOWN_ORDER"))
        urls.clear()
        soon("a%2Fb", (503, "NO_WORKER_REACHABLE"))


def test_pages_of_an_order_are_asked_of_its_worker() -> None:
    with worker({"/orders/SO1": LIVE}) as base, gateway(order_gateway((base,))) as url:
        assert call(url, "GET", "/v1/orders/SO1?limit=7&after=5.3")[0] == 200
        assert asked[-1][0] == "/orders/SO1?limit=7&after=5.3"
        assert call(url, "GET", "/v1/orders/SO1")[0] == 200
        assert asked[-1][0] == "/orders/SO1?limit=1000&after=-1.0"
        for wrong in ("limit=0", "limit=10001", "after=x", "limit=x"):
            status, answer, _ = call(url, "GET", f"/v1/orders/SO1?{wrong}")
            assert (status, answer["reason"]) == (422, "BAD_PAGE")


def test_the_token_goes_to_workers_alone() -> None:
    class Elsewhere(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(302)
            self.send_header("location", f"{good}/stolen")
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    kafka = {"bootstrap.servers": NOTHING_HERE}
    token = "t0ken-of-the-workers"
    with worker({"/orders/a%2Fb": LIVE}) as good, serving(Elsewhere) as elsewhere:
        asked.clear()
        config = GatewayConfig(kafka, worker_urls=(good, elsewhere), worker_token=token)
        with gateway(config) as url:
            assert call(url, "GET", "/v1/orders/a%2Fb")[0] == 200
        assert [("/orders/a%2Fb?limit=1000&after=-1.0", f"Bearer {token}")] == asked
        assert token not in repr(config)
