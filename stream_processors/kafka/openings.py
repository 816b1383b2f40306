"""Reads the orders topic: openings, and where in the log each of them lies."""

import sys
from collections.abc import Mapping
from typing import Any

from confluent_kafka import Message

from durabill.schemas.headers import SEGMENTS_TOPIC_ID, SOURCE_OFFSET
from durabill.stream_processors.kafka.reading import tail_messages

OFFSET_DIGITS_MAX = 19

FoundOpening = tuple[int, int, bytes, bytes, str]
"""(offset, offset in the log, key, value, id of the segments topic); the id is "" if not known."""


def read_openings(
    kafka: Mapping[str, Any], group: str, topic: str, starts: Mapping[int, int]
) -> dict[int, tuple[list[FoundOpening], int]]:
    """Return what each partition of the orders topic has from its start on, and where it ends.

    What has no header that says where it lies in the log is not of a worker, and is passed over.
    Raises what `read_tails` raises.
    """
    found: dict[int, list[FoundOpening]] = {each: [] for each in starts}
    ends = dict.fromkeys(starts, -1)
    for partition, offset, message in tail_messages(kafka, group, topic, starts):
        if message is None:
            ends[partition] = offset
            continue
        key, value, source_offset = message.key(), message.value(), source_offset_of(message)
        if source_offset is not None and isinstance(key, bytes) and isinstance(value, bytes):
            found[partition].append((offset, source_offset, key, value, topic_id_of(message)))
    return {partition: (found[partition], end) for partition, end in ends.items()}


def source_offset_of(message: Message) -> int | None:
    """Return where in the log the opening lies that a record of the orders topic passes on."""
    content = _only_header(message, SOURCE_OFFSET)
    if content is None or not content.isdigit():
        return None
    return int(content) if len(content) <= OFFSET_DIGITS_MAX else None


def topic_id_of(message: Message) -> str:
    """Return the id of the segments topic that the same lies in, "" where the record has none."""
    return sys.intern((_only_header(message, SEGMENTS_TOPIC_ID) or b"").decode("utf-8", "replace"))


def _only_header(message: Message, wanted: str) -> bytes | None:
    headers: Any = message.headers() or ()
    contents = [content for name, content in headers if name == wanted]
    return contents[0] if len(contents) == 1 and isinstance(contents[0], bytes) else None
