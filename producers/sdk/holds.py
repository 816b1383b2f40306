"""Orders that are not sent for a while, because the server keeps failing for them.

Each has pauses of its own, so that one which the server can't take holds no other order up. When
several pauses are over, one order tries at a time: many that fail in a row would look as if the
server failed for all. Once such orders work again, more try: one more for each that has worked.
Pure: the time and the length of a pause are arguments.
"""

import heapq


class Holds:
    """Which orders wait, until when (in s of the caller's clock), and how often they failed."""

    def __init__(self) -> None:
        self._failures: dict[str, int] = {}
        self._until_s: dict[str, float] = {}
        self._wished: set[str] = set()
        self._at_once = 1

    def failed(self, number: str) -> int:
        """Note that an order has failed; return how often it has by now, in a row."""
        self._at_once = 1
        self._failures[number] = self._failures.get(number, 0) + 1
        return self._failures[number]

    def hold(self, number: str, until_s: float, *, is_wish: bool = False) -> None:
        """Have an order wait until then: by a wish of the server's, or just to be careful."""
        self._until_s[number] = until_s
        if is_wish:
            self._wished.add(number)
        else:
            self._wished.discard(number)

    def worked(self, number: str) -> None:
        """Note that the server has taken something of the order's, or refused it for good."""
        self._at_once += self._failures.pop(number, 0) > 0
        self._until_s.pop(number, None)
        self._wished.discard(number)

    def release(self) -> None:
        """End the pauses that no server wished for; the orders keep their failures."""
        for number in self._until_s.keys() - self._wished:
            self._until_s[number] = float("-inf")

    def held(self, now_s: float) -> list[str]:
        """Return the orders that wait now; those whose turn it is do so no longer."""
        over = [number for number, until_s in self._until_s.items() if until_s <= now_s]
        for number in heapq.nsmallest(self._at_once, over, key=self._until_s.__getitem__):
            del self._until_s[number]
            self._wished.discard(number)
        return list(self._until_s)

    def wait_s(self, now_s: float) -> float | None:
        """Return how long until the first may try again, None where none waits."""
        return max(0.0, min(self._until_s.values()) - now_s) if self._until_s else None
