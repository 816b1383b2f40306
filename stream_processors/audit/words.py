"""What an order's story says in words: causes, what is missing, how a life stands."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from durabill.schemas.text import counted, human_ms, human_time, shown
from durabill.stream_processors.audit.story import (
    FORGOTTEN,
    Basis,
    Given,
    Life,
    StateChange,
    Story,
    TotalKey,
    key_of,
)
from durabill.stream_processors.audit.story_rows import Row
from durabill.stream_processors.core.order import DEADLINE_OF, Deadline

RANGES_SHOWN = 20


def cause_words(change: Given | StateChange, story: Story | None = None) -> str:
    """Return what caused a revision, or a state: a record, or a deadline."""
    place = str(change.offset) if story is None else f"{story.partition}/{change.offset}"
    is_total = isinstance(change, Given)
    if change.deadline is None:
        return f"record {place} completed it" if is_total else f"by record {place}"
    if change.deadline is Deadline.INTERIM_INTERVAL:
        return "interim_interval passed while it ran on"
    if change.deadline is Deadline.CORRECTION_WINDOW:
        return "the correction window is over: no record of it can be accepted any more"
    return f"{change.deadline} passed, counted from record {place}"


def number_ranges(ranges: Sequence[tuple[int, int]], ranges_max: int = RANGES_SHOWN) -> str:
    """Return number ranges as people write them: 3, 5-9."""
    texts = [str(first) if first == last else f"{first}-{last}" for first, last in ranges]
    more = f" and {len(texts) - ranges_max} more" if len(texts) > ranges_max else ""
    return ", ".join(texts[:ranges_max]) + more


def standing_words(life: Life) -> str:
    """Return where a life stands at the end of the log."""
    if life.state is None:
        assert life.forgotten_at_ms is not None
        return f"{FORGOTTEN} after {human_time(life.forgotten_at_ms)}"
    deadline = DEADLINE_OF[life.state.phase]
    return f"{life.state.phase}; {deadline} passes at {human_time(life.state.deadline_ms)}"


def opening_lines(story: Story) -> list[str]:
    """Return how the order was opened, and which openings were refused, a line each."""
    lines = []
    for each in story.openings:
        opened, place = each.opened, f"{each.partition}/{each.offset}"
        who = f"tenant {shown(opened.tenant)}"
        if opened.client:
            who += f", client {shown(opened.client)}"
        if each.reason is not None:
            lines.append(f"Opening refused at record {place}: by {who}: {each.reason}")
            continue
        service = f", service {shown(opened.service)}" if opened.service else ""
        lines.append(
            f"Opened {human_time(opened.server_timestamp_ms)} at record {place} by {who}{service};"
            f" a report every {human_ms(opened.report_interval_ms)}, accepted until"
            f" {human_time(opened.accept_until_ms)}"
        )
        if opened.attributes:
            pairs = (f"{shown(key)}={shown(content)}" for key, content in opened.attributes)
            lines.append(f"  attributes: {', '.join(pairs)}")
        if each.repeats:
            lines.append(f"  opened again by the same client {each.repeats:,} times: no matter")
        if each.accept_until_ms is not None:
            lines.append(
                f"  extended {counted(each.extensions, 'time')} by renewed leases: accepted until"
                f" {human_time(each.accept_until_ms)}"
            )
        if each.lapsed_at_ms is not None:
            lapsed = human_time(each.lapsed_at_ms)
            lines.append(f"  no record of it counted in time: forgotten after {lapsed}")
    return lines


def missing_words(life: Life) -> list[str]:
    """Return what is missing of a life, a sentence each; nothing where all is there."""
    found = []
    missing = life.missing_numbers
    if missing:
        count = sum(last - first + 1 for first, last in missing)
        found.append(
            f"{counted(count, 'business data number')} of 1 to {life.numbers.last():,} never"
            f" arrived: {number_ranges(missing)}."
        )
    if life.end_number is None:
        found.append("No record with the end identifier arrived: nobody knows when it ended.")
    elif after := life.numbers.count_from(life.end_number + 1):
        found.append(
            f"{counted(after, 'business data number')} above the end number"
            f" {life.end_number:,} arrived all the same."
        )
    if gaps := life.gaps:
        gap_ms = sum(end_ms - start_ms for start_ms, end_ms in gaps)
        found.append(
            f"{human_ms(gap_ms)} between start and end are in no record,"
            f" in {counted(len(gaps), 'gap')}."
        )
    return found


def bound_words(upper_bound_ms: int | None) -> str:
    """Return what the duration can be at most, if all that is missing were found."""
    return "not known" if upper_bound_ms is None else human_ms(upper_bound_ms)


def origin_words(row: Row) -> str:
    """Return where a record came from, as its headers say; nothing where they say nothing."""
    found = []
    if row.forwarded_from:
        found.append(f"sent on from {row.forwarded_from}")
    if row.resent_from:
        found.append(f"sent back from dead letter {shown(row.resent_from)}")
    return ", ".join(found)


def verdict_words(row: Row) -> str:
    """Return what became of a record, with all that is known of it."""
    words = row.verdict
    if row.detail:
        words += f" ({row.detail})"
    if row.dead_letter:
        words += f", dead letter {row.dead_letter}"
    if row.reopens:
        words += ", reopens it"
    return words


def pieces_words(pieces: Sequence[tuple[int, int]], whole_ms: int, pieces_max: int = 3) -> str:
    """Return pieces of a record's time: all of it, none, or from when to when."""
    if not pieces:
        return "none"
    length_ms = sum(end_ms - start_ms for start_ms, end_ms in pieces)
    if length_ms == whole_ms:
        return f"all {human_ms(whole_ms)}"
    times = [
        f"{human_time(start_ms)[11:]} to {human_time(end_ms)[11:]}"
        for start_ms, end_ms in pieces[:pieces_max]
    ]
    more = f" and {len(pieces) - pieces_max:,} more" if len(pieces) > pieces_max else ""
    return f"{human_ms(length_ms)}: {', '.join(times)}{more}"


@dataclass(frozen=True)
class Published:
    """Which of an order's totals were found where totals are published.

    `strangers` are those that the log doesn't give by the policies that are told.
    """

    source: str
    found: frozenset[TotalKey]
    strangers: tuple[Any, ...] = ()

    def has(self, given: Given) -> bool:
        """Tell whether a revision was found."""
        return key_of(given) in self.found

    def says(self, given: Given) -> str:
        """Return the same in words."""
        return "published" if self.has(given) else "not found there"


def published_of(source: str, totals: Iterable[Any], story: Story) -> Published:
    """Return which of the totals at a source are those that the log gives."""
    found = list(totals)
    keys = frozenset(map(key_of, found))
    return Published(source, keys, tuple(each for each in found if key_of(each) not in story.given))


def policy_lines(basis: Basis) -> list[str]:
    """Return by which policies the order is explained."""
    lines = []
    for at, record in enumerate(basis.history):
        policy = record.terms.policy
        interim_ms = policy.interim_interval_ms
        waits = ", ".join(
            (
                f"settle_grace {human_ms(policy.settle_grace_ms)}",
                f"idle_timeout {human_ms(policy.idle_timeout_ms)}",
                f"correction_window {human_ms(policy.correction_window_ms)}",
                f"interim_interval {human_ms(interim_ms) if interim_ms else 'never'}",
                *(["opened orders only"] if policy.opened_only else []),
            )
        )
        lines.append(f"From offset {record.from_offset} on: {waits}" if at else f"Policy: {waits}")
    if basis.assumed_because:
        lines.append(f"note: this policy is assumed from the settings: {basis.assumed_because}")
    return lines
