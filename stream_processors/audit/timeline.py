"""The arithmetic of a drawing over time: scales, ticks, lanes, what is in a pixel column. Pure."""

import heapq
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from durabill.schemas.text import human_time

Piece = tuple[int, int]
"""[start, end) in milliseconds."""

_DAY_MS = 86_400_000
_STEPS_MS = (
    *(1, 2, 5, 10, 20, 50, 100, 200, 500),
    *(1_000 * each for each in (1, 2, 5, 10, 15, 30)),
    *(60_000 * each for each in (1, 2, 5, 10, 15, 30)),
    *(3_600_000 * each for each in (1, 2, 3, 6, 12)),
    *(_DAY_MS * each for each in (1, 2, 5, 10, 30, 90, 180, 365)),
)


@dataclass(frozen=True, slots=True)
class Scale:
    """Puts [from_ms, to_ms) on the pixels from `left` on, `width` of them."""

    from_ms: int
    to_ms: int
    left: int
    width: int

    def x(self, at_ms: int) -> float:
        """Return where an instant is; one outside is at the border."""
        inside_ms = min(max(at_ms, self.from_ms), self.to_ms) - self.from_ms
        return self.left + self.width * inside_ms / (self.to_ms - self.from_ms)

    def edges(self, columns: int) -> list[int]:
        """Return the instants between which the columns lie, one more than there are columns.

        With fewer milliseconds than columns some columns are empty.
        """
        length_ms = self.to_ms - self.from_ms
        return [self.from_ms + length_ms * at // columns for at in range(columns + 1)]


def scale_of(from_ms: int, to_ms: int, left: int, width: int) -> Scale:
    """Return a scale that has a little room at both sides, and some length in any case."""
    room_ms = max((to_ms - from_ms) // 60, 500 if to_ms - from_ms < 2 else 1)
    return Scale(from_ms - room_ms, to_ms + room_ms, left, width)


@dataclass(frozen=True, slots=True)
class Tick:
    """A mark of a time axis, in UTC. `date` is set where the day is a new one."""

    at_ms: int
    label: str
    date: str


def ticks(scale: Scale, ticks_max: int = 8) -> list[Tick]:
    """Return the ticks of an axis: round times, no more than `ticks_max`."""
    length_ms = scale.to_ms - scale.from_ms
    step_ms = next((each for each in _STEPS_MS if length_ms // each < ticks_max), length_ms // 4)
    found: list[Tick] = []
    day = ""
    for at_ms in range(-(-scale.from_ms // step_ms) * step_ms, scale.to_ms, step_ms):
        date, _, clock = human_time(at_ms).partition(" ")
        length = 12 if step_ms % 1_000 else 8 if step_ms % 60_000 else 5
        label = clock[:length] if step_ms < _DAY_MS else ""
        found.append(Tick(at_ms, label, "" if date == day else date))
        day = date
    return found


def lanes_of(pieces: Sequence[Piece], lanes_max: int) -> list[int] | None:
    """Return a lane for each piece, so that no two of a lane overlap; None: that takes too many.

    Takes as few lanes as can be, which is how many pieces lie over each other at most. An empty
    piece takes a millisecond.
    """
    lanes = [0] * len(pieces)
    free: list[int] = []
    busy: list[tuple[int, int]] = []  # (end, lane)
    count = 0
    for at in sorted(range(len(pieces)), key=lambda at: pieces[at]):
        start_ms, end_ms = pieces[at]
        while busy and busy[0][0] <= start_ms:
            heapq.heappush(free, heapq.heappop(busy)[1])
        if free:
            lane = heapq.heappop(free)
        else:
            lane, count = count, count + 1
            if count > lanes_max:
                return None
        lanes[at] = lane
        heapq.heappush(busy, (max(end_ms, start_ms + 1), lane))
    return lanes


def depth_max(pieces: Iterable[Piece]) -> int:
    """Return how many pieces lie over each other at most."""
    found = list(pieces)
    steps = sorted([(end, -1) for start, end in found if start < end])
    steps += [(start, 1) for start, end in found if start < end]
    return max(accumulate(step for _, step in sorted(steps)), default=0)


def coverage(pieces: Iterable[Piece], edges: Sequence[int]) -> list[int]:
    """Return for each column how many milliseconds of the pieces are in it, together."""
    found = list(pieces)
    starts, ends = sorted(start for start, _ in found), sorted(end for _, end in found)
    sums = [list(accumulate(each, initial=0)) for each in (starts, ends)]

    def until(at_ms: int) -> int:
        begun, ended = bisect_left(starts, at_ms), bisect_left(ends, at_ms)
        return (begun * at_ms - sums[0][begun]) - (ended * at_ms - sums[1][ended])

    totals = [until(each) for each in edges]
    return [after - before for before, after in pairwise(totals)]


def shares(pieces: Iterable[Piece], edges: Sequence[int], whole: int) -> list[int]:
    """Return for each column how much of it is covered, of `whole`.

    0 and `whole` are exact; a column of which only a little is covered, or not, has 1, or one less
    than `whole`.
    """
    found = []
    for at, covered_ms in enumerate(coverage(pieces, edges)):
        column_ms = edges[at + 1] - edges[at]
        assert covered_ms <= column_ms, "the pieces overlap"
        share = -(-whole * covered_ms // max(column_ms, 1))
        found.append(min(share, whole - 1) if covered_ms < column_ms else whole * bool(covered_ms))
    return found


def counts(instants: Iterable[int], edges: Sequence[int]) -> list[int]:
    """Return for each column how many instants are in it; the last edge is in the last column."""
    found = sorted(instants)
    places = [bisect_left(found, each) for each in edges[:-1]]
    places.append(bisect_left(found, edges[-1] + 1))
    return [after - before for before, after in pairwise(places)]


def runs(values: Sequence[int]) -> list[tuple[int, int, int]]:
    """Return (first, after, value) of every run of equal values."""
    found: list[tuple[int, int, int]] = []
    for at, value in enumerate(values):
        if found and found[-1][2] == value:
            found[-1] = (found[-1][0], at + 1, value)
        else:
            found.append((at, at + 1, value))
    return found


def short_ms(duration_ms: int) -> str:
    """Return a duration in few characters: `250 ms`, `12.5 s`, `4 min 05 s`, `3 h 20 min`."""
    if duration_ms < 1_000:
        return f"{duration_ms} ms"
    if duration_ms < 60_000:
        return f"{duration_ms / 1000:.3f}".rstrip("0").rstrip(".") + " s"
    minutes, ms = divmod(duration_ms, 60_000)
    if minutes < 60:
        seconds = ms // 1000
        return f"{minutes} min {seconds:02} s" if seconds else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes:02} min" if minutes else f"{hours} h"
    days, hours = divmod(hours, 24)
    return f"{days:,} d {hours} h" if hours else f"{days:,} d"
