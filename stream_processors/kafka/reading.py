"""Reads topics to their ends, from outside any group: the one way in which that is done.

Readers are assigned: they never join a group, and commit nothing (see `options`). Every error that
a look at Kafka brings is judged (see `errors`): what passes is waited for, a right that is missing
is named, a topic too.
"""

from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import closing
from typing import Any, NamedTuple

from confluent_kafka import (
    OFFSET_BEGINNING,
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    TopicPartition,
)

from durabill.schemas.errors import START_ANEW, ContractError, StateError
from durabill.stream_processors.kafka.errors import (
    PATIENCE_S,
    Right,
    judged,
    lacks_topic,
    patiently,
)
from durabill.stream_processors.kafka.options import LOOK_GROUP, assigned_consumer

LOOK_PATIENCE_S = 15.0
"""For so long a command waits for the next word of a topic that it reads."""

_AT_ONCE = 5_000

Progress = Callable[[str, int, int], None]
"""Called as progress(phase, done, total) now and then, from the caller's thread."""


class Tail(NamedTuple):
    """What a partition holds from some offset on, as (offset, key, value), and where it ends."""

    records: list[tuple[int, bytes, bytes | None]]
    end: int


def read_tails(
    kafka: Mapping[str, Any], group: str, topic: str, starts: Mapping[int, int | None]
) -> dict[int, Tail]:
    """Return what is committed of each partition from its start on (None: from its end on).

    Raises what `tail_messages` raises.
    """
    tails = {partition: Tail([], -1) for partition in starts}
    for partition, offset, message in tail_messages(kafka, group, topic, starts):
        if message is None:
            tails[partition] = tails[partition]._replace(end=offset)
        else:
            key, value = message.key(), message.value()
            if isinstance(key, bytes) and not isinstance(value, str):  # what we ever write
                tails[partition].records.append((offset, key, value))
    return tails


def tail_messages(
    kafka: Mapping[str, Any], group: str, topic: str, starts: Mapping[int, int | None]
) -> Iterator[tuple[int, int, Message | None]]:
    """Yield (partition, offset, record), and None for the record at each partition's end.

    Raises StateError where the topic ends before the start, AccessError without the right to read
    it, UnreachableError where Kafka falls silent.
    """
    open_partitions = set(starts)
    with _reader(kafka, group) as consumer:
        places = []
        for partition, start in starts.items():
            first, end = _bounds(consumer, kafka, topic, partition)
            if start is not None and start > end:
                raise StateError(
                    f"the checkpoint has seen {topic}/{partition} up to offset {start}, but it"
                    f" ends at {end}: the topic was recreated, or lost records. Restore it, or"
                    f" {START_ANEW}"
                )
            offset = end if start is None else max(start, first)
            places.append(TopicPartition(topic, partition, offset))
        # At explicit offsets always: for others librdkafka asks the coordinator, and may crash.
        consumer.assign(places)
        rights = Right("Read", "topic", topic), Right("Read", "group", group)
        batches = _batches(consumer, kafka, topic, rights)
        while open_partitions:
            for partition, offset, message in next(batches):
                yield partition, offset, message
                if message is None:
                    open_partitions.discard(partition)
                    if not open_partitions:
                        break


def read_topic(
    kafka: Mapping[str, Any],
    topic: str,
    *,
    group: str = LOOK_GROUP,
    partitions: Collection[int] | None = None,
    since_ms: int | None = None,
    progress: Progress | None = None,
    patience_s: float = LOOK_PATIENCE_S,
) -> Iterator[tuple[int, int, Message]]:
    """Yield (partition, offset, message) of what the topic holds at the start, as committed.

    In the order of offsets within a partition; partitions alternate as Kafka answers. Only the
    given partitions, None means all; only records appended at `since_ms` or later. Raises
    AccessError where the topic isn't there or must not be read, UnreachableError where Kafka is
    silent for `patience_s`.
    """
    with _reader(kafka, group) as consumer:
        bounds = {
            each: _bounds(consumer, kafka, topic, each, patience_s)
            for each in _partitions(consumer, kafka, topic, patience_s)
            if partitions is None or each in partitions
        }
        ends = {each: end for each, (first, end) in bounds.items() if first < end}
        places = [TopicPartition(topic, each, OFFSET_BEGINNING) for each in ends]
        if since_ms is not None and places:
            places = _places_since(consumer, kafka, topic, since_ms, ends, patience_s)
            ends = {each.partition: ends[each.partition] for each in places}
        done, total = 0, sum(end - first for first, end in bounds.values())
        consumer.assign(places)
        batches = _batches(consumer, kafka, topic, _look_rights(topic, group), patience_s)
        while ends:
            for partition, offset, message in next(batches):
                # The end is told also where only transaction markers are left before it.
                if message is None or offset >= ends.get(partition, 0):
                    ends.pop(partition, None)
                    continue
                done += 1
                if since_ms is None or message.timestamp()[1] >= since_ms:
                    yield partition, offset, message
                if offset + 1 >= ends[partition]:
                    ends.pop(partition)
            if progress is not None:
                progress(f"reading {topic}", done, total)


def read_one(
    kafka: Mapping[str, Any],
    topic: str,
    partition: int,
    offset: int,
    *,
    group: str = LOOK_GROUP,
    patience_s: float = LOOK_PATIENCE_S,
) -> Message | None:
    """Return the committed record at one place, None where there is none.

    Raises what `read_topic` raises.
    """
    place = offset, offset
    found = read_range(kafka, topic, partition, place, group=group, patience_s=patience_s)
    return next((message for _, message in found), None)


def read_range(
    kafka: Mapping[str, Any],
    topic: str,
    partition: int,
    offsets: tuple[int, int],
    *,
    group: str = LOOK_GROUP,
    patience_s: float = LOOK_PATIENCE_S,
) -> Iterator[tuple[int, Message]]:
    """Yield (offset, message) of what is committed from one offset to another, both included.

    What the log doesn't have of them, `read_bounds` says. Raises what `read_topic` raises.
    """
    with _reader(kafka, group) as consumer:
        if partition not in _partitions(consumer, kafka, topic, patience_s):
            return
        first, end = _bounds(consumer, kafka, topic, partition, patience_s)
        start, end = max(first, offsets[0]), min(end, offsets[1] + 1)
        if start >= end:
            return
        consumer.assign([TopicPartition(topic, partition, start)])
        for batch in _batches(consumer, kafka, topic, _look_rights(topic, group), patience_s):
            for _, offset, message in batch:
                if message is None or offset >= end:
                    return
                yield offset, message
            if offset + 1 >= end:
                return


def read_bounds(
    kafka: Mapping[str, Any], group: str, topic: str, partitions: Sequence[int]
) -> dict[int, tuple[int, int]]:
    """Return the committed part of each partition's log: [first offset, next offset)."""
    with _reader(kafka, group) as consumer:
        return {each: _bounds(consumer, kafka, topic, each) for each in partitions}


def topic_ends(kafka: Mapping[str, Any], topic: str, *, group: str = LOOK_GROUP) -> dict[int, int]:
    """Return the offset after the last committed record of each partition."""
    with _reader(kafka, group) as consumer:
        partitions = _partitions(consumer, kafka, topic, LOOK_PATIENCE_S)
        return {
            each: _bounds(consumer, kafka, topic, each, LOOK_PATIENCE_S)[1] for each in partitions
        }


def partition_count(kafka: Mapping[str, Any], topic: str, *, group: str = LOOK_GROUP) -> int:
    """Return how many partitions a topic has; raise AccessError if it is not there."""
    with _reader(kafka, group) as consumer:
        return len(_partitions(consumer, kafka, topic, LOOK_PATIENCE_S))


def common_partition_count(kafka: Mapping[str, Any], *topics: str) -> int:
    """Return how many partitions the topics have; raise ContractError where they differ in it."""
    counts = {topic: partition_count(kafka, topic) for topic in topics}
    if len(set(counts.values())) != 1:
        told = ", ".join(f"{topic} has {count}" for topic, count in counts.items())
        raise ContractError(f"the topics must have as many partitions each: {told}")
    return counts[topics[0]]


def offsets_since(
    kafka: Mapping[str, Any], topic: str, since_ms: int, partitions: Collection[int]
) -> dict[int, int]:
    """Return the first offset appended at `since_ms` or later, of those partitions that have it."""
    with _reader(kafka, LOOK_GROUP) as consumer:
        places = _places_since(consumer, kafka, topic, since_ms, partitions, LOOK_PATIENCE_S)
        return {each.partition: each.offset for each in places}


def _reader(kafka: Mapping[str, Any], group: str) -> "closing[Consumer]":
    return closing(Consumer(assigned_consumer(kafka, group)))


def _look_rights(topic: str, group: str) -> tuple[Right, Right]:
    return Right("Read", "topic", topic), Right("Describe", "group", group)


def _partitions(
    consumer: Consumer, kafka: Mapping[str, Any], topic: str, patience_s: float
) -> list[int]:
    right = Right("Read", "topic", topic)

    def ask(timeout_s: float) -> list[int]:
        found = consumer.list_topics(topic, timeout=timeout_s).topics[topic]
        if found.error is not None and lacks_topic(found.error):
            raise judged(found.error, kafka, right)  # at once: somebody waits for a command
        if found.error is not None:
            raise KafkaException(found.error)
        return sorted(found.partitions)

    return patiently(ask, f"the partitions of {topic}", kafka, right, patience_s=patience_s)


def _bounds(
    consumer: Consumer,
    kafka: Mapping[str, Any],
    topic: str,
    partition: int,
    patience_s: float = PATIENCE_S,
) -> tuple[int, int]:
    place = TopicPartition(topic, partition)

    def ask(timeout_s: float) -> tuple[int, int]:
        bounds = consumer.get_watermark_offsets(place, timeout_s)
        if bounds is None:
            raise KafkaException(KafkaError(KafkaError._TIMED_OUT))
        return bounds

    what = f"the bounds of {topic}/{partition}"
    right = Right("Describe", "topic", topic)
    return patiently(ask, what, kafka, right, patience_s=patience_s)


def _places_since(
    consumer: Consumer,
    kafka: Mapping[str, Any],
    topic: str,
    since_ms: int,
    partitions: Collection[int],
    patience_s: float,
) -> list[TopicPartition]:
    """Return where records of an append time or later begin, of those partitions that have any."""
    asked = [TopicPartition(topic, each, since_ms) for each in partitions]

    def ask(timeout_s: float) -> list[TopicPartition]:
        found = consumer.offsets_for_times(asked, timeout=timeout_s)
        for each in found:
            if each.error is not None:
                raise KafkaException(each.error)
        return found

    what, right = f"the offsets of {topic} by time", Right("Describe", "topic", topic)
    found = patiently(ask, what, kafka, right, patience_s=patience_s)
    # A negative offset stands for the end: nothing is as young as that.
    return [place for place in found if place.offset >= 0]


def _batches(
    consumer: Consumer,
    kafka: Mapping[str, Any],
    topic: str,
    rights: Sequence[Right],
    patience_s: float = PATIENCE_S,
) -> Iterator[list[tuple[int, int, Message | None]]]:
    """Yield (partition, offset, message) as they come, for ever; None: the partition's end, there.

    Waits out what passes, judges the rest.
    """
    waiting: deque[Message] = deque()

    def ask(timeout_s: float) -> list[tuple[int, int, Message | None]]:
        if not waiting:
            # What is there, or else the next: `consume` waits for all that it is asked for.
            waiting.extend(consumer.consume(_AT_ONCE, 0) or consumer.consume(1, timeout_s))
        if not waiting:
            raise KafkaException(KafkaError(KafkaError._TIMED_OUT))
        if (error := _fault(waiting[0])) is not None:
            waiting.popleft()
            raise KafkaException(error)
        batch = []
        while waiting and _fault(waiting[0]) is None:
            message = waiting.popleft()
            partition, offset = message.partition(), message.offset()
            assert partition is not None, "records and ends have a place"
            assert offset is not None, "records and ends have a place"
            batch.append((partition, offset, message if message.error() is None else None))
        return batch

    while True:
        yield patiently(ask, f"the records of {topic}", kafka, *rights, patience_s=patience_s)


def _fault(message: Message) -> KafkaError | None:
    error = message.error()
    return None if error is None or error.code() == KafkaError._PARTITION_EOF else error
