"""A decompressed record batch into the rows: read, look up, apply; no allocation.

Records are taken in groups. First all records of a group are read and their entries of the index
are prefetched, then their rows are, and then the records are applied. So the processor's caches
are filled for a whole group at once. A record alone would wait for its index entry, and then for
its row.

What the rows can't take is deferred, not judged here: the record's position is noted, and the plain
core reads the record afterwards, in the batch's order. While one record of an order is deferred,
all after it are deferred too.

Every read is checked against the batch's size. A record is BROKEN if its frame doesn't add up, or
if its offset doesn't rise within the batch's own. All records before it have been applied by then.

A call does bounded work: it ends after RECORDS, or earlier, once DEFERRED_STOP records are deferred
or SETTLEMENTS_STOP settlements are noted. The caller takes both before it calls again, so that the
records of an order keep their order.
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
    waiting_at,
)
from durabill.stream_processors.engine.kernel.judge import is_new_order, judge
from durabill.stream_processors.engine.kernel.parse import (
    AFTER,
    AT,
    DELTA,
    END_MS,
    FORWARDED,
    IS_END,
    KEY_AT,
    KEY_SIZE,
    NUMBER,
    START_MS,
    read_frame,
    read_ordinary,
)
from durabill.stream_processors.engine.kernel.rows import (
    ACCEPTED_MAX,
    BLOCK_ROWS,
    CHANGED,
    COMPLETE,
    DEFERRED_COUNT,
    ENDED,
    HAS_DEFERRED,
    KEY_BYTES_MAX,
    LATE,
    NEEDS_LIST,
    NEXT_DUE_MS,
    NO_ROOM,
    OPEN,
    OPENED,
    ORDERS,
    OVERFLOW,
    PHASE,
    REJECTED,
    REPEATED,
    ROWS_FREE,
    ROWS_USED,
    SETTLED,
    SETTLEMENT_COUNT,
    SPILLED,
    UNCHANGED,
    USED,
    WAITING,
    count_repeat,
    is_complete,
    is_no_news,
    take,
    take_inline,
)
from durabill.stream_processors.engine.kernel.settle import settle
from durabill.stream_processors.engine.kernel.tasks import (
    BASE_OFFSET,
    CORRECTION_WINDOW_MS,
    FIRST_OFFSET,
    FUTURE_TOLERANCE_MS,
    IDLE_TIMEOUT_MS,
    INTERIM_AFTER_MS,
    LEAST_DELTA,
    NEXT_DELTA,
    NOW_MS,
    OPENED_ONLY,
    POSITION,
    RECORD,
    RECORDS,
    SEED,
    SETTLE_GRACE_MS,
)
from durabill.stream_processors.engine.kernel.unaligned import load_u64, prefetch

GROUP = 64
"""Records that are read, fetched and applied together."""

DEFERRED_STOP = 256
SETTLEMENTS_STOP = 2048
DEFERRED_ROOM = DEFERRED_STOP + BLOCK_ROWS  # for what `settle_due` defers, too
SETTLEMENTS_ROOM = SETTLEMENTS_STOP + BLOCK_ROWS  # for what `settle_due` adds, too

DONE = -1
BROKEN = -2
"""What `fold` returns; any other value is the number of the index table that has to grow first."""


@compiled
def is_full(arrays: Any) -> bool:
    """Tell whether all rows are in use. Then a deferred opening leaves no placeholder."""
    counters = arrays.counters
    return counters[ROWS_FREE] == 0 and counters[ROWS_USED] >= arrays.orders.shape[0]


@compiled
def new_row(arrays: Any, words: Any, key_hash: Any) -> int:
    """Return an empty row, entered under its key; -1 if a new order can't have one now.

    While an order has no row, a name that is not in the index may be that order's.
    """
    if arrays.counters[OVERFLOW] > 0:
        return -1
    if arrays.counters[ROWS_FREE] > 0:
        arrays.counters[ROWS_FREE] -= 1
        slot = arrays.free[arrays.counters[ROWS_FREE]]
    elif arrays.counters[ROWS_USED] < arrays.orders.shape[0]:
        slot = arrays.counters[ROWS_USED]
        arrays.counters[ROWS_USED] += 1
    else:
        return -1
    arrays.orders[slot].k0 = words[0]
    arrays.orders[slot].k1 = words[1]
    arrays.orders[slot].k2 = words[2]
    arrays.orders[slot].k3 = words[3]
    arrays.orders[slot].k4 = words[4]
    add(arrays.index, arrays.tables, key_hash, slot)
    return slot


@compiled
def make_placeholder(orders: Any, slot: int, key_size: int) -> None:
    """Make a placeholder of a row: it only keeps its name and place."""
    orders[slot].flags = USED | SPILLED
    orders[slot].key_size = key_size
    orders[slot].list_at = -1


@compiled
def start_order(orders: Any, slot: int, record: Any, offset: int, now_ms: int) -> None:
    """Fill a row with an order's first segment."""
    orders[slot].unbilled_since_ms = now_ms
    orders[slot].start_ms = record[START_MS]
    orders[slot].end_ms = record[END_MS]
    orders[slot].source_offset = offset
    orders[slot].overlap_ms = 0
    orders[slot].first_number = record[NUMBER]
    orders[slot].last_number = record[NUMBER]
    orders[slot].end_number = 0
    orders[slot].accepted = 1
    orders[slot].list_at = -1
    orders[slot].revision = 0
    orders[slot].flags = USED | OPEN


@hot
def apply(
    orders: Any, slot: int, lists: Any, openings: Any, record: Any, offset: int, task: Any
) -> int:
    """Apply a segment to a known order.

    CHANGED, REPEATED where only the counts did, UNCHANGED, NEEDS_LIST where it takes a piece list,
    NO_ROOM where the plain core has to take it.
    """
    order = orders[slot]
    now_ms = task[NOW_MS]
    if offset <= order.source_offset:
        return UNCHANGED
    number, start_ms, end_ms = record[NUMBER], record[START_MS], record[END_MS]
    if order.key_size & OPENED:
        if start_ms < order.start_ms and start_ms < openings[slot].begin_ms:
            return NO_ROOM
    elif task[OPENED_ONLY] != 0:
        return NO_ROOM
    if order.accepted >= ACCEPTED_MAX:
        return NO_ROOM
    settled = order.flags & PHASE == SETTLED
    if (now_ms > order.deadline_ms) if settled else (now_ms >= order.deadline_ms):
        return NO_ROOM
    if not settled and now_ms >= order.unbilled_since_ms + task[INTERIM_AFTER_MS]:
        return NO_ROOM
    if is_no_news(orders, slot, lists, number, start_ms, end_ms, record[IS_END] == 1):
        count_repeat(orders, slot, end_ms - start_ms, offset)
        return REPEATED
    if settled:
        return NO_ROOM
    if order.list_at >= 0 or not take_inline(orders, slot, number, start_ms, end_ms):
        return NEEDS_LIST
    orders[slot].accepted += 1
    orders[slot].source_offset = offset
    return CHANGED


@compiled
def apply_listed(arrays: Any, slot: int, record: Any, offset: int) -> int:
    """Go on where `apply` needs a piece list: CHANGED, or NO_ROOM and unchanged."""
    if not take(arrays, slot, record[NUMBER], record[START_MS], record[END_MS]):
        return NO_ROOM
    arrays.orders[slot].accepted += 1
    arrays.orders[slot].source_offset = offset
    return CHANGED


@hot
def move_on(
    orders: Any, slot: int, lists: Any, block_due_ms: Any, changed: Any, record: Any, task: Any
) -> bool:
    """Move phase and deadline of an order on by its new evidence; tell if it is complete."""
    block = slot // BLOCK_ROWS
    changed[block] = 1
    now_ms = task[NOW_MS]
    if record[IS_END] == 1 and record[NUMBER] > orders[slot].end_number:
        orders[slot].end_number = record[NUMBER]
    if orders[slot].end_number == 0:
        orders[slot].deadline_ms = now_ms + task[IDLE_TIMEOUT_MS]
    elif is_complete(orders, slot, lists):
        return True
    elif orders[slot].flags & PHASE == OPEN:
        orders[slot].flags = (orders[slot].flags & ~PHASE) | ENDED
        orders[slot].deadline_ms = now_ms + task[SETTLE_GRACE_MS]
    block_due_ms[block] = min(block_due_ms[block], orders[slot].deadline_ms)
    return False


@compiled
def judge_late(arrays: Any, slot: int, offset: int, task: Any) -> int:
    """Judge a segment that is older than the correction window by its order, a row.

    CHANGED if it is to be applied nevertheless: the order was opened, and takes such segments now.
    """
    order, now_ms = arrays.orders[slot], task[NOW_MS]
    if offset <= order.source_offset:
        return UNCHANGED
    if order.key_size & OPENED:
        return CHANGED if now_ms <= arrays.openings[slot].accept_until_ms else NO_ROOM
    is_forgotten = order.flags & PHASE == SETTLED and now_ms > order.deadline_ms
    return NO_ROOM if is_forgotten and arrays.counters[WAITING] > 0 else REJECTED


@compiled
def judge_unknown(
    arrays: Any, data: Any, record: Any, key_hash: Any, header: Any, task: Any, outcome: int
) -> int:
    """Judge a record of a name that is not in the index, which `judge` has given `outcome`.

    NO_ROOM where the plain core may know its order, or an opening of it: also one that was deferred
    just before, and has no row.
    """
    counters = arrays.counters
    if counters[OVERFLOW] > 0 or is_full(arrays):
        return NO_ROOM
    if counters[WAITING] > 0 and arrays.waiting[waiting_at(key_hash)] > 0:
        return NO_ROOM
    if outcome == LATE:
        return REJECTED
    if task[OPENED_ONLY] != 0:
        return REJECTED if is_new_order(data, header, record, task) else NO_ROOM
    return CHANGED


@compiled
def settle_complete(arrays: Any, slot: int, task: Any) -> None:
    """Settle a row that has become complete with the record at hand."""
    tolerance_ms = task[FUTURE_TOLERANCE_MS]
    settle(
        arrays,
        slot,
        COMPLETE,
        task[NOW_MS],
        task[CORRECTION_WINDOW_MS] + tolerance_ms,
        tolerance_ms,
    )


@compiled
def start_row(
    arrays: Any,
    data: Any,
    record: Any,
    words: Any,
    key_hash: Any,
    header: Any,
    task: Any,
    outcome: int,
) -> int:
    """Give a name that is not in the index a row, with its order if the record can start one.

    It can't unless `outcome` is CHANGED. Otherwise the row is a placeholder: while an order's first
    record is deferred, its next ones must not overtake it. Returns -1 if there is no row left.
    """
    slot = new_row(arrays, words, key_hash)
    if slot >= 0:
        make_placeholder(arrays.orders, slot, record[KEY_SIZE])
        if outcome == CHANGED and is_new_order(data, header, record, task):
            now_ms, block = task[NOW_MS], slot // BLOCK_ROWS
            start_order(arrays.orders, slot, record, task[BASE_OFFSET] + record[DELTA], now_ms)
            arrays.block_due_ms[block] = min(
                arrays.block_due_ms[block], now_ms + task[INTERIM_AFTER_MS]
            )
            arrays.counters[ORDERS] += 1
    return slot


@hot
def is_watchful(counters: Any, task: Any) -> bool:
    """Tell whether a name that is not in the index may be more than a new order's."""
    return counters[WAITING] > 0 or task[OPENED_ONLY] != 0


@hot
def has_row_key(data: Any, record: Any) -> bool:
    """Tell whether a record's key can be that of a row."""
    return (
        1 <= record[KEY_SIZE] <= KEY_BYTES_MAX
        # A name that ends in a zero would pass for the one without it: rows are padded so.
        and data[record[KEY_AT] + record[KEY_SIZE] - 1] != 0
    )


@compiled
def read_group(arrays: Any, data: Any, task: Any, header: Any) -> int:
    """Read the next records and fetch their index entries; return how many, BROKEN for none."""
    records, names, hashes = arrays.records, arrays.names, arrays.hashes
    index, tables, seed = arrays.index, arrays.tables, task[SEED]
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
def fetch_rows(arrays: Any, count: int) -> None:
    """Fetch the rows of a group's records, as far as the first look into the index tells."""
    index, tables, hashes, orders = arrays.index, arrays.tables, arrays.hashes, arrays.orders
    for i in range(count):
        slot = row_at(index[place_of(tables, hashes[i])])
        if slot >= 0:
            prefetch(orders, slot)


@compiled
def apply_group(arrays: Any, data: Any, task: Any, header: Any, count: int) -> int:
    """Apply a group's records; returns DONE, or the table that has to grow before the next one."""
    orders, lists, index, tables = arrays.orders, arrays.lists, arrays.index, arrays.tables
    openings = arrays.openings
    block_due_ms, changed, deferred, counters = (
        arrays.block_due_ms,
        arrays.changed,
        arrays.deferred,
        arrays.counters,
    )
    for i in range(count):
        record, words, key_hash = arrays.records[i], arrays.names[i], arrays.hashes[i]
        offset = task[BASE_OFFSET] + record[DELTA]
        outcome, slot = NO_ROOM, -1
        if offset < task[FIRST_OFFSET]:
            outcome = UNCHANGED
        elif has_row_key(data, record):
            slot = find(orders, index, tables, words, key_hash)
            if slot < 0:
                if record[FORWARDED] == 0:
                    outcome = judge(data, header, record, task)
                if outcome == LATE or (outcome == CHANGED and is_watchful(counters, task)):
                    outcome = judge_unknown(arrays, data, record, key_hash, header, task, outcome)
                if outcome != REJECTED:
                    table = table_to_grow(tables, key_hash)
                    if table >= 0:
                        return table
                    slot = start_row(arrays, data, record, words, key_hash, header, task, outcome)
                    has_order = slot >= 0 and not orders[slot].flags & SPILLED
                    outcome = CHANGED if has_order else NO_ROOM
            elif record[FORWARDED] == 0 and not orders[slot].flags & (SPILLED | HAS_DEFERRED):
                outcome = judge(data, header, record, task)
                if outcome == LATE:
                    outcome = judge_late(arrays, slot, offset, task)
                if outcome == CHANGED:
                    outcome = apply(orders, slot, lists, openings, record, offset, task)
                if outcome == NEEDS_LIST:
                    outcome = apply_listed(arrays, slot, record, offset)
        if outcome == CHANGED:
            if move_on(orders, slot, lists, block_due_ms, changed, record, task):
                settle_complete(arrays, slot, task)
        elif outcome == REPEATED:
            changed[slot // BLOCK_ROWS] = 1
        elif outcome != UNCHANGED:
            if slot >= 0 and outcome == NO_ROOM:
                orders[slot].flags |= HAS_DEFERRED
            deferred[counters[DEFERRED_COUNT]] = ~record[AT] if outcome == REJECTED else record[AT]
            counters[DEFERRED_COUNT] += 1
        task[RECORD] += 1
        task[POSITION] = record[AFTER]
        task[LEAST_DELTA] = record[DELTA] + 1
    return DONE


@compiled
def fold(arrays: Any, data: Any, task: Any, header: Any) -> int:
    """Fold records RECORD..RECORDS-1 of a batch from POSITION on; see DONE for what it returns.

    `deferred` gets the positions of deferred records, ~position where one is a sure dead letter.
    DONE with RECORD below RECORDS: enough waits for the caller. BROKEN is the record at POSITION.
    """
    counters = arrays.counters
    wait_ms = min(task[SETTLE_GRACE_MS], task[IDLE_TIMEOUT_MS], task[INTERIM_AFTER_MS])
    counters[NEXT_DUE_MS] = min(counters[NEXT_DUE_MS], task[NOW_MS] + wait_ms)
    while (
        task[RECORD] < task[RECORDS]
        and counters[DEFERRED_COUNT] < DEFERRED_STOP
        and counters[SETTLEMENT_COUNT] < SETTLEMENTS_STOP
    ):
        count = read_group(arrays, data, task, header)
        if count < 0:
            return count
        fetch_rows(arrays, count)
        table = apply_group(arrays, data, task, header, count)
        if table >= 0:
            return table
    return DONE
