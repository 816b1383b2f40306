"""The audit finds what it is for: each kind of wrong result, put into real topics by hand."""

import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace

import pytest
from confluent_kafka import Producer

from durabill.producers.fleet.plan import Faults, FleetPlan, Send, in_publishing_order
from durabill.schemas import decode_total, encode_total
from durabill.stream_processors.settings import Settings
from tests.chaos.audit import Auditor
from tests.chaos.traffic import Sent
from tests.conftest import Topics
from tests.waiting import HANG_S

Total = tuple[bytes, bytes, int]
"""Key, value and partition of a total."""


class Bench:
    """A small fleet in a segments topic, and totals to be tampered with."""

    def __init__(self, bootstrap_servers: str, topics: Topics) -> None:
        self.kafka = {"bootstrap.servers": bootstrap_servers}
        self.topics = topics
        self.settings = Settings(
            bootstrap_servers=bootstrap_servers,
            segments_topic=topics.segments,
            totals_topic=topics.totals,
            orders_topic=topics.orders,
            dead_letters_topic=topics.dead_letters,
            settle_grace_s=0.1,
            idle_timeout_s=0.1,
        )
        fleet = FleetPlan(
            seed=3, orders=12, segments_per_order=6, faults=replace(Faults.none(), garbage=0.1)
        )
        self.sent = Sent()
        orders = fleet.order_plans(random.Random, int(time.time() * 1000), topics.partitions)
        for order in orders:
            self.sent.plan(order)
        assert len(self.sent.intended) == len(orders)
        self.sends = in_publishing_order(orders)
        self.sent.records = len(self.sends)
        self.producer = Producer({**self.kafka, "partitioner": "murmur2_random"})

    def publish(self, sends: Sequence[Send]) -> None:
        """Put segments into the log."""
        for send in sends:
            self.producer.produce(self.topics.segments, send.value, send.key)
        assert self.producer.flush(HANG_S) == 0

    def auditor(self) -> Auditor:
        """An auditor that has read the log."""
        made = Auditor(self.settings, self.kafka, self.sent, self.topics.partitions)
        made.read_log(lambda partition: None)
        return made

    def totals(self) -> list[Total]:
        """The totals that must be, in a right order."""
        found = []
        for (number, _), value in sorted(self.auditor().expected.items()):
            found.append((number.encode(), value, decode_total(value).source_partition))
        return found

    def audit_totals(self, totals: Sequence[Total]) -> list[str]:
        """Put totals into their topic; return what the audit says of them."""
        for key, value, partition in totals:
            self.producer.produce(self.topics.totals, value, key, partition=partition)
        assert self.producer.flush(HANG_S) == 0
        auditor = self.auditor()
        auditor.check_totals()
        return [each.partition(":")[0] for each in auditor.audit.violations]


@pytest.fixture
def bench(bootstrap_servers: str, topics: Topics) -> Iterator[Bench]:
    made = Bench(bootstrap_servers, topics)
    with closing(made.producer):
        yield made


def once_more(totals: list[Total]) -> list[Total]:
    return [*totals, totals[3]]


def one_missing(totals: list[Total]) -> list[Total]:
    return totals[1:]


def one_longer(totals: list[Total]) -> list[Total]:
    key, value, partition = totals[0]
    total = decode_total(value)
    wrong = replace(total, settled_at_ms=total.settled_at_ms + 1)
    return [(key, encode_total(wrong), partition), *totals[1:]]


def one_elsewhere(totals: list[Total]) -> list[Total]:
    key, value, partition = totals[0]
    return [(key, value, (partition + 1) % 4), *totals[1:]]


@pytest.mark.parametrize(
    ("tamper", "violation"),
    [
        (once_more, "totals that a read_committed consumer sees more than once"),
        (one_missing, "totals that are missing"),
        (one_longer, "totals that are wrong or must not be"),
        (one_elsewhere, "totals that are wrong or must not be"),
    ],
)
def test_wrong_totals_are_found(
    bench: Bench, tamper: Callable[[list[Total]], list[Total]], violation: str
) -> None:
    bench.publish(bench.sends)
    assert bench.audit_totals(tamper(bench.totals())) == [violation]


def test_right_totals_are_right(bench: Bench) -> None:
    bench.publish(bench.sends)
    assert bench.audit_totals(bench.totals()) == []


def test_a_lost_segment_is_found(bench: Bench) -> None:
    good = next(at for at, send in enumerate(bench.sends) if send.expected is None)
    bench.publish([*bench.sends[:good], *bench.sends[good + 1 :]])
    said = "\n".join(bench.auditor().audit.violations)
    assert "acknowledged records that are not in the log" in said
    assert "orders that did not come to what the fleet intended" in said


def test_missing_dead_letters_are_found(bench: Bench) -> None:
    bench.publish(bench.sends)
    auditor = bench.auditor()
    auditor.check_dead_letters()
    assert len(auditor.audit.violations) == 1
    assert auditor.audit.violations[0].startswith("dead letters that are missing")
