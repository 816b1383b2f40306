"""Which records of the totals or the orders topic may be some worker's results.

What might be the result of another version of Durabill is one, though we can't read it. What has
not even the form, a segment that was sent to the wrong topic, say, is nobody's.
"""

from collections.abc import Callable

from confluent_kafka import Message

from durabill.schemas import SEGMENT_HEADER, BadTotal, decode_total, is_opening
from durabill.schemas.codec import FRAMING_SIZE, MARKER
from durabill.stream_processors.kafka.openings import opening_in

IsResult = Callable[[Message], bool]


def may_be_total(key: object, value: object) -> bool:
    """Tell whether a record of the totals topic may be some worker's."""
    if not isinstance(key, bytes) or not isinstance(value, bytes):
        return False
    if value.startswith(MARKER):
        return not value.startswith(SEGMENT_HEADER) and not is_opening(value)
    if value[:1] != b"\0" or len(value) <= FRAMING_SIZE:
        return False
    try:
        decode_total(value)
    except BadTotal:
        return False
    return True


def is_total_record(message: Message) -> bool:
    """Tell the same of a message."""
    return may_be_total(message.key(), message.value())


def is_order_record(message: Message) -> bool:
    """Tell whether a record of the orders topic may be some worker's."""
    return opening_in(message) is not None
