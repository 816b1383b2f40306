"""Reads the orders topic: openings, and where in the log each of them lies."""

import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

from confluent_kafka import Message

from durabill.schemas.codec import MARKER, SEGMENT_HEADER
from durabill.schemas.headers import SEGMENTS_TOPIC_ID, SOURCE_OFFSET, headers_in
from durabill.schemas.wire import Headers
from durabill.stream_processors.kafka.reading import tail_messages

OFFSET_DIGITS_MAX = 19

FoundOpening = tuple[int, int, bytes, bytes, str]
"""(offset, offset in the log, key, value, id of the segments topic); the id is "" if not known."""


class OrdersTail(NamedTuple):
    """What a partition of the orders topic has from some offset on, and where it ends.

    `strays` are the offsets of records that are no worker's: they don't say where in the log they
    lie, or are no Avro record.
    """

    found: list[FoundOpening]
    strays: list[int]
    end: int


def read_openings(
    kafka: Mapping[str, Any], group: str, topic: str, starts: Mapping[int, int]
) -> dict[int, OrdersTail]:
    """Return what each partition has from its start on. Raises what `read_tails` raises."""
    tails = {each: OrdersTail([], [], -1) for each in starts}
    for partition, offset, message in tail_messages(kafka, group, topic, starts):
        if message is None:
            tails[partition] = tails[partition]._replace(end=offset)
            continue
        passed_on = opening_in(message)
        if passed_on is None:
            tails[partition].strays.append(offset)
        else:
            tails[partition].found.append((offset, *passed_on))
    return tails


def opening_in(message: Message) -> tuple[int, bytes, bytes, str] | None:
    """Return (offset in the log, key, value, topic id) of a record; None if it is no worker's."""
    key: Any = message.key()
    value: Any = message.value()
    if not isinstance(key, bytes) or not isinstance(value, bytes):
        return None
    source_offset, topic_id = place_of(message)
    is_worded = value.startswith(MARKER) and not value.startswith(SEGMENT_HEADER)
    return (
        (source_offset, key, value, topic_id) if is_worded and source_offset is not None else None
    )


def place_of(message: Message) -> tuple[int | None, str]:
    """Return where in the log the opening lies that a record of the orders topic passes on.

    That is its offset, None where the record doesn't say, and the id of the segments topic, ""
    where the record has none.
    """
    headers = headers_in(message)
    offset = _only(headers, SOURCE_OFFSET) or b""
    topic_id = sys.intern((_only(headers, SEGMENTS_TOPIC_ID) or b"").decode("utf-8", "replace"))
    is_offset = offset.isdigit() and len(offset) <= OFFSET_DIGITS_MAX
    return (int(offset) if is_offset else None), topic_id


def _only(headers: Headers, wanted: str) -> bytes | None:
    """Return the content of the one header of a name; None: there is none, or are several."""
    contents = [content for name, content in headers if name == wanted]
    return contents[0] if len(contents) == 1 else None
