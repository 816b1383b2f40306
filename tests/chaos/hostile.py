"""Clients that mean harm, beside the honest fleet: none of it may touch an honest total.

They write straight to the topic whatever it takes: garbage, headers that only a worker may write,
orders in as many pieces as an order may have, floods onto orders that have settled, one segment
again and again, numbers and times at the ends of 64 bits. What becomes of each record is for the
oracle to say, from the log alone. All their keys begin with `PREFIX`, or are no order numbers.
"""

import random
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from confluent_kafka import Producer

from durabill.producers.fleet.garbage import raw_segment
from durabill.schemas import PARTITIONER
from tests.chaos.cluster import PARTITIONS

PREFIX = "H-"
NO_PARTITION = 999_999

_CLOSE_S = 5.0
_BURST_S = 0.5


@dataclass(frozen=True, slots=True)
class Malice:
    """How much harm: records a second, pieces of an order, and segments of a late flood."""

    seed: int
    rate: float
    pieces: int
    flood: int
    settles_in_s: float


class Hit(NamedTuple):
    """One record to be written; `partition` None where the key decides."""

    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...] = ()
    partition: int | None = None


class Flood(NamedTuple):
    """An order that settles, and what comes onto it from `due_s` on."""

    order: str
    base_ms: int
    due_s: float


def segment(order: str, number: int, start_ms: int, end_ms: int, end: bool = False) -> Hit:
    """Return a segment of a hostile order in its wire form, whatever it says."""
    key = order.encode()
    return Hit(key, raw_segment(key, number, start_ms, end_ms, end))


def garbage(dice: random.Random) -> Iterator[Hit]:
    """Yield records that are no segments, and segments that are cut, stretched or turned."""
    good = segment(f"{PREFIX}garbage", 1, 10, 20).value or b""
    yield Hit(None, None)
    yield Hit(b"", b"")
    yield Hit(f"{PREFIX}null".encode(), None)
    for size in (1, 2, 9, 10, 11, 1_000, 100_000):
        yield Hit(dice.randbytes(8), dice.randbytes(size))
    # The marker with a fingerprint of nobody's, and our own with nonsense behind it.
    yield Hit(f"{PREFIX}x".encode(), b"\xc3\x01" + dice.randbytes(30))
    yield Hit(f"{PREFIX}x".encode(), good[:10] + dice.randbytes(30))
    yield Hit(f"{PREFIX}garbage".encode(), good[:-1])
    yield Hit(f"{PREFIX}garbage".encode(), good + b"\x00")
    yield Hit(f"{PREFIX}else".encode(), good)


def forged(dice: random.Random, name: str, now_ms: int) -> Iterator[Hit]:
    """Yield segments with the header of a copy that was sent on, true to form and not."""
    true_to_form = [b"%d/%d" % (dice.randrange(PARTITIONS), dice.randrange(99)) for _ in range(6)]
    origins = [*true_to_form, true_to_form[0], b"%d/7" % NO_PARTITION, b"", b"-1/5", b"5", None]
    for number, origin in enumerate(origins, 1):
        hit = segment(name, number, now_ms - 5_000 + number, now_ms - 4_000 + number)
        yield hit._replace(headers=(("forwarded_from", origin),))
        yield hit._replace(
            headers=(("forwarded_from", origin),), partition=dice.randrange(PARTITIONS)
        )


def islands(dice: random.Random, name: str, now_ms: int, pieces: int) -> Iterator[Hit]:
    """Yield one order in as many pieces as it may have: rising, falling or shuffled."""
    base_ms = now_ms - 2 * pieces - 60_000
    numbers = list(range(1, pieces + 1))
    shape = dice.choice(["rising", "falling", "shuffled"])
    if shape == "falling":
        numbers.reverse()
    elif shape == "shuffled":
        dice.shuffle(numbers)
    for number in numbers:
        start_ms = base_ms + 2 * number
        yield segment(f"{name}-{shape}", 2 * number, start_ms, start_ms + 1)


def extremes(name: str, now_ms: int) -> Iterator[Hit]:
    """Yield numbers and times at the ends of what 64 bits hold."""
    most = 2**63 - 1
    yield segment(name, 1, 0, 2**62)
    yield segment(name, 1, 2**62, 2**62 + 1)
    yield segment(name, 2, most - 1, most)
    yield segment(name, most, now_ms - 20, now_ms - 10)
    yield segment(name, 2**62, now_ms - 10, now_ms, True)
    yield segment(name, 1, now_ms - 86_400_000, now_ms)
    yield segment(name, 0, now_ms - 10, now_ms)
    yield segment(name, -(2**63), now_ms - 10, now_ms)
    yield segment(name, 3, -(2**63), now_ms)


class Hostile(threading.Thread):
    """Writes until closed; what isn't delivered by then is let go. `records` counts what went."""

    def __init__(self, malice: Malice, kafka: dict[str, str], topic: str) -> None:
        super().__init__(name="hostile", daemon=True)
        self.records = 0
        self.error = ""
        self._malice = malice
        self._topic = topic
        self._end = threading.Event()
        self._dice = random.Random(f"hostile-{malice.seed}")
        self._producer = Producer(
            {
                **kafka,
                "acks": "all",
                "partitioner": PARTITIONER,
                "linger.ms": 20,
                "delivery.timeout.ms": 60_000,
                "reconnect.backoff.max.ms": 1_000,
                "allow.auto.create.topics": False,
            }
        )

    def close(self) -> None:
        """End the thread."""
        self._end.set()
        if self.ident is not None:
            self.join()

    def run(self) -> None:
        """Write; an error is kept in `error`."""
        try:
            self._write()
        except Exception as error:  # told by the report: whatever it is, the run has failed
            self.error = repr(error)
        self._producer.flush(_CLOSE_S)
        self._producer.purge()

    def _write(self) -> None:
        next_s = time.monotonic()
        for hit in self._hits():
            next_s = max(next_s, time.monotonic() - _BURST_S) + 1 / self._malice.rate
            if self._end.wait(max(0.0, next_s - time.monotonic())):
                return
            try:
                self._producer.produce(
                    self._topic,
                    hit.value,
                    hit.key,
                    partition=-1 if hit.partition is None else hit.partition,
                    headers=list(hit.headers),
                )
            except BufferError:
                pass  # the brokers are away, and harm needs no spool
            else:
                self.records += 1
            self._producer.poll(0)

    def _hits(self) -> Iterator[Hit]:
        """Yield one kind after the other for ever, with one segment that never stops between."""
        dice, malice = self._dice, self._malice
        again = segment(f"{PREFIX}{malice.seed}-again", 1, _now_ms() - 1_000, _now_ms())
        floods: list[Flood] = []
        turn = 0
        while True:
            turn += 1
            name = f"{PREFIX}{malice.seed}-{turn}"
            now_ms = _now_ms()
            order = f"{name}-flooded"
            base_ms = now_ms - 4 * malice.flood - 60_000
            floods.append(Flood(order, base_ms, time.monotonic() + malice.settles_in_s))
            yield segment(order, 1, base_ms, base_ms + 1, True)
            for kind in (
                garbage(dice),
                forged(dice, f"{name}-forged", now_ms),
                extremes(f"{name}-extreme", now_ms),
                islands(dice, name, now_ms, malice.pieces),
            ):
                for at, hit in enumerate(kind):
                    yield hit
                    if at % 10 == 0:
                        yield again
            while floods and floods[0].due_s <= time.monotonic():
                yield from self._flood(floods.pop(0))

    def _flood(self, flood: Flood) -> Iterator[Hit]:
        """Yield late segments, each of which changes an order that has settled."""
        for number in range(2, self._malice.flood + 2):
            start_ms = flood.base_ms + 4 * number
            yield segment(flood.order, number, start_ms, start_ms + 1)


def _now_ms() -> int:
    return time.time_ns() // 10**6


def is_hostile(key: bytes | None) -> bool:
    """Tell whether a key is one of a hostile order."""
    return key is not None and key.startswith(PREFIX.encode())
