"""Openings for the broker's tests: as a gateway writes them, and as a worker passes them on."""

from collections.abc import Iterable
from typing import Any

from confluent_kafka import Message, Producer

from durabill.schemas import OrderOpened, encode_opening, partition_for
from durabill.schemas.headers import SEGMENTS_TOPIC_ID, SOURCE_OFFSET
from tests.broker.traffic_kit import Pair, now_ms
from tests.waiting import HANG_S

HOUR_MS = 3_600_000


def opened(number: str, tenant: str = "acme", **more: Any) -> OrderOpened:
    """An opening from two hours ago that is accepted for two days."""
    at_ms = now_ms() - 2 * HOUR_MS
    made = OrderOpened(
        *(number, tenant, "meter-7", "gpu", (("plan", "gøld"), ("site", ""))),
        *(at_ms, 10_000, at_ms + 48 * HOUR_MS),
    )
    return made._replace(**more)


def opening(number: str, tenant: str = "acme", **more: Any) -> Pair:
    """The same as a record of the segments."""
    return number.encode(), encode_opening(opened(number, tenant, **more))


def source_of(message: Message) -> int:
    """Where in the log the opening of a record of the orders topic lies, by its headers."""
    headers: Any = message.headers() or ()
    (name, content), *others = headers
    assert name == SOURCE_OFFSET
    assert isinstance(content, bytes)
    assert all(other == SEGMENTS_TOPIC_ID and of for other, of in others), others
    return int(content)


def put(servers: str, topic: str, records: Iterable[tuple[bytes, bytes, int | None]]) -> None:
    """Write (key, value, place in the log) to an orders topic of four partitions."""
    producer = Producer({"bootstrap.servers": servers, "linger.ms": 5})
    for key, value, source in records:
        headers: Any = [] if source is None else [(SOURCE_OFFSET, str(source).encode())]
        producer.produce(topic, value, key, partition_for(key, 4), headers=headers)
    assert producer.flush(HANG_S) == 0
