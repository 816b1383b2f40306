"""What happens to rows between batches: freed, retired, restored, checked, asked."""

from typing import Any

from durabill.stream_processors.engine.kernel import compiled
from durabill.stream_processors.engine.kernel.index import (
    add,
    find,
    remove,
    row_hash,
    table_to_grow,
)
from durabill.stream_processors.engine.kernel.rows import (
    BLOCK_ROWS,
    EXTRAS_FREE,
    EXTRAS_USED,
    INTERVALS,
    KEY_BYTES_MAX,
    NEVER,
    NUMBERS,
    ODD,
    ORDERS,
    PHASE,
    ROWS_FREE,
    ROWS_USED,
    SCANS_MAX,
    SETTLED,
    USED,
    copy_extra,
    drop_extra,
)

RETIRED_STOP = 16_384
"""So many rows are freed in one call, and at most a block more: a few milliseconds."""


@compiled
def forget_key(store: Any, slot: int, seed: int) -> None:
    """Take a row's name, if it has one, out of the index."""
    if store.orders[slot].key_size == 0:
        return
    key_hash = row_hash(store.orders, slot, store.words, seed)
    remove(store.orders, store.index, store.tables, store.words, key_hash, seed)
    store.orders[slot].key_size = 0


@compiled
def free_row(store: Any, slot: int, seed: int) -> None:
    """Give a row that holds nothing (any more) back."""
    forget_key(store, slot, seed)
    store.orders[slot].flags = 0
    store.free[store.counters[ROWS_FREE]] = slot
    store.counters[ROWS_FREE] += 1


@compiled
def make_odd(store: Any, slot: int) -> None:
    """Turn a row into a stub."""
    if store.orders[slot].extra >= 0:
        drop_extra(store, slot)
    store.orders[slot].flags = (store.orders[slot].flags & ~PHASE) | ODD
    store.counters[ORDERS] -= 1


@compiled
def retire(store: Any, clock: int, seed: int) -> bool:
    """Free the settled rows whose deadline is before `clock`; makes `block_retire` exact there.

    Ends after RETIRED_STOP rows, or all rows of SCANS_MAX blocks; tells whether there may be more.
    """
    blocks = (store.counters[ROWS_USED] + BLOCK_ROWS - 1) // BLOCK_ROWS
    scans = freed = 0
    for block in range(blocks):
        if store.block_retire[block] >= clock:
            continue
        if scans == SCANS_MAX or freed >= RETIRED_STOP:
            return True
        scans += 1
        earliest = NEVER
        for slot in range(
            block * BLOCK_ROWS, min((block + 1) * BLOCK_ROWS, store.counters[ROWS_USED])
        ):
            flags = store.orders[slot].flags
            if not flags & USED or flags & ODD or flags & PHASE != SETTLED:
                continue
            if store.orders[slot].deadline_ms >= clock:
                earliest = min(earliest, store.orders[slot].deadline_ms)
                continue
            if store.orders[slot].extra >= 0:
                drop_extra(store, slot)
            store.counters[ORDERS] -= 1
            free_row(store, slot, seed)
            store.changed[block] = 1
            freed += 1
        store.block_retire[block] = earliest
    return False


@compiled
def refine_due(store: Any, block: int, interim_after: int) -> int:
    """Make the bound of when a block's rows are due exact, and return it."""
    due = NEVER
    for slot in range(block * BLOCK_ROWS, min((block + 1) * BLOCK_ROWS, store.counters[ROWS_USED])):
        flags = store.orders[slot].flags
        if flags & USED and not flags & (ODD | SETTLED):
            interim = store.orders[slot].unbilled_since_ms + interim_after
            due = min(due, store.orders[slot].deadline_ms, interim)
    store.block_due[block] = due
    return due


@compiled
def next_due(store: Any, now: int, interim_after: int) -> int:
    """Return the earliest instant at which a row gives its next total, NEVER if there is none.

    Makes the bounds of blocks exact where they are at or before `now`, and trusts the others: so
    a result after `now` may be too early.
    """
    oldest = NEVER
    for block in range((store.counters[ROWS_USED] + BLOCK_ROWS - 1) // BLOCK_ROWS):
        due = store.block_due[block]
        if due <= now:
            due = refine_due(store, block, interim_after)
        oldest = min(oldest, due)
    return oldest


@compiled
def oldest_deadline(store: Any, interim_after: int) -> int:
    """Return the very earliest instant at which a row gives its next total, NEVER if there is none.

    Begins with the block of the least bound; a second call in a row has nothing left to look at.
    """
    least, blocks = 0, (store.counters[ROWS_USED] + BLOCK_ROWS - 1) // BLOCK_ROWS
    for block in range(blocks):
        if store.block_due[block] < store.block_due[least]:
            least = block
    oldest = refine_due(store, least, interim_after)
    for block in range(blocks):
        if store.block_due[block] < oldest:
            oldest = min(oldest, refine_due(store, block, interim_after))
    return oldest


@compiled
def drop_row(store: Any, slot: int, seed: int) -> None:
    """Empty a restored row whose order has a newer state elsewhere."""
    forget_key(store, slot, seed)
    if store.orders[slot].extra >= 0:
        drop_extra(store, slot)
    store.orders[slot].flags = 0
    store.counters[ORDERS] -= 1


@compiled
def restore_rows(
    store: Any, new: Any, slots: Any, pieces: Any, progress: Any, interim_after: int, seed: int
) -> int:
    """Put checkpointed rows where they were; -1 when done, else the index table to grow first.

    `progress[0]` is the next of them, in and out. An order that is there already in a newer
    state stays as it is; an older one is dropped.
    """
    for at in range(progress[0], len(slots)):
        progress[0] = at
        key_hash = row_hash(new, at, store.words, seed)
        other = find(store.orders, store.index, store.tables, store.words, key_hash)
        if other >= 0:
            there = store.orders[other]
            if there.source_offset > new[at].source_offset or (
                there.source_offset == new[at].source_offset and there.revision >= new[at].revision
            ):
                continue
            drop_row(store, other, seed)
        table = table_to_grow(store.tables, key_hash)
        if table >= 0:
            return table
        slot = slots[at]
        store.orders[slot] = new[at]
        if new[at].extra >= 0:
            place = store.counters[EXTRAS_USED]
            if store.counters[EXTRAS_FREE] > 0:
                store.counters[EXTRAS_FREE] -= 1
                place = store.extra_free[store.counters[EXTRAS_FREE]]
            else:
                store.counters[EXTRAS_USED] += 1
            copy_extra(store.extra, place, pieces, new[at].extra)
            store.orders[slot].extra = place
        add(store.index, store.tables, key_hash, slot)
        store.counters[ORDERS] += 1
        store.counters[ROWS_USED] = max(store.counters[ROWS_USED], slot + 1)
        block = slot // BLOCK_ROWS
        if store.orders[slot].flags & PHASE == SETTLED:
            store.block_retire[block] = min(
                store.block_retire[block], store.orders[slot].deadline_ms
            )
        else:
            interim = store.orders[slot].unbilled_since_ms + interim_after
            deadline = store.orders[slot].deadline_ms
            store.block_due[block] = min(store.block_due[block], deadline, interim)
    return -1


@compiled
def list_free(store: Any) -> None:
    """Rebuild the stack of free rows after a restore, the lowest on top."""
    store.counters[ROWS_FREE] = 0
    for slot in range(store.counters[ROWS_USED] - 1, -1, -1):
        if store.orders[slot].flags == 0:
            store.free[store.counters[ROWS_FREE]] = slot
            store.counters[ROWS_FREE] += 1


@compiled
def are_sound(held: Any, extras: Any) -> bool:
    """Tell whether rows keep the invariants that a checkpoint may rely on."""
    for at in range(len(held)):
        row = held[at]
        if not row.flags & USED or row.flags & ODD or row.start_ms > row.end_ms:
            return False
        if row.overlap_ms < 0 or row.source_offset < 0 or row.end_number < 0:
            return False
        if not 1 <= row.key_size <= KEY_BYTES_MAX or row.accepted < 1:
            return False
        if (row.flags & PHASE == SETTLED) != (row.revision > 0):
            return False
        if row.extra < 0:
            if not 1 <= row.first_number <= row.last_number:
                return False
            if row.accepted < row.last_number - row.first_number + 1:
                return False
            continue
        extra = extras[row.extra]
        for base, count in ((INTERVALS, extra[0]), (NUMBERS, extra[1])):
            for p in range(count):
                if extra[base + 2 * p] >= extra[base + 2 * p + 1]:
                    return False
                if p and extra[base + 2 * p - 1] >= extra[base + 2 * p]:
                    return False
    return True
