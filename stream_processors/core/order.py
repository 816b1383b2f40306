"""The life of one order. This is the specification of billing: read it first to change a rule.

Words. The *evidence* of an order is what its accepted records say together: the union of their
time, the set of their business data numbers, and the end number. Evidence is *new* where one of the
three changes. An order *settles* when it gives a total that stands until new evidence comes. It is
*forgotten* when no record of it can be accepted any more; its number then begins a new life.

An order is in one of four phases, and four things can happen to it. What then holds:

    phase     new evidence               no news  interim deadline  deadline reached
    --------  -------------------------  -------  ----------------  --------------------------
    OPEN      no end: idle time anew     counted  RUNNING, and the  ABANDONED -> SETTLED
              end: COMPLETE -> SETTLED,           phase stays       (idle_timeout)
              or ENDED, grace running
    ENDED     the last missing one:      counted  RUNNING, and the  INCOMPLETE -> SETTLED
              COMPLETE -> SETTLED                 phase stays       (settle_grace)
    SETTLED   REOPENED, grace running,   counted  -                 forgotten
              longer each time                                      (correction_window + 60 s)
    REOPENED  taken in, no more          counted  RUNNING, and the  by its state then
                                                  phase stays       -> SETTLED

An order that was opened ahead of its segments is forgotten no earlier than its opening says, also
where that was extended after it settled; see `opening`, which has all that an opening changes.

An order is complete when an end and every number from 1 to the greatest have been seen.

Time is an argument: `arrival_ms` is the partition's clock at the record, the greatest append time
so far. Whoever folds a record first has the order give every total that is due by then, and only
then applies the record. So the sequence of totals is a function of the log and the policy, whenever
a timer fires.

Where the rest stands: `admission` decides which records an order takes in, `intervals` does the
arithmetic, `explain` replays an order and tells what each record did. The batch path
(`engine.kernel`) does the same to columns; property tests hold the two together.
"""

import hashlib
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import islice

from durabill.schemas import Interval, NumberRange, OrderTotal, SegmentEvent, Status
from durabill.schemas.limits import FUTURE_TOLERANCE_MS, GRACE_FACTOR_MAX, ORDER_PIECES_MAX
from durabill.schemas.order_state import Opened as OpenedState
from durabill.schemas.order_state import OrderState
from durabill.schemas.order_state import Phase as Phase
from durabill.stream_processors.core.intervals import IntervalSet
from durabill.stream_processors.core.opening import Opened

SETTLEMENTS_MAX = GRACE_FACTOR_MAX.bit_length()
"""An order counts its settlements up to here: 2 ** (n - 1) is the greatest factor of its grace."""

NEVER_MS = 2**62
"""An instant that doesn't come, and an interval that doesn't end; their sum fits 64 bits."""


@dataclass(frozen=True, slots=True)
class Policy:
    """When an order counts as ended, abandoned, corrected for the last time; in milliseconds.

    And whether it has to be opened. `interim_interval_ms` 0: an order that runs on gives no interim
    totals.
    """

    settle_grace_ms: int = 30_000
    idle_timeout_ms: int = 300_000
    correction_window_ms: int = 86_400_000
    interim_interval_ms: int = 86_400_000
    opened_only: bool = False
    """Whether a segment of an order without an opening is refused."""

    def __post_init__(self) -> None:
        waits_ms = (self.settle_grace_ms, self.idle_timeout_ms, self.correction_window_ms)
        if min(*waits_ms, self.interim_interval_ms) < 0:
            raise ValueError(f"a policy's times can't be negative: {self}")

    @property
    def interim_after_ms(self) -> int:
        """Return how long an order runs before an interim total; NEVER_MS where it gives none."""
        return self.interim_interval_ms or NEVER_MS

    def correction_grace_ms(self, settlements: int) -> int:
        """Return how long a reopened order gathers corrections: it doubles with each settlement."""
        return self.settle_grace_ms * min(1 << (settlements - 1), GRACE_FACTOR_MAX)


class Deadline(StrEnum):
    """What an order waits for: the times of the policy, and the grace of corrections."""

    IDLE_TIMEOUT = "idle_timeout"
    SETTLE_GRACE = "settle_grace"
    CORRECTION_GRACE = "correction_grace"
    """`settle_grace` times a power of two; see `Policy.correction_grace_ms`."""

    INTERIM_INTERVAL = "interim_interval"
    CORRECTION_WINDOW = "correction_window"


DEADLINE_OF = {
    Phase.OPEN: Deadline.IDLE_TIMEOUT,
    Phase.ENDED: Deadline.SETTLE_GRACE,
    Phase.REOPENED: Deadline.CORRECTION_GRACE,
    Phase.SETTLED: Deadline.CORRECTION_WINDOW,
}
"""The deadline that ends each phase; an interim deadline ends none."""

Source = tuple[int, int]
"""Partition and offset that a record was forwarded from: it stood in a wrong partition."""


@dataclass(slots=True)
class Order:
    """All that is known of one order: sums and sets over its accepted records, and its phase.

    Everything from `time` to `ended_ms` is a function of the accepted records as a multiset: the
    sequence in which they came doesn't matter. `deadline_ms` is when the phase ends by itself: the
    order settles, or is forgotten once SETTLED.
    """

    service_order_number: str
    source_partition: int
    time: IntervalSet = field(default_factory=IntervalSet)
    numbers: IntervalSet = field(default_factory=IntervalSet)
    end_number: int | None = None
    accepted: int = 0
    length_sum_ms: int = 0
    started_ms: int = 0
    ended_ms: int = 0
    phase: Phase = Phase.OPEN
    deadline_ms: int = 0
    source_offset: int = -1
    """The offset of the last accepted record."""

    revision: int = 0
    digest: str = ""
    """The last total's, as its `revision` is; empty before the first."""

    forwarded: dict[int, int] = field(default_factory=dict)
    """For forwarded records: wrong partition -> greatest offset seen from there."""

    unbilled_since_ms: int = 0
    """When it began or was reopened, or its last total's `settled_at_ms`; whichever is later."""

    settlements: int = 0
    """How often it has settled, interim totals not counted; no more than SETTLEMENTS_MAX."""

    opening: Opened | None = None
    """Its opening, where there was one when its first segment came."""

    # -- questions ----------------------------------------------------------------------------

    def is_settled(self) -> bool:
        """Tell whether the order's latest total stands."""
        return self.phase is Phase.SETTLED

    def is_complete(self) -> bool:
        """Tell whether an end and every number from 1 to the greatest have been seen."""
        return self.end_number is not None and self.numbers.is_one_from(1)

    def next_due_ms(self, policy: Policy) -> int:
        """Return when an unsettled order gives its next total if nothing comes."""
        return min(self.deadline_ms, self.unbilled_since_ms + policy.interim_after_ms)

    def is_due(self, now_ms: int, policy: Policy) -> bool:
        """Tell whether a total is due."""
        return self.phase is not Phase.SETTLED and self.next_due_ms(policy) <= now_ms

    def is_forgotten(self, now_ms: int) -> bool:
        """Tell whether a settled order counts as unknown: no record of it can be accepted."""
        return self.phase is Phase.SETTLED and now_ms > self.deadline_ms

    def has_seen(self, source: Source | None) -> bool:
        """Tell whether a forwarded record has come before; a crash can repeat one."""
        return source is not None and self.forwarded.get(source[0], -1) >= source[1]

    def excess(self, event: SegmentEvent, pieces_max: int = ORDER_PIECES_MAX) -> str | None:
        """Return what the order would have too many of with this record; None: nothing.

        A record that adds no interval and no range is never too much, however many there are.
        """
        number = event.business_data_number
        if len(self.time) >= pieces_max and self.time.is_apart(event.start_ms, event.end_ms):
            return "intervals"
        if len(self.numbers) >= pieces_max and self.numbers.is_apart(number, number + 1):
            return "ranges of business data numbers"
        return None

    @property
    def last_offset(self) -> int:
        """Return up to which offset it has taken in what there is of its number."""
        return max(self.source_offset, -1 if self.opening is None else self.opening.extended_at)

    # -- what happens to an order -------------------------------------------------------------

    def extend(self, opening: Opened) -> None:
        """Have its opening be this one, which has just been extended.

        The order is known and not forgotten. One that has settled is known for longer from now on.
        """
        assert self.opening is not None
        assert opening.extended_at > self.last_offset
        self.opening = opening
        if self.phase is Phase.SETTLED:
            self.deadline_ms = max(self.deadline_ms, opening.known_until_ms)

    def apply(
        self,
        event: SegmentEvent,
        arrival_ms: int,
        offset: int,
        policy: Policy,
        source: Source | None = None,
    ) -> OrderTotal | None:
        """Take in an accepted record; return the COMPLETE total if this very record gave one.

        `admission.admit` has decided that the order takes it in: every total that was due by
        `arrival_ms` has been given, and the order has not been forgotten. `offset` is the record's
        in its partition and grows from call to call; `source` is set if it was forwarded.
        """
        assert not self.accepted or self.is_settled() or arrival_ms < self.next_due_ms(policy)
        assert not self.is_forgotten(arrival_ms)
        assert offset > self.source_offset
        if not self.accepted:
            self.unbilled_since_ms = arrival_ms
        if source is not None:
            self.forwarded[source[0]] = source[1]
        new_evidence = self._take(event, offset)
        if self.phase is Phase.SETTLED:
            if new_evidence:
                self.phase = Phase.REOPENED
                self.unbilled_since_ms = arrival_ms
                self.deadline_ms = arrival_ms + policy.correction_grace_ms(self.settlements)
            else:
                # An empty end that came again with a later time is no evidence, but while its
                # repeats are not too late the order must be known, or they would start it anew.
                last_repeat_ms = self.ended_ms + policy.correction_window_ms
                self.deadline_ms = max(self.deadline_ms, last_repeat_ms)
        elif new_evidence and self.phase is not Phase.REOPENED:
            if self.is_complete():
                return self._settle(Status.COMPLETE, arrival_ms, policy)
            if self.end_number is None:
                self.deadline_ms = arrival_ms + policy.idle_timeout_ms
            elif self.phase is Phase.OPEN:
                self.phase = Phase.ENDED
                self.deadline_ms = arrival_ms + policy.settle_grace_ms
        return None

    def give_due(self, policy: Policy) -> OrderTotal:
        """Return the next total that is due, as of its deadline. The order settles or runs on.

        To be called while `is_due`. Each call gives one total: one of many pieces takes
        milliseconds, and so many interim ones can be due that the caller has to pause in between.
        """
        due_ms = self.next_due_ms(policy)
        if due_ms < self.deadline_ms:
            return self._give(Status.RUNNING, due_ms)
        return self._settle(self._status(), due_ms, policy)

    def _take(self, event: SegmentEvent, offset: int) -> bool:
        """Add the record to the sets and sums; tell whether it is new evidence."""
        number = event.business_data_number
        gained_ms = self.time.add(event.start_ms, event.end_ms)
        gained_number = self.numbers.add(number, number + 1)
        later_end = event.end_identifier and number > (self.end_number or 0)
        if later_end:
            self.end_number = number
        self.started_ms = min(self.started_ms, event.start_ms) if self.accepted else event.start_ms
        self.ended_ms = max(self.ended_ms, event.end_ms)
        self.accepted += 1
        self.length_sum_ms += event.end_ms - event.start_ms
        self.source_offset = offset
        if self.opening is not None and self.opening.extended_at >= 0:
            self.opening = self.opening._replace(extended_at=-1)
        return bool(gained_ms or gained_number or later_end)

    def _status(self) -> Status:
        """Return what the order is when its deadline comes."""
        if self.is_complete():
            return Status.COMPLETE
        return Status.ABANDONED if self.end_number is None else Status.INCOMPLETE

    def _settle(self, status: Status, settled_at_ms: int, policy: Policy) -> OrderTotal:
        """Settle as of `settled_at_ms`; return the next revision's total.

        The order is forgotten when every repeat of its records would be too late: every accepted
        end is at most `ended_ms`, so at most correction_window before `deadline_ms`. One of an
        opened order is too late no earlier than its opening says.
        """
        total = self._give(status, settled_at_ms)
        self.phase = Phase.SETTLED
        self.settlements = min(self.settlements + 1, SETTLEMENTS_MAX)
        reference_ms = max(settled_at_ms, self.ended_ms - FUTURE_TOLERANCE_MS)
        self.deadline_ms = reference_ms + policy.correction_window_ms + FUTURE_TOLERANCE_MS
        if self.opening is not None:
            self.deadline_ms = max(self.deadline_ms, self.opening.known_until_ms)
        return total

    def _give(self, status: Status, settled_at_ms: int) -> OrderTotal:
        """Return the next revision's total; the phase and the deadline stay."""
        total = self._total(status, settled_at_ms)
        self.revision = total.revision
        self.digest = total.digest
        self.unbilled_since_ms = settled_at_ms
        return total

    # -- what it amounts to -------------------------------------------------------------------

    def _total(self, status: Status, settled_at_ms: int) -> OrderTotal:
        duration_ms = self.time.measure
        span_ms = self.ended_ms - self.started_ms
        is_bounded = self.end_number is not None and self.numbers.covers(1, 2)
        bound_ms = duration_ms if status is Status.COMPLETE else span_ms
        return OrderTotal(
            service_order_number=self.service_order_number,
            revision=self.revision + 1,
            status=status,
            duration_ms=duration_ms,
            upper_bound_ms=bound_ms if is_bounded else None,
            started_ms=self.started_ms,
            ended_ms=self.ended_ms,
            intervals=tuple(Interval(*each) for each in self.time),
            end_number=self.end_number,
            missing_numbers=tuple(NumberRange(*each) for each in self.missing_numbers()),
            segments=self.numbers.measure,
            duplicates=self.accepted - self.numbers.measure,
            overlap_ms=self.length_sum_ms - duration_ms,
            gap_ms=span_ms - duration_ms,
            numbers_after_end=self.numbers_after_end(),
            digest=evidence_digest(
                self.service_order_number, self.time, self.numbers, self.end_number
            ),
            previous_digest=self.digest,
            source_partition=self.source_partition,
            source_offset=self.source_offset,
            settled_at_ms=settled_at_ms,
        )

    def missing_numbers(self) -> list[tuple[int, int]]:
        """Return the ranges of numbers missing from 1 to the greatest, both ends included."""
        gaps = self.numbers.missing(1, self.numbers.last() + 1)
        return [(first, after - 1) for first, after in gaps]

    def numbers_after_end(self) -> int:
        """Return how many distinct numbers are above the end number."""
        return 0 if self.end_number is None else self.numbers.count_from(self.end_number + 1)

    def check(self) -> None:
        """Assert the invariants: called before a state is written and after it is read."""
        self.time.check()
        self.numbers.check()
        assert self.accepted >= self.numbers.measure >= 1
        assert 0 <= self.time.measure <= self.ended_ms - self.started_ms
        assert self.length_sum_ms >= self.time.measure
        assert self.end_number is None or self.numbers.covers(self.end_number, self.end_number + 1)
        assert self.source_offset >= 0
        assert (self.phase is Phase.OPEN) <= (self.end_number is None)
        assert (self.phase is Phase.ENDED) <= (self.end_number is not None)
        assert (self.phase in (Phase.SETTLED, Phase.REOPENED)) == (self.settlements > 0)
        assert min(self.revision, SETTLEMENTS_MAX) >= self.settlements >= 0
        assert (self.revision > 0) == bool(self.digest)
        if self.opening is not None:
            assert self.opening.offset < self.source_offset
            assert self.opening.begin_ms <= self.started_ms
            extended_at = self.opening.extended_at
            assert extended_at == -1 or extended_at > self.source_offset


def evidence_digest(
    service_order_number: str, time: IntervalSet, numbers: IntervalSet, end_number: int | None
) -> str:
    """Return the SHA-256 (FIPS 180-4, lower-case hex) of an order's canonical evidence.

    The canonical form is five lines of UTF-8, each ended by a line feed: the form's name, the
    order number, the union as `start-end` joined by commas, the business data numbers seen as
    inclusive ranges `first-last` joined by commas, the end number or `-`.
    """
    lines = (
        "durabill-evidence-1",
        service_order_number,
        ",".join(f"{start}-{end}" for start, end in time),
        ",".join(f"{first}-{after - 1}" for first, after in numbers),
        "-" if end_number is None else str(end_number),
    )
    return hashlib.sha256("".join(f"{line}\n" for line in lines).encode()).hexdigest()


def describe_order(order: Order, policy: Policy, limit: int | None = None) -> OrderState:
    """Return an order's state; of its intervals and missing numbers the first `limit`."""
    interim_ms = order.unbilled_since_ms + policy.interim_after_ms
    has_interim = not order.is_settled() and interim_ms < order.deadline_ms
    missing = order.missing_numbers()
    return OrderState(
        service_order_number=order.service_order_number,
        phase=order.phase,
        duration_ms=order.time.measure,
        intervals=[Interval(*each) for each in islice(order.time, limit)],
        started_ms=order.started_ms,
        ended_ms=order.ended_ms,
        end_number=order.end_number,
        missing_numbers=[NumberRange(*each) for each in islice(missing, limit)],
        segments=order.numbers.measure,
        duplicates=order.accepted - order.numbers.measure,
        overlap_ms=order.length_sum_ms - order.time.measure,
        gap_ms=order.ended_ms - order.started_ms - order.time.measure,
        numbers_after_end=order.numbers_after_end(),
        revision=order.revision,
        deadline_ms=order.deadline_ms,
        interim_deadline_ms=interim_ms if has_interim else None,
        source_partition=order.source_partition,
        source_offset=order.source_offset,
        intervals_count=len(order.time),
        missing_numbers_count=len(missing),
        opened=None if order.opening is None else _state_of(order.opening),
    )


def describe_opening(service_order_number: str, opening: Opened, partition: int) -> OrderState:
    """Return the state of an order that was opened and has no segment yet."""
    return OrderState(
        service_order_number=service_order_number,
        phase=Phase.OPEN,
        duration_ms=0,
        intervals=[],
        started_ms=opening.begin_ms,
        ended_ms=opening.begin_ms,
        end_number=None,
        missing_numbers=[],
        segments=0,
        duplicates=0,
        overlap_ms=0,
        gap_ms=0,
        numbers_after_end=0,
        revision=0,
        deadline_ms=opening.known_until_ms,
        interim_deadline_ms=None,
        source_partition=partition,
        source_offset=opening.offset,
        intervals_count=0,
        missing_numbers_count=0,
        opened=_state_of(opening),
    )


def _state_of(opening: Opened) -> OpenedState:
    return OpenedState(
        tenant=opening.tenant,
        client=opening.client,
        server_timestamp_ms=opening.begin_ms,
        accept_until_ms=opening.accept_until_ms,
    )
