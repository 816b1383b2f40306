"""Archives made of rows that no broker has seen."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from durabill.schemas import SegmentEvent, encode_segment
from durabill.schemas.clock_mark import ClockMark, encode_clock_mark
from durabill.schemas.wire import Headers
from durabill.stream_processors.audit.archive.archiver import Archiver, opened
from durabill.stream_processors.audit.archive.folder import ArchiveFolder
from durabill.stream_processors.audit.archive.gaps import Gap, Why, between
from durabill.stream_processors.audit.archive.manifest import ArchiveOf
from durabill.stream_processors.audit.archive.pieces import Piece
from durabill.stream_processors.audit.archive.rows import SCHEMA, decoded
from durabill.stream_processors.engine.batch import Record

DAY_MS = 86_400_000
NOON_MS = 1_735_732_800_000
"""2025-01-01 12:00 UTC."""

OF = ArchiveOf(
    cluster_id="cluster-1",
    topic="billing.segments",
    topic_id="topic-id-1",
    partitions=2,
    offsets_per_file=100,
)


def segment(
    offset: int,
    append_ms: int = NOON_MS,
    order: str = "SO1",
    number: int = 1,
    start_ms: int = NOON_MS - 60_000,
    end_ms: int = NOON_MS - 50_000,
    is_end: bool = False,
    headers: Headers = (),
) -> Record:
    """A record of a segment."""
    event = SegmentEvent(order, number, start_ms, end_ms, is_end)
    return Record(offset, append_ms, order.encode(), encode_segment(event), headers)


def mark(offset: int, append_ms: int = NOON_MS) -> Record:
    """A record of a clock mark."""
    return Record(offset, append_ms, None, encode_clock_mark(ClockMark("durabill", 1)), ())


def log(count: int, *, first: int = 0, step_ms: int = 1_000) -> list[Record]:
    """A log of orders of three segments each, an offset a record."""
    return [
        segment(
            first + at,
            NOON_MS + at * step_ms,
            f"SO-{at // 3}",
            at % 3 + 1,
            NOON_MS + at * step_ms - 10_000,
            NOON_MS + at * step_ms,
            at % 3 == 2,
            (("trace", b"\xff\x00"), ("empty", None)) if at % 7 == 0 else (),
        )
        for at in range(count)
    ]


def piece(records: Sequence[Record], first: int, next_offset: int, why: Why = Why.CONTROL) -> Piece:
    """A piece whose offsets without a record have the same reason all."""
    found = between((each.offset for each in records), first, next_offset)
    return Piece(list(records), [Gap(*each, why) for each in found], next_offset)


def pieces(
    records: Sequence[Record], first: int, next_offset: int, cuts: Iterable[int] = ()
) -> list[Piece]:
    """The same log in pieces that end before these offsets."""
    made, start = [], first
    for end in [*sorted({each for each in cuts if first < each < next_offset}), next_offset]:
        made.append(piece([r for r in records if start <= r.offset < end], start, end))
        start = end
    return made


def archive(
    root: Path,
    logs: Mapping[int, Sequence[Record]],
    *,
    of: ArchiveOf = OF,
    cuts: Iterable[int] = (),
    next_offset: int | None = None,
) -> ArchiveFolder:
    """Archive these partitions to their ends, in pieces; return the folder."""
    folder = ArchiveFolder(root)
    with opened(folder, of) as archiver:
        for partition, records in logs.items():
            feed(archiver, partition, records, cuts=cuts, next_offset=next_offset)
            archiver.partitions[partition].close_tail()
    return folder


def feed(
    archiver: Archiver,
    partition: int,
    records: Sequence[Record],
    *,
    cuts: Iterable[int] = (),
    next_offset: int | None = None,
) -> None:
    """Give an archiver what it has not seen yet of a partition."""
    first = archiver.partitions[partition].next_offset
    end = records[-1].offset + 1 if next_offset is None else next_offset
    rest = [each for each in records if each.offset >= first]
    for each in pieces(rest, first, end, cuts):
        archiver.partitions[partition].take(each)


def to_table(records: Iterable[Record]) -> Any:
    """Records as an Arrow table with all columns of the archive, made without its writer."""
    columns: dict[str, list[Any]] = {name: [] for name in SCHEMA.names}
    for each in records:
        row = (each.key, each.value, [{"name": n, "value": v} for n, v in each.headers])
        found = (*row, each.offset, each.append_ms, *decoded(each.key, each.value))
        for name, cell in zip(SCHEMA.names, found, strict=True):
            columns[name].append(cell)
    return pa.table(columns, schema=SCHEMA)


def contents(root: Path) -> dict[str, bytes]:
    """Every file below a folder that counts, by its path."""
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and "_tmp" not in path.parts
    }
