"""Where a partition's log is read from: Kafka, or the archive and Kafka after it."""

from collections.abc import Iterator
from typing import Protocol

from durabill.stream_processors.audit.raw_log import FetchedLog
from durabill.stream_processors.audit.replay import LogPart, LogSource
from durabill.stream_processors.core.admission import Place
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


def open_source(settings: Settings, wanted: Wanted) -> LogSource:
    """Return the partition's log up to the wanted end."""
    return FetchedLog(
        settings,
        settings.segments_topic,
        wanted.place.partition,
        wanted.first_offset,
        wanted.end_offset,
    )


class JoinedLog:
    """The archive's part of a log, then Kafka's: without a hole, and no offset twice."""

    def __init__(self, archive: LogSource, kafka: LogSource) -> None:
        assert archive.end_offset == kafka.first_offset, "a hole, or an overlap"
        self._both = archive, kafka
        self.partition = kafka.partition
        self.first_offset = archive.first_offset
        self.archived_to = archive.end_offset

    @property
    def end_offset(self) -> int:
        """Return where Kafka's part ends."""
        return self._both[1].end_offset

    def parts(self) -> Iterator[LogPart]:
        """Yield the one, then the other."""
        for each in self._both:
            yield from each.parts()
