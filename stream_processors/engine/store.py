"""The columns' memory: rows, their index, the pool of extras, the scratch of a batch, blocks.

Arrays are reserved at their greatest size as anonymous memory without commitment, so growing means
touching the next page: nothing is ever copied, and the process holds what it uses. Only the index's
small tables are moved when they grow, one at a time.
"""

import mmap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from durabill.schemas.errors import StateError
from durabill.stream_processors.core.order import NEVER_MS, Order
from durabill.stream_processors.engine.blocks import (
    BlockContent,
    Snapshot,
    columns_snapshot,
    decode_block,
)
from durabill.stream_processors.engine.kernel import fold, index, maintain, parse, rows, upgrade
from durabill.stream_processors.engine.memory import NO_COMMIT, reserve
from durabill.stream_processors.engine.slots import Restored, age_of

ROWS_MAX = 1 << 24
"""Orders of a partition that can be rows; further ones stay with the plain core, only slower."""

EXTRAS_SHARE = 64
"""One extra in use for so many rows; when all are in use, further orders with holes stay plain.

Blocks of different age can hold more of them together than there ever were at once, so the pool
has room for a restore of any."""

_WORDS = rows.KEY_BYTES_MAX // 8


class Rows:
    """The rows of one partition's table; `interim_after_ms` is the policy's."""

    def __init__(self, seed: int, rows_max: int, interim_after_ms: int = NEVER_MS) -> None:
        self._seed = seed
        self._interim_after_ms = interim_after_ms
        self._max = rows_max
        blocks = rows_max // rows.BLOCK_ROWS + 1
        self.orders = reserve(rows_max, rows.ORDER)
        index_size = 8 * rows_max + 2 * index.TABLES * index.FIRST_SIZE
        self._index_memory = mmap.mmap(-1, 8 * index_size, flags=NO_COMMIT)
        self._index = np.frombuffer(self._index_memory, np.uint64)
        self._index_used = 0
        self._tables = np.zeros((index.TABLES, 3), np.int64)
        self._free = reserve(rows_max, np.int32)
        self._extra = reserve(rows_max * rows.EXTRA_SIZE, np.int64).reshape(-1, rows.EXTRA_SIZE)
        self._extra_free = reserve(rows_max, np.int32)
        self.counters = np.zeros(rows.COUNTERS, np.int64)
        self.counters[rows.EXTRAS_MAX] = max(rows.BLOCK_ROWS, rows_max // EXTRAS_SHARE)
        self._block_due = np.full(blocks, rows.NEVER, np.int64)
        self._block_retire = np.full(blocks, rows.NEVER, np.int64)
        self._changed = np.zeros(blocks, np.uint8)
        self._beyond: list[int] = []
        self._beyond_used = 0
        for table in range(index.TABLES):
            self._tables[table, index.START] = self._take_index(index.FIRST_SIZE)
            self._tables[table, index.MASK] = index.FIRST_SIZE - 1
        self._words = np.zeros(_WORDS, np.uint64)
        self._group = (
            np.zeros((fold.GROUP, parse.FIELDS), np.int64),
            np.zeros((fold.GROUP, _WORDS), np.uint64),
            np.zeros(fold.GROUP, np.uint64),
        )
        self._make_scratch()

    def _make_scratch(self) -> None:
        """Make the room for what one call of the kernel notes."""
        self.slow = np.empty(fold.SLOWS_ROOM, np.int64)
        self.events = np.zeros(fold.EVENTS_ROOM, rows.ORDER)
        self.event_at = np.empty(fold.EVENTS_ROOM, np.int64)
        self.event_status = np.empty(fold.EVENTS_ROOM, np.int64)
        self.event_extra = np.empty((fold.EVENTS_ROOM, rows.EXTRA_SIZE), np.int64)
        self.arrays = rows.Store(
            self.orders, self._index, self._tables, self._free, self._extra, self._extra_free,
            self.counters, self._block_due, self._block_retire, self._changed, self.slow,
            self.events, self.event_at, self.event_status, self.event_extra, self._words,
            *self._group,
        )  # fmt: skip

    # -- the index ----------------------------------------------------------------------------

    def _take_index(self, size: int) -> int:
        start = self._index_used
        self._index_used += size
        assert self._index_used <= len(self._index)
        return start

    def grow_table(self, table: int) -> None:
        """Give an index table twice its room."""
        start = int(self._tables[table, index.START])
        size = int(self._tables[table, index.MASK]) + 1
        new_start = self._take_index(2 * size)
        index.move_table(
            self.orders,
            self._index,
            self._tables,
            table,
            new_start,
            2 * size,
            self._words,
            self._seed,
        )
        self._give_index_back(start, size)

    def _give_index_back(self, start: int, size: int) -> None:
        """Return the memory of a table that has moved to the system, in whole pages."""
        entry = self._index.itemsize
        first = -(-start * entry // mmap.PAGESIZE) * mmap.PAGESIZE
        after = (start + size) * entry // mmap.PAGESIZE * mmap.PAGESIZE
        if after > first and hasattr(mmap, "MADV_DONTNEED"):
            self._index_memory.madvise(mmap.MADV_DONTNEED, first, after - first)

    def find(self, key: bytes) -> int:
        """Return the row with this key, -1 if there is none."""
        if not 1 <= len(key) <= rows.KEY_BYTES_MAX or key.endswith(b"\0"):
            return -1
        words = _words(key)
        key_hash = np.uint64(index.hash_key(words, self._seed))
        return int(index.find(self.orders, self._index, self._tables, words, key_hash))

    def _enter(self, slot: int, key: bytes) -> None:
        """Enter a row's name into it and into the index."""
        words = _words(key)
        row = self.orders[slot]
        for at in range(_WORDS):
            row[f"k{at}"] = words[at]
        row["key_size"] = len(key)
        key_hash = np.uint64(index.hash_key(words, self._seed))
        table = int(index.table_to_grow(self._tables, key_hash))
        if table >= 0:
            self.grow_table(table)
        index.add(self._index, self._tables, key_hash, slot)

    # -- rows ---------------------------------------------------------------------------------

    def has(self, slot: int) -> bool:
        """Tell whether a slot is a row (those beyond the columns' size are not)."""
        return slot < self._max

    def take_slot(self, key: bytes) -> int:
        """Return the slot for a new plain order: its stub, a new stub, or a slot without a row."""
        slot = self.find(key)
        if slot >= 0:
            assert self.orders[slot]["flags"] & rows.ODD, "the kernel judged it other than we do"
            return slot
        free = int(self.counters[rows.ROWS_FREE])
        if free:
            self.counters[rows.ROWS_FREE] -= 1
            slot = int(self._free[free - 1])
        elif self.counters[rows.ROWS_USED] < self._max:
            slot = int(self.counters[rows.ROWS_USED])
            self.counters[rows.ROWS_USED] += 1
        else:
            return self._take_beyond()
        self._make_stub(slot, key)
        return slot

    def _take_beyond(self) -> int:
        self.counters[rows.BEYOND] += 1
        if self._beyond:
            return self._beyond.pop()
        self._beyond_used += 1
        return self._max + self._beyond_used - 1

    def free_row(self, slot: int) -> None:
        """Give back an odd order's slot, and its name."""
        if slot >= self._max:
            self._beyond.append(slot)
            self.counters[rows.BEYOND] -= 1
            return
        row = self.orders[slot]
        assert int(row["flags"]) & rows.ODD
        maintain.free_row(self.arrays, slot, self._seed)

    def make_odd(self, slot: int) -> None:
        """Turn a row into a stub; its order has been lifted."""
        maintain.make_odd(self.arrays, slot)

    def key(self, slot: int) -> bytes:
        """Return the name of a row's order."""
        row = self.orders[slot]
        words = b"".join(row[f"k{at}"].tobytes() for at in range(_WORDS))
        return words[: int(row["key_size"])]

    def pieces(self, slot: int) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
        """Return a row's intervals and its ranges of numbers, both half-open."""
        row = self.orders[slot]
        if row["extra"] < 0:
            span = (int(row["start_ms"]), int(row["end_ms"]))
            numbers = (int(row["first_number"]), int(row["last_number"]) + 1)
            return ([span] if span[0] < span[1] else []), [numbers]
        extra = self._extra[int(row["extra"])].tolist()
        return _pairs(extra, rows.INTERVALS, extra[0]), _pairs(extra, rows.NUMBERS, extra[1])

    def put(
        self,
        slot: int,
        fields: Mapping[str, int],
        time: list[tuple[int, int]],
        numbers: list[tuple[int, int]],
    ) -> None:
        """Fill the row of a stub with a plain order's content; `has_extra` must hold."""
        row = self.orders[slot]
        for name, value in fields.items():
            row[name] = value
        row["first_number"], row["last_number"] = numbers[0][0], numbers[-1][1] - 1
        row["extra"] = -1
        span = (fields["start_ms"], fields["end_ms"])
        if len(numbers) > 1 or time != ([span] if span[0] < span[1] else []):
            row["extra"] = self._put_extra(time, numbers)
        self.counters[rows.ORDERS] += 1
        block, due_ms = slot // rows.BLOCK_ROWS, fields["deadline_ms"]
        if fields["flags"] & rows.SETTLED:
            self._block_retire[block] = min(self._block_retire[block], due_ms)
        else:
            due_ms = min(due_ms, fields["unbilled_since_ms"] + self._interim_after_ms)
            self._block_due[block] = min(self._block_due[block], due_ms)

    def _put_extra(self, time: list[tuple[int, int]], numbers: list[tuple[int, int]]) -> int:
        free = int(self.counters[rows.EXTRAS_FREE])
        if free:
            self.counters[rows.EXTRAS_FREE] -= 1
            at = int(self._extra_free[free - 1])
        else:
            at = int(self.counters[rows.EXTRAS_USED])
            self.counters[rows.EXTRAS_USED] += 1
        extra = self._extra[at]
        extra[0], extra[1] = len(time), len(numbers)
        for base, pairs in ((rows.INTERVALS, time), (rows.NUMBERS, numbers)):
            for place, pair in enumerate(pairs):
                extra[base + 2 * place : base + 2 * place + 2] = pair
        return at

    def has_extra(self) -> bool:
        """Tell whether the pool can take a further row."""
        used = self.counters[rows.EXTRAS_USED] - self.counters[rows.EXTRAS_FREE]
        return bool(used < self.counters[rows.EXTRAS_MAX])

    # -- time ---------------------------------------------------------------------------------

    def settle_due(self, block: int, now_ms: int, window_ms: int, tolerance_ms: int) -> int:
        """Note the totals due at `now_ms` as events; return the block to go on with, or -1.

        `slow` holds the rows that are due an interim total, as many as its counter tells.
        """
        self.counters[rows.SLOWS] = 0
        waits_ms = (self._interim_after_ms, window_ms + tolerance_ms, tolerance_ms)
        return int(rows.settle_due(self.arrays, block, now_ms, *waits_ms))

    def look_again(self, interim_after_ms: int) -> None:
        """Take another interval; the next look finds out anew when rows are due."""
        self._interim_after_ms = interim_after_ms
        used = int(self.counters[rows.ROWS_USED])
        self._block_due[: used // rows.BLOCK_ROWS + 1] = 0

    def retire(self, clock_ms: int) -> bool:
        """Free the rows of orders whose time was over before `clock_ms`; False: that was all."""
        return bool(maintain.retire(self.arrays, clock_ms, self._seed))

    def oldest_deadline_ms(self) -> int | None:
        """Return the earliest instant at which a row gives its next total."""
        oldest = int(maintain.oldest_deadline(self.arrays, self._interim_after_ms))
        return None if oldest == rows.NEVER else oldest

    def next_due_ms(self, now_ms: int) -> int | None:
        """Return when a row gives its next total; an instant after `now_ms` may be too early."""
        due = int(maintain.next_due(self.arrays, now_ms, self._interim_after_ms))
        return None if due == rows.NEVER else due

    def event_keys(self, count: int) -> list[bytes]:
        """Return the names of the first `count` events' orders."""
        events = self.events[:count]
        words = np.stack([events[f"k{at}"] for at in range(_WORDS)], axis=1).tobytes()
        sizes = events["key_size"].tolist()
        width = rows.KEY_BYTES_MAX
        return [words[at * width : at * width + size] for at, size in enumerate(sizes)]

    # -- blocks -------------------------------------------------------------------------------

    def take_changed(self) -> set[int]:
        """Return the blocks with changed rows, and count them as unchanged from now on."""
        blocks = np.flatnonzero(self._changed)
        self._changed[blocks] = 0
        return set(blocks.tolist())

    def snapshot(
        self, block: int, odd: Mapping[int, Order], frozen: Sequence[Any]
    ) -> Snapshot | None:
        """Return what a block holds now, None if that is no order; see `slots` for `frozen`."""
        first = min(block * rows.BLOCK_ROWS, self._max)
        after = min(first + rows.BLOCK_ROWS, self._max)
        flags = self.orders[first:after]["flags"]
        held_at = (flags & (rows.USED | rows.ODD)) == rows.USED
        slots = (first + np.flatnonzero(held_at)).astype(np.int32)
        if not len(slots) and not odd and not frozen:
            return None
        held = self.orders[slots]
        held["flags"] &= rows.USED | rows.PHASE | rows.SETTLEMENTS
        with_extra = np.flatnonzero(held["extra"] >= 0)
        extras = self._extra[held["extra"][with_extra]]
        held["extra"][with_extra] = np.arange(len(with_extra))
        assert maintain.are_sound(held, extras)
        return columns_snapshot(slots, held, extras, odd.items(), frozen)

    def restore(self, blocks: Iterable[bytes]) -> tuple[list[tuple[int, Order]], dict[int, Order]]:
        """Fill the empty rows from entries; return the plain orders, and what own entries hold.

        Of two states of an order, and of two orders in one slot, the newer is taken; see `slots`.
        """
        restored = Restored()
        for block in blocks:
            content = decode_block(block)
            if content.rows:
                self._restore_rows(content)
            restored.add(content)
        kept = [
            (slot, order)
            for slot, order in restored.orders(self._drop_older_row)
            if self._has_slot(slot, order)
        ]
        for slot, order in kept:
            self._restore_stub(slot, order.service_order_number.encode())
        maintain.list_free(self.arrays)
        return kept, restored.own

    def _restore_rows(self, content: BlockContent) -> None:
        if content.is_old:
            held = upgrade.rows_of_version_2(content.rows)
        else:
            held = np.frombuffer(content.rows, rows.ORDER)
        slots = np.frombuffer(content.slots, np.int32)
        pieces = np.frombuffer(content.extras, np.int64).reshape(-1, rows.EXTRA_SIZE)
        assert len(held) == len(slots)
        if len(slots) and int(slots.max()) >= self._max:
            raise StateError(
                f"a checkpoint has rows up to {slots.max()}, this worker has {self._max}: run it"
                " with the rows_max of the one that wrote it"
            )
        assert maintain.are_sound(held, pieces)
        progress = np.zeros(1, np.int64)
        after_ms = self._interim_after_ms
        while True:
            table = maintain.restore_rows(
                self.arrays, held, slots, pieces, progress, after_ms, self._seed
            )
            if table < 0:
                return
            self.grow_table(table)

    def _drop_older_row(self, order: Order) -> bool:
        """Tell whether no row has a newer state of a plain order; drops one with an older."""
        slot = self.find(order.service_order_number.encode())
        return slot < 0 or self._drop_older(slot, order)

    def _has_slot(self, slot: int, order: Order) -> bool:
        """Tell whether a slot is a plain order's; drops a row that is there from before."""
        is_free = slot >= self._max or not self.orders[slot]["flags"] & rows.USED
        return is_free or self._drop_older(slot, order)

    def _drop_older(self, slot: int, order: Order) -> bool:
        row = self.orders[slot]
        if (int(row["source_offset"]), int(row["revision"])) >= age_of(order):
            return False
        maintain.drop_row(self.arrays, slot, self._seed)
        return True

    def _restore_stub(self, slot: int, key: bytes) -> None:
        if slot >= self._max:
            self._beyond += range(self._max + self._beyond_used, slot)
            self._beyond_used = slot - self._max + 1
            self.counters[rows.BEYOND] += 1
            return
        self.counters[rows.ROWS_USED] = max(int(self.counters[rows.ROWS_USED]), slot + 1)
        self._make_stub(slot, key)

    def _make_stub(self, slot: int, key: bytes) -> None:
        row = self.orders[slot]
        row["flags"] = rows.USED | rows.ODD
        row["extra"] = -1
        row["key_size"] = 0
        if len(key) <= rows.KEY_BYTES_MAX:
            self._enter(slot, key)


def _words(key: bytes) -> NDArray[np.uint64]:
    return np.frombuffer(key.ljust(rows.KEY_BYTES_MAX, b"\0"), np.uint64)


def _pairs(extra: list[int], base: int, count: int) -> list[tuple[int, int]]:
    return [(extra[base + 2 * at], extra[base + 2 * at + 1]) for at in range(count)]
