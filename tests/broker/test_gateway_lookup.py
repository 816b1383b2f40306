"""GET /v1/orders/{number}: the gateway asks workers, then a real ledger."""

import http.server
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict

import msgspec
import psycopg
from psycopg.types.json import Jsonb

from producers.gateway import GatewayConfig
from tests.broker.gateway_kit import answer, call, gateway, serving
from tests.broker.ledger_kit import a_total, new_ledger_dsn

NOTHING_HERE = "127.0.0.1:1"  # a port that nobody listens on


@contextmanager
def worker(orders: dict[str, object], status: int = 200) -> Iterator[str]:
    """A stand-in for a worker's web server: it answers as DESIGN says the real one does."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = orders.get(self.path.partition("?")[0])
            unknown = {"error": {"reason": "UNKNOWN_ORDER"}}
            body = msgspec.json.encode(unknown if found is None else found)
            answer(self, status if found is not None else 404, body)

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    with serving(Handler) as url:
        yield url


LIVE = {"service_order_number": "a/b", "phase": "OPEN", "intervals": [[0, 5]], "duration_ms": 5}


def order_gateway(workers: tuple[str, ...], ledger_dsn: str | None = None) -> GatewayConfig:
    kafka = {"bootstrap.servers": NOTHING_HERE}
    return GatewayConfig(kafka, worker_urls=workers, ledger_dsn=ledger_dsn, delivery_timeout_ms=100)


def test_the_first_worker_that_answers_decides() -> None:
    with (
        worker({"/orders/a%2Fb": LIVE}) as good,
        worker({"/orders/a%2Fb": LIVE}, 500) as broken,
        gateway(order_gateway((f"http://{NOTHING_HERE}", broken, good))) as url,
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
        assert (status, answer["error"]["reason"]) == (404, "UNKNOWN_ORDER")


def test_no_worker_is_not_the_same_as_no_order() -> None:
    with gateway(order_gateway((f"http://{NOTHING_HERE}",))) as url:
        status, answer, headers = call(url, "GET", "/v1/orders/SO1")
        assert (status, answer["error"]["reason"]) == (503, "NO_WORKER_REACHABLE")
        assert headers["retry-after"]
    with gateway(order_gateway(())) as url:
        status, answer, _ = call(url, "GET", "/v1/orders/SO1")
        assert (status, answer["error"]["reason"]) == (503, "NOT_CONFIGURED")


def test_totals_come_from_the_ledger(postgres_dsn: str) -> None:
    dsn = new_ledger_dsn(postgres_dsn)
    total = asdict(a_total("SO1"))
    total["intervals"] = [each._asdict() for each in a_total().intervals]
    total["missing_numbers"] = [each._asdict() for each in a_total().missing_numbers]
    row = {
        name: Jsonb(value) if isinstance(value, list) else value for name, value in total.items()
    } | {"totals_topic": "t", "totals_partition": 0, "totals_offset": 0, "totals_append_ms": 0}
    names = ", ".join(row)
    with psycopg.connect(dsn) as connection:
        values = ", ".join(f"%({name})s" for name in row)
        connection.execute(f"INSERT INTO order_totals ({names}) VALUES ({values})".encode(), row)
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
        assert call(two, "GET", "/v1/orders/SO2")[1]["error"]["reason"] == "UNKNOWN_ORDER"
        assert call(three, "GET", "/v1/orders/SO2")[1]["error"]["reason"] == "NO_WORKER_REACHABLE"


def test_a_dead_ledger_does_not_hide_what_the_worker_knows() -> None:
    dsn = f"postgresql://nobody@{NOTHING_HERE}/none"
    settled = LIVE | {"phase": "SETTLED"}
    with worker({"/orders/SO1": settled}) as base, gateway(order_gateway((base,), dsn)) as url:
        status, answer, _ = call(url, "GET", "/v1/orders/SO1")
        assert (status, answer["live"], answer["total"]) == (200, settled, None)
        assert "ledger" in answer["total_unavailable"]
        status, answer, _ = call(url, "GET", "/v1/orders/SO2")
        assert (status, answer["error"]["reason"]) == (503, "LEDGER_UNREACHABLE")
