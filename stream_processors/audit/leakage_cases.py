"""What the leakage report keeps of an order's latest total, and what it makes of it. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import NamedTuple

from durabill.schemas import OrderTotal, Status

HOUR_MS = 3_600_000
DAY_MS = 86_400_000

MISSING_NUMBERS_MAX = 1_000_000
"""An order that lacks more numbers than that has a number that was made up, or is damaged."""


Total = OrderTotal | SimpleNamespace
"""A total, or the same without its intervals (`ledger.lookups.Summary`)."""


class Case(NamedTuple):
    """What is kept of an order's latest total."""

    number: str
    partition: int
    revision: int
    status: str
    duration_ms: int
    upper_bound_ms: int | None
    gap_ms: int
    missing: int
    missing_first: int
    """How many numbers are missing before the first one that was seen."""

    missing_by_hour: tuple[tuple[int, int], ...]
    segments: int
    duplicates: int
    overlap_ms: int
    after_end: int

    @property
    def is_made_up(self) -> bool:
        """Whether more numbers are missing than can be."""
        return self.missing > MISSING_NUMBERS_MAX

    @property
    def doubt_ms(self) -> int:
        """Return the time that may be missing; where no bound is known, at least in doubt."""
        if self.upper_bound_ms is not None:
            return self.upper_bound_ms - self.duration_ms
        records = self.segments + self.duplicates
        before_ms = self.missing_first * (self.duration_ms + self.overlap_ms) // records
        return self.gap_ms + (0 if self.is_made_up else min(before_ms, DAY_MS))


@dataclass(slots=True)
class Letters:
    """Dead letters of one kind: how many, and the time that they report, where it is legible."""

    count: int = 0
    time_ms: int = 0

    def add(self, time_ms: int) -> None:
        """Take one in."""
        self.count += 1
        self.time_ms += time_ms


def case_of(total: Total) -> Case:
    """Return what is kept of a total."""
    ranges = total.missing_numbers
    missing = sum(last - first + 1 for first, last in ranges)
    is_made_up = missing > MISSING_NUMBERS_MAX
    # All numbers up to the greatest are seen or missing; a total that was forged may say otherwise.
    greatest = max((last for _, last in ranges), default=0)
    return Case(
        total.service_order_number,
        total.source_partition,
        total.revision,
        str(total.status),
        total.duration_ms,
        total.upper_bound_ms,
        total.gap_ms,
        missing,
        ranges[0].last if ranges and ranges[0].first == 1 else 0,
        ()
        if is_made_up
        else tuple(missing_by_hour(total, max(total.segments + missing, greatest))),
        total.segments,
        total.duplicates,
        total.overlap_ms,
        total.numbers_after_end,
    )


def missing_by_hour(total: Total, greatest: int) -> Iterable[tuple[int, int]]:
    """Return (hour, how many) of the missing numbers, by the hour that each falls into.

    When a number's time was isn't known. Clients cut one segment an interval, so the n-th of N
    numbers is taken to lie in the middle of the n-th of N equal parts of the order's time.
    """
    span_ms, found = total.ended_ms - total.started_ms, dict[int, int]()

    def until(at_ms: int) -> int:
        """Return how many of the numbers lie before an instant."""
        if at_ms <= total.started_ms:
            return 0
        if at_ms > total.ended_ms or not span_ms:
            return greatest
        # Number n is at span * (2n - 1) // (2 * greatest): before `at_ms` if that is less.
        return -(-2 * greatest * (at_ms - total.started_ms) // span_ms) // 2

    for first, last in total.missing_numbers:
        while first <= last:
            at_ms = total.started_ms + span_ms * (2 * first - 1) // (2 * greatest)
            hour_ms = at_ms - at_ms % HOUR_MS
            after = min(max(until(hour_ms + HOUR_MS), first), last)
            found[hour_ms] = found.get(hour_ms, 0) + after - first + 1
            first = after + 1
    return sorted(found.items())


def reasons_of(case: Case, letters: Letters) -> tuple[str, ...]:
    """Return why an order is to be looked at; nothing where there is no reason to."""
    found = []
    if case.status == Status.ABANDONED:
        found.append("never ended")
    if case.status == Status.RUNNING and case.gap_ms:
        found.append("runs on with gaps")
    if case.is_made_up:
        found.append("a number that was made up or is damaged")
    elif case.missing:
        found.append("numbers missing")
    if case.missing_first:
        found.append("first number isn't 1")
    if case.status == Status.COMPLETE and case.gap_ms:
        found.append("gaps though complete")
    if case.after_end:
        found.append("numbers after the end")
    if letters.count:
        found.append("dead letters")
    return tuple(found)
