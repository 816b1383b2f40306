"""A worker with a schema registry that is away, lags, lies or changes its mind: nothing is lost."""

import contextlib
import json
import statistics
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count, islice
from pathlib import Path
from typing import Any

import pytest

from durabill.schemas import (
    SEGMENT_SCHEMA,
    OrderTotal,
    SegmentEvent,
    decode_total,
    encode_segment,
    partition_for,
)
from tests.broker.traffic_kit import Pair, now_ms, segment
from tests.broker.worker_kit import Deployment, Worker, deployment, verdict
from tests.waiting import wait_until

OURS = json.dumps(SEGMENT_SCHEMA)
SILENT_S = 12.0
"""How long a registry says nothing: longer than a worker waits for one answer."""
STALL_TIMEOUT_S = 5.0
"""Less than that, and more than a busy machine keeps a worker waiting."""
LATE_MEDIAN_MS_MAX = 2_500
"""How late half of the totals may be. Where each question to the registry stops the worker for the
time of an answer, it is half of that and more; a single one may be late on a busy machine."""


class Registry:
    """A stand-in whose answers can be changed: id -> schema, or one answer for everything."""

    def __init__(self) -> None:
        self.schemas: dict[int, str] = {}
        self.page: tuple[int, str, bytes] | None = None
        self.asked: list[int] = []
        self.answers = threading.Event()
        """Until it is set, whoever asks is left waiting, on a connection that stays open."""
        self.answers.set()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                schema_id = int(self.path.rpartition("/")[2])
                outer.asked.append(schema_id)
                outer.answers.wait()
                status, kind, body = outer.page or outer.answer(schema_id)
                with contextlib.suppress(ConnectionError):  # nobody waits for it any more
                    self.send_response(status)
                    self.send_header("Content-Type", kind)
                    self.send_header("Content-Length", str(len(body)))
                    self.end_headers()
                    self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    def answer(self, schema_id: int) -> tuple[int, str, bytes]:
        """Answer as Confluent's does."""
        schema = self.schemas.get(schema_id)
        content: Any = {"schema": schema} if schema else {"error_code": 40403, "message": "none"}
        return (200 if schema else 404), "application/json", json.dumps(content).encode()

    def close(self) -> None:
        self.answers.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def registry() -> Iterator[Registry]:
    made = Registry()
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def deployed(bootstrap_servers: str, tmp_path: Path) -> Iterator[Deployment]:
    with deployment(bootstrap_servers, tmp_path, partitions=2, idle_timeout_s=60) as made:
        yield made


def framed(schema_id: int, order: str, number: int, end: bool = False) -> Pair:
    at_ms = now_ms() - 10_000 + 100 * number
    event = SegmentEvent(order, number, at_ms, at_ms + 100, end)
    return order.encode(), encode_segment(event, b"\0" + schema_id.to_bytes(4, "big"))


def totals(deployed: Deployment) -> dict[str, OrderTotal]:
    """The totals so far, of which there must be one an order."""
    found = [decode_total(each.value()) for each in deployed.found_totals()]
    assert len({each.service_order_number for each in found}) == len(found)
    return {each.service_order_number: each for each in found}


def reasons(deployed: Deployment) -> list[str]:
    """Why records were rejected."""
    return sorted({verdict(each)[0] for each in deployed.found_letters()})


def waits_for(worker: Worker, what: str) -> None:
    """It says what a partition of its own waits for; it is alive and well all the same."""

    def is_told() -> bool:
        status, ready = worker.get("/health/ready")
        return status == 503 and any(what in each for each in ready["problems"])

    wait_until(is_told, f"it says that it waits for {what}")
    wait_until(lambda: worker.get("/health/live")[0] == 200, "it is alive")


def test_a_registry_that_does_not_answer(deployed: Deployment, registry: Registry) -> None:
    """Its partition waits, and says for what; the others go on; then everything counts."""
    registry.page = (404, "text/html", b"<html>no such page</html>")  # a proxy, or a wrong URL
    worker = deployed.start_and_wait(
        schema_registry_url=registry.url, stall_timeout_s=STALL_TIMEOUT_S
    )
    held, other = ("SO1", "SO2")  # of two partitions
    deployed.send([framed(7, held, 1)])
    wait_until(lambda: len(registry.asked) > 3, "it goes on asking")
    deployed.send([segment(other, 1, now_ms() - 100, now_ms(), end=True)])
    deployed.send([segment(held, 2, now_ms() - 100, now_ms(), end=True)])
    wait_until(lambda: other in totals(deployed), "the other partition goes on")
    waits_for(worker, "schema registry")
    registry.page = None  # it lags: it doesn't know the id yet
    count = len(registry.asked)
    wait_until(lambda: len(registry.asked) > count + 1, "its word is doubted")
    registry.schemas[7] = OURS
    wait_until(lambda: held in totals(deployed), "all of it counts")
    assert totals(deployed)[held].segments == 2
    assert not deployed.found_letters()
    wait_until(lambda: worker.get("/health/ready")[0] == 200, "it waits for nothing")
    deployed.send([framed(7, "SO9", 1, end=True)])
    wait_until(lambda: "SO9" in totals(deployed), "what is known is not asked for again")
    assert registry.asked.count(7) == len(registry.asked)


def test_a_registry_that_takes_connections_and_never_answers(
    deployed: Deployment, registry: Registry
) -> None:
    """Only the partition of a foreign id waits: no other total, no page, and no stop does."""
    registry.answers.clear()
    worker = deployed.start_and_wait(
        schema_registry_url=registry.url, stall_timeout_s=STALL_TIMEOUT_S
    )
    deployed.send([segment("SO5", 1, now_ms() - 100, now_ms(), end=True)])
    wait_until(lambda: "SO5" in totals(deployed), "our own schema needs no registry")
    held = "SO1"  # in the partition of SO5
    deployed.send([framed(7, held, 1)])
    deployed.send([segment(held, 2, now_ms() - 100, now_ms(), end=True)])
    wait_until(lambda: len(registry.asked) > 0, "it is asked")
    numbers = (f"other-{each}" for each in count())
    others = [each for each in islice(numbers, 60) if partition_for(each.encode(), 2) == 1]
    for number in others:
        deployed.send([segment(number, 1, now_ms() - 100, now_ms(), end=True)])
        time.sleep(SILENT_S / len(others))
        wait_until(lambda: worker.get("/health/live")[0] == 200, "its pages answer, and it is well")
    assert len(registry.asked) > 1, "the first question was given up"
    wait_until(lambda: {*others, "SO5"} == totals(deployed).keys(), "the others' totals")
    late_ms = [
        each.timestamp()[1] - decode_total(each.value()).settled_at_ms
        for each in deployed.found_totals()
    ]
    assert statistics.median(late_ms) < LATE_MEDIAN_MS_MAX, sorted(late_ms)
    waits_for(worker, "the schema registry doesn't say what id 7 is")
    registry.schemas = {7: OURS, 8: OURS}
    registry.answers.set()
    wait_until(lambda: held in totals(deployed), "it goes on when it answers")
    assert totals(deployed)[held].segments == 2
    assert not deployed.found_letters()

    registry.answers.clear()
    deployed.send([framed(8, "SO9", 1, end=True)])
    wait_until(lambda: 8 in registry.asked, "it is asked again")
    assert worker.stop() == 0  # though the registry says nothing until the end of the test


def test_a_verdict_outlives_the_registry(deployed: Deployment, registry: Registry) -> None:
    """What was decided is recorded: a replay after a kill -9 asks nobody, whatever it says now."""
    registry.schemas[7] = OURS
    never: dict[str, Any] = {"checkpoint_interval_s": 600, "schema_registry_url": registry.url}
    worker = deployed.start_and_wait(**never)
    deployed.send([framed(7, "SO1", 1), framed(7, "SO5", 1), framed(8, "SO1", 2)])
    wait_until(lambda: len(deployed.found_letters()) == 1, "id 8 is unknown in the end")
    assert verdict(deployed.found_letters()[0])[0] == "UNKNOWN_SCHEMA"
    worker.kill()
    registry.schemas = {8: OURS}  # it has forgotten 7, and learnt 8
    registry.asked.clear()
    worker = deployed.start_and_wait(**never)
    deployed.send([segment("SO1", 3, now_ms() - 100, now_ms(), end=True)])
    deployed.send([segment("SO5", 2, now_ms() - 100, now_ms(), end=True)])
    wait_until(lambda: len(totals(deployed)) == 2, "the orders are settled")
    assert [totals(deployed)[each].segments for each in ("SO1", "SO5")] == [2, 2]
    assert registry.asked == []
    deployed.send([framed(8, "SO9", 1, end=True)])
    wait_until(lambda: "SO9" in totals(deployed), "what comes later is asked for again")
    worker.kill()
    # Without a registry in the settings its framing is no Avro, but only from here on.
    worker = deployed.start_and_wait()
    deployed.send([framed(7, "SO13", 1, end=True)])
    wait_until(lambda: reasons(deployed) == ["NOT_AVRO", "UNKNOWN_SCHEMA"], "it is read no more")
    assert len(totals(deployed)) == 3
