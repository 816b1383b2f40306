"""A damaged spool is replaced whole or not at all, whatever fails meanwhile."""

import errno
import os
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from durabill.producers.sdk import spool_swap
from durabill.producers.sdk.reserve import Reserve
from durabill.producers.sdk.salvage import Salvaged, _rows, read_what_is_left
from durabill.producers.sdk.spool import (
    Entry,
    RejectedSegment,
    Spool,
    SpoolBroken,
    SpoolDamaged,
    SpoolError,
    SpoolFull,
)
from tests.unit.test_spool import fill, numbers, segment, state
from tests.unit.test_spool_damage import FORMAT_1, TERMS, healed

ALL = list(range(3, 13))  # what waits in `made`


class Killed(BaseException):
    """Stands for the end of the process."""


def made(path: Path) -> None:
    """A closed spool: ten segments wait, one was refused, and there are two receipts."""
    with Spool(path, fsync=False) as spool:
        for number in range(1, 13):
            entry = Entry([segment(number, "SO1")], state(number + 1, "SO1"), TERMS)
            spool.append_all([entry])
        spool.acknowledge([1], "receipt-1", kept_ms=1)
        spool.acknowledge([], "receipt-2", kept_ms=1)
        spool.reject([RejectedSegment(2, segment(2, "SO1"), "R", "words")])


def change(path: Path, *queries: str) -> None:
    """Change rows as a disk does, that knows of no constraints."""
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("PRAGMA writable_schema=ON")
        db.execute("UPDATE sqlite_master SET sql = replace(sql, ' NOT NULL', '')")
        db.execute("PRAGMA writable_schema=RESET")
        for query in queries:
            db.execute(query)


def hurt(path: Path) -> None:
    """A spool that is found damaged when it is opened: of two services one can be read."""
    made(path)
    with Spool(path, fsync=False) as spool:
        spool.append([], state(1, "SO9"))
    change(path, "UPDATE services SET next_number = 7 WHERE service_order_number = 'SO9'")


def no_room(*_: object) -> Any:
    raise OSError(errno.ENOSPC, "No space left on device")


def zeroed(path: Path, mark: bytes) -> None:
    """Overwrite the start of a row, and most of what follows, with zeros."""
    content = bytearray(path.read_bytes())
    at = content.rindex(mark)
    end = min(at + 12, (at // 1_024 + 1) * 1_024)
    content[at - 9 : end] = bytes(end - at + 9)
    path.write_bytes(content)


def names(folder: Path) -> set[str]:
    return {each.name for each in folder.iterdir()} - {"spool-reserve", "spool-lock"}


@pytest.fixture(autouse=True)
def _tried_again_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("durabill.producers.sdk.spool._HEAL_PAUSE", 0.0)


def test_heal_that_fails_once_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, told = tmp_path / "spool", list[SpoolDamaged]()
    hurt(path)
    before = path.read_bytes()
    for error, kind in (
        (sqlite3.IntegrityError("NOT NULL constraint failed"), SpoolBroken),
        (OSError(errno.EIO, "Input/output error"), SpoolBroken),
        (OSError(errno.ENOSPC, "No space left on device"), SpoolFull),
    ):
        with monkeypatch.context() as patch:

            def fail(*_: object, error: Exception = error) -> None:
                raise error

            patch.setattr("durabill.producers.sdk.salvage.Salvaged.write", fail)
            with pytest.raises(kind):
                healed(path, told)
        assert (path.read_bytes(), names(tmp_path), told) == (before, {"spool"}, [])
    with healed(path, told) as spool:
        assert numbers(spool) == ALL
    assert len(told) == 1


@pytest.mark.parametrize("step", range(8))
def test_kill_at_any_step_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """Also a call that fails: the next one goes on from there."""
    path, told, steps = tmp_path / "spool", list[SpoolDamaged](), list[object]()
    hurt(path)
    (tmp_path / "spool-wal").write_bytes(b"")  # a step more: it goes with the damaged file

    def killed_at(act: Callable[..., Any], error: BaseException) -> Callable[..., Any]:
        def run(*args: object) -> Any:
            steps.append(args)
            if len(steps) == step + 1:
                raise error
            return act(*args)

        return run

    for error in (OSError(errno.EIO, "failed"), Killed()):
        steps.clear()
        with monkeypatch.context() as patch:
            for name in ("rename", "replace", "fsync"):
                patch.setattr(os, name, killed_at(getattr(os, name), error))
            try:
                healed(path, told).close()
            except (SpoolError, Killed):
                assert told == []
            else:
                break
    with healed(path, told) as spool:
        assert numbers(spool) == ALL
        assert [each.segment for each in spool.rejected()] == [segment(2, "SO1")]
        assert spool.terms("SO1") == TERMS
        assert spool.sessions() == [state(13, "SO1")]
    assert len(told) <= 1  # a kill may come just before it is told
    assert names(tmp_path) <= {"spool", "spool.damaged-1", "spool.damaged-1-wal"}


def test_no_room_for_a_copy_reads_the_file_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, told = tmp_path / "spool", list[SpoolDamaged]()
    spool = healed(path, told)
    fill(spool, 9)
    for suffix in ("", "-wal"):  # as a kill leaves them: all is in the log
        shutil.copyfile(f"{path}{suffix}", tmp_path / f"killed{suffix}")
    spool.close()
    told.clear()
    killed, before = tmp_path / "killed", (tmp_path / "killed-wal").read_bytes()
    monkeypatch.setattr(shutil, "copyfile", no_room)
    assert [row[0] for row in read_what_is_left(killed).pending] == list(range(1, 10))
    assert (tmp_path / "killed-wal").read_bytes() == before
    hurt(tmp_path / "other")
    with healed(tmp_path / "other", told) as spool:
        assert numbers(spool) == ALL
    assert "10 waiting and 1 refused segments" in str(told)


def test_what_cannot_be_read_now_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without its first page a file is read by a copy alone."""
    path, told = tmp_path / "spool", list[SpoolDamaged]()
    made(path)
    with open(path, "r+b") as file:
        file.write(b"\xff" * 1_024)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfile", no_room)
        with pytest.raises(SpoolFull, match="No space left"):
            healed(path, told)
    assert (names(tmp_path), told) == ({"spool"}, [])
    with healed(path, told) as spool:
        assert numbers(spool) == ALL


def test_no_room_for_a_new_file_holds_the_running_services(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, told = tmp_path / "spool", list[SpoolDamaged]()
    made(path)
    with healed(path, told) as spool:
        spool._file.db.execute("UPDATE pending SET end_ms = end_ms + 1 WHERE id = 5")
        spool._file.db.execute("UPDATE services SET sum = NULL")
        with monkeypatch.context() as patch:
            patch.setattr(spool_swap, "open_private", no_room)
            for _ in range(2):
                with pytest.raises(SpoolFull):
                    spool.oldest(99)
                with pytest.raises(SpoolFull):
                    spool.append([segment(13, "SO1")], state(14, "SO1"))
        assert (spool.pending(), told) == (10, [])
        spool.append([segment(13, "SO1")], state(14, "SO1"))
        assert numbers(spool) == [3, 4, 6, 7, 8, 9, 10, 11, 12, 13]
        assert spool.terms("SO1") == TERMS
    assert len(told) == 1
    assert "1 running services go on from memory" in str(told)


def test_no_room_to_save_a_removed_file_keeps_it_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, told = tmp_path / "spool", list[SpoolDamaged]()
    with healed(path, told) as spool:
        fill(spool, 5)
        path.unlink()
        with monkeypatch.context() as patch:
            patch.setattr(spool_swap, "open_private", no_room)
            with pytest.raises(SpoolFull):
                spool.look_after()
        assert told == []
        spool.look_after()
        assert numbers(spool) == [1, 2, 3, 4, 5]
    assert "5 waiting" in str(told)


@pytest.mark.parametrize("page", range(1, 8))
def test_any_page_of_the_schema_may_be_gone(tmp_path: Path, page: int) -> None:
    """All that the other pages hold is read."""
    path, told = tmp_path / "spool", list[SpoolDamaged]()
    made(path)
    with closing(sqlite3.connect(path)) as db:
        roots = {row[0] for row in db.execute("SELECT rootpage FROM sqlite_master")}
    for suffix in (".copy", ".copy-wal", ".copy.page", ".part", ".new"):  # a kill left them
        (tmp_path / f"spool{suffix}").write_bytes(b"left")
    with open(path, "r+b") as file:
        file.seek((page - 1) * 1_024)
        file.write(bytes(1_024))
    with healed(path, told) as spool:
        assert page in roots or numbers(spool) == ALL
    assert len(told) <= 1
    assert names(tmp_path) <= {"spool", "spool.damaged-1"}


@pytest.mark.parametrize("mark", [b"SO1", b"receipt-1", b"receipt-2", b"words", b"clock_bound"])
def test_one_zeroed_row_costs_no_other(tmp_path: Path, mark: bytes) -> None:
    path, told = tmp_path / "spool", list[SpoolDamaged]()
    made(path)
    zeroed(path, mark)
    with healed(path, told) as spool:
        assert set(numbers(spool)) <= set(ALL)
        assert len(numbers(spool)) >= len(ALL) - 1
        spool.acknowledge([], "receipt-3", kept_ms=2)
        assert "receipt-3" in spool.receipts()
        spool.append([segment(13, "SO1")], state(14, "SO1"))
        assert len(spool.rejected()) == spool.retry_rejected()
        assert set(numbers(spool)) <= {2, 13, *ALL}
    with healed(path, told) as spool:
        spool.acknowledge([each.entry_id for each in spool.oldest(99)])
        assert spool.pending() == 0


@pytest.mark.parametrize(
    "query",
    [
        "UPDATE pending SET sum = NULL WHERE id = 5",
        "UPDATE pending SET end_ms = NULL WHERE id = 5",
        "UPDATE pending SET service_order_number = NULL, sum = NULL WHERE id = 5",
        "UPDATE pending SET service_order_number = x'ff' WHERE id = 5",
        "UPDATE pending SET service_order_number = cast(x'ff' AS TEXT) WHERE id = 5",
        f"UPDATE pending SET id = {2**63 - 1} WHERE id = 5",
    ],
)
def test_damaged_segment_costs_no_other(tmp_path: Path, query: str) -> None:
    path, told = tmp_path / "spool", list[SpoolDamaged]()
    made(path)
    change(path, query)
    with healed(path, told) as spool:
        assert spool.oldest_end_ms() is not None
        assert numbers(spool) == [each for each in ALL if each != 5]
        spool.append([segment(13, "SO1")], state(14, "SO1"))
    assert len(told) == 1


def test_damaged_first_segment_is_found_by_whoever_asks_for_its_end(tmp_path: Path) -> None:
    path, told = tmp_path / "spool", list[SpoolDamaged]()
    made(path)
    change(path, "UPDATE pending SET end_ms = NULL WHERE id = 3")
    with healed(path, told) as spool:
        assert spool.oldest_end_ms() == segment(4).end_ms
    assert len(told) == 1


@pytest.mark.parametrize(
    "column", ["kept_ms = NULL", "content = NULL", "kept_ms = 'x'", "content = x'00'"]
)
def test_damaged_receipt_goes_quietly(tmp_path: Path, column: str) -> None:
    path, told = tmp_path / "spool", list[SpoolDamaged]()
    made(path)
    change(path, f"UPDATE receipts SET {column} WHERE id = 2")
    with healed(path, told) as spool:
        spool.acknowledge([], "receipt-3", kept_ms=2)
        assert spool.receipts() == ["receipt-1", "receipt-3"]
    assert told == []
    change(
        path,
        f"UPDATE receipts SET {column} WHERE id = 1",
        "UPDATE rejected SET reason = NULL, detail = x'00'",
        "UPDATE services SET sum = NULL",
    )
    with healed(path, told) as spool:  # the rows that are left are written into a new file
        assert numbers(spool) == ALL
        assert spool.receipts() == ["receipt-3"]
        assert spool.rejected() == [RejectedSegment(2, segment(2, "SO1"), "", "")]
    assert len(told) == 1


def test_sums_may_lack_where_the_file_was_of_an_older_version(tmp_path: Path) -> None:
    path, told = tmp_path / "spool", list[SpoolDamaged]()
    with closing(sqlite3.connect(path)) as db:
        db.executescript(FORMAT_1)
    Spool(path).close()
    change(path, "UPDATE pending SET start_ms = NULL WHERE id = 3")
    with healed(path, told) as spool:
        assert numbers(spool) == [1]
        assert len(told) == 1
        assert [each.segment for each in spool.rejected()] == [segment(2)]
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("SELECT count(*) FROM pending WHERE sum IS NULL").fetchone() == (0,)


def test_reserve_that_somebody_removed_can_shrink(tmp_path: Path) -> None:
    reserve = Reserve(tmp_path / "reserve")
    reserve.take()
    (tmp_path / "reserve").unlink()
    reserve.shrink()
    assert reserve.size_bytes > 0


class _Circle:
    """A damaged table that gives a row again, and then fails: its pages name each other."""

    def execute(self, query: str, values: tuple[int, ...] = ()) -> Any:
        if "max(id)" in query:
            return _One()
        return self._rows()

    def _rows(self) -> Any:
        yield (1,)
        raise sqlite3.DatabaseError("database disk image is malformed")


class _One:
    def fetchone(self) -> tuple[int]:
        return (3,)


def test_pages_in_a_circle_come_to_an_end() -> None:
    left = Salvaged()
    assert _rows(_Circle(), "pending", "id", left) == [(1,)]  # type: ignore[arg-type]
    assert left.unread == 1
