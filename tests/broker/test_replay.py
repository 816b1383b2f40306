"""`durabill replay --policy`: another policy over a real log, told, written and published."""

import csv
import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient

from durabill.deploy.commands.replay import check_outcome
from durabill.deploy.topics import create_topics, create_totals_topic
from durabill.schemas import decode_total, partition_for
from durabill.schemas.errors import SettingsError
from durabill.schemas.topics import Topics
from durabill.stream_processors.audit.errors import AuditError
from durabill.stream_processors.audit.replay import Engine
from durabill.stream_processors.audit.what_if_run import WhatIfOptions, run_what_if
from durabill.stream_processors.core.order import Policy
from durabill.stream_processors.core.what_if import read_policy_file
from durabill.stream_processors.engine.checkpoint import entry_key
from durabill.stream_processors.engine.policies import (
    POLICY,
    PolicyRecord,
    Terms,
    encode_history,
)
from durabill.stream_processors.settings import load_settings
from tests.broker.test_cli import run
from tests.broker.traffic_kit import Pair, now_ms, segment
from tests.broker.worker_kit import read_committed, send
from tests.waiting import HANG_S

PARTITIONS = 2
RECORDED = Policy(1_000, 36_000_000, 500_000, 0)
WHAT_IF = """
correction_window_s = 5000

[duration]
bridge_gaps_ms = 1000
minimum_duration_ms = 5000
round_up_to_ms = 2000
"""


class Log:
    """Segments, and the policy that was recorded for them."""

    def __init__(self, bootstrap_servers: str) -> None:
        self.kafka: dict[str, Any] = {"bootstrap.servers": bootstrap_servers}
        mark = f"replay-{uuid.uuid4().hex[:8]}"
        self.topics = Topics(
            segments=f"{mark}.segments",
            totals=f"{mark}.totals",
            orders=f"{mark}.orders",
            dead_letters=f"{mark}.dead-letters",
            checkpoint=f"{mark}-checkpoint-changelog",
        )
        create_topics(self.kafka, self.topics, partitions=PARTITIONS)
        self.outcome = f"{mark}.outcome"
        self.settings = {
            "bootstrap_servers": bootstrap_servers,
            "application_id": mark,
            "segments_topic": self.topics.segments,
            "totals_topic": self.topics.totals,
            "orders_topic": self.topics.orders,
            "dead_letters_topic": self.topics.dead_letters,
        }
        self._record()
        send(bootstrap_servers, self.topics.segments, _records())

    def _record(self) -> None:
        producer = Producer(self.kafka)
        for each in range(PARTITIONS):
            history = encode_history((PolicyRecord(0, Terms(RECORDED)),))
            producer.produce(self.topics.checkpoint, history, entry_key(each, POLICY), each)
        assert producer.flush(HANG_S) == 0

    def published(self, topic: str) -> list[tuple[str, int, int, dict[str, Any]]]:
        """Return (order, revision, duration, headers) of what a topic holds."""
        found = []
        for message in read_committed(self.kafka["bootstrap.servers"], topic):
            value, headers = message.value(), dict(message.headers() or ())
            assert isinstance(value, bytes)
            total = decode_total(value)
            assert message.partition() == partition_for(message.key(), PARTITIONS)  # type: ignore[arg-type]
            row = total.service_order_number, total.revision, total.duration_ms
            found.append((*row, headers))
        return sorted(found, key=lambda each: each[:2])

    def delete(self) -> None:
        admin = AdminClient(self.kafka)
        mine = [each for each in admin.list_topics(timeout=HANG_S).topics if each[:15] == self.mark]
        for future in admin.delete_topics(mine).values():
            future.result(HANG_S)

    @property
    def mark(self) -> str:
        return self.settings["application_id"][:15]


def _records() -> list[Pair]:
    """An order that is whole, one with short and long gaps, one whose first half is too late."""
    base_ms = now_ms() - 1_000_000
    return [
        segment("short", 1, base_ms + 980_000, base_ms + 981_500, end=True),
        segment("gaps", 1, base_ms + 960_000, base_ms + 970_000),
        segment("gaps", 2, base_ms + 971_000, base_ms + 980_000),
        segment("gaps", 3, base_ms + 981_001, base_ms + 990_000, end=True),
        segment("=late", 1, base_ms, base_ms + 10_000),
        segment("=late", 2, base_ms + 970_000, base_ms + 980_000, end=True),
        segment("open", 1, base_ms + 980_000, base_ms + 988_000),
        segment("forgotten", 1, base_ms, base_ms + 10_000, end=True),
    ]


EXPECTED = {
    # order: recorded, replayed, statuses
    "short": (1_500, 6_000, "COMPLETE", "COMPLETE"),
    "gaps": (27_999, 30_000, "COMPLETE", "COMPLETE"),
    "=late": (10_000, 20_000, "RUNNING", "COMPLETE"),
    "open": (8_000, 8_000, "RUNNING", "RUNNING"),
    "forgotten": (0, 10_000, None, "COMPLETE"),
}


@pytest.fixture(scope="module")
def log(bootstrap_servers: str) -> Iterator[Log]:
    log = Log(bootstrap_servers)
    yield log
    log.delete()


@pytest.fixture
def policy_file(tmp_path: Path) -> str:
    path = tmp_path / "policy.toml"
    path.write_text(WHAT_IF, encoding="utf-8")
    return str(path)


def replay(log: Log, *flags: str, **settings: str) -> Any:
    ran = run("replay", *flags, "--json", "--processes", "1", **{**log.settings, **settings})
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


def test_every_order_is_told_the_biggest_difference_first(
    log: Log, policy_file: str, tmp_path: Path
) -> None:
    path = tmp_path / "all.csv"
    told = replay(log, "--policy", policy_file, "--csv", str(path))
    found = {
        each["service_order_number"]: (
            *(each["old_ms"], each["new_ms"]),
            *(each["old_status"], each["new_status"]),
        )
        for each in told["differences"]
    }
    assert found == {number: EXPECTED[number] for number in EXPECTED if number != "open"}
    sizes = [abs(each["difference_ms"]) for each in told["differences"]]
    assert sizes == sorted(sizes, reverse=True)
    assert told["orders"] == len(EXPECTED)
    assert told["changed_orders"] == told["longer_orders"] == 4
    assert told["old_ms"] == sum(old_ms for old_ms, *_ in EXPECTED.values())
    assert told["new_ms"] == sum(new_ms for _, new_ms, *_ in EXPECTED.values())
    assert told["old_rejected"] == {"TOO_LATE": 2}
    assert told["new_rejected"] == {}
    assert told["notes"] == []
    assert told["published"] == 0
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["service_order_number"].lstrip("'"): int(row["new_ms"]) for row in rows} == {
        number: new_ms for number, (_, new_ms, *_) in EXPECTED.items()
    }
    assert "'=late" in {row["service_order_number"] for row in rows}
    assert path.stat().st_mode & 0o777 == 0o600
    assert log.published(log.topics.totals) == []


def test_people_get_a_summary_and_a_table(log: Log, policy_file: str) -> None:
    ran = run("replay", "--policy", policy_file, "--top", "2", "--processes", "2", **log.settings)
    assert ran.returncode == 0, ran.stderr
    assert "5 orders: recorded 47.499 s, replayed 1 min 14.000 s" in ran.stdout
    assert "4 orders changed: 4 longer, 0 shorter" in ran.stdout
    assert "TOO_LATE: recorded 2 records rejected, replayed 0" in ran.stdout
    assert "RUNNING -> COMPLETE" in ran.stdout
    assert "2 more orders changed" in ran.stderr


def publish(log: Log, topic: str, text: str = WHAT_IF) -> int:
    """Publish the outcome of a policy, as the command does; return how many totals it appended."""
    create_totals_topic(log.kafka, topic, partitions=PARTITIONS)
    options = WhatIfOptions(top=0, engine=Engine.REFERENCE, publish_to=topic)
    settings = load_settings({}, **log.settings)
    return run_what_if(settings, read_policy_file(text), options, lambda *_: None).published


def test_the_same_run_again_publishes_nothing_twice(log: Log) -> None:
    assert publish(log, log.outcome) == 4
    found = log.published(log.outcome)
    assert [each[:3] for each in found] == [
        ("=late", 1, 20_000),
        ("forgotten", 1, 10_000),
        ("gaps", 1, 27_999),
        ("short", 1, 1_500),
    ]
    billed = [int(headers["what_if_duration_ms"]) for *_, headers in found]
    assert billed == [20_000, 10_000, 30_000, 6_000]
    assert len({headers["what_if_run"] for *_, headers in found}) == 1
    assert publish(log, log.outcome) == 0
    assert log.published(log.outcome) == found
    with pytest.raises(AuditError, match="holds records of others"):
        publish(log, log.outcome, "settle_grace_s = 7")
    assert log.published(log.outcome) == found


def test_an_outcome_that_was_cut_short_is_gone_on_with(log: Log) -> None:
    whole, part = f"{log.outcome}-whole", f"{log.outcome}-part"
    publish(log, whole)
    create_totals_topic(log.kafka, part, partitions=PARTITIONS)
    copied = read_committed(log.kafka["bootstrap.servers"], whole)[:1]
    producer = Producer(log.kafka)
    for each in copied:
        headers, partition = each.headers(), each.partition()
        producer.produce(part, each.value(), each.key(), partition, headers=headers)  # type: ignore[arg-type]
    assert producer.flush(HANG_S) == 0
    assert publish(log, part) == 3
    assert log.published(part) == log.published(whole)


def test_the_command_makes_the_topic(log: Log, policy_file: str) -> None:
    topic = f"{log.outcome}-made"
    assert replay(log, "--policy", policy_file, "--publish-to", topic)["published"] == 4
    assert len(log.published(topic)) == 4


def test_a_topic_of_the_deployment_is_refused(log: Log) -> None:
    settings = load_settings({}, **log.settings)
    for name in log.topics.by_role.values():
        with pytest.raises(SettingsError, match="the deployment's own topic"):
            check_outcome(settings, name)


def test_a_wrong_policy_file_is_told_at_once(log: Log, tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    path.write_text("grace = 5\n[duration]\nround_up_to_ms = 0\n", encoding="utf-8")
    ran = run("replay", "--policy", str(path), **log.settings)
    assert ran.returncode == 2
    assert ran.stderr.count("error: ") == 2


def test_a_policy_that_is_not_recorded_is_told(log: Log) -> None:
    settings = load_settings({}, **{**log.settings, "application_id": f"{log.mark}-unknown"})
    options = WhatIfOptions(top=0, engine=Engine.REFERENCE)
    notes = run_what_if(settings, read_policy_file(WHAT_IF), options, lambda *_: None).notes
    assert len(notes) == PARTITIONS
    assert all("the policy of the settings is taken" in each for each in notes)
