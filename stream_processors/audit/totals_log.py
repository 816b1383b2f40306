"""Reads one partition of the totals, the orders or another topic to a known end, as committed."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from durabill.stream_processors.kafka.errors import Right, patiently
from durabill.stream_processors.kafka.openings import place_of
from durabill.stream_processors.kafka.options import LOOK_GROUP, assigned_consumer

PATIENCE_S = 30.0
_AT_ONCE = 2_000
_AHEAD_KB = 16_384


class Published(NamedTuple):
    """One record of the totals or the orders topic. `append_ms` is the broker's append time."""

    offset: int
    key: bytes | None
    value: bytes | None
    append_ms: int = 0
    source_offset: int | None = None
    """Of the orders topic: where the opening lies in the log, by the record's header."""
    log_id: str = ""
    """The id of the segments topic that has what it rests on, "" if none is named."""


class TotalsLog:
    """A partition's records [first_offset, end_offset), read piece by piece; must be closed."""

    def __init__(
        self,
        kafka: Mapping[str, Any],
        topic: str,
        partition: int,
        first_offset: int,
        end_offset: int,
        log_id: str = "",
    ) -> None:
        self.position = first_offset
        self.own_from: int | None = None
        """Where the first record is that names the log `log_id`."""
        self._log_id = log_id
        self._end_offset = end_offset
        self._kafka = kafka
        self._topic = topic
        self._partition = partition
        self._consumer: Consumer | None = None
        self._ahead: list[Message] = []
        """Read already, and beyond the end as it is now."""

    def close(self) -> None:
        """Close the consumer."""
        if self._consumer is not None:
            self._consumer.close()
            self._consumer = None

    @property
    def has_more(self) -> bool:
        """Tell whether the end has not been reached yet."""
        return self.position < self._end_offset

    def extend(self, end_offset: int) -> None:
        """Go on to a later end."""
        self._end_offset = max(self._end_offset, end_offset)

    def read(self) -> Iterator[Published]:
        """Yield the next few records, none at the end. Raises UnreachableError, AccessError."""
        if not self.has_more:
            return
        what = f"the records of {self._topic}/{self._partition}"
        rights = (Right("Read", "topic", self._topic), Right("Describe", "group", LOOK_GROUP))
        messages, self._ahead = self._ahead, []
        messages = messages or patiently(
            self._ask, what, self._kafka, *rights, patience_s=PATIENCE_S
        )
        for at, message in enumerate(messages):
            offset = message.offset()
            assert offset is not None, "records and ends have a place"
            if offset >= self._end_offset:
                self._ahead = messages[at:]
                self.position = self._end_offset
                return
            if message.error() is not None:
                # The end of the topic: only markers lie before it.
                self.position = max(self.position, offset)
                continue
            self.position = offset + 1
            yield self._published(offset, message)

    def _published(self, offset: int, message: Message) -> Published:
        key, value = _bytes(message.key()), _bytes(message.value())
        source_offset, log_id = place_of(message)
        if log_id and log_id == self._log_id and self.own_from is None:
            self.own_from = offset
        return Published(offset, key, value, message.timestamp()[1], source_offset, log_id)

    def _ask(self, timeout_s: float) -> list[Message]:
        if self._consumer is None:
            options = assigned_consumer(self._kafka, LOOK_GROUP)
            options["queued.max.messages.kbytes"] = _AHEAD_KB  # bounds what is fetched ahead
            self._consumer = Consumer(options)
            self._consumer.assign([TopicPartition(self._topic, self._partition, self.position)])
        consumer = self._consumer
        messages = consumer.consume(_AT_ONCE, 0) or consumer.consume(1, timeout_s)
        if not messages:
            raise KafkaException(KafkaError(KafkaError._TIMED_OUT))
        for at, message in enumerate(messages):
            error = message.error()
            if error is not None and error.code() != KafkaError._PARTITION_EOF:
                if at:
                    # What came before it is kept; the position tells where to go on.
                    self._seek_after(messages[at - 1])
                    return messages[:at]
                raise KafkaException(error)
        return messages

    def _seek_after(self, last: Message) -> None:
        offset = last.offset()
        assert self._consumer is not None
        assert offset is not None, "records and ends have a place"
        following = offset if last.error() is not None else offset + 1
        self._consumer.assign([TopicPartition(self._topic, self._partition, following)])


def _bytes(content: str | bytes | None) -> bytes | None:
    return content.encode() if isinstance(content, str) else content
