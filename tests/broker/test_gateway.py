"""The gateway over real HTTP, in front of a real Kafka."""

import asyncio
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

from durabill.producers.gateway.server import GatewayConfig, serve_gateway
from durabill.producers.gateway.starts import new_order_number
from durabill.producers.gateway.web_server import Limits
from durabill.producers.sdk.http_uplink import quote_order_number
from durabill.schemas import SegmentEvent, partition_for
from durabill.schemas.limits import ARRIVES_FROM_MS, ARRIVES_UNTIL_MS
from tests.broker.gateway_kit import call, gateway, openings_of, read_topic, segments_of
from tests.conftest import Topics
from tests.waiting import HANG_S

NOTHING_HERE = "127.0.0.1:1"  # a port that nobody listens on


@pytest.fixture
def config(bootstrap_servers: str, topics: Topics) -> GatewayConfig:
    return GatewayConfig({"bootstrap.servers": bootstrap_servers}, topics.segments)


@pytest.fixture
def url(config: GatewayConfig) -> Iterator[str]:
    with gateway(config) as base_url:
        yield base_url


@pytest.fixture(scope="module")
def url_without_kafka() -> Iterator[str]:
    """For what is answered before Kafka is asked."""
    with gateway(GatewayConfig({"bootstrap.servers": NOTHING_HERE})) as base_url:
        yield base_url


def item(number: int, start_ms: int, end_ms: int, ends: bool = False) -> dict[str, Any]:
    return {
        "business_data_number": number,
        "start_ms": start_ms,
        "end_ms": end_ms,
        "end_identifier": ends,
    }


def test_a_service_from_order_to_kafka(url: str, bootstrap_servers: str, topics: Topics) -> None:
    before_ms = time.time_ns() // 1_000_000
    status, grant, _ = call(url, "POST", "/v1/orders")
    assert status == 201
    assert before_ms <= grant["server_timestamp_ms"] <= time.time_ns() // 1_000_000
    assert grant["report_interval_ms"] == 10_000
    number, go_ms = grant["service_order_number"], grant["server_timestamp_ms"]
    path = f"/v1/orders/{number}/segments"
    first = call(url, "POST", path, item(1, go_ms, go_ms + 4))
    rest = [
        item(2, go_ms + 4, go_ms + 9),
        item(3, go_ms + 9, go_ms + 9, True) | {"service_order_number": number},
    ]
    second = call(url, "POST", path, rest)
    assert (first[0], second[0]) == (200, 200)
    assert (first[1]["accepted"], second[1]["accepted"]) == (1, 2)
    records = read_topic(bootstrap_servers, topics.segments)
    receipts = first[1]["receipts"] + second[1]["receipts"]
    assert [
        {
            "business_data_number": at + 1,
            "partition": partition_for(number.encode(), topics.partitions),
            "offset": record.offset(),
            "append_ms": record.timestamp()[1],
        }
        for at, record in enumerate(records[1:])
    ] == receipts
    assert [each.service_order_number for each in openings_of(records)] == [number]
    assert {record.key() for record in records} == {number.encode()}
    assert segments_of(records) == [
        SegmentEvent(number, 1, go_ms, go_ms + 4, False),
        SegmentEvent(number, 2, go_ms + 4, go_ms + 9, False),
        SegmentEvent(number, 3, go_ms + 9, go_ms + 9, True),
    ]


@pytest.mark.parametrize("number", ["SO 1/ü?#%41+", ".", "..", "日本", "x" * 64])
def test_any_legal_order_number_works(
    url: str, number: str, bootstrap_servers: str, topics: Topics
) -> None:
    status, grant, _ = call(url, "POST", "/v1/orders", {"service_order_number": number})
    assert (status, grant["service_order_number"]) == (201, number)
    path = f"/v1/orders/{quote_order_number(number)}/segments"
    assert call(url, "POST", path, item(1, 0, 5))[0] == 200
    opening, record = read_topic(bootstrap_servers, topics.segments)
    assert opening.key() == record.key() == number.encode()


BAD_BODIES = [
    (b"", "BAD_JSON"),
    (b"{", "BAD_JSON"),
    (b'{"service_order_number": "\xff"}', "BAD_JSON"),
    (b"[" * 10_000, "BAD_SHAPE"),
    (b"[]", "BAD_SHAPE"),
    (b"3", "BAD_SHAPE"),
    (b"null", "BAD_SHAPE"),
    (json.dumps(item(1, 0, 5) | {"start_ms": "0"}).encode(), "BAD_SHAPE"),
    (json.dumps(item(1, 0, 5) | {"start_ms": 0.5}).encode(), "BAD_SHAPE"),
    (json.dumps(item(1, 0, 5) | {"end_identifier": 1}).encode(), "BAD_SHAPE"),
    (json.dumps(item(1, 0, 5) | {"price": 1}).encode(), "BAD_SHAPE"),
    (json.dumps([item(1, 0, 5), {"business_data_number": 2}]).encode(), "BAD_SHAPE"),
]


@pytest.mark.parametrize(("body", "reason"), BAD_BODIES)
def test_unreadable_bodies(url_without_kafka: str, body: bytes, reason: str) -> None:
    status, answer, _ = call(url_without_kafka, "POST", "/v1/orders/SO1/segments", body)
    assert (status, answer["reason"], answer["status"]) == (400, reason, 400)
    assert answer["detail"]


@pytest.mark.parametrize("body", [b"{", b"[]", b'{"service_order_number": 3}', b'{"number": "x"}'])
def test_unreadable_orders(url_without_kafka: str, body: bytes) -> None:
    assert call(url_without_kafka, "POST", "/v1/orders", body)[0] == 400


@pytest.mark.parametrize("path", ["%00", "a%0Ab", "%C2%85", "%FF", "x" * 65, "%E6%97"])
def test_illegal_order_numbers_in_the_path(url_without_kafka: str, path: str) -> None:
    status, answer, _ = call(
        url_without_kafka, "POST", f"/v1/orders/{path}/segments", item(1, 0, 5)
    )
    assert (status, answer["reason"]) == (422, "BAD_ORDER_NUMBER")
    assert call(url_without_kafka, "GET", f"/v1/orders/{path}")[0] == 422


@pytest.mark.parametrize("number", ["", "\u0000", "\u0085", "x" * 65, "ü" * 33])
def test_illegal_order_numbers_asked_for(url_without_kafka: str, number: str) -> None:
    status, answer, _ = call(
        url_without_kafka, "POST", "/v1/orders", {"service_order_number": number}
    )
    assert (status, answer["reason"]) == (422, "BAD_ORDER_NUMBER")


def test_rules_are_told_for_each_segment_and_nothing_is_stored(
    config: GatewayConfig, bootstrap_servers: str, topics: Topics
) -> None:
    day_ms, now_ms = 86_400_000, 10_000_000_000  # wrong by far, and nothing corrects it
    from_ms, until_ms = ARRIVES_FROM_MS, ARRIVES_UNTIL_MS
    known = GatewayConfig(
        config.kafka,
        config.topic,
        correction_window_ms=day_ms,
        clock=lambda: now_ms * 1_000_000,
    )
    body = [
        item(1, from_ms, from_ms + 5),
        item(1, now_ms - 5, now_ms) | {"service_order_number": "SO2"},
        item(0, now_ms - 5, now_ms),
        item(2**63, now_ms - 5, now_ms),
        item(2, now_ms, now_ms - 5),
        item(3, -1, now_ms),
        item(4, now_ms, now_ms),
        item(5, until_ms, until_ms + 60_001),
        item(6, until_ms, until_ms + 60_000),
        item(7, from_ms - 1, from_ms + day_ms),
        item(8, from_ms, from_ms + day_ms),
        item(9, 0, from_ms - day_ms - 1),
        item(10, from_ms - day_ms - 10, from_ms - day_ms - 1),
        item(11, from_ms - day_ms - 10, from_ms - day_ms),
    ]
    with gateway(known) as url:
        status, answer, _ = call(url, "POST", "/v1/orders/SO1/segments", body)
    assert (status, answer["reason"]) == (422, "BAD_SEGMENTS")
    assert {error["index"]: error["reason"] for error in answer["errors"]} == {
        1: "KEY_MISMATCH",
        2: "BAD_BUSINESS_DATA_NUMBER",
        3: "BAD_BUSINESS_DATA_NUMBER",
        4: "BAD_TIME_SEQUENCE",
        5: "BAD_TIME_SEQUENCE",
        6: "BAD_TIME_SEQUENCE",
        7: "IN_THE_FUTURE",
        9: "TOO_LONG",
        11: "TOO_LONG",
        12: "TOO_LATE",
    }
    assert answer["errors"][0]["business_data_number"] == 1
    assert read_topic(bootstrap_servers, topics.segments) == []


def test_a_body_that_is_too_large(config: GatewayConfig) -> None:
    with gateway(
        GatewayConfig(config.kafka, config.topic, limits=Limits(body_bytes_max=1_000))
    ) as url:
        body = [item(number, 0, 5) for number in range(1, 100)]
        status, answer, _ = call(url, "POST", "/v1/orders/SO1/segments", body)
        assert (status, answer["reason"]) == (413, "REQUEST_ENTITY_TOO_LARGE")
        assert call(url, "POST", "/v1/orders/SO1/segments", body[:5])[0] == 200


def test_more_than_may_wait_for_kafka_is_put_off(config: GatewayConfig) -> None:
    with gateway(GatewayConfig(config.kafka, config.topic, in_flight_segments_max=3)) as url:
        body = [item(number, 0, 5) for number in range(1, 5)]
        status, answer, headers = call(url, "POST", "/v1/orders/SO1/segments", body)
        assert (status, answer["reason"]) == (503, "OVERLOADED")
        assert int(headers["retry-after"]) > 0
        for _ in range(3):  # the places are given back
            assert call(url, "POST", "/v1/orders/SO1/segments", body[:3])[0] == 200


def test_without_kafka_the_sender_is_told_to_come_back() -> None:
    kafka = {"bootstrap.servers": NOTHING_HERE}
    with gateway(GatewayConfig(kafka, "segments", delivery_timeout_ms=500)) as url:
        status, answer, headers = call(url, "POST", "/v1/orders/SO1/segments", item(1, 0, 5))
        assert (status, answer["reason"]) == (503, "KAFKA_UNAVAILABLE")
        assert int(headers["retry-after"]) > 0
        assert call(url, "GET", "/readyz")[0] == 503
        assert call(url, "GET", "/healthz")[0] == 200
        status, answer, headers = call(url, "POST", "/v1/orders")
        assert (status, answer["reason"]) == (503, "KAFKA_UNAVAILABLE")
        assert int(headers["retry-after"]) > 0


def test_ready_means_that_the_topic_is_there(config: GatewayConfig, url: str) -> None:
    assert call(url, "GET", "/readyz")[:2] == (200, {"status": "ready"})
    with gateway(GatewayConfig(config.kafka, "no-such-topic")) as other:
        status, answer, _ = call(other, "GET", "/readyz")
        assert (status, answer["reason"]) == (503, "KAFKA_UNAVAILABLE")
        assert "no-such-topic" in answer["detail"]


def test_time_docs_and_what_is_not_there(url_without_kafka: str) -> None:
    status, answer, _ = call(url_without_kafka, "GET", "/v1/time")
    assert status == 200
    assert abs(answer["server_timestamp_ms"] - time.time_ns() // 1_000_000) < 5_000
    status, page, headers = call(url_without_kafka, "GET", "/docs")
    assert status == 200
    assert "/v1/orders/{number}/segments" in page
    assert "default-src 'none'" in headers["content-security-policy"]
    assert "://" not in page  # nothing is fetched from anywhere
    status, answer, _ = call(url_without_kafka, "GET", "/v2")
    assert (status, answer["reason"]) == (404, "NOT_FOUND")
    status, answer, headers = call(url_without_kafka, "PUT", "/v1/orders")
    assert (status, answer["reason"]) == (405, "METHOD_NOT_ALLOWED")
    assert headers["allow"] == "POST"


def test_openapi_names_every_route_and_shape(url_without_kafka: str) -> None:
    status, document, _ = call(url_without_kafka, "GET", "/openapi.json")
    assert (status, document["openapi"]) == (200, "3.1.0")
    text = json.dumps(document)
    for ref in {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]}:
        assert ref in document["components"]["schemas"]
    for path, operations in document["paths"].items():
        for method in operations.keys() - {"parameters"}:
            status, _, _ = call(url_without_kafka, method.upper(), path.replace("{number}", "SO1"))
            assert status not in (404, 405, 500), path


def test_order_numbers_sort_by_time_and_are_long_enough() -> None:
    numbers = [new_order_number(ms, lambda n: b"\xff" * n) for ms in (0, 1, 1_700_000_000_000)]
    assert numbers == sorted(numbers)
    assert numbers[0] == "0000000000" + "Z" * 16
    assert {len(number) for number in numbers} == {26}


# -- the process

MAIN = """
import sys
from durabill.producers.gateway.server import GatewayConfig, run_gateway
run_gateway(GatewayConfig({"bootstrap.servers": sys.argv[1]}, sys.argv[2]),
            lambda url: print(url, flush=True))
"""


def test_sigterm_ends_it_cleanly(bootstrap_servers: str, topics: Topics) -> None:
    command = [sys.executable, "-c", MAIN, bootstrap_servers, topics.segments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        try:
            body = [item(number, 0, 5) for number in range(1, 500)]
            assert call(url, "POST", "/v1/orders/SO1/segments", body)[0] == 200
            process.send_signal(signal.SIGTERM)
            assert process.wait(HANG_S) == 0
        finally:
            process.kill()
    assert len(read_topic(bootstrap_servers, topics.segments)) == 499


def test_a_taken_port_is_an_error() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        config = GatewayConfig({"bootstrap.servers": NOTHING_HERE}, port=taken.getsockname()[1])

        async def serve() -> None:
            await serve_gateway(config, asyncio.Event())

        with pytest.raises(OSError, match="address already in use"):
            asyncio.run(serve())


def test_settings_without_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="report_interval_ms"):
        GatewayConfig({}, report_interval_ms=0)
    with pytest.raises(ValueError, match="body_bytes_max"):
        Limits(body_bytes_max=0)
    assert "secret" not in repr(GatewayConfig({}, ledger_dsn="postgresql://me:secret@db"))
