"""Orders that are not sent for a while, because the server keeps failing for them.

Each has pauses of its own, so that one which the server can't take holds no other order up. When
several pauses are over, one order tries at a time: many that fail in a row would look as if the
server failed for all. Pure: the time and the length of a pause are arguments.
"""


class Holds:
    """Which orders wait, until when (in s of the caller's clock), and how often they failed."""

    def __init__(self) -> None:
        self._failures: dict[str, int] = {}
        self._until_s: dict[str, float] = {}
        self._wished: set[str] = set()

    def failed(self, number: str) -> int:
        """Note that an order has failed; return how often it has by now, in a row."""
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
        self._failures.pop(number, None)
        self._until_s.pop(number, None)
        self._wished.discard(number)

    def release(self) -> None:
        """End the pauses that no server wished for; the orders keep their failures."""
        for number in self._until_s.keys() - self._wished:
            self._until_s[number] = float("-inf")

    def held(self, now_s: float) -> list[str]:
        """Return the orders that wait now; the one whose turn it is does so no longer."""
        if self._until_s:
            number = min(self._until_s, key=self._until_s.__getitem__)
            if self._until_s[number] <= now_s:
                del self._until_s[number]
                self._wished.discard(number)
        return list(self._until_s)

    def wait_s(self, now_s: float) -> float | None:
        """Return how long until the first may try again, None where none waits."""
        return max(0.0, min(self._until_s.values()) - now_s) if self._until_s else None
