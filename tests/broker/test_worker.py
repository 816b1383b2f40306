"""One worker and two, as processes on a real Kafka: settling, rebalances, stops and refusals."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import chain, count
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer, TopicPartition
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource

from durabill.schemas import OrderTotal, Status, decode_total, partition_for
from tests.broker.traffic_kit import move_group, now_ms, segment, traffic
from tests.broker.worker_kit import Deployment, Worker, deployment
from tests.waiting import HANG_S, wait_until

TRIES = 5
"""A machine that is busy with other things may be too slow once, and not each time."""

REFUSED = 1
"""Exit code of a worker that finds a state or log that it can't go on from."""


@pytest.fixture(scope="module")
def running(
    bootstrap_servers: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Deployment]:
    """A deployment with one worker that several tests share."""
    with deployment(bootstrap_servers, tmp_path_factory.mktemp("running")) as deployed:
        deployed.start_and_wait()
        yield deployed


def totals_of(deployed: Deployment, order: str) -> list[OrderTotal]:
    """The totals of an order in their sequence, once everything is as the oracle says."""
    deployed.wait_for_truth()
    found = [decode_total(message.value()) for message in deployed.found_totals()]
    return [total for total in found if total.service_order_number == order]


def test_silent_orders_settle_and_late_data_is_a_revision(running: Deployment) -> None:
    start_ms = now_ms() - 100_000
    pieces = [(start_ms + 1_000 * each, start_ms + 1_000 * (each + 1)) for each in range(4)]
    names = ("holey", "endless")
    sent = [segment(name, each + 1, *pieces[each]) for name in names for each in (0, 2)]
    running.send([*sent, segment("holey", 4, *pieces[3], True)])  # at once: times are short
    (first,) = totals_of(running, "holey")
    assert (first.status, first.duration_ms, first.upper_bound_ms) == (
        Status.INCOMPLETE,
        3_000,
        4_000,
    )
    (endless,) = totals_of(running, "endless")
    assert (endless.status, endless.end_number) == (Status.ABANDONED, None)

    running.send([segment("holey", 2, *pieces[1])])
    _, second = totals_of(running, "holey")
    assert (second.revision, second.status, second.duration_ms) == (2, Status.COMPLETE, 4_000)
    assert second.previous_digest == first.digest


def test_complete_in_the_middle_of_a_batch(running: Deployment) -> None:
    start_ms = now_ms() - 50_000
    one = segment("middle", 1, start_ms, start_ms + 10)
    end = segment("middle", 2, start_ms + 10, start_ms + 20, True)
    after = segment("middle", 3, start_ms + 20, start_ms + 30)
    # Many records that are ready at once go into one batch.
    running.send([one, one, end, end, after, *[one] * 20])
    totals = totals_of(running, "middle")
    assert [(each.status, each.duration_ms, each.duplicates) for each in totals] == [
        (Status.COMPLETE, 20, 1),
        (Status.COMPLETE, 30, 22),  # all that came by the deadline is in one correction
    ]
    assert totals[1].source_offset == totals[0].source_offset + 22
    assert totals[1].numbers_after_end == 1


def test_transactions(running: Deployment) -> None:
    """What was aborted never counts; the markers that end the log don't stop its timers."""
    producer = Producer({**running.kafka, "transactional.id": running.name, "linger.ms": 5})
    producer.init_transactions(HANG_S)
    partition = partition_for(b"aborted", running.partitions)
    start_ms = now_ms() - 50_000
    for number, order in enumerate(("committed", "aborted", "both", "both"), 1):
        producer.begin_transaction()
        for each in range(3):
            at_ms = start_ms + 100 * number + 10 * each
            key, value = segment(order, 10 * number + each, at_ms, at_ms + 10)
            producer.produce(running.segments, value, key, partition_for(key, running.partitions))
        producer.flush(HANG_S)
        if number % 2:
            producer.commit_transaction(HANG_S)
        else:
            producer.abort_transaction(HANG_S)
    ends = running.ends()
    read = [each.offset for each in running.log() if each.partition == partition]
    assert max(read, default=0) < ends[partition] - 1, "the last is a marker"
    running.wait_for_truth()
    totals = {each.service_order_number: each for each in found(running)}
    assert "aborted" not in totals
    assert (totals["committed"].segments, totals["both"].segments) == (3, 3)
    wait_until(lambda: running.committed() == running.ends(), "the markers are committed")


def found(deployed: Deployment) -> list[OrderTotal]:
    """All totals, in the order of partition and offset."""
    return [decode_total(message.value()) for message in deployed.found_totals()]


def test_poison_goes_to_the_dead_letters(running: Deployment) -> None:
    """Null keys, tombstones, and the greatest record that the topic takes."""
    greatest = {"message.max.bytes": 2_000_000}
    producer = Producer({**running.kafka, **greatest, "linger.ms": 0})
    size = 1_048_588 - 200
    producer.produce(running.segments, b"\xc3\x01" + b"v" * size, b"big", 0)
    producer.produce(running.segments, b"v" * 10, b"k" * size, 1)
    producer.produce(running.segments, b"v", b"headers", 2, headers={"h": b"h" * size})
    producer.produce(running.segments, None, b"tombstone", 3)
    producer.produce(running.segments, None, None, 0)
    producer.produce(running.segments, segment("nobody", 1, 1, 2)[1], None, 1)
    assert producer.flush(HANG_S) == 0
    running.wait_for_truth()
    sizes = {len(each.value() or b"") for each in running.found_letters()}
    assert size + 2 in sizes


def is_shown(worker: Worker, number: str, found: list[tuple[int, Any]]) -> bool:
    """Whether the worker shows an order; `found` has all answers."""
    found.append(worker.order(number))
    return found[-1][0] == 200


def test_the_pages_show_orders_and_lag(running: Deployment) -> None:
    (worker,) = running.workers
    start_ms = now_ms() - 5_000
    for name in (f"page-{each}" for each in range(TRIES)):
        running.send([segment(name, 2, start_ms, start_ms + 7)])
        found: list[tuple[int, Any]] = []
        wait_until(partial(is_shown, worker, name, found), "the order is there")
        order = found[-1][1]
        if order["phase"] == "OPEN":
            break  # it stays so for two seconds
    assert (order["phase"], order["duration_ms"], order["missing_numbers"]) == ("OPEN", 7, [[1, 1]])
    assert (order["missing_range_count"], order["next"]) == (1, None)
    # Between the broker's last answer and ours it may not know whether it has read all.
    wait_until(lambda: worker.order("nobody's")[0] == 404, "nobody's is unknown")
    assert worker.order("nobody's")[1]["reason"] == "UNKNOWN_ORDER"
    # Faust's own pages are not there, whatever they are called.
    for path in ("/", "/table", "/table/", "/table/checkpoint/x/", "/router", "/graph", "/docs"):
        assert worker.get(path)[0] == 404
    status, page = worker.get("/status")
    assert (status, page["application_id"]) == (200, running.name)
    assert set(page["partitions"]) == {str(each) for each in range(running.partitions)}


# -- cases with a deployment of their own; all at once, as most of their time is spent waiting


def second_worker_joins_and_leaves(bootstrap_servers: str, folder: Path) -> None:
    """The totals are right, nothing is repeated, and an order's owner alone answers for it."""
    stop = threading.Event()
    records = chain.from_iterable(traffic(turn, orders=20, segments=20) for turn in count())
    with (
        deployment(bootstrap_servers, folder, idle_timeout_s=0.5, settle_grace_s=0.3) as deployed,
        ThreadPoolExecutor(1) as pool,
    ):
        first = deployed.start_and_wait()
        sent = pool.submit(deployed.send, records, pause_s=0.005, stop=stop.is_set)
        try:
            for _ in range(2):
                second = deployed.start()
                deployed.wait_for_owners(first, second)
                names = ["SO-0-0", "ü/%?# &"]
                deployed.send(segment(each, 1, now_ms() - 10, now_ms()) for each in names)
                for name in names:
                    wait_until(partial(one_answers, (first, second), name), f"{name} is known")
                # The group may share its partitions out once more before it rests.
                wait_until(partial(nobodys_is_told, (first, second)), "nobody's is told apart")
                assert second.stop() == 0
                deployed.wait_for_owners(first)
        finally:
            stop.set()
        sent.result(HANG_S)
        deployed.wait_for_truth()
        # Nobody died, so nothing was repeated.
        assert len(found(deployed)) == len(set(found(deployed)))


def one_answers(workers: tuple[Worker, ...], number: str) -> bool:
    """Whether one worker shows the order, and the others say that it isn't theirs."""
    answers = sorted((worker.order(number) for worker in workers), key=lambda each: each[0])
    (status, order), *others = answers
    return (
        status == 200
        and order["service_order_number"] == number
        and all(each[0] == 421 for each in others)
    )


def nobodys_is_told(workers: tuple[Worker, ...]) -> bool:
    """Whether one worker says that there is no such order yet, and the others that it isn't theirs.

    An owner may not know whether it has read all of it: that is 503.
    """
    told = {worker.order("nobody's")[0] for worker in workers}
    assert told <= {421, 404, 503}
    return {421} < told


def restart_has_nothing_to_replay(bootstrap_servers: str, folder: Path) -> None:
    """A worker that is asked to stop writes a checkpoint, so the next one starts at the end."""
    with deployment(bootstrap_servers, folder) as deployed:
        worker = deployed.start_and_wait(checkpoint_interval_s=600)
        deployed.send(traffic(1, orders=10, segments=10))
        wait_until(lambda: worker.next_offsets() == deployed.ends(), "all is folded")
        assert deployed.committed() != deployed.ends()
        assert worker.stop() == 0
        assert deployed.committed() == deployed.ends()

        again = deployed.start_and_wait()
        deployed.wait_for_truth()
        partitions = again.get("/status")[1]["partitions"]
        records = [each["records"] - each["clock_marks"] for each in partitions.values()]
        assert records == [0] * 4
        assert sum(each["orders"] for each in partitions.values()) >= 10


def paused_worker_settles_nothing_too_early(bootstrap_servers: str, folder: Path) -> None:
    """An answer that was read late must not be taken for silence until then."""
    with deployment(bootstrap_servers, folder, idle_timeout_s=3, partitions=1) as deployed:
        worker = deployed.start_and_wait()
        for name in (f"paused-{at}" for at in range(TRIES)):
            deployed.send([segment(name, 1, now_ms() - 10, now_ms())])
            wait_until(lambda: worker.order(name)[0] == 200, "the order is there")  # noqa: B023
            worker.signal(signal.SIGSTOP)
            time.sleep(1.5)
            deployed.send([segment(name, 2, now_ms() - 10, now_ms())])
            time.sleep(5)
            worker.signal(signal.SIGCONT)
            deployed.wait_for_truth()
            first, second = [each for each in deployed.log() if each.key == name.encode()]
            if second.append_ms - first.append_ms < 3_000:
                (total,) = [each for each in found(deployed) if each.service_order_number == name]
                assert total.segments == 2
                return
        raise AssertionError("too slow a machine: the second one always came after the timeout")


@contextmanager
def stopped(bootstrap_servers: str, folder: Path) -> Iterator[Deployment]:
    """A deployment whose only worker has done its work and been stopped."""
    with deployment(bootstrap_servers, folder) as deployed:
        worker = deployed.start_and_wait()
        deployed.send(traffic(1, orders=10, segments=10))
        deployed.wait_for_truth()
        assert worker.stop() == 0
        yield deployed


def refusal(deployed: Deployment) -> str:
    """Starts a worker that must refuse to go on; returns what it said."""
    worker = deployed.start()
    assert worker.wait(HANG_S) == REFUSED
    return worker.log()


def moved_offset_moves_nothing(bootstrap_servers: str, folder: Path) -> None:
    """Anybody can move a group's offsets: the checkpoint says where it goes on."""
    with stopped(bootstrap_servers, folder) as deployed:
        ends = deployed.committed()
        places = [
            TopicPartition(deployed.segments, 0, ends[0] - 1),
            TopicPartition(deployed.segments, 1, 0),
        ]
        deployed.send(traffic(2, orders=10, segments=10))
        places.append(TopicPartition(deployed.segments, 2, deployed.ends()[2]))
        move_group(deployed.bootstrap_servers, deployed.name, places)
        assert deployed.start_and_wait().stop() == 0
        deployed.start_and_wait()
        deployed.wait_for_truth()


def frozen_worker_is_fenced(bootstrap_servers: str, folder: Path) -> None:
    """A worker that wakes up after its partitions were given away: nothing of it is seen."""
    with deployment(bootstrap_servers, folder) as deployed:
        frozen = deployed.start_and_wait()
        deployed.send(traffic(1, orders=10, segments=10))
        wait_until(lambda: sum(frozen.next_offsets().values()) > 0, "segments were read")
        frozen.signal(signal.SIGSTOP)
        successor = deployed.start_and_wait()
        deployed.send(traffic(2, orders=10, segments=10))
        deployed.wait_for_truth()
        frozen.signal(signal.SIGCONT)
        assert frozen.wait(HANG_S) == REFUSED
        assert "has been taken over by another worker" in frozen.log()
        deployed.workers.remove(frozen)
        deployed.send(traffic(3, orders=10, segments=10))
        successor.kill()
        deployed.start_and_wait()
        deployed.wait_for_truth()


def deleted_checkpoint_is_refused(bootstrap_servers: str, folder: Path) -> None:
    """Offsets without the state that belongs to them."""
    with stopped(bootstrap_servers, folder) as deployed:
        admin = AdminClient(deployed.kafka)
        admin.delete_topics([deployed.checkpoint])[deployed.checkpoint].result(HANG_S)
        wait_until(lambda: deployed.checkpoint not in admin.list_topics().topics, "deleted")
        deployed.create_topics()
        assert "its checkpoint is empty" in refusal(deployed)


def lost_segments_are_refused(bootstrap_servers: str, folder: Path) -> None:
    """Segments that were deleted before a worker has read them."""
    with stopped(bootstrap_servers, folder) as deployed:
        deployed.send(traffic(2, orders=10, segments=10))
        place = TopicPartition(deployed.segments, 0, deployed.committed()[0] + 1)
        admin = AdminClient(deployed.kafka)
        admin.delete_records([place])[place].result(HANG_S)
        assert "segments are lost" in refusal(deployed)


def undeliverable_totals_end_the_worker(bootstrap_servers: str, folder: Path) -> None:
    """A total that Kafka refuses: nothing is committed on the strength of it."""
    with deployment(bootstrap_servers, folder) as deployed:
        worker = deployed.start_and_wait()
        limit = ConfigEntry("max.message.bytes", "100", incremental_operation=AlterConfigOpType.SET)
        topic = ConfigResource("topic", deployed.totals, incremental_configs=[limit])
        admin = AdminClient(deployed.kafka)
        admin.incremental_alter_configs([topic])[topic].result(HANG_S)
        deployed.send([segment("big", 1, now_ms() - 10, now_ms(), True)])
        assert worker.wait(HANG_S) not in (0, -signal.SIGTERM)
        assert deployed.totals in worker.log()
        assert max(deployed.committed().values()) <= 0


CASES: dict[str, Callable[[str, Path], None]] = {
    case.__name__: case
    for case in (
        second_worker_joins_and_leaves,
        restart_has_nothing_to_replay,
        paused_worker_settles_nothing_too_early,
        moved_offset_moves_nothing,
        frozen_worker_is_fenced,
        deleted_checkpoint_is_refused,
        lost_segments_are_refused,
        undeliverable_totals_end_the_worker,
    )
}


@pytest.fixture(scope="module")
def outcomes(
    bootstrap_servers: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Future[None]]]:
    """What came of each case, by its name."""
    folder = tmp_path_factory.mktemp("cases")
    with ThreadPoolExecutor(len(CASES)) as pool:
        yield {name: pool.submit(case, bootstrap_servers, folder) for name, case in CASES.items()}


@pytest.mark.parametrize("case", CASES)
def test_a_case_with_a_deployment_of_its_own(outcomes: dict[str, Future[None]], case: str) -> None:
    outcomes[case].result(250)
