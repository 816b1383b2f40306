"""Publishes checkpoints where others keep them: a compacted topic, and the ledger.

Whoever holds a checkpoint can hold the sealer to it, so a copy in other hands is what makes the log
worth something. The folder alone says what is sealed: a copy that can't be delivered is owed, and
tried again.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from typing import Any

import psycopg
from confluent_kafka import KafkaException, Message, Producer

from durabill.schemas.errors import UnreachableError
from durabill.stream_processors.audit.seal.checkpoints import Checkpoint, read_checkpoint
from durabill.stream_processors.audit.seal.errors import Unreadable
from durabill.stream_processors.dsn import connect, connect_to_write, error_text, shown_dsn
from durabill.stream_processors.kafka.options import checkpoint_producer
from durabill.stream_processors.kafka.reading import read_topic

HAND_OVERS_KEY = b"hand-overs"
"""The key under which the topic holds how the sealer's keys follow one another."""

_DELIVERY_S = 10.0
_INSERT = """
    INSERT INTO sealed_checkpoints
        (origin, size, root, totals_topic, totals_partition, first_offset, next_offset, note,
         note_sha256)
    VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s)
    ON CONFLICT DO NOTHING
"""
_log = logging.getLogger(__name__)


class Publisher:
    """Delivers notes to the topic and, with a DSN, to the ledger; keeps what it owes."""

    def __init__(self, kafka: Mapping[str, Any], topic: str, dsn: str) -> None:
        self._producer = Producer(checkpoint_producer(kafka))
        self._topic, self._dsn = topic, dsn
        self._to_topic: dict[bytes, bytes] = {}
        self._to_ledger: dict[str, Checkpoint] = {}
        self._told: set[str] = set()

    def owe(self, checkpoint: Checkpoint, note: str) -> None:
        """Take a checkpoint that is to be delivered."""
        self._to_topic[str(checkpoint.origin).encode()] = note.encode()
        if self._dsn:
            self._to_ledger[note] = checkpoint

    def owe_hand_overs(self, text: str) -> None:
        """Take the hand-overs of the keys, for the topic."""
        if text:
            self._to_topic[HAND_OVERS_KEY] = text.encode()

    def deliver(self) -> list[str]:
        """Deliver what is owed; return why something still is, in words.

        The ledger gets only what the topic has: so a topic that is behind the ledger was altered.
        """
        troubles = [trouble] if (trouble := self._deliver_topic()) else []
        if not troubles and (trouble := self._deliver_ledger()):
            troubles.append(trouble)
        for each in troubles:
            if each not in self._told:
                _log.warning("%s; it is tried again", each)
        if self._told and not troubles:
            _log.info("all checkpoints are published again")
        self._told = set(troubles)
        return troubles

    def _deliver_topic(self) -> str:
        failed: list[str] = []

        def on_delivery(error: Any, message: Message) -> None:
            if error is not None:
                failed.append(error.str())
            else:
                key, value = message.key(), message.value()
                assert isinstance(key, bytes), "as it was given"
                if self._to_topic.get(key) == value:
                    del self._to_topic[key]

        try:
            for key, value in list(self._to_topic.items()):
                self._producer.produce(self._topic, value, key, 0, on_delivery=on_delivery)
            self._producer.flush(_DELIVERY_S + 5)
        except KafkaException as error:
            failed.append(error.args[0].str())
        except BufferError as error:
            failed.append(str(error))
        if not failed and not self._to_topic:
            return ""
        why = failed[0] if failed else "Kafka is silent"
        return f"checkpoints can't be published to {self._topic}: {why}"

    def _deliver_ledger(self) -> str:
        if not self._to_ledger:
            return ""
        try:
            with connect_to_write(self._dsn) as conn:
                for note, checkpoint in self._to_ledger.items():
                    conn.execute(_INSERT, _row(note, checkpoint))
        except psycopg.Error as error:
            return f"checkpoints can't be recorded at {shown_dsn(self._dsn)}: {error_text(error)}"
        self._to_ledger.clear()
        return ""


def published_checkpoints(kafka: Mapping[str, Any], topic: str) -> dict[str, str]:
    """Return key -> last note of what the topic of checkpoints holds.

    The key is the log's origin, or that of the hand-overs. Raises what `read_topic` raises.
    """
    return {key: notes[-1] for key, notes in all_published(kafka, topic).items()}


def all_published(kafka: Mapping[str, Any], topic: str) -> dict[str, list[str]]:
    """Return key -> all notes that the topic still holds, the oldest first."""
    notes: dict[str, list[str]] = {}
    for _, _, message in read_topic(kafka, topic):
        key, value = message.key(), message.value()
        if isinstance(key, bytes) and isinstance(value, bytes):
            text = value.decode("utf-8", "replace")
            notes.setdefault(key.decode("utf-8", "replace"), []).append(text)
    return notes


def recorded_checkpoints(dsn: str, totals_topic: str) -> Iterator[tuple[str, str]]:
    """Yield (note, trouble) of what the ledger holds of a topic's logs, the oldest first.

    `trouble` says where a row's columns are not what its note says, and is empty else. Raises
    UnreachableError where PostgreSQL is away.
    """
    columns = "origin, size, root, totals_topic, totals_partition, first_offset, next_offset"
    try:
        with connect(dsn) as conn:
            if conn.execute("SELECT to_regclass('sealed_checkpoints')").fetchone() == (None,):
                return
            rows = conn.execute(
                f"SELECT {columns}, note, note_sha256 FROM sealed_checkpoints"
                " WHERE totals_topic = %s ORDER BY origin, size, recorded_at",
                (totals_topic,),
            )
            for row in rows:
                yield str(row[7]), _row_trouble(row)
    except psycopg.OperationalError as error:
        raise UnreachableError(
            f"PostgreSQL at {shown_dsn(dsn)} (DURABILL_LEDGER_DSN): {error_text(error)}"
        ) from error


def _row_trouble(row: Sequence[Any]) -> str:
    try:
        expected = _row(row[7], read_checkpoint(row[7]))
    except Unreadable:
        return ""  # the note itself is told of
    if tuple(row) == expected:
        return ""
    return ", ".join(str(each) for each in row[:7])


def _row(note: str, checkpoint: Checkpoint) -> tuple[object, ...]:
    origin = checkpoint.origin
    return (
        str(origin),
        checkpoint.size,
        checkpoint.root,
        origin.topic,
        origin.partition,
        origin.first_offset,
        checkpoint.next_offset,
        note,
        sha256(note.encode()).digest(),
    )
