"""Segments for the worker's tests, and streams of them with everything that goes wrong."""

import random
import time
from collections.abc import Sequence

from confluent_kafka import Consumer, TopicPartition

from durabill.schemas import OrderOpened, SegmentEvent, encode_opening, encode_segment

Pair = tuple[bytes | None, bytes | None]
"""Key and value of a record."""


def now_ms() -> int:
    """The wall clock, which is the broker's as well: it runs on this machine."""
    return time.time_ns() // 10**6


def segment(
    order: str, number: int, start_ms: int, end_ms: int, end: bool = False
) -> tuple[bytes, bytes]:
    """Key and value of a segment by the contract."""
    return order.encode(), encode_segment(SegmentEvent(order, number, start_ms, end_ms, end))


def traffic(seed: int, orders: int, segments: int, *, opened: bool = False) -> list[Pair]:
    """A shuffled stream: repeats, overlaps, holes, orders without an end, late ends, garbage.

    Orders go on side by side, so that each is spread over the whole stream. Where some are to be
    opened, openings are repeated, come late, and are tried by others.
    """
    dice, openers = random.Random(seed), random.Random(-seed)
    base_ms = now_ms() - 3_600_000
    timed: list[tuple[float, Pair]] = []
    for order in range(orders):
        name = f"SO-{seed}-{order}" + dice.choice(["", "", "", "-ü/%?# &"])
        kind = dice.choice(["whole", "whole", "whole", "hole", "endless", "late"])
        hole = dice.randrange(1, segments)
        while opened and openers.random() < 0.5:
            at = openers.choice([0.0, 0.0, openers.random() * segments])
            timed.append((at, _opening(name, base_ms, openers)))
        for number in range(1, segments + 1):
            start_ms = base_ms + 1_000 * number - dice.choice([0, 0, 0, 300])
            end = number == segments and kind != "endless"
            pair = segment(name, number, start_ms, base_ms + 1_000 * (number + 1), end)
            at = number + dice.random() * 3
            if number == hole and kind == "hole":
                continue
            if number == hole and kind == "late":
                at += segments  # after all others, so perhaps after the grace
            timed.append((at, pair))
            if dice.random() < 0.2:
                timed.append((at + dice.random() * segments, pair))
            if dice.random() < 0.02:
                timed.append((at, dice.choice(_GARBAGE)))
    return [pair for _, pair in sorted(timed, key=lambda each: each[0])]


def _opening(order: str, base_ms: int, dice: random.Random) -> Pair:
    """An opening of an order whose segments begin at `base_ms` + 700 or later."""
    tenant, begin_ms = (
        dice.choice(["acme", "acme", "other"]),
        base_ms + dice.choice([0, 700, 2_500]),
    )
    opened = OrderOpened(order, tenant, "c", "gpu", (), begin_ms, 1_000, begin_ms + 100_000_000)
    return order.encode(), encode_opening(opened)


_GARBAGE: Sequence[Pair] = (
    (None, None),
    (b"", b""),
    (b"SO-null", None),
    (None, segment("SO-no-key", 1, 1, 2)[1]),
    (b"other", segment("SO-mismatch", 1, 1, 2)[1]),
    (b"SO-junk", b"\xc3\x01 junk"),
    (b"SO-cut", segment("SO-cut", 1, 1, 2)[1][:-1]),
    segment("SO-too-late", 1, 1, 2),
)


def move_group(bootstrap_servers: str, group: str, places: list[TopicPartition]) -> None:
    """Moves the offsets of a group that has no members."""
    consumer = Consumer({"bootstrap.servers": bootstrap_servers, "group.id": group})
    try:
        consumer.commit(offsets=places, asynchronous=False)
    finally:
        consumer.close()
