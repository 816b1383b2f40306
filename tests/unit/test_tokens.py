"""Access tokens of RFC 9068: those of somebody else's library are taken, forged ones are not."""

import base64
import hashlib
import hmac
import json
from typing import Any

import pytest

from durabill.producers.gateway.auth.issuer_keys import ALGORITHMS, BadKeySet, read_key_set
from durabill.producers.gateway.auth.tokens import (
    LEEWAY_S,
    TOKEN_CHARS_MAX,
    BadToken,
    read_head,
)
from durabill.producers.gateway.caller import Caller
from tests.unit.issuer_kit import (
    NOW_S,
    Issuer,
    caller_by,
    forged,
    jwk_of,
    private_key,
    resigned,
)

ISSUER = Issuer()
SET = ISSUER.key_set()


@pytest.mark.parametrize("algorithm", sorted(ALGORITHMS - {"Ed25519"}))
def test_tokens_of_another_library_are_taken(algorithm: str) -> None:
    issuer = Issuer(algorithm)
    expected = Caller("acme", "meters", frozenset({"report", "read"}), "jwt:acme:meters")
    assert caller_by(issuer.token(), issuer.key_set()) == expected


def test_the_newer_name_of_eddsa_is_taken() -> None:
    """RFC 9864 calls it Ed25519; PyJWT doesn't yet, so the head is written here."""
    issuer = Issuer("EdDSA")
    claims = issuer.token().split(".")[1]
    head = json.dumps({"alg": "Ed25519", "typ": "at+jwt", "kid": "k1"}).encode()
    signed = f"{base64.urlsafe_b64encode(head).rstrip(b'=').decode()}.{claims}"
    signature = base64.urlsafe_b64encode(issuer.key.sign(signed.encode())).rstrip(b"=").decode()
    assert caller_by(f"{signed}.{signature}", issuer.key_set()) is not None


def refused(token: str, key_set: bytes = SET, now_s: float = NOW_S) -> str:
    with pytest.raises(BadToken) as error:
        caller_by(token, key_set, now_s)
    return error.value.detail


@pytest.mark.parametrize(
    ("claims", "why"),
    [
        ({"iss": "https://issuer.example/"}, "another issuer"),
        ({"iss": "https://ISSUER.example"}, "another issuer"),
        ({"iss": None}, "claims"),
        ({"aud": "other"}, "another audience"),
        ({"aud": ["other", "billing2"]}, "another audience"),
        ({"aud": []}, "another audience"),
        ({"aud": None}, "claims"),
        ({"exp": None}, "claims"),
        ({"exp": NOW_S - LEEWAY_S}, "expired"),
        ({"nbf": NOW_S + LEEWAY_S + 1}, "not hold yet"),
        ({"iat": NOW_S + LEEWAY_S + 1}, "not hold yet"),
        ({"sub": None}, "claims"),
        ({"tenant": None}, "no tenant's name"),
        ({"tenant": ["acme"]}, "no tenant's name"),
        ({"tenant": "a:b"}, "no tenant's name"),
        ({"tenant": "acme\n"}, "no tenant's name"),
        ({"scope": 5}, "claims"),
        ({"client_id": 5}, "claims"),
        ({"client_id": None, "sub": ""}, "no client"),
    ],
)
def test_what_a_token_must_say(claims: dict[str, Any], why: str) -> None:
    assert why in refused(ISSUER.token(**claims))


@pytest.mark.parametrize(
    "expires", ["1700000300", True, -1, 10**16, 10**400, float("inf"), float("nan"), [], {}]
)
def test_an_end_that_is_no_time(expires: object) -> None:
    """PyJWT signs what it is given; JSON of Python's knows Infinity and NaN."""
    token = Issuer(key=ISSUER.key).token()
    head, _, _ = token.split(".")
    claims = json.loads(base64.urlsafe_b64decode(token.split(".")[1] + "=="))
    body = base64.urlsafe_b64encode(json.dumps({**claims, "exp": expires}).encode())
    signed = f"{head}.{body.rstrip(b'=').decode()}"
    from jwt.algorithms import ECAlgorithm

    raw = ECAlgorithm(ECAlgorithm.SHA256).sign(signed.encode(), ISSUER.key)
    forgery = f"{signed}.{base64.urlsafe_b64encode(raw).rstrip(b'=').decode()}"
    assert "claims" in refused(forgery) or "no times" in refused(forgery)


def test_times_within_the_leeway_are_taken() -> None:
    late, early = NOW_S + LEEWAY_S, NOW_S - LEEWAY_S + 1
    assert caller_by(ISSUER.token(exp=early), SET) is not None
    assert caller_by(ISSUER.token(exp=NOW_S + 0.5, nbf=late, iat=late), SET) is not None


def test_scopes_are_ours_alone() -> None:
    for scope, expected in {
        "report openid admin": {"report", "admin"},
        "": set(),
        "REPORT reports": set(),
        "report\u00a0admin read\tadmin": set(),  # one name each: only blanks are between two
    }.items():
        caller = caller_by(ISSUER.token(scope=scope), SET)
        assert caller is not None
        assert caller.scopes == expected


def test_a_long_or_strange_client_gets_a_name_of_its_own() -> None:
    names = ["c" * 200, "c" * 201, "a\u2028b", "\U0001f600" * 40, "client-7"]
    clients = []
    for name in names:
        caller = caller_by(ISSUER.token(client_id=name), SET)
        assert caller is not None
        assert len(caller.client.encode()) <= 64
        clients.append(caller.client)
    assert len(set(clients)) == len(names)
    assert clients[-1] == "client-7"


# -- attacks -------------------------------------------------------------------------------------

HEAD = {"alg": "ES256", "typ": "at+jwt", "kid": "k1"}


@pytest.mark.parametrize("typ", [None, "JWT", "at", "at+jwt ", "application/jwt", "lease+jwt"])
def test_only_access_tokens_are_taken(typ: str | None) -> None:
    """An id token, or one for another use, is signed by the same issuer with the same key."""
    token = ISSUER.token({"typ": typ} if typ else {"typ": "JWT"})
    assert "at+jwt" in refused(token) or "typ" in refused(token)


@pytest.mark.parametrize("typ", ["AT+JWT", "application/at+jwt"])
def test_a_media_type_is_taken_in_each_of_its_forms(typ: str) -> None:
    assert caller_by(ISSUER.token({"typ": typ}), SET) is not None


@pytest.mark.parametrize(
    "algorithm", ["none", "None", "NONE", "", "HS256", "HS512", "RS1", "ES256K"]
)
def test_algorithms_that_are_not_taken(algorithm: str) -> None:
    assert "algorithm" in refused(resigned(ISSUER.token(), {**HEAD, "alg": algorithm}, b"x"))


def test_a_public_key_is_no_secret_to_sign_with() -> None:
    """The old trick: HS256, with the issuer's public key as the secret."""
    issuer = Issuer("RS256")
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    pem = issuer.key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    head = {**HEAD, "alg": "HS256"}
    unsigned = resigned(issuer.token(), head, b"x").rpartition(".")[0]
    signature = hmac.digest(pem, unsigned.encode(), hashlib.sha256)
    assert "algorithm" in refused(resigned(issuer.token(), head, signature), issuer.key_set())


def test_an_algorithm_that_is_not_the_keys_finds_no_key() -> None:
    for algorithm in ("RS256", "ES384", "EdDSA"):
        assert (
            caller_by(resigned(ISSUER.token(), {**HEAD, "alg": algorithm}, b"x" * 64), SET) is None
        )


@pytest.mark.parametrize("signature", [b"\0" * 64, b"x" * 64, b"x", b"\0" * 63, b"\xff" * 96])
def test_signatures_that_are_not_the_issuers(signature: bytes) -> None:
    assert "signature" in refused(resigned(ISSUER.token(), HEAD, signature))


def test_changed_claims_are_not_the_issuers() -> None:
    mine, other = ISSUER.token(tenant="acme"), ISSUER.token(tenant="victim")
    head, _, signature = mine.split(".")
    assert "signature" in refused(f"{head}.{other.split('.')[1]}.{signature}")


def test_what_a_header_offers_is_not_looked_at() -> None:
    """A key, a set or a certificate of the sender's own; a kid that is a path or a query."""
    mine = Issuer()
    for offered in (
        {"jwk": jwk_of(mine.key)},
        {"jku": "https://evil.example/jwks.json"},
        {"x5u": "https://evil.example/"},
        {"x5c": ["MIIB"]},
    ):
        assert "signature" in refused(mine.token(offered))
    for kid in ("../../etc/passwd", "/dev/null", "k1' OR '1'='1", "k1\0", "K1", "", "k" * 1_000):
        assert caller_by(mine.token({"kid": kid}), SET) is None


@pytest.mark.parametrize("critical", [["exp"], ["b64"], [], None, "b64"])
def test_what_must_be_understood_is_not(critical: object) -> None:
    assert "crit" in refused(resigned(ISSUER.token(), {**HEAD, "crit": critical}, b"x"))


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "..",
        "a.b",
        "a.b.c.d",
        "a.b.c.d.e",  # an encrypted one
        "a.b.c ",
        "a.b.c\n",
        "é.b.c",
        "\udcff.b.c",
        "a.b.c=",
        "W10.e30.x",
        base64.urlsafe_b64encode(b'{"alg":5,"typ":"at+jwt"}').decode().rstrip("=") + ".e30.x",
        base64.urlsafe_b64encode(b"[" * 3_000).decode().rstrip("=") + ".e30.x",
        "a" * TOKEN_CHARS_MAX + ".b.c",
    ],
)
def test_what_is_no_token(text: str) -> None:
    with pytest.raises(BadToken):
        read_head(text)


def test_a_payload_without_end_of_nesting_is_refused() -> None:
    deep = base64.urlsafe_b64encode(b'{"a":' * 800 + b"1" + b"}" * 800).rstrip(b"=").decode()
    assert "signature" in refused(f"{forged(HEAD, {}).split('.')[0]}.{deep}.eHg")


# -- the issuer's keys ---------------------------------------------------------------------------


def test_the_key_set_that_rfc_7517_gives() -> None:
    """Appendix A.1: an EC key for encryption, which checks nothing, and an RSA key for RS256."""
    modulus = (
        "0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECP"
        "ebWKRXjBZCiFV4n3oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY"
        "368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0f"
        "M4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw"
    )
    keys = {
        "keys": [
            {
                "kty": "EC",
                "crv": "P-256",
                "x": "MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4",
                "y": "4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM",
                "use": "enc",
                "kid": "1",
            },
            {"kty": "RSA", "n": modulus, "e": "AQAB", "alg": "RS256", "kid": "2011-04-29"},
        ]
    }
    found = read_key_set(json.dumps(keys).encode())
    assert [set(each.algorithms) for each in found.all_keys] == [{"RS256"}]
    assert found.find("2011-04-29", "RS256") is found.find(None, "RS256")
    assert found.find("1", "ES256") is None
    assert found.find("2011-04-29", "PS256") is None


def test_the_key_that_rfc_8037_gives_checks_its_signature() -> None:
    """Appendix A: a public key, and a JWS of Ed25519."""
    key = {"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}
    found = read_key_set(json.dumps({"keys": [key]}).encode()).find(None, "EdDSA")
    assert found is not None
    signed = "eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc"
    signature = (
        "hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg"
    )
    raw = base64.urlsafe_b64decode(signature + "==")
    public: Any = found.key.public_key
    public.verify(raw, signed.encode())


EC = jwk_of(private_key("ES256"))
RSA = jwk_of(private_key("RS256"))
SMALL_RSA = {"kty": "RSA", "e": "AQAB", "n": base64.urlsafe_b64encode(b"\xc1" * 128).decode()}
HUGE_RSA = {"kty": "RSA", "e": "AQAB", "n": base64.urlsafe_b64encode(b"\xc1" * 2_048).decode()}


@pytest.mark.parametrize(
    "key",
    [
        {"kty": "oct", "k": "c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0"},
        {**EC, "use": "enc"},
        {**EC, "key_ops": ["sign"]},
        {**EC, "key_ops": "verify"},
        {**EC, "alg": "HS256"},
        {**EC, "alg": "none"},
        {**EC, "d": "c2VjcmV0"},
        {**EC, "crv": "P-384"},
        {**EC, "crv": "secp256k1"},
        {**EC, "crv": ["P-256"]},
        {**EC, "x": EC["y"]},  # no point of the curve
        {**EC, "kty": "RSA"},
        {**RSA, "n": ""},
        {**RSA, "n": 5},
        {**RSA, "e": "AA"},
        SMALL_RSA,
        HUGE_RSA,
        {"kty": "OKP", "crv": "Ed25519", "x": "AA"},
        {"kty": "OKP", "crv": "X25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"},
        {},
        "key",
        None,
    ],
)
def test_keys_that_check_nothing_are_left_out(key: object) -> None:
    good = {**EC, "kid": "good"}
    found = read_key_set(json.dumps({"keys": [key, good]}).encode())
    assert len(found.all_keys) == 1
    with pytest.raises(BadKeySet, match="no key"):
        read_key_set(json.dumps({"keys": [key]}).encode())


@pytest.mark.parametrize(
    "data", [b"", b"{}", b"[]", b'{"keys": {}}', b'{"keys": []}', b"<html>", b"[" * 100_000]
)
def test_what_is_no_key_set(data: bytes) -> None:
    with pytest.raises(BadKeySet):
        read_key_set(data)


def test_a_token_without_a_kid_needs_the_only_key_that_fits() -> None:
    issuer = Issuer(kid=None)
    assert caller_by(issuer.token(), issuer.key_set()) is not None
    issuer.more_keys = [jwk_of(private_key("ES384"))]  # of another algorithm
    assert caller_by(issuer.token(), issuer.key_set()) is not None
    issuer.more_keys = [jwk_of(private_key("ES256"))]
    assert caller_by(issuer.token(), issuer.key_set()) is None


def test_two_keys_of_one_name_are_told_apart_by_algorithm_alone() -> None:
    issuer = Issuer()
    issuer.more_keys = [jwk_of(private_key("EdDSA"), kid="k1")]
    assert caller_by(issuer.token(), issuer.key_set()) is not None
    issuer.more_keys = [jwk_of(private_key("ES256"), kid="k1")]
    assert caller_by(issuer.token(), issuer.key_set()) is None
