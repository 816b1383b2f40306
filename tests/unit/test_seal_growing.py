"""Logs in folders: they go on exactly where they were, whatever step a kill came after."""

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest

from durabill.stream_processors.audit.seal.checkpoints import (
    REBUILT,
    RECORDS_LOST,
    RECREATED,
    Closed,
    Follows,
    Origin,
    read_checkpoint,
)
from durabill.stream_processors.audit.seal.entries import NO_VALUE, entry_of, large_path
from durabill.stream_processors.audit.seal.errors import SealBusy, SealError
from durabill.stream_processors.audit.seal.folder import (
    CHECKPOINT,
    PENDING,
    Step,
    locked,
    log_folder,
    logs_in,
)
from durabill.stream_processors.audit.seal.growing import GrowingLog, newest_origin, open_log
from durabill.stream_processors.audit.seal.keys import read_key_file, rotate_key_file
from durabill.stream_processors.audit.seal.rebuilt import hand_over_logs
from tests.conftest import fill_up
from tests.seal_kit import (
    ORIGIN,
    Killed,
    files_of,
    grow,
    kill_after,
    new_keys,
    sealed,
    values_of,
)

VALUES = values_of(700)


@pytest.mark.parametrize("step", list(Step))
@pytest.mark.parametrize(("before", "after"), [(0, 1), (250, 260), (255, 600)])
def test_a_killed_sealer_goes_on_where_it_was(
    tmp_path: Path, step: Step, before: int, after: int
) -> None:
    keys = new_keys(tmp_path)
    sealed(tmp_path / "killed", keys, VALUES[:before])
    log, _ = open_log(tmp_path / "killed", ORIGIN, keys, kill_after(step))
    with pytest.raises(Killed):
        grow(log, VALUES[before:after])
    again, _ = open_log(tmp_path / "killed", ORIGIN, keys)
    is_sealed = step in (Step.SIGNED, Step.CLEARED)
    assert again.checkpoint.size == (after if is_sealed else before)
    assert again.next_offset == 2 * again.checkpoint.size
    assert not (log_folder(tmp_path / "killed", ORIGIN).folder / PENDING).exists()
    grow(again, VALUES[again.checkpoint.size :])
    sealed(tmp_path / "whole", keys, VALUES, [before])
    found, expected = files_of(tmp_path / "killed"), files_of(tmp_path / "whole")
    # Partial tiles of the checkpoints that there were may stay: the format allows it.
    assert {name: found.get(name) for name in expected} == expected


def test_a_kill_in_the_middle_of_a_file_leaves_no_half_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = new_keys(tmp_path)
    log = sealed(tmp_path, keys, VALUES[:300])
    before = files_of(tmp_path)
    replace, left = os.replace, [3]

    def replace_some(old: Path, new: Path) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise Killed
        replace(old, new)

    monkeypatch.setattr(os, "replace", replace_some)
    with pytest.raises(Killed):
        grow(log, VALUES[300:])
    monkeypatch.undo()
    again, _ = open_log(tmp_path, ORIGIN, keys)
    assert files_of(tmp_path) == before
    grow(again, VALUES[300:])
    assert again.checkpoint == sealed(tmp_path / "whole", keys, VALUES).checkpoint


def test_a_full_disk_is_an_error_and_what_is_there_stays_whole(small_disk: Path) -> None:
    keys = new_keys(small_disk)
    log = sealed(small_disk, keys, VALUES[:300])
    others = fill_up(small_disk)
    with pytest.raises(OSError, match="No space left"):
        grow(log, VALUES[300:])
    others.unlink()
    again, _ = open_log(small_disk, ORIGIN, keys)
    assert again.checkpoint.size == 300
    grow(again, VALUES[300:])
    assert again.checkpoint.size == 700


def test_partial_tiles_stay_until_there_is_a_full_one(tmp_path: Path) -> None:
    keys = new_keys(tmp_path)
    log = sealed(tmp_path, keys, VALUES[:20], [1, 7])
    widths = {"tile/0/000.p/1", "tile/0/000.p/7", "tile/0/000.p/20"}
    assert widths <= set(files_of(tmp_path))
    grow(log, VALUES[20:300])
    assert not [name for name in files_of(tmp_path) if "/000.p/" in name and "tile/1" not in name]


def test_every_record_is_a_leaf_and_no_two_values_are_alike(tmp_path: Path) -> None:
    keys = new_keys(tmp_path)
    large = b"\xc3\x01" + bytes(70_000)
    stand_in = entry_of(large)
    values = [b"", None, NO_VALUE, large, stand_in, b"durabill-", b"\x00garbage", bytes(65_535)]
    assert len({entry_of(each) for each in values}) == len(values)
    assert all(len(entry_of(each)) <= 65_535 for each in values)
    sealed(tmp_path, keys, values)
    path = large_path(stand_in)
    assert path is not None
    assert files_of(tmp_path)[path] == large


def test_an_empty_log_has_a_signed_checkpoint(tmp_path: Path) -> None:
    log = sealed(tmp_path, new_keys(tmp_path), [])
    assert log.checkpoint.size == 0
    assert files_of(tmp_path) == {CHECKPOINT: log.note.encode()}
    assert not log.commit()


def damage_tile(files: Path) -> None:
    path = files / "tile/0/001.p/44"
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


def damage_bundle(files: Path) -> None:
    path = files / "tile/entries/001.p/44"
    path.write_bytes(path.read_bytes().replace(b"SO-270", b"SO-271"))


def remove_tile(files: Path) -> None:
    (files / "tile/1/000.p/1").unlink()


def damage_checkpoint(files: Path) -> None:
    path = files / CHECKPOINT
    path.write_text(path.read_text().replace("\n300\n", "\n299\n"))


def bad_checkpoint(files: Path) -> None:
    (files / CHECKPOINT).write_bytes(b"\xff")


@pytest.mark.parametrize(
    "damage", [damage_tile, damage_bundle, remove_tile, damage_checkpoint, bad_checkpoint]
)
def test_a_sealer_doesnt_go_on_from_an_altered_folder(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    keys = new_keys(tmp_path)
    sealed(tmp_path, keys, VALUES[:300])
    damage(log_folder(tmp_path, ORIGIN).folder)
    with pytest.raises(SealError):
        open_log(tmp_path, ORIGIN, keys)


def test_another_key_needs_a_hand_over(tmp_path: Path) -> None:
    keys = new_keys(tmp_path)
    sealed(tmp_path, keys, VALUES[:10])
    with pytest.raises(SealError, match="keys rotate"):
        open_log(tmp_path, ORIGIN, new_keys(tmp_path, "stranger.key"))
    rotate_key_file(tmp_path / "seal.key", tmp_path / "next.key")
    after = read_key_file(tmp_path / "next.key")
    log, _ = open_log(tmp_path, ORIGIN, after)
    assert read_checkpoint(log.note).size == 10
    again, _ = open_log(tmp_path, ORIGIN, after)
    assert again.note == log.note
    with pytest.raises(SealError):  # the old key has handed over
        open_log(tmp_path, ORIGIN, keys)


def test_a_recreated_topic_is_another_log_and_closes_the_one_before(tmp_path: Path) -> None:
    keys = new_keys(tmp_path)
    old = sealed(tmp_path, keys, VALUES[:10])
    new_origin = Origin(ORIGIN.cluster, ORIGIN.topic, "another-id", 0)
    new, closed = open_log(tmp_path, new_origin, keys)
    assert [each.origin for each in closed] == [ORIGIN]
    end, follows = closed[0].checkpoint.closed, new.checkpoint.follows
    assert end is not None
    assert (end.reason, end.by) == (RECREATED, new_origin)
    assert follows is not None
    assert (follows.origin, follows.size, follows.root) == (ORIGIN, 10, old.checkpoint.root)
    grow(new, VALUES[:3])
    assert new.checkpoint.follows == follows
    again, closed = open_log(tmp_path, new_origin, keys)
    assert (again.checkpoint, closed) == (new.checkpoint, [])
    assert set(logs_in(tmp_path)) == {ORIGIN, new_origin}


def test_a_rebuilt_topic_is_another_log_and_closes_the_one_before(tmp_path: Path) -> None:
    keys = new_keys(tmp_path)
    old = sealed(tmp_path, keys, VALUES[:10])
    by = Origin(ORIGIN.cluster, "billing.totals-2", "another-id", 0)
    first_of_its_partition = replace(by, partition=1)
    # A kill after the new log was begun: the next run closes the old one.
    new, _ = open_log(tmp_path / "killed", by, keys)
    new.begin(Follows(ORIGIN, 10, old.checkpoint.root))
    shutil.copytree(tmp_path / "killed", tmp_path, dirs_exist_ok=True)
    signed = hand_over_logs(tmp_path, keys, ORIGIN.topic, [by, first_of_its_partition])
    assert [each.origin for each in signed] == [by, ORIGIN]
    end, follows = signed[1].checkpoint.closed, signed[0].checkpoint.follows
    assert end == Closed(REBUILT, by)
    assert follows == Follows(ORIGIN, 10, old.checkpoint.root)
    assert hand_over_logs(tmp_path, keys, ORIGIN.topic, [by]) == []
    log, closed = open_log(tmp_path, by, keys)
    grow(log, VALUES[:12])
    assert closed == []
    assert (log.checkpoint.size, log.checkpoint.follows) == (12, follows)


def test_records_that_are_gone_end_a_log_too(tmp_path: Path) -> None:
    keys = new_keys(tmp_path)
    sealed(tmp_path, keys, VALUES[:10])
    later = Origin(ORIGIN.cluster, ORIGIN.topic, ORIGIN.topic_id, 0, 50)
    log, closed = open_log(tmp_path, later, keys)
    assert [each.checkpoint.closed.reason for each in closed if each.checkpoint.closed] == [
        RECORDS_LOST
    ]
    assert log.next_offset == 50
    assert newest_origin(tmp_path, "cluster", "billing.totals", "topic-id", 0) == later


def test_a_kill_between_two_logs_is_mended_by_the_next_start(tmp_path: Path) -> None:
    keys = new_keys(tmp_path)
    sealed(tmp_path, keys, VALUES[:10])
    new_origin = Origin(ORIGIN.cluster, ORIGIN.topic, "another-id", 0)
    GrowingLog(tmp_path, new_origin, keys).begin(None)  # killed before the old one was closed
    _, closed = open_log(tmp_path, new_origin, keys)
    assert [each.origin for each in closed] == [ORIGIN]


def test_other_clusters_and_partitions_close_nothing(tmp_path: Path) -> None:
    keys = new_keys(tmp_path)
    sealed(tmp_path, keys, VALUES[:10])
    for other in (
        Origin("other", ORIGIN.topic, "another-id", 0),
        Origin(ORIGIN.cluster, ORIGIN.topic, ORIGIN.topic_id, 1),
        Origin(ORIGIN.cluster, "other.totals", "another-id", 0),
    ):
        assert open_log(tmp_path, other, keys)[1] == []


def test_a_log_that_was_published_has_to_come_out_again(tmp_path: Path) -> None:
    keys = new_keys(tmp_path)
    published = sealed(tmp_path / "lost", keys, VALUES[:30]).checkpoint
    log, _ = open_log(tmp_path / "new", ORIGIN, keys)
    log.expected = published
    grow(log, VALUES[:20])
    assert log.expected is published
    grow(log, VALUES[20:40])
    assert log.expected is None
    forged, _ = open_log(tmp_path / "forged", ORIGIN, keys)
    forged.expected = published
    with pytest.raises(SealError, match="the first 30 records of the topic aren't those"):
        grow(forged, [*VALUES[:29], VALUES[99]])
    short, _ = open_log(tmp_path / "short", ORIGIN, keys)
    short.expected = published
    short.check_reach(0, 60)
    with pytest.raises(SealError, match=r"up to offset 60 are sealed.*holds \[0, 59\)"):
        short.check_reach(0, 59)


def test_a_folder_has_one_sealer(tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(SealBusy, match="another sealer"), locked(tmp_path):
        pass
    with locked(tmp_path):
        pass


def test_only_what_changed_is_written(tmp_path: Path) -> None:
    """One more record costs a bundle, a tile and a checkpoint, whatever the log's length."""
    keys = new_keys(tmp_path)
    log = sealed(tmp_path, keys, VALUES[:600])
    before = {each: each.stat().st_mtime_ns for each in islice(tmp_path.rglob("*/tile/*/*"), 99)}
    names = set(files_of(tmp_path))
    grow(log, VALUES[600:601])
    assert set(files_of(tmp_path)) - names == {
        "tile/0/002.p/89",
        "tile/entries/002.p/89",
    }
    full = [each for each in before if each.is_file()]
    assert full
    assert {each.stat().st_mtime_ns for each in full} == {before[each] for each in full}
