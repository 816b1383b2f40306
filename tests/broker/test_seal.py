"""The sealer against a real Kafka and PostgreSQL: planned states, kills, others' copies."""

import json
import signal
import subprocess
import threading
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest
from confluent_kafka import KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewPartitions, NewTopic

from durabill.deploy.topics import create_topics, create_totals_topic
from durabill.schemas import encode_total
from durabill.schemas.errors import AccessError, UnreachableError
from durabill.schemas.topics import Topics
from durabill.stream_processors.audit.seal.check_all import SealCheck, check_seal
from durabill.stream_processors.audit.seal.checkpoints import Origin, read_checkpoint
from durabill.stream_processors.audit.seal.errors import SealError
from durabill.stream_processors.audit.seal.folder import CHECKPOINT, log_folder, logs_in
from durabill.stream_processors.audit.seal.keys import read_key_file, rotate_key_file
from durabill.stream_processors.audit.seal.lookup import find_receipt
from durabill.stream_processors.audit.seal.opening import SealPlan
from durabill.stream_processors.audit.seal.publish import HAND_OVERS_KEY, published_checkpoints
from durabill.stream_processors.audit.seal.rebuilt import hand_over_topic
from durabill.stream_processors.audit.seal.receipt import verify
from durabill.stream_processors.audit.seal.sealer import SealStats, run_sealer
from durabill.stream_processors.audit.seal.source import sealed_topic
from durabill.stream_processors.audit.seal.witnesses import all_witnesses
from durabill.stream_processors.kafka.options import quiet
from tests.broker.ledger_kit import a_total, new_ledger_dsn, publish
from tests.broker.test_cli import COMMAND, environment
from tests.seal_kit import new_keys
from tests.waiting import HANG_S, wait_until

PARTITIONS = 2


@pytest.fixture
def plan(bootstrap_servers: str, tmp_path: Path) -> Iterator[SealPlan]:
    """What a sealer of topics of this test's own works on."""
    kafka = quiet({"bootstrap.servers": bootstrap_servers})
    mark = uuid.uuid4().hex[:8]
    names = Topics(*(f"{mark}.{each}" for each in "stdc"), orders=f"{mark}.o", seal=f"{mark}.seal")
    create_topics(kafka, names, partitions=PARTITIONS)
    yield SealPlan(
        kafka=kafka,
        totals_topic=names.totals,
        folder=tmp_path / "seal",
        keys=new_keys(tmp_path),
        checkpoints_topic=names.seal,
        interval_s=0.2,
    )
    admin = AdminClient(kafka)  # held until it has answered
    for future in admin.delete_topics(list(names.by_role.values())).values():
        future.result(HANG_S)


def seal_once(plan: SealPlan) -> SealStats:
    return run_sealer(plan, stop=threading.Event(), once=True)


def put(plan: SealPlan, numbers: range, partitions: int = PARTITIONS) -> None:
    publish(
        plan.kafka,
        plan.totals_topic,
        [a_total(f"SO-{n}", 1, 1_000 + n) for n in numbers],
        partitions,
    )


def check(plan: SealPlan, *trusted: Path) -> SealCheck:
    witnessed = all_witnesses(
        plan.kafka, plan.checkpoints_topic, plan.totals_topic, plan.dsn, trusted
    )
    topic = sealed_topic(plan.kafka, plan.totals_topic)
    return check_seal(plan.folder, topic, plan.keys.trusted, witnessed)


def sizes(plan: SealPlan) -> dict[Origin, int]:
    found = {}
    for origin in logs_in(plan.folder):
        note = log_folder(plan.folder, origin).text(CHECKPOINT)
        assert note is not None
        found[origin] = read_checkpoint(note).size
    return found


def test_all_that_is_committed_is_sealed_and_published(plan: SealPlan, postgres_dsn: str) -> None:
    plan = replace(plan, dsn=new_ledger_dsn(postgres_dsn))
    assert seal_once(plan) == SealStats(sealed=0, checkpoints=0, logs=2, closed=0)  # empty logs
    put(plan, range(300))
    producer = Producer({**plan.kafka, "transactional.id": uuid.uuid4().hex})
    producer.init_transactions(HANG_S)
    for end in (producer.abort_transaction, producer.commit_transaction):
        producer.begin_transaction()
        producer.produce(plan.totals_topic, encode_total(a_total("SO-t")), b"SO-t", 0)
        producer.flush(HANG_S)
        end(HANG_S)
    assert seal_once(plan).sealed == 301
    put(plan, range(300, 310))
    assert seal_once(plan).sealed == 10
    assert seal_once(plan).sealed == 0
    result = check(plan)
    assert (result.findings, sum(sizes(plan).values())) == ([], 311)
    assert [each.unsealed for each in result.logs] == [0, 0]
    notes = published_checkpoints(plan.kafka, plan.checkpoints_topic)
    assert {key: read_checkpoint(note).size for key, note in notes.items()} == {
        str(origin): size for origin, size in sizes(plan).items()
    }
    with psycopg.connect(plan.dsn) as conn:
        rows = conn.execute(
            "SELECT origin, max(size) FROM sealed_checkpoints GROUP BY 1"
        ).fetchall()
        assert dict(rows) == {str(origin): size for origin, size in sizes(plan).items()}
        with pytest.raises(psycopg.errors.RestrictViolation):
            conn.execute("UPDATE sealed_checkpoints SET size = 0")
        conn.rollback()
        # As somebody would who may do everything there.
        conn.execute("ALTER TABLE sealed_checkpoints DISABLE TRIGGER append_only")
        conn.execute("UPDATE sealed_checkpoints SET size = size + 1 WHERE size > 0")
    (altered, *_) = check(plan).findings
    assert (altered.field, altered.place) == ("row", "ledger, table sealed_checkpoints")
    receipt = find_receipt(plan.folder, plan.totals_topic, "SO-305")
    assert receipt is not None
    assert verify(receipt, plan.keys.trusted, "SO-305").total == a_total("SO-305", 1, 1_305)


def test_a_sealer_that_is_killed_again_and_again_seals_everything_once(
    plan: SealPlan, bootstrap_servers: str, tmp_path: Path
) -> None:
    settings = {
        "bootstrap_servers": bootstrap_servers,
        "totals_topic": plan.totals_topic,
        "seal_topic": plan.checkpoints_topic,
        "seal_dir": str(plan.folder),
        "seal_key_file": str(tmp_path / "seal.key"),
        "seal_interval_s": "0.1",
        "data_dir": str(tmp_path / "data"),
    }
    put(plan, range(100))
    for end in (400, 700, 1_000):
        with (tmp_path / "log").open("a") as log:
            process = subprocess.Popen(
                [*COMMAND, "seal"], env=environment(**settings), stdout=log, stderr=log
            )
        try:
            known = sum(sizes(plan).values())
            put(plan, range(end - 300, end))
            wait_until(lambda: sum(sizes(plan).values()) > known, "something is sealed")  # noqa: B023
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait(HANG_S)
    ran = subprocess.run(
        [*COMMAND, "seal", "--once", "--json"],
        env=environment(**settings),
        capture_output=True,
        text=True,
        timeout=HANG_S,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["logs"] == 2
    assert sum(sizes(plan).values()) == 1_000
    assert check(plan).findings == []
    checked = subprocess.run(
        [*COMMAND, "seal", "check", "--json"],
        env=environment(**settings),
        capture_output=True,
        text=True,
        timeout=HANG_S,
        check=False,
    )
    assert (checked.returncode, json.loads(checked.stdout)["result"]) == (0, "consistent")


def recreate(plan: SealPlan) -> None:
    admin = AdminClient(dict(plan.kafka))
    admin.delete_topics([plan.totals_topic])[plan.totals_topic].result(HANG_S)

    def made() -> bool:
        new = NewTopic(plan.totals_topic, PARTITIONS, 1)
        try:
            admin.create_topics([new])[plan.totals_topic].result(HANG_S)
        except KafkaException:  # the old one is still going
            return False
        return True

    wait_until(made, "the topic is there again")


def test_a_topic_that_is_recreated_closes_its_logs(plan: SealPlan, tmp_path: Path) -> None:
    """While a sealer runs, and the new topic has more records than the old one had."""
    put(plan, range(20))
    stop = threading.Event()
    ended: list[Any] = []

    def run() -> None:
        try:
            ended.append(run_sealer(plan, stop=stop))
        except Exception as error:  # compared below
            ended.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        wait_until(lambda: sum(sizes(plan).values()) == 20, "all is sealed")
        kept = tmp_path / "kept"
        origin = max(sizes(plan), key=lambda each: sizes(plan)[each])
        kept.write_text(log_folder(plan.folder, origin).text(CHECKPOINT) or "")
        recreate(plan)
        put(plan, range(500, 560))
        wait_until(lambda: sum(sizes(plan).values()) == 80, "the new topic is sealed")
    finally:
        stop.set()
        thread.join(HANG_S)
    assert isinstance(ended[0], SealStats), ended
    assert ended[0].closed == 2
    result = check(plan, kept)
    assert (result.findings, len(result.logs)) == ([], 4)


def test_records_that_are_gone_before_they_were_sealed_are_told(
    plan: SealPlan, caplog: pytest.LogCaptureFixture
) -> None:
    put(plan, range(10), 1)
    seal_once(plan)
    put(plan, range(10, 20), 1)
    admin = AdminClient(dict(plan.kafka))
    gone = admin.delete_records([TopicPartition(plan.totals_topic, 0, 15)])
    for future in gone.values():
        future.result(HANG_S)
    assert seal_once(plan).sealed == 5
    assert "the records at [10, 15) are gone, unsealed" in caplog.text
    found = {each.first_offset: size for each, size in sizes(plan).items() if each.partition == 0}
    assert found == {0: 10, 15: 5}
    assert check(plan).findings == []


def test_a_partition_that_is_new_gets_a_log(plan: SealPlan) -> None:
    put(plan, range(10))
    seal_once(plan)
    admin = AdminClient(dict(plan.kafka))
    made = admin.create_partitions([NewPartitions(plan.totals_topic, 3)])
    made[plan.totals_topic].result(HANG_S)

    def has_three() -> bool:
        return seal_once(plan).logs == 3

    wait_until(has_three, "the new partition is known")
    put(plan, range(100, 130), 3)
    assert seal_once(plan).sealed == 30
    assert (check(plan).findings, len(sizes(plan))) == ([], 3)


def test_a_lost_folder_is_made_again_and_has_to_come_out_the_same(
    plan: SealPlan, tmp_path: Path
) -> None:
    put(plan, range(400))
    seal_once(plan)
    before = published_checkpoints(plan.kafka, plan.checkpoints_topic)
    plan.folder.rename(tmp_path / "lost")
    put(plan, range(400, 410))
    assert seal_once(plan).sealed == 410
    assert check(plan).findings == []
    # Somebody else's log of the same topic and key: what was published isn't what comes out.
    forged = plan.folder.rename(tmp_path / "again")
    assert forged.exists()
    origin, note = max(before.items())
    was = read_checkpoint(note)
    other = replace(was, root=bytes(32), size=was.size + 1, next_offset=was.next_offset + 1)
    producer = Producer(dict(plan.kafka))
    producer.produce(plan.checkpoints_topic, other.signed(plan.keys.key), origin.encode())
    assert producer.flush(HANG_S) == 0
    with pytest.raises(SealError, match="aren't those that were sealed"):
        seal_once(plan)


def test_a_new_key_is_handed_over_to_in_public(plan: SealPlan, tmp_path: Path) -> None:
    put(plan, range(10))
    seal_once(plan)
    rotate_key_file(tmp_path / "seal.key", tmp_path / "next.key")
    after = replace(plan, keys=read_key_file(tmp_path / "next.key"))
    assert seal_once(after).sealed == 0
    notes = published_checkpoints(plan.kafka, plan.checkpoints_topic)
    assert notes[HAND_OVERS_KEY.decode()] == after.keys.hand_overs
    assert check(after).findings == []
    with pytest.raises(SealError, match="keys rotate"):
        seal_once(plan)


def test_what_cant_be_published_is_told_and_the_folder_has_it(plan: SealPlan) -> None:
    put(plan, range(10))
    away = replace(plan, dsn="postgresql://nobody@127.0.0.1:1/none")
    with pytest.raises(UnreachableError, match=r"can't be recorded at nobody@127\.0\.0\.1:1/none"):
        seal_once(away)
    assert sum(sizes(plan).values()) == 10
    with pytest.raises(AccessError, match="durabill topics create"):
        seal_once(replace(plan, checkpoints_topic=f"{plan.totals_topic}.none"))


def test_a_rebuilt_topic_takes_the_place_of_the_old_one_by_signed_lines(plan: SealPlan) -> None:
    put(plan, range(20))
    seal_once(plan)
    rebuilt = replace(plan, totals_topic=f"{plan.totals_topic}-2")
    create_totals_topic(plan.kafka, rebuilt.totals_topic, partitions=PARTITIONS)
    put(rebuilt, range(21))
    assert hand_over_topic(plan, rebuilt.totals_topic) == PARTITIONS
    assert hand_over_topic(plan, rebuilt.totals_topic) == 0
    assert seal_once(rebuilt).sealed == 21
    for each in (plan, rebuilt):
        found = check(each)
        assert found.findings == []
    notes = published_checkpoints(plan.kafka, plan.checkpoints_topic)
    logs = {origin: read_checkpoint(notes[str(origin)]) for origin in logs_in(plan.folder)}
    ended = {origin: each.closed.by for origin, each in logs.items() if each.closed is not None}
    follow = {each.follows.origin: at for at, each in logs.items() if each.follows is not None}
    assert len(ended) == PARTITIONS
    assert ended == follow
    admin = AdminClient(dict(plan.kafka))
    admin.delete_topics([rebuilt.totals_topic])[rebuilt.totals_topic].result(HANG_S)
