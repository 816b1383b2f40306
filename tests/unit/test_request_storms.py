"""A server that answers, but takes nothing: it is asked ever more seldom, not once an order."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from durabill.producers.sdk import sender
from durabill.producers.sdk.client import Client
from durabill.producers.sdk.holds import Holds
from durabill.producers.sdk.lease_keeper import LeaseKeeper
from durabill.producers.sdk.pace import IN_VAIN_ORDERS, Pace
from durabill.producers.sdk.spool import Entry, Spool
from durabill.producers.sdk.standing import ServerNow
from durabill.producers.sdk.timekeeper import Timekeeper
from durabill.producers.sdk.uplink import (
    NO_NOTES,
    Backoff,
    OrderFailed,
    OrderTerms,
    SendNotes,
    SendResult,
    UplinkRefused,
)
from durabill.schemas import SegmentEvent
from tests.broker.test_client import NOW_MS, Uplink, ignore
from tests.unit.test_spool import state
from tests.waiting import HANG_S, wait_until

ORDERS = [f"SO{each}" for each in range(50)]
NO_TERMS = OrderTerms()
OVER = OrderTerms("a.b.c", lease_expires_ms=1)
IN_TIME = OrderTerms("a.b.c", lease_expires_ms=NOW_MS * 2, renew_from_ms=1)


def spooled(path: Path, terms: OrderTerms = NO_TERMS) -> Spool:
    spool = Spool(path, fsync=False)
    for order in ORDERS:
        last = SegmentEvent(order, 1, NOW_MS - 10, NOW_MS, True)
        spool.append_all([Entry([last], state(2, order, ended=True), terms)])
    return spool


class Taking(Uplink):
    """A server that takes nothing and refuses nothing; or refuses each lease."""

    def __init__(self, reason: str = "") -> None:
        super().__init__()
        self.requests = 0
        self.renewals: list[str] = []
        self._reason = reason

    def send(self, segments: Sequence[SegmentEvent], notes: SendNotes = NO_NOTES) -> SendResult:
        if self.is_up:
            return super().send(segments, notes)
        self.requests += 1
        numbers = {each.service_order_number for each in segments}
        return SendResult(failed={each: OrderFailed("later") for each in numbers})

    def renew(
        self, service_order_number: str, lease: str, *, timeout_s: float | None = None
    ) -> OrderTerms:
        self.renewals.append(service_order_number)
        raise UplinkRefused(self._reason, "no")


def test_server_that_fails_for_each_order_is_paused_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every try is followed by a pause of all; and once it works, all goes in a few requests."""
    spooled(tmp_path / "spool").close()
    uplink, pauses, sleep = Taking(), list[float](), sender._sleep
    uplink.is_up = False

    def noted(until: object, pause_s: float, look: Callable[[float], None]) -> None:
        pauses.append(pause_s)
        sleep(until, min(pause_s, 0.01), look)  # type: ignore[arg-type]

    monkeypatch.setattr(sender, "_sleep", noted)
    quick = Backoff(first_s=0.001, max_s=0.002)
    with Client(uplink, tmp_path / "spool", backoff=quick, on_error=ignore) as client:
        wait_until(lambda: len(pauses) >= 20, "it has tried")
        uplink.is_up = True
        assert client.flush(HANG_S) == 0
    assert min(pauses) > 0
    assert uplink.requests <= len(pauses) + 1


def test_pause_of_all_grows_until_something_works() -> None:
    pace = Pace(Backoff(first_s=1.0, max_s=30.0), lambda: 0.0)
    assert [pace.in_vain_s(["a"]) for _ in range(9)] == [0.0] * 9  # one order: it has its own
    assert pace.in_vain_s(["b"]) == 0.0
    assert [pace.in_vain_s(["c"]) for _ in range(7)] == [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]
    pace.worked()
    assert pace.in_vain_s(["a", "b"]) == 0.0
    assert pace.in_vain_s(ORDERS[:IN_VAIN_ORDERS]) == 1.0


def test_orders_come_back_ever_more_at_a_time() -> None:
    holds, sizes = Holds(), list[int]()
    for order in ORDERS:
        holds.failed(order)
        holds.hold(order, 1.0)
    left = set(ORDERS)
    while left:
        tried = left - set(holds.held(2.0))
        sizes.append(len(tried))
        left -= tried
        for order in tried:
            holds.worked(order)
    assert sizes == [1, 2, 4, 8, 16, 19]
    holds.worked("never failed")
    for order in ("a", "b"):
        holds.failed(order)
        holds.hold(order, 1.0)
    assert len(holds.held(2.0)) == 1


@pytest.mark.parametrize(
    ("reason", "terms", "asked", "is_problem"),
    [
        ("LEASE_OF_ANOTHER", OVER, 3, True),
        ("UNAUTHORIZED", OVER, 1, True),
        ("INSUFFICIENT_SCOPE", OVER, 1, True),
        ("UNAUTHORIZED", IN_TIME, 1, False),
        ("LEASE_INVALID", OVER, 50, False),
    ],
)
def test_server_that_refuses_leases_is_not_asked_for_each(
    tmp_path: Path, reason: str, terms: OrderTerms, asked: int, is_problem: bool
) -> None:
    uplink = Taking(reason)
    with spooled(tmp_path / "spool", terms) as spool:
        keeper = LeaseKeeper(spool, uplink, ServerNow(Timekeeper(), spool))
        stalled, problem = keeper.renew(ORDERS)
        assert (len(uplink.renewals), problem is not None) == (asked, is_problem)
        assert len(stalled) == (asked if is_problem else 0)
        if terms is IN_TIME:  # nor in the next turn
            keeper.renew(ORDERS)
            assert len(uplink.renewals) == asked


def test_one_order_whose_lease_is_refused_holds_up_no_other(tmp_path: Path) -> None:
    with spooled(tmp_path / "spool", OVER) as spool:
        keeper = LeaseKeeper(spool, Taking("LEASE_OF_ANOTHER"), ServerNow(Timekeeper(), spool))
        stalled, problem = keeper.renew(ORDERS[:1])
    assert (list(stalled), problem) == (ORDERS[:1], None)


def test_order_without_a_lease_waits_ever_longer(tmp_path: Path) -> None:
    """LEASE_INVALID, sent without, LEASE_MISSING, and so on."""
    spooled(tmp_path / "spool", OVER).close()
    with Client(Taking(), tmp_path / "spool", dice=lambda: 0.0, on_error=ignore) as client:
        client._sender.stop()
        client._threads[1].join()
        holds, hold, waits_s = client._sender._holds, client._sender._hold, list[float]()
        client._sender._leases.stale = {"SO1"}
        for _ in range(12):
            hold("SO1", OrderFailed("LEASE_MISSING"))
            waits_s.append(holds.wait_s(0.0) or 0.0)
        hold("SO2", OrderFailed("of its own"))
        assert holds._failures["SO1"] == 12
        assert max(waits_s) - (holds._until_s["SO2"] - 0.2) == pytest.approx(240.0, abs=5.0)
        client.close(timeout_s=0)
