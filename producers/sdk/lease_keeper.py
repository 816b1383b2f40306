"""Leases of orders that are about to be sent: renewed in time, or before they are shown again.

In time is the last third of a lease's life, by the server's clock. One that has ended, or that the
server doesn't take any more, has to be renewed before its order can be sent.
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

_IN_TIME_AT_ONCE_MAX = 20  # those that have ended have no such limit


class LeaseKeeper:
    """Renews leases, for one thread. `stale` are orders whose lease the server doesn't take."""

    def __init__(self, spool: Spool, uplink: Uplink, now: ServerNow) -> None:
        self._spool = spool
        self._uplink = uplink
        self._now = now
        self.stale: set[str] = set()

    def renew(self, numbers: Iterable[str]) -> dict[str, UplinkError]:
        """Renew what is due of these orders; return those that can't be sent now, and why."""
        stalled: dict[str, UplinkError] = {}
        if not isinstance(self._uplink, Renewing):
            return stalled
        now_ms, in_time = self._now.now_ms(), 0
        for number in numbers:
            terms = self._spool.terms(number)
            is_over = number in self.stale or (terms.lease_expires_ms or now_ms) < now_ms
            is_due = in_time < _IN_TIME_AT_ONCE_MAX and (terms.renew_from_ms or now_ms) < now_ms
            if not terms.lease or not (is_over or is_due):
                continue
            in_time += not is_over
            try:
                renewed = with_renewal(self._uplink.renew(number, terms.lease), now_ms)
                self._spool.keep_terms(number, renewed)
                self.stale.discard(number)
            except (UplinkUnavailable, UplinkRefused) as error:
                if is_over:
                    stalled[number] = error
                if error.__class__ is UplinkUnavailable:  # the others wouldn't fare better
                    in_time = _IN_TIME_AT_ONCE_MAX
        return stalled
