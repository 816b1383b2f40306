"""The names of rows: the memory of the kernel's hash tables, and one name looked up or entered."""

import mmap
from typing import Any

import numpy as np
from numpy.typing import NDArray

from durabill.stream_processors.engine.kernel import index, rows
from durabill.stream_processors.engine.memory import NO_COMMIT

KEY_WORDS = rows.KEY_BYTES_MAX // 8


class RowIndex:
    """From an order number's bytes to its row. `orders` are the rows; nobody may know `seed`."""

    def __init__(self, seed: int, orders: Any) -> None:
        self.seed = seed
        self.orders = orders
        size = 8 * len(orders) + 2 * index.TABLES * index.FIRST_ENTRIES
        self._memory = mmap.mmap(-1, 8 * size, flags=NO_COMMIT)
        self.entries = np.frombuffer(self._memory, np.uint64)
        self.entries_used = 0
        self.tables = np.zeros((index.TABLES, 3), np.int64)
        self.words = np.zeros(KEY_WORDS, np.uint64)
        """Scratch for a key."""
        for table in range(index.TABLES):
            self.tables[table, index.START] = self._take(index.FIRST_ENTRIES)
            self.tables[table, index.MASK] = index.FIRST_ENTRIES - 1

    def find(self, key: bytes) -> int:
        """Return the row with this key, -1 if there is none."""
        words = self.words_of(key)
        if words is None:
            return -1
        key_hash = np.uint64(index.hash_key(words, self.seed))
        return int(index.find(self.orders, self.entries, self.tables, words, key_hash))

    def words_of(self, key: bytes) -> NDArray[np.uint64] | None:
        """Return a name as a row has it, None if no row can have it."""
        if not 1 <= len(key) <= rows.KEY_BYTES_MAX or key.endswith(b"\0"):
            return None
        return _words(key)

    def enter(self, slot: int, key: bytes) -> None:
        """Enter a row's name into it and into the index."""
        words = _words(key)
        row = self.orders[slot]
        for at in range(KEY_WORDS):
            row[f"k{at}"] = words[at]
        row["key_size"] = len(key)
        key_hash = np.uint64(index.hash_key(words, self.seed))
        table = int(index.table_to_grow(self.tables, key_hash))
        if table >= 0:
            self.grow(table)
        index.add(self.entries, self.tables, key_hash, slot)

    def grow(self, table: int) -> None:
        """Give a table twice its room."""
        start = int(self.tables[table, index.START])
        size = int(self.tables[table, index.MASK]) + 1
        index.move_table(
            self.orders,
            self.entries,
            self.tables,
            table,
            self._take(2 * size),
            2 * size,
            self.words,
            self.seed,
        )
        self._give_back(start, size)

    def _take(self, size: int) -> int:
        start = self.entries_used
        self.entries_used += size
        assert self.entries_used <= len(self.entries)
        return start

    def _give_back(self, start: int, size: int) -> None:
        """Return the memory of a table that has moved to the system, in whole pages."""
        entry = self.entries.itemsize
        first = -(-start * entry // mmap.PAGESIZE) * mmap.PAGESIZE
        after = (start + size) * entry // mmap.PAGESIZE * mmap.PAGESIZE
        if after > first and hasattr(mmap, "MADV_DONTNEED"):
            self._memory.madvise(mmap.MADV_DONTNEED, first, after - first)


def key_of(row: Any) -> bytes:
    """Return the name of a row's order."""
    words = b"".join(row[f"k{at}"].tobytes() for at in range(KEY_WORDS))
    return words[: int(row["key_size"]) & rows.KEY_SIZE_BITS]


def _words(key: bytes) -> NDArray[np.uint64]:
    return np.frombuffer(key.ljust(rows.KEY_BYTES_MAX, b"\0"), np.uint64)
