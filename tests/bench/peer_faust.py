"""A stock Faust agent with a table: the ordinary way to do the job in Faust.

Arguments: bootstrap servers, segments topic, totals topic, records to warm up with, records to
measure, folder for the state. Has Faust's Cython parts and uvloop, as its documentation advises.
"""

import sys
from pathlib import Path
from typing import Any

import faust
from mode.loop import use

from tests.bench.peer_job import decode, fold, mark, new_state


def main(servers: str, segments: str, totals: str, warm: int, count: int, folder: str) -> None:
    """Fold segments until it is ended; tells when enough have been seen."""
    app = faust.App(
        f"faust-{totals}",
        broker=f"kafka://{servers}",
        store="memory://",
        datadir=Path(folder),
        topic_partitions=4,
        topic_replication_factor=1,
        topic_disable_leader=True,
        web_enabled=False,
        autodiscover=False,
        stream_recovery_delay=0.0,
        stream_buffer_maxsize=16_384,
        broker_max_poll_records=5_000,
        broker_check_crcs=False,
        consumer_max_fetch_size=4 * 1024 * 1024,
        consumer_auto_offset_reset="earliest",
        producer_compression_type="lz4",
        producer_linger_ms=50,
        producer_max_batch_size=1024 * 1024,
        producer_acks=-1,
    )
    source = app.topic(segments, key_type=bytes, value_type=bytes, value_serializer="raw")
    sink = app.topic(totals, key_type=bytes, value_type=bytes, value_serializer="raw")
    orders: Any = app.Table("orders", partitions=4, default=new_state)

    @app.agent(source)
    async def run(stream: Any) -> None:
        records = 0
        async for event in stream.events():
            records += 1
            if records == warm:
                mark("warm", records)
            number = event.key.decode()
            order = orders[number]
            message = event.message
            now_ms = round(message.timestamp * 1000)
            total = fold(order, decode(event.value), message.partition, message.offset, now_ms)
            orders[number] = order
            if total is not None:
                await sink.send(key=event.key, value=total)
            if records == warm + count:
                mark("done", records)

    worker = faust.Worker(app, loglevel="WARNING", redirect_stdouts=False)
    worker.execute_from_commandline()


if __name__ == "__main__":
    use("uvloop")
    _servers, _segments, _totals, _warm, _count, _folder = sys.argv[1:]
    main(_servers, _segments, _totals, int(_warm), int(_count), _folder)
