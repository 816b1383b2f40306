"""`durabill archive` against a real Kafka: transactions, kill -9, deleted records."""

import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest
from confluent_kafka import Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from durabill.schemas import PARTITIONER, partition_for
from durabill.schemas.errors import SegmentsLost
from durabill.stream_processors.audit.archive.archiver import OtherLog, opened
from durabill.stream_processors.audit.archive.folder import ArchiveFolder
from durabill.stream_processors.audit.archive.live import compare
from durabill.stream_processors.audit.archive.manifest import ArchiveError
from durabill.stream_processors.audit.archive.process import (
    ArchiveRun,
    Follow,
    live,
)
from durabill.stream_processors.audit.archive.reach import coverage, live_log, word_of_lost
from durabill.stream_processors.audit.archive.source import ArchivedLog, JoinedLog
from durabill.stream_processors.audit.archive.verify import verify
from durabill.stream_processors.audit.raw_log import FetchedLog
from durabill.stream_processors.audit.replay import LogSource
from durabill.stream_processors.audit.seal.keys import make_key_file
from durabill.stream_processors.engine.batch import Record, records
from durabill.stream_processors.settings import Settings
from tests.broker.test_cli import COMMAND, environment
from tests.broker.traffic_kit import now_ms, segment, traffic
from tests.broker.worker_kit import read_committed, send
from tests.conftest import Topics
from tests.unit.archive_kit import contents
from tests.waiting import HANG_S, wait_until

TX_ORDER = b"SO-tx"


@pytest.fixture
def settings(bootstrap_servers: str, topics: Topics) -> Settings:
    return Settings(bootstrap_servers=bootstrap_servers, segments_topic=topics.segments)


def transaction(settings: Settings, count: int, *, commit: bool) -> None:
    """Write records of one order in a transaction, and end it."""
    producer = Producer(
        {
            "bootstrap.servers": settings.bootstrap_servers,
            "transactional.id": settings.segments_topic,
            "partitioner": PARTITIONER,
        }
    )
    producer.init_transactions(HANG_S)
    producer.begin_transaction()
    at_ms = now_ms()
    for number in range(1, count + 1):
        pair = segment(TX_ORDER.decode(), number, at_ms - 1_000, at_ms)
        producer.produce(settings.segments_topic, pair[1], pair[0])
    producer.flush(HANG_S)
    if commit:
        producer.commit_transaction(HANG_S)
    else:
        producer.abort_transaction(HANG_S)


def once(settings: Settings, folder: ArchiveFolder, offsets_per_file: int = 1_000) -> None:
    with opened(folder, live_log(settings, offsets_per_file)) as archiver:
        ArchiveRun(settings, archiver).once()


def committed(settings: Settings) -> list[tuple[int | None, int | None, Any, Any, Any]]:
    found = read_committed(settings.bootstrap_servers, settings.segments_topic)
    return [(m.partition(), m.offset(), m.timestamp()[1], m.key(), m.value()) for m in found]


def replayed(source: LogSource, partition: int) -> list[tuple[int, int, int, Any, Any]]:
    """What a source holds, checked to join and to be explained to the last offset."""
    parts = list(source.parts())
    for one, other in pairwise(parts):
        assert one.chunk.next_offset == other.chunk.first_offset
    assert not any(each.missing for each in parts)
    found: list[Record] = [each for part in parts for each in records(part.chunk)]
    return [(partition, r.offset, r.append_ms, r.key, r.value) for r in found]


def test_committed_records_are_archived_and_all_else_is_explained(
    settings: Settings, tmp_path: Path
) -> None:
    folder = ArchiveFolder(tmp_path)
    send(settings.bootstrap_servers, settings.segments_topic, traffic(1, 20, 20))
    transaction(settings, 5, commit=True)
    transaction(settings, 7, commit=False)
    once(settings, folder)
    manifest = folder.manifest()
    reach = manifest.reach()
    there = committed(settings)
    archived = [
        each
        for partition in reach
        for each in replayed(ArchivedLog(folder, manifest, partition), partition)
    ]
    assert archived == there
    entries = [each for each in manifest.entries if each.partition == partition_for(TX_ORDER, 4)]
    assert sum(each.aborted for each in entries) == 7
    assert sum(each.control for each in entries) == 2
    assert not any(each.absent for each in manifest.entries)
    assert verify(folder).findings == []
    assert list(compare(folder, manifest, live(settings))) == []


def test_an_archive_goes_on_and_joins_kafka_where_that_begins(
    settings: Settings, tmp_path: Path
) -> None:
    folder = ArchiveFolder(tmp_path)
    send(settings.bootstrap_servers, settings.segments_topic, traffic(2, 20, 20))
    once(settings, folder)
    send(settings.bootstrap_servers, settings.segments_topic, traffic(3, 20, 20))
    once(settings, folder)
    everything = committed(settings)
    send(settings.bootstrap_servers, settings.segments_topic, traffic(4, 10, 10))
    everything = committed(settings)
    manifest = folder.manifest()
    # Retention takes half of what is archived.
    topic, reach = settings.segments_topic, manifest.reach()
    admin = AdminClient({"bootstrap.servers": settings.bootstrap_servers})
    gone = [TopicPartition(topic, each, reach[each].next_offset // 2) for each in reach]
    for future in admin.delete_records(gone).values():
        future.result(HANG_S)
    kafka = live(settings)
    joined = []
    for partition in reach:
        source = JoinedLog(
            lambda end, partition=partition: ArchivedLog(folder, manifest, partition, end),  # type: ignore[misc]
            lambda first, end, partition=partition: FetchedLog(  # type: ignore[misc]
                settings, topic, partition, first, end
            ),
            kafka.bounds[partition],
        )
        assert source.archived_to == kafka.bounds[partition][0] == reach[partition].next_offset // 2
        joined += replayed(source, partition)
    assert joined == everything
    asked = msgspec.structs.replace(settings, archive_dir=str(tmp_path))
    covered = coverage(asked)
    assert covered.is_whole
    assert "has all that Kafka has deleted" in covered.words[0]
    assert "offsets behind its end" in covered.words[0]
    lost = SegmentsLost(topic, 0, gone[0].offset - 1, "")
    assert "durabill rebuild checkpoint" in word_of_lost(asked, lost)
    once(settings, folder)
    assert verify(folder).findings == []
    assert list(compare(folder, folder.manifest(), kafka)) == []


def test_records_that_were_deleted_before_they_were_archived(
    settings: Settings, tmp_path: Path
) -> None:
    folder = ArchiveFolder(tmp_path)
    send(settings.bootstrap_servers, settings.segments_topic, traffic(5, 10, 10))
    once(settings, folder)
    send(settings.bootstrap_servers, settings.segments_topic, traffic(6, 10, 10))
    end = live(settings).bounds[0][1]
    admin = AdminClient({"bootstrap.servers": settings.bootstrap_servers})
    for future in admin.delete_records([TopicPartition(settings.segments_topic, 0, end)]).values():
        future.result(HANG_S)
    before = contents(tmp_path)
    with pytest.raises(ArchiveError, match="deleted before they were archived"):
        once(settings, folder)
    assert contents(tmp_path) == before
    asked = msgspec.structs.replace(settings, archive_dir=str(tmp_path))
    covered = coverage(asked)
    assert not covered.is_whole
    assert "neither Kafka nor the archive" in covered.words[0]
    lost = SegmentsLost(settings.segments_topic, 0, end, "")
    assert "doesn't have them" in word_of_lost(asked, lost)
    assert not coverage(msgspec.structs.replace(asked, archive_dir="nowhere")).is_whole
    assert (word_of_lost(settings, lost), coverage(settings).words) == ("", ())


def test_a_recreated_topic_and_a_made_up_archive(
    settings: Settings, topics: Topics, tmp_path: Path
) -> None:
    folder = ArchiveFolder(tmp_path)
    send(settings.bootstrap_servers, settings.segments_topic, traffic(7, 40, 5))
    once(settings, folder)
    other = Settings(
        bootstrap_servers=settings.bootstrap_servers, segments_topic=topics.dead_letters
    )
    with pytest.raises(OtherLog):
        once(other, folder)
    (only,) = compare(folder, folder.manifest(), live(other))
    assert only.field == "topic"
    # Somebody archives other records, with everything that the log says of itself.
    invented = ArchiveFolder(tmp_path / "invented")
    with opened(invented, live_log(settings)) as archiver:
        send(settings.bootstrap_servers, other.segments_topic, traffic(8, 5, 5), partition=0)
        log = FetchedLog(other, other.segments_topic, 0, 0, live(other).bounds[0][1])
        run = ArchiveRun(settings, archiver)
        for part in log.parts():
            for piece in run.reader.pieces(part):
                archiver.partitions[0].take(piece)
        archiver.partitions[0].close_tail()
    assert verify(invented).findings == []
    fields = {each.field for each in compare(invented, invented.manifest(), live(settings))}
    assert fields >= {"value", "append_ms"}


def test_a_tail_that_has_waited_for_long_is_archived(settings: Settings, tmp_path: Path) -> None:
    folder = ArchiveFolder(tmp_path)
    send(settings.bootstrap_servers, settings.segments_topic, traffic(9, 10, 10))
    ahead_s = 0.0

    class Stop:
        """Ends the run after its third pass; before the second one two days go by."""

        def __init__(self) -> None:
            self.passes = 0

        def is_set(self) -> bool:
            return self.passes >= 3

        def wait(self, _: float) -> None:
            nonlocal ahead_s
            assert (len(folder.manifest().entries) >= 4) == (self.passes > 0)
            self.passes += 1
            ahead_s = 2 * 86_400.0

    with opened(folder, live_log(settings, 1_000)) as archiver:
        follow = Follow(Stop(), clock_s=lambda: time.time() + ahead_s)  # type: ignore[arg-type]
        ArchiveRun(settings, archiver).follow(follow)
    assert verify(folder).findings == []


@contextmanager
def process(settings: Settings, root: Path, *more: str) -> Iterator[subprocess.Popen[str]]:
    """Run `durabill archive` as its users do; it is killed in the end."""
    started = subprocess.Popen(
        [*COMMAND, "archive", "--json", "--offsets-per-file", "1000", *more],
        env=environment(
            bootstrap_servers=settings.bootstrap_servers,
            segments_topic=settings.segments_topic,
            archive_dir=str(root),
        ),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield started
    finally:
        started.kill()
        started.communicate()


def told(settings: Settings, root: Path, *more: str) -> tuple[int, dict[str, Any]]:
    """Run the command to its end; return its exit code and the last line of its output."""
    with process(settings, root, *more) as running:
        out, err = running.communicate(timeout=120)
        assert "Traceback" not in err, err
        return running.returncode, json.loads(out.splitlines()[-1]) if out else {"error": err}


def test_kill_9_leaves_an_archive_that_goes_on(settings: Settings, tmp_path: Path) -> None:
    send(settings.bootstrap_servers, settings.segments_topic, traffic(10, 60, 80))
    # First, as this compiles the kernel where that has not been done; the log stays as it is.
    once(settings, ArchiveFolder(tmp_path / "whole"))
    root = tmp_path / "killed"
    folder = ArchiveFolder(root)
    with process(settings, root) as running:
        wait_until(lambda: folder.exists and len(folder.lines()) > 2, "two files", 60)
        running.kill()
    findings = verify(folder).findings  # it may have been killed between a name and its entry
    assert len(findings) <= 1
    assert all(each.field == "file" for each in findings)
    with process(settings, root) as running:
        wait_until(folder.is_locked, "an archiver at work", 60)
        code, answer = told(settings, root, "--once")
        assert (code, "another process archives" in answer["error"]) == (1, True)
        assert running.stdout is not None
        assert json.loads(running.stdout.readline())["started"] == "archive"
        running.terminate()
        assert running.wait(HANG_S) == 0
    key = tmp_path / "archive.key"
    public = str(make_key_file(key, "archive"))
    code, answer = told(settings, root, "--once", "--key", str(key))
    assert code == 0
    assert answer["rows"] == len(committed(settings))
    code, verified = told(settings, root, "--verify", "--live", "--key", public)
    assert (code, verified["result"], verified["rows"]) == (0, "proven", answer["rows"])
    whole, killed = contents(tmp_path / "whole"), contents(root)
    assert {path for path in whole if "day=" in path} == {path for path in killed if "day=" in path}
    assert all(whole[path] == killed[path] for path in whole if "day=" in path)
    assert list((root / "_tmp").glob("*.part")) == []
    file = next(root.rglob("*.parquet"))
    file.write_bytes(file.read_bytes()[:-1])
    code, verified = told(settings, root, "--verify")
    assert (code, verified["result"]) == (1, "differs")
    assert verified["findings_by_kind"] == {"archive_inconsistent": len(verified["findings"])}
