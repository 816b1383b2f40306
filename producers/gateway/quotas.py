"""Quotas: what one tenant may have under way at once, so that its flood stays its own.

Theory: the segments that may wait for Kafka are shared by a dynamic threshold. A tenant may have as
many as are left free: alone it gets half of them, beside another that floods a third, and so on,
and as much as each of the flooding ones has is always left for who comes next. Nobody has to be
counted for that, and nothing is set aside for tenants that are silent. On top of it stand fixed
limits of a client's and of a tenant's.

Without authentication nobody says whose he is: an address stands for the tenant then. All counts
are of this gateway alone, and a count that has come back to nothing takes no memory.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

from durabill.producers.gateway.caller import Caller
from durabill.producers.gateway.problems import ApiError, try_later

_RETRY_AFTER_S = 1
_ORDERS_RETRY_AFTER_S = 60


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


class _Who(NamedTuple):
    """Whom something is counted for: a tenant (client is None), or a client of it."""

    tenant: str
    client: str | None


def _tenant(caller: Caller) -> _Who:
    return _Who(caller.tenant, None if caller.is_known else caller.client)


class Quotas:
    """Counts what is under way. Belongs to one event loop."""

    def __init__(self, limits: QuotaLimits) -> None:
        self.limits = limits
        self._requests: Counter[_Who] = Counter()
        self._segments: Counter[_Who] = Counter()
        self._in_flight = 0
        self._orders: dict[_Who, OpenOrders] = {}

    @contextmanager
    def request(self, caller: Caller) -> Iterator[None]:
        """Count a request while it is worked on; raise ApiError(429 QUOTA_REQUESTS)."""
        who, limit = _tenant(caller), self.limits.tenant_requests_max
        if self._requests[who] >= limit:
            detail = f"{limit} requests of this tenant may be under way at once"
            raise _over("QUOTA_REQUESTS", detail)
        self._requests[who] += 1
        try:
            yield
        finally:
            _less(self._requests, who, 1)

    def check_segments(self, caller: Caller) -> None:
        """Raise ApiError(429 QUOTA_SEGMENTS) where not one more would be taken; before a body."""
        self._check(caller, 1)

    @contextmanager
    def segments(self, caller: Caller, count: int) -> Iterator[None]:
        """Count segments while they wait for Kafka.

        Raises ApiError: 429 QUOTA_SEGMENTS, 503 OVERLOADED. A client, and a tenant, that has none
        waiting may send any request that there is room for.
        """
        self._check(caller, count)
        tenant, client = _tenant(caller), _Who(caller.tenant, caller.client)
        units = {tenant, client}  # one and the same without authentication
        for each in units:
            self._segments[each] += count
        self._in_flight += count
        try:
            yield
        finally:
            self._in_flight -= count
            for each in units:
                _less(self._segments, each, count)

    def _check(self, caller: Caller, count: int) -> None:
        limits = self.limits
        own = self._segments[_Who(caller.tenant, caller.client)]
        if own and own + count > limits.client_segments_max:
            raise _too_many(limits.client_segments_max, "client")
        free = max(0, limits.in_flight_segments_max - self._in_flight)
        share = min(limits.tenant_segments_max, free)
        own = self._segments[_tenant(caller)]
        if own and own + count > share:
            raise _too_many(max(share, 1), "tenant")
        if count > free:
            raise try_later("OVERLOADED", f"{self._in_flight} segments wait for Kafka")

    def opens(self, caller: Caller, number: str, now_ms: int, until_ms: int) -> None:
        """Count an order as open until its end comes, or `until_ms`.

        Raises ApiError(429 QUOTA_ORDERS). One that is counted already isn't counted again.
        """
        who = _tenant(caller)
        orders = self._orders.setdefault(who, OpenOrders())
        orders.forget(now_ms)
        if len(orders) >= self.limits.tenant_orders_max and number not in orders:
            detail = f"{len(orders)} orders of this tenant are open; end some of them first"
            raise _over("QUOTA_ORDERS", detail, _ORDERS_RETRY_AFTER_S)
        orders.add(number, until_ms)

    def ended(self, caller: Caller, number: str) -> None:
        """Note that an order's end is stored, or that its opening wasn't."""
        who = _tenant(caller)
        orders = self._orders.get(who)
        if orders is not None:
            orders.discard(number)
            if not orders:
                del self._orders[who]


class OpenOrders:
    """The orders that one tenant has opened and not ended, by the hash of their numbers."""

    def __init__(self) -> None:
        self._until_ms: dict[int, int] = {}  # in the order of opening: about that of forgetting

    def __len__(self) -> int:
        return len(self._until_ms)

    def __contains__(self, number: str) -> bool:
        return hash(number) in self._until_ms

    def add(self, number: str, until_ms: int) -> None:
        """Take one in."""
        self._until_ms[hash(number)] = until_ms

    def discard(self, number: str) -> None:
        """Leave one out."""
        self._until_ms.pop(hash(number), None)

    def forget(self, now_ms: int) -> None:
        """Leave out those whose time has passed, the longest open first."""
        while self._until_ms:
            first = next(iter(self._until_ms))
            if self._until_ms[first] > now_ms:
                break
            del self._until_ms[first]


def _less(counts: Counter[_Who], who: _Who, count: int) -> None:
    counts[who] -= count
    if not counts[who]:
        del counts[who]


def _too_many(share: int, whose: str) -> ApiError:
    detail = f"of this {whose} {share} segments may wait for Kafka now; send fewer in parallel"
    return _over("QUOTA_SEGMENTS", detail)


def _over(reason: str, detail: str, retry_after_s: int = _RETRY_AFTER_S) -> ApiError:
    return ApiError(429, reason, detail, retry_after_s=retry_after_s)
