"""What Kafka says of a record that it has stored.

This is what producers of segments have in common when a delivery report comes. How they wait for
reports differs: the gateway's come from a thread of its own and wake an event loop once a request,
the SDK's and the fleet's come from `flush`. One tracker for both would be two in one class.
"""

import dataclasses

from confluent_kafka import TIMESTAMP_LOG_APPEND_TIME, Message


@dataclasses.dataclass(frozen=True, slots=True)
class Stored:
    """Where a record lies. `append_ms` is None unless the topic has LogAppendTime."""

    partition: int
    offset: int
    append_ms: int | None


def append_ms_of(message: Message) -> int | None:
    """Return the broker's append time, None unless the topic has LogAppendTime."""
    kind, at_ms = message.timestamp()
    return at_ms if kind == TIMESTAMP_LOG_APPEND_TIME else None


def stored_at(message: Message) -> Stored | None:
    """Return where a delivered record lies, None where nobody knows.

    That is so for a repeat inside librdkafka whose first try has long been stored.
    """
    partition, offset = message.partition(), message.offset()
    if partition is None or offset is None:
        return None
    return Stored(partition, offset, append_ms_of(message))
