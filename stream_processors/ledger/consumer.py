"""The ledger's loop: totals and openings from Kafka into PostgreSQL, each once.

Theory of operation. The ledger's offsets are in PostgreSQL alone (`ledger_offsets`). The
transaction that writes the rows moves them; Kafka's group only shares the partitions out. Whenever
anything is in doubt (partitions assigned or revoked, PostgreSQL gone in the middle of a commit,
another ledger on the same partition, a broker's error), there is one way on: drop what was read,
ask PostgreSQL again, and fetch from there. Until PostgreSQL answers nothing is assigned, so nothing
is fetched and memory stays bounded; polling keeps the group's membership alive.

Servers that are away are waited for, at the start too, however long it takes (see `servers`). The
ledger stops with LedgerError for what trying again can't repair: offsets that are out of the
topic's range, a recreated topic, missing tables, credentials that are refused at the start.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import psycopg
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition
from confluent_kafka.admin import AdminClient

from durabill.stream_processors.dsn import error_text, read_dsn, shown_dsn
from durabill.stream_processors.kafka.errors import passes
from durabill.stream_processors.kafka.openings import place_of
from durabill.stream_processors.kafka.options import ledger_consumer, quiet
from durabill.stream_processors.kafka.topic_ids import topic_ids
from durabill.stream_processors.ledger.openings import RecordedOpening, read_opened
from durabill.stream_processors.ledger.records import (
    Fenced,
    LedgerError,
    RawRecord,
    RecordedTotal,
    UnreadableRecord,
    check_range,
    read_record,
)
from durabill.stream_processors.ledger.servers import (
    HOPELESS_KAFKA,
    KAFKA_ANSWER_S,
    REOPENING_KAFKA,
    TRANSIENT_SQL,
    Server,
    connect_ledger,
    is_refusal,
)
from durabill.stream_processors.ledger.store import Batch, LedgerStore, Written

_log = logging.getLogger(__name__)

_POLL_S = 0.2
_TOPIC_SPREADS_S = 3.0  # a topic made a moment ago may not be known everywhere yet
_BACKOFF_FIRST_S = 0.1

Place = tuple[str, int]
"""A topic and a partition of it."""


@dataclass
class LedgerStats:
    """Counters since the start, for status and metrics; written by the ledger's thread only.

    `recorded`, `opened`, `set_aside` and `unreadable` count new rows, `repeated` exact repeats.
    `fenced` and `reconnects` count how often the ledger started over from PostgreSQL's offsets.
    `lag_records` is what is left to read in the own partitions, as far as Kafka has told.
    """

    recorded: int = 0
    opened: int = 0
    repeated: int = 0
    set_aside: int = 0
    unreadable: int = 0
    fenced: int = 0
    reconnects: int = 0
    lag_records: int = 0


def run_ledger(
    kafka: Mapping[str, str],
    topic: str,
    group_id: str,
    dsn: str,
    *,
    stop: threading.Event,
    orders_topic: str = "",
    prepare: Callable[[], object] | None = None,
    on_ready: Callable[[], None] | None = None,
    stats: LedgerStats | None = None,
    batch_records_max: int = 5_000,
    backoff_max_s: float = 10.0,
) -> LedgerStats:
    """Run until `stop` is set, then leave the group and return; `stats` may be watched.

    `kafka` is librdkafka's client configuration, `topic` that of the totals; without an
    `orders_topic` no openings are read. `prepare` is called before PostgreSQL is used, again while
    it raises psycopg's errors of a server that is away. `on_ready` is called once, when the first
    partitions are being read (or the group has none to give). Several ledgers may share a
    `group_id`. Raises LedgerError for what trying again can't repair, BadDsn for a DSN that can't
    be read. A server that is away is waited for as long as it takes.
    """
    read_dsn(dsn)
    topics = (topic, orders_topic) if orders_topic else (topic,)
    ledger = LedgerConsumer(kafka, topics, group_id, dsn, stop, stats or LedgerStats())
    ledger.prepare, ledger.on_ready = prepare, on_ready
    ledger.batch_records_max = batch_records_max
    ledger.backoff_max_s = backoff_max_s
    try:
        ledger.run()
    except psycopg.Error as error:
        raise LedgerError(f"PostgreSQL at {shown_dsn(dsn)} refuses: {error_text(error)}") from error
    except KafkaException as error:
        raise LedgerError(f"Kafka refuses: {error}") from error
    return ledger.stats


class LedgerConsumer:
    """One ledger: see the module's theory of operation, and `run_ledger`."""

    def __init__(
        self,
        kafka: Mapping[str, str],
        topics: Sequence[str],
        group_id: str,
        dsn: str,
        stop: threading.Event,
        stats: LedgerStats,
    ) -> None:
        self.topics, self.dsn, self.stop, self.stats = topics, dsn, stop, stats
        self.prepare: Callable[[], object] | None = None
        self.on_ready: Callable[[], None] | None = None
        self.batch_records_max = 5_000
        self.backoff_max_s = 10.0
        self._kafka = dict(kafka)
        address = kafka.get("bootstrap.servers", "")
        self._broker = Server("Kafka", address, "DURABILL_BOOTSTRAP_SERVERS")
        self._database = Server("PostgreSQL", shown_dsn(dsn), "DURABILL_LEDGER_DSN")
        self._hopeless: KafkaError | None = None
        # Its own lines say what the callback says, several times a second.
        config = {"log_level": 0, **ledger_consumer(kafka, group_id), "error_cb": self._on_error}
        self._consumer = Consumer(config)
        self._store: LedgerStore | None = None
        self._topic_ids: dict[str, str | None] = {}
        self._assigned: tuple[Place, ...] = ()
        self._doubt = False  # ask PostgreSQL where to go on before anything else
        self._next: dict[Place, int] = {}  # where the next batch of a partition starts
        self._backoff_s = _BACKOFF_FIRST_S
        self._started = False
        self._missing = ""
        """The topic of which Kafka said last that it isn't there."""
        self._born_s = time.monotonic()

    def run(self) -> None:
        """Run until `stop` is set; then leave the group, and PostgreSQL."""
        try:
            self._check_in()
            self._consumer.subscribe(
                list(self.topics),
                on_assign=self._on_assign,
                on_revoke=self._on_revoke,
                on_lost=self._on_revoke,
            )
            while not self.stop.is_set():
                self._patiently(self._turn)
        finally:
            self._consumer.close()
            self._disconnect()

    def _check_in(self) -> None:
        """Before joining the group, wait for the topic and for PostgreSQL."""
        while not self.stop.is_set():
            if self._patiently(self._find_topics) and self._patiently(self._set_up):
                return

    def _set_up(self) -> None:
        if self.prepare is not None:
            with self._database.asked():
                self.prepare()
        self._connect()

    def _patiently(self, step: Callable[[], object]) -> bool:
        """Run a step; return True if it went through, False after a pause if it may yet."""
        try:
            step()
        except Fenced as error:
            self.stats.fenced += 1
            _log.warning("fenced: %s; going on from the database's offset", error)
        except TRANSIENT_SQL as error:
            if not self._started and is_refusal(error):
                raise
            self.stats.reconnects += 1
            self._disconnect()
            self._database.failed(error_text(error))
        except KafkaException as error:
            self._judge(error.args[0])
            self._broker.failed(error)
        else:
            return True
        self._pause()
        return False

    def _pause(self) -> None:
        """Wait, fetching nothing, but in touch with the group."""
        self._next = {}
        self._doubt = True
        self._consumer.unassign()
        until_s = time.monotonic() + self._backoff_s
        self._backoff_s = min(2 * self._backoff_s, self.backoff_max_s)
        while not self.stop.is_set() and (left_s := until_s - time.monotonic()) > 0:
            message = self._consumer.poll(min(left_s, _POLL_S))
            if message is not None and (error := message.error()) is not None:
                self._broker.failed(error)
                self._judge(error)
            self._raise_hopeless()

    def _turn(self) -> None:
        """Take one batch of each topic from Kafka into PostgreSQL."""
        self._raise_hopeless()
        if self._broker.is_away:
            self._look_for_broker()
        if self._doubt:
            self._open()
        messages = self._consumer.consume(self.batch_records_max, _POLL_S)
        batches = self._gather(messages)
        if self._doubt:  # a rebalance came while consuming
            return
        for batch in batches:
            assert self._store is not None, "partitions are opened only with PostgreSQL at hand"
            written = self._store.write(batch)
            self._next.update(
                {(batch.topic, each): after for each, (_, after) in batch.moves.items()}
            )
            self._backoff_s = _BACKOFF_FIRST_S
            self._report(batch.topic, written)
        self._database.answered()

    def _look_for_broker(self) -> None:
        """While nothing comes, only a question tells whether Kafka is back."""
        try:
            self._consumer.list_topics(self.topics[0], timeout=1.0)
        except KafkaException as error:
            self._broker.failed(error)
        else:
            self._broker.answered()

    def _open(self) -> None:
        """Assign the group's partitions at the offsets that PostgreSQL holds."""
        self._find_topics()
        self._connect()
        opened: dict[Place, int] = {}
        told = []
        for topic in self.topics:
            offsets = self._open_topic(topic)
            opened |= {(topic, partition): offset for partition, offset in offsets.items()}
            told.append(f"{topic} from {offsets}")
        _log.info("reading %s", " and ".join(told))
        self._next = opened
        self._consumer.assign([TopicPartition(*place, at) for place, at in opened.items()])
        self._doubt = False
        self._started = True
        if self.on_ready is not None:
            self.on_ready()
            self.on_ready = None

    def _open_topic(self, topic: str) -> dict[int, int]:
        """Return the next offset of each partition of a topic that is ours."""
        assert self._store is not None, "connected"
        ours = [partition for name, partition in self._assigned if name == topic]
        ranges = {partition: self._range(topic, partition) for partition in ours}
        starts = {partition: low for partition, (low, _) in ranges.items()}
        offsets = self._store.open_partitions(topic, self._topic_ids[topic], starts)
        for partition, (low, high) in ranges.items():
            check_range(topic, partition, offsets[partition], low, high)
        return offsets

    def _gather(self, messages: Sequence[Message]) -> list[Batch]:
        """Return what was read, a batch a topic; raise the errors that Kafka put in between."""
        found = (
            self._gather_topic(topic, [each for each in messages if each.topic() == topic])
            for topic in self.topics
        )
        for error in filter(None, (each.error() for each in messages)):
            if error.code() != KafkaError._PARTITION_EOF:
                raise KafkaException(error)
        return [batch for batch in found if batch.moves]

    def _gather_topic(self, topic: str, messages: Sequence[Message]) -> Batch:
        moves: dict[int, tuple[int, int]] = {}
        totals: list[RecordedTotal] = []
        openings: list[RecordedOpening] = []
        unreadable: list[UnreadableRecord] = []
        for message in messages:
            partition, offset = message.partition(), message.offset()
            error = message.error()
            if partition is None or offset is None or (topic, partition) not in self._next:
                continue  # left over from before a rebalance
            start, after = moves.get(partition, (self._next[topic, partition],) * 2)
            if error is not None:  # the end: at `offset` the next record will be
                if offset > after:
                    moves[partition] = (start, offset)
                continue
            if offset < after:
                continue
            moves[partition] = (start, offset + 1)
            append_ms = message.timestamp()[1]
            record = RawRecord(partition, offset, append_ms, message.key(), message.value())
            is_total = topic == self.topics[0]
            read = read_record(record) if is_total else read_opened(record, place_of(message)[0])
            match read:
                case RecordedTotal():
                    totals.append(read)
                case RecordedOpening():
                    openings.append(read)
                case UnreadableRecord():
                    unreadable.append(read)
        return Batch(topic, moves, totals, unreadable, openings)

    def _report(self, topic: str, written: Written) -> None:
        self.stats.recorded += written.recorded
        self.stats.opened += written.opened
        self.stats.repeated += written.repeated
        self.stats.set_aside += len(written.set_aside)
        self.stats.unreadable += len(written.unreadable)
        for total in written.set_aside:
            _log.warning(
                "order %r revision %d: a second, different total at %s/%d offset %d is set aside",
                *total.key,
                topic,
                total.record.partition,
                total.record.offset,
            )
        for each in written.unreadable:
            place = (topic, each.record.partition, each.record.offset)
            what = "total" if topic == self.topics[0] else "opening"
            _log.warning("%s/%d offset %d is no %s: %s: %s", *place, what, each.reason, each.detail)
        self.stats.lag_records = sum(map(self._lag, self._next.items()))

    def _lag(self, position: tuple[Place, int]) -> int:
        place, offset = position
        known = self._consumer.get_watermark_offsets(TopicPartition(*place), cached=True)
        return max(0, known[1] - offset) if known else 0

    def _connect(self) -> None:
        if self._store is None:
            with self._database.asked():
                conn = connect_ledger(self.dsn)
            try:
                self._store = LedgerStore(conn)
            except BaseException:
                conn.close()
                raise

    def _disconnect(self) -> None:
        if self._store is not None:
            self._store.close()
            self._store = None

    def _find_topics(self) -> None:
        for topic in self.topics:
            with self._broker.asked():
                listed = self._consumer.list_topics(topic, timeout=KAFKA_ANSWER_S)
            self._broker.answered()
            found = listed.topics[topic]
            if found.error is not None:
                self._missing = topic
                raise KafkaException(found.error)
        admin = AdminClient(quiet(self._kafka))
        ids = topic_ids(admin, self.topics, KAFKA_ANSWER_S)
        self._topic_ids = {topic: ids[topic] or None for topic in self.topics}

    def _range(self, topic: str, partition: int) -> tuple[int, int]:
        place = TopicPartition(topic, partition)
        found = self._consumer.get_watermark_offsets(place, timeout=KAFKA_ANSWER_S)
        if found is None:
            raise KafkaException(KafkaError(KafkaError._TIMED_OUT))
        low, high = found
        return low, high

    def _judge(self, error: KafkaError) -> None:
        """Return if `error` passes, else raise LedgerError: an unknown one may cost a record."""
        if error.code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
            if time.monotonic() < self._born_s + _TOPIC_SPREADS_S:
                return
            raise LedgerError(
                f"topic {self._missing or self.topics[0]} does not exist: create it, then start"
                " again (`durabill topics create` makes what is missing)"
            )
        reopens = error.code() in REOPENING_KAFKA and not error.fatal()
        if not (reopens or passes(error)):
            raise LedgerError(f"Kafka: {error}")

    def _on_error(self, error: KafkaError) -> None:
        """Take note of librdkafka's own troubles; most pass, refused credentials don't."""
        if error.fatal() or error.code() in HOPELESS_KAFKA:
            self._hopeless = error
        else:
            self._broker.failed(error)

    def _raise_hopeless(self) -> None:
        if self._hopeless is not None:
            raise LedgerError(f"Kafka: {self._hopeless}")

    def _on_assign(self, consumer: Consumer, places: list[TopicPartition]) -> None:
        # Not at the group's offsets (there are none): nothing is fetched until `_open`.
        self._assigned = tuple(sorted((place.topic, place.partition) for place in places))
        self._next = {}
        self._doubt = True
        consumer.assign([])

    def _on_revoke(self, consumer: Consumer, places: list[TopicPartition]) -> None:
        self._assigned = ()
        self._next = {}
        self._doubt = True
        consumer.unassign()
