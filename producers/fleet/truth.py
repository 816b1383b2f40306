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

from durabill.producers.fleet.truth_opening import claims_to_open, judge_opening
from durabill.producers.fleet.truth_order import (
    FUTURE_TOLERANCE_MS,
    PIECES_MAX,
    Arrived,
    Fate,
    Opening,
    OrderHistory,
    Policy,
)
from durabill.producers.fleet.truth_wire import Headers, is_order_number, read_body, read_long
from durabill.producers.fleet.truth_wire import LogRecord as LogRecord
from durabill.schemas import OrderTotal, Reason, SegmentEvent, partition_for

SEGMENT_MAX_MS = 86_400_000
OFFSET_MAX = 2**63 - 1
SENT_ON_BYTES_MAX = 1_000_000
SEGMENT_MARKER = b"\xc3\x01"
SEGMENT_FINGERPRINT = bytes.fromhex("ba627070e049bb87")
CLOCK_MARK_FINGERPRINT = bytes.fromhex("d6eb9f219c18dc00")
FORWARDED_FROM = "forwarded_from"
"""Header of a copy that was sent on to its right partition: b"<partition>/<offset>" it had."""

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
    copy was found there. `opened` has the same of each opening that was accepted.
    """

    totals: dict[str, list[OrderTotal]] = field(default_factory=dict)
    dead_letters: list[DeadLetter] = field(default_factory=list)
    sent_on: set[bytes] = field(default_factory=set)
    forwarded: set[bytes] = field(default_factory=set)
    opened: set[bytes] = field(default_factory=set)
    accepted: int = 0


# -- one record ---------------------------------------------------------------------------


@lru_cache(100_000)
def _partition_of(number: bytes, partitions: int) -> int:
    return partition_for(number, partitions)


def is_clock_mark(record: LogRecord) -> bool:
    """Return whether a record only tells the time: of the marks' schema, well-formed, no key."""
    value = record.value or b""
    if not value.startswith(SEGMENT_MARKER + CLOCK_MARK_FINGERPRINT) or record.key is not None:
        return False
    try:
        size, at = read_long(value, 10)
        if not 1 <= size <= min(100, len(value) - at):
            return False
        value[at : at + size].decode()
        return read_long(value, at + size)[1] == len(value)
    except ValueError:
        return False


def _fault_of_mark(record: LogRecord, value: bytes) -> Reason:
    is_read = is_clock_mark(record._replace(key=None, value=value))
    return Reason.KEY_MISMATCH if is_read else Reason.NOT_AVRO


def judge(
    record: LogRecord,
    arrival_ms: int,
    policy: Policy,
    partitions: int,
    opening: Opening | None = None,
) -> SegmentEvent | Reason:
    """Return the segment if the record is good where it lies, else the first reason that holds.

    `opening` is its order's, which may still take it late. WRONG_PARTITION is given whether the
    record is there for the first time (then it must be sent on) or came back with the header
    `forwarded_from` or is too large (a dead letter).
    """
    value = record.value
    if value is None or len(value) < 10 or value[:2] != SEGMENT_MARKER:
        return Reason.NOT_AVRO
    if value[2:10] == CLOCK_MARK_FINGERPRINT:  # and yet it is no clock mark
        return _fault_of_mark(record, value)
    if value[2:10] != SEGMENT_FINGERPRINT:
        return Reason.UNKNOWN_SCHEMA
    try:
        number, business_data_number, start_ms, end_ms, end_identifier = read_body(value[10:])
    except ValueError:
        return Reason.NOT_AVRO
    length_ms = end_ms - start_ms
    empty = length_ms == 0 and not end_identifier
    is_taken_late = opening is not None and arrival_ms <= opening.until_ms
    is_old = end_ms < arrival_ms - policy.correction_window_ms
    checks = (
        (record.key != number, Reason.KEY_MISMATCH),
        (not is_order_number(number), Reason.BAD_ORDER_NUMBER),
        (business_data_number < 1, Reason.BAD_BUSINESS_DATA_NUMBER),
        (start_ms < 0 or length_ms < 0 or empty, Reason.BAD_TIME_SEQUENCE),
        (end_ms > arrival_ms + FUTURE_TOLERANCE_MS, Reason.IN_THE_FUTURE),
        (length_ms > SEGMENT_MAX_MS, Reason.TOO_LONG),
        (is_old and not is_taken_late, Reason.TOO_LATE),
        (_partition_of(number, partitions) != record.partition, Reason.WRONG_PARTITION),
    )
    for holds, reason in checks:
        if holds:
            return reason
    return SegmentEvent(number.decode(), business_data_number, start_ms, end_ms, end_identifier)


def judge_opening_there(record: LogRecord, arrival_ms: int, partitions: int) -> Opening | Reason:
    """Return the opening if the record is a good one where it lies, else the first reason."""
    found = judge_opening(record, arrival_ms)
    if isinstance(found, Reason):
        return found
    is_here = _partition_of(found[0], partitions) == record.partition
    return found[1] if is_here else Reason.WRONG_PARTITION


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
    policy_of = policy if callable(policy) else (lambda partition, offset: policy)
    log = _Log(policy_of, partitions, pieces_max)
    for record in records:
        log.read(record)
    return log.finish(until_ms)


class _Log:
    """What has been read of a log so far, record by record."""

    def __init__(self, policy_of: PolicyOf, partitions: int, pieces_max: int) -> None:
        self._policy_of = policy_of
        self._partitions = partitions
        self._pieces_max = pieces_max
        self._truth = LogTruth()
        self._arrival_ms: dict[int, int] = {}
        self._in_force: dict[int, Policy] = {}
        self._orders: dict[bytes, OrderHistory] = {}
        self._partition_of: dict[bytes, int] = {}

    def read(self, record: LogRecord) -> None:
        """Take in the next record of its partition."""
        now_ms = self._pass_time(record)
        if is_clock_mark(record):
            return
        verdict, is_misplaced = self._judge(record, now_ms)
        if is_misplaced and may_be_sent_on(record):
            self._truth.sent_on.add(_place(record))
            return
        origin = forwarded_from(record.headers, record.partition, self._partitions)
        if origin is not None:
            self._truth.forwarded.add(origin)
        why: Reason | None
        if isinstance(verdict, SegmentEvent):
            why = self._take(record, now_ms, verdict, origin)
        elif isinstance(verdict, Opening):
            why = self._open(record, now_ms, verdict)
        else:
            why = verdict
        if why is not None:
            letter = DeadLetter(why, record.partition, record.offset)
            self._truth.dead_letters.append(letter)

    def _pass_time(self, record: LogRecord) -> int:
        """Have a record's policy in force; return its arrival."""
        partition = record.partition
        now = self._policy_of(partition, record.offset)
        if self._in_force.setdefault(partition, now) != now:
            for number, order in self._orders.items():
                if self._partition_of[number] == partition:
                    order.change_policy(now, self._arrival_ms[partition])
            self._in_force[partition] = now
        now_ms = max(record.append_ms, self._arrival_ms.get(partition, 0))
        self._arrival_ms[partition] = now_ms
        return now_ms

    def _judge(
        self, record: LogRecord, now_ms: int
    ) -> tuple[SegmentEvent | Opening | Reason, bool]:
        """Judge a record by itself; tell also if its only fault is to be in a wrong partition."""
        if claims_to_open(record):
            found = judge_opening_there(record, now_ms, self._partitions)
            return found, found is Reason.WRONG_PARTITION
        opening, key = None, record.key or b""
        if self._partition_of.get(key) == record.partition:
            opening = self._orders[key].opening_at(now_ms)
        policy = self._in_force[record.partition]
        judged = judge(record, now_ms, policy, self._partitions, opening)
        return judged, judged is Reason.WRONG_PARTITION

    def _order(self, record: LogRecord) -> OrderHistory:
        key = record.key or b""
        if key not in self._orders:
            now = self._in_force[record.partition]
            self._orders[key] = OrderHistory(now, record.partition, self._pieces_max)
            self._partition_of[key] = record.partition
        return self._orders[key]

    def _take(
        self, record: LogRecord, now_ms: int, event: SegmentEvent, origin: bytes | None
    ) -> Reason | None:
        """Give a segment to its order; return why it refuses it, None if it doesn't."""
        fate = self._order(record).take(Arrived(record.offset, now_ms, event), origin)
        self._truth.accepted += fate is Fate.ACCEPTED
        return fate if isinstance(fate, Reason) else None

    def _open(self, record: LogRecord, now_ms: int, opening: Opening) -> Reason | None:
        """Open an order; return why that is refused, None if it isn't."""
        fate = self._order(record).open(opening, now_ms)
        if fate is Fate.ACCEPTED:
            self._truth.opened.add(_place(record))
        return fate if isinstance(fate, Reason) else None

    def finish(self, until_ms: int | None) -> LogTruth:
        """Return all that it must have led to."""
        for number, order in self._orders.items():
            # What will move the time from here on comes after all that there is.
            partition = self._partition_of[number]
            order.change_policy(self._policy_of(partition, OFFSET_MAX), self._arrival_ms[partition])
            if totals := order.finish(until_ms):
                self._truth.totals[number.decode()] = totals
        return self._truth


def _place(record: LogRecord) -> bytes:
    return b"%d/%d" % (record.partition, record.offset)
