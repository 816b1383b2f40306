"""Leases of orders that are about to be sent: renewed in time, or before they are shown again.

In time is the last third of a lease's life, by the server's clock. One that has ended, or that the
server doesn't take any more, has to be renewed before its order can be sent. Where the server says
that it never gave such a lease (it has lost its keys, say), its order is sent without: a server
that asks for leases says so, and then the order waits. The lease is kept all the same.
"""

from collections.abc import Iterable

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

    def renew(self, numbers: Iterable[str]) -> dict[str, UplinkError]:
        """Renew what is due of these orders; return those that can't be sent now, and why."""
        stalled: dict[str, UplinkError] = {}
        if not isinstance(self._uplink, Renewing):
            return stalled
        now_ms, in_time = self._now.now_ms(), 0
        if len(self.stale) + len(self.bare) > _REMEMBERED_MAX:  # most of them are over by now
            self.stale = {each for each in self.stale if self._spool.pending(each)}
            self.bare = {each for each in self.bare if self._spool.pending(each)}
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
                renewed = with_renewal(self._uplink.renew(number, terms.lease), now_ms)
                self._spool.keep_terms({number: renewed})
                self.stale.discard(number)
            except UplinkRefused as error:
                if error.reason == "LEASE_INVALID":
                    self.bare.add(number)
                    self.stale.discard(number)
                elif is_over:
                    stalled[number] = error
            except UplinkUnavailable as error:
                in_time = _IN_TIME_AT_ONCE_MAX  # the others wouldn't fare better
                if is_over:
                    stalled[number] = error
        return stalled

    def shown(self, numbers: Iterable[str]) -> dict[str, str]:
        """Return the leases that uploads of these orders show."""
        leases = {each: self._spool.terms(each).lease for each in numbers if each not in self.bare}
        return {number: lease for number, lease in leases.items() if lease}
