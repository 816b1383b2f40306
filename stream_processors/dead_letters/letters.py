"""The dead letters of the segments topic: finding and listing them.

A dead letter is the record as it came, with five headers of ours after its own: `reason`, `detail`,
`source_topic`, `source_partition`, `source_offset`. One that was too large has been cut, and more
headers say so: `cut_key`, `cut_value`, `cut_headers`; its origin has it whole. A worker that
crashed may have written one twice; its origin (the last three) tells. Everything here reads without
a group and commits nothing.
"""

import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import TypeVar, cast

from confluent_kafka import (
    OFFSET_BEGINNING,
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    TopicPartition,
)

from durabill.schemas.errors import DurabillError

Header = tuple[str, bytes | None]

RESENT_FROM = "resent_from"
"""Header of a record that was sent back: `topic/partition/offset` of its dead letter, UTF-8."""

_OURS = ("reason", "detail", "source_topic", "source_partition", "source_offset")
_CUT = ("cut_key", "cut_value", "cut_headers", "cut_batch")
_POLL_S = 0.5
_ASK_AGAIN_S = 0.1
_LEADER_MOVES = {KafkaError.NOT_LEADER_FOR_PARTITION, KafkaError.LEADER_NOT_AVAILABLE}
_Answer = TypeVar("_Answer")
_NUMBER = re.compile(r"[0-9]{1,18}")


class DeadLetterError(DurabillError):
    """What was asked for cannot be done; says why. Nothing was sent."""


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One record of the dead letters topic; `append_ms` is when it was rejected.

    `key`, `value` and `headers` are the rejected record's own, as they came. `reason` is a
    `schemas.Reason` where a worker of ours wrote it; what is missing or no text is empty,
    or None.
    """

    partition: int
    offset: int
    append_ms: int
    reason: str
    detail: str
    source_topic: str
    source_partition: int | None
    source_offset: int | None
    key: bytes | None
    value: bytes | None
    headers: tuple[Header, ...]

    @property
    def is_cut(self) -> bool:
        """Whether the record was too large, so that this is a part of it."""
        return bool(self.headers) and all(name in _CUT for name, _ in self.headers)

    @property
    def place(self) -> tuple[int, int]:
        """Partition and offset in the dead letters topic."""
        return self.partition, self.offset

    @property
    def origin(self) -> tuple[str, int, int] | None:
        """Where the rejected record stands in the log; None where the headers do not say."""
        if not self.source_topic or self.source_partition is None or self.source_offset is None:
            return None
        return self.source_topic, self.source_partition, self.source_offset


class Origins:
    """Origins that have been seen; 60 bytes or so each."""

    def __init__(self) -> None:
        self._offsets: dict[tuple[str, int], set[int]] = {}

    def add(self, origin: tuple[str, int, int] | None) -> bool:
        """Take note of an origin; True if it is new, or if there is none."""
        if origin is None:
            return True
        topic, partition, offset = origin
        offsets = self._offsets.setdefault((topic, partition), set())
        known = len(offsets)
        offsets.add(offset)
        return len(offsets) > known


def list_dead_letters(
    kafka: Mapping[str, str],
    topic: str,
    *,
    limit: int | None = None,
    reason: str | None = None,
    since_ms: int | None = None,
    repeats: bool = False,
    answer_s: float = 30.0,
) -> Iterator[DeadLetter]:
    """Yields the dead letters that were there when this was called, each origin once.

    In order of offset within a partition; partitions alternate as Kafka answers. `since_ms` is an
    append time (inclusive), `repeats=True` yields a worker's repeats too. Raises DeadLetterError
    when the topic is not there or Kafka says nothing for `answer_s` seconds.
    """
    if limit is not None and limit <= 0:
        return
    seen = Origins()
    yielded = 0
    for letter in read_letters(kafka, topic, since_ms, answer_s):
        if reason is not None and letter.reason != reason:
            continue
        if not repeats and not seen.add(letter.origin):
            continue
        yield letter
        yielded += 1
        if yielded == limit:
            return


def find_dead_letter(
    kafka: Mapping[str, str], topic: str, partition: int, offset: int, *, answer_s: float = 30.0
) -> DeadLetter:
    """The dead letter at one place; DeadLetterError where there is none."""
    with closing(_consumer(kafka)) as consumer:
        if partition not in _partitions(consumer, topic, answer_s):
            raise DeadLetterError(f"{topic} has no partition {partition}")
        low, high = _range(consumer, topic, partition, answer_s)
        if low <= offset < high:
            consumer.assign([TopicPartition(topic, partition, offset)])
            message = _next(consumer, topic, answer_s)
            if message.error() is None and message.offset() == offset:
                return _letter(message)
    raise DeadLetterError(f"{topic}/{partition} has no record at offset {offset}")


def read_letters(
    kafka: Mapping[str, str], topic: str, since_ms: int | None = None, answer_s: float = 30.0
) -> Iterator[DeadLetter]:
    """Every dead letter, repeats too, up to the ends that the partitions have at the start."""
    return map(_letter, read_messages(kafka, topic, since_ms, answer_s))


def read_messages(
    kafka: Mapping[str, str], topic: str, since_ms: int | None = None, answer_s: float = 30.0
) -> Iterator[Message]:
    """Every record that a topic holds at the start, from an append time on (inclusive)."""
    with closing(_consumer(kafka)) as consumer:
        partitions = _partitions(consumer, topic, answer_s)
        ends = {each: _range(consumer, topic, each, answer_s) for each in partitions}
        unread = {each: high for each, (low, high) in ends.items() if low < high}
        places = [TopicPartition(topic, each, OFFSET_BEGINNING) for each in unread]
        if since_ms is not None and places:
            asked = [TopicPartition(topic, each, since_ms) for each in unread]
            places = _ask(
                lambda: consumer.offsets_for_times(asked, timeout=answer_s), topic, answer_s
            )
            # A negative offset stands for the end: nothing is as young as that.
            places = [place for place in places if place.offset >= 0]
            unread = {place.partition: unread[place.partition] for place in places}
        consumer.assign(places)
        while unread:
            message = _next(consumer, topic, answer_s)
            partition, offset = message.partition(), message.offset()
            assert partition is not None, "records and ends have a place"
            assert offset is not None, "records and ends have a place"
            # The end event comes also where only transaction markers are left before the end.
            if message.error() is not None or offset >= unread.get(partition, 0):
                unread.pop(partition, None)
                continue
            if offset + 1 >= unread[partition]:
                unread.pop(partition)
            if since_ms is None or message.timestamp()[1] >= since_ms:
                yield message


def _next(consumer: Consumer, topic: str, answer_s: float) -> Message:
    """The next record or partition end; anything else is an error, and so is a long silence."""
    waited_s = 0.0
    while waited_s < answer_s:
        message = consumer.poll(_POLL_S)
        if message is None:
            waited_s += _POLL_S
            continue
        error = message.error()
        if error is None or error.code() == KafkaError._PARTITION_EOF:
            return message
        if not error.retriable() and error.code() != KafkaError._TRANSPORT:
            raise DeadLetterError(f"{topic}: {error}")
    raise DeadLetterError(f"{topic}: Kafka has said nothing for {answer_s:g} s")


def _consumer(kafka: Mapping[str, str]) -> Consumer:
    return Consumer(
        {
            **kafka,
            "group.id": "durabill-dead-letters",  # librdkafka wants one; it is never joined
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "auto.offset.reset": "error",
            "isolation.level": "read_committed",
            "enable.partition.eof": True,
            "allow.auto.create.topics": False,
        }
    )


def _partitions(consumer: Consumer, topic: str, answer_s: float) -> list[int]:
    found = _ask(lambda: consumer.list_topics(topic, timeout=answer_s), topic, answer_s)
    if found.topics[topic].error is not None:
        raise DeadLetterError(f"{topic}: {found.topics[topic].error}")
    return sorted(found.topics[topic].partitions)


def _range(consumer: Consumer, topic: str, partition: int, answer_s: float) -> tuple[int, int]:
    place = TopicPartition(topic, partition)
    found = _ask(lambda: consumer.get_watermark_offsets(place, timeout=answer_s), topic, answer_s)
    if found is None:
        raise DeadLetterError(f"{topic}/{partition}: Kafka has said nothing for {answer_s:g} s")
    return found


def _ask(question: Callable[[], _Answer], topic: str, answer_s: float) -> _Answer:
    """Kafka's answer, asked again while a partition's leader is changing or not known yet."""
    until = time.monotonic() + answer_s
    while True:
        try:
            return question()
        except KafkaException as error:
            if error.args[0].code() not in _LEADER_MOVES or time.monotonic() >= until:
                raise DeadLetterError(f"{topic}: {error.args[0]}") from error
            time.sleep(_ASK_AGAIN_S)


def _letter(message: Message) -> DeadLetter:
    partition, offset = message.partition(), message.offset()
    assert partition is not None, "a record has a place"
    assert offset is not None, "a record has a place"
    ours, own = split_headers(headers_of(message))
    return DeadLetter(
        partition=partition,
        offset=offset,
        append_ms=message.timestamp()[1],
        reason=ours.get("reason", ""),
        detail=ours.get("detail", ""),
        source_topic=ours.get("source_topic", ""),
        source_partition=_number(ours.get("source_partition", "")),
        source_offset=_number(ours.get("source_offset", "")),
        key=_bytes(message.key()),
        value=_bytes(message.value()),
        headers=own,
    )


def headers_of(message: Message) -> list[Header]:
    """The record's headers, contents as bytes."""
    headers = cast(list[tuple[str, str | bytes | None]], message.headers() or [])
    return [(name, _bytes(value)) for name, value in headers]


def split_headers(headers: list[Header]) -> tuple[dict[str, str], tuple[Header, ...]]:
    """Our headers as text, and the record's own.

    Ours stand after the record's own, so of several with one name the last is ours and the others
    came with the record.
    """
    last = {name: at for at, (name, _) in enumerate(headers) if name in _OURS}
    texts = {name: (headers[at][1] or b"").decode(errors="replace") for name, at in last.items()}
    own = tuple(header for at, header in enumerate(headers) if last.get(header[0]) != at)
    return texts, own


def _number(text: str) -> int | None:
    return int(text) if _NUMBER.fullmatch(text) else None


def _bytes(value: str | bytes | None) -> bytes | None:
    return value.encode() if isinstance(value, str) else value
