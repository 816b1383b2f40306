"""What the gateway answers and logs when something goes wrong: enough, and no more."""

import contextlib
import json
import logging
import re
import socket
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

from durabill.producers.gateway.server import GatewayConfig
from durabill.producers.gateway.web_server import Limits
from durabill.schemas import BadRecord, check_order_number
from tests.broker.gateway_kit import call, exchange, gateway
from tests.conftest import Topics
from tests.waiting import HANG_S, wait_until

NOTHING_HERE = "127.0.0.1:1"  # a port that nobody listens on
SEGMENTS = "/v1/orders/SO1/segments"
BODY = json.dumps(
    {"business_data_number": 1, "start_ms": 0, "end_ms": 5, "end_identifier": False}
).encode()


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """For what is answered before Kafka is asked."""
    with gateway(GatewayConfig({"bootstrap.servers": NOTHING_HERE})) as base_url:
        yield base_url


@pytest.mark.parametrize(
    "sent",
    [
        f"POST {SEGMENTS} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        "content-length: 100\r\n\r\n[",
        f"POST {SEGMENTS} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        "transfer-encoding: chunked\r\n\r\n5\r\n[",
        f"POST {SEGMENTS} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        "transfer-encoding: chunked\r\n\r\nzz\r\n[",
        "POST /v1/orders HT",
        "\x16\x03\x01\x02\x00\x01\x00\x01",
        "GET / HTTP/1.1\r\nno colon\r\n\r\n",
        "GET /v1/time HTTP/1.1\r\nhost: localhost\r\n" + "x: y\r\n" * 1_000 + "\r\n",
        "GET /" + "x" * 100_000 + " HTTP/1.1\r\nhost: localhost\r\n\r\n",
    ],
)
def test_what_breaks_off_or_is_no_http_leaves_no_traceback(
    url: str, sent: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    answer = exchange(url, sent.encode("latin-1"), close_after=True)
    assert answer == b"" or answer.startswith((b"HTTP/1.1 400 ", b"HTTP/1.0 400 ")), answer
    assert b"aiohttp" not in answer
    time.sleep(0.1)
    assert [each for each in caplog.records if each.exc_info] == []
    # No Kafka runs here: librdkafka's own line of that ("FAIL [rdkafka#…") may come at any time.
    told = [each for each in caplog.messages if not each.startswith("FAIL [rdkafka#")]
    assert [each for each in told if "Kafka" not in each] == []
    assert call(url, "GET", "/healthz")[0] == 200


@pytest.mark.parametrize(
    ("path", "odd", "reason"),
    [
        ("/v1/time", "origin: http://[::1", "CROSS_ORIGIN"),
        ("/v1/time", "origin: http://a\u2100b", "CROSS_ORIGIN"),
        ("/none", "expect: x", "EXPECTATION_FAILED"),
        ("/v1/orders", "expect: x", "EXPECTATION_FAILED"),  # of no method of its route
        ("/none", "expect: \udcff", "EXPECTATION_FAILED"),
    ],
)
def test_odd_heads_are_told_as_problems_and_are_nobodys_fault(
    url: str, path: str, odd: str, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    head = f"GET {path} HTTP/1.1\r\nhost: localhost\r\n{odd}\r\nconnection: close\r\n\r\n"
    told, _, body = exchange(url, head.encode("utf-8", "surrogateescape")).partition(b"\r\n\r\n")
    assert json.loads(body)["reason"] == reason
    assert b"application/problem+json" in told
    assert b"aiohttp" not in told
    assert [each for each in caplog.records if each.exc_info] == []


def test_the_server_names_no_version_and_no_cache_keeps_its_answers(url: str) -> None:
    for method, path in (("GET", "/v1/time"), ("GET", "/none"), ("PUT", "/v1/orders")):
        headers = call(url, method, path)[2]
        assert headers["server"] == "durabill"
        assert headers["cache-control"] == "no-store"
    assert b"server: durabill\r\n" in exchange(url, b"no http\r\n\r\n").lower()


def test_errors_name_no_addresses_users_or_settings() -> None:
    config = GatewayConfig(
        {"bootstrap.servers": NOTHING_HERE},
        worker_urls=(f"http://{NOTHING_HERE}",),
        ledger_dsn=f"postgresql://billing:s3cret@{NOTHING_HERE}/ledger",
        delivery_timeout_ms=200,
    )
    with gateway(config) as url:
        for method, path, body in (
            ("POST", SEGMENTS, BODY),
            ("GET", "/v1/orders/SO1", None),
            ("GET", "/readyz", None),
        ):
            status, answer, headers = call(url, method, path, body)
            assert status == 503
            text = json.dumps([answer, list(headers.items())])
            for secret in (
                "127.0.0.1",
                ":1/",
                "billing",
                "s3cret",
                "postgres",
                "ledger_dsn",
                "http:",
            ):
                assert secret not in text, text


def test_accesses_are_logged_where_wanted(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    kafka = {"bootstrap.servers": NOTHING_HERE}
    for is_wanted in (False, True):
        caplog.clear()
        with gateway(GatewayConfig(kafka, access_log=is_wanted)) as url:
            call(url, "GET", "/v1/orders/a%0Ab?x=%0A")
        lines = [each for each in caplog.messages if "GET" in each]
        assert is_wanted == bool(lines)
    assert lines[0].startswith('127.0.0.1 "GET /v1/orders/a%0Ab?x=%0A HTTP/1.1" 422 ')


def test_kafka_away_is_logged_once_and_not_per_request(caplog: pytest.LogCaptureFixture) -> None:
    config = GatewayConfig({"bootstrap.servers": NOTHING_HERE}, delivery_timeout_ms=100)
    began_s = time.monotonic()
    with gateway(config) as url:
        for _ in range(3):
            assert call(url, "POST", SEGMENTS, BODY)[0] == 503
        wait_until(lambda: any("Connection refused" in each for each in caplog.messages), "told")
    assert len([each for each in caplog.messages if "not acknowledged" in each]) == 1
    assert len(caplog.messages) < 6 + (time.monotonic() - began_s)


def test_one_client_may_not_fill_the_way_to_kafka(topics: Topics) -> None:
    """Its second request waits until the first has been answered; what is not read is not paid."""
    config = GatewayConfig(
        {"bootstrap.servers": NOTHING_HERE},
        topics.segments,
        client_segments_max=3,
        delivery_timeout_ms=3_500,
        limits=Limits(),
    )
    with gateway(config) as url:
        head = f"POST {SEGMENTS} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        many = b"[" + b",".join([BODY] * 2) + b"]"
        parts = urlsplit(url)
        with socket.create_connection((parts.hostname, parts.port), timeout=HANG_S) as first:
            first.sendall(f"{head}content-length: {len(many)}\r\n\r\n".encode() + many)
            time.sleep(0.5)
            status, answer, headers = call(url, "POST", SEGMENTS, many)
            assert (status, answer["reason"]) == (429, "QUOTA_SEGMENTS")
            assert int(headers["retry-after"]) > 0
            assert first.recv(100).startswith(b"HTTP/1.1 503 ")
        assert call(url, "POST", SEGMENTS, b"[" + b",".join([BODY] * 9) + b"]")[0] == 503


# -- what a fuzzer of OpenAPI (schemathesis) found: answers that the description did not explain

ZEROS = "0" * 63  # near the longest order number
FUZZED = [
    ("GET", f"/v1/orders/{ZEROS}", None, 503, "NO_WORKER_REACHABLE"),
    (
        "POST",
        f"/v1/orders/{ZEROS}/segments",
        b'[{"business_data_number": 1, "end_identifier": false, "end_ms": 0, "start_ms": 0}]',
        422,
        "BAD_SEGMENTS",
    ),
    (
        "POST",
        "/v1/orders/0/segments",  # to JSON Schema, 2.0 is an integer
        b'[{"business_data_number": 1, "end_identifier": false, "start_ms": 2.0, "end_ms": 0}]',
        422,
        "BAD_SEGMENTS",
    ),
    ("POST", "/v1/orders", b'{"service_order_number": ""}', 422, "BAD_ORDER_NUMBER"),
]


@pytest.mark.parametrize(("method", "path", "body", "status", "reason"), FUZZED)
def test_what_the_fuzzer_sent_is_answered_as_described(
    method: str, path: str, body: bytes | None, status: int, reason: str
) -> None:
    kafka = {"bootstrap.servers": NOTHING_HERE}
    with gateway(GatewayConfig(kafka, worker_urls=(f"http://{NOTHING_HERE}",))) as url:
        _, document, _ = call(url, "GET", "/openapi.json")
        answered, answer, headers = call(url, method, path, body)
    assert (status, reason) == (answered, answer["reason"])
    assert (status == 503) == ("retry-after" in headers)
    template = re.sub(r"/v1/orders/[^/]+", "/v1/orders/{number}", path)
    assert str(status) in document["paths"][template][method.lower()]["responses"]


def test_what_a_schema_can_say_about_order_numbers_it_says(url: str) -> None:
    _, document, _ = call(url, "GET", "/openapi.json")
    shapes = document["components"]["schemas"]
    asked = shapes["OrderRequest"]["properties"]["service_order_number"]["anyOf"]
    (text,) = [each for each in asked if each["type"] == "string"]
    (in_path,) = document["paths"]["/v1/orders/{number}"]["parameters"]
    for schema in (text, in_path["schema"]):
        assert (schema["minLength"], schema["maxLength"]) == (1, 64)
        pattern = re.compile(schema["pattern"].replace("$", r"\Z"))  # as ECMA has it
        for number in ("", "a\n", "\x00", "\x85", "x" * 65, "SO 1", "日本", "a\u2028b", "ü" * 32):
            fits = pattern.search(number) is not None and 1 <= len(number) <= 64
            with contextlib.suppress(BadRecord):
                check_order_number(number)
                assert fits, repr(number)
                continue
            assert not fits, repr(number)
    item = shapes["SegmentRequest"]["properties"]
    for name in ("business_data_number", "start_ms", "end_ms"):
        assert item[name]["type"] == "integer"


def test_what_it_cannot_say_is_described(url: str) -> None:
    """An empty segment, an end before the start, and an order that nobody can be asked about."""
    _, document, _ = call(url, "GET", "/openapi.json")
    post = document["paths"]["/v1/orders/{number}/segments"]["post"]["responses"]
    for start_ms, end_ms in ((0, 0), (2, 0)):
        body = {"business_data_number": 1, "start_ms": start_ms, "end_ms": end_ms}
        status, answer, _ = call(url, "POST", SEGMENTS, [body | {"end_identifier": False}])
        assert (status, answer["errors"][0]["reason"]) == (422, "BAD_TIME_SEQUENCE")
        assert "may not end before it starts" in post[str(status)]["description"]
    status, _, headers = call(url, "GET", f"/v1/orders/{'0' * 63}")
    assert str(status) in document["paths"]["/v1/orders/{number}"]["get"]["responses"]
    assert headers["retry-after"]
