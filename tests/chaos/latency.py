"""How soon honest totals came, by the broker's own times, and which of them came grossly late.

A total is late by the append time of its record in the totals topic, less `settled_at_ms`: the
arrival of the record that completed its order, or the deadline that settled it. Both are append
times or made of them, so no clock but the broker's counts. While a fault is on, and for a while
after it, totals may be late; those are left out of the percentile, and are no violation.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from tests.chaos.proofs import Injected

GROSS_MS = 30_000
AFTERMATH_MS = 45_000
"""How long after a fault totals may still be late: a session, a recovery and the backlog."""


class Published(NamedTuple):
    """When an order had settled, and when its total was appended; ms by the broker."""

    name: tuple[str, int]
    settled_at_ms: int
    published_ms: int


class Window(NamedTuple):
    """A time [begin_ms, end_ms) in which a fault explains that a total is late."""

    begin_ms: int
    end_ms: int


@dataclass(slots=True)
class Latency:
    """Of the totals that no fault touched: how many, and how late in ms. `gross` are too late."""

    quiet: int = 0
    p50_ms: int = 0
    p99_ms: int = 0
    max_ms: int = 0
    gross: list[str] = field(default_factory=list)


def windows(injected: Iterable[Injected], calm_ms: Sequence[int]) -> list[Window]:
    """Return when faults explain delays: until the cluster was seen to be back at work again.

    `calm_ms` has the times at which it was. Where that isn't known, or later, a fault explains
    delays for `AFTERMATH_MS` after its end.
    """
    found = []
    for each in injected:
        mended_ms = each.began_ms + round(each.lasted_s * 1000)
        seen = [at_ms for at_ms in calm_ms if at_ms >= mended_ms]
        found.append(Window(each.began_ms, min([mended_ms + AFTERMATH_MS, *seen])))
    return found


def measure(published: Iterable[Published], explained: Sequence[Window]) -> Latency:
    """Return how late the totals were that settled and came out outside of all windows."""
    late: list[int] = []
    found = Latency()
    for each in published:
        if any(
            w.begin_ms <= each.published_ms and each.settled_at_ms < w.end_ms for w in explained
        ):
            continue
        late_ms = each.published_ms - each.settled_at_ms
        late.append(late_ms)
        if late_ms > GROSS_MS:
            found.gross.append(f"{each.name}: {late_ms / 1000:g} s after {each.settled_at_ms}")
    late.sort()
    if late:
        found.quiet, found.max_ms = len(late), late[-1]
        found.p50_ms, found.p99_ms = late[len(late) // 2], late[len(late) * 99 // 100]
    return found
