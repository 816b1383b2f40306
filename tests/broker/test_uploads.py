"""POST /v1/segments over real HTTP, in front of a real Kafka: what the answer says, the log has."""

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from durabill.producers.gateway.server import GatewayConfig
from durabill.schemas import SegmentEvent, decode_segment, partition_for
from durabill.schemas.upload_receipt import digest_of, read_public_keys, read_upload_receipt
from tests.broker.gateway_kit import call, gateway, read_topic
from tests.broker.upload_kit import PATH, rows, upload
from tests.conftest import Topics

NOTHING_HERE = "127.0.0.1:1"  # a port that nobody listens on


@pytest.fixture
def url(bootstrap_servers: str, topics: Topics) -> Iterator[str]:
    kafka = {"bootstrap.servers": bootstrap_servers}
    with gateway(GatewayConfig(kafka, topics.segments, client_segments_max=10_000)) as base_url:
        yield base_url


def test_what_the_answer_says_the_log_has(url: str, bootstrap_servers: str, topics: Topics) -> None:
    lease = call(url, "POST", "/v1/orders")[1]
    number = lease["service_order_number"]
    opened_ms = lease["server_timestamp_ms"]
    own = [[1, opened_ms, opened_ms + 4, False], [2, opened_ms + 4, opened_ms + 4, True]]
    sent: dict[str, Any] = {
        "uploads": [
            upload("SO/1 ü", rows(1, 120)),
            upload(number, own, lease=lease["lease"]),
            upload("SO2", [*rows(1, 2), {"business_data_number": 9}, *rows(3, 1, ends=True)]),
            upload("SO/1 ü", rows(121, 1)),
        ],
        "client": {"name": "meter-1", "pending": 3},
    }
    before_ms = time.time_ns() // 10**6
    status, answer, _ = call(url, "POST", PATH, sent)
    assert status == 200
    assert before_ms - 1_000 < answer["received_ms"] <= answer["sent_ms"]
    counts = [(each["service_order_number"], each["count"]) for each in answer["uploads"]]
    assert counts == [("SO/1 ü", 120), (number, 2), ("SO2", 4), ("SO/1 ü", 1)]
    errors = [each.get("errors", []) for each in answer["uploads"]]
    assert [len(each) for each in errors] == [0, 0, 1, 0]
    assert {name: errors[2][0][name] for name in ("index", "reason", "final", "stored")} == {
        "index": 2,
        "reason": "BAD_SHAPE",
        "final": True,
        "stored": False,
    }
    assert answer["uploads"][1]["accept_until_ms"] == lease["accept_until_ms"]
    records = {
        (record.partition(), record.offset()): record
        for record in read_topic(bootstrap_servers, topics.segments)
    }
    keys = call(url, "GET", "/v1/receipt-keys")[1]
    receipt = read_upload_receipt(answer["receipt"], read_public_keys(json.dumps(keys).encode()))
    assert receipt.topic == topics.segments
    for asked, told, signed in zip(
        sent["uploads"], answer["uploads"], receipt.uploads, strict=True
    ):
        key = asked["service_order_number"].encode()
        partition = partition_for(key, topics.partitions)
        places = range(told["first_offset"], told["last_offset"] + 1)
        found = [records[partition, at] for at in places if records[partition, at].key() == key]
        values = [record.value() or b"" for record in found]
        wanted = [row for row in asked["segments"] if isinstance(row, list)]
        assert (told["partition"], told["stored"]) == (partition, len(wanted))
        assert list(map(decode_segment, values)) == [
            SegmentEvent(key.decode(), *row) for row in wanted
        ]
        assert told["append_ms"] == found[-1].timestamp()[1]
        assert (signed.ord, signed.par) == (key.decode(), partition)
        assert signed.off == (told["first_offset"], told["last_offset"])
        assert (signed.count, signed.sha256) == (len(wanted), digest_of(b"".join(values)))


def test_both_routes_write_the_same(url: str, bootstrap_servers: str, topics: Topics) -> None:
    made = rows(1, 3, ends=True)
    names = ("business_data_number", "start_ms", "end_ms", "end_identifier")
    listed = [dict(zip(names, row, strict=True)) for row in made]
    assert call(url, "POST", "/v1/orders/SO1/segments", listed)[0] == 200
    assert call(url, "POST", PATH, {"uploads": [upload("SO1", made)]})[0] == 200
    values = [record.value() for record in read_topic(bootstrap_servers, topics.segments)]
    assert (len(values), values[:3]) == (6, values[3:])


def test_the_largest_request(url: str, bootstrap_servers: str, topics: Topics) -> None:
    most = [upload(f"SO{at}", rows(1, 10)) for at in range(100)]
    status, answer, _ = call(url, "POST", PATH, {"uploads": most})
    assert (status, {each["stored"] for each in answer["uploads"]}) == (200, {10})
    assert len(read_topic(bootstrap_servers, topics.segments)) == 1_000
    status, answer, _ = call(url, "POST", PATH, {"uploads": [*most, upload("SO", rows(1, 1))]})
    assert (status, answer["reason"]) == (413, "TOO_MANY_SEGMENTS")


@pytest.mark.parametrize(
    ("body", "status", "reason"),
    [
        (b"[" * 100_000, 400, "BAD_SHAPE"),
        (b'{"uploads": [], "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", 400, "BAD_JSON"),
        (b'{"uploads": 3}', 400, "BAD_SHAPE"),
        (json.dumps({"uploads": [upload("SO1", rows(1, 1))]}).encode(), 503, "KAFKA_UNAVAILABLE"),
    ],
)
def test_refused_as_a_whole(body: bytes, status: int, reason: str) -> None:
    kafka = {"bootstrap.servers": NOTHING_HERE}
    with gateway(GatewayConfig(kafka, delivery_timeout_ms=200)) as url:
        found, answer, headers = call(url, "POST", PATH, body)
        assert (found, answer["status"], answer["reason"]) == (status, status, reason)
        assert (status == 503) == ("retry-after" in headers)
        wrong = json.dumps({"uploads": [upload("SO1", [[0, 1, 2, True]])]}).encode()
        assert call(url, "POST", PATH, wrong)[0] == 200  # for that, Kafka needs not be asked
