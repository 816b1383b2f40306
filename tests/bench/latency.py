"""Latency: from an order's last segment being acknowledged to its total being readable.

Both instants are taken in this process: the acknowledgement (acks=all) as the producer hears of it,
and the total as a read_committed consumer returns it. The segments' own numbers complete the order,
so its total is due at once.
"""

import contextlib
import threading
import time
from dataclasses import dataclass
from statistics import quantiles

from confluent_kafka import Consumer, KafkaError, Message, Producer, TopicPartition

from durabill.schemas import PARTITIONER, partition_for
from tests.bench.batches import RawProducer, encode_batch, paced
from tests.bench.lab import PARTITIONS, Lab
from tests.bench.processes import BenchError
from tests.bench.traffic import IN_ORDER, Entry, Sent, Shape, generate
from tests.bench.worker import Worker, wait_folded

SLICE_S = 0.02
STRAGGLER_TIMEOUT_S = 60.0
LOW_RATE = 1_000
WARM_SHARE = 0.2

SHORT_ORDERS = Shape("latency", "10 segments an order", 1_000, 10)


@dataclass
class Latency:
    """Latencies in ms of `totals` totals, at `rate` segments a second; the first fifth left out."""

    title: str
    rate: float
    seconds: float
    totals: int
    p50_ms: float
    p99_ms: float
    max_ms: float


class TotalsWatch:
    """Notes when each order's first total can be read."""

    def __init__(self, lab: Lab, topic: str) -> None:
        self.seen_s: dict[bytes, float] = {}
        self._lab = lab
        self._topic = topic
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        conf = {"group.id": "bench-watch", "enable.auto.commit": False}
        conf |= {"isolation.level": "read_committed", "auto.offset.reset": "earliest"}
        with contextlib.closing(Consumer(self._lab.kafka | conf)) as consumer:
            consumer.assign([TopicPartition(self._topic, each, 0) for each in range(PARTITIONS)])
            while not self._stopped.is_set():
                # One at a time first, so that nothing waits for a batch to become full.
                message = consumer.poll(0.2)
                if message is None:
                    continue
                for each in (message, *consumer.consume(10_000, timeout=0)):
                    key = each.key()
                    if each.error() is None and isinstance(key, bytes):
                        self.seen_s.setdefault(key, time.monotonic())

    def wait(self, count: int) -> None:
        """Return once `count` orders have a total."""
        deadline_s = time.monotonic() + STRAGGLER_TIMEOUT_S
        while len(self.seen_s) < count:
            if time.monotonic() > deadline_s:
                raise BenchError(f"{len(self.seen_s)} totals of {count} came in time")
            time.sleep(0.05)

    def stop(self) -> None:
        """Stop watching."""
        self._stopped.set()
        self._thread.join(timeout=30)


def at_low_load(lab: Lab, seconds: float) -> Latency:
    """Measure at 1,000 segments a second, sent one by one by an ordinary client (linger 5 ms)."""
    records = round(LOW_RATE * seconds)
    entries = _traffic(SHORT_ORDERS.scaled(min(1_000, records // 20)), records)
    acked_s: dict[bytes, float] = {}

    def on_delivery(error: KafkaError | None, message: Message) -> None:
        key, value = message.key(), message.value()
        if error is None and isinstance(key, bytes) and value is not None and value[-1] == 1:
            acked_s[key] = time.monotonic()

    producer = Producer(lab.kafka | {"partitioner": PARTITIONER, "acks": "all", "linger.ms": 5})
    names = lab.names("latency")

    def send(number: int) -> None:
        key, value = entries[number]
        producer.produce(names.segments, value, key, on_delivery=on_delivery)

    stopped = threading.Event()

    def serve() -> None:
        while not stopped.is_set():
            producer.poll(0.05)

    worker, watch = Worker(lab, names), TotalsWatch(lab, names.totals)
    server = threading.Thread(target=serve, daemon=True)
    try:
        worker.wait_ready()
        server.start()
        begun_s = time.monotonic()
        paced(len(entries), 1 / LOW_RATE, send)
        took_s = time.monotonic() - begun_s
        watch.wait(sum(value[-1] for _, value in entries))
    finally:
        stopped.set()
        watch.stop()
        worker.stop()
    return _result("low load", len(entries), took_s, acked_s, watch.seen_s)


def at_rate(lab: Lab, rate: float, seconds: float) -> Latency:
    """Measure at `rate` segments a second, in batches as many clients' gateways would send."""
    per_slice = round(rate * SLICE_S)
    records = round(rate * seconds)
    open_orders = min(IN_ORDER.open_orders, max(1, records // (4 * IN_ORDER.segments)))
    entries = _traffic(IN_ORDER.scaled(open_orders), records)
    slices = [_slice(entries[at : at + per_slice]) for at in range(0, len(entries), per_slice)]
    del entries
    names = lab.names("latency")
    acked_s: dict[bytes, float] = {}

    def on_ack(ended: list[bytes]) -> None:
        now_s = time.monotonic()
        for key in ended:
            acked_s.setdefault(key, now_s)

    worker, watch = Worker(lab, names), TotalsWatch(lab, names.totals)
    try:
        worker.wait_ready()
        producer = RawProducer(lab.servers, names.segments, on_ack)
        begun_s = time.monotonic()
        paced(len(slices), SLICE_S, lambda number: producer.send(*slices[number]))
        producer.close()
        took_s = time.monotonic() - begun_s
        wait_folded([worker], lab.ends(names.segments))
        watch.wait(len(acked_s))
    finally:
        watch.stop()
        worker.stop()
    return _result("half of the full rate", per_slice * len(slices), took_s, acked_s, watch.seen_s)


def _traffic(shape: Shape, records: int) -> list[Entry]:
    ticks = generate(shape, records, time.time_ns() // 10**6, 7, Sent())
    return [entry for tick in ticks for entry in tick]


def _slice(entries: list[Entry]) -> tuple[dict[int, bytes], list[bytes]]:
    """Return the batches of a slice by partition, and the orders that end in it."""
    shares: dict[int, list[Entry]] = {}
    for entry in entries:
        partition = _partitions.get(entry[0])
        if partition is None:
            partition = _partitions[entry[0]] = partition_for(entry[0], PARTITIONS)
        shares.setdefault(partition, []).append(entry)
    now_ms = time.time_ns() // 10**6
    batches = {partition: encode_batch(share, now_ms) for partition, share in shares.items()}
    return batches, [key for key, value in entries if value[-1] == 1]


_partitions: dict[bytes, int] = {}


def _result(
    title: str, records: int, took_s: float, acked_s: dict[bytes, float], seen_s: dict[bytes, float]
) -> Latency:
    begun_s = min(acked_s.values())
    since_s = begun_s + WARM_SHARE * (max(acked_s.values()) - begun_s)
    waits_ms = sorted(
        1000 * max(0.0, seen_s[key] - acked) for key, acked in acked_s.items() if acked >= since_s
    )
    cuts = quantiles(waits_ms, n=100)
    rate = records / took_s
    return Latency(title, rate, took_s, len(waits_ms), cuts[49], cuts[98], waits_ms[-1])
