"""From an order number's bytes to its row: open addressing in many small tables.

The upper half of an entry is a fingerprint of the key, the lower half the row's number plus one
(0: empty). Eight bits of a key's hash choose one of 256 tables. Each table grows by itself, so
growing holds the stream up only as long as one small table takes. The hash is seeded: nobody can
choose order numbers that collide. Keys are compared byte for byte.
"""

from typing import Any

import numpy as np

from durabill.stream_processors.engine.kernel import compiled, hot
from durabill.stream_processors.engine.kernel.rows import KEY_BYTES_MAX, WAITING_MARKS
from durabill.stream_processors.engine.kernel.unaligned import load_u64

TABLES = 256
START = 0
MASK = 1
FILLED = 2
"""Columns of `tables`, int64: where a table starts in the index, its size less one, its entries."""

FIRST_ENTRIES = 64
_K1 = np.uint64(0x9E3779B97F4A7C15)
_K2 = np.uint64(0xD6E8FEB86659FD93)
_SHIFT = np.uint64(32)
_LOW = np.uint64(0xFFFFFFFF)
_EIGHT = np.uint64(8)
_ONE = np.uint64(1)
_WAITING_SHIFT = np.uint64(40)


@hot
def load_key(data: Any, at: int, size: int, words: Any) -> None:
    """Put the `size` bytes (at most KEY_BYTES_MAX) at `at` into five words, padded with zeros."""
    whole = size >> 3
    for w in range(whole):
        words[w] = load_u64(data, at + 8 * w)
    for w in range(whole, KEY_BYTES_MAX // 8):
        words[w] = 0
    rest = size & 7
    if rest:
        last = np.uint64(0)
        if at + 8 * whole + 8 <= len(data):
            last = load_u64(data, at + 8 * whole) & ((_ONE << np.uint64(8 * rest)) - _ONE)
        else:
            for b in range(rest - 1, -1, -1):
                last = (last << _EIGHT) | np.uint64(data[at + 8 * whole + b])
        words[whole] = last


@hot
def hash_key(words: Any, seed: int) -> Any:
    """Return a 64-bit hash of a key's words."""
    h = np.uint64(seed)
    for w in range(KEY_BYTES_MAX // 8):
        h = (h ^ words[w]) * _K1
        h ^= h >> _SHIFT
    h *= _K2
    return h ^ (h >> _SHIFT)


@hot
def waiting_at(key_hash: Any) -> int:
    """Return which counter of `waiting` a name has."""
    return np.int64((key_hash >> _WAITING_SHIFT) & np.uint64(WAITING_MARKS - 1))


@hot
def load_row_key(orders: Any, slot: int, words: Any) -> None:
    """Put the key that a row holds into `words`."""
    order = orders[slot]
    words[0] = order.k0
    words[1] = order.k1
    words[2] = order.k2
    words[3] = order.k3
    words[4] = order.k4


@compiled
def row_hash(orders: Any, slot: int, words: Any, seed: int) -> Any:
    """Return the hash of the key that a row holds, which `words` is left with."""
    load_row_key(orders, slot, words)
    return hash_key(words, seed)


@hot
def place_of(tables: Any, key_hash: Any) -> int:
    """Return where in the index the search for a key begins."""
    table = np.int64(key_hash & np.uint64(TABLES - 1))
    at = np.int64((key_hash >> _EIGHT) & np.uint64(0xFFFFFF)) & tables[table, MASK]
    return tables[table, START] + at


@hot
def row_at(entry: Any) -> int:
    """Return the row that an entry of the index is for; -1: it is empty."""
    return np.int64(entry & _LOW) - 1


@hot
def find(orders: Any, index: Any, tables: Any, words: Any, key_hash: Any) -> int:
    """Return the row with this key, or -1."""
    table = np.int64(key_hash & np.uint64(TABLES - 1))
    start, mask = tables[table, START], tables[table, MASK]
    at = np.int64((key_hash >> _EIGHT) & np.uint64(0xFFFFFF)) & mask
    mark = key_hash & ~_LOW
    while True:
        entry = index[start + at]
        if entry == 0:
            return -1
        if entry & ~_LOW == mark:
            slot = row_at(entry)
            order = orders[slot]
            if (
                order.k0 == words[0]
                and order.k1 == words[1]
                and order.k2 == words[2]
                and order.k3 == words[3]
                and order.k4 == words[4]
            ):
                return slot
        at = (at + 1) & mask


@hot
def table_to_grow(tables: Any, key_hash: Any) -> int:
    """Return the table that has to grow before this key can be added, or -1."""
    table = np.int64(key_hash & np.uint64(TABLES - 1))
    return table if 10 * (tables[table, FILLED] + 1) > 7 * (tables[table, MASK] + 1) else -1


@compiled
def add(index: Any, tables: Any, key_hash: Any, slot: int) -> None:
    """Add a row under a key that is not in the index, to a table that has room."""
    table = np.int64(key_hash & np.uint64(TABLES - 1))
    start, mask = tables[table, START], tables[table, MASK]
    at = np.int64((key_hash >> _EIGHT) & np.uint64(0xFFFFFF)) & mask
    while index[start + at] != 0:
        at = (at + 1) & mask
    index[start + at] = (key_hash & ~_LOW) | np.uint64(slot + 1)
    tables[table, FILLED] += 1


@compiled
def remove(orders: Any, index: Any, tables: Any, words: Any, key_hash: Any, seed: int) -> None:
    """Take a key out that is in the index, and close the gap, so that no tombstones pile up.

    `words` holds the key, and is scratch from then on.
    """
    table = np.int64(key_hash & np.uint64(TABLES - 1))
    start, mask = tables[table, START], tables[table, MASK]
    slot = find(orders, index, tables, words, key_hash)
    at = np.int64((key_hash >> _EIGHT) & np.uint64(0xFFFFFF)) & mask
    while row_at(index[start + at]) != slot:
        at = (at + 1) & mask
    gap = at
    while True:
        at = (at + 1) & mask
        entry = index[start + at]
        if entry == 0:
            break
        other = row_hash(orders, row_at(entry), words, seed)
        home = np.int64((other >> _EIGHT) & np.uint64(0xFFFFFF)) & mask
        if ((at - home) & mask) >= ((at - gap) & mask):
            index[start + gap] = entry
            gap = at
    index[start + gap] = 0
    tables[table, FILLED] -= 1


@compiled
def move_table(
    orders: Any,
    index: Any,
    tables: Any,
    table: int,
    start: int,
    size: int,
    words: Any,
    seed: int,
) -> None:
    """Rehash a table into the `size` empty entries at `start`; `words` is scratch."""
    old_start, old_mask = tables[table, START], tables[table, MASK]
    tables[table, START] = start
    tables[table, MASK] = size - 1
    tables[table, FILLED] = 0
    for at in range(old_start, old_start + old_mask + 1):
        entry = index[at]
        if entry != 0:
            slot = row_at(entry)
            add(index, tables, row_hash(orders, slot, words, seed), slot)
