"""Quotas: what one tenant may have under way at once, so that its flood stays its own.

Theory: the segments that may wait for Kafka are shared by a dynamic threshold. A tenant may have as
many as are left free: alone it gets half of them, beside another that floods a third, and so on,
and as much as each of the flooding ones has is always left for who comes next. Nobody has to be
counted for that, and nothing is set aside for tenants that are silent. On top of it stand fixed
limits of a client's and of a tenant's.

Orders count as long as their worker certainly keeps them, or for some minutes where nobody knows.

Without authentication nobody says whose he is: an address stands for the tenant then. All counts
are of this gateway alone, and a count that has come back to nothing takes no memory.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Set
from contextlib import AbstractContextManager, asynccontextmanager
from dataclasses import dataclass, field

from durabill.producers.gateway.caller import Caller
from durabill.producers.gateway.open_orders import OpenOrders
from durabill.producers.gateway.problems import ApiError, try_later

_RETRY_AFTER_S = 1
_ORDERS_RETRY_AFTER_S = 60
_SWEEP_EVERY_MS = 60_000
LOOKUPS_AT_ONCE = 4
"""Of one tenant. They take a worker's or the ledger's time one after the other."""
LOOKUP_WAITS_S = 5.0


@dataclass(frozen=True, slots=True)
class QuotaLimits:
    """What a client, a tenant and all together may have. Raises ValueError for values below 1."""

    client_segments_max: int = 2_000
    tenant_segments_max: int = 20_000
    tenant_requests_max: int = 1_000
    tenant_orders_max: int = 100_000
    in_flight_segments_max: int = 50_000

    def __post_init__(self) -> None:
        counts = (
            self.client_segments_max,
            self.tenant_segments_max,
            self.tenant_requests_max,
            self.tenant_orders_max,
            self.in_flight_segments_max,
        )
        if min(counts) < 1:
            raise ValueError(
                "client_segments_max, tenant_segments_max, tenant_requests_max, tenant_orders_max,"
                " in_flight_segments_max: 1 or more"
            )


_Who = tuple[str, str | None]
"""Whom something is counted for: a tenant (without a client), or a client of it."""


_ALL: _Who = "", None
"""Everybody together."""


class _Counted:
    """`units` have `count` more each, until it is left. A generator would cost three times that."""

    __slots__ = ("_count", "_counts", "_units")

    def __init__(self, counts: Counter[_Who], units: Set[_Who], count: int) -> None:
        self._counts, self._units, self._count = counts, units, count

    def __enter__(self) -> None:
        for each in self._units:
            self._counts[each] += self._count

    def __exit__(self, *_: object) -> None:
        for each in self._units:
            left = self._counts[each] - self._count
            if left:
                self._counts[each] = left
            else:
                del self._counts[each]


@dataclass(slots=True)
class _Lookups:
    """Places for the lookups of one tenant, and how many have one or wait for one."""

    count: int = 0
    places: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(LOOKUPS_AT_ONCE))

    async def enter(self) -> None:
        """Take a place, or raise ApiError(429 QUOTA_REQUESTS)."""
        if not self.places.locked():
            await self.places.acquire()  # at once
            return
        try:
            async with asyncio.timeout(LOOKUP_WAITS_S):
                await self.places.acquire()
        except TimeoutError as error:
            detail = f"{self.count} questions about orders of this tenant wait; ask fewer at once"
            raise _over("QUOTA_REQUESTS", detail) from error


class Quotas:
    """Counts what is under way. Belongs to one event loop."""

    def __init__(self, limits: QuotaLimits) -> None:
        self.limits = limits
        self._requests: Counter[_Who] = Counter()
        self._segments: Counter[_Who] = Counter()
        self._orders: dict[_Who, OpenOrders] = {}
        self._lookups: dict[_Who, _Lookups] = {}
        self._swept_ms = 0

    @property
    def in_flight(self) -> int:
        """How many segments wait for Kafka in all."""
        return self._segments[_ALL]

    def request(self, caller: Caller) -> AbstractContextManager[None]:
        """Count a request while it is worked on; raise ApiError(429 QUOTA_REQUESTS)."""
        who, limit = caller.counted_as, self.limits.tenant_requests_max
        if self._requests[who] >= limit:
            detail = f"{limit} requests of this tenant may be under way at once"
            raise _over("QUOTA_REQUESTS", detail)
        return _Counted(self._requests, {who}, 1)

    @asynccontextmanager
    async def lookup(self, caller: Caller) -> AsyncIterator[None]:
        """Ask for an order: few of one tenant at once, for workers and ledger serve all in turn.

        More of them wait for each other, so one tenant's reading doesn't hold up another's. Raises
        ApiError(429 QUOTA_REQUESTS) where that takes too long: who waits holds a connection.
        """
        who = caller.counted_as
        own = self._lookups.setdefault(who, _Lookups())
        own.count += 1
        try:
            await own.enter()
            try:
                yield
            finally:
                own.places.release()
        finally:
            own.count -= 1
            if not own.count:
                del self._lookups[who]

    def check_segments(self, caller: Caller) -> None:
        """Raise ApiError(429 QUOTA_SEGMENTS) where not one more would be taken; before a body."""
        self._check(caller, 1)

    def segments(self, caller: Caller, count: int) -> AbstractContextManager[None]:
        """Count segments while they wait for Kafka.

        Raises ApiError: 429 QUOTA_SEGMENTS, 503 OVERLOADED. A client, and a tenant, that has none
        waiting may send any request that there is room for.
        """
        self._check(caller, count)
        # A tenant and its client are one and the same without authentication.
        units = {_ALL, caller.counted_as, (caller.tenant, caller.client)}
        return _Counted(self._segments, units, count)

    def _check(self, caller: Caller, count: int) -> None:
        limits, segments = self.limits, self._segments
        own = segments[caller.tenant, caller.client]
        if own and own + count > limits.client_segments_max:
            raise _too_many(limits.client_segments_max, "client")
        free = max(0, limits.in_flight_segments_max - segments[_ALL])
        share = min(limits.tenant_segments_max, free)
        own = segments[caller.counted_as]
        if own and own + count > share:
            raise _too_many(max(share, 1), "tenant")
        if count > free:
            raise try_later("OVERLOADED", f"{self.in_flight} segments wait for Kafka")

    def opens(self, caller: Caller, number: str, now_ms: int, until_ms: int) -> None:
        """Count an order as open until some time after its end, or until `until_ms`.

        Raises ApiError(429 QUOTA_ORDERS). One that is counted already isn't counted again.
        """
        self._orders_for(caller, {number}, now_ms).open(number, until_ms)

    def sees(self, caller: Caller, numbers: Set[str], now_ms: int) -> None:
        """Count orders that segments come for without a lease: nobody may have opened them.

        Raises ApiError(429 QUOTA_ORDERS), and counts none of them then.
        """
        orders = self._orders_for(caller, numbers, now_ms)
        for each in numbers:
            orders.see(each, now_ms)

    def _orders_for(self, caller: Caller, numbers: Set[str], now_ms: int) -> OpenOrders:
        """Return a tenant's orders, where there is room for these."""
        self._sweep(now_ms)
        who = caller.counted_as
        orders = self._orders.get(who)
        if orders is None:
            orders = self._orders[who] = OpenOrders()
        orders.forget(now_ms)
        limit = self.limits.tenant_orders_max
        count = len(orders)
        if count + len(numbers) > limit and (
            count + sum([each not in orders for each in numbers]) > limit
        ):
            detail = f"{count} orders of this tenant are open, or ended a moment ago"
            raise _over("QUOTA_ORDERS", detail, _ORDERS_RETRY_AFTER_S)
        return orders

    def ended(self, caller: Caller, number: str, now_ms: int) -> None:
        """Note that an order's end is stored. Whether it counts is for its worker to say."""
        orders = self._orders.get(caller.counted_as)
        if orders is not None:
            orders.end(number, now_ms)

    def not_opened(self, caller: Caller, number: str) -> None:
        """Note that an order's opening isn't stored."""
        orders = self._orders.get(caller.counted_as)
        if orders is not None:
            orders.discard(number)

    def _sweep(self, now_ms: int) -> None:
        """Forget what has lapsed of tenants that never come back, now and then."""
        if abs(now_ms - self._swept_ms) < _SWEEP_EVERY_MS:
            return
        self._swept_ms = now_ms
        for who, orders in list(self._orders.items()):
            orders.forget(now_ms)
            if not orders:
                del self._orders[who]


def _too_many(share: int, whose: str) -> ApiError:
    detail = f"of this {whose} {share} segments may wait for Kafka now; send fewer in parallel"
    return _over("QUOTA_SEGMENTS", detail)


def _over(reason: str, detail: str, retry_after_s: int = _RETRY_AFTER_S) -> ApiError:
    return ApiError(429, reason, detail, retry_after_s=retry_after_s)
