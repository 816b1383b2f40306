"""The tables that workers get: with blocks of a few orders, so that checkpoints have several."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from random import Random

import numpy as np

from durabill.schemas import WriterSchemas
from durabill.stream_processors.core.order import Policy
from durabill.stream_processors.engine import slots as slots_module
from durabill.stream_processors.engine.columns import ColumnTable
from durabill.stream_processors.engine.kernel import rows
from durabill.stream_processors.engine.plain import PlainTable
from durabill.stream_processors.engine.table import IntervalTable, Place
from durabill.stream_processors.worker import processor as worker_module

BLOCK_SLOTS = 2
LARGE_PIECES = 3
BLOCKS = 3
SLOTS_A_BLOCK = 12
PIECES_MAX = 9
"""Of an order's intervals, and of its ranges of numbers: a few, so that small traffic meets it."""

TableMaker = Callable[[Place, Policy, WriterSchemas], IntervalTable]


class ScatteredTable(ColumnTable):
    """A batch path's table whose free rows lie in several blocks.

    The number of rows in a block is compiled into the kernel, so its blocks can't be made smaller.
    """

    def __init__(self, place: Place, policy: Policy, writers: WriterSchemas, seed: int) -> None:
        rows_max = BLOCKS * rows.BLOCK_ROWS
        super().__init__(
            place, policy, writers, seed=seed, rows_max=rows_max, pieces_max=PIECES_MAX
        )
        self._scatter()

    def restore(self, blocks: Iterable[bytes], clock_ms: int) -> None:
        """Fill the table, and have its free rows in several blocks again."""
        super().restore(blocks, clock_ms)
        self._scatter()

    def _scatter(self) -> None:
        store = self._store
        slots = [
            slot
            for at in range(SLOTS_A_BLOCK)
            for slot in range(at, BLOCKS * rows.BLOCK_ROWS, rows.BLOCK_ROWS)
            if not store.orders[slot]["flags"]
        ]
        store.counters[rows.ROWS_USED] = BLOCKS * rows.BLOCK_ROWS
        store.counters[rows.ROWS_FREE] = len(slots)
        store.arrays.free[: len(slots)] = np.array(slots[::-1], np.int32)


def table_maker(columns: bool, dice: Random) -> TableMaker:
    """Return what makes a worker's tables."""
    if not columns:
        return lambda place, policy, writers: empty_table(False, place, policy, writers)
    return lambda place, policy, writers: ScatteredTable(
        place, policy, writers, dice.getrandbits(50)
    )


def empty_table(
    columns: bool, place: Place, policy: Policy, writers: WriterSchemas
) -> IntervalTable:
    """Return a table for the auditor."""
    if columns:
        return ScatteredTable(place, policy, writers, 1)
    return PlainTable(place, policy, writers, pieces_max=PIECES_MAX)


@contextmanager
def small_blocks(columns: bool) -> Iterator[None]:
    """Have plain tables cut their orders into small blocks, and orders be large soon.

    And have few blocks taken at once, so that a checkpoint's are of different moments.
    """
    before = slots_module.BLOCK_SLOTS, slots_module.LARGE_PIECES, worker_module.BLOCKS_AT_ONCE
    worker_module.BLOCKS_AT_ONCE = 1
    slots_module.LARGE_PIECES = LARGE_PIECES
    if not columns:
        slots_module.BLOCK_SLOTS = BLOCK_SLOTS
    try:
        yield
    finally:
        slots_module.BLOCK_SLOTS, slots_module.LARGE_PIECES, worker_module.BLOCKS_AT_ONCE = before
