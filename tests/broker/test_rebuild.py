"""`durabill rebuild`: what workers have lost comes from the log, and is proven by the audit."""

import json
import uuid
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import msgspec
import psycopg
import pytest
from confluent_kafka import Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from psycopg.conninfo import make_conninfo

from durabill.deploy.topics import create_totals_topic
from durabill.schemas import decode_total, encode_total
from durabill.schemas.errors import StateError
from durabill.stream_processors.audit import outcome as outcome_module
from durabill.stream_processors.audit import rebuild_checkpoint as checkpoint_module
from durabill.stream_processors.audit.archive.archiver import opened
from durabill.stream_processors.audit.archive.folder import ArchiveFolder
from durabill.stream_processors.audit.archive.process import ArchiveRun
from durabill.stream_processors.audit.archive.reach import live_log
from durabill.stream_processors.audit.errors import AuditError
from durabill.stream_processors.audit.rebuild_checkpoint import (
    RebuiltCheckpoint,
    rebuild_checkpoint,
)
from durabill.stream_processors.audit.rebuild_ledger import dry_run_ledger, rebuild_ledger
from durabill.stream_processors.audit.rebuild_totals import rebuild_totals
from durabill.stream_processors.audit.replay import Engine
from durabill.stream_processors.audit.run import AuditOptions, audit
from durabill.stream_processors.audit.terms import read_entries
from durabill.stream_processors.audit.what_if_run import WhatIfOptions, run_what_if
from durabill.stream_processors.core.order import Policy
from durabill.stream_processors.core.what_if import read_policy_file
from durabill.stream_processors.engine.checkpoint import (
    META,
    SegmentsTopic,
    entry_key,
    find_meta,
    meta_in,
)
from durabill.stream_processors.engine.policies import (
    POLICY,
    PolicyRecord,
    Terms,
    encode_history,
)
from durabill.stream_processors.kafka.appending import Appender
from durabill.stream_processors.settings import Settings, load_settings
from tests.broker.ledger_kit import new_ledger_dsn
from tests.broker.opening_kit import opening
from tests.broker.test_cli import run
from tests.broker.traffic_kit import segment, traffic
from tests.broker.worker_kit import Deployment, deployment, read_committed
from tests.waiting import HANG_S, wait_until


def no_progress(phase: str, done: int, total: int) -> None:
    pass


def settings_of(deployed: Deployment) -> Settings:
    return load_settings(
        {},
        bootstrap_servers=deployed.bootstrap_servers,
        application_id=deployed.name,
        segments_topic=deployed.segments,
        totals_topic=deployed.totals,
        orders_topic=deployed.orders,
        dead_letters_topic=deployed.dead_letters,
        settle_grace_s=deployed.settle_grace_s,
        idle_timeout_s=deployed.idle_timeout_s,
    )


def rebuilt(deployed: Deployment, **more: Any) -> RebuiltCheckpoint:
    settings = settings_of(deployed)
    return rebuild_checkpoint(settings, no_progress, engine=Engine.REFERENCE, **more)


def entries_of(deployed: Deployment) -> dict[bytes, bytes]:
    settings, partitions = settings_of(deployed), range(deployed.partitions)
    return read_entries(settings, settings.checkpoint_topic, partitions)


def lose_checkpoint(deployed: Deployment) -> None:
    """Removes all blocks and metas; what was recorded of the policy stays."""
    producer = Producer(deployed.kafka)
    for key in entries_of(deployed):
        if not key.endswith(POLICY.encode()):
            producer.produce(deployed.checkpoint, None, key, int(key.partition(b"/")[0]))
    assert producer.flush(HANG_S) == 0


def is_proven(deployed: Deployment) -> bool:
    options = AuditOptions(engine=Engine.REFERENCE, with_ledger=False)
    return audit(settings_of(deployed), options, no_progress).is_proven


@pytest.fixture(scope="module")
def stopped(
    bootstrap_servers: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Deployment]:
    """A deployment whose worker was killed at its work; what it can't know is in the log."""
    folder = tmp_path_factory.mktemp("rebuild")
    with deployment(bootstrap_servers, folder, partitions=2) as deployed:
        worker = deployed.start_and_wait()
        deployed.send(opening(f"OP-{each}") for each in range(20))
        deployed.send(traffic(1, orders=12, segments=8))
        wait_until(lambda: len(deployed.found_totals()) > 3, "totals")
        wait_until(lambda: min(deployed.committed().values()) > 0, "a checkpoint of each")
        with pytest.raises(AuditError, match="are running"):
            rebuilt(deployed)
        worker.kill()
        wait_until(lambda: not _refused(deployed), "the group is empty")
        deployed.send(traffic(2, orders=12, segments=8))
        deployed.send(opening(f"OP-late-{each}") for each in range(20))
        yield deployed


def _refused(deployed: Deployment) -> bool:
    """Tell whether a dry run still finds the killed worker in the group."""
    try:
        rebuilt(deployed, dry_run=True)
    except AuditError as error:
        return "are running" in str(error)
    return False


def test_a_dry_run_writes_nothing(stopped: Deployment) -> None:
    before, offsets = entries_of(stopped), stopped.committed()
    told = rebuilt(stopped, dry_run=True)
    assert [each.partition for each in told.partitions] == [0, 1]
    assert all(each.orders > 0 for each in told.partitions)
    assert sum(each.unpublished for each in told.partitions) > 0
    assert entries_of(stopped) == before
    assert stopped.committed() == offsets


def test_a_crash_in_between_leaves_no_checkpoint(stopped: Deployment) -> None:
    real = Appender.append

    def append_some(self: Appender, records: Any) -> None:
        if any(each.key.endswith(META.encode()) and each.value for each in records):
            raise KeyboardInterrupt
        real(self, records)

    with mock.patch.object(Appender, "append", append_some), pytest.raises(KeyboardInterrupt):
        rebuilt(stopped)
    entries, committed = entries_of(stopped), stopped.committed()
    assert entry_key(0, META) not in entries
    assert any(key not in (entry_key(0, POLICY), entry_key(1, POLICY)) for key in entries)
    with pytest.raises(StateError, match="durabill rebuild checkpoint"):
        find_meta(entries, 0, SegmentsTopic(stopped.segments, "", 2), committed[0])


def test_what_the_log_does_not_give_is_refused(stopped: Deployment) -> None:
    settings = settings_of(stopped)
    foreign = msgspec.structs.replace(settings, totals_topic=f"{stopped.name}.invented")
    create_totals_topic(stopped.kafka, foreign.totals_topic, partitions=2)
    first = stopped.found_totals()[0]
    total = replace(decode_total(first.value()), settled_at_ms=1)
    partition = first.partition()
    assert partition is not None
    producer = Producer(stopped.kafka)
    producer.produce(foreign.totals_topic, encode_total(total), first.key(), partition)
    assert producer.flush(HANG_S) == 0
    before = entries_of(stopped)
    with pytest.raises(AuditError, match=f"invented/{partition}/0: .*the log doesn't give"):
        rebuild_checkpoint(foreign, no_progress, engine=Engine.REFERENCE)
    assert entries_of(stopped) == before
    admin = AdminClient(stopped.kafka)
    admin.delete_topics([foreign.totals_topic])[foreign.totals_topic].result(HANG_S)


def test_a_policy_that_is_recorded_meanwhile_is_not_lost(stopped: Deployment) -> None:
    other = encode_history((PolicyRecord(0, Terms(Policy(1, 2, 3, 4))),))

    def with_another(*arguments: Any) -> dict[bytes, bytes]:
        return {**read_entries(*arguments), entry_key(0, POLICY): other}

    before = entries_of(stopped)
    with (
        mock.patch.object(checkpoint_module, "read_entries", with_another),
        pytest.raises(AuditError, match="a worker was started"),
    ):
        rebuilt(stopped)
    assert entries_of(stopped) == before


def test_a_worker_goes_on_from_a_rebuilt_checkpoint(stopped: Deployment) -> None:
    lose_checkpoint(stopped)
    # As if the first dead letter had not been published: all after it is before a worker again.
    letters = f"{stopped.name}.no-letters"
    create_totals_topic(stopped.kafka, letters, partitions=1)
    without = msgspec.structs.replace(settings_of(stopped), dead_letters_topic=letters)
    told = rebuild_checkpoint(without, no_progress, engine=Engine.REFERENCE)
    admin = AdminClient(stopped.kafka)
    admin.delete_topics([letters])[letters].result(HANG_S)
    entries = entries_of(stopped)
    published = Counter(each.partition() for each in stopped.found_totals())
    assert any(each.totals_offset < published[each.partition] for each in told.partitions)
    for each in told.partitions:
        meta = meta_in(entries, each.partition)
        assert meta is not None
        assert meta.next_offset == each.next_offset == stopped.committed()[each.partition]
    stopped.start_and_wait()
    stopped.send(traffic(3, orders=6, segments=6))
    stopped.send([segment("SO-new", 1, 1, 2, end=True)])
    stopped.wait_for_truth()
    assert is_proven(stopped)
    assert stopped.workers[-1].stop() == 0


def content(messages: list[Message]) -> Counter[tuple[Any, Any, Any]]:
    return Counter((each.partition(), each.key(), each.value()) for each in messages)


def test_totals_are_rebuilt_into_a_new_topic(stopped: Deployment) -> None:
    settings, into = settings_of(stopped), f"{stopped.name}.rebuilt"
    there = msgspec.structs.replace(settings, totals_topic=into)
    create_totals_topic(stopped.kafka, into, partitions=2)
    lost = msgspec.structs.replace(settings, totals_topic=f"{stopped.name}.gone")
    told = rebuild_totals(lost, into, no_progress, engine=Engine.REFERENCE, dry_run=True)
    assert sum(each.totals for each in told.partitions) == len(stopped.found_totals())
    assert read_committed(stopped.bootstrap_servers, into) == []
    # A run that was killed has left a part: it is gone on with.
    real = Appender.append
    with (
        mock.patch.object(outcome_module, "TRANSACTION_RECORDS_MAX", 5),
        mock.patch.object(Appender, "append", dies_after(2, real)),
        pytest.raises(KeyboardInterrupt),
    ):
        rebuild_totals(settings, into, no_progress, engine=Engine.REFERENCE)
    assert len(read_committed(stopped.bootstrap_servers, into)) == 10
    done = rebuild_totals(settings, into, no_progress, engine=Engine.REFERENCE)
    assert sum(each.appended for each in done.partitions) == len(stopped.found_totals()) - 10
    found = read_committed(stopped.bootstrap_servers, into)
    assert content(found) == content(stopped.found_totals())
    again = rebuild_totals(settings, into, no_progress, engine=Engine.REFERENCE)
    assert [each.appended for each in again.partitions] == [0, 0]
    options = AuditOptions(engine=Engine.REFERENCE, with_ledger=False)
    assert audit(there, options, no_progress).is_proven
    # Workers go on on it, once their checkpoint knows it.
    stopped.totals = into
    lose_checkpoint(stopped)
    whole = rebuilt(stopped).partitions
    assert [each.unpublished for each in whole] == [0, 0]
    assert {each.partition: each.next_offset for each in whole} == stopped.ends()
    stopped.start_and_wait()
    stopped.send(traffic(5, orders=6, segments=6))
    stopped.wait_for_truth()
    assert stopped.workers[-1].stop() == 0
    assert audit(there, options, no_progress).is_proven


def dies_after(times: int, real: Any) -> Any:
    left = [times]

    def append(self: Appender, records: Any) -> None:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        real(self, records)

    return append


def test_a_rebuilt_ledger_is_proven_and_falsifications_of_it_are_found(
    stopped: Deployment, postgres_dsn: str
) -> None:
    dsn = new_ledger_dsn(postgres_dsn)
    settings = msgspec.structs.replace(settings_of(stopped), ledger_dsn=dsn)
    plan = dry_run_ledger(settings, dsn, no_progress)
    done = rebuild_ledger(settings, dsn, no_progress)
    assert plan == done
    assert done.recorded == len(stopped.found_totals())
    assert rebuild_ledger(settings, dsn, no_progress).recorded == 0
    options = AuditOptions(engine=Engine.REFERENCE)
    result = audit(settings, options, no_progress)
    assert result.is_proven
    assert result.ledger is not None
    assert result.ledger.proven == done.recorded
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("ALTER TABLE order_totals DISABLE TRIGGER ALL")
        conn.execute(
            "DELETE FROM order_totals WHERE service_order_number ="
            " (SELECT min(service_order_number) FROM order_totals)"
        )
    assert set(audit(settings, options, no_progress).findings_by_kind) == {"missing_row"}
    other = msgspec.structs.replace(settings, totals_topic=f"{stopped.name}.totals")
    with pytest.raises(AuditError, match="name an empty one"):
        rebuild_ledger(other, dsn, no_progress)


def test_a_topic_with_anything_else_is_refused(stopped: Deployment) -> None:
    into = f"{stopped.name}.foreign"
    create_totals_topic(stopped.kafka, into, partitions=2)
    producer = Producer(stopped.kafka)
    producer.produce(into, b"anything", b"SO1", 1)
    assert producer.flush(HANG_S) == 0
    with pytest.raises(AuditError, match="this replay doesn't give"):
        rebuild_totals(settings_of(stopped), into, no_progress, engine=Engine.REFERENCE)
    found = read_committed(stopped.bootstrap_servers, into)
    assert [each.value() for each in found if each.partition() == 1] == [b"anything"]
    admin = AdminClient(stopped.kafka)
    for future in admin.delete_topics([into, f"{stopped.name}.totals"]).values():
        future.result(HANG_S)


def test_the_commands_ask_first_and_tell_what_they_did(
    stopped: Deployment, postgres_dsn: str
) -> None:
    given = msgspec.structs.asdict(settings_of(stopped))
    names = ("bootstrap_servers", "application_id", *(each for each in given if "_topic" in each))
    settings = {name: str(given[name]) for name in names if given[name]}
    refused = run("rebuild", "checkpoint", **settings)
    assert refused.returncode == 2
    assert "give --yes" in refused.stderr
    flags = ("--engine", "reference", "--processes", "2")
    written = run("rebuild", "checkpoint", "--yes", *flags, **settings)
    assert written.returncode == 0, written.stderr
    assert f"goes on at offset {stopped.ends()[0]} of {stopped.ends()[0]}" in written.stdout
    assert "start the workers" in written.stderr
    filled = run("rebuild", "ledger", "--yes", "--json", ledger_dsn=fresh(postgres_dsn), **settings)
    assert filled.returncode == 0, filled.stderr
    told = json.loads(filled.stdout)
    assert told["recorded"] == len(stopped.found_totals())
    assert told["audit"]["result"] == "proven"
    assert told["audit"]["ledger"]["proven"] == told["recorded"]


def fresh(postgres_dsn: str) -> str:
    """Return the DSN of an empty schema, without the ledger's tables."""
    schema = f"empty_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(postgres_dsn, autocommit=True) as conn:
        conn.execute(f"CREATE SCHEMA {schema}")
    return make_conninfo(postgres_dsn, options=f"-csearch_path={schema}")


def test_what_kafka_has_deleted_comes_from_the_archive(stopped: Deployment, tmp_path: Path) -> None:
    # The last of these tests: it cuts the log that they share.
    settings, folder = settings_of(stopped), ArchiveFolder(tmp_path / "archive")
    with opened(folder, live_log(settings, 50)) as archiver:
        ArchiveRun(settings, archiver).once()
    archived = msgspec.structs.replace(settings, archive_dir=str(folder.root))
    what_if = read_policy_file("idle_timeout_s = 1\n[duration]\nminimum_duration_ms = 10000000")
    options = WhatIfOptions(top=1_000, engine=Engine.REFERENCE)
    before = run_what_if(settings, what_if, options, no_progress)
    ends = stopped.ends()
    cut = TopicPartition(stopped.segments, 0, ends[0] // 2)
    admin = AdminClient(stopped.kafka)
    admin.delete_records([cut])[cut].result(HANG_S)
    with pytest.raises(AuditError, match="is gone, so orders that began there"):
        rebuilt(stopped, dry_run=True)
    assert "is gone" in run_what_if(settings, what_if, options, no_progress).notes[0]
    again = run_what_if(archived, what_if, options, no_progress)
    assert (again.summary, again.biggest) == (before.summary, before.biggest)
    assert before.summary.changed_orders > 0
    whole = rebuild_checkpoint(archived, no_progress, engine=Engine.REFERENCE).partitions
    assert sum(each.totals for each in whole) == len(stopped.found_totals())
    assert {each.partition: each.next_offset for each in whole} == ends
    next(folder.root.rglob("*.parquet")).unlink()
    with pytest.raises(AuditError, match="the archive can't be relied on"):
        rebuild_checkpoint(archived, no_progress, engine=Engine.REFERENCE)
