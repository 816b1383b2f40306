"""The names of the record headers that are part of the contract.

A record that is sent on, or sent back, has one header of ours after its own; a dead letter has
five, and says before them what was cut.
"""

from operator import methodcaller
from typing import Any, Protocol

from durabill.schemas.wire import Headers

FORWARDED_FROM = "forwarded_from"
"""Of a record that a worker sent on: `partition/offset` of where it lay, in digits."""

RESENT_FROM = "resent_from"
"""Of a record that was sent back: `topic/partition/offset` of its dead letter, UTF-8."""

REASON = "reason"
"""Of a dead letter: a `Reason`."""

DETAIL = "detail"
"""Of a dead letter: a sentence, UTF-8."""

SOURCE_TOPIC = "source_topic"
SOURCE_PARTITION = "source_partition"
SOURCE_OFFSET = "source_offset"
"""Of a dead letter: where the rejected record lies in the log.

Of a record of the orders topic the offset alone: where the opening lies in the same partition."""

SEGMENTS_TOPIC_ID = "segments_topic_id"
"""Of a record of the totals or the orders topic: the id of the segments topic that it rests on.

By it a recreated one is known. It is not there where the broker has no topic ids."""

DEAD_LETTER = (REASON, DETAIL, SOURCE_TOPIC, SOURCE_PARTITION, SOURCE_OFFSET)
"""The headers that every dead letter has, in this order, after the record's own."""

CUT_KEY = "cut_key"
CUT_VALUE = "cut_value"
"""Of a dead letter that was too large: size and SHA-256 of the whole key, or value."""

CUT_HEADERS = "cut_headers"
"""Of a dead letter that was too large: how many headers the record had."""

CUT_BATCH = "cut_batch"
"""Of a dead letter that is a part of a batch: the batch's size, and its SHA-256."""

CUT = (CUT_KEY, CUT_VALUE, CUT_HEADERS, CUT_BATCH)

WHAT_IF_RUN = "what_if_run"
"""Of a total that `durabill replay --publish-to` wrote: which run wrote it, 64 hex digits."""

WHAT_IF_DURATION = "what_if_duration_ms"
"""Of the same: what the policy file's duration rules bill of it, in digits."""


_headers = methodcaller("headers")
"""A plain call is one that the interpreter makes without a look at whether it has failed."""


class Consumed(Protocol):
    """A message as confluent-kafka's consumer gives it."""

    def headers(self) -> Any:
        """Return its headers, None where it has none."""

    def set_headers(self, headers: Any, /) -> None:
        """Have it say that these are its headers."""


def headers_in(message: Consumed) -> Headers:
    """Return the headers of a consumed message; none at all where one has a name that is no UTF-8.

    Kafka takes any bytes for a name. confluent-kafka fails on such a one, as if it were a bug of
    its own, and hands out a list with a hole if it is asked again, which ends the process.
    """
    try:
        found = _headers(message) or ()
    except (SystemError, UnicodeDecodeError):
        message.set_headers([])
        return ()
    return tuple((name, each.encode() if isinstance(each, str) else each) for name, each in found)
