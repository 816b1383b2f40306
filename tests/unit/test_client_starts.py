"""Starts that a client doesn't take: a go of another time, and a number that it still has here."""

from dataclasses import replace
from pathlib import Path

import pytest

from durabill.producers.sdk.client import GRANT_OFF_MAX_MS, Client
from durabill.producers.sdk.server_clock import ServerStamps
from durabill.producers.sdk.uplink import Grant, UplinkUnavailable
from tests.broker.test_client import QUICK, Uplink, ignore
from tests.waiting import wait_until


class Off(Uplink):
    """A server whose go is so many ms off the time at which it answers."""

    def __init__(self, off_ms: int) -> None:
        super().__init__()
        self._off_ms = off_ms

    def start(
        self, service_order_number: str | None = None, *, timeout_s: float | None = None
    ) -> Grant:
        grant = super().start(service_order_number)
        at_ms = grant.server_timestamp_ms
        stamps = ServerStamps(at_ms, at_ms)
        return replace(grant, server_timestamp_ms=at_ms + self._off_ms, stamps=stamps)


@pytest.mark.parametrize("off_ms", [GRANT_OFF_MAX_MS + 1, -GRANT_OFF_MAX_MS - 1])
def test_a_go_more_than_a_day_off_is_none(tmp_path: Path, off_ms: int) -> None:
    with Client(Off(off_ms), tmp_path / "spool", backoff=QUICK) as client:
        with pytest.raises(UplinkUnavailable, match="after the server's own time"):
            client.start("SO1", timeout_s=1.0)
        assert client.unfinished() == []


@pytest.mark.parametrize("off_ms", [GRANT_OFF_MAX_MS, -GRANT_OFF_MAX_MS])
def test_a_go_a_day_off_is_one(tmp_path: Path, off_ms: int) -> None:
    with Client(Off(off_ms), tmp_path / "spool", backoff=QUICK, on_error=ignore) as client:
        assert client.start("SO1").service_order_number == "SO1"


@pytest.mark.parametrize("is_refused", [False, True])
def test_a_number_whose_segments_are_still_here_is_in_use(tmp_path: Path, is_refused: bool) -> None:
    uplink = Uplink()
    uplink.is_up, uplink.refuses = is_refused, {"SO1"} if is_refused else set()
    with Client(uplink, tmp_path / "spool", backoff=QUICK, on_error=ignore) as client:
        client.start("SO1").end(timeout_s=0.0)
        if is_refused:
            wait_until(lambda: bool(client.rejected()), "its segments are refused")
        with pytest.raises(ValueError, match="in use here"):
            client.start("SO1")
        uplink.is_up, uplink.refuses = True, set()
        if is_refused:
            client.discard_rejected("SO1")
        wait_until(lambda: client.flush(0.1) == 0, "nothing waits")
        client.start("SO1").end(timeout_s=0.0)
