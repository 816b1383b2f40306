"""Orders on their way between the rows and the plain core.

An order that the kernel can't go on with is spilled: a plain order is made of its row, and the row
becomes a placeholder that keeps the name and the place. So an order never changes its block, and a
torn checkpoint stays as harmless as in the plain table. When the order has become simple again it
is unspilled, back into its row.
"""

from durabill.stream_processors.core.order import Order
from durabill.stream_processors.engine.orders import PlainOrders
from durabill.stream_processors.engine.row_blocks import RowBlocks
from durabill.stream_processors.engine.row_form import fits_row, order_of, row_of
from durabill.stream_processors.engine.steps import AtHand
from durabill.stream_processors.engine.store import RowStore


class Spills:
    """Moves the orders of `partition` between the store and the plain orders."""

    def __init__(
        self,
        partition: int,
        store: RowStore,
        blocks: RowBlocks,
        plain: PlainOrders,
        at_hand: AtHand,
    ) -> None:
        self._partition = partition
        self._store = store
        self._blocks = blocks
        self._plain = plain
        self._at_hand = at_hand

    def spill(self, key: bytes) -> None:
        """Make a plain order of the row with this key, if there is one."""
        slot = self._store.find_order(key)
        if slot >= 0:
            self.spill_row(slot)

    def spill_row(self, slot: int) -> None:
        """Make a plain order of a row."""
        order = self.order_at(slot)
        self._store.spill(slot)
        self._plain.put(slot, order)

    def let_through(self, key: bytes) -> None:
        """Let the key's records through again; free its placeholder if no order came of it."""
        slot = self._store.find(key)
        if slot < 0:
            return
        self._store.let_through(slot)
        if self._store.is_placeholder(slot) and self._plain.slots.at(slot) is None:
            self._store.free_slot(slot)

    def unspill_touched(self, clock_ms: int) -> None:
        """Put the orders that have come or changed into their rows, where they fit."""
        touched = self._blocks.touched
        for number in touched:
            order = self._plain.slots.get(number)
            if order is not None:
                self._unspill(order, clock_ms)
        touched.clear()

    def _unspill(self, order: Order, clock_ms: int) -> None:
        """Put an order into its row, if it fits.

        Not while a total is due: whoever looks for due rows may have passed this one already.
        """
        if order.is_due(clock_ms, self._plain.policy):
            return
        number, slots = order.service_order_number, self._plain.slots
        slot = slots.slot_of(number)
        fits = self._store.has_row(slot) and fits_row(order) and self._store.has_free_list()
        if not fits or slots.has_own_entry(slot):
            return  # an order with an entry of its own has to get back into its block's first
        # Where its check fails: the order, not the record that came last.
        is_timer = self._at_hand.offset is None
        self._at_hand.set(None if is_timer else order.source_offset, number.encode())
        order.check()
        pieces = list(order.time), list(order.numbers)
        self._store.put(slot, row_of(order), pieces, order.opening)
        slots.take_out(number)

    def order_at(self, slot: int) -> Order:
        """Return a plain order with a row's content."""
        row, pieces, opened = (
            self._store.orders[slot],
            self._store.pieces(slot),
            self._store.openings.at(slot),
        )
        return order_of(row, self._store.key(slot), *pieces, self._partition, opened)
