"""Reads a topic as it is now, for commands that look at the log."""

from collections.abc import Iterator

from confluent_kafka import (
    OFFSET_BEGINNING,
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    TopicPartition,
)

from durabill.deploy.local.stack import StackError
from durabill.deploy.terminal import Progress

_SILENCE_S = 15.0
_TURN_S = 0.1  # `consume` waits for all that it was asked for, so it is asked for little time


def read_topic(
    kafka: dict[str, str],
    topic: str,
    *,
    partitions: frozenset[int] | None = None,
    progress: Progress = lambda phase, done, total: None,
) -> Iterator[tuple[int, int, Message]]:
    """Yield (partition, offset, message) of what the topic holds now, read_committed.

    In the order of offsets within a partition; only the given partitions, None means all.
    Commits nothing. Raises StackError if the topic is not there or Kafka falls silent.
    """
    consumer = _consumer(kafka)
    try:
        ends, total = _open(consumer, topic, partitions)
        done, silent_s = 0, 0.0
        while ends:
            messages = consumer.consume(5_000, timeout=_TURN_S)
            silent_s = 0.0 if messages else silent_s + _TURN_S
            if silent_s > _SILENCE_S:
                raise StackError(f"{topic}: Kafka has said nothing for {_SILENCE_S:g} s")
            for message in messages:
                error = message.error()
                if error is not None and error.code() != KafkaError._PARTITION_EOF:
                    raise KafkaException(error)
                partition, offset = message.partition(), message.offset()
                assert partition is not None
                assert offset is not None
                # The end is told also where only transaction markers are left before it.
                if error is not None or offset >= ends.get(partition, 0):
                    ends.pop(partition, None)
                    continue
                done += 1
                yield partition, offset, message
                if offset + 1 >= ends[partition]:
                    ends.pop(partition)
            progress(f"reading {topic}", done, total)
    finally:
        consumer.close()


def topic_ends(kafka: dict[str, str], topic: str) -> dict[int, int]:
    """Return the offset after the last record of each partition."""
    consumer = _consumer(kafka)
    try:
        return {partition: high for partition, (_, high) in _ranges(consumer, topic, None).items()}
    finally:
        consumer.close()


def partition_count(kafka: dict[str, str], topic: str) -> int:
    """Return how many partitions the topic has; raise StackError if it is not there."""
    consumer = _consumer(kafka)
    try:
        return len(_partitions(consumer, topic))
    finally:
        consumer.close()


def _consumer(kafka: dict[str, str]) -> Consumer:
    return Consumer(
        {
            **kafka,
            "group.id": "durabill-look",  # librdkafka wants one; it is never joined
            "enable.auto.commit": False,
            "auto.offset.reset": "error",
            "isolation.level": "read_committed",
            "enable.partition.eof": True,
            "allow.auto.create.topics": False,
        }
    )


def _open(
    consumer: Consumer, topic: str, partitions: frozenset[int] | None
) -> tuple[dict[int, int], int]:
    """Assign what has records; return the ends of those partitions, and how many offsets."""
    ranges = _ranges(consumer, topic, partitions)
    ends = {partition: high for partition, (low, high) in ranges.items() if low < high}
    consumer.assign([TopicPartition(topic, each, OFFSET_BEGINNING) for each in ends])
    return ends, sum(high - low for low, high in ranges.values())


def _partitions(consumer: Consumer, topic: str) -> list[int]:
    found = consumer.list_topics(topic, timeout=_SILENCE_S).topics[topic]
    if found.error is not None:
        raise StackError(
            f"topic {topic}: {found.error.str()}. Create it with: durabill topics create"
        )
    return list(found.partitions)


def _ranges(
    consumer: Consumer, topic: str, partitions: frozenset[int] | None
) -> dict[int, tuple[int, int]]:
    ranges = {}
    for partition in _partitions(consumer, topic):
        if partitions is None or partition in partitions:
            place = TopicPartition(topic, partition)
            ranges[partition] = consumer.get_watermark_offsets(place, timeout=_SILENCE_S)
    return ranges
