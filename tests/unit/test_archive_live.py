"""An archive beside Kafka's log: what was made up is found, and how far it reaches is told."""

import logging
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from durabill.schemas.errors import AccessError, SegmentsLost, UnreachableError
from durabill.stream_processors.audit.archive import process
from durabill.stream_processors.audit.archive.archiver import opened
from durabill.stream_processors.audit.archive.folder import ArchiveFolder
from durabill.stream_processors.audit.archive.live import Live, compare
from durabill.stream_processors.audit.archive.manifest import Reach
from durabill.stream_processors.audit.archive.process import Follow
from durabill.stream_processors.audit.archive.reach import compared, word_of_lost
from durabill.stream_processors.audit.archive.verify import verify
from durabill.stream_processors.audit.errors import AuditError
from durabill.stream_processors.audit.replay import LogPart, LogSource, chunk_of_rows
from durabill.stream_processors.engine.batch import Chunk, Record
from durabill.stream_processors.engine.standing import Standing
from durabill.stream_processors.settings import Settings
from durabill.stream_processors.worker import ending
from tests.unit.archive_kit import NOON_MS, OF, archive, log, segment

ABORTED = 42


class Kafka:
    """What Kafka has of partition 0 from `first` on: all of `log(250)`, but one was aborted."""

    def __init__(self, first: int) -> None:
        self.partition, self.first_offset, self.end_offset = 0, first, 250

    def parts(self) -> Iterator[LogPart]:
        for start, after in ((0, ABORTED), (ABORTED + 1, 250)):
            start = max(start, self.first_offset)
            rows = [each for each in log(250) if start <= each.offset < after]
            if rows:
                yield LogPart(chunk_of_rows(rows, start, after), len(rows))
            if after == ABORTED >= self.first_offset:
                skipped = ((ABORTED, ABORTED + 1, Standing.ABORTED),)
                yield LogPart(Chunk(ABORTED, ABORTED + 1, b""), 0, aborted=1, skipped=skipped)


def differences(folder: ArchiveFolder, first: int = 0) -> list[tuple[str, str]]:
    """Which fields differ at which places; the archive fits itself."""

    def open_log(partition: int, start: int, end: int) -> LogSource:
        assert (partition, end) == (0, 250)
        return Kafka(start)

    assert verify(folder).findings == []
    live = Live(OF, {0: (first, 250), 1: (0, 0)}, open_log)
    found = compare(folder, folder.manifest(), live)
    return [(each.field, each.place.rpartition(" ")[2]) for each in found]


def records() -> list[Record]:
    """What should be in the archive."""
    return [each for each in log(250) if each.offset != ABORTED]


def test_what_was_archived_is_what_the_log_has(tmp_path: Path) -> None:
    folder = archive(tmp_path, {0: records()}, cuts=range(0, 250, 40))
    assert differences(folder) == []
    assert differences(folder, first=77) == []


def test_an_aborted_record_that_is_presented_as_data(tmp_path: Path) -> None:
    assert differences(archive(tmp_path, {0: log(250)})) == [("record", "42")]


def test_a_whole_archive_that_was_made_again_without_a_record(tmp_path: Path) -> None:
    without = [each for each in records() if each.offset != 100]
    assert differences(archive(tmp_path, {0: without})) == [("record", "100")]


def test_a_whole_archive_that_was_made_again_from_altered_data(tmp_path: Path) -> None:
    altered = records()
    altered[7] = segment(7, altered[7].append_ms, "SO-2", 2, NOON_MS - 60_000, NOON_MS)
    altered[9] = altered[9]._replace(append_ms=altered[9].append_ms + 1)
    altered[14] = altered[14]._replace(headers=())
    folder = archive(tmp_path, {0: altered})
    assert differences(folder) == [
        *(("value", "7"), ("headers", "7"), ("append_ms", "9"), ("headers", "14")),
    ]
    assert differences(folder, first=50) == []  # what Kafka has deleted nobody can compare


def test_an_archive_that_has_more_than_the_log(tmp_path: Path) -> None:
    more = [*records(), segment(250, NOON_MS + 250_000)]
    assert differences(archive(tmp_path, {0: more})) == [("end", "billing.segments/0")]


def test_an_archive_of_another_cluster(tmp_path: Path) -> None:
    of = msgspec.structs.replace(OF, cluster_id="mine")
    folder = archive(tmp_path, {0: records()}, of=of)
    assert differences(folder) == [("cluster_id", "billing.segments")]


class Stop:
    """Ends a run after some passes."""

    def __init__(self, passes: int) -> None:
        self.left = passes

    def is_set(self) -> bool:
        return self.left == 0

    def wait(self, _: float) -> None:
        self.left -= 1


@pytest.fixture
def errors(monkeypatch: pytest.MonkeyPatch) -> list[Exception | None]:
    """What the passes of a run meet, one after the other; then all is well."""
    coming: list[Exception | None] = []

    def bounds(*_: object) -> dict[int, tuple[int, int]]:
        if coming and (error := coming.pop(0)):
            raise error
        return {0: (0, 250), 1: (0, 0)}

    monkeypatch.setattr(process, "live_log", lambda _: OF)
    monkeypatch.setattr(process, "read_bounds", bounds)

    def open_log(_: Settings, __: str, partition: int, first: int, end: int) -> Kafka:
        return Kafka(250 if partition else first)

    monkeypatch.setattr(process, "FetchedLog", open_log)
    return coming


def run(folder: ArchiveFolder, passes: int) -> None:
    with opened(folder, OF) as archiver:
        follow = Follow(Stop(passes), tail_max_s=1.0)  # type: ignore[arg-type]
        process.ArchiveRun(Settings(), archiver).follow(follow)


def test_a_kafka_that_is_away_is_waited_for(tmp_path: Path, errors: list[Exception | None]) -> None:
    errors += [UnreachableError("away"), UnreachableError("away"), AuditError("it broke off"), None]
    folder = ArchiveFolder(tmp_path)
    run(folder, 3)
    assert len(folder.manifest().entries) == 0
    run(folder, 1)
    assert differences(folder) == []
    assert folder.manifest().reach()[0].next_offset == 250


def test_what_doesnt_pass_ends_the_run(tmp_path: Path, errors: list[Exception | None]) -> None:
    errors += [AuditError("wrong CRC"), AuditError("wrong CRC")]
    folder = ArchiveFolder(tmp_path)
    with pytest.raises(AuditError, match="wrong CRC"):
        run(folder, 9)
    errors += [AccessError("no right")]
    with pytest.raises(AccessError):
        run(folder, 9)


@pytest.mark.parametrize(
    ("reach", "bounds", "is_whole", "says"),
    [
        (Reach(partition=0, next_offset=90, files=1), (50, 100), True, "10 offsets behind its end"),
        (
            Reach(partition=0, next_offset=100, files=1),
            (50, 100),
            True,
            "all that Kafka has deleted",
        ),
        (Reach(partition=0), (0, 100), True, "100 offsets behind"),
        (Reach(partition=0, next_offset=40, files=1), (50, 100), False, "t/0 from 40 to 49"),
        (Reach(partition=0), (50, 100), False, "t/0 from 0 to 49"),
        (Reach(partition=0, first_offset=9, next_offset=99, files=1), (9, 99), False, "0 to 8"),
    ],
)
def test_kafka_and_the_archive_together(
    reach: Reach, bounds: tuple[int, int], is_whole: bool, says: str
) -> None:
    covered = compared("/srv/archive", "t", {0: reach}, {0: bounds})
    assert covered.is_whole is is_whole
    assert says in covered.words[0]


def test_a_worker_that_ends_says_whether_the_archive_has_what_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    archive(tmp_path, {0: log(30)})
    codes: list[int] = []
    monkeypatch.setattr("os._exit", codes.append)
    settings = Settings(archive_dir=str(tmp_path))
    caplog.set_level(logging.CRITICAL)
    for offset in (20, 30):
        lost = SegmentsLost("billing.segments", 0, offset, f"{offset} is lost")
        ending.die(lost, lambda each: word_of_lost(settings, each))
    ending.die(SegmentsLost("billing.segments", 0, 7, "7 is lost"))
    said = [each.getMessage() for each in caplog.records]
    assert said[0] == "20 is lost"
    assert f"the archive in {tmp_path} has billing.segments/0 up to offset 29" in said[1]
    assert "durabill rebuild checkpoint" in said[1]
    assert "doesn't have them: of that partition it has offsets up to 29" in said[3]
    assert said[4:] == ["7 is lost"]
    assert codes == [1, 1, 1]
