"""Names, paths and pages of the web servers, against naive oracles."""

import json
from typing import Any

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from durabill.producers.gateway.checks import _foreign
from durabill.producers.sdk.http_uplink import quote_order_number
from durabill.schemas import BadRecord, check_order_number
from durabill.schemas.web import (
    PAGE_DEFAULT,
    PAGE_MAX,
    AllowedHosts,
    Page,
    cut_page,
    host_name,
    is_loopback,
    is_same_origin,
    names_another,
    number_in_path,
    read_page,
    reason_of,
)

LOOPBACK = ["localhost", "localhost:8080", "LOCALHOST", "localhost.", "127.0.0.1:1", "[::1]:8080"]
STRANGERS = [
    "evil.example",
    "evil.example:8080",
    "127.0.0.1.evil.example",
    "localhost.evil",
    "",
    "*",
]


@pytest.mark.parametrize("local", ["127.0.0.1", "::1", "::ffff:127.0.0.1"])
def test_on_the_loopback_its_names_are_ours_and_no_others(local: str) -> None:
    hosts = AllowedHosts("127.0.0.1")
    assert [name for name in LOOPBACK if not hosts.allows(name, local)] == []
    assert [name for name in STRANGERS if hosts.allows(name, local)] == []


def test_elsewhere_the_address_that_was_called_is_ours() -> None:
    hosts = AllowedHosts("0.0.0.0", ["Billing.Example", ""])
    assert hosts.allows("10.0.0.5:8080", "10.0.0.5")
    assert hosts.allows("[fe80::1]", "fe80::1%eth0")
    assert hosts.allows("billing.example:443", "10.0.0.5")
    assert not hosts.allows("10.0.0.6", "10.0.0.5")
    assert not hosts.allows("localhost", "10.0.0.5")
    assert not hosts.allows("www.billing.example", "10.0.0.5")
    assert AllowedHosts("0.0.0.0", ["*"]).allows("evil.example", "10.0.0.5")


@pytest.mark.parametrize("host", ["a b", "a/b", "a@b", "user@localhost", "a:b", "[::1", "a:80:80"])
def test_what_is_no_host(host: str) -> None:
    assert host_name(host) is None
    assert not AllowedHosts("localhost").allows(host, "127.0.0.1")


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        *[(each, True) for each in ("127.0.0.1", "127.9.9.9", "::1", "localhost")],
        *[(each, False) for each in ("0.0.0.0", "::", "", "10.0.0.1", "myhost")],
    ],
)
def test_which_addresses_are_for_this_machine_alone(host: str, expected: bool) -> None:
    assert is_loopback(host) == expected


@pytest.mark.parametrize(
    ("origin", "host", "expected"),
    [
        ("http://localhost:8080", "localhost:8080", True),
        ("http://LOCALHOST:8080", "localhost:8080", True),
        ("https://billing.example", "billing.example", True),
        ("https://billing.example", "billing.example:443", True),
        ("http://[::1]:80", "[::1]", True),
        ("http://localhost:3000", "localhost:8080", False),
        ("http://localhost", "127.0.0.1", False),
        ("http://evil.example", "localhost:8080", False),
        ("http://localhost:8080.evil.example", "localhost:8080", False),
        ("null", "localhost:8080", False),
        ("", "localhost", False),
        ("file://", "localhost", False),
        ("chrome-extension://localhost", "localhost", False),
        ("http://[::1", "localhost", False),
        ("http://a\u2100b", "localhost", False),
    ],
)
def test_same_origin(origin: str, host: str, expected: bool) -> None:
    assert is_same_origin(origin, host) == expected


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("/v1/time", False),
        ("*", False),
        ("/v1/orders/http://evil.example/", False),
        ("http://h:80/v1/time", False),
        ("http://H:80?x", False),
        ("HTTP://h:80", False),
        ("http://h/v1/time", True),
        ("http://evil.example/v1/time", True),
        ("http://user@h:80/v1/time", True),
        ("http://h:80@evil.example/", True),
    ],
)
def test_a_target_that_names_another_than_the_host(target: str, expected: bool) -> None:
    assert names_another(target, "h:80") is expected


def test_every_legal_number_survives_a_path() -> None:
    for point in [*range(0x3000), 0xD7FF, 0xE000, 0xFEFF, 0xFFFD, 0xFFFF, 0x1F600, 0x10FFFF]:
        for number in (chr(point), f"a{chr(point)}b", chr(point) * 2):
            try:
                check_order_number(number)
            except BadRecord:
                continue
            path = f"/v1/orders/{quote_order_number(number)}/segments"
            assert number == number_in_path(path, "/v1/orders/")


@pytest.mark.parametrize("raw", ["", "%FF", "%C3", "%00", "%ED%A0%80", "x" * 65])
def test_illegal_numbers_in_a_path(raw: str) -> None:
    with pytest.raises(BadRecord, match="BAD_ORDER_NUMBER"):
        number_in_path(f"/orders/{raw}", "/orders/")


@pytest.mark.parametrize(
    "query",
    [{"limit": each} for each in ("0", "-1", "10001", "1.0", "", "x", "1" * 5_000, " 1", "\u0661")]
    + [{"after": each} for each in ("", "1", "1.", ".1", "-2.0", "1.-1", "1.1.1", "9" * 5_000)],
)
def test_pages_that_there_are_not(query: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"limit is 1 to 10000|after is what"):
        read_page(query)


def test_pages_at_their_limits() -> None:
    assert Page(PAGE_DEFAULT, -1, 0) == read_page({})
    assert Page(1, 5, 7) == read_page({"limit": "1", "after": "5.7"})
    assert read_page({"limit": "10000"}).limit == PAGE_MAX


@given(
    st.sets(st.integers(0, 200), max_size=30),
    st.sets(st.integers(1, 200), max_size=30),
    st.integers(1, 40),
    st.booleans(),
)
def test_all_pages_together_are_the_order(
    starts: set[int], firsts: set[int], limit: int, as_dicts: bool
) -> None:
    def item(names: tuple[str, str], first: int) -> Any:
        pair = (first, first + 1)
        return dict(zip(names, pair, strict=True)) if as_dicts else list(pair)

    order = {
        "phase": "OPEN",
        "intervals": [item(("start_ms", "end_ms"), each) for each in sorted(starts)],
        "missing_numbers": [item(("first", "last"), each) for each in sorted(firsts)],
    }
    intervals: list[Any] = []
    missing: list[Any] = []
    query, pages = {"limit": str(limit)}, 0
    while True:
        page = cut_page(order, read_page(query))
        pages += 1
        assert ("OPEN", len(starts), len(firsts)) == (
            page["phase"],
            page["interval_count"],
            page["missing_range_count"],
        )
        assert max(len(page["intervals"]), len(page["missing_numbers"])) <= limit
        intervals += page["intervals"]
        missing += page["missing_numbers"]
        if page["next"] is None:
            break
        query["after"] = page["next"]
    assert (order["intervals"], order["missing_numbers"]) == (intervals, missing)
    longest = max(len(starts), len(firsts))
    assert max(1, -(-longest // limit)) == pages


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (web.HTTPNotFound(reason="Other Words"), "NOT_FOUND"),
        (web.HTTPMethodNotAllowed("POST", ["GET"], reason="Other"), "METHOD_NOT_ALLOWED"),
        (
            web.HTTPRequestEntityTooLarge(1, 2, reason="Other"),
            "REQUEST_ENTITY_TOO_LARGE",
        ),
        (web.HTTPNotAcceptable(), "HTTP_406"),
    ],
)
def test_reason_of_an_error_is_the_same_on_every_python(
    error: web.HTTPException, reason: str
) -> None:
    answer = _foreign(error)
    assert isinstance(answer.body, bytes)
    assert reason == json.loads(answer.body)["reason"] == reason_of(answer.status)
