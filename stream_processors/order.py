"""One order: its evidence, its phase, and the totals that it gives. The specification of billing.

An order is in one of three phases, and five things can happen to it. What then holds:

    phase     segment (not the end)       end identifier seen first      deadline reached
    -------   -------------------------   ----------------------------   -----------------------
    OPEN      stays OPEN, idle time       COMPLETE -> SETTLED, or        ABANDONED  -> SETTLED
              starts anew                 ENDED with the grace running   (idle_timeout)
    ENDED     COMPLETE -> SETTLED if it   (has been seen already;        INCOMPLETE -> SETTLED
              was the last missing one    as a segment)                  (settle_grace)
    SETTLED   no new evidence: counted,   as new evidence                forgotten
              else reopened: judged as                                   (correction_window + 60 s)
              though just OPEN or ENDED

Time is an argument: `arrival_ms` is the partition's append-time clock at the record. A deadline
is compared with the next record of its order before the record is applied, so that the sequence
of totals is a function of the log and the policy, whenever a timer fires.
"""

import hashlib
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from schemas import Interval, NumberRange, OrderTotal, SegmentEvent, Status
from stream_processors.intervals import IntervalSet

FUTURE_TOLERANCE_MS = 60_000
"""How far a segment's end may lie after its arrival; also what forgetting waits for on top."""


@dataclass(frozen=True, slots=True)
class Policy:
    """When an order counts as ended, abandoned, corrected for the last time; milliseconds."""

    settle_grace_ms: int = 30_000
    idle_timeout_ms: int = 300_000
    correction_window_ms: int = 86_400_000

    def __post_init__(self) -> None:
        if min(self.settle_grace_ms, self.idle_timeout_ms, self.correction_window_ms) < 0:
            raise ValueError(f"a policy's times can't be negative: {self}")


class Phase(StrEnum):
    """Where an order stands."""

    OPEN = "OPEN"
    ENDED = "ENDED"
    SETTLED = "SETTLED"


@dataclass(slots=True)
class Order:
    """All that is known of one order: sums and sets over its accepted records, and its phase.

    Everything from `time` to `ended_ms` is a function of the accepted records as a multiset.
    `deadline_ms` is when the phase ends by itself: settling, or forgetting once SETTLED.
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
    revision: int = 0
    digest: str = ""
    forwarded: dict[int, int] = field(default_factory=dict)
    """For records sent on from a wrong partition: partition -> greatest offset seen from there."""

    def is_settled(self) -> bool:
        """Tell whether the order's latest total stands."""
        return self.phase is Phase.SETTLED

    def settle_if_due(self, now_ms: int, policy: Policy) -> OrderTotal | None:
        """Return the total of an order whose deadline has come, and settle it as of then."""
        if self.phase is Phase.SETTLED or now_ms < self.deadline_ms:
            return None
        status = Status.INCOMPLETE if self.phase is Phase.ENDED else Status.ABANDONED
        return self._settle(status, self.deadline_ms, policy)

    def is_forgotten(self, now_ms: int) -> bool:
        """Tell whether a settled order's time to be known is over."""
        return self.phase is Phase.SETTLED and now_ms > self.deadline_ms

    def apply(
        self, event: SegmentEvent, arrival_ms: int, offset: int, policy: Policy
    ) -> OrderTotal | None:
        """Take in an accepted record; return the COMPLETE total if this very record gave one.

        The caller has settled what was due and has not forgotten the order. `offset` is the
        record's in its partition and grows from call to call.
        """
        assert self.phase is Phase.SETTLED or arrival_ms < self.deadline_ms or not self.accepted
        assert not self.is_forgotten(arrival_ms)
        assert offset > self.source_offset
        new_evidence = self._take(event, offset)
        if self.phase is Phase.SETTLED:
            if not new_evidence:
                # An empty end that came again with a later time is no evidence, but while its
                # repeats are not too late the order must be known, or they would start it anew.
                last_repeat_ms = self.ended_ms + policy.correction_window_ms
                self.deadline_ms = max(self.deadline_ms, last_repeat_ms)
                return None
            self.phase = Phase.OPEN
        if self.end_number is None:
            self.deadline_ms = arrival_ms + policy.idle_timeout_ms
            return None
        if self.numbers.covers(1, self.end_number + 1):
            return self._settle(Status.COMPLETE, arrival_ms, policy)
        if self.phase is Phase.OPEN:
            self.phase = Phase.ENDED
            self.deadline_ms = arrival_ms + policy.settle_grace_ms
        return None

    def _take(self, event: SegmentEvent, offset: int) -> bool:
        """Add the record to the sets and sums; tell whether the evidence changed."""
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
        return bool(gained_ms or gained_number or later_end)

    def _settle(self, status: Status, settled_at_ms: int, policy: Policy) -> OrderTotal:
        """Settle as of `settled_at_ms`; return the next revision's total.

        The order is forgotten when no repeat of its records can pass the lateness rule: every
        accepted end is at most `ended_ms`, so at most correction_window before `deadline_ms`.
        """
        total = self._total(status, settled_at_ms)
        self.phase = Phase.SETTLED
        self.revision = total.revision
        self.digest = total.digest
        reference_ms = max(settled_at_ms, self.ended_ms - FUTURE_TOLERANCE_MS)
        self.deadline_ms = reference_ms + policy.correction_window_ms + FUTURE_TOLERANCE_MS
        return total

    def _total(self, status: Status, settled_at_ms: int) -> OrderTotal:
        duration_ms = self.time.measure
        known_last = self.end_number if self.end_number is not None else self.numbers.last()
        complete = status is Status.COMPLETE
        return OrderTotal(
            service_order_number=self.service_order_number,
            revision=self.revision + 1,
            status=status,
            duration_ms=duration_ms,
            upper_bound_ms=duration_ms if complete else self.ended_ms - self.started_ms,
            started_ms=self.started_ms,
            ended_ms=self.ended_ms,
            intervals=tuple(Interval(*each) for each in self.time),
            end_number=self.end_number,
            missing_numbers=tuple(
                NumberRange(first, after - 1)
                for first, after in self.numbers.missing(1, known_last + 1)
            ),
            segments=self.numbers.measure,
            duplicates=self.accepted - self.numbers.measure,
            overlap_ms=self.length_sum_ms - duration_ms,
            numbers_after_end=0
            if self.end_number is None
            else self.numbers.count_from(self.end_number + 1),
            digest=evidence_digest(
                self.service_order_number, self.time, self.numbers, self.end_number
            ),
            previous_digest=self.digest,
            source_partition=self.source_partition,
            source_offset=self.source_offset,
            settled_at_ms=settled_at_ms,
        )

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
        assert (self.phase is Phase.SETTLED) <= (self.revision > 0)
        assert (self.revision > 0) == bool(self.digest)


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


def describe_order(order: Order) -> dict[str, Any]:
    """Return an order's state as plain values for JSON."""
    known_last = order.end_number if order.end_number is not None else order.numbers.last()
    missing = order.numbers.missing(1, known_last + 1)
    return {
        "service_order_number": order.service_order_number,
        "phase": order.phase.value,
        "duration_ms": order.time.measure,
        "intervals": [list(each) for each in order.time],
        "started_ms": order.started_ms,
        "ended_ms": order.ended_ms,
        "end_number": order.end_number,
        "missing_numbers": [[first, after - 1] for first, after in missing],
        "segments": order.numbers.measure,
        "duplicates": order.accepted - order.numbers.measure,
        "overlap_ms": order.length_sum_ms - order.time.measure,
        "revision": order.revision,
        "deadline_ms": order.deadline_ms,
        "source_partition": order.source_partition,
        "source_offset": order.source_offset,
    }
