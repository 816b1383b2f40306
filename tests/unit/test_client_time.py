"""A client and its time: what it feeds its clock, what it tells, and what outlives it."""

import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from durabill.producers.sdk.client import Client
from durabill.producers.sdk.server_clock import APART_US, ServerStamps
from durabill.producers.sdk.suspends import Clocks
from durabill.producers.sdk.timekeeper import ClockStepped, MachineSlept
from durabill.producers.sdk.uplink import (
    NO_NOTES,
    Backoff,
    ClientReport,
    Grant,
    SendNotes,
    SendResult,
    UplinkUnavailable,
)
from durabill.schemas import SegmentEvent
from tests.waiting import HANG_S, wait_until

NOW_MS = 1_770_000_000_000
HOUR_MS = 3_600_000


class Server:
    """A server with the right time, that says it with every answer."""

    def __init__(self, machine: "Machine | None" = None) -> None:
        self._machine = Machine() if machine is None else machine
        self.ahead_ms = 0.0
        self.stamps_grants, self.asked = False, 0
        self.got: list[SegmentEvent] = []
        self.reports: list[ClientReport] = []
        self._begun_s = time.monotonic()

    def now_ms(self) -> float:
        passed_ms = round((time.monotonic() - self._begun_s) * 1000, 3)
        return NOW_MS + self.ahead_ms + self._machine.slept_ms + passed_ms

    def start(
        self, service_order_number: str | None = None, *, timeout_s: float | None = None
    ) -> Grant:
        now_ms = self.now_ms()
        stamps = ServerStamps(now_ms, now_ms, "a") if self.stamps_grants else None
        return Grant(service_order_number or "SO1", int(now_ms), 20, stamps=stamps)

    def server_time(self, *, timeout_s: float | None = None) -> ServerStamps:
        self.asked += 1
        return ServerStamps(self.now_ms(), self.now_ms(), "a")

    def send(self, segments: Sequence[SegmentEvent], notes: SendNotes = NO_NOTES) -> SendResult:
        received_ms = self.now_ms()
        self.got += segments
        if notes.report is not None:
            self.reports.append(notes.report)
        stamps = ServerStamps(received_ms, self.now_ms(), "a")
        return SendResult(accepted=list(range(len(segments))), stamps=stamps)

    def close(self) -> None:
        """Nothing to close."""

    def billed_ms(self) -> int:
        return sum(each.end_ms - each.start_ms for each in self.got)


class Machine:
    """The clocks of this machine, which a test has drift and sleep."""

    def __init__(self, drift_ppm: int = 0) -> None:
        self._drift_ppm = drift_ppm
        self.slept_ms = 0

    def clocks(self) -> Clocks:
        return Clocks(lambda: self._running_ns() + self.slept_ms * 1_000_000, self._running_ns)

    def _running_ns(self) -> int:
        now_ns = time.monotonic_ns()
        return now_ns + now_ns * self._drift_ppm // 1_000_000


def test_uploads_keep_a_bad_crystal_on_the_servers_time(tmp_path: Path) -> None:
    server, machine = Server(), Machine(drift_ppm=50_000)
    with Client(server, tmp_path / "spool", clock=machine.clocks(), drift_ppm=60_000) as client:
        begun_ms = server.now_ms()
        service = client.start()
        wait_until(lambda: service.state.reported_until_ms > NOW_MS + 1_000, "a second is reported")
        before_ms = server.now_ms()
        receipt = service.end(HANG_S)
        ended_ms = server.now_ms()
    assert receipt.acknowledged
    bound_ms = receipt.clock_bound_ms
    assert before_ms - begun_ms - bound_ms <= server.billed_ms() <= ended_ms - begun_ms + bound_ms
    assert all(one.end_ms == other.start_ms for one, other in pairwise(server.got))
    assert {each.suspends for each in server.reports} == {0}
    assert all(each.clock_bound_ms is not None for each in server.reports)


@pytest.mark.parametrize("stamps_grants", [True, False])
def test_a_start_asks_for_the_time_only_where_its_answer_does_not_say_it(
    tmp_path: Path, *, stamps_grants: bool
) -> None:
    server = Server()
    server.stamps_grants = stamps_grants
    with Client(server, tmp_path / "spool") as client:
        begun_ms = server.now_ms()
        service = client.start()
        taken_ms = server.now_ms() - begun_ms
        assert server.asked == (not stamps_grants)
        assert client.stats().clock_bound_ms is not None
        unsure_ms = 0 if stamps_grants else APART_US // 1_000
        assert unsure_ms <= service.state.clock_bound_ms <= unsure_ms + 3 * taken_ms + 50


def test_no_order_goes_on_by_a_time_that_can_not_be(tmp_path: Path) -> None:
    server = Server()
    with Client(server, tmp_path / "spool", on_error=lambda _: None) as client:
        client.start()
    server.ahead_ms = -NOW_MS
    with Client(server, tmp_path / "spool", on_error=lambda _: None) as client:
        with pytest.raises(UplinkUnavailable, match="can't be"):
            client.resume("SO1", timeout_s=0)
        server.ahead_ms = 0
        assert client.resume("SO1").state.clock_bound_ms < HOUR_MS


class Losing(Server):
    """The answer to its first start is lost; the second one says the same."""

    first: Grant | None = None

    def start(
        self, service_order_number: str | None = None, *, timeout_s: float | None = None
    ) -> Grant:
        grant = super().start(service_order_number, timeout_s=timeout_s)
        if self.first is None:
            self.first = grant
            raise UplinkUnavailable("lost")
        return replace(grant, server_timestamp_ms=self.first.server_timestamp_ms)


def test_a_start_that_is_repeated_may_have_begun_by_another_gateways_clock(tmp_path: Path) -> None:
    server = Losing()
    server.stamps_grants = True
    with Client(server, tmp_path / "spool", backoff=Backoff(0.01, 0.01)) as client:
        assert client.start(timeout_s=60).state.clock_bound_ms >= APART_US // 1_000


def test_a_suspend_is_left_out_told_and_reported(tmp_path: Path) -> None:
    machine, told = Machine(), list[Exception]()
    server = Server(machine)
    with Client(server, tmp_path / "spool", clock=machine.clocks(), on_error=told.append) as client:
        service = client.start()
        wait_until(lambda: service.state.next_number > 3, "it reports")
        machine.slept_ms += HOUR_MS
        wait_until(lambda: service.state.reported_until_ms > NOW_MS + HOUR_MS, "it goes on")
        wait_until(lambda: client.stats().pending == 0, "it is sent")
        stats = client.stats()
        receipt = service.end(HANG_S)
    assert [MachineSlept] == [type(each) for each in told]
    assert (stats.suspends, receipt.suspends) == (1, 1)
    assert server.reports[-1].suspends == 1
    assert abs(receipt.excluded_ms - HOUR_MS) <= receipt.clock_bound_ms
    gaps_ms = [two.start_ms - one.end_ms for one, two in pairwise(server.got)]
    assert [each for each in gaps_ms if each] == [receipt.excluded_ms]


def test_a_suspend_is_counted_where_it_is_to_be(tmp_path: Path) -> None:
    machine = Machine()
    server = Server(machine)
    with Client(
        server,
        tmp_path / "spool",
        clock=machine.clocks(),
        suspends="count",
        on_error=lambda _: None,
    ) as client:
        service = client.start()
        wait_until(lambda: service.state.next_number > 3, "it reports")
        machine.slept_ms += HOUR_MS
        wait_until(lambda: service.state.reported_until_ms > NOW_MS + HOUR_MS, "it goes on")
        receipt = service.end(HANG_S)
    assert (receipt.suspends, receipt.excluded_ms) == (1, 0)
    assert server.billed_ms() >= HOUR_MS
    assert all(one.end_ms == other.start_ms for one, other in pairwise(server.got))


def test_a_step_of_the_servers_time_is_told_and_within_the_bound(tmp_path: Path) -> None:
    server, told = Server(), list[Exception]()
    with Client(server, tmp_path / "spool", on_error=told.append) as client:
        service = client.start()
        wait_until(lambda: service.state.next_number > 3, "it reports")
        server.ahead_ms += HOUR_MS
        wait_until(lambda: service.state.reported_until_ms > NOW_MS + HOUR_MS, "it goes on")
        receipt = service.end(HANG_S)
    assert [ClockStepped] == [type(each) for each in told]
    assert receipt.clock_bound_ms >= HOUR_MS - 1_000


def test_bound_and_suspends_outlive_the_client(tmp_path: Path) -> None:
    machine = Machine()
    server = Server(machine)
    with Client(
        server, tmp_path / "spool", clock=machine.clocks(), on_error=lambda _: None
    ) as client:
        service = client.start()
        machine.slept_ms += HOUR_MS
        wait_until(lambda: service.state.excluded_ms > 0, "it goes on")
    last = service.state
    assert (last.suspends, last.clock_bound_ms > 0) == (1, True)
    server.ahead_ms += HOUR_MS
    with Client(server, tmp_path / "spool") as client:  # another boot: no local clock goes on
        assert [last] == client.unfinished()
        service = client.resume("SO1", count_gap=True)
        assert service.state.clock_bound_ms >= last.clock_bound_ms + APART_US // 1_000
        receipt = service.end(HANG_S)
    first = next(e for e in server.got if e.business_data_number == last.next_number)
    assert first.start_ms == last.reported_until_ms
    assert (receipt.suspends, receipt.excluded_ms) == (1, last.excluded_ms)
    assert server.billed_ms() >= HOUR_MS


def test_a_clock_that_jumps_forwards_by_hours_costs_nothing(tmp_path: Path) -> None:
    """Else hours would be billed at once, in the server's future, and none for hours after that."""
    server, told, jumped = Server(), list[Exception](), list[int]()
    clock = Clocks(lambda: time.monotonic_ns() + sum(jumped))
    with Client(server, tmp_path / "spool", clock=clock, on_error=told.append) as client:
        service = client.start()
        wait_until(lambda: service.state.next_number > 3, "it reports")
        jumped.append(2 * HOUR_MS * 1_000_000)
        seen = service.state.next_number
        wait_until(lambda: service.state.next_number > seen + 3, "it goes on")
        receipt = service.end(HANG_S)
        assert service.state.reported_until_ms <= server.now_ms() + 1_000
    assert [ClockStepped] == [type(each) for each in told]
    assert receipt.clock_bound_ms >= 2 * HOUR_MS - 1_000
    assert server.billed_ms() < HOUR_MS
