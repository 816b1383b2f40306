"""Workers that are killed, at each step of the effect order and anywhere: the totals are the same.

Each (order, revision) and each opening is there exactly once, though the tail is replayed. All run
at once, each with topics of its own, because most of the time is spent waiting for Kafka to give a
dead worker's partitions away.
"""

import re
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import chain, count
from pathlib import Path

import pytest

from durabill.schemas import decode_total
from durabill.stream_processors.worker import effect_order
from durabill.stream_processors.worker.effect_order import Step
from tests.broker.traffic_kit import traffic
from tests.broker.worker_kit import Deployment, deployment
from tests.waiting import HANG_S, wait_until

STEPS = ("folded", "encoded", "published", "written", "committed", "confirmed")
"""Those of a checkpoint; `test_policy_change` has those of taking a partition over."""

# First at the very first occurrence, as the worker commits where it starts, then in mid-stream.
OCCURRENCES = (1, 4)
KILLED = -signal.SIGKILL
PAUSE_S = 0.01
SIDE_BY_SIDE = 4
"""Cases at a time: more have two cores busy with nothing but starting workers."""
# Times so short that orders settle, and are reopened, all the time.
POLICY = {"settle_grace_s": 0.3, "idle_timeout_s": 0.4}


@contextmanager
def flowing(deployed: Deployment) -> Iterator[None]:
    """Keeps a stream of segments going, from a thread, as long as the block takes."""
    stop = threading.Event()
    rounds = (traffic(turn, orders=20, segments=20, opened=True) for turn in count())
    with ThreadPoolExecutor(1) as pool:
        records = chain.from_iterable(rounds)
        sent = pool.submit(deployed.send, records, pause_s=PAUSE_S, stop=stop.is_set)
        try:
            yield
        finally:
            stop.set()
        sent.result(HANG_S)


def not_repeated(deployed: Deployment) -> tuple[int, int]:
    """How many openings and totals the workers found published, and so suppressed."""
    logs = "".join(worker.log() for worker in deployed.workers)
    found = re.findall(r"([\d,]+) openings? and ([\d,]+) totals? published since", logs)
    openings, totals = (sum(int(each[at].replace(",", "")) for each in found) for at in (0, 1))
    return openings, totals


def check_totals(deployed: Deployment) -> None:
    """Waits for the oracle's totals, stops the workers and checks that no more came of it."""
    deployed.wait_for_truth()
    for worker in deployed.workers:
        if worker.process.poll() is None:
            assert worker.ends_as_told()
    assert not deployed.differences()
    assert deployed.committed() == deployed.ends()
    messages = deployed.found_totals()
    for message in messages:
        total = decode_total(message.value())
        assert message.key() == total.service_order_number.encode()
        assert message.partition() == total.source_partition
    assert deployed.found_openings()


def crash_at(bootstrap_servers: str, folder: Path, step: str) -> tuple[int, int]:
    """Has two workers killed at a step, and a third finish; returns what was not repeated."""
    with deployment(bootstrap_servers, folder, **POLICY) as deployed:
        first, second = (f"{step}:{occurrence}" for occurrence in OCCURRENCES)
        worker = deployed.start(crash_at=first)
        with flowing(deployed):
            assert worker.wait(HANG_S) == KILLED
            assert deployed.start(crash_at=second).wait(HANG_S) == KILLED
            deployed.start_and_wait()
        check_totals(deployed)
        return not_repeated(deployed)


def has_more_totals(deployed: Deployment, seen: int) -> bool:
    return len(deployed.found_totals()) > seen


def kill_anywhere(bootstrap_servers: str, folder: Path) -> tuple[int, int]:
    """Kills one of two workers three times in mid-stream, and starts another each time."""
    with deployment(bootstrap_servers, folder, partitions=6, **POLICY) as deployed:
        pair = [deployed.start(), deployed.start()]
        deployed.wait_for_owners(*pair)
        with flowing(deployed):
            for turn in range(3):
                seen = len(deployed.found_totals())
                wait_until(partial(has_more_totals, deployed, seen), "new totals")
                pair[turn % 2].kill()
                pair[turn % 2] = deployed.start()
        check_totals(deployed)
        return not_repeated(deployed)


@pytest.fixture(scope="module")
def outcomes(
    bootstrap_servers: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Future[tuple[int, int]]]]:
    """What came of each case, by its name."""
    folder = tmp_path_factory.mktemp("crashes")
    with ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
        futures = {step: pool.submit(crash_at, bootstrap_servers, folder, step) for step in STEPS}
        futures["anywhere"] = pool.submit(kill_anywhere, bootstrap_servers, folder)
        yield futures


def test_steps_are_those_of_the_effect_order() -> None:
    assert effect_order.__doc__ is not None
    told = re.findall(r"^    \d (\w+) ", effect_order.__doc__, re.MULTILINE)
    assert told == [each.value for each in Step]
    assert tuple(told[: len(STEPS)]) == STEPS


@pytest.mark.parametrize("step", STEPS)
def test_crash_after_step(outcomes: dict[str, Future[tuple[int, int]]], step: str) -> None:
    found = outcomes[step].result(250)
    # Between the commit of these and that of the checkpoint, a crash has them replayed.
    assert min(found) > 0 or step != "published"


def test_kill_anywhere_with_several_partitions(
    outcomes: dict[str, Future[tuple[int, int]]],
) -> None:
    outcomes["anywhere"].result(250)
