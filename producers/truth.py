"""The fleet's own oracle: what every total must be, worked out naively from the log.

Theory of operation. This module shares nothing with the stream processor on purpose: it has
its own reader of the wire form, its own union and its own settling, so that one mistake can't
be on both sides of a comparison. It keeps, of each order, the plain list of its accepted
records, and computes every total from that list from scratch: intervals by sorting and
sweeping, numbers as a set. Where speed and obviousness disagree, obviousness wins.

`judge` says what becomes of one record, `history` which totals one order's accepted records
give, and `read_log` does both for a whole topic. Times are ms since the epoch by the broker's
append time, intervals half-open [start, end).
"""

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

from schemas import (
    Interval,
    NumberRange,
    OrderTotal,
    Reason,
    SegmentEvent,
    Status,
    partition_for,
)

FUTURE_TOLERANCE_MS = 60_000
SEGMENT_MAX_MS = 86_400_000
FORGET_MARGIN_MS = 60_000
SENT_ON_BYTES_MAX = 1_000_000
SEGMENT_MARKER = b"\xc3\x01"
SEGMENT_FINGERPRINT = bytes.fromhex("ba627070e049bb87")
CLOCK_MARK_FINGERPRINT = bytes.fromhex("d6eb9f219c18dc00")
FORWARDED_FROM = "forwarded_from"
"""Header of a copy that was sent on to its right partition: b"<partition>/<offset>" it had."""

Headers = tuple[tuple[str, bytes | None], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """How long the processor waits: the three times that decide when orders settle."""

    settle_grace_ms: int = 30_000
    idle_timeout_ms: int = 300_000
    correction_window_ms: int = 86_400_000


class Arrived(NamedTuple):
    """One accepted record; `arrival_ms` is the partition's greatest append time so far."""

    offset: int
    arrival_ms: int
    event: SegmentEvent


class LogRecord(NamedTuple):
    """One record as it lies in the segments topic; `append_ms` is the broker's own time."""

    partition: int
    offset: int
    append_ms: int
    key: bytes | None
    value: bytes | None
    headers: Headers


class DeadLetter(NamedTuple):
    """A rejected record by where it came from, and the reason that it must get."""

    reason: Reason
    partition: int
    offset: int


@dataclass(slots=True)
class LogTruth:
    """What a log must have led to once every deadline has passed.

    `totals` has all revisions of each order, oldest first. `sent_on` has b"<partition>/<offset>"
    of each record that must be sent on to its right partition, `forwarded` those of which a
    copy was found there.
    """

    totals: dict[str, list[OrderTotal]] = field(default_factory=dict)
    dead_letters: list[DeadLetter] = field(default_factory=list)
    sent_on: set[bytes] = field(default_factory=set)
    forwarded: set[bytes] = field(default_factory=set)
    accepted: int = 0


# -- one record ---------------------------------------------------------------------------


def _read_long(body: bytes, at: int) -> tuple[int, int]:
    """Return (Avro long at `at`, the position behind it); raise ValueError if there is none."""
    plain = 0
    for place, byte in enumerate(body[at : at + 10]):
        plain += (byte & 0x7F) << (7 * place)
        if byte < 0x80:
            if plain >= 1 << 64:
                raise ValueError("the number has more than 64 bits")
            return (-(plain // 2) - 1 if plain % 2 else plain // 2), at + place + 1
    raise ValueError("the number is cut off, or has more than ten bytes")


def _read_body(body: bytes) -> tuple[bytes, int, int, int, bool]:
    """Return (number, business data number, start, end, end identifier), or raise ValueError."""
    size, at = _read_long(body, 0)
    number = body[at : at + size] if size >= 0 else b""
    if len(number) != size:
        raise ValueError("the string is cut off")
    business_data_number, at = _read_long(body, at + size)
    start_ms, at = _read_long(body, at)
    end_ms, at = _read_long(body, at)
    if body[at:] not in (b"\x00", b"\x01"):
        raise ValueError("one byte, 0 or 1, must be left for the end identifier")
    return number, business_data_number, start_ms, end_ms, body[at:] == b"\x01"


@lru_cache(100_000)
def _partition_of(number: bytes, partitions: int) -> int:
    return partition_for(number, partitions)


@lru_cache(100_000)
def _is_order_number(number: bytes) -> bool:
    try:
        text = number.decode("utf-8")
    except UnicodeDecodeError:
        return False
    controls = any(ord(char) < 0x20 or 0x7F <= ord(char) <= 0x9F for char in text)
    return 1 <= len(number) <= 64 and not controls


def is_clock_mark(record: LogRecord) -> bool:
    """Return whether a record only tells the time: of the marks' schema, well-formed, no key."""
    value = record.value or b""
    if not value.startswith(SEGMENT_MARKER + CLOCK_MARK_FINGERPRINT) or record.key is not None:
        return False
    try:
        size, at = _read_long(value, 10)
        if not 1 <= size <= min(100, len(value) - at):
            return False
        value[at : at + size].decode()
        return _read_long(value, at + size)[1] == len(value)
    except ValueError:
        return False


def _fault_of_mark(record: LogRecord, value: bytes) -> Reason:
    is_read = is_clock_mark(record._replace(key=None, value=value))
    return Reason.KEY_MISMATCH if is_read else Reason.NOT_AVRO


def judge(
    record: LogRecord, arrival_ms: int, policy: Policy, partitions: int
) -> SegmentEvent | Reason:
    """Return the segment if the record is good where it lies, else the first reason that holds.

    WRONG_PARTITION is given whether the record is there for the first time (then it must be
    sent on) or came back with the header `forwarded_from` or is too large (a dead letter).
    """
    value = record.value
    if value is None or len(value) < 10 or value[:2] != SEGMENT_MARKER:
        return Reason.NOT_AVRO
    if value[2:10] == CLOCK_MARK_FINGERPRINT:  # and yet it is no clock mark
        return _fault_of_mark(record, value)
    if value[2:10] != SEGMENT_FINGERPRINT:
        return Reason.UNKNOWN_SCHEMA
    try:
        number, business_data_number, start_ms, end_ms, end_identifier = _read_body(value[10:])
    except ValueError:
        return Reason.NOT_AVRO
    length_ms = end_ms - start_ms
    empty = length_ms == 0 and not end_identifier
    checks = (
        (record.key != number, Reason.KEY_MISMATCH),
        (not _is_order_number(number), Reason.BAD_ORDER_NUMBER),
        (business_data_number < 1, Reason.BAD_BUSINESS_DATA_NUMBER),
        (start_ms < 0 or length_ms < 0 or empty, Reason.BAD_TIME_SEQUENCE),
        (end_ms > arrival_ms + FUTURE_TOLERANCE_MS, Reason.IN_THE_FUTURE),
        (length_ms > SEGMENT_MAX_MS, Reason.TOO_LONG),
        (end_ms < arrival_ms - policy.correction_window_ms, Reason.TOO_LATE),
        (_partition_of(number, partitions) != record.partition, Reason.WRONG_PARTITION),
    )
    for holds, reason in checks:
        if holds:
            return reason
    return SegmentEvent(number.decode(), business_data_number, start_ms, end_ms, end_identifier)


def may_be_sent_on(record: LogRecord) -> bool:
    """Return whether a record is no copy of one that was, and has room for a header more."""
    size = len(record.key or b"") + len(record.value or b"")
    size += sum(len(name.encode()) + len(value or b"") + 10 for name, value in record.headers)
    return size <= SENT_ON_BYTES_MAX and FORWARDED_FROM not in dict(record.headers)


def forwarded_from(headers: Headers) -> bytes | None:
    """Return the well-formed b"<partition>/<offset>" that a copy was sent on from, or None."""
    found = (value for name, value in headers if name == FORWARDED_FROM and value is not None)
    return next((value for value in found if re.fullmatch(rb"\d{1,9}/\d{1,18}", value)), None)


# -- one order ----------------------------------------------------------------------------


def union(pieces: Iterable[tuple[int, int]]) -> tuple[Interval, ...]:
    """Return the union of half-open pieces: sorted, disjoint, not touching, no empty ones."""
    merged: list[Interval] = []
    for start_ms, end_ms in sorted(piece for piece in pieces if piece[0] < piece[1]):
        if merged and start_ms <= merged[-1].end_ms:
            merged[-1] = Interval(merged[-1].start_ms, max(merged[-1].end_ms, end_ms))
        else:
            merged.append(Interval(start_ms, end_ms))
    return tuple(merged)


def ranges(numbers: Iterable[int]) -> tuple[NumberRange, ...]:
    """Return the numbers as ascending ranges, both ends included."""
    found: list[NumberRange] = []
    for number in sorted(set(numbers)):
        if found and found[-1].last + 1 == number:
            found[-1] = NumberRange(found[-1].first, number)
        else:
            found.append(NumberRange(number, number))
    return tuple(found)


def missing(numbers: Iterable[int], greatest: int) -> tuple[NumberRange, ...]:
    """Return what is not there of 1..greatest; `greatest` may be astronomical."""
    gaps: list[NumberRange] = []
    expected = 1
    for first, last in ranges(number for number in numbers if number <= greatest):
        if expected < first:
            gaps.append(NumberRange(expected, first - 1))
        expected = last + 1
    if expected <= greatest:
        gaps.append(NumberRange(expected, greatest))
    return tuple(gaps)


class Evidence(NamedTuple):
    """What an order's total rests on; records that don't change it can't reopen the order."""

    intervals: tuple[Interval, ...]
    numbers: tuple[NumberRange, ...]
    end_number: int | None


def evidence(records: Iterable[Arrived]) -> Evidence:
    """Return the evidence that these records give together."""
    events = [record.event for record in records]
    ends = [event.business_data_number for event in events if event.end_identifier]
    return Evidence(
        union((event.start_ms, event.end_ms) for event in events),
        ranges(event.business_data_number for event in events),
        max(ends, default=None),
    )


def digest(order_number: str, facts: Evidence) -> str:
    """Return the SHA-256, in lower hex, of the canonical text of an order's evidence."""
    lines = (
        "durabill-evidence-1",
        order_number,
        ",".join(f"{start}-{end}" for start, end in facts.intervals),
        ",".join(f"{first}-{last}" for first, last in facts.numbers),
        "-" if facts.end_number is None else str(facts.end_number),
    )
    return hashlib.sha256("".join(line + "\n" for line in lines).encode()).hexdigest()


def total_of(
    records: Sequence[Arrived], partition: int, settled_at_ms: int, previous: OrderTotal | None
) -> OrderTotal:
    """Return the total that these accepted records of one order, in log order, give."""
    events = [record.event for record in records]
    facts = evidence(records)
    numbers = {event.business_data_number for event in events}
    end = facts.end_number
    gaps = missing(numbers, max(numbers) if end is None else end)
    status = Status.ABANDONED if end is None else Status.INCOMPLETE if gaps else Status.COMPLETE
    duration_ms = sum(end_ms - start_ms for start_ms, end_ms in facts.intervals)
    started_ms = min(event.start_ms for event in events)
    ended_ms = max(event.end_ms for event in events)
    order_number = events[0].service_order_number
    return OrderTotal(
        service_order_number=order_number,
        revision=previous.revision + 1 if previous else 1,
        status=status,
        duration_ms=duration_ms,
        upper_bound_ms=duration_ms if status is Status.COMPLETE else ended_ms - started_ms,
        started_ms=started_ms,
        ended_ms=ended_ms,
        intervals=facts.intervals,
        end_number=end,
        missing_numbers=gaps,
        segments=len(numbers),
        duplicates=len(events) - len(numbers),
        overlap_ms=sum(event.end_ms - event.start_ms for event in events) - duration_ms,
        numbers_after_end=0 if end is None else sum(number > end for number in numbers),
        digest=digest(order_number, facts),
        previous_digest=previous.digest if previous else "",
        source_partition=partition,
        source_offset=records[-1].offset,
        settled_at_ms=settled_at_ms,
    )


class _Order:
    """One order from its first record until it is forgotten."""

    def __init__(self, policy: Policy, partition: int) -> None:
        self.policy = policy
        self.partition = partition
        self.records: list[Arrived] = []
        self.numbers: set[int] = set()
        self.end_number: int | None = None
        self.deadline_ms: int | None = None  # None: settled, or nothing has come yet
        self.totals: list[OrderTotal] = []

    def settle(self, at_ms: int) -> None:
        previous = self.totals[-1] if self.totals else None
        self.totals.append(total_of(self.records, self.partition, at_ms, previous))
        self.deadline_ms = None

    def settle_if_due(self, now_ms: int | None) -> None:
        """Settle if the deadline is not after `now_ms`; None means the end of time."""
        if self.deadline_ms is not None and (now_ms is None or self.deadline_ms <= now_ms):
            self.settle(self.deadline_ms)

    def is_forgotten(self, now_ms: int) -> bool:
        if self.deadline_ms is not None or not self.totals:
            return False
        ended_ms = max(record.event.end_ms for record in self.records)
        kept_from_ms = max(self.totals[-1].settled_at_ms, ended_ms - FUTURE_TOLERANCE_MS)
        return now_ms > kept_from_ms + self.policy.correction_window_ms + FORGET_MARGIN_MS

    def is_complete(self) -> bool:
        end = self.end_number
        if end is None or len(self.numbers) < end:
            return False
        return all(number in self.numbers for number in range(1, end + 1))

    def accept(self, record: Arrived) -> None:
        settled = self.deadline_ms is None and bool(self.records)
        if settled and evidence([*self.records, record]) == evidence(self.records):
            self.records.append(record)  # the counts move, to be seen in a later revision if any
            return
        had_ended = self.end_number is not None
        self.records.append(record)
        self.numbers.add(record.event.business_data_number)
        if record.event.end_identifier:
            self.end_number = max(self.end_number or 0, record.event.business_data_number)
        if self.is_complete():
            self.settle(record.arrival_ms)
        elif self.end_number is None:
            self.deadline_ms = record.arrival_ms + self.policy.idle_timeout_ms
        elif settled or not had_ended:
            self.deadline_ms = record.arrival_ms + self.policy.settle_grace_ms


def history(
    records: Iterable[Arrived], policy: Policy, *, partition: int, until_ms: int | None = None
) -> list[OrderTotal]:
    """Return every revision that one order's accepted records must have given, oldest first.

    `records` in log order. Deadlines up to and including `until_ms` have fired; None: all have.
    An order that was forgotten starts again at revision 1, so revisions may repeat in the list.
    """
    totals: list[OrderTotal] = []
    order = _Order(policy, partition)
    for record in records:
        order.settle_if_due(record.arrival_ms)
        if order.is_forgotten(record.arrival_ms):
            totals += order.totals
            order = _Order(policy, partition)
        order.accept(record)
    order.settle_if_due(until_ms)
    return totals + order.totals


# -- a whole topic ------------------------------------------------------------------------


def read_log(
    records: Iterable[LogRecord], policy: Policy, partitions: int, until_ms: int | None = None
) -> LogTruth:
    """Return what the log must have led to. Each partition's records must come in offset order.

    A record in the wrong partition counts only as the first accepted copy of it that was sent on.
    """
    truth = LogTruth()
    arrival_ms: dict[int, int] = {}
    accepted: dict[str, list[Arrived]] = {}
    counted: set[bytes] = set()
    for record in records:
        now_ms = max(record.append_ms, arrival_ms.get(record.partition, 0))
        arrival_ms[record.partition] = now_ms
        if is_clock_mark(record):
            continue
        judged = judge(record, now_ms, policy, partitions)
        origin = forwarded_from(record.headers)
        if judged is Reason.WRONG_PARTITION and may_be_sent_on(record):
            truth.sent_on.add(b"%d/%d" % (record.partition, record.offset))
            continue
        if origin is not None:
            truth.forwarded.add(origin)
        if isinstance(judged, Reason):
            truth.dead_letters.append(DeadLetter(judged, record.partition, record.offset))
        elif origin is None or origin not in counted:
            counted.update(() if origin is None else (origin,))
            arrived = Arrived(record.offset, now_ms, judged)
            accepted.setdefault(judged.service_order_number, []).append(arrived)
            truth.accepted += 1
    for number, of_order in accepted.items():
        partition = partition_for(number.encode(), partitions)
        truth.totals[number] = history(of_order, policy, partition=partition, until_ms=until_ms)
    return truth
