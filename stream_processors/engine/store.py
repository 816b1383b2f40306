"""The rows of one partition: their memory, their slots, and what each of them holds.

Arrays are reserved at their greatest size as anonymous memory without commitment. So growing means
touching the next page: nothing is ever copied, and the process holds what it uses. Only the small
tables of the index are moved when they grow, one at a time.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from durabill.stream_processors.core.opening import Opened
from durabill.stream_processors.core.order import NEVER_MS
from durabill.stream_processors.engine.kernel import fold, maintain, parse, rows
from durabill.stream_processors.engine.memory import reserve
from durabill.stream_processors.engine.row_index import KEY_WORDS, RowIndex, key_of
from durabill.stream_processors.engine.row_openings import OpeningsOfRows

ROWS_MAX = 1 << 24
"""Orders of a partition that can be rows; further ones stay with the plain core, only slower."""

LISTS_SHARE = 64
"""One piece list may be in use for so many rows; then further orders with holes stay plain.

Blocks of different age can hold more piece lists together than there ever were at once. So the pool
has room for one a row, and every restore fits."""

Pieces = list[tuple[int, int]]
BothPieces = tuple[Pieces, Pieces]
"""An order's intervals and its ranges of numbers."""


class RowStore:
    """The rows of one partition's table; `interim_after_ms` is the policy's."""

    def __init__(self, seed: int, rows_max: int, interim_after_ms: int = NEVER_MS) -> None:
        self.rows_max = rows_max
        self.interim_after_ms = interim_after_ms
        blocks = rows_max // rows.BLOCK_ROWS + 1
        self.orders = reserve(rows_max, rows.ORDER)
        self.index = RowIndex(seed, self.orders)
        self.counters = np.zeros(rows.COUNTERS, np.int64)
        self.counters[rows.LISTS_MAX] = max(rows.BLOCK_ROWS, rows_max // LISTS_SHARE)
        self._overflow_free: list[int] = []
        self._overflow_used = 0
        self.arrays = rows.RowArrays(
            orders=self.orders,
            index=self.index.entries,
            tables=self.index.tables,
            free=reserve(rows_max, np.int32),
            lists=reserve(rows_max * rows.LIST_SIZE, np.int64).reshape(-1, rows.LIST_SIZE),
            lists_free=reserve(rows_max, np.int32),
            counters=self.counters,
            openings=reserve(rows_max, rows.OPENING),
            waiting=reserve(rows.WAITING_MARKS, np.uint8),
            block_due_ms=np.full(blocks, rows.NOT_DUE_MS, np.int64),
            block_retire_ms=np.full(blocks, rows.NOT_DUE_MS, np.int64),
            changed=np.zeros(blocks, np.uint8),
            deferred=np.empty(fold.DEFERRED_ROOM, np.int64),
            settlements=np.zeros(fold.SETTLEMENTS_ROOM, rows.ORDER),
            settled_at_ms=np.empty(fold.SETTLEMENTS_ROOM, np.int64),
            settled_status=np.empty(fold.SETTLEMENTS_ROOM, np.int64),
            settled_lists=np.empty((fold.SETTLEMENTS_ROOM, rows.LIST_SIZE), np.int64),
            words=self.index.words,
            records=np.zeros((fold.GROUP, parse.FIELDS), np.int64),
            names=np.zeros((fold.GROUP, KEY_WORDS), np.uint64),
            hashes=np.zeros(fold.GROUP, np.uint64),
        )
        self.openings = OpeningsOfRows(self.arrays, self.index)

    # -- slots --------------------------------------------------------------------------------

    def __len__(self) -> int:
        """Return the number of rows that hold an order."""
        return int(self.counters[rows.ORDERS])

    def unsettled(self) -> int:
        """Return how many rows hold an order that has yet to settle."""
        flags = self.orders["flags"][: int(self.counters[rows.ROWS_USED])]
        return int(
            np.count_nonzero((flags & (rows.USED | rows.SPILLED | rows.SETTLED)) == rows.USED)
        )

    def find(self, key: bytes) -> int:
        """Return the row with this key, -1 if there is none; it may be a placeholder."""
        return self.index.find(key)

    def find_order(self, key: bytes) -> int:
        """Return the row that holds the order with this key, -1 if there is none."""
        slot = self.index.find(key)
        return -1 if slot < 0 or self.is_placeholder(slot) else slot

    def age_of(self, slot: int) -> tuple[int, int]:
        """Return (last offset, last revision) of a row's order, as `restored.age_of` does."""
        row = self.orders[slot]
        return int(row["source_offset"]), int(row["revision"])

    def has_row(self, slot: int) -> bool:
        """Tell whether a slot has a row: overflow slots, above the greatest row, have none."""
        return slot < self.rows_max

    def is_placeholder(self, slot: int) -> bool:
        """Tell whether a row only keeps the name and the place of an order that is spilled."""
        return bool(self.orders[slot]["flags"] & rows.SPILLED)

    def take_slot(self, key: bytes) -> int:
        """Return the slot for a new plain order: its placeholder's, a new one's, or an overflow."""
        slot = self.find(key)
        if slot >= 0:
            assert self.is_placeholder(slot), "the kernel judged it other than we do"
            return slot
        free = int(self.counters[rows.ROWS_FREE])
        if free:
            self.counters[rows.ROWS_FREE] -= 1
            slot = int(self.arrays.free[free - 1])
        elif self.counters[rows.ROWS_USED] < self.rows_max:
            slot = int(self.counters[rows.ROWS_USED])
            self.counters[rows.ROWS_USED] += 1
        else:
            return self._take_overflow()
        self._make_placeholder(slot, key)
        return slot

    def _take_overflow(self) -> int:
        self.counters[rows.OVERFLOW] += 1
        if self._overflow_free:
            return self._overflow_free.pop()
        self._overflow_used += 1
        return self.rows_max + self._overflow_used - 1

    def restore_placeholder(self, slot: int, key: bytes) -> None:
        """Take this slot for a restored plain order."""
        if slot >= self.rows_max:
            self._overflow_free += range(self.rows_max + self._overflow_used, slot)
            self._overflow_used = slot - self.rows_max + 1
            self.counters[rows.OVERFLOW] += 1
            return
        self.counters[rows.ROWS_USED] = max(int(self.counters[rows.ROWS_USED]), slot + 1)
        self._make_placeholder(slot, key)

    def _make_placeholder(self, slot: int, key: bytes) -> None:
        row = self.orders[slot]
        row["flags"] = rows.USED | rows.SPILLED
        row["list_at"] = -1
        row["key_size"] = 0
        if len(key) <= rows.KEY_BYTES_MAX:
            self.index.enter(slot, key)

    def free_slot(self, slot: int) -> None:
        """Give back the slot of a plain order, and its name."""
        if slot >= self.rows_max:
            self._overflow_free.append(slot)
            self.counters[rows.OVERFLOW] -= 1
            return
        assert self.is_placeholder(slot)
        maintain.free_row(self.arrays, slot, self.index.seed)

    def drop(self, slot: int) -> None:
        """Empty a row whose order has a newer state elsewhere."""
        maintain.drop_row(self.arrays, slot, self.index.seed)

    # -- what a row holds ---------------------------------------------------------------------

    def key(self, slot: int) -> bytes:
        """Return the name of a row's order."""
        return key_of(self.orders[slot])

    def pieces(self, slot: int) -> BothPieces:
        """Return a row's intervals and its ranges of numbers, both half-open."""
        row = self.orders[slot]
        if row["list_at"] < 0:
            span_ms = (int(row["start_ms"]), int(row["end_ms"]))
            numbers = (int(row["first_number"]), int(row["last_number"]) + 1)
            return ([span_ms] if span_ms[0] < span_ms[1] else []), [numbers]
        found = self.arrays.lists[int(row["list_at"])].tolist()
        time = _pairs(found, rows.INTERVALS, found[0])
        return time, _pairs(found, rows.NUMBERS, found[1])

    def spill(self, slot: int) -> None:
        """Turn a row into a placeholder: its order is a plain one from now on."""
        maintain.spill_row(self.arrays, slot)

    def take_deferred(self) -> list[int]:
        """Return what the kernel's last call has left to the plain core, and count it as taken."""
        count = int(self.counters[rows.DEFERRED_COUNT])
        if not count:
            return []
        self.counters[rows.DEFERRED_COUNT] = 0
        return self.arrays.deferred[:count].tolist()  # type: ignore[no-any-return]

    def let_through(self, slot: int) -> None:
        """Let a row's records through again: none before them is deferred any more."""
        self.orders[slot]["flags"] &= ~rows.HAS_DEFERRED & 0xFF

    def put(
        self, slot: int, fields: Mapping[str, int], pieces: BothPieces, opened: Opened | None
    ) -> None:
        """Fill a placeholder with a plain order's content; `has_free_list` must hold."""
        time, numbers = pieces
        row = self.orders[slot]
        for name, value in fields.items():
            row[name] = value
        if opened is not None:
            self.openings.put(slot, opened)
        row["first_number"], row["last_number"] = numbers[0][0], numbers[-1][1] - 1
        row["list_at"] = -1
        span_ms = (fields["start_ms"], fields["end_ms"])
        if len(numbers) > 1 or time != ([span_ms] if span_ms[0] < span_ms[1] else []):
            row["list_at"] = self._put_list(time, numbers)
        self.counters[rows.ORDERS] += 1
        block, due_ms = slot // rows.BLOCK_ROWS, fields["deadline_ms"]
        if fields["flags"] & rows.SETTLED:
            _lower(self.arrays.block_retire_ms, block, due_ms)
        else:
            due_ms = min(due_ms, fields["unbilled_since_ms"] + self.interim_after_ms)
            _lower(self.arrays.block_due_ms, block, due_ms)
            _lower(self.counters, rows.NEXT_DUE_MS, due_ms)

    def _put_list(self, time: Pieces, numbers: Pieces) -> int:
        free = int(self.counters[rows.LISTS_FREE])
        if free:
            self.counters[rows.LISTS_FREE] -= 1
            at = int(self.arrays.lists_free[free - 1])
        else:
            at = int(self.counters[rows.LISTS_USED])
            self.counters[rows.LISTS_USED] += 1
        pieces = self.arrays.lists[at]
        pieces[0], pieces[1] = len(time), len(numbers)
        for base, pairs in ((rows.INTERVALS, time), (rows.NUMBERS, numbers)):
            for place, pair in enumerate(pairs):
                pieces[base + 2 * place : base + 2 * place + 2] = pair
        return at

    def has_free_list(self) -> bool:
        """Tell whether the pool can take a further piece list."""
        used = self.counters[rows.LISTS_USED] - self.counters[rows.LISTS_FREE]
        return bool(used < self.counters[rows.LISTS_MAX])


def _lower(bounds_ms: Any, at: int, due_ms: int) -> None:
    bounds_ms[at] = min(int(bounds_ms[at]), due_ms)


def _pairs(pieces: list[int], base: int, count: int) -> Pieces:
    return [(pieces[base + 2 * at], pieces[base + 2 * at + 1]) for at in range(count)]
