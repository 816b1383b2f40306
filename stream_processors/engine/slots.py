"""Where orders sit: numbered slots, blocks of slots, and the entries of a checkpoint.

An entry is a block, named by its number ("17"), or one large order, named by its block and slot
("17.17411"), so that no entry grows beyond a megabyte and a repeat for a large order rewrites that
order alone. An order is large while it has more than LARGE_PIECES pieces.

A crash can leave only the first few entries of a checkpoint written. Of two states of an order
the restore takes the newer one, and of two orders in one slot the newer one as well, since a slot
is given away only when its order is forgotten for good. So nothing is lost if an order is always
in one entry or in both. The order in which entries are handed out sees to that:

    1 the entries of large orders
    2 the blocks, without the orders whose own entry has been handed out by then
    3 tombstones of the entries whose order is small again, or gone: their blocks have been written

Entries are encoded one by one, while the stream goes on. So an order can become large after the
checkpoint has begun, when its own entry isn't among those to be written. Until that entry is
handed out, the block holds the order as it was when it became large (frozen, and as small as it
was then). That is the order's state at or after the checkpoint's beginning, so a replay from there
finds all it needs. The other way round, an order that becomes small stays in its own entry until
the next checkpoint begins.
"""

import heapq
from collections.abc import Iterable, Iterator, Mapping
from enum import Enum
from typing import Any, Protocol

from durabill.stream_processors.core.order import Order
from durabill.stream_processors.engine.blocks import (
    Snapshot,
    freeze,
    large_snapshot,
    plain_snapshot,
)

BLOCK_SLOTS = 1024
LARGE_PIECES = 32
"""Intervals, ranges of numbers and sources of copies. A block of as many orders as it holds, each
as large as this allows, takes 0.9 MB."""


class Own(Enum):
    """What a slot's own entry stands for."""

    DUE = "to be handed out first; till then the block holds what is frozen"
    HELD = "handed out: the block leaves the order out"
    LEAVING = "to be removed, once the block has been handed out with the slot's order, if any"


class Blocks(Protocol):
    """Gives out the slots, and knows what else than plain orders lies in a block."""

    def take_slot(self, number: str) -> int:
        """Return a slot for a new order."""

    def give_slot(self, slot: int) -> None:
        """Take the slot of a forgotten order back."""

    def note_change(self, number: str) -> None:
        """Note that a plain order has come or has changed."""

    def note_waiting(self, number: str, count: int) -> None:
        """Note that an opening of a number begins to wait (1), or does no more (-1)."""

    def take_changed(self) -> set[int]:
        """Return the blocks in which something else has changed since the last call."""

    def snapshot(
        self, block: int, orders: Mapping[int, Order], frozen: list[Any]
    ) -> Snapshot | None:
        """Return what a block holds, these plain orders among it; None: nothing."""


class PlainBlocks:
    """Blocks of plain orders alone. The lowest free slot is given out first."""

    def __init__(self) -> None:
        self._used = 0
        self._free: list[int] = []

    def take_slot(self, number: str) -> int:
        """Return a slot for a new order."""
        if self._free:
            return heapq.heappop(self._free)
        self._used += 1
        return self._used - 1

    def give_slot(self, slot: int) -> None:
        """Take the slot of a forgotten order back."""
        heapq.heappush(self._free, slot)

    def note_change(self, number: str) -> None:
        """Note nothing: a plain order has no other form."""

    def note_waiting(self, number: str, count: int) -> None:
        """Note nothing: every record is looked at."""

    def take_changed(self) -> set[int]:
        """Return no block: there is nothing else in one."""
        return set()

    def snapshot(
        self, block: int, orders: Mapping[int, Order], frozen: list[Any]
    ) -> Snapshot | None:
        """Return what a block holds; None: nothing."""
        return plain_snapshot(orders.items(), frozen) if orders or frozen else None

    def restore(self, taken: set[int]) -> None:
        """Count these slots as taken, all others as free."""
        self._used = max(taken, default=-1) + 1
        self._free = [slot for slot in range(self._used) if slot not in taken]


class OrderSlots:
    """Plain orders in their slots, and which entries have changed."""

    def __init__(self, blocks: Blocks) -> None:
        self._host = blocks
        self._orders: dict[str, Order] = {}
        self._slots: dict[str, int] = {}
        self._blocks: dict[int, dict[int, Order]] = {}
        self._changed: set[int] = set()
        self._own: dict[int, Own] = {}
        self._own_changed: set[int] = set()
        self._frozen: dict[int, Any] = {}

    # -- slots --------------------------------------------------------------------------------

    def __len__(self) -> int:
        """Return the number of orders."""
        return len(self._orders)

    def __iter__(self) -> Iterator[Order]:
        """Iterate over the orders."""
        return iter(self._orders.values())

    def get(self, number: str) -> Order | None:
        """Return an order, None if it is not here."""
        return self._orders.get(number)

    def at(self, slot: int) -> Order | None:
        """Return the order in a slot, None if there is none."""
        return self._blocks.get(slot // BLOCK_SLOTS, {}).get(slot)

    def slot_of(self, number: str) -> int:
        """Return the slot of an order that is here."""
        return self._slots[number]

    def taken(self) -> set[int]:
        """Return the slots of all orders."""
        return set(self._slots.values())

    def add(self, order: Order) -> Order:
        """Put a new order into a free slot, and return it."""
        self.put(self._host.take_slot(order.service_order_number), order)
        return order

    def replace(self, order: Order) -> Order:
        """Put an order in the slot of its forgotten namesake, and return it.

        In the same slot: were the two ever in blocks of different age, a replay could find
        neither, and take a repeat of the old one's records for a new order.
        """
        self.put(self._slots[order.service_order_number], order)
        return order

    def put(self, slot: int, order: Order) -> None:
        """Put an order into its slot."""
        self._orders[order.service_order_number] = order
        self._slots[order.service_order_number] = slot
        self._blocks.setdefault(slot // BLOCK_SLOTS, {})[slot] = order
        self._host.note_change(order.service_order_number)

    def take_out(self, number: str) -> None:
        """Take an order out that lives on elsewhere in its slot."""
        slot = self._slots.pop(number)
        del self._orders[number], self._blocks[slot // BLOCK_SLOTS][slot]

    def remove(self, number: str) -> None:
        """Take an order out that is forgotten for good, and give its slot back."""
        slot = self._slots[number]
        self.take_out(number)
        self._frozen.pop(slot, None)
        if slot in self._own:
            self._own[slot] = Own.LEAVING
            self._own_changed.add(slot)
        self._host.give_slot(slot)
        self._changed.add(slot // BLOCK_SLOTS)

    def mark_changed(self, order: Order) -> None:
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
        self._host.note_change(order.service_order_number)

    def has_own_entry(self, slot: int) -> bool:
        """Tell whether a slot's order has an entry of its own, or is to get or to lose one."""
        return slot in self._own

    # -- entries ------------------------------------------------------------------------------

    def take_changed(self) -> list[str]:
        """Return the names of the entries that have changed since the last call.

        Their snapshots are to be taken, and written, in this order; see the module's docstring.
        """
        large, leaving = [], []
        for slot in sorted(self._own_changed):
            order = self.at(slot)
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
        blocks = sorted(self._changed | self._host.take_changed())
        self._changed = set()
        return [*map(own_name, large), *map(str, blocks), *map(own_name, leaving)]

    def snapshot(self, name: str) -> Snapshot | None:
        """Return what an entry holds now; None: it is to be removed."""
        block, _, slot = name.partition(".")
        if slot:
            return self._own_snapshot(int(slot))
        return self._host.snapshot(int(block), *self._content(int(block)))

    def _content(self, block: int) -> tuple[dict[int, Order], list[Any]]:
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

    def _own_snapshot(self, slot: int) -> Snapshot | None:
        order, own = self.at(slot), self._own.get(slot)
        if order is None or own is None or own is Own.LEAVING:
            self._own.pop(slot, None)
            self._own_changed.discard(slot)
            if order is not None and slot in self._frozen:
                self._own[slot] = Own.DUE  # it has become large since the checkpoint began
                self._own_changed.add(slot)
            return None
        self._own[slot] = Own.HELD
        self._frozen.pop(slot, None)
        return large_snapshot(slot, order)

    def note_entries(self, orders: Iterable[tuple[int, Order]], own: Mapping[int, Order]) -> None:
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


def own_name(slot: int) -> str:
    """Return the name of the entry that holds a slot's order alone."""
    return f"{slot // BLOCK_SLOTS}.{slot}"


def is_large(order: Order) -> bool:
    """Tell whether an order is to have an entry of its own."""
    return len(order.time) + len(order.numbers) + len(order.forwarded) > LARGE_PIECES
