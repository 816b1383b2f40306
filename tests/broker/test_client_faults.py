"""The SDK and faults of its own, or of its caller: it goes on, or says that it doesn't."""

import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import pytest

from durabill.producers.sdk.client import Client, ClientStopped
from durabill.producers.sdk.session import SessionState
from durabill.producers.sdk.spool import Spool, SpoolFull
from durabill.producers.sdk.uplink import NO_NOTES, SendNotes, SendResult, UplinkRefused
from durabill.schemas import SegmentEvent
from tests.broker.test_client import QUICK, Uplink, ignore
from tests.waiting import HANG_S, wait_until


def test_on_error_that_raises_stops_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def on_error(error: Exception) -> None:
        raise RuntimeError(f"of the caller's, about {error}")

    uplink = Uplink()
    uplink.is_up = False
    with Client(uplink, tmp_path / "spool", backoff=QUICK, on_error=on_error) as client:
        service = client.start()
        wait_until(lambda: "on_error raised; it was told of UplinkUnavail" in caplog.text, "told")
        uplink.is_up = True
        assert service.end(HANG_S).acknowledged


class Clock:
    """A clock that raises what the test wants."""

    def __init__(self) -> None:
        self.raises: BaseException | None = None

    def __call__(self) -> int:
        if self.raises is not None and threading.current_thread().name == "durabill-reporter":
            raise self.raises
        return time.monotonic_ns()


def test_error_in_the_reporter_is_told_and_metering_goes_on(tmp_path: Path) -> None:
    clock, trouble, uplink = Clock(), list[Exception](), Uplink()
    with Client(uplink, tmp_path / "spool", clock=clock, on_error=trouble.append) as client:
        service = client.start()
        clock.raises = RuntimeError("of the clock")
        wait_until(lambda: clock.raises in trouble, "told")
        clock.raises, seen = None, service.state.next_number
        wait_until(lambda: service.state.next_number > seen, "it goes on")
        assert service.end().acknowledged


def test_thread_that_dies_is_told_at_once_and_by_every_call(tmp_path: Path) -> None:
    clock, trouble, uplink = Clock(), list[Exception](), Uplink()
    client = Client(uplink, tmp_path / "spool", clock=clock, on_error=trouble.append)
    service = client.start()
    uplink.is_up = False
    clock.raises = SystemExit("of the clock")
    wait_until(lambda: any(isinstance(each, ClientStopped) for each in trouble), "told")
    for call in (client.start, client.flush, service.end, lambda: client.resume("SO1")):
        with pytest.raises(ClientStopped, match=r"reporter died of .*of the clock"):
            call()
    started_s = time.monotonic()
    client.close(timeout_s=HANG_S)
    assert time.monotonic() - started_s < HANG_S / 2  # there is nothing to wait for
    with pytest.raises(ClientStopped, match="closed"):
        client.start()
    uplink.is_up = True
    with Client(uplink, tmp_path / "spool") as client:  # carries on
        assert client.resume("SO1").end(HANG_S).acknowledged


def test_whoever_waits_when_a_thread_dies_is_told(tmp_path: Path) -> None:
    class Dying(Uplink):
        def send(self, segments: Sequence[SegmentEvent], notes: SendNotes = NO_NOTES) -> SendResult:
            time.sleep(0.2)
            raise SystemExit("of the uplink")

    client = Client(Dying(), tmp_path / "spool", on_error=ignore)
    started_s = time.monotonic()
    with pytest.raises(ClientStopped, match="sender died of SystemExit: of the uplink"):
        client.start().end(HANG_S)
    assert time.monotonic() - started_s < HANG_S / 2
    client.close()


def test_fault_with_one_service_stops_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    trouble, uplink = list[Exception](), Uplink()
    with Client(uplink, tmp_path / "spool", on_error=trouble.append) as client:
        bad, good = client.start("bad"), client.start("good")
        began_s = time.monotonic()
        with monkeypatch.context() as patch:
            patch.setattr(bad._session, "report", lambda _: 1 / 0)
            wait_until(lambda: any(isinstance(e, ZeroDivisionError) for e in trouble), "told")
            seen = good.state.next_number
            wait_until(lambda: good.state.next_number > seen + 2, "the other goes on")
        assert len(trouble) <= 1 + (time.monotonic() - began_s)  # a second apart
        assert good.end(HANG_S).acknowledged
        assert bad.end(HANG_S).acknowledged
    ends = [each.service_order_number for each in uplink.got if each.end_identifier]
    assert ends == ["good", "bad"]


def test_refused_ones_without_room_hold_up_no_other(tmp_path: Path) -> None:
    """The spool is so full that they can't even be set aside; what is accepted makes room."""

    class Wordy(Uplink):
        def send(self, segments: Sequence[SegmentEvent], notes: SendNotes = NO_NOTES) -> SendResult:
            result = super().send(segments, notes)
            result.refused = {at: UplinkRefused("NO", "n" * 500) for at in result.refused}
            return result

    path, trouble, uplink = tmp_path / "spool", list[Exception](), Wordy()
    stored = {"bad": 0, "good": 0}
    with Spool(path, limit_bytes=64 * 1024) as spool, suppress(SpoolFull):
        while True:
            order, count = ("good", 1) if stored["bad"] > 90 * (stored["good"] + 1) else ("bad", 10)
            first = stored[order] + 1
            segments = [SegmentEvent(order, first + n, n, n + 1, False) for n in range(count)]
            spool.append(segments, SessionState(order, 10, first + count, count, False))
            stored[order] += count
    uplink.refuses = {"bad"}
    with Client(
        uplink, path, spool_limit_bytes=64 * 1024, backoff=QUICK, on_error=trouble.append
    ) as client:
        wait_until(lambda: any(isinstance(each, SpoolFull) for each in trouble), "told")
        wait_until(lambda: client._spool.pending("good") == 0, "the others are sent")
        uplink.refuses = set()  # what was wrong has been mended
        # One request may be under way, and be refused yet.
        wait_until(lambda: client.retry_rejected() + client.flush(HANG_S) == 0, "all is sent")
    assert sum(stored.values()) == len(set(uplink.got))
    assert min(stored["bad"] / 100, stored["good"]) > 2
