"""The totals topic as the sealed log sees it: which topic it is, and its records."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from durabill.stream_processors.audit.seal.check_all import SealedTopic
from durabill.stream_processors.audit.seal.errors import SealError
from durabill.stream_processors.kafka.errors import Right, patiently
from durabill.stream_processors.kafka.options import LOOK_GROUP, quiet
from durabill.stream_processors.kafka.reading import Progress, read_bounds, read_topic
from durabill.stream_processors.kafka.topic_ids import topic_ids


class TopicState(NamedTuple):
    """What a topic is: its cluster, its id as origins have it, its partitions."""

    cluster: str
    topic_id: str
    partitions: int


def look_at_topic(
    admin: AdminClient, kafka: Mapping[str, Any], topic: str, patience_s: float | None = None
) -> TopicState:
    """Ask Kafka what a topic is.

    Raises AccessError where there is none, UnreachableError, SealError where Kafka knows no ids.
    """

    def ask(timeout_s: float) -> TopicState:
        listed = admin.list_topics(topic, timeout=timeout_s)
        found = listed.topics[topic]
        if found.error is not None:
            raise KafkaException(found.error)
        topic_id = topic_ids(admin, [topic], timeout_s)[topic]
        if not topic_id:
            raise SealError(
                "This Kafka gives topics no ids (it is older than 2.8): a recreated topic could not"
                " be told from the one before, so nothing can be sealed"
            )
        # The standard alphabet has a slash, which a folder's name can't have.
        name = topic_id.replace("+", "-").replace("/", "_").rstrip("=")
        return TopicState(str(listed.cluster_id), name, len(found.partitions))

    right = Right("Describe", "topic", topic)
    return patiently(ask, f"what {topic} is", kafka, right, patience_s=patience_s)


def sealed_topic(
    kafka: Mapping[str, Any], topic: str, progress: Progress | None = None
) -> SealedTopic:
    """Return a topic with all that is committed in it now, for `check_seal`."""
    state = look_at_topic(AdminClient(quiet(kafka)), kafka, topic)
    bounds = read_bounds(kafka, LOOK_GROUP, topic, range(state.partitions))
    ends = {each: end for each, (_, end) in bounds.items()}

    def values(partition: int, offset: int) -> Iterator[tuple[int, bytes | None]]:
        if partition not in ends:
            return
        for _, at, message in read_topic(kafka, topic, partitions=[partition], progress=progress):
            value = message.value()
            assert not isinstance(value, str), "no decoder is set"
            if offset <= at < ends[partition]:
                yield at, value

    def end_now(partition: int) -> int:
        if partition not in ends:
            return 0
        return read_bounds(kafka, LOOK_GROUP, topic, [partition])[partition][1]

    firsts = {each: first for each, (first, _) in bounds.items()}
    return SealedTopic(state.cluster, topic, state.topic_id, values, firsts, ends, end_now)
