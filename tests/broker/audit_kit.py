"""What the audit's tests share: audits of a deployment, and copies of its topics to falsify."""

import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from confluent_kafka import Message, Producer
from confluent_kafka.admin import AdminClient, NewTopic

from durabill.schemas import OrderTotal, decode_total, encode_total
from durabill.stream_processors.audit.findings import AuditResult
from durabill.stream_processors.audit.run import AuditOptions, audit
from durabill.stream_processors.core.intervals import IntervalSet
from durabill.stream_processors.core.order import evidence_digest
from durabill.stream_processors.settings import Settings, load_settings
from tests.broker.worker_kit import Deployment, read_committed
from tests.waiting import HANG_S

Headers = list[tuple[str, str | bytes | None]]
Record = tuple[int, bytes | None, bytes | None, Headers]
"""Partition, key, value, headers."""

Falsify = Callable[[list[Record]], list[Record]]


def settings_of(deployed: Deployment, **more: Any) -> Settings:
    """The settings of a deployment's workers."""
    return load_settings(
        {},
        bootstrap_servers=deployed.bootstrap_servers,
        application_id=deployed.name,
        segments_topic=deployed.segments,
        totals_topic=more.pop("totals_topic", deployed.totals),
        orders_topic=more.pop("orders_topic", deployed.orders),
        dead_letters_topic=more.pop("dead_letters_topic", deployed.dead_letters),
        settle_grace_s=deployed.settle_grace_s,
        idle_timeout_s=deployed.idle_timeout_s,
        correction_window_s=deployed.correction_window_s,
        **more,
    )


def audited(settings: Settings, **options: Any) -> AuditResult:
    """What an audit with these options comes to."""
    return audit(settings, AuditOptions(**options), lambda phase, done, total: None)


def told(result: AuditResult) -> list[tuple[str, str, int | None, str]]:
    """Each finding in short: kind, order, revision, field."""
    return [
        (each.kind.value, each.service_order_number, each.revision, each.field)
        for each in result.findings
    ]


@dataclass(frozen=True)
class Copier:
    """Copies a deployment's topics record by record, with what a falsifier changes."""

    deployed: Deployment

    def records(self, topic: str) -> list[Record]:
        """All records of a topic."""
        return [_record(each) for each in read_committed(self.deployed.bootstrap_servers, topic)]

    @contextmanager
    def copy(self, topic: str, falsify: Falsify) -> Iterator[str]:
        """A copy of a topic as the falsifier left it; deleted in the end."""
        name = f"{topic}-{uuid.uuid4().hex[:6]}"
        admin = AdminClient(self.deployed.kafka)
        admin.create_topics([NewTopic(name, self.deployed.partitions, 1)])[name].result(HANG_S)
        try:
            write(self.deployed.kafka, name, falsify(self.records(topic)))
            yield name
        finally:
            admin.delete_topics([name])[name].result(HANG_S)


def write(kafka: dict[str, Any], topic: str, records: Iterable[Record], **more: Any) -> None:
    """Writes records where they say; in a transaction that `abort` aborts where it is given."""
    abort = more.pop("abort", None)
    options = {**kafka, "linger.ms": 5}
    if abort is not None:
        options["transactional.id"] = uuid.uuid4().hex
    producer = Producer(options)
    if abort is not None:
        producer.init_transactions(HANG_S)
        producer.begin_transaction()
    for partition, key, value, headers in records:
        producer.produce(topic, value, key, partition, headers=[*headers])
    assert producer.flush(HANG_S) == 0
    if abort is not None:
        (producer.abort_transaction if abort else producer.commit_transaction)(HANG_S)


def _record(message: Message) -> Record:
    partition: Any = message.partition()
    key, value, headers = message.key(), message.value(), message.headers()
    return partition, _bytes(key), _bytes(value), list(headers or [])  # type: ignore[arg-type]


def _bytes(content: Any) -> bytes | None:
    return content.encode() if isinstance(content, str) else content


def changed(record: Record, **fields: Any) -> Record:
    """The record with other fields in its total."""
    partition, key, value, headers = record
    return partition, key, encode_total(replace(decode_total(value), **fields)), headers


def shortened(total: OrderTotal) -> dict[str, Any]:
    """Fields of the same order billed for a millisecond less, the digest recomputed to fit."""
    first, *rest = total.intervals
    intervals = (first._replace(end_ms=first.end_ms - 1), *rest)
    seen = IntervalSet([(1, 1 + total.segments)])
    duration_ms = total.duration_ms - 1
    return {
        "intervals": intervals,
        "duration_ms": duration_ms,
        "upper_bound_ms": duration_ms if not total.missing_numbers else total.upper_bound_ms,
        "gap_ms": total.gap_ms + 1,
        "digest": evidence_digest(
            total.service_order_number, IntervalSet(list(intervals)), seen, total.end_number
        ),
    }
