"""A disk that fails for a while ends no thread: what fails is told, and the client goes on."""

import errno
import os
import sqlite3
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import pytest

from durabill.producers.sdk import sender
from durabill.producers.sdk.client import Client
from durabill.producers.sdk.reporter import Reporter
from durabill.producers.sdk.spool import Entry, Spool, SpoolBroken, SpoolDamaged, SpoolFull
from durabill.producers.sdk.uplink import NO_NOTES, SendNotes, SendResult, UplinkUnavailable
from durabill.schemas import SegmentEvent
from tests.broker.test_client import QUICK, Uplink
from tests.unit.test_spool import numbers, segment, state
from tests.waiting import HANG_S, wait_until

ERRORS = [SpoolBroken("no disk"), OSError("no disk"), sqlite3.OperationalError("no disk")]


@pytest.fixture(autouse=True)
def _tried_again_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("durabill.producers.sdk.spool._HEAL_PAUSE", 0.0)


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
        assert service.end(HANG_S).acknowledged  # though it fails still: a look is no condition


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


def test_sync_that_failed_is_due_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Spool(tmp_path / "spool") as spool:
        spool.append_all([Entry([], state(1))], durable=False)
        for broken, error in ((spool._file, SpoolFull("no room")), (spool, SpoolBroken("no disk"))):

            def fail(*_: object, error: Exception = error) -> None:
                raise error

            with monkeypatch.context() as patch:
                patch.setattr(broken, "sync" if broken is spool._file else "_guarded", fail)
                with suppress(SpoolBroken):
                    spool.sync()
            assert 0.0 < (spool.sync_due_s() or 0.0) <= 1.0, "not at once: it may fail for hours"
        spool.sync()
        assert spool.sync_due_s() is None


class _Disk:
    """A connection whose next commits can't be fsynced."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self.failures = 0
        self.commits = False
        self.ran: list[str] = []

    def __getattr__(self, name: str) -> object:
        return getattr(self._db, name)

    def execute(self, query: str, values: Sequence[object] = ()) -> sqlite3.Cursor:
        self.ran.append(query)
        if query == "COMMIT" and self.failures:
            self.failures -= 1
            self._db.execute("COMMIT" if self.commits else "ROLLBACK")
            error = sqlite3.OperationalError("disk I/O error")
            error.sqlite_errorcode = sqlite3.SQLITE_IOERR_FSYNC
            raise error
        return self._db.execute(query, values)


def test_what_could_not_be_fsynced_is_written_anew_before_more_is_stored(tmp_path: Path) -> None:
    """The kernel may have forgotten it, and say yes the next time."""
    told = list[SpoolDamaged]()
    with Spool(tmp_path / "spool", on_damage=told.append) as spool:
        spool.append([segment(1)], state(2))
        disk = _Disk(spool._file.db)
        spool._file.db = disk  # type: ignore[assignment]
        spool.append_all([Entry([], state(1, "other"))], durable=False)
        assert "PRAGMA wal_autocheckpoint=0" in disk.ran, "nobody would hear that it failed"
        disk.failures = 1
        spool.append([segment(2)], state(3))
        assert not isinstance(spool._file.db, _Disk)
        assert len(told) == 1
        assert numbers(spool) == [1, 2]
        assert {each.service_order_number for each in spool.sessions()} == {"SO1", "other"}
    assert not list(tmp_path.glob("*damaged*")), "all of it was read: a disk may fail so again"


def test_numbers_of_a_commit_that_could_not_be_fsynced_are_given_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It can be read, though it failed: there must not be two segments of one number."""
    with Spool(tmp_path / "spool", on_damage=lambda _: None) as spool:
        spool.append([segment(1)], state(2))
        disk = _Disk(spool._file.db)
        spool._file.db = disk  # type: ignore[assignment]
        disk.failures, disk.commits = 1, True
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", _no_disk)
            with pytest.raises(SpoolBroken):
                spool.append([segment(2)], state(3))
        longer = SegmentEvent("SO1", 2, segment(2).start_ms, segment(2).end_ms + 1, False)
        spool.append([longer], state(3))
        assert [each.segment for each in spool.oldest(9)] == [segment(1), longer]


def _no_disk(_handle: int) -> None:
    raise OSError(errno.EIO, "Input/output error")


def test_log_is_worked_in_now_and_then_though_nothing_is_stored(tmp_path: Path) -> None:
    with Spool(tmp_path / "spool") as spool:
        spool.append([segment(each) for each in range(1, 30)], state(30))
        _, before = spool.commit_counts()
        for entry in spool.oldest(20):
            spool.acknowledge([entry.entry_id])
        assert spool.commit_counts()[1] == before + 2
