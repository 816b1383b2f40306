"""A decompressed record batch into the rows: read, look up, apply; no allocation.

Records are taken in groups. First all of a group are read and their places in the index asked for,
then their rows, and then they are applied: what is not in the processor's caches comes meanwhile,
for a whole group at once, where a record alone would wait for its index entry and then for its row.

What the rows can't take is not judged here: the record's position is noted and the plain core reads
it afterwards, in the batch's order. While one record of an order waits, all after it wait too.

Every read is checked against the batch's size. A record whose frame doesn't add up, or whose
offset doesn't rise within the batch's own, is BROKEN; all before it have been applied by then.

A call does bounded work: it ends after RECORDS, and in between once SLOWS_STOP records wait for
the plain core, or EVENTS_STOP totals for being written. What waits is for the caller to do before
it calls again, so that the records of an order keep their order.
"""

from typing import Any

import numpy as np

from durabill.stream_processors.engine.kernel import compiled, hot
from durabill.stream_processors.engine.kernel.index import (
    add,
    find,
    hash_key,
    load_key,
    place_of,
    row_at,
    table_to_grow,
)
from durabill.stream_processors.engine.kernel.judge import is_new_order, judge
from durabill.stream_processors.engine.kernel.parse import (
    AFTER,
    AT,
    BEGIN,
    DELTA,
    END,
    IS_END,
    KEY_AT,
    KEY_SIZE,
    NUMBER,
    SENT_ON,
    read_frame,
    read_ordinary,
)
from durabill.stream_processors.engine.kernel.rows import (
    ACCEPTED_MAX,
    BEYOND,
    BLOCK_ROWS,
    CHANGED,
    COMPLETE,
    DEFERRED,
    ENDED,
    EVENTS,
    KEY_BYTES_MAX,
    NEEDS_EXTRA,
    NO_ROOM,
    ODD,
    OPEN,
    ORDERS,
    PHASE,
    REJECTED,
    REPEATED,
    ROWS_FREE,
    ROWS_USED,
    SETTLED,
    SLOWS,
    UNCHANGED,
    USED,
    count_repeat,
    is_complete,
    is_no_news,
    settle,
    take,
    take_inline,
)
from durabill.stream_processors.engine.kernel.tasks import (
    BASE_OFFSET,
    CORRECTION_WINDOW,
    FIRST_OFFSET,
    FUTURE_TOLERANCE,
    IDLE_TIMEOUT,
    INTERIM_AFTER,
    LEAST_DELTA,
    NEXT_DELTA,
    NOW,
    POSITION,
    RECORD,
    RECORDS,
    SEED,
    SETTLE_GRACE,
)
from durabill.stream_processors.engine.kernel.unaligned import load_u64, prefetch

GROUP = 64
"""Records that are read, fetched and applied together."""

SLOWS_STOP = 256
EVENTS_STOP = 2048
SLOWS_ROOM = SLOWS_STOP + BLOCK_ROWS  # for what `settle_due` leaves over, too
EVENTS_ROOM = EVENTS_STOP + BLOCK_ROWS  # for what `settle_due` adds, too

DONE = -1
BROKEN = -2
"""What `fold` returns; any other value is the number of the index table that has to grow first."""


@compiled
def new_row(store: Any, words: Any, key_hash: Any) -> int:
    """Return an empty row, entered under its key; -1 if a new order can't have one now."""
    if store.counters[BEYOND] > 0:
        return -1
    if store.counters[ROWS_FREE] > 0:
        store.counters[ROWS_FREE] -= 1
        slot = store.free[store.counters[ROWS_FREE]]
    elif store.counters[ROWS_USED] < store.orders.shape[0]:
        slot = store.counters[ROWS_USED]
        store.counters[ROWS_USED] += 1
    else:
        return -1
    store.orders[slot].k0 = words[0]
    store.orders[slot].k1 = words[1]
    store.orders[slot].k2 = words[2]
    store.orders[slot].k3 = words[3]
    store.orders[slot].k4 = words[4]
    add(store.index, store.tables, key_hash, slot)
    return slot


@compiled
def make_stub(orders: Any, slot: int, key_size: int) -> None:
    """Make a row that only keeps its name and place."""
    orders[slot].flags = USED | ODD
    orders[slot].key_size = key_size
    orders[slot].extra = -1


@compiled
def start_order(orders: Any, slot: int, record: Any, offset: int, now: int) -> None:
    """Fill a row with an order's first segment."""
    orders[slot].unbilled_since_ms = now
    orders[slot].start_ms = record[BEGIN]
    orders[slot].end_ms = record[END]
    orders[slot].source_offset = offset
    orders[slot].overlap_ms = 0
    orders[slot].first_number = record[NUMBER]
    orders[slot].last_number = record[NUMBER]
    orders[slot].end_number = 0
    orders[slot].accepted = 1
    orders[slot].extra = -1
    orders[slot].revision = 0
    orders[slot].flags = USED | OPEN


@hot
def apply(orders: Any, slot: int, extra: Any, record: Any, offset: int, task: Any) -> int:
    """Apply a segment to a known order.

    CHANGED, REPEATED where only the counts did, UNCHANGED, NEEDS_EXTRA where it takes the pool,
    NO_ROOM where it is the plain core's.
    """
    order = orders[slot]
    now = task[NOW]
    if offset <= order.source_offset:
        return UNCHANGED
    number, start, end = record[NUMBER], record[BEGIN], record[END]
    if order.accepted >= ACCEPTED_MAX:
        return NO_ROOM
    settled = order.flags & PHASE == SETTLED
    if (now > order.deadline_ms) if settled else (now >= order.deadline_ms):
        return NO_ROOM
    if not settled and now >= order.unbilled_since_ms + task[INTERIM_AFTER]:
        return NO_ROOM
    if is_no_news(orders, slot, extra, number, start, end, record[IS_END] == 1):
        count_repeat(orders, slot, end - start, offset)
        return REPEATED
    if settled:
        return NO_ROOM
    if order.extra >= 0 or not take_inline(orders, slot, number, start, end):
        return NEEDS_EXTRA
    orders[slot].accepted += 1
    orders[slot].source_offset = offset
    return CHANGED


@compiled
def apply_with_extra(store: Any, slot: int, record: Any, offset: int) -> int:
    """Go on where `apply` needed the pool: CHANGED, or NO_ROOM and unchanged."""
    if not take(store, slot, record[NUMBER], record[BEGIN], record[END]):
        return NO_ROOM
    store.orders[slot].accepted += 1
    store.orders[slot].source_offset = offset
    return CHANGED


@hot
def move_on(
    orders: Any, slot: int, extra: Any, block_due: Any, changed: Any, record: Any, task: Any
) -> bool:
    """Move the phase and deadline of an order with new evidence on; tell if it is complete."""
    block = slot // BLOCK_ROWS
    changed[block] = 1
    now = task[NOW]
    if record[IS_END] == 1 and record[NUMBER] > orders[slot].end_number:
        orders[slot].end_number = record[NUMBER]
    if orders[slot].end_number == 0:
        orders[slot].deadline_ms = now + task[IDLE_TIMEOUT]
    elif is_complete(orders, slot, extra):
        return True
    elif orders[slot].flags & PHASE == OPEN:
        orders[slot].flags = (orders[slot].flags & ~PHASE) | ENDED
        orders[slot].deadline_ms = now + task[SETTLE_GRACE]
    block_due[block] = min(block_due[block], orders[slot].deadline_ms)
    return False


@compiled
def settle_complete(store: Any, slot: int, task: Any) -> None:
    """Settle a row that has become complete with the record at hand."""
    tolerance = task[FUTURE_TOLERANCE]
    settle(store, slot, COMPLETE, task[NOW], task[CORRECTION_WINDOW] + tolerance, tolerance)


@compiled
def start_row(
    store: Any, data: Any, record: Any, words: Any, key_hash: Any, header: Any, task: Any
) -> int:
    """Give a name that is not in the index a row: with its order, or as a stub; -1 if none is left.

    A stub, because while an order's first record waits for the plain core, its next ones must not
    overtake it.
    """
    slot = new_row(store, words, key_hash)
    if slot >= 0:
        make_stub(store.orders, slot, record[KEY_SIZE])
        if is_new_order(data, header, record, task):
            now, block = task[NOW], slot // BLOCK_ROWS
            start_order(store.orders, slot, record, task[BASE_OFFSET] + record[DELTA], now)
            store.block_due[block] = min(store.block_due[block], now + task[INTERIM_AFTER])
            store.counters[ORDERS] += 1
    return slot


@hot
def has_row_key(data: Any, record: Any) -> bool:
    """Tell whether a record's key can be that of a row."""
    return (
        1 <= record[KEY_SIZE] <= KEY_BYTES_MAX
        # A name that ends in a zero would pass for the one without it: rows are padded so.
        and data[record[KEY_AT] + record[KEY_SIZE] - 1] != 0
    )


@compiled
def read_group(store: Any, data: Any, task: Any, header: Any) -> int:
    """Read the next records and fetch their index entries; return how many, BROKEN for none."""
    records, names, hashes = store.records, store.names, store.hashes
    index, tables, seed = store.index, store.tables, task[SEED]
    head = load_u64(header, 0)
    tail = np.uint64(header[8]) | np.uint64(header[9]) << np.uint64(8)
    at, least = task[POSITION], task[LEAST_DELTA]
    count = min(GROUP, task[RECORDS] - task[RECORD])
    for i in range(count):
        record, words = records[i], names[i]
        if not read_ordinary(data, at, head, tail, record) and not read_frame(data, at, record):
            return i if i else BROKEN
        if not least <= record[DELTA] < task[NEXT_DELTA]:
            return i if i else BROKEN
        least = record[DELTA] + 1
        record[AT] = at
        at = record[AFTER]
        hashes[i] = 0
        if has_row_key(data, record):
            load_key(data, record[KEY_AT], record[KEY_SIZE], words)
            hashes[i] = hash_key(words, seed)
            prefetch(index, place_of(tables, hashes[i]))
    return count


@compiled
def fetch_rows(store: Any, count: int) -> None:
    """Fetch the rows of a group's records, as far as the first look into the index tells."""
    index, tables, hashes, orders = store.index, store.tables, store.hashes, store.orders
    for i in range(count):
        slot = row_at(index[place_of(tables, hashes[i])])
        if slot >= 0:
            prefetch(orders, slot)


@compiled
def apply_group(store: Any, data: Any, task: Any, header: Any, count: int) -> int:
    """Apply a group's records; returns DONE, or the table that has to grow before the next one."""
    orders, extra, index, tables = store.orders, store.extra, store.index, store.tables
    block_due, changed, slow, counters = store.block_due, store.changed, store.slow, store.counters
    for i in range(count):
        record, words, key_hash = store.records[i], store.names[i], store.hashes[i]
        offset = task[BASE_OFFSET] + record[DELTA]
        outcome, slot = NO_ROOM, -1
        if offset < task[FIRST_OFFSET]:
            outcome = UNCHANGED
        elif has_row_key(data, record):
            slot = find(orders, index, tables, words, key_hash)
            if slot < 0:
                if record[SENT_ON] == 0:
                    outcome = judge(data, header, record, task)
                if outcome != REJECTED:
                    table = table_to_grow(tables, key_hash)
                    if table >= 0:
                        return table
                    slot = start_row(store, data, record, words, key_hash, header, task)
                    has_order = slot >= 0 and not orders[slot].flags & ODD
                    outcome = CHANGED if has_order else NO_ROOM
            elif record[SENT_ON] == 0 and not orders[slot].flags & (ODD | DEFERRED):
                outcome = judge(data, header, record, task)
                if outcome == CHANGED:
                    outcome = apply(orders, slot, extra, record, offset, task)
                if outcome == NEEDS_EXTRA:
                    outcome = apply_with_extra(store, slot, record, offset)
        if outcome == CHANGED:
            if move_on(orders, slot, extra, block_due, changed, record, task):
                settle_complete(store, slot, task)
        elif outcome == REPEATED:
            changed[slot // BLOCK_ROWS] = 1
        elif outcome != UNCHANGED:
            if slot >= 0 and outcome == NO_ROOM:
                orders[slot].flags |= DEFERRED
            slow[counters[SLOWS]] = ~record[AT] if outcome == REJECTED else record[AT]
            counters[SLOWS] += 1
        task[RECORD] += 1
        task[POSITION] = record[AFTER]
        task[LEAST_DELTA] = record[DELTA] + 1
    return DONE


@compiled
def fold(store: Any, data: Any, task: Any, header: Any) -> int:
    """Fold records RECORD..RECORDS-1 of a batch from POSITION on; see DONE for what it returns.

    `slow` gets the positions of the records left to the plain core, ~position where one is a sure
    dead letter. DONE with RECORD below RECORDS: enough waits for the caller. BROKEN is the record
    at POSITION.
    """
    counters = store.counters
    while (
        task[RECORD] < task[RECORDS]
        and counters[SLOWS] < SLOWS_STOP
        and counters[EVENTS] < EVENTS_STOP
    ):
        count = read_group(store, data, task, header)
        if count < 0:
            return count
        fetch_rows(store, count)
        table = apply_group(store, data, task, header, count)
        if table >= 0:
            return table
    return DONE
