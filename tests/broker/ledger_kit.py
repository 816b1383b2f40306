"""What the ledger's tests share: totals that fit the contract, a ledger in a thread, waiting."""

import threading
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

import psycopg
from confluent_kafka import Producer
from psycopg.conninfo import make_conninfo

from durabill.deploy.migrate import migrate
from durabill.schemas import Interval, NumberRange, OrderTotal, Status, encode_total, partition_for
from durabill.stream_processors.ledger.consumer import LedgerStats, run_ledger
from tests.waiting import HANG_S


def a_total(order: str = "SO1", revision: int = 1, duration_ms: int = 1_000) -> OrderTotal:
    """An INCOMPLETE total with something in each field."""
    start_ms = 1_770_000_000_123
    return OrderTotal(
        service_order_number=order,
        revision=revision,
        status=Status.INCOMPLETE,
        duration_ms=duration_ms,
        upper_bound_ms=duration_ms + 500,
        started_ms=start_ms,
        ended_ms=start_ms + duration_ms + 500,
        intervals=(Interval(start_ms, start_ms + duration_ms),),
        end_number=5,
        missing_numbers=(NumberRange(2, 3), NumberRange(5, 5)),
        segments=3,
        duplicates=1,
        overlap_ms=7,
        gap_ms=500,
        numbers_after_end=1,
        digest=f"{duration_ms:064x}",
        previous_digest="" if revision == 1 else "b" * 64,
        source_partition=2,
        source_offset=77,
        settled_at_ms=start_ms + 30_000,
    )


def complete(total: OrderTotal) -> OrderTotal:
    """The same order, next revision, with everything found."""
    return replace(
        total,
        revision=total.revision + 1,
        status=Status.COMPLETE,
        upper_bound_ms=total.duration_ms,
        missing_numbers=(),
        digest="c" * 64,
        previous_digest=total.digest,
    )


def new_ledger_dsn(postgres_dsn: str) -> str:
    """A DSN of a schema of its own in the given database, with the ledger's tables."""
    schema = f"ledger_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(postgres_dsn, autocommit=True) as conn:
        conn.execute(f"CREATE SCHEMA {schema}")
    dsn = make_conninfo(postgres_dsn, options=f"-csearch_path={schema}")
    migrate(dsn)
    return dsn


def forget_offsets(dsn: str, topic: str, partition: int | None = None) -> int:
    """Does what the ledger tells an operator to do where offsets are gone: it reads them anew.

    Returns how many partitions it reads from their first record again.
    """
    with psycopg.connect(dsn) as connection:
        return connection.execute(
            "DELETE FROM ledger_offsets WHERE topic = %s AND partition = coalesce(%s, partition)",
            (topic, partition),
        ).rowcount


def publish(
    kafka: Mapping[str, str], topic: str, totals: Iterable[OrderTotal], partitions: int = 4
) -> None:
    """Puts totals where the processor would put them, and waits for Kafka's word."""
    servers = kafka["bootstrap.servers"]
    producer = Producer({"bootstrap.servers": servers, "acks": "all", "linger.ms": 5})
    for total in totals:
        key = total.service_order_number.encode()
        producer.produce(topic, encode_total(total), key, partition_for(key, partitions))
    assert producer.flush(HANG_S) == 0


class RunningLedger:
    """A ledger in a thread; `error` is what it ended with, if it did."""

    def __init__(
        self,
        kafka: Mapping[str, str],
        topic: str,
        dsn: str,
        group: str,
        n: int,
        prepare: Callable[[], object] | None = None,
        orders_topic: str = "",
    ) -> None:
        self._prepare = prepare
        self._orders_topic = orders_topic
        self.stop, self.ready = threading.Event(), threading.Event()
        self.stats = LedgerStats()
        self.error: BaseException | None = None
        self._where = dict(kafka), topic, group, dsn
        self._batch_records_max = n
        self.thread = threading.Thread(target=self._work, name="ledger")

    def _work(self) -> None:
        try:
            run_ledger(
                *self._where,
                stop=self.stop,
                orders_topic=self._orders_topic,
                prepare=self._prepare,
                on_ready=self.ready.set,
                stats=self.stats,
                batch_records_max=self._batch_records_max,
                backoff_max_s=0.5,
            )
        except Exception as error:  # handed to the test by `running_ledger`
            self.error = error


@contextmanager
def running_ledger(
    kafka: Mapping[str, str],
    topic: str,
    dsn: str,
    *,
    group: str | None = None,
    batch_records_max: int = 1_000,
    ledger: RunningLedger | None = None,
) -> Iterator[RunningLedger]:
    """Runs a ledger around a block, stops it cleanly, and raises what it ended with."""
    group = group or uuid.uuid4().hex
    ledger = ledger or RunningLedger(kafka, topic, dsn, group, batch_records_max)
    ledger.thread.start()
    try:
        yield ledger
    finally:
        ledger.stop.set()
        ledger.thread.join(HANG_S)
        assert not ledger.thread.is_alive()
        if ledger.error is not None:  # also where it is why the block has failed
            raise ledger.error


def recorded(dsn: str) -> list[tuple[str, int, int, str]]:
    """(order, revision, duration_ms, digest) of every row, in order."""
    with psycopg.connect(dsn) as conn:
        return conn.execute(
            "SELECT service_order_number, revision, duration_ms, digest FROM order_totals "
            "ORDER BY service_order_number, revision"
        ).fetchall()


def expected_rows(totals: Iterable[OrderTotal]) -> list[tuple[str, int, int, str]]:
    """What `recorded` returns once these totals are in, whatever was repeated."""
    return sorted(
        {
            (each.service_order_number, each.revision, each.duration_ms, each.digest)
            for each in totals
        }
    )
