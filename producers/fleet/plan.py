"""The seeded plan of a fleet: who sends what, when, and what each order is meant to come to.

Theory of operation. Each order is planned on its own from dice of its own (seed and index), in
three steps: its service is cut into segments as a client would cut it; the faults that a
client can have change the cuts (overlap, death, numbers after the end); the faults that a
network can have change how often, when and where each cut is sent. All orders' records are
then sorted by their simulated time, so that thousands of orders are under way at once.

Two waves: in the second one comes what must arrive after orders have settled. The plan lies in
the recent past, so that nothing in it is in the future or too late for the given window.
Nothing here reads a clock or rolls dice of its own: `now_ms` and the maker of dice are
arguments, and the same arguments give the same plan.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from operator import attrgetter
from typing import NamedTuple

from durabill.producers.fleet.garbage import Dice, garbage
from durabill.producers.fleet.truth_order import missing, union
from durabill.schemas import (
    NumberRange,
    Reason,
    SegmentEvent,
    Status,
    encode_segment,
    partition_for,
)

DiceMaker = Callable[[str], Dice]
"""Makes dice from a seed, as random.Random does."""

RUN_MAX_MS = 30 * 60_000
"""How long a run may take without its first records becoming too late for the window."""
SLACK_INTERVALS = 6
"""Report intervals that faults may move a time sequence beyond the planned service."""


class Fault(StrEnum):
    """What can go wrong, under the names of the ratios in `Faults`."""

    REPEAT = "repeat"
    BURST_REPEAT = "burst_repeat"
    LOST = "lost"
    LATE = "late"
    OVERLAP = "overlap"
    RESEND_WITH_OTHER_INTERVAL = "resend_with_other_interval"
    WRONG_PARTITION = "wrong_partition"
    GARBAGE = "garbage"
    REORDER = "reorder"
    SKEW = "skew"
    STEP = "step"
    NEVER_END = "never_end"
    DIE_AND_RETURN = "die_and_return"
    AFTER_END = "after_end"


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """How often each fault happens, 0 to 1. Raises ValueError for any other ratio."""

    # of segments
    repeat: float = 0.0  # sent twice; a fifth of them again after the order has settled
    burst_repeat: float = 0.0  # sent 10 to 100 times
    lost: float = 0.0  # never sent
    late: float = 0.0  # lost, then redelivered after the order has settled
    overlap: float = 0.0  # cut again: starts in the middle of the segment before
    resend_with_other_interval: float = 0.0  # sent again with other times under its number
    wrong_partition: float = 0.0  # sent where its key doesn't belong; must count once
    garbage: float = 0.0  # a malformed record comes beside it
    # of orders
    reorder: float = 0.0  # shuffled within eight intervals
    skew: float = 0.0  # the monotonic clock drifts up to 200 ppm, the wall clock is days off
    step: float = 0.0  # the wall clock is set in mid-service: must have no effect at all
    never_end: float = 0.0  # the client dies, the end identifier never comes
    die_and_return: float = 0.0  # dies, is ABANDONED, carries on with or without a gap in time
    after_end: float = 0.0  # sends one or two segments numbered above the end

    def __post_init__(self) -> None:
        wrong = [each.name for each in fields(self) if not 0 <= getattr(self, each.name) <= 1]
        if wrong:
            raise ValueError(f"ratios must lie in 0..1: {', '.join(wrong)}")

    @classmethod
    def none(cls) -> "Faults":
        """Return the ratios of a fleet and a network without faults."""
        return cls()

    @classmethod
    def everything(cls) -> "Faults":
        """Return the demo's ratios: every fault is on, most orders of 100 segments complete."""
        return cls(
            repeat=0.03,
            burst_repeat=0.0003,
            lost=0.0005,
            late=0.001,
            overlap=0.005,
            resend_with_other_interval=0.003,
            wrong_partition=0.002,
            garbage=0.003,
            reorder=0.2,
            skew=0.3,
            step=0.1,
            never_end=0.04,
            die_and_return=0.05,
            after_end=0.03,
        )


@dataclass(frozen=True, slots=True)
class Send:
    """One record to publish.

    `at_ms` is the simulated time since the wave began; records of a wave are sorted by it.
    `partition` is None where the partitioner decides. `client_clock_ms` is what the client's
    wall clock shows, sent as the record's timestamp, which the broker overwrites: it must
    have no effect. `segment` is the contents, None where `expected` says why it is garbage of
    which `kind`.
    """

    wave: int
    at_ms: int
    order_number: str
    key: bytes | None
    value: bytes | None
    partition: int | None
    client_clock_ms: int
    segment: SegmentEvent | None
    fault: Fault | None = None
    expected: Reason | None = None
    kind: str = ""


class Intended(NamedTuple):
    """What an order must come to in the end, by the plan alone: times and counts in sum."""

    status: Status
    duration_ms: int
    segments: int
    end_number: int | None
    missing_numbers: tuple[NumberRange, ...]


@dataclass(frozen=True, slots=True)
class OrderPlan:
    """One order: its service [start_ms, end_ms) by the client, and what is sent of it."""

    number: str
    start_ms: int
    end_ms: int
    segments: int
    drift_ppm: int
    faults: frozenset[Fault]
    lost_numbers: tuple[int, ...]
    sends: tuple[Send, ...]

    def intended(self) -> Intended | None:
        """Return what the order must come to once all is sent, None if nothing good is."""
        sent = [send.segment for send in self.sends if send.segment is not None]
        if not sent:
            return None
        numbers = {each.business_data_number for each in sent}
        end = max((each.business_data_number for each in sent if each.end_identifier), default=None)
        gaps = missing(numbers, max(numbers))
        complete = Status.INCOMPLETE if gaps else Status.COMPLETE
        return Intended(
            status=Status.ABANDONED if end is None else complete,
            duration_ms=sum(b - a for a, b in union((s.start_ms, s.end_ms) for s in sent)),
            segments=len(numbers),
            end_number=end,
            missing_numbers=gaps,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetPlan:
    """A fleet of `orders` services of `segments_per_order` report intervals on average.

    Counts vary from 1 to twice the mean; over all orders exactly `orders * segments_per_order`
    segments are cut (numbers after an end come on top, lost ones are cut, too). Order numbers
    are `prefix-seed-index`, so runs on one topic need different prefixes or seeds.
    Raises ValueError where the fleet doesn't fit `window_ms`, the processor's correction window.
    """

    seed: int
    orders: int
    segments_per_order: int = 100
    report_interval_ms: int = 10_000
    faults: Faults = field(default_factory=Faults.none)
    prefix: str = "SO"
    window_ms: int = 86_400_000

    def __post_init__(self) -> None:
        if min(self.orders, self.segments_per_order, self.report_interval_ms) < 1:
            raise ValueError("orders, segments_per_order and report_interval_ms start at 1")
        if not self.prefix.isascii() or not 1 <= len(self.prefix) <= 24:
            raise ValueError("the prefix has 1 to 24 ASCII characters")
        reach_ms = self.horizon_ms + 2 * self.slack_ms + RUN_MAX_MS
        if reach_ms > self.window_ms:
            raise ValueError(f"the fleet reaches back {reach_ms} ms of {self.window_ms} ms allowed")

    @property
    def slack_ms(self) -> int:
        """Return how far faults may move a time sequence, in ms."""
        return SLACK_INTERVALS * self.report_interval_ms

    @property
    def horizon_ms(self) -> int:
        """Return the time within which all services run: three times the mean service's."""
        return 3 * self.segments_per_order * self.report_interval_ms

    @property
    def order_prefix(self) -> str:
        """Return what all order numbers of this fleet, and of no other, start with."""
        return f"{self.prefix}-{self.seed}-"

    def order_plans(self, dice: DiceMaker, now_ms: int, partitions: int) -> list[OrderPlan]:
        """Return every order's plan; about a kilobyte of memory a segment."""
        counts = self._counts(dice(self.order_prefix))
        return [
            _OrderPlanner(self, index, count, dice, now_ms, partitions).plan()
            for index, count in enumerate(counts)
        ]

    def _counts(self, roll: Dice) -> list[int]:
        mean = self.segments_per_order
        counts = [roll.randrange(1, 2 * mean) for _ in range(self.orders)]
        surplus = sum(counts) - self.orders * mean
        while surplus:
            at = roll.randrange(0, self.orders)
            step = 1 if surplus > 0 else -1
            if 1 <= counts[at] - step <= 2 * mean:
                counts[at] -= step
                surplus -= step
        return counts


def in_publishing_order(orders: list[OrderPlan]) -> list[Send]:
    """Return all orders' records, wave by wave, interleaved by simulated time."""
    return sorted(
        (send for order in orders for send in order.sends), key=attrgetter("wave", "at_ms")
    )


class _Cut(NamedTuple):
    number: int
    start_ms: int
    end_ms: int
    end_identifier: bool
    wave: int = 1
    fault: Fault | None = None


class _OrderPlanner:
    """Plans one order: `plan` cuts the service, then spoils the cuts, then the sending."""

    def __init__(
        self,
        fleet: FleetPlan,
        index: int,
        count: int,
        dice: DiceMaker,
        now_ms: int,
        partitions: int,
    ) -> None:
        self.fleet = fleet
        self.count = count
        self.now_ms = now_ms
        self.partitions = partitions
        self.interval_ms = fleet.report_interval_ms
        self.number = f"{fleet.order_prefix}{index}" + ("-Ünï 単/%" if index % 97 == 13 else "")
        self.roll = dice(self.number)
        self.faults: set[Fault] = set()
        self.lost: list[int] = []
        self.sends: list[Send] = []
        self.origin_ms = now_ms - fleet.slack_ms - fleet.horizon_ms
        self.service_start_ms = self.origin_ms + self.roll.randrange(
            0, fleet.horizon_ms - count * self.interval_ms + 1
        )
        self.return_ms = 0
        skewed = self._hit(Fault.SKEW)
        self.drift_ppm = self.roll.randrange(-200, 201) if skewed else 0
        self.wall_offset_ms = self.roll.randrange(-(10**9), 10**9) if skewed else 0
        self.step_after = self.roll.randrange(0, count) if self._hit(Fault.STEP) else None
        self.reordered = self._hit(Fault.REORDER)

    def plan(self) -> OrderPlan:
        cuts = self._spoil(self._cut())
        for cut in cuts:
            self._send_cut(cut)
        return OrderPlan(
            number=self.number,
            start_ms=min(cut.start_ms for cut in cuts),
            end_ms=max(cut.end_ms for cut in cuts),
            segments=len(cuts),
            drift_ppm=self.drift_ppm,
            faults=frozenset(self.faults),
            lost_numbers=tuple(self.lost),
            sends=tuple(self.sends),
        )

    def _hit(self, fault: Fault, possible: bool = True) -> bool:
        hit = self.roll.random() < getattr(self.fleet.faults, fault.value) and possible
        if hit:
            self.faults.add(fault)
        return hit

    def _cut(self) -> list[_Cut]:
        """Cut the service: a segment an interval, the last one shorter, at times empty."""
        ends = not self._hit(Fault.NEVER_END)
        cuts = []
        start_ms = self.service_start_ms
        for number in range(1, self.count + 1):
            last = ends and number == self.count
            length_ms = self.interval_ms
            if last:
                empty = self.count > 1 and self.roll.random() < 0.3
                length_ms = 0 if empty else self.roll.randrange(1, self.interval_ms + 1)
            cuts.append(_Cut(number, start_ms, start_ms + length_ms, last))
            start_ms += length_ms
        return cuts

    def _spoil(self, cuts: list[_Cut]) -> list[_Cut]:
        """Change the cuts as faulty clients do."""
        for at, cut in enumerate(cuts):
            if self._hit(Fault.OVERLAP, at > 0 and cut.start_ms < cut.end_ms):
                moved_ms = self.roll.randrange(1, self.interval_ms + 1)
                cuts[at] = cut._replace(start_ms=cut.start_ms - moved_ms, fault=Fault.OVERLAP)
        if self._hit(Fault.DIE_AND_RETURN, len(cuts) > 1):
            back = self.roll.randrange(1, len(cuts))
            self.return_ms = cuts[back].start_ms
            gap_ms = self.roll.randrange(0, 3) * self.interval_ms
            for at, cut in enumerate(cuts):
                cuts[at] = (
                    cut._replace(start_ms=cut.start_ms - gap_ms, end_ms=cut.end_ms - gap_ms)
                    if at < back
                    else cut._replace(wave=2, fault=cut.fault or Fault.DIE_AND_RETURN)
                )
        last = cuts[-1]
        if self._hit(Fault.AFTER_END, last.end_identifier):
            for extra in range(1, self.roll.randrange(2, 4)):
                start_ms = last.end_ms + (extra - 1) * self.interval_ms
                end_ms = start_ms + self.interval_ms
                number = last.number + extra
                cuts.append(_Cut(number, start_ms, end_ms, False, last.wave, Fault.AFTER_END))
        return cuts

    def _send_cut(self, cut: _Cut) -> None:
        """Send a cut as often, as late and to where the network's faults have it."""
        if self._hit(Fault.GARBAGE):
            self._send_garbage(cut)
        if self._hit(Fault.LOST):
            self.lost.append(cut.number)
            return
        if self._hit(Fault.LATE, cut.wave == 1):
            cut = cut._replace(wave=2, fault=Fault.LATE)
        wrong = self._hit(Fault.WRONG_PARTITION, self.partitions > 1)
        self._send(cut, Fault.WRONG_PARTITION if wrong else cut.fault)
        if self._hit(Fault.REPEAT):
            later = cut._replace(wave=2) if self.roll.random() < 0.2 else cut
            self._send(later, Fault.REPEAT, spread=3)
        if self._hit(Fault.BURST_REPEAT):
            for _ in range(self.roll.randrange(10, 101)):
                self._send(cut, Fault.BURST_REPEAT, spread=1)
        if self._hit(Fault.RESEND_WITH_OTHER_INTERVAL, cut.start_ms < cut.end_ms):
            earlier_ms = self.roll.randrange(1, self.interval_ms + 1)
            other = cut._replace(start_ms=cut.start_ms - earlier_ms)
            if self.roll.random() < 0.5:
                other = other._replace(end_ms=cut.end_ms - earlier_ms)
            self._send(other, Fault.RESEND_WITH_OTHER_INTERVAL, spread=3)

    def _send(self, cut: _Cut, fault: Fault | None, spread: int = 0) -> None:
        segment = SegmentEvent(
            self.number, cut.number, cut.start_ms, cut.end_ms, cut.end_identifier
        )
        partition = None
        key = self.number.encode()
        if fault is Fault.WRONG_PARTITION:
            right = partition_for(key, self.partitions)
            partition = (right + self.roll.randrange(1, self.partitions)) % self.partitions
        at_ms, clock_ms = self._when(cut, spread)
        value = encode_segment(segment)
        self.sends.append(
            Send(cut.wave, at_ms, self.number, key, value, partition, clock_ms, segment, fault)
        )

    def _send_garbage(self, cut: _Cut) -> None:
        bad = garbage(self.roll, self.number, self.now_ms, self.fleet.window_ms)
        at_ms, clock_ms = self._when(cut, spread=1)
        send = Send(cut.wave, at_ms, self.number, bad.key, bad.value, None, clock_ms, None)
        self.sends.append(replace(send, fault=Fault.GARBAGE, expected=bad.reason, kind=bad.kind))

    def _when(self, cut: _Cut, spread: int) -> tuple[int, int]:
        """Return (simulated ms since the wave began, the client's wall clock in ms)."""
        sent_ms = self.service_start_ms + round(
            (cut.end_ms - self.service_start_ms) * 1_000_000 / (1_000_000 + self.drift_ppm)
        )
        clock_ms = sent_ms + self.wall_offset_ms
        if self.step_after is not None and cut.number > self.step_after:
            clock_ms -= 3_600_000
        shuffle = 8 if self.reordered else 0
        delay_ms = self.roll.randrange(0, (spread + shuffle) * self.interval_ms + 1)
        began_ms = self.origin_ms if cut.wave == 1 else self.return_ms or cut.start_ms
        return max(0, sent_ms - began_ms) + delay_ms, max(0, clock_ms)
