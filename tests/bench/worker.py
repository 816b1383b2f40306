"""A real worker under measurement."""

import json
import signal
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

from durabill.deploy.local.stack import HOST, find_free_ports
from tests.bench.lab import ROOT, Lab, Names
from tests.bench.processes import BenchError, Child, cpu_s, memory_mb

READY_TIMEOUT_S = 120.0
CAUGHT_UP_TIMEOUT_S = 180.0
POLL_S = 0.05
READY_LINE = "orders known"


class Worker:
    """One worker process. Its policy never lets an order go idle while we measure."""

    def __init__(self, lab: Lab, names: Names, **settings: str) -> None:
        self._lab = lab
        self.names = names
        self._port = find_free_ports(1)[0]
        env = {
            "DURABILL_BOOTSTRAP_SERVERS": lab.servers,
            "DURABILL_APPLICATION_ID": names.application_id,
            "DURABILL_SEGMENTS_TOPIC": names.segments,
            "DURABILL_TOTALS_TOPIC": names.totals,
            "DURABILL_ORDERS_TOPIC": names.orders,
            "DURABILL_DEAD_LETTERS_TOPIC": names.dead_letters,
            "DURABILL_IDLE_TIMEOUT_S": "86400",
            "PYTHONPATH": str(ROOT),
        }
        env |= {f"DURABILL_{name.upper()}": value for name, value in settings.items()}
        self.child = Child(
            "the worker",
            [sys.executable, "-m", "tests.bench.run_worker", str(self._port)],
            lab.dir / f"{names.application_id}-{self._port}.log",
            env,
        )

    def wait_ready(self) -> tuple[float, float]:
        """Return (instant, CPU-seconds by then) of the moment before the first record."""
        return self.child.wait_for(READY_LINE, READY_TIMEOUT_S)[:2]

    def status(self) -> dict[int, dict[str, Any]]:
        """Return the state of the worker's partitions; empty as long as it does not answer."""
        try:
            with urllib.request.urlopen(f"http://{HOST}:{self._port}/status", timeout=30) as answer:
                partitions = json.load(answer)["partitions"]
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            self.child.check()
            return {}
        return {int(partition): state for partition, state in partitions.items()}

    def wait_first(self) -> float:
        """Return the instant by which the first record has been folded; asks without a pause."""
        deadline_s = time.monotonic() + READY_TIMEOUT_S
        while time.monotonic() < deadline_s:
            if any(state["records"] for state in self.status().values()):
                return time.monotonic()
        raise BenchError(self.child.tell(f"folded nothing in time, but says {self.status()}"))

    def cpu_s(self) -> float:
        """Return the CPU-seconds used so far."""
        return cpu_s(self.child.pid)

    def memory_mb(self) -> tuple[float, float]:
        """Return (resident memory now, its peak), in MiB."""
        return memory_mb(self.child.pid)

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """End the process."""
        self.child.stop(how)


def folded(workers: list[Worker]) -> dict[int, int]:
    """Return the next offset of each partition that one of the workers has."""
    return {
        partition: state["next_offset"] or 0
        for worker in workers
        for partition, state in worker.status().items()
    }


def wait_folded(workers: list[Worker], ends: dict[int, int]) -> float:
    """Return the instant by which every record up to `ends` has been folded."""
    return _wait(workers, lambda: folded(workers), ends)


def wait_committed(lab: Lab, workers: list[Worker], ends: dict[int, int]) -> float:
    """Return the instant by which a checkpoint of all records up to `ends` was committed."""
    names = workers[0].names
    return _wait(workers, lambda: lab.committed(names.application_id, names.segments), ends)


def _wait(workers: list[Worker], ask: Callable[[], dict[int, int]], ends: dict[int, int]) -> float:
    deadline_s = time.monotonic() + CAUGHT_UP_TIMEOUT_S
    while True:
        reached = ask()
        instant_s = time.monotonic()
        if all(reached.get(partition, -1) >= end for partition, end in ends.items() if end):
            return instant_s
        if instant_s > deadline_s:
            said = f"came in time to {reached} only, not to {ends}"
            raise BenchError("\n".join(worker.child.tell(said) for worker in workers))
        for worker in workers:
            worker.child.check()
        time.sleep(POLL_S)
