"""Rebuilds a ledger from totals and orders topic, into a database of its own; the audit proves it.

A ledger never changes a row: its triggers refuse that, and a rebuild that went around them could
hide what somebody had done to it. So the old database stays as it is, for whoever has to look into
it, and the new one is filled by the ledger's own code, in its own transactions, offsets and all. A
ledger that is started on it goes on from there. A rebuild that was killed is gone on with as well.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from typing import Any

from confluent_kafka import Message

from durabill.schemas.errors import AccessError
from durabill.stream_processors.audit.errors import AuditError
from durabill.stream_processors.audit.pool import Progress, audit_errors
from durabill.stream_processors.dsn import connect, connect_to_write, shown_dsn
from durabill.stream_processors.kafka.openings import place_of
from durabill.stream_processors.kafka.options import LOOK_GROUP, quiet
from durabill.stream_processors.kafka.reading import partition_count, read_bounds, read_topic
from durabill.stream_processors.kafka.topic_ids import find_topic_ids
from durabill.stream_processors.ledger.lookups import Connection
from durabill.stream_processors.ledger.openings import RecordedOpening, read_opened
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
    opened: int = 0
    """Rows of the table of orders."""


def check_target(settings: Settings, conn: Connection) -> None:
    """Raise AuditError where a database has rows of another topic: it is no new one."""
    row = conn.execute(
        "SELECT totals_topic FROM order_totals WHERE totals_topic <> %s LIMIT 1",
        (settings.totals_topic,),
    ).fetchone()
    if row is None and conn.execute("SELECT to_regclass('orders')").fetchone() != (None,):
        row = conn.execute(
            "SELECT orders_topic FROM orders WHERE orders_topic <> %s LIMIT 1",
            (settings.orders_topic,),
        ).fetchone()
    if row is not None:
        raise AuditError(
            f"the database holds rows of the topic {row[0]}: name an empty one, and nothing of"
            " it will be mixed up"
        )


def dry_run_ledger(settings: Settings, dsn: str, progress: Progress) -> RebuiltLedger:
    """Return what a rebuild would write to a new database; write nothing. Raises as a rebuild."""
    with audit_errors():
        with connect(dsn) as conn:
            if conn.execute("SELECT to_regclass('order_totals')").fetchone() != (None,):
                check_target(settings, conn)
        totals = unreadable = opened = 0
        for source in _sources(settings):
            for partition, (first, end) in sorted(source.bounds.items()):
                for batch in source.batches(partition, first, end):
                    totals += len(batch.totals)
                    unreadable += len(batch.unreadable)
                    opened += len(batch.openings)
                    source.tell(progress, "reading", *batch.moves[partition])
        return RebuiltLedger(shown_dsn(dsn), totals, unreadable, opened)


def rebuild_ledger(settings: Settings, dsn: str, progress: Progress) -> RebuiltLedger:
    """Fill a database, whose tables must be there, with all that the topics hold now.

    Raises AuditError where it is not a new one, or Kafka or PostgreSQL can't be asked.
    """
    with audit_errors():
        recorded = unreadable = opened = 0
        conn = connect_to_write(dsn)
        with closing(LedgerStore(conn)) as store:
            check_target(settings, conn)
            for source in _sources(settings):
                starts = {each: first for each, (first, _) in source.bounds.items()}
                offsets = store.open_partitions(source.topic, source.topic_id(), starts)
                for partition, (first, end) in sorted(source.bounds.items()):
                    source.done += max(0, min(offsets[partition], end) - first)
                    for batch in source.batches(partition, offsets[partition], end):
                        written = _write(store, batch)
                        recorded += written.recorded
                        unreadable += len(written.unreadable)
                        opened += written.opened
                        source.tell(progress, "recording", *batch.moves[partition])
        return RebuiltLedger(shown_dsn(dsn), recorded, unreadable, opened)


@dataclass(slots=True)
class _Source:
    """A topic that the ledger reads."""

    kafka: Mapping[str, Any]
    topic: str
    what: str
    read: Callable[[RawRecord, Message], RecordedTotal | RecordedOpening | UnreadableRecord]
    bounds: dict[int, tuple[int, int]]
    done: int = 0

    def tell(self, progress: Progress, doing: str, start: int, following: int) -> None:
        """Tell how far it is read."""
        self.done += following - start
        total = sum(end - first for first, end in self.bounds.values())
        progress(f"{doing} {self.what}", self.done, total)

    def topic_id(self) -> str | None:
        """Return Kafka's id of the topic, None where it has none."""
        return find_topic_ids(self.kafka, self.topic)[self.topic] or None

    def batches(self, partition: int, start: int, end: int) -> Iterator[Batch]:
        """Yield what a partition holds from `start` on, as the ledger writes it.

        The last ends at `end`: what lies between records are markers, which the ledger's offset
        passes over.
        """
        if start >= end:
            return
        records = (
            self.read(_record(message, partition, offset), message)
            for _, offset, message in read_topic(self.kafka, self.topic, partitions={partition})
            if start <= offset < end
        )
        while some := list(islice(records, BATCH_RECORDS)):
            following = some[-1].record.offset + 1
            yield self._batch(partition, (start, following), some)
            start = following
        if start < end:
            yield self._batch(partition, (start, end), [])

    def _batch(
        self,
        partition: int,
        move: tuple[int, int],
        records: list[RecordedTotal | RecordedOpening | UnreadableRecord],
    ) -> Batch:
        return Batch(
            self.topic,
            {partition: move},
            [each for each in records if isinstance(each, RecordedTotal)],
            [each for each in records if isinstance(each, UnreadableRecord)],
            [each for each in records if isinstance(each, RecordedOpening)],
        )


def _sources(settings: Settings) -> list[_Source]:
    """Return the totals, and the orders where there is such a topic."""
    kafka = quiet(settings.librdkafka())

    def bounds(topic: str) -> dict[int, tuple[int, int]]:
        return read_bounds(kafka, LOOK_GROUP, topic, range(partition_count(kafka, topic)))

    totals, orders = settings.totals_topic, settings.orders_topic
    sources = [_Source(kafka, totals, "totals", lambda each, _: read_record(each), bounds(totals))]
    try:
        found = bounds(orders)
    except AccessError:
        return sources  # a deployment from before there were openings
    return [*sources, _Source(kafka, orders, "openings", _read_opened, found)]


def _read_opened(record: RawRecord, message: Message) -> RecordedOpening | UnreadableRecord:
    return read_opened(record, place_of(message)[0])


def _write(store: LedgerStore, batch: Batch) -> Written:
    try:
        return store.write(batch)
    except Fenced as error:
        raise AuditError(
            f"another ledger fills this database at the same time ({error}). Stop it, or let it go"
            " on: it does the same"
        ) from error


def _record(message: Message, partition: int, offset: int) -> RawRecord:
    key, value = message.key(), message.value()
    assert not isinstance(key, str), "no decoder is set"
    assert not isinstance(value, str), "no decoder is set"
    return RawRecord(partition, offset, message.timestamp()[1], key, value)
