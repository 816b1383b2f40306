"""`durabill archive`: reads the segments topic and writes it into the archive, once or for good.

A pass takes each partition from where the archive, or the file in the making, ends to the end that
is committed now. A run with `once` makes one pass and ends each partition's file there. One that
goes on makes a pass every few seconds, and ends a file before its time only where its first record
has waited for long: else a partition that falls silent would wait for ever, and Kafka's retention
wouldn't.
"""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from durabill.schemas.errors import UnreachableError
from durabill.stream_processors.audit.archive.archiver import Archiver, check_log
from durabill.stream_processors.audit.archive.live import Live
from durabill.stream_processors.audit.archive.pieces import PieceReader
from durabill.stream_processors.audit.archive.reach import live_log
from durabill.stream_processors.audit.errors import AuditError
from durabill.stream_processors.audit.raw_log import FetchedLog
from durabill.stream_processors.kafka.options import LOOK_GROUP, quiet
from durabill.stream_processors.kafka.reading import read_bounds
from durabill.stream_processors.settings import Settings

log = logging.getLogger("durabill.archive")

TAIL_MAX_S = 86_400.0
PASS_INTERVAL_S = 5.0

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Follow:
    """How a run that goes on ends: when `stop` is set. The clock is for tests."""

    stop: threading.Event
    tail_max_s: float = TAIL_MAX_S
    interval_s: float = PASS_INTERVAL_S
    clock_s: Callable[[], float] = time.time


def live(settings: Settings) -> Live:
    """Return the segments topic as what an archive can be compared with."""
    of, kafka = live_log(settings), quiet(settings.librdkafka())
    bounds = read_bounds(kafka, LOOK_GROUP, of.topic, range(of.partitions))
    return Live(of, bounds, partial(FetchedLog, settings, of.topic))


class ArchiveRun:
    """One process that archives; `after_pass` is called when a pass has made files."""

    def __init__(
        self,
        settings: Settings,
        archiver: Archiver,
        *,
        progress: Progress | None = None,
        after_pass: Callable[[], None] | None = None,
    ) -> None:
        self._settings = settings
        self._archiver = archiver
        self._progress = progress
        self._after_pass = after_pass
        self.reader = PieceReader()

    def once(self) -> None:
        """Archive all that is committed now."""
        self._pass(None)
        self._passed()

    def follow(self, follow: Follow) -> None:
        """Archive until told to stop. A Kafka that is away is waited for.

        What else ends a pass ends the run where the next pass ends so as well.
        """
        failures = 0
        while not follow.stop.is_set():
            try:
                self._pass(follow.stop)
                failures = 0
            except UnreachableError as error:
                log.warning("archiving goes on when Kafka is back: %s", error)
            except AuditError as error:
                failures += 1
                if failures > 1:
                    raise
                log.warning("a log could not be read to its end; once more: %s", error)
            now_ms = follow.clock_s() * 1000
            for partition in self._archiver.partitions.values():
                since_ms = partition.waits_since_ms
                if since_ms is not None and now_ms - since_ms > follow.tail_max_s * 1000:
                    partition.close_tail()
            self._passed()
            follow.stop.wait(follow.interval_s)

    def _pass(self, stop: threading.Event | None) -> None:
        """Read each partition to its end; without a `stop` its file ends there."""
        archiver, topic = self._archiver, self._archiver.of.topic
        check_log(archiver.folder, archiver.of, live_log(self._settings))
        kafka = quiet(self._settings.librdkafka())
        bounds = read_bounds(kafka, LOOK_GROUP, topic, sorted(archiver.partitions))
        for partition, (first, end) in bounds.items():
            archiver.begin_at(partition, first, end)
        starts = {each: archiver.partitions[each].next_offset for each in bounds}
        total = sum(max(0, end - starts[each]) for each, (_, end) in bounds.items())
        done = 0
        for partition, (_, end) in bounds.items():
            source = FetchedLog(self._settings, topic, partition, starts[partition], end)
            for part in source.parts():
                for piece in self.reader.pieces(part):
                    archiver.partitions[partition].take(piece)
                if self._progress is not None:
                    read = part.chunk.next_offset - starts[partition]
                    self._progress("archiving", done + read, total)
                if stop is not None and stop.is_set():
                    return
            if stop is None:
                archiver.partitions[partition].close_tail()
            done += max(0, end - starts[partition])

    def _passed(self) -> None:
        if self._after_pass is not None:
            self._after_pass()
