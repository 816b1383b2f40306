"""The bench's own Kafka, and topics filled with traffic."""

import contextlib
import itertools
import math
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from durabill.deploy.local.kafka import LocalKafka
from durabill.deploy.topics import create_topics
from durabill.schemas import PARTITIONER, decode_total
from durabill.schemas.topics import Topics
from tests.bench.processes import cpu_s
from tests.bench.traffic import Entry, Sent, Shape, generate

ROOT = Path(__file__).resolve().parents[2]
STATE_DIR = ROOT / ".durabill"
PARTITIONS = 4
TIMEOUT_S = 60.0

PRODUCER = {
    # As a fleet's gateways send at high load: large batches, which lz4 makes small.
    "partitioner": PARTITIONER,
    "acks": "all",
    "enable.idempotence": True,
    "compression.type": "lz4",
    "linger.ms": 50,
    "batch.size": 1024 * 1024,
    "batch.num.messages": 10_000,
    "queue.buffering.max.messages": 1_000_000,
    "queue.buffering.max.kbytes": 512 * 1024,
}


@dataclass(frozen=True)
class Names:
    """The topics of one deployment; the checkpoint topic follows from the application id."""

    application_id: str
    segments: str
    totals: str
    dead_letters: str

    @property
    def checkpoint(self) -> str:
        """Return the worker's changelog topic."""
        return f"{self.application_id}-checkpoint-changelog"

    @property
    def orders(self) -> str:
        """Return the topic of the orders that were opened."""
        return f"{self.application_id}.orders"

    @property
    def topics(self) -> Topics:
        """Return all of them."""
        return Topics(
            self.segments, self.totals, self.dead_letters, self.checkpoint, orders=self.orders
        )


@dataclass
class Stream:
    """A segments topic filled with traffic."""

    shape: Shape
    topic: str
    sent: Sent
    bytes_a_record: float = 0.0
    ends: dict[int, int] = field(default_factory=dict)


class Lab:
    """A Kafka of the bench's own in a folder that goes away with it."""

    def __init__(self, say: Any, budget_s: float = math.inf) -> None:
        self.say = say
        self._deadline_s = time.monotonic() + budget_s
        self.dir = Path(tempfile.mkdtemp(prefix=f"durabill-bench-{os.getpid()}-"))
        self.kafka: dict[str, Any] = {}
        self._broker = LocalKafka(self.dir, jars_dir=STATE_DIR / "jars", heap_mb=1024, say=say)
        self._serial = itertools.count(1)

    def __enter__(self) -> "Lab":
        try:
            self.servers = self._broker.start()
        except BaseException:
            self.__exit__()
            raise
        self.kafka = {"bootstrap.servers": self.servers, "log_level": 0}
        self.admin = AdminClient(self.kafka)
        return self

    def __exit__(self, *_: object) -> None:
        self._broker.stop()
        shutil.rmtree(self.dir, ignore_errors=True)

    def is_late(self) -> bool:
        """Tell whether the time for the whole bench is over: then nothing new is begun."""
        return time.monotonic() > self._deadline_s

    def broker_cpu_s(self) -> float:
        """Return the CPU-seconds that the broker has used so far."""
        pid = self._broker.status().pid
        return 0.0 if pid is None else cpu_s(pid)

    def names(self, prefix: str, segments: str | None = None) -> Names:
        """Create the topics of a new deployment; `segments` is reused where given."""
        mark = f"{prefix}-{next(self._serial)}"
        names = Names(mark, segments or f"{mark}.segments", f"{mark}.totals", f"{mark}.dead")
        create_topics(
            self.kafka,
            names.topics,
            partitions=PARTITIONS,
        )
        return names

    def drop(self, *topics: str) -> None:
        """Delete topics, to give back their disk space."""
        for future in self.admin.delete_topics(list(topics)).values():
            with contextlib.suppress(KafkaException):
                future.result(timeout=TIMEOUT_S)

    def preload(self, shape: Shape, records: int, seed: int = 1) -> Stream:
        """Make a segments topic with about `records` records of traffic."""
        stream = Stream(shape, self.names(shape.name).segments, Sent())
        begun = time.monotonic()
        producer = Producer(self.kafka | PRODUCER)
        now_ms = time.time_ns() // 10**6
        send(producer, stream.topic, generate(shape, records, now_ms, seed, stream.sent))
        producer.flush()
        stream.ends = self.ends(stream.topic)
        assert sum(stream.ends.values()) == stream.sent.records
        stream.bytes_a_record = self._bytes(stream.topic) / max(1, stream.sent.records)
        self.say(
            f"{stream.sent.records:,} records of '{shape.title}' in {time.monotonic() - begun:.0f}"
            f" s, {stream.bytes_a_record:.0f} bytes each in the log"
        )
        return stream

    def ends(self, topic: str) -> dict[int, int]:
        """Return the next offset of each partition, by a consumer that sees committed records."""
        with contextlib.closing(Consumer(self.kafka | {"group.id": "bench-ends"})) as consumer:
            return {
                partition: consumer.get_watermark_offsets(
                    TopicPartition(topic, partition), timeout=TIMEOUT_S
                )[1]
                for partition in range(PARTITIONS)
            }

    def committed(self, group: str, topic: str) -> dict[int, int]:
        """Return a group's committed next offsets; negative where there is none."""
        partitions = [TopicPartition(topic, each) for each in range(PARTITIONS)]
        with contextlib.closing(Consumer(self.kafka | {"group.id": group})) as consumer:
            return {
                each.partition: each.offset
                for each in consumer.committed(partitions, timeout=TIMEOUT_S)
            }

    def count_totals(self, topic: str) -> tuple[int, int]:
        """Return (how many totals, sum of their durations in ms), the last revision of each."""
        latest: dict[str, tuple[int, int]] = {}
        for value in self.values(topic):
            total = decode_total(value)
            known = latest.get(total.service_order_number, (0, 0))
            latest[total.service_order_number] = max(known, (total.revision, total.duration_ms))
        return len(latest), sum(duration_ms for _, duration_ms in latest.values())

    def values(self, topic: str) -> Iterator[bytes]:
        """Yield the values of all records that are in a topic now."""
        ends = {partition: end for partition, end in self.ends(topic).items() if end}
        conf = {"group.id": "bench-read", "enable.auto.commit": False}
        conf |= {"isolation.level": "read_committed", "enable.partition.eof": True}
        with contextlib.closing(Consumer(self.kafka | conf)) as consumer:
            consumer.assign([TopicPartition(topic, partition, 0) for partition in ends])
            while ends:
                for message in consumer.consume(10_000, timeout=1):
                    if message.error() is not None:
                        ends.pop(message.partition() or 0, None)
                    elif (value := message.value()) is not None:
                        yield value

    def _bytes(self, topic: str) -> int:
        folders = (self._broker.data_dir / "kafka" / "logs").glob(f"{topic}-*")
        return sum(log.stat().st_size for each in folders for log in each.glob("*.log"))


def send(producer: Producer, topic: str, ticks: Iterable[list[Entry]]) -> None:
    """Produce the records of all ticks, as fast as they are taken."""
    produce = producer.produce
    for entries in ticks:
        for key, value in entries:
            while True:
                try:
                    produce(topic, value, key)
                    break
                except BufferError:
                    producer.poll(0.05)
        producer.poll(0)
