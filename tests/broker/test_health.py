"""A worker that is alive but stuck: hangs are put into real ones, which say so and then end."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from durabill.schemas.errors import StallError
from tests.broker.traffic_kit import now_ms, segment, traffic
from tests.broker.worker_kit import Worker, deployment
from tests.waiting import HANG_S, wait_until

STALL_TIMEOUT_S = 4.0
"""Twice that ends a worker: so for four seconds anybody can read what hangs."""

HANGS = {
    "reading partition": """
import asyncio
from durabill.stream_processors.worker.processor import Processor
async def fold(self, partition, chunk):
    await asyncio.Event().wait()
Processor.fold = fold
""",
    "checkpoints": """
import asyncio
from durabill.stream_processors.worker.processor import Processor
async def checkpoint(self):
    if self.tasks:  # or the revocation before the first assignment would take its time
        await asyncio.Event().wait()
Processor.checkpoint = checkpoint
""",
    "timers": """
import asyncio
from durabill.stream_processors.worker.processor import Processor
async def tick(self):
    await asyncio.Event().wait()
Processor.tick = tick
""",
    "publishing partition": """
import time
from durabill.stream_processors.worker.partition_writer import KafkaPartitionWriter
KafkaPartitionWriter._commit = lambda self, runs: time.sleep(1000)
""",
}

BLOCKED_LOOP = """
import time
from durabill.stream_processors.worker.processor import Processor
Processor._publish = lambda *_: time.sleep(1000)
"""


def problems(worker: Worker) -> list[str]:
    """What it says is wrong; nothing while it doesn't answer yet."""
    with suppress(OSError):
        status, answer = worker.get("/health/live")
        assert (status == 200) == answer["live"] == (not answer["problems"])
        return list(answer["problems"])
    return []


def says(worker: Worker, name: str) -> bool:
    """Whether it says that this hangs, on both pages."""
    with suppress(OSError):
        status, ready = worker.get("/health/ready")
        told: list[str] = [*problems(worker), *(ready["problems"] if status == 503 else [])]
        return len([each for each in told if each.startswith(name)]) >= 2
    return False


def lags(worker: Worker) -> list[int]:
    """What it has not read yet, by partition."""
    return [each["lag"] for each in worker.get("/status")[1]["partitions"].values()]


def hang(bootstrap_servers: str, folder: Path, name: str) -> None:
    """Puts a hang into a worker."""
    with deployment(bootstrap_servers, folder) as deployed:
        worker = deployed.start(HANGS[name], stall_timeout_s=STALL_TIMEOUT_S)
        deployed.send(traffic(1, orders=10, segments=10))
        wait_until(lambda: says(worker, name), "it says what hangs")
        assert worker.wait() == StallError.exit_code
        assert "the worker is stuck and ends itself" in worker.log()


def blocked_loop(bootstrap_servers: str, folder: Path) -> None:
    """Nobody answers then; a thread has to notice."""
    with deployment(bootstrap_servers, folder) as deployed:
        worker = deployed.start(BLOCKED_LOOP, stall_timeout_s=STALL_TIMEOUT_S)
        deployed.send([segment("any", 1, now_ms() - 10, now_ms())])
        assert worker.wait(HANG_S) == StallError.exit_code
        assert "the event loop has hung" in worker.log()
        assert "in <lambda>" in worker.log()  # where it hangs


def healthy(bootstrap_servers: str, folder: Path) -> None:
    """A worker at work, at first and after everything has been read."""
    with deployment(bootstrap_servers, folder) as deployed:
        worker = deployed.start_and_wait(stall_timeout_s=STALL_TIMEOUT_S)
        well = (200, {"ready": True, "problems": []})
        wait_until(lambda: worker.get("/health/ready") == well, "it is at work")
        deployed.send(traffic(1, orders=10, segments=10))
        deployed.wait_for_truth()
        wait_until(lambda: problems(worker) == [], "nothing is wrong")
        wait_until(lambda: lags(worker) == [0] * deployed.partitions, "it has read all")


CASES: dict[str, Callable[[str, Path], None]] = {
    **{name: partial(hang, name=name) for name in HANGS},
    "blocked_loop": blocked_loop,
    "healthy": healthy,
}


@pytest.fixture(scope="module")
def outcomes(
    bootstrap_servers: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Future[None]]]:
    """What came of each case, by its name; all run side by side."""
    folder = tmp_path_factory.mktemp("health")
    with ThreadPoolExecutor(len(CASES)) as pool:
        yield {name: pool.submit(case, bootstrap_servers, folder) for name, case in CASES.items()}


@pytest.mark.parametrize("case", CASES)
def test_health_says_whether_a_worker_moves(outcomes: dict[str, Future[None]], case: str) -> None:
    outcomes[case].result(200)
