"""Sets of integers kept as a union of half-open intervals [start, end).

Half-open everywhere in Durabill: [100, 200) and [200, 300) touch, do not overlap, and merge to
[100, 300). The same structure holds an order's time sequences (milliseconds) and its business
data numbers (number n as [n, n + 1)). The union doesn't depend on the order of insertion, on
how a piece was split, or on repeats: it is the set of integers, and nothing else is kept.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator


class IntervalSet:
    """A set of integers as sorted, disjoint, not touching, non-empty half-open intervals."""

    __slots__ = ("_ends", "_starts", "measure")

    def __init__(self, intervals: Iterable[tuple[int, int]] = ()) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        self.measure = 0
        """How many integers the set holds: the total duration where they are milliseconds."""
        for start, end in intervals:
            self.add(start, end)

    def add(self, start: int, end: int) -> int:
        """Unite with [start, end) and return by how much `measure` grew (0: nothing new)."""
        assert start <= end
        if start == end:
            return 0
        starts, ends = self._starts, self._ends
        if not ends or start > ends[-1]:
            starts.append(start)
            ends.append(end)
            self.measure += end - start
            return end - start
        # Intervals first..last-1 overlap or touch [start, end): all become one.
        first = bisect_left(ends, start)
        last = bisect_right(starts, end)
        covered = 0
        new_start, new_end = start, end
        if first < last:
            covered = sum(ends[i] - starts[i] for i in range(first, last))
            new_start = min(start, starts[first])
            new_end = max(end, ends[last - 1])
        starts[first:last] = [new_start]
        ends[first:last] = [new_end]
        gained = new_end - new_start - covered
        assert 0 <= gained <= end - start
        self.measure += gained
        return gained

    def missing(self, start: int, end: int) -> list[tuple[int, int]]:
        """Return the sorted intervals of [start, end) that are not in the set."""
        assert start <= end
        gaps = []
        at = start
        for i in range(bisect_right(self._ends, start), len(self._starts)):
            if self._starts[i] >= end:
                break
            if self._starts[i] > at:
                gaps.append((at, self._starts[i]))
            at = self._ends[i]
        if at < end:
            gaps.append((at, end))
        return gaps

    def covers(self, start: int, end: int) -> bool:
        """Tell whether every integer of [start, end) is in the set."""
        i = bisect_right(self._starts, start) - 1
        return start >= end or (i >= 0 and self._ends[i] >= end)

    def is_apart(self, start: int, end: int) -> bool:
        """Tell whether [start, end) would be a further interval: not empty, not touching any."""
        assert start <= end
        return start < end and bisect_left(self._ends, start) == bisect_right(self._starts, end)

    def is_one_from(self, start: int) -> bool:
        """Tell whether the set is one interval that begins at `start`."""
        return len(self._starts) == 1 and self._starts[0] == start

    def count_from(self, start: int) -> int:
        """Return how many integers of the set are at `start` or above."""
        first = bisect_right(self._ends, start)
        return sum(
            self._ends[i] - max(self._starts[i], start) for i in range(first, len(self._ends))
        )

    def last(self) -> int:
        """Return the greatest integer of the set, which must not be empty."""
        return self._ends[-1] - 1

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return zip(self._starts, self._ends, strict=True)

    def __len__(self) -> int:
        """Return the number of intervals."""
        return len(self._starts)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, IntervalSet):
            return NotImplemented
        return self._starts == other._starts and self._ends == other._ends

    __hash__ = None  # type: ignore[assignment]  # a mutable set has no hash

    def check(self) -> None:
        """Assert the invariants: called before a state is written and after it is read."""
        assert len(self._starts) == len(self._ends)
        assert all(start < end for start, end in self)
        assert all(a < b for a, b in zip(self._ends, self._starts[1:], strict=False))
        assert self.measure == sum(end - start for start, end in self)

    def __repr__(self) -> str:
        return f"IntervalSet({list(self)})"
