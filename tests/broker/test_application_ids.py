"""Several application ids on the same topics: whatever one has published, no other repeats."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from confluent_kafka import Producer

from durabill.deploy.topics import create_topics
from durabill.stream_processors.kafka.fencing import open_producer
from durabill.stream_processors.worker.output_topic import looks_for_others
from tests.broker.traffic_kit import now_ms, segment, traffic
from tests.broker.worker_kit import Deployment, Worker, deployment
from tests.waiting import HANG_S, wait_until

SECOND = "{name}-second"


def make_second(deployed: Deployment) -> str:
    """Makes the checkpoint topic of a second application id; returns the id."""
    second = SECOND.format(name=deployed.name)
    create_topics(
        deployed.kafka,
        replace(deployed.topics, checkpoint=f"{second}-checkpoint-changelog"),
        partitions=deployed.partitions,
    )
    return second


@contextmanager
def two_ids(bootstrap_servers: str, folder: Path) -> Iterator[tuple[Deployment, str]]:
    """A deployment, and another application id on its topics."""
    with deployment(bootstrap_servers, folder) as deployed:
        second = make_second(deployed)
        yield deployed, second


def work(deployed: Deployment, worker: Worker, seed: int) -> None:
    """Has a worker settle some traffic, and stops it."""
    deployed.wait_for_owners(worker)
    deployed.send(traffic(seed, orders=30, segments=10, opened=True))
    deployed.wait_for_truth()
    assert worker.stop() == 0
    deployed.workers.remove(worker)


def one_after_the_other(bootstrap_servers: str, folder: Path) -> None:
    """A second id repeats nothing, and goes on; then the first does the same."""
    with two_ids(bootstrap_servers, folder) as (deployed, second):
        work(deployed, deployed.start(), seed=1)
        deployed.send(
            traffic(2, orders=30, segments=10, opened=True)
        )  # what is missing, it publishes
        work(deployed, deployed.start(application_id=second), seed=3)
        work(deployed, deployed.start(), seed=4)
        worker = deployed.start(application_id=second)
        deployed.wait_for_owners(worker)
        worker.kill()
        work(deployed, deployed.start(application_id=second), seed=5)


def both_at_once(bootstrap_servers: str, folder: Path) -> None:
    """Of two that publish at once one ends, and says why; nothing is published twice."""
    with two_ids(bootstrap_servers, folder) as (deployed, second):
        both = [deployed.start_and_wait(), deployed.start(application_id=second)]
        deployed.wait_for_owners(both[1])
        deployed.send(traffic(1, orders=60, segments=10, opened=True), pause_s=0.005)
        wait_until(lambda: any(each.process.poll() is not None for each in both), "one ends")

        def go_on() -> bool:
            # Each may have been first in another partition: then both end.
            have_ended = all(each.process.poll() is not None for each in both)
            return have_ended or len(deployed.found_totals()) > 50

        wait_until(go_on, "the other goes on")
        for each in both:
            if each.process.poll() is None:
                assert each.stop() == 0
            else:
                assert each.wait() == 1
                assert "another application id publishes" in each.log()
                assert "Traceback" not in each.log()
        deployed.workers.clear()
        work(deployed, deployed.start(application_id=second), seed=2)


def contradiction(bootstrap_servers: str, folder: Path) -> None:
    """Another policy gives another history: the second id stops, unless it inherits the first's."""
    with two_ids(bootstrap_servers, folder) as (deployed, second):
        worker = deployed.start_and_wait()
        start_ms = now_ms() - 50_000
        deployed.send([segment("late", 2, start_ms, start_ms + 7, end=True)])
        deployed.wait_for_truth()
        deployed.send([segment("late", 1, start_ms + 7, start_ms + 9)])
        deployed.wait_for_truth()
        assert worker.stop() == 0
        deployed.workers.remove(worker)
        count = len(deployed.found_totals())

        refused = deployed.start(application_id=second, settle_grace_s=3600)
        assert refused.wait(HANG_S) == 1
        assert "the log gives another total" in refused.log()
        assert "DURABILL_PREVIOUS_APPLICATION_ID" in refused.log()
        deployed.workers.remove(refused)
        assert len(deployed.found_totals()) == count

        third = f"{deployed.name}-third"
        create_topics(
            deployed.kafka,
            replace(deployed.topics, checkpoint=f"{third}-checkpoint-changelog"),
            partitions=deployed.partitions,
        )
        heir = deployed.start_and_wait(
            application_id=third, previous_application_id=deployed.name, settle_grace_s=3600
        )
        deployed.send([segment("new", 2, start_ms, start_ms + 7, end=True)])
        wait_until(lambda: heir.order("new")[0] == 200, "it has read the new order")
        assert heir.order("new")[1]["phase"] == "ENDED"
        assert heir.stop() == 0
        deployed.workers.remove(heir)
        assert len(deployed.found_totals()) == count


def test_what_hides_before_our_marker_is_found(bootstrap_servers: str, tmp_path: Path) -> None:
    """Another's open transaction between our last total and its marker: our look begins after."""
    with deployment(bootstrap_servers, tmp_path, partitions=1) as deployed:
        name, topic = deployed.name, deployed.totals
        ours, others = (open_producer(deployed.kafka, f"{name}-{each}") for each in ("a", "b"))
        look = looks_for_others(deployed.kafka, name, topic, 0, lambda record: True)

        def say(producer: Producer) -> None:
            producer.produce(topic, b"total", b"order", partition=0)
            assert producer.flush(HANG_S) == 0

        for producer in (ours, others):
            producer.begin_transaction()
            say(producer)
        ours.commit_transaction()
        ours.begin_transaction()
        say(ours)
        assert look(2, 3) is None
        others.abort_transaction()
        assert look(2, 3) == []
        ours.abort_transaction()


CASES = {each.__name__: each for each in (one_after_the_other, both_at_once, contradiction)}


@pytest.fixture(scope="module")
def outcomes(
    bootstrap_servers: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Future[None]]]:
    """What came of each case; all run side by side."""
    folder = tmp_path_factory.mktemp("ids")
    with ThreadPoolExecutor(len(CASES)) as pool:
        yield {name: pool.submit(case, bootstrap_servers, folder) for name, case in CASES.items()}


@pytest.mark.parametrize("case", CASES)
def test_application_ids(outcomes: dict[str, Future[None]], case: str) -> None:
    outcomes[case].result(250)
