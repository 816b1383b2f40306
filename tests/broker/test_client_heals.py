"""The SDK against servers, and what stands before them, that say strange things."""

import http.server
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from durabill.producers.sdk.client import Client
from durabill.producers.sdk.holds import Holds
from durabill.producers.sdk.http_uplink import HttpUplink
from durabill.producers.sdk.kafka_uplink import KafkaUplink
from durabill.producers.sdk.session import SessionState
from durabill.producers.sdk.spool import Spool
from durabill.producers.sdk.uplink import (
    Grant,
    OrderFailed,
    SendResult,
    UplinkUnavailable,
    WillNotCount,
)
from durabill.schemas import SegmentEvent
from durabill.schemas.web import PROBLEM, problem
from tests.broker.gateway_kit import answer, read_topic, segments_of, serving
from tests.broker.test_client import NOW_MS, QUICK, ignore
from tests.conftest import Topics
from tests.waiting import HANG_S, wait_until

REFUSAL = json.dumps(problem(422, "R", "d")).encode()
NOT_NOW = json.dumps(problem(503, "R", "d")).encode()
Answers = Callable[["Asked", list[dict[str, Any]]], None]


class Asked(http.server.BaseHTTPRequestHandler):
    """A request to a stand-in for a gateway."""

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@contextmanager
def answering(answers: Answers) -> Iterator[str]:
    """An older gateway that answers every POST, whose JSON it is given, as the test says."""

    class Handler(Asked):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            if self.path == "/v1/segments":
                answer(self, 404, b"no such page", "text/plain")
            else:
                answers(self, body)

        def do_GET(self) -> None:
            answer(self, 200, json.dumps({"server_timestamp_ms": NOW_MS}).encode())

    with serving(Handler) as url:
        yield url


def acknowledge(asked: Asked, segments: list[dict[str, Any]]) -> None:
    answer(asked, 200, json.dumps({"accepted": len(segments)}).encode())


def sent_once(url: str, segments: Sequence[SegmentEvent]) -> SendResult:
    uplink = HttpUplink(url, timeout_s=HANG_S)
    try:
        return uplink.send(segments)
    finally:
        uplink.close()


def some(count: int, order: str = "SO1") -> list[SegmentEvent]:
    return [SegmentEvent(order, n, n, n + 1, False) for n in range(1, count + 1)]


@pytest.mark.parametrize(
    ("status", "body", "content_type", "is_refused"),
    [
        (422, REFUSAL, PROBLEM, True),
        (422, REFUSAL, "application/json", False),
        (422, REFUSAL, "text/html", False),
        (422, b'{"detail": []}', "application/json", False),
        (400, REFUSAL.replace(b"422", b"400"), PROBLEM, False),
        (401, REFUSAL.replace(b"422", b"401"), PROBLEM, False),
        (413, REFUSAL.replace(b"422", b"413"), PROBLEM, False),
        (429, REFUSAL.replace(b"422", b"429"), PROBLEM, False),
        (503, REFUSAL.replace(b"422", b"503"), PROBLEM, False),
        (404, b"<html>no such page</html>", "text/html", False),
        (302, b"", "text/html", False),
        (200, b"<html>Log in</html>", "text/html", False),
        (200, b'{"accepted": 1}', "text/html", False),
        (200, b"", "application/json", False),
        (200, b'{"accepted": 2}', "application/json", False),
        (201, b'{"accepted": 1}', "application/json", False),
        (204, b"", "application/json", False),
    ],
)
def test_only_the_gateways_own_word_is_final(
    status: int, body: bytes, content_type: str, is_refused: bool
) -> None:
    def answers(asked: Asked, _: object) -> None:
        answer(asked, status, body, content_type, retry_after="7")

    with answering(answers) as url:
        result = sent_once(url, some(1))
    assert result.accepted == []
    assert ({0} if is_refused else set()) == set(result.refused)
    problem = result.problem or result.failed.get("SO1")
    assert is_refused or (problem is not None and problem.retry_after_s == 7)


def test_login_page_takes_nothing_out_of_the_spool(tmp_path: Path) -> None:
    has_logged_in, got, trouble = threading.Event(), list[int](), list[Exception]()

    def answers(asked: Asked, segments: list[dict[str, Any]]) -> None:
        if not has_logged_in.is_set():
            answer(asked, 200, b"<html>Log in to the hotel's network</html>", "text/html")
            return
        got.extend(each["business_data_number"] for each in segments)
        acknowledge(asked, segments)

    with answering(answers) as url:
        uplink = HttpUplink(url)
        with Client(uplink, tmp_path / "spool", backoff=QUICK, on_error=trouble.append) as client:
            service = client.start(grant=Grant("SO1", NOW_MS, 10_000))
            receipt = service.end(timeout_s=0.3)
            wait_until(lambda: bool(trouble), "it is told")
            assert (receipt.pending, receipt.acknowledged) == (1, False)
            assert "status 200, but no answer of a gateway" in str(trouble[0])
            has_logged_in.set()
            assert service.end(HANG_S).acknowledged
    assert got == [1]


def test_what_will_not_count_is_told_and_not_acknowledged(tmp_path: Path) -> None:
    trouble = list[Exception]()

    def answers(asked: Asked, segments: list[dict[str, Any]]) -> None:
        numbers = [each["business_data_number"] for each in segments]
        verdicts = [
            {"business_data_number": n, "counts": n != 2, "reason": None, "detail": None}
            for n in numbers
        ]
        for each in verdicts:
            if not each["counts"]:
                each |= {"reason": "TOO_LATE", "detail": "by an hour"}
        accepted = sum(n != 2 for n in numbers)
        answer(asked, 200, json.dumps({"accepted": accepted, "segments": verdicts}).encode())

    with Spool(tmp_path / "spool") as spool:
        spool.append(some(2), SessionState("SO1", 10, 3, NOW_MS, False))
    with answering(answers) as url:
        uplink = HttpUplink(url)
        with Client(uplink, tmp_path / "spool", on_error=trouble.append) as client:
            receipt = client.resume("SO1", server_timestamp_ms=NOW_MS).end(HANG_S)
            assert (receipt.pending, receipt.acknowledged) == (0, False)
            (rejected,) = receipt.rejected
            found = (rejected.segment.business_data_number, rejected.reason, rejected.detail)
            assert found == (2, "TOO_LATE", "by an hour")
            assert [(WillNotCount, "TOO_LATE: by an hour")] == [(type(e), str(e)) for e in trouble]
            stats = client.stats()
            assert (
                stats.pending,
                stats.rejected,
                stats.acknowledged,
                stats.refused,
                stats.will_not_count,
            ) == (0, 1, 2, 1, 1)
            assert client.discard_rejected("SO1") == 1
            assert (client.rejected(), client.stats().rejected) == ([], 0)


def test_kafka_tells_as_well_what_will_not_count(bootstrap_servers: str, topics: Topics) -> None:
    now_ms, window_ms = time.time_ns() // 1_000_000, 3_600_000
    ends_ms = [0, 50_000, 70_000, -window_ms + 10_000, -window_ms - 10_000]
    segments = [
        SegmentEvent("SO1", n, now_ms + end_ms - 5, now_ms + end_ms, False)
        for n, end_ms in enumerate(ends_ms, 1)
    ]
    for known_ms, expected in [(window_ms, {4: "TOO_LATE"}), (None, {})]:
        kafka = {"bootstrap.servers": bootstrap_servers}
        uplink = KafkaUplink(kafka, topics.segments, correction_window_ms=known_ms)
        result = uplink.send(segments)
        uplink.close()
        assert {at: why.reason for at, why in result.refused.items()} == expected
        assert all(type(why) is WillNotCount for why in result.refused.values())
        assert {0, 1, 3, 4} - set(expected) == set(result.accepted)
        wait_s = result.failed["SO1"].retry_after_s  # when it will count: each try is a dead letter
        assert wait_s is not None
        assert 0 < wait_s <= 11
    assert segments == segments_of(read_topic(bootstrap_servers, topics.segments))


@pytest.mark.parametrize("body", [REFUSAL, b"<html>413 Request Entity Too Large</html>"])
def test_413_of_whomever_halves_the_batch(body: bytes) -> None:
    sizes = list[int]()

    def answers(asked: Asked, segments: list[dict[str, Any]]) -> None:
        sizes.append(len(segments))
        if int(asked.headers["content-length"]) > 1_000:
            answer(asked, 413, body, "text/html")
        else:
            acknowledge(asked, segments)

    with answering(answers) as url:
        result = sent_once(url, some(361))
    assert list(range(361)) == result.accepted
    assert (result.refused, result.failed, result.problem) == ({}, {}, None)
    assert len(sizes) < 361 / 2


def test_413_for_a_single_segment_keeps_it(tmp_path: Path) -> None:
    sizes, trouble = list[int](), list[Exception]()

    def answers(asked: Asked, segments: list[dict[str, Any]]) -> None:
        sizes.append(len(segments))
        answer(asked, 413, b"too large", "text/plain")

    with answering(answers) as url:
        result = sent_once(url, some(500))
        assert sizes == [500, 250, 125, 62, 31, 15, 7, 3, 1]  # not each of them by itself
        assert (result.accepted, result.refused) == ([], {})
        assert OrderFailed is type(result.failed["SO1"])
        uplink = HttpUplink(url)
        with Client(uplink, tmp_path / "spool", backoff=QUICK, on_error=trouble.append) as client:
            assert client.start(grant=Grant("SO1", NOW_MS, 10_000)).end(0.3).pending == 1
            wait_until(lambda: bool(trouble), "it is told")
            client.close(timeout_s=0)
    assert "status 413" in str(trouble[0])
    with Spool(tmp_path / "spool") as spool:
        assert spool.pending() == 1


def test_wish_of_a_server_is_kept_though_somebody_waits(tmp_path: Path) -> None:
    asked_s = list[float]()

    def answers(asked: Asked, segments: list[dict[str, Any]]) -> None:
        asked_s.append(time.monotonic())
        if len(asked_s) == 1:
            answer(asked, 503, NOT_NOW, PROBLEM, retry_after="3")
        else:
            acknowledge(asked, segments)

    with answering(answers) as url:
        uplink = HttpUplink(url)
        with Client(uplink, tmp_path / "spool", backoff=QUICK, on_error=ignore) as client:
            service = client.start(grant=Grant("SO1", NOW_MS, 10_000))
            assert service.end(timeout_s=0.3).pending == 1
            assert service.end(timeout_s=0.1).pending == 1
            assert service.end(HANG_S).acknowledged
    assert asked_s[1] - asked_s[0] >= 3.0


def test_wishes_for_single_orders_are_kept_as_well() -> None:
    holds = Holds()
    for number, is_wish in [("wish", True), ("own", False), ("late", True)]:
        holds.failed(number)
        holds.hold(number, 5.0, is_wish=is_wish)
    holds.hold("late", 6.0)
    holds.release()
    assert holds.held(1.0) == ["wish", "late"]
    assert holds.held(1.0) == ["wish"]
    assert holds.held(4.9) == ["wish"]
    assert holds.held(5.0) == []
    holds.hold("wish", 9.0)
    holds.release()
    assert holds.held(5.0) == []


def test_nonsense_in_a_grant_is_refused_and_the_next_one_is_taken(tmp_path: Path) -> None:
    good = {"service_order_number": "SO1", "server_timestamp_ms": NOW_MS, "report_interval_ms": 9}
    grants = [
        good | {"report_interval_ms": 0},
        good | {"service_order_number": ""},
        good | {"server_timestamp_ms": -1},
        good,
    ]

    def answers(asked: Asked, _: object) -> None:
        answer(asked, 201, json.dumps(grants.pop(0)).encode())

    with answering(answers) as url:
        uplink = HttpUplink(url)
        with pytest.raises(UplinkUnavailable, match="no grant: report_interval_ms is 0"):
            uplink.start()
        with Client(uplink, tmp_path / "spool", backoff=QUICK, on_error=ignore) as client:
            assert client.start(timeout_s=HANG_S).service_order_number == "SO1"
            client.close(timeout_s=0)
    assert grants == []


def test_start_takes_no_longer_than_it_may_and_close_ends_a_request(tmp_path: Path) -> None:
    is_over = threading.Event()

    def answers(*_: object) -> None:
        is_over.wait(HANG_S)

    try:
        with answering(answers) as url:
            client = Client(HttpUplink(url, timeout_s=HANG_S), tmp_path / "spool")
            started_s = time.monotonic()
            with pytest.raises(UplinkUnavailable, match="no whole answer"):
                client.start(timeout_s=0.3)
            assert 0.3 <= time.monotonic() - started_s < HANG_S / 2
            assert client.start(grant=Grant("SO1", NOW_MS, 10_000)).end(0.2).pending == 1
            client.close(timeout_s=0)
            wait_until(lambda: not any(t.is_alive() for t in client._threads), "it is over")
    finally:
        is_over.set()
