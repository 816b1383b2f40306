"""How rows settle: with the record that completes them, or when their deadline has come."""

from typing import Any

from durabill.stream_processors.engine.kernel import compiled
from durabill.stream_processors.engine.kernel.rows import (
    ABANDONED,
    BLOCK_ROWS,
    DEFERRED_COUNT,
    ENDED,
    INCOMPLETE,
    KEY_SIZE_BITS,
    NEXT_DUE_MS,
    NOT_DUE_MS,
    OPENED,
    PHASE,
    ROWS_USED,
    SCANS_MAX,
    SETTLED,
    SETTLEMENT_COUNT,
    SETTLEMENT_LISTS,
    SPILLED,
    USED,
    copy_list,
)


@compiled
def settle(
    arrays: Any,
    slot: int,
    status: int,
    settled_at_ms: int,
    forget_after_ms: int,
    future_tolerance_ms: int,
) -> None:
    """Settle a row as of `settled_at_ms` and note it, as it is now, among the settlements."""
    note = arrays.counters[SETTLEMENT_COUNT]
    arrays.counters[SETTLEMENT_COUNT] += 1
    arrays.orders[slot].revision += 1
    arrays.settlements[note] = arrays.orders[slot]
    arrays.settled_at_ms[note] = settled_at_ms
    arrays.settled_status[note] = status
    if arrays.orders[slot].list_at >= 0:
        at = arrays.counters[SETTLEMENT_LISTS]
        arrays.counters[SETTLEMENT_LISTS] += 1
        copy_list(arrays.settled_lists, at, arrays.lists, arrays.orders[slot].list_at)
        arrays.settlements[note].list_at = at
    arrays.settlements[note].key_size &= KEY_SIZE_BITS
    reference_ms = max(settled_at_ms, arrays.orders[slot].end_ms - future_tolerance_ms)
    deadline_ms = reference_ms + forget_after_ms
    if arrays.orders[slot].key_size & OPENED:
        known_until_ms = arrays.openings[slot].accept_until_ms + future_tolerance_ms
        deadline_ms = max(deadline_ms, known_until_ms)
    arrays.orders[slot].deadline_ms = deadline_ms
    arrays.orders[slot].unbilled_since_ms = settled_at_ms
    block = slot // BLOCK_ROWS
    arrays.block_retire_ms[block] = min(
        arrays.block_retire_ms[block], arrays.orders[slot].deadline_ms
    )
    arrays.orders[slot].flags = (arrays.orders[slot].flags & ~PHASE) | SETTLED


@compiled
def settle_block(
    arrays: Any,
    block: int,
    now_ms: int,
    interim_after_ms: int,
    forget_after_ms: int,
    future_tolerance_ms: int,
) -> int:
    """Settle a block's rows whose deadline has come; return when the next of them is due."""
    due_ms = NOT_DUE_MS
    for slot in range(
        block * BLOCK_ROWS, min((block + 1) * BLOCK_ROWS, arrays.counters[ROWS_USED])
    ):
        flags = arrays.orders[slot].flags
        if not flags & USED or flags & (SPILLED | SETTLED):
            continue
        deadline_ms = arrays.orders[slot].deadline_ms
        interim_ms = arrays.orders[slot].unbilled_since_ms + interim_after_ms
        if min(deadline_ms, interim_ms) > now_ms:
            due_ms = min(due_ms, deadline_ms, interim_ms)
            continue
        if interim_ms < deadline_ms:
            arrays.deferred[arrays.counters[DEFERRED_COUNT]] = slot
            arrays.counters[DEFERRED_COUNT] += 1
            due_ms = min(due_ms, interim_ms)
            continue
        status = INCOMPLETE if flags & PHASE == ENDED else ABANDONED
        settle(arrays, slot, status, deadline_ms, forget_after_ms, future_tolerance_ms)
        arrays.changed[block] = 1
    return due_ms


@compiled
def settle_due(
    arrays: Any,
    first_block: int,
    now_ms: int,
    interim_after_ms: int,
    forget_after_ms: int,
    future_tolerance_ms: int,
) -> int:
    """Settle the rows whose deadline has come; return the block to go on with, -1 when done.

    Rows due an interim total first are left to the plain core: `deferred` gets their slots.
    `block_due_ms` is a lower bound, made exact where it has come; NEXT_DUE_MS is the least of them.
    Stops where `settlements` or `deferred` have no room, and after SCANS_MAX blocks.
    """
    blocks = (arrays.counters[ROWS_USED] + BLOCK_ROWS - 1) // BLOCK_ROWS
    scans = 0
    if first_block == 0:
        arrays.counters[NEXT_DUE_MS] = NOT_DUE_MS
    for block in range(first_block, blocks):
        if arrays.block_due_ms[block] <= now_ms:
            if (
                scans == SCANS_MAX
                or arrays.counters[SETTLEMENT_COUNT] + BLOCK_ROWS > arrays.settlements.shape[0]
                or arrays.counters[DEFERRED_COUNT] + BLOCK_ROWS > arrays.deferred.shape[0]
            ):
                arrays.counters[NEXT_DUE_MS] = now_ms
                return block
            scans += 1
            arrays.block_due_ms[block] = settle_block(
                arrays, block, now_ms, interim_after_ms, forget_after_ms, future_tolerance_ms
            )
        next_due_ms = min(arrays.counters[NEXT_DUE_MS], arrays.block_due_ms[block])
        arrays.counters[NEXT_DUE_MS] = next_due_ms
    return -1
