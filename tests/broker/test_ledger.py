"""The ledger against real Kafka and PostgreSQL: every revision once, none overwritten."""

import os
import subprocess
import sys
import threading
import uuid
from dataclasses import replace
from functools import partial
from pathlib import Path

import psycopg
import pytest
from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from durabill.schemas import OrderTotal, encode_total
from durabill.stream_processors.ledger.consumer import LedgerStats, run_ledger
from durabill.stream_processors.ledger.lookups import revisions, status
from durabill.stream_processors.ledger.records import LedgerError, OffsetOutOfRange, TopicReplaced
from tests.broker.ledger_kit import (
    a_total,
    complete,
    expected_rows,
    forget_offsets,
    new_ledger_dsn,
    publish,
    recorded,
    running_ledger,
)
from tests.conftest import Topics
from tests.waiting import HANG_S, wait_until

ROOT = Path(__file__).parents[2]
STEPS = ("_lock_offsets", "_insert_totals", "_set_aside", "_keep_unreadable", "_move_offsets")


@pytest.fixture
def kafka(bootstrap_servers: str) -> dict[str, str]:
    return {"bootstrap.servers": bootstrap_servers, "session.timeout.ms": "6000"}


@pytest.fixture
def dsn(postgres_dsn: str) -> str:
    return new_ledger_dsn(postgres_dsn)


def many(orders: int, revisions_each: int = 2) -> list[OrderTotal]:
    return [
        a_total(f"SO-{order}", revision, 1_000 + order)
        for order in range(orders)
        for revision in range(1, revisions_each + 1)
    ]


def ends(kafka: dict[str, str], topic: str, partitions: int = 4) -> dict[int, int]:
    consumer = Consumer({**kafka, "group.id": "ends"})
    try:
        places = [TopicPartition(topic, each) for each in range(partitions)]
        return {place.partition: consumer.get_watermark_offsets(place)[1] for place in places}
    finally:
        consumer.close()


def plain_producer(kafka: dict[str, str], **options: str) -> Producer:
    return Producer({"bootstrap.servers": kafka["bootstrap.servers"], **options})


def caught_up(dsn: str, kafka: dict[str, str], topic: str) -> bool:
    stored = {p: at for (name, p), at in status(dsn).next_offsets.items() if name == topic}
    try:
        return stored == ends(kafka, topic)
    except KafkaException:  # a topic made a moment ago: its leader is not known everywhere yet
        return False


def test_every_revision_is_recorded_once_with_all_fields(
    kafka: dict[str, str], topics: Topics, dsn: str
) -> None:
    first = a_total("SO-Ω 1")
    second = complete(first)
    totals = [first, second, first, *many(50), second, *many(50)]
    publish(kafka, topics.totals, totals)
    with running_ledger(kafka, topics.totals, dsn) as ledger:
        assert ledger.ready.wait(HANG_S)
        wait_until(lambda: caught_up(dsn, kafka, topics.totals), "the ledger catches up")
    assert expected_rows(totals) == recorded(dsn)
    assert [first, second] == revisions(dsn, "SO-Ω 1")
    assert revisions(dsn, "SO-none") == []
    assert status(dsn).orders == {"COMPLETE": 1, "INCOMPLETE": 50, "ABANDONED": 0, "RUNNING": 0}
    assert (ledger.stats.recorded, ledger.stats.repeated) == (102, 102)
    assert ledger.stats.lag_records == 0


def test_reading_again_from_the_start_changes_nothing(
    kafka: dict[str, str], topics: Topics, dsn: str
) -> None:
    totals = many(200)
    publish(kafka, topics.totals, [*totals, a_total("SO-3", 1, 9)])
    with running_ledger(kafka, topics.totals, dsn, batch_records_max=37) as ledger:
        wait_until(lambda: caught_up(dsn, kafka, topics.totals), "the ledger catches up")
        for _ in range(2):
            assert forget_offsets(dsn, topics.totals) == 4
            publish(kafka, topics.totals, totals[:1])  # wakes it up
            wait_until(lambda: caught_up(dsn, kafka, topics.totals), "the ledger catches up again")
    assert expected_rows(totals) == recorded(dsn)
    assert (ledger.stats.recorded, ledger.stats.set_aside) == (400, 1)
    assert ledger.stats.repeated >= 800


def test_different_total_of_a_revision_is_set_aside(
    kafka: dict[str, str], topics: Topics, dsn: str
) -> None:
    first, second = a_total("SO-1", 1, 100), a_total("SO-1", 1, 200)
    publish(kafka, topics.totals, [first, second])
    with running_ledger(kafka, topics.totals, dsn):
        wait_until(lambda: caught_up(dsn, kafka, topics.totals), "the ledger catches up")
        publish(kafka, topics.totals, [second, first, second])
        wait_until(lambda: caught_up(dsn, kafka, topics.totals), "the ledger catches up")
    assert [first] == revisions(dsn, "SO-1")
    with psycopg.connect(dsn) as conn:
        rows = conn.execute(
            "SELECT recorded_duration_ms, set_aside_duration_ms, recorded_totals_offset, "
            "set_aside_totals_offset FROM disputed_totals"
        ).fetchall()
    assert rows == [(100, 200, 0, 1)]


def test_aborted_totals_never_count_and_markers_are_passed(
    kafka: dict[str, str], topics: Topics, dsn: str
) -> None:
    committed, aborted = a_total("SO-1", 1), a_total("SO-1", 1, 5)
    producer = plain_producer(kafka, **{"transactional.id": uuid.uuid4().hex})
    producer.init_transactions(HANG_S)
    for total, end in (
        (aborted, producer.abort_transaction),
        (committed, producer.commit_transaction),
    ):
        producer.begin_transaction()
        producer.produce(topics.totals, encode_total(total), b"SO-1", 0)
        producer.flush(HANG_S)
        end(HANG_S)
    with running_ledger(kafka, topics.totals, dsn):
        wait_until(lambda: caught_up(dsn, kafka, topics.totals), "the ledger passes the markers")
    assert [committed] == revisions(dsn, "SO-1")
    assert status(dsn).next_offsets[topics.totals, 0] == 4
    assert status(dsn).set_aside == 0


def test_unreadable_records_are_kept_and_passed(
    kafka: dict[str, str], topics: Topics, dsn: str
) -> None:
    good = encode_total(a_total("SO-1"))
    bad = [
        (b"SO-1", b"\x00garbage\xff"),
        (b"SO-1", None),
        (None, good),
        (b"SO-2", good),
        (b"SO-1", good + b"!"),
        (b"SO-9", encode_total(replace(a_total("SO-9"), digest="no digest"))),
        (b"S\x00O", encode_total(a_total("S\x00O"))),
    ]
    producer = plain_producer(kafka)
    for key, value in [*bad, (b"SO-1", good)]:
        producer.produce(topics.totals, value, key, 0)
    assert producer.flush(HANG_S) == 0
    with running_ledger(kafka, topics.totals, dsn) as ledger:
        wait_until(lambda: caught_up(dsn, kafka, topics.totals), "the ledger catches up")
        forget_offsets(dsn, topics.totals)
        publish(kafka, topics.totals, [a_total("SO-1")])
        wait_until(lambda: caught_up(dsn, kafka, topics.totals), "the ledger catches up again")
    with psycopg.connect(dsn) as conn:
        rows = conn.execute("SELECT key, value FROM unreadable_totals ORDER BY totals_offset")
        assert bad == rows.fetchall()
    assert [a_total("SO-1")] == revisions(dsn, "SO-1")
    assert ledger.stats.unreadable == len(bad)


def test_offset_before_the_log_stops_with_the_choices(
    kafka: dict[str, str], topics: Topics, dsn: str
) -> None:
    with running_ledger(kafka, topics.totals, dsn) as ledger:
        assert ledger.ready.wait(HANG_S)
    publish(kafka, topics.totals, [a_total()] * 3, partitions=1)
    admin = AdminClient({"bootstrap.servers": kafka["bootstrap.servers"]})
    gone = admin.delete_records([TopicPartition(topics.totals, 0, 2)])
    for future in gone.values():
        future.result(HANG_S)
    with (
        pytest.raises(OffsetOutOfRange, match=r"at offset 0.*holds \[2, 3\).*DELETE FROM ledger"),
        running_ledger(kafka, topics.totals, dsn) as ledger,
    ):
        ledger.thread.join(HANG_S)
    assert recorded(dsn) == []
    assert forget_offsets(dsn, topics.totals, 0) == 1
    with running_ledger(kafka, topics.totals, dsn):
        wait_until(lambda: len(recorded(dsn)) == 1, "what is still there is read")


def test_offset_after_the_log_stops(kafka: dict[str, str], topics: Topics, dsn: str) -> None:
    with psycopg.connect(dsn) as conn:
        conn.execute(
            "INSERT INTO ledger_offsets (topic, partition, next_offset) VALUES (%s, 1, 5)",
            (topics.totals,),
        )
    with (
        pytest.raises(OffsetOutOfRange, match=r"at offset 5, the topic holds \[0, 0\)"),
        running_ledger(kafka, topics.totals, dsn) as ledger,
    ):
        ledger.thread.join(HANG_S)


def test_topic_made_anew_stops(kafka: dict[str, str], topics: Topics, dsn: str) -> None:
    with psycopg.connect(dsn) as conn:
        conn.execute(
            "INSERT INTO ledger_offsets VALUES (%s, 1, 0, 'the id of another')", (topics.totals,)
        )
    with (
        pytest.raises(TopicReplaced, match="recreated"),
        running_ledger(kafka, topics.totals, dsn) as ledger,
    ):
        ledger.thread.join(HANG_S)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ("dbname=durabill_is_not_there", "refuses: .*does not exist"),
        ("password=guess", "refuses: .*password authentication failed"),
        ("options=-csearch_path=nowhere", "tables are missing"),
    ],
)
def test_database_that_will_not_do_stops(
    kafka: dict[str, str], topics: Topics, postgres_dsn: str, broken: str, message: str
) -> None:
    name, value = broken.split("=", 1)
    dsn = psycopg.conninfo.make_conninfo(postgres_dsn, **{name: value})
    with pytest.raises(LedgerError, match=message):
        run_ledger(kafka, topics.totals, "g", dsn, stop=threading.Event())


def test_missing_topic_stops(kafka: dict[str, str], dsn: str) -> None:
    with pytest.raises(LedgerError, match="does not exist"):
        run_ledger(kafka, "durabill-no-such-topic", "g", dsn, stop=threading.Event())


def test_waits_out_a_database_that_is_full_or_restarts(
    kafka: dict[str, str], topics: Topics, dsn: str
) -> None:
    publish(kafka, topics.totals, many(20))
    with (
        psycopg.connect(dsn, autocommit=True) as conn,
        running_ledger(kafka, topics.totals, dsn, batch_records_max=50) as ledger,
    ):
        wait_until(lambda: caught_up(dsn, kafka, topics.totals), "the ledger catches up")
        conn.execute(
            "CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN RAISE EXCEPTION 'no space left' USING ERRCODE = '53100'; END $$"
        )
        conn.execute(
            "CREATE TRIGGER full_disk BEFORE INSERT ON order_totals "
            "FOR EACH ROW EXECUTE FUNCTION full_disk()"
        )
        publish(kafka, topics.totals, many(500))
        wait_until(lambda: ledger.stats.reconnects >= 2, "the ledger notices")
        assert len(recorded(dsn)) == 40
        conn.execute("DROP TRIGGER full_disk ON order_totals")
        for _ in range(3):
            publish(kafka, topics.totals, many(500))
            conn.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE application_name = 'durabill-ledger' AND datname = current_database()"
            )
        wait_until(lambda: caught_up(dsn, kafka, topics.totals), "the ledger catches up")
    assert expected_rows(many(500)) == recorded(dsn)
    assert ledger.stats.recorded == 1_000


def test_two_ledgers_on_the_same_partitions_double_nothing(
    kafka: dict[str, str], topics: Topics, dsn: str
) -> None:
    """Different groups: each believes that every partition is its own, as a zombie does."""
    totals = many(1_500)
    with (
        running_ledger(kafka, topics.totals, dsn, batch_records_max=50) as one,
        running_ledger(kafka, topics.totals, dsn, batch_records_max=50) as other,
    ):
        assert one.ready.wait(HANG_S)
        assert other.ready.wait(HANG_S)
        publish(kafka, topics.totals, totals)
        wait_until(lambda: caught_up(dsn, kafka, topics.totals), "the ledgers catch up")
    assert expected_rows(totals) == recorded(dsn)
    assert len(totals) == one.stats.recorded + other.stats.recorded
    assert one.stats.fenced + other.stats.fenced > 0
    assert one.stats.set_aside + other.stats.set_aside == 0


def test_ledgers_of_one_group_come_and_go(kafka: dict[str, str], topics: Topics, dsn: str) -> None:
    totals, group = many(1_000), uuid.uuid4().hex
    chunks = [totals[at : at + 500] for at in range(0, len(totals), 500)]
    stats: list[LedgerStats] = []
    with running_ledger(kafka, topics.totals, dsn, group=group, batch_records_max=20) as stays:
        assert stays.ready.wait(HANG_S)
        for chunk in chunks:
            publish(kafka, topics.totals, chunk)
            with running_ledger(
                kafka, topics.totals, dsn, group=group, batch_records_max=20
            ) as goes:
                assert goes.ready.wait(HANG_S)
                publish(kafka, topics.totals, chunk)
            stats.append(goes.stats)
        wait_until(lambda: caught_up(dsn, kafka, topics.totals), "the ledgers catch up")
    assert expected_rows(totals) == recorded(dsn)
    assert len(totals) == stays.stats.recorded + sum(each.recorded for each in stats)


LEDGER_PROCESS = """
import os, signal, sys, threading
# The DSN by the environment: a command line can be read by everybody.
from durabill.stream_processors.ledger import store as ledger_store
from durabill.stream_processors.ledger.consumer import run_ledger

bootstrap_servers, topic, group, dies_after = sys.argv[1:]
dsn = os.environ["LEDGER_DSN"]
batches = 0
if dies_after:
    step = getattr(ledger_store.LedgerStore, dies_after)

    def fatal(*args):
        global batches
        batches += 1
        result = step(*args)
        if batches == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(ledger_store.LedgerStore, dies_after, fatal)
stop = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: stop.set())
kafka = {"bootstrap.servers": bootstrap_servers, "session.timeout.ms": "6000"}
run_ledger(kafka, topic, group, dsn, stop=stop, batch_records_max=100)
"""


def ledger_process(
    kafka: dict[str, str], topic: str, dsn: str, group: str, dies_after: str = ""
) -> subprocess.Popen[bytes]:
    arguments = [kafka["bootstrap.servers"], topic, group, dies_after]
    command = [sys.executable, "-c", LEDGER_PROCESS, *arguments]
    return subprocess.Popen(command, cwd=ROOT, env={**os.environ, "LEDGER_DSN": dsn})


def has_rows(dsn: str, wanted: int) -> bool:
    return len(recorded(dsn)) >= wanted


def test_killed_between_any_two_steps_loses_and_doubles_nothing(
    kafka: dict[str, str], topics: Topics, dsn: str
) -> None:
    totals = [*many(800), a_total("SO-7", 1, 1)]
    publish(kafka, topics.totals, totals)
    for step in STEPS:
        process = ledger_process(kafka, topics.totals, dsn, uuid.uuid4().hex, step)
        assert process.wait(HANG_S) == -9
        stored = sum(status(dsn).next_offsets.values())
        counts = status(dsn)
        assert stored == counts.totals + counts.set_aside  # both, or neither
    process = ledger_process(kafka, topics.totals, dsn, uuid.uuid4().hex)
    wait_until(lambda: caught_up(dsn, kafka, topics.totals), "the ledger catches up")
    process.terminate()
    assert process.wait(HANG_S) == 0
    assert expected_rows(totals[:-1]) == recorded(dsn)
    assert status(dsn).set_aside == 1


def test_killed_at_any_moment_loses_and_doubles_nothing(
    kafka: dict[str, str], topics: Topics, dsn: str
) -> None:
    totals, group = many(4_000), uuid.uuid4().hex
    publish(kafka, topics.totals, totals)
    for wanted in (500, 3_000):
        process = ledger_process(kafka, topics.totals, dsn, group)
        wait_until(partial(has_rows, dsn, wanted), "the ledger is in mid-stream")
        process.kill()
        process.wait(HANG_S)
    with running_ledger(kafka, topics.totals, dsn, group=group):
        wait_until(lambda: caught_up(dsn, kafka, topics.totals), "the successor catches up")
    assert expected_rows(totals) == recorded(dsn)
