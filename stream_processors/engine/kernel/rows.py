"""An order as a row, and what a segment does to it.

A row holds an order whose numbers are one range and whose time is one interval; then
[start_ms, end_ms) is that interval (empty where both are equal) and `extra` is -1. Up to
PIECES_MAX intervals and ranges are held in a row of the `extra` pool beside it; start_ms and
end_ms are always the first start and the last end over the accepted records. What doesn't fit is
given back to the plain core, before anything has been changed.

A row that isn't settled has revision 0: what was reopened or has given an interim total stays
with the plain core until it is settled, since only there the digest of the revision before is
known.
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
        ("extra", "<i4"),
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
ODD = 8
"""The order is with the plain core; the row only keeps its place and its name."""
DEFERRED = 16
"""A record of this batch waits for the plain core, so those after it have to wait as well."""

SETTLEMENTS_SHIFT = 5
SETTLEMENTS = 7 << SETTLEMENTS_SHIFT
"""Of a settled row: how often its order has settled, less one; see `order.SETTLEMENTS_MAX`."""

PIECES_MAX = 8
INTERVALS = 2
NUMBERS = INTERVALS + 2 * PIECES_MAX
EXTRA_SIZE = NUMBERS + 2 * PIECES_MAX
"""A row of the pool, int64: count of intervals, count of ranges, the pairs of both, half-open."""

# Positions in the int64 array of a table's counters.
ROWS_USED = 0  # rows ever used: the next fresh row
ROWS_FREE = 1  # length of the stack of free rows
EXTRAS_USED = 2
EXTRAS_FREE = 3
SLOWS = 4  # records of the batch that wait for the plain core
EVENTS = 5  # totals of the batch
EVENT_EXTRAS = 6
ORDERS = 7  # rows that hold an order, not counting odd ones
BEYOND = 8  # orders without a row; while there are any, a name not in the index may be one's
EXTRAS_MAX = 9  # how many extras may be in use; the pool itself has one for every row
COUNTERS = 10

COMPLETE = 0
INCOMPLETE = 1
ABANDONED = 2


class Store(NamedTuple):
    """The arrays of one table; see `engine.store` for who makes them."""

    orders: Any  # ORDER: the rows
    index: Any  # uint64: the hash tables' entries; see `index`
    tables: Any  # int64, 256 x 3: where each of them is
    free: Any  # int32: stack of free rows
    extra: Any  # int64, n x EXTRA_SIZE
    extra_free: Any  # int32: stack of free extras
    counters: Any  # int64: see above
    block_due: Any  # int64: lower bound of when a block's unsettled rows give their next totals
    block_retire: Any  # int64: the same of its settled rows
    changed: Any  # uint8: 1 where a block has changed since the last checkpoint
    slow: Any  # int64: what is left to the plain core; see `fold` and `settle_due`
    events: Any  # ORDER: rows as they were when they settled
    event_at: Any  # int64: as of when
    event_status: Any  # int64: COMPLETE, INCOMPLETE or ABANDONED
    event_extra: Any  # int64, n x EXTRA_SIZE: their extras
    words: Any  # uint64: scratch for a key
    records: Any  # int64: the records of a group; see `parse`
    names: Any  # uint64: their keys
    hashes: Any  # uint64: those keys' hashes


NEVER = np.int64(2**63 - 1)
UNCHANGED = 0
CHANGED = 1
NO_ROOM = -1
NEEDS_EXTRA = -2
REJECTED = -3
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
    orders: Any, slot: int, extra: Any, number: int, start: int, end: int, is_end: bool
) -> bool:
    """Tell whether a record adds nothing to the evidence or to the span of an order."""
    order = orders[slot]
    if is_end and number > order.end_number:
        return False
    if start < order.start_ms or end > order.end_ms:
        return False
    if order.extra < 0:
        return order.first_number <= number <= order.last_number
    row = extra[order.extra]
    if not covers(row, NUMBERS, row[1], number, number + 1):
        return False
    return start == end or covers(row, INTERVALS, row[0], start, end)


@hot
def count_repeat(orders: Any, slot: int, length: int, offset: int) -> None:
    """Count a record that is no news."""
    orders[slot].accepted += 1
    orders[slot].overlap_ms += length
    orders[slot].source_offset = offset


@hot
def take_inline(orders: Any, slot: int, number: int, start: int, end: int) -> bool:
    """Add a record to a row without extra; False and unchanged if it needs one."""
    order = orders[slot]
    low, high = order.start_ms, order.end_ms
    if not order.first_number - 1 <= number <= order.last_number + 1:
        return False
    if start > high or end < low:
        return False
    # Empty pieces included: the span before and after is the interval, so the rest is growth.
    gained = max(high, end) - min(low, start) - (high - low)
    orders[slot].start_ms = min(low, start)
    orders[slot].end_ms = max(high, end)
    orders[slot].overlap_ms += end - start - gained
    if number > order.last_number:
        orders[slot].last_number = number
    elif number < order.first_number:
        orders[slot].first_number = number
    return True


@hot
def take_extra(orders: Any, slot: int, extra: Any, number: int, start: int, end: int) -> bool:
    """Add a record to a row with extra; False and unchanged if there is no room."""
    row = extra[orders[slot].extra]
    if row[0] >= PIECES_MAX or row[1] >= PIECES_MAX:
        return False
    gained = 0
    if start < end:
        row[0], gained = unite(row, INTERVALS, row[0], start, end)
    row[1], _ = unite(row, NUMBERS, row[1], number, number + 1)
    orders[slot].start_ms = min(orders[slot].start_ms, start)
    orders[slot].end_ms = max(orders[slot].end_ms, end)
    orders[slot].overlap_ms += end - start - gained
    return True


@compiled
def give_extra(store: Any, slot: int) -> bool:
    """Move a row's interval and range into the pool; False if the pool is full."""
    if store.counters[EXTRAS_FREE] > 0:
        store.counters[EXTRAS_FREE] -= 1
        at = store.extra_free[store.counters[EXTRAS_FREE]]
    elif store.counters[EXTRAS_USED] < store.counters[EXTRAS_MAX]:
        at = store.counters[EXTRAS_USED]
        store.counters[EXTRAS_USED] += 1
    else:
        return False
    order = store.orders[slot]
    row = store.extra[at]
    row[0] = 0
    if order.start_ms < order.end_ms:
        row[0] = 1
        row[INTERVALS] = order.start_ms
        row[INTERVALS + 1] = order.end_ms
    row[1] = 1
    row[NUMBERS] = order.first_number
    row[NUMBERS + 1] = order.last_number + 1
    store.orders[slot].extra = at
    return True


@compiled
def drop_extra(store: Any, slot: int) -> None:
    """Give a row's extra back to the pool."""
    store.extra_free[store.counters[EXTRAS_FREE]] = store.orders[slot].extra
    store.counters[EXTRAS_FREE] += 1
    store.orders[slot].extra = -1


@compiled
def settle_extra(store: Any, slot: int) -> None:
    """Do without the extra, and with the inline fields again, where that is possible."""
    row = store.extra[store.orders[slot].extra]
    if row[1] != 1 or row[0] > 1:
        return
    if row[0] == 0 and store.orders[slot].start_ms != store.orders[slot].end_ms:
        return
    if row[0] == 1 and (
        row[INTERVALS] != store.orders[slot].start_ms
        or row[INTERVALS + 1] != store.orders[slot].end_ms
    ):
        return
    store.orders[slot].first_number = row[NUMBERS]
    store.orders[slot].last_number = row[NUMBERS + 1] - 1
    drop_extra(store, slot)


@compiled
def take(store: Any, slot: int, number: int, start: int, end: int) -> bool:
    """Add what doesn't fit inline to an unsettled row; False and unchanged if it has no room."""
    if store.orders[slot].extra < 0 and not give_extra(store, slot):
        return False
    if not take_extra(store.orders, slot, store.extra, number, start, end):
        return False
    settle_extra(store, slot)
    return True


@hot
def is_complete(orders: Any, slot: int, extra: Any) -> bool:
    """Tell whether an end has been seen, and all numbers from 1 to the greatest."""
    order = orders[slot]
    if order.end_number == 0:
        return False
    if order.extra < 0:
        return order.first_number == 1
    row = extra[order.extra]
    return row[1] == 1 and row[NUMBERS] == 1


@hot
def copy_extra(there: Any, at: int, here: Any, place: int) -> None:
    """Copy a row of a pool into another pool; a whole row at once would take memory for it."""
    for i in range(EXTRA_SIZE):
        there[at, i] = here[place, i]


@compiled
def settle(
    store: Any, slot: int, status: int, settled_at: int, forget_after: int, future_tolerance: int
) -> None:
    """Settle a row as of `settled_at` and note it, as it is now, among the events."""
    event = store.counters[EVENTS]
    store.counters[EVENTS] += 1
    store.orders[slot].revision += 1
    store.events[event] = store.orders[slot]
    store.event_at[event] = settled_at
    store.event_status[event] = status
    if store.orders[slot].extra >= 0:
        at = store.counters[EVENT_EXTRAS]
        store.counters[EVENT_EXTRAS] += 1
        copy_extra(store.event_extra, at, store.extra, store.orders[slot].extra)
        store.events[event].extra = at
    reference = max(settled_at, store.orders[slot].end_ms - future_tolerance)
    store.orders[slot].deadline_ms = reference + forget_after
    store.orders[slot].unbilled_since_ms = settled_at
    block = slot // BLOCK_ROWS
    store.block_retire[block] = min(store.block_retire[block], store.orders[slot].deadline_ms)
    store.orders[slot].flags = (store.orders[slot].flags & ~PHASE) | SETTLED


@compiled
def settle_due(
    store: Any,
    first_block: int,
    now: int,
    interim_after: int,
    forget_after: int,
    future_tolerance: int,
) -> int:
    """Settle the rows whose deadline has come; return the block to go on with, -1 when done.

    Rows that are due an interim total first are left to the plain core: `slow` gets their numbers.

    `block_due` is a lower bound; it is made exact where it has come. Stops before a block for which
    the events or `slow` have no room, or after it has looked at all rows of SCANS_MAX blocks.
    """
    blocks = (store.counters[ROWS_USED] + BLOCK_ROWS - 1) // BLOCK_ROWS
    scans = 0
    for block in range(first_block, blocks):
        if store.block_due[block] > now:
            continue
        if (
            scans == SCANS_MAX
            or store.counters[EVENTS] + BLOCK_ROWS > store.events.shape[0]
            or store.counters[SLOWS] + BLOCK_ROWS > store.slow.shape[0]
        ):
            return block
        scans += 1
        due = NEVER
        for slot in range(
            block * BLOCK_ROWS, min((block + 1) * BLOCK_ROWS, store.counters[ROWS_USED])
        ):
            flags = store.orders[slot].flags
            if not flags & USED or flags & (ODD | SETTLED):
                continue
            deadline = store.orders[slot].deadline_ms
            interim = store.orders[slot].unbilled_since_ms + interim_after
            if min(deadline, interim) > now:
                due = min(due, deadline, interim)
                continue
            if interim < deadline:
                store.slow[store.counters[SLOWS]] = slot
                store.counters[SLOWS] += 1
                due = min(due, interim)
                continue
            settle(
                store,
                slot,
                INCOMPLETE if flags & PHASE == ENDED else ABANDONED,
                deadline,
                forget_after,
                future_tolerance,
            )
            store.changed[block] = 1
        store.block_due[block] = due
    return -1
