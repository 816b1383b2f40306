"""Whatever is shown in place of a key or a token: it is refused, and nothing else happens."""

import asyncio
import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from durabill.producers.gateway.auth.access import Refused
from durabill.producers.gateway.auth.api_keys import id_of
from durabill.producers.gateway.auth.issuer_keys import BadKeySet, read_key_set
from durabill.producers.gateway.auth.tokens import BadToken, read_head
from tests.unit.issuer_kit import Issuer, caller_by, jwk_of, private_key
from tests.unit.test_access import Door

ISSUERS = {algorithm: Issuer(algorithm) for algorithm in ("ES256", "RS256", "EdDSA")}
TOKENS = {algorithm: issuer.token() for algorithm, issuer in ISSUERS.items()}
SETS = {algorithm: issuer.key_set() for algorithm, issuer in ISSUERS.items()}
BASE64 = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
CHARACTERS = st.sampled_from([*BASE64, ".", "=", "+", "/", " ", "\n", "\0", "é", "\udcff"])

names = st.text(max_size=6)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda each: st.lists(each, max_size=3) | st.dictionaries(names, each, max_size=3),
    max_leaves=6,
)


@given(st.sampled_from(sorted(TOKENS)), st.data())
def test_a_token_that_is_changed_anywhere_is_refused(algorithm: str, data: st.DataObject) -> None:
    token = TOKENS[algorithm]
    at = data.draw(st.integers(0, len(token) - 1))
    put = data.draw(CHARACTERS)
    cut = data.draw(st.integers(at, min(len(token), at + 3)))
    changed = token[:at] + put + token[cut:]
    try:
        found = caller_by(changed, SETS[algorithm])
    except BadToken:
        return
    # The last character of base64 has bits that mean nothing: the signature is the same then.
    assert found is None or _bytes_of(changed) == _bytes_of(token)


def _bytes_of(token: str) -> list[bytes]:
    return [base64.urlsafe_b64decode(each + "=" * (-len(each) % 4)) for each in token.split(".")]


@given(
    st.fixed_dictionaries(
        {}, optional=dict.fromkeys(("alg", "typ", "kid", "crit", "jwk", "b64"), values)
    )
)
def test_any_header_is_read_or_refused(head: dict[str, Any]) -> None:
    raw = base64.urlsafe_b64encode(json.dumps({"typ": "at+jwt", "alg": "ES256", **head}).encode())
    token = f"{raw.rstrip(b'=').decode()}.e30.c2ln"
    try:
        assert caller_by(token, SETS["ES256"]) is None
    except BadToken:
        return


@given(st.text(CHARACTERS, max_size=60))
def test_any_text_is_no_token_and_no_key(text: str) -> None:
    with pytest.raises(BadToken):
        read_head(text)
    assert id_of(text) is None


EC = jwk_of(private_key("ES256"))


@given(st.dictionaries(st.sampled_from([*EC, "use", "key_ops", "alg", "kid", "n", "e"]), values))
def test_any_key_set_is_read_or_refused(changes: dict[str, Any]) -> None:
    key = {**EC, **changes}
    try:
        found = read_key_set(json.dumps({"keys": [key]}).encode())
    except BadKeySet:
        return
    assert all(each.algorithms == {"ES256"} for each in found.all_keys)


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Door:
    return Door(tmp_path_factory.mktemp("door"), failures_per_min=0)


@given(
    st.lists(
        st.tuples(st.sampled_from(["", "Bearer ", "bearer ", "Bearer dbk_", "Basic "]), st.text())
    )
)
def test_any_headers_are_refused(door: Door, headers: list[tuple[str, str]]) -> None:
    shown = [scheme + text for scheme, text in headers]
    with pytest.raises(Refused) as refused:
        asyncio.run(door.access.caller(shown, "192.0.2.1"))
    assert refused.value.status in (400, 401)
