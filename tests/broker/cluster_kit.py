"""A Kafka of three brokers for tests, with a say in who leads what, and looks at its replicas."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from confluent_kafka import Consumer, KafkaError, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from durabill.deploy.local.kafka import LocalKafka
from durabill.schemas import PARTITIONER
from tests.broker.traffic_kit import Pair
from tests.conftest import JARS_DIR
from tests.waiting import HANG_S, wait_until

INTERNAL = ("__consumer_offsets", "__transaction_state")
_ONE_COORDINATOR = {"offsets.topic.num.partitions": 1, "transaction.state.log.num.partitions": 1}


@dataclass(frozen=True, slots=True)
class Partition:
    """Who has a partition: the leader, and which brokers are in sync with it."""

    leader: int
    in_sync: frozenset[int]


class Replicated:
    """A running cluster of three. Each of the internal topics has one partition."""

    def __init__(self, kafka: LocalKafka, bootstrap_servers: str) -> None:
        self.kafka = kafka
        self.bootstrap_servers = bootstrap_servers
        self.config: dict[str, Any] = {
            "bootstrap.servers": bootstrap_servers,
            "reconnect.backoff.max.ms": 500,
            "topic.metadata.refresh.interval.ms": 1000,
            "metadata.max.age.ms": 1000,
        }
        self._away: int | None = None
        self._admin = AdminClient({**self.config, "log_level": 0})
        self._watcher = Consumer({**self.config, "group.id": "cluster-kit", "log_level": 0})

    def close(self) -> None:
        """Let go of the clients."""
        self._watcher.close()

    def _of_others(self) -> dict[str, Any]:
        """Return the configuration of a client that asks no frozen broker for its way."""
        nodes = [node for node in self.kafka.nodes() if node.number != self._away]
        return {**self.config, "bootstrap.servers": ",".join(node.address for node in nodes)}

    def partitions(self, topic: str) -> dict[int, Partition]:
        """Return who has each partition of a topic; empty while it doesn't exist."""
        admin = self._admin
        if self._away is not None:
            admin = AdminClient({**self._of_others(), "log_level": 0})
        found = admin.list_topics(topic, timeout=HANG_S).topics[topic].partitions
        return {
            number: Partition(each.leader, frozenset(each.isrs)) for number, each in found.items()
        }

    def leader(self, topic: str, partition: int = 0) -> int:
        """Return the number of the broker that leads a partition."""
        return self.partitions(topic)[partition].leader

    def wait_in_sync(self, *topics: str) -> None:
        """Wait until all replicas of all partitions of the topics are in sync."""

        def in_sync() -> bool:
            found = [each for topic in topics for each in self.partitions(topic).values()]
            return bool(found) and all(len(each.in_sync) == 3 for each in found)

        wait_until(in_sync, f"the replicas of {', '.join(topics)} are in sync")

    def coordinators(self) -> set[int]:
        """Return which brokers are coordinators of groups and of transactions."""
        consumer = Consumer({**self.config, "group.id": "anybody"})
        consumer.committed([TopicPartition("anything", 0)], timeout=HANG_S)
        consumer.close()
        Producer({**self.config, "transactional.id": "anybody"}).init_transactions(HANG_S)
        self.wait_in_sync(*INTERNAL)
        return {self.leader(topic) for topic in INTERNAL}

    def create_topics(
        self, leaders: Sequence[int], topics: Mapping[str, Mapping[str, str]]
    ) -> None:
        """Create topics with three replicas; `leaders` has the broker that leads each partition."""
        brokers = [node.number for node in self.kafka.nodes()]
        replicas = [[led, *(each for each in brokers if each != led)] for led in leaders]
        made = [
            NewTopic(
                name,
                len(leaders),
                replica_assignment=replicas,
                config={"min.insync.replicas": "2", **settings},
            )
            for name, settings in topics.items()
        ]
        for future in self._admin.create_topics(made).values():
            future.result(HANG_S)
        self.wait_in_sync(*topics)

    def visible_until(self, topic: str, partition: int = 0) -> int:
        """Return the offset before which consumers see records: the high watermark."""
        place = TopicPartition(topic, partition)
        found: int = self._watcher.get_watermark_offsets(place, timeout=HANG_S)[1]
        return found

    def append(self, topic: str, records: list[Pair], partition: int = 0) -> list[int]:
        """Append records to the leader's log alone (acks=1); return their offsets."""
        offsets: list[int] = []

        def note(error: KafkaError | None, message: Message) -> None:
            assert error is None, str(error)
            offset = message.offset()
            assert offset is not None
            offsets.append(offset)

        conf = {"acks": 1, "partitioner": PARTITIONER, "linger.ms": 0}
        producer = Producer({**self._of_others(), **conf})
        for key, value in records:
            producer.produce(topic, value, key, partition=partition, on_delivery=note)
        assert producer.flush(HANG_S) == 0
        return offsets

    @contextmanager
    def frozen(self, number: int) -> Iterator[Callable[[], float]]:
        """Freeze a broker for the block, which gets a clock of how long it has been so, in s.

        High watermarks can be asked for meanwhile if they were before.
        """
        began_s = time.monotonic()
        self.kafka.node(number).freeze()
        self._away = number
        try:
            yield lambda: time.monotonic() - began_s
        finally:
            self._away = None
            self.kafka.node(number).thaw()


@contextmanager
def replicated(folder: Path, **more: object) -> Iterator[Replicated]:
    """Three brokers around a block, with further settings by Kafka's names with underscores."""
    settings = {name.replace("_", "."): value for name, value in more.items()}
    kafka = LocalKafka(folder, brokers=3, jars_dir=JARS_DIR, more={**_ONE_COORDINATOR, **settings})
    try:
        made = Replicated(kafka, kafka.start())
        try:
            yield made
        finally:
            made.close()
    finally:
        kafka.remove()
