"""Kafka and PostgreSQL as the ledger meets them.

Which of their errors pass by themselves, how PostgreSQL is connected to, and what is said while one
of the two is away.
"""

import contextlib
import logging
import re
import threading
import time
from collections.abc import Callable, Iterator

import psycopg
from confluent_kafka import KafkaError, KafkaException

from durabill.stream_processors.dsn import connect_to_write, read_dsn
from durabill.stream_processors.ledger.lookups import Connection

KAFKA_ANSWER_S = 10.0
"""How long one question to Kafka may take."""

TRANSIENT_SQL = (
    psycopg.OperationalError,  # gone, restarted, disk full (53100), deadlock, timeouts
    psycopg.InterfaceError,  # the connection is closed already
    psycopg.errors.ReadOnlySqlTransaction,  # still a standby, or no longer the primary
    psycopg.errors.IdleInTransactionSessionTimeout,
)
"""PostgreSQL's errors after which the ledger connects again and tries again."""

REOPENING_KAFKA = {
    KafkaError._AUTO_OFFSET_RESET,  # opening the partition again says what is wrong, if it is
    KafkaError._MAX_POLL_EXCEEDED,
}
"""Kafka's errors that pass by opening the partitions again; for others see `kafka.errors`."""

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


def connect_ledger(dsn: str) -> Connection:
    """Return a connection to that one of the DSN's servers that takes writes."""
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
    """Tell whether a server that is there turns us down; of several, one may take us later."""
    text = str(error)
    if text.startswith("Multiple connection attempts"):
        return False
    return any(words in text for words in _REFUSALS) or bool(_NOT_THERE.search(text))


class Server:
    """Says that a server is away, with its address and setting, and once that it is back.

    Of an outage the first line comes at once, the next ones after 1, 2, 4 ... 30 s at the earliest.
    Thread safe: a timer's thread tells of silence.
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
        """Return whether the last that was heard of it is a failure."""
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
        """Stand around a question to the server: one that it doesn't answer is told of soon."""
        timer = threading.Timer(SILENCE_S, self.failed, [f"no answer for {SILENCE_S:g} s"])
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
