"""Replication and transactions hold records back: appended with their time, but not yet visible.

What a total is must not depend on it. A follower that is frozen stays in sync, by name, for as long
as the controller believes in it; meanwhile the leader goes on appending, and the high watermark
stands still as if nothing came.
"""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka import Producer

from durabill.schemas import Status, decode_total, partition_for
from tests.broker.cluster_kit import Replicated, replicated
from tests.broker.traffic_kit import Pair, now_ms, segment, traffic
from tests.broker.worker_kit import Deployment, Worker, deployment
from tests.conftest import make_data_dir, remove_data_dir
from tests.waiting import HANG_S, wait_until

TOTALS = {"message.timestamp.type": "LogAppendTime", "max.message.bytes": str(16 << 20)}
LETTERS = {"message.timestamp.type": "LogAppendTime", "max.message.bytes": str(2 << 20)}
KEPT = {"message.timestamp.type": "LogAppendTime", "retention.ms": "-1"}
TRIES = 4
BLOCKS = {"cleanup.policy": "compact", "max.message.bytes": str(16 << 20)}


@pytest.fixture(scope="module")
def brokers() -> Iterator[Replicated]:
    folder = make_data_dir()
    try:
        # Its default, said here because it is what the tests are about: a follower that is frozen
        # stays in sync until the controller misses the broker.
        with replicated(folder, replica_lag_time_max_ms=30_000) as made:
            yield made
    finally:
        remove_data_dir(folder)


def deploy_on(brokers: Replicated, name: str, *leaders: int) -> None:
    """Make a deployment's topics, with these brokers as the leaders of their partitions."""
    topics = {
        f"{name}.segments": KEPT,
        f"{name}.totals": {**KEPT, **TOTALS},
        f"{name}.dead-letters": {**KEPT, **LETTERS},
        f"{name}-checkpoint-changelog": BLOCKS,
    }
    brokers.create_topics(leaders, topics)


def orders_in(partition: int, partitions: int, count: int, prefix: str) -> list[str]:
    """Order numbers that belong to one partition."""
    numbers = (f"{prefix}-{each}" for each in range(100 * count))
    found = [each for each in numbers if partition_for(each.encode(), partitions) == partition]
    return found[:count]


def three(order: str) -> tuple[Pair, Pair, Pair]:
    """Segments 1 and 2 of an order, and 3 with its end."""
    base_ms = now_ms() - 60_000
    first, second, third = (
        segment(order, number, base_ms + 1_000 * number, base_ms + 1_000 * number + 1_000, end)
        for number, end in ((1, False), (2, False), (3, True))
    )
    return first, second, third


def came_within_the_grace(
    brokers: Replicated, deployed: Deployment, follower: int, names: list[str]
) -> bool:
    """Send orders but for their second segments, which come while a follower is frozen.

    Tell whether they came within the grace, by the log's own times.
    """
    orders = [three(each) for each in names]
    deployed.send([pair for first, _, last in orders for pair in (first, last)])
    ended_s = time.monotonic()
    time.sleep(0.6)
    seen = brokers.visible_until(deployed.segments)
    with brokers.frozen(follower) as frozen_s:
        time.sleep(max(0.0, ended_s + 1.1 - time.monotonic()))
        appended = brokers.append(deployed.segments, [second for _, second, _ in orders])
        is_early = time.monotonic() < ended_s + 2.5
        while is_early and frozen_s() < 6.0:
            # The fault is the one that is meant: in the log, in sync by name, not to be seen.
            assert min(appended) >= brokers.visible_until(deployed.segments) == seen
            time.sleep(0.2)
        assert not is_early or follower in brokers.partitions(deployed.segments)[0].in_sync
    return is_early


def test_what_a_stalled_follower_holds_back_came_when_it_was_appended(
    brokers: Replicated, tmp_path: Path
) -> None:
    """The missing segment comes 1.1 s after the end, the grace is 3 s, the stall lasts 6 s.

    Where the machine is so busy that it comes after the grace, it is tried again.
    """
    coordinators = brokers.coordinators()
    leader = min(coordinators)
    follower = next(each for each in (1, 2, 3) if each not in coordinators)
    deploy_on(brokers, "stalled", leader)
    with deployment(
        brokers.bootstrap_servers,
        tmp_path,
        name="stalled",
        partitions=1,
        settle_grace_s=3.0,
        idle_timeout_s=60.0,
    ) as deployed:
        worker = deployed.start_and_wait()
        for turn in range(TRIES):
            names = [f"stalled-{turn}-{each}" for each in range(12)]
            if came_within_the_grace(brokers, deployed, follower, names):
                break
            brokers.wait_in_sync(deployed.segments)
            deployed.wait_for_truth()
        else:
            raise AssertionError("too slow a machine: it came after the grace each time")
        deployed.wait_for_truth()
        all_found = [decode_total(each.value()) for each in deployed.found_totals()]
        found = [each for each in all_found if each.service_order_number in names]
        assert [(each.revision, each.status) for each in found] == [(1, Status.COMPLETE)] * 12
        arrivals = {each.append_ms for each in deployed.log()}
        assert {each.settled_at_ms for each in found} <= arrivals

        worker.kill()
        again = deployed.start_and_wait()
        time.sleep(2.0)
        assert again.process.poll() is None
        assert len(deployed.found_totals()) == len(all_found)
        assert deployed.differences() == []
        assert again.stop() == 0


def test_a_leader_that_is_killed_under_load_moves_no_settlement(
    brokers: Replicated, tmp_path: Path
) -> None:
    """And none where it was a follower, which stays in sync by name until it is missed."""
    brokers.coordinators()  # both have their three replicas by now
    leader = 1
    deploy_on(brokers, "killed", leader, 2)
    with deployment(
        brokers.bootstrap_servers, tmp_path, name="killed", partitions=2, settle_grace_s=1.5
    ) as deployed:
        deployed.start_and_wait()
        records = traffic(9, 300, 8)
        load = threading.Thread(
            target=deployed.send, args=(records,), kwargs={"pause_s": 8.0 / len(records)}
        )
        load.start()
        try:
            time.sleep(2.0)
            before = [brokers.visible_until(deployed.segments, each) for each in range(2)]
            brokers.kafka.node(leader).kill()
            wait_until(
                lambda: brokers.leader(deployed.segments) not in (leader, -1), "another one leads"
            )
        finally:
            load.join()
        after = [brokers.visible_until(deployed.segments, each) for each in range(2)]
        assert all(old < new for old, new in zip(before, after, strict=True)), "the load went on"
        brokers.kafka.node(leader).start()
        brokers.wait_in_sync(deployed.segments)
        deployed.wait_for_truth()
        assert len(deployed.truth().totals) >= 300


STALL_TIMEOUT_S = 3.0


def test_an_open_transaction_holds_back_its_partition_alone(
    bootstrap_servers: str, tmp_path: Path
) -> None:
    """It may do so for longer than a worker may stand still: that is the client's doing."""
    with deployment(bootstrap_servers, tmp_path, settle_grace_s=0.5, idle_timeout_s=60.0) as made:
        worker = made.start_and_wait(stall_timeout_s=STALL_TIMEOUT_S)
        pid = worker.process.pid
        (held,) = orders_in(2, 4, 1, "held")
        others = [number for p in (0, 1, 3) for number in orders_in(p, 4, 2, "free")]
        client = Producer(
            {
                "bootstrap.servers": bootstrap_servers,
                "transactional.id": f"{made.name}-client",
                "transaction.timeout.ms": 300_000,
            }
        )
        client.init_transactions(HANG_S)
        client.begin_transaction()
        first, second, last = three(held)
        client.produce(made.segments, first[1], first[0], partition=2)
        assert client.flush(HANG_S) == 0
        began_s = time.monotonic()
        made.send([second, last])  # committed, but behind the open one
        for number in others:
            made.send([pair for each, pair in enumerate(three(number)) if each != 1])
            time.sleep(3 * STALL_TIMEOUT_S / len(others))
        _go_on(made, worker, others)
        held_for_s = time.monotonic() - began_s
        assert held_for_s > 2.5 * STALL_TIMEOUT_S
        wait_until(lambda: waiting_s(worker)["2"] > 2 * STALL_TIMEOUT_S, "it says how long")
        waiting = waiting_s(worker)
        assert waiting.pop("2") <= time.monotonic() - began_s + 1
        assert not any(waiting.values())
        client.commit_transaction(HANG_S)
        made.wait_for_truth()
        (total,) = made.truth().totals[held]
        assert total.status == Status.COMPLETE
        assert pid == worker.process.pid
        assert worker.stop() == 0


def waiting_s(worker: Worker) -> dict[str, float]:
    """How long each partition has waited for a transaction; 0: it doesn't."""
    partitions = worker.get("/status")[1]["partitions"]
    return {each: task.get("waiting_for_transaction_s") or 0 for each, task in partitions.items()}


def _go_on(made: Deployment, worker: Worker, others: list[str]) -> None:
    """The other partitions' orders settle as INCOMPLETE, and the worker says that it is well."""

    def settled() -> bool:
        assert worker.process.poll() is None, "the worker has ended"
        if worker.get("/health/live")[0] != 200:
            return False  # busy for a moment; one that is stuck ends itself
        found = [decode_total(each.value()) for each in made.found_totals()]
        return {(each.service_order_number, each.status) for each in found} == {
            (number, Status.INCOMPLETE) for number in others
        }

    wait_until(settled, "the other partitions' orders have settled")
