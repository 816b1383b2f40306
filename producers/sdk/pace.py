"""How long a client waits before it asks the server again. Pure: dice are arguments.

One client doesn't matter; a hundred thousand that come back in the same second do. So each pause
is long enough to be spread, and drawn by each client for itself:

- The first try after a failure comes soon: most failures are one broken connection.
- From the second failure in a row on it is an outage. The next try comes somewhere within a report
  interval, and all later ones a report interval apart, more or less: each client keeps the place
  that the dice gave it. So whenever the server comes back, the clients' next tries are spread
  evenly over a report interval, also where all of them failed in one moment, and an outage is
  asked no more often than a server that works.
- Orders that fail by themselves have pauses of their own (`holds`). Where several do, and nothing
  works in between, it is the server that fails, one order at a time: then all wait, half a minute
  at most, since it may be those orders after all.
- A server's wish (Retry-After) is never undercut, and what was said above is added to it.
- After an outage a client that has more waiting than a request takes sends a few requests a report
  interval, not all at once: a few times what it measures meanwhile, or one.
"""

from collections.abc import Callable, Collection

from durabill.producers.sdk.uplink import WISH_MAX_S, Backoff

OUTAGE_FAILURES = 2
IN_VAIN_ORDERS = 3
_WANDER = 0.1  # of a pause
_SPREAD_MIN_S = 1.0
CATCH_UP = 4
"""How many times as fast as it measures a client sends what has waited."""


class Pace:
    """The pauses of one client. `dice` gives 0 <= x < 1."""

    def __init__(self, backoff: Backoff, dice: Callable[[], float]) -> None:
        self._backoff = backoff
        self._dice = dice
        self._failures = 0
        self._in_vain: set[str] = set()
        self._tries_in_vain = 0
        self.is_catching_up = False
        """Whether an outage has left more than a request takes."""

    def after_failure_s(self, wish_s: float | None, interval_s: float) -> float:
        """Return the pause after one more failure in a row."""
        self._failures += 1
        if self._failures < OUTAGE_FAILURES:
            return self._backoff.pause_s(1, self._dice(), wish_s)
        self.is_catching_up = True
        spread_s = self._spread_s(interval_s)
        least_s = 0.0 if wish_s is None else min(max(wish_s, 0.0), WISH_MAX_S)
        if self._failures == OUTAGE_FAILURES:
            return least_s + self._dice() * spread_s
        return max(least_s, spread_s) * (1.0 + self._dice() * _WANDER)

    def in_vain_s(self, numbers: Collection[str]) -> float:
        """Return the pause after a try that failed for these orders, and worked for none."""
        if len(self._in_vain) < IN_VAIN_ORDERS:
            self._in_vain.update(numbers)
        if len(self._in_vain) < IN_VAIN_ORDERS:
            return 0.0
        self._tries_in_vain += 1
        return self._backoff.pause_s(self._tries_in_vain, self._dice())

    def worked(self) -> None:
        """Note that the server has taken, or refused for good, something."""
        self._failures = self._tries_in_vain = 0
        self._in_vain.clear()

    def drained(self) -> None:
        """Note that no more waits than one request takes: nothing is left of an outage."""
        if not self._failures:
            self.is_catching_up = False

    def between_s(self, interval_s: float, services: int, request_segments_max: int) -> float:
        """Return the pause before the next request, while more waits than that takes."""
        if not self.is_catching_up or self._failures:
            return 0.0
        requests = max(1.0, CATCH_UP * services / request_segments_max)
        return self._spread_s(interval_s) / requests * (0.75 + self._dice() / 2)

    def _spread_s(self, interval_s: float) -> float:
        given_s = self._backoff.spread_s
        return max(interval_s, _SPREAD_MIN_S) if given_s is None else given_s
