"""Reads topics and a group's offsets from outside the group, and opens transactional producers.

Readers are assigned at explicit offsets: they never join a group, and commit nothing. librdkafka
asks for a group's coordinator all the same, so they go by the name of the group that their process
has a right on. Every error that a look at Kafka brings is judged (see `clients`): what passes is
waited for, a right that is missing is named.
"""

from collections.abc import Mapping, Sequence
from contextlib import closing
from typing import Any, NamedTuple

from confluent_kafka import (
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    Producer,
    TopicPartition,
)

from durabill.schemas.errors import START_ANEW, StateError
from durabill.stream_processors.kafka.clients import Right, patiently, quiet

TRANSACTION_TIMEOUT_S = 60
OPEN_PATIENCE_S = 30.0


class Tail(NamedTuple):
    """What a partition holds from some offset on, as (offset, key, value), and where it ends."""

    records: list[tuple[int, bytes, bytes | None]]
    end: int


def open_producer(kafka: Mapping[str, Any], transactional_id: str) -> Producer:
    """Return a producer that has fenced all others of this id. Blocks until it has.

    Raises AccessError without the right on the id, UnreachableError where Kafka doesn't answer.
    """
    producer = Producer(
        {
            **quiet(kafka),
            "transactional.id": transactional_id,
            "acks": "all",  # a total that one broker alone has seen is not settled
            "enable.idempotence": True,  # a retry must not repeat or reorder revisions
            "transaction.timeout.ms": TRANSACTION_TIMEOUT_S * 1000,
            "compression.type": "lz4",
            # A block of large orders may have any size: the topic decides, not we.
            "message.max.bytes": 1_000_000_000,
            "linger.ms": 0,  # a commit flushes anyway
        }
    )
    patiently(
        producer.init_transactions,
        f"the coordinator of the transactional id {transactional_id}",
        kafka,
        Right("Write", "transactional id", transactional_id),
        patience_s=OPEN_PATIENCE_S,
    )
    return producer


def reader(kafka: Mapping[str, Any], group: str) -> Consumer:
    """Return a consumer that is to be assigned: it sees what is committed, and never joins."""
    return Consumer(
        {
            **quiet(kafka),
            "group.id": group,
            "enable.auto.commit": False,
            "isolation.level": "read_committed",
            "enable.partition.eof": True,
            "auto.offset.reset": "earliest",
            "allow.auto.create.topics": False,
            "fetch.wait.max.ms": 10,
        }
    )


def read_bounds(
    kafka: Mapping[str, Any], group: str, topic: str, partitions: Sequence[int]
) -> dict[int, tuple[int, int]]:
    """Return the committed part of each partition's log: [first offset, next offset)."""
    with closing(reader(kafka, group)) as consumer:
        return {each: _bounds(consumer, kafka, topic, each) for each in partitions}


def _bounds(
    consumer: Consumer, kafka: Mapping[str, Any], topic: str, partition: int
) -> tuple[int, int]:
    place = TopicPartition(topic, partition)

    def ask(timeout_s: float) -> tuple[int, int]:
        bounds = consumer.get_watermark_offsets(place, timeout_s)
        if bounds is None:
            raise KafkaException(KafkaError(KafkaError._TIMED_OUT))
        return bounds

    what = f"the bounds of {topic}/{partition}"
    return patiently(ask, what, kafka, Right("Describe", "topic", topic))


def read_group_offsets(
    kafka: Mapping[str, Any], group: str, topic: str, partitions: Sequence[int]
) -> dict[int, int | None]:
    """Return a group's next offset of each partition, None where it has none."""
    places = [TopicPartition(topic, each) for each in partitions]
    found = read_committed_offsets(kafka, group, places)
    return {each.partition: each.offset if each.offset >= 0 else None for each in found}


def read_committed_offsets(
    kafka: Mapping[str, Any], group: str, places: Sequence[TopicPartition]
) -> list[TopicPartition]:
    """Return the places with the offset that the group has committed there, negative if none.

    Waits while the group's coordinator moves or loads. (What `AdminClient` asks a coordinator for
    ends the process by a signal where that moves or loads: librdkafka 2.16.)
    """
    rights = [Right("Read", "group", group)]
    rights += [Right("Describe", "topic", each) for each in sorted({each.topic for each in places})]
    with closing(reader(kafka, group)) as consumer:

        def ask(timeout_s: float) -> list[TopicPartition]:
            found = _ask_committed(consumer, places, timeout_s)
            for each in found:
                if each.error is not None:
                    raise KafkaException(each.error)
            return found

        return patiently(ask, f"the offsets of the group {group}", kafka, *rights)


def sees_group(kafka: Mapping[str, Any], group: str, topic: str) -> bool:
    """Tell whether we may ask for a group's offsets; `topic` is one that we read or write.

    Read on a group implies this right, Describe. So a user who may describe the group, but not
    read it, is seen to lack a right only when it joins.
    """
    with closing(reader(kafka, group)) as consumer:

        def ask(timeout_s: float) -> bool:
            try:
                _ask_committed(consumer, [TopicPartition(topic, 0)], timeout_s)
            except KafkaException as error:
                if error.args[0].code() == KafkaError.GROUP_AUTHORIZATION_FAILED:
                    return False
                raise
            return True

        return patiently(ask, f"the coordinator of the group {group}", kafka)


def _ask_committed(
    consumer: Consumer, places: Sequence[TopicPartition], timeout_s: float
) -> list[TopicPartition]:
    try:
        return consumer.committed(list(places), timeout_s)
    except KafkaException:
        # Why there is no coordinator for us, librdkafka says by another way alone.
        message = consumer.poll(0)
        if message is not None and (error := message.error()) is not None:
            raise KafkaException(error) from None
        raise


def read_tails(
    kafka: Mapping[str, Any], group: str, topic: str, starts: Mapping[int, int | None]
) -> dict[int, Tail]:
    """Return what is committed of each partition from its start on (None: from its end on).

    Raises StateError where the topic ends before the start, AccessError without the right to read
    it, UnreachableError where Kafka falls silent.
    """
    tails = {partition: Tail([], -1) for partition in starts}
    open_partitions = set(starts)
    with closing(reader(kafka, group)) as consumer:
        places = []
        for partition, start in starts.items():
            end = _bounds(consumer, kafka, topic, partition)[1]
            if start is not None and start > end:
                raise StateError(
                    f"the checkpoint has seen {topic}/{partition} up to offset {start}, but it"
                    f" ends at {end}: the topic was recreated, or lost records. Restore it, or"
                    f" {START_ANEW}"
                )
            places.append(TopicPartition(topic, partition, end if start is None else start))
        # At explicit offsets always: for others librdkafka asks the coordinator, and may crash.
        consumer.assign(places)
        rights = Right("Read", "topic", topic), Right("Read", "group", group)
        while open_partitions:
            message = _next(consumer, kafka, topic, rights)
            at, offset = message.partition(), message.offset()
            assert at is not None, "records and ends have a place"
            assert offset is not None, "records and ends have a place"
            if message.error() is None:
                key, value = message.key(), message.value()
                if isinstance(key, bytes) and not isinstance(value, str):  # what we ever write
                    tails[at].records.append((offset, key, value))
            else:
                tails[at] = tails[at]._replace(end=offset)
                open_partitions.discard(at)
    return tails


def _next(
    consumer: Consumer, kafka: Mapping[str, Any], topic: str, rights: Sequence[Right]
) -> Message:
    """Return the next record or end of a partition; wait out what passes, judge the rest."""

    def ask(timeout_s: float) -> Message:
        message = consumer.poll(timeout_s)
        if message is None:
            raise KafkaException(KafkaError(KafkaError._TIMED_OUT))
        error = message.error()
        if error is not None and error.code() != KafkaError._PARTITION_EOF:
            raise KafkaException(error)
        return message

    return patiently(ask, f"the records of {topic}", kafka, *rights)
