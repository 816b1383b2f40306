"""Rebuilds a ledger from the totals topic, into a database of its own; the audit proves it.

A ledger never changes a row: its triggers refuse that, and a rebuild that went around them could
hide what somebody had done to it. So the old database stays as it is, for whoever has to look into
it, and the new one is filled by the ledger's own code, in its own transactions, offsets and all. A
ledger that is started on it goes on from there. A rebuild that was killed is gone on with as well.
"""

from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from typing import Any

from confluent_kafka import Message
from confluent_kafka.admin import AdminClient

from durabill.stream_processors.audit.errors import AuditError
from durabill.stream_processors.audit.pool import Progress, audit_errors
from durabill.stream_processors.dsn import connect, connect_to_write, shown_dsn
from durabill.stream_processors.kafka.errors import Right, patiently
from durabill.stream_processors.kafka.options import LOOK_GROUP, quiet
from durabill.stream_processors.kafka.reading import partition_count, read_bounds, read_topic
from durabill.stream_processors.kafka.topic_ids import topic_ids
from durabill.stream_processors.ledger.lookups import Connection
from durabill.stream_processors.ledger.records import (
    Fenced,
    RawRecord,
    RecordedTotal,
    UnreadableRecord,
    read_record,
)
from durabill.stream_processors.ledger.store import Batch, LedgerStore, Written
from durabill.stream_processors.settings import Settings

BATCH_RECORDS = 1_000


@dataclass(frozen=True, slots=True)
class RebuiltLedger:
    """What was written to the database `source` by this run."""

    source: str
    recorded: int
    unreadable: int


def check_target(settings: Settings, conn: Connection) -> None:
    """Raise AuditError where a database has rows of another topic: it is no new one."""
    row = conn.execute(
        "SELECT totals_topic FROM order_totals WHERE totals_topic <> %s LIMIT 1",
        (settings.totals_topic,),
    ).fetchone()
    if row is not None:
        raise AuditError(
            f"the database holds totals of the topic {row[0]}: name an empty one, and nothing of"
            " it will be mixed up"
        )


def dry_run_ledger(settings: Settings, dsn: str, progress: Progress) -> RebuiltLedger:
    """Return what a rebuild would write to a new database; write nothing. Raises as a rebuild."""
    with audit_errors():
        kafka, topic = quiet(settings.librdkafka()), settings.totals_topic
        with connect(dsn) as conn:
            if conn.execute("SELECT to_regclass('order_totals')").fetchone() != (None,):
                check_target(settings, conn)
        bounds = read_bounds(kafka, LOOK_GROUP, topic, range(partition_count(kafka, topic)))
        totals = unreadable = done = 0
        for partition, (first, end) in sorted(bounds.items()):
            for batch in _batches(kafka, topic, partition, first, end):
                totals += len(batch.totals)
                unreadable += len(batch.unreadable)
                start, following = batch.moves[partition]
                done += following - start
                progress("reading totals", done, sum(b - a for a, b in bounds.values()))
        return RebuiltLedger(shown_dsn(dsn), totals, unreadable)


def rebuild_ledger(settings: Settings, dsn: str, progress: Progress) -> RebuiltLedger:
    """Fill a database, whose tables must be there, with all that the totals topic holds now.

    Raises AuditError where it is not a new one, or Kafka or PostgreSQL can't be asked.
    """
    with audit_errors():
        kafka, topic = quiet(settings.librdkafka()), settings.totals_topic
        bounds = read_bounds(kafka, LOOK_GROUP, topic, range(partition_count(kafka, topic)))
        recorded = unreadable = done = 0
        total = sum(end - first for first, end in bounds.values())
        conn = connect_to_write(dsn)
        with closing(LedgerStore(conn)) as store:
            check_target(settings, conn)
            starts = {each: first for each, (first, _) in bounds.items()}
            offsets = store.open_partitions(topic, _topic_id(kafka, topic), starts)
            for partition, (first, end) in sorted(bounds.items()):
                done += max(0, min(offsets[partition], end) - first)
                for batch in _batches(kafka, topic, partition, offsets[partition], end):
                    written = _write(store, batch)
                    recorded += written.recorded
                    unreadable += len(written.unreadable)
                    start, following = batch.moves[partition]
                    done += following - start
                    progress("recording totals", done, total)
        return RebuiltLedger(shown_dsn(dsn), recorded, unreadable)


def _write(store: LedgerStore, batch: Batch) -> Written:
    try:
        return store.write(batch)
    except Fenced as error:
        raise AuditError(
            f"another ledger fills this database at the same time ({error}). Stop it, or let it go"
            " on: it does the same"
        ) from error


def _topic_id(kafka: Mapping[str, Any], topic: str) -> str | None:
    admin = AdminClient(dict(kafka))
    right = Right("Describe", "topic", topic)
    ids = patiently(lambda s: topic_ids(admin, [topic], s), "the topic's id", kafka, right)
    return ids[topic] or None


def _batches(
    kafka: Mapping[str, Any], topic: str, partition: int, start: int, end: int
) -> Iterator[Batch]:
    """Yield what a partition holds from `start` on, as the ledger writes it; the last ends there.

    What lies between records are markers: the ledger's offset passes over them.
    """
    if start >= end:
        return
    messages = (
        _record(message, partition, offset)
        for _, offset, message in read_topic(kafka, topic, partitions={partition})
        if start <= offset < end
    )
    while records := list(islice(messages, BATCH_RECORDS)):
        following = records[-1].offset + 1
        yield _batch(topic, partition, (start, following), records)
        start = following
    if start < end:
        yield _batch(topic, partition, (start, end), [])


def _batch(topic: str, partition: int, move: tuple[int, int], records: list[RawRecord]) -> Batch:
    read = [read_record(each) for each in records]
    return Batch(
        topic,
        {partition: move},
        [each for each in read if isinstance(each, RecordedTotal)],
        [each for each in read if isinstance(each, UnreadableRecord)],
    )


def _record(message: Message, partition: int, offset: int) -> RawRecord:
    key, value = message.key(), message.value()
    assert not isinstance(key, str), "no decoder is set"
    assert not isinstance(value, str), "no decoder is set"
    return RawRecord(partition, offset, message.timestamp()[1], key, value)
