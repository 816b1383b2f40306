"""Who a request is from, by its Authorization header; and how often that may be wrong, or asked.

    Bearer dbk_…           an API key     (mode keys, keys+jwt)
    Bearer eyJ….….…        a JWT          (mode jwt, keys+jwt)

Theory of the limits. A caller that is known has a rate limit of its own. One that shows what opens
nothing is limited by its address; but behind an address there may be many, good ones too, and
nobody may shut out others by guessing. So what is cheap is checked always: a key costs a look-up
and a hash, and a token that was found good before costs no more. Only a signature that we haven't
seen is dear. Over its limit, an address's tokens wait for a slow lane that all such addresses
share: guessing gains nothing, costs us a bounded part of a core, and good ones get through.
"""

import hashlib
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any

from durabill.producers.gateway.auth.api_keys import PREFIX
from durabill.producers.gateway.auth.gcra import NS_PER_S, Gcra, Policy, Taken
from durabill.producers.gateway.auth.issuer import IssuerAway, KeySource
from durabill.producers.gateway.auth.issuer_keys import IssuerKey
from durabill.producers.gateway.auth.key_book import KeyBook
from durabill.producers.gateway.auth.tokens import (
    BadToken,
    TokenHead,
    TokenRules,
    read_head,
    read_token,
)
from durabill.producers.gateway.caller import ALL_SCOPES, Caller
from durabill.schemas.order_opened import DEFAULT_TENANT

SLOW_LANE_PER_S = 200
"""Some tenth of a core. The more there are, the sooner a good one among a flood gets through."""
_SLOW_LANE = "all"
_TOKENS_MAX = 10_000
_SCHEME = "bearer "


class Refused(Exception):
    """Why a request is not let in: what HTTP is to answer. `challenge` is for WWW-Authenticate."""

    def __init__(
        self,
        status: int,
        reason: str,
        detail: str,
        *,
        challenge: str | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(f"{status} {reason}: {detail}")
        self.status, self.reason, self.detail = status, reason, detail
        self.challenge, self.retry_after_s = challenge, retry_after_s


@dataclass(frozen=True, slots=True)
class Clocks:
    """The time of day, which tokens and keys expire by, and one that never steps back."""

    wall_ns: Callable[[], int] = time.time_ns
    monotonic_ns: Callable[[], int] = time.monotonic_ns


@dataclass(frozen=True, slots=True)
class AccessLimits:
    """How many requests of one caller, and how many failures of one address. 0 is no limit."""

    requests_per_s: int = 500
    failures_per_min: int = 30

    @property
    def requests(self) -> Policy | None:
        """Return the limit of a caller: the requests of ten seconds may come at once."""
        rate = self.requests_per_s
        return Policy(10 * rate, 10 * NS_PER_S) if rate else None

    @property
    def failures(self) -> Policy | None:
        """Return the limit of an address."""
        return Policy(self.failures_per_min, 60 * NS_PER_S) if self.failures_per_min else None


@dataclass(slots=True)
class _Seen:
    """A token that was found good: whose, until when, and by which generation of the keys."""

    caller: Caller
    until_s: float
    generation: int


@dataclass(slots=True)
class TokenBook:
    """Who has shown a token. Signatures that were found good are remembered while keys last."""

    source: KeySource
    rules: TokenRules
    _seen: dict[bytes, _Seen] = field(default_factory=dict)

    def known(self, token: str, now_s: float) -> Caller | None:
        """Return whose a token is that was found good before, and still is."""
        seen = self._seen.get(_digest(token))
        if seen is None or seen.generation != self.source.generation or now_s >= seen.until_s:
            return None
        return seen.caller

    async def caller(self, token: str, now_s: float) -> Caller:
        """Return whose a token is; raise BadToken or IssuerAway."""
        head = read_head(token)
        key, generation = await self._key(head)
        caller, expires_s = read_token(token, head, key, self.rules, now_s)
        if len(self._seen) >= _TOKENS_MAX:
            del self._seen[next(iter(self._seen))]
        self._seen[_digest(token)] = _Seen(caller, expires_s, generation)
        return caller

    async def _key(self, head: TokenHead) -> tuple[IssuerKey, int]:
        keys, generation = await self.source.keys(), self.source.generation
        key = keys.find(head.kid, head.alg)
        if key is None:
            newer = await self.source.newer_keys(than=generation)
            generation = self.source.generation
            key = None if newer is None else newer.find(head.kid, head.alg)
        if key is None:
            raise BadToken("its issuer has no key of that name for that algorithm")
        return key, generation


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()


class Access:
    """Finds out who asks. Without `keys` and `tokens` everybody may do everything."""

    def __init__(
        self,
        keys: KeyBook | None = None,
        tokens: TokenBook | None = None,
        limits: AccessLimits | None = None,
        clocks: Clocks | None = None,
    ) -> None:
        limits = limits or AccessLimits()
        self._keys, self._tokens = keys, tokens
        self._clocks = clocks or Clocks()
        self.is_open = keys is None and tokens is None
        self.requests = None if limits.requests is None else Gcra(limits.requests)
        self._failures = None if limits.failures is None else Gcra(limits.failures)
        self._slow_lane = Gcra(Policy(SLOW_LANE_PER_S, NS_PER_S), keys_max=1)

    def watches(self) -> list[Coroutine[Any, Any, None]]:
        """Return what has to run beside the server, to follow changes of keys."""
        keys = [] if self._keys is None else [self._keys.watch()]
        return keys if self._tokens is None else [*keys, self._tokens.source.watch()]

    async def close(self) -> None:
        """Let go of what it holds."""
        if self._tokens is not None:
            await self._tokens.source.close()

    async def caller(self, authorizations: Sequence[str], address: str) -> Caller:
        """Return who shows these Authorization headers from `address`; raise Refused."""
        if self.is_open:
            return Caller(DEFAULT_TENANT, address, ALL_SCOPES)
        shown = _shown(authorizations)
        now_ns = self._clocks.wall_ns()
        if self._keys is not None and shown.startswith(PREFIX):
            caller = self._keys.caller(shown, now_ns // 1_000_000)
            if caller is None:
                raise self._failed(address, "it is no key, or none that is live")
            return caller
        if self._tokens is None:
            raise self._failed(address, "it is no API key")
        now_s = now_ns / NS_PER_S
        known = self._tokens.known(shown, now_s)
        if known is not None:
            return known
        self._enter_slow_lane(address)
        try:
            return await self._tokens.caller(shown, now_s)
        except BadToken as error:
            raise self._failed(address, error.detail) from error
        except IssuerAway as error:
            raise Refused(503, "ISSUER_UNREACHABLE", str(error), retry_after_s=2) from error

    def count(self, caller: Caller) -> Taken | None:
        """Count a request of a known caller, None where nothing is counted."""
        if self.requests is None or not caller.is_known:
            return None
        return self.requests.take(caller.key_id, self._clocks.monotonic_ns())

    def _enter_slow_lane(self, address: str) -> None:
        now_ns = self._clocks.monotonic_ns()
        if self._failures is None or self._failures.look(address, now_ns).is_allowed:
            return
        if not self._slow_lane.take(_SLOW_LANE, now_ns).is_allowed:
            raise self._too_many(address, now_ns)

    def _failed(self, address: str, detail: str) -> Refused:
        now_ns = self._clocks.monotonic_ns()
        if self._failures is not None and not self._failures.take(address, now_ns).is_allowed:
            return self._too_many(address, now_ns)
        return Refused(401, "UNAUTHORIZED", detail, challenge='Bearer error="invalid_token"')

    def _too_many(self, address: str, now_ns: int) -> Refused:
        assert self._failures is not None
        wait_s = self._failures.look(address, now_ns).retry_after_s
        detail = "too many keys or tokens from this address open nothing"
        return Refused(429, "TOO_MANY_FAILURES", detail, retry_after_s=wait_s)


def _shown(authorizations: Sequence[str]) -> str:
    """Return what follows Bearer in the one header; raise Refused."""
    if not authorizations:
        detail = "say Authorization: Bearer, and an API key or an access token"
        raise Refused(401, "UNAUTHORIZED", detail, challenge="Bearer")
    if len(authorizations) > 1:
        detail = "a request has one authorization header"
        challenge = 'Bearer error="invalid_request"'
        raise Refused(400, "BAD_AUTHORIZATION", detail, challenge=challenge)
    header = authorizations[0]
    if header[: len(_SCHEME)].lower() != _SCHEME:
        detail = "only Authorization: Bearer is taken"
        raise Refused(401, "UNAUTHORIZED", detail, challenge="Bearer")
    return header[len(_SCHEME) :].strip(" ")
