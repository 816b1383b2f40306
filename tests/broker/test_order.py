"""`durabill order`: an order told from the log, with the verdicts and the causes of the rules.

The broker's time is in the records here, put there by the test: forgetting an order takes a minute
at least. Where a worker takes part, its own time counts.
"""

import json
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewTopic

from durabill.schemas import (
    OWN_SCHEMA_ONLY,
    PARTITIONER,
    OrderTotal,
    SegmentEvent,
    encode_segment,
    encode_total,
    partition_for,
)
from durabill.schemas.headers import FORWARDED_FROM
from durabill.schemas.wire import Headers
from durabill.stream_processors.core.admission import Place
from durabill.stream_processors.core.explain import Revision, explain
from durabill.stream_processors.core.order import Policy
from durabill.stream_processors.engine.batch import Record
from durabill.stream_processors.engine.policies import PolicyRecord, Terms, encode_history
from tests.broker.ledger_kit import new_ledger_dsn, recorded, running_ledger
from tests.broker.test_cli import run
from tests.broker.worker_kit import deployment
from tests.waiting import HANG_S, wait_until

PARTITIONS = 3
NUMBER = "SO-1\u202e"
"""An order number that would turn the writing direction of its line."""

POLICY = Policy(1_000, 4_000, 10_000, 3_600_000)
FORGET_MS = 10_000 + 60_000


class Log:
    """Topics of a test's own, and what it has put into the segments' one."""

    def __init__(self, bootstrap_servers: str, folder: Path) -> None:
        self.mark = f"order-{uuid.uuid4().hex[:8]}"
        self.base_ms = int(time.time() * 1000) - 600_000
        self.records: list[Record] = []
        self.own = partition_for(NUMBER.encode(), PARTITIONS)
        self.settings = {
            "bootstrap_servers": bootstrap_servers,
            "application_id": self.mark,
            "segments_topic": f"{self.mark}.segments",
            "totals_topic": f"{self.mark}.totals",
            "orders_topic": f"{self.mark}.orders",
            "dead_letters_topic": f"{self.mark}.dead-letters",
            "settle_grace_s": "1",
            "idle_timeout_s": "4",
            "correction_window_s": "10",
            "interim_interval_s": "3600",
            "data_dir": str(folder),
        }
        self.checkpoint = f"{self.mark}-checkpoint-changelog"
        self._admin = AdminClient({"bootstrap.servers": bootstrap_servers})
        self._producer = Producer(
            {"bootstrap.servers": bootstrap_servers, "partitioner": PARTITIONER}
        )
        names = [value for name, value in self.settings.items() if name.endswith("_topic")]
        self.create(*names)

    def create(self, *names: str) -> None:
        config = {"message.timestamp.type": "CreateTime", "retention.ms": "-1"}
        topics = [NewTopic(name, PARTITIONS, 1, config=config) for name in names]
        for future in self._admin.create_topics(topics).values():
            future.result(HANG_S)

    def delete(self) -> None:
        found = self._admin.list_topics(timeout=HANG_S).topics
        ours = [name for name in found if name.startswith(self.mark)]
        for future in self._admin.delete_topics(ours).values():
            future.result(HANG_S)

    def segment(
        self,
        at_ms: int,
        number: int,
        second: int,
        *,
        end: bool = False,
        key: str = NUMBER,
        partition: int | None = None,
        headers: Headers = (),
    ) -> None:
        """Append a segment of a whole second, counted from the test's base, at a time."""
        start_ms = self.base_ms + 1_000 * second
        event = SegmentEvent(key, number, start_ms, start_ms + 1_000, end)
        partition = partition_for(key.encode(), PARTITIONS) if partition is None else partition
        record = Record(
            len(self.records),
            self.base_ms + at_ms,
            key.encode(),
            encode_segment(event),
            headers,
        )
        if partition == self.own:
            self.records.append(record)
        self._producer.produce(
            self.settings["segments_topic"],
            record.value,
            record.key,
            partition,
            timestamp=record.append_ms,
            headers=list(headers),
        )
        assert self._producer.flush(HANG_S) == 0

    def put(self, topic: str, key: bytes, value: bytes, headers: Any = ()) -> None:
        self._producer.produce(topic, value, key, self.own, headers=list(headers))
        assert self._producer.flush(HANG_S) == 0

    def totals(self) -> list[OrderTotal]:
        """Return what the log gives."""
        place, read = Place(self.own, PARTITIONS), OWN_SCHEMA_ONLY.read
        found = explain(NUMBER, self.records, place, lambda _: POLICY, read)
        return [each.total for each in found if isinstance(each, Revision)]

    def publish(self, totals: Sequence[OrderTotal]) -> None:
        for each in totals:
            self.put(self.settings["totals_topic"], NUMBER.encode(), encode_total(each))

    def told(self, *flags: str, **more: str) -> Any:
        ran = run("order", NUMBER, "--json", *flags, **{**self.settings, **more})
        assert ran.returncode == 0, ran.stderr
        assert ran.stdout.count("\n") == 1
        return json.loads(ran.stdout)

    def shown(self, *flags: str, **more: str) -> str:
        ran = run("order", NUMBER, *flags, **{**self.settings, **more})
        assert ran.returncode == 0, ran.stderr
        return ran.stdout


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines are as long as they are."""
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture
def log(bootstrap_servers: str, tmp_path: Path) -> Iterator[Log]:
    found = Log(bootstrap_servers, tmp_path)
    yield found
    found.delete()


def use_a_number_twice(log: Log) -> None:
    """A repeat, a late correction and a dead letter in the first life; the second ends alone."""
    log.segment(3_000, 3, 2, end=True)
    log.segment(3_100, 1, 0)
    log.segment(3_200, 1, 0)
    log.segment(6_000, 2, 1)  # after settle_grace: a correction
    log.segment(30_000, 9, 1)  # too late
    log.segment(7_100 + FORGET_MS, 1, 77)
    log.segment(
        90_000, 1, 0, key=next(each for each in map(str, range(99)) if log.own == part(each))
    )


def part(number: str) -> int:
    return partition_for(number.encode(), PARTITIONS)


def test_two_lives_of_a_number_and_what_the_ledger_set_aside(log: Log, postgres_dsn: str) -> None:
    use_a_number_twice(log)
    first, second, third = log.totals()
    log.publish([first, second, third])
    dsn = new_ledger_dsn(postgres_dsn)
    kafka = {"bootstrap.servers": log.settings["bootstrap_servers"]}
    with running_ledger(kafka, log.settings["totals_topic"], dsn) as ledger:
        wait_until(lambda: ledger.stats.set_aside == 1, "the second life's total is set aside")
    assert len(recorded(dsn)) == 2

    told = log.told(ledger_dsn=dsn)
    records = [(each["verdict"], each["life"], each["reopens"]) for each in told["records"]]
    assert records == [
        ("counted", 1, False),
        ("counted", 1, False),
        ("repeat, adds nothing", 1, False),
        ("counted", 1, True),
        ("dead letter: TOO_LATE", 1, False),
        ("counted", 2, False),
    ]
    caused = [
        (each["life"], each["caused_by"], each["caused_by_offset"]) for each in told["totals"]
    ]
    assert caused == [(1, "settle_grace", 0), (1, "correction_grace", 3)]
    (aside,) = told["set_aside"]
    assert (
        aside["revision"],
        aside["life"],
        aside["status"],
        aside["caused_by"],
        aside["caused_by_offset"],
    ) == (1, 2, "ABANDONED", "idle_timeout", 5)
    assert [each["duration_ms"] for each in told["lives"]] == [3_000, 1_000]
    assert log.base_ms + 7_000 + FORGET_MS == told["lives"][0]["forgotten_at_ms"]
    assert (told["duration_ms"], told["lives"][1]["state"]["duration_ms"]) == (1_000, 1_000)
    assert [each["revision"] for each in told["revisions"]] == [1, 2, 1]

    text = log.shown(ledger_dsn=dsn)
    for line in (
        'Order "SO-1\\u202e", partition',
        "6 records in the log, times in UTC",
        "counted, reopens it",
        "dead letter: TOO_LATE (ended 28000 ms before its arrival)",
        "Life 1: forgotten after",
        "4 records taken in",
        "3.000 s proven of 3.000 s",
        "Life 2: SETTLED, 1.000 s, 1 segment, 0 repeats, revision 1, forgotten after",
        "2 totals in the ledger at",
        ", 1 set aside",
        f"life 1: settle_grace passed, counted from record {log.own}/0",
        f"life 1: correction_grace passed, counted from record {log.own}/3",
        f"life 2: idle_timeout passed, counted from record {log.own}/5",
        "set aside: another total of revision 1 was recorded before it",
    ):
        assert line in text, text
    assert "\u202e" not in text
    assert "7.000 s" not in text
    few = log.shown("--rows", "2", ledger_dsn=dsn)
    assert "4 more, --rows 0 shows all" in few


def test_totals_of_the_topic_and_those_that_are_still_to_come(log: Log) -> None:
    use_a_number_twice(log)
    first, _, third = log.totals()
    log.publish([first, first, third])
    told = log.told()
    assert [(each["revision"], each["life"]) for each in told["totals"]] == [(1, 1), (1, 2)]
    assert told["set_aside"] is None
    text = log.shown()
    assert f"2 totals in topic {log.settings['totals_topic']}\n" in text
    assert "revision 2  COMPLETE    3.000 s  by the log, not found there" in text


def test_an_order_that_is_complete_by_a_record_and_one_that_runs_on(log: Log) -> None:
    log.segment(1_500, 1, 0)
    log.segment(4_000, 2, 3)
    running = log.told(interim_interval_s="2")
    assert [
        (each["status"], each["caused_by"], each["caused_by_offset"])
        for each in running["revisions"]
    ] == [("RUNNING", "interim_interval", None)]
    assert running["lives"][0]["state"]["phase"] == "OPEN"
    log.segment(5_000, 3, 4, end=True)
    text = log.shown()
    for line in (
        "3 records in the log",
        "counted, completes it",
        "By the log: SETTLED, 3.000 s, 3 segments, 0 repeats, revision 1, forgotten after",
        "gaps of 2.000 s",
        "  gap ",
        "0 totals in topic",
        f"record {log.own}/2 completed it",
    ):
        assert line in text, text


def test_the_recorded_policy_counts_and_an_assumed_one_is_told(log: Log) -> None:
    log.segment(3_000, 3, 2, end=True)
    log.segment(5_500, 1, 0)
    log.segment(9_000, 1, 0)
    assumed = log.told()
    assert "can't be read: " in assumed["policy_assumed_because"]
    assert log.checkpoint in assumed["policy_assumed_because"]
    assert [each["terms"]["policy"]["settle_grace_ms"] for each in assumed["policy"]] == [1_000]
    assert [each["status"] for each in assumed["revisions"]] == ["INCOMPLETE", "INCOMPLETE"]
    assert "note: this policy is assumed from the settings: " in log.shown()

    log.create(log.checkpoint)
    assert "no worker has recorded" in log.told()["policy_assumed_because"]
    history = (PolicyRecord(0, Terms(Policy(3_000, 4_000, 10_000, 3_600_000))),)
    log.put(log.checkpoint, f"{log.own}/policy".encode(), encode_history(history))
    told = log.told()
    assert told["policy_assumed_because"] is None
    assert [each["terms"]["policy"]["settle_grace_ms"] for each in told["policy"]] == [3_000]
    assert [("INCOMPLETE", log.base_ms + 6_000)] == [
        (each["status"], each["settled_at_ms"]) for each in told["revisions"]
    ]
    assert "Policy: settle_grace 3.000 s, idle_timeout 4.000 s" in log.shown()
    log.put(log.checkpoint, f"{log.own}/policy".encode(), b"damaged")
    assert "damaged" in log.told()["policy_assumed_because"]


def test_records_in_wrong_partitions_and_their_copies(log: Log) -> None:
    wrong = (log.own + 1) % PARTITIONS
    copy: Headers = ((FORWARDED_FROM, f"{wrong}/0".encode()), ("x", b"\x1b[2J"))
    log.segment(1_500, 1, 0, partition=wrong)
    log.segment(1_600, 1, 0, headers=copy)
    log.segment(1_700, 1, 0, headers=copy)
    log.segment(1_800, 2, 1, partition=wrong, headers=copy)
    assert [each["verdict"] for each in log.told()["records"]] == [
        "counted",
        "passed over, came before",
    ]
    found = log.told("--everywhere")["records"]
    assert [
        (log.own, "counted", 1, f"{wrong}/0"),
        (log.own, "passed over, came before", 1, f"{wrong}/0"),
        (wrong, f"sent on to partition {log.own}", 0, None),
        (wrong, "dead letter: WRONG_PARTITION", 0, None),
    ] == [
        (each["partition"], each["verdict"], each["life"], each["forwarded_from"]) for each in found
    ]
    text = log.shown("--everywhere")
    assert f"counted, sent on from {wrong}/0" in text
    assert "\x1b" not in text


def letter_of(log: Log, offset: int, reason: bytes) -> list[tuple[str, bytes]]:
    return [
        ("reason", reason),
        ("source_topic", log.settings["segments_topic"].encode()),
        ("source_partition", str(log.own).encode()),
        ("source_offset", str(offset).encode()),
    ]


def test_dead_letters_have_their_place_and_contradictions_are_told(log: Log) -> None:
    log.segment(30_000, 1, 0)
    log.segment(30_500, 2, 29)
    log.segment(30_600, 3, 30)
    letters = log.settings["dead_letters_topic"]
    log.put(letters, b"k", b"v", letter_of(log, 0, b"TOO_LATE"))
    log.put(letters, b"k", b"v", letter_of(log, 1, b"TOO_LONG\x1b[2J"))
    log.put(letters, b"k", b"v", letter_of(log, 2, b"BAD_BATCH"))
    told = log.told()
    assert [f"{log.own}/0", f"{log.own}/1", None] == [
        each["dead_letter"] for each in told["records"]
    ]
    otherwise, bad_batch = told["notes"]
    assert f"record {log.own}/1 was published" in otherwise
    assert "BAD_BATCH" in bad_batch
    text = log.shown()
    assert f"note: {otherwise}" in text
    assert "\x1b" not in text
    ran = run("order", "never-seen", **log.settings)
    assert (ran.returncode, ran.stderr[-31:]) == (1, "Nobody knows order never-seen.\n")
    ran = run("order", "\udcff", **log.settings)
    assert ran.returncode == 2
    assert "Traceback" not in ran.stderr


def test_a_worker_and_the_command_agree(bootstrap_servers: str, tmp_path: Path) -> None:
    with deployment(bootstrap_servers, tmp_path, partitions=1, settle_grace_s=0.5) as deployed:
        worker = deployed.start_and_wait()
        now_ms = int(time.time() * 1000)

        def record(number: int, *, end: bool = False, ahead_ms: int = 0) -> tuple[bytes, bytes]:
            start_ms = now_ms - 10_000 + 100 * number
            event = SegmentEvent("SO1", number, start_ms, start_ms + 100 + ahead_ms, end)
            return b"SO1", encode_segment(event)

        # At once, for the grace is short.
        deployed.send([record(3, end=True), record(1), record(5, ahead_ms=3_600_000)])
        wait_until(lambda: len(deployed.found_totals()) == 1, "INCOMPLETE")
        deployed.send([record(2)])
        wait_until(lambda: len(deployed.found_totals()) == 2, "its correction")
        settings = {
            "bootstrap_servers": bootstrap_servers,
            "application_id": deployed.name,
            "segments_topic": deployed.segments,
            "totals_topic": deployed.totals,
            "orders_topic": deployed.orders,
            "dead_letters_topic": deployed.dead_letters,
            "worker_urls": f"http://127.0.0.1:{worker.port}",
            "data_dir": str(tmp_path),
        }
        ran = run("order", "SO1", "--json", **settings)
        assert ran.returncode == 0, ran.stderr
        told = json.loads(ran.stdout)
        assert told["policy_assumed_because"] is None
        assert [each["terms"]["policy"]["settle_grace_ms"] for each in told["policy"]] == [500]
        assert [each["verdict"] for each in told["records"]] == [
            "counted",
            "counted",
            "dead letter: IN_THE_FUTURE",
            "counted",
        ]
        assert [each["caused_by"] for each in told["totals"]] == [
            "settle_grace",
            "correction_grace",
        ]
        pages = ("interval_count", "missing_range_count", "next", "lag")
        live = {name: value for name, value in told["live"].items() if name not in pages}
        assert told["lives"][0]["state"] == live
        text = run("order", "SO1", **settings).stdout
        assert "Live state: SETTLED, 0.300 s, 3 segments, 0 repeats, revision 2" in text
        assert "dead letter 0/0" in text
        assert worker.stop() == 0
