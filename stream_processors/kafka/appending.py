"""Appends records to partitions in transactions, one call after the other, without an event loop.

For commands. A worker has `worker.partition_writer`, which never waits.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from confluent_kafka import KafkaException

from durabill.schemas.errors import FencedError, UnreachableError
from durabill.stream_processors.kafka.errors import Right, judged
from durabill.stream_processors.kafka.fencing import FENCED, close_producer, open_producer

GIVE_UP_S = 120.0
"""For how long brokers may be gone before a command gives up; what it has committed stays."""

_ASK_S = 1.0
_ATTEMPTS_MAX = 3


class NewRecord(NamedTuple):
    """A record that is to be appended; a value of None is a tombstone."""

    topic: str
    partition: int
    key: bytes
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...] = ()

    @property
    def size(self) -> int:
        """Return about how many bytes it takes."""
        return len(self.key) + len(self.value or b"")


class Appender:
    """The transactional producer of an id. Making one fences every other producer of the id."""

    def __init__(self, kafka: Mapping[str, Any], transactional_id: str) -> None:
        self._kafka = kafka
        self._id = transactional_id
        self._producer = open_producer(kafka, transactional_id)

    def append(self, records: Sequence[NewRecord]) -> None:
        """Append records in one transaction, in their order; return once it is committed.

        Raises FencedError if another producer of the id has come, UnreachableError where brokers
        are gone for too long, AccessError without the right to write.
        """
        for attempt in range(1, _ATTEMPTS_MAX + 1):
            try:
                self._write(records)
                return
            except KafkaException as error:
                cause = error.args[0]
                if cause.code() in FENCED:
                    raise FencedError(
                        f"another program has taken over the transactional id {self._id}: a worker"
                        " was started meanwhile, or this command was. What was committed stays;"
                        " stop it, and run this again"
                    ) from error
                if not cause.txn_requires_abort() or attempt == _ATTEMPTS_MAX:
                    topics = sorted({each.topic for each in records})
                    rights = (Right("Write", "topic", each) for each in topics)
                    raise judged(cause, self._kafka, *rights) from error
                # By the broker's word nothing of it can be seen, so it may be written again.
                self._end(self._producer.abort_transaction)

    def _write(self, records: Sequence[NewRecord]) -> None:
        self._producer.begin_transaction()
        for each in records:
            self._produce(each)
        self._end(self._producer.commit_transaction)

    def _produce(self, record: NewRecord) -> None:
        until_s = time.monotonic() + GIVE_UP_S
        while True:
            try:
                self._producer.produce(
                    record.topic,
                    record.value,
                    record.key,
                    record.partition,
                    headers=list(record.headers),
                )
            except BufferError:  # the queue is full
                self._producer.poll(_ASK_S)
                self._check_time(until_s)
            else:
                return

    def _end(self, end: Callable[[float], None]) -> None:
        """Commit or abort; ask again while that may help."""
        until_s = time.monotonic() + GIVE_UP_S
        while True:
            try:
                end(_ASK_S)
            except KafkaException as error:
                if not error.args[0].retriable():
                    raise
                self._check_time(until_s)
            else:
                return

    def _check_time(self, until_s: float) -> None:
        if time.monotonic() > until_s:
            raise UnreachableError(
                f"Kafka at {self._kafka.get('bootstrap.servers')} (DURABILL_BOOTSTRAP_SERVERS)"
                f" hasn't taken a transaction for {GIVE_UP_S:g} s. What was committed before stays;"
                " run this again"
            )

    def close(self) -> None:
        """Give the producer back; an open transaction is aborted.

        A producer that has been fenced says so here once more. It hides no error: what `append`
        returned from is committed.
        """
        close_producer(self._producer)
