"""Who is let in by which header, what wrong ones cost, and what a gateway must be told first."""

import asyncio
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from durabill.producers.gateway.auth import access as access_module
from durabill.producers.gateway.auth import tokens as tokens_module
from durabill.producers.gateway.auth.access import (
    SLOW_LANE_PER_S,
    Access,
    AccessLimits,
    Clocks,
    Refused,
    TokenBook,
)
from durabill.producers.gateway.auth.api_keys import ApiKeyFile, encode_file, new_key
from durabill.producers.gateway.auth.config import AccessConfig, AuthMode, check_access
from durabill.producers.gateway.auth.gcra import NS_PER_S
from durabill.producers.gateway.auth.issuer import IssuerAway, KeyFile
from durabill.producers.gateway.auth.key_book import KeyBook
from durabill.producers.gateway.caller import ALL_SCOPES, Caller
from durabill.schemas.errors import SettingsError
from tests.unit.issuer_kit import NOW_S, RULES, Issuer

ISSUER = Issuer()
NOW_MS = NOW_S * 1_000
HERE = "192.0.2.7"
WRONG_KEY = "dbk_" + "0" * 12 + "_" + "0" * 64


class Now:
    def __init__(self) -> None:
        self.ns = NOW_S * NS_PER_S

    def __call__(self) -> int:
        return self.ns


class Door:
    """Access with one API key and one issuer, and a clock that stands still."""

    def __init__(self, folder: Path, mode: str = "keys+jwt", **limits: int) -> None:
        self.key, kept = new_key(
            "acme", "meters", ("report",), now_ms=NOW_MS, expires_ms=None, entropy=os.urandom
        )
        keys, jwks = folder / "keys", folder / "jwks"
        keys.write_bytes(encode_file(ApiKeyFile(1, (kept,))))
        jwks.write_bytes(ISSUER.key_set())
        for each in (keys, jwks):
            each.chmod(0o600)
        self.source = KeyFile(jwks)
        self.now = Now()
        self.access = Access(
            KeyBook(keys) if "keys" in mode else None,
            TokenBook(self.source, RULES) if "jwt" in mode else None,
            AccessLimits(**limits),
            Clocks(self.now, self.now),
        )

    def opens(self, *authorizations: str, address: str = HERE) -> Caller:
        return asyncio.run(self.access.caller(authorizations, address))

    def refuses(self, *authorizations: str, address: str = HERE) -> tuple[int, str]:
        with pytest.raises(Refused) as refused:
            self.opens(*authorizations, address=address)
        error = refused.value
        assert (error.retry_after_s is not None) == (error.status in (429, 503))
        return error.status, error.reason


UNAUTHORIZED = (401, "UNAUTHORIZED")
TOO_MANY = (429, "TOO_MANY_FAILURES")


def test_without_authentication_everybody_is_the_default_tenant() -> None:
    caller = asyncio.run(Access().caller(["whatever"], HERE))
    assert caller == Caller("default", HERE, ALL_SCOPES, "")
    assert Access().count(caller) is None


def test_keys_and_tokens_open(tmp_path: Path) -> None:
    door = Door(tmp_path)
    assert door.opens(f"Bearer {door.key}").tenant == "acme"
    assert door.opens(f"bearer   {door.key} ").tenant == "acme"
    assert door.opens(f"Bearer {ISSUER.token(tenant='other')}").tenant == "other"


@pytest.mark.parametrize(
    "shown",
    [
        (),
        ("",),
        ("Bearer",),
        ("Bearer ",),
        ("Basic YWNtZTphY21l",),
        (f"Bearer {WRONG_KEY}",),
        ("Bearer dbk_",),
        ("Bearer x.y.z",),
        ("Bearer é\udcff",),
        ("Bearer " + "é" * 3_000,),
        ("Bearer\u00a0" + WRONG_KEY,),
    ],
)
def test_what_opens_nothing(shown: Sequence[str], tmp_path: Path) -> None:
    assert Door(tmp_path).refuses(*shown) == UNAUTHORIZED


def test_two_headers_are_one_too_many(tmp_path: Path) -> None:
    """Whichever of them counts to a proxy on the way: here none does."""
    door = Door(tmp_path)
    good = f"Bearer {door.key}"
    for shown in ((good, good), (good, "Bearer x"), ("Bearer x", good)):
        assert door.refuses(*shown) == (400, "BAD_AUTHORIZATION")
    assert door.refuses(f"{good}, {good}") == UNAUTHORIZED


@pytest.mark.parametrize(("mode", "opens"), [("keys", "key"), ("jwt", "token")])
def test_a_mode_takes_its_own_kind_alone(mode: str, opens: str, tmp_path: Path) -> None:
    door = Door(tmp_path, mode)
    shown = {"key": f"Bearer {door.key}", "token": f"Bearer {ISSUER.token()}"}
    assert door.opens(shown.pop(opens)).tenant == "acme"
    (other,) = shown.values()
    assert door.refuses(other) == UNAUTHORIZED


# -- what wrong ones cost ------------------------------------------------------------------------


def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The tokens whose signatures are checked from now on."""
    checked: list[str] = []
    real = tokens_module.read_token

    def check(token: str, *others: Any) -> Any:
        checked.append(token)
        return real(token, *others)

    monkeypatch.setattr(access_module, "read_token", check)
    return checked


def test_a_signature_is_checked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    door, checked = Door(tmp_path), counted(monkeypatch)
    token = ISSUER.token(exp=NOW_S + 60)
    for _ in range(5):
        door.opens(f"Bearer {token}")
    assert len(checked) == 1
    door.source.generation += 1  # other keys: none of the old ones counts by itself
    door.opens(f"Bearer {token}")
    assert len(checked) == 2
    door.now.ns += 100 * NS_PER_S
    assert door.refuses(f"Bearer {token}") == UNAUTHORIZED


def test_guessing_is_slowed_by_address_and_takes_no_signature_checks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    door, checked = Door(tmp_path, failures_per_min=5), counted(monkeypatch)
    forgery = ISSUER.token()[:-4] + "AAAA"
    found = [door.refuses(f"Bearer {forgery}") for _ in range(5 + SLOW_LANE_PER_S + 20)]
    assert found == [UNAUTHORIZED] * 5 + [TOO_MANY] * (SLOW_LANE_PER_S + 20)
    assert len(checked) == 5 + SLOW_LANE_PER_S  # and so many more a second, of all addresses
    assert door.refuses(f"Bearer {WRONG_KEY}") == TOO_MANY
    assert door.refuses(f"Bearer {WRONG_KEY}", address="192.0.2.8") == UNAUTHORIZED
    door.now.ns += 12 * NS_PER_S
    assert door.refuses(f"Bearer {WRONG_KEY}") == UNAUTHORIZED


def test_who_guesses_shuts_nobody_out_that_shares_its_address(tmp_path: Path) -> None:
    """Behind a proxy all are one address."""
    door = Door(tmp_path, failures_per_min=1)
    known, new = ISSUER.token(jti="1"), ISSUER.token(jti="2")
    door.opens(f"Bearer {known}")
    for _ in range(3):
        door.refuses(f"Bearer {WRONG_KEY}")
    assert door.refuses(f"Bearer {WRONG_KEY}") == TOO_MANY
    for good in (door.key, known, new):
        assert door.opens(f"Bearer {good}").tenant == "acme"


def test_no_limit_where_none_is_wanted(tmp_path: Path) -> None:
    door = Door(tmp_path, failures_per_min=0, requests_per_s=0)
    caller = door.opens(f"Bearer {door.key}")
    for _ in range(100):
        assert door.refuses(f"Bearer {WRONG_KEY}") == UNAUTHORIZED
    assert door.access.count(caller) is None


def test_an_issuer_that_is_away_is_not_the_callers_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    door = Door(tmp_path)

    async def away() -> None:
        raise IssuerAway("the issuer of tokens can't be reached")

    monkeypatch.setattr(door.source, "keys", away)
    assert door.refuses(f"Bearer {ISSUER.token()}") == (503, "ISSUER_UNREACHABLE")
    assert door.opens(f"Bearer {door.key}").tenant == "acme"


def test_requests_are_counted_by_caller(tmp_path: Path) -> None:
    door = Door(tmp_path, requests_per_s=1)
    one = door.opens(f"Bearer {door.key}")
    other = door.opens(f"Bearer {ISSUER.token()}")  # of the same tenant and client
    taken = [door.access.count(one) for _ in range(11)]
    assert [each is not None and each.is_allowed for each in taken] == [True] * 10 + [False]
    last = door.access.count(other)
    assert last is not None
    assert (last.is_allowed, last.remaining) == (True, 9)


# -- what a gateway must be told -----------------------------------------------------------------


def problems(host: str = "127.0.0.1", **access: Any) -> list[str]:
    try:
        check_access(AccessConfig(**access), host)
    except SettingsError as error:
        return error.problems
    return []


TOKENS = {"issuer": "https://i", "audience": "a", "jwks_url": "https://i/jwks"}


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "192.0.2.1", "billing.example"])
def test_whoever_listens_elsewhere_says_who_may_ask(host: str, tmp_path: Path) -> None:
    (problem,) = problems(host)
    assert "DURABILL_GATEWAY_AUTH" in problem
    assert all(word in problem for word in ("keys", "jwt", "proxy", "127.0.0.1"))
    keys = tmp_path / "keys"
    modes: tuple[AuthMode, ...] = ("keys", "proxy")
    assert [problems(host, mode=mode, keys_file=keys) for mode in modes] == [[], []]
    assert problems(host, mode="jwt", **TOKENS) == []


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "127.1.2.3"])
def test_on_this_machine_nothing_has_to_be_said(host: str) -> None:
    assert problems(host) == []


@pytest.mark.parametrize(
    ("access", "named"),
    [
        ({"mode": "keys"}, ["API_KEYS_FILE"]),
        ({"mode": "jwt"}, ["JWT_ISSUER", "JWT_AUDIENCE", "JWKS_URL"]),
        ({"mode": "jwt", **TOKENS, "tenant_claim": ""}, ["JWT_TENANT_CLAIM"]),
        ({"mode": "jwt", **TOKENS, "jwks_file": Path("f")}, ["JWKS_FILE"]),
        ({"mode": "jwt", **TOKENS, "jwks_url": "http://i/jwks"}, ["https"]),
        ({"mode": "jwt", **TOKENS, "jwks_url": "http://127.0.0.1/jwks"}, []),
        ({"mode": "jwt", **TOKENS, "jwks_url": "file:///etc/passwd"}, ["no URL"]),
        ({"mode": "jwt", **TOKENS, "jwks_url": "https://"}, ["no URL"]),
        ({"mode": "jwt", **TOKENS, "jwks_url": "https://i:port/"}, ["no URL"]),
        ({"mode": "jwt", **TOKENS, "jwks_url": "https://a:geheim@i/"}, ["a password"]),
        ({"mode": "keys", "keys_file": Path("f"), **TOKENS}, ["takes no tokens"] * 3),
        (TOKENS, ["takes no tokens"] * 3),
    ],
)
def test_what_is_wrong_is_told_all_at_once(access: dict[str, Any], named: list[str]) -> None:
    found = problems(**access)
    assert len(found) == len(named)
    assert all(word in told for word, told in zip(named, found, strict=True))
    assert "geheim" not in "".join(found)


def test_no_text_of_what_opens_has_a_secret(tmp_path: Path) -> None:
    door, token = Door(tmp_path), ISSUER.token()
    shows: list[Callable[[], object]] = [
        lambda: door.opens(f"Bearer {door.key}"),
        lambda: door.opens(f"Bearer {token}"),
    ]
    texts = [repr(each()) for each in shows] + [repr(vars(door.access))]
    for shown in (f"Bearer {door.key}x", f"Basic {door.key}", f"Bearer {token}x", token):
        with pytest.raises(Refused) as refused:
            door.opens(shown)
        texts.append(repr(refused.value) + str(refused.value) + refused.value.detail)
    secrets = (door.key.rpartition("_")[2], token.rpartition(".")[2], token.split(".")[1])
    assert not [secret for secret in secrets for text in texts if secret in text]
