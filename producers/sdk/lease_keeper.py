"""Leases of orders that are about to be sent: renewed in time, or before they are shown again.

In time is the last third of a lease's life, by the server's clock. One that has ended, or that the
server doesn't take any more, has to be renewed before its order can be sent. Where the server says
that it never gave such a lease (it has lost its keys, say), its order is sent without: a server
that asks for leases says so, and then the order waits. The lease is kept all the same.

A server that fails for one order may do so for that one alone; one that fails for several in a row,
or for all, is away.
"""

from collections.abc import Collection, Iterable

from durabill.producers.sdk.spool import Spool
from durabill.producers.sdk.standing import ServerNow
from durabill.producers.sdk.uplink import (
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
            is_due = in_time < _IN_TIME_AT_ONCE_MAX and (terms.renew_from_ms or now_ms) < now_ms
            if number in self.bare and number in self.stale:
                self.bare.discard(number)
                stalled[number] = UplinkUnavailable(f"order {number!r}: no lease that holds")
                continue
            if number in self.bare or not terms.lease or not (is_over or is_due):
                continue
            in_time += not is_over
            try:
                self._renew(self._uplink, number, terms.lease, now_ms)
                in_a_row = 0
            except UplinkRefused as error:
                in_a_row = 0
                if error.reason == "LEASE_INVALID":
                    self.bare.add(number)
                    self.stale.discard(number)
                elif is_over:
                    stalled[number] = error
            except UplinkUnavailable as error:
                in_time, in_a_row = _IN_TIME_AT_ONCE_MAX, in_a_row + is_over
                if is_over:
                    stalled[number] = error
                if in_a_row in (_FAILED_MAX, len(numbers)):
                    return stalled, error
        return stalled, None

    def _renew(self, uplink: Renewing, number: str, lease: str, now_ms: int) -> None:
        renewed = with_renewal(uplink.renew(number, lease), now_ms)
        self._spool.keep_terms({number: renewed})
        self.stale.discard(number)

    def _forget_old(self) -> None:
        if len(self.stale) + len(self.bare) > _REMEMBERED_MAX:  # most of them are over by now
            self.stale = {each for each in self.stale if self._spool.pending(each)}
            self.bare = {each for each in self.bare if self._spool.pending(each)}

    def shown(self, numbers: Iterable[str]) -> dict[str, str]:
        """Return the leases that uploads of these orders show."""
        leases = {each: self._spool.terms(each).lease for each in numbers if each not in self.bare}
        return {number: lease for number, lease in leases.items() if lease}
