"""When a silent partition needs a clock mark; see `schemas.clock_mark`.

Only records move a partition's time. Whether a deadline may have come in a silent partition is a
guess: from the broker's clock when it last answered, and from the time that has passed here since
then (on a clock that nobody sets, and that goes on during a suspend). A wrong guess costs a clock
mark, or a short delay; no total depends on it.
"""

import time

SILENCE_S = 0.2
"""How long no record has moved a partition's time before a mark may: records that flow do it."""

SPACING_S = 0.25
"""The least time between two clock marks of a partition."""

RETRY_S = 1.0
"""How long to wait after a clock mark that could not be written."""

REFRESH_S = 60.0
"""How old the broker's answer may get while an order is open: another leader's clock differs."""

_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def elapsed_s() -> float:
    """Return the seconds since some fixed moment, suspends included."""
    return time.clock_gettime(_CLOCK)


class BrokerClock:
    """Estimates the append clock of one partition's leader. `now_s` is `elapsed_s`."""

    def __init__(self) -> None:
        self._seen: tuple[int, float] | None = None
        self._told_s: float | None = None
        self._told_ms = -1
        self._wait_until_s = float("-inf")
        self._is_asked = False
        self._moved: tuple[int, float] | None = None

    def note_folded(self, clock_ms: int, now_s: float) -> None:
        """Note the partition's time: the broker's clock has reached it, now or earlier."""
        guess_ms = self._guess_ms(now_s)
        if guess_ms is None or clock_ms > guess_ms:
            self._seen = clock_ms, now_s
        if self._moved is None or clock_ms > self._moved[0]:
            self._moved = clock_ms, now_s

    def is_mark_due(self, due_ms: int, now_s: float) -> bool:
        """Tell whether to write a clock mark, in a silent partition with a deadline at `due_ms`."""
        if self._is_asked or now_s < self._wait_until_s or due_ms <= self._told_ms:
            return False  # a clock mark beyond the deadline is on its way to us
        if self._moved is not None and now_s < self._moved[1] + SILENCE_S:
            return False  # the next record passes the deadline as well, if it comes soon
        if self._told_s is None or now_s > self._told_s + REFRESH_S:
            return True
        guess_ms = self._guess_ms(now_s)
        return guess_ms is not None and guess_ms >= due_ms

    def note_asked(self) -> None:
        """Note that a clock mark is being written."""
        self._is_asked = True

    def note_told(self, append_ms: int | None, now_s: float) -> None:
        """Note a clock mark's append time; None: it could not be written."""
        self._is_asked = False
        self._wait_until_s = now_s + (RETRY_S if append_ms is None else SPACING_S)
        if append_ms is not None:
            self._seen, self._told_s, self._told_ms = (append_ms, now_s), now_s, append_ms

    def guess_ms(self, now_s: float) -> int:
        """Return the estimate of what the broker's clock shows now, 0 without any."""
        return self._guess_ms(now_s) or 0

    def _guess_ms(self, now_s: float) -> int | None:
        if self._seen is None:
            return None
        at_ms, seen_s = self._seen
        return at_ms + int((now_s - seen_s) * 1000)
