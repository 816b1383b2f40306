"""An order as a row, and what a segment does to it.

A row by itself holds an order whose numbers are one range and whose time is one interval. Then
[start_ms, end_ms) is that interval (empty where both are equal), and `list_at` is -1. An order of
more pieces has a piece list beside its row: up to PIECES_MAX intervals and as many ranges, in a
pool. In both cases start_ms and end_ms are the first start and the last end over the accepted
records. What doesn't fit is left to the plain core, before anything has been changed.

A row that isn't settled has revision 0. An order that was reopened or has given an interim total
is a plain order until it is settled: only there the digest of the revision before is known.
"""

from typing import Any, NamedTuple

import numpy as np

from durabill.stream_processors.engine.kernel import compiled, hot

ORDER = np.dtype(
    [
        ("start_ms", "<i8"),
        ("end_ms", "<i8"),
        ("deadline_ms", "<i8"),
        ("unbilled_since_ms", "<i8"),
        ("source_offset", "<i8"),
        ("overlap_ms", "<i8"),
        ("first_number", "<i4"),
        ("last_number", "<i4"),
        ("end_number", "<i4"),
        ("accepted", "<i4"),
        ("list_at", "<i4"),
        ("revision", "<i2"),
        ("flags", "u1"),
        ("key_size", "u1"),
        ("k0", "<u8"),
        ("k1", "<u8"),
        ("k2", "<u8"),
        ("k3", "<u8"),
        ("k4", "<u8"),
    ]
)
"""One order, 112 bytes; `end_number` 0: none yet. The key is padded with zeros."""
assert ORDER.itemsize == 112

OPENING = np.dtype([("begin_ms", "<i8"), ("accept_until_ms", "<i8"), ("offset", "<i8")])
"""What `core.opening` keeps of the opening of a row's order, but for whose it is."""

KEY_BYTES_MAX = 40
NUMBER_MAX = 2**31 - 2
ACCEPTED_MAX = 2**31 - 2
REVISION_MAX = 2**15 - 2
BLOCK_ROWS = 1024
SCANS_MAX = 512  # blocks whose rows are all looked at in one call

USED = 1
PHASE = 2 | 4
OPEN = 0
ENDED = 2
SETTLED = 4
SPILLED = 8
"""The order is a plain one; the row is a placeholder that keeps its place and its name."""
HAS_DEFERRED = 16
"""A record of this batch is deferred, so those of the order after it have to be as well."""

OPENED = 128
"""In `key_size`, whose other bits are enough for it: the order was opened; see `openings`."""
KEY_SIZE_BITS = 127

TIMES_SETTLED_SHIFT = 5
TIMES_SETTLED = 7 << TIMES_SETTLED_SHIFT
"""Of a settled row: how often its order has settled, less one; see `order.SETTLEMENTS_MAX`."""

PIECES_MAX = 8
INTERVALS = 2
NUMBERS = INTERVALS + 2 * PIECES_MAX
LIST_SIZE = NUMBERS + 2 * PIECES_MAX
"""A piece list, int64: count of intervals, count of ranges, the pairs of both, half-open."""

# Positions in the int64 array of a table's counters.
ROWS_USED = 0  # rows ever used: the next fresh row
ROWS_FREE = 1  # length of the stack of free rows
LISTS_USED = 2  # piece lists ever used
LISTS_FREE = 3  # length of the stack of free ones
DEFERRED_COUNT = 4  # what the kernel has deferred and the caller has not taken yet
SETTLEMENT_COUNT = 5  # settlements that the caller has not taken yet
SETTLEMENT_LISTS = 6  # and their piece lists
ORDERS = 7  # rows that hold an order: placeholders don't
OVERFLOW = 8  # orders without a row: these are all plain
LISTS_MAX = 9  # how many may be in use; the pool itself has one for every row
NEXT_DUE_MS = 10  # no unsettled row gives its next total before this
WAITING = 11  # openings whose orders have not begun, of names that a row can have
COUNTERS = 12

WAITING_MARKS = 1 << 20
"""How many counters `waiting` has. A name's hash chooses one; a hit may be another name's."""
WAITING_MAX = 255
"""A counter that gets here stays: it has lost count."""

COMPLETE = 0
INCOMPLETE = 1
ABANDONED = 2


class RowArrays(NamedTuple):
    """The arrays of one table; see `engine.store` for who makes them."""

    orders: Any  # ORDER: the rows
    index: Any  # uint64: the hash tables' entries; see `index`
    tables: Any  # int64, 256 x 3: where each of them is
    free: Any  # int32: stack of free rows
    lists: Any  # int64, n x LIST_SIZE: the pool of piece lists
    lists_free: Any  # int32: stack of free piece lists
    counters: Any  # int64: see above
    openings: Any  # OPENING: of those rows that are OPENED
    waiting: Any  # uint8: how many openings wait, by hashes of their names
    block_due_ms: Any  # int64: lower bound of when a block's unsettled rows give their next totals
    block_retire_ms: Any  # int64: the same of its settled rows
    changed: Any  # uint8: 1 where a block has changed since the last checkpoint
    deferred: Any  # int64: positions that `fold` has deferred, or rows, by `settle_due`
    settlements: Any  # ORDER: rows as they were when they settled
    settled_at_ms: Any  # int64: as of when
    settled_status: Any  # int64: COMPLETE, INCOMPLETE or ABANDONED
    settled_lists: Any  # int64, n x LIST_SIZE: their piece lists
    words: Any  # uint64: scratch for a key
    records: Any  # int64: the records of a group; see `parse`
    names: Any  # uint64: their keys
    hashes: Any  # uint64: those keys' hashes


NOT_DUE_MS = np.int64(2**63 - 1)  # nothing is due
# Outcomes of a record.
UNCHANGED = 0
CHANGED = 1
NO_ROOM = -1
NEEDS_LIST = -2
REJECTED = -3
LATE = -4  # older than the correction window, and nothing else is wrong
REPEATED = 2


@hot
def unite(row: Any, base: int, count: int, start: int, end: int) -> tuple[int, int]:
    """Unite [start, end) into the `count` pairs at `base`; return (new count, gained).

    The count is -1 and nothing has changed if a further pair would be needed and none is free.
    """
    i = 0
    while i < count and row[base + 2 * i + 1] < start:
        i += 1
    j = i
    low, high, covered = start, end, 0
    while j < count and row[base + 2 * j] <= end:
        covered += row[base + 2 * j + 1] - row[base + 2 * j]
        low = min(low, row[base + 2 * j])
        high = max(high, row[base + 2 * j + 1])
        j += 1
    if i == j:
        if count == PIECES_MAX:
            return -1, 0
        for k in range(count, i, -1):
            row[base + 2 * k] = row[base + 2 * k - 2]
            row[base + 2 * k + 1] = row[base + 2 * k - 1]
    else:
        for k in range(j, count):
            row[base + 2 * (k - j + i + 1)] = row[base + 2 * k]
            row[base + 2 * (k - j + i + 1) + 1] = row[base + 2 * k + 1]
    row[base + 2 * i] = low
    row[base + 2 * i + 1] = high
    return count + 1 - (j - i), high - low - covered


@hot
def covers(row: Any, base: int, count: int, start: int, end: int) -> bool:
    """Tell whether one of the pairs at `base` contains [start, end)."""
    for i in range(count):
        if row[base + 2 * i] <= start and end <= row[base + 2 * i + 1]:
            return True
    return False


@hot
def is_no_news(
    orders: Any, slot: int, lists: Any, number: int, start_ms: int, end_ms: int, is_end: bool
) -> bool:
    """Tell whether a record adds nothing to the evidence or to the span of an order."""
    order = orders[slot]
    if is_end and number > order.end_number:
        return False
    if start_ms < order.start_ms or end_ms > order.end_ms:
        return False
    if order.list_at < 0:
        return order.first_number <= number <= order.last_number
    row = lists[order.list_at]
    if not covers(row, NUMBERS, row[1], number, number + 1):
        return False
    return start_ms == end_ms or covers(row, INTERVALS, row[0], start_ms, end_ms)


@hot
def count_repeat(orders: Any, slot: int, length_ms: int, offset: int) -> None:
    """Count a record that is no news."""
    orders[slot].accepted += 1
    orders[slot].overlap_ms += length_ms
    orders[slot].source_offset = offset


@hot
def take_inline(orders: Any, slot: int, number: int, start_ms: int, end_ms: int) -> bool:
    """Add a record to a row without a piece list; False and unchanged if it needs one."""
    order = orders[slot]
    low_ms, high_ms = order.start_ms, order.end_ms
    if not order.first_number - 1 <= number <= order.last_number + 1:
        return False
    if start_ms > high_ms or end_ms < low_ms:
        return False
    # Empty pieces included: the span before and after is the interval, so the rest is growth.
    gained_ms = max(high_ms, end_ms) - min(low_ms, start_ms) - (high_ms - low_ms)
    orders[slot].start_ms = min(low_ms, start_ms)
    orders[slot].end_ms = max(high_ms, end_ms)
    orders[slot].overlap_ms += end_ms - start_ms - gained_ms
    if number > order.last_number:
        orders[slot].last_number = number
    elif number < order.first_number:
        orders[slot].first_number = number
    return True


@hot
def take_listed(
    orders: Any, slot: int, lists: Any, number: int, start_ms: int, end_ms: int
) -> bool:
    """Add a record to a row with a piece list; False and unchanged if there is no room."""
    row = lists[orders[slot].list_at]
    if row[0] >= PIECES_MAX or row[1] >= PIECES_MAX:
        return False
    gained_ms = 0
    if start_ms < end_ms:
        row[0], gained_ms = unite(row, INTERVALS, row[0], start_ms, end_ms)
    row[1], _ = unite(row, NUMBERS, row[1], number, number + 1)
    orders[slot].start_ms = min(orders[slot].start_ms, start_ms)
    orders[slot].end_ms = max(orders[slot].end_ms, end_ms)
    orders[slot].overlap_ms += end_ms - start_ms - gained_ms
    return True


@compiled
def list_inline(order: Any, row: Any) -> None:
    """Put a row's interval and range into `row`, in the layout of a piece list."""
    row[0] = 0
    if order.start_ms < order.end_ms:
        row[0] = 1
        row[INTERVALS] = order.start_ms
        row[INTERVALS + 1] = order.end_ms
    row[1] = 1
    row[NUMBERS] = order.first_number
    row[NUMBERS + 1] = order.last_number + 1


@compiled
def give_list(arrays: Any, slot: int) -> bool:
    """Move a row's interval and range into a piece list; False if none is free."""
    if arrays.counters[LISTS_FREE] > 0:
        arrays.counters[LISTS_FREE] -= 1
        at = arrays.lists_free[arrays.counters[LISTS_FREE]]
    elif arrays.counters[LISTS_USED] < arrays.counters[LISTS_MAX]:
        at = arrays.counters[LISTS_USED]
        arrays.counters[LISTS_USED] += 1
    else:
        return False
    list_inline(arrays.orders[slot], arrays.lists[at])
    arrays.orders[slot].list_at = at
    return True


@compiled
def drop_list(arrays: Any, slot: int) -> None:
    """Give a row's piece list back to the pool."""
    arrays.lists_free[arrays.counters[LISTS_FREE]] = arrays.orders[slot].list_at
    arrays.counters[LISTS_FREE] += 1
    arrays.orders[slot].list_at = -1


@compiled
def drop_needless_list(arrays: Any, slot: int) -> None:
    """Do without the piece list, with the inline fields again, where that is possible."""
    row = arrays.lists[arrays.orders[slot].list_at]
    if row[1] != 1 or row[0] > 1:
        return
    if row[0] == 0 and arrays.orders[slot].start_ms != arrays.orders[slot].end_ms:
        return
    if row[0] == 1 and (
        row[INTERVALS] != arrays.orders[slot].start_ms
        or row[INTERVALS + 1] != arrays.orders[slot].end_ms
    ):
        return
    arrays.orders[slot].first_number = row[NUMBERS]
    arrays.orders[slot].last_number = row[NUMBERS + 1] - 1
    drop_list(arrays, slot)


@compiled
def take(arrays: Any, slot: int, number: int, start_ms: int, end_ms: int) -> bool:
    """Add what doesn't fit inline to an unsettled row; False and unchanged if it has no room."""
    if arrays.orders[slot].list_at < 0 and not give_list(arrays, slot):
        return False
    if not take_listed(arrays.orders, slot, arrays.lists, number, start_ms, end_ms):
        return False
    drop_needless_list(arrays, slot)
    return True


@hot
def is_complete(orders: Any, slot: int, lists: Any) -> bool:
    """Tell whether an end has been seen, and all numbers from 1 to the greatest."""
    order = orders[slot]
    if order.end_number == 0:
        return False
    if order.list_at < 0:
        return order.first_number == 1
    row = lists[order.list_at]
    return row[1] == 1 and row[NUMBERS] == 1


@hot
def copy_list(there: Any, at: int, here: Any, place: int) -> None:
    """Copy a piece list into another pool; all of it at once would take memory for it."""
    for i in range(LIST_SIZE):
        there[at, i] = here[place, i]
