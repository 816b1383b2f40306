"""The seams of a worker: what its own code needs of the group, the log and the output topics.

`processor`, `partition_task`, `checkpoint` and `recovery` know these Protocols alone: they import
neither Faust nor a Kafka client. A worker runs on `FaustRuntime`, `KafkaPartitionWriter` and
`KafkaSideOutput`; the simulation (tests/sim) runs the same code on implementations of its own.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

from durabill.stream_processors.engine.checkpoint import SegmentsTopic
from durabill.stream_processors.engine.effects import Opening
from durabill.stream_processors.engine.table import Effects, Total

T = TypeVar("T")

Entry = tuple[bytes, bytes | None]
"""A checkpoint entry's key and content."""


class WriterClosed(Exception):
    """The writer was closed: what had been put and not been committed never will be."""


class Tail(NamedTuple):
    """What a partition holds from some offset on, as (offset, key, value), and where it ends."""

    records: list[tuple[int, bytes, bytes | None]]
    end: int


class PublishedOpening(NamedTuple):
    """A record of the orders topic at `offset`, of the opening at `source_offset` of the log.

    `topic_id` is the id of the segments topic that had it, "" where it isn't known.
    """

    offset: int
    source_offset: int
    key: bytes
    value: bytes
    topic_id: str = ""


class OpeningsTail(NamedTuple):
    """What a partition of the orders topic holds from some offset on, and where it ends."""

    openings: list[PublishedOpening]
    end: int
    strays: Sequence[int] = ()
    """The offsets of records that are no worker's."""


class Ends(NamedTuple):
    """Where a partition of each output topic ends: the offset that the next record gets."""

    totals: int
    orders: int


class PartitionWriter(Protocol):
    """Writes the openings, totals and checkpoint of one partition, in the order of their putting.

    Opening a writer fences every other writer of the partition.
    """

    @property
    def ends(self) -> Ends:
        """Return what follows the last total, and the last opening, known to have been written."""

    @property
    def strays(self) -> int:
        """Return how many records of others in the outputs were met that are no results."""

    def starts_at(self, ends: Ends) -> None:
        """Note where the outputs ended when they were read: our first records go there."""

    def put_openings(self, openings: Sequence[Opening]) -> None:
        """Queue openings, each with headers that say in which log it lies, and where."""

    def put_totals(self, totals: Sequence[Total]) -> None:
        """Queue totals."""

    def put_entries(self, entries: Sequence[Entry]) -> None:
        """Queue entries of the checkpoint."""

    async def flushed(self) -> None:
        """Return once everything put so far is committed; raise WriterClosed if it can't be."""

    async def wait_for_room(self) -> None:
        """Return once little enough is queued: this holds the stream back where brokers are slow.

        A closed writer holds nobody back, though its queue stays full.
        """

    def waiting_s(self) -> float:
        """Return for how long the oldest uncommitted record has been waiting."""

    def close(self) -> None:
        """Stop writing, without waiting for it; what has not been committed is aborted."""

    async def closed(self) -> None:
        """Return once it has stopped."""


class SideOutput(Protocol):
    """Publishes dead letters, forwarded records and clock marks, for all partitions of a worker.

    Every dead letter and forward belongs to the flush generation in which it was queued.
    """

    async def publish(self, partition: int, effects: Effects) -> None:
        """Queue the dead letters and forwards of a partition, in their order."""

    def publish_mark(
        self, partition: int, value: bytes, on_told: Callable[[int | None], None]
    ) -> None:
        """Append a clock mark; `on_told` gets its append time (ms), None if it was not written."""

    def close_generation(self) -> int:
        """Close the current flush generation and return it: all queued so far is in it or older."""

    async def delivered(self, generation: int) -> None:
        """Return once every record of `generation` and of older ones has been acknowledged."""

    def stop(self) -> None:
        """Flush what is queued, and end."""


class Runtime(Protocol):
    """The group, the log, the changelog and the outputs, as one worker sees them."""

    segments_topic: SegmentsTopic

    def assigned(self) -> list[int]:
        """Return the partitions that the group has assigned to us."""

    async def committed(self, partitions: Sequence[int]) -> dict[int, int | None]:
        """Return the group's next offset of each partition, None where it has none."""

    async def commit(self, offsets: Mapping[int, int]) -> bool:
        """Move the group's offsets; return False if the partitions are no longer ours."""

    def start_at(self, offsets: Mapping[int, int]) -> None:
        """Have the partitions assigned last read from these offsets on."""

    async def log_bounds(self, partitions: Sequence[int]) -> dict[int, tuple[int, int]]:
        """Return what the log of each partition holds: [first offset, next offset)."""

    async def read_entries(self, partitions: Sequence[int]) -> dict[bytes, bytes]:
        """Return the entries that these partitions of the changelog hold now."""

    async def read_previous_entries(self, partitions: Sequence[int]) -> dict[bytes, bytes]:
        """Return the entries of the previous application id, none if the settings name none."""

    def log_end(self, partition: int) -> int | None:
        """Return where the committed log of a partition ended by the broker's last answer."""

    def high_watermark(self, partition: int) -> int | None:
        """Return where its log ended by that answer, open transactions included."""

    def hold(self, partition: int, *, held: bool) -> None:
        """Pause the reading of a partition, or resume it."""

    def elapsed_s(self) -> float:
        """Return the seconds since some fixed moment, suspends included."""

    async def open_writer(self, partition: int) -> PartitionWriter:
        """Return a writer of the partition, with every other one fenced."""

    async def totals_since(self, starts: Mapping[int, int | None]) -> dict[int, Tail]:
        """Return the committed totals of partitions from their starts (None: all) on."""

    async def openings_since(self, starts: Mapping[int, int | None]) -> dict[int, OpeningsTail]:
        """Return the committed openings of the orders topic from their starts (None: all) on."""

    async def aside(self, work: Callable[..., T], *arguments: Any) -> T:
        """Do work that needs no interpreter lock beside the event loop."""
