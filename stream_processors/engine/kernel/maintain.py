"""What happens to rows between batches: freed, retired, restored, checked, asked."""

from typing import Any

from durabill.stream_processors.engine.kernel import compiled
from durabill.stream_processors.engine.kernel.index import (
    add,
    find,
    hash_key,
    remove,
    row_hash,
    table_to_grow,
    waiting_at,
)
from durabill.stream_processors.engine.kernel.rows import (
    BLOCK_ROWS,
    INTERVALS,
    KEY_BYTES_MAX,
    KEY_SIZE_BITS,
    LISTS_FREE,
    LISTS_USED,
    NEXT_DUE_MS,
    NOT_DUE_MS,
    NUMBERS,
    ORDERS,
    PHASE,
    ROWS_FREE,
    ROWS_USED,
    SCANS_MAX,
    SETTLED,
    SPILLED,
    USED,
    WAITING,
    WAITING_MAX,
    copy_list,
    drop_list,
)

RETIRED_STOP = 16_384
"""So many rows are freed in one call, and at most a block more: a few milliseconds."""


@compiled
def forget_key(arrays: Any, slot: int, seed: int) -> None:
    """Take a row's name, if it has one, out of the index."""
    if arrays.orders[slot].key_size == 0:
        return
    key_hash = row_hash(arrays.orders, slot, arrays.words, seed)
    remove(arrays.orders, arrays.index, arrays.tables, arrays.words, key_hash, seed)
    arrays.orders[slot].key_size = 0


@compiled
def free_row(arrays: Any, slot: int, seed: int) -> None:
    """Give back a row that holds nothing, or nothing any more."""
    forget_key(arrays, slot, seed)
    arrays.orders[slot].flags = 0
    arrays.free[arrays.counters[ROWS_FREE]] = slot
    arrays.counters[ROWS_FREE] += 1


@compiled
def spill_row(arrays: Any, slot: int) -> None:
    """Turn a row into a placeholder: its order is a plain one from now on."""
    if arrays.orders[slot].list_at >= 0:
        drop_list(arrays, slot)
    arrays.orders[slot].flags = (arrays.orders[slot].flags & ~PHASE) | SPILLED
    arrays.orders[slot].key_size &= KEY_SIZE_BITS
    arrays.counters[ORDERS] -= 1


@compiled
def retire(arrays: Any, clock_ms: int, seed: int) -> bool:
    """Free the settled rows whose deadline is before `clock_ms`; make `block_retire_ms` exact.

    Ends after RETIRED_STOP rows, or after all rows of SCANS_MAX blocks. Tells whether there may be
    more.
    """
    blocks = (arrays.counters[ROWS_USED] + BLOCK_ROWS - 1) // BLOCK_ROWS
    scans = freed = 0
    for block in range(blocks):
        if arrays.block_retire_ms[block] >= clock_ms:
            continue
        if scans == SCANS_MAX or freed >= RETIRED_STOP:
            return True
        scans += 1
        earliest_ms = NOT_DUE_MS
        for slot in range(
            block * BLOCK_ROWS, min((block + 1) * BLOCK_ROWS, arrays.counters[ROWS_USED])
        ):
            flags = arrays.orders[slot].flags
            if not flags & USED or flags & SPILLED or flags & PHASE != SETTLED:
                continue
            if arrays.orders[slot].deadline_ms >= clock_ms:
                earliest_ms = min(earliest_ms, arrays.orders[slot].deadline_ms)
                continue
            if arrays.orders[slot].list_at >= 0:
                drop_list(arrays, slot)
            arrays.counters[ORDERS] -= 1
            free_row(arrays, slot, seed)
            arrays.changed[block] = 1
            freed += 1
        arrays.block_retire_ms[block] = earliest_ms
    return False


@compiled
def refine_due_ms(arrays: Any, block: int, interim_after_ms: int) -> int:
    """Make the bound of when a block's rows are due exact, and return it."""
    due_ms = NOT_DUE_MS
    for slot in range(
        block * BLOCK_ROWS, min((block + 1) * BLOCK_ROWS, arrays.counters[ROWS_USED])
    ):
        flags = arrays.orders[slot].flags
        if flags & USED and not flags & (SPILLED | SETTLED):
            interim_ms = arrays.orders[slot].unbilled_since_ms + interim_after_ms
            due_ms = min(due_ms, arrays.orders[slot].deadline_ms, interim_ms)
    arrays.block_due_ms[block] = due_ms
    return due_ms


@compiled
def next_due_ms(arrays: Any, now_ms: int, interim_after_ms: int) -> int:
    """Return the earliest instant at which a row gives its next total, NOT_DUE_MS if there is
    none.

    Makes the bounds of blocks exact where they are at or before `now_ms`, and trusts the others. So
    a result after `now_ms` may be too early.
    """
    oldest_ms = NOT_DUE_MS
    for block in range((arrays.counters[ROWS_USED] + BLOCK_ROWS - 1) // BLOCK_ROWS):
        due_ms = arrays.block_due_ms[block]
        if due_ms <= now_ms:
            due_ms = refine_due_ms(arrays, block, interim_after_ms)
        oldest_ms = min(oldest_ms, due_ms)
    return oldest_ms


@compiled
def oldest_deadline_ms(arrays: Any, interim_after_ms: int) -> int:
    """Return the very earliest instant at which a row gives its next total, NOT_DUE_MS if there is
    none.

    Begins with the block of the least bound; a second call in a row has nothing left to look at.
    """
    least, blocks = 0, (arrays.counters[ROWS_USED] + BLOCK_ROWS - 1) // BLOCK_ROWS
    for block in range(blocks):
        if arrays.block_due_ms[block] < arrays.block_due_ms[least]:
            least = block
    oldest_ms = refine_due_ms(arrays, least, interim_after_ms)
    for block in range(blocks):
        if arrays.block_due_ms[block] < oldest_ms:
            oldest_ms = min(oldest_ms, refine_due_ms(arrays, block, interim_after_ms))
    return oldest_ms


@compiled
def drop_row(arrays: Any, slot: int, seed: int) -> None:
    """Empty a restored row whose order has a newer state elsewhere."""
    forget_key(arrays, slot, seed)
    if arrays.orders[slot].list_at >= 0:
        drop_list(arrays, slot)
    arrays.orders[slot].flags = 0
    arrays.counters[ORDERS] -= 1


@compiled
def restore_rows(
    arrays: Any, new: Any, slots: Any, lists: Any, progress: Any, interim_after_ms: int, seed: int
) -> int:
    """Put checkpointed rows where they were; -1 when done, else the index table to grow first.

    `progress[0]` is the next row, in and out. An order that is there already stays if its state is
    newer, and is dropped if it is older.
    """
    arrays.counters[NEXT_DUE_MS] = 0  # has to be found out
    for at in range(progress[0], len(slots)):
        progress[0] = at
        key_hash = row_hash(new, at, arrays.words, seed)
        other = find(arrays.orders, arrays.index, arrays.tables, arrays.words, key_hash)
        if other >= 0:
            there = arrays.orders[other]
            if there.source_offset > new[at].source_offset or (
                there.source_offset == new[at].source_offset and there.revision >= new[at].revision
            ):
                continue
            drop_row(arrays, other, seed)
        table = table_to_grow(arrays.tables, key_hash)
        if table >= 0:
            return table
        slot = slots[at]
        arrays.orders[slot] = new[at]
        if new[at].list_at >= 0:
            place = arrays.counters[LISTS_USED]
            if arrays.counters[LISTS_FREE] > 0:
                arrays.counters[LISTS_FREE] -= 1
                place = arrays.lists_free[arrays.counters[LISTS_FREE]]
            else:
                arrays.counters[LISTS_USED] += 1
            copy_list(arrays.lists, place, lists, new[at].list_at)
            arrays.orders[slot].list_at = place
        add(arrays.index, arrays.tables, key_hash, slot)
        arrays.counters[ORDERS] += 1
        arrays.counters[ROWS_USED] = max(arrays.counters[ROWS_USED], slot + 1)
        block = slot // BLOCK_ROWS
        if arrays.orders[slot].flags & PHASE == SETTLED:
            arrays.block_retire_ms[block] = min(
                arrays.block_retire_ms[block], arrays.orders[slot].deadline_ms
            )
        else:
            interim_ms = arrays.orders[slot].unbilled_since_ms + interim_after_ms
            deadline_ms = arrays.orders[slot].deadline_ms
            arrays.block_due_ms[block] = min(arrays.block_due_ms[block], deadline_ms, interim_ms)
    return -1


@compiled
def note_waiting(arrays: Any, words: Any, seed: int, count: int) -> None:
    """Count an opening of a name as waiting (1), or as not waiting any more (-1)."""
    at = waiting_at(hash_key(words, seed))
    if arrays.waiting[at] < WAITING_MAX:
        arrays.waiting[at] += count
    arrays.counters[WAITING] += count


@compiled
def stack_free_rows(arrays: Any) -> None:
    """Rebuild the stack of free rows after a restore, the lowest on top."""
    arrays.counters[ROWS_FREE] = 0
    for slot in range(arrays.counters[ROWS_USED] - 1, -1, -1):
        if arrays.orders[slot].flags == 0:
            arrays.free[arrays.counters[ROWS_FREE]] = slot
            arrays.counters[ROWS_FREE] += 1


@compiled
def are_sound(held: Any, lists: Any) -> bool:
    """Tell whether rows keep the invariants that a checkpoint may rely on."""
    for at in range(len(held)):
        row = held[at]
        if not row.flags & USED or row.flags & SPILLED or row.start_ms > row.end_ms:
            return False
        if row.overlap_ms < 0 or row.source_offset < 0 or row.end_number < 0:
            return False
        if not 1 <= row.key_size <= KEY_BYTES_MAX or row.accepted < 1:
            return False
        if (row.flags & PHASE == SETTLED) != (row.revision > 0):
            return False
        if row.list_at < 0:
            if not 1 <= row.first_number <= row.last_number:
                return False
            if row.accepted < row.last_number - row.first_number + 1:
                return False
            continue
        pieces = lists[row.list_at]
        for base, count in ((INTERVALS, pieces[0]), (NUMBERS, pieces[1])):
            for p in range(count):
                if pieces[base + 2 * p] >= pieces[base + 2 * p + 1]:
                    return False
                if p and pieces[base + 2 * p - 1] >= pieces[base + 2 * p]:
                    return False
    return True
