"""A client's open transaction holds its partition back: consumers see nothing beyond its start.

That is right, for what it decides is not decided yet, and it ends by itself: the broker aborts a
transaction that is open for longer than its producer asked for. So it is told, and is no stall.
"""

import logging

log = logging.getLogger("durabill.worker")

TOLD_AFTER_S = 10.0
"""How long a partition is held back before the log says so, once."""


class TransactionWatch:
    """Since when one partition has been waiting for the end of a transaction."""

    def __init__(self, partition: int) -> None:
        self._partition = partition
        self._at: int | None = None
        self._since_s = 0.0
        self._is_told = False

    def note(
        self, next_offset: int, log_end: int | None, high_watermark: int | None, now_s: float
    ) -> None:
        """Take note of what has been read, and of what the broker last said that there is."""
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
                *(self._partition, now_s - self._since_s, self._at),
            )

    def waiting_s(self, now_s: float) -> float:
        """Return for how long it has been waiting; 0: it isn't."""
        return 0.0 if self._at is None else max(0.0, now_s - self._since_s)
