"""Kafka and PostgreSQL as the ledger meets them: how they are asked, which of their errors pass by
themselves, and what is said while one of them is away."""

import contextlib
import logging
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping

import psycopg
from confluent_kafka import KafkaError, KafkaException, TopicCollection
from confluent_kafka.admin import AdminClient

from durabill.stream_processors.dsn import connect_to_write, read_dsn
from durabill.stream_processors.ledger.lookups import Connection

_NO_TOPIC_ID = "A" * 22  # sixteen zero bytes: a broker that knows no ids
KAFKA_ANSWER_S = 10.0
"""How long one question to Kafka may take."""

TRANSIENT_SQL = (
    psycopg.OperationalError,  # gone, restarted, disk full (53100), deadlock, timeouts
    psycopg.InterfaceError,  # the connection is closed already
    psycopg.errors.ReadOnlySqlTransaction,  # still a standby, or no longer the primary
    psycopg.errors.IdleInTransactionSessionTimeout,
)
"""PostgreSQL's errors after which the ledger connects anew and tries again."""

TRANSIENT_KAFKA = {
    KafkaError._AUTO_OFFSET_RESET,  # opening the partition again says what is wrong, if it is
    KafkaError._TRANSPORT,
    KafkaError._ALL_BROKERS_DOWN,
    KafkaError._RESOLVE,
    KafkaError._TIMED_OUT,
    KafkaError._WAIT_COORD,
    KafkaError._MAX_POLL_EXCEEDED,
    KafkaError.LEADER_NOT_AVAILABLE,
    KafkaError.NOT_LEADER_FOR_PARTITION,
    KafkaError.COORDINATOR_NOT_AVAILABLE,
    KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
}
"""Kafka's errors that pass by themselves, or by opening the partitions again."""

HOPELESS_KAFKA = {KafkaError._AUTHENTICATION, KafkaError._FATAL}
"""Kafka's errors that don't pass, wherever they are met."""

# At the start, where it is most likely a wrong setting. libpq gives no SQLSTATE of a refusal.
_REFUSALS = (
    "authentication failed",
    "no password supplied",
    "no pg_hba.conf entry",
    "certificate verify failed",
)
_NOT_THERE = re.compile(r'FATAL: +(database|role) ".*" does not exist')

_log = logging.getLogger(__name__)

SILENCE_S = 2.0
"""A server that hasn't answered for so long is told of."""

_PAUSE_FIRST_S = 1.0
_PAUSE_MAX_S = 30.0
_FORGET_S = 60.0


def consumer_config(kafka: Mapping[str, str], group_id: str) -> dict[str, object]:
    """librdkafka's configuration of the ledger: what `kafka` says, and what exactness demands."""
    return {
        # A killed ledger's partitions are free after 10 s; too short only costs a rebalance.
        "session.timeout.ms": 10_000,
        "heartbeat.interval.ms": 2_000,
        "queued.max.messages.kbytes": 16_384,  # bounds what is fetched ahead
        **kafka,
        "group.id": group_id,
        "isolation.level": "read_committed",  # an aborted transaction's totals never were
        "enable.auto.commit": False,  # offsets live in PostgreSQL
        "enable.auto.offset.store": False,
        "auto.offset.reset": "error",  # never skip or repeat in silence
        "enable.partition.eof": True,  # moves the offset past trailing transaction markers
        "partition.assignment.strategy": "range",  # eager: given whole, taken whole
        "check.crcs": True,
        "allow.auto.create.topics": False,
    }


def connect_ledger(dsn: str) -> Connection:
    """A connection to that one of the DSN's servers that takes writes."""
    return connect_to_write(
        dsn,
        autocommit=True,
        connect_timeout=read_dsn(dsn).get("connect_timeout") or 5,
        # A server that has vanished without a word is noticed in about half a minute.
        keepalives_idle=10,
        keepalives_interval=5,
        keepalives_count=3,
        tcp_user_timeout=30_000,
        application_name="durabill-ledger",
    )


def is_refusal(error: Exception) -> bool:
    """Whether a server that is there turns us down; of several servers one may be another day."""
    text = str(error)
    if text.startswith("Multiple connection attempts"):
        return False
    return any(words in text for words in _REFUSALS) or bool(_NOT_THERE.search(text))


def topic_id_of(kafka: Mapping[str, str], topic: str) -> str | None:
    """Kafka's id of the topic, None where the broker does not tell."""
    admin = AdminClient(dict(kafka))  # held until the answer is there
    described = admin.describe_topics(TopicCollection([topic]), request_timeout=KAFKA_ANSWER_S)
    topic_id = str(described[topic].result().topic_id)
    return None if topic_id in ("None", _NO_TOPIC_ID) else topic_id


class Server:
    """Says once that a server is away, with its address and setting, then seldom, then that it is
    back.

    Of an outage the first line comes at once, the next ones after 1, 2, 4 ... 30 s at the earliest.
    Thread safe, for the word about a silence comes from a timer's thread.
    """

    def __init__(
        self, name: str, address: str, setting: str, clock_s: Callable[[], float] = time.monotonic
    ) -> None:
        self._what = f"{name} at {address} ({setting})"
        self._clock_s = clock_s
        self._mutex = threading.Lock()
        self._away_since_s: float | None = None
        self._next_word_s = 0.0
        self._pause_s = _PAUSE_FIRST_S
        self._failed_s = float("-inf")
        self._is_told = False

    @property
    def is_away(self) -> bool:
        """Whether the last that was heard of it is a failure."""
        return self._away_since_s is not None

    def failed(self, cause: object) -> None:
        """Tell that the server can't be reached, or can't do its work; the ledger tries again."""
        with self._mutex:
            now_s = self._clock_s()
            if now_s > self._failed_s + _FORGET_S:
                self._pause_s, self._next_word_s = _PAUSE_FIRST_S, now_s
            self._failed_s = now_s
            if self._away_since_s is None:
                self._away_since_s = now_s
            if now_s < self._next_word_s:
                return
            self._is_told = True
            self._next_word_s = now_s + self._pause_s
            self._pause_s = min(2 * self._pause_s, _PAUSE_MAX_S)
            away_s = now_s - self._away_since_s
            since = f", for {away_s:.0f} s now" if away_s >= 1 else ""
            if isinstance(cause, KafkaException):
                cause = cause.args[0].str()
            text = " ".join(str(cause).split())
        _log.warning("%s: %s; trying again%s", self._what, text, since)

    def answered(self) -> None:
        """Tell that it is back, if it was away."""
        with self._mutex:
            if self._away_since_s is None:
                return
            away_s = self._clock_s() - self._away_since_s
            self._away_since_s = None
            if not self._is_told:
                return
            self._is_told = False
        _log.warning("%s is back after %.1f s", self._what, away_s)

    @contextlib.contextmanager
    def asked(self) -> Iterator[None]:
        """Around a question to the server: one that it doesn't answer is told of soon."""
        timer = threading.Timer(SILENCE_S, self.failed, [f"no answer for {SILENCE_S:g} s"])
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
