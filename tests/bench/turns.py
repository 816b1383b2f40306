"""How long one turn of the event loop takes at the limits: `python -m tests.bench.turns`.

Prints, each in milliseconds of CPU time: the longest step of folding, for chunks that are made to
take long; the cost of a segment while one order grows to 10,000 pieces, rising, falling and
shuffled; and what is done at once for a checkpoint and a recovery at the limits. No broker is
needed; a minute or two.
"""

import gc
import random
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from durabill.schemas import OWN_SCHEMA_ONLY, SEGMENT_HEADER
from durabill.schemas.wire import zigzag
from durabill.stream_processors.core.order import Order, Policy
from durabill.stream_processors.engine.batch import BATCH_UNPACKED_BYTES_MAX, Chunk
from durabill.stream_processors.engine.blocks import large_snapshot, plain_snapshot
from durabill.stream_processors.engine.columns import ColumnTable, compile_kernel
from durabill.stream_processors.engine.effects import Step
from durabill.stream_processors.engine.slots import BLOCK_SLOTS, LARGE_PIECES
from durabill.stream_processors.engine.table import Place
from tests.property.batches import Entry, encode_batch
from tests.unit.test_steps import order_with

NOW_MS = 1_700_000_000_000
PIECES_MAX = 10_000
DUE_ORDERS = 300_000
RUNNING_ORDERS = 100_000
INTERIM_TOTALS = 100
Name = Callable[[int], bytes]


def value_of(key: bytes, number: int, start_ms: int, end_ms: int, end: bool) -> bytes:
    """Return a segment as a record's value."""
    body = zigzag(len(key)) + key + zigzag(number) + zigzag(start_ms) + zigzag(end_ms)
    return SEGMENT_HEADER + body + bytes([end])


def new_table() -> ColumnTable:
    """Return an empty table with the usual policy."""
    return ColumnTable(Place(0, 1), Policy(), OWN_SCHEMA_ONLY, seed=7)


def chunk_of(entries: Iterable[Entry], offset: int = 0, at_ms: int = NOW_MS) -> Chunk:
    """Return one batch, packed by zstd."""
    numbered = list(enumerate(entries, offset))
    data = encode_batch(offset, at_ms, numbered, codec="zstd")
    return Chunk(offset, offset + len(numbered), data)


def timed_ms(work: Callable[[], Any]) -> tuple[float, Any]:
    """Return (milliseconds, result) of the best of three calls."""
    took_ms, result = float("inf"), None
    for _ in range(3):
        begun_s = time.thread_time()
        result = work()
        took_ms = min(took_ms, 1000 * (time.thread_time() - begun_s))
    return took_ms, result


def step_times_ms(steps: Iterator[Step]) -> list[float]:
    """Return what each step took."""
    gc.collect()
    gc.disable()  # as a worker does while it folds
    times_ms = []
    while True:
        begun_s = time.thread_time()
        step = next(steps, None)
        times_ms.append(1000 * (time.thread_time() - begun_s))
        if step is None:
            gc.enable()
            return times_ms


class Turn(NamedTuple):
    """Something measured: in how many steps, and the longest of them, or the one cost asked for."""

    name: str
    steps: int
    took_ms: float


TURNS: list[Turn] = []


def tell(name: str, times_ms: list[float]) -> None:
    """Note and print a line about steps."""
    TURNS.append(Turn(name.strip(), len(times_ms) - 1, round(max(times_ms), 2)))
    print(f"{name:64} {len(times_ms) - 1:5} steps, longest {max(times_ms):7.1f} ms", flush=True)


def tell_ms(name: str, took_ms: float, note: str = "") -> None:
    """Note and print a line about one thing that is done at once."""
    TURNS.append(Turn(name.strip(), 1, round(took_ms, 3)))
    print(f"{name:64} {took_ms:28.2f} ms {note}", flush=True)


def segments(count: int, name: Name, end: bool = False) -> list[Entry]:
    """Return so many first segments."""
    return [
        (key := name(at), value_of(key, 1, NOW_MS - 10, NOW_MS, end), ()) for at in range(count)
    ]


def measure_steps() -> None:
    """Fold chunks that take long in all."""
    count = BATCH_UNPACKED_BYTES_MAX // 70
    chunks: dict[str, list[Entry]] = {
        "ordinary: 15,000 records of 200 orders": segments(
            15_000, lambda at: b"SO-%d" % (at % 200)
        ),
        "unpacks to 32 MiB: segments of few orders": segments(
            count, lambda at: b"S%d" % (at % 200)
        ),
        "unpacks to 32 MiB: new orders": segments(count, lambda at: b"SO-%09d" % at),
        "unpacks to 32 MiB: orders that complete": segments(count, lambda at: b"S%9d" % at, True),
        "unpacks to 32 MiB: garbage": [(b"SO-1", bytes(55), ())] * count,
        "unpacks to 32 MiB: names too long for rows": segments(
            count // 4, lambda at: b"%060d" % (at % 5_000)
        ),
        "1,000 headers in each of 1,000 records": [
            (b"SO1", b"", (("h", b"v"),) * 1000) for _ in range(1000)
        ],
        "one record of 32 MiB": [(b"SO-1", bytes(BATCH_UNPACKED_BYTES_MAX - 64), ())],
    }
    for name, entries in chunks.items():
        tell(name, step_times_ms(new_table().steps(chunk_of(entries))))
    table = new_table()
    for at in range(0, DUE_ORDERS, 50_000):
        table.fold(chunk_of(segments(50_000, lambda i, at=at: b"SO-%d" % (at + i)), at))  # type: ignore[misc]
    late = chunk_of([(None, None, ())], DUE_ORDERS, NOW_MS + 300_000)
    tell(f"{DUE_ORDERS:,} orders due at once", step_times_ms(table.steps(late)))
    took_ms, _ = timed_ms(lambda: table.next_due_ms(2**61))
    tell_ms("next_due_ms after it", took_ms)
    times_ms, over_ms, more = [], NOW_MS + 2 * 86_400_000, True
    while more:
        begun_s = time.thread_time()
        more = table.confirm(over_ms)
        times_ms.append(1000 * (time.thread_time() - begun_s))
    tell("and forgotten at once (calls of confirm)", [*times_ms, 0.0])


def measure_pieces() -> None:
    """Grow one order, in three orders of arrival."""
    rising = list(range(PIECES_MAX))
    shuffled = random.Random(7).sample(rising, PIECES_MAX)
    for name, places in (("rising", rising), ("falling", rising[::-1]), ("shuffled", shuffled)):
        table, key = new_table(), b"SO-1"
        entries = []
        for place in places:
            start_ms = NOW_MS - 80_000_000 + 3 * place
            entries.append((key, value_of(key, 2 * place + 1, start_ms, start_ms + 1, False), ()))
        times_ms = step_times_ms(table.steps(chunk_of(entries)))
        tell(f"an order grows to {PIECES_MAX:,} + {PIECES_MAX:,} pieces, {name}", times_ms)
        tell_ms("  of which a segment takes", sum(times_ms) / PIECES_MAX)
        repeats = chunk_of(entries[:1000], PIECES_MAX)
        times_ms = step_times_ms(table.steps(repeats))
        tell_ms("  and a repeat at the limit", sum(times_ms) / 1000)
        late = chunk_of([(None, None, ())], PIECES_MAX + 1000, NOW_MS + 300_000)
        tell("  its total", step_times_ms(table.steps(late)))


def measure_interim() -> None:
    """Have orders give interim totals: many orders one each, and one large order many."""
    day_ms = 86_400_000
    table = ColumnTable(Place(0, 1), Policy(idle_timeout_ms=2 * day_ms), OWN_SCHEMA_ONLY, seed=7)
    for at in range(0, RUNNING_ORDERS, 50_000):
        table.fold(chunk_of(segments(50_000, lambda i, at=at: b"SO-%d" % (at + i)), at))  # type: ignore[misc]
    late = chunk_of([(None, None, ())], RUNNING_ORDERS, NOW_MS + day_ms)
    tell(f"{RUNNING_ORDERS:,} interim totals due at once", step_times_ms(table.steps(late)))
    often = Policy(idle_timeout_ms=INTERIM_TOTALS * 1_000, interim_interval_ms=1_000)
    table, entries = ColumnTable(Place(0, 1), often, OWN_SCHEMA_ONLY, seed=7), []
    for at in range(PIECES_MAX):
        start_ms = NOW_MS - 80_000_000 + 3 * at
        entries.append((b"S1", value_of(b"S1", 2 * at + 1, start_ms, start_ms + 1, False), ()))
    table.fold(chunk_of(entries))
    late = chunk_of([(None, None, ())], PIECES_MAX, NOW_MS + 1_000 * INTERIM_TOTALS)
    name = f"{INTERIM_TOTALS} totals due of one order of {PIECES_MAX:,} + {PIECES_MAX:,}"
    tell(name, step_times_ms(table.steps(late)))


def block_of_small_orders() -> list[tuple[int, Order]]:
    """Return a block full of the largest orders that get no entry of their own."""
    half = LARGE_PIECES // 2
    return [(at, order_with(f"{at:064}", half, at=2**62)) for at in range(BLOCK_SLOTS)]


def measure_entries() -> None:
    """Take and read entries at the limits."""
    large = order_with("x" * 64, PIECES_MAX, at=2**62)
    small = block_of_small_orders()
    for name, take in (
        (f"an order of {PIECES_MAX:,} + {PIECES_MAX:,}", lambda: large_snapshot(0, large)),
        (f"a block of {BLOCK_SLOTS} x {LARGE_PIECES} pieces", lambda: plain_snapshot(small)),
    ):
        took_ms, snapshot = timed_ms(take)
        tell_ms(f"snapshot of {name}", took_ms, f"weight {snapshot.weight}")
        took_ms, content = timed_ms(snapshot.pack)
        tell_ms("  packed, beside the loop", took_ms, f"{len(content)} bytes")
        took_ms, _ = timed_ms(lambda content=content: new_table().restore([content], 0))  # type: ignore[misc]
        tell_ms("  restored, beside the loop", took_ms)
    table = new_table()
    table.restore([large_snapshot(0, large).pack()], 0)
    tell_ms("described whole", timed_ms(lambda: table.describe("x" * 64))[0])
    tell_ms("described to 100", timed_ms(lambda: table.describe("x" * 64, 100))[0])


def measure() -> list[Turn]:
    """Measure all of it; return it in the order in which it was printed."""
    TURNS.clear()
    compile_kernel()
    measure_steps()
    measure_pieces()
    measure_interim()
    measure_entries()
    return list(TURNS)


if __name__ == "__main__":
    measure()
