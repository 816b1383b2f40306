"""Synthetic traffic: what a fleet of clients sends, shaped by a few numbers, fast to make.

Time runs in ticks, one report interval each. In every tick each of `open_orders` slots sends the
next segment of its order, in an order that is shuffled anew; an order that has ended is followed by
a new one in its slot. Slots start at different phases, so the ends are spread evenly.

The times are real ones: the traffic is as if it had been sent over the last minutes or hours and
arrived late as a whole, well inside of the correction window.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from durabill.producers.gateway.starts import new_order_number
from durabill.schemas import SEGMENT_HEADER, SegmentEvent, encode_segment
from durabill.schemas.wire import zigzag

Entry = tuple[bytes, bytes]
"""Key and value of a record."""

JITTERS = 64
"""Different phases, in ms, of the clients' report intervals."""

LATE_TICKS_MAX = 3


@dataclass(frozen=True)
class Shape:
    """What a stream of segments looks like. `repeats`, `disorder`, `garbage` are shares (0 to 1).

    `segments` an order; 0: orders never end. `interval_ms` is the length of a segment.
    """

    name: str
    title: str
    open_orders: int
    segments: int
    repeats: float = 0.0
    disorder: float = 0.0
    garbage: float = 0.0
    interval_ms: int = 10_000

    def ticks(self, records: int) -> int:
        """Return how many ticks bring about `records` records, whole orders at least."""
        share = 1 + self.repeats + self.garbage
        if not self.segments:
            return max(1, round(records / (self.open_orders * share)))
        lives = max(1, round(records / (self.open_orders * self.segments * share)))
        return lives * self.segments

    def scaled(self, open_orders: int) -> "Shape":
        """Return the same with other open orders."""
        return replace(self, open_orders=open_orders)


@dataclass
class Sent:
    """What has been generated so far, to check what comes out."""

    records: int = 0
    orders_ended: int = 0
    ended_duration_ms: int = 0
    garbage: int = 0


def generate(
    shape: Shape, records: int, now_ms: int, seed: int, sent: Sent
) -> Iterator[list[Entry]]:
    """Yield about `records` records, tick by tick, in the order of sending; counts in `sent`."""
    ticks = shape.ticks(records)
    dice = random.Random(seed)
    shuffle = np.random.default_rng(seed)
    slots = shape.open_orders
    phases = shape.segments or 1
    # The last segment of the last tick must have ended before it arrives.
    first_ms = now_ms - (ticks + phases + LATE_TICKS_MAX + 2) * shape.interval_ms
    jitter_of = [dice.randrange(JITTERS) for _ in range(slots)]
    heads: list[tuple[bytes, bytes]] = [(b"", b"")] * slots
    numbers = [zigzag(number) for number in range(1, (shape.segments or ticks) + 1)]
    late: dict[int, list[Entry]] = {}
    for tick in range(ticks + phases - 1 + LATE_TICKS_MAX + 1):
        start_ms = first_ms + tick * shape.interval_ms
        tails = _tails(start_ms, shape.interval_ms)
        out: list[Entry] = late.pop(tick, [])
        for slot in shuffle.permutation(slots).tolist():
            age = tick - slot % phases
            if not 0 <= age < ticks:
                continue
            step = age % shape.segments if shape.segments else age
            if step == 0:
                heads[slot] = _head(start_ms, dice)
            key, head = heads[slot]
            is_end = step + 1 == shape.segments
            entry = (key, head + numbers[step] + tails[is_end][jitter_of[slot]])
            if is_end:
                sent.orders_ended += 1
                sent.ended_duration_ms += shape.segments * shape.interval_ms
            if shape.disorder and dice.random() < shape.disorder:
                late.setdefault(tick + dice.randint(1, LATE_TICKS_MAX), []).append(entry)
            else:
                out.append(entry)
            if shape.repeats and dice.random() < shape.repeats:
                late.setdefault(tick + 1, []).append(entry)
        if shape.garbage:
            spoiled = _garbage(out, shape.garbage, dice)
            sent.garbage += len(spoiled)
            out += spoiled
        sent.records += len(out)
        yield out
    assert not late


def _tails(start_ms: int, interval_ms: int) -> tuple[list[bytes], list[bytes]]:
    """Return the encoded times of a tick by the client's jitter, without and with an end."""
    times = [
        zigzag(start_ms + jitter) + zigzag(start_ms + jitter + interval_ms)
        for jitter in range(JITTERS)
    ]
    return [each + b"\0" for each in times], [each + b"\1" for each in times]


def _head(now_ms: int, dice: random.Random) -> tuple[bytes, bytes]:
    """Return the key of a new order and the start of all its values."""
    key = new_order_number(now_ms, dice.randbytes).encode()
    return key, SEGMENT_HEADER + zigzag(len(key)) + key


def _garbage(good: list[Entry], share: float, dice: random.Random) -> list[Entry]:
    """Return broken records, `share` of as many as the good ones; each kind as often."""
    spoiled: list[Entry] = []
    for _ in range(round(len(good) * share)):
        key, value = good[dice.randrange(len(good))]
        kind = dice.randrange(5)
        if kind == 0:
            spoiled.append((key, value[: dice.randrange(10, len(value))]))
        elif kind == 1:
            spoiled.append((key, dice.randbytes(len(value))))
        elif kind == 2:
            spoiled.append((b"another-order", value))
        elif kind == 3:
            spoiled.append((key, b"\xc3\x01\0\0\0\0\0\0\0\0" + value[10:]))
        else:
            event = SegmentEvent(key.decode(), 1, 1_000, 2_000, False)  # long before the window
            spoiled.append((key, encode_segment(event)))
    return spoiled


IN_ORDER = Shape("in-order", "80 segments an order, 10 % repeats", 5_000, 80, repeats=0.1)
OUT_OF_ORDER = Shape(
    "out-of-order", "10 % repeats, 5 % out of order", 5_000, 80, repeats=0.1, disorder=0.05
)
TWO_SEGMENTS = Shape("two-segments", "orders of two segments", 20_000, 2)
GARBAGE = Shape("garbage", "as in order, 1 % garbage", 5_000, 80, repeats=0.1, garbage=0.01)


def open_orders(count: int) -> Shape:
    """Return traffic of `count` orders that stay open."""
    return Shape(f"open-{count}", f"{count:,} open orders", count, 0)
