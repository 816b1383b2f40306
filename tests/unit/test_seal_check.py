"""Falsifications of the sealed log, each planted and found; and no false alarm."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from durabill.schemas import encode_total
from durabill.stream_processors.audit.seal.check import SealFinding, Witnessed
from durabill.stream_processors.audit.seal.check_all import SealCheck, check_seal
from durabill.stream_processors.audit.seal.checkpoints import Origin, parse_checkpoint
from durabill.stream_processors.audit.seal.folder import CHECKPOINT, Step, log_folder
from durabill.stream_processors.audit.seal.growing import open_log
from durabill.stream_processors.audit.seal.keys import KeyFile
from durabill.stream_processors.audit.seal.notes import parse_note
from tests.broker.ledger_kit import a_total
from tests.seal_kit import (
    ORIGIN,
    Killed,
    grow,
    kill_after,
    new_keys,
    sealed,
    topic_of,
    values_of,
)

VALUES: list[bytes | None] = [*values_of(600), None, b"garbage", b"\xc3\x01" + bytes(70_000)]
CUTS = (10, 300, 520)
Values = Sequence[bytes | None]


@pytest.fixture
def keys(tmp_path: Path) -> KeyFile:
    return new_keys(tmp_path)


@pytest.fixture
def folder(tmp_path: Path, keys: KeyFile) -> Path:
    """A sealer's folder with a log of all values."""
    made = tmp_path / "seal"
    sealed(made, keys, VALUES, CUTS)
    return made


def checked(
    folder: Path | None, keys: KeyFile, values: Values = VALUES, *notes: str, first: int = 0
) -> SealCheck:
    witnessed = [Witnessed("kept by somebody", each) for each in notes]
    return check_seal(folder, topic_of(values, first), keys.trusted, witnessed)


def only(result: SealCheck) -> SealFinding:
    (finding,) = result.findings
    assert finding.kind == "seal_inconsistent"
    return finding


def note_of(folder: Path, origin: Origin = ORIGIN) -> str:
    note = log_folder(folder, origin).text(CHECKPOINT)
    assert note is not None
    return note


def in_log(folder: Path, name: str) -> Path:
    return log_folder(folder, ORIGIN).folder / name


def test_what_is_sealed_is_consistent(folder: Path, keys: KeyFile) -> None:
    result = checked(folder, keys, VALUES, note_of(folder))
    (log,) = result.logs
    assert result.findings == []
    assert (log.records, log.unsealed, log.head) == (603, 0, 0)
    more = checked(folder, keys, [*VALUES, *values_of(4)])
    assert (more.findings, more.logs[0].unsealed) == ([], 4)


def test_an_empty_log_is_consistent(tmp_path: Path, keys: KeyFile) -> None:
    sealed(tmp_path / "seal", keys, [])
    for values in ([], values_of(3)):
        assert checked(tmp_path / "seal", keys, values).findings == []


@pytest.mark.parametrize("at", [0, 255, 256, 299, 599])
def test_a_total_that_was_changed_is_found_with_its_order(
    folder: Path, keys: KeyFile, at: int
) -> None:
    changed = list(VALUES)
    changed[at] = encode_total(a_total(f"SO-{at}", 1, 77))
    findings = checked(folder, keys, changed).findings
    assert {"root", "bundle", "tile"} <= {each.field for each in findings}
    (bundle, *_) = [each for each in findings if each.field == "bundle"]
    assert (bundle.service_order_number, bundle.revision) == (f"SO-{at}", 1)
    assert f"entry {at} is" in bundle.expected


@pytest.mark.parametrize(
    "alter",
    [
        lambda values: values[:300] + values[301:],
        lambda values: [*values[:300], *values_of(1), *values[300:]],
        lambda values: [*values[:300], values[299], *values[300:]],
        lambda values: [*values[:300], values[301], values[300], *values[302:]],
        lambda values: values[:-1],
        lambda values: values[:100],
        lambda values: [],
        lambda values: [*values[:600], b"", *values[601:]],
        lambda values: [*values[:602], b"\xc3\x01" + bytes(70_001)],
    ],
    ids=lambda alter: "",
)
def test_a_topic_that_was_altered_is_found(
    folder: Path, keys: KeyFile, alter: Callable[[list[bytes | None]], Values]
) -> None:
    findings = checked(folder, keys, alter(list(VALUES))).findings
    assert {"root", "size"} & {each.field for each in findings}


def flip(path: Path, at: int = 40) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("tile/0/000", "tile"),
        ("tile/0/002.p/91", "tile"),
        ("tile/0/002.p/8", "tile"),
        ("tile/1/000.p/2", "tile"),
        ("tile/entries/001", "bundle"),
        ("tile/entries/002.p/91", "bundle"),
    ],
)
def test_an_altered_file_is_found_and_a_missing_one(
    folder: Path, keys: KeyFile, name: str, field: str
) -> None:
    path = in_log(folder, name)
    flip(path)
    finding = only(checked(folder, keys))
    assert (finding.field, finding.place) == (field, str(path))
    path.unlink()
    findings = checked(folder, keys).findings
    # A partial tile of an earlier checkpoint may be gone; all else is needed.
    assert [each.field for each in findings] == ([] if name.endswith("p/8") else ["file"])


def test_a_file_that_is_cut_off_or_too_long_is_found(folder: Path, keys: KeyFile) -> None:
    for name in ("tile/0/001", "tile/entries/001", "tile/1/000.p/2"):
        path = in_log(folder, name)
        data = path.read_bytes()
        for content in (data[:-1], data[:-32], data + bytes(32), b""):
            path.write_bytes(content)
            assert only(checked(folder, keys)).place == str(path)
        path.write_bytes(data)


def test_a_large_value_is_compared_too(folder: Path, keys: KeyFile) -> None:
    (path,) = folder.rglob("large/*")
    flip(path)
    assert only(checked(folder, keys)).field == "large value"


def test_a_partial_tile_that_is_wider_than_its_checkpoint_is_found(
    folder: Path, keys: KeyFile, tmp_path: Path
) -> None:
    """As where an old checkpoint, signed as it is, was put in place of the newest."""
    sealed(tmp_path / "old", keys, VALUES[:520], CUTS[:2])
    shutil.copy(in_log(tmp_path / "old", CHECKPOINT), in_log(folder, CHECKPOINT))
    findings = checked(folder, keys).findings
    assert {each.field for each in findings} == {"width"}
    assert any(each.place.endswith("tile/entries/002.p/91") for each in findings)
    assert all("by the signed checkpoint of size 520" in each.expected for each in findings)


def test_a_log_that_was_cut_back_is_found_by_what_somebody_kept(
    tmp_path: Path, keys: KeyFile
) -> None:
    """The topic, the folder and the checkpoint agree: a kept checkpoint alone shows it."""
    whole = note_of_log(tmp_path / "whole", keys, VALUES)
    sealed(tmp_path / "cut", keys, VALUES[:300])
    assert checked(tmp_path / "cut", keys, VALUES[:300]).findings == []
    findings = checked(tmp_path / "cut", keys, VALUES[:300], whole).findings
    assert {each.field for each in findings} == {"size"}
    assert "cut back, or an old checkpoint" in findings[0].found


def test_a_log_that_was_made_anew_is_found_by_what_somebody_kept(
    tmp_path: Path, keys: KeyFile
) -> None:
    """Also by a smaller one, and where the key was the right one."""
    kept = note_of_log(tmp_path / "kept", keys, VALUES[:200])
    forged: list[bytes | None] = [
        *VALUES[:150],
        encode_total(a_total("SO-150", 1, 9)),
        *VALUES[151:],
    ]
    sealed(tmp_path / "forged", keys, forged)
    assert checked(tmp_path / "forged", keys, forged).findings == []
    finding = only(checked(tmp_path / "forged", keys, forged, kept))
    assert (finding.field, finding.place) == ("root", "kept by somebody")
    assert only(checked(None, keys, forged, kept)).field == "root"


def note_of_log(folder: Path, keys: KeyFile, values: Values) -> str:
    return sealed(folder, keys, values).note


def test_checkpoints_of_others_are_found(folder: Path, keys: KeyFile, tmp_path: Path) -> None:
    stranger = new_keys(tmp_path, "stranger.key")
    forged = note_of_log(tmp_path / "forged", stranger, VALUES)
    assert "wrong key, or a fake" in only(checked(folder, keys, VALUES, forged)).found
    in_log(folder, CHECKPOINT).write_text(forged)
    assert "wrong key, or a fake" in only(checked(folder, keys)).found
    in_log(folder, CHECKPOINT).write_text("nothing")
    assert only(checked(folder, keys)).field == "checkpoint"
    assert "signed note" in only(checked(None, keys, VALUES, "nothing")).found


@pytest.mark.parametrize("off_by", [-1, 5])
def test_a_checkpoint_that_lies_about_offsets_is_found(
    folder: Path, keys: KeyFile, off_by: int
) -> None:
    """Else its signer could deny a total that was there by then."""
    own = parse_checkpoint(parse_note(note_of(folder)).text)
    note = replace(own, next_offset=own.next_offset + off_by).signed(keys.key)
    assert only(checked(folder, keys, [*VALUES, *values_of(4)], note)).field == "offsets"


def test_a_log_that_is_gone_is_found_by_what_somebody_kept(folder: Path, keys: KeyFile) -> None:
    note = note_of(folder)
    shutil.rmtree(log_folder(folder, ORIGIN).folder)
    assert only(checked(folder, keys, VALUES, note)).field == "log"
    assert checked(None, keys, VALUES, note).findings == []  # the topic still has it all


def test_strangers_files_are_found(folder: Path, keys: KeyFile) -> None:
    for name in ("tile/0/notes.txt", "tile/entries/000.p/300", "tile/0/007"):
        path = in_log(folder, name)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x")
        assert only(checked(folder, keys)).place == str(path)
        path.unlink()


@pytest.mark.parametrize("step", list(Step))
def test_a_sealer_at_work_or_killed_gives_no_alarm(folder: Path, keys: KeyFile, step: Step) -> None:
    more = [*VALUES, *values_of(500)]
    log, _ = open_log(folder, ORIGIN, keys, kill_after(step))
    with pytest.raises(Killed):
        grow(log, more[len(VALUES) :])
    assert checked(folder, keys, more).findings == []
    # And where the records had been read before.
    assert checked_until(folder, keys, more, len(VALUES)).findings == []
    assert checked_until(folder, keys, more, 550).findings == []


def test_an_old_checkpoint_that_is_served_is_found(tmp_path: Path, keys: KeyFile) -> None:
    """The topic of checkpoints has an old one again; the ledger, or a customer, has a newer one."""
    old = note_of_log(tmp_path / "old", keys, VALUES[:300])
    new = note_of_log(tmp_path / "new", keys, VALUES)
    served = Witnessed("topic", old, is_current=True)
    for folder in (None, tmp_path / "new"):
        for kept in (Witnessed("ledger", new), Witnessed("topic, an earlier record", new)):
            result = check_seal(folder, topic_of(VALUES), keys.trusted, [kept, served])
            finding = only(result)
            assert (finding.field, finding.place) == ("size", "topic")
            assert "603 or more" in finding.expected
        again = Witnessed("topic", new, is_current=True)
        kept = Witnessed("ledger", old)
        assert check_seal(folder, topic_of(VALUES), keys.trusted, [kept, again]).findings == []


def test_what_was_sealed_after_the_records_were_read_gives_no_alarm(
    folder: Path, keys: KeyFile
) -> None:
    """But an alteration of what had been read before is found all the same."""
    assert checked_until(folder, keys, VALUES, 550).findings == []
    changed = [*VALUES[:30], *values_of(1), *VALUES[31:]]
    assert "root" in {each.field for each in checked_until(folder, keys, changed, 550).findings}
    flip(in_log(folder, "tile/entries/002.p/91"), 9_000)
    assert checked_until(folder, keys, VALUES, 550).findings


def checked_until(folder: Path, keys: KeyFile, values: Values, count: int) -> SealCheck:
    return check_seal(folder, topic_of(values[:count], end_now=2 * len(values)), keys.trusted)


def test_a_topic_that_has_lost_its_head_is_checked_with_the_logs_own(
    folder: Path, keys: KeyFile
) -> None:
    result = checked(folder, keys, first=2 * 400)
    assert result.findings == []
    assert result.logs[0].head == 400
    changed = list(VALUES)
    changed[450] = encode_total(a_total("SO-450", 1, 9))
    assert "root" in {each.field for each in checked(folder, keys, changed, first=800).findings}
    flip(in_log(folder, "tile/entries/000"), 9_000)
    assert "root" in {each.field for each in checked(folder, keys, first=800).findings}


def test_logs_of_a_recreated_topic_are_checked_by_themselves(tmp_path: Path, keys: KeyFile) -> None:
    old = Origin(ORIGIN.cluster, ORIGIN.topic, "old-id", 0)
    folder = tmp_path / "seal"
    kept = sealed(folder, keys, VALUES, origin=old).note
    sealed(folder, keys, VALUES[:9])
    result = checked(folder, keys, VALUES[:9], kept)
    assert (len(result.logs), result.findings) == (2, [])
    path = log_folder(folder, old).folder / "tile/entries/000"
    flip(path, 9_000)
    assert "root" in {each.field for each in checked(folder, keys, VALUES[:9]).findings}
    shutil.rmtree(log_folder(folder, old).folder)
    assert only(checked(folder, keys, VALUES[:9])).field == "follows"
    assert {each.field for each in checked(folder, keys, VALUES[:9], kept).findings} == {
        "follows",
        "log",
    }
