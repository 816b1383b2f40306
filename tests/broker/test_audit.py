"""`durabill audit` on a real Kafka and PostgreSQL: it proves what is right, finds what is not."""

import csv
import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from durabill.schemas import OrderTotal, Status, decode_total, encode_total, partition_for
from durabill.stream_processors.audit.archive.archiver import opened
from durabill.stream_processors.audit.archive.folder import ArchiveFolder
from durabill.stream_processors.audit.archive.process import ArchiveRun
from durabill.stream_processors.audit.archive.reach import live_log
from durabill.stream_processors.audit.errors import AuditError
from durabill.stream_processors.audit.findings import Kind
from durabill.stream_processors.audit.replay import Engine
from durabill.stream_processors.audit.seal.opening import SealPlan
from durabill.stream_processors.audit.seal.sealer import run_sealer
from tests.broker.audit_kit import (
    Copier,
    Record,
    audited,
    changed,
    settings_of,
    shortened,
    told,
    write,
)
from tests.broker.ledger_kit import new_ledger_dsn, recorded, running_ledger
from tests.broker.test_cli import run
from tests.broker.traffic_kit import now_ms, segment, traffic
from tests.broker.worker_kit import Deployment, deployment
from tests.seal_kit import new_keys
from tests.waiting import HANG_S, wait_until

PARTITIONS = 3


@pytest.fixture(scope="module")
def deployed(
    bootstrap_servers: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Deployment]:
    """A deployment whose worker has settled all there is: every kind of order, and of record."""
    folder = tmp_path_factory.mktemp("audited")
    with deployment(bootstrap_servers, folder, partitions=PARTITIONS) as made:
        worker = made.start_and_wait()
        made.send(traffic(7, orders=60, segments=6))
        start_ms = now_ms() - 60_000
        stray = segment("stray", 1, start_ms, start_ms + 1_000, True)
        wrong = (partition_for(b"stray", PARTITIONS) + 1) % PARTITIONS
        write(made.kafka, made.segments, [(wrong, *stray, [])])
        undone = segment("undone", 1, start_ms, start_ms + 1_000, True)
        place = partition_for(b"undone", PARTITIONS)
        write(made.kafka, made.segments, [(place, *undone, [])], abort=True)
        made.wait_for_truth()
        assert worker.stop() == 0
        yield made


@pytest.fixture
def copier(deployed: Deployment) -> Copier:
    return Copier(deployed)


def test_an_untouched_system_is_proven_by_both_engines(
    deployed: Deployment, postgres_dsn: str
) -> None:
    dsn = new_ledger_dsn(postgres_dsn)
    published = len(deployed.found_totals())
    with running_ledger(deployed.kafka, deployed.totals, dsn):
        wait_until(lambda: len(recorded(dsn)) == published, "the ledger has all")
    results = {
        engine: audited(settings_of(deployed, ledger_dsn=dsn), engine=engine) for engine in Engine
    }
    for result in results.values():
        assert told(result) == []
        assert result.notes == ()
        assert (result.totals, result.proven) == (published, published)
        assert result.ledger is not None
        assert (result.ledger.rows, result.ledger.proven) == (published, published)
        ends = deployed.ends()
        for part in result.partitions:
            there = part.data + part.control + part.aborted
            assert (part.first_offset, part.end_offset) == (0, ends[part.partition])
            assert (there, part.unexplained) == (part.end_offset, 0)
    first = results[Engine.COLUMNS].partitions
    assert first == results[Engine.REFERENCE].partitions
    assert sum(part.aborted for part in first) == 1
    assert sum(part.forwarded for part in first) == 1
    assert sum(part.dead_letters for part in first) > 0
    assert results[Engine.COLUMNS].as_json()["result"] == "proven"


def test_a_live_system_under_load_raises_no_false_alarm(
    bootstrap_servers: str, postgres_dsn: str, tmp_path: Path
) -> None:
    dsn = new_ledger_dsn(postgres_dsn)
    with (
        deployment(bootstrap_servers, tmp_path, partitions=2, settle_grace_s=0.2) as live,
        running_ledger(live.kafka, live.totals, dsn),
    ):
        live.start_and_wait(interim_interval_s=1)
        stopped = threading.Event()
        sending = threading.Thread(
            target=live.send,
            args=(traffic(9, orders=400, segments=8),),
            kwargs={"pause_s": 0.002, "stop": stopped.is_set},
        )
        sending.start()
        try:
            wait_until(lambda: len(live.found_totals()) > 20, "totals are published")
            for _ in range(4):
                result = audited(settings_of(live, ledger_dsn=dsn))
                assert told(result) == []
                assert result.totals == result.proven > 0
            assert sum(part.open_orders for part in result.partitions) > 0
        finally:
            stopped.set()
            sending.join()


def test_a_system_whose_workers_have_not_begun_yet_lacks_nothing(
    bootstrap_servers: str, tmp_path: Path
) -> None:
    with deployment(bootstrap_servers, tmp_path, partitions=1) as idle:
        assert told(audited(settings_of(idle))) == []
        start_ms = now_ms() - 60_000
        idle.send([segment("SO1", 1, start_ms, start_ms + 1_000, True), (b"SO2", b"junk")])
        result = audited(settings_of(idle))
        assert told(result) == []
        (part,) = result.partitions
        assert (part.not_yet_published, part.dead_letters, result.totals) == (1, 1, 0)


def test_several_processes_find_the_same(deployed: Deployment) -> None:
    several = audited(settings_of(deployed), processes=2)
    assert (several.processes, told(several)) == (2, [])
    assert several.partitions == audited(settings_of(deployed)).partitions


# -- the totals topic -------------------------------------------------------------------------


def victim(records: list[Record]) -> tuple[int, OrderTotal]:
    """The place of a COMPLETE total of one revision without gaps, and it."""
    for at, (_, _, value, _) in enumerate(records):
        total = decode_total(value)
        if total.status is Status.COMPLETE and total.revision == 1 and not total.gap_ms:
            return at, total
    raise AssertionError("no such total")


def falsified(how: str, records: list[Record]) -> tuple[list[Record], str]:
    """The records as a falsifier left them, and which order is concerned."""
    at, total = victim(records)
    number, record = total.service_order_number, records[at]
    rest = [*records[:at], *records[at + 1 :]]
    if how == "removed":
        return rest, number
    if how == "repeated":
        return [*records, record], number
    if how == "repeated otherwise":
        return [*records, changed(record, segments=total.segments + 1)], number
    if how == "digest fits":
        return [*rest[:at], changed(record, **shortened(total)), *rest[at:]], number
    if how == "digest alone":
        return [*rest, changed(record, digest="0" * 64)], number
    if how == "chain":
        return [*rest, changed(record, previous_digest="1" * 64)], number
    if how == "no total":
        return [*records, (record[0], record[1], b"junk", [])], number
    invented = "invented"
    place = partition_for(invented.encode(), PARTITIONS)
    made_up = replace(total, service_order_number=invented, source_partition=place)
    return [*records, (place, invented.encode(), encode_total(made_up), [])], invented


EXPECTED: dict[str, set[tuple[Kind, str]]] = {
    "removed": {(Kind.MISSING_TOTAL, "")},
    "repeated": {(Kind.PUBLISHED_TWICE, "")},
    "repeated otherwise": {(Kind.PUBLISHED_TWICE, "segments")},
    "digest fits": {
        (Kind.FIELD_DIFFERS, "duration_ms"),
        (Kind.FIELD_DIFFERS, "upper_bound_ms"),
        (Kind.FIELD_DIFFERS, "intervals"),
        (Kind.FIELD_DIFFERS, "gap_ms"),
        (Kind.DIGEST_DIFFERS, "digest"),
    },
    "digest alone": {(Kind.DIGEST_DIFFERS, "digest")},
    "chain": {(Kind.BROKEN_REVISION_CHAIN, "previous_digest")},
    "no total": {(Kind.TOTAL_WITHOUT_EVIDENCE, "")},
    "invented": {(Kind.TOTAL_WITHOUT_EVIDENCE, "")},
}


@pytest.mark.parametrize("how", EXPECTED)
def test_a_falsified_total_is_found(deployed: Deployment, copier: Copier, how: str) -> None:
    orders = []

    def falsify(records: list[Record]) -> list[Record]:
        changed_records, order = falsified(how, records)
        orders.append(order)
        return changed_records

    with copier.copy(deployed.totals, falsify) as totals:
        result = audited(settings_of(deployed, totals_topic=totals))
    assert {(each.kind, each.field) for each in result.findings} == EXPECTED[how]
    assert {each.service_order_number for each in result.findings} == set(orders)
    assert result.verdict == "differs"


def test_an_aborted_total_counts_as_not_published(deployed: Deployment, copier: Copier) -> None:
    taken: list[Record] = []

    def falsify(records: list[Record]) -> list[Record]:
        at, _ = victim(records)
        taken.append(records[at])
        return [*records[:at], *records[at + 1 :]]

    with copier.copy(deployed.totals, falsify) as totals:
        write(deployed.kafka, totals, taken, abort=True)
        aborted = audited(settings_of(deployed, totals_topic=totals))
        write(deployed.kafka, totals, taken, abort=False)
        committed = audited(settings_of(deployed, totals_topic=totals))
    assert [each.kind for each in aborted.findings] == [Kind.MISSING_TOTAL]
    assert told(committed) == []


def test_the_command_ends_with_one_object_and_a_page_for_finance(
    deployed: Deployment, copier: Copier, tmp_path: Path
) -> None:
    with copier.copy(deployed.totals, lambda records: falsified("removed", records)[0]) as totals:
        ended = run(
            *("audit", "--json", "--no-ledger"),
            *(f"--csv={tmp_path / 'all.csv'}", f"--html={tmp_path / 'report.html'}"),
            bootstrap_servers=deployed.bootstrap_servers,
            application_id=deployed.name,
            segments_topic=deployed.segments,
            totals_topic=totals,
            orders_topic=deployed.orders,
            dead_letters_topic=deployed.dead_letters,
        )
    assert ended.returncode == 1, ended.stderr
    answer = json.loads(ended.stdout.splitlines()[-1])
    assert (answer["result"], answer["findings_by_kind"]) == ("differs", {"missing_total": 1})
    assert answer["totals"] == answer["proven"] == len(deployed.found_totals()) - 1
    (row,) = csv.DictReader((tmp_path / "all.csv").read_text().splitlines())
    assert row["kind"] == "missing_total"
    assert row["service_order_number"] in (tmp_path / "report.html").read_text()


# -- dead letters -----------------------------------------------------------------------------


def test_dead_letters_that_are_missing_or_not_justified_are_found(
    deployed: Deployment, copier: Copier
) -> None:
    def falsify(records: list[Record]) -> list[Record]:
        (partition, key, value, headers), *rest = records
        lie = [*headers[:-5], ("reason", b"TOO_LATE"), *headers[-4:]]
        lie = [(name, b"NOT_AVRO" if each == b"TOO_LATE" else each) for name, each in lie]
        return [(partition, key, value, headers), *rest[1:], (partition, key, value, lie)]

    with copier.copy(deployed.dead_letters, falsify) as letters:
        result = audited(settings_of(deployed, dead_letters_topic=letters))
    kinds = [each.kind for each in result.findings]
    assert kinds.count(Kind.DEAD_LETTER_MISSING) == 1
    first_reason = dict(copier.records(deployed.dead_letters)[0][3])["reason"]
    assert kinds.count(Kind.DEAD_LETTER_UNJUSTIFIED) == (first_reason != b"NOT_AVRO")


# -- the ledger -------------------------------------------------------------------------------

COLUMNS = """
    service_order_number, revision, status, duration_ms, upper_bound_ms, started_ms, ended_ms,
    intervals, end_number, missing_numbers, segments, duplicates, overlap_ms, numbers_after_end,
    digest, previous_digest, source_partition, source_offset, settled_at_ms, totals_topic,
    totals_partition, totals_offset, totals_append_ms
"""
_EDIT = "UPDATE order_totals SET {} WHERE service_order_number = %(order)s"
_INSERT = f"""
    INSERT INTO order_totals ({COLUMNS})
    SELECT {COLUMNS.replace("service_order_number", "%(name)s")} FROM order_totals
    WHERE service_order_number = %(order)s
"""
LEDGER: dict[str, tuple[str, set[tuple[Kind, str]]]] = {
    "edited": (_EDIT.format("segments = 99"), {(Kind.LEDGER_DIFFERS, "segments")}),
    "deleted": (
        "DELETE FROM order_totals WHERE service_order_number = %(order)s",
        {(Kind.MISSING_ROW, "")},
    ),
    "of a place that is none": (
        _EDIT.format("totals_offset = 100000"),
        {(Kind.ROW_WITHOUT_TOTAL, "")},
    ),
    "of another topic": (
        _EDIT.format("totals_topic = 'nowhere'"),
        {(Kind.MISSING_ROW, ""), (Kind.ROW_WITHOUT_TOTAL, "")},
    ),
    "inserted by hand": (_INSERT, {(Kind.ROW_WITHOUT_TOTAL, "")}),
    "two equal rows": (_INSERT.replace("%(name)s", "%(order)s"), {(Kind.ROW_WITHOUT_TOTAL, "")}),
}


@pytest.fixture(scope="module")
def ledger_dsn(deployed: Deployment, postgres_dsn: str) -> str:
    """A ledger that has all totals, and doesn't defend itself."""
    dsn = new_ledger_dsn(postgres_dsn)
    published = len(deployed.found_totals())
    with running_ledger(deployed.kafka, deployed.totals, dsn):
        wait_until(lambda: len(recorded(dsn)) == published, "the ledger has all")
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("ALTER TABLE order_totals DISABLE TRIGGER append_only")
        connection.execute(
            "ALTER TABLE set_aside_totals DROP CONSTRAINT IF EXISTS"
            " set_aside_totals_service_order_number_revision_fkey"
        )
        connection.execute("ALTER TABLE order_totals DROP CONSTRAINT order_totals_pkey CASCADE")
    return dsn


@pytest.mark.parametrize("how", LEDGER)
def test_a_falsified_ledger_row_is_found(
    deployed: Deployment, copier: Copier, ledger_dsn: str, how: str
) -> None:
    statement, expected = LEDGER[how]
    _, total = victim(copier.records(deployed.totals))
    order = total.service_order_number
    with psycopg.connect(ledger_dsn, autocommit=True) as connection:
        connection.execute("CREATE TABLE kept AS SELECT * FROM order_totals")
        connection.execute(statement, {"order": order, "name": "invented"})
        try:
            result = audited(settings_of(deployed, ledger_dsn=ledger_dsn))
        finally:
            connection.execute("DELETE FROM order_totals")
            connection.execute(f"INSERT INTO order_totals ({COLUMNS}) SELECT {COLUMNS} FROM kept")
            connection.execute("DROP TABLE kept")
    assert {(each.kind, each.field) for each in result.findings} == expected
    named = {each.service_order_number for each in result.findings}
    assert named == {"invented" if how == "inserted by hand" else order}


def test_a_ledger_that_lags_is_no_finding(deployed: Deployment, postgres_dsn: str) -> None:
    dsn = new_ledger_dsn(postgres_dsn)
    result = audited(settings_of(deployed, ledger_dsn=dsn))
    assert told(result) == []
    assert result.ledger is not None
    assert result.ledger.not_yet_recorded == result.totals
    assert any("has never read" in note for note in result.notes)


# -- parts of it ------------------------------------------------------------------------------


def test_one_order_one_partition_and_an_earlier_end(deployed: Deployment, copier: Copier) -> None:
    settings = settings_of(deployed)
    _, total = victim(copier.records(deployed.totals))
    one = audited(settings, order=total.service_order_number)
    assert (told(one), one.totals, one.proven) == ([], 1, 1)
    place = total.source_partition
    end = deployed.ends()[place]
    earlier = [
        audited(settings, as_of_offsets={place: offset}, as_of="offsets", partitions=(place,))
        for offset in (0, end // 2, end)
    ]
    assert [told(each) for each in earlier] == [[], [], []]
    (none, some, whole) = (each.partitions[0] for each in earlier)
    assert none.newer_totals == whole.totals == whole.proven
    assert some.newer_totals + some.proven == whole.proven
    assert some.end_offset <= end // 2
    began = audited(settings, as_of_ms=1)
    assert (told(began), began.totals, began.segments) == ([], 0, 0)
    soon = audited(settings, from_ms=total.settled_at_ms, to_ms=total.settled_at_ms + 1)
    assert told(soon) == []
    assert 1 <= soon.proven < len(copier.records(deployed.totals))
    unknown = audited(settings, order="unknown")
    assert (told(unknown), unknown.totals) == ([], 0)
    assert any("order unknown has no total" in note for note in unknown.notes)


def test_the_sealed_log_is_checked_where_there_is_a_key(
    deployed: Deployment, tmp_path: Path
) -> None:
    topic, keys = f"{deployed.name}.seal", new_keys(tmp_path)
    admin = AdminClient(deployed.kafka)
    admin.create_topics([NewTopic(topic, 1, 1)])[topic].result(HANG_S)
    try:
        settings = settings_of(deployed, seal_dir=str(tmp_path / "seal"), seal_topic=topic)
        plan = SealPlan(deployed.kafka, deployed.totals, settings.seal_folder, keys, topic)
        assert run_sealer(plan, stop=threading.Event(), once=True).sealed > 0
        (unchecked,) = audited(settings).notes
        assert "--seal-key" in unchecked
        sealed = audited(settings, seal_key=str(keys.key.public))
        assert (told(sealed), sealed.notes) == ([], ())
        bundle = next(each for each in settings.seal_folder.rglob("entries/**/*") if each.is_file())
        bundle.write_bytes(bundle.read_bytes().replace(b"SO-", b"so-", 1))
        altered = audited(settings, seal_key=str(keys.key.public))
        assert {each.kind for each in altered.findings} == {Kind.SEAL_INCONSISTENT}
        with pytest.raises(AuditError, match="--seal-key"):
            audited(settings, trusted=(tmp_path / "checkpoint",))
    finally:
        admin.delete_topics([topic])[topic].result(HANG_S)


def test_what_cannot_be_audited_is_an_error(deployed: Deployment) -> None:
    settings = settings_of(deployed)
    for options, words in (
        ({"partitions": (PARTITIONS,)}, "no partition"),
        ({"as_of_offsets": {0: 10**9}}, "ends at offset"),
    ):
        with pytest.raises(AuditError, match=words) as caught:
            audited(settings, **options)
        assert caught.value.exit_code == 2
    with pytest.raises(AuditError, match="PostgreSQL: "):
        audited(settings_of(deployed, ledger_dsn="postgresql://nobody@127.0.0.1:1/none"))


def test_a_log_without_its_head_is_told_and_the_archive_has_it(
    deployed: Deployment, tmp_path: Path
) -> None:
    # The last of these tests: the log that they share is cut.
    settings, folder = settings_of(deployed), ArchiveFolder(tmp_path / "archive")
    with opened(folder, live_log(settings, 1_000)) as archiver:
        ArchiveRun(settings, archiver).once()
    archived = settings_of(deployed, archive_dir=str(folder.root))
    whole = audited(settings)
    twice = audited(archived, from_archive=True)
    assert told(twice) == []
    assert [each.proven for each in twice.partitions] == [each.proven for each in whole.partitions]
    place = max(whole.partitions, key=lambda part: part.data).partition
    cut = TopicPartition(deployed.segments, place, deployed.ends()[place] // 2)
    admin = AdminClient(deployed.kafka)
    admin.delete_records([cut])[cut].result(HANG_S)

    lost = audited(settings)
    assert [each.kind for each in lost.findings] == [Kind.LOG_HEAD_MISSING]
    part = lost.partitions[place]
    assert part.first_offset == cut.offset
    assert part.unprovable_totals > 0
    assert lost.totals == lost.proven + part.unprovable_totals

    found_again = audited(archived)
    assert told(found_again) == []
    assert found_again.proven == whole.proven
    assert found_again.partitions[place].archived_to == cut.offset

    entry = next(each for each in folder.manifest().entries if each.partition == place)
    file = folder.root / entry.path
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    altered = {each.kind for each in audited(archived).findings}
    assert altered == {Kind.ARCHIVE_INCONSISTENT, Kind.LOG_HEAD_MISSING}
