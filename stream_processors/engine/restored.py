"""The plain orders that a restore finds in a checkpoint, of two states of one the newer."""

from collections.abc import Callable

from durabill.stream_processors.core.order import Order
from durabill.stream_processors.engine.blocks import BlockContent, WaitingState


class Restored:
    """The plain orders of a checkpoint's entries, as they are read, in any order."""

    def __init__(self) -> None:
        self._newest: dict[str, tuple[int, Order]] = {}
        self.own: dict[int, Order] = {}
        """What the own entries hold, by slot."""
        self.waiting: list[WaitingState] = []
        """The openings that wait."""

    def add(self, content: BlockContent) -> None:
        """Take in an entry; of two states of an order the newer one is kept."""
        self.waiting += content.waiting
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


def age_of(order: Order) -> tuple[int, int]:
    """Return what grows with every change of an order's state that a recovery could not redo."""
    return order.source_offset, order.revision
