"""Finds and lists dead letters, the records of the segments topic that were rejected.

A dead letter is the record as it came, with five headers of ours after its own: `reason`, `detail`,
`source_topic`, `source_partition`, `source_offset`. One that was too large has been cut, and more
headers say so: `cut_key`, `cut_value`, `cut_headers`; its origin has it whole. A worker that
crashed may have written one twice: both have the same origin (the last three). Everything here
reads without a group and commits nothing.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import starmap
from typing import Any

from confluent_kafka import Message

from durabill.schemas import headers
from durabill.schemas.errors import DurabillError
from durabill.schemas.wire import Headers
from durabill.stream_processors.kafka.options import DEAD_LETTERS_GROUP
from durabill.stream_processors.kafka.reading import read_one, read_topic

ANSWER_S = 30.0
"""For so long Kafka's next word on a dead letter is waited for."""

_NUMBER = re.compile(r"[0-9]{1,18}")


class DeadLetterError(DurabillError):
    """What was asked for can't be done; the message says why."""


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One record of the dead letters topic; `append_ms` is when it was rejected.

    `key`, `value` and `headers` are the rejected record's own, as they came. `reason` is a
    `schemas.Reason` where a worker of ours wrote it. What is missing, or no text, is empty or
    None.
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
    headers: Headers

    @property
    def is_cut(self) -> bool:
        """Whether the record was too large, so that this is a part of it."""
        return bool(self.headers) and all(name in headers.CUT for name, _ in self.headers)

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
    kafka: Mapping[str, Any],
    topic: str,
    *,
    limit: int | None = None,
    reason: str | None = None,
    since_ms: int | None = None,
    repeats: bool = False,
    answer_s: float = ANSWER_S,
) -> Iterator[DeadLetter]:
    """Yield the dead letters that were there when this was called, each origin once.

    In order of offset within a partition; partitions alternate as Kafka answers. `since_ms` is an
    append time (inclusive), `repeats=True` yields a worker's repeats too. Raises AccessError
    when the topic is not there, UnreachableError when Kafka says nothing for `answer_s` seconds.
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
    kafka: Mapping[str, Any], topic: str, partition: int, offset: int, *, answer_s: float = ANSWER_S
) -> DeadLetter:
    """Return the dead letter at one place; raise DeadLetterError where there is none."""
    message = read_one(
        kafka, topic, partition, offset, group=DEAD_LETTERS_GROUP, patience_s=answer_s
    )
    if message is not None:
        return _letter(partition, offset, message)
    raise DeadLetterError(f"{topic}/{partition} has no record at offset {offset}")


def read_letters(
    kafka: Mapping[str, Any], topic: str, since_ms: int | None = None, answer_s: float = ANSWER_S
) -> Iterator[DeadLetter]:
    """Yield every dead letter, repeats too, up to the ends that the partitions have now."""
    return starmap(_letter, read_records(kafka, topic, since_ms, answer_s))


def read_records(
    kafka: Mapping[str, Any], topic: str, since_ms: int | None = None, answer_s: float = ANSWER_S
) -> Iterator[tuple[int, int, Message]]:
    """Yield (partition, offset, message) of what a topic holds now, from an append time on."""
    return read_topic(
        kafka, topic, group=DEAD_LETTERS_GROUP, since_ms=since_ms, patience_s=answer_s
    )


def _letter(partition: int, offset: int, message: Message) -> DeadLetter:
    ours, own = split_headers(headers.headers_in(message))
    return DeadLetter(
        partition=partition,
        offset=offset,
        append_ms=message.timestamp()[1],
        reason=ours.get(headers.REASON, ""),
        detail=ours.get(headers.DETAIL, ""),
        source_topic=ours.get(headers.SOURCE_TOPIC, ""),
        source_partition=_number(ours.get(headers.SOURCE_PARTITION, "")),
        source_offset=_number(ours.get(headers.SOURCE_OFFSET, "")),
        key=_bytes(message.key()),
        value=_bytes(message.value()),
        headers=own,
    )


def split_headers(found: Headers) -> tuple[dict[str, str], Headers]:
    """Return our headers as text, and the record's own.

    Ours stand after the record's own, so of several with one name the last is ours and the others
    came with the record.
    """
    last = {name: at for at, (name, _) in enumerate(found) if name in headers.DEAD_LETTER}
    texts = {name: (found[at][1] or b"").decode(errors="replace") for name, at in last.items()}
    own = tuple(header for at, header in enumerate(found) if last.get(header[0]) != at)
    return texts, own


def _number(text: str) -> int | None:
    return int(text) if _NUMBER.fullmatch(text) else None


def _bytes(value: str | bytes | None) -> bytes | None:
    return value.encode() if isinstance(value, str) else value
