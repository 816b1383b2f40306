"""An archive is written whole, once, and the same by whoever writes it."""

import errno
import hashlib
import json
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from durabill.schemas.errors import UnreachableError
from durabill.stream_processors.audit.archive import files
from durabill.stream_processors.audit.archive.archiver import OtherLog, opened
from durabill.stream_processors.audit.archive.folder import ArchiveBusy, ArchiveFolder
from durabill.stream_processors.audit.archive.manifest import ArchiveError
from durabill.stream_processors.audit.archive.rows import to_records
from durabill.stream_processors.audit.archive.verify import verify
from durabill.stream_processors.engine.batch import Record
from tests.unit.archive_kit import (
    DAY_MS,
    NOON_MS,
    OF,
    archive,
    contents,
    feed,
    log,
    mark,
    piece,
    segment,
)


def names(folder: ArchiveFolder) -> list[str]:
    return [each.path for each in folder.manifest().entries]


def name(day: str, partition: int, first: int, last: int) -> str:
    return f"day={day}/partition={partition}/{first:020}-{last:020}.parquet"


def test_files_are_named_by_day_partition_first_and_last_offset(tmp_path: Path) -> None:
    folder = archive(tmp_path, {0: log(250), 1: log(7)})
    assert names(folder) == [
        name("2025-01-01", 0, 0, 99),
        name("2025-01-01", 0, 100, 199),
        name("2025-01-01", 0, 200, 249),
        name("2025-01-01", 1, 0, 6),
    ]
    assert set(names(folder)) == folder.files()


def test_a_file_ends_with_the_day_of_arrival(tmp_path: Path) -> None:
    """The broker's clock may run backwards; arrival doesn't."""
    tomorrow_ms = NOON_MS + DAY_MS
    records = [segment(0), segment(3, tomorrow_ms), segment(4, NOON_MS), segment(5, tomorrow_ms)]
    folder = archive(tmp_path, {0: records}, next_offset=8)
    assert names(folder) == [name("2025-01-01", 0, 0, 2), name("2025-01-02", 0, 3, 7)]
    first, second = folder.manifest().entries
    assert (first.rows, first.control, second.rows, second.control) == (1, 2, 3, 2)
    assert verify(folder).findings == []


def test_an_archive_that_begins_later_than_the_log(tmp_path: Path) -> None:
    folder = ArchiveFolder(tmp_path)
    with opened(folder, OF) as archiver:
        archiver.begin_at(0, 130)
        feed(archiver, 0, log(100, first=130))
        archiver.partitions[0].close_tail()
    assert names(folder) == [name("2025-01-01", 0, 130, 199), name("2025-01-01", 0, 200, 229)]
    reach = folder.manifest().reach()
    assert (reach[0].first_offset, reach[0].next_offset) == (130, 230)
    assert (reach[1].files, reach[1].next_offset) == (0, 0)


def test_offsets_without_records_are_explained(tmp_path: Path) -> None:
    records = [each for each in log(100) if each.offset % 10]
    folder = archive(tmp_path, {0: records}, next_offset=205)
    counts = [(each.rows, each.control) for each in folder.manifest().entries]
    assert counts == [(90, 10), (0, 100), (0, 5)]
    assert verify(folder).findings == []


def test_rows_come_back_as_they_went_in(tmp_path: Path) -> None:
    records = [
        *log(20),
        mark(20),
        Record(21, NOON_MS, None, None, ()),
        Record(22, NOON_MS, b"\xff", b"garbage", (("x", b""), ("x", None))),
        Record(23, NOON_MS, b"", b"", ()),
    ]
    folder = archive(tmp_path, {0: records})
    file = files.ArchiveFile(folder.root / names(folder)[0])
    assert [each for table in file.tables() for each in to_records(table)] == records
    file.close()


def test_strangers_read_it_as_it_is(tmp_path: Path) -> None:
    folder = archive(tmp_path, {0: [*log(150), mark(150)], 1: log(5)})
    found = (
        duckdb.connect()
        .execute(
            "SELECT kind, count(*), count(DISTINCT service_order_number), min(day)::VARCHAR,"
            f" max(partition) FROM '{folder.root}/**/*.parquet' GROUP BY kind ORDER BY kind"
        )
        .fetchall()
    )
    assert found == [("clock_mark", 1, 0, "2025-01-01", 0), ("segment", 155, 50, "2025-01-01", 1)]
    table = ds.dataset(folder.root, partitioning="hive").to_table()
    assert table.num_rows == 156
    assert sum(table.filter(ds.field("partition") == 1).column("end_identifier").to_pylist()) == 1


def test_a_file_that_is_written_as_it_grows_is_compressed_and_has_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "ROW_GROUP_ROWS", 64)
    folder = archive(tmp_path, {0: log(100)}, cuts=range(0, 100, 7))
    metadata = pq.read_metadata(folder.root / names(folder)[0])
    groups = [metadata.row_group(each) for each in range(metadata.num_row_groups)]
    assert [each.num_rows for each in groups] == [64, 36]
    assert {groups[0].column(each).compression for each in range(10)} == {"ZSTD"}


def test_how_the_log_is_read_changes_no_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "ROW_GROUP_ROWS", 32)
    records = [each for each in log(260) if each.offset % 9]
    at_once = archive(tmp_path / "1", {0: records})
    by_pieces = archive(tmp_path / "2", {0: records}, cuts=range(0, 260, 13))
    assert contents(at_once.root) == contents(by_pieces.root)


def test_whoever_comes_back_goes_on_where_it_was(tmp_path: Path) -> None:
    records = log(260)
    whole = archive(tmp_path / "whole", {0: records})
    folder = ArchiveFolder(tmp_path / "resumed")
    for end in (30, 100, 150, 199, 260):
        with opened(folder, OF) as archiver:
            feed(archiver, 0, records[:end])
            if end == 260:
                archiver.partitions[0].close_tail()
    assert contents(folder.root) == contents(whole.root)
    assert list((folder.root / "_tmp").glob("*.part")) == []


def test_a_file_that_a_killed_archiver_named_is_accepted(tmp_path: Path) -> None:
    """The crash came between the file's name and its entry, at an end that nobody asks for now."""
    killed = archive(tmp_path / "killed", {0: log(30)})
    (path,) = names(killed)
    (killed.root / "_manifest/entries/00000001.json").unlink()
    (killed.root / "_tmp" / "1-2.part").write_bytes(b"half")
    assert verify(killed).findings[0].place == path
    again = archive(killed.root, {0: log(50)})
    assert names(again) == [path, name("2025-01-01", 0, 30, 49)]
    assert verify(again).findings == []
    assert list((killed.root / "_tmp").glob("*.part")) == []


def test_a_file_of_another_pyarrow_with_the_same_rows_is_accepted(tmp_path: Path) -> None:
    folder = archive(tmp_path, {0: log(30)})
    path = folder.root / names(folder)[0]
    table = pq.read_table(path, partitioning=None)
    description = {files.DESCRIPTION: pq.read_metadata(path).metadata[files.DESCRIPTION]}
    pq.write_table(table.replace_schema_metadata(description), path, compression="snappy")
    (folder.root / "_manifest/entries/00000001.json").unlink()
    archive(tmp_path, {0: log(30)})
    assert verify(folder).findings == []


def test_a_file_that_holds_something_else_is_never_written_over(tmp_path: Path) -> None:
    folder = archive(tmp_path, {0: log(30)})
    path = folder.root / names(folder)[0]
    (folder.root / "_manifest/entries/00000001.json").unlink()
    path.write_bytes(b"somebody's")
    with pytest.raises(ArchiveError, match="put there by somebody else"):
        archive(tmp_path, {0: log(30)})
    assert path.read_bytes() == b"somebody's"
    assert len(folder.lines()) == 1


def test_two_at_once_do_no_harm(tmp_path: Path) -> None:
    folder = ArchiveFolder(tmp_path)
    with opened(folder, OF) as one:
        feed(one, 0, log(120))
        with pytest.raises(ArchiveBusy, match="another process"), opened(folder, OF):
            pass
        feed(one, 0, log(220))
    assert names(folder) == [name("2025-01-01", 0, 0, 99), name("2025-01-01", 0, 100, 199)]
    assert verify(folder).findings == []


def test_two_at_once_where_locks_mean_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on some network file systems: the entry decides who was first, the other one stops."""
    monkeypatch.setattr("fcntl.flock", lambda *_: None)
    folder = ArchiveFolder(tmp_path)
    with opened(folder, OF) as slow, opened(folder, OF) as fast:
        feed(slow, 0, log(90))
        feed(fast, 0, log(250))
        with pytest.raises(ArchiveBusy):
            feed(slow, 0, log(220))
    assert names(folder) == [name("2025-01-01", 0, 0, 99), name("2025-01-01", 0, 100, 199)]
    assert verify(folder).findings == []


def test_who_came_second_takes_its_file_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One ends its file at the log's end of then: two files would hold the same offsets."""
    monkeypatch.setattr("fcntl.flock", lambda *_: None)
    folder = ArchiveFolder(tmp_path)
    with opened(folder, OF) as slow, opened(folder, OF) as fast:
        feed(slow, 0, log(90))
        feed(fast, 0, log(250))
        with pytest.raises(ArchiveBusy):
            slow.partitions[0].close_tail()
    assert folder.files() == set(names(folder))


@pytest.mark.parametrize(
    ("field", "value"),
    [("cluster_id", "c2"), ("topic", "other"), ("topic_id", "recreated"), ("partitions", 3)],
)
def test_an_archive_of_another_log_is_refused(tmp_path: Path, field: str, value: Any) -> None:
    folder = archive(tmp_path, {0: log(30)})
    other = type(OF)(**{**{n: getattr(OF, n) for n in OF.__struct_fields__}, field: value})
    before = contents(tmp_path)
    with pytest.raises(OtherLog, match="of another log"), opened(folder, other):
        pass
    assert contents(tmp_path) == before


def test_the_number_of_offsets_stays_as_it_began(tmp_path: Path) -> None:
    folder = archive(tmp_path, {0: log(250)})
    other = type(OF)(**{**{n: getattr(OF, n) for n in OF.__struct_fields__}, "offsets_per_file": 7})
    archive(tmp_path, {1: log(150)}, of=other)
    assert len(names(folder)) == 5


def test_records_that_were_deleted_before_they_were_archived_are_told(tmp_path: Path) -> None:
    archive(tmp_path, {0: log(30)})
    with (
        pytest.raises(ArchiveError, match="up to offset 30, but Kafka's log begins at 40"),
        opened(ArchiveFolder(tmp_path), OF) as archiver,
    ):
        archiver.begin_at(0, 40)


def test_a_log_that_has_lost_what_is_archived_is_told(tmp_path: Path) -> None:
    archive(tmp_path, {0: log(30)})
    with (
        pytest.raises(ArchiveError, match="up to offset 30, but Kafka's log ends at 20"),
        opened(ArchiveFolder(tmp_path), OF) as archiver,
    ):
        archiver.begin_at(0, 0, 20)


def test_a_full_disk_is_told_and_leaves_nothing_half_written(small_disk: Path) -> None:
    big = [segment(at, headers=(("x", hashlib.sha512(bytes([at])).digest() * 1500),))
           for at in range(250)]  # fmt: skip
    noise = [
        each._replace(headers=(("x", b"".join(hashlib.sha512(b"%d %d" % (each.offset, n)).digest()
                                              for n in range(600))),))
        for each in big
    ]  # fmt: skip
    with pytest.raises(ArchiveError, match="is full"):
        archive(small_disk / "archive", {0: noise})
    folder = ArchiveFolder(small_disk / "archive")
    assert verify(folder).findings == []
    assert list((folder.root / "_tmp").glob("*.part")) == []


def test_the_system_s_errors_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr("os.fsync", refuse)
    with pytest.raises(ArchiveError, match="is full"):
        archive(tmp_path, {0: log(30)})
    (tmp_path / "file").touch()
    with pytest.raises(ArchiveError, match="can't be written"):
        archive(tmp_path / "file", {0: log(30)})


def test_a_log_that_breaks_off_leaves_nothing_half_written(tmp_path: Path) -> None:
    folder = ArchiveFolder(tmp_path)

    def break_off() -> None:
        with opened(folder, OF) as archiver:
            feed(archiver, 0, log(150))
            feed(archiver, 1, log(50))
            raise UnreachableError("Kafka has gone")

    with pytest.raises(UnreachableError):
        break_off()
    assert names(folder) == [name("2025-01-01", 0, 0, 99)]
    assert verify(folder).findings == []
    assert list((folder.root / "_tmp").glob("*.part")) == []


def test_what_is_no_archive_is_told(tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match="is no archive"):
        verify(ArchiveFolder(tmp_path))


def test_entries_are_chained_json(tmp_path: Path) -> None:
    folder = archive(tmp_path, {0: log(150)})
    lines = folder.lines()
    entries = [json.loads(line) for line in lines]
    assert entries[0]["cluster_id"] == "cluster-1"
    assert [each["number"] for each in entries[1:]] == [1, 2]
    assert entries[2]["previous"] == hashlib.sha256(lines[1]).hexdigest()
    path = folder.root / names(folder)[0]
    assert entries[1]["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_bad_batch_is_kept_as_it_lies_in_the_log(tmp_path: Path) -> None:
    batch = bytes(61)
    folder = ArchiveFolder(tmp_path)
    with opened(folder, OF) as archiver:
        rows = [segment(0), Record(1, NOON_MS, None, batch, ())]
        archiver.partitions[0].take(piece(rows, 0, 2)._replace(bad=frozenset({1})))
        archiver.partitions[0].close_tail()
    (found,) = verify(folder).findings  # these 61 bytes are no batch at offset 1
    assert (found.field, found.expected, found.found) == ("kind", "undecodable", "bad_batch")
