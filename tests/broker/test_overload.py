"""More segments than a small worker can fold: memory is bounded, the lag shows, it catches up."""

import random
from pathlib import Path
from typing import Any

from confluent_kafka import Producer

from durabill.schemas import PARTITIONER
from tests.broker.traffic_kit import now_ms, segment
from tests.broker.worker_kit import Deployment, Worker, deployment
from tests.waiting import HANG_S, wait_until

SLOWED = """
import os, time
from durabill.stream_processors.engine.columns import ColumnTable
fold = ColumnTable.fold
def slowly(self, chunk):
    is_flooded = os.path.exists({flooding!r})
    time.sleep(len(chunk.data) / (10e6 if is_flooded else 150e6))
    return fold(self, chunk)
ColumnTable.fold = slowly
"""
"""10 MB a second while the flood comes, which is less than any machine sends; then 150."""

BACKLOG_BYTES = 450_000_000
GROWTH_BYTES_MAX = 250_000_000
"""What the worker may take more: 16 chunks of 4 MiB queued, a fetch of each partition, and copies
of both. 120 MB were measured, and more than the backlog where something kept fetches alive."""

HEADER_BYTES = 20_000
ORDERS = 100


def resident_bytes(worker: Worker, name: str = "VmHWM") -> int:
    """The worker's resident memory: the most so far (VmHWM), or now (VmRSS)."""
    status = Path(f"/proc/{worker.process.pid}/status").read_text(encoding="ascii")
    (line,) = (each for each in status.splitlines() if each.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024


def lag(deployed: Deployment, worker: Worker) -> int:
    """Records that the worker has not folded yet, by its own page."""
    next_offsets = worker.next_offsets()
    return sum(end - next_offsets.get(each, 0) for each, end in deployed.ends().items())


def flood(deployed: Deployment) -> None:
    """Sends the backlog as fast as it goes: large records, that no codec makes smaller."""
    dice = random.Random(7)
    noise = dice.randbytes(10 * HEADER_BYTES)
    base_ms = now_ms() - 3_600_000
    producer = Producer(
        {
            "bootstrap.servers": deployed.bootstrap_servers,
            "partitioner": PARTITIONER,
            "linger.ms": 5,
            "queue.buffering.max.kbytes": 50_000,
        }
    )
    count = BACKLOG_BYTES // HEADER_BYTES // ORDERS
    for number in range(1, count + 1):
        for order in range(ORDERS):
            at_ms = base_ms + 1_000 * number - dice.choice([0, 0, 300])
            key, value = segment(f"SO{order}", number, at_ms, at_ms + 1_000, number == count)
            start = dice.randrange(9 * HEADER_BYTES)
            headers: Any = {"noise": noise[start : start + HEADER_BYTES]}
            while True:
                try:
                    producer.produce(deployed.segments, value, key, headers=headers)
                    break
                except BufferError:
                    producer.poll(0.05)
    assert producer.flush(HANG_S) == 0


def test_small_worker_under_a_flood(bootstrap_servers: str, tmp_path: Path) -> None:
    with deployment(bootstrap_servers, tmp_path, idle_timeout_s=60, settle_grace_s=30) as deployed:
        flooding = tmp_path / "flooding"
        worker = deployed.start_and_wait(prelude=SLOWED.format(flooding=str(flooding)))
        deployed.send([segment("first", 1, now_ms() - 10, now_ms(), True)])
        wait_until(lambda: len(deployed.found_totals()) == 1, "it is at work")
        before = resident_bytes(worker)
        flooding.touch()
        flood(deployed)
        behind = lag(deployed, worker)
        assert behind > 1_000, "the flood was no more than it could take"
        flooding.unlink()
        wait_until(lambda: lag(deployed, worker) == 0, "it catches up", 120)
        grown = resident_bytes(worker) - before
        assert grown < GROWTH_BYTES_MAX, f"{grown} bytes for a backlog of {BACKLOG_BYTES}"
        deployed.wait_for_truth()
        assert worker.stop() == 0
        assert deployed.differences() == []
        assert len(deployed.found_totals()) == 1 + ORDERS
        assert deployed.committed() == deployed.ends()
