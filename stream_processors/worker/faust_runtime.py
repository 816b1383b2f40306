"""The runtime of a real worker: Faust's consumer and tables, and clients of confluent-kafka."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import faust
from faust.types import TP

from durabill.schemas import TOTAL_HEADER
from durabill.schemas.errors import ForeignTotals
from durabill.stream_processors.engine.checkpoint import SegmentsTopic
from durabill.stream_processors.kafka.fencing import open_producer
from durabill.stream_processors.kafka.group_offsets import read_group_offsets
from durabill.stream_processors.kafka.openings import read_openings
from durabill.stream_processors.kafka.reading import read_bounds, read_tails
from durabill.stream_processors.kafka.results import (
    IsResult,
    is_order_record,
    is_total_record,
)
from durabill.stream_processors.kafka.topic_ids import find_topic_ids
from durabill.stream_processors.settings import Settings, checkpoint_topic
from durabill.stream_processors.worker.clock import elapsed_s
from durabill.stream_processors.worker.driver import Consumer
from durabill.stream_processors.worker.output_topic import OutputTopic, looks_for_others
from durabill.stream_processors.worker.partition_writer import KafkaPartitionWriter
from durabill.stream_processors.worker.ports import OpeningsTail, PublishedOpening, Tail

ABORT_PATIENCE_S = 5.0
"""So long a worker that ends waits for its open transactions to be aborted."""

T = TypeVar("T")


class FaustRuntime:
    """One worker's runtime. The methods promise what `ports.Runtime` says.

    `app` is set once it exists: the app needs the runtime, and the runtime the app.
    """

    def __init__(
        self,
        settings: Settings,
        segments_topic: SegmentsTopic,
        on_fatal: Callable[[BaseException], None],
        totals_framing: bytes = TOTAL_HEADER,
    ) -> None:
        self.segments_topic = segments_topic
        self.app: faust.App
        self._settings = settings
        self._on_fatal = on_fatal
        self._totals_framing = totals_framing
        self._writers: list[KafkaPartitionWriter] = []

    @property
    def consumer(self) -> Consumer:
        """Return the app's consumer, which is of our own transport."""
        consumer = self.app.consumer
        assert isinstance(consumer, Consumer)
        return consumer

    def _tp(self, partition: int) -> TP:
        return TP(self.segments_topic.name, partition)

    def assigned(self) -> list[int]:
        """Return the partitions of segments that are assigned."""
        return [
            tp.partition
            for tp in self.consumer.assignment()
            if tp.topic == self.segments_topic.name
        ]

    async def committed(self, partitions: Sequence[int]) -> dict[int, int | None]:
        """Ask the group's coordinator by another client.

        Faust's consumer answers no more once it has been told to stop, and it waits for us then.
        """
        kafka, group = self._settings.librdkafka(), self._settings.application_id
        return await asyncio.to_thread(
            read_group_offsets, kafka, group, self.segments_topic.name, partitions
        )

    async def commit(self, offsets: Mapping[int, int]) -> bool:
        """Commit as a member of the group, with the group's generation."""
        return await self.consumer.commit_offsets(
            {self._tp(partition): offset for partition, offset in offsets.items()}
        )

    async def log_bounds(self, partitions: Sequence[int]) -> dict[int, tuple[int, int]]:
        """Ask by another client: Faust's would wait behind a fetch that waits for records."""
        return await asyncio.to_thread(
            read_bounds,
            self._settings.librdkafka(),
            self._settings.application_id,
            self.segments_topic.name,
            partitions,
        )

    def start_at(self, offsets: Mapping[int, int]) -> None:
        """Tell the driver, which seeks there when Faust seeks to the group's offsets."""
        self.consumer.starts = {self._tp(each): offset for each, offset in offsets.items()}

    async def read_entries(self, partitions: Sequence[int]) -> dict[bytes, bytes]:
        """Read the changelog, and leave nothing of it for Faust to recover."""
        tails = await self._read_changelog(self._settings.checkpoint_topic, partitions)
        topic = self._settings.checkpoint_topic
        ends = {TP(topic, partition): tail.end for partition, tail in tails.items()}
        self.consumer.recovered_ends.update(ends)
        return _latest(tails)

    async def read_previous_entries(self, partitions: Sequence[int]) -> dict[bytes, bytes]:
        """Read the changelog of the previous application id."""
        previous = self._settings.previous_application_id
        if not previous:
            return {}
        return _latest(await self._read_changelog(checkpoint_topic(previous), partitions))

    async def _read_changelog(self, topic: str, partitions: Sequence[int]) -> dict[int, Tail]:
        kafka, group = self._settings.librdkafka(), self._settings.application_id
        starts = dict.fromkeys(partitions, 0)
        return await _read_tails(kafka, group, topic, starts)

    def log_end(self, partition: int) -> int | None:
        """Ask the driver, which notes it with every fetch."""
        return self.consumer.log_end(self._tp(partition))

    def high_watermark(self, partition: int) -> int | None:
        """Ask the driver, which notes it with every fetch."""
        return self.consumer.high_watermark(self._tp(partition))

    def hold(self, partition: int, *, held: bool) -> None:
        """Tell the driver, which hands out nothing of a held partition."""
        change = self.consumer.held.add if held else self.consumer.held.discard
        change(self._tp(partition))

    def elapsed_s(self) -> float:
        """Ask the system."""
        return elapsed_s()

    async def open_writer(self, partition: int) -> KafkaPartitionWriter:
        """Fence in a thread: the coordinator may take a second, and aborts what was open."""
        name = f"{self._settings.application_id}-{partition}"
        producer = await asyncio.to_thread(open_producer, self._settings.librdkafka(), name)
        writer = KafkaPartitionWriter(
            producer,
            partition=partition,
            totals=self._output(self._settings.totals_topic, partition, is_total_record),
            orders=self._output(self._settings.orders_topic, partition, is_order_record),
            checkpoint_topic=self._settings.checkpoint_topic,
            on_fatal=self._end,
            totals_framing=self._totals_framing,
            segments_topic_id=self.segments_topic.topic_id,
        )
        self._writers = [each for each in self._writers if each.is_at_work()] + [writer]
        return writer

    def _end(self, error: BaseException) -> None:
        """End the worker; where another application is to go on, leave it no open transaction.

        It could not tell such a transaction from one that is about to be committed, and the broker
        aborts it only after a minute.
        """
        if isinstance(error, ForeignTotals):
            for each in self._writers:
                each.close()
            until_s = elapsed_s() + ABORT_PATIENCE_S
            for each in self._writers:
                each.join(until_s - elapsed_s())
        self._on_fatal(error)

    def _output(self, topic: str, partition: int, is_result: IsResult) -> OutputTopic:
        kafka, group = self._settings.librdkafka(), self._settings.application_id
        return OutputTopic(topic, looks_for_others(kafka, group, topic, partition, is_result))

    async def totals_since(self, starts: Mapping[int, int | None]) -> dict[int, Tail]:
        """Read them with another consumer."""
        kafka, group = self._settings.librdkafka(), self._settings.application_id
        known = {each: start or 0 for each, start in starts.items()}
        return await _read_tails(kafka, group, self._settings.totals_topic, known)

    async def openings_since(self, starts: Mapping[int, int | None]) -> dict[int, OpeningsTail]:
        """Read them with another consumer."""
        kafka, group = self._settings.librdkafka(), self._settings.application_id
        known = {each: start or 0 for each, start in starts.items()}
        topic = self._settings.orders_topic
        tails = await asyncio.to_thread(read_openings, kafka, group, topic, known)
        return {
            partition: OpeningsTail(
                [PublishedOpening(*each) for each in tail.found], tail.end, tail.strays
            )
            for partition, tail in tails.items()
        }

    async def aside(self, work: Callable[..., T], *arguments: Any) -> T:
        """Work in a thread."""
        return await asyncio.to_thread(work, *arguments)


async def _read_tails(
    kafka: Mapping[str, Any], group: str, topic: str, starts: Mapping[int, int]
) -> dict[int, Tail]:
    tails = await asyncio.to_thread(read_tails, kafka, group, topic, starts)
    return {partition: Tail(*tail) for partition, tail in tails.items()}


def _latest(tails: Mapping[int, Tail]) -> dict[bytes, bytes]:
    latest: dict[bytes, bytes | None] = {}
    for tail in tails.values():
        latest.update((key, content) for _, key, content in tail.records)
    return {key: content for key, content in latest.items() if content is not None}


def find_segments_topic(settings: Settings, partitions: int) -> SegmentsTopic:
    """Return the segments topic as checkpoints name it, with the topic ids that the broker has."""
    names = settings.segments_topic, settings.checkpoint_topic
    ids = find_topic_ids(settings.librdkafka(), *names)
    return SegmentsTopic(names[0], ids[names[0]], partitions, ids[names[1]])
