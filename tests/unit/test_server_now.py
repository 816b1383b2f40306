"""About what time the server has: also on a device whose own clock starts in 1970."""

import sqlite3
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import pytest

from durabill.producers.sdk.client import Client
from durabill.producers.sdk.server_clock import ServerStamps
from durabill.producers.sdk.session import Session
from durabill.producers.sdk.spool import Entry, Spool
from durabill.producers.sdk.standing import ServerNow
from durabill.producers.sdk.timekeeper import Timekeeper
from durabill.producers.sdk.uplink import (
    NO_NOTES,
    AtRisk,
    Grant,
    OrderTerms,
    SendNotes,
    SendResult,
    UplinkUnavailable,
)
from durabill.schemas import SegmentEvent
from tests.waiting import wait_until

NOW_MS = 1_770_000_000_000
HOUR_MS = 3_600_000
RECEIPT = "receipt~e30~signature"


class Away:
    """A server that nobody can reach, or that answers in two parts."""

    def __init__(self, *, answers: bool = False) -> None:
        self._answers = answers

    def start(
        self, service_order_number: str | None = None, *, timeout_s: float | None = None
    ) -> Grant:
        raise UplinkUnavailable("away")

    def server_time(self, *, timeout_s: float | None = None) -> ServerStamps:
        raise UplinkUnavailable("away")

    def send(self, segments: Sequence[SegmentEvent], notes: SendNotes = NO_NOTES) -> SendResult:
        if not self._answers:
            return SendResult(problem=UplinkUnavailable("away"))
        accepted, stamps = list(range(len(segments))), ServerStamps(NOW_MS, NOW_MS, "a")
        assert notes.settled is not None
        notes.settled(SendResult(accepted=accepted, stamps=stamps, receipt=RECEIPT))
        return SendResult(accepted=accepted, stamps=stamps)

    def close(self) -> None:
        """Nothing to close."""


@pytest.fixture
def spool_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A spool whose order has an hour that waits; the machine was started in 1970 since then."""
    path = tmp_path / "spool"
    session = Session("SO1", NOW_MS - HOUR_MS, 60_000, Timekeeper().read(), own_time=True)
    segment = SegmentEvent("SO1", 1, NOW_MS - HOUR_MS, NOW_MS, True)
    terms = OrderTerms(correction_window_ms=HOUR_MS, accept_until_ms=NOW_MS + HOUR_MS // 8)
    spool = Spool(path)
    spool.append_all([Entry([segment], session.state, terms)])
    spool.close()
    begun_ns = time.monotonic_ns()
    monkeypatch.setattr(time, "time_ns", lambda: time.monotonic_ns() - begun_ns)
    return path


def test_what_is_at_risk_is_told_by_what_was_stored_before_a_server_is_heard(
    spool_path: Path,
) -> None:
    local_ns, told = [0], list[Exception]()
    spool = Spool(spool_path)
    now = ServerNow(Timekeeper(lambda: local_ns[0]), spool)
    assert now.now_ms() == NOW_MS
    local_ns[0] += HOUR_MS * 1_000_000
    assert now.now_ms() == NOW_MS + HOUR_MS
    spool.close()
    late_ns = (HOUR_MS - 60_000) * 1_000_000
    begun_ns = time.monotonic_ns()

    def clock_ns() -> int:  # it runs offline for almost an hour at once
        passed_ns = time.monotonic_ns() - begun_ns
        return passed_ns + (late_ns if passed_ns > 100_000_000 else 0)

    with Client(Away(), spool_path, clock=clock_ns, on_error=told.append) as client:
        wait_until(lambda: client.stats().at_risk == 1, "it is at risk")
        client.close(0)
    assert {type(each) for each in told} <= {AtRisk, UplinkUnavailable}


def test_receipts_are_kept_as_of_the_servers_time_from_the_first_one_on(
    spool_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a clock that is in the year 2096 would have older ones be too old."""
    monkeypatch.setattr(time, "time_ns", lambda: 4_000_000_000_000 * 1_000_000)
    with Client(Away(answers=True), spool_path, on_error=lambda _: None) as client:
        wait_until(lambda: client.receipts() == [RECEIPT], "the receipt is kept")
    with closing(sqlite3.connect(spool_path)) as db:
        ((kept_ms,),) = db.execute("SELECT kept_ms FROM receipts")
    assert NOW_MS <= kept_ms <= NOW_MS + HOUR_MS
