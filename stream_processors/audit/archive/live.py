"""Compares an archive, record by record, with what Kafka still has of its log.

This needs no key: an archive that was made again from altered data differs from the log. It tells
nothing of what Kafka has deleted.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

from durabill.stream_processors.audit.archive.files import ArchiveFile, BadFile
from durabill.stream_processors.audit.archive.folder import ArchiveFolder
from durabill.stream_processors.audit.archive.manifest import LOG_FIELDS, ArchiveOf, Manifest
from durabill.stream_processors.audit.archive.pieces import PieceReader
from durabill.stream_processors.audit.archive.rows import to_records
from durabill.stream_processors.audit.archive.verify import Progress, finding
from durabill.stream_processors.audit.findings import Finding
from durabill.stream_processors.audit.replay import LogSource
from durabill.stream_processors.engine.batch import Record

OpenLog = Callable[[int, int, int], LogSource]
"""Called as open_log(partition, first, end)."""


class Live(NamedTuple):
    """Kafka's log: which one it is, its committed bounds by partition, and how it is opened."""

    of: ArchiveOf
    bounds: dict[int, tuple[int, int]]
    open_log: OpenLog


def compare(
    folder: ArchiveFolder, manifest: Manifest, live: Live, progress: Progress | None = None
) -> Iterator[Finding]:
    """Yield where the archive isn't what the log has at the same offsets."""
    for name in LOG_FIELDS:
        if getattr(manifest.of, name) != getattr(live.of, name):
            place = f"Kafka's {live.of.topic}"
            yield finding(name, getattr(live.of, name), getattr(manifest.of, name), place)
            return
    for partition, reach in manifest.reach().items():
        first, end = live.bounds[partition]
        first, end = max(first, reach.first_offset), min(end, reach.next_offset)
        if reach.next_offset > live.bounds[partition][1]:
            place = f"{live.of.topic}/{partition}"
            yield finding("end", live.bounds[partition][1], reach.next_offset, place)
        if first < end:
            ours = _archived(folder, manifest, partition, first, end)
            # To its own end: a batch that reaches beyond an end isn't read.
            log = live.open_log(partition, first, live.bounds[partition][1])
            theirs = _logged(log, end)
            place = f"{live.of.topic}/{partition} offset"
            yield from differences(ours, theirs, place)
        if progress is not None:
            progress("comparing with the log", partition + 1, manifest.of.partitions)


def differences(
    archived: Iterator[Record], logged: Iterator[Record], place: str
) -> Iterator[Finding]:
    """Yield where two sequences of records, both in the order of offsets, aren't the same."""
    ours, theirs = next(archived, None), next(logged, None)
    while ours is not None or theirs is not None:
        if theirs is None or (ours is not None and ours.offset < theirs.offset):
            assert ours is not None
            yield finding("record", "no record", _shown(ours), f"{place} {ours.offset}")
            ours = next(archived, None)
        elif ours is None or theirs.offset < ours.offset:
            yield finding("record", _shown(theirs), "no record", f"{place} {theirs.offset}")
            theirs = next(logged, None)
        else:
            for name in Record._fields:
                one, other = getattr(theirs, name), getattr(ours, name)
                if one != other:
                    yield finding(name, _text(one), _text(other), f"{place} {ours.offset}")
            ours, theirs = next(archived, None), next(logged, None)


def _archived(
    folder: ArchiveFolder, manifest: Manifest, partition: int, first: int, end: int
) -> Iterator[Record]:
    """Yield the records of files that can be read; the others are findings already."""
    for entry in manifest.entries:
        if entry.partition != partition or entry.next_offset <= first or entry.first_offset >= end:
            continue
        try:
            file = ArchiveFile(folder.root / entry.path)
        except BadFile:
            continue
        try:
            for table in file.tables():
                for record in to_records(table):
                    if first <= record.offset < end:
                        yield record
        except BadFile:
            continue
        finally:
            file.close()


def _logged(log: LogSource, end: int) -> Iterator[Record]:
    reader = PieceReader()
    for part in log.parts():
        for piece in reader.pieces(part, is_plain=True):
            yield from (each for each in piece.records if each.offset < end)
            if piece.next_offset >= end:
                return


def _shown(record: Record) -> str:
    return f"key {_text(record.key)}, value {_text(record.value)}"


def _text(content: object) -> str:
    return content.hex() if isinstance(content, bytes) else str(content)
