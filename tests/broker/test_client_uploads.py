"""The SDK against gateways that take segments of many orders in one request."""

import base64
import http.server
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from durabill.producers.sdk.client import Client
from durabill.producers.sdk.http_uplink import HttpUplink
from durabill.producers.sdk.server_clock import ServerStamps
from durabill.producers.sdk.spool import Entry, Spool
from durabill.producers.sdk.uplink import (
    AtRisk,
    ClientReport,
    Grant,
    OrderFailed,
    OrderTerms,
    SendNotes,
    SendResult,
    UplinkRefused,
    UplinkUnavailable,
    WillNotCount,
)
from durabill.schemas import SegmentEvent
from durabill.schemas.web import PROBLEM
from tests.broker.gateway_kit import answer, serving
from tests.broker.test_client import NOW_MS, QUICK, ignore
from tests.unit.test_spool import segment, state
from tests.waiting import HANG_S, wait_until

Judge = Callable[[str, dict[str, Any]], dict[str, Any] | None]
"""What is wrong with a segment of an order: fields of its error, or None."""


SEGMENT_NAMES = ("business_data_number", "start_ms", "end_ms", "end_identifier")


class Played:
    """A gateway that plays the contract, as the test bends it; keeps what it was sent."""

    def __init__(self) -> None:
        self.url = ""
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.stored: Counter[tuple[str, int]] = Counter()
        self.judge: Judge = lambda _order, _segment: None
        self.judge_lease: Callable[[str | None], dict[str, Any] | None] = lambda _lease: None
        self.first: Callable[[Any, dict[str, Any]], bool] = lambda _asked, _body: False
        self.changes: Callable[[dict[str, Any]], None] = lambda _answer: None
        self.renewed: list[tuple[str, str]] = []
        self.receipt: str | None = None

    def uploaded(self, body: dict[str, Any]) -> dict[str, Any]:
        uploads = []
        for upload in body["uploads"]:
            assert all(isinstance(each, list) for each in upload["segments"]), "in short"
            order, errors = upload["service_order_number"], []
            for index, values in enumerate(upload["segments"]):
                each = dict(zip(SEGMENT_NAMES, values, strict=True))
                number = each["business_data_number"]
                wrong = self.judge_lease(upload.get("lease")) or self.judge(order, each)
                if wrong is not None:
                    fields = {"index": index, "business_data_number": number, "detail": "d"}
                    errors.append({**fields, "final": True, "stored": False, **wrong})
                if wrong is None or wrong.get("stored"):
                    self.stored[order, number] += 1
            count = len(upload["segments"])
            lacking = sum(not each["stored"] for each in errors)
            one = {"service_order_number": order, "count": count, "stored": count - lacking}
            uploads.append({**one, "errors": errors} if errors else one)
        said = {"received_ms": NOW_MS + 0.5, "sent_ms": NOW_MS + 1.25, "clock_id": "c1"}
        result = {**said, "uploads": uploads}
        if self.receipt is not None:
            result["receipt"] = self.receipt
        self.changes(result)
        return result


def grant(order: str, lease: str, expires_ms: int = NOW_MS + 10**9) -> bytes:
    return json.dumps(
        {
            "service_order_number": order,
            "server_timestamp_ms": NOW_MS,
            "report_interval_ms": 10_000,
            "accept_until_ms": NOW_MS + 10**9,
            "correction_window_ms": None,
            "lease": lease,
            "lease_expires_ms": expires_ms,
        }
    ).encode()


@contextmanager
def playing() -> Iterator[Played]:
    played = Played()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            played.headers.append({name.lower(): value for name, value in self.headers.items()})
            if played.first(self, body):
                return
            if self.path == "/v1/segments":
                played.bodies.append(body)
                answer(self, 200, json.dumps(played.uploaded(body)).encode())
            elif self.path.endswith("/lease"):
                order = self.path.split("/")[3]
                played.renewed.append((order, self.headers["lease"]))
                answer(self, 200, grant(order, f"new.{order}.x"))
            elif self.path == "/v1/orders":
                answer(self, 201, grant(body["service_order_number"] or "SO1", "a.b.c"))
            else:
                answer(self, 404, b"no such page", "text/plain")

        def do_GET(self) -> None:
            said = {"server_timestamp_ms": NOW_MS, "received_ms": NOW_MS, "sent_ms": NOW_MS}
            answer(self, 200, json.dumps(said).encode())

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    with serving(Handler) as played.url:
        yield played


def some(orders: int, each: int) -> list[SegmentEvent]:
    return [
        SegmentEvent(f"SO{o}", n, n, n + 1, False)
        for n in range(1, each + 1)
        for o in range(orders)
    ]


def sent(url: str, segments: list[SegmentEvent], notes: SendNotes | None = None) -> SendResult:
    uplink = HttpUplink(url, timeout_s=HANG_S)
    try:
        return uplink.send(segments, notes or SendNotes())
    finally:
        uplink.close()


def problem(status: int, reason: str = "R") -> bytes:
    return json.dumps({"status": status, "reason": reason, "detail": "d"}).encode()


def test_one_request_carries_the_segments_of_many_orders() -> None:
    segments = some(100, 10)
    report = ClientReport("meter 7", 1_000, 5_000, {"TOO_LATE": 2}, 12, 1)
    parts = list[SendResult]()
    with playing() as gateway:
        gateway.receipt = "a.b.c"
        notes = SendNotes({"SO7": "the.lease.x"}, report, parts.append)
        result = sent(gateway.url, segments, notes)
        (body,) = gateway.bodies
    assert sorted(result.accepted) == list(range(1_000))
    assert (result.refused, result.failed, result.problem) == ({}, {}, None)
    assert [part.receipt for part in parts] == ["a.b.c"]
    assert result.stamps == ServerStamps(NOW_MS + 0.5, NOW_MS + 1.25, "c1")
    assert len(gateway.stored) == 1_000
    leases = {each["service_order_number"]: each.get("lease") for each in body["uploads"]}
    assert {order for order, lease in leases.items() if lease} == {"SO7"}
    assert body["client"] == {
        "name": "meter 7",
        "pending": 1_000,
        "oldest_ms": 5_000,
        "refused": {"TOO_LATE": 2},
        "clock_bound_ms": 12,
        "suspends": 1,
    }


def test_requests_have_their_bounds() -> None:
    long = [SegmentEvent("x" * 60 + f"{n:04}", 1, 10**12, 10**12 + 1, False) for n in range(1_500)]
    sizes = list[int]()

    def first(asked: Any, body: dict[str, Any]) -> bool:
        sizes.append(int(asked.headers["content-length"]))
        return False

    with playing() as gateway:
        gateway.first = first
        leases = {each.service_order_number: "l" * 900 for each in long}
        result = sent(gateway.url, long, SendNotes(leases))
        counts = [sum(len(u["segments"]) for u in body["uploads"]) for body in gateway.bodies]
    assert len(result.accepted) == 1_500
    assert max(counts) <= 1_000
    assert max(sizes) <= 512 * 1024


def test_each_segment_has_its_own_verdict() -> None:
    verdicts: dict[tuple[str, int], dict[str, Any]] = {
        ("SO0", 1): {"reason": "TOO_LONG"},
        ("SO1", 2): {"reason": "TOO_LATE", "stored": True},
        ("SO2", 1): {"reason": "KAFKA_UNAVAILABLE", "final": False},
        ("SO3", 2): {"reason": "LEASE_EXPIRED"},
    }
    with playing() as gateway:
        gateway.judge = lambda order, each: verdicts.get((order, each["business_data_number"]))
        segments = some(5, 2)
        result = sent(gateway.url, segments)
    kinds = {segments[at].service_order_number: type(why) for at, why in result.refused.items()}
    assert kinds == {"SO0": UplinkRefused, "SO1": WillNotCount}
    assert {"SO2": OrderFailed, "SO3": OrderFailed} == {
        n: type(e) for n, e in result.failed.items()
    }
    assert result.stale_leases == {"SO3"}
    assert len(result.accepted) == 10 - len(verdicts)
    assert result.problem is None


def drop(name: str) -> Callable[[dict[str, Any]], None]:
    return lambda body: body["uploads"][0].pop(name)


def put(at: int, **fields: object) -> Callable[[dict[str, Any]], None]:
    return lambda body: body["uploads"][at].update(fields)


ERROR = {"index": 0, "business_data_number": 1, "reason": "R", "detail": "d"}
FINAL = {**ERROR, "final": True, "stored": False}


@pytest.mark.parametrize(
    "changes",
    [
        lambda body: body["uploads"].pop(),
        lambda body: body["uploads"].reverse(),
        lambda body: body["uploads"].append(body["uploads"][0]),
        lambda body: body.pop("uploads"),
        lambda body: body.pop("clock_id"),
        lambda body: body.update(sent_ms=5.0),
        lambda body: body.update(received_ms="now"),
        lambda body: body.update(receipt="r" * 2_000_000),
        drop("count"),
        drop("stored"),
        put(0, count=1),
        put(0, count=3, stored=3),
        put(0, stored=1),
        put(0, stored=3),
        put(0, service_order_number="SO9"),
        put(1, errors=[FINAL]),
        put(1, errors=[FINAL, FINAL], stored=0),
        put(1, errors=[{**FINAL, "index": 2}], stored=1),
        put(1, errors=[{**FINAL, "index": -1}], stored=1),
        put(1, errors=[{**FINAL, "business_data_number": 2}], stored=1),
        put(1, errors=[{**FINAL, "final": None}], stored=1),
        put(1, errors=[ERROR], stored=1),
    ],
)
def test_answer_that_is_not_of_the_contracts_form_is_none(
    changes: Callable[[dict[str, Any]], None],
) -> None:
    with playing() as gateway:
        gateway.changes = changes
        result = sent(gateway.url, some(2, 2))
    assert (result.accepted, result.refused, result.receipt) == ([], {}, None)
    assert result.problem is not None
    assert "no answer of a gateway" in str(result.problem) or "longer than" in str(result.problem)


@pytest.mark.parametrize("content_type", ["text/html", "application/json"])
@pytest.mark.parametrize(
    "body", [b"<html>Log in</html>", b'{"status": "ok"}', b"{}", b"[]", b"", b'{"uploads": []}']
)
def test_200_of_somebody_else_empties_nothing(content_type: str, body: bytes) -> None:
    def first(asked: Any, _: object) -> bool:
        answer(asked, 200, body, content_type)
        return True

    with playing() as gateway:
        gateway.first = first
        result = sent(gateway.url, some(3, 2))
    assert (result.accepted, result.refused) == ([], {})
    assert isinstance(result.problem, UplinkUnavailable)


@pytest.mark.parametrize(
    ("status", "body", "content_type", "requests"),
    [
        (401, problem(401), PROBLEM, 1),
        (403, problem(403), PROBLEM, 1),
        (403, b"<html>blocked</html>", "text/html", 4),
        (429, problem(429), PROBLEM, 1),
        (500, problem(500), PROBLEM, 4),
        (502, b"<html>Bad gateway</html>", "text/html", 4),
        (503, problem(503), PROBLEM, 1),
        (302, b"", "text/html", 1),
    ],
)
def test_answers_about_everybody_say_nothing_of_a_segment(
    status: int, body: bytes, content_type: str, requests: int
) -> None:
    """And few requests are spent on finding out whether it was about one order."""
    count = 0

    def first(asked: Any, _: object) -> bool:
        nonlocal count
        count += 1
        answer(asked, status, body, content_type, retry_after="7")
        return True

    with playing() as gateway:
        gateway.first = first
        result = sent(gateway.url, some(50, 2))
    assert (result.accepted, result.refused, count) == ([], {}, requests)
    assert result.problem is not None
    assert result.problem.retry_after_s == 7


@pytest.mark.parametrize("status", [400, 403, 413, 422, 500, 502])
@pytest.mark.parametrize("content_type", [PROBLEM, "text/html"])
def test_bad_segment_is_found_and_holds_up_no_other(status: int, content_type: str) -> None:
    """Whole requests fail while it is among them, whoever says so."""
    bad, requests = ("SO31", 2), 0

    def first(asked: Any, body: dict[str, Any]) -> bool:
        nonlocal requests
        requests += 1
        for upload in body["uploads"]:
            for each in upload["segments"]:
                if (upload["service_order_number"], each[0]) == bad:
                    answer(asked, status, problem(status), content_type)
                    return True
        return False

    with playing() as gateway:
        gateway.first = first
        segments = some(100, 3)
        result = sent(gateway.url, segments)
    if status == 403 and content_type == PROBLEM:  # the gateway itself: it is about the caller
        assert (result.accepted, requests) == ([], 1)
        return
    is_final = (status, content_type) == (422, PROBLEM)
    left = {each for at, each in enumerate(segments) if at not in result.accepted}
    assert {each.service_order_number for each in left} == {"SO31"}
    assert [segments[at].business_data_number for at in result.refused] == [2] * is_final
    assert result.problem is None
    assert requests < 60


def test_leases_are_shown_kept_and_renewed(tmp_path: Path) -> None:
    """In time by the server's clock, and at once where the server doesn't take one any more."""
    with playing() as gateway:
        uplink = HttpUplink(gateway.url)
        with Client(uplink, tmp_path / "spool", backoff=QUICK, on_error=ignore) as client:
            client.start("SO1").end()
            assert gateway.bodies[-1]["uploads"][0]["lease"] == "a.b.c"
            client.start("SO2")
        gateway.judge = lambda *_: None if gateway.renewed else {"reason": "LEASE_INVALID"}
        uplink = HttpUplink(gateway.url)
        with Client(uplink, tmp_path / "spool", backoff=QUICK, on_error=ignore) as client:
            service = client.resume("SO2", server_timestamp_ms=NOW_MS + 50_000)
            receipt = service.end(HANG_S)
            assert receipt.acknowledged
        assert gateway.renewed == [("SO2", "a.b.c")]
        assert gateway.bodies[-1]["uploads"][0]["lease"] == "new.SO2.x"


@pytest.mark.parametrize("asks_for_leases", [False, True])
def test_server_that_has_lost_its_keys_gets_the_order_without(
    tmp_path: Path, asks_for_leases: bool
) -> None:
    """Or it says that it wants one: then the order waits, and goes on when the keys are back."""
    keys_are_back = threading.Event()

    def first(asked: Any, _: object) -> bool:
        if keys_are_back.is_set() or not asked.path.endswith("/lease"):
            return False
        answer(asked, 401, problem(401, "LEASE_INVALID"), PROBLEM)
        return True

    def judge(lease: str | None) -> dict[str, Any] | None:
        if lease is None:
            return {"reason": "LEASE_MISSING"} if asks_for_leases else None
        return None if lease.startswith("new.") else {"reason": "LEASE_INVALID"}

    with playing() as gateway:
        gateway.first = first
        gateway.judge_lease = judge
        uplink = HttpUplink(gateway.url)
        with Client(uplink, tmp_path / "spool", backoff=QUICK, on_error=ignore) as client:
            service = client.start("SO1")
            receipt = service.end(timeout_s=1 if asks_for_leases else 60)
            assert asks_for_leases != receipt.acknowledged
            assert receipt.rejected == ()
            keys_are_back.set()
            assert service.end(timeout_s=HANG_S).acknowledged


def test_old_leases_are_renewed_before_they_are_shown(tmp_path: Path) -> None:
    now_ms = time.time_ns() // 1_000_000
    old = OrderTerms("old.x.y", lease_expires_ms=now_ms - 1)
    soon = OrderTerms("soon.x.y", now_ms + 10**7, renew_from_ms=now_ms - 1)
    good = OrderTerms("good.x.y", now_ms + 10**7, renew_from_ms=now_ms + 10**6)
    with Spool(tmp_path / "spool") as spool:
        for order, terms in {"SO1": old, "SO2": soon, "SO3": good}.items():
            last = SegmentEvent(order, 1, now_ms - 10, now_ms, True)
            spool.append_all([Entry([last], state(2, order, ended=True), terms)])
    with playing() as gateway:
        with Client(HttpUplink(gateway.url), tmp_path / "spool", on_error=ignore) as client:
            assert client.flush(HANG_S) == 0
        shown = {u["service_order_number"]: u["lease"] for u in gateway.bodies[0]["uploads"]}
        assert sorted(gateway.renewed) == [("SO1", "old.x.y"), ("SO2", "soon.x.y")]
    assert shown == {"SO1": "new.SO1.x", "SO2": "new.SO2.x", "SO3": "good.x.y"}


def test_server_that_is_away_is_not_asked_for_each_lease(tmp_path: Path) -> None:
    now_ms = time.time_ns() // 1_000_000
    old = OrderTerms("old.x.y", lease_expires_ms=now_ms - 1)
    with Spool(tmp_path / "spool", fsync=False) as spool:
        for at in range(100):
            last = SegmentEvent(f"SO{at}", 1, now_ms - 10, now_ms, True)
            spool.append_all([Entry([last], state(2, f"SO{at}", ended=True), old)])
    asked = list[str]()
    is_away = threading.Event()
    is_away.set()

    def first(asking: Any, _: object) -> bool:
        if is_away.is_set():
            asked.append(asking.path)
            answer(asking, 503, problem(503), PROBLEM, retry_after="1")
        return is_away.is_set()

    with playing() as gateway:
        gateway.first = first
        uplink = HttpUplink(gateway.url)
        with Client(uplink, tmp_path / "spool", backoff=QUICK, on_error=ignore) as client:
            wait_until(lambda: len(asked) >= 3, "it has asked")
            is_away.clear()
            assert client.flush(HANG_S) == 0
    assert len(asked) == 3
    assert len(gateway.renewed) == 100
    assert len(gateway.bodies) == 1


def test_receipts_are_kept_and_found(tmp_path: Path) -> None:
    payload = base64.urlsafe_b64encode(json.dumps({"uploads": [{"ord": "SO1"}]}).encode())
    with playing() as gateway:
        gateway.receipt = f"head.time.sign~{payload.decode().rstrip('=')}"
        with Client(HttpUplink(gateway.url), tmp_path / "spool", on_error=ignore) as client:
            assert client.start("SO1").end(HANG_S).acknowledged
        with Client(HttpUplink(gateway.url), tmp_path / "spool", on_error=ignore) as client:
            assert client.receipts("SO1") == [gateway.receipt]
            assert client.receipts() == [gateway.receipt]
            assert client.receipts("SO2") == []


def test_what_is_about_to_be_too_late_is_told_in_time(tmp_path: Path) -> None:
    trouble = list[Exception]()
    now_ms = time.time_ns() // 1_000_000
    day_ms = 86_400_000
    late = OrderTerms(accept_until_ms=now_ms + day_ms // 24, correction_window_ms=day_ms)
    fine = OrderTerms(accept_until_ms=now_ms + 30 * day_ms, correction_window_ms=day_ms)
    with Spool(tmp_path / "spool") as spool:
        for order, terms in {"late": late, "fine": fine}.items():
            old = SegmentEvent(order, 1, now_ms - 2 * day_ms, now_ms - 2 * day_ms + 9, False)
            spool.append_all([Entry([old, segment(2, order)], state(3, order), terms)])
    uplink = HttpUplink("http://127.0.0.1:1")
    with Client(uplink, tmp_path / "spool", backoff=QUICK, on_error=trouble.append) as client:
        wait_until(lambda: any(isinstance(each, AtRisk) for each in trouble), "it is told")
        (told,) = [each for each in trouble if isinstance(each, AtRisk)]
        assert (told.service_order_number, told.pending) == ("late", 2)
        assert told.deadline_ms == now_ms + day_ms // 24
        stats = client.stats()
        assert (stats.pending, stats.at_risk) == (4, 2)
        assert stats.oldest_ms >= 2 * day_ms - 10
        assert stats.spool_bytes > 0
        client.close(timeout_s=0)


def test_tokens_are_renewed_and_401_is_asked_again_once(tmp_path: Path) -> None:
    tokens = iter(f"token-{each}" for each in range(100))
    current = [next(tokens)]
    wanted = {"Bearer token-0"}

    def headers() -> dict[str, str]:
        return {"Authorization": f"Bearer {current[0]}"}

    def first(asked: Any, _: object) -> bool:
        if asked.headers["authorization"] in wanted:
            return False
        current[0] = next(tokens)
        answer(asked, 401, problem(401, "UNAUTHENTICATED"), PROBLEM)
        return True

    with playing() as gateway:
        gateway.first = first
        uplink = HttpUplink(gateway.url, headers=headers)
        assert uplink.send(some(1, 1)).accepted == [0]
        wanted = {"Bearer token-1"}
        assert uplink.send(some(1, 1)).accepted == [0]
        wanted = {"Bearer token-50"}
        before = len(gateway.headers)
        result = uplink.send(some(1, 1))
        assert (result.accepted, result.refused) == ([], {})
        assert "UNAUTHENTICATED" in str(result.problem)
        assert len(gateway.headers) - before == 2
        with pytest.raises(UplinkRefused, match="UNAUTHENTICATED"):
            uplink.start(timeout_s=HANG_S)
        uplink.close()


SECRET = "dbk_1_s3cret"


def test_no_secret_is_in_any_word(tmp_path: Path) -> None:
    def broken() -> dict[str, str]:
        raise RuntimeError(f"no token instead of {SECRET}")

    uplinks = [
        HttpUplink("http://127.0.0.1:1", api_key=SECRET),
        HttpUplink("http://127.0.0.1:1", headers={"x-key": SECRET}),
        HttpUplink("http://127.0.0.1:1", headers=broken),
        HttpUplink("http://127.0.0.1:1", headers=lambda: {"x-key": f"{SECRET}\n"}),
    ]
    for uplink in uplinks:
        result = uplink.send(some(1, 1), SendNotes({"SO0": SECRET}))
        assert result.problem is not None
        words = [repr(uplink), repr(result), str(result.problem), repr(vars(result.problem))]
        words += [repr(SendNotes({"SO0": SECRET})), repr(OrderTerms(SECRET))]
        words.append(repr(Grant("SO1", 1, 1, OrderTerms(SECRET))))
        assert [each for each in words if "s3cret" in each] == []
    for wrong in ({"x-key": f"{SECRET}\r\nx: y"}, {"x-key": f"{SECRET}ü"}, {"": SECRET}):
        with pytest.raises(ValueError, match="HTTP can't carry") as refused:
            HttpUplink("http://127.0.0.1:1", headers=wrong)
        assert "s3cret" not in str(refused.value)
    with pytest.raises(ValueError, match="HTTP can't carry"):
        HttpUplink("http://127.0.0.1:1", api_key=f"{SECRET}\n")
    with playing() as gateway:
        uplink = HttpUplink(gateway.url, api_key=SECRET)
        assert uplink.send(some(1, 1)).accepted == [0]
        assert gateway.headers[0]["authorization"] == f"Bearer {SECRET}"
        uplink.close()


def test_key_that_goes_unencrypted_is_told(caplog: pytest.LogCaptureFixture) -> None:
    for url in ("http://127.0.0.1:1", "http://localhost:1", "https://gateway.test"):
        HttpUplink(url, api_key=SECRET)
    assert caplog.messages == []
    HttpUplink("http://gateway.test", api_key=SECRET)
    (told,) = caplog.messages
    assert told == "http://gateway.test: the API key goes there unencrypted, use https"


def test_certificates_come_from_a_file(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        HttpUplink("https://gateway.test", ca_file=tmp_path / "ca.pem")
    with pytest.raises(ValueError, match="certificates need https"):
        HttpUplink("http://gateway.test", ca_file=tmp_path / "ca.pem")


def test_start_that_is_repeated_opens_one_order(tmp_path: Path) -> None:
    tries = 0

    def first(asked: Any, _: object) -> bool:
        nonlocal tries
        tries += 1
        if tries < 3:
            answer(asked, 503, problem(503), PROBLEM)
        return tries < 3

    with playing() as gateway:
        gateway.first = first
        with Client(HttpUplink(gateway.url), tmp_path / "spool", backoff=QUICK) as client:
            client.start(timeout_s=HANG_S)
            client.start("SO2", timeout_s=HANG_S)
            client.close(timeout_s=0)
        keys = [each.get("idempotency-key", "") for each in gateway.headers]
    assert len(set(keys[:3])) == 1
    assert len({keys[0], keys[3]}) == 2


def test_acknowledgements_are_stored_as_they_come(tmp_path: Path) -> None:
    """A request is answered while the next one hangs: what it acknowledged is gone already."""
    hangs = threading.Event()

    def first(asked: Any, body: dict[str, Any]) -> bool:
        if len(body["uploads"]) > 1:
            answer(asked, 413, b"too large", "text/html")
            return True
        if body["uploads"][0]["service_order_number"] == "SO1":
            hangs.wait(HANG_S)
        return False

    with Spool(tmp_path / "spool") as spool:
        for order in ("SO0", "SO1"):
            spool.append([segment(1, order)], state(2, order, ended=True))
    try:
        with playing() as gateway:
            gateway.first = first
            uplink = HttpUplink(gateway.url)
            with Client(uplink, tmp_path / "spool", on_error=ignore) as client:
                wait_until(lambda: client.stats().pending == 1, "the first is gone")
                hangs.set()
                assert client.flush(HANG_S) == 0
    finally:
        hangs.set()
