"""Finds out which receipts aren't needed any more: those of orders whose total is out.

The server is asked only where that matters, when room for receipts gets scarce or they are old,
only while nothing waits to be sent, and one question at a time: at most one in a minute or two, so
that many clients together ask little. One that may not ask, or isn't answered, keeps its receipts.
Requests that name very many orders aren't looked into: their receipts are gone sooner than asked.
"""

from collections.abc import Callable

from durabill.producers.sdk.spool import Spool
from durabill.producers.sdk.standing import ServerNow
from durabill.producers.sdk.uplink import (
    WISH_MAX_S,
    KnowingTotals,
    Uplink,
    UplinkError,
    UplinkRefused,
    UplinkUnavailable,
)

_ASK_EVERY_S = 60.0
_ROUND_EVERY_S = 3_600.0
_UNAVAILABLE_S = 600.0
_NOT_ALLOWED_S = 86_400.0
_NOT_ALLOWED = {"UNAUTHORIZED", "INSUFFICIENT_SCOPE"}
_TIMEOUT_S = 3.0  # segments may come meanwhile
_ROWS_AT_ONCE = 16
_ORDERS_MAX = 100
_REMEMBERED_MAX = 10_000


class ReceiptClerk:
    """Asks for totals, for one thread. `dice` gives 0 <= x < 1."""

    def __init__(
        self, spool: Spool, uplink: Uplink, now: ServerNow, dice: Callable[[], float]
    ) -> None:
        self._spool = spool
        self._uplink = uplink
        self._now = now
        self._dice = dice
        self._from_s: float | None = None
        self._after_id = 0
        self._out: set[str] = set()  # orders whose total is out

    def look(self, now_s: float) -> None:
        """Ask for one order's total at most, if it is time for that."""
        if not isinstance(self._uplink, KnowingTotals):
            return
        if self._from_s is None or now_s >= self._from_s:
            is_first, self._from_s = self._from_s is None, now_s + self._spread(_ASK_EVERY_S)
            if not is_first:
                self._look_through(self._uplink, now_s)

    def _look_through(self, uplink: KnowingTotals, now_s: float) -> None:
        for _ in range(_ROWS_AT_ONCE):
            found = self._spool.receipts_in_doubt(self._after_id, self._now.now_ms())
            if found is None:
                self._after_id = 0
                self._from_s = now_s + self._spread(_ROUND_EVERY_S)
                return
            receipt_id, orders = found
            unknown = sorted(orders - self._out) if len(orders) <= _ORDERS_MAX else []
            if unknown:
                if not self._ask(uplink, unknown[0], now_s):
                    self._after_id = receipt_id
                    return
                if len(unknown) > 1:
                    return
            if orders and len(orders) <= _ORDERS_MAX:
                self._spool.settle_receipts(receipt_id)
            self._after_id = receipt_id
            if unknown:
                return

    def _ask(self, uplink: KnowingTotals, number: str, now_s: float) -> bool:
        try:
            is_out = uplink.total_is_out(number, timeout_s=_TIMEOUT_S)
        except UplinkError as error:
            if isinstance(error, UplinkRefused) and error.reason in _NOT_ALLOWED:
                self._from_s = now_s + self._spread(_NOT_ALLOWED_S)
            elif isinstance(error, UplinkUnavailable):
                pause_s = max(_UNAVAILABLE_S, min(error.retry_after_s or 0.0, WISH_MAX_S))
                self._from_s = now_s + self._spread(pause_s)
            return False
        if is_out:
            if len(self._out) >= _REMEMBERED_MAX:
                self._out.clear()
            self._out.add(number)
        return is_out

    def _spread(self, pause_s: float) -> float:
        return pause_s * (1.0 + self._dice())
