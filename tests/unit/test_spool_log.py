"""A log that was damaged in its middle: SQLite passes over the rest in silence, the spool tells."""

import shutil
from pathlib import Path

import pytest

from durabill.producers.sdk.spool import Spool, SpoolDamaged
from durabill.producers.sdk.spool_log import lost_commits
from tests.unit.test_spool import fill, numbers, segment, state

PAGE_BYTES = 1_024
STEP = PAGE_BYTES + 24


@pytest.fixture
def killed(tmp_path: Path) -> Path:
    """What a kill leaves of a spool with thirty segments, the last ones in its log alone."""
    path = tmp_path / "killed" / "spool"
    path.parent.mkdir()
    with Spool(tmp_path / "spool") as spool:
        spool._file.db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        fill(spool, 30)
        for suffix in ("", "-wal"):
            shutil.copyfile(tmp_path / f"spool{suffix}", f"{path}{suffix}")
    return path


def log_of(path: Path) -> bytearray:
    return bytearray(path.with_name("spool-wal").read_bytes())


def test_a_torn_end_holds_no_commit(killed: Path) -> None:
    content = bytes(log_of(killed))
    assert len(content) > 30 * STEP
    for length in range(0, len(content), 997):
        assert not lost_commits(content[:length], PAGE_BYTES)
        at = max(32, length // STEP * STEP + 32 - STEP)  # its head is there before its page
        torn = content[: at + 24] + bytes(STEP - 24) + bytes(len(content) - at - STEP)
        assert not lost_commits(torn, PAGE_BYTES)
    assert not lost_commits(content, PAGE_BYTES)


def test_a_flipped_bit_loses_what_is_behind_it(killed: Path) -> None:
    content = log_of(killed)
    for at in range(0, len(content) - 8 * STEP, 1_499):
        damaged = content.copy()
        damaged[at] ^= 0x04
        assert lost_commits(bytes(damaged), PAGE_BYTES), at


def test_frames_of_an_earlier_round_are_no_loss(tmp_path: Path) -> None:
    with Spool(tmp_path / "spool") as spool:
        fill(spool, 30)
        spool._file.db.execute("PRAGMA wal_checkpoint(RESTART)")
        spool.append([segment(31)], state(32))
        content = (tmp_path / "spool-wal").read_bytes()
    assert len(content) > 30 * STEP
    assert not lost_commits(content, PAGE_BYTES)


@pytest.mark.parametrize("at", [5, 17, 32 + 4 * STEP + 500])
def test_commits_behind_the_damage_are_told(killed: Path, at: int) -> None:
    told, content = list[SpoolDamaged](), log_of(killed)
    content[at] ^= 0x04
    killed.with_name("spool-wal").write_bytes(content)
    with Spool(killed, on_damage=told.append) as spool:
        left = numbers(spool)
        assert left == list(range(1, len(left) + 1))
        assert len(left) < 30
        spool.append([segment(31)], state(32))
        assert numbers(spool) == [*left, 31]
    assert "the log is damaged" in str(told)
    assert len(told) == 1


def test_a_whole_log_is_read_without_a_word(killed: Path) -> None:
    told = list[SpoolDamaged]()
    with Spool(killed, on_damage=told.append) as spool:
        assert numbers(spool) == list(range(1, 31))
    assert told == []
