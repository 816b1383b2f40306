"""Offsets that have no record, as ranges that say why. Pure."""

from collections.abc import Iterable
from enum import StrEnum
from typing import NamedTuple


class Why(StrEnum):
    """Why an offset has no record."""

    CONTROL = "control"
    """The marker that ends a transaction."""

    ABORTED = "aborted"
    """A record of a transaction that was aborted: it never was."""

    UNREADABLE = "unreadable"
    """A part of a batch that can't be read; the row before has the whole batch."""

    ABSENT = "absent"
    """Nothing is there."""


class Gap(NamedTuple):
    """Offsets [first, last] without a record, both included."""

    first: int
    last: int
    why: Why


def join(gaps: Iterable[Gap]) -> list[Gap]:
    """Return gaps, which come in order, with those united that touch and have the same reason."""
    joined: list[Gap] = []
    for gap in gaps:
        if joined and joined[-1].why == gap.why and joined[-1].last + 1 == gap.first:
            gap = joined.pop()._replace(last=gap.last)
        joined.append(gap)
    return joined


def split(gaps: Iterable[Gap], offset: int) -> tuple[list[Gap], list[Gap]]:
    """Return the gaps before an offset, and those from it on; one that spans it is cut in two."""
    before, after = [], []
    for gap in gaps:
        if gap.first < offset:
            before.append(gap._replace(last=min(gap.last, offset - 1)))
        if gap.last >= offset:
            after.append(gap._replace(first=max(gap.first, offset)))
    return before, after


def size(gaps: Iterable[Gap], why: Why) -> int:
    """Return how many offsets are in the gaps of a reason."""
    return sum(each.last - each.first + 1 for each in gaps if each.why == why)


def between(offsets: Iterable[int], first: int, after: int) -> list[tuple[int, int]]:
    """Return what [first, after) has besides these offsets, which rise, as ranges [first, last]."""
    found, at = [], first
    for offset in offsets:
        if offset > at:
            found.append((at, offset - 1))
        at = offset + 1
    if at < after:
        found.append((at, after - 1))
    return found
