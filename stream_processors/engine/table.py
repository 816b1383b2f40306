"""The interval table of one partition, record by record: the specification of the batch path.

Takes chunks of the log in, gives effects out: totals, dead letters, records to be sent on. Does
no I/O and knows no clock but the append times in the log and the instant given to `tick`. Orders
sit in numbered blocks; the changed ones are handed out for the checkpoint. Every order knows the
last offset that it has taken in, so records that a replay brings again are passed over exactly,
also where a crash tore a checkpoint and blocks are of different ages.

The partition's clock is the greatest append time so far: it equals the record's own append time
unless the broker's clock ran backwards, and never runs backwards itself. So a deadline that has
been passed stays passed, and the totals don't depend on when a timer looked.
"""

import heapq
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from durabill.schemas import (
    BadRecord,
    OrderTotal,
    Reason,
    SegmentEvent,
    WriterSchemas,
    encode_total,
    is_clock_mark,
    limits,
    partition_for,
    read_clock_mark,
    to_segment,
)
from durabill.schemas.errors import StateError
from durabill.schemas.limits import FUTURE_TOLERANCE_MS, ORDER_PIECES_MAX, SEGMENT_LENGTH_MAX_MS
from durabill.schemas.units import refused_time
from durabill.stream_processors.core.order import Order, Policy, describe_order
from durabill.stream_processors.engine.batch import Headers, Record
from durabill.stream_processors.engine.blocks import decode_block
from durabill.stream_processors.engine.effects import (
    PIECE_COST,
    PLAIN_COST,
    TIMER_COST,
    DeadLetter,
    Effects,
    Forward,
    Total,
    dead_letter,
)
from durabill.stream_processors.engine.slots import OrderSlots, Restored
from durabill.stream_processors.engine.steps import ChunkFolder

__all__ = ["DeadLetter", "Effects", "Forward", "IntervalTable", "Place", "Total"]

CONFIRM_AT_ONCE = 4096
TIMERS_AT_ONCE = 4096
FORWARDED_FROM = "forwarded_from"
"""Header of a record that was sent on from a wrong partition: `partition/offset` it sat at."""


@dataclass(frozen=True, slots=True)
class Place:
    """Which partition of how many a table is for."""

    partition: int
    partitions: int

    def __post_init__(self) -> None:
        assert 0 <= self.partition < self.partitions


class IntervalTable(OrderSlots, ChunkFolder):
    """The orders of one partition.

    `pieces_max` is the contract's limit of an order's intervals and ranges; tests lower it.
    """

    def __init__(
        self,
        place: Place,
        policy: Policy,
        writers: WriterSchemas,
        *,
        pieces_max: int = ORDER_PIECES_MAX,
    ) -> None:
        OrderSlots.__init__(self)
        ChunkFolder.__init__(self, place.partition)
        self.place = place
        self.policy = policy
        self.writers = writers
        self.pieces_max = pieces_max
        self.clock_marks = 0
        """Clock marks folded in this process's life."""
        self._due: list[tuple[int, str]] = []
        self._queued: dict[str, int] = {}
        self._retiring: list[tuple[int, str]] = []
        self._retiring_at: dict[str, int] = {}

    def set_policy(self, policy: Policy) -> None:
        """Judge what is folded from now on by another policy.

        Deadlines that are set stay; interim totals are due by the new interval.
        """
        is_other_interval = policy.interim_interval_ms != self.policy.interim_interval_ms
        self.policy = policy
        if is_other_interval:
            self._look_again()

    def _look_again(self) -> None:
        """Find out anew when each order is due."""
        for order in self._orders.values():
            if not order.is_settled():
                self._queue(order)

    def tick(self, now_ms: int) -> Effects:
        """Return what a record that belongs to no order would give, appended at `now_ms`."""
        self.clock_ms = max(self.clock_ms, now_ms)
        effects = Effects()
        for _ in self._run_due(effects):
            pass
        return effects

    def _fold_record(self, record: Record, effects: Effects) -> None:
        try:
            if is_clock_mark(record.value):
                read_clock_mark(record.key, record.value or b"")
                self.clock_marks += 1  # its batch has moved the clock, as every record's does
                return
            event = self._accept(record)
        except BadRecord as error:
            effects.dead_letters.append(dead_letter(record, error.reason, error.detail))
            return
        number = event.service_order_number
        origin = _origin(record.headers, self.place)
        order = self._orders.get(number)
        if order is None:
            assert record.key is not None
            partition = partition_for(record.key, self.place.partitions)
            if partition != self.place.partition:
                self._send_on(record, partition, effects)
                return
        else:
            if record.offset <= order.source_offset:
                return
            assert not order.is_due(self.clock_ms, self.policy)
            if order.is_forgotten(self.clock_ms):
                # In the same slot: were the two ever in blocks of different age, a replay
                # could find neither, and take a repeat of the old one's for a new order.
                order = self._place_order(self._slots[number], number)
            elif _seen_before(order, origin):
                return
            elif (excess := order.excess(event, self.pieces_max)) is not None:
                detail = f"its order has {self.pieces_max:,} {excess}, and it adds one"
                effects.dead_letters.append(dead_letter(record, Reason.TOO_FRAGMENTED, detail))
                return
        if order is None:
            order = self._place_order(self._take_slot(number), number)
        if origin is not None:
            order.forwarded[origin[0]] = origin[1]
        total = order.apply(event, self.clock_ms, record.offset, self.policy)
        self._note([] if total is None else [total], order, effects)

    def _accept(self, record: Record) -> SegmentEvent:
        """Return the record's segment, or raise BadRecord for the first rule that it breaks."""
        raw = self.writers.read(record.value, record.offset)
        if record.key != raw[0]:
            raise BadRecord(Reason.KEY_MISMATCH, f"the key is {record.key!r}, not {raw[0]!r}")
        event = to_segment(raw)
        length_ms = event.end_ms - event.start_ms
        ahead_ms = event.end_ms - self.clock_ms
        times_ms = event.start_ms, event.end_ms
        if ahead_ms > FUTURE_TOLERANCE_MS:
            detail = f"ends {ahead_ms} ms after its arrival"
            raise refused_time(Reason.IN_THE_FUTURE, detail, *times_ms)
        if length_ms > SEGMENT_LENGTH_MAX_MS:
            detail = f"{length_ms} ms, {SEGMENT_LENGTH_MAX_MS} are allowed"
            raise refused_time(Reason.TOO_LONG, detail, *times_ms)
        if -ahead_ms > self.policy.correction_window_ms:
            detail = f"ended {-ahead_ms} ms before its arrival"
            raise refused_time(Reason.TOO_LATE, detail, *times_ms)
        return event

    def _send_on(self, record: Record, partition: int, effects: Effects) -> None:
        if any(name == FORWARDED_FROM for name, _ in record.headers):
            problem = "has been sent on before"
        elif record.size > limits.FORWARD_BYTES_MAX:
            problem = f"is too large to be sent on: {record.size} bytes"
        else:
            origin = f"{self.place.partition}/{record.offset}".encode()
            headers = (*record.headers, (FORWARDED_FROM, origin))
            effects.forwards.append(Forward(record, partition, headers))
            return
        detail = f"belongs in partition {partition} and {problem}"
        effects.dead_letters.append(dead_letter(record, Reason.WRONG_PARTITION, detail))

    def _note(self, totals: Sequence[OrderTotal], order: Order, effects: Effects) -> None:
        """Note that `order` has changed, and the totals that this gave."""
        number = order.service_order_number
        self._mark_changed(order)
        effects.totals += [Total(number.encode(), encode_total(each)) for each in totals]
        effects.cost += len(totals) * PIECE_COST * (len(order.time) + len(order.numbers))
        if totals or not order.is_settled():
            self._queue(order)

    def _settle_ahead(self, key: bytes | None, effects: Effects) -> Iterator[None]:
        order = None if key is None else self._orders.get(key.decode("utf-8", "replace"))
        while order is not None and order.is_due(self.clock_ms, self.policy):
            self._note([order.give_due(self.policy)], order, effects)
            yield

    # -- time ---------------------------------------------------------------------------------

    def _queue(self, order: Order) -> None:
        """Have the order looked at when something is due: a total, or to be forgotten.

        One live entry an order: what moves away is found out when the entry comes up.
        """
        number = order.service_order_number
        if order.is_settled():
            due_ms, heap, queued = order.deadline_ms, self._retiring, self._retiring_at
        else:
            due_ms, heap, queued = order.next_due_ms(self.policy), self._due, self._queued
        queued_ms = queued.get(number)
        if queued_ms is None or due_ms < queued_ms:
            queued[number] = due_ms
            heapq.heappush(heap, (due_ms, number))

    def _run_due(self, effects: Effects) -> Iterator[None]:
        """Settle what is due by the partition's clock; yield before each timer."""
        while self._due and self._due[0][0] <= self.clock_ms:
            yield
            due_ms, number = heapq.heappop(self._due)
            effects.cost += TIMER_COST
            if self._queued.get(number) != due_ms:
                continue
            del self._queued[number]
            order = self._orders.get(number)
            if order is None or order.is_settled():
                continue
            if order.is_due(self.clock_ms, self.policy):
                self._at_hand = (None, number.encode())
                effects.cost += PLAIN_COST
                # One at a time: what is due after it is queued anew, and comes up at once.
                self._note([order.give_due(self.policy)], order, effects)
            else:
                self._queue(order)

    def confirm(self, clock_ms: int) -> bool:
        """Give back slots of orders forgotten before the replay's start; False: that was all.

        `clock_ms` is the partition's clock at the offset from which a recovery would now replay.
        An order whose time was over only later has to stay: the records that a replay brings
        again must find it, or a repeat among them would bring it to life anew. One call takes a
        few milliseconds at most; how the calls are spread over time makes no difference.
        """
        for _ in range(CONFIRM_AT_ONCE):
            if not self._retiring or self._retiring[0][0] >= clock_ms:
                return False
            deadline_ms, number = heapq.heappop(self._retiring)
            if self._retiring_at.get(number) != deadline_ms:
                continue
            del self._retiring_at[number]
            order = self._orders.get(number)
            if order is None or not order.is_settled():
                continue
            if order.deadline_ms > deadline_ms:
                self._queue(order)
            else:
                self._forget(number)
        return True

    # -- slots and blocks ---------------------------------------------------------------------

    def _place_order(self, slot: int, number: str) -> Order:
        order = Order(number, self.place.partition)
        self._put_order(slot, order)
        return order

    def _forget(self, number: str) -> None:
        self._queued.pop(number, None)
        self._remove_order(number)

    def take_changed_entries(self) -> list[tuple[str, bytes | None]]:
        """Return (name, content) of what changed since the last call; None: to be removed."""
        snapshots = [(name, self.snapshot(name)) for name in self.take_changed()]
        return [(name, each.pack() if each else None) for name, each in snapshots]

    def restore(self, blocks: Iterable[bytes], clock_ms: int) -> None:
        """Fill an empty table from the contents of checkpointed entries, of all kinds.

        `clock_ms` is the partition's clock at the offset where the replay starts. Entries are read
        one by one, and may be of different age; see `slots`. May run in a thread of its own.
        Raises StateError if one can't be read.
        """
        assert not self._orders
        self.clock_ms = clock_ms
        restored = Restored()
        for block in blocks:
            content = decode_block(block)
            if content.rows:
                raise StateError("a checkpoint of the batch path needs the batch path to read it")
            restored.add(content)
        orders = restored.orders()
        for slot, order in orders:
            self._put_order(slot, order)
            self._queue(order)
        self._note_entries(orders, restored.own)
        taken = set(self._slots.values())
        self._free = [slot for slot in range(max(taken, default=-1) + 1) if slot not in taken]

    # -- questions ----------------------------------------------------------------------------

    def __len__(self) -> int:
        """Return how many orders are known, settled ones included."""
        return len(self._orders)

    def age_of(self, key: bytes) -> tuple[int, int] | None:
        """Return (last offset, last revision) of an order, None if it is not known.

        It grows with every change of the order that a replay could not redo, also from one life
        of the order to the next.
        """
        order = self._orders.get(key.decode("utf-8", "replace"))
        return None if order is None else (order.source_offset, order.revision)

    def oldest_deadline_ms(self) -> int | None:
        """Return the earliest instant at which a total is due (None: there is none).

        Where more deadlines have moved on than can be looked through in a few milliseconds, it
        may be too early; asking again brings it nearer.
        """
        for _ in range(TIMERS_AT_ONCE):
            if self._is_first_exact():
                break
        return self._due[0][0] if self._due else None

    def next_due_ms(self, now_ms: int) -> int | None:
        """Return the earliest deadline of an order that is not settled (None: there is none).

        Cheap, to be asked often: a result after `now_ms` may be too early. One that isn't is
        exact, but for what `oldest_deadline_ms` says.
        """
        for _ in range(TIMERS_AT_ONCE):
            if not self._due or self._due[0][0] > now_ms or self._is_first_exact():
                break
        return self._due[0][0] if self._due else None

    def _is_first_exact(self) -> bool:
        """Tell whether the first timer is the deadline of its order; put it right if it isn't."""
        if not self._due:
            return True
        due_ms, number = self._due[0]
        order = self._orders.get(number)
        is_live = self._queued.get(number) == due_ms
        is_open = order is not None and not order.is_settled()
        if order is not None and is_live and is_open and order.next_due_ms(self.policy) == due_ms:
            return True
        heapq.heappop(self._due)
        if is_live:
            del self._queued[number]
            if order is not None and is_open:
                self._queue(order)
        return False

    def describe(self, number: str, limit: int | None = None) -> dict[str, Any] | None:
        """Return the live state of an order as plain values for JSON, or None if it is unknown.

        At most `limit` intervals and ranges of missing numbers are listed, the first ones; how
        many there are in all is told beside them.
        """
        order = self._known(number)
        if order is None:
            return None
        state = describe_order(order, self.policy)
        for name in ("intervals", "missing_numbers"):
            state[f"{name}_count"] = len(state[name])
            state[name] = state[name][:limit]
        return state

    def _known(self, number: str) -> Order | None:
        return self._orders.get(number)


def _origin(headers: Headers, place: Place) -> tuple[int, int] | None:
    """Return (partition, offset) of a record that was sent on to `place`; None if it was not.

    Anybody can write this header: one that names no other partition of the topic doesn't count,
    and what doesn't fit 64 bits must not reach a checkpoint.
    """
    for name, content in headers:
        if name == FORWARDED_FROM and content is not None:
            partition, _, offset = content.partition(b"/")
            sizes_fit = len(partition) <= 9 and len(offset) <= 18
            is_sound = partition.isdigit() and offset.isdigit() and sizes_fit
            if is_sound and place.partition != int(partition) < place.partitions:
                return int(partition), int(offset)
    return None


def _seen_before(order: Order, origin: tuple[int, int] | None) -> bool:
    """Tell whether a record that was sent on has come twice, as it can after a crash."""
    return origin is not None and order.forwarded.get(origin[0], -1) >= origin[1]
