"""The interval table alone, without a broker: growth, memory and checkpoints. A process of its own.

Arguments: orders to grow to. Prints its results as marks.
"""

import gc
import json
import os
import random
import sys
import time
from collections.abc import Iterator

from durabill.schemas import OWN_SCHEMA_ONLY
from durabill.stream_processors.core.order import Policy
from durabill.stream_processors.engine.batch import Chunk
from durabill.stream_processors.engine.columns import ColumnTable
from durabill.stream_processors.engine.table import Place
from durabill.stream_processors.worker.processor import BLOCKS_AT_ONCE
from tests.bench.batches import encode_batch
from tests.bench.processes import memory_mb
from tests.bench.traffic import Sent, generate, open_orders

BATCH_RECORDS = 12_000
"""So many records fill a batch of a megabyte."""
CHECKPOINT_AT = 1_000_000


def chunks(orders: int) -> Iterator[Chunk]:
    """Yield batches of a megabyte with the first segments of ever new orders."""
    offset = 0
    for part in range(0, orders, BATCH_RECORDS):
        count = min(BATCH_RECORDS, orders - part)
        now_ms = time.time_ns() // 10**6
        (entries,) = (
            tick for tick in generate(open_orders(count), count, now_ms, part, Sent()) if tick
        )
        data = encode_batch(entries, now_ms, base_offset=offset, append_time=True)
        yield Chunk(offset, offset + count, data)
        offset += count


def main(orders: int) -> None:
    """Grow a table; on the way, checkpoint it once at CHECKPOINT_AT orders."""
    policy = Policy(idle_timeout_ms=86_400_000)
    table = ColumnTable(Place(0, 1), policy, OWN_SCHEMA_ONLY, seed=random.getrandbits(56))
    table.warm_up()
    table.fold(next(chunks(1)))
    next(chunks(BATCH_RECORDS))  # what making a batch needs is no memory of the table
    before_mb = _resident_mb()
    pause_s, size, at = 0.0, 0, 0
    known = len(table)
    for chunk in chunks(orders):
        # Offsets go on after the one record that warmed the table up.
        begun_s = time.perf_counter()
        table.fold(chunk)
        took_s = time.perf_counter() - begun_s
        if took_s > pause_s:
            pause_s, at, size = took_s, len(table), len(chunk.data)
        reached = len(table) - known
        if reached >= min(orders, CHECKPOINT_AT) > reached - chunk.next_offset + chunk.first_offset:
            _checkpoint(table, before_mb)
    _say(
        "growth",
        orders=len(table),
        pause_ms=1000 * pause_s,
        pause_at_orders=at,
        batch_bytes=size,
        bytes_an_order=(_resident_mb() - before_mb) * 2**20 / len(table),
    )


def _checkpoint(table: ColumnTable, before_mb: float) -> None:
    """Tell what the orders so far hold in memory, and what encoding all of them costs.

    As the worker does it: a few blocks at a time are copied between two folds (`pause`), then
    packed in a thread beside the stream.
    """
    resident_mb = _resident_mb()
    copy_s = pack_s = pause_s = 0.0
    size = 0
    blocks = table.take_changed()
    for at in range(0, len(blocks), BLOCKS_AT_ONCE):
        begun_s = time.perf_counter()
        snapshots = [table.snapshot(block) for block in blocks[at : at + BLOCKS_AT_ONCE]]
        copied_s = time.perf_counter()
        size += sum(len(each.pack()) for each in snapshots if each is not None)
        pack_s += time.perf_counter() - copied_s
        copy_s += copied_s - begun_s
        pause_s = max(pause_s, copied_s - begun_s)
    _say(
        "checkpoint",
        orders=len(table),
        bytes_an_order=(resident_mb - before_mb) * 2**20 / len(table),
        copy_ms=1000 * copy_s,
        pack_ms=1000 * pack_s,
        pause_ms=1000 * pause_s,
        blocks=len(blocks),
        blocks_bytes=size,
    )


def _resident_mb() -> float:
    gc.collect()
    return memory_mb(os.getpid())[0]


def _say(name: str, **content: float) -> None:
    print(json.dumps({"mark": name, **content}), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]))
    sys.stdin.read()
