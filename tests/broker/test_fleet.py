"""The fleet against a real broker: receipts, the truth file, both ways in, and what stops it."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from durabill.producers.fleet.plan import Faults, FleetPlan
from durabill.producers.fleet.run import (
    FleetError,
    FleetReport,
    compare,
    compare_dead_letters,
    run_fleet,
)
from durabill.producers.fleet.truth import LogRecord, read_log
from durabill.producers.fleet.truth_file import read_truth
from durabill.producers.fleet.truth_order import Policy
from durabill.producers.gateway.authority import AuthorityConfig
from durabill.producers.gateway.server import GatewayConfig
from durabill.schemas import Reason, partition_for
from tests.broker.gateway_kit import gateway, read_topic
from tests.conftest import Topics
from tests.waiting import HANG_S, wait_until

POLICY = Policy(settle_grace_ms=300, idle_timeout_ms=800)
EVERYTHING = FleetPlan(seed=3, orders=60, segments_per_order=25, faults=Faults.everything())


@contextmanager
def forwarder(bootstrap_servers: str, topics: Topics) -> Iterator[None]:
    """Sends records in a wrong partition on to the right one, as a worker does."""
    servers = {"bootstrap.servers": bootstrap_servers}
    consumer = Consumer({**servers, "group.id": "unused", "enable.auto.commit": False})
    consumer.assign([TopicPartition(topics.segments, p, 0) for p in range(topics.partitions)])
    producer = Producer(servers)
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            message = consumer.poll(0.05)
            key = None if message is None else message.key()
            if message is None or message.headers() or not key:
                continue
            right = partition_for(key, topics.partitions)
            if message.partition() != right and len(message.value() or b"") > 25:
                origin = f"{message.partition()}/{message.offset()}"
                for _ in range(2):  # twice, as after a crash
                    producer.produce(
                        topics.segments,
                        key=key,
                        value=message.value(),
                        partition=right,
                        headers={"forwarded_from": origin},
                    )
                producer.flush(HANG_S)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(HANG_S)
        consumer.close()


def log_records(bootstrap_servers: str, topic: str) -> list[LogRecord]:
    found = []
    for message in read_topic(bootstrap_servers, topic):
        headers: Any = message.headers()
        partition: Any = message.partition()
        offset: Any = message.offset()
        content = (message.key(), message.value(), tuple(headers or ()))
        found.append(LogRecord(partition, offset, message.timestamp()[1], *content))
    return found


def check(report: FleetReport, bootstrap_servers: str, topics: Topics) -> None:
    """The truth file must hold what the log, read once more, must lead to."""
    log = log_records(bootstrap_servers, topics.segments)
    truth = read_log(log, POLICY, topics.partitions)
    path = Path(report.truth_path)
    assert compare(path, [total for each in truth.totals.values() for total in each]).exact
    assert compare_dead_letters(path, truth.dead_letters).exact
    assert report.totals == sum(len(each) for each in truth.totals.values())
    assert sum(report.dead_letters.values()) == len(truth.dead_letters) > 0


def test_every_fault_with_a_gateway_and_a_worker_that_sends_on(
    bootstrap_servers: str, topics: Topics, tmp_path: Path
) -> None:
    kafka = {"bootstrap.servers": bootstrap_servers}
    phases = []
    with (
        gateway(GatewayConfig(kafka, topics.segments)) as url,
        forwarder(bootstrap_servers, topics),
    ):
        report = run_fleet(
            EVERYTHING,
            kafka,
            topics.segments,
            POLICY,
            truth_path=tmp_path / "truth.jsonl",
            gateway_url=url,
            http_share=0.4,
            progress=lambda phase, done, total: phases.append(phase),
        )
    assert report.orders == 60
    assert report.sent_over_http > 300
    assert report.repeats > 10
    assert report.sent_on > 0
    assert (report.not_forwarded, report.unexplained) == (0, 0)
    assert list(dict.fromkeys(phases))[:4] == ["plan", "wave 1", "settling", "wave 2"]
    assert report.last_append_ms > report.first_append_ms + 800
    assert report.settled_by_ms <= report.last_append_ms + 800
    check(report, bootstrap_servers, topics)


def test_without_a_worker_wrong_partitions_are_reported(
    bootstrap_servers: str, topics: Topics, tmp_path: Path
) -> None:
    plan = FleetPlan(
        seed=4,
        orders=10,
        segments_per_order=10,
        faults=Faults(wrong_partition=0.1, garbage=0.2, late=0.1),
    )
    report = run_fleet(
        plan,
        {"bootstrap.servers": bootstrap_servers},
        topics.segments,
        POLICY,
        truth_path=tmp_path / "truth.jsonl",
        forwarding_timeout_s=0,
    )
    assert report.not_forwarded == report.sent_on > 0
    check(report, bootstrap_servers, topics)


def test_second_run_leaves_the_first_alone(
    bootstrap_servers: str, topics: Topics, tmp_path: Path
) -> None:
    kafka = {"bootstrap.servers": bootstrap_servers}
    prefixes = []
    for seed in (1, 2):
        path = tmp_path / f"{seed}.jsonl"
        plan = FleetPlan(seed=seed, orders=5, segments_per_order=5)
        report = run_fleet(plan, kafka, topics.segments, POLICY, truth_path=path)
        assert (report.orders, report.records, report.unexplained) == (5, 25, 0)
        run, *lines = read_truth(path)
        prefixes.append(run["order_prefix"])
        assert all(line["service_order_number"].startswith(prefixes[-1]) for line in lines)
    assert prefixes == ["SO-1-", "SO-2-"]


def test_rate_is_kept(bootstrap_servers: str, topics: Topics, tmp_path: Path) -> None:
    report = run_fleet(
        FleetPlan(seed=1, orders=20, segments_per_order=50),
        {"bootstrap.servers": bootstrap_servers},
        topics.segments,
        POLICY,
        truth_path=tmp_path / "truth.jsonl",
        rate=1_000,
    )
    assert 50 < report.records_per_s < 1_400  # a busy machine may be slower, none faster


def test_topic_with_the_clients_time_is_refused(bootstrap_servers: str, tmp_path: Path) -> None:
    kafka = {"bootstrap.servers": bootstrap_servers}
    admin = AdminClient({**kafka})
    name = f"{tmp_path.name}.create-time"
    topic = NewTopic(name, 1, 1, config={"message.timestamp.type": "CreateTime"})
    admin.create_topics([topic])[name].result(HANG_S)
    wait_until(lambda: name in admin.list_topics(timeout=HANG_S).topics, "the broker knows it")
    try:
        with pytest.raises(FleetError, match="LogAppendTime"):
            run_fleet(
                FleetPlan(seed=1, orders=1, segments_per_order=3),
                kafka,
                name,
                POLICY,
                truth_path=tmp_path / "truth.jsonl",
            )
    finally:
        admin.delete_topics([name])[name].result(HANG_S)


def test_missing_topic_is_an_error_that_names_it(bootstrap_servers: str, tmp_path: Path) -> None:
    with pytest.raises(FleetError, match="not-there"):
        run_fleet(
            FleetPlan(seed=1, orders=1),
            {"bootstrap.servers": bootstrap_servers},
            "not-there",
            POLICY,
            truth_path=tmp_path / "truth.jsonl",
        )


def test_gateway_that_refuses_stops_the_run(
    bootstrap_servers: str, topics: Topics, tmp_path: Path
) -> None:
    kafka = {"bootstrap.servers": bootstrap_servers}
    authority = AuthorityConfig(are_leases_required=True)  # and the fleet has none
    config = GatewayConfig(kafka, topics.segments, authority=authority)
    with gateway(config) as url, pytest.raises(FleetError, match="LEASE_MISSING"):
        run_fleet(
            FleetPlan(seed=1, orders=5, segments_per_order=5),
            kafka,
            topics.segments,
            POLICY,
            truth_path=tmp_path / "truth.jsonl",
            gateway_url=url,
            http_share=1.0,
        )


def test_null_and_empty_keys_arrive_as_sent(
    bootstrap_servers: str, topics: Topics, tmp_path: Path
) -> None:
    plan = FleetPlan(seed=9, orders=20, segments_per_order=20, faults=Faults(garbage=1.0))
    report = run_fleet(
        plan,
        {"bootstrap.servers": bootstrap_servers},
        topics.segments,
        POLICY,
        truth_path=tmp_path / "truth.jsonl",
    )
    keys = {message.key() for message in read_topic(bootstrap_servers, topics.segments)}
    assert {None, b""} <= keys
    others = {Reason.WRONG_PARTITION, Reason.TOO_FRAGMENTED, Reason.BAD_BATCH}
    others |= {Reason.ALREADY_OPENED, Reason.NOT_OPENED, Reason.BEFORE_OPENING}  # it opens none
    reasons = set(Reason) - others
    assert report.dead_letters.keys() == {reason.value for reason in reasons}
    assert sum(report.dead_letters.values()) == 400
