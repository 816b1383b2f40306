"""Which records an order takes in: the rules of the contract that need a clock, a key or an order.

A record is judged in two steps. `accept` looks at the record alone: is it a legal segment of a time
that can have been? `admit` looks at what is known of its order: is it in time, does it begin the
order, does it count, or does it belong in another partition? Openings are judged likewise, by
`accept_opening` and `admit_opening`. All raise BadRecord for a record that becomes a dead letter,
with the first reason that holds, in the sequence of `schemas.Reason`.
"""

from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple, Protocol

from durabill.schemas import (
    BadRecord,
    OrderOpened,
    Reason,
    SegmentEvent,
    limits,
    partition_for,
    read_opening,
    to_segment,
)
from durabill.schemas.headers import FORWARDED_FROM
from durabill.schemas.limits import FUTURE_TOLERANCE_MS, ORDER_PIECES_MAX, SEGMENT_LENGTH_MAX_MS
from durabill.schemas.order_opened import check_span
from durabill.schemas.units import refused_time
from durabill.schemas.wire import Headers, RawSegment
from durabill.stream_processors.core.opening import Opened
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
    """What becomes of a legal segment, or of a legal opening."""

    BEGINS = "its order is not known, or forgotten: it begins a life of it"
    COUNTS = "its order takes it in"
    SEEN_BEFORE = "it was forwarded, and its order has taken it in already"
    FORWARDED = "its order lives in another partition, where it is sent"
    OPENS = "it opens its order, which is not known, or forgotten"
    OPENED_BEFORE = "it opens its order again, for the same client: nothing changes"
    EXTENDS = "it opens its order again, for the same client and for longer"


class Admission(NamedTuple):
    """What becomes of a record. `partition` is its order's; it was forwarded from `source`."""

    fate: Fate
    partition: int
    source: Source | None


class Known(NamedTuple):
    """What is known of a record's order in a partition, at the record.

    `opening` is one that waits for the order's first segment.
    """

    order: Order | None
    opening: Opened | None

    @property
    def is_nothing(self) -> bool:
        """Tell whether neither is known, so that the record may be in a wrong partition."""
        return self.order is None and self.opening is None

    def is_ahead_of(self, offset: int) -> bool:
        """Tell whether what is known has taken in the record at an offset: a replay brings it.

        An opening that was extended behind the record holds for it, so it is the one here.
        """
        order, opening = self
        if order is not None:
            if offset <= order.source_offset:
                return True
            begun_by = order.opening
            if begun_by is not None and offset <= begun_by.extended_at:
                return True
        return opening is not None and offset <= opening.extended_at

    def life(self, clock_ms: int) -> tuple[Order | None, Opened | None]:
        """Return the order that goes on, None where it would begin, and the opening it has."""
        order = self.order
        if order is None or order.is_forgotten(clock_ms):
            return None, self.opening
        return order, order.opening


def accept(raw: RawSegment, key: bytes | None, clock_ms: int) -> SegmentEvent:
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
    return event


def admit(
    record: LogRecord,
    event: SegmentEvent,
    known: Known,
    place: Place,
    clock_ms: int,
    policy: Policy,
    pieces_max: int = ORDER_PIECES_MAX,
) -> Admission:
    """Return what becomes of a record that holds an accepted segment.

    `known` is what is known of the segment's order in this partition; every total that is due by
    `clock_ms` has been given. Raises BadRecord for a reason from TOO_LATE on.
    """
    source = source_of(record.headers, place)
    order, opening = known.life(clock_ms)
    late_ms = clock_ms - event.end_ms
    if late_ms > policy.correction_window_ms and not _may_be_late(opening, clock_ms):
        detail = f"ended {late_ms} ms before its arrival"
        raise refused_time(Reason.TOO_LATE, detail, event.start_ms, event.end_ms)
    if known.is_nothing and (elsewhere := _elsewhere(record, place, source)) is not None:
        return elsewhere
    if order is not None and order.has_seen(source):
        return Admission(Fate.SEEN_BEFORE, place.partition, source)
    if policy.opened_only and opening is None:
        raise BadRecord(Reason.NOT_OPENED, "its order has not been opened, and has to be")
    if opening is not None and event.start_ms < opening.begin_ms:
        detail = f"begins {opening.begin_ms - event.start_ms} ms before its order was opened"
        raise refused_time(Reason.BEFORE_OPENING, detail, event.start_ms, event.end_ms)
    if order is None:
        return Admission(Fate.BEGINS, place.partition, source)
    if (excess := order.excess(event, pieces_max)) is not None:
        detail = f"its order has {pieces_max:,} {excess}, and it adds one"
        raise BadRecord(Reason.TOO_FRAGMENTED, detail)
    return Admission(Fate.COUNTS, place.partition, source)


def _may_be_late(opening: Opened | None, clock_ms: int) -> bool:
    """Tell whether an opening has segments older than the correction window taken now."""
    return opening is not None and clock_ms <= opening.accept_until_ms


def accept_opening(key: bytes | None, value: bytes, clock_ms: int) -> OrderOpened:
    """Return the opening in a record, or raise BadRecord for the first rule that it breaks.

    The order's time may not begin in the future, or it would be known for as long as anybody likes.
    """
    opened = read_opening(key, value)
    begin_ms, until_ms = opened.server_timestamp_ms, opened.accept_until_ms
    if begin_ms - clock_ms > FUTURE_TOLERANCE_MS:
        detail = f"opens its order {begin_ms - clock_ms} ms after its arrival"
        raise refused_time(Reason.IN_THE_FUTURE, detail, begin_ms, until_ms)
    check_span(opened)
    if clock_ms > until_ms:
        detail = f"accepts segments until {clock_ms - until_ms} ms before its arrival"
        raise refused_time(Reason.TOO_LATE, detail, begin_ms, until_ms)
    return opened


def admit_opening(
    record: LogRecord,
    opened: OrderOpened,
    known: Known,
    place: Place,
    clock_ms: int,
    *,
    extends: bool = True,
) -> Admission:
    """Return what becomes of a record that holds an accepted opening.

    `known` is as `admit` has it; `extends` tells whether an opening can be extended at all, which
    it couldn't by the rules of before. Raises BadRecord(WRONG_PARTITION or ALREADY_OPENED).
    """
    source = source_of(record.headers, place)
    order, opening = known.life(clock_ms)
    if known.is_nothing and (elsewhere := _elsewhere(record, place, source)) is not None:
        return elsewhere
    if order is None and opening is None:
        return Admission(Fate.OPENS, place.partition, source)
    if opening is None:
        raise BadRecord(Reason.ALREADY_OPENED, "its order has begun without an opening")
    if not opening.is_of(opened):
        detail = f"its order was opened by another client, at offset {opening.offset}"
        raise BadRecord(Reason.ALREADY_OPENED, detail)
    fate = Fate.EXTENDS if extends and opening.is_longer(opened) else Fate.OPENED_BEFORE
    return Admission(fate, place.partition, source)


def _elsewhere(record: LogRecord, place: Place, source: Source | None) -> Admission | None:
    """Return where a record of an unknown order is sent on to; None: it is in the right place.

    Raises BadRecord(WRONG_PARTITION).
    """
    assert record.key is not None
    partition = partition_for(record.key, place.partitions)
    if partition == place.partition:
        return None
    problem = _why_not_forwarded(record)
    if problem is None:
        return Admission(Fate.FORWARDED, partition, source)
    detail = f"belongs in partition {partition} and {problem}"
    raise BadRecord(Reason.WRONG_PARTITION, detail)


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
