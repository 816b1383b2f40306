"""An OAuth2 issuer of our own for tests: its tokens are PyJWT's, which shares no code with ours."""

import base64
import json
from dataclasses import dataclass, field
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from durabill.producers.gateway.auth.issuer_keys import read_key_set
from durabill.producers.gateway.auth.tokens import TokenRules, read_head, read_token
from durabill.producers.gateway.caller import Caller

NOW_S = 1_700_000_000
RULES = TokenRules("https://issuer.example", "billing", "tenant")
CURVES: dict[str, ec.EllipticCurve] = {
    "ES256": ec.SECP256R1(),
    "ES384": ec.SECP384R1(),
    "ES512": ec.SECP521R1(),
}
_RSA = rsa.generate_private_key(65_537, 2_048)  # takes long: one for all
PrivateKey = Any


def private_key(algorithm: str) -> PrivateKey:
    """A new key for an algorithm; of RSA there is one."""
    if algorithm in CURVES:
        return ec.generate_private_key(CURVES[algorithm])
    return ed25519.Ed25519PrivateKey.generate() if algorithm == "EdDSA" else _RSA


def jwk_of(key: PrivateKey, **fields: object) -> dict[str, Any]:
    """The public half of a key as a JWK."""
    kinds: tuple[tuple[type, Any], ...] = (
        (ec.EllipticCurvePrivateKey, ECAlgorithm),
        (rsa.RSAPrivateKey, RSAAlgorithm),
        (object, OKPAlgorithm),
    )
    kind = next(kind for of, kind in kinds if isinstance(key, of))
    found = json.loads(kind.to_jwk(key.public_key()))
    found.pop("key_ops", None)
    return {**found, **fields}


@dataclass
class Issuer:
    """Signs tokens with one key, whose public half is in its set as `kid`."""

    algorithm: str = "ES256"
    kid: str | None = "k1"
    key: PrivateKey = None
    more_keys: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.key = self.key or private_key(self.algorithm)

    def key_set(self) -> bytes:
        """Its JWK set."""
        named = {} if self.kid is None else {"kid": self.kid}
        return json.dumps({"keys": [jwk_of(self.key, **named), *self.more_keys]}).encode()

    def token(self, headers: dict[str, Any] | None = None, **claims: Any) -> str:
        """A token that is right but for what is given; None leaves a claim or a header out."""
        right = {
            "iss": RULES.issuer,
            "aud": RULES.audience,
            "exp": NOW_S + 300,
            "iat": NOW_S,
            "sub": "meters",
            "client_id": "meters",
            "jti": "1",
            "tenant": "acme",
            "scope": "report read",
        }
        payload = {name: each for name, each in {**right, **claims}.items() if each is not None}
        head = {"typ": "at+jwt", "kid": self.kid, **(headers or {})}
        head = {name: each for name, each in head.items() if each is not None}
        return jwt.encode(payload, self.key, algorithm=self.algorithm, headers=head)


def caller_by(token: str, key_set: bytes, now_s: float = NOW_S) -> Caller | None:
    """Who shows a token, by a JWK set; None where no key fits."""
    head = read_head(token)
    key = read_key_set(key_set).find(head.kid, head.alg)
    return None if key is None else read_token(token, head, key, RULES, now_s)[0]


def forged(head: dict[str, Any], payload: dict[str, Any], signature: bytes = b"") -> str:
    """A token with these parts, whatever they are."""
    parts = [json.dumps(head).encode(), json.dumps(payload).encode(), signature or b"x"]
    return ".".join(base64.urlsafe_b64encode(each).rstrip(b"=").decode() for each in parts)


def resigned(token: str, head: dict[str, Any], signature: bytes) -> str:
    """A token's claims under another head, with this signature."""
    raw = base64.urlsafe_b64encode(json.dumps(head).encode()).rstrip(b"=").decode()
    end = base64.urlsafe_b64encode(signature).rstrip(b"=").decode()
    return f"{raw}.{token.split('.')[1]}.{end}"
