"""A manifest that was cut or made anew doesn't get past the signed head, or one that was kept."""

import shutil
from pathlib import Path

import pytest

from durabill.stream_processors.audit.archive.archiver import opened
from durabill.stream_processors.audit.archive.folder import ArchiveFolder, ArchiveUnreadable
from durabill.stream_processors.audit.archive.manifest import ArchiveError
from durabill.stream_processors.audit.archive.signing import Signer, verify_signed
from durabill.stream_processors.audit.seal.errors import KeyFileError
from durabill.stream_processors.audit.seal.keys import make_key_file, rotate_key_file
from tests.unit.archive_kit import NOON_MS, OF, archive, feed, log, segment


def sign(folder: ArchiveFolder, key_file: Path, count: int = 0, partition: int = 0) -> None:
    """Archive up to so many records of a partition, and sign."""
    with opened(folder, OF) as archiver:
        if count:
            feed(archiver, partition, log(count))
            archiver.partitions[partition].close_tail()
        Signer(folder, key_file).sign(archiver)


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "archive.key"
    (tmp_path / "archive.pub").write_text(f"{make_key_file(path, 'archive')}\n")
    return path


@pytest.fixture
def public(key_file: Path) -> str:
    return str(key_file.with_suffix(".pub"))


@pytest.fixture
def folder(tmp_path: Path, key_file: Path) -> ArchiveFolder:
    """A signed archive of three files."""
    made = ArchiveFolder(tmp_path / "archive")
    sign(made, key_file, 250)
    return made


def told(folder: ArchiveFolder, public: str, trusted: Path | None = None) -> list[str]:
    return [each.field for each in verify_signed(folder, public, trusted).findings]


def cut_tail(folder: ArchiveFolder, to: int) -> None:
    """Remove entries from a number on, with their files: the chain is whole all the same."""
    for entry in folder.manifest().entries[to - 1 :]:
        (folder.root / entry.path).unlink()
        (folder.root / f"_manifest/entries/{entry.number:08}.json").unlink()


def test_what_is_signed_and_as_it_was(folder: ArchiveFolder, key_file: Path, public: str) -> None:
    assert told(folder, public) == []
    sign(folder, key_file, 300)
    assert told(folder, public) == []


def test_a_tail_that_was_cut_off(folder: ArchiveFolder, public: str) -> None:
    cut_tail(folder, 3)
    assert told(folder, public) == ["entries"]


def test_an_archive_made_again_from_altered_data(folder: ArchiveFolder, public: str) -> None:
    head = folder.head_path.read_bytes()
    shutil.rmtree(folder.root)
    records = log(250)
    records[7] = segment(7, NOON_MS + 7_000, "SO-2", 2, NOON_MS - 60_000, NOON_MS)
    archive(folder.root, {0: records})
    assert told(folder, public) == ["head"]
    folder.head_path.write_bytes(head)
    assert told(folder, public) == ["root of the first 4 entries"]


def test_a_head_of_another_archive(folder: ArchiveFolder, key_file: Path, public: str) -> None:
    of = type(OF)(**{**{n: getattr(OF, n) for n in OF.__struct_fields__}, "topic_id": "other"})
    other = ArchiveFolder(folder.root.parent / "other")
    with opened(other, of) as archiver:
        feed(archiver, 0, log(250))
        archiver.partitions[0].close_tail()
        Signer(other, key_file).sign(archiver)
    shutil.copy(other.head_path, folder.head_path)
    assert told(folder, public) == ["origin"]


def test_an_archive_and_its_head_of_an_earlier_day(
    folder: ArchiveFolder, public: str, key_file: Path, tmp_path: Path
) -> None:
    """Rolled back together they fit. Whoever kept a later head knows better."""
    earlier = folder.head_path.read_bytes()
    sign(folder, key_file, 400)
    kept = tmp_path / "kept"
    shutil.copy(folder.head_path, kept)
    assert told(folder, public, kept) == []
    cut_tail(folder, 4)
    folder.head_path.write_bytes(earlier)
    assert told(folder, public) == []
    assert told(folder, public, kept) == ["entries"]


def test_entries_that_nobody_signed(folder: ArchiveFolder, public: str) -> None:
    archive(folder.root, {1: log(20)})
    assert told(folder, public) == ["entries"]


@pytest.mark.parametrize("content", [b"", b"\xff\n\nx", b"a\nb\n\n-- c d\n"])
def test_a_head_that_is_none(folder: ArchiveFolder, public: str, content: bytes) -> None:
    folder.head_path.write_bytes(content)
    assert told(folder, public) == ["head"]


def test_a_head_that_was_altered(folder: ArchiveFolder, public: str) -> None:
    folder.head_path.write_text(folder.head_path.read_text().replace("\n4\n", "\n3\n"))
    assert told(folder, public) == ["head"]


def test_a_head_of_another_key(folder: ArchiveFolder, tmp_path: Path) -> None:
    other = make_key_file(tmp_path / "other.key", "archive")
    assert told(folder, str(other)) == ["head"]


def test_a_key_that_was_rotated(
    folder: ArchiveFolder, key_file: Path, public: str, tmp_path: Path
) -> None:
    new = rotate_key_file(key_file, tmp_path / "new.key")
    sign(folder, tmp_path / "new.key", 300)
    assert told(folder, public) == []  # the old key hands over to the new one
    assert told(folder, str(new)) == []
    hand_overs = folder.hand_overs_path
    hand_overs.write_text(hand_overs.read_text().replace("hand-over", "hand-0ver"))
    assert told(folder, public) == ["hand-overs", "head"]


def test_nothing_is_signed_on_top_of_what_was_cut(folder: ArchiveFolder, key_file: Path) -> None:
    before = folder.head_path.read_bytes()
    cut_tail(folder, 2)
    with pytest.raises(ArchiveError, match="isn't what was signed before"):
        sign(folder, key_file, 260)
    assert folder.head_path.read_bytes() == before


def test_the_same_log_gives_the_same_signed_manifest_again(
    folder: ArchiveFolder, key_file: Path, public: str
) -> None:
    """So what was lost with a disk can be made anew as long as Kafka has the log."""
    before = folder.head_path.read_bytes()
    cut_tail(folder, 2)
    sign(folder, key_file, 250)
    assert folder.head_path.read_bytes() == before


def test_a_key_file_that_others_can_read(folder: ArchiveFolder, key_file: Path) -> None:
    key_file.chmod(0o644)
    with pytest.raises(KeyFileError, match="others can read"):
        Signer(folder, key_file)


def test_a_kept_head_that_is_none(folder: ArchiveFolder, public: str, tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("what")
    for name in ("kept", "nothing"):
        with pytest.raises(ArchiveUnreadable, match="no head to compare with"):
            verify_signed(folder, public, tmp_path / name)
    assert ArchiveUnreadable.exit_code == 2
