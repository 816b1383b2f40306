"""The broker's clock, learned from acknowledgements: its append times decide what counts.

Theory: a record is sent at s, appended at the broker's time a, and acknowledged at t. So the
broker's clock is ahead of ours by at most a - s and at least a - t. Ours is the monotonic clock
here, so a wall clock that is set neither changes the estimate nor hides that it was wrong.
"""

import time
from collections.abc import Callable

KEPT_MS = 60_000
"""How long a narrow estimate is kept before a wider one replaces it: clocks drift, a few ms a
minute at worst. So long after the last acknowledgement nobody is refused by the estimate: this
machine may have slept, or the broker's clock been set."""

_BOOTTIME: int | None = getattr(time, "CLOCK_BOOTTIME", None)


def awake_or_asleep_ns() -> int:
    """Return a clock without steps that counts suspends too, where the platform has one."""
    return time.monotonic_ns() if _BOOTTIME is None else time.clock_gettime_ns(_BOOTTIME)


class BrokerClock:
    """What time it is on the broker, as far as is known.

    `wall_ns` is this machine's time, `monotonic_ns` counts without steps. Without an
    acknowledgement yet, the machine's own time is all there is.
    """

    def __init__(self, wall_ns: Callable[[], int], monotonic_ns: Callable[[], int]) -> None:
        self._wall_ns = wall_ns
        self._monotonic_ns = monotonic_ns
        self._bounds_ms: tuple[int, int] | None = None  # of broker's - monotonic
        self._learned_ms = 0
        self._heard_ms = 0

    @property
    def is_known(self) -> bool:
        """Whether anything has been learned yet."""
        return self._bounds_ms is not None

    def tick_ms(self) -> int:
        """Return the monotonic clock; `learn` takes two of these."""
        return self._monotonic_ns() // 1_000_000

    def learn(self, sent_ms: int, acked_ms: int, append_ms: int) -> None:
        """Take in that what was sent at tick `sent_ms` has this append time, as of `acked_ms`."""
        assert sent_ms <= acked_ms
        low, high = append_ms - acked_ms, append_ms - sent_ms
        self._heard_ms = acked_ms
        if self._bounds_ms is not None and acked_ms - self._learned_ms < KEPT_MS:
            known_low, known_high = self._bounds_ms
            # Bounds that don't meet: the broker's clock was set, or another broker leads.
            meet = known_low <= high and low <= known_high
            if meet and high - low > known_high - known_low:
                return
        self._bounds_ms, self._learned_ms = (low, high), acked_ms

    def now_ms(self) -> int:
        """Return the broker's time, or this machine's if nothing has been learned yet."""
        return self.at_ms(self.tick_ms())

    def at_ms(self, tick_ms: int) -> int:
        """Return that time as of a tick, which is now."""
        if self._bounds_ms is None:
            return self._wall_ns() // 1_000_000
        low, high = self._bounds_ms
        return tick_ms + (low + high) // 2

    def offset_ms(self) -> int | None:
        """Return how far the broker's clock is ahead of this machine's; None if unknown."""
        if self._bounds_ms is None:
            return None
        return self.now_ms() - self._wall_ns() // 1_000_000

    def error_ms(self) -> int | None:
        """Return how far `now_ms` may be off; None if nothing has been learned of late."""
        return self.error_at_ms(self.tick_ms())

    def error_at_ms(self, tick_ms: int) -> int | None:
        """Return that as of a tick, which is now."""
        if self._bounds_ms is None or tick_ms - self._heard_ms > KEPT_MS:
            return None
        low, high = self._bounds_ms
        return (high - low + 1) // 2 + 1
