"""The fleet's own oracle: what every total must be, worked out naively from the log.

Theory of operation. This module and `truth_order` share nothing with the stream processor on
purpose: they have their own reader of the wire form, their own union and their own settling, so
that one mistake can't be on both sides of a comparison. Where speed and obviousness disagree,
obviousness wins.

`judge` says what becomes of one record by itself, `truth_order.history` which totals one order's
records give, and `read_log` does both for a whole topic. Times are ms since the epoch by the
broker's append time, intervals half-open [start, end).
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

from durabill.producers.fleet.truth_order import (
    FUTURE_TOLERANCE_MS,
    PIECES_MAX,
    Arrived,
    Fate,
    OrderHistory,
    Policy,
)
from durabill.schemas import OrderTotal, Reason, SegmentEvent, partition_for

SEGMENT_MAX_MS = 86_400_000
OFFSET_MAX = 2**63 - 1
SENT_ON_BYTES_MAX = 1_000_000
SEGMENT_MARKER = b"\xc3\x01"
SEGMENT_FINGERPRINT = bytes.fromhex("ba627070e049bb87")
CLOCK_MARK_FINGERPRINT = bytes.fromhex("d6eb9f219c18dc00")
FORWARDED_FROM = "forwarded_from"
"""Header of a copy that was sent on to its right partition: b"<partition>/<offset>" it had."""

Headers = tuple[tuple[str, bytes | None], ...]


class LogRecord(NamedTuple):
    """One record as it lies in the segments topic; `append_ms` is the broker's own time."""

    partition: int
    offset: int
    append_ms: int
    key: bytes | None
    value: bytes | None
    headers: Headers


PolicyOf = Callable[[int, int], Policy]
"""Returns the policy for a record by its partition and offset."""


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


def forwarded_from(headers: Headers, partition: int, partitions: int) -> bytes | None:
    """Return the b"<partition>/<offset>" that a copy in `partition` was sent on from, or None.

    One that is not well-formed or names no other partition of the topic is no origin.
    """
    for name, value in headers:
        if name == FORWARDED_FROM and re.fullmatch(rb"\d{1,9}/\d{1,18}", value or b""):
            origin = int((value or b"").split(b"/")[0])
            if origin != partition and origin < partitions:
                return value
    return None


# -- a whole topic ------------------------------------------------------------------------


def read_log(
    records: Iterable[LogRecord],
    policy: Policy | PolicyOf,
    partitions: int,
    until_ms: int | None = None,
    *,
    pieces_max: int = PIECES_MAX,
) -> LogTruth:
    """Return what the log must have led to. Each partition's records must come in offset order.

    A record in the wrong partition counts only as the first accepted copy of it that was sent on.
    `policy` is one for all, or what gives the one for a record by its partition and offset.
    `pieces_max` is for tests: how many intervals or ranges of numbers an order may have.
    """
    truth = LogTruth()
    policy_of = policy if callable(policy) else (lambda partition, offset: policy)
    arrival_ms: dict[int, int] = {}
    in_force: dict[int, Policy] = {}
    orders: dict[str, OrderHistory] = {}
    partition_of: dict[str, int] = {}
    for record in records:
        now = policy_of(record.partition, record.offset)
        if in_force.setdefault(record.partition, now) != now:
            for number, order in orders.items():
                if partition_of[number] == record.partition:
                    order.change_policy(now, arrival_ms[record.partition])
            in_force[record.partition] = now
        now_ms = max(record.append_ms, arrival_ms.get(record.partition, 0))
        arrival_ms[record.partition] = now_ms
        if is_clock_mark(record):
            continue
        judged = judge(record, now_ms, now, partitions)
        if judged is Reason.WRONG_PARTITION and may_be_sent_on(record):
            truth.sent_on.add(b"%d/%d" % (record.partition, record.offset))
            continue
        origin = forwarded_from(record.headers, record.partition, partitions)
        if origin is not None:
            truth.forwarded.add(origin)
        if isinstance(judged, SegmentEvent):
            number = judged.service_order_number
            if number not in orders:
                orders[number] = OrderHistory(now, record.partition, pieces_max)
                partition_of[number] = record.partition
            fate = orders[number].take(Arrived(record.offset, now_ms, judged), origin)
            truth.accepted += fate is Fate.ACCEPTED
            if fate is not Fate.REFUSED:
                continue
            judged = Reason.TOO_FRAGMENTED
        truth.dead_letters.append(DeadLetter(judged, record.partition, record.offset))
    for number, order in orders.items():
        # What will move the time from here on comes after all that there is.
        partition = partition_of[number]
        order.change_policy(policy_of(partition, OFFSET_MAX), arrival_ms[partition])
        truth.totals[number] = order.finish(until_ms)
    return truth
