"""The local clocks, and when the machine slept: what each system's clocks do is tried, not assumed.

Theory: of two clocks that both go evenly, one counts the time in which the machine is suspended
(`CLOCK_BOOTTIME`) and one stands still (`CLOCK_MONOTONIC`). The first is what the server's time is
kept by, since it goes on with the server's. By how much it gets ahead of the second is how long
the machine slept. Where a system has no such pair, the one clock is all there is: a suspend that it
doesn't see shows as a step of the server's time, at the next answer.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

_UNEVEN_NS = 1_000_000  # a suspend of a millisecond is none


class SuspendPolicy(StrEnum):
    """Whether the time in which the machine was suspended is counted."""

    COUNT = "count"
    """It is: what is metered goes on without its meter. The server's time alone counts."""
    EXCLUDE = "exclude"
    """It isn't: nobody can prove that the service ran, as with a meter that was dead."""


@dataclass(frozen=True, slots=True)
class Clocks:
    """The local clocks, in ns: `counting_ns` goes on while the machine sleeps.

    `running_ns` stands still then; None where no clock is known to.
    """

    counting_ns: Callable[[], int]
    running_ns: Callable[[], int] | None = None


def system_clocks() -> Clocks:
    """Return what this system has: a pair where it has one that works, as Linux does."""
    boottime = getattr(time, "CLOCK_BOOTTIME", None)
    if boottime is not None:
        clocks = Clocks(lambda: time.clock_gettime_ns(boottime), time.monotonic_ns)
        if is_pair(clocks):
            return clocks
    return Clocks(time.monotonic_ns)


def is_pair(clocks: Clocks) -> bool:
    """Try whether the two clocks can be a pair: both readable, and the counting one not behind."""
    if clocks.running_ns is None:
        return False
    try:
        running_ns = clocks.running_ns()
        return clocks.counting_ns() >= running_ns
    except OSError:  # a sandbox that doesn't know the clock
        return False


class SuspendMeter:
    """How long the machine has slept since the meter was made. For one thread at a time."""

    def __init__(self, clocks: Clocks) -> None:
        self._clocks = clocks
        self._apart_ns: int | None = None  # at most so far was the counting clock ahead
        self.count = 0
        """How many suspends there were."""

    def look(self) -> tuple[int, int]:
        """Return the counting clock, in us, and for how long the machine slept since last time.

        A thread may be held up between two clocks, so the one is read between two of the other:
        what is certain to be a suspend is one.
        """
        running_ns = self._clocks.running_ns
        if running_ns is None:
            return self._clocks.counting_ns() // 1_000, 0
        before_ns = running_ns()
        counting_ns = self._clocks.counting_ns()
        after_ns = running_ns()
        low_ns, high_ns = counting_ns - after_ns, counting_ns - before_ns
        slept_us = 0
        if self._apart_ns is not None and low_ns > self._apart_ns + _UNEVEN_NS:
            slept_us = (low_ns - self._apart_ns) // 1_000
            self.count += 1
            self._apart_ns = None
        self._apart_ns = high_ns if self._apart_ns is None else min(self._apart_ns, high_ns)
        return counting_ns // 1_000, slept_us
