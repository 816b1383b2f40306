"""Where a partition's log is read from: Kafka, or the archive and Kafka after it.

With an archive (`archive_dir` in the settings), what Kafka has deleted comes from there. What both
have comes from Kafka, unless it is asked for otherwise.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

from durabill.stream_processors.audit.raw_log import FetchedLog
from durabill.stream_processors.audit.replay import LogPart, LogSource, Row, chunk_of_rows
from durabill.stream_processors.core.admission import Place
from durabill.stream_processors.engine.batch import Record, headers_in, records
from durabill.stream_processors.settings import Settings


class Wanted(Protocol):
    """Which part of a partition's log is wanted."""

    @property
    def place(self) -> Place:
        """Return the partition."""

    @property
    def first_offset(self) -> int:
        """Return where the log on Kafka begins."""

    @property
    def end_offset(self) -> int:
        """Return where the reading ends."""


def open_source(
    settings: Settings,
    wanted: Wanted,
    *,
    from_archive: bool = False,
    cuts: Sequence[int] = (),
) -> LogSource:
    """Return the partition's log up to the wanted end, the archive's part before Kafka's.

    With `from_archive` the archive's part goes as far as the archive reaches. Other terms may begin
    at each of the `cuts`.
    """
    partition, end = wanted.place.partition, wanted.end_offset

    def open_log(first_offset: int, end_offset: int) -> LogSource:
        topic = settings.segments_topic
        return FetchedLog(settings, topic, partition, first_offset, end_offset)

    if not settings.archive_dir or not (from_archive or wanted.first_offset > 0):
        return open_log(wanted.first_offset, end)
    # Parquet is an extra's, for those who have an archive.
    from durabill.stream_processors.audit.archive.folder import ArchiveFolder
    from durabill.stream_processors.audit.archive.source import ArchivedLog, JoinedLog

    folder = ArchiveFolder(Path(settings.archive_dir))
    manifest = folder.manifest()
    first = wanted.first_offset
    if from_archive:
        first = max(first, manifest.reach()[partition].next_offset)
    return CutLog(
        JoinedLog(
            lambda reach: ArchivedLog(folder, manifest, partition, reach),
            open_log,
            (min(first, end), end),
        ),
        cuts,
    )


class Joined(LogSource, Protocol):
    """A log of which the archive has the part before `archived_to`; None: nothing."""

    @property
    def archived_to(self) -> int | None:
        """Return where the archive's part ends."""


class CutLog:
    """A joined log in which no batch reaches over one of the cuts.

    An archive doesn't keep where batches ended, so it puts records of one millisecond together. But
    a policy is in force from the first batch on that begins at its offset.
    """

    def __init__(self, joined: Joined, cuts: Sequence[int]) -> None:
        self._joined = joined
        self._cuts = tuple(cuts)
        self.partition = joined.partition
        self.first_offset = joined.first_offset
        self.archived_to = joined.archived_to

    @property
    def end_offset(self) -> int:
        """Return where the log ends."""
        return self._joined.end_offset

    def parts(self) -> Iterator[LogPart]:
        """Yield all of it."""
        for part in self._joined.parts():
            is_archived = part.chunk.next_offset <= (self.archived_to or 0)
            yield _cut(part, self._cuts) if is_archived else part


def _cut(part: LogPart, cuts: Iterable[int]) -> LogPart:
    chunk = part.chunk
    inside = [each for each in cuts if chunk.first_offset < each < chunk.next_offset]
    if not any(
        header.base_offset < each < header.next_offset
        for each in inside
        for _, header in headers_in(chunk.data)
    ):
        return part
    bounds = chunk.first_offset, chunk.next_offset
    return part._replace(chunk=chunk_of_rows(map(_row, records(chunk)), *bounds, inside))


def _row(record: Record) -> Row:
    return record.offset, record.append_ms, record.key, record.value, record.headers
