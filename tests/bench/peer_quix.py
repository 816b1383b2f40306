"""Quix Streams: a stateful dataframe, run in a virtual environment of its own.

Arguments: bootstrap servers, segments topic, totals topic, records to warm up with, records to
measure, folder for the state.
"""

import sys
from typing import Any

from quixstreams import Application  # type: ignore[import-not-found]
from quixstreams.models import TopicConfig  # type: ignore[import-not-found]

from tests.bench.peer_job import decode, fold, mark, new_state

CONSUMER = {
    "fetch.message.max.bytes": 4 * 1024 * 1024,
    "fetch.max.bytes": 64 * 1024 * 1024,
    "queued.min.messages": 1_000_000,
}
PRODUCER = {"compression.type": "lz4", "linger.ms": 50, "batch.size": 1024 * 1024}
STATE = "order"


def main(servers: str, segments: str, totals: str, warm: int, count: int, folder: str) -> None:
    """Fold segments until enough have been seen, then stop as an application stops."""
    app = Application(
        broker_address=servers,
        consumer_group=f"quix-{totals}",
        auto_offset_reset="earliest",
        state_dir=folder,
        use_changelog_topics=True,
        processing_guarantee="at-least-once",
        commit_interval=5.0,
        consumer_extra_config=CONSUMER,
        producer_extra_config=PRODUCER,
        loglevel="WARNING",
    )
    one = TopicConfig(num_partitions=4, replication_factor=1)
    source = app.topic(segments, key_deserializer="str", value_deserializer="bytes", config=one)
    sink = app.topic(totals, key_serializer="str", value_serializer="bytes", config=one)
    records = 0

    def step(value: bytes, key: Any, timestamp: int, headers: Any, state: Any) -> bytes | None:
        nonlocal records
        records += 1
        if records == warm:
            mark("warm", records)
        elif records >= warm + count:
            app.stop()
        order = state.get(STATE) or new_state()
        total = fold(order, decode(value), 0, records, timestamp)
        state.set(STATE, order)
        return total

    frame = app.dataframe(source).apply(step, stateful=True, metadata=True)
    frame = frame.filter(lambda total: total is not None)
    frame.to_topic(sink)
    app.run()
    mark("done", records)
    sys.stdin.read()


if __name__ == "__main__":
    _servers, _segments, _totals, _warm, _count, _folder = sys.argv[1:]
    main(_servers, _segments, _totals, int(_warm), int(_count), _folder)
