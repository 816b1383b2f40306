"""Where orders sit: numbered slots, blocks of slots, and the entries of a checkpoint.

An entry is a block, named by its number ("17"), or one large order, named by its block and slot
("17.17411"), so that no entry grows beyond a megabyte and a repeat for a large order rewrites that
order alone. An order is large while it has more than LARGE_PIECES pieces.

A crash can leave the first few of a checkpoint's entries written. The restore takes of two states
of an order the newer one, and of two orders in one slot the newer one, for a slot is given away
only when its order is forgotten for good. So nothing is lost if an order is always in one entry or
in both, and that is what the order of the hand-out sees to:

    1 the entries of large orders
    2 the blocks, without the orders whose own entry has been handed out by then
    3 tombstones of the entries whose order is small again, or gone: their blocks have been written

Entries are encoded one by one, while the stream goes on; so an order can become large after the
checkpoint's cut, when its own entry isn't among those to be written. Until that is handed out, its
block holds it as it was when it became large (frozen: as small as that), which is at or after the
cut, so that a replay from the cut finds all it needs. The other way round: an order that becomes
small stays in its own entry until the next cut.
"""

import heapq
from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from typing import Any

from durabill.stream_processors.core.order import Order
from durabill.stream_processors.engine.blocks import (
    BlockContent,
    Snapshot,
    freeze,
    large_snapshot,
    plain_snapshot,
)

BLOCK_SLOTS = 1024
LARGE_PIECES = 32
"""Intervals, ranges of numbers and origins of copies. A block of as many orders as it holds, each
as large as this allows, takes 0.9 MB."""


class Own(Enum):
    """What a slot's own entry stands for."""

    DUE = "to be handed out first; till then the block holds what is frozen"
    HELD = "handed out: the block leaves the order out"
    LEAVING = "to be removed, once the block has been handed out with the slot's order, if any"


class OrderSlots:
    """Plain orders in their slots, and which entries have changed."""

    def __init__(self) -> None:
        self._orders: dict[str, Order] = {}
        self._slots: dict[str, int] = {}
        self._blocks: dict[int, dict[int, Order]] = {}
        self._free: list[int] = []
        self._changed: set[int] = set()
        self._own: dict[int, Own] = {}
        self._own_changed: set[int] = set()
        self._frozen: dict[int, Any] = {}

    # -- slots --------------------------------------------------------------------------------

    def _take_slot(self, number: str) -> int:
        return heapq.heappop(self._free) if self._free else len(self._slots)

    def _give_slot(self, slot: int) -> None:
        heapq.heappush(self._free, slot)

    def _put_order(self, slot: int, order: Order) -> None:
        self._orders[order.service_order_number] = order
        self._slots[order.service_order_number] = slot
        self._blocks.setdefault(slot // BLOCK_SLOTS, {})[slot] = order

    def _remove_order(self, number: str) -> None:
        """Take an order out that is forgotten for good, and give its slot back."""
        slot = self._slots.pop(number)
        del self._orders[number]
        del self._blocks[slot // BLOCK_SLOTS][slot]
        self._frozen.pop(slot, None)
        if slot in self._own:
            self._own[slot] = Own.LEAVING
            self._own_changed.add(slot)
        self._give_slot(slot)
        self._changed.add(slot // BLOCK_SLOTS)

    def _mark_changed(self, order: Order) -> None:
        """Note that an order has changed."""
        slot = self._slots[order.service_order_number]
        own = self._own.get(slot)
        if own is not Own.HELD:
            self._changed.add(slot // BLOCK_SLOTS)
            if is_large(order) and slot not in self._frozen:
                own = self._own.setdefault(slot, Own.DUE)
                self._frozen[slot] = freeze(slot, order)
        if own is not None:
            self._own_changed.add(slot)

    def _at(self, slot: int) -> Order | None:
        return self._blocks.get(slot // BLOCK_SLOTS, {}).get(slot)

    # -- entries ------------------------------------------------------------------------------

    def take_changed(self) -> list[str]:
        """Return the names of the entries that have changed since the last call.

        Their snapshots are to be taken, and written, in this order; see the module's docstring.
        """
        large, leaving = [], []
        for slot in sorted(self._own_changed):
            order = self._at(slot)
            if order is not None and is_large(order):
                if self._own[slot] is Own.LEAVING:
                    self._own[slot] = Own.DUE
                    self._changed.add(slot // BLOCK_SLOTS)
                large.append(slot)
                continue
            self._frozen.pop(slot, None)
            self._changed.add(slot // BLOCK_SLOTS)
            self._own[slot] = Own.LEAVING
            leaving.append(slot)
        self._own_changed.clear()
        blocks = sorted(self._take_changed_blocks())
        return [*map(own_name, large), *map(str, blocks), *map(own_name, leaving)]

    def _take_changed_blocks(self) -> set[int]:
        changed = self._changed
        self._changed = set()
        return changed

    def snapshot(self, name: str) -> Snapshot | None:
        """Return what an entry holds now; None: it is to be removed."""
        block, _, slot = name.partition(".")
        if slot:
            return self._own_snapshot(int(slot))
        return self._block_snapshot(int(block), *self._in_block(int(block)))

    def _in_block(self, block: int) -> tuple[dict[int, Order], list[Any]]:
        """Return a block's plain orders, and those that it holds as they were."""
        orders = self._blocks.get(block, {})
        if not self._own:
            return orders, []
        frozen = [self._frozen[slot] for slot in orders if slot in self._frozen]
        held = {
            slot: order
            for slot, order in orders.items()
            if slot not in self._frozen and self._own.get(slot) is not Own.HELD
        }
        return held, frozen

    def _block_snapshot(
        self, block: int, orders: Mapping[int, Order], frozen: list[Any]
    ) -> Snapshot | None:
        return plain_snapshot(orders.items(), frozen) if orders or frozen else None

    def _own_snapshot(self, slot: int) -> Snapshot | None:
        order, own = self._at(slot), self._own.get(slot)
        if order is None or own is None or own is Own.LEAVING:
            self._own.pop(slot, None)
            self._own_changed.discard(slot)
            if order is not None and slot in self._frozen:
                self._own[slot] = Own.DUE  # it has become large since the cut
                self._own_changed.add(slot)
            return None
        self._own[slot] = Own.HELD
        self._frozen.pop(slot, None)
        return large_snapshot(slot, order)

    def _note_entries(self, orders: Iterable[tuple[int, Order]], own: Mapping[int, Order]) -> None:
        """Note which entries restored orders are in; `own` are all own entries that were read.

        What is not where it belongs is written anew with the next checkpoint.
        """
        for slot, order in orders:
            if own.get(slot) is order:
                self._own[slot] = Own.HELD
                if not is_large(order):
                    self._own_changed.add(slot)
            elif is_large(order):
                self._own[slot] = Own.DUE
                self._own_changed.add(slot)
                self._changed.add(slot // BLOCK_SLOTS)
        for slot in own:
            if self._own.setdefault(slot, Own.LEAVING) is Own.LEAVING:
                self._own_changed.add(slot)


class Restored:
    """The plain orders of a checkpoint's entries, as they are read, in any order."""

    def __init__(self) -> None:
        self._newest: dict[str, tuple[int, Order]] = {}
        self.own: dict[int, Order] = {}
        """What the own entries hold, by slot."""

    def add(self, content: BlockContent) -> None:
        """Take in an entry; of two states of an order the newer one is kept."""
        for slot, order in content.orders:
            if content.is_own:
                self.own[slot] = order
            known = self._newest.get(order.service_order_number)
            if known is None or age_of(known[1]) < age_of(order):
                self._newest[order.service_order_number] = (slot, order)

    def orders(
        self, is_newest: Callable[[Order], bool] = lambda order: True
    ) -> list[tuple[int, Order]]:
        """Return (slot, order) by slot; of two orders in one slot the newer one.

        `is_newest` tells whether no state of the order is newer that was kept elsewhere.
        """
        by_slot: dict[int, Order] = {}
        for slot, order in self._newest.values():
            is_newer = slot not in by_slot or age_of(by_slot[slot]) < age_of(order)
            if is_newest(order) and is_newer:
                by_slot[slot] = order
        return sorted(by_slot.items(), key=lambda each: each[0])


def own_name(slot: int) -> str:
    """Return the name of the entry that holds a slot's order alone."""
    return f"{slot // BLOCK_SLOTS}.{slot}"


def is_large(order: Order) -> bool:
    """Tell whether an order is to have an entry of its own."""
    return len(order.time) + len(order.numbers) + len(order.forwarded) > LARGE_PIECES


def age_of(order: Order) -> tuple[int, int]:
    """Return what grows with every change of an order's state that a recovery could not redo."""
    return order.source_offset, order.revision
