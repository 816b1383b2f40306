"""The gateway beside a worker that starts, dies and comes again: never an old answer in silence."""

import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from durabill.producers.gateway.server import GatewayConfig
from tests.broker.gateway_kit import call, gateway
from tests.broker.test_cli import start
from tests.broker.traffic_kit import now_ms
from tests.broker.worker_kit import Deployment, deployment
from tests.waiting import wait_until

ORDER = "/v1/orders/SO1"
"""How soon a worker that has said that it starts is at work and found: it has to join first."""


def ask(url: str) -> tuple[int, Any]:
    """The order as the gateway tells it; never that there is none, nor silence about the worker."""
    status, answer, _ = call(url, "GET", ORDER)
    if status == 200:
        assert answer["live"] is not None or answer["live_unknown"], answer
        return status, answer["live"]
    assert status == 503, answer
    assert answer["reason"] in ("NO_WORKER_REACHABLE", "NOT_CONFIGURED")  # none is left
    return status, None


def add(url: str, number: int) -> int:
    """Report the last second of the order; gives how long it has been reported."""
    end_ms = now_ms()
    segment = {
        "business_data_number": number,
        "start_ms": end_ms - 1_000,
        "end_ms": end_ms,
        "end_identifier": False,
    }
    assert call(url, "POST", f"{ORDER}/segments", segment)[0] == 200
    return number * 1_000


def is_told(url: str, deployed: Deployment, measure_ms: int) -> bool:
    status, live = ask(url)
    assert deployed.workers
    return status == 200 and live is not None and live["duration_ms"] == measure_ms


def test_an_open_order_while_its_worker_starts_dies_and_comes_again(
    bootstrap_servers: str, tmp_path: Path
) -> None:
    with deployment(bootstrap_servers, tmp_path, idle_timeout_s=60) as deployed:
        config = GatewayConfig(
            {"bootstrap.servers": bootstrap_servers},
            deployed.segments,
            find_workers=lambda: tuple(
                f"http://127.0.0.1:{each.port}"
                for each in deployed.workers
                if each.process.poll() is None
            ),
        )
        with gateway(config) as url:
            add(url, 1)
            first = deployed.start()
            wait_until(lambda: is_told(url, deployed, 1_000), "it is found once it has started")
            time.sleep(1.1)
            add(url, 2)
            first.kill()
            wait_until(lambda: ask(url) == (503, None), "nobody can tell any more")
            deployed.start()
            wait_until(lambda: is_told(url, deployed, 2_000), "it is told again")


def test_a_gateway_that_was_there_before_its_worker(bootstrap_servers: str, tmp_path: Path) -> None:
    """In the order in which README starts them; nobody tells the gateway where the worker is."""
    with (
        deployment(bootstrap_servers, tmp_path, idle_timeout_s=60) as deployed,
        ExitStack() as stack,
    ):
        settings = {
            "bootstrap_servers": bootstrap_servers,
            "application_id": deployed.name,
            "segments_topic": deployed.segments,
            "totals_topic": deployed.totals,
            "orders_topic": deployed.orders,
            "dead_letters_topic": deployed.dead_letters,
            "gateway_port": "0",
            "data_dir": str(tmp_path),
        }
        url = str(start(stack, tmp_path, settings, "gateway", "gateway")["url"])
        assert reason(url) == (503, "NOT_CONFIGURED")
        add(url, 1)
        assert reason(url) == (503, "NOT_CONFIGURED")
        start(stack, tmp_path, settings, "worker", "worker")
        wait_until(lambda: live_ms(url) == 1_000, "the gateway finds it")
        add(url, 2)
        wait_until(lambda: live_ms(url) == 2_000, "and goes on asking it")


def reason(url: str) -> tuple[int, str]:
    status, answer, _ = call(url, "GET", ORDER)
    return status, answer["reason"]


def live_ms(url: str) -> int | None:
    """How much of the order its worker knows; None where nobody answers for it."""
    status, answer, _ = call(url, "GET", ORDER)
    return answer["live"]["duration_ms"] if status == 200 and answer["live"] else None
