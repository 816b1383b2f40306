"""Leases of orders that are about to be sent: renewed in time, or before they are shown again.

In time is the second half of a lease's life, by the server's clock. One that has ended, or that the
server doesn't take any more, has to be renewed before its order can be sent. Where the server says
that it never gave such a lease (it has lost its keys, say), its order is sent without: a server
that asks for leases says so, and then the order waits. The lease is kept all the same. What would
be too late without a lease is not sent so, since that would be final: it waits for a lease, of a
server that has found its keys again.

A server that fails for one order may do so for that one alone; one that fails for several in a row,
or for all, is away. One that refuses several in a row, or knows the client no longer, refuses all.
A renewal in time that fails is not asked for again at once: there is time.
"""

from collections.abc import Collection, Iterable, Sequence

from durabill.producers.sdk.spool import Spool, SpooledSegment
from durabill.producers.sdk.standing import ServerNow
from durabill.producers.sdk.uplink import (
    AtRisk,
    OrderFailed,
    Renewing,
    Uplink,
    UplinkError,
    UplinkRefused,
    UplinkUnavailable,
    with_renewal,
)

_REMEMBERED_MAX = 1_000
_FAILED_MAX = 3  # in a row
_IN_TIME_AT_ONCE_MAX = 20  # those that have ended have no such limit
_IN_TIME_PAUSE_MS = 60_000  # after one that failed
_LATE_MARGIN_MAX_MS = 60_000  # for the way to the server, and its clock
_ABOUT_ALL = {"UNAUTHORIZED", "INSUFFICIENT_SCOPE", "CROSS_ORIGIN", "HOST_NOT_ALLOWED"}
"""Reasons of 401 and 403 that are about the client, not about one of its orders."""


class LeaseKeeper:
    """Renews leases, for one thread. `stale` are orders whose lease the server doesn't take.

    `bare` are those that are sent without.
    """

    def __init__(self, spool: Spool, uplink: Uplink, now: ServerNow) -> None:
        self._spool = spool
        self._uplink = uplink
        self._now = now
        self.stale: set[str] = set()
        self.bare: set[str] = set()
        self._in_time_from_ms = 0

    def renew(
        self, numbers: Collection[str]
    ) -> tuple[dict[str, UplinkError], UplinkUnavailable | None]:
        """Renew what is due of these orders.

        Returns those that can't be sent now, and why; and what to wait for, if the server is away.
        """
        stalled: dict[str, UplinkError] = {}
        if not isinstance(self._uplink, Renewing):
            return stalled, None
        self._forget_old()
        now_ms, in_time, in_a_row = self._now.now_ms(), 0, 0
        for number in numbers:
            terms = self._spool.terms(number)
            is_over = number in self.stale or (terms.lease_expires_ms or now_ms) < now_ms
            is_due = self._has_time(now_ms, in_time) and (terms.renew_from_ms or now_ms) < now_ms
            if number in self.bare and number in self.stale:
                self.bare.discard(number)
                stalled[number] = OrderFailed(f"order {number!r}: no lease that holds")
                continue
            if number in self.bare or not terms.lease or not (is_over or is_due):
                continue
            in_time += not is_over
            try:
                self._renew(self._uplink, number, terms.lease, now_ms)
                in_a_row = 0
            except UplinkError as error:
                reason = error.reason if isinstance(error, UplinkRefused) else ""
                if reason == "LEASE_INVALID":
                    in_a_row = 0
                    self.bare.add(number)
                    self.stale.discard(number)
                    continue
                if not is_over:
                    self._in_time_from_ms = now_ms + _IN_TIME_PAUSE_MS
                    continue
                stalled[number] = error
                in_a_row += 1
                are_all = in_a_row == len(numbers) and not reason
                if in_a_row == _FAILED_MAX or are_all or reason in _ABOUT_ALL:
                    return stalled, _as_problem(error)
        return stalled, None

    def _has_time(self, now_ms: int, in_time: int) -> bool:
        """Tell whether one more lease may be renewed in time. (The clock may have been set.)"""
        wait_ms = self._in_time_from_ms - now_ms
        return in_time < _IN_TIME_AT_ONCE_MAX and not 0 < wait_ms <= _IN_TIME_PAUSE_MS

    def _renew(self, uplink: Renewing, number: str, lease: str, now_ms: int) -> None:
        renewed = with_renewal(uplink.renew(number, lease), now_ms)
        self._spool.keep_terms({number: renewed})
        self.stale.discard(number)

    def without_late(
        self, batch: Sequence[SpooledSegment]
    ) -> tuple[list[SpooledSegment], list[AtRisk]]:
        """Leave out what a server that doesn't take the order's lease would call too late.

        Returns the rest, and of what is left out: its lease is asked for anew after the pause.
        """
        now_ms, kept, late = self._now.now_ms(), list[SpooledSegment](), dict[str, list[int]]()
        for entry in batch:
            number, end_ms = entry.segment.service_order_number, entry.segment.end_ms
            window_ms = self._spool.terms(number).correction_window_ms
            if number not in self.bare or window_ms is None or _is_soon(now_ms, end_ms, window_ms):
                kept.append(entry)
            else:
                late.setdefault(number, []).append(end_ms + window_ms)
        going = {entry.segment.service_order_number for entry in kept}
        for number in late.keys() - going:
            self.bare.discard(number)
            self.stale.add(number)
        return kept, [AtRisk(n, len(ends), min(ends)) for n, ends in late.items() if n not in going]

    def _forget_old(self) -> None:
        if len(self.stale) + len(self.bare) > _REMEMBERED_MAX:  # most of them are over by now
            self.stale = {each for each in self.stale if self._spool.pending(each)}
            self.bare = {each for each in self.bare if self._spool.pending(each)}

    def shown(self, numbers: Iterable[str]) -> dict[str, str]:
        """Return the leases that uploads of these orders show."""
        leases = {each: self._spool.terms(each).lease for each in numbers if each not in self.bare}
        return {number: lease for number, lease in leases.items() if lease}


def _as_problem(error: UplinkError) -> UplinkUnavailable:
    if isinstance(error, UplinkUnavailable):
        return error
    return UplinkUnavailable(f"leases are not renewed: {error}")


def _is_soon(now_ms: int, end_ms: int, window_ms: int) -> bool:
    """Tell whether a segment that is sent now is surely in time without a lease."""
    return now_ms <= end_ms + window_ms - min(window_ms // 4, _LATE_MARGIN_MAX_MS)
