"""Whatever is changed in an archive is found when it is read back."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from durabill.stream_processors.audit.archive.files import DESCRIPTION, file_digest
from durabill.stream_processors.audit.archive.folder import ArchiveFolder
from durabill.stream_processors.audit.archive.manifest import Entry, digest, encode
from durabill.stream_processors.audit.archive.rows import SCHEMA, to_records
from durabill.stream_processors.audit.archive.verify import verify
from durabill.stream_processors.audit.findings import Finding, Kind
from durabill.stream_processors.engine.batch import Record
from tests.unit.archive_kit import NOON_MS, OF, archive, log, segment, to_table


@pytest.fixture
def folder(tmp_path: Path) -> ArchiveFolder:
    """Three files of partition 0, one of partition 1."""
    return archive(tmp_path / "archive", {0: log(250), 1: log(40)})


def path_of(folder: ArchiveFolder, number: int) -> Path:
    return folder.root / folder.manifest().entries[number - 1].path


def entry_path(folder: ArchiveFolder, number: int) -> Path:
    return folder.root / f"_manifest/entries/{number:08}.json"


def rewrite(path: Path, change: Callable[[list[Record]], list[Record]], **described: Any) -> None:
    """Write a file anew with other rows, as somebody would who knows the format."""
    description = json.loads(pq.read_metadata(path).metadata[DESCRIPTION])
    table = pq.read_table(path, partitioning=None)
    rows = change(list(to_records(table)))
    note = {DESCRIPTION: msgspec.json.encode({**description, **described})}
    pq.write_table(to_table(rows).replace_schema_metadata(note), path, compression="zstd")


def reseal(folder: ArchiveFolder) -> None:
    """Compute every digest and the whole chain anew: without a key everybody can."""
    lines = folder.lines()
    for number in range(1, len(lines)):
        entry = msgspec.json.decode(lines[number], type=Entry)
        path = folder.root / entry.path
        lines[number] = encode(
            msgspec.structs.replace(
                entry,
                previous=digest(lines[number - 1]),
                rows=pq.read_metadata(path).num_rows,
                bytes=path.stat().st_size,
                sha256=file_digest(path),
            )
        )
        entry_path(folder, number).write_bytes(lines[number])


def found(folder: ArchiveFolder) -> list[Finding]:
    findings = verify(folder).findings
    assert all(each.kind is Kind.ARCHIVE_INCONSISTENT and each.place for each in findings)
    return findings


def fields(folder: ArchiveFolder) -> set[str]:
    return {each.field for each in found(folder)}


def test_what_is_as_it_was_written(folder: ArchiveFolder) -> None:
    verified = verify(folder)
    assert (verified.findings, verified.files, verified.rows) == ([], 4, 290)


def test_a_segment_that_was_removed(folder: ArchiveFolder) -> None:
    rewrite(path_of(folder, 2), lambda rows: rows[:50] + rows[51:])
    assert fields(folder) >= {"sha256", "offsets", "rows"}
    reseal(folder)
    assert {"offsets", "manifest"} <= fields(folder)
    assert any("150" in each.place for each in found(folder))


def test_a_segment_that_was_removed_and_explained_away(folder: ArchiveFolder) -> None:
    """A file that fits itself: its digest tells, and where all digests are new, the signed head."""
    rewrite(path_of(folder, 2), lambda rows: rows[:50] + rows[51:], gaps=[[150, 150, "aborted"]])
    assert fields(folder) >= {"sha256", "rows", "aborted"}


def test_a_segment_that_was_added(folder: ArchiveFolder) -> None:
    rewrite(path_of(folder, 2), lambda rows: [*rows, segment(200)])
    assert fields(folder) >= {"sha256", "offset"}
    reseal(folder)
    assert "offset" in fields(folder)


def test_a_segment_that_is_there_twice(folder: ArchiveFolder) -> None:
    rewrite(path_of(folder, 2), lambda rows: [*rows[:10], *rows[9:]])
    reseal(folder)
    assert "offset" in fields(folder)


def test_a_segment_that_was_altered(folder: ArchiveFolder) -> None:
    rewrite(path_of(folder, 2), lambda rows: [segment(100, end_ms=NOON_MS), *rows[1:]])
    assert "sha256" in fields(folder)


def test_a_decoded_column_that_was_altered(folder: ArchiveFolder) -> None:
    """The record is left as it is; whoever asks by SQL would see another end."""
    path = path_of(folder, 2)
    table = pq.read_table(path, partitioning=None)
    ends = table.column("end_ms").to_pylist()
    ends[7] += 1
    at = table.schema.get_field_index("end_ms")
    changed = table.set_column(at, SCHEMA.field("end_ms"), pa.array(ends, pa.int64()))
    note = {DESCRIPTION: pq.read_metadata(path).metadata[DESCRIPTION]}
    pq.write_table(changed.replace_schema_metadata(note), path)
    reseal(folder)
    (only,) = found(folder)
    assert (only.field, only.expected, only.found) == ("end_ms", str(ends[7] - 1), str(ends[7]))
    assert only.service_order_number == "SO-35"
    assert only.place.endswith("offset 107")


def test_an_append_time_on_another_day(folder: ArchiveFolder) -> None:
    rewrite(
        path_of(folder, 2),
        lambda rows: [*rows[:-1], rows[-1]._replace(append_ms=rows[-1].append_ms + 86_400_000)],
    )
    reseal(folder)
    assert fields(folder) == {"day", "clock_ms"}


def test_a_renamed_file(folder: ArchiveFolder) -> None:
    path = path_of(folder, 2)
    path.rename(path.with_name(path.name.replace("0199", "0198")))
    assert [each.found for each in found(folder)] == [
        "a file that is in no manifest entry",
        "no file of this name",
    ]


def test_files_that_changed_their_names(folder: ArchiveFolder) -> None:
    one, other = path_of(folder, 1), path_of(folder, 2)
    kept = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(kept)
    assert fields(folder) >= {"sha256", "first_offset", "last_offset"}


def test_a_missing_file(folder: ArchiveFolder) -> None:
    path_of(folder, 2).unlink()
    assert [each.found for each in found(folder)] == ["no file of this name"]


def test_a_file_that_overlaps(folder: ArchiveFolder, tmp_path: Path) -> None:
    of = msgspec.structs.replace(OF, offsets_per_file=60)
    other = archive(tmp_path / "other", {0: log(250)}, of=of)
    path = other.manifest().entries[1].path
    shutil.copy(other.root / path, folder.root / path)
    (only,) = found(folder)
    assert (only.found, only.place) == ("a file that is in no manifest entry", path)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"first_offset": 90, "rows": 110}, "an overlap"),
        ({"first_offset": 110, "rows": 90}, "a hole"),
        ({"rows": 99}, "99 offsets are accounted for of 100"),
        ({"aborted": 1}, "101 offsets are accounted for of 100"),
        ({"partition": 2}, "partition 2, but the topic has 2"),
        ({"number": 7}, "it has the number 7"),
        ({"last_offset": 220, "rows": 121}, "beyond a multiple of 100 offsets"),
    ],
)
def test_an_entry_that_was_altered(
    folder: ArchiveFolder, change: dict[str, Any], says: str
) -> None:
    entry = msgspec.structs.replace(folder.manifest().entries[1], **change)
    entry_path(folder, 2).write_bytes(encode(entry))
    told = [each.found for each in found(folder)]
    assert any(f"entry 2: {says}" in each or says in each for each in told)
    assert any("entry 3: it doesn't carry the digest" in each for each in told)


@pytest.mark.parametrize("content", [b"", b"{}\n", b"\xff\n", b'{"format":"durabill-archive-2"}\n'])
def test_an_entry_that_cant_be_read(folder: ArchiveFolder, content: bytes) -> None:
    entry_path(folder, 2).write_bytes(content)
    assert "manifest" in fields(folder)
    entry_path(folder, 0).write_bytes(content)
    assert fields(folder) == {"manifest"}


def test_an_entry_with_another_spelling(folder: ArchiveFolder) -> None:
    path = entry_path(folder, 4)
    path.write_bytes(path.read_bytes().replace(b'":', b'": '))
    assert any("not spelled" in each.found for each in found(folder))


def test_a_missing_entry(folder: ArchiveFolder) -> None:
    entry_path(folder, 2).unlink()
    assert [each.field for each in found(folder)] == ["manifest", "file", "file", "file"]


def test_an_entry_0_of_another_cluster(folder: ArchiveFolder) -> None:
    entry_path(folder, 0).write_bytes(encode(msgspec.structs.replace(OF, cluster_id="mine")))
    reseal(folder)
    assert fields(folder) == {"cluster_id"}


def test_a_file_from_another_cluster(folder: ArchiveFolder, tmp_path: Path) -> None:
    of = msgspec.structs.replace(OF, cluster_id="cluster-2", topic_id="topic-id-2")
    other = archive(tmp_path / "other", {0: log(250, step_ms=1_001)}, of=of)
    shutil.copy(path_of(other, 2), path_of(folder, 2))
    reseal(folder)
    assert fields(folder) >= {"cluster_id", "topic_id"}


@pytest.mark.parametrize("at", [0, 4, 2_000, -5, -200])
def test_a_damaged_file(folder: ArchiveFolder, at: int) -> None:
    path = path_of(folder, 1)
    content = bytearray(path.read_bytes())
    content[at] ^= 0x40
    path.write_bytes(content)
    assert "sha256" in fields(folder)


def test_a_file_that_was_cut_off_or_is_none(folder: ArchiveFolder) -> None:
    one, other = path_of(folder, 1), path_of(folder, 2)
    one.write_bytes(one.read_bytes()[:-100])
    other.write_bytes(b"")
    assert [each.field for each in found(folder)] == ["sha256", "bytes", "file"] * 2


def test_parquet_of_somebody_else(folder: ArchiveFolder) -> None:
    pq.write_table(pa.table({"offset": [1]}), path_of(folder, 1))
    told = [each.found for each in found(folder) if each.field == "file"]
    assert told == ["it has no description durabill.archive: it isn't of an archive"]


def test_many_findings_of_a_file_are_capped_and_told(folder: ArchiveFolder) -> None:
    path = path_of(folder, 1)
    table = pq.read_table(path, partitioning=None)
    names = [each for each in SCHEMA.names if each not in ("start_ms", "end_ms")]
    swapped = table.select(names).append_column(SCHEMA.field("start_ms"), table.column("end_ms"))
    swapped = swapped.append_column(SCHEMA.field("end_ms"), table.column("start_ms"))
    note = {DESCRIPTION: pq.read_metadata(path).metadata[DESCRIPTION]}
    pq.write_table(swapped.select(SCHEMA.names).replace_schema_metadata(note), path)
    verified = verify(folder)
    assert len(verified.findings) == 100
    assert verified.notes == [f"{path.relative_to(folder.root)}: 102 more findings are not listed"]


def test_what_a_manifest_alone_cant_tell(folder: ArchiveFolder, tmp_path: Path) -> None:
    """An archive that was made anew fits itself: that is why its head is signed."""
    rewrite(path_of(folder, 2), lambda rows: [segment(100, end_ms=NOON_MS), *rows[1:]])
    reseal(folder)
    assert found(folder) == []
    path_of(folder, 4).unlink()
    entry_path(folder, 4).unlink()
    assert found(folder) == []
