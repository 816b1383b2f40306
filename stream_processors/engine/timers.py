"""Timers of orders: a heap in which an order has one live entry."""

import heapq


class Timers:
    """When orders have to be looked at.

    An order has one live entry. A deadline that moves away is left where it is: the owner finds
    that out when the entry comes up, and puts the order in again.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[int, str]] = []
        self._live: dict[str, int] = {}

    def __len__(self) -> int:
        """Return the number of entries, replaced ones included."""
        return len(self._heap)

    def put(self, number: str, due_ms: int) -> None:
        """Have an order looked at by `due_ms`, if it isn't looked at earlier anyway."""
        live_ms = self._live.get(number)
        if live_ms is None or due_ms < live_ms:
            self._live[number] = due_ms
            heapq.heappush(self._heap, (due_ms, number))

    def first_ms(self) -> int | None:
        """Return the instant of the first entry, replaced ones included; None: there is none."""
        return self._heap[0][0] if self._heap else None

    def has_by(self, now_ms: int) -> bool:
        """Tell whether the first entry is at or before `now_ms`."""
        return bool(self._heap) and self._heap[0][0] <= now_ms

    def first(self) -> tuple[int, str] | None:
        """Return the first entry if it is live; None if an earlier one of its order replaced it."""
        due_ms, number = self._heap[0]
        return (due_ms, number) if self._live.get(number) == due_ms else None

    def pop(self) -> tuple[int, str] | None:
        """Remove the first entry; return what `first` would have."""
        live = self.first()
        heapq.heappop(self._heap)
        if live is not None:
            del self._live[live[1]]
        return live

    def drop(self, number: str) -> None:
        """Forget an order's live entry."""
        self._live.pop(number, None)
