"""Where time, and so money, may be lost: what totals and dead letters say of it together. Pure.

Of every order's life the latest total counts. A total is kept as a small tuple until the next one
of its order comes, or `settle` is called: so a reader that goes through a topic partition by
partition, and calls `settle` after each, has the orders of one partition in memory, about half a
kilobyte each. A source that has each order's latest total only, as the ledger can tell it, needs no
memory for them: it calls `settle` after every total.

Three numbers are told apart. *May be missing* is the upper bound less the proven time: no more than
that can be lost. Where no bound is known, *at least in doubt* is told instead: the gaps, and the
numbers missing before the first one, at the length that the order's records have on average. Time
in dead letters was reported, and rejected.
"""

from dataclasses import dataclass, field
from heapq import nsmallest
from typing import Any, NamedTuple

from durabill.schemas import Status
from durabill.stream_processors.audit.leakage_cases import (
    Case,
    Letters,
    Total,
    case_of,
    reasons_of,
)
from durabill.stream_processors.audit.unreported import Unreported

LETTER_ORDERS_MAX = 100_000
"""Of so many orders the dead letters are counted one by one."""


@dataclass(slots=True)
class Group:
    """Orders that have something in common, and their sums."""

    orders: int = 0
    proven_ms: int = 0
    may_be_missing_ms: int = 0
    """Of those whose bound is known."""

    unbounded_orders: int = 0
    in_doubt_ms: int = 0
    """At least so much is in doubt of those whose bound isn't known."""

    gap_ms: int = 0
    missing_numbers: int = 0
    orders_with_missing: int = 0
    segments: int = 0
    duplicates: int = 0
    overlap_ms: int = 0

    def add(self, case: Case) -> None:
        """Take an order in."""
        self.orders += 1
        self.proven_ms += case.duration_ms
        if case.upper_bound_ms is None:
            self.unbounded_orders += 1
            self.in_doubt_ms += case.doubt_ms
        else:
            self.may_be_missing_ms += case.doubt_ms
        self.gap_ms += case.gap_ms
        self.orders_with_missing += case.missing > 0
        self.missing_numbers += 0 if case.is_made_up else case.missing
        self.segments += case.segments
        self.duplicates += case.duplicates
        self.overlap_ms += case.overlap_ms

    @property
    def repeat_ratio(self) -> float:
        """Return which part of the accepted records had a number that was known."""
        return _ratio(self.duplicates, self.segments + self.duplicates)

    @property
    def overlap_ratio(self) -> float:
        """Return which part of the reported time was reported more than once."""
        return _ratio(self.overlap_ms, self.proven_ms + self.overlap_ms)


class Suspect(NamedTuple):
    """An order to look at. `case` is None where it has no total at all, only dead letters."""

    number: str
    case: Case | None
    letters: Letters
    reasons: tuple[str, ...]

    @property
    def lost_ms(self) -> int:
        """Return the time that may be lost, or is at least in doubt: what suspects are sorted by.

        What was rejected is in doubt too; some of it may fill the gaps.
        """
        return max(0 if self.case is None else self.case.doubt_ms, self.letters.time_ms)

    @property
    def rank(self) -> tuple[Any, ...]:
        """Return what suspects are sorted by: the most time, then the least known, by number."""
        unbounded = self.case is None or self.case.upper_bound_ms is None
        return (-self.lost_ms, not unbounded, -self.letters.count, self.number)


@dataclass
class Leakage:
    """All that is found. Feed the dead letters first, then the totals, `settle` in between.

    Openings go to `unreported`, each ahead of the totals of its order.
    """

    top: int
    unreported: Unreported = field(default_factory=lambda: Unreported(0, 0))
    by_status: dict[str, Group] = field(default_factory=dict)
    by_partition: dict[int, Group] = field(default_factory=dict)
    missing_by_hour: dict[int, int] = field(default_factory=dict)
    """Hour (its first millisecond) -> numbers missing; a number's place in time is estimated."""

    first_is_not_one: Group = field(default_factory=Group)
    """Orders whose first number isn't 1."""

    missing_first: int = 0
    """How many numbers are missing before the first ones, together."""

    complete_with_gaps: Group = field(default_factory=Group)
    after_end: Group = field(default_factory=Group)
    made_up: Group = field(default_factory=Group)
    """Orders that lack more numbers than can be; their missing numbers are in no other sum."""

    by_reason: dict[str, Letters] = field(default_factory=dict)
    orders_of_letters: dict[str, Letters] = field(default_factory=dict)
    letters_untold: int = 0
    """Dead letters of orders beyond the LETTER_ORDERS_MAX first ones."""

    only_letters: int = 0
    """Orders that have dead letters and no total."""

    suspects: list[Suspect] = field(default_factory=list)
    _latest: dict[str, Case] = field(default_factory=dict)
    _with_totals: set[str] = field(default_factory=set)

    def add_letter(self, reason: str, number: str | None, time_ms: int) -> None:
        """Take in a dead letter: `number` None where it can't be told whose it is."""
        self.by_reason.setdefault(reason, Letters()).add(time_ms)
        if number is None:
            return
        known = self.orders_of_letters.get(number)
        if known is None:
            if len(self.orders_of_letters) >= LETTER_ORDERS_MAX:
                self.letters_untold += 1
                return
            known = self.orders_of_letters[number] = Letters()
        known.add(time_ms)

    def add_total(self, total: Total) -> None:
        """Take in a total: it replaces the order's one before, unless it begins a new life."""
        number = total.service_order_number
        self.unreported.add_total(number, total.source_offset)
        known = self._latest.get(number)
        if known is not None and total.revision <= known.revision:
            self._count(known)
        self._latest[number] = case_of(total)

    def settle(self) -> None:
        """Count what has been taken in: no further total of these orders comes."""
        for case in self._latest.values():
            self._count(case)
        self._latest.clear()
        self.unreported.settle()

    def finish(self) -> None:
        """Count the orders that have dead letters alone; nothing is taken in any more."""
        self.settle()
        lonely = [
            Suspect(number, None, letters, ("no total, only dead letters",))
            for number, letters in self.orders_of_letters.items()
            if number not in self._with_totals
        ]
        self.unreported.cut()
        self.only_letters = len(lonely)
        self.suspects += lonely
        self._cut()

    def _count(self, case: Case) -> None:
        self.by_status.setdefault(case.status, Group()).add(case)
        self.by_partition.setdefault(case.partition, Group()).add(case)
        for hour_ms, count in case.missing_by_hour:
            self.missing_by_hour[hour_ms] = self.missing_by_hour.get(hour_ms, 0) + count
        if case.missing_first:
            self.first_is_not_one.add(case)
            self.missing_first += 0 if case.is_made_up else case.missing_first
        if case.status == Status.COMPLETE and case.gap_ms:
            self.complete_with_gaps.add(case)
        if case.after_end:
            self.after_end.add(case)
        if case.is_made_up:
            self.made_up.add(case)
        letters = self.orders_of_letters.get(case.number)
        if letters is not None:
            self._with_totals.add(case.number)
        reasons = reasons_of(case, letters or Letters())
        if reasons:
            self.suspects.append(Suspect(case.number, case, letters or Letters(), reasons))
            if len(self.suspects) >= 2 * self.top + 1_000:
                self._cut()

    def _cut(self) -> None:
        self.suspects = nsmallest(self.top, self.suspects, key=lambda each: each.rank)

    @property
    def all_orders(self) -> Group:
        """Return all orders together."""
        found = Group()
        for group in self.by_status.values():
            for name in Group.__slots__:
                setattr(found, name, getattr(found, name) + getattr(group, name))
        return found


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else 0.0
