"""Sends a fleet's records, straight to Kafka and through the gateway, and keeps receipts.

Each record's receipt says where the broker put it and when, by the delivery report or by the
gateway's answer. A record that can't be delivered stops the run: without it there is no truth.
"""

import functools
import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from queue import Queue
from typing import Any, NamedTuple, Protocol

import urllib3
from confluent_kafka import KafkaError, Message, Producer

from durabill.producers.fleet.plan import Send
from durabill.producers.sdk.http_uplink import quote_order_number, segment_fields
from durabill.producers.sdk.kafka_uplink import producer_config
from durabill.producers.sdk.session import ProducerError
from durabill.producers.sdk.stored import stored_at
from durabill.producers.sdk.threads import start_thread
from durabill.schemas.text import shown

HTTP_WORKERS = 8
HTTP_BATCH = 10  # segments in one request: as a client with a spool would send after a pause
HTTP_PATIENCE_S = 60.0
DELIVERY_TIMEOUT_S = 60.0


class FleetError(ProducerError):
    """The fleet could not do what it planned, or the log is not what it sent."""


class Receipt(NamedTuple):
    """Where a record lies in the segments topic, and the broker's append time in ms."""

    partition: int
    offset: int
    append_ms: int


class Ticker(Protocol):
    """Is told how many records of a wave are on their way."""

    def __call__(self, done: int) -> None: ...


class FleetSender:
    """Sends planned records in order; `receipts` grows by one for each, in the same order.

    `rate` limits the records a second, None sends as fast as the broker takes them. Orders in
    `http_orders` go through the gateway at `gateway_url`, except for what only a rogue client
    does (garbage, a wrong partition). Close it when done; it is used by one thread.
    """

    def __init__(
        self,
        kafka: Mapping[str, str],
        topic: str,
        *,
        rate: float | None = None,
        compression: str = "lz4",
        gateway_url: str | None = None,
        http_orders: frozenset[str] = frozenset(),
    ) -> None:
        self.receipts: list[Receipt | None] = []
        self.sent_over_http = 0
        self._topic = topic
        self._rate = rate
        self._http_orders = http_orders
        self._failures: list[str] = []
        self._gateway = None if gateway_url is None else _Gateway(gateway_url, self)
        # As any producer of segments: the truth counts every record once where its receipt says, so
        # neither loss nor a repeat by a retry inside librdkafka may happen.
        config = producer_config(
            kafka,
            delivery_timeout_ms=int(DELIVERY_TIMEOUT_S * 1000),
            linger_ms=20,  # full batches: a fleet is judged by its rate, not its latency
        )
        self._producer = Producer({**config, "compression.type": compression})

    def publish(self, sends: Sequence[Send], tick: Ticker | None = None) -> None:
        """Send a wave and wait until all of it is acknowledged; raise FleetError otherwise."""
        began_s = time.monotonic()
        for count, send in enumerate(sends):
            if count % 256 == 0:
                self._pace(began_s, count)
                if tick is not None:
                    tick(count)
            index = len(self.receipts)
            self.receipts.append(None)
            if self._gateway is not None and self._goes_over_http(send):
                self.sent_over_http += 1
                self._gateway.put(index, send)
            else:
                self._produce(index, send)
        self._flush()
        if tick is not None:
            tick(len(sends))

    def all_receipts(self) -> list[Receipt]:
        """Return a receipt for every record published so far, in order of publishing."""
        receipts = [receipt for receipt in self.receipts if receipt is not None]
        assert len(receipts) == len(self.receipts), "publish waits for every one"
        return receipts

    def close(self) -> None:
        """Drop what is unsent and let go of threads and connections."""
        if self._gateway is not None:
            self._gateway.close()
        self._producer.purge()
        self._producer.flush(5)

    def fail(self, problem: str) -> None:
        """Note that something can't be delivered; the next step of `publish` raises it."""
        self._failures.append(problem)

    def _goes_over_http(self, send: Send) -> bool:
        rogue = send.segment is None or send.partition is not None
        return not rogue and send.order_number in self._http_orders

    def _pace(self, began_s: float, count: int) -> None:
        self._producer.poll(0)
        while self._rate is not None and time.monotonic() - began_s < count / self._rate:
            self._producer.poll(0.01)
        self._raise_failures()

    def _produce(self, index: int, send: Send) -> None:
        def delivered(error: KafkaError | None, message: Message) -> None:
            self._delivered(index, error, message)

        by_key = -1  # librdkafka's word for "ask the partitioner"
        while True:
            try:
                self._producer.produce(
                    self._topic,
                    key=send.key,
                    value=send.value,
                    timestamp=send.client_clock_ms,
                    on_delivery=delivered,
                    partition=by_key if send.partition is None else send.partition,
                )
                return
            except BufferError:  # the local queue is full: wait for delivery reports
                self._producer.poll(0.1)
                self._raise_failures()

    def _delivered(self, index: int, error: KafkaError | None, message: Message) -> None:
        if error is not None:
            self.fail(f"record {index} was not delivered: {error.str()}")
            return
        stored = stored_at(message)
        if stored is None:
            self.fail(f"record {index} was delivered, but nobody knows where it lies")
        elif stored.append_ms is None:
            self.fail(f"topic {self._topic} needs message.timestamp.type=LogAppendTime")
        else:
            self.receipts[index] = Receipt(stored.partition, stored.offset, stored.append_ms)

    def _flush(self) -> None:
        if self._gateway is not None:
            self._gateway.flush()
        give_up_s = time.monotonic() + DELIVERY_TIMEOUT_S + 5
        while len(self._producer) and not self._failures and time.monotonic() < give_up_s:
            self._producer.flush(0.5)
        self._raise_failures()
        if len(self._producer):
            raise FleetError(f"{len(self._producer)} records were not acknowledged in time")

    def _raise_failures(self) -> None:
        if self._failures:
            more = f" (and {len(self._failures) - 1} more)" if len(self._failures) > 1 else ""
            raise FleetError(self._failures[0] + more)


_Batch = list[tuple[int, Send]]


class _Gateway:
    """Posts segments in batches. An order's batches go one after another, orders in parallel.

    The orders are not opened: their time has passed, and an opened order's begins when it is.
    """

    def __init__(self, url: str, sender: FleetSender) -> None:
        self._url = url.rstrip("/")
        self._sender = sender
        self._open: dict[str, _Batch] = {}
        self._stop = threading.Event()
        self._queues: list[Queue[_Batch | None]] = [Queue(32) for _ in range(HTTP_WORKERS)]
        self._pool = urllib3.PoolManager(maxsize=HTTP_WORKERS, timeout=30.0, retries=False)
        self._threads = [
            start_thread(functools.partial(self._work, queue), f"fleet-http-{at}")
            for at, queue in enumerate(self._queues)
        ]

    def put(self, index: int, send: Send) -> None:
        batch = self._open.setdefault(send.order_number, [])
        batch.append((index, send))
        if len(batch) == HTTP_BATCH:
            self._queue_of(send.order_number).put(self._open.pop(send.order_number))

    def flush(self) -> None:
        for number, batch in self._open.items():
            self._queue_of(number).put(batch)
        self._open.clear()
        for queue in self._queues:
            queue.join()

    def close(self) -> None:
        self._stop.set()
        for queue in self._queues:
            queue.put(None)
        for thread in self._threads:
            thread.join(5)
        self._pool.clear()

    def _queue_of(self, number: str) -> "Queue[_Batch | None]":
        return self._queues[hash(number) % HTTP_WORKERS]

    def _work(self, queue: "Queue[_Batch | None]") -> None:
        while (batch := queue.get()) is not None:
            try:
                if not self._stop.is_set():
                    self._post(batch)
            except (FleetError, ValueError, KeyError, TypeError) as error:
                self._sender.fail(f"the gateway: {error!r}")
                self._stop.set()
            finally:
                queue.task_done()

    def _post(self, batch: _Batch) -> None:
        number = batch[0][1].order_number
        segments = [send.segment for _, send in batch if send.segment is not None]
        body = [segment_fields(each) for each in segments]
        answer = self._ask(f"/v1/orders/{quote_order_number(number)}/segments", body)
        receipts = answer["receipts"]
        wanted = [segment.business_data_number for segment in segments]
        if [receipt["business_data_number"] for receipt in receipts] != wanted:
            raise FleetError(f"the receipts of {shown(number)} are not those of what was sent")
        for (index, _), receipt in zip(batch, receipts, strict=True):
            self._sender.receipts[index] = Receipt(
                receipt["partition"], receipt["offset"], receipt["append_ms"]
            )

    def _ask(self, path: str, body: object) -> dict[str, Any]:
        """Post until the gateway answers; a repeat after a lost answer is one more duplicate."""
        give_up_s = time.monotonic() + HTTP_PATIENCE_S
        while True:
            status, answer = self._try(path, json.dumps(body).encode())
            if 200 <= status < 300:
                return answer
            worth_a_retry = status == 0 or status == 429 or status >= 500
            if not worth_a_retry or self._stop.is_set() or time.monotonic() > give_up_s:
                raise FleetError(f"POST {path}: status {status}, {answer}")
            time.sleep(0.2)

    def _try(self, path: str, content: bytes) -> tuple[int, dict[str, Any]]:
        headers = {"content-type": "application/json"}
        try:
            response = self._pool.request("POST", self._url + path, body=content, headers=headers)
        except urllib3.exceptions.HTTPError as error:
            return 0, {"error": str(error)}
        try:
            answer = json.loads(response.data)
        except ValueError:
            answer = None
        return response.status, answer if isinstance(answer, dict) else {"answer": answer}


Progress = Callable[[str, int, int], None]
"""Called as progress(phase, done, total) now and then, from the caller's thread."""
