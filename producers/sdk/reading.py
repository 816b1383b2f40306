"""What a client knows of the time at one instant."""

from typing import NamedTuple

from durabill.producers.sdk.server_clock import DRIFT_PPM


class Reading(NamedTuple):
    """The server's time at one instant, and what has happened to it. In ms.

    `now_ms` is within `bound_ms` of every server heard lately. The time between two readings of one
    client is off by at most both bounds and `doubt_since`. `jumped_ms` is by how much it
    was set in all. What isn't to be counted: `paused_ms` while the machine slept, `skipped_ms` of
    steps; both are 0 where all is counted. After a suspend `paused_ms` may yet change by
    `unsettled_ms`, until a server has been heard again: whoever can wait should. So it is where
    nobody looked for long; nobody knows then whether that time has passed. `local_ms` is off by
    `drift_ppm` at most.
    """

    local_ms: int
    now_ms: int
    bound_ms: int
    doubt_ms: int = 0
    jumped_ms: int = 0
    paused_ms: int = 0
    skipped_ms: int = 0
    unsettled_ms: int = 0
    suspends: int = 0
    drift_ppm: int = DRIFT_PPM
    swapped_ms: int = 0
    swap_max_ms: int = 0

    def doubt_since(self, first: "Reading") -> int:
        """Return how far the time since an earlier reading may be off, besides both bounds.

        Steps, suspends and the like add up. Servers that come and go don't, beyond how far any two
        of them can be apart (`swap_max_ms`).
        """
        swapped_ms = min(self.swapped_ms - first.swapped_ms, self.swap_max_ms)
        return self.doubt_ms - first.doubt_ms + swapped_ms
