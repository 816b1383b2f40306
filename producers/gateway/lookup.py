"""GET /v1/orders/{number}: what the order's worker says now, and its latest total.

A total alone may be out of date: the order may be open again, or have grown. So where the owner
of the order could not be asked, the answer says so (`live_unknown`), and without a total it is no
404 but a 503: nobody knows whether there is such an order.

A caller sees its own tenant's orders. Another's is to it as if it were not there, all the way: the
worker and the ledger themselves say so, in the same time and the same words as of a number that
nobody has.
"""

import time
from collections.abc import Callable
from typing import NamedTuple

from aiohttp import web

from durabill.producers.gateway.api import OrderAnswer
from durabill.producers.gateway.backends import NONE_KNOWN, Live, TotalsReader, WorkerPool
from durabill.producers.gateway.caller import Caller, caller_of
from durabill.producers.gateway.kafka import BackendUnavailable
from durabill.producers.gateway.problems import ApiError, refusal, try_later
from durabill.schemas import BadRecord
from durabill.schemas.order_opened import DEFAULT_TENANT
from durabill.schemas.order_state import Opened, Phase
from durabill.schemas.web import Page, cut_page, number_in_path, read_page

_STORED_KEPT_S = 2.0
_STORED_MAX = 50_000
"""Twice as many are known at most: more than a gateway takes in that time."""
_PREFIX = "/v1/orders/"


def number_of(request: web.Request) -> str:
    """Return the order number in the path; raise ApiError(422) for an illegal one."""
    # As it was sent: aiohttp's own decoding hides bytes that aren't UTF-8.
    try:
        return number_in_path(request.rel_url.raw_path, _PREFIX)
    except BadRecord as error:
        raise refusal(error) from error


class InUse(NamedTuple):
    """A number that somebody uses; how its order was opened, where that is known."""

    opened: Opened | None = None
    has_segments: bool = True


class Lookup:
    """Asks the workers and the ledger for orders."""

    def __init__(
        self,
        workers: WorkerPool,
        ledger: TotalsReader,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._workers = workers
        self._ledger = ledger
        self._clock_s = clock_s
        # Order -> when segments of it were acknowledged, and whose they were; those of before lapse
        # all at once, so nobody's are looked through.
        self._stored: dict[str, tuple[float, str]] = {}
        self._stored_before: dict[str, tuple[float, str]] = {}
        self._stored_since_s = clock_s()

    def note_stored(self, number: str, tenant: str = DEFAULT_TENANT) -> None:
        """Note that Kafka has segments of a tenant's order: its worker reads them in a moment."""
        now_s = self._clock_s()
        if now_s - self._stored_since_s >= _STORED_KEPT_S or len(self._stored) >= _STORED_MAX:
            self._stored, self._stored_before = {}, self._stored
            self._stored_since_s = now_s
        self._stored[number] = now_s, tenant

    async def order(self, request: web.Request) -> OrderAnswer:
        """Return what is known of an order; raise ApiError(404, 422 or 503)."""
        number = number_of(request)
        try:
            page = read_page(request.query)
        except ValueError as error:
            raise ApiError(422, "BAD_PAGE", str(error)) from error
        caller = caller_of(request)
        tenant = caller.sees_only
        live = self._doubted(number, tenant, await self._workers.live(number, page, tenant))
        answer = OrderAnswer(number, live.state, live.unknown)
        is_open = live.state is not None and live.state.phase is not Phase.SETTLED
        ledger_is_known = await self._ledger.is_known()
        if ledger_is_known and not is_open:
            await self._add_total(answer, page, caller)
        if answer.live is None and answer.total is None:
            raise _unknown(live, answer.total_unavailable, ledger_is_known)
        return answer

    async def in_use(self, number: str, caller: Caller) -> InUse | None:
        """Return whose a number is, None for a free one, for a caller that wants it.

        Its worker is asked; where no worker can say, the ledger. Where nobody can, nobody is kept
        from starting: the log decides who was first.
        """
        live = await self._workers.live(number, Page(limit=1))
        if live.state is not None:
            return InUse(live.state.opened, live.state.segments > 0)
        if self._was_stored_just_now(number):
            return InUse()
        if live.unknown is None or not await self._ledger.is_known():
            return None
        try:
            total = await self._ledger.total(number, whose=caller.counted_as)
            return None if total is None else InUse()
        except BackendUnavailable:
            return None

    async def attributes(
        self, number: str, tenant: str, client: str
    ) -> tuple[tuple[str, str], ...]:
        """Return those that a client last opened its order with; none where no ledger can say."""
        try:
            return await self._ledger.attributes(number, tenant, client)
        except BackendUnavailable:
            return ()

    def _doubted(self, number: str, tenant: str | None, live: Live) -> Live:
        """Say so where the worker's word may be older than what this gateway has stored."""
        if live.unknown is not None:
            return live
        if live.state is None:
            if self._was_stored_just_now(number, tenant):
                return Live(unknown="the worker has not read yet what was stored a moment ago")
        elif live.state.phase is Phase.SETTLED and live.state.lag:
            behind = f"{live.state.lag} records of the order's partition have not been read yet"
            return Live(live.state, f"{behind}: it may be open again")
        return live

    def _was_stored_just_now(self, number: str, tenant: str | None = None) -> bool:
        """Tell whether segments of an order were; with a tenant, whether they were that one's."""
        found = self._stored.get(number) or self._stored_before.get(number)
        stored_s, owner = found or (float("-inf"), "")
        return tenant in (None, owner) and self._clock_s() - stored_s < _STORED_KEPT_S

    async def _add_total(self, answer: OrderAnswer, page: Page, caller: Caller) -> None:
        number, whose = answer.service_order_number, caller.counted_as
        try:
            total = await self._ledger.total(number, caller.sees_only, whose=whose)
            answer.total = None if total is None else cut_page(total, page)
        except BackendUnavailable as error:
            answer.total_unavailable = str(error)


def _unknown(live: Live, no_ledger: str | None, ledger_is_known: bool) -> ApiError:
    if live.unknown is not None:
        if not ledger_is_known and live.unknown == NONE_KNOWN:
            return try_later("NOT_CONFIGURED", "this gateway knows no worker and no ledger to ask")
        return try_later("NO_WORKER_REACHABLE", live.unknown)
    if no_ledger is not None:
        return try_later("LEDGER_UNREACHABLE", no_ledger)
    asked = "its worker and the ledger were" if ledger_is_known else "its worker was"
    return ApiError(404, "UNKNOWN_ORDER", f"{asked} asked: no segment of it has been seen")
