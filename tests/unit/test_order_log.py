"""What `durabill order` and `explain` read before Kafka's log: nothing, or the archive's part."""

from pathlib import Path

import msgspec
import pytest

from durabill.deploy.commands import order_log
from durabill.stream_processors.audit.archive import reach
from durabill.stream_processors.audit.archive.files import BadFile
from durabill.stream_processors.audit.archive.head_records import ArchivedHead
from durabill.stream_processors.audit.archive.manifest import ArchiveError
from durabill.stream_processors.settings import Settings
from tests.unit.archive_kit import OF, archive, log


def test_a_log_whose_beginning_is_gone_is_told() -> None:
    assert order_log._before(Settings(), 0, 0) == ((), [])
    found, (note,) = order_log._before(Settings(), 3, 7)
    assert list(found) == []
    assert note.startswith("the log of partition 3 begins at offset 7: what was before it is gone")


def test_the_archives_part_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive(tmp_path, {0: log(30), 1: log(7)})
    monkeypatch.setattr(reach, "live_log", lambda settings: OF)
    found, notes = order_log._before(Settings(archive_dir=str(tmp_path)), 0, 20)
    assert list(found) == log(30)[:20]
    assert notes == ["the records of partition 0 from offset 0 to 19 are the archive's"]


def test_what_is_nowhere_is_told(tmp_path: Path) -> None:
    archive(tmp_path, {0: log(30)})
    short = ArchivedHead(tmp_path, OF, 0, 40)
    assert list(short.records()) == log(30)
    assert short.notes()[1:] == [
        "offsets 30 to 39 of partition 0 are neither in Kafka nor archived"
    ]
    assert ArchivedHead(tmp_path, OF, 1, 5).notes() == [
        f"the archive {tmp_path} has nothing of partition 1 before Kafka's log"
    ]


def test_another_logs_archive_and_an_altered_one_are_refused(tmp_path: Path) -> None:
    folder = archive(tmp_path, {0: log(30)})
    with pytest.raises(ArchiveError, match="its cluster is cluster-1, that of Kafka's is other"):
        ArchivedHead(tmp_path, msgspec.structs.replace(OF, cluster_id="other"), 0, 5)
    path = tmp_path / folder.manifest().entries[0].path
    path.chmod(0o600)
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(BadFile, match="was changed"):
        list(ArchivedHead(tmp_path, OF, 0, 5).records())
