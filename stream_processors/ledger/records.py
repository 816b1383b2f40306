"""What the ledger reads: records of the totals topic, and what can be wrong. Pure.

LedgerError             the ledger stops: trying again would not help
  OffsetOutOfRange      the records after its offset are not in the topic
  TopicReplaced         the topic was deleted and recreated
Fenced                  nobody's error: read the offsets again, go on
"""

from dataclasses import dataclass

from durabill.schemas import BadTotal, OrderTotal, decode_total
from durabill.schemas.errors import DurabillError

NOT_A_TOTAL = "NOT_A_TOTAL"
"""Reason of a record whose value cannot be read as an OrderTotal, or contradicts itself."""

KEY_MISMATCH = "KEY_MISMATCH"
"""Reason of a total whose record has another key than its order number."""

AGAINST_RULES = "AGAINST_RULES"
"""Reason of a record which reads as a total but which the tables' constraints refuse."""

Key = tuple[str, int]
"""A service order number and a revision."""


class LedgerError(DurabillError):
    """The ledger can't go on, and trying again would not help; the message says what to do."""


class Fenced(Exception):
    """Another ledger has moved (or an operator has removed) the offsets: nothing was written.

    Not the end: read the offsets again and go on from there.
    """


class OffsetOutOfRange(LedgerError):
    """The records after the ledger's offset are not in the topic any more, or not yet."""


class TopicReplaced(LedgerError):
    """The topic was deleted and recreated: the ledger's offsets count another topic's records."""


@dataclass(frozen=True, slots=True)
class RawRecord:
    """One record of the totals topic as it came; `append_ms` is the broker's append time."""

    partition: int
    offset: int
    append_ms: int
    key: bytes | None
    value: bytes | None


@dataclass(frozen=True, slots=True)
class RecordedTotal:
    """A total with the record that brought it."""

    total: OrderTotal
    record: RawRecord

    @property
    def key(self) -> Key:
        """Return what a revision is known by."""
        return self.total.service_order_number, self.total.revision


@dataclass(frozen=True, slots=True)
class UnreadableRecord:
    """A record that is no total, and why: `reason` is a constant, `detail` a sentence."""

    record: RawRecord
    reason: str
    detail: str


def read_record(record: RawRecord) -> RecordedTotal | UnreadableRecord:
    """Return a record of the totals topic as a total, or why it is none."""
    try:
        total = decode_total(record.value)
    except BadTotal as error:
        return UnreadableRecord(record, NOT_A_TOTAL, str(error))
    # The key is what kept the order in one partition, in order.
    if record.key != total.service_order_number.encode():
        detail = f"the total is of {total.service_order_number!r}, the key is {record.key!r}"
        return UnreadableRecord(record, KEY_MISMATCH, detail)
    return RecordedTotal(total, record)


def check_range(topic: str, partition: int, next_offset: int, low: int, high: int) -> None:
    """Raise OffsetOutOfRange, which names the choices, unless low <= next_offset <= high."""
    if low <= next_offset <= high:
        return
    if next_offset < low:
        what = f"{low - next_offset} offsets that the ledger has never read are gone from the topic"
    else:
        what = "the topic has lost records which the ledger has read, or is another one"
    raise OffsetOutOfRange(
        f"{topic}/{partition}: the ledger is at offset {next_offset}, the topic holds "
        f"[{low}, {high}): {what}. Either bring the records back (the right cluster, a restored "
        f"topic, retention.ms=-1 from now on), or accept what is missing and let the partition be "
        f"read from its first record: DELETE FROM ledger_offsets WHERE topic = '{topic}' AND "
        f"partition = {partition}; what is recorded stays and repeats change nothing."
    )
