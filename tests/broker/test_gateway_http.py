"""The gateway against hostile HTTP: what it refuses, and that refusing is cheap and quiet."""

import contextlib
import gzip
import io
import json
import socket
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

from durabill.producers.gateway.api import ERRORS_MAX, SEGMENTS_MAX, read_order
from durabill.producers.gateway.server import GatewayConfig
from durabill.producers.gateway.web_server import DISCARD_BYTES_MAX
from durabill.producers.sdk.http_uplink import quote_order_number
from durabill.schemas import BadRecord, check_order_number
from tests.broker.gateway_kit import call, exchange, gateway
from tests.waiting import HANG_S

NOTHING_HERE = "127.0.0.1:1"  # a port that nobody listens on
SEGMENTS = "/v1/orders/SO1/segments"
BODY = json.dumps(
    {"business_data_number": 1, "start_ms": 0, "end_ms": 5, "end_identifier": False}
).encode()
WRONG = b'{"business_data_number": 1, "start_ms": 0, "end_ms": 0, "end_identifier": false}'
"""Refused with 422 by the last check before Kafka: whoever gets 422 came through all the others."""


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """For what is answered before Kafka is asked."""
    with gateway(GatewayConfig({"bootstrap.servers": NOTHING_HERE})) as base_url:
        yield base_url


def refusal(
    url: str, headers: dict[str, str], body: bytes | None = WRONG, method: str = "POST"
) -> tuple[int, str]:
    path = SEGMENTS if method == "POST" else "/v1/time"
    status, answer, _ = call(url, method, path, body, headers)
    return status, answer["reason"] if status >= 400 else ""


# -- bodies


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd", "x", "identity, gzip", "GZIP"])
def test_coded_bodies_are_refused(url: str, coding: str) -> None:
    headers = {"content-encoding": coding}
    assert refusal(url, headers, gzip.compress(WRONG)) == (415, "CONTENT_ENCODING")


def test_identity_is_no_coding(url: str) -> None:
    assert refusal(url, {"content-encoding": "identity"}) == (422, "BAD_SEGMENTS")


def test_a_bomb_is_never_unpacked(url: str) -> None:
    bomb = gzip.compress(b"[" + b" " * 200_000_000, 1)
    assert 500_000 < len(bomb) < 1_048_576
    before_s = time.process_time()
    for _ in range(5):
        assert refusal(url, {"content-encoding": "gzip"}, bomb) == (415, "CONTENT_ENCODING")
    refused_s = time.process_time() - before_s
    for _ in range(5):
        with gzip.open(io.BytesIO(bomb)) as unpacked:
            while unpacked.read(1 << 20):
                pass
    unpacked_s = time.process_time() - before_s - refused_s
    assert refused_s < unpacked_s / 2


@pytest.mark.parametrize(
    "kind",
    ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "",
     "application/jsonp", "application/json; charset=latin-1", "json"],
)  # fmt: skip
def test_other_types_are_refused(url: str, kind: str) -> None:
    assert refusal(url, {"content-type": kind}) == (415, "CONTENT_TYPE")


@pytest.mark.parametrize(
    "kind", ["application/json", "Application/JSON", 'application/json; charset="UTF-8"']
)
def test_json_is_taken(url: str, kind: str) -> None:
    assert refusal(url, {"content-type": kind}) == (422, "BAD_SEGMENTS")


def test_a_body_needs_its_type_and_no_body_needs_none(url: str) -> None:
    head = f"POST /v1/orders HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(BODY)}\r\n\r\n"
    answer = exchange(url, head.encode() + BODY, wait_for_end=False)
    assert answer.startswith(b"HTTP/1.1 415 ")
    assert call(url, "POST", "/v1/orders/SO1/lease")[0] == 401
    form = {"content-type": "application/x-www-form-urlencoded"}
    assert call(url, "POST", "/v1/orders", None, form)[0] == 415


def test_a_body_that_says_that_it_is_too_long_is_refused_by_its_head(url: str) -> None:
    head = (
        f"POST {SEGMENTS} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        "content-length: 1048577\r\n\r\n"
    )
    answer = exchange(url, head.encode(), wait_for_end=False)
    assert answer.startswith(b"HTTP/1.1 413 ")
    chunked = head.replace("content-length: 1048577", "transfer-encoding: chunked").encode()
    chunk = b"%x\r\n%s\r\n" % (1_048_577, b"[" * 1_048_577)
    assert exchange(url, chunked + chunk, wait_for_end=False).startswith(b"HTTP/1.1 413 ")


def test_after_a_refusal_little_is_still_read(url: str) -> None:
    head = (
        f"POST {SEGMENTS} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        "content-length: 1000000000\r\n\r\n"
    )
    parts = urlsplit(url)
    sent = 0
    with socket.create_connection((parts.hostname, parts.port), timeout=HANG_S) as connection:
        connection.sendall(head.encode())
        with contextlib.suppress(ConnectionError):
            while sent < 1_000_000_000:
                sent += connection.send(b"x" * 65_536)
    assert sent < DISCARD_BYTES_MAX + 16_000_000, "the rest is what the system's buffers hold"


def test_expectations_are_answered_before_the_body(url: str) -> None:
    head = (
        f"POST {SEGMENTS} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(WRONG)}\r\n"
        "content-type: application/json\r\nexpect: 100-continue\r\n"
    ).encode()
    good = exchange(url, head + b"\r\n" + WRONG, wait_for_end=False)
    assert good.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 422 ")
    refused = exchange(url, head + b"content-encoding: gzip\r\n\r\n", wait_for_end=False)
    assert refused.startswith(b"HTTP/1.1 415 ")


def test_batches_at_their_limit(url: str) -> None:
    for count, expected in ((SEGMENTS_MAX, 422), (SEGMENTS_MAX + 1, 413)):
        body = b"[" + b",".join([WRONG] * count) + b"]"
        status, answer, _ = call(url, "POST", SEGMENTS, body)
        assert status == expected
        if status == 413:
            assert answer["reason"] == "TOO_MANY_SEGMENTS"


@pytest.mark.parametrize("count", [1, ERRORS_MAX, ERRORS_MAX + 1, SEGMENTS_MAX])
def test_of_many_errors_the_first_are_listed_and_all_counted(url: str, count: int) -> None:
    body = b"[" + b",".join([WRONG] * count) + b"]"
    status, answer, _ = call(url, "POST", SEGMENTS, body)
    assert status == 422
    assert count == answer["error_count"]
    assert list(range(min(count, ERRORS_MAX))) == [each["index"] for each in answer["errors"]]


def test_whole_numbers_may_be_written_as_floats(url: str) -> None:
    def body(number: str, start: str, end: str) -> bytes:
        return (
            f'{{"business_data_number": {number}, "start_ms": {start}, "end_ms": {end},'
            ' "end_identifier": false}'
        ).encode()

    assert call(url, "POST", SEGMENTS, body("1.0", "2.0", "0"))[0] == 422  # read, and then judged
    for wrong in (body("1.5", "0", "1"), body("1", "0.5", "1"), body("1", "0", "1e17")):
        status, answer, _ = call(url, "POST", SEGMENTS, wrong)
        assert (status, answer["reason"]) == (400, "BAD_SHAPE")


@pytest.mark.parametrize("sign", [b"", b"-"])
def test_numbers_of_any_length_get_a_short_answer(url: str, sign: bytes) -> None:
    for name in (b'number": 1,', b'start_ms": 0,', b'end_ms": 0,'):
        field = name.partition(b":")[0]
        for digits in (19, 20, 400, 5_000):
            body = WRONG.replace(name, field + b": " + sign + b"9" * digits + b",")
            assert body != WRONG
            status, answer, _ = call(url, "POST", SEGMENTS, body)
            assert status in (400, 422)
            assert len(json.dumps(answer)) < 600


@pytest.mark.parametrize("path", [SEGMENTS, "/v1/orders"])
def test_names_of_any_length_get_a_short_answer(url: str, path: str) -> None:
    status, answer, _ = call(url, "POST", path, b'{"' + b"x" * 900_000 + b'": 1}')
    assert (status, answer["reason"]) == (400, "BAD_SHAPE")
    assert len(json.dumps(answer)) < 600


# -- who asks


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example:80", "10.0.0.1", "", "a b"]
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_other_hosts_are_refused(url: str, host: str, method: str) -> None:
    body = WRONG if method == "POST" else None
    assert refusal(url, {"host": host}, body, method) == (403, "HOST_NOT_ALLOWED")


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:99", "127.0.0.1:1", "[::1]:8080"])
def test_names_of_the_loopback_are_taken(url: str, host: str) -> None:
    assert refusal(url, {"host": host})[0] == 422
    assert refusal(url, {"host": host}, None, "GET")[0] == 200


def test_one_host_is_named(url: str) -> None:
    for heads, status in (("", 400), ("host: localhost\r\nhost: evil\r\n", 400)):
        answer = exchange(
            url, f"GET /v1/time HTTP/1.1\r\n{heads}connection: close\r\n\r\n".encode()
        )
        assert f" {status} ".encode() in answer[:14], answer
    assert exchange(url, b"GET /v1/time HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.0 200 ")
    for named, status in (("localhost", 200), ("evil.example", 400)):  # as a proxy's request
        head = f"GET http://{named}/v1/time HTTP/1.1\r\nhost: localhost\r\nconnection: close"
        assert f" {status} ".encode() in exchange(url, f"{head}\r\n\r\n".encode())[:14]


def test_names_that_are_configured_are_taken() -> None:
    config = GatewayConfig({"bootstrap.servers": NOTHING_HERE}, allowed_hosts=("billing.example",))
    with gateway(config) as url:
        assert refusal(url, {"host": "billing.example:443"})[0] == 422
        assert refusal(url, {"host": "www.billing.example"})[0] == 403


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": "http://localhost:3000", "host": "localhost:8080"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ],
)
def test_web_pages_of_others_are_refused(url: str, headers: dict[str, str]) -> None:
    assert refusal(url, headers) == (403, "CROSS_ORIGIN")


def test_a_page_of_our_own_and_a_link_to_the_docs_work(url: str) -> None:
    own = {"origin": "http://localhost:8080", "host": "localhost:8080"}
    assert refusal(url, own | {"sec-fetch-site": "same-origin"})[0] == 422
    link = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}
    assert call(url, "GET", "/docs", None, link)[0] == 200


# -- order numbers, on every route


def alphabet() -> Iterator[str]:
    """Legal numbers: all of Latin-1, and samples of what lies beyond, alone and between others."""
    beyond = (
        "\u0300\u00a0\u1680\u2000\u200b\u200e\u202e\u2028\u2029\u2066\u3000\ufeff\ufffd\ufffe日😀"
    )
    for char in [chr(point) for point in range(256)] + list(beyond + "\ue000\U0010ffff"):
        for number in (char, f"a{char}b"):
            with contextlib.suppress(BadRecord):
                check_order_number(number)
                yield number
    yield from (
        "..",
        ".",
        "a/../b",
        "../..",
        "{number}",
        "{}",
        "%2F",
        "%",
        "%00",
        "?a=b",
        "#",
        "//",
    )


def test_every_legal_order_number_works_on_every_route(url: str) -> None:
    reasons = {"POST": (422, "BAD_SEGMENTS"), "GET": (503, "NOT_CONFIGURED")}
    numbers = list(alphabet())
    assert len(numbers) > 2 * 190
    for number in numbers:
        path = f"/v1/orders/{quote_order_number(number)}"
        for method, where in (("POST", f"{path}/segments"), ("GET", path)):
            body = WRONG if method == "POST" else None
            status, answer, _ = call(url, method, where, body)
            assert reasons[method] == (status, answer["reason"]), repr(number)
        status, answer, _ = call(url, "POST", f"{path}/lease")
        assert (status, answer["reason"]) == (401, "LEASE_MISSING")
        body = json.dumps({"service_order_number": number}).encode()
        assert read_order(body).service_order_number == number


@pytest.mark.parametrize("number", ["{", "}", "a{b}c", "|", "^", "`", "\\", '"', "<>", "[]", "~"])
def test_what_clients_send_without_encoding_works_too(url: str, number: str) -> None:
    for path in (f"/v1/orders/{number}", f"/v1/orders/{number}?limit=1"):
        assert call(url, "GET", path)[0] == 503
    assert call(url, "POST", f"/v1/orders/{number}/segments", WRONG)[0] == 422
