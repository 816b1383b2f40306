"""The public keys of an issuer of tokens, as its JWK set gives them. Pure.

Only what can check a signature is taken: RSA of 2,048 bits or more, EC on the three curves of
RFC 7518, Ed25519; not meant for encryption, and with no private half. So a token can't have its
signature checked by a way that its key isn't for: which algorithms a key may be used with follows
from the key. Symmetric keys are never taken.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, OKPKey, RSAKey

from durabill.schemas.errors import DurabillError

SET_BYTES_MAX = 1024 * 1024
_KEYS_MAX = 200
_RSA_BITS_MIN, _RSA_BITS_MAX = 2_048, 8_192  # a larger one is work for us alone
_RSA = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
_BY_CURVE: Final = {
    ("EC", "P-256"): ("ES256",),
    ("EC", "P-384"): ("ES384",),
    ("EC", "P-521"): ("ES512",),
    ("OKP", "Ed25519"): ("Ed25519", "EdDSA"),
}
ALGORITHMS = frozenset(_RSA).union(*_BY_CURVE.values())
"""All that a token may be signed with: none of them is symmetric, and none is "none"."""

PublicKey = RSAKey | ECKey | OKPKey


class BadKeySet(DurabillError):
    """What should be an issuer's JWK set is none, or has no key that a token can be checked by."""

    exit_code = 2


@dataclass(frozen=True, slots=True)
class IssuerKey:
    """One key, and the algorithms that it may be used with."""

    key: PublicKey
    algorithms: frozenset[str]


@dataclass(frozen=True, slots=True)
class IssuerKeys:
    """A JWK set's keys: `by_kid` those with an id, `all_keys` with those without."""

    by_kid: Mapping[str, tuple[IssuerKey, ...]]
    all_keys: tuple[IssuerKey, ...]

    def find(self, kid: str | None, algorithm: str) -> IssuerKey | None:
        """Return the one key that a token names, or, where it names none, the only one that fits.

        None where there is no such key, or more than one.
        """
        keys = self.all_keys if kid is None else self.by_kid.get(kid, ())
        fitting = [each for each in keys if algorithm in each.algorithms]
        return fitting[0] if len(fitting) == 1 else None


class _Set(msgspec.Struct):
    keys: list[Any]


def read_key_set(data: bytes) -> IssuerKeys:
    """Return the keys of a JWK set that tokens can be checked by; raise BadKeySet if it has none.

    What it has besides, such as keys for encryption, is left out, as RFC 7517 wants it.
    """
    try:
        found = msgspec.json.decode(data, type=_Set)
    except (ValueError, RecursionError) as error:
        raise BadKeySet(f"no JWK set: {error}") from error
    by_kid: dict[str, tuple[IssuerKey, ...]] = {}
    all_keys: list[IssuerKey] = []
    for fields in found.keys[:_KEYS_MAX]:
        key = _read_key(fields)
        if key is None:
            continue
        all_keys.append(key)
        if isinstance(kid := fields.get("kid"), str):
            by_kid[kid] = (*by_kid.get(kid, ()), key)
    if not all_keys:
        raise BadKeySet("the JWK set has no key that a signature can be checked by")
    return IssuerKeys(by_kid, tuple(all_keys))


def _read_key(fields: Any) -> IssuerKey | None:
    if not isinstance(fields, dict) or "d" in fields:
        return None
    kind, curve = fields.get("kty"), fields.get("crv")
    allowed = _RSA if kind == "RSA" else _BY_CURVE.get((str(kind), str(curve)))
    if not allowed or not _is_for_signatures(fields):
        return None
    named = fields.get("alg")
    algorithms = frozenset(each for each in allowed if named in (None, each))
    # The parameters that make the key, and nothing else that a set may say of it.
    names = ("kty", "crv", "n", "e", "x", "y")
    bare = {name: fields[name] for name in names if _is_text(fields.get(name))}
    try:
        key: PublicKey
        if kind == "RSA":
            key = RSAKey.import_key(bare)
            public = key.public_key
            if not isinstance(public, RSAPublicKey) or not (
                _RSA_BITS_MIN <= public.key_size <= _RSA_BITS_MAX
            ):
                return None
        else:
            key = ECKey.import_key(bare) if kind == "EC" else OKPKey.import_key(bare)
            _ = key.public_key  # made now: a point that isn't on the curve fails here
    except (JoseError, ValueError, TypeError, KeyError, OverflowError):
        return None
    return IssuerKey(key, algorithms) if algorithms else None


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_for_signatures(fields: Mapping[str, Any]) -> bool:
    operations = fields.get("key_ops")
    if operations is not None and not (isinstance(operations, list) and "verify" in operations):
        return False
    return fields.get("use") in (None, "sig")
