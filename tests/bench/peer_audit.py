"""What somebody would write who has no audit: confluent-kafka, fastavro, and a dictionary.

It recomputes each order's totals with the plain job of the peers, and compares them with the totals
topic, field by field but for the time of settling. Only orders that complete are compared: it keeps
no deadlines. Arguments: bootstrap servers, segments topic, totals topic, records to read.
"""

import io
import json
import sys
from collections import Counter
from typing import Any

import fastavro
from confluent_kafka import Consumer, TopicPartition

from tests.bench.peer_floor import SETTINGS
from tests.bench.peer_job import _TOTAL, State, decode, fold, new_state

_NOT_COMPARED = ("settled_at_ms",)


def records(servers: str, topic: str, count: int | None) -> Any:
    """Yield the messages of a topic from its start: so many, None for all that is there."""
    conf: dict[str, Any] = {"bootstrap.servers": servers, "group.id": "peer-audit"}
    more = {"enable.partition.eof": True, "isolation.level": "read_committed"}
    consumer = Consumer(conf | SETTINGS | more | {"enable.auto.commit": False})
    partitions = list(consumer.list_topics(topic, timeout=30).topics[topic].partitions)
    consumer.assign([TopicPartition(topic, each, 0) for each in partitions])
    open_partitions, seen = set(partitions), 0
    while open_partitions and seen != count:
        for message in consumer.consume(10_000, timeout=1.0):
            if message.error() is not None:
                open_partitions.discard(message.partition())
                continue
            seen += 1
            yield message
    consumer.close()


def total_of(value: bytes) -> tuple[Any, ...]:
    """Return the fields of a total that are compared."""
    body = io.BytesIO(value)
    body.seek(10)
    fields: Any = fastavro.schemaless_reader(body, _TOTAL, None)
    return tuple(str(fields[name]) for name in sorted(fields) if name not in _NOT_COMPARED)


def main(servers: str, segments: str, totals: str, count: int) -> None:
    """Recompute, compare, and say how many totals are proven."""
    states: dict[str, State] = {}
    expected: Counter[tuple[Any, ...]] = Counter()
    for message in records(servers, segments, count):
        try:
            segment = decode(message.value())
        except ValueError:
            continue  # a clock mark
        order = segment["service_order_number"]
        state = states.setdefault(order, new_state())
        given = fold(state, segment, message.partition(), message.offset(), 0)
        if given is not None:
            expected[total_of(given)] += 1
    found = Counter(total_of(message.value()) for message in records(servers, totals, None))
    proven = sum((expected & found).values())
    print(json.dumps({"totals": sum(found.values()), "proven": proven}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))
