"""The blocks of a column table: rows with plain orders among them, and how they are restored."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from durabill.schemas.errors import StateError
from durabill.stream_processors.core.order import Order
from durabill.stream_processors.engine.blocks import (
    BlockContent,
    Snapshot,
    columns_snapshot,
    decode_block,
)
from durabill.stream_processors.engine.kernel import maintain, rows, upgrade
from durabill.stream_processors.engine.restored import Restored, age_of
from durabill.stream_processors.engine.row_index import key_of
from durabill.stream_processors.engine.store import RowStore


class RowBlocks:
    """A store's rows as blocks of a checkpoint; see `slots.Blocks`."""

    def __init__(self, store: RowStore) -> None:
        self._store = store
        self.touched: set[str] = set()
        """Plain orders that may have become simple enough for a row since they were looked at."""

    def take_slot(self, number: str) -> int:
        """Return a slot for a new plain order."""
        return self._store.take_slot(number.encode())

    def give_slot(self, slot: int) -> None:
        """Take the slot of a forgotten order back."""
        self._store.free_slot(slot)

    def note_change(self, number: str) -> None:
        """Note that a plain order has come or has changed."""
        self.touched.add(number)

    def note_waiting(self, number: str, count: int) -> None:
        """Note that an opening of a number begins to wait (1), or does no more (-1)."""
        self._store.openings.note_waiting(number.encode(), count)

    # -- checkpoints --------------------------------------------------------------------------

    def take_changed(self) -> set[int]:
        """Return the blocks with changed rows, and count them as unchanged from now on."""
        changed = self._store.arrays.changed
        blocks = np.flatnonzero(changed)
        changed[blocks] = 0
        return set(blocks.tolist())

    def snapshot(
        self, block: int, orders: Mapping[int, Order], frozen: list[Any]
    ) -> Snapshot | None:
        """Return what a block holds now, None if that is no order; see `slots` for `frozen`."""
        store = self._store
        first = min(block * rows.BLOCK_ROWS, store.rows_max)
        after = min(first + rows.BLOCK_ROWS, store.rows_max)
        flags = store.orders[first:after]["flags"]
        is_held = (flags & (rows.USED | rows.SPILLED)) == rows.USED
        slots = (first + np.flatnonzero(is_held)).astype(np.int32)
        if not len(slots) and not orders and not frozen:
            return None
        held = store.orders[slots]
        held["key_size"] &= rows.KEY_SIZE_BITS
        held["flags"] &= rows.USED | rows.PHASE | rows.TIMES_SETTLED
        with_list = np.flatnonzero(held["list_at"] >= 0)
        lists = store.arrays.lists[held["list_at"][with_list]]
        held["list_at"][with_list] = np.arange(len(with_list))
        assert maintain.are_sound(held, lists)
        openings = store.openings.among(slots)
        return columns_snapshot(slots, held, lists, orders.items(), frozen, openings)

    # -- restores -----------------------------------------------------------------------------

    def restore(self, blocks: Iterable[bytes]) -> tuple[list[tuple[int, Order]], Restored]:
        """Fill the empty rows from entries; return the plain orders in their slots, and all else.

        Of two states of an order, and of two orders in one slot, the newer is taken; see `slots`.
        """
        restored = Restored()
        for block in blocks:
            content = decode_block(block)
            if content.rows:
                self._restore_rows(content)
            restored.add(content)
        kept = [
            (slot, order)
            for slot, order in restored.orders(self._is_newest)
            if self._wins_slot(slot, order)
        ]
        for slot, order in kept:
            self._store.restore_placeholder(slot, order.service_order_number.encode())
        maintain.stack_free_rows(self._store.arrays)
        return kept, restored

    def _restore_rows(self, content: BlockContent) -> None:
        if content.is_old:
            held = upgrade.rows_of_version_2(content.rows)
        else:
            held = np.frombuffer(content.rows, rows.ORDER)
        slots = np.frombuffer(content.slots, np.int32)
        lists = np.frombuffer(content.lists, np.int64).reshape(-1, rows.LIST_SIZE)
        assert len(held) == len(slots)
        store = self._store
        if len(slots) and int(slots.max()) >= store.rows_max:
            raise StateError(
                f"a checkpoint has rows up to {slots.max()}, this worker has {store.rows_max}: run"
                " it with the rows_max of the one that wrote it"
            )
        assert maintain.are_sound(held, lists)
        progress = np.zeros(1, np.int64)
        while True:
            table = maintain.restore_rows(
                store.arrays,
                held,
                slots,
                lists,
                progress,
                store.interim_after_ms,
                store.index.seed,
            )
            if table < 0:
                break
            store.index.grow(table)
        if content.openings is not None:
            at = dict(zip(slots.tolist(), range(len(slots)), strict=True))
            store.openings.restore(
                content.openings, lambda slot: self._is_there(slot, held[at[slot]])
            )

    def _is_there(self, slot: int, row: Any) -> bool:
        """Tell whether it is this row that a slot holds, rather than a newer one."""
        there = self._store.orders[slot]
        return bool(there["source_offset"] == row["source_offset"]) and key_of(there) == key_of(row)

    def _is_newest(self, order: Order) -> bool:
        """Tell whether no row has a newer state of a plain order; drops one with an older."""
        slot = self._store.find(order.service_order_number.encode())
        return slot < 0 or self._drop_if_older(slot, order)

    def _wins_slot(self, slot: int, order: Order) -> bool:
        """Tell whether a slot is a plain order's; drops a row that is there from before."""
        is_free = not self._store.has_row(slot) or not self._store.orders[slot]["flags"] & rows.USED
        return is_free or self._drop_if_older(slot, order)

    def _drop_if_older(self, slot: int, order: Order) -> bool:
        if self._store.age_of(slot) >= age_of(order):
            return False
        self._store.drop(slot)
        return True
