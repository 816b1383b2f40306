"""Topics changed under a worker's feet: it stops and says what to do, and skips nothing."""

import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient, NewPartitions

from durabill.deploy.topics import check_group
from tests.broker.test_cli import run
from tests.broker.traffic_kit import now_ms, segment, traffic
from tests.broker.worker_kit import Deployment, Worker, deployment
from tests.waiting import HANG_S, wait_until

REFUSED = 1


def delete_records(deployed: Deployment, partition: int, offset: int) -> None:
    """Has Kafka forget what is below an offset, as it does by retention."""
    admin = AdminClient(deployed.kafka)
    place = TopicPartition(deployed.segments, partition, offset)
    admin.delete_records([place])[place].result(HANG_S)


def recreate(deployed: Deployment, topic: str) -> None:
    """Deletes a topic and makes it anew, empty."""
    delete(deployed, topic)
    deployed.create_topics()


def delete(deployed: Deployment, topic: str) -> None:
    admin = AdminClient(deployed.kafka)
    admin.delete_topics([topic])[topic].result(HANG_S)
    wait_until(lambda: topic not in admin.list_topics(timeout=HANG_S).topics, "deleted")


def at_work(deployed: Deployment, seed: int = 1) -> Worker:
    """A worker that has folded something and committed it."""
    worker = deployed.start_and_wait()
    deployed.send(traffic(seed, orders=10, segments=10))
    wait_until(lambda: deployed.committed() == deployed.ends(), "all is committed")
    return worker


def assert_stopped(worker: Worker, *said: str) -> None:
    """It ends by itself, and says these things."""
    assert worker.wait(HANG_S) == REFUSED
    for each in said:
        assert each in worker.log()


def segments_deleted_while_it_lags(servers: str, folder: Path) -> None:
    """A silent reset to what is left would lose money; and a restart must say the same."""
    with deployment(servers, folder) as deployed:
        worker = at_work(deployed)
        worker.signal(signal.SIGSTOP)
        time.sleep(1.5)  # until Kafka has answered what it had asked: that there is nothing
        committed = deployed.committed()
        deployed.send(traffic(2, orders=10, segments=10))
        delete_records(deployed, 0, committed[0] + 5)
        worker.signal(signal.SIGCONT)
        # It may have read a clock mark of its own since its last checkpoint.
        place = f"{deployed.segments}/0: the next offset to read is "
        assert_stopped(worker, place, "Nothing was skipped", "another DURABILL_APPL")
        assert deployed.committed()[0] == committed[0]
        again = deployed.start()
        assert_stopped(again, f"{place}{committed[0]}", "under another DURABILL_APPLICATION_ID")


def segments_topic_made_anew(servers: str, folder: Path) -> None:
    """The new topic's first records must not pass for old ones, which have been counted."""
    with deployment(servers, folder) as deployed:
        worker = at_work(deployed)
        recreate(deployed, deployed.segments)
        assert_stopped(worker, deployed.segments, "under another DURABILL_APPLICATION_ID")
        deployed.send([segment("SO1", 1, now_ms() - 10, now_ms(), True)])
        assert_stopped(deployed.start(), "under another DURABILL_APPLICATION_ID")


def segments_topic_made_anew_unseen(servers: str, folder: Path) -> None:
    """While the worker is frozen: it asks for an offset that the new topic has not come to."""
    with deployment(servers, folder) as deployed:
        worker = at_work(deployed)
        worker.signal(signal.SIGSTOP)
        recreate(deployed, deployed.segments)
        deployed.send([segment("SO1", 1, now_ms() - 10, now_ms(), True)])
        worker.signal(signal.SIGCONT)
        assert_stopped(worker, "under another DURABILL_APPLICATION_ID")


def checkpoint_topic_deleted(servers: str, folder: Path) -> None:
    """The worker doesn't wait for it; what it has not checkpointed is in the log."""
    with deployment(servers, folder) as deployed:
        worker = at_work(deployed)
        delete(deployed, deployed.checkpoint)
        deployed.send(traffic(2, orders=10, segments=10))
        assert_stopped(worker, f"{deployed.checkpoint} is gone", "start anew")
        deployed.create_topics()
        assert_stopped(deployed.start(), "its checkpoint is empty")


def checkpoint_topic_made_anew(servers: str, folder: Path) -> None:
    """So fast that the worker sees nothing of it: what it writes from then on lacks the rest."""
    with deployment(servers, folder, partitions=1, idle_timeout_s=600) as deployed:
        worker = deployed.start_and_wait()
        base_ms = now_ms() - 1_000
        # More than one block of a checkpoint holds.
        deployed.send(segment(f"SO{each}", 1, base_ms, base_ms + 10) for each in range(2_000))
        wait_until(lambda: deployed.committed() == deployed.ends(), "all is committed")
        recreate(deployed, deployed.checkpoint)
        deployed.send([segment("SO0", 2, base_ms, base_ms + 20)])
        gone = f"{deployed.checkpoint} is gone"
        wait_until(
            lambda: deployed.committed() == deployed.ends() or gone in worker.log(), "the next one"
        )
        worker.kill()
        assert_stopped(deployed.start(), "checkpoint", "under another DURABILL_APPLICATION_ID")


def application_id_in_use(servers: str, folder: Path) -> None:
    """A second deployment under the first one's id would take its partitions and checkpoints."""
    with deployment(servers, folder) as deployed, deployment(servers, folder) as second:
        worker = at_work(deployed)
        check_group(deployed.kafka, application_id=deployed.name, segments=deployed.segments)
        check_group(deployed.kafka, application_id=second.name, segments=second.segments)
        settings = {
            "bootstrap_servers": servers,
            "application_id": deployed.name,
            "segments_topic": second.segments,
            "totals_topic": second.totals,
            "orders_topic": second.orders,
            "dead_letters_topic": second.dead_letters,
        }
        ran = run("worker", **settings)
        assert ran.returncode == REFUSED
        assert (
            f"{deployed.name} is in use for {deployed.segments}: another deployment" in ran.stderr
        )
        assert "DURABILL_APPLICATION_ID of its own" in ran.stderr
        deployed.wait_for_truth()
        assert worker.stop() == 0
        assert deployed.differences() == second.differences() == []


def partitions_added(servers: str, folder: Path) -> None:
    """Orders have moved: whoever knew them under the old count can't go on."""
    with deployment(servers, folder) as deployed:
        worker = at_work(deployed)
        admin = AdminClient(deployed.kafka)
        added = NewPartitions(deployed.segments, 6)
        admin.create_partitions([added])[deployed.segments].result(HANG_S)
        deployed.send([segment("SO1", 1, now_ms() - 10, now_ms(), True)])
        said = f"{deployed.segments} has 6 partitions now, and had 4"
        assert_stopped(worker, said, "another DURABILL_APPLICATION_ID")
        # The command would not even start this one; see `check_topics`.
        deployed.partitions = 6
        assert_stopped(deployed.start(), "another DURABILL_APPLICATION_ID")


CASES: dict[str, Callable[[str, Path], None]] = {
    case.__name__: case
    for case in (
        segments_deleted_while_it_lags,
        segments_topic_made_anew,
        segments_topic_made_anew_unseen,
        checkpoint_topic_deleted,
        checkpoint_topic_made_anew,
        application_id_in_use,
        partitions_added,
    )
}


@pytest.fixture(scope="module")
def outcomes(
    bootstrap_servers: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Future[None]]]:
    """What came of each case, by its name; all run side by side."""
    folder = tmp_path_factory.mktemp("offsets")
    with ThreadPoolExecutor(len(CASES)) as pool:
        yield {name: pool.submit(case, bootstrap_servers, folder) for name, case in CASES.items()}


@pytest.mark.parametrize("case", CASES)
def test_a_worker_that_could_skip_records_stops(
    outcomes: dict[str, Future[None]], case: str
) -> None:
    outcomes[case].result(250)
