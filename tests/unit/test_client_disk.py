"""A disk that fails for a while ends no thread: what fails is told, and the client goes on."""

import sqlite3
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from durabill.producers.sdk import sender
from durabill.producers.sdk.client import Client
from durabill.producers.sdk.reporter import Reporter
from durabill.producers.sdk.spool import Spool, SpoolBroken
from durabill.producers.sdk.uplink import NO_NOTES, SendNotes, SendResult, UplinkUnavailable
from durabill.schemas import SegmentEvent
from tests.broker.ledger_kit import wait_until
from tests.broker.test_client import QUICK, Uplink

ERRORS = [SpoolBroken("no disk"), OSError("no disk"), sqlite3.OperationalError("no disk")]


class Away(Uplink):
    """A server that wishes for a long pause."""

    def send(self, segments: Sequence[SegmentEvent], notes: SendNotes = NO_NOTES) -> SendResult:
        if self.is_up:
            return super().send(segments, notes)
        return SendResult(problem=UplinkUnavailable("away", retry_after_s=1.0))


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_disk_that_fails_in_a_long_pause_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    uplink, told, is_broken = Away(), list[Exception](), threading.Event()
    monkeypatch.setattr(sender, "_LOOK_EVERY_S", 0.01)
    with Client(uplink, tmp_path / "spool", backoff=QUICK, on_error=told.append) as client:
        look = client._sender._standing.look

        def fail(now_s: float) -> None:
            if is_broken.is_set():
                raise error
            look(now_s)

        monkeypatch.setattr(client._sender._standing, "look", fail)
        uplink.is_up = False
        service = client.start()
        wait_until(lambda: any(isinstance(each, UplinkUnavailable) for each in told), "it pauses")
        is_broken.set()
        wait_until(lambda: error in told, "the disk's error is told")
        uplink.is_up = True
        assert service.end().acknowledged  # though it fails still: a look is no condition


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_disk_that_fails_in_a_sync_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    told = list[Exception]()
    with Spool(tmp_path / "spool", fsync=False) as spool:

        def fail() -> None:
            raise error

        monkeypatch.setattr(spool, "sync", fail)
        Reporter(lambda: 0, spool, lambda: None, told.append)._sync()
    assert told == [error]
