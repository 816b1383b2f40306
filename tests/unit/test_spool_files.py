"""The spool's files: who may read them, whatever the umask and whoever made them before."""

import errno
import fcntl
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from durabill.producers.sdk.private_files import create_private, make_private, open_private
from durabill.producers.sdk.session import SessionState
from durabill.producers.sdk.spool import Spool, SpoolBroken, SpoolBusy
from durabill.schemas import SegmentEvent

SEGMENT = SegmentEvent("SO1", 1, 0, 10, False)
STATE = SessionState("SO1", 10, 2, 10, False)
NOBODY = 65_534


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def modes(folder: Path) -> dict[str, str]:
    return {each.name: oct(stat.S_IMODE(each.lstat().st_mode)) for each in folder.iterdir()}


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077, 0o777])
def test_nobody_else_reads_a_new_spool(tmp_path: Path, mask: int) -> None:
    with umask(mask), Spool(tmp_path / "spool") as spool:
        spool.append([SEGMENT], STATE)
        assert {"spool", "spool-wal", "spool-reserve", "spool-lock"} == set(modes(tmp_path))
        assert {"0o600"} == set(modes(tmp_path).values())


def test_files_of_an_older_spool_are_tightened(tmp_path: Path) -> None:
    """Also those that a killed process left."""
    path = tmp_path / "spool"
    code = (
        "import os, sys; from durabill.producers.sdk.spool import Spool;"
        "from tests.unit.test_spool_files import SEGMENT, STATE;"
        "Spool(sys.argv[1]).append([SEGMENT], STATE); os._exit(9)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(path)], check=False).returncode == 9
    for each in tmp_path.iterdir():
        each.chmod(0o666)
    with umask(0), Spool(path) as spool:
        assert {"0o600"} == set(modes(tmp_path).values())
        assert spool.pending() == 1


def test_narrower_rights_are_left(tmp_path: Path) -> None:
    Spool(tmp_path / "spool").close()
    (tmp_path / "spool").chmod(0o200)
    assert make_private(tmp_path / "spool")
    assert modes(tmp_path)["spool"] == "0o200"


def test_file_that_is_no_spool_keeps_its_rights(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_bytes(b"these are no segments " * 100)
    path.chmod(0o644)
    with pytest.raises(SpoolBroken):
        Spool(path)
    assert modes(tmp_path) == {"notes.txt": "0o644", "notes.txt-lock": "0o600"}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_files_of_somebody_else_are_left_and_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Spool(tmp_path / "spool").close()
    (tmp_path / "spool").chmod(0o644)
    os.chown(tmp_path / "spool", NOBODY, NOBODY)
    Spool(tmp_path / "spool").close()
    assert modes(tmp_path)["spool"] == "0o644"
    assert "others may read" in caplog.text


def test_links_are_not_followed(tmp_path: Path) -> None:
    """Whoever may write into the folder can't make us open up, fill or change another file."""
    other = tmp_path / "other"
    other.write_text("mine")
    other.chmod(0o644)
    (tmp_path / "spool-reserve").symlink_to(other)
    (tmp_path / "spool-lock").symlink_to(other)
    (tmp_path / "link").symlink_to(other)
    with Spool(tmp_path / "spool") as spool:
        spool.append([SEGMENT], STATE)
    assert not make_private(tmp_path / "link")
    assert not create_private(tmp_path / "link")
    with pytest.raises(OSError, match="link"):
        open_private(tmp_path / "link")
    assert (other.read_text(), modes(tmp_path)["other"]) == ("mine", "0o644")


def test_spool_behind_a_link_is_tightened_where_it_lies(tmp_path: Path) -> None:
    folder = tmp_path / "disk"
    folder.mkdir()
    (tmp_path / "spool").symlink_to(folder / "real")
    with umask(0), Spool(tmp_path / "spool") as spool:
        spool.append([SEGMENT], STATE)
        assert {"0o600"} == set(modes(folder).values())


def test_what_is_no_file_does_not_hold_us_up(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe", 0o666)
    assert not make_private(tmp_path / "pipe")
    with pytest.raises(OSError, match="no file of ours"):
        open_private(tmp_path / "pipe")
    assert oct(stat.S_IMODE((tmp_path / "pipe").stat().st_mode) | 0o022) == "0o666"


def test_second_spool_of_this_process_leaves_the_lock_of_the_first(tmp_path: Path) -> None:
    """Closing any descriptor of a file would end this process's lock on it, for all others."""
    path = tmp_path / "spool"
    code = "import sys; from durabill.producers.sdk.spool import Spool; Spool(sys.argv[1])"
    with Spool(path):
        path.chmod(0o644)
        with pytest.raises(SpoolBusy):
            Spool(path)
        assert make_private(path)
        ran = subprocess.run(
            [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False
        )
        assert "SpoolBusy" in ran.stderr


TRY = "import sys; from durabill.producers.sdk.spool import Spool; Spool(sys.argv[1])"


def test_no_other_process_has_a_spool_while_its_file_is_exchanged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the damaged file, which nobody has open then, nor the one that takes its place."""
    path, said, replace = tmp_path / "spool", list[str](), os.replace
    Spool(path).close()
    path.write_bytes(b"not a spool any more" * 100)

    def exchanged(source: Path, target: Path) -> None:
        for is_done in (False, True):
            if is_done:
                replace(source, target)
            if os.path.realpath(target) == os.path.realpath(path):
                got = subprocess.run(
                    [sys.executable, "-c", TRY, str(path)], capture_output=True, check=False
                )
                said.append(got.stderr.decode())

    monkeypatch.setattr(os, "replace", exchanged)
    with Spool(path, on_damage=lambda _: None) as spool:
        spool.append([SEGMENT], STATE)
    assert len(said) == 2
    assert all("SpoolBusy" in each for each in said)
    with Spool(path) as spool:
        assert spool.pending() == 1


def test_a_lock_that_cannot_be_had_keeps_nobody_from_metering(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "spool-lock").mkdir()
    with Spool(tmp_path / "spool") as spool:
        spool.append([SEGMENT], STATE)
        with pytest.raises(SpoolBusy):
            Spool(tmp_path / "spool")

    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(fcntl, "lockf", no_locks)
    for _ in range(2):
        with Spool(tmp_path / "other") as spool:
            spool.append([SEGMENT], STATE)


def test_one_spool_of_a_process_leaves_the_other_its_lock(tmp_path: Path) -> None:
    path = tmp_path / "spool"
    with Spool(path):
        with pytest.raises(SpoolBusy):
            Spool(path)
        got = subprocess.run([sys.executable, "-c", TRY, path], capture_output=True, check=False)
        assert b"SpoolBusy" in got.stderr
    Spool(path).close()
