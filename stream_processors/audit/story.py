"""What the log tells of an order, in one value: its records, its lives, its revisions.

`core.explain` tells what happened, in the sequence of the log; here it is gathered.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from durabill.schemas import OrderOpened
from durabill.schemas.order_state import OrderState, Phase
from durabill.stream_processors.audit.story_rows import Row, row_of
from durabill.stream_processors.core.admission import Fate
from durabill.stream_processors.core.explain import (
    Forgotten,
    Happening,
    Lapsed,
    Revision,
    Standing,
    Verdict,
)
from durabill.stream_processors.core.intervals import IntervalSet
from durabill.stream_processors.core.order import Deadline
from durabill.stream_processors.engine.policies import History


@dataclass(frozen=True, slots=True)
class Basis:
    """The policies that an order is explained by: those recorded, or the settings', and why."""

    history: History
    assumed_because: str = ""


FORGOTTEN = "FORGOTTEN"
"""What follows the phases of an order: its number would begin a new life."""


@dataclass(frozen=True, slots=True)
class StateChange:
    """From `at_ms` on an order was in `phase`, because of the record at `offset` or a deadline.

    Where the deadline passed, `offset` is the record that had set it, None where that isn't known.
    """

    life: int
    at_ms: int
    phase: str
    deadline: Deadline | None
    offset: int | None


class TotalKey(NamedTuple):
    """What tells a total of an order from all its others, also from those of another life."""

    revision: int
    status: str
    digest: str
    source_offset: int
    settled_at_ms: int


def key_of(total: Any) -> TotalKey:
    """Return the key of an OrderTotal, or of a ledger's summary of one."""
    return TotalKey(*(getattr(total, name) for name in TotalKey._fields))


@dataclass(frozen=True, slots=True)
class Given:
    """A revision that the log gives, and why. See `core.explain.Revision`, `schemas.OrderTotal`."""

    life: int
    revision: int
    status: str
    duration_ms: int
    upper_bound_ms: int | None
    gap_ms: int
    missing_numbers: int
    digest: str
    source_offset: int
    settled_at_ms: int
    deadline: Deadline | None
    offset: int | None


@dataclass(slots=True)
class Life:
    """One life of the order's number: from the record that begins it until it is forgotten."""

    life: int
    first_offset: int
    last_offset: int = -1
    accepted: int = 0
    """How many records it has taken in."""

    length_sum_ms: int = 0
    """Their lengths together."""

    forgotten_at_ms: int | None = None
    union: IntervalSet = field(default_factory=IntervalSet)
    numbers: IntervalSet = field(default_factory=IntervalSet)
    end_number: int | None = None
    started_ms: int = 0
    ended_ms: int = 0
    state: OrderState | None = None
    """How it stands at the end of the log; None: it was forgotten."""

    def take(self, row: Row) -> None:
        """Take in a record that counts."""
        assert row.number is not None
        assert row.start_ms is not None
        assert row.end_ms is not None
        self.started_ms = min(self.started_ms, row.start_ms) if self.accepted else row.start_ms
        self.ended_ms = max(self.ended_ms, row.end_ms)
        self.accepted += 1
        self.last_offset = row.offset
        self.length_sum_ms += row.end_ms - row.start_ms
        self.union.add(row.start_ms, row.end_ms)
        self.numbers.add(row.number, row.number + 1)
        if row.end_identifier:
            self.end_number = max(self.end_number or 0, row.number)

    @property
    def gaps(self) -> list[tuple[int, int]]:
        """Return the time between its start and its end that no record covers."""
        return self.union.missing(self.started_ms, self.ended_ms)

    @property
    def missing_numbers(self) -> list[tuple[int, int]]:
        """Return the ranges of numbers missing from 1 to the greatest, both ends included."""
        gaps = self.numbers.missing(1, self.numbers.last() + 1) if self.accepted else []
        return [(first, after - 1) for first, after in gaps]


@dataclass(slots=True)
class Opening:
    """An opening of the order's number, and what became of it: `reason` says why it was refused.

    `repeats` counts how often the same client opened the order once more without a change,
    `extensions` how often it did so for longer: the last time until `accept_until_ms`. Where no
    segment came in time, it has lapsed at `lapsed_at_ms`.
    """

    partition: int
    offset: int
    arrival_ms: int
    opened: OrderOpened
    reason: str | None
    detail: str
    repeats: int = 0
    extensions: int = 0
    accept_until_ms: int | None = None
    """Where it was extended until; None: it wasn't."""

    lapsed_at_ms: int | None = None


@dataclass(slots=True)
class Story:
    """All that the log tells of an order. `partition` is its own; `notes` say what is doubtful."""

    number: str
    partition: int
    basis: Basis
    rows: list[Row] = field(default_factory=list)
    lives: list[Life] = field(default_factory=list)
    states: list[StateChange] = field(default_factory=list)
    given: dict[TotalKey, Given] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    openings: list[Opening] = field(default_factory=list)
    clock_ms: int = 0
    """How far the time of its own partition had come at the end of the log."""

    @property
    def union(self) -> IntervalSet:
        """Return the time that the latest life has proven."""
        return self.lives[-1].union if self.lives else IntervalSet()

    def add(self, partition: int, happenings: Iterable[Happening]) -> None:
        """Take in what happened to the order in a partition."""
        for each in happenings:
            match each:
                case Verdict():
                    self._add_verdict(partition, each)
                case Revision():
                    self._add_revision(each)
                case Forgotten(life=life, at_ms=at_ms):
                    self.lives[life - 1].forgotten_at_ms = at_ms
                    self._enter(life, at_ms, FORGOTTEN, Deadline.CORRECTION_WINDOW, None)
                case Lapsed(offset=offset, at_ms=at_ms):
                    for opening in self.openings:
                        if (opening.partition, opening.offset) == (partition, offset):
                            opening.lapsed_at_ms = at_ms
                case Standing(state=state, clock_ms=clock_ms):
                    if state is not None:
                        self.lives[-1].state = state
                    if partition == self.partition:
                        self.clock_ms = clock_ms

    def _add_verdict(self, partition: int, verdict: Verdict) -> None:
        row = row_of(partition, verdict)
        self.rows.append(row)
        if verdict.opened is not None:
            self._add_opening(partition, verdict, verdict.opened)
        if verdict.fate is Fate.BEGINS:
            self.lives.append(Life(verdict.life, row.offset))
        if row.counts:
            self.lives[-1].take(row)
            assert verdict.phase is not None
            self._enter(verdict.life, verdict.arrival_ms, verdict.phase, None, row.offset)

    def _add_opening(self, partition: int, verdict: Verdict, opened: OrderOpened) -> None:
        if verdict.fate is Fate.OPENED_BEFORE:
            accepted = [each for each in self.openings if each.reason is None]
            accepted[-1].repeats += 1
        elif verdict.fate is Fate.EXTENDS:
            accepted = [each for each in self.openings if each.reason is None]
            accepted[-1].extensions += 1
            accepted[-1].accept_until_ms = opened.accept_until_ms
        elif verdict.fate in (Fate.OPENS, None):
            place = partition, verdict.record.offset
            self.openings.append(
                Opening(*place, verdict.arrival_ms, opened, verdict.reason, verdict.detail)
            )

    def _add_revision(self, revision: Revision) -> None:
        total = revision.total
        self.given[key_of(total)] = Given(
            revision.life,
            total.revision,
            total.status,
            total.duration_ms,
            total.upper_bound_ms,
            total.gap_ms,
            sum(last - first + 1 for first, last in total.missing_numbers),
            total.digest,
            total.source_offset,
            total.settled_at_ms,
            revision.deadline,
            revision.offset,
        )
        if revision.deadline not in (None, Deadline.INTERIM_INTERVAL):
            at_ms, cause = total.settled_at_ms, (revision.deadline, revision.offset)
            self._enter(revision.life, at_ms, Phase.SETTLED, *cause)

    def _enter(
        self, life: int, at_ms: int, phase: str, deadline: Deadline | None, offset: int | None
    ) -> None:
        """Note the phase of a life, unless it is in it already."""
        last = self.states[-1] if self.states else None
        if last is None or (last.life, last.phase) != (life, phase):
            self.states.append(StateChange(life, at_ms, str(phase), deadline, offset))
