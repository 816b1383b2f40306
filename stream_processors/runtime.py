"""What a worker needs of Faust and of Kafka, and how it gets it from them.

The simulation (tests/sim) has a `Runtime` of its own and runs the same worker on it.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import faust
from confluent_kafka import TopicCollection
from confluent_kafka.admin import AdminClient
from faust.types import TP

from stream_processors.checkpoint import Origin
from stream_processors.clients import Right, patiently, quiet
from stream_processors.driver import Consumer
from stream_processors.outlet import Entry, Outlet
from stream_processors.reading import (
    Tail,
    open_producer,
    read_bounds,
    read_group_offsets,
    read_tails,
)
from stream_processors.settings import Settings
from stream_processors.table import Total

T = TypeVar("T")


class Exit(Protocol):
    """A partition's fenced way out; see `outlet.Outlet`, which explains its methods."""

    position: int

    def put_totals(self, totals: Sequence[Total]) -> None:
        """Queue totals."""

    def put_entries(self, entries: Sequence[Entry]) -> None:
        """Queue entries of the checkpoint."""

    async def flushed(self) -> None:
        """Return once everything put so far is committed."""

    async def has_room(self) -> None:
        """Return once little enough is queued."""

    def waiting_s(self) -> float:
        """Return for how long the oldest record that is not committed has been waiting."""

    def close(self) -> None:
        """Let go; what has not been committed is undone."""

    async def closed(self) -> None:
        """Return once it has let go."""


class Runtime(Protocol):
    """The group, the log, the changelog and the totals, as one worker sees them."""

    origin: Origin

    def assigned(self) -> list[int]:
        """Return the partitions that the group has given us."""

    async def committed(self, partitions: Sequence[int]) -> dict[int, int | None]:
        """Return the group's next offset of each partition, None where it has none."""

    async def commit(self, offsets: Mapping[int, int]) -> bool:
        """Move the group's offsets; return False if the partitions are no longer ours."""

    def start_at(self, offsets: Mapping[int, int]) -> None:
        """Have the logs of the partitions assigned last read from these offsets on."""

    async def log_bounds(self, partitions: Sequence[int]) -> dict[int, tuple[int, int]]:
        """Return what the log of each partition holds: [first offset, next offset)."""

    async def read_entries(self, partitions: Sequence[int]) -> dict[bytes, bytes]:
        """Return the entries that the partitions of the changelog hold now."""

    def silent_since_ms(self, partition: int, next_offset: int) -> int | None:
        """Return until when a partition holds nothing from an offset on; see the driver's."""

    def log_end(self, partition: int) -> int | None:
        """Return where a partition's log ended by the broker's last answer."""

    async def open_exit(self, partition: int) -> Exit:
        """Return the partition's way out, with every other one fenced."""

    async def totals_since(self, starts: Mapping[int, int | None]) -> dict[int, Tail]:
        """Return the committed totals of partitions from their starts (None: their ends) on."""

    async def aside(self, work: Callable[..., T], *arguments: Any) -> T:
        """Do work that needs no interpreter lock beside the event loop."""


class FaustRuntime:
    """The runtime that Faust's consumer and tables and confluent-kafka's clients make up."""

    def __init__(
        self,
        settings: Settings,
        origin: Origin,
        on_fatal: Callable[[BaseException], None],
    ) -> None:
        self.origin = origin
        self.app: faust.App
        self._settings = settings
        self._on_fatal = on_fatal

    @property
    def consumer(self) -> Consumer:
        """Return the app's consumer, which is of our own transport."""
        consumer = self.app.consumer
        assert isinstance(consumer, Consumer)
        return consumer

    def _tp(self, partition: int) -> TP:
        return TP(self.origin.topic, partition)

    def assigned(self) -> list[int]:
        """Return the partitions of segments that are assigned."""
        return [tp.partition for tp in self.consumer.assignment() if tp.topic == self.origin.topic]

    async def committed(self, partitions: Sequence[int]) -> dict[int, int | None]:
        """Ask the group's coordinator by a client of its own.

        Faust's consumer answers no more once it has been told to stop, and it waits for us then.
        """
        kafka, group = self._settings.librdkafka(), self._settings.application_id
        return await asyncio.to_thread(
            read_group_offsets, kafka, group, self.origin.topic, partitions
        )

    async def commit(self, offsets: Mapping[int, int]) -> bool:
        """Commit as a member of the group, so with its generation."""
        return await self.consumer.commit_offsets(
            {self._tp(partition): offset for partition, offset in offsets.items()}
        )

    async def log_bounds(self, partitions: Sequence[int]) -> dict[int, tuple[int, int]]:
        """Ask by a client of its own: Faust's would wait behind a fetch that waits for news."""
        return await asyncio.to_thread(
            read_bounds,
            self._settings.librdkafka(),
            self._settings.application_id,
            self.origin.topic,
            partitions,
        )

    def start_at(self, offsets: Mapping[int, int]) -> None:
        """Tell the driver, which seeks when Faust goes to what it takes for the group's offsets."""
        self.consumer.starts = {self._tp(each): offset for each, offset in offsets.items()}

    async def read_entries(self, partitions: Sequence[int]) -> dict[bytes, bytes]:
        """Read the changelog of the table, and leave nothing of it for Faust to recover."""
        topic, kafka = self._settings.checkpoint_topic, self._settings.librdkafka()
        group, starts = self._settings.application_id, dict.fromkeys(partitions, 0)
        tails = await asyncio.to_thread(read_tails, kafka, group, topic, starts)
        ends = {TP(topic, partition): tail.end for partition, tail in tails.items()}
        self.consumer.recovered_ends.update(ends)
        latest: dict[bytes, bytes | None] = {}
        for tail in tails.values():
            latest.update((key, content) for _, key, content in tail.records)
        return {key: content for key, content in latest.items() if content is not None}

    def silent_since_ms(self, partition: int, next_offset: int) -> int | None:
        """Ask the driver, which notes when the broker was asked for what it answered."""
        return self.consumer.silent_since_ms(self._tp(partition), next_offset)

    def log_end(self, partition: int) -> int | None:
        """Ask the driver, which notes it with every fetch."""
        return self.consumer.log_end(self._tp(partition))

    async def open_exit(self, partition: int) -> Outlet:
        """Fence in a thread: the coordinator may take a second, and undoes what was open."""
        name = f"{self._settings.application_id}-{partition}"
        producer = await asyncio.to_thread(open_producer, self._settings.librdkafka(), name)
        return Outlet(
            producer,
            partition=partition,
            totals_topic=self._settings.totals_topic,
            checkpoint_topic=self._settings.checkpoint_topic,
            on_fatal=self._on_fatal,
        )

    async def totals_since(self, starts: Mapping[int, int | None]) -> dict[int, Tail]:
        """Read them with a consumer of their own."""
        kafka, group = self._settings.librdkafka(), self._settings.application_id
        return await asyncio.to_thread(
            read_tails, kafka, group, self._settings.totals_topic, starts
        )

    async def aside(self, work: Callable[..., T], *arguments: Any) -> T:
        """Work in a thread."""
        return await asyncio.to_thread(work, *arguments)


def find_origin(settings: Settings, partitions: int) -> Origin:
    """Return what checkpoints of the segments topic are marked with."""
    kafka = settings.librdkafka()
    admin = AdminClient(quiet(kafka))
    names = [settings.segments_topic, settings.checkpoint_topic]

    def ask(timeout_s: float) -> list[str]:
        asked = admin.describe_topics(TopicCollection(names), request_timeout=timeout_s)
        return [str(asked[name].result(timeout_s + 1).topic_id or "") for name in names]

    rights = (Right("Describe", "topic", each) for each in names)
    ids = patiently(ask, "the ids of the topics", kafka, *rights)
    return Origin(settings.segments_topic, ids[0], partitions, ids[1])
