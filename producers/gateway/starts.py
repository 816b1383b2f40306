"""What a start of an order asks for, and which number it gets."""

import hashlib
import hmac
from collections.abc import Callable
from typing import Final, NamedTuple

import msgspec
from aiohttp import web

from durabill.producers.gateway.api import OrderGrant, OrderRequest, check_number
from durabill.producers.gateway.caller import Caller
from durabill.producers.gateway.leases import Lease
from durabill.producers.gateway.problems import ApiError
from durabill.schemas.limits import (
    ATTRIBUTE_KEY_BYTES_MAX,
    ATTRIBUTE_VALUE_BYTES_MAX,
    ATTRIBUTES_MAX,
    ORDER_NUMBER_BYTES_MAX,
    SERVICE_BYTES_MAX,
)
from durabill.schemas.text import wrong_in

IDEMPOTENCY_HEADER: Final = "idempotency-key"
KEY_CHARS_MAX: Final = 255
_CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


def new_order_number(now_ms: int, entropy: Callable[[int], bytes]) -> str:
    """Return 26 characters that sort by time (ms) and hold 80 bits that nobody can guess.

    48 bits of time, then the entropy, in Crockford's base 32: the layout of a ULID.
    """
    return _crockford(now_ms << 80 | int.from_bytes(entropy(10), "big"))


def client_of(caller: Caller) -> str:
    """Return the client that an opening names: none where only an address is known of it.

    An address changes, and a start that is repeated from another one is the same client's.
    """
    return caller.client if caller.is_known else ""


def repeated_order_number(secret: bytes, caller: Caller, key: str) -> str:
    """Return the number that an Idempotency-Key of a caller always has: 128 bits of an HMAC.

    So all gateways with the same secret agree, and none has to remember it. Another tenant's key,
    and that of another client where clients say who they are, gives another number.
    """
    who = f"{caller.tenant}\0{client_of(caller)}\0{key}"
    digest = hmac.digest(secret, who.encode(), "sha256")
    return _crockford(int.from_bytes(digest[:16], "big"))


def _crockford(value: int) -> str:
    value &= (1 << 130) - 1
    return "".join(_CROCKFORD[value >> shift & 31] for shift in range(125, -1, -5))


class Start(NamedTuple):
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
        return caller.tenant, client_of(caller), self.key


def key_of(request: web.Request) -> str | None:
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
    return text.isascii() and text.isprintable() and " " not in text


def checked(caller: Caller, asked: OrderRequest, key: str | None) -> Start:
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
    if problem := wrong_in(service, SERVICE_BYTES_MAX):
        raise ApiError(422, "BAD_SERVICE", f"service {problem}")
    if len(attributes) > ATTRIBUTES_MAX:
        detail = f"{len(attributes)} attributes; an order has at most {ATTRIBUTES_MAX}"
        raise ApiError(422, "BAD_ATTRIBUTES", detail)
    for name, content in attributes.items():
        problem = "is empty" if not name else wrong_in(name, ATTRIBUTE_KEY_BYTES_MAX)
        if problem:
            raise ApiError(422, "BAD_ATTRIBUTES", f"the name of an attribute {problem}")
        if problem := wrong_in(content, ATTRIBUTE_VALUE_BYTES_MAX):
            raise ApiError(422, "BAD_ATTRIBUTES", f"attribute {name!r} {problem}")
    return Start(caller, number, service, tuple(sorted(attributes.items())), key)


def grant_of(token: str, lease: Lease, correction_window_ms: int | None) -> OrderGrant:
    """Return what a client is told of its lease."""
    return OrderGrant(
        lease.number,
        lease.opened_ms,
        lease.interval_ms,
        lease.accept_until_ms,
        correction_window_ms,
        token,
        lease.expires_ms,
    )
