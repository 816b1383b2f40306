"""Faust's aiokafka transport, with one change: it delivers whole record batches as one message.

Faust spends about 50 µs on each message. aiokafka keeps what it fetched as raw record batches until
`PartitionRecords` unpacks them. For the segments topic alone, this transport delivers everything
that a fetch brought for a partition as ONE message: its value is a `Chunk`, its offset is the
chunk's last. Changelogs and everything else stay as they are in Faust.

It is registered as `faust.transports` entry point `durabill`. An app uses it by a broker address
`durabill://host:port`, and names its topic in `app.segments_topic_name` and that topic's number of
partitions in `app.segments_partitions`.

Where it reaches into its libraries (faust-streaming 0.15.3, aiokafka 0.14.0; both pinned):

* aiokafka's fetcher wraps the fetched bytes in `MemoryRecords`. We replace that name in the
  fetcher's module by a class that behaves the same and keeps the bytes.
* The fetcher has a dictionary of fetched records. We replace it by one that exchanges the unpacking
  iterator of segments for ours as it is stored.
* Faust tracks an ack for each message and fills gaps. A batch message needs a single offset
  instead: messages of segments are never acked, and `commit_offsets` commits the checkpoint's.
* Faust asks aiokafka for the records of a set of partitions, and changes that set meanwhile. When a
  recovery ends the set is empty for a while, which aiokafka takes for "all": it would deliver
  segments and move on, and Faust would drop them. Faust also empties its queues at the very end of
  a recovery, after it has asked for records. `ActivePartitions` prevents both losses.
* Faust's recovery reads a changelog up to the record before its end. A changelog that is written in
  transactions ends with a marker, for which Faust would wait forever. What it recovers may also be
  older than what the last owner wrote, and its errors are only logged. So the worker reads the
  changelog itself, and `Recovered` tells Faust that nothing is left to recover.
* A partition can be held (`Consumer.held`): nothing more of it is delivered, or fetched.
* Where the log no longer holds the next offset, aiokafka would go on at the log's start. Where the
  topic was recreated or given partitions, it would go on with those. `ConsumerThread.fault` ends
  the worker instead.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping, MutableMapping, Set
from typing import Any

import aiokafka.consumer.fetcher as fetcher_module
import faust
from aiokafka.consumer.fetcher import FetchResult, PartitionRecords
from aiokafka.errors import CorruptRecordException
from aiokafka.record.memory_records import MemoryRecords
from aiokafka.record.util import calc_crc32c
from aiokafka.structs import ConsumerRecord
from faust.transport.drivers import aiokafka as base
from faust.types import TP

from durabill.schemas import partition_for
from durabill.schemas.errors import (
    BEGIN_ANEW,
    NEW_TOPICS,
    RESTORE_OR_START_ANEW,
    ContractError,
    SegmentsLost,
)
from durabill.stream_processors.engine.batch import CRC_FROM, Chunk
from durabill.stream_processors.engine.standing import Standing, standings, whole_batches
from durabill.stream_processors.worker.connecting import (
    PatientConsumer,
    PatientConsumerThread,
    PatientProducer,
)

METADATA_AGE_MAX_MS = 30_000
"""How long a change of the partition count may go unnoticed."""

GONE_AFTER_S = 10.0
"""For how long metadata must lack a topic before it counts as deleted."""


class RawMemoryRecords:
    """aiokafka's MemoryRecords, which also keeps the bytes that it was made of."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self._inner = MemoryRecords(data)
        self.has_next = self._inner.has_next
        self.next_batch = self._inner.next_batch
        self.size_in_bytes = self._inner.size_in_bytes


# The one change to a module that is not ours; see above. Made once, before any consumer.
fetcher_module.MemoryRecords = RawMemoryRecords


class ChunkRecords(PartitionRecords):  # type: ignore[misc]  # aiokafka is untyped
    """What a fetch brought for one partition of segments, as one record at most: a chunk."""

    @classmethod
    def take_over(cls, plain: PartitionRecords) -> "ChunkRecords":
        """Return the same fetch, to be delivered as a chunk; nothing has been unpacked yet."""
        plain._records_iterator = None  # a reference cycle, which would keep the bytes
        return cls(
            plain._tp,
            plain._records,
            plain._aborted_transactions,
            plain.next_fetch_offset,
            None,
            None,
            plain._check_crcs,
            plain._isolation_level,
        )

    next_fetch_offset: int

    def _unpack_records(self) -> Iterator[ConsumerRecord]:
        first_offset = self.next_fetch_offset
        data = self._records.data
        kept: list[memoryview] = []
        view = memoryview(data)
        next_offset, newest_ms = first_offset, -1
        # The worker's consumer reads committed records alone; see `_create_worker_consumer`.
        for at, header, standing in standings(whole_batches(data), self._aborted_transactions):
            if (
                self._check_crcs
                and calc_crc32c(data[at + CRC_FROM : at + header.size]) != header.crc
            ):
                raise CorruptRecordException(f"Invalid CRC - {self._tp} at {header.base_offset}")
            next_offset = header.next_offset
            if standing is Standing.DATA:
                kept.append(view[at : at + header.size])
                newest_ms = header.max_timestamp_ms
        self.next_fetch_offset = next_offset
        if next_offset > first_offset:
            # Also without any batch: the table has to learn how far the log has been read.
            yield self._message(Chunk(first_offset, next_offset, b"".join(kept)), newest_ms)

    def _message(self, chunk: Chunk, newest_ms: int) -> ConsumerRecord:
        return ConsumerRecord(
            topic=self._tp.topic,
            partition=self._tp.partition,
            offset=chunk.next_offset - 1,
            timestamp=newest_ms,
            timestamp_type=1,
            key=None,
            value=chunk,
            checksum=None,
            serialized_key_size=-1,
            serialized_value_size=len(chunk.data),
            headers=(),
        )


class FetchedRecords(OrderedDict[Any, Any]):
    """The fetcher's store of what has been fetched and not yet been delivered."""

    def __init__(self, segments_topic: str) -> None:
        super().__init__()
        self._segments_topic = segments_topic

    def __setitem__(self, tp: Any, result: Any) -> None:
        if tp.topic == self._segments_topic and isinstance(result, FetchResult):
            result._partition_records = ChunkRecords.take_over(result._partition_records)
        super().__setitem__(tp, result)


class ActivePartitions:
    """The partitions that may be delivered now. An empty set of them doesn't mean "all"."""

    def __init__(self, consumer: Any, active: Set[TP]) -> None:
        self._consumer = consumer
        self._active = active

    def __contains__(self, tp: TP) -> bool:
        if not self._consumer.flow_active or tp not in self._active or tp in self._consumer.held:
            return False
        app = self._consumer.app
        return tp.topic != app.segments_topic_name or not app.rebalancing

    def __bool__(self) -> bool:
        return True


def lost_place(topic: str, partition: int, offset: int) -> ContractError:
    """Return the error for a log that no longer holds the next offset to read."""
    return SegmentsLost(
        *(topic, partition, offset),
        f"{topic}/{partition}: the next offset to read is {offset}, which Kafka no longer holds:"
        " segments are lost (retention, kafka-delete-records.sh, a recreated topic, a broker's log"
        " that was cut off). Nothing was skipped."
        f" {RESTORE_OR_START_ANEW}",
    )


def other_partitions(topic: str, count: int, expected: int) -> ContractError:
    """Return the error for a topic that was deleted, or given partitions."""
    if not count:
        return ContractError(
            f"{topic} is gone, and what this worker knows rests on it. Once it is there again,"
            f" {BEGIN_ANEW}"
        )
    return ContractError(
        f"{topic} has {count} partitions now, and had {expected} when this worker started: orders"
        f" have moved, so its checkpoint is of no use: {NEW_TOPICS}"
    )


class ConsumerThread(PatientConsumerThread):
    """Faust's consumer thread with a fetcher that keeps batches whole."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.log_ends: dict[TP, tuple[int, int]] = {}
        """Partition -> (high watermark, end of the committed log), by the broker's last answer."""
        self.fault: ContractError | None = None
        """Why nothing more can be read; raised instead of returning records."""
        self._ending: asyncio.Task[None] | None = None
        self._seen_topics: dict[str, float] = {}
        """Topic -> when metadata had it last, on the monotonic clock."""

    def _create_worker_consumer(self, transport: Any) -> Any:
        consumer = super()._create_worker_consumer(transport)
        # A bill doesn't count the segments of an aborted transaction.
        consumer._isolation_level = "read_committed"
        # How old the broker's answer on a silent partition's end may get.
        consumer._fetch_max_wait_ms = 500
        consumer._client._metadata_max_age_ms = METADATA_AGE_MAX_MS
        return consumer

    async def on_start(self) -> None:
        """Start the consumer; its fetcher exists only from then on."""
        await super().on_start()
        self._ensure_consumer()._client.cluster.add_listener(self._note_partitions)
        fetcher = self._ensure_consumer()._fetcher
        assert not fetcher._records
        fetcher._records = FetchedRecords(self.app.segments_topic_name)  # type: ignore[attr-defined]
        fetch = fetcher._proc_fetch_request

        async def fetch_and_note(assignment: Any, node_id: int, request: Any) -> Any:
            try:
                fetched = await fetch(assignment, node_id, request)
            except asyncio.CancelledError:
                # Only `close` cancels it, and waits for it as if that couldn't raise. It does where
                # a fetch has just failed: then a worker that is told to stop ended as by a fault.
                return False
            self._note_lost_place(assignment, request)
            self._note_log_ends(assignment, request)
            return fetched

        fetcher._proc_fetch_request = fetch_and_note

    def _note_log_ends(self, assignment: Any, request: Any) -> None:
        for topic, partitions in request.topics:
            for partition, _, _ in partitions:
                tp = TP(topic, partition)
                state = assignment.state_value(base.ensure_aiokafka_TP(tp))
                if state is not None and state.highwater is not None:
                    stable = state.highwater if state.lso is None else state.lso
                    self.log_ends[tp] = (state.highwater, min(stable, state.highwater))

    def _note_lost_place(self, assignment: Any, request: Any) -> None:
        """End the worker if the answer was "out of range": aiokafka would reset the offset."""
        for topic, partitions in request.topics:
            for partition, offset, _ in partitions:
                state = assignment.state_value(base.ensure_aiokafka_TP(TP(topic, partition)))
                is_lost = state is not None and state.awaiting_reset
                if is_lost and topic == self.app.segments_topic_name:  # type: ignore[attr-defined]
                    self._end(lost_place(topic, partition, offset))

    def _end(self, fault: ContractError) -> None:
        """End the worker, also one that waits for records that will never come."""
        if self.fault is None:
            self.fault = fault
            self._ending = asyncio.ensure_future(self.crash(fault))

    async def on_partitions_assigned(self, assigned: set[TP], generation_id: int = 0) -> None:
        """Take partitions over, unless the topic has changed: more partitions, or recreated."""
        if self.fault is None:
            await super().on_partitions_assigned(assigned, generation_id)

    def _note_partitions(self, cluster: Any) -> None:
        """Check by new metadata that the topics are still those that the worker started on."""
        app: Any = self.app
        now_s = time.monotonic()
        for topic in (app.segments_topic_name, *app.tables.changelog_topics):
            count = len(cluster.partitions_for_topic(topic) or ())
            seen_s = self._seen_topics.get(topic)
            if count == app.segments_partitions:
                self._seen_topics[topic] = now_s
            elif count or (seen_s is not None and now_s - seen_s > GONE_AFTER_S):
                self._end(other_partitions(topic, count, app.segments_partitions))
            elif seen_s is not None:
                # A broker that has just started may not know the topic yet: ask again.
                asyncio.get_running_loop().call_later(GONE_AFTER_S / 2, self._ask_for_metadata)

    def _ask_for_metadata(self) -> None:
        if self.fault is None and not self.should_stop:
            self._ensure_consumer()._client.force_metadata_update()

    async def _fetch_records(
        self, consumer: Any, active_partitions: Any, *args: Any, **kwargs: Any
    ) -> Any:
        if self.fault is not None:
            raise self.fault
        if active_partitions is not None:
            active_partitions = ActivePartitions(self.consumer, active_partitions)
        return await super()._fetch_records(consumer, active_partitions, *args, **kwargs)


class Consumer(PatientConsumer):
    """Faust's consumer, in which checkpoints commit the offsets of segments, and acks don't."""

    _thread: ConsumerThread

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.recovered_ends: dict[TP, int] = {}
        """Partition of the changelog -> its end, up to which the worker has read it."""
        self.starts: dict[TP, int] = {}
        """Partition of segments -> the offset at which its replay starts, by the checkpoint."""
        self.held: set[TP] = set()
        """Partitions of which nothing is delivered for now."""

    def _new_consumer_thread(self) -> ConsumerThread:
        return ConsumerThread(self, loop=self.loop, beacon=self.beacon)

    async def _add_gap(self, tp: TP, offset_from: int, offset_to: int) -> None:
        """Do nothing: the offsets between two messages are records inside a chunk, not a gap."""

    async def commit_offsets(self, offsets: Mapping[TP, int]) -> bool:
        """Commit these next offsets; return False if the partitions are no longer ours."""
        committed = await self._thread.commit(offsets)
        if committed:
            self._committed_offset.update(offsets)
        return committed

    async def highwaters(self, *partitions: TP) -> MutableMapping[TP, int]:
        """Return the ends of changelogs as the worker has read them; Faust asks for no others."""
        return {tp: self.recovered_ends[tp] for tp in partitions}

    async def seek_to_committed(self) -> Mapping[TP, int]:
        """Seek to the checkpoints' offsets; anybody can move the group's, which only follow."""
        starts = {tp: offset for tp, offset in self.starts.items() if tp in self.assignment()}
        await self.seek_wait({base.ensure_aiokafka_TP(tp): each for tp, each in starts.items()})
        return starts

    def log_end(self, tp: TP) -> int | None:
        """Return where the committed log ended by the broker's last answer, None before that."""
        ends = self._thread.log_ends.get(tp)
        return None if ends is None else ends[1]

    def high_watermark(self, tp: TP) -> int | None:
        """Return the high watermark by the broker's last answer, None before that."""
        ends = self._thread.log_ends.get(tp)
        return None if ends is None else ends[0]


class Recovered(faust.Table[Any, Any]):
    """A table that the worker recovers itself, before Faust starts to."""

    def persisted_offset(self, tp: TP) -> int | None:
        """Return the offset of the changelog's last record: there is nothing left to recover."""
        consumer = self.app.consumer
        assert isinstance(consumer, Consumer)
        return consumer.recovered_ends[tp] - 1


class Producer(PatientProducer):
    """Faust's producer, with the contract's partitioner.

    Faust asks it which worker has an order. Its own answer needs metadata of the changelog, which a
    worker that has not written a checkpoint yet doesn't have.
    """

    def key_partition(self, topic: str, key: bytes) -> TP:
        """Return the partition of `topic` that holds `key`."""
        partitions: int = self.app.segments_partitions  # type: ignore[attr-defined]
        return TP(topic, partition_for(key, partitions))


class Transport(base.Transport):
    """The `durabill://` transport."""

    Consumer = Consumer
    Producer = Producer
