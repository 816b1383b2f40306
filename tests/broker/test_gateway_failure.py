"""A gateway whose producer can't be used any more ends, and says why."""

import asyncio
import logging
import subprocess
import sys
import threading

import pytest
from confluent_kafka import KafkaError

from durabill.deploy.commands.gateway_config import warn_of_absent
from durabill.producers.gateway.kafka import SegmentProducer
from durabill.producers.gateway.server import GATEWAY, GatewayConfig, GatewayFailed, serve_gateway
from durabill.schemas.topics import Topics
from durabill.stream_processors.settings import load_settings
from tests.broker.gateway_kit import call
from tests.waiting import HANG_S, wait_until

NOTHING_HERE = {"bootstrap.servers": "127.0.0.1:1"}  # a port that nobody listens on
ITEM = {"business_data_number": 1, "start_ms": 0, "end_ms": 5, "end_identifier": False}

MAIN = """
import sys
from confluent_kafka import KafkaError
from durabill.producers.gateway import kafka as gateway_kafka
from durabill.producers.gateway.server import GatewayConfig, run_gateway

def break_it(publisher):
    if sys.argv[1] == "fatal":
        publisher._on_error(KafkaError(KafkaError._FATAL, "the broker refused", fatal=True))
    else:
        raise RuntimeError("poll broke")

poll = gateway_kafka.SegmentProducer._poll
def breaks(publisher):
    break_it(publisher)
    poll(publisher)
gateway_kafka.SegmentProducer._poll = breaks
run_gateway(GatewayConfig({"bootstrap.servers": "127.0.0.1:1"}))
"""


@pytest.mark.parametrize(("how", "why"), [("fatal", "fatal error"), ("death", "poll broke")])
def test_the_process_ends_with_a_reason(how: str, why: str) -> None:
    command = [sys.executable, "-c", MAIN, how]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=HANG_S)
    assert ran.returncode not in (0, -6, -11)
    assert "GatewayFailed" in ran.stderr
    assert why in ran.stderr


def test_until_then_requests_and_health_say_so() -> None:
    """A request that waits for Kafka is answered at once, and not after the delivery's timeout."""
    answers: dict[str, tuple[int, str]] = {}

    async def main() -> None:
        from durabill.producers.gateway.server import make_app
        from durabill.producers.gateway.web_server import BoundedServer

        config = GatewayConfig(NOTHING_HERE, delivery_timeout_ms=120_000)
        app = make_app(config)
        server = BoundedServer(app, config.limits, access_log=None, shutdown_timeout_s=1)
        url = f"http://127.0.0.1:{await server.start('127.0.0.1', 0)}"
        publisher: SegmentProducer = app[GATEWAY].publisher

        async def ask(name: str, method: str, path: str, body: object = None) -> None:
            status, answer, _ = await asyncio.to_thread(call, url, method, path, body)
            answers[name] = (status, answer["reason"])

        waiting = asyncio.create_task(ask("waiting", "POST", "/v1/orders/SO1/segments", ITEM))
        await asyncio.sleep(0.3)
        publisher._on_error(KafkaError(KafkaError._FATAL, "the broker refused", fatal=True))
        await asyncio.wait_for(waiting, HANG_S)
        await ask("health", "GET", "/healthz")
        await ask("ready", "GET", "/readyz")
        await ask("later", "POST", "/v1/orders/SO1/segments", ITEM)
        await server.stop()

    asyncio.run(main())
    assert answers == {
        "waiting": (503, "KAFKA_UNAVAILABLE"),
        "health": (503, "KAFKA_PRODUCER_FAILED"),
        "ready": (503, "KAFKA_UNAVAILABLE"),
        "later": (503, "KAFKA_UNAVAILABLE"),
    }


def test_other_errors_of_kafka_end_nothing(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    stop = asyncio.Event()
    loop = asyncio.new_event_loop()
    seen: list[object] = []

    async def main() -> None:
        await serve_gateway(GatewayConfig(NOTHING_HERE), stop)

    def run() -> None:
        try:
            loop.run_until_complete(main())
        except GatewayFailed as error:
            seen.append(error)
        finally:
            loop.close()

    thread = threading.Thread(target=run)
    thread.start()
    wait_until(lambda: any("Connection refused" in each for each in caplog.messages), "it is told")
    assert thread.is_alive()
    loop.call_soon_threadsafe(stop.set)
    thread.join(HANG_S)
    assert not thread.is_alive()
    assert seen == []


def test_what_is_not_there_at_the_start_is_told_in_the_log(
    bootstrap_servers: str, topics: Topics, caplog: pytest.LogCaptureFixture
) -> None:
    flags = {"bootstrap_servers": bootstrap_servers}
    warn_of_absent(load_settings({}, **flags, segments_topic=topics.segments), None)
    assert caplog.messages == []
    nowhere = "postgresql://me:hidden@127.0.0.1:1/ledger"
    warn_of_absent(load_settings({}, **flags, segments_topic=f"{topics.segments}.no"), nowhere)
    topic, ledger = caplog.messages
    assert f"no topic {topics.segments}.no" in topic
    assert "durabill topics create" in topic
    assert ledger.startswith("the ledger at me@127.0.0.1:1/ledger can't be asked (")
    assert "hidden" not in ledger
