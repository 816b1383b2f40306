"""What a worker needs of Faust and of Kafka, and how it gets it from them.

The simulation (tests/sim) has a `Runtime` of its own and runs the same worker on it.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import faust
from confluent_kafka.admin import AdminClient
from faust.types import TP

from durabill.stream_processors.engine.table import Effects, Total
from durabill.stream_processors.kafka.errors import Right, patiently
from durabill.stream_processors.kafka.fencing import open_producer
from durabill.stream_processors.kafka.group_offsets import read_group_offsets
from durabill.stream_processors.kafka.options import quiet
from durabill.stream_processors.kafka.reading import Tail, read_bounds, read_tails
from durabill.stream_processors.kafka.topic_ids import topic_ids
from durabill.stream_processors.settings import Settings, checkpoint_topic
from durabill.stream_processors.worker.checkpoint import Origin
from durabill.stream_processors.worker.clock import elapsed_s
from durabill.stream_processors.worker.driver import Consumer
from durabill.stream_processors.worker.partition_writer import Entry, Outlet, finds_foreign

T = TypeVar("T")


class Exit(Protocol):
    """A partition's fenced way out; see `outlet.Outlet`, which explains its methods."""

    position: int

    def starts_at(self, totals_end: int) -> None:
        """Take note where the totals ended when they were read."""

    def put_totals(self, totals: Sequence[Total]) -> None:
        """Queue totals."""

    def put_entries(self, entries: Sequence[Entry]) -> None:
        """Queue entries of the checkpoint."""

    async def flushed(self) -> None:
        """Return once everything put so far is committed; raise WriterClosed if it can't be."""

    async def has_room(self) -> None:
        """Return once little enough is queued."""

    def waiting_s(self) -> float:
        """Return for how long the oldest record that is not committed has been waiting."""

    def close(self) -> None:
        """Let go; what has not been committed is undone."""

    async def closed(self) -> None:
        """Return once it has let go."""


class Letters(Protocol):
    """Where dead letters and records to be sent on go; see `publisher.Publisher`."""

    async def publish(self, partition: int, effects: Effects) -> None:
        """Queue the dead letters and forwards of a partition."""

    def publish_mark(
        self, partition: int, value: bytes, on_told: Callable[[int | None], None]
    ) -> None:
        """Append a clock mark; `on_told` gets its append time (ms), None if it was not written."""

    def cut(self) -> int:
        """Close the current epoch and return it."""

    async def delivered(self, epoch: int) -> None:
        """Return once every record of the epoch, and before, has been acknowledged."""

    def stop(self) -> None:
        """Flush what is queued, and end."""


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

    async def read_previous_entries(self, partitions: Sequence[int]) -> dict[bytes, bytes]:
        """Return the same of the application id whose place we take, if the settings name one."""

    def log_end(self, partition: int) -> int | None:
        """Return where the committed log of a partition ended by the broker's last answer."""

    def high_watermark(self, partition: int) -> int | None:
        """Return where a partition's log ended then, open transactions included."""

    def hold(self, partition: int, *, held: bool) -> None:
        """Have no more read of a partition, or go on with it."""

    def elapsed_s(self) -> float:
        """Return the seconds since some fixed moment, suspends included."""

    async def open_exit(self, partition: int) -> Exit:
        """Return the partition's way out, with every other one fenced."""

    async def totals_since(self, starts: Mapping[int, int | None]) -> dict[int, Tail]:
        """Return the committed totals of partitions from their starts (None: all) on."""

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
        tails = await self._read_changelog(self._settings.checkpoint_topic, partitions)
        topic = self._settings.checkpoint_topic
        ends = {TP(topic, partition): tail.end for partition, tail in tails.items()}
        self.consumer.recovered_ends.update(ends)
        return _latest(tails)

    async def read_previous_entries(self, partitions: Sequence[int]) -> dict[bytes, bytes]:
        """Read the changelog of the other application id."""
        previous = self._settings.previous_application_id
        if not previous:
            return {}
        return _latest(await self._read_changelog(checkpoint_topic(previous), partitions))

    async def _read_changelog(self, topic: str, partitions: Sequence[int]) -> dict[int, Tail]:
        kafka, group = self._settings.librdkafka(), self._settings.application_id
        starts = dict.fromkeys(partitions, 0)
        return await asyncio.to_thread(read_tails, kafka, group, topic, starts)

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
            find_foreign=finds_foreign(
                self._settings.librdkafka(),
                self._settings.application_id,
                self._settings.totals_topic,
                partition,
            ),
        )

    async def totals_since(self, starts: Mapping[int, int | None]) -> dict[int, Tail]:
        """Read them with a consumer of their own."""
        kafka, group = self._settings.librdkafka(), self._settings.application_id
        known = {each: start or 0 for each, start in starts.items()}
        return await asyncio.to_thread(read_tails, kafka, group, self._settings.totals_topic, known)

    async def aside(self, work: Callable[..., T], *arguments: Any) -> T:
        """Work in a thread."""
        return await asyncio.to_thread(work, *arguments)


def _latest(tails: Mapping[int, Tail]) -> dict[bytes, bytes]:
    latest: dict[bytes, bytes | None] = {}
    for tail in tails.values():
        latest.update((key, content) for _, key, content in tail.records)
    return {key: content for key, content in latest.items() if content is not None}


def find_origin(settings: Settings, partitions: int) -> Origin:
    """Return what checkpoints of the segments topic are marked with."""
    kafka = settings.librdkafka()
    admin = AdminClient(quiet(kafka))
    names = [settings.segments_topic, settings.checkpoint_topic]
    rights = (Right("Describe", "topic", each) for each in names)
    what = "the ids of the topics"
    ids = patiently(lambda s: topic_ids(admin, names, s), what, kafka, *rights)
    return Origin(names[0], ids[names[0]], partitions, ids[names[1]])
