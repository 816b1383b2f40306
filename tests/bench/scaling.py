"""How the worker scales: with workers, with open orders; memory, checkpoints, recovery."""

import signal
import sys
import time
from dataclasses import dataclass
from typing import Any

from confluent_kafka import Producer

from tests.bench.lab import PARTITIONS, PRODUCER, ROOT, TIMEOUT_S, Lab, Names, Stream, send
from tests.bench.processes import BenchError, Child
from tests.bench.traffic import Sent, Shape, generate, open_orders
from tests.bench.worker import Worker, folded, wait_committed, wait_folded

OFFLINE_TIMEOUT_S = 600.0
SESSION_TIMEOUT_S = 10.0
"""The worker's `broker_session_timeout`: so long the group keeps the place of one that is dead."""
ASSIGNED_PAUSE_S = 2.0


@dataclass
class Scale:
    """What a number of workers did together."""

    workers: int
    records: int
    wall_s: float
    cpu_s: float


def with_workers(lab: Lab, shape: Shape, records: int, count: int) -> Scale:
    """Measure `count` workers that share the partitions of a topic.

    The records are sent in one transaction while the workers, which read committed records only,
    wait with their partitions assigned; its commit lets all of them through at once.
    """
    names = lab.names("scale")
    workers = [Worker(lab, names) for _ in range(count)]
    try:
        _wait_shared(workers)
        producer = Producer(
            lab.kafka
            | PRODUCER
            | {"transactional.id": names.application_id, "transaction.timeout.ms": 600_000}
        )
        producer.init_transactions(TIMEOUT_S)
        producer.begin_transaction()
        sent = Sent()
        now_ms = time.time_ns() // 10**6
        send(producer, names.segments, generate(shape, records, now_ms, 3, sent))
        producer.flush()
        begun_cpu_s = sum(worker.cpu_s() for worker in workers)
        producer.commit_transaction(TIMEOUT_S)
        before = sum(folded(workers).values())
        while sum(folded(workers).values()) <= before:
            time.sleep(0.01)
        begun_s = time.monotonic()
        ends = _ends(lab, names, sent.records)
        folded_s = wait_folded(workers, ends)
        wait_committed(lab, workers, ends)
        cpu_s = sum(worker.cpu_s() for worker in workers) - begun_cpu_s
    finally:
        for worker in workers:
            worker.stop()
    lab.drop(*names.topics.by_role.values())
    return Scale(count, sent.records, folded_s - begun_s, cpu_s)


def _wait_shared(workers: list[Worker]) -> None:
    """Return once each worker has its share of the partitions, and nothing moves any more."""
    deadline_s = time.monotonic() + 2 * TIMEOUT_S
    share = PARTITIONS // len(workers)
    while any(len(worker.status()) != share for worker in workers):
        if time.monotonic() > deadline_s:
            raise BenchError("the workers did not share the partitions in time")
        time.sleep(0.2)
    time.sleep(ASSIGNED_PAUSE_S)


def _ends(lab: Lab, names: Names, records: int) -> dict[int, int]:
    """Return the ends once the transaction's markers are in the log."""
    while True:
        ends = lab.ends(names.segments)
        if sum(ends.values()) >= records + sum(1 for end in ends.values() if end):
            return ends
        time.sleep(0.02)


def table_alone(lab: Lab, orders: int) -> dict[str, dict[str, Any]]:
    """Return the marks of `offline`, which grows a table to `orders` in a process of its own."""
    command = [sys.executable, "-m", "tests.bench.offline", str(orders)]
    log = lab.dir / "offline.log"
    child = Child("the table", command, log, {"PYTHONPATH": str(ROOT)})
    try:
        return {
            name: child.wait_mark(name, OFFLINE_TIMEOUT_S)[2] for name in ("checkpoint", "growth")
        }
    finally:
        child.stop()


@dataclass
class Recovery:
    """How long a restart after `kill -9` took, in s.

    `start_s`: from the start of a new process until it has folded its first records, where the
    group has already given up the dead one. `caught_up_s`: the same until it has folded the tail of
    the log. `at_once_s`: from the kill until the tail is folded by a process that is started at
    once, so with the wait until the group gives up the dead one.
    """

    orders: int
    tail_records: int
    start_s: float
    caught_up_s: float
    at_once_s: float


def recovery(lab: Lab, stream: Stream, tail_records: int) -> Recovery:
    """Kill a worker that has all orders of the stream open, twice, and time the one after it."""
    names = lab.names("recovery", stream.topic)
    worker = Worker(lab, names)
    try:
        worker.wait_ready()
        wait_folded([worker], lab.ends(stream.topic))
        wait_committed(lab, [worker], lab.ends(stream.topic))
        orders = sum(state["orders"] for state in worker.status().values())
        _kill(lab, worker, stream.topic, tail_records, seed=11)
        killed_s = time.monotonic()
        worker = Worker(lab, names)
        worker.wait_ready()
        at_once_s = wait_folded([worker], lab.ends(stream.topic)) - killed_s
        wait_committed(lab, [worker], lab.ends(stream.topic))
        _kill(lab, worker, stream.topic, tail_records, seed=12)
        time.sleep(SESSION_TIMEOUT_S + 3)
        worker = Worker(lab, names)
        worker.wait_ready()
        first_s = worker.wait_first()
        caught_up_s = wait_folded([worker], lab.ends(stream.topic))
        started_s = worker.child.started_s
    finally:
        worker.stop()
    return Recovery(orders, tail_records, first_s - started_s, caught_up_s - started_s, at_once_s)


def _kill(lab: Lab, worker: Worker, topic: str, records: int, seed: int) -> None:
    """Send a tail of records, and kill the worker while it folds them."""
    producer = Producer(lab.kafka | PRODUCER)
    shape = open_orders(max(1, records // 10))
    now_ms = time.time_ns() // 10**6
    send(producer, topic, generate(shape, records, now_ms, seed, Sent()))
    worker.stop(signal.SIGKILL)
    producer.flush()
