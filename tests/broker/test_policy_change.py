"""Policies that change under load: what a total rests on is what the log and its records say.

Which policy held from which offset on is read from the entries `partition/policy` of the checkpoint
topic, as an auditor would, apart from the worker's own code. All cases run side by side.
"""

import json
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import fields
from itertools import chain, count
from pathlib import Path
from typing import Any, cast

import pytest

from durabill.producers.fleet.truth_order import Policy
from durabill.schemas import Status, decode_total
from tests.broker.traffic_kit import traffic
from tests.broker.worker_kit import Deployment, Worker, deployment, read_committed
from tests.waiting import HANG_S, wait_until

KILLED = -9
TURN_S = 0.008
FIRST: dict[str, Any] = {"settle_grace_s": 0.3, "idle_timeout_s": 0.5}
SECOND: dict[str, Any] = {"settle_grace_s": 1.1, "idle_timeout_s": 2.5, "interim_interval_s": 1}
THIRD: dict[str, Any] = {"settle_grace_s": 0.5, "idle_timeout_s": 1.3}
HOURS_OFF = """
import time
_time, _time_ns = time.time, time.time_ns
time.time = lambda: _time() + {hours} * 3600
time.time_ns = lambda: _time_ns() + {hours} * 3600 * 10**9
"""
LATE_MS_MAX = 60_000
"""How late a total may be on a machine on which everything runs at once; alone it is a second. By a
clock that is off it would be hours."""

History = list[tuple[int, Policy]]
"""(Offset from which on it holds, policy)."""


def histories(deployed: Deployment) -> dict[int, History]:
    """What is recorded by partition; nothing of it was ever taken back."""
    found: dict[int, History] = {}
    names = [each.name for each in fields(Policy)]
    for message in read_committed(deployed.bootstrap_servers, deployed.checkpoint):
        key, value = message.key() or b"", message.value() or b""
        if not key.endswith(b"/policy"):
            continue
        partition = int(key.split(b"/")[0])
        now = [
            (each["from_offset"], Policy(**{name: each["terms"]["policy"][name] for name in names}))
            for each in json.loads(value)
        ]
        before = found.get(partition, [])
        assert now[: len(before)] == before, "what was recorded stays"
        found[partition] = now
    return found


def check(deployed: Deployment) -> dict[int, History]:
    """Waits for the totals that the log and the recorded policies give, each exactly once."""
    recorded = histories(deployed)

    def policy_of(partition: int, offset: int) -> Policy:
        return [policy for start, policy in recorded[partition] if start <= offset][-1]

    deployed.policy = cast(Any, policy_of)
    deployed._truth = None
    deployed.wait_for_truth()
    assert recorded == histories(deployed)
    return recorded


def held(recorded: dict[int, History]) -> set[int]:
    """The graces that ever held, anywhere."""
    return {policy.settle_grace_ms for history in recorded.values() for _, policy in history}


def totals(deployed: Deployment) -> set[tuple[bytes | None, bytes | None]]:
    return {(each.key(), each.value()) for each in deployed.found_totals()}


@contextmanager
def flowing(deployed: Deployment) -> Iterator[None]:
    """Keeps orders going on, for as long as the block takes."""
    stop = threading.Event()
    records = chain.from_iterable(traffic(turn, orders=20, segments=20) for turn in count())
    with ThreadPoolExecutor(1) as pool:
        sent = pool.submit(deployed.send, records, pause_s=TURN_S, stop=stop.is_set)
        try:
            yield
        finally:
            stop.set()
        sent.result(HANG_S)


def wait_for_more(deployed: Deployment, count: int = 40) -> None:
    wanted = len(deployed.found_totals()) + count
    wait_until(lambda: len(deployed.found_totals()) >= wanted, "new totals")


def changed_twice(bootstrap_servers: str, folder: Path, step: str) -> None:
    """One dies with all its totals uncheckpointed, the next while it changes the policy."""
    with deployment(bootstrap_servers, folder, partitions=2) as deployed:
        worker = deployed.start_and_wait(**FIRST, checkpoint_interval_s=600)
        with flowing(deployed):
            wait_for_more(deployed)
            worker.kill()
            before = totals(deployed)
            assert deployed.start(**SECOND, crash_at=step).wait(HANG_S) == KILLED
            assert before <= totals(deployed)
            deployed.start_and_wait(**THIRD)
            wait_for_more(deployed)
        recorded = check(deployed)
        assert before < totals(deployed)
        assert {300, 500} <= held(recorded) <= {300, 500, 1100}
        assert 1100 in held(recorded) or not step.startswith("recorded")
        assert all(history[-1][1].settle_grace_ms == 500 for history in recorded.values())


def two_policies(bootstrap_servers: str, folder: Path) -> None:
    """Each bills its partitions by its own; what one has left, the other goes on with."""
    with deployment(bootstrap_servers, folder) as deployed:
        both = [deployed.start(**FIRST), deployed.start(**SECOND)]
        deployed.wait_for_owners(*both)
        with flowing(deployed):
            wait_for_more(deployed)
            theirs = set(both[0].next_offsets())
            both[0].kill()
            deployed.wait_for_owners(both[1])
            wait_for_more(deployed)
        recorded = check(deployed)
        assert all(history[-1][1].settle_grace_ms == 1100 for history in recorded.values())
        for partition in theirs:
            offsets = [start for start, _ in recorded[partition]]
            assert offsets == sorted(offsets)
            assert recorded[partition][-2][1].settle_grace_ms == 300
            assert 0 < offsets[-1] <= deployed.ends()[partition]
        assert "from offset" in both[1].log(), "it says so"
        statuses = {decode_total(each.value()).status for each in deployed.found_totals()}
        assert {Status.COMPLETE, Status.INCOMPLETE, Status.ABANDONED, Status.RUNNING} == statuses


def clocks_off(bootstrap_servers: str, folder: Path) -> None:
    """Hours ahead, hours behind, and right: the same totals, as soon as they are due."""
    with deployment(bootstrap_servers, folder, partitions=3, **FIRST) as deployed:
        trio: list[Worker] = [
            deployed.start(HOURS_OFF.format(hours=hours) if hours else "") for hours in (7, -7, 0)
        ]
        deployed.wait_for_owners(*trio)
        with flowing(deployed):
            wait_for_more(deployed, 100)
        deployed.wait_for_truth()
        for each in deployed.found_totals():
            late_ms = each.timestamp()[1] - decode_total(each.value()).settled_at_ms
            assert 0 <= late_ms < LATE_MS_MAX, decode_total(each.value())
        for worker in trio:
            assert worker.ends_as_told()
        assert deployed.differences() == []


CASES = ("inherited:1", "recorded:1", "two policies", "clocks off")


@pytest.fixture(scope="module")
def outcomes(
    bootstrap_servers: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Future[None]]]:
    """What came of each case, by its name."""
    folder = tmp_path_factory.mktemp("policies")
    with ThreadPoolExecutor(len(CASES)) as pool:
        of_steps = {
            step: pool.submit(changed_twice, bootstrap_servers, folder, step) for step in CASES[:2]
        }
        yield {
            **of_steps,
            "two policies": pool.submit(two_policies, bootstrap_servers, folder),
            "clocks off": pool.submit(clocks_off, bootstrap_servers, folder),
        }


@pytest.mark.parametrize("case", CASES)
def test_policy_change(outcomes: dict[str, Future[None]], case: str) -> None:
    outcomes[case].result(250)
