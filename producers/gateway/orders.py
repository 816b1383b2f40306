"""POST /v1/orders and its leases: an order is opened in the log before its client hears of it.

The effects of a start, in this order:
  1. read and check everything; any fault refuses the start, nothing is stored
  2. find the number: a new one; with an Idempotency-Key the one that this key always gives; or the
     client's own choice, which is refused if the order's worker knows it (409)
  3. learn the broker's time where it isn't known of late, by a clock mark
  4. append the OrderOpened to the number's partition, and wait for Kafka's acknowledgement
  5. answer 201 with the server timestamp of step 4's record, and the lease

A crash between 4 and 5 leaves an order that is opened, and never reported: `durabill leakage` tells
of it, unless its start is repeated with the same Idempotency-Key. Two starts with one number at the
same time may both get past 2. The log decides then: the opening with the lower offset holds, the
other becomes a dead letter, or is passed over where both are of one client.

A lease that is renewed takes steps 4 and 5, where it moves the instant until which segments are
accepted by enough. By such an opening the worker extends the order that it knows, and opens the one
that it has forgotten anew, for the same tenant.
"""

import asyncio
from collections.abc import Callable
from typing import NamedTuple

from aiohttp import web
from msgspec.structs import replace

from durabill.producers.gateway.api import OrderGrant, read_order
from durabill.producers.gateway.authority import Authority
from durabill.producers.gateway.caller import Caller, caller_of
from durabill.producers.gateway.checks import json_answer, read_body
from durabill.producers.gateway.kafka import (
    BackendUnavailable,
    Overloaded,
    SegmentProducer,
    answer_to,
)
from durabill.producers.gateway.leases import Lease
from durabill.producers.gateway.lookup import InUse, Lookup, number_of
from durabill.producers.gateway.problems import ApiError, refusal
from durabill.producers.gateway.served_clock import Came
from durabill.producers.gateway.starts import (
    Start,
    checked,
    client_of,
    grant_of,
    key_of,
    new_order_number,
    repeated_order_number,
)
from durabill.schemas.errors import BadRecord
from durabill.schemas.limits import (
    FUTURE_TOLERANCE_MS,
    OPENING_SPAN_MAX_MS,
    SEGMENT_LENGTH_MAX_MS,
)
from durabill.schemas.order_opened import OrderOpened, encode_opening
from durabill.schemas.text import plain

LEASE_HEADER = "lease"
_KEPT_MAX = 10_000

_Starter = tuple[tuple[str, str, str | None], bytes]
"""Which start has opened an order: whose key it had, and the digest of what it asked for."""


class _Kept(NamedTuple):
    digest: bytes
    grant: "asyncio.Future[OrderGrant]"


class OrderDesk:
    """Opens orders and renews leases. Belongs to one event loop."""

    def __init__(
        self,
        authority: Authority,
        publisher: SegmentProducer,
        lookup: Lookup,
        *,
        report_interval_ms: int,
        correction_window_ms: int | None,
        entropy: Callable[[int], bytes],
    ) -> None:
        self._authority = authority
        self._publisher = publisher
        self._lookup = lookup
        self._report_interval_ms = report_interval_ms
        self._correction_window_ms = correction_window_ms
        self._entropy = entropy
        self._kept: dict[tuple[str, str, str | None], _Kept] = {}
        self._opened_by: dict[str, _Starter] = {}  # by the number of the client's own

    async def start(self, request: web.Request) -> web.Response:
        """POST /v1/orders"""
        caller, came = caller_of(request), self._authority.clock.came()
        key = key_of(request)
        wanted = checked(caller, read_order(await read_body(request)), key)
        grant = await (self._grant(wanted) if key is None else self._grant_once(wanted))
        return self._answer(grant, came, 201)

    async def renew(self, request: web.Request) -> web.Response:
        """POST /v1/orders/{number}/lease"""
        caller, number = caller_of(request), number_of(request)
        came, shown = self._authority.clock.came(), request.headers.get(LEASE_HEADER)
        renew = self._authority.leases.renew
        token, lease = await self._renewed(
            caller, lambda now_ms: renew(shown, number, caller, now_ms)
        )
        return self._answer(grant_of(token, lease, self._correction_window_ms), came, 200)

    def _answer(self, grant: OrderGrant, came: Came, status: int) -> web.Response:
        """Return a grant with the time of this very answer: several may wait for one grant."""
        received_ms, sent_ms, clock_id = self._authority.clock.stamps(came)
        stamped = replace(grant, received_ms=received_ms, sent_ms=sent_ms, clock_id=clock_id)
        return json_answer(stamped, status=status)

    async def _grant_once(self, wanted: Start) -> OrderGrant:
        """Return the grant that an Idempotency-Key has got, or gets now.

        Of repeats that come while the first is under way, each waits for it.
        """
        now_ms = self._authority.clock.now_ms()
        kept = self._kept.pop(wanted.kept_as, None)
        if kept is not None and not _is_over(kept.grant, now_ms):
            self._kept[wanted.kept_as] = kept
            if kept.digest != wanted.digest:
                detail = "this key has started another order; a new start has a new key"
                raise ApiError(422, "IDEMPOTENCY_KEY_REUSED", detail)
            return await asyncio.shield(kept.grant)
        task = asyncio.ensure_future(self._grant(wanted))
        if len(self._kept) >= _KEPT_MAX:
            del self._kept[next(iter(self._kept))]
        self._kept[wanted.kept_as] = _Kept(wanted.digest, task)
        return await asyncio.shield(task)

    async def _grant(self, wanted: Start) -> OrderGrant:
        authority, caller = self._authority, wanted.caller
        number = wanted.number
        if number is None and wanted.key is not None:
            number = repeated_order_number(authority.number_secret(), caller, wanted.key)
        if number is not None:
            known = await self._known(wanted, number)
            if known is not None:
                return known
        await self._learn_time()  # what an opening says of its time can't be set right later
        if number is None:
            number = new_order_number(authority.clock.now_ms(), self._entropy)
        return await self._open(wanted, number)

    async def _renewed(
        self, caller: Caller, give: Callable[[int], tuple[str, Lease, bool]]
    ) -> tuple[str, Lease]:
        """Return a lease as of now; one that opens its order again, once that is in the log."""
        token, lease, is_longer = give(self._authority.clock.now_ms())
        if is_longer:
            await self._learn_time()
            token, lease, is_longer = give(self._authority.clock.now_ms())
        if is_longer:
            await self._open_again(caller, lease)
            self._authority.leases.note_logged(lease)
        return token, lease

    async def _learn_time(self) -> None:
        try:
            await self._publisher.learn_time()
        except (Overloaded, BackendUnavailable) as error:
            raise answer_to(error) from error

    async def _known(self, wanted: Start, number: str) -> OrderGrant | None:
        """Return the grant of an order that the same start has opened; None for a free number.

        Raises ApiError(409 ORDER_IN_USE).
        """
        async with self._authority.quotas.lookup(wanted.caller):
            in_use = await self._lookup.in_use(number, wanted.caller)
        if in_use is None:
            return None
        opened = in_use.opened
        # Which key an order was opened with isn't in the log: this process may remember.
        is_anothers = self._opened_by.get(number, _starter(wanted)) != _starter(wanted)
        if opened is None or is_anothers or not _is_repeat(wanted, in_use):
            raise ApiError(409, "ORDER_IN_USE", f"order {plain(number)} is in use; choose another")
        now_ms, until_ms = self._authority.clock.now_ms(), opened.accept_until_ms
        who = number, wanted.caller.tenant, client_of(wanted.caller)
        times_ms = opened.server_timestamp_ms, self._report_interval_ms, until_ms, until_ms
        known = Lease(*who, now_ms, *times_ms, wanted.service)
        renewed = self._authority.leases.renewed
        token, lease = await self._renewed(wanted.caller, lambda now_ms: renewed(known, now_ms))
        return grant_of(token, lease, self._correction_window_ms)

    async def _open(self, wanted: Start, number: str) -> OrderGrant:
        """Append an opening; return what to answer once Kafka has it."""
        authority, caller = self._authority, wanted.caller
        now_ms = authority.clock.now_ms()
        token, lease = authority.leases.mint(
            number,
            caller.tenant,
            client_of(caller),
            wanted.service,
            now_ms=now_ms,
            interval_ms=self._report_interval_ms,
        )
        opened = OrderOpened(
            number,
            caller.tenant,
            lease.client,
            wanted.service,
            wanted.attributes,
            lease.opened_ms,
            lease.interval_ms,
            lease.accept_until_ms,
        )
        await self._append(caller, opened, now_ms)
        if wanted.number is not None:
            if len(self._opened_by) >= _KEPT_MAX:
                del self._opened_by[next(iter(self._opened_by))]
            self._opened_by[number] = _starter(wanted)
        return grant_of(token, lease, self._correction_window_ms)

    async def _open_again(self, caller: Caller, lease: Lease) -> None:
        """Append an opening for a lease that was renewed for longer.

        An order that is known is extended by it, and only that counts of it. For one that has been
        forgotten by now its time begins before all that may count under the lease.
        """
        now_ms, window_ms = lease.issued_ms, self._correction_window_ms
        until_ms = lease.accept_until_ms
        begin_ms = max(lease.opened_ms, until_ms - OPENING_SPAN_MAX_MS)
        if window_ms is not None:
            oldest_ms = now_ms - window_ms - SEGMENT_LENGTH_MAX_MS - FUTURE_TOLERANCE_MS
            begin_ms = max(begin_ms, oldest_ms)
        who = lease.number, lease.tenant, lease.client
        times_ms = min(begin_ms, now_ms), lease.interval_ms, until_ms
        attributes: tuple[tuple[str, str], ...] = ()
        if lease.oldest_ms:  # it may have been forgotten, and its lease doesn't say them
            async with self._authority.quotas.lookup(caller):
                attributes = await self._lookup.attributes(*who)
        opened = OrderOpened(*who, lease.service, attributes, *times_ms)
        await self._append(caller, opened, now_ms, is_known=True)

    async def _append(
        self, caller: Caller, opened: OrderOpened, now_ms: int, *, is_known: bool = False
    ) -> None:
        """Append an opening, and wait for Kafka's acknowledgement; raise ApiError without.

        An order that is known already is open without it, too.
        """
        number, quotas = opened.service_order_number, self._authority.quotas
        try:
            value = encode_opening(opened)
        except BadRecord as error:
            raise refusal(error) from error
        quotas.opens(caller, number, now_ms, opened.accept_until_ms)
        try:
            with quotas.segments(caller, 1):
                await self._publisher.publish(number.encode(), [value])
            self._lookup.note_stored(number, caller.tenant)
        except (ApiError, Overloaded, BackendUnavailable) as error:
            if not is_known:
                quotas.not_opened(caller, number)
            if isinstance(error, ApiError):
                raise
            raise answer_to(error) from error


def _starter(wanted: Start) -> _Starter:
    return wanted.kept_as, wanted.digest


def _is_repeat(wanted: Start, in_use: InUse) -> bool:
    """Tell whether an order that is known was opened by the very start that asks for it again.

    A key's own number nobody else gets. A number of the client's own may have been used before: the
    start is taken for a repeat only where it has a key, and nothing was reported yet.
    """
    opened = in_use.opened
    whose = wanted.caller.tenant, client_of(wanted.caller)
    if wanted.key is None or opened is None or (opened.tenant, opened.client) != whose:
        return False
    return wanted.number is None or not in_use.has_segments


def _is_over(grant: "asyncio.Future[OrderGrant]", now_ms: int) -> bool:
    """Tell whether a start has failed, or its lease has ended: the next one begins anew."""
    if not grant.done():
        return False
    if grant.cancelled() or grant.exception() is not None:
        return True
    return now_ms >= grant.result().lease_expires_ms
