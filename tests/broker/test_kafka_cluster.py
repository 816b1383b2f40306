"""Three brokers on this machine: started, told apart, stopped and started again by number."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, ConfigResource, ResourceType

from durabill.deploy.commands.common import located
from durabill.deploy.local.kafka import LocalKafka, NodeStatus
from durabill.deploy.local.stack import StackError
from durabill.deploy.topics import create_topics
from durabill.schemas.topics import Topics
from durabill.stream_processors.settings import Settings
from tests.chaos.cluster import process_state
from tests.conftest import JARS_DIR, PROJECT_DIR
from tests.waiting import HANG_S, wait_until


@pytest.fixture
def cluster(data_dir: Path) -> Iterator[LocalKafka]:
    """Three brokers that run. A killed one is missed soon, so that it may come back soon."""
    soon = {"broker.session.timeout.ms": 3_000, "broker.heartbeat.interval.ms": 500}
    made = LocalKafka(data_dir, brokers=3, jars_dir=JARS_DIR, more=soon)
    made.start()
    yield made
    made.remove()


def durabill(*arguments: str) -> tuple[int, str]:
    """Exit code and output of a command."""
    command = [sys.executable, "-m", "durabill.deploy.commands.cli", *arguments]
    ran = subprocess.run(command, cwd=PROJECT_DIR, capture_output=True, text=True, check=False)
    return ran.returncode, ran.stdout + ran.stderr


def status_of(data_dir: Path) -> tuple[int, Any]:
    code, output = durabill("kafka", "status", "--json", "--data-dir", str(data_dir))
    return code, json.loads(output)


def append(address: str, topic: str, value: bytes) -> None:
    producer = Producer({"bootstrap.servers": address, "acks": "all"})
    producer.produce(topic, value, partition=0)
    assert producer.flush(HANG_S) == 0


def ends(address: str, topic: str) -> tuple[int, int]:
    consumer = Consumer({"bootstrap.servers": address, "group.id": "ends"})
    try:
        found: tuple[int, int] = consumer.get_watermark_offsets(TopicPartition(topic, 0), HANG_S)
        return found
    finally:
        consumer.close()


def test_three_brokers_keep_all_in_three_copies_whichever_of_them_is_away(
    cluster: LocalKafka, data_dir: Path
) -> None:
    address = cluster.status().bootstrap_servers or ""
    assert len(set(address.split(","))) == 3
    assert LocalKafka(data_dir, brokers=3, jars_dir=JARS_DIR).start() == address
    pids = [node.pid() for node in cluster.nodes()]
    assert len({*pids, None}) == 4
    admin = AdminClient({"bootstrap.servers": address})
    create_topics(
        {"bootstrap.servers": address},
        Topics("t.segments", "t.totals", "t.dead-letters", "t.checkpoint", orders="t.orders"),
        partitions=2,
    )
    segments = admin.list_topics("t.segments", timeout=HANG_S).topics["t.segments"]
    assert [sorted(each.replicas) for each in segments.partitions.values()] == [[1, 2, 3]] * 2
    broker = ConfigResource(ResourceType.BROKER, "2")
    settings = admin.describe_configs([broker])[broker].result(HANG_S)
    assert settings["default.replication.factor"].value == "3"
    assert settings["min.insync.replicas"].value == "2"
    assert settings["unclean.leader.election.enable"].value == "false"
    assert settings["transaction.state.log.min.isr"].value == "2"
    assert settings["replica.lag.time.max.ms"].value == "30000"

    second = cluster.node(2)
    killed = second.kill()
    assert killed == pids[1]
    append(address, "t.segments", b"with two of three")
    assert not cluster.status().running
    assert located(Settings(data_dir=str(data_dir))).bootstrap_servers == address
    code, told = status_of(data_dir)
    assert (code, told["running"], told["brokers"][1]["pid"]) == (3, False, None)
    with pytest.raises(StackError, match="Kafka's broker 2 does not run"):
        second.freeze()
    second.start()
    second.start()  # it runs
    assert status_of(data_dir)[0] == 0
    frozen = cluster.node(3).freeze()
    wait_until(lambda: process_state(frozen) == "T", "broker 3 is frozen")
    cluster.stop()  # a frozen one too
    stopped = cluster.status()
    assert stopped.nodes == tuple(
        NodeStatus(number, None, each) for number, each in enumerate(address.split(","), 1)
    )
    assert LocalKafka(data_dir, jars_dir=JARS_DIR).start() == address, "as many as there were"
    assert ends(address, "t.segments") == (0, 1)
    cluster.remove()
    assert not (data_dir / "kafka").exists()


def test_a_folder_keeps_its_number_of_brokers(data_dir: Path) -> None:
    alone = LocalKafka(data_dir, jars_dir=JARS_DIR)
    address = alone.start()
    three = LocalKafka(data_dir, brokers=3, jars_dir=JARS_DIR)
    told = r"has 1 broker and can't become one with 3 brokers.*choose another data folder"
    with pytest.raises(StackError, match=told):
        three.start()
    assert three.status() == alone.status()
    assert [each.address for each in alone.status().nodes] == [address]
    with pytest.raises(StackError, match=r"no broker 2: this Kafka has 1 to 1"):
        three.node(2)
    three.stop()
    assert alone.status().nodes[0].pid is None


@pytest.mark.parametrize("brokers", ["0", "10"])
def test_a_number_of_brokers_that_makes_no_sense_is_refused(brokers: str, data_dir: Path) -> None:
    code, output = durabill("kafka", "start", "--brokers", brokers, "--data-dir", str(data_dir))
    assert (code, True) == (2, "Invalid value for '--brokers'" in output), output
    with pytest.raises(StackError, match=f"has 1 to 9 brokers, not {brokers}"):
        LocalKafka(data_dir, brokers=int(brokers), jars_dir=JARS_DIR).start()
