"""Publishes dead letters, forwarded records and clock marks by confluent-kafka.

Dead letters and forwards are published at least once and carry their source, by which a repeat is
recognised; totals go through a `partition_writer`. A clock mark needs no care: one that is lost or
doubled does no harm. Every other record is counted in the flush generation in which it was queued.
A checkpoint closes the generation and waits until its last record has been delivered, before it
writes anything that rests on it. A record that can't be delivered is fatal: the process ends, and a
recovery publishes it again.
"""

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import Any

from confluent_kafka import TIMESTAMP_LOG_APPEND_TIME, KafkaError, Message, Producer

from durabill.schemas import headers
from durabill.schemas.errors import ContractError
from durabill.stream_processors.engine.table import DeadLetter, Effects, Forward
from durabill.stream_processors.kafka.deliveries import Deliveries
from durabill.stream_processors.kafka.options import side_producer

POLL_S = 0.05
FULL_PAUSE_S = 0.005
_NOT_ALLOWED = (
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
    KafkaError.CLUSTER_AUTHORIZATION_FAILED,
)
_RIGHT = "A worker writes clock marks to the segments topic: it needs the right Write on it"


class KafkaSideOutput:
    """One producer for the side output of all tables of a worker. Lives on one event loop.

    The methods promise what `ports.SideOutput` says.
    """

    def __init__(
        self,
        kafka: dict[str, str],
        *,
        segments_topic: str,
        dead_letters_topic: str,
        on_fatal: Callable[[BaseException], None],
    ) -> None:
        self._producer = Producer(side_producer(kafka))
        self._segments_topic = segments_topic
        self._dead_letters_topic = dead_letters_topic
        self._on_fatal = on_fatal
        self._deliveries = Deliveries(self._fail)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopped = threading.Event()
        self._poller = threading.Thread(target=self._poll, name="side-output", daemon=True)

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start to serve delivery reports."""
        self._loop = loop
        self._poller.start()

    async def publish(self, partition: int, effects: Effects) -> None:
        """Queue the dead letters and forwards of a partition's table, in their order."""
        for letter in effects.dead_letters:
            await self._dead_letter(letter, partition)
        for forward in effects.forwards:
            await self._forward(forward)

    async def _dead_letter(self, letter: DeadLetter, partition: int) -> None:
        record = letter.record
        all_headers = [
            *record.headers,
            (headers.REASON, letter.reason.value.encode()),
            (headers.DETAIL, letter.detail.encode()),
            (headers.SOURCE_TOPIC, self._segments_topic.encode()),
            (headers.SOURCE_PARTITION, str(partition).encode()),
            (headers.SOURCE_OFFSET, str(record.offset).encode()),
        ]
        await self._produce(self._dead_letters_topic, record.key, record.value, headers=all_headers)

    async def _forward(self, forward: Forward) -> None:
        record = forward.record
        await self._produce(
            self._segments_topic,
            record.key,
            record.value,
            headers=list(forward.headers),
            partition=forward.partition,
        )

    async def _produce(
        self, topic: str, key: bytes | None, value: bytes | None, **more: Any
    ) -> None:
        on_delivery = self._deliveries.expect()
        while True:
            try:
                self._producer.produce(topic, value, key, on_delivery=on_delivery, **more)
            except BufferError:
                # Full: the brokers are slower than the table. The stream waits here.
                await asyncio.sleep(FULL_PAUSE_S)
            else:
                return

    def publish_mark(
        self, partition: int, value: bytes, on_told: Callable[[int | None], None]
    ) -> None:
        """Append a clock mark; `on_told` gets its append time (ms), None if it was not written."""
        assert self._loop is not None
        loop = self._loop

        def on_delivery(error: KafkaError | None, message: Message) -> None:
            if error is not None and error.code() in _NOT_ALLOWED:
                self._fail(ContractError(f"{self._segments_topic}: {error.str()}. {_RIGHT}"))
            kind, append_ms = message.timestamp()
            is_told = error is None and kind == TIMESTAMP_LOG_APPEND_TIME
            # A report that comes while the process ends finds the loop closed.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(on_told, append_ms if is_told else None)

        try:
            self._producer.produce(
                self._segments_topic, value, partition=partition, on_delivery=on_delivery
            )
        except BufferError:
            on_told(None)

    def close_generation(self) -> int:
        """Close the current flush generation and return it: all queued so far is in it or older."""
        return self._deliveries.close_generation()

    async def delivered(self, generation: int) -> None:
        """Return once every record of `generation` and of older ones has been acknowledged."""
        self._producer.poll(0)
        await self._deliveries.acknowledged(generation)

    def _fail(self, error: BaseException) -> None:
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._on_fatal, error)

    def _poll(self) -> None:
        try:
            while not self._stopped.is_set():
                self._producer.poll(POLL_S)
        except BaseException as error:
            # Without this thread no report would ever come, and the worker would hang.
            self._fail(error)

    def stop(self, timeout_s: float = 10.0) -> None:
        """Flush what is queued, within the time, and end the thread."""
        self._stopped.set()
        if self._poller.is_alive():
            self._poller.join()
        self._producer.flush(timeout_s)
