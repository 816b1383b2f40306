"""Asks a group's coordinator, from outside the group, for the offsets that it has committed.

By a consumer always. What `AdminClient` asks a coordinator for ends the process by a signal where
that moves or loads (librdkafka 2.16).
"""

from collections.abc import Mapping, Sequence
from contextlib import closing
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from durabill.stream_processors.kafka.errors import Right, patiently
from durabill.stream_processors.kafka.options import assigned_consumer


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

    Waits while the group's coordinator moves or loads.
    """
    rights = [Right("Read", "group", group)]
    rights += [Right("Describe", "topic", each) for each in sorted({each.topic for each in places})]
    with closing(Consumer(assigned_consumer(kafka, group))) as consumer:

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
    with closing(Consumer(assigned_consumer(kafka, group))) as consumer:

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


def commit_from_outside(
    kafka: Mapping[str, Any], group: str, places: Sequence[TopicPartition]
) -> bool:
    """Commit a group's offsets without being a member; False: it has members, and nothing moved.

    A coordinator takes this for a group that is empty alone. So committing what is committed
    already is a way to ask whether anybody is in the group, without joining it.
    """
    right = Right("Read", "group", group)
    with closing(Consumer(assigned_consumer(kafka, group))) as consumer:

        def ask(_: float) -> bool:
            try:
                done = consumer.commit(offsets=list(places), asynchronous=False) or []
            except KafkaException as error:
                if error.args[0].code() in _HAS_MEMBERS:
                    return False
                raise
            for each in done:
                if each.error is not None and each.error.code() in _HAS_MEMBERS:
                    return False
                if each.error is not None:
                    raise KafkaException(each.error)
            return True

        return patiently(ask, f"the coordinator of the group {group}", kafka, right)


_HAS_MEMBERS = {
    KafkaError.UNKNOWN_MEMBER_ID,
    KafkaError.ILLEGAL_GENERATION,
    KafkaError.REBALANCE_IN_PROGRESS,
}
"""What a coordinator answers to a stranger's commit where the group has members."""
