"""Reports a client's open transaction: consumers of its partition see nothing beyond its start.

That is right, because it is not decided yet whether its records count. It also ends by itself: the
broker aborts a transaction that is open for longer than its producer's timeout. So it is reported,
and does not count as a stall.
"""

import logging

log = logging.getLogger("durabill.worker")

TOLD_AFTER_S = 10.0
"""How long a partition waits before the log reports it, once."""


class TransactionWatch:
    """Knows since when one partition has been waiting for the end of a transaction."""

    def __init__(self, partition: int) -> None:
        self._partition = partition
        self._at: int | None = None
        self._since_s = 0.0
        self._is_told = False

    def note(
        self, next_offset: int, log_end: int | None, high_watermark: int | None, now_s: float
    ) -> None:
        """Note what has been read, and where the log ended by the broker's last answer."""
        ends = log_end is not None and high_watermark is not None
        if not (ends and next_offset == log_end and log_end < (high_watermark or 0)):
            self._at = None
        elif self._at != log_end:
            self._at, self._since_s, self._is_told = log_end, now_s, False
        elif now_s - self._since_s > TOLD_AFTER_S and not self._is_told:
            self._is_told = True
            log.warning(
                "partition %d has waited for %.0f s for the end of a client's transaction that"
                " began at offset %d; it goes on by itself",
                self._partition,
                now_s - self._since_s,
                self._at,
            )

    def waiting_s(self, now_s: float) -> float:
        """Return for how long it has been waiting; 0: it doesn't wait."""
        return 0.0 if self._at is None else max(0.0, now_s - self._since_s)
