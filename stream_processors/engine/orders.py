"""Orders as objects of the plain core: folded record by record, by the rules of `core.order`.

The plain table has all its orders here; the column table those that are no rows at the moment.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from durabill.schemas import (
    BadRecord,
    OrderTotal,
    WriterSchemas,
    encode_total,
    is_clock_mark,
    is_opening,
    read_clock_mark,
)
from durabill.schemas.headers import FORWARDED_FROM
from durabill.schemas.limits import LONG_MAX
from durabill.stream_processors.core.admission import (
    Fate,
    Known,
    Place,
    accept,
    accept_opening,
    admit,
    admit_opening,
)
from durabill.stream_processors.core.opening import Opened
from durabill.stream_processors.core.order import Order, Policy
from durabill.stream_processors.engine.batch import Record
from durabill.stream_processors.engine.effects import (
    PIECE_COST,
    PLAIN_COST,
    TIMER_COST,
    Effects,
    Forward,
    Opening,
    Total,
    dead_letter,
)
from durabill.stream_processors.engine.openings import WaitingOpenings
from durabill.stream_processors.engine.restored import age_of
from durabill.stream_processors.engine.slots import Blocks, OrderSlots
from durabill.stream_processors.engine.steps import AtHand
from durabill.stream_processors.engine.timers import Timers

CONFIRM_AT_ONCE = 4096
TIMERS_AT_ONCE = 4096


class PlainOrders:
    """The plain orders of one partition, in their slots, and the timers of each."""

    def __init__(
        self,
        place: Place,
        policy: Policy,
        writers: WriterSchemas,
        pieces_max: int,
        blocks: Blocks,
        at_hand: AtHand,
    ) -> None:
        self.policy = policy
        self.slots: Final = OrderSlots(blocks)
        self.waiting: Final = WaitingOpenings(blocks.note_waiting)
        self.clock_marks = 0
        """Clock marks folded in this process's life."""
        self.openings_repeated = 0
        """Openings that only came again, in this process's life."""
        self.openings_extended = 0
        """Openings that extended the one before, in this process's life."""
        self._place = place
        self._writers = writers
        self._pieces_max = pieces_max
        self._at_hand = at_hand
        self._due = Timers()
        self._retiring = Timers()

    # -- records ------------------------------------------------------------------------------

    def fold_record(self, record: Record, clock_ms: int, effects: Effects) -> None:
        """Fold a record. What was due of its order before it has been given by then."""
        try:
            if is_clock_mark(record.value):
                read_clock_mark(record.key, record.value or b"")
                self.clock_marks += 1  # its batch has moved the clock, as every record's does
                return
            if is_opening(record.value) and self._writers.reads_openings:
                self._fold_opening(record, clock_ms, effects)
                return
            raw = self._writers.read(record.value, record.offset)
            segment = accept(raw, record.key, clock_ms)
            number = segment.service_order_number
            known = self._known(number, record.offset, clock_ms)
            if known.is_ahead_of(record.offset):
                return  # a replay brings it again
            order = known.order
            assert order is None or not order.is_due(clock_ms, self.policy)
            fate, partition, source = admit(
                record, segment, known, self._place, clock_ms, self.policy, self._pieces_max
            )
        except BadRecord as error:
            effects.dead_letters.append(dead_letter(record, error.reason, error.detail))
            return
        if fate is Fate.FORWARDED:
            self._forward(record, partition, effects)
        if fate in (Fate.FORWARDED, Fate.SEEN_BEFORE):
            return
        if fate is Fate.BEGINS:
            order = self._begin(number, known, clock_ms)
        assert order is not None, "one that counts was known"
        total = order.apply(segment, clock_ms, record.offset, self.policy, source)
        self._note([] if total is None else [total], order, effects)

    def _known(self, number: str, offset: int, clock_ms: int) -> Known:
        """Return what is known of an order at a record."""
        return Known(self.slots.get(number), self.waiting.at(number, offset, clock_ms))

    def _begin(self, number: str, known: Known, clock_ms: int) -> Order:
        """Return a new order, which has the opening that waits for it."""
        order = Order(number, self._place.partition, opening=known.opening)
        if known.opening is not None:
            self.waiting.take(number, known.opening, clock_ms)
        return self.slots.add(order) if known.order is None else self.slots.replace(order)

    def _fold_opening(self, record: Record, clock_ms: int, effects: Effects) -> None:
        """Fold a record that claims to be an opening; raises BadRecord if it counts for nothing."""
        assert record.value is not None
        opened = accept_opening(record.key, record.value, clock_ms)
        number, offset = opened.service_order_number, record.offset
        if self.knows_opening(number, offset):
            return  # a replay brings it again
        known = self._known(number, offset, clock_ms)
        extends = self._writers.extends_openings
        fate, partition, _ = admit_opening(
            record, opened, known, self._place, clock_ms, extends=extends
        )
        if fate is Fate.FORWARDED:
            self._forward(record, partition, effects)
        elif fate is Fate.OPENED_BEFORE:
            self.openings_repeated += 1
        elif fate is Fate.EXTENDS:
            self.openings_extended += 1
            order, opening = known.life(clock_ms)
            assert opening is not None
            extended = opening.extended_by(opened, offset)
            if order is None:
                self.waiting.extend(extended)
            else:
                order.extend(extended)
                self._note([], order, effects)
        else:
            assert record.key is not None
            self.waiting.add(number, Opened.by(opened, offset))
            effects.openings.append(Opening(record.key, record.value, offset))

    def knows_opening(self, number: str, offset: int) -> bool:
        """Tell whether a replay passes over the opening at an offset; see `IntervalTable`."""
        order, waiting = self.slots.get(number), self.waiting
        is_waiting = waiting.has(offset) or waiting.is_ahead(number, offset)
        return is_waiting or (order is not None and offset <= order.last_offset)

    def _forward(self, record: Record, partition: int, effects: Effects) -> None:
        source = f"{self._place.partition}/{record.offset}".encode()
        headers = (*record.headers, (FORWARDED_FROM, source))
        effects.forwards.append(Forward(record, partition, headers))

    def settle_ahead(self, key: bytes, clock_ms: int, effects: Effects) -> Iterator[None]:
        """Give the totals of an order that are due before its next record; yield after each."""
        order = self.slots.get(key.decode("utf-8", "replace"))
        while order is not None and order.is_due(clock_ms, self.policy):
            self._note([order.give_due(self.policy)], order, effects)
            yield

    def _note(self, totals: Sequence[OrderTotal], order: Order, effects: Effects) -> None:
        """Note that `order` has changed, and the totals that this gave."""
        number = order.service_order_number
        self.slots.mark_changed(order)
        effects.totals += [Total(number.encode(), encode_total(each)) for each in totals]
        effects.cost += len(totals) * PIECE_COST * (len(order.time) + len(order.numbers))
        if totals or not order.is_settled():
            self._queue(order)

    # -- time ---------------------------------------------------------------------------------

    def _queue(self, order: Order) -> None:
        """Have the order looked at when something is due: a total, or to be forgotten."""
        if order.is_settled():
            self._retiring.put(order.service_order_number, order.deadline_ms)
        else:
            self._due.put(order.service_order_number, order.next_due_ms(self.policy))

    def look_again(self) -> None:
        """Find out anew when each order is due: the policy has another interim interval."""
        for order in self.slots:
            if not order.is_settled():
                self._queue(order)

    def run_due(self, clock_ms: int, effects: Effects) -> Iterator[None]:
        """Settle what is due by the partition's clock; yield before each timer."""
        while self._due.has_by(clock_ms):
            yield
            live = self._due.pop()
            effects.cost += TIMER_COST
            order = live and self._unsettled(live[1])
            if order is None:
                continue
            if order.is_due(clock_ms, self.policy):
                self._at_hand.set(None, order.service_order_number.encode())
                effects.cost += PLAIN_COST
                # One at a time: what is due after it is queued anew, and comes up at once.
                self._note([order.give_due(self.policy)], order, effects)
            else:
                self._queue(order)

    def _unsettled(self, number: str) -> Order | None:
        order = self.slots.get(number)
        return None if order is None or order.is_settled() else order

    def confirm(self, clock_ms: int) -> bool:
        """Give back slots of orders forgotten before `clock_ms`; False: that was all.

        And give up openings that no replay needs.
        """
        has_more = self.waiting.confirm(clock_ms)
        return self._confirm_orders(clock_ms) or has_more

    def _confirm_orders(self, clock_ms: int) -> bool:
        for _ in range(CONFIRM_AT_ONCE):
            first_ms = self._retiring.first_ms()
            if first_ms is None or first_ms >= clock_ms:
                return False
            live = self._retiring.pop()
            if live is None:
                continue
            deadline_ms, number = live
            order = self.slots.get(number)
            if order is None or not order.is_settled():
                continue
            if order.deadline_ms > deadline_ms:
                self._queue(order)
            else:
                self._due.drop(number)
                self.slots.remove(number)
        return True

    def oldest_deadline_ms(self) -> int | None:
        """Return the earliest instant at which a total is due; see `IntervalTable`."""
        return self.next_due_ms(LONG_MAX)

    def next_due_ms(self, now_ms: int) -> int | None:
        """Return the earliest instant at which a total is due, exact up to `now_ms`."""
        for _ in range(TIMERS_AT_ONCE):
            first_ms = self._due.first_ms()
            if first_ms is None or first_ms > now_ms or self._is_first_exact():
                break
        return self._due.first_ms()

    def _is_first_exact(self) -> bool:
        """Tell whether the first timer is the deadline of its order; put it right if it isn't."""
        live = self._due.first()
        order = live and self._unsettled(live[1])
        if live and order is not None and order.next_due_ms(self.policy) == live[0]:
            return True
        self._due.pop()
        if order is not None:
            self._queue(order)
        return False

    # -- slots --------------------------------------------------------------------------------

    def put(self, slot: int, order: Order) -> None:
        """Put an order into its slot, and have it looked at when something is due."""
        self.slots.put(slot, order)
        self._queue(order)

    def restore(self, orders: Sequence[tuple[int, Order]], own: Mapping[int, Order]) -> None:
        """Put the (slot, order) pairs of a checkpoint; `own` is what its own entries held."""
        for slot, order in orders:
            self.put(slot, order)
        self.slots.note_entries(orders, own)

    def unsettled(self) -> int:
        """Return how many of these orders have yet to settle."""
        return sum(not order.is_settled() for order in self.slots)

    def age_of(self, key: bytes) -> tuple[int, int] | None:
        """Return (last offset, last revision) of an order, None if it is not known."""
        order = self.slots.get(key.decode("utf-8", "replace"))
        return None if order is None else age_of(order)
