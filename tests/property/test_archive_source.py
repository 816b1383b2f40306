"""What comes out of an archive replays to the same as the log that went in."""

import shutil
import tempfile
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from durabill.stream_processors.audit.archive import files
from durabill.stream_processors.audit.archive.archiver import opened
from durabill.stream_processors.audit.archive.folder import ArchiveFolder
from durabill.stream_processors.audit.archive.pieces import PieceReader
from durabill.stream_processors.audit.archive.source import ArchivedLog
from durabill.stream_processors.audit.archive.verify import verify
from durabill.stream_processors.audit.replay import (
    Engine,
    LogPart,
    PartitionTerms,
    chunk_of_rows,
    replay_partition,
)
from durabill.stream_processors.core.order import Policy
from durabill.stream_processors.engine.batch import (
    HEADER_SIZE,
    BatchHeader,
    Chunk,
    Record,
    headers_in,
    records,
)
from durabill.stream_processors.engine.kernel import pack
from durabill.stream_processors.engine.standing import Standing
from durabill.stream_processors.engine.table import Effects
from tests.property.batches import encode_batch
from tests.property.column_histories import BASE_MS, BATCHES, BatchSpec, by_key, letters
from tests.property.test_replay import log_of
from tests.unit.archive_kit import NOON_MS, OF, contents, mark, segment

KINDS = st.sampled_from([Standing.DATA, Standing.DATA, Standing.MARKER, Standing.ABORTED])


class Parts:
    """A log source of parts that are given."""

    def __init__(self, parts: list[LogPart]) -> None:
        self.partition = 0
        self.first_offset = parts[0].chunk.first_offset if parts else 0
        self.end_offset = parts[-1].chunk.next_offset if parts else 0
        self._parts = parts

    def parts(self) -> Iterator[LogPart]:
        yield from self._parts


@pytest.fixture(autouse=True)
def small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """Row groups end inside of batches, too."""
    monkeypatch.setattr(files, "ROW_GROUP_ROWS", 64)


def archived(
    parts: list[LogPart], offsets_per_file: int, *, is_plain: bool = False
) -> tuple[list[LogPart], list[str], dict[str, bytes]]:
    """Archive a log; return it as it comes back, what verifying it found, and its files.

    The kernel makes the same bytes as the plain way.
    """
    root = Path(tempfile.mkdtemp())
    try:
        folder = ArchiveFolder(root)
        of = type(OF)(**{
            **{name: getattr(OF, name) for name in OF.__struct_fields__},
            "offsets_per_file": offsets_per_file, "partitions": 1,
        })  # fmt: skip
        reader = PieceReader()
        with mock.patch("os.fsync"), opened(folder, of) as archiver:
            for part in parts:
                for piece in reader.pieces(part, is_plain=is_plain):
                    archiver.partitions[0].take(piece)
            archiver.partitions[0].close_tail()
        source = ArchivedLog(folder, folder.manifest(), 0)
        back = list(source.parts())
        if is_plain:
            return back, [], contents(root)
        assert contents(root) == archived(parts, offsets_per_file, is_plain=True)[2]
        return back, [str(each) for each in verify(folder).findings], contents(root)
    finally:
        shutil.rmtree(root)


def effects_of(parts: list[LogPart], terms: PartitionTerms) -> Effects:
    found = Effects()
    for step in replay_partition(Parts(parts), terms, 1, Engine.REFERENCE):
        found.extend(step.effects)
    return found


def account(parts: list[LogPart]) -> tuple[int, ...]:
    """Sums of data, control, aborted and missing; the parts join, and explain each offset."""
    for one, other in pairwise(parts):
        assert one.chunk.next_offset == other.chunk.first_offset
    for each in parts:
        missing = sum(after - first for first, after in each.missing)
        known = each.data + each.control + each.aborted + missing
        assert known == each.chunk.next_offset - each.chunk.first_offset
        skipped = sum(after - first for first, after, _ in each.skipped)
        assert skipped == each.control + each.aborted
    return (
        sum(each.data for each in parts),
        sum(each.control for each in parts),
        sum(each.aborted for each in parts),
    )


@settings(max_examples=15, deadline=None)
@given(st.lists(BATCHES, max_size=8), st.data(), st.sampled_from([10, 1000]))
def test_an_archive_replays_as_the_log(
    specs: list[BatchSpec], data: st.DataObject, per_file: int
) -> None:
    parts = []
    for chunk in log_of(specs):
        size = chunk.next_offset - chunk.first_offset
        ((_, header),) = headers_in(chunk.data)
        kind = data.draw(KINDS)
        if kind is Standing.DATA:
            there = min(size, header.record_count)
            gone = ((chunk.next_offset - size + there, chunk.next_offset),) if there < size else ()
            parts.append(LogPart(chunk, there, missing=gone))
        else:
            bounds = (chunk.first_offset, chunk.next_offset)
            counts = (size, 0) if kind is Standing.MARKER else (0, size)
            parts.append(LogPart(Chunk(*bounds, b""), 0, *counts, skipped=((*bounds, kind),)))
    back, findings, _ = archived(parts, per_file)
    assert findings == []
    assert account(back)[1:] == account(parts)[1:]
    terms = PartitionTerms.of_policy(Policy())
    wanted, found = effects_of(parts, terms), effects_of(back, terms)
    assert by_key(found) == by_key(wanted)
    assert letters(found) == letters(wanted)


BYTES = st.none() | st.binary(max_size=300)
HEADERS = st.lists(st.tuples(st.text(max_size=5), BYTES), max_size=3)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 300), st.integers(0, 1), BYTES, BYTES, HEADERS)))
def test_every_byte_of_a_record_comes_back(rows: list) -> None:  # type: ignore[type-arg]
    offset, time_ms, there = -1, BASE_MS, []
    for gap, step_ms, key, value, headers in rows:
        offset, time_ms = offset + gap, time_ms + step_ms
        there.append(Record(offset, time_ms, key, value, tuple(headers)))
    chunks = [
        Chunk(
            each.offset,
            each.offset + 1,
            encode_batch(each.offset, each.append_ms, [(each.offset, each[2:])]),
        )
        for each in there
    ]
    expected = [each for chunk in chunks for each in records(chunk)]
    parts = [LogPart(each, 1) for each in chunks]
    # Between the chunks nothing was said of the offsets: what isn't there is absent.
    joined = [
        part._replace(chunk=Chunk(first, part.chunk.next_offset, part.chunk.data))
        for part, first in zip(
            parts, [0, *(each.chunk.next_offset for each in parts)], strict=False
        )
    ]
    back, findings, _ = archived(joined, 1000)
    assert findings == []
    assert [each for part in back for each in records(part.chunk)] == expected


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(BYTES, BYTES, HEADERS), min_size=1, max_size=4),
    st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=4),
    st.integers(0, 3),
)
def test_a_forged_batch_is_kept_as_it_is(rows: list, forged: list, cut: int) -> None:  # type: ignore[type-arg]
    segments = [segment(0, number=7), mark(1), segment(2, order="日本", headers=(("ü", b""),))]
    there = [*segments, *(Record(at, NOON_MS, *row) for at, row in enumerate(rows, 3))]
    chunk = chunk_of_rows(there, 0, len(there))
    data = bytearray(chunk.data)
    for at, byte in forged:
        data[HEADER_SIZE + at % (len(data) - HEADER_SIZE)] = byte
    batch = bytes(data[: len(data) - cut])
    length = (len(batch) - 12).to_bytes(4, "big")
    forgery = Chunk(0, len(there), batch[:8] + length + batch[12:])
    back, findings, _ = archived([LogPart(forgery, len(there))], 1000)
    assert findings == []
    assert account(back)[0] == len(there)
    terms = PartitionTerms.of_policy(Policy())
    wanted, found = effects_of([LogPart(forgery, len(there))], terms), effects_of(back, terms)
    assert letters(found) == letters(wanted)


def test_constants_of_the_kernel() -> None:
    assert pack.HEADER_BYTES == 61
    assert pack.HEADER_FRAME_BYTES == 10


def test_a_batch_ends_before_it_is_too_large() -> None:
    value = bytes(1_000_000)
    chunks = [chunk_of_rows([(at, BASE_MS, b"k", value, ())], at, at + 1) for at in range(12)]
    back, *_ = archived([LogPart(each, 1) for each in chunks], 1000)
    sizes: list[BatchHeader] = [h for part in back for _, h in headers_in(part.chunk.data)]
    assert [each.record_count for each in sizes] == [5, 5, 2]
    assert sum(len(list(records(part.chunk))) for part in back) == 12
