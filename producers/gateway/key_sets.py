"""The keys that leases and receipts are signed with, as JWK sets, and how one takes over. Pure.

A new key is in the file ahead of its time (`signs_from_ms`): every gateway knows it, and takes what
it has signed, before the first of them signs with it. So nobody refuses what another gateway has
signed. The newest key stands first. A file of leases has two keys at most, for a lease that nobody
can check is worth nothing; a file of receipts keeps the public half of every key that ever signed.
"""

import os
from collections.abc import Callable
from enum import StrEnum
from typing import Final

import msgspec

from durabill.schemas.base64url import decode64, encode64
from durabill.schemas.errors import DurabillError

SECRET_BYTES: Final = 32
HAND_OVER_MS: Final = 60_000
"""How long a new key is in the file before it signs; a gateway has read it after a second or two.
More where copies of the file have to get to other machines."""
LEASE_KEYS_MAX: Final = 2
_KID_BYTES = 6


class SigningKeyError(DurabillError):
    """A file of signing keys can't be used, or made; the message says what to do."""

    exit_code = 2


class Kind(StrEnum):
    """What a file's keys sign."""

    LEASE = "lease"
    RECEIPT = "receipt"


class Jwk(msgspec.Struct, frozen=True, omit_defaults=True):
    """One key (RFC 7517, RFC 8037), and from when on it signs. Its text shows no secret."""

    kid: str
    kty: str
    alg: str
    use: str = ""
    crv: str = ""
    x: str = ""
    k: str = ""
    d: str = ""
    signs_from_ms: int = 0

    def __repr__(self) -> str:
        return f"Jwk({self.kid})"


class KeySet(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a file holds, the newest key first. `number_secret` makes numbers of repeated starts."""

    keys: tuple[Jwk, ...]
    number_secret: str = ""

    def __repr__(self) -> str:
        return f"KeySet({', '.join(each.kid for each in self.keys)})"

    def signer(self, now_ms: int) -> Jwk:
        """Return the key that signs now: the newest one whose time has come."""
        able = [each for each in self.keys if each.k or each.d]
        come = [each for each in able if each.signs_from_ms <= now_ms]
        if come:
            return max(come, key=lambda each: each.signs_from_ms)
        return min(able, key=lambda each: each.signs_from_ms)  # by a clock that is far behind

    @property
    def kind(self) -> Kind:
        """Return what they sign."""
        return Kind.LEASE if self.keys[0].kty == "oct" else Kind.RECEIPT


class ReceiptKey(msgspec.Struct):
    """The public half of a key that receipts are signed with (RFC 8037)."""

    kid: str
    kty: str
    crv: str
    alg: str
    use: str
    x: str


class ReceiptKeys(msgspec.Struct):
    """All such keys, those that have signed and those that will: a JWK set (RFC 7517)."""

    keys: list[ReceiptKey]


def public_keys_of(keys: KeySet) -> ReceiptKeys:
    """Return the public halves of all keys of receipts, the newest first."""
    assert keys.kind is Kind.RECEIPT, "keys of leases have no public half"
    return ReceiptKeys(
        [ReceiptKey(each.kid, each.kty, each.crv, each.alg, each.use, each.x) for each in keys.keys]
    )


def new_key(kind: Kind, signs_from_ms: int, entropy: Callable[[int], bytes]) -> Jwk:
    """Return a new key."""
    kid, secret = entropy(_KID_BYTES).hex(), entropy(SECRET_BYTES)
    if kind is Kind.LEASE:
        return Jwk(kid, "oct", "HS256", k=encode64(secret), signs_from_ms=signs_from_ms)
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    public = Ed25519PrivateKey.from_private_bytes(secret).public_key().public_bytes_raw()
    return Jwk(
        kid,
        "OKP",
        "Ed25519",
        use="sig",
        crv="Ed25519",
        x=encode64(public),
        d=encode64(secret),
        signs_from_ms=signs_from_ms,
    )


def new_keys(kind: Kind, entropy: Callable[[int], bytes] = os.urandom) -> KeySet:
    """Return what a new file has."""
    secret = encode64(entropy(SECRET_BYTES)) if kind is Kind.LEASE else ""
    return KeySet((new_key(kind, 0, entropy),), secret)


def rotated(
    before: KeySet,
    now_ms: int,
    *,
    keep_ms: int = 0,
    hand_over_ms: int = HAND_OVER_MS,
    entropy: Callable[[int], bytes] = os.urandom,
) -> KeySet:
    """Return the keys with a new one, which signs `hand_over_ms` from now on.

    Of leases the two newest are left. Raises SigningKeyError where the one that would go may have
    signed something that is still good, which is so for `keep_ms` after it signed last.
    """
    newest = before.keys[0]
    if newest.signs_from_ms > now_ms:
        raise SigningKeyError(
            f"the newest key doesn't sign yet, but in {newest.signs_from_ms - now_ms} ms: wait"
        )
    new = new_key(before.kind, now_ms + hand_over_ms, entropy)
    if before.kind is Kind.RECEIPT:
        older = (msgspec.structs.replace(each, d="") for each in before.keys[1:])
        return KeySet((new, newest, *older))
    left_ms = newest.signs_from_ms + keep_ms - now_ms
    if len(before.keys) >= LEASE_KEYS_MAX and left_ms > 0:
        raise SigningKeyError(
            f"key {before.keys[1].kid} has signed leases that hold for {left_ms / 1000:,.0f} s more"
            f" (DURABILL_LEASE_S={keep_ms / 1000:g}), and there are {LEASE_KEYS_MAX} keys at most:"
            " wait, or give --force where the key must go now; clients that hold its leases have"
            " to start their orders anew then"
        )
    return KeySet((new, newest), before.number_secret)


def check_keys(keys: KeySet, kind: Kind) -> None:
    """Raise ValueError unless they are whole keys of that kind."""
    kids = {each.kid for each in keys.keys}
    if not keys.keys or len(kids) < len(keys.keys) or not all(_is_kid(each) for each in kids):
        raise ValueError("each key has a kid of its own")
    for each in keys.keys:
        wanted = ("oct", "HS256") if kind is Kind.LEASE else ("OKP", "Ed25519")
        if (each.kty, each.alg) != wanted:
            raise ValueError("keys of another kind")
        secret, public = decode64(each.k or each.d), decode64(each.x)
        if len(secret) != SECRET_BYTES and (kind is Kind.LEASE or secret):
            raise ValueError("a secret of another length")
        if kind is Kind.RECEIPT and len(public) != SECRET_BYTES:
            raise ValueError("a public key of another length")
    if kind is Kind.LEASE and len(decode64(keys.number_secret)) != SECRET_BYTES:
        raise ValueError("no secret for numbers")
    keys.signer(0)  # ValueError where none can sign


def _is_kid(text: str) -> bool:
    return 1 <= len(text) <= 64 and text.isascii() and text.isalnum()
