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

import hashlib
import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from schemas import (
    BadRecord,
    OrderTotal,
    Reason,
    SegmentEvent,
    WriterSchemas,
    encode_total,
    limits,
    partition_for,
    to_segment,
)
from schemas.limits import FUTURE_TOLERANCE_MS, ORDER_PIECES_MAX, SEGMENT_LENGTH_MAX_MS
from stream_processors.batch import Chunk, Headers, Record, records
from stream_processors.blocks import Snapshot, decode_block, plain_snapshot
from stream_processors.errors import StateError
from stream_processors.order import Order, Policy, describe_order

BLOCK_SLOTS = 1024
FORWARDED_FROM = "forwarded_from"
"""Header of a record that was sent on from a wrong partition: `partition/offset` it sat at."""


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A record that breaks the contract, as it came (but see `dead_letter`), and why."""

    record: Record
    reason: Reason
    detail: str


@dataclass(frozen=True, slots=True)
class Forward:
    """A record in the wrong partition for its key, to be sent on, once, to `partition`."""

    record: Record
    partition: int
    headers: Headers


class Total(NamedTuple):
    """A total as the record that it becomes: the order number's bytes, the encoded OrderTotal."""

    key: bytes
    value: bytes


@dataclass(slots=True)
class Effects:
    """What has to be published, in the order in which it came about."""

    totals: list[Total] = field(default_factory=list)
    dead_letters: list[DeadLetter] = field(default_factory=list)
    forwards: list[Forward] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Place:
    """Which partition of how many a table is for."""

    partition: int
    partitions: int

    def __post_init__(self) -> None:
        assert 0 <= self.partition < self.partitions


class IntervalTable:
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
        self.place = place
        self.policy = policy
        self.writers = writers
        self.pieces_max = pieces_max
        self.clock_ms = 0
        self.records = 0
        """Records folded in this process's life; for the metrics only."""
        self._orders: dict[str, Order] = {}
        self._slots: dict[str, int] = {}
        self._blocks: dict[int, dict[int, Order]] = {}
        self._free: list[int] = []
        self._changed: set[int] = set()
        self._due: list[tuple[int, str]] = []
        self._queued: dict[str, int] = {}
        self._retiring: list[tuple[int, str]] = []
        self._retiring_at: dict[str, int] = {}

    # -- the log comes in ---------------------------------------------------------------------

    def fold(self, chunk: Chunk) -> Effects:
        """Take in a chunk of the log; return what it gives, timers due by its end included."""
        effects = Effects()
        for record in records(chunk):
            self.clock_ms = max(self.clock_ms, record.append_ms)
            self._fold_record(record, effects)
            self.records += 1
        self._run_due(effects)
        return effects

    def tick(self, now_ms: int) -> Effects:
        """Return the totals due at `now_ms`, which the caller knows no later record can precede."""
        self.clock_ms = max(self.clock_ms, now_ms)
        effects = Effects()
        self._run_due(effects)
        return effects

    def _fold_record(self, record: Record, effects: Effects) -> None:
        try:
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
            self._settle_if_due(order, effects)
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
        raw = self.writers.read(record.value)
        if record.key != raw[0]:
            raise BadRecord(Reason.KEY_MISMATCH, f"the key is {record.key!r}, not {raw[0]!r}")
        event = to_segment(raw)
        length_ms = event.end_ms - event.start_ms
        ahead_ms = event.end_ms - self.clock_ms
        if ahead_ms > FUTURE_TOLERANCE_MS:
            raise BadRecord(Reason.IN_THE_FUTURE, f"ends {ahead_ms} ms after its arrival")
        if length_ms > SEGMENT_LENGTH_MAX_MS:
            raise BadRecord(Reason.TOO_LONG, f"{length_ms} ms, {SEGMENT_LENGTH_MAX_MS} are allowed")
        if -ahead_ms > self.policy.correction_window_ms:
            raise BadRecord(Reason.TOO_LATE, f"ended {-ahead_ms} ms before its arrival")
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
        self._changed.add(self._slots[number] // BLOCK_SLOTS)
        effects.totals += [Total(number.encode(), encode_total(each)) for each in totals]
        if totals or not order.is_settled():
            self._queue(order)

    def _settle_if_due(self, order: Order, effects: Effects) -> None:
        totals = order.settle_if_due(self.clock_ms, self.policy)
        if totals:
            self._note(totals, order, effects)

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

    def _run_due(self, effects: Effects) -> None:
        while self._due and self._due[0][0] <= self.clock_ms:
            due_ms, number = heapq.heappop(self._due)
            if self._queued.get(number) != due_ms:
                continue
            del self._queued[number]
            order = self._orders.get(number)
            if order is None or order.is_settled():
                continue
            if order.next_due_ms(self.policy) > self.clock_ms:
                self._queue(order)
            else:
                self._settle_if_due(order, effects)

    def confirm(self, clock_ms: int) -> None:
        """Give back the slots of orders forgotten before the replay's start.

        `clock_ms` is the partition's clock at the offset from which a recovery would now replay.
        An order whose time was over only later has to stay: the records that a replay brings
        again must find it, or a repeat among them would bring it to life anew.
        """
        while self._retiring and self._retiring[0][0] < clock_ms:
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

    # -- slots and blocks ---------------------------------------------------------------------

    def _take_slot(self, number: str) -> int:
        return heapq.heappop(self._free) if self._free else len(self._slots)

    def _give_slot(self, slot: int) -> None:
        heapq.heappush(self._free, slot)

    def _place_order(self, slot: int, number: str) -> Order:
        order = Order(number, self.place.partition)
        self._put_order(slot, order)
        return order

    def _put_order(self, slot: int, order: Order) -> None:
        self._orders[order.service_order_number] = order
        self._slots[order.service_order_number] = slot
        self._blocks.setdefault(slot // BLOCK_SLOTS, {})[slot] = order

    def _forget(self, number: str) -> None:
        slot = self._slots.pop(number)
        del self._orders[number]
        del self._blocks[slot // BLOCK_SLOTS][slot]
        self._queued.pop(number, None)
        self._give_slot(slot)
        self._changed.add(slot // BLOCK_SLOTS)

    def take_changed(self) -> list[int]:
        """Return the numbers of the blocks that have changed since the last call."""
        changed = sorted(self._changed)
        self._changed.clear()
        return changed

    def snapshot(self, block: int) -> Snapshot | None:
        """Return what a block holds now, None if it is empty."""
        orders = self._blocks.get(block)
        return plain_snapshot(orders.items()) if orders else None

    def take_changed_blocks(self) -> list[tuple[int, bytes | None]]:
        """Return (block number, content) of what changed since the last call; None if empty."""
        snapshots = [(block, self.snapshot(block)) for block in self.take_changed()]
        return [(block, each.pack() if each else None) for block, each in snapshots]

    def restore(self, blocks: Iterable[bytes], clock_ms: int) -> None:
        """Fill an empty table from checkpointed blocks; raise StateError if one can't be read.

        `clock_ms` is the partition's clock at the offset where the replay starts. Of two blocks
        of different age that hold the same order the newer state is taken: a crash can leave it
        in its old slot as well, when it was forgotten and began anew.
        """
        assert not self._orders
        self.clock_ms = clock_ms
        newest: dict[str, tuple[int, Order]] = {}
        for block in blocks:
            content = decode_block(block)
            if content.rows:
                raise StateError("a checkpoint of the batch path needs the batch path to read it")
            for slot, order in content.orders:
                known = newest.get(order.service_order_number)
                if known is None or known[1].source_offset < order.source_offset:
                    newest[order.service_order_number] = (slot, order)
        for slot, order in newest.values():
            self._put_order(slot, order)
            self._queue(order)
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
        """Return the earliest instant at which a total is due (None: there is none)."""
        unsettled = (order for order in self._orders.values() if not order.is_settled())
        return min((order.next_due_ms(self.policy) for order in unsettled), default=None)

    def describe(self, number: str) -> dict[str, Any] | None:
        """Return the live state of an order as plain values for JSON, or None if it is unknown."""
        order = self._orders.get(number)
        if order is None:
            return None
        return describe_order(order, self.policy)


def dead_letter(record: Record, reason: Reason, detail: str) -> DeadLetter:
    """Return the record as a dead letter that its topic has room for.

    The broker limits a batch as it is compressed, so a record can be of any size. One that is too
    large is cut, and says of what was cut how much it was, and its SHA-256; the log has it whole.
    """
    if len(detail) > limits.DETAIL_CHARS_MAX:
        detail = detail[: limits.DETAIL_CHARS_MAX - 1] + "…"
    if record.size > limits.LETTER_BYTES_MAX:
        most = limits.LETTER_CUT_BYTES
        told = [
            (f"cut_{name}", f"{len(content)} {hashlib.sha256(content).hexdigest()}".encode())
            for name, content in (("key", record.key), ("value", record.value))
            if content is not None and len(content) > most
        ]
        if record.headers:
            told.append(("cut_headers", str(len(record.headers)).encode()))
        key, value = (each and each[:most] for each in (record.key, record.value))
        record = record._replace(key=key, value=value, headers=tuple(told))
    return DeadLetter(record, reason, detail)


def _origin(headers: Headers, place: Place) -> tuple[int, int] | None:
    """Return (partition, offset) of a record that was sent on to `place`; None if it was not.

    Anybody can write this header: one that names no other partition of the topic doesn't count.
    """
    for name, content in headers:
        if name == FORWARDED_FROM and content is not None:
            partition, _, offset = content.partition(b"/")
            # What doesn't fit 64 bits must not reach a checkpoint.
            sizes_fit = len(partition) <= 9 and len(offset) <= 18
            is_sound = partition.isdigit() and offset.isdigit() and sizes_fit
            if is_sound and place.partition != int(partition) < place.partitions:
                return int(partition), int(offset)
    return None


def _seen_before(order: Order, origin: tuple[int, int] | None) -> bool:
    """Tell whether a record that was sent on has come twice, as it can after a crash."""
    return origin is not None and order.forwarded.get(origin[0], -1) >= origin[1]
