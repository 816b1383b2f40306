"""What stands behind the gateway: the Kafka producer, the workers, the ledger.

Theory of the producer: confluent-kafka reports deliveries by callback, in whichever thread polls.
One thread of ours does nothing else. The reports of one request are counted there, and only the
last one crosses over into the event loop, so a request of 500 segments wakes the loop once.
"""

import asyncio
import dataclasses
import functools
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import aiohttp
import psycopg
from confluent_kafka import TIMESTAMP_LOG_APPEND_TIME, KafkaError, KafkaException, Message, Producer
from psycopg import sql
from psycopg.rows import DictRow, dict_row
from yarl import URL

from producers.transport import KafkaConfig, producer_config, quote_order_number
from schemas import OrderTotal

log = logging.getLogger(__name__)

_POLL_S = 0.1
_READY_TIMEOUT_S = 2.0
_READY_KEPT_S = 1.0


class BackendUnavailable(Exception):
    """Kafka, every worker, or the ledger did not answer; what was asked may be asked again."""


class Overloaded(Exception):
    """Too many segments wait for Kafka already; none of the request was sent."""


@dataclasses.dataclass(frozen=True, slots=True)
class Stored:
    """Where a record lies. `append_ms` is None unless the topic has LogAppendTime."""

    partition: int
    offset: int
    append_ms: int | None


class _Delivery:
    """The delivery reports of one request. `report` is called by any thread, once a record."""

    def __init__(self, count: int, publisher: "Publisher") -> None:
        assert count > 0
        self._loop = asyncio.get_running_loop()
        self.done: asyncio.Future[list[Stored]] = self._loop.create_future()
        self._publisher = publisher
        self._stored: list[Stored | None] = [None] * count
        self._waiting = count
        self._error: str | None = None
        self._mutex = threading.Lock()

    def report(self, index: int, error: object, message: Message | None) -> None:
        with self._mutex:
            if error is not None or message is None:
                self._error = str(error)
            else:
                kind, append_ms = message.timestamp()
                known_ms = append_ms if kind == TIMESTAMP_LOG_APPEND_TIME else None
                partition, offset = message.partition(), message.offset()
                assert partition is not None
                assert offset is not None
                self._stored[index] = Stored(partition, offset, known_ms)
            self._waiting -= 1
            is_last = self._waiting == 0
        if is_last:
            self._loop.call_soon_threadsafe(self._finish)

    def _finish(self) -> None:
        self._publisher.in_flight -= len(self._stored)
        if self.done.done():  # the request was cancelled: nobody waits any more
            return
        if self._error is not None:
            self.done.set_exception(BackendUnavailable(f"Kafka: {self._error}"))
        else:
            self.done.set_result([each for each in self._stored if each is not None])


class Publisher:
    """Publishes records to one topic, and knows when Kafka has acknowledged them.

    Made and used inside one event loop. `in_flight` records at most wait for Kafka at any time.
    `failed` is set when librdkafka declares the producer dead; restart the process then.
    """

    def __init__(
        self, kafka: KafkaConfig, topic: str, *, delivery_timeout_ms: int, in_flight_max: int
    ) -> None:
        self._topic = topic
        self._in_flight_max = in_flight_max
        self.in_flight = 0
        self.failed = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        config: dict[str, Any] = producer_config(kafka, delivery_timeout_ms=delivery_timeout_ms)
        # Whoever made the configuration may tell errors in passing its own way.
        self._tell: Callable[[KafkaError], None] = config.get("error_cb", _log_error)
        config["error_cb"] = self._on_error
        self._producer = Producer(config, logger=log)
        self._stopping = False
        self._thread = threading.Thread(target=self._poll, name="gateway-kafka", daemon=True)
        self._thread.start()
        self._ready_mutex = asyncio.Lock()
        self._ready_until_s = 0.0
        self._not_ready: str | None = None

    async def publish(self, key: bytes, values: Sequence[bytes]) -> list[Stored]:
        """Publish records of one key; return when all are acknowledged, in the same order.

        Raises Overloaded before anything is sent, BackendUnavailable when some record could not
        be delivered (others may have been: the sender tries again, repeats do no harm).
        """
        if self.in_flight + len(values) > self._in_flight_max:
            raise Overloaded(f"{self.in_flight} segments wait for Kafka")
        delivery = _Delivery(len(values), self)
        self.in_flight += len(values)
        for index, value in enumerate(values):
            report = functools.partial(delivery.report, index)
            try:
                self._producer.produce(self._topic, value, key=key, on_delivery=report)
            except (BufferError, KafkaException) as error:
                delivery.report(index, error, None)
        return await delivery.done

    async def not_ready(self) -> str | None:
        """Return why Kafka's metadata of the topic can't be had, None if all is well.

        An answer is kept for a second, and one question is asked at a time.
        """
        async with self._ready_mutex:
            if time.monotonic() >= self._ready_until_s:
                self._not_ready = await asyncio.to_thread(self._ask_metadata)
                self._ready_until_s = time.monotonic() + _READY_KEPT_S
            return self._not_ready

    async def close(self, timeout_s: float) -> None:
        """Wait up to `timeout_s` for what is under way, then stop."""
        left = await asyncio.to_thread(self._producer.flush, timeout_s)
        if left:
            log.error("%d segments were not acknowledged; their senders were not told so", left)
        self._stopping = True
        await asyncio.to_thread(self._thread.join)

    def _ask_metadata(self) -> str | None:
        try:
            metadata = self._producer.list_topics(self._topic, timeout=_READY_TIMEOUT_S)
        except KafkaException as error:
            return f"Kafka: {error}"
        problem = metadata.topics[self._topic].error
        return None if problem is None else f"topic {self._topic}: {problem}"

    def _poll(self) -> None:
        while not self._stopping:
            self._producer.poll(_POLL_S)

    def _on_error(self, error: KafkaError) -> None:
        self._tell(error)
        if error.fatal():
            self._loop.call_soon_threadsafe(self.failed.set)


def _log_error(error: KafkaError) -> None:
    log.warning("Kafka: %s", error)


class Workers:
    """The stream processor's workers, of which any one forwards to the owner of an order."""

    def __init__(self, urls: Sequence[str], timeout_s: float) -> None:
        self._urls = [url.rstrip("/") for url in urls]
        self._http = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=timeout_s))

    async def live(self, number: str) -> dict[str, Any] | None:
        """Return the owner's view of an order, None if it knows none.

        The first worker that answers 200 or 404 decides. Raises BackendUnavailable if none does.
        """
        problems = []
        for url in self._urls:
            target = URL(f"{url}/orders/{quote_order_number(number)}", encoded=True)
            try:
                async with self._http.get(target) as response:
                    if response.status == 404:
                        return None
                    if response.status == 200:
                        answer: dict[str, Any] = await response.json(content_type=None)
                        return answer
                    problems.append(f"{url}: status {response.status}")
            except (aiohttp.ClientError, TimeoutError, ValueError) as error:
                problems.append(f"{url}: {error or type(error).__name__}")
        raise BackendUnavailable("; ".join(problems) or "no worker is configured")

    async def close(self) -> None:
        """Close the connections."""
        await self._http.close()


_TOTAL_QUERY = sql.SQL("SELECT {} FROM latest_order_totals WHERE service_order_number = %s").format(
    sql.SQL(", ").join(sql.Identifier(each.name) for each in dataclasses.fields(OrderTotal))
)


class Ledger:
    """Reads totals over one connection, opened when needed and again after trouble."""

    def __init__(self, dsn: str, timeout_s: float) -> None:
        self._dsn = dsn
        self._timeout_s = timeout_s
        self._connection: psycopg.AsyncConnection[DictRow] | None = None
        self._mutex = asyncio.Lock()

    async def total(self, number: str) -> Mapping[str, Any] | None:
        """Return the latest total of an order, fields as in OrderTotal; None if there is none.

        Raises BackendUnavailable.
        """
        if "\0" in number:  # no order number, and PostgreSQL's text can't hold it
            return None
        try:
            async with asyncio.timeout(self._timeout_s), self._mutex:
                return await self._ask(number)
        except (psycopg.Error, TimeoutError) as error:
            raise BackendUnavailable(f"ledger: {error!r}") from error

    async def _ask(self, number: str) -> Mapping[str, Any] | None:
        try:
            if self._connection is None or self._connection.closed:
                self._connection = await psycopg.AsyncConnection.connect(
                    self._dsn, autocommit=True, row_factory=dict_row
                )
            cursor = await self._connection.execute(_TOTAL_QUERY, (number,))
            return await cursor.fetchone()
        except BaseException:  # also a cancelled query: the connection's state is unknown then
            await self.close()
            raise

    async def close(self) -> None:
        """Close the connection."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()
