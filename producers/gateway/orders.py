"""POST /v1/orders and its leases: an order is opened in the log before its client hears of it.

The effects of a start, in this order:
  1. read and check everything; any fault refuses the start, nothing is stored
  2. find the number: a new one; with an Idempotency-Key the one that this key always gives; or the
     client's own choice, which is refused if the order's worker knows it (409)
  3. append the OrderOpened to the number's partition, and wait for Kafka's acknowledgement
  4. answer 201 with the server timestamp of step 3's record, and the lease

A crash between 3 and 4 leaves an order that is opened, and never reported: `durabill leakage` tells
of it, unless its start is repeated with the same Idempotency-Key. Two starts with one number at the
same time may both get past 2. The log decides then: the opening with the lower offset holds, the
other becomes a dead letter, or is passed over where both are of one client.
"""

import asyncio
import hashlib
import hmac
from collections.abc import Callable
from typing import NamedTuple

import msgspec
from aiohttp import web

from durabill.producers.gateway.api import OrderGrant, OrderRequest, check_number, read_order
from durabill.producers.gateway.authority import Authority
from durabill.producers.gateway.caller import Caller, caller_of
from durabill.producers.gateway.checks import json_answer, read_body
from durabill.producers.gateway.kafka import BackendUnavailable, Overloaded, SegmentProducer
from durabill.producers.gateway.leases import Lease
from durabill.producers.gateway.lookup import Lookup, number_of
from durabill.producers.gateway.problems import ApiError, refusal, try_later
from durabill.schemas.errors import BadRecord
from durabill.schemas.limits import (
    ATTRIBUTE_KEY_BYTES_MAX,
    ATTRIBUTE_VALUE_BYTES_MAX,
    ATTRIBUTES_MAX,
    ORDER_NUMBER_BYTES_MAX,
    SERVICE_BYTES_MAX,
)
from durabill.schemas.order_opened import OrderOpened, encode_opening
from durabill.schemas.text import plain

LEASE_HEADER = "lease"
IDEMPOTENCY_HEADER = "idempotency-key"
KEY_CHARS_MAX = 255
_CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_KEPT_MAX = 20_000
_CLOCK_WRONG_MS = 2_000
"""Of a server timestamp and the broker's time of its record: a start whose time is further off was
made by a clock that had not learned the broker's yet."""


def new_order_number(now_ms: int, entropy: Callable[[int], bytes]) -> str:
    """Return 26 characters that sort by time (ms) and hold 80 bits that nobody can guess.

    48 bits of time, then the entropy, in Crockford's base 32: the layout of a ULID.
    """
    return _crockford(now_ms << 80 | int.from_bytes(entropy(10), "big"))


def repeated_order_number(secret: bytes, caller: Caller, key: str) -> str:
    """Return the number that an Idempotency-Key of a caller always has: 128 bits of an HMAC.

    So all gateways with the same secret agree, and none has to remember it. Another tenant's key,
    and that of another client where clients say who they are, gives another number.
    """
    who = f"{caller.tenant}\0{caller.client if caller.is_known else ''}\0{key}"
    digest = hmac.digest(secret, who.encode(), "sha256")
    return _crockford(int.from_bytes(digest[:16], "big"))


def _crockford(value: int) -> str:
    value &= (1 << 130) - 1
    return "".join(_CROCKFORD[value >> shift & 31] for shift in range(125, -1, -5))


class _Start(NamedTuple):
    """What a start asks for; `digest` is of all of it, for the repeats of its key."""

    caller: Caller
    number: str | None
    service: str
    attributes: tuple[tuple[str, str], ...]
    key: str | None

    @property
    def digest(self) -> bytes:
        """Return what is another for another start with the same key."""
        asked = (self.number, self.service, self.attributes)
        return hashlib.sha256(msgspec.json.encode(asked)).digest()

    @property
    def kept_as(self) -> tuple[str, str, str | None]:
        """Return whose key it is."""
        caller = self.caller
        return caller.tenant, caller.client if caller.is_known else "", self.key


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

    async def start(self, request: web.Request) -> web.Response:
        """POST /v1/orders"""
        caller = caller_of(request)
        key = _key_of(request)
        wanted = _checked(caller, read_order(await read_body(request)), key)
        grant = await (self._grant(wanted) if key is None else self._grant_once(wanted))
        return json_answer(grant, status=201)

    async def renew(self, request: web.Request) -> web.Response:
        """POST /v1/orders/{number}/lease"""
        caller, number = caller_of(request), number_of(request)
        now_ms = self._authority.clock.now_ms()
        token, lease = self._authority.leases.renew(
            request.headers.get(LEASE_HEADER), number, caller, now_ms
        )
        return json_answer(self._told(token, lease))

    async def _grant_once(self, wanted: _Start) -> OrderGrant:
        """Return the grant that an Idempotency-Key has got, or gets now.

        Of repeats that come while the first is under way, each waits for it.
        """
        now_ms = self._authority.clock.now_ms()
        kept = self._kept.get(wanted.kept_as)
        if kept is not None and kept.digest != wanted.digest:
            detail = "this key has started another order; a new start has a new key"
            raise ApiError(422, "IDEMPOTENCY_KEY_REUSED", detail)
        if kept is not None and not _is_over(kept.grant, now_ms):
            return await asyncio.shield(kept.grant)
        task = asyncio.ensure_future(self._grant(wanted))
        if len(self._kept) >= _KEPT_MAX:
            del self._kept[next(iter(self._kept))]
        self._kept[wanted.kept_as] = _Kept(wanted.digest, task)
        return await asyncio.shield(task)

    async def _grant(self, wanted: _Start) -> OrderGrant:
        authority, caller = self._authority, wanted.caller
        number = wanted.number
        if number is None and wanted.key is not None:
            number = repeated_order_number(authority.number_secret(), caller, wanted.key)
        if number is not None:
            known = await self._known(wanted, number)
            if known is not None:
                return known
            return await self._open(wanted, number)
        for _ in range(2):
            now_ms = authority.clock.now_ms()
            grant = await self._open(wanted, new_order_number(now_ms, self._entropy))
            if abs(grant.server_timestamp_ms - authority.clock.now_ms()) < _CLOCK_WRONG_MS:
                break  # else the clock has learned better by the very acknowledgement
        return grant

    async def _known(self, wanted: _Start, number: str) -> OrderGrant | None:
        """Return the grant of an order that the same start has opened; None for a free number.

        Raises ApiError: 409 ORDER_IN_USE, 422 IDEMPOTENCY_KEY_REUSED.
        """
        in_use = await self._lookup.in_use(number)
        if in_use is None:
            return None
        opened = in_use.opened
        is_own = (
            wanted.number is None  # the key's own number: nobody else gets it
            and opened is not None
            and opened.tenant == wanted.caller.tenant
        )
        if not is_own or opened is None:
            raise ApiError(409, "ORDER_IN_USE", f"order {plain(number)} is in use; choose another")
        if opened.service != wanted.service:
            detail = "this key has started an order of another service; a new start has a new key"
            raise ApiError(422, "IDEMPOTENCY_KEY_REUSED", detail)
        token, lease = self._authority.leases.mint(
            number,
            wanted.caller.tenant,
            _client_of(wanted.caller),
            now_ms=self._authority.clock.now_ms(),
            interval_ms=self._report_interval_ms,
            opened_ms=opened.server_timestamp_ms,
            accept_until_ms=opened.accept_until_ms,
        )
        return self._told(token, lease)

    async def _open(self, wanted: _Start, number: str) -> OrderGrant:
        """Append an opening; return what to answer once Kafka has it."""
        authority, caller = self._authority, wanted.caller
        now_ms = authority.clock.now_ms()
        token, lease = authority.leases.mint(
            number,
            caller.tenant,
            _client_of(caller),
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
        try:
            value = encode_opening(opened)
        except BadRecord as error:
            raise refusal(error) from error
        authority.quotas.opens(caller, number, now_ms, lease.accept_until_ms)
        try:
            with authority.quotas.segments(caller, 1):
                await self._publisher.publish(number.encode(), [value])
            self._lookup.is_stored(number, caller.tenant)
        except (ApiError, Overloaded, BackendUnavailable) as error:
            authority.quotas.ended(caller, number)
            raise _told(error) from error
        return self._told(token, lease)

    def _told(self, token: str, lease: Lease) -> OrderGrant:
        return OrderGrant(
            lease.number,
            lease.opened_ms,
            lease.interval_ms,
            lease.accept_until_ms,
            self._correction_window_ms,
            token,
            lease.expires_ms,
        )


def _is_over(grant: "asyncio.Future[OrderGrant]", now_ms: int) -> bool:
    """Tell whether a start has failed, or its lease has ended: the next one begins anew."""
    if not grant.done():
        return False
    if grant.cancelled() or grant.exception() is not None:
        return True
    return now_ms >= grant.result().lease_expires_ms


def _told(error: Exception) -> Exception:
    if isinstance(error, Overloaded):
        return try_later("OVERLOADED", str(error))
    if isinstance(error, BackendUnavailable):
        return try_later("KAFKA_UNAVAILABLE", str(error))
    return error


def _client_of(caller: Caller) -> str:
    """Return the client that an opening names: none where only an address is known of it.

    An address changes, and a start that is repeated from another one is the same client's.
    """
    return caller.client if caller.is_known else ""


def _key_of(request: web.Request) -> str | None:
    """Return the Idempotency-Key of a request, None without; raise ApiError(400) for a bad one."""
    keys = request.headers.getall(IDEMPOTENCY_HEADER, ())
    if not keys:
        return None
    key = keys[0].strip()
    if len(key) >= 2 and key[0] == key[-1] == '"':
        key = key[1:-1]  # as a string of RFC 8941, which the draft asks for
    if len(keys) > 1 or not 1 <= len(key) <= KEY_CHARS_MAX or not _is_visible(key):
        detail = f"give one Idempotency-Key, of 1 to {KEY_CHARS_MAX} visible ASCII characters"
        raise ApiError(400, "BAD_IDEMPOTENCY_KEY", detail)
    return key


def _is_visible(text: str) -> bool:
    return text.isascii() and text.isprintable()


def _checked(caller: Caller, asked: OrderRequest, key: str | None) -> _Start:
    """Return a start that an opening can hold; raise ApiError(422) for any other."""
    number = asked.service_order_number
    if number is not None and caller.is_known:
        number = f"{caller.tenant}:{number}"
        left = ORDER_NUMBER_BYTES_MAX - len(caller.tenant) - 1
        if len(number.encode(errors="replace")) > ORDER_NUMBER_BYTES_MAX:
            detail = f"has more than {left} UTF-8 bytes: the tenant and a colon stand before it"
            raise ApiError(422, "BAD_ORDER_NUMBER", detail)
    if number is not None:
        check_number(number)
    service, attributes = asked.service or "", asked.attributes or {}
    if problem := _wrong_text(service, SERVICE_BYTES_MAX):
        raise ApiError(422, "BAD_SERVICE", f"service {problem}")
    if len(attributes) > ATTRIBUTES_MAX:
        detail = f"{len(attributes)} attributes; an order has at most {ATTRIBUTES_MAX}"
        raise ApiError(422, "BAD_ATTRIBUTES", detail)
    for name, content in attributes.items():
        problem = "is empty" if not name else _wrong_text(name, ATTRIBUTE_KEY_BYTES_MAX)
        if problem:
            raise ApiError(422, "BAD_ATTRIBUTES", f"the name of an attribute {problem}")
        if problem := _wrong_text(content, ATTRIBUTE_VALUE_BYTES_MAX):
            raise ApiError(422, "BAD_ATTRIBUTES", f"attribute {name!r} {problem}")
    return _Start(caller, number, service, tuple(sorted(attributes.items())), key)


def _wrong_text(text: str, bytes_max: int) -> str:
    """Return what is wrong with a text of an opening, "" for a good one."""
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        return "holds a lone surrogate"
    if size > bytes_max:
        return f"has {size} UTF-8 bytes, {bytes_max} are allowed"
    has_control = any(char < " " or "\x7f" <= char <= "\x9f" for char in text)
    return "holds a control character" if has_control else ""
