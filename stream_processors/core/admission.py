"""Which records an order takes in: the rules of the contract that need a clock, a key or an order.

A record is judged in two steps. `accept` looks at the record alone: is it a legal segment, is it in
time? `admit` looks at what is known of its order: does it begin one, does it count, or does it
belong in another partition? Both raise BadRecord for a record that becomes a dead letter, with the
first reason that holds, in the sequence of `schemas.Reason`.
"""

from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple, Protocol

from durabill.schemas import BadRecord, Reason, SegmentEvent, limits, partition_for, to_segment
from durabill.schemas.headers import FORWARDED_FROM
from durabill.schemas.limits import FUTURE_TOLERANCE_MS, ORDER_PIECES_MAX, SEGMENT_LENGTH_MAX_MS
from durabill.schemas.units import refused_time
from durabill.schemas.wire import Headers, RawSegment
from durabill.stream_processors.core.order import Order, Policy, Source


@dataclass(frozen=True, slots=True)
class Place:
    """Which partition of how many is being folded."""

    partition: int
    partitions: int

    def __post_init__(self) -> None:
        assert 0 <= self.partition < self.partitions


class LogRecord(Protocol):
    """A record of the log, as `engine.batch.Record` is one. `append_ms` is the broker's time."""

    @property
    def offset(self) -> int:
        """Return its offset."""

    @property
    def append_ms(self) -> int:
        """Return when the broker appended it."""

    @property
    def key(self) -> bytes | None:
        """Return its key."""

    @property
    def value(self) -> bytes | None:
        """Return its value."""

    @property
    def headers(self) -> Headers:
        """Return its headers."""

    @property
    def size(self) -> int:
        """Return the bytes of its parts."""


class Fate(Enum):
    """What becomes of a legal segment."""

    BEGINS = "its order is not known, or forgotten: it begins a life of it"
    COUNTS = "its order takes it in"
    SEEN_BEFORE = "it was forwarded, and its order has taken it in already"
    FORWARDED = "its order lives in another partition, where it is sent"


class Admission(NamedTuple):
    """What becomes of a record. `partition` is its order's; it was forwarded from `source`."""

    fate: Fate
    partition: int
    source: Source | None


def accept(raw: RawSegment, key: bytes | None, clock_ms: int, policy: Policy) -> SegmentEvent:
    """Return the segment in a record, or raise BadRecord for the first rule that it breaks.

    `raw` is what was read of its value, `clock_ms` the partition's clock at the record.
    """
    if key != raw[0]:
        raise BadRecord(Reason.KEY_MISMATCH, f"the key is {key!r}, not {raw[0]!r}")
    event = to_segment(raw)
    times_ms = event.start_ms, event.end_ms
    length_ms = event.end_ms - event.start_ms
    ahead_ms = event.end_ms - clock_ms
    if ahead_ms > FUTURE_TOLERANCE_MS:
        detail = f"ends {ahead_ms} ms after its arrival"
        raise refused_time(Reason.IN_THE_FUTURE, detail, *times_ms)
    if length_ms > SEGMENT_LENGTH_MAX_MS:
        detail = f"{length_ms} ms, {SEGMENT_LENGTH_MAX_MS} are allowed"
        raise refused_time(Reason.TOO_LONG, detail, *times_ms)
    if -ahead_ms > policy.correction_window_ms:
        detail = f"ended {-ahead_ms} ms before its arrival"
        raise refused_time(Reason.TOO_LATE, detail, *times_ms)
    return event


def admit(
    record: LogRecord,
    event: SegmentEvent,
    order: Order | None,
    place: Place,
    clock_ms: int,
    pieces_max: int = ORDER_PIECES_MAX,
) -> Admission:
    """Return what becomes of a record that holds an accepted segment.

    `order` is what is known of the segment's order in this partition; every total that is due by
    `clock_ms` has been given. Raises BadRecord(WRONG_PARTITION or TOO_FRAGMENTED).
    """
    source = source_of(record.headers, place)
    if order is None:
        assert record.key is not None
        partition = partition_for(record.key, place.partitions)
        if partition == place.partition:
            return Admission(Fate.BEGINS, partition, source)
        problem = _why_not_forwarded(record)
        if problem is None:
            return Admission(Fate.FORWARDED, partition, source)
        detail = f"belongs in partition {partition} and {problem}"
        raise BadRecord(Reason.WRONG_PARTITION, detail)
    fate = Fate.COUNTS
    if order.is_forgotten(clock_ms):
        fate = Fate.BEGINS
    elif order.has_seen(source):
        fate = Fate.SEEN_BEFORE
    elif (excess := order.excess(event, pieces_max)) is not None:
        detail = f"its order has {pieces_max:,} {excess}, and it adds one"
        raise BadRecord(Reason.TOO_FRAGMENTED, detail)
    return Admission(fate, place.partition, source)


def source_of(headers: Headers, place: Place) -> Source | None:
    """Return where a record was forwarded to `place` from; None if it was not.

    Anybody can write this header. One that names no other partition of the topic doesn't count.
    What doesn't fit 64 bits must not reach a checkpoint.
    """
    for name, content in headers:
        if name == FORWARDED_FROM and content is not None:
            partition, _, offset = content.partition(b"/")
            sizes_fit = len(partition) <= 9 and len(offset) <= 18
            is_sound = partition.isdigit() and offset.isdigit() and sizes_fit
            if is_sound and place.partition != int(partition) < place.partitions:
                return int(partition), int(offset)
    return None


def _why_not_forwarded(record: LogRecord) -> str | None:
    """Return what keeps a record in a wrong partition from being forwarded; None: nothing."""
    if any(name == FORWARDED_FROM for name, _ in record.headers):
        return "has been sent on before"
    if record.size > limits.FORWARD_BYTES_MAX:
        return f"is too large to be sent on: {record.size} bytes"
    return None
