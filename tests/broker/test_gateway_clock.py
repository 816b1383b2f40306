"""Acknowledged means it will count: the broker's append time judges, and the client is told."""

import json
import logging
import time
from typing import Any

import pytest

from durabill.producers.gateway.server import GatewayConfig
from durabill.schemas.clock_mark import is_clock_mark
from tests.broker.gateway_kit import call, gateway, openings_of, read_log, read_topic, segments_of
from tests.conftest import Topics
from tests.waiting import wait_until

SEGMENTS = "/v1/orders/SO1/segments"
NEAR_MS = 30_000
"""Nearer than an offset of two minutes, and further than an answer takes on any machine."""


def machine_ahead(config: dict[str, Any], ahead_ms: int) -> GatewayConfig:
    """A gateway on a machine whose clock is so far ahead of the broker's."""
    return GatewayConfig(**config, clock=lambda: time.time_ns() + ahead_ms * 1_000_000)


@pytest.fixture
def base(bootstrap_servers: str, topics: Topics) -> dict[str, Any]:
    return {"kafka": {"bootstrap.servers": bootstrap_servers}, "topic": topics.segments}


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def item(number: int, end_ms: int) -> dict[str, Any]:
    return {
        "business_data_number": number,
        "start_ms": end_ms - 10,
        "end_ms": end_ms,
        "end_identifier": False,
    }


def test_the_time_that_is_told_first_is_the_brokers_where_that_can_be_asked(
    base: dict[str, Any],
) -> None:
    """A client counts the gap of its own death by it."""
    with gateway(machine_ahead(base, 7_200_000)) as url:
        for _ in range(2):
            assert abs(call(url, "GET", "/v1/time")[1]["sent_ms"] - now_ms()) < NEAR_MS
    nowhere = {**base, "kafka": {"bootstrap.servers": "127.0.0.1:1"}}
    with gateway(machine_ahead(nowhere, 7_200_000)) as url:  # there the machine's has to do
        for _ in range(2):
            assert call(url, "GET", "/v1/time")[1]["sent_ms"] > now_ms() + 7_000_000


def test_a_clock_that_is_two_minutes_ahead(
    base: dict[str, Any],
    bootstrap_servers: str,
    topics: Topics,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    with gateway(machine_ahead(base, 120_000)) as url:
        assert call(url, "GET", "/readyz")[0] == 200
        body = [item(1, now_ms() + 120_000), item(2, now_ms())]  # nothing has been learned yet
        status, answer, _ = call(url, "POST", SEGMENTS, body)
        assert (status, answer["accepted"]) == (200, 1)
        future, good = answer["segments"]
        assert [each["business_data_number"] for each in answer["receipts"]] == [1, 2]
        assert (
            future["business_data_number"],
            future["counts"],
            future["reason"],
        ) == (1, False, "IN_THE_FUTURE")
        assert "60000 are allowed" in future["detail"]
        expected = {"business_data_number": 2, "counts": True, "reason": None, "detail": None}
        assert good == expected
        # From now on its own clock doesn't matter.
        _, grant, _ = call(url, "POST", "/v1/orders")
        assert abs(grant["server_timestamp_ms"] - now_ms()) < NEAR_MS
        _, told, headers = call(url, "GET", "/v1/time")
        assert headers["cache-control"] == "no-store"
        assert abs(told["server_timestamp_ms"] - now_ms()) < NEAR_MS
        status, answer, _ = call(url, "POST", SEGMENTS, item(3, now_ms() + 120_000))
        assert status == 422
        assert answer["errors"][0]["reason"] == "IN_THE_FUTURE"
        status, answer, _ = call(url, "GET", "/readyz")
        assert (status, answer["reason"]) == (503, "CLOCK_OFF")
        assert call(url, "GET", "/healthz")[0] == 200
    records = read_topic(bootstrap_servers, topics.segments)
    assert (len(segments_of(records)), len(openings_of(records))) == (2, 1)
    (line,) = [each for each in caplog.messages if "ahead of the broker's" in each]
    told_ms = int(line.partition("clock is ")[2].partition(" ms")[0])
    assert abs(told_ms - 120_000) < NEAR_MS


@pytest.mark.parametrize("ahead_ms", [-120_000, 120_000])
def test_the_first_order_has_the_right_time_already(base: dict[str, Any], ahead_ms: int) -> None:
    with gateway(machine_ahead(base, ahead_ms)) as url:
        status, grant, _ = call(url, "POST", "/v1/orders")
        assert status == 201
        assert abs(grant["server_timestamp_ms"] - now_ms()) < NEAR_MS


def test_a_broker_that_has_not_been_heard_for_a_minute_is_asked_first(
    base: dict[str, Any], bootstrap_servers: str, topics: Topics
) -> None:
    """However little this machine's clock is wrong: it would be billed."""
    idle_ns = 0

    def marks() -> int:
        return sum(
            is_clock_mark(each.value()) for each in read_log(bootstrap_servers, topics.segments)
        )

    config = GatewayConfig(**base, monotonic=lambda: time.monotonic_ns() + idle_ns)
    with gateway(config) as url:
        assert call(url, "POST", "/v1/orders")[0] == 201
        assert marks() == 1
        idle_ns = 61 * 1_000_000_000
        call(url, "GET", "/v1/time")
        wait_until(lambda: marks() == 2, "the broker is asked")
        idle_ns *= 2
        assert call(url, "POST", "/v1/orders")[0] == 201
        assert marks() == 3


@pytest.mark.parametrize("ahead_ms", [-20_000, 0])
def test_an_offset_that_is_allowed_is_told_all_the_same(
    base: dict[str, Any], ahead_ms: int, caplog: pytest.LogCaptureFixture
) -> None:
    with gateway(machine_ahead(base, ahead_ms)) as url:
        for _ in range(2):
            assert call(url, "POST", SEGMENTS, item(1, now_ms()))[0] == 200
        assert call(url, "GET", "/readyz")[0] == 200
    lines = [each for each in caplog.messages if "clock is" in each]
    assert int(ahead_ms < 0) == len(lines)
    assert all("behind the broker's" in each for each in lines)


def test_too_late_is_judged_by_the_broker_too(base: dict[str, Any]) -> None:
    config = {**base, "correction_window_ms": 3_600_000}
    with gateway(machine_ahead(config, -60_000)) as url:
        late_ms, good_ms = now_ms() - 3_610_000, now_ms() - 3_590_000
        status, answer, _ = call(url, "POST", SEGMENTS, [item(1, late_ms), item(2, good_ms)])
        assert (status, answer["accepted"]) == (200, 1)
        assert [each["counts"] for each in answer["segments"]] == [False, True]
        assert answer["segments"][0]["reason"] == "TOO_LATE"
        # With the offset known it is refused beforehand.
        status, answer, _ = call(url, "POST", SEGMENTS, [item(1, late_ms), item(2, good_ms)])
        assert status == 422
        assert [each["reason"] for each in answer["errors"]] == ["TOO_LATE"]


def test_the_answer_is_as_long_as_the_request(base: dict[str, Any]) -> None:
    with gateway(GatewayConfig(**base)) as url:
        body = [item(number, now_ms()) for number in (3, 1, 1, 2)]
        status, answer, _ = call(url, "POST", SEGMENTS, body)
        assert (status, answer["accepted"]) == (200, 4)
        for name in ("receipts", "segments"):
            assert [each["business_data_number"] for each in answer[name]] == [3, 1, 1, 2]
        _, document, _ = call(url, "GET", "/openapi.json")
        shape = json.dumps(document["components"]["schemas"]["SegmentResult"])
        for name in ("business_data_number", "counts", "reason", "detail"):
            assert f'"{name}"' in shape
