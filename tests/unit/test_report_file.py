"""Report files: whole or not at all, for their owner alone, and errors that name the path."""

import os
import threading
from pathlib import Path

import pytest

from durabill.stream_processors.audit.report_file import check_report_path, write_report_file
from tests.waiting import HANG_S


def test_a_report_is_its_owners_and_replaces_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "a.html"
    write_report_file(path, "one")
    assert path.stat().st_mode & 0o777 == 0o600
    write_report_file(path, "zwei ≤")
    assert path.read_text(encoding="utf-8") == "zwei ≤"
    assert os.listdir(tmp_path) == ["a.html"]


def test_a_link_stays_one(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    link.symlink_to(target)
    write_report_file(link, "x")
    assert link.is_symlink()
    assert target.read_text() == "x"


def test_a_failure_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.svg"
    write_report_file(path, "one")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left") as raised:
        write_report_file(path, "two")
    assert raised.value.filename == str(path)
    assert path.read_text() == "one"
    assert os.listdir(tmp_path) == ["a.svg"]


def test_what_cant_be_written_is_known_before(tmp_path: Path) -> None:
    for path, error in (
        (tmp_path, IsADirectoryError),
        (tmp_path / "none" / "a.svg", FileNotFoundError),
    ):
        with pytest.raises(error):
            check_report_path(path)
        with pytest.raises(error):
            write_report_file(path, "x")
    check_report_path(tmp_path / "a.svg")


def test_a_pipe_is_written_to(tmp_path: Path) -> None:
    path, read = tmp_path / "pipe", list[str]()
    os.mkfifo(path)
    reader = threading.Thread(target=lambda: read.append(path.read_text()))
    reader.start()
    write_report_file(path, "x")
    reader.join(HANG_S)
    assert read == ["x"]
    assert path.is_fifo()
