"""A bug of ours that one record sets off: its partition stops and says so, the others go on."""

import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from durabill.schemas import decode_total, partition_for
from tests.broker.test_cli import run
from tests.broker.traffic_kit import now_ms, segment, traffic
from tests.broker.worker_kit import Deployment, Worker, deployment
from tests.waiting import wait_until

POISONED = "an-order-whose-name-is-too-long-for-a-row-of-columns"
"""So the plain rules judge it, into which the bug is put."""

PARTITIONS = 4
STALL_TIMEOUT_S = 3.0
ILL = partition_for(POISONED.encode(), PARTITIONS)

BUG = f"""
from durabill.stream_processors.core.order import Order
apply = Order.apply
def buggy(self, event, *others):
    total = apply(self, event, *others)  # so that the table is half changed when it fails
    is_it = event.service_order_number == {POISONED!r} and event.business_data_number == 3
    assert not is_it, "we don't like this number"
    return total
Order.apply = buggy
"""


@pytest.fixture
def deployed(bootstrap_servers: str, tmp_path: Path) -> Any:
    with deployment(bootstrap_servers, tmp_path, partitions=PARTITIONS) as made:
        yield made


def in_partition(partition: int, mark: str) -> str:
    numbers = (f"{mark}-{at}" for at in range(1_000))
    return next(each for each in numbers if partition_for(each.encode(), PARTITIONS) == partition)


def status(deployed: Deployment, worker: Worker) -> tuple[int, dict[str, Any]]:
    """Exit code and JSON of `durabill status`."""
    ran = run("status", "--json", **settings(deployed, worker))
    return ran.returncode, json.loads(ran.stdout)


def status_with(
    deployed: Deployment, worker: Worker, *, problems: int
) -> tuple[int, dict[str, Any]]:
    """The same once it tells so many problems; a busy worker may stand still for a moment."""
    found: list[tuple[int, dict[str, Any]]] = []

    def is_so() -> bool:
        found.append(status(deployed, worker))
        return len(found[-1][1]["problems"]) == problems

    wait_until(is_so, f"{problems} problems are told")
    return found[-1]


def settings(deployed: Deployment, worker: Worker) -> dict[str, str]:
    return {
        "bootstrap_servers": deployed.bootstrap_servers,
        "application_id": deployed.name,
        "segments_topic": deployed.segments,
        "worker_urls": f"http://127.0.0.1:{worker.port}",
        "data_dir": str(deployed.folder),
    }


def others_settled(deployed: Deployment) -> bool:
    """Tell whether every total that the log gives outside the ill partition is there."""
    expected = {
        total for those in deployed.truth().totals.values() for total in those
        if total.source_partition != ILL
    }  # fmt: skip
    found = Counter(decode_total(each.value()) for each in deployed.found_totals())
    assert all(count == 1 for count in found.values())
    return expected <= found.keys()


def is_ill(worker: Worker, partition: int) -> bool:
    partitions = worker.get("/status")[1]["partitions"]
    return bool(partitions.get(str(partition), {}).get("is_broken"))


def test_a_poison_stops_its_partition_alone(deployed: Deployment) -> None:
    worker = deployed.start_and_wait(BUG, stall_timeout_s=STALL_TIMEOUT_S)
    at_ms = now_ms() - 60_000
    before, after = in_partition(ILL, "before"), in_partition(ILL, "after")
    deployed.send([segment(before, 1, at_ms, at_ms + 10, end=True)])
    deployed.send(
        segment(POISONED, number, at_ms + number, at_ms + number + 1) for number in (1, 2)
    )
    wait_until(lambda: bool(deployed.found_totals()), "all is well")
    code, told = status_with(deployed, worker, problems=0)
    assert (code, told["ok"]) == (0, True)
    assert [each["partition"] for each in told["partitions"]] == [0, 1, 2, 3]

    poison = segment(POISONED, 3, at_ms + 3, at_ms + 4, end=True)
    deployed.send([poison])
    deployed.send([segment(after, 1, at_ms, at_ms + 10, end=True)])
    deployed.send(traffic(1, orders=12, segments=8))
    wait_until(lambda: is_ill(worker, ILL), "it meets the poison")
    wait_until(lambda: others_settled(deployed), "the others go on and settle")
    place = next(each.offset for each in deployed.log() if (each.key, each.value) == poison)
    it_says_what_it_met(worker, place)
    code, told = status_with(deployed, worker, problems=2)
    assert (code, told["ok"]) == (1, False)
    assert [each["partition"] for each in told["partitions"] if each["is_broken"]] == [ILL]
    unready, stopped = told["problems"]
    assert unready.endswith(f" isn't ready: partition {ILL} is held")
    assert stopped.startswith(f"partition {ILL} is stopped at offset {place}: ")

    # The same program again: again that partition alone.
    worker.kill()
    worker = deployed.start_and_wait(BUG, stall_timeout_s=STALL_TIMEOUT_S)
    wait_until(lambda: is_ill(worker, ILL), "it meets the poison again")
    assert not any(is_ill(worker, each) for each in range(PARTITIONS) if each != ILL)
    it_says_what_it_met(worker, place)
    healthy = in_partition((ILL + 1) % PARTITIONS, "healthy")
    deployed.send([segment(healthy, 1, at_ms, at_ms + 10, end=True)])
    wait_until(lambda: others_settled(deployed), "the others still settle")

    # One that mends it goes on from there, and nothing was lost.
    worker.kill()
    worker = deployed.start_and_wait(stall_timeout_s=STALL_TIMEOUT_S)
    deployed.wait_for_truth()
    assert deployed.truth().totals[after]
    status_with(deployed, worker, problems=0)
    ran = run("status", **settings(deployed, worker))
    assert (ran.returncode, ran.stdout.splitlines()[-1]) == (0, "All is well.")


def it_says_what_it_met(worker: Worker, offset: int) -> None:
    what = f"partition {ILL} can't be folded on from offset {offset}, order {POISONED!r}"
    code, ready = worker.get("/health/ready")
    assert code == 503
    assert any(what in each for each in ready["problems"]), ready
    # The partition stands still for good; the worker is alive all the same. Twice the time ends one
    # that isn't; a machine that is busy may keep it waiting for a moment.
    time.sleep(STALL_TIMEOUT_S + 0.5)
    alive = (200, {"live": True, "problems": []})
    wait_until(lambda: worker.get("/health/live") == alive, "it lives")
    status = worker.get("/status")[1]["partitions"][str(ILL)]
    # None: this worker has written none yet.
    assert (status["checkpointed_offset"] or 0) <= status["next_offset"] <= offset
    assert worker.order(POISONED)[0] == 503  # a half changed order is told to nobody
    lines = [each for each in worker.log().splitlines() if what in each]
    assert ["CRITICAL" in each for each in lines] == [True]
    assert "AssertionError: we don't like this number" in worker.log()
    assert worker.process.poll() is None
