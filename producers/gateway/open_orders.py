"""The orders of one tenant that count for its quota: as few bytes an order as may be."""

ENDED_KEPT_MS = 180_000
"""So long an order still counts after its end was stored: its worker keeps it for longer."""
UNOPENED_KEPT_MS = 600_000
"""So long a number that nobody opened counts after the last segments that came with it."""


class OpenOrders:
    """The orders of one tenant that count, by the hash of their numbers, and until when.

    An order is open, ended or only seen; each kind is in about the sequence of being forgotten.
    """

    def __init__(self) -> None:
        self._open: dict[int, int] = {}
        self._ended: dict[int, int] = {}
        self._seen: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._open) + len(self._ended) + len(self._seen)

    def __contains__(self, number: str) -> bool:
        key = hash(number)
        return key in self._open or key in self._ended or key in self._seen

    def open(self, number: str, until_ms: int) -> None:
        """Take in one that is opened."""
        key = hash(number)
        self.discard(number)
        self._open[key] = until_ms

    def see(self, number: str, now_ms: int) -> None:
        """Take in one that nobody may have opened."""
        key = hash(number)
        if key not in self._open and key not in self._ended:
            self._seen.pop(key, None)
            self._seen[key] = now_ms + UNOPENED_KEPT_MS

    def end(self, number: str, now_ms: int) -> None:
        """Keep one that is counted for a while longer, but not for longer than if it were open."""
        key = hash(number)
        until_ms = self._open.pop(key, None) or self._seen.pop(key, None)
        if until_ms is not None:
            self._ended[key] = min(until_ms, now_ms + ENDED_KEPT_MS)

    def discard(self, number: str) -> None:
        """Leave one out."""
        for each in (self._open, self._ended, self._seen):
            each.pop(hash(number), None)

    def forget(self, now_ms: int) -> None:
        """Leave out those whose time has passed, the longest known first."""
        for each in (self._open, self._ended, self._seen):
            while each:
                first = next(iter(each))
                if each[first] > now_ms:
                    break
                del each[first]
