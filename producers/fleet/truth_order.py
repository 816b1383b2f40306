"""The fleet's own oracle of one order: what its totals must be, worked out naively.

Keeps the plain list of an order's accepted records, and computes every total from that list from
scratch: intervals by sorting and sweeping, numbers as a set. See `truth`, which reads a whole log.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from durabill.schemas import Interval, NumberRange, OrderTotal, Reason, SegmentEvent, Status

FUTURE_TOLERANCE_MS = 60_000
FORGET_MARGIN_MS = 60_000
PIECES_MAX = 10_000
GRACES_MAX = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """How long the processor waits: the times that decide when an order gives a total.

    `interim_interval_ms` 0: never while it runs.
    """

    settle_grace_ms: int = 30_000
    idle_timeout_ms: int = 300_000
    correction_window_ms: int = 86_400_000
    interim_interval_ms: int = 86_400_000
    opened_only: bool = False


class Opening(NamedTuple):
    """What an order's opening says: whose it is, when it begins, and until when it takes all."""

    owner: tuple[str, str]
    begin_ms: int
    until_ms: int


class Arrived(NamedTuple):
    """One accepted record; `arrival_ms` is the partition's greatest append time so far."""

    offset: int
    arrival_ms: int
    event: SegmentEvent


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
    """What an order's total rests on."""

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
    records: Sequence[Arrived],
    partition: int,
    settled_at_ms: int,
    previous: OrderTotal | None,
    *,
    interim: bool = False,
) -> OrderTotal:
    """Return the total that these accepted records of one order, in log order, give.

    `interim`: the order goes on, whatever it has come to.
    """
    events = [record.event for record in records]
    facts = evidence(records)
    numbers = {event.business_data_number for event in events}
    end = facts.end_number
    gaps = missing(numbers, max(numbers))
    status = Status.ABANDONED if end is None else Status.INCOMPLETE if gaps else Status.COMPLETE
    if interim:
        status = Status.RUNNING
    duration_ms = sum(end_ms - start_ms for start_ms, end_ms in facts.intervals)
    started_ms = min(event.start_ms for event in events)
    ended_ms = max(event.end_ms for event in events)
    order_number = events[0].service_order_number
    at_most_ms: int | None = ended_ms - started_ms
    if status is Status.COMPLETE:
        at_most_ms = duration_ms
    elif end is None or 1 not in numbers:
        at_most_ms = None
    return OrderTotal(
        service_order_number=order_number,
        revision=previous.revision + 1 if previous else 1,
        status=status,
        duration_ms=duration_ms,
        upper_bound_ms=at_most_ms,
        started_ms=started_ms,
        ended_ms=ended_ms,
        intervals=facts.intervals,
        end_number=end,
        missing_numbers=gaps,
        segments=len(numbers),
        duplicates=len(events) - len(numbers),
        overlap_ms=sum(event.end_ms - event.start_ms for event in events) - duration_ms,
        gap_ms=ended_ms - started_ms - duration_ms,
        numbers_after_end=0 if end is None else sum(number > end for number in numbers),
        digest=digest(order_number, facts),
        previous_digest=previous.digest if previous else "",
        source_partition=partition,
        source_offset=records[-1].offset,
        settled_at_ms=settled_at_ms,
    )


class Fate(Enum):
    """What becomes of a record that its order doesn't refuse."""

    ACCEPTED = "accepted"
    PASSED_OVER = "passed over"  # a copy that has been counted, or an opening that comes again


class _Life:
    """One order from its first record until it is forgotten."""

    def __init__(self, policy: Policy, partition: int) -> None:
        self.policy = policy
        self.partition = partition
        self.records: list[Arrived] = []
        self.intervals: tuple[Interval, ...] = ()
        self.numbers: set[int] = set()
        self.greatest = 0
        self.number_ranges = 0
        self.end_number: int | None = None
        self.origins: dict[int, int] = {}  # partition -> greatest offset that copies came from
        self.deadline_ms: int | None = None  # None: settled, or nothing has come yet
        self.running_since_ms = 0  # began, was reopened, or gave its last total
        self.kept_until_ms = 0  # until when it is known, once it has settled
        self.ended_ms = 0
        self.settled = 0  # how often
        self.totals: list[OrderTotal] = []
        self.opening: Opening | None = None

    # -- time ---------------------------------------------------------------------------------

    def give(self, at_ms: int, *, interim: bool = False) -> None:
        """Give the next revision."""
        previous = self.totals[-1] if self.totals else None
        total = total_of(self.records, self.partition, at_ms, previous, interim=interim)
        self.totals.append(total)
        self.running_since_ms = at_ms

    def settle(self, at_ms: int) -> None:
        """Settle for the first time or once more."""
        self.give(at_ms)
        self.deadline_ms = None
        self.settled += 1
        kept_from_ms = max(at_ms, self.ended_ms - FUTURE_TOLERANCE_MS)
        window_ms = self.policy.correction_window_ms
        self.kept_until_ms = kept_from_ms + window_ms + FORGET_MARGIN_MS
        if self.opening is not None:
            opened_until_ms = self.opening.until_ms + FORGET_MARGIN_MS
            self.kept_until_ms = max(self.kept_until_ms, opened_until_ms)

    def pass_time(self, now_ms: int | None) -> None:
        """Give what is due not after `now_ms`; None means the end of time."""
        interval_ms = self.policy.interim_interval_ms
        while self.deadline_ms is not None:
            interim_ms = self.running_since_ms + interval_ms
            is_interim = interval_ms > 0 and interim_ms < self.deadline_ms
            due_ms = interim_ms if is_interim else self.deadline_ms
            if now_ms is not None and due_ms > now_ms:
                return
            if is_interim:
                self.give(due_ms, interim=True)
            else:
                self.settle(due_ms)

    def is_forgotten(self, now_ms: int) -> bool:
        """Tell whether the order is settled and its time to be known is over."""
        return self.deadline_ms is None and bool(self.totals) and now_ms > self.kept_until_ms

    # -- evidence -----------------------------------------------------------------------------

    def touching(self, event: SegmentEvent) -> list[Interval]:
        """Return the intervals that the event's time overlaps or touches."""
        return [
            each
            for each in self.intervals
            if each.start_ms <= event.end_ms and event.start_ms <= each.end_ms
        ]

    def ranges_with(self, number: int) -> int:
        """Return how many ranges of numbers there would be with this one."""
        if number in self.numbers:
            return self.number_ranges
        return self.number_ranges + 1 - (number - 1 in self.numbers) - (number + 1 in self.numbers)

    def is_too_much(self, event: SegmentEvent, pieces_max: int) -> bool:
        """Tell whether the record would add a piece beyond the limit."""
        is_new_interval = event.start_ms < event.end_ms and not self.touching(event)
        intervals = len(self.intervals) + is_new_interval
        number_ranges = self.ranges_with(event.business_data_number)
        return (is_new_interval and intervals > pieces_max) or (
            number_ranges > self.number_ranges and number_ranges > pieces_max
        )

    def add_evidence(self, event: SegmentEvent) -> bool:
        """Add to the union, the numbers and the end; tell whether that changed any of them."""
        number = event.business_data_number
        before = (self.intervals, len(self.numbers), self.end_number)
        touching = tuple(self.touching(event))
        if touching != union([*touching, (event.start_ms, event.end_ms)]):
            self.intervals = union([*self.intervals, (event.start_ms, event.end_ms)])
        self.number_ranges = self.ranges_with(number)
        self.numbers.add(number)
        self.greatest = max(self.greatest, number)
        if event.end_identifier:
            self.end_number = max(self.end_number or 0, number)
        return before != (self.intervals, len(self.numbers), self.end_number)

    def is_complete(self) -> bool:
        """Tell whether there is an end, and every number from 1 to the greatest."""
        return self.end_number is not None and len(self.numbers) == self.greatest

    def accept(self, record: Arrived) -> None:
        """Take in a record."""
        policy, now_ms = self.policy, record.arrival_ms
        is_first, had_ended = not self.records, self.end_number is not None
        self.records.append(record)
        self.ended_ms = max(self.ended_ms, record.event.end_ms)
        if is_first:
            self.running_since_ms = now_ms
        if not self.add_evidence(record.event):
            # Repeats of an empty end with a later time: known while they are not too late.
            self.kept_until_ms = max(
                self.kept_until_ms, self.ended_ms + policy.correction_window_ms
            )
            return  # the counts move, to be seen in a later revision if there is one
        if self.settled and self.deadline_ms is None:
            self.running_since_ms = now_ms
            graces = min(2 ** (self.settled - 1), GRACES_MAX)
            self.deadline_ms = now_ms + graces * policy.settle_grace_ms
        elif self.settled:
            return  # has been reopened: nothing moves its deadline
        elif self.is_complete():
            self.settle(now_ms)
        elif self.end_number is None:
            self.deadline_ms = now_ms + policy.idle_timeout_ms
        elif not had_ended:
            self.deadline_ms = now_ms + policy.settle_grace_ms


class OrderHistory:
    """All lives of one order number, record by record."""

    def __init__(self, policy: Policy, partition: int, pieces_max: int = PIECES_MAX) -> None:
        self._life = _Life(policy, partition)
        self._pieces_max = pieces_max
        self._totals: list[OrderTotal] = []
        self._waiting: Opening | None = None  # for the first record of a life

    def _turn(self, now_ms: int) -> _Life:
        """Let time pass; return the life that goes on, or one that has yet to begin."""
        life = self._life
        life.pass_time(now_ms)
        if life.is_forgotten(now_ms):
            self._totals += life.totals
            life = self._life = _Life(life.policy, life.partition)
        if self._waiting is not None and now_ms > self._waiting.until_ms + FORGET_MARGIN_MS:
            self._waiting = None
        return life

    def opening_at(self, now_ms: int) -> Opening | None:
        """Return the opening by which a record that arrives now is judged."""
        life = self._turn(now_ms)
        return life.opening if life.records else self._waiting

    def open(self, opening: Opening, now_ms: int) -> Fate | Reason:
        """Open the order, if it is not known; else see whether it is its client's who opens again.

        Then its segments are taken for longer, or nothing changes.
        """
        known = self.opening_at(now_ms)
        if known is None and not self._life.records:
            self._waiting = opening
            return Fate.ACCEPTED
        if known is None or known.owner != opening.owner:
            return Reason.ALREADY_OPENED
        longer = known._replace(until_ms=max(known.until_ms, opening.until_ms))
        if self._life.records:
            self._life.opening = longer
            opened_until_ms = longer.until_ms + FORGET_MARGIN_MS
            self._life.kept_until_ms = max(self._life.kept_until_ms, opened_until_ms)
        else:
            self._waiting = longer
        return Fate.PASSED_OVER

    def take(self, record: Arrived, origin: bytes | None = None) -> Fate | Reason:
        """Take in the next record of the log; `origin` is where it was sent on from, if it was."""
        life, opening = self._turn(record.arrival_ms), self.opening_at(record.arrival_ms)
        if origin is not None:
            partition, offset = map(int, origin.split(b"/"))
            if life.origins.get(partition, -1) >= offset:
                return Fate.PASSED_OVER
        if opening is None and life.policy.opened_only:
            return Reason.NOT_OPENED
        if opening is not None and record.event.start_ms < opening.begin_ms:
            return Reason.BEFORE_OPENING
        if life.is_too_much(record.event, self._pieces_max):
            return Reason.TOO_FRAGMENTED
        if not life.records:
            life.opening, self._waiting = opening, None
        if origin is not None:
            life.origins[partition] = offset
        life.accept(record)
        return Fate.ACCEPTED

    def change_policy(self, policy: Policy, until_ms: int) -> None:
        """Go on with another policy once what was due until now has been given under the old."""
        self._life.pass_time(until_ms)
        self._life.policy = policy

    def finish(self, until_ms: int | None) -> list[OrderTotal]:
        """Return every revision, oldest first, when deadlines up to `until_ms` have fired.

        None: all have. An order that was forgotten starts again at revision 1, so revisions may
        repeat in the list.
        """
        self._life.pass_time(until_ms)
        return self._totals + self._life.totals


def history(
    records: Iterable[Arrived],
    policy: Policy,
    *,
    partition: int,
    until_ms: int | None = None,
    pieces_max: int = PIECES_MAX,
) -> list[OrderTotal]:
    """Return every revision that one order's records, in log order, must have given."""
    order = OrderHistory(policy, partition, pieces_max)
    for record in records:
        order.take(record)
    return order.finish(until_ms)
