"""JWT access tokens of an OAuth2 issuer, as of RFC 9068. Pure: keys and time are arguments.

What is looked at before the signature is only what says by which key it is to be checked: the
header's `alg`, which must be one of our list and fit the key, its `kid`, which is nothing but a
name in the issuer's set, and its `typ`. Whatever else a header says (an address or a key of the
sender's own) is not looked at. What a claim says counts after the signature alone.
"""

import binascii
import hashlib
import math
import re
import warnings
from base64 import urlsafe_b64decode
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
from joserfc import jwt
from joserfc.errors import JoseError, SecurityWarning
from joserfc.jws import JWSRegistry
from msgspec import Meta

from durabill.producers.gateway.auth.issuer_keys import ALGORITHMS, IssuerKey
from durabill.producers.gateway.caller import ALL_SCOPES, Caller
from durabill.schemas.tenants import is_tenant

TOKEN_CHARS_MAX = 7_000
LEEWAY_S = 30.0
"""How far the issuer's clock may be off ours."""
CLIENT_BYTES_MAX = 64
_TOKEN = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+", re.ASCII)
_TYPES = ("at+jwt", "application/at+jwt")
_TIME_MAX_S = 10**15
_Time = (
    Annotated[int, Meta(ge=0, le=_TIME_MAX_S)] | Annotated[float, Meta(ge=0, le=float(_TIME_MAX_S))]
)


class BadToken(Exception):
    """A token that opens nothing; `detail` is for whoever sent it."""

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail


@dataclass(frozen=True, slots=True)
class TokenRules:
    """Whose tokens are taken, for whom they must be made, and which claim names the tenant."""

    issuer: str
    audience: str
    tenant_claim: str = "tenant"


class TokenHead(msgspec.Struct, frozen=True):
    """What a token's header says of how it is to be checked."""

    alg: str
    typ: str
    kid: str | None = None
    crit: Any = msgspec.UNSET


class _Claims(msgspec.Struct, frozen=True):
    iss: str
    aud: str | list[str]
    exp: _Time
    sub: str
    nbf: _Time | None = None
    iat: _Time | None = None
    client_id: str | None = None
    azp: str | None = None
    scope: str = ""


class _Registry(JWSRegistry):
    """The limits are the token's own; see TOKEN_CHARS_MAX."""

    max_header_length = TOKEN_CHARS_MAX
    max_signature_length = TOKEN_CHARS_MAX


def looks_like_token(text: str) -> bool:
    """Tell whether a text has the form of a signed JWT; nothing of it is believed yet."""
    return len(text) <= TOKEN_CHARS_MAX and _TOKEN.fullmatch(text) is not None


def read_head(token: str) -> TokenHead:
    """Return what says how a token is to be checked; raise BadToken for what we don't take."""
    if not looks_like_token(token):
        raise BadToken("it is no signed JWT, or too long")
    raw = token.partition(".")[0]
    try:
        head = msgspec.json.decode(urlsafe_b64decode(raw + "=" * (-len(raw) % 4)), type=TokenHead)
    except (ValueError, RecursionError, binascii.Error) as error:
        raise BadToken("its header can't be read, or has no alg and typ") from error
    if head.typ.lower() not in _TYPES:
        raise BadToken("its typ is not at+jwt: it is no access token of RFC 9068")
    if head.alg not in ALGORITHMS:
        raise BadToken("it is signed with an algorithm that isn't taken")
    if head.crit is not msgspec.UNSET:
        raise BadToken("its header has a crit, which is not understood")
    return head


def read_token(
    token: str, head: TokenHead, key: IssuerKey, rules: TokenRules, now_s: float
) -> tuple[Caller, float]:
    """Return who shows a token, and until when it holds (s since the epoch).

    `head` is what `read_head` gave, `key` the one that it names. Raises BadToken.
    """
    if head.alg not in key.algorithms:
        raise BadToken("its algorithm is not one of its key's")
    registry = _Registry(algorithms=[head.alg], strict_check_header=False)
    try:
        with warnings.catch_warnings():
            # Issuers still say EdDSA, the older name of Ed25519 (RFC 9864).
            warnings.simplefilter("ignore", SecurityWarning)
            claims = jwt.decode(token, key.key, algorithms=[head.alg], registry=registry).claims
        found = msgspec.convert(claims, _Claims)
    except msgspec.ValidationError as error:
        raise BadToken(f"its claims are not those of RFC 9068: {error}") from error
    except (JoseError, ValueError, TypeError, RecursionError) as error:
        raise BadToken("its signature is not its issuer's") from error
    _check(found, rules, now_s)
    return _caller(found, claims, rules), float(found.exp)


def _check(claims: _Claims, rules: TokenRules, now_s: float) -> None:
    times = [each for each in (claims.exp, claims.nbf, claims.iat) if each is not None]
    if not all(math.isfinite(each) for each in times):
        raise BadToken("its times are no times")
    if claims.iss != rules.issuer:
        raise BadToken("it is of another issuer")
    audiences = [claims.aud] if isinstance(claims.aud, str) else claims.aud
    if rules.audience not in audiences:
        raise BadToken("it is made for another audience")
    if now_s >= claims.exp + LEEWAY_S:
        raise BadToken("it has expired")
    if any(each is not None and each > now_s + LEEWAY_S for each in (claims.nbf, claims.iat)):
        raise BadToken("it does not hold yet")


def _caller(found: _Claims, claims: Mapping[str, Any], rules: TokenRules) -> Caller:
    tenant = claims.get(rules.tenant_claim)
    if not isinstance(tenant, str) or not is_tenant(tenant):
        raise BadToken(f"its claim {rules.tenant_claim!r} is no tenant's name")
    client = _short(found.client_id or found.azp or found.sub)
    if not client:
        raise BadToken("it names no client")
    return Caller(
        tenant, client, ALL_SCOPES & set(found.scope.split(" ")), f"jwt:{tenant}:{client}"
    )


def _short(client: str) -> str:
    """Return a client's name as it is, or where it is long or strange a digest of it."""
    name = client.encode("utf-8", "surrogatepass")
    if len(name) <= CLIENT_BYTES_MAX - len("jwt:") and client.isprintable():
        return client
    return f"sha256.{hashlib.sha256(name).hexdigest()[:48]}"
