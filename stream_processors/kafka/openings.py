"""Reads the orders topic: openings, and where in the log each of them lies."""

from collections.abc import Mapping
from typing import Any

from confluent_kafka import Message

from durabill.schemas.headers import SOURCE_OFFSET
from durabill.stream_processors.kafka.reading import tail_messages

OFFSET_DIGITS_MAX = 19


def read_openings(
    kafka: Mapping[str, Any], group: str, topic: str, starts: Mapping[int, int]
) -> dict[int, tuple[list[tuple[int, int, bytes, bytes]], int]]:
    """Return what each partition of the orders topic has from its start on, and where it ends.

    The openings as (offset, offset in the log, key, value); what has no header that says where it
    lies in the log is not of a worker, and is passed over. Raises what `read_tails` raises.
    """
    found: dict[int, list[tuple[int, int, bytes, bytes]]] = {each: [] for each in starts}
    ends = dict.fromkeys(starts, -1)
    for partition, offset, message in tail_messages(kafka, group, topic, starts):
        if message is None:
            ends[partition] = offset
            continue
        key, value, source_offset = message.key(), message.value(), source_offset_of(message)
        if source_offset is not None and isinstance(key, bytes) and isinstance(value, bytes):
            found[partition].append((offset, source_offset, key, value))
    return {partition: (found[partition], end) for partition, end in ends.items()}


def source_offset_of(message: Message) -> int | None:
    """Return where in the log the opening lies that a record of the orders topic passes on."""
    headers: Any = message.headers() or ()
    contents = [content for name, content in headers if name == SOURCE_OFFSET]
    if len(contents) != 1 or not isinstance(contents[0], bytes) or not contents[0].isdigit():
        return None
    return int(contents[0]) if len(contents[0]) <= OFFSET_DIGITS_MAX else None
