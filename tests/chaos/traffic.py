"""A fleet that never stops publishing, whatever happens to the cluster.

It sends one planned fleet (`fleet.plan`) after the other, each with every fault that clients
and networks have. What must come after orders have settled is sent beside the next fleet, so there
is no pause. Most goes straight to Kafka, some orders go over the gateway. It is as patient as a
client with a spool: what can't be delivered now is sent when the broker is back.
"""

import http.client
import json
import queue
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import count
from urllib.parse import urlsplit

from confluent_kafka import KafkaError, Message, Producer

from durabill.producers.fleet.plan import (
    Faults,
    FleetPlan,
    Intended,
    OrderPlan,
    Send,
    in_publishing_order,
)
from durabill.producers.sdk.http_uplink import quote_order_number, segment_fields
from durabill.schemas import PARTITIONER, Reason
from tests.chaos.cluster import PARTITIONS

PATIENCE_S = 600.0
"""Longer than any outage of a schedule."""

HTTP_SHARE = 0.04
HTTP_THREADS = 4
HTTP_BATCH = 10
QUEUED_MAX = 500_000
_BURST_S = 0.5


@dataclass(frozen=True, slots=True)
class Load:
    """How much is sent: `rate` records a second, in fleets of `orders` orders."""

    seed: int
    rate: float
    orders: int
    segments_per_order: int
    settles_in_s: float
    """After this time without a record an order has settled."""


@dataclass(slots=True)
class Sent:
    """What was sent, all of it acknowledged once the pump has ended.

    `intended` is what each order must come to in the end, `garbage` why each bad record must be
    rejected, by its key and value. `keys` are the orders' keys.
    """

    records: int = 0
    segments: int = 0
    over_http: int = 0
    fleets: int = 0
    intended: dict[str, Intended] = field(default_factory=dict)
    garbage: dict[tuple[bytes | None, bytes | None], Reason] = field(default_factory=dict)
    keys: set[bytes] = field(default_factory=set)

    def plan(self, order: OrderPlan) -> None:
        """Take down what an order must come to, and what becomes of its bad records."""
        intended = order.intended()
        if intended is not None:
            self.intended[order.number] = intended
            self.keys.add(order.number.encode())
        for send in order.sends:
            if send.expected is not None:
                self.garbage[send.key, send.value] = send.expected


class Pump(threading.Thread):
    """Publishes until told to finish, and then all that belongs to what it has begun."""

    def __init__(self, load: Load, kafka: dict[str, str], topic: str, gateway_url: str) -> None:
        super().__init__(name="pump", daemon=True)
        self.sent = Sent()
        self.error: str = ""
        self._load = load
        self._topic = topic
        self._finishing = threading.Event()
        self._stopped = threading.Event()
        self._next_s = 0.0
        self._producer = Producer(
            {
                **kafka,
                "acks": "all",  # what was acknowledged must be in the log whatever dies
                "enable.idempotence": True,  # retries through an outage keep their order
                "partitioner": PARTITIONER,
                "linger.ms": 20,
                "compression.type": "lz4",
                "delivery.timeout.ms": int(PATIENCE_S * 1000),
                "queue.buffering.max.messages": QUEUED_MAX,
                "reconnect.backoff.max.ms": 1_000,
                "allow.auto.create.topics": False,
            }
        )
        self._posters = [
            _Poster(gateway_url, self._fail, self._stopped) for _ in range(HTTP_THREADS)
        ]

    # -- from other threads -------------------------------------------------------------------

    def backlog(self) -> int:
        """Return how many records have been sent and not been acknowledged yet."""
        return len(self._producer) + sum(poster.waiting for poster in self._posters)

    def finish(self) -> None:
        """Have the pump end once it has sent all of what it has begun; `join` waits for it."""
        self._finishing.set()

    def close(self) -> None:
        """End at once, and let go of what is unsent."""
        self._finishing.set()
        self._stopped.set()
        self._producer.purge()
        if self.ident is not None:
            self.join()
        for poster in self._posters:
            poster.close()

    # -- the thread ---------------------------------------------------------------------------

    def run(self) -> None:
        """Publish; an error is kept in `error`."""
        try:
            self._publish_fleets()
        except Exception as error:  # told by the report: whatever it is, the run has failed
            self._fail(f"{error!r}")

    def _publish_fleets(self) -> None:
        held_back: list[Send] = []
        with ThreadPoolExecutor(1) as planner:
            fleets = self._planned(planner)
            while not self._finishing.is_set():
                orders, over_http = next(fleets)
                self._note(orders)
                sends = in_publishing_order(orders)
                first = [send for send in sends if send.wave == 1]
                self._publish(_interleaved(first, held_back), over_http)
                held_back = [send for send in sends if send.wave > 1]
                self.sent.fleets += 1
        self._flush()
        self._stopped.wait(self._load.settles_in_s)
        self._publish(held_back, frozenset())
        self._flush()

    def _planned(
        self, planner: ThreadPoolExecutor
    ) -> Iterator[tuple[list[OrderPlan], frozenset[str]]]:
        """Yield fleets, each planned while the one before is being sent."""
        upcoming: Future[tuple[list[OrderPlan], frozenset[str]]] = planner.submit(self._plan, 0)
        for number in count(1):
            planned = upcoming.result()
            upcoming = planner.submit(self._plan, number)
            yield planned

    def _plan(self, number: int) -> tuple[list[OrderPlan], frozenset[str]]:
        fleet = FleetPlan(
            seed=self._load.seed,
            orders=self._load.orders,
            segments_per_order=self._load.segments_per_order,
            faults=Faults.everything(),
            prefix=f"C{number}",
        )
        orders = fleet.order_plans(random.Random, int(time.time() * 1000), PARTITIONS)
        roll = random.Random(f"{fleet.order_prefix}http")
        return orders, frozenset(each.number for each in orders if roll.random() < HTTP_SHARE)

    def _note(self, orders: Iterable[OrderPlan]) -> None:
        for order in orders:
            self.sent.plan(order)

    def _publish(self, sends: Iterable[Send], over_http: frozenset[str]) -> None:
        for send in sends:
            self._pace()
            if self._stopped.is_set():
                return
            self.sent.records += 1
            self.sent.segments += send.segment is not None
            rogue = send.segment is None or send.partition is not None
            if send.order_number in over_http and not rogue:
                self.sent.over_http += 1
                self._posters[hash(send.order_number) % HTTP_THREADS].put(send)
            else:
                self._produce(send)

    def _pace(self) -> None:
        """Keep the rate; what an outage has held up is caught up with only in part."""
        self._next_s = max(self._next_s, time.monotonic() - _BURST_S) + 1 / self._load.rate
        ahead_s = self._next_s - time.monotonic()
        if ahead_s > 0.01:
            self._producer.poll(0)
            self._stopped.wait(ahead_s)

    def _produce(self, send: Send) -> None:
        by_key = -1  # librdkafka's word for "ask the partitioner"
        while not self._stopped.is_set():
            try:
                self._producer.produce(
                    self._topic,
                    key=send.key,
                    value=send.value,
                    timestamp=send.client_clock_ms,
                    on_delivery=self._delivered,
                    partition=by_key if send.partition is None else send.partition,
                )
                return
            except BufferError:
                self._producer.poll(0.1)

    def _delivered(self, error: KafkaError | None, message: Message) -> None:
        if error is not None and not self._stopped.is_set():
            self._fail(f"a record of the fleet was not delivered: {error.str()}")

    def _flush(self) -> None:
        for poster in self._posters:
            poster.flush()
        give_up_s = time.monotonic() + PATIENCE_S
        while self.backlog() and not self._stopped.is_set():
            self._producer.flush(0.2)
            if time.monotonic() > give_up_s:
                self._fail(f"{self.backlog()} records were never acknowledged")

    def _fail(self, problem: str) -> None:
        self.error = self.error or problem
        self._stopped.set()


def _interleaved(first: Sequence[Send], second: Sequence[Send]) -> Iterator[Send]:
    """Yield both in their own order, spread evenly over each other."""
    taken = 0
    for at, send in enumerate(first, 1):
        yield send
        due = len(second) * at // len(first)
        yield from second[taken:due]
        taken = due
    yield from second[taken:]


class _Poster(threading.Thread):
    """Posts orders' segments to the gateway, in batches and until they are taken."""

    def __init__(self, url: str, fail: Callable[[str], None], stopped: threading.Event) -> None:
        super().__init__(name="poster", daemon=True)
        self.waiting = 0
        self._address = urlsplit(url).netloc
        self._fail = fail
        self._stopped = stopped
        self._queue: queue.Queue[Send | None] = queue.Queue()  # unbounded: the fleet goes on
        self._lock = threading.Lock()
        self._connection: http.client.HTTPConnection | None = None
        self.start()

    def put(self, send: Send) -> None:
        """Queue a segment."""
        with self._lock:
            self.waiting += 1
        self._queue.put(send)

    def flush(self) -> None:
        """Wait until all that was queued has been taken, or the pump stops."""
        while self.waiting and not self._stopped.wait(0.05):
            pass

    def close(self) -> None:
        """End the thread, once the pump has stopped."""
        self._queue.put(None)
        self.join()

    def run(self) -> None:
        """Post batches of one order each."""
        try:
            while batch := self._batch():
                self._post(batch)
                with self._lock:
                    self.waiting -= len(batch)
        except Exception as error:  # told by the report: whatever it is, the run has failed
            self._fail(f"the gateway: {error!r}")
        finally:
            if self._connection is not None:
                self._connection.close()

    def _batch(self) -> list[Send]:
        """Return what there is, up to a batch; nothing when it is time to end."""
        first = self._queue.get()
        batch = []
        while first is not None:
            batch.append(first)
            if len(batch) == HTTP_BATCH or self._queue.empty():
                break
            first = self._queue.get()
        return [] if self._stopped.is_set() else batch

    def _post(self, batch: list[Send]) -> None:
        by_order: dict[str, list[Send]] = {}
        for send in batch:
            by_order.setdefault(send.order_number, []).append(send)
        for number, sends in by_order.items():
            body = [segment_fields(each.segment) for each in sends if each.segment is not None]
            path = f"/v1/orders/{quote_order_number(number)}/segments"
            self._ask(path, json.dumps(body).encode())

    def _ask(self, path: str, content: bytes) -> None:
        """Post until it is taken: a repeat after a lost answer is one more duplicate."""
        give_up_s = time.monotonic() + PATIENCE_S
        while not self._stopped.is_set():
            status = self._try(path, content)
            if 200 <= status < 300:
                return
            if (status and status != 429 and status < 500) or time.monotonic() > give_up_s:
                raise RuntimeError(f"POST {path}: status {status}")
            self._stopped.wait(0.2)

    def _try(self, path: str, content: bytes) -> int:
        headers = {"content-type": "application/json"}
        if self._connection is None:
            self._connection = http.client.HTTPConnection(self._address, timeout=30)
        try:
            self._connection.request("POST", path, body=content, headers=headers)
            response = self._connection.getresponse()
            response.read()
            return response.status
        except (OSError, http.client.HTTPException):
            self._connection.close()
            self._connection = None
            return 0
