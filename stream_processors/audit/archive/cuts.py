"""Where the files of an archive end: a function of the log.

A file of a partition begins where the one before it ended, and ends before the first of

- the next offset that is a multiple of `offsets_per_file`,
- the first record that arrived on a later day (UTC) than the file's first record, where a record's
  arrival is the greatest append time in its partition up to and including it,
- the end of the log, where somebody asked for a file that ends there (`close`).

How the log is read, in which pieces, and how often reading starts anew, changes nothing.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

DAY_MS = 86_400_000


class FileRange(NamedTuple):
    """What one file covers: offsets [first_offset, last_offset], both included.

    `day` is the day (since the epoch) of its first record's arrival; of a file without records it
    is that of the last record before. `clock_ms` is the arrival at its end.
    """

    first_offset: int
    last_offset: int
    day: int
    clock_ms: int


class Part(NamedTuple):
    """Rows [start, stop) of a piece, all of one file; `closes` is that file where it ends there."""

    start: int
    stop: int
    closes: FileRange | None


@dataclass(slots=True)
class Cutter:
    """Cuts one partition's log; `first_offset` is where the file in the making begins.

    `clock_ms` is the arrival of the last record before. `end_hint` is an offset at which a file
    ends besides; one that isn't beyond `first_offset` means nothing.
    """

    offsets_per_file: int
    first_offset: int
    clock_ms: int = 0
    end_hint: int = 0
    _day: int | None = None

    def parts(
        self, offsets: Sequence[int], append_times_ms: Sequence[int], next_offset: int
    ) -> Iterator[Part]:
        """Yield what becomes of a piece of the log: rows in order, everything before `next_offset`.

        Each piece goes on where the one before ended. Parts may have no rows.
        """
        start = 0
        for at, (offset, append_ms) in enumerate(zip(offsets, append_times_ms, strict=True)):
            while offset >= (limit := self._limit()):
                yield Part(start, at, self._close(limit))
                start = at
            clock_ms = max(self.clock_ms, append_ms)
            if self._day is not None and clock_ms // DAY_MS != self._day:
                yield Part(start, at, self._close(offset))
                start = at
            self.clock_ms, self._day = clock_ms, clock_ms // DAY_MS
        while next_offset >= (limit := self._limit()):
            yield Part(start, len(offsets), self._close(limit))
            start = len(offsets)
        if start < len(offsets):
            yield Part(start, len(offsets), None)

    def passes(self, next_offset: int, append_ms: int) -> bool:
        """Tell whether no file ends before a batch of this append time, in it, or with it."""
        day = max(self.clock_ms, append_ms) // DAY_MS
        return next_offset < self._limit() and self._day in (None, day)

    def pass_over(self, append_ms: int) -> None:
        """Take note of a batch with records, for which `passes` holds."""
        self.clock_ms = max(self.clock_ms, append_ms)
        self._day = self.clock_ms // DAY_MS

    def close(self, next_offset: int) -> FileRange | None:
        """Return the file that ends before `next_offset`, up to which all has been seen, if any.

        No row at or beyond it may have been given to `parts`.
        """
        return self._close(next_offset) if next_offset > self.first_offset else None

    def _limit(self) -> int:
        limit = (self.first_offset // self.offsets_per_file + 1) * self.offsets_per_file
        return min(limit, self.end_hint) if self.end_hint > self.first_offset else limit

    def _close(self, next_offset: int) -> FileRange:
        day = self.clock_ms // DAY_MS if self._day is None else self._day
        closed = FileRange(self.first_offset, next_offset - 1, day, self.clock_ms)
        self.first_offset, self._day = next_offset, None
        return closed
