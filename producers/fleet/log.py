"""Reads back what a fleet has sent: the part of the log that came since the run began.

The stream processors have a reader of topics too, which producers may not import. This one goes on
from where it stood, and waits for the copies of records that a worker sends on.
"""

import time
from collections.abc import Mapping
from typing import Any

from confluent_kafka import Consumer, KafkaException, Message, TopicPartition

from durabill.producers.fleet.publish import FleetError, Progress
from durabill.producers.fleet.truth import LogRecord, forwarded_from
from durabill.schemas.headers import headers_in


class FleetLog:
    """The part of the segments topic that was written since this object was made."""

    def __init__(self, kafka: Mapping[str, str], topic: str) -> None:
        self._topic = topic
        self._consumer = Consumer(
            {
                **kafka,
                "group.id": "durabill-fleet",  # required by librdkafka; nothing is committed
                "enable.auto.commit": False,
                "auto.offset.reset": "error",  # records that are gone must not go unnoticed
                "allow.auto.create.topics": False,
            }
        )
        try:
            found = self._consumer.list_topics(topic, timeout=15).topics[topic]
            if found.error is not None:
                raise FleetError(f"topic {topic}: {found.error.str()}")
            self.partitions = len(found.partitions)
            self._next = self._ends()
        except KafkaException as error:
            self._consumer.close()
            raise FleetError(f"topic {topic}: {error.args[0].str()}") from error
        except FleetError:
            self._consumer.close()
            raise
        self.records: list[LogRecord] = []

    def read(self, wrongly_placed: set[bytes], timeout_s: float, progress: Progress) -> None:
        """Read on to the end, and on until the copies of all wrongly placed records are there."""
        assignment = [TopicPartition(self._topic, *place) for place in self._next.items()]
        self._consumer.assign(assignment)
        give_up_s = time.monotonic() + timeout_s
        while True:
            self._read_to_end(progress)
            missing = len(wrongly_placed - self.copies())
            if not missing or time.monotonic() >= give_up_s:
                return
            progress("forwarding", len(wrongly_placed) - missing, len(wrongly_placed))
            time.sleep(0.2)

    def copies(self) -> set[bytes]:
        """Return where those copies came from that were sent on to their right partition."""
        origins = (
            forwarded_from(record.headers, record.partition, self.partitions)
            for record in self.records
            if record.headers
        )
        return {origin for origin in origins if origin is not None}

    def close(self) -> None:
        """Let go of the consumer."""
        self._consumer.close()

    def _ends(self) -> dict[int, int]:
        places = [TopicPartition(self._topic, each) for each in range(self.partitions)]
        return {place.partition: self._end(place) for place in places}

    def _end(self, place: TopicPartition) -> int:
        give_up_s = time.monotonic() + 15
        while True:
            try:
                return int(self._consumer.get_watermark_offsets(place, timeout=15)[1])
            except KafkaException:  # a topic's leaders are known a moment after it was made
                if time.monotonic() > give_up_s:
                    raise
                time.sleep(0.2)

    def _read_to_end(self, progress: Progress) -> None:
        ends = self._ends()
        total = sum(ends.values()) - sum(self._next.values()) + len(self.records)
        silent_since_s = time.monotonic()
        while any(self._next[partition] < end for partition, end in ends.items()):
            messages = self._consumer.consume(10_000, timeout=0.2)
            for message in messages:
                if message.error() is not None:
                    raise FleetError(f"reading {self._topic} back: {message.error()}")
                record = _log_record(message)
                self.records.append(record)
                self._next[record.partition] = record.offset + 1
            progress("read back", len(self.records), total)
            if messages:
                silent_since_s = time.monotonic()
            elif time.monotonic() - silent_since_s > 30:
                raise FleetError(f"{self._topic} gives nothing, though its end is at {ends}")


def _log_record(message: Message) -> LogRecord:
    partition, offset = message.partition(), message.offset()
    assert partition is not None
    assert offset is not None
    key: Any = message.key()  # its type says str or bytes, a consumer gives bytes
    value: Any = message.value()
    return LogRecord(partition, offset, message.timestamp()[1], key, value, headers_in(message))
