"""Kafka's ids of topics: by them a recreated topic is told from the one of before."""

from collections.abc import Mapping, Sequence
from typing import Any

from confluent_kafka import TopicCollection
from confluent_kafka.admin import AdminClient

from durabill.stream_processors.kafka.errors import Right, answer_of, patiently
from durabill.stream_processors.kafka.options import quiet

_NO_ID = "A" * 22  # sixteen zero bytes: a broker that knows no ids


def topic_ids(admin: AdminClient, names: Sequence[str], timeout_s: float) -> dict[str, str]:
    """Return the id of each topic, "" where the broker has none. Asks once.

    Raises KafkaException. (The caller holds the client until the answers are there: one that is
    gone answers nothing.)
    """
    asked = admin.describe_topics(TopicCollection(list(names)), request_timeout=timeout_s)
    ids = {name: str(answer_of(asked[name], timeout_s + 1).topic_id or "") for name in names}
    return {name: "" if each == _NO_ID else each for name, each in ids.items()}


def find_topic_ids(kafka: Mapping[str, Any], *names: str) -> dict[str, str]:
    """Return the same, asked as often as it takes. Raises UnreachableError, AccessError."""
    admin = AdminClient(quiet(kafka))
    rights = (Right("Describe", "topic", each) for each in names)
    what = f"the {'id' if len(names) == 1 else 'ids'} of {' and '.join(names)}"
    return patiently(lambda s: topic_ids(admin, names, s), what, kafka, *rights)
