"""The openings of one partition that wait for their orders' first segments.

An opening waits in a numbered place, and the places lie in entries of the checkpoint, `openings.N`.
Once its order has begun, the order itself has the opening, in its own block (`core.opening`).

Entries are of different age where a crash tore a checkpoint, and blocks are encoded while the
stream goes on. So an opening stays in its place after its order has begun, until a recovery can't
replay the record that began it: else a restore could find neither the order nor its opening. One
that is forgotten stays as long, for the records that a replay judges again, also where another has
opened the number since. So a number can have several here; `at` tells which holds for a record. One
that is extended stays the same one, in its place.
"""

import heapq
from collections import deque
from collections.abc import Callable, Iterable

from durabill.stream_processors.core.opening import Opened
from durabill.stream_processors.engine.blocks import Snapshot, WaitingState, openings_snapshot

ENTRY_PLACES = 1024
"""Openings of one entry: a quarter of a megabyte, before it is packed, where all are as large as
can be."""

ENTRY_PREFIX = "openings."
CONFIRM_AT_ONCE = 4096
SWEPT_MIN = 1024
"""Instants that are not worth a sweep yet, see `WaitingOpenings._sweep`."""

Note = Callable[[str, int], None]
"""Is told a number, and 1 where an opening of it begins to wait, -1 where one ends."""


class WaitingOpenings:
    """What waits, by number; `note` is told of each that comes and goes."""

    def __init__(self, note: Note) -> None:
        self._note = note
        self._by_number: dict[str, list[Opened]] = {}
        self._places: dict[int, tuple[str, Opened]] = {}
        self._place_of: dict[int, int] = {}
        """An opening's offset, which no other has, and its place."""
        self._free: list[int] = []
        self._used = 0
        self._changed: set[int] = set()
        self._forgotten: list[tuple[int, int]] = []
        """(last instant at which it is known, offset), the first on top; some have gone since."""
        self._begun: deque[tuple[int, int]] = deque()
        """(clock at the order's first segment, offset) of those whose orders have begun."""
        self._taken: set[int] = set()
        """The offsets of the same."""

    def __len__(self) -> int:
        """Return how many wait for a first segment, or are not given up yet."""
        return len(self._places)

    # -- questions ----------------------------------------------------------------------------

    def at(self, number: str, offset: int, clock_ms: int) -> Opened | None:
        """Return the opening that holds for a record at an offset, at the clock there."""
        for each in reversed(self._by_number.get(number, ())):
            if each.offset < offset:
                return None if each.is_forgotten(clock_ms) else each
        return None

    def has(self, offset: int) -> bool:
        """Tell whether the opening at an offset is here."""
        return offset in self._place_of

    def is_ahead(self, number: str, offset: int) -> bool:
        """Tell whether an opening here was extended at an offset or later, and opened before it.

        Then a replay brings the record there again; see `core.opening`.
        """
        known = self._by_number.get(number, ())
        return any(each.offset < offset <= each.extended_at for each in known)

    # -- what happens -------------------------------------------------------------------------

    def add(self, number: str, opened: Opened) -> None:
        """Have an opening wait."""
        if self._free:
            place = heapq.heappop(self._free)
        else:
            place, self._used = self._used, self._used + 1
        self._put(place, number, opened)
        self._changed.add(place // ENTRY_PLACES)

    def _put(self, place: int, number: str, opened: Opened) -> None:
        self._places[place] = (number, opened)
        self._place_of[opened.offset] = place
        known = self._by_number.setdefault(number, [])
        known.append(opened)
        known.sort(key=lambda each: each.offset)  # a torn checkpoint's replay can bring them late
        heapq.heappush(self._forgotten, (opened.known_until_ms, opened.offset))
        self._note(number, 1)

    def extend(self, extended: Opened) -> None:
        """Have an opening that waits be what it was extended to."""
        place = self._place_of[extended.offset]
        number, opened = self._places[place]
        known = self._by_number[number]
        known[known.index(opened)] = extended
        self._places[place] = (number, extended)
        self._changed.add(place // ENTRY_PLACES)

    def take(self, number: str, opened: Opened, clock_ms: int) -> None:
        """Note that the order of an opening has begun, at this clock."""
        if opened.offset not in self._taken:
            self._taken.add(opened.offset)
            self._begun.append((clock_ms, opened.offset))
            self._note(number, -1)

    def confirm(self, clock_ms: int) -> bool:
        """Give up what no replay needs any more; False: that was all. See `IntervalTable`."""
        for _ in range(CONFIRM_AT_ONCE):
            if self._begun and self._begun[0][0] < clock_ms:
                self._drop(self._begun.popleft()[1])
            elif self._forgotten and self._forgotten[0][0] < clock_ms:
                self._forget(heapq.heappop(self._forgotten)[1], clock_ms)
            else:
                return False
        return True

    def _forget(self, offset: int, clock_ms: int) -> None:
        """Drop an opening whose time was over at this clock, unless it has been extended."""
        place = self._place_of.get(offset)
        opened = None if place is None else self._places[place][1]
        if opened is not None and opened.known_until_ms >= clock_ms:
            heapq.heappush(self._forgotten, (opened.known_until_ms, offset))
        else:
            self._drop(offset)

    def _drop(self, offset: int) -> None:
        place = self._place_of.pop(offset, None)
        if place is None:
            return  # it has gone already: its order had begun
        number, opened = self._places.pop(place)
        known = self._by_number[number]
        known.remove(opened)
        if not known:
            del self._by_number[number]
        if offset in self._taken:
            self._taken.remove(offset)
        else:
            self._note(number, -1)
        heapq.heappush(self._free, place)
        self._changed.add(place // ENTRY_PLACES)
        if len(self._forgotten) > 2 * len(self._places) + SWEPT_MIN:
            self._sweep()

    def _sweep(self) -> None:
        """Drop the last instants of those that have gone: they may lie years ahead.

        More have gone since the last sweep than are here, so it costs each that goes a few steps.
        """
        self._forgotten = [
            (opened.known_until_ms, opened.offset) for _, opened in self._places.values()
        ]
        heapq.heapify(self._forgotten)

    # -- checkpoints --------------------------------------------------------------------------

    def take_changed(self) -> list[str]:
        """Return the names of the entries that have changed since the last call."""
        names = [f"{ENTRY_PREFIX}{entry}" for entry in sorted(self._changed)]
        self._changed.clear()
        return names

    def snapshot(self, name: str) -> Snapshot | None:
        """Return what an entry holds now; None: nothing."""
        first = int(name.removeprefix(ENTRY_PREFIX)) * ENTRY_PLACES
        states = [
            WaitingState(place, found[0], *found[1])
            for place in range(first, first + ENTRY_PLACES)
            if (found := self._places.get(place)) is not None
        ]
        return openings_snapshot(states) if states else None

    def restore(
        self, states: Iterable[WaitingState], opening_of: Callable[[str], Opened | None]
    ) -> None:
        """Put what a checkpoint's entries hold where it was.

        `opening_of` returns the opening of the order that has a number. Where the order has begun
        by this opening, or by a later one, the block has it, and it need not be here.
        """
        for each in states:
            opened = Opened(
                each.begin_ms,
                each.accept_until_ms,
                each.offset,
                each.tenant,
                each.client,
                each.extended_at,
            )
            begun = opening_of(each.number)
            self._used = max(self._used, each.place + 1)
            if begun is not None and begun.offset >= opened.offset:
                self._changed.add(each.place // ENTRY_PLACES)
            else:
                self._put(each.place, each.number, opened)
        self._free = [place for place in range(self._used) if place not in self._places]
