"""Two HTTP requests of 1 MB, which once ended every worker for good: from the gateway to totals.

Each holds 10,300 segments of one order, none of which touches another. They are sent as they were,
and then in the largest batches that are taken, each of 1 MB. What must come of them is simple
enough to be said here: the oracle takes minutes for an order of so many pieces.
"""

import itertools
import json
import statistics
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from durabill.producers.gateway.api import SEGMENTS_MAX
from durabill.schemas import OrderTotal, Status, decode_total
from tests.broker.gateway_kit import call
from tests.broker.test_cli import start
from tests.broker.traffic_kit import now_ms
from tests.broker.worker_kit import Deployment, Worker, deployment, verdict
from tests.waiting import HANG_S, wait_until

BODY_BYTES = 1_048_576
PER_REQUEST = 10_300
PIECES_MAX = 10_000
HOSTILE = ("rising", "falling")
HONEST_LATE_MEDIAN_MS_MAX = 3_000
HONEST_LATE_MS_MAX = 45_000
"""How late an honest order's total may come beside them on a machine that does other things too:
half of them, and any. Without bounds on an order there was none at all."""
HONEST_MIN = 12

REVISIONS_MAX = 8
TOTALS_BYTES_MAX = 10_000_000
"""Of both orders; each revision may list 10,000 intervals, and there were 20,600 of 80 kB once."""

PAUSE_S = 0.1


def item(number: int, start_ms: int, end_ms: int, end: bool = False) -> dict[str, Any]:
    """One segment of a request."""
    return {
        "business_data_number": number,
        "start_ms": start_ms,
        "end_ms": end_ms,
        "end_identifier": end,
    }


def post(url: str, order: str, body: object) -> int:
    """Post segments; gives the status."""
    return call(url, "POST", f"/v1/orders/{order}/segments", body)[0]


def islands(order: str, base_ms: int) -> list[dict[str, Any]]:
    """Segments of 1 ms with holes between them in time and in number, all after the first one."""
    found = [item(2 * at, base_ms + 2 * at, base_ms + 2 * at + 1) for at in range(1, 10_301)]
    return found if order == "rising" else found[::-1]


def honest(url: str, stopped: Future[None], done: list[str]) -> None:
    """Order after order of two segments, until told to stop; `done` gets each one's number."""
    for count in itertools.count(1):
        if stopped.done():
            return
        at_ms = now_ms() - 1_000
        first, second = item(1, at_ms, at_ms + 500), item(2, at_ms + 500, at_ms + 900, True)
        assert post(url, f"honest-{count}", first) == 200
        assert post(url, f"honest-{count}", second) == 200
        done.append(f"honest-{count}")
        time.sleep(PAUSE_S)


@contextmanager
def honest_beside(url: str) -> Iterator[list[str]]:
    """Honest orders as long as the block takes; gives their numbers."""
    stopped: Future[None] = Future()
    done: list[str] = []
    with ThreadPoolExecutor(1) as pool:
        sent = pool.submit(honest, url, stopped, done)
        try:
            yield done
        finally:
            stopped.set_result(None)
        sent.result(HANG_S)


def totals(deployed: Deployment) -> dict[str, list[tuple[OrderTotal, int, int]]]:
    """Order -> its totals with their append times and sizes."""
    found: dict[str, list[tuple[OrderTotal, int, int]]] = {}
    for each in deployed.found_totals():
        total, size = decode_total(each.value()), len(each.value() or b"")
        found.setdefault(total.service_order_number, []).append((total, each.timestamp()[1], size))
    return found


def test_two_requests_of_a_megabyte(bootstrap_servers: str, tmp_path: Path) -> None:
    with (
        ExitStack() as stack,
        deployment(
            bootstrap_servers, tmp_path, partitions=2, settle_grace_s=0.5, idle_timeout_s=60
        ) as deployed,
    ):
        worker = deployed.start_and_wait(stall_timeout_s=5)
        settings = {
            "bootstrap_servers": bootstrap_servers,
            "application_id": deployed.name,
            "segments_topic": deployed.segments,
            "gateway_port": "0",
            "data_dir": str(tmp_path),
        }
        url = str(start(stack, tmp_path, settings, "gateway", "gateway")["url"])
        base_ms = now_ms() - 3_600_000
        for order in HOSTILE:
            assert post(url, order, item(1, base_ms, base_ms + 1, True)) == 200
        wait_until(lambda: totals(deployed).keys() == set(HOSTILE), "both have settled once")

        with honest_beside(url) as numbers:
            for order in HOSTILE:
                segments = islands(order, base_ms)
                assert len(segments) == PER_REQUEST
                whole = json.dumps(segments, separators=(",", ":")).encode()
                assert 0.9 * BODY_BYTES < len(whole) < BODY_BYTES
                assert post(url, order, whole) == 413
                for first in range(0, PER_REQUEST, SEGMENTS_MAX):
                    body = json.dumps(segments[first : first + SEGMENTS_MAX]).encode()
                    assert post(url, order, body.ljust(BODY_BYTES)) == 200
                wait_until(lambda: worker.get("/health/live")[0] == 200, "it is alive")
            wait_until(lambda: len(numbers) >= HONEST_MIN, "there are enough honest ones")
        wait_until(lambda: is_settled(worker), "all of it has settled")
        what_came_of_them(deployed, numbers)
        wait_until(lambda: worker.get("/health/ready")[0] == 200, "it is well")
        assert worker.process.poll() is None

        before = deployed.found_totals()
        assert worker.stop() == 0
        worker = deployed.start_and_wait()
        worker.kill()
        deployed.start_and_wait()
        at_ms = now_ms() - 1_000
        assert post(url, "after", item(1, at_ms, at_ms + 500, True)) == 200
        wait_until(lambda: "after" in totals(deployed), "it works as before")
        assert len(before) + 1 == len(deployed.found_totals())


def is_settled(worker: Worker) -> bool:
    """Whether the worker has read all that there is, and nothing waits for a deadline."""
    tasks = worker.get("/status")[1]["partitions"].values()
    return not any(each["lag"] or each["oldest_deadline_ms"] for each in tasks)


def what_came_of_them(deployed: Deployment, honest_numbers: list[str]) -> None:
    """Few revisions of the two, none of them large, and every honest total in time."""
    found = totals(deployed)
    late_ms = []
    for number in honest_numbers:
        ((total, came_ms, _),) = found[number]
        assert total.status == Status.COMPLETE
        late_ms.append(came_ms - total.settled_at_ms)
    assert statistics.median(late_ms) < HONEST_LATE_MEDIAN_MS_MAX, sorted(late_ms)
    assert max(late_ms) < HONEST_LATE_MS_MAX, sorted(late_ms)[-5:]
    for order in HOSTILE:
        assert 2 <= len(found[order]) <= REVISIONS_MAX
        last = found[order][-1][0]
        assert [*range(1, last.revision + 1)] == [each.revision for each, *_ in found[order]]
        assert PIECES_MAX == len(last.intervals) == last.duration_ms == last.segments
        assert max(size for *_, size in found[order]) < 1_000_000
    assert sum(size for order in HOSTILE for *_, size in found[order]) < TOTALS_BYTES_MAX
    reasons = Counter(verdict(each)[0] for each in deployed.found_letters())
    assert {"TOO_FRAGMENTED": len(HOSTILE) * (PER_REQUEST + 1 - PIECES_MAX)} == reasons
