"""The gateway's Kafka producer.

Theory: confluent-kafka reports deliveries by callback, to whoever polls. Here the event loop does,
once a millisecond while anything waits: a thread that polled would fight with the loop for Python's
lock once a record. A request waits for the last report of each of its uploads, see `delivery`. Each
request's last report also tells the broker's time.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Producer

from durabill.producers.gateway.broker_clock import BrokerClock
from durabill.producers.gateway.damping import Damper, DampingFilter
from durabill.producers.gateway.delivery import Delivery
from durabill.producers.gateway.problems import ApiError, try_later
from durabill.producers.sdk.kafka_uplink import KafkaConfig, producer_config
from durabill.producers.sdk.stored import Stored
from durabill.schemas import ClockMark, encode_clock_mark

log = logging.getLogger(__name__)
librdkafka_log = logging.getLogger(f"{__name__}.librdkafka")

_POLL_S = 0.001
_IDLE_POLL_S = 0.1  # for the log, and for errors that concern no record
_LINGER_MS = 10
"""How long a record waits for company. librdkafka spins in the last millisecond of each such wait,
so that shorter waits cost more: of 5 ms a fifth of a core goes that way."""
_READY_TIMEOUT_S = 2.0
_READY_KEPT_S = 1.0


class BackendUnavailable(Exception):
    """Kafka, every worker, or the ledger did not answer; what was asked may be asked again.

    The text is for clients: it names no address, no user and no setting. The log has these.
    """


class Overloaded(Exception):
    """Too many segments wait for Kafka already; none of the request was sent."""


def answer_to(error: BackendUnavailable | Overloaded) -> ApiError:
    """Return what a client is told where Kafka has not taken its records."""
    reason = "OVERLOADED" if isinstance(error, Overloaded) else "KAFKA_UNAVAILABLE"
    return try_later(reason, str(error))


def error_name(error: object) -> str:
    """Return the name of Kafka's error: its text may hold addresses."""
    cause = error.args[0] if isinstance(error, KafkaException) and error.args else error
    return cause.name() if isinstance(cause, KafkaError) else type(error).__name__


class _Request:
    """The deliveries of one request. Its future is done when all of them are."""

    def __init__(self, count: int, records: int, producer: "SegmentProducer") -> None:
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.records = records
        self.acked_ms = 0
        self._waiting = count
        self._producer = producer

    def note_delivered(self) -> None:
        """Note that it is known of one delivery what became of it."""
        self._waiting -= 1
        if not self._waiting:
            self.acked_ms = self._producer.clock.tick_ms()
            self._producer.note_finished(self)
            if not self.done.done():  # else it was cancelled: nobody waits any more
                self.done.set_result(None)


class SegmentProducer:
    """Produces records to one topic, and knows when Kafka has acknowledged them.

    Made and used inside one event loop. `in_flight` records at most wait for Kafka at any time.
    `failed` is set, and `failure` says why, when the producer can't be used any more: librdkafka
    has declared it dead, or the thread that polls it has died. Restart the process then.
    """

    def __init__(
        self,
        kafka: KafkaConfig,
        topic: str,
        *,
        delivery_timeout_ms: int,
        in_flight_max: int,
        clock: BrokerClock,
    ) -> None:
        self._topic = topic
        self._in_flight_max = in_flight_max
        self.in_flight = 0
        self.clock = clock
        self.failed = asyncio.Event()
        self.failure = ""
        self._loop = asyncio.get_running_loop()
        self._damper = Damper(log)
        self._pending: set[_Request] = set()
        config: dict[str, Any] = producer_config(
            kafka, delivery_timeout_ms=delivery_timeout_ms, linger_ms=_LINGER_MS
        )
        # Fewer bytes for the network and the broker's disk, and not more CPU here.
        config.setdefault("compression.type", "lz4")
        # Whoever made the configuration may tell errors in passing its own way.
        self._tell: Callable[[KafkaError], None] = config.get("error_cb", self._tell_damped)
        config["error_cb"] = self._on_error
        if not librdkafka_log.filters:
            librdkafka_log.addFilter(DampingFilter())
        self._producer = Producer(config, logger=librdkafka_log)
        self._poll_timer = self._loop.call_later(_IDLE_POLL_S, self._tick)
        self._learning = asyncio.Lock()
        self._teaches_time = True
        self._ready_mutex = asyncio.Lock()
        self._ready_until_s = 0.0
        self._not_ready: str | None = None

    async def publish(self, key: bytes, values: Sequence[bytes]) -> list[Stored]:
        """Publish records of one key; return when all are acknowledged, in the same order.

        Raises Overloaded before anything is sent, BackendUnavailable when some record could not
        be delivered (others may have been: the sender tries again, repeats do no harm).
        """
        delivery = Delivery(key, values, wants_each=True)
        await self.deliver([delivery])
        if not delivery.is_stored:
            raise self.told(delivery.error)
        assert delivery.each is not None
        return delivery.each

    async def learn_time(self) -> None:
        """Have the clock learn the broker's time, where it hasn't of late, by a clock mark.

        Raises as `publish`.
        """
        async with self._learning:
            if self._teaches_time and self.clock.error_ms() is None:
                await self.publish(b"", [_TIME_ASKED])
                # A topic with the time of clients tells nothing, however often it is asked.
                self._teaches_time = self.clock.error_ms() is not None

    async def deliver(self, deliveries: Sequence[Delivery]) -> None:
        """Publish all records of a request; return when it is known what became of each delivery.

        Raises Overloaded before anything is sent, BackendUnavailable when the producer fails.
        """
        if self.failed.is_set():
            raise BackendUnavailable(_FAILED)
        count = sum([len(each.values) for each in deliveries])
        if self.in_flight + count > self._in_flight_max:
            raise Overloaded(f"{self.in_flight} segments wait for Kafka")
        if not count:
            return
        if not self._pending:
            self._poll_timer.cancel()
            self._poll_timer = self._loop.call_later(_POLL_S, self._tick)
        sent_ms = self.clock.tick_ms()
        request = _Request(len(deliveries), count, self)
        self._pending.add(request)
        self.in_flight += count
        for each in deliveries:
            each.produce(self._producer, self._topic, request.note_delivered)
        await request.done
        last = deliveries[-1].last
        if last is not None and last.append_ms is not None:
            self.clock.learn(sent_ms, request.acked_ms, last.append_ms)

    def note_finished(self, request: _Request) -> None:
        """Note that all reports of a request have come."""
        self.in_flight -= request.records
        self._pending.discard(request)

    def told(self, error: object) -> BackendUnavailable:
        """Return what to tell a client whose segments failed; the log gets the cause, once."""
        name = error_name(error)
        self._damper.warning(f"lost {name}", "Kafka has not acknowledged segments: %s", error)
        return BackendUnavailable(f"Kafka has not acknowledged all segments ({name})")

    async def not_ready(self) -> str | None:
        """Return why Kafka's metadata of the topic can't be had, None if all is well.

        An answer is kept for a second, and one question is asked at a time.
        """
        if self.failed.is_set():
            return _FAILED
        async with self._ready_mutex:
            if time.monotonic() >= self._ready_until_s:
                self._not_ready = await asyncio.to_thread(self._ask_metadata)
                self._ready_until_s = time.monotonic() + _READY_KEPT_S
            return self._not_ready

    async def close(self, timeout_s: float) -> None:
        """Wait up to `timeout_s` for what is under way, then stop."""
        until_s = time.monotonic() + timeout_s
        # Nothing more comes of a producer that has failed.
        while len(self._producer) and time.monotonic() < until_s and not self.failed.is_set():
            await asyncio.sleep(_POLL_S)
        if left := len(self._producer):
            log.error("%d segments were not acknowledged; their senders were not told so", left)
        self._poll_timer.cancel()

    def _ask_metadata(self) -> str | None:
        try:
            metadata = self._producer.list_topics(self._topic, timeout=_READY_TIMEOUT_S)
        except KafkaException as error:
            self._damper.warning("metadata", "Kafka does not answer: %s", error)
            return f"Kafka does not answer ({error_name(error)})"
        problem = metadata.topics[self._topic].error
        if problem is None:
            return None
        told = f"topic {self._topic}: {error_name(problem)}"
        self._damper.warning("topic", "nothing can be stored: %s", told)
        return told

    def _tick(self) -> None:
        try:
            self._poll()
        except Exception as error:
            log.critical("polling Kafka failed", exc_info=error)
            self._fail(f"polling Kafka failed: {error!r}")
            return
        pause_s = _POLL_S if self._pending else _IDLE_POLL_S
        self._poll_timer = self._loop.call_later(pause_s, self._tick)

    def _poll(self) -> None:
        self._producer.poll(0)

    def _on_error(self, error: KafkaError) -> None:
        if error.fatal():
            log.critical("Kafka's producer met a fatal error: %s", error)
            self._fail(f"Kafka's producer met a fatal error: {error.str()}")
        else:
            self._tell(error)

    def _tell_damped(self, error: KafkaError) -> None:
        self._damper.warning(error.name(), "Kafka: %s", error.str())

    def _fail(self, why: str) -> None:
        self._loop.call_soon_threadsafe(self._failed, why)

    def _failed(self, why: str) -> None:
        self.failure = self.failure or why
        self.failed.set()
        for request in self._pending:
            if not request.done.done():
                request.done.set_exception(BackendUnavailable(_FAILED))


_TIME_ASKED = encode_clock_mark(ClockMark("gateway", 0))
_FAILED = "the gateway's Kafka producer has failed for good; the process starts again"
