"""The SDK where something is wrong for good: an order that can't be sent, a disk that is full."""

import http.server
import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from durabill.producers.sdk.client import Client
from durabill.producers.sdk.holds import Holds
from durabill.producers.sdk.http_uplink import HttpUplink
from durabill.producers.sdk.session import SessionState
from durabill.producers.sdk.spool import Spool, SpoolFull
from durabill.producers.sdk.uplink import Backoff, Grant, OrderFailed, UplinkUnavailable
from durabill.schemas import SegmentEvent
from tests.broker.gateway_kit import answer, serving
from tests.broker.test_client import NOW_MS, QUICK, Uplink, check_whole, ignore
from tests.conftest import Topics, fill_up
from tests.waiting import HANG_S, wait_until

SLOW = Backoff(first_s=30.0, max_s=30.0)


class Asked:
    """A gateway that fails for some orders; counts what it was asked by order."""

    def __init__(self, status: int, failing: Sequence[str]) -> None:
        self.requests: Counter[str] = Counter()
        self.failing = set(failing)
        self.status = status
        self.url = ""


@contextmanager
def failing_gateway(status: int, *failing: str) -> Iterator[Asked]:
    """A gateway, in front of which something answers for some orders."""
    asked = Asked(status, failing)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            segments = json.loads(self.rfile.read(int(self.headers["content-length"])))
            if self.path == "/v1/segments":  # an older gateway
                answer(self, 404, b"no such page", "text/plain")
                return
            order = self.path.split("/")[3]
            asked.requests[order] += 1
            is_failing = order in asked.failing
            body = b"oops" if is_failing else json.dumps({"accepted": len(segments)}).encode()
            answer(self, asked.status if is_failing else 200, body)

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    with serving(Handler) as asked.url:
        yield asked


def spooled(path: Path, order: str, count: int) -> None:
    """Puts segments of an order into a spool, as an earlier client did."""
    with Spool(path) as spool:
        segments = [
            SegmentEvent(order, each, each, each + 1, False) for each in range(1, count + 1)
        ]
        spool.append(segments, SessionState(order, 10, count + 1, count + 1, True))


@pytest.mark.parametrize("status", [500, 502, 404, 403])
def test_order_that_the_gateway_fails_for_blocks_nobody(tmp_path: Path, status: int) -> None:
    """Though its segments are the oldest, and more than go into one batch."""
    path, trouble = tmp_path / "spool", list[Exception]()
    spooled(path, "poison", 1_200)
    spooled(path, "good", 3)
    with failing_gateway(status, "poison") as asked:
        uplink = HttpUplink(asked.url)
        with Client(uplink, path, backoff=SLOW, on_error=trouble.append) as client:
            wait_until(lambda: client._spool.pending("good") == 0, "the good one is sent")
            assert client._spool.pending("poison") == 1_200
            assert 1 <= asked.requests["poison"] <= 2  # it has pauses of its own
            assert any(f"orders/poison/segments: status {status}" in str(e) for e in trouble)
            asked.failing.clear()
            assert client.flush(HANG_S) == 0
            client.close(timeout_s=0)


def test_gateway_that_fails_for_everybody_is_not_asked_for_each(tmp_path: Path) -> None:
    orders = [f"SO{each}" for each in range(20)]
    for order in orders:
        spooled(tmp_path / "spool", order, 1)
    with failing_gateway(500, *orders) as asked:
        uplink = HttpUplink(asked.url)
        result = uplink.send([SegmentEvent(each, 1, 0, 1, False) for each in orders])
        uplink.close()
        assert asked.requests.total() == 3
        assert [*result.failed] == orders[:3]
        assert isinstance(result.problem, OrderFailed)
        asked.requests.clear()
        asked.status = 503
        uplink = HttpUplink(asked.url)
        result = uplink.send([SegmentEvent(each, 1, 0, 1, False) for each in orders])
        uplink.close()
        assert asked.requests.total() == 1  # it is busy, whoever asks
        assert (result.failed, type(result.problem)) == ({}, UplinkUnavailable)


def test_several_poison_orders_block_nobody(tmp_path: Path) -> None:
    poison = [f"bad{each}" for each in range(10)]
    for order in (*poison, "good"):
        spooled(tmp_path / "spool", order, 2)
    with failing_gateway(500, *poison) as asked:
        uplink = HttpUplink(asked.url)
        with Client(uplink, tmp_path / "spool", backoff=QUICK, on_error=ignore) as client:
            wait_until(lambda: client._spool.pending("good") == 0, "the good one is sent")
            assert client._spool.pending() == 2 * len(poison)
            client.close(timeout_s=0)


def test_held_orders_come_back_one_at_a_time() -> None:
    holds = Holds()
    assert (holds.held(0), holds.wait_s(0)) == ([], None)
    assert [holds.failed("a"), holds.failed("a"), holds.failed("b")] == [1, 2, 1]
    holds.hold("a", 5.0)
    holds.hold("b", 7.0)
    assert (holds.held(4.0), holds.wait_s(4.0)) == (["a", "b"], 1.0)
    assert (holds.held(5.0), holds.wait_s(5.0)) == (["b"], 2.0)
    holds.hold("a", 6.0)
    assert [holds.held(8.0), holds.held(8.0)] == [["b"], []]  # one at a time
    holds.hold("b", 9.0)
    holds.release()
    assert (holds.wait_s(5.0), holds.held(5.0), holds.failed("b")) == (0.0, [], 2)
    holds.worked("b")
    assert holds.failed("b") == 1


def test_full_disk_is_told_and_no_time_is_lost(
    small_disk: Path, bootstrap_servers: str, topics: Topics
) -> None:
    """First the server is away, so the spool grows; then others take the rest of the disk.

    The spool begins with little room, so that it has a small reserve.
    """
    before = fill_up(small_disk)
    os.truncate(before, before.stat().st_size - 600 * 1024)
    before = before.rename(small_disk / "before")
    trouble: list[Exception] = []
    down = Uplink()
    down.is_up = False
    path = small_disk / "spool"
    with Client(down, path, backoff=QUICK, on_error=trouble.append) as client:
        service = client.start(grant=Grant("SO1", NOW_MS, 5))
        wait_until(lambda: client._spool.pending() > 5, "some are stored")
        others = fill_up(small_disk)
        wait_until(lambda: any(isinstance(each, SpoolFull) for each in trouble), "it is told")
        assert "nothing was stored, free some space" in str(trouble)
        stored = client._spool.pending()
        with pytest.raises(SpoolFull):
            service.end(timeout_s=0)
        down.is_up = True
        assert client.flush(HANG_S) == 0  # what was stored is sent and removed without any room
        assert len(down.got) >= stored
        others.unlink()
        receipt = service.end(HANG_S)
        assert receipt.acknowledged
    check_whole(sorted(set(down.got), key=lambda each: each.business_data_number))
