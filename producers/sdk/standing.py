"""How a client stands: what waits, what was refused, what is in danger of being too late.

The counts are for people (`Client.stats`) and travel along with uploads, so that whoever runs the
server sees which of its clients is about to lose data.
"""

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from durabill.producers.sdk.server_clock import TIMESTAMP_MAX_MS
from durabill.producers.sdk.spool import Spool
from durabill.producers.sdk.spool_errors import ReceiptsDropped
from durabill.producers.sdk.timekeeper import Timekeeper
from durabill.producers.sdk.uplink import (
    AtRisk,
    ClientReport,
    OrderTerms,
    UplinkRefused,
    WillNotCount,
)

_LOOK_EVERY_S = 30.0
_REASONS_MAX = 50  # whatever a server says, the counts stay few
_OTHER_REASON = "OTHER"
_TELL_EVERY_S = 3_600.0
_DROPPED_EVERY_S = 86_400.0
RISK_MARGIN_MAX_MS = 6 * 3_600_000


@dataclass(frozen=True, slots=True)
class ClientStats:
    """How a client stands: on disk now, and what the server said since the client was made."""

    pending: int
    """segments on disk that are still to be sent"""
    rejected: int
    """segments on disk that were set aside: see `Client.rejected`"""
    acknowledged: int
    """segments that the server has, and that count"""
    refused: int
    """segments that the server refused for good, or has though they will not count"""
    will_not_count: int
    """those of `refused` that the server has: they are dead letters"""
    refused_by_reason: Mapping[str, int] = field(default_factory=dict)
    """`refused` by the server's reasons"""
    oldest_ms: int = 0
    """for how long the oldest of `pending` has waited"""
    at_risk: int = 0
    """those of `pending` that will be too late soon: see `AtRisk`"""
    clock_bound_ms: int | None = None
    """how far the client's time of the server may be off; None before a server was heard"""
    suspends: int = 0
    """how often the machine was suspended"""
    spool_bytes: int = 0
    """what the spool takes of the disk, with its log and reserve"""
    damages: int = 0
    """how often the spool's file was found damaged and put aside"""
    receipt_bytes: int = 0
    """what receipts take of the spool"""
    receipts_dropped: int = 0
    """receipts that went for want of room, of orders whose total isn't known to be out"""


class ServerNow:
    """About what time the server has now: good enough to say that something will be too late.

    Before a server was heard, this machine's own clock has to do; where that is behind what the
    spool holds (a device without a battery starts in 1970), the time from there on. Nothing is
    billed by it.
    """

    def __init__(self, timekeeper: Timekeeper, spool: Spool) -> None:
        self._time = timekeeper
        self._spool = spool
        self._stored_ms: int | None = None  # against the local clock

    def now_ms(self) -> int:
        """Return the server's time."""
        reading = self._time.read()
        if self._time.is_known:
            return reading.now_ms
        if self._stored_ms is None:
            spool = self._spool
            ends_ms = [state.reported_until_ms for state in spool.sessions()]
            ends_ms += [first_ms for _, _, first_ms in spool.waiting_since(TIMESTAMP_MAX_MS)]
            self._stored_ms = max(ends_ms, default=0) - reading.local_ms
        return max(time.time_ns() // 1_000_000, self._stored_ms + reading.local_ms)


class Standing:
    """Counts of one client. Notes come from the sender's thread, questions from any."""

    def __init__(
        self,
        spool: Spool,
        timekeeper: Timekeeper,
        name: str,
        tell: Callable[[Exception], None],
    ) -> None:
        self._spool = spool
        self._time = timekeeper
        self.now = ServerNow(timekeeper, spool)
        self._name = name
        self._tell = tell
        self.acknowledged = self.will_not_count = self.damages = 0
        self.refused: Counter[str] = Counter()
        self._at_risk = 0
        self._looked_at_s = float("-inf")
        self._told_at_s: dict[str, float] = {}
        self._dropped_told, self._dropped_at_s = 0, float("-inf")

    def was_refused(self, why: UplinkRefused) -> None:
        """Count a segment that was refused, or stored in vain."""
        is_known = why.reason in self.refused or len(self.refused) < _REASONS_MAX
        self.refused[why.reason if is_known else _OTHER_REASON] += 1
        self.will_not_count += isinstance(why, WillNotCount)

    def stats(self) -> ClientStats:
        """Count what is on disk, and tell what the server has said."""
        self._at_risk = sum(each.pending for each in self._dangers())
        return ClientStats(
            self._spool.pending(),
            self._spool.rejected_count(),
            self.acknowledged,
            sum(self.refused.values()),
            self.will_not_count,
            dict(self.refused),
            self.oldest_ms(),
            self._at_risk,
            self._time.bound_ms(),
            self._time.read().suspends,
            self._spool.size_bytes(),
            self.damages,
            *self._spool.receipts_size(),
        )

    def report(self) -> ClientReport:
        """Return what goes along with an upload."""
        return ClientReport(
            self._name,
            self._spool.pending(),
            self.oldest_ms(),
            dict(self.refused),
            self._time.bound_ms(),
            self._time.read().suspends,
        )

    def oldest_ms(self) -> int:
        """Return for how long the oldest segment has waited, 0 where none waits."""
        end_ms = self._spool.oldest_end_ms()
        return 0 if end_ms is None else max(0, self.now.now_ms() - end_ms)

    def look(self, now_s: float) -> None:
        """Tell which orders are in danger, now and then: an order once an hour at most.

        And once a day, if more receipts had to be dropped.
        """
        if now_s - self._looked_at_s < _LOOK_EVERY_S:
            return
        self._looked_at_s = now_s
        self._spool.look_after()
        dangers = self._dangers()
        self._at_risk = sum(each.pending for each in dangers)
        in_danger = {each.service_order_number for each in dangers}
        self._told_at_s = {n: at for n, at in self._told_at_s.items() if n in in_danger}
        for danger in dangers:
            told_at_s = self._told_at_s.get(danger.service_order_number, float("-inf"))
            if now_s - told_at_s >= _TELL_EVERY_S:
                self._told_at_s[danger.service_order_number] = now_s
                self._tell(danger)
        size_bytes, dropped = self._spool.receipts_size()
        if dropped > self._dropped_told and now_s - self._dropped_at_s >= _DROPPED_EVERY_S:
            self._dropped_told, self._dropped_at_s = dropped, now_s
            self._tell(ReceiptsDropped(dropped, size_bytes))

    def _dangers(self) -> list[AtRisk]:
        if not self._spool.pending():
            return []
        now_ms = self.now.now_ms()
        terms_of = self._spool.terms
        return [
            AtRisk(number, count, deadline_ms)
            for number, count, end_ms in self._spool.waiting_since(now_ms)
            if (deadline_ms := terms_of(number).deadline_ms(end_ms)) is not None
            and is_in_danger(terms_of(number), end_ms, now_ms)
        ]


def is_in_danger(terms: OrderTerms, end_ms: int, now_ms: int) -> bool:
    """Tell whether a segment that ended at `end_ms` and waits still may be too late soon.

    Soon is the last quarter of the time that it had, six hours at most.
    """
    deadline_ms = terms.deadline_ms(end_ms)
    if deadline_ms is None:
        return False
    margin_ms = min(max(deadline_ms - end_ms, 0) // 4, RISK_MARGIN_MAX_MS)
    return now_ms >= deadline_ms - margin_ms
