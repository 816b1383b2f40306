"""What the log tells of an order, in one value: its records, its lives, its revisions.

`core.explain` tells what happened, in the sequence of the log; here it is gathered.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from durabill.deploy.terminal import human_ms
from durabill.schemas.order_state import OrderState
from durabill.stream_processors.core.admission import Fate
from durabill.stream_processors.core.explain import (
    Forgotten,
    Happening,
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


@dataclass(slots=True)
class Row:
    """One record of the log that is the order's, and what became of it.

    `verdict` is in words, `detail` says more of a dead letter. `life` counts the lives of the
    order's number; 0: none was going on. `phase` is the order's after the record.
    """

    partition: int
    offset: int
    append_ms: int
    number: int | None
    start_ms: int | None
    end_ms: int | None
    end_identifier: bool | None
    verdict: str
    life: int
    reason: str | None
    detail: str
    gained_ms: int
    reopens: bool
    phase: str | None
    forwarded_to: int | None
    forwarded_from: str | None
    dead_letter: str | None = None
    """Where its dead letter is, `partition/offset` in their topic; None: it was not found."""


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
    """A revision that the log gives, and why. See `core.explain.Revision`."""

    life: int
    revision: int
    status: str
    duration_ms: int
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

    forgotten_at_ms: int | None = None
    union: IntervalSet = field(default_factory=IntervalSet)
    state: OrderState | None = None
    """How it stands at the end of the log; None: it was forgotten."""


@dataclass(slots=True)
class Story:
    """All that the log tells of an order. `partition` is its own; `notes` say what is doubtful."""

    number: str
    partition: int
    basis: Basis
    rows: list[Row] = field(default_factory=list)
    lives: list[Life] = field(default_factory=list)
    given: dict[TotalKey, Given] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

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
                case Revision(total=total):
                    self.given[key_of(total)] = Given(
                        each.life,
                        total.revision,
                        total.status,
                        total.duration_ms,
                        total.settled_at_ms,
                        each.deadline,
                        each.offset,
                    )
                case Forgotten():
                    self.lives[each.life - 1].forgotten_at_ms = each.at_ms
                case Standing(state=state) if state is not None:
                    self.lives[-1].state = state

    def _add_verdict(self, partition: int, verdict: Verdict) -> None:
        record, raw = verdict.record, verdict.raw
        _, number, start_ms, end_ms, is_end = (None,) * 5 if raw is None else raw
        if verdict.fate is Fate.BEGINS:
            self.lives.append(Life(verdict.life, record.offset))
        if verdict.fate in (Fate.BEGINS, Fate.COUNTS):
            assert raw is not None
            life = self.lives[-1]
            life.accepted += 1
            life.last_offset = record.offset
            life.union.add(*raw[2:4])
        source = verdict.source
        self.rows.append(
            Row(
                partition, record.offset, record.append_ms, number, start_ms, end_ms, is_end,
                words_of(verdict), verdict.life, verdict.reason, verdict.detail, verdict.gained_ms,
                verdict.reopens, verdict.phase, verdict.partition,
                None if source is None else f"{source[0]}/{source[1]}",
            )
        )  # fmt: skip


def words_of(verdict: Verdict) -> str:
    """Return a verdict in words."""
    if verdict.fate is None:
        return f"dead letter: {verdict.reason}"
    if verdict.fate is Fate.FORWARDED:
        return f"sent on to partition {verdict.partition}"
    if verdict.fate is Fate.SEEN_BEFORE:
        return "passed over, came before"
    assert verdict.raw is not None
    length_ms, gained_ms = verdict.raw[3] - verdict.raw[2], verdict.gained_ms
    if not verdict.is_new_number:
        return f"repeat, adds {human_ms(gained_ms)}" if gained_ms else "repeat, adds nothing"
    if gained_ms < length_ms:
        return f"counted, less {human_ms(length_ms - gained_ms)} known already"
    return "counted"
