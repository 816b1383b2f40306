"""The floor: a bare consumer that decodes every record and does nothing with it.

Arguments: bootstrap servers, topic, records to warm up with, records to measure.
"""

import sys

from confluent_kafka import Consumer

from tests.bench.peer_job import decode, mark

SETTINGS = {
    "auto.offset.reset": "earliest",
    "fetch.message.max.bytes": 4 * 1024 * 1024,
    "fetch.max.bytes": 64 * 1024 * 1024,
    "queued.min.messages": 1_000_000,
}


def main(servers: str, topic: str, warm: int, count: int) -> None:
    """Consume and decode."""
    conf = {"bootstrap.servers": servers, "group.id": f"floor-{topic}"}
    consumer = Consumer(conf | SETTINGS | {"enable.auto.commit": False})
    consumer.subscribe([topic])
    records, is_warm = 0, False
    while records < warm + count:
        for message in consumer.consume(10_000, timeout=1.0):
            value = message.value()
            assert value is not None
            decode(value)
            records += 1
        if not is_warm and records >= warm:
            is_warm = True
            mark("warm", records)
    mark("done", records)
    sys.stdin.read()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
