"""The gateway's Kafka producer.

Theory: confluent-kafka reports deliveries by callback, in whichever thread polls. One thread of
ours does nothing else. It counts the reports of each request, and only the last one crosses over
into the event loop, so a request of 500 segments wakes the loop once. Each request's last report
also tells the broker's time.
"""

import asyncio
import functools
import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from durabill.producers.gateway.broker_clock import BrokerClock
from durabill.producers.gateway.damping import Damper, DampingFilter
from durabill.producers.sdk.kafka_uplink import KafkaConfig, producer_config
from durabill.producers.sdk.stored import Stored, append_ms_of, stored_at
from durabill.producers.sdk.threads import start_thread

log = logging.getLogger(__name__)
librdkafka_log = logging.getLogger(f"{__name__}.librdkafka")

_POLL_S = 0.1
_READY_TIMEOUT_S = 2.0
_READY_KEPT_S = 1.0


class BackendUnavailable(Exception):
    """Kafka, every worker, or the ledger did not answer; what was asked may be asked again.

    The text is for clients: it names no address, no user and no setting. The log has these.
    """


class Overloaded(Exception):
    """Too many segments wait for Kafka already; none of the request was sent."""


def error_name(error: object) -> str:
    """Return the name of Kafka's error: its text may hold addresses."""
    cause = error.args[0] if isinstance(error, KafkaException) and error.args else error
    return cause.name() if isinstance(cause, KafkaError) else type(error).__name__


class _Delivery:
    """The delivery reports of one request. `report` is called by any thread, once a record."""

    def __init__(self, count: int, producer: "SegmentProducer") -> None:
        assert count > 0
        self._loop = asyncio.get_running_loop()
        self.done: asyncio.Future[list[Stored]] = self._loop.create_future()
        self._producer = producer
        self._stored: list[Stored | None] = [None] * count
        self._waiting = count
        self._error: object = None
        self._mutex = threading.Lock()
        self._sent_ms = producer.clock.tick_ms()

    def report(self, index: int, error: object, message: Message | None) -> None:
        with self._mutex:
            append_ms = None
            if error is not None or message is None:
                self._error = error
            else:
                append_ms = append_ms_of(message)
                self._stored[index] = stored_at(message)
                if self._stored[index] is None:
                    self._error = "stored, but without a receipt"
            self._waiting -= 1
            is_last = self._waiting == 0
        if is_last:
            acked_ms = self._producer.clock.tick_ms()
            self._loop.call_soon_threadsafe(self._finish, acked_ms, append_ms)

    def _finish(self, acked_ms: int, append_ms: int | None) -> None:
        self._producer.is_finished(self, len(self._stored))
        if append_ms is not None:
            self._producer.clock.learn(self._sent_ms, acked_ms, append_ms)
        if self.done.done():  # the request was cancelled: nobody waits any more
            return
        if self._error is not None:
            self.fail(self._producer.told(self._error))
        else:
            self.done.set_result([each for each in self._stored if each is not None])

    def fail(self, error: BackendUnavailable) -> None:
        if not self.done.done():
            self.done.set_exception(error)


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
        self._pending: set[_Delivery] = set()
        config: dict[str, Any] = producer_config(kafka, delivery_timeout_ms=delivery_timeout_ms)
        # Whoever made the configuration may tell errors in passing its own way.
        self._tell: Callable[[KafkaError], None] = config.get("error_cb", self._tell_damped)
        config["error_cb"] = self._on_error
        if not librdkafka_log.filters:
            librdkafka_log.addFilter(DampingFilter())
        self._producer = Producer(config, logger=librdkafka_log)
        self._stopping = False
        self._thread = start_thread(self._poll, "gateway-kafka", self._on_death)
        self._ready_mutex = asyncio.Lock()
        self._ready_until_s = 0.0
        self._not_ready: str | None = None

    async def publish(self, key: bytes, values: Sequence[bytes]) -> list[Stored]:
        """Publish records of one key; return when all are acknowledged, in the same order.

        Raises Overloaded before anything is sent, BackendUnavailable when some record could not
        be delivered (others may have been: the sender tries again, repeats do no harm).
        """
        if self.failed.is_set():
            raise BackendUnavailable(_FAILED)
        if self.in_flight + len(values) > self._in_flight_max:
            raise Overloaded(f"{self.in_flight} segments wait for Kafka")
        delivery = _Delivery(len(values), self)
        self._pending.add(delivery)
        self.in_flight += len(values)
        for index, value in enumerate(values):
            report = functools.partial(delivery.report, index)
            try:
                self._producer.produce(self._topic, value, key=key, on_delivery=report)
            except (BufferError, KafkaException) as error:
                delivery.report(index, error, None)
        return await delivery.done

    def is_finished(self, delivery: _Delivery, count: int) -> None:
        """Note that all reports of a request have come."""
        self.in_flight -= count
        self._pending.discard(delivery)

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
        if self.failed.is_set():
            timeout_s = 0.0  # nothing more will come of it
        left = await asyncio.to_thread(self._producer.flush, timeout_s)
        if left:
            log.error("%d segments were not acknowledged; their senders were not told so", left)
        self._stopping = True
        await asyncio.to_thread(self._thread.join)

    def _ask_metadata(self) -> str | None:
        try:
            metadata = self._producer.list_topics(self._topic, timeout=_READY_TIMEOUT_S)
        except KafkaException as error:
            self._damper.warning("metadata", "Kafka does not answer: %s", error)
            return f"Kafka does not answer ({error_name(error)})"
        problem = metadata.topics[self._topic].error
        return None if problem is None else f"topic {self._topic}: {error_name(problem)}"

    def _poll(self) -> None:
        while not self._stopping:
            self._producer.poll(_POLL_S)

    def _on_death(self, error: BaseException) -> None:
        log.critical("the thread that polls Kafka died", exc_info=error)
        self._fail(f"the thread that polls Kafka died of {error!r}")

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
        for delivery in self._pending:
            delivery.fail(BackendUnavailable(_FAILED))


_FAILED = "the gateway's Kafka producer has failed for good; the process starts again"
