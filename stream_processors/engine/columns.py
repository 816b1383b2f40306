"""The interval table for record batches: the same as `table.IntervalTable`, over columns.

Theory of operation. An order that is simple (few intervals, few ranges of numbers, an ordinary
name) is a row in `store.Rows`, and the kernel folds whole decompressed batches into the rows. What
the kernel can't take, it leaves: bad records, unknown schemas, odd names, big numbers, reopened
orders, records that were sent on. Those are handled here, after the batch and in its order, by
the plain table that this class extends: the row is lifted into a plain `Order`, the plain rules
are applied, and when the order has become simple again it is lowered back into its row. Meanwhile
the row is a stub (ODD) that keeps the name and the place, so that an order never changes its block:
each checkpoint block holds the orders of its rows whole, in whichever form, and a torn checkpoint
stays as harmless as in the plain table.

Time is the same for all records of a batch (LogAppendTime), so a batch is folded against one clock.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from durabill.schemas import (
    OWN_SCHEMA_ONLY,
    SEGMENT_HEADER,
    OrderTotal,
    SegmentEvent,
    WriterSchemas,
    encode_segment,
)
from durabill.schemas.limits import FUTURE_TOLERANCE_MS, ORDER_PIECES_MAX, SEGMENT_LENGTH_MAX_MS
from durabill.schemas.wire import zigzag
from durabill.stream_processors.core.order import SETTLEMENTS_MAX, Order, Policy
from durabill.stream_processors.engine.batch import (
    CODEC_MASK,
    HEADER,
    HEADER_SIZE,
    LOG_APPEND_TIME,
    BatchHeader,
    Chunk,
    Record,
    read_record,
    rest_of,
    unread,
)
from durabill.stream_processors.engine.blocks import Snapshot
from durabill.stream_processors.engine.effects import (
    BATCH_COST,
    COPIED_BYTES,
    PLAIN_COST,
    SCAN_COST,
    STEP_COST,
    TOTAL_COST,
    plain_cost,
)
from durabill.stream_processors.engine.events import take_totals
from durabill.stream_processors.engine.kernel import fold, rows, tasks
from durabill.stream_processors.engine.row_form import fits_row, order_of, row_of
from durabill.stream_processors.engine.slots import BLOCK_SLOTS
from durabill.stream_processors.engine.store import ROWS_MAX, Rows
from durabill.stream_processors.engine.table import Effects, IntervalTable, Place
from durabill.stream_processors.engine.unpack import BadBatch

LOWERED_AT_ONCE = 256

_SEGMENT_HEADER = np.frombuffer(SEGMENT_HEADER, np.uint8)

assert BLOCK_SLOTS == rows.BLOCK_ROWS
assert SETTLEMENTS_MAX - 1 == rows.SETTLEMENTS >> rows.SETTLEMENTS_SHIFT


class ColumnTable(IntervalTable):
    """The orders of one partition, most of them as rows. See the module's docstring."""

    def __init__(
        self,
        place: Place,
        policy: Policy,
        writers: WriterSchemas,
        *,
        seed: int = 0,
        rows_max: int = ROWS_MAX,
        pieces_max: int = ORDER_PIECES_MAX,
    ) -> None:
        super().__init__(place, policy, writers, pieces_max=pieces_max)
        assert pieces_max >= rows.PIECES_MAX, "the kernel doesn't count the pieces of rows"
        self._rows = Rows(seed, rows_max, policy.interim_after_ms)
        self._touched: set[str] = set()
        self._task = np.zeros(tasks.TASK, np.int64)
        self.set_policy(policy)
        self._task[tasks.FUTURE_TOLERANCE] = FUTURE_TOLERANCE_MS
        self._task[tasks.LENGTH_MAX] = SEGMENT_LENGTH_MAX_MS
        self._task[tasks.PARTITION] = place.partition
        self._task[tasks.PARTITIONS] = place.partitions
        self._task[tasks.SEED] = seed
        self._task[tasks.INTERIM_AFTER] = policy.interim_after_ms

    def set_policy(self, policy: Policy) -> None:
        """Judge what is folded from now on by another policy; see the base."""
        super().set_policy(policy)
        self._task[tasks.INTERIM_AFTER] = policy.interim_after_ms
        self._task[tasks.SETTLE_GRACE] = policy.settle_grace_ms
        self._task[tasks.IDLE_TIMEOUT] = policy.idle_timeout_ms
        self._task[tasks.CORRECTION_WINDOW] = policy.correction_window_ms

    def _look_again(self) -> None:
        """Find out anew when each order is due; see the base."""
        super()._look_again()
        self._rows.look_again(self.policy.interim_after_ms)

    # -- the log comes in ---------------------------------------------------------------------

    def _fold_batch(
        self, header: BatchHeader, batch: memoryview, first_offset: int, effects: Effects
    ) -> Iterator[int]:
        base_offset = header.base_offset
        try:
            body = self._room.unpack(header.attributes & CODEC_MASK, batch[HEADER_SIZE:])
        except BadBatch as error:
            self._set_aside(header, batch, unread(header, str(error)), effects)
            return
        task, counters = self._task, self._rows.counters
        task[tasks.RECORD] = task[tasks.POSITION] = task[tasks.LEAST_DELTA] = done = 0
        task[tasks.NEXT_DELTA] = header.last_offset_delta + 1
        task[tasks.BASE_OFFSET] = base_offset
        task[tasks.FIRST_OFFSET] = first_offset
        task[tasks.NOW] = self.clock_ms
        task[tasks.OTHERS] = self.writers.has_others
        task[tasks.REGISTRY] = self.writers.has_registry
        counters[[rows.SLOWS, rows.EVENTS, rows.EVENT_EXTRAS]] = 0
        self._at_hand = (base_offset, None)
        effects.cost += len(body) // COPIED_BYTES
        yield max(first_offset, base_offset)
        raw = b""
        while True:
            task[tasks.RECORDS] = min(header.record_count, done + STEP_COST)
            outcome = fold.fold(self._rows.arrays, body, task, _SEGMENT_HEADER)
            if outcome >= 0:
                self._rows.grow_table(outcome)
                continue
            effects.cost += BATCH_COST + int(task[tasks.RECORD]) - done
            done = int(task[tasks.RECORD])
            self._take_events(effects)
            if count := int(counters[rows.SLOWS]):
                if not raw:
                    raw = body.tobytes()
                    effects.cost += len(raw) // COPIED_BYTES
                yield from self._fold_slowly(raw, header, self._rows.slow[:count].tolist(), effects)
                counters[rows.SLOWS] = 0
                self._at_hand = (base_offset + int(task[tasks.LEAST_DELTA]), None)
            if outcome != fold.DONE or done == header.record_count:
                break
            yield max(first_offset, base_offset + int(task[tasks.LEAST_DELTA]))
        self.records += done
        if outcome != fold.DONE or task[tasks.POSITION] != len(body):
            at, least_offset = int(task[tasks.POSITION]), base_offset + int(task[tasks.LEAST_DELTA])
            rest = rest_of(raw or body.tobytes(), at, header, done, least_offset)
            self._set_aside(header, batch, rest, effects)

    def warm_up(self) -> None:
        """Have everything compiled: fold, settle, checkpoint and restore one order of its own."""
        event = SegmentEvent("warm-up", 1, 0, 1, True)
        key, value = b"warm-up", encode_segment(event)
        record = b"".join((b"\0\0\0", zigzag(len(key)), key, zigzag(len(value)), value, zigzag(0)))
        body = zigzag(len(record)) + record
        attributes = LOG_APPEND_TIME
        size = HEADER_SIZE + len(body)
        header = BatchHeader(0, size - 12, 0, 2, 0, attributes, 0, 0, 0, -1, -1, -1, 1)
        effects = self.fold(Chunk(0, 1, HEADER.pack(*header) + body))
        self._rows.grow_table(0)
        assert len(effects.totals) == 1
        blocks = [block for _, block in self.take_changed_entries() if block is not None]
        ColumnTable(self.place, self.policy, self.writers).restore(blocks, 0)
        self._lift(key)
        self._lower_touched()
        while self.confirm(2**62):
            pass
        assert not len(self)
        assert self.oldest_deadline_ms() is self.next_due_ms(0) is None

    # -- what the kernel left -----------------------------------------------------------------

    def _fold_slowly(
        self, body: bytes, header: BatchHeader, positions: list[int], effects: Effects
    ) -> Iterator[int]:
        """Give records that the kernel left to the plain rules, in their order.

        `positions` are the kernel's `slow`: for a dead letter nothing need be lifted. Yields where
        a replay would go on: at the next of them, though the kernel has gone further.
        """
        keys: set[bytes] = set()
        for position in positions:
            at = position if position >= 0 else ~position
            record, _ = read_record(body, at, header.base_offset, header.max_timestamp_ms)
            yield record.offset
            self._at_hand = (record.offset, record.key)
            effects.cost += plain_cost(record)
            if position < 0:
                letters = len(effects.dead_letters)
                super()._fold_record(record, effects)
                assert len(effects.dead_letters) > letters, "the kernel refused a good record"
                continue
            if record.key is not None:
                keys.add(record.key)
                self._lift(record.key)
                for _ in self._settle_ahead(record.key, effects):
                    yield record.offset
            self._fold_record(record, effects)
        for key in keys:
            self._settle_stub(key)
        self._lower_touched()

    def _lift(self, key: bytes) -> None:
        """Make a plain order of the row with this key, if there is one."""
        slot = self._rows.find(key)
        if slot < 0 or self._rows.orders["flags"][slot] & rows.ODD:
            return
        order = self._order_of(slot)
        self._rows.make_odd(slot)
        self._put_order(slot, order)
        self._queue(order)
        self._touched.add(order.service_order_number)

    def _settle_stub(self, key: bytes) -> None:
        """Let the key's records through again; drop its stub if no order came of it."""
        slot = self._rows.find(key)
        if slot < 0:
            return
        flags = int(self._rows.orders[slot]["flags"]) & ~rows.DEFERRED
        self._rows.orders[slot]["flags"] = flags
        if flags & rows.ODD and slot not in self._blocks.get(slot // BLOCK_SLOTS, {}):
            self._rows.free_row(slot)

    def _fold_record(self, record: Record, effects: Effects) -> None:
        super()._fold_record(record, effects)
        if record.key is not None:
            self._touched.add(record.key.decode("utf-8", "replace"))

    def _lower_touched(self) -> None:
        for number in self._touched:
            order = self._orders.get(number)
            if order is not None:
                self._lower(order)
        self._touched.clear()

    def _lower(self, order: Order) -> None:
        """Put an order into its row, if it fits.

        Not while a total is due: whoever looks for due rows may have passed this one already.
        """
        if order.is_due(self.clock_ms, self.policy):
            return
        number = order.service_order_number
        slot = self._slots[number]
        fits = self._rows.has(slot) and fits_row(order) and self._rows.has_extra()
        if not fits or slot in self._own:
            return  # an order with an entry of its own has to get back into its block's first
        # Where its check fails: the order, not the record that came last.
        is_timer = self._at_hand[0] is None
        self._at_hand = (None if is_timer else order.source_offset, number.encode())
        order.check()
        self._rows.put(slot, row_of(order), list(order.time), list(order.numbers))
        del self._orders[number], self._slots[number], self._blocks[slot // BLOCK_SLOTS][slot]

    def _order_of(self, slot: int) -> Order:
        """Return a plain order with a row's content."""
        row, pieces = self._rows.orders[slot], self._rows.pieces(slot)
        return order_of(row, self._rows.key(slot), *pieces, self.place.partition)

    # -- time ---------------------------------------------------------------------------------

    def _run_due(self, effects: Effects) -> Iterator[None]:
        block = 0
        while block >= 0:
            block = self._rows.settle_due(
                block, self.clock_ms, self.policy.correction_window_ms, FUTURE_TOLERANCE_MS
            )
            self._take_events(effects)
            if block >= 0:
                effects.cost += SCAN_COST
            # Due an interim total: copied, for the next call counts its own.
            running = self._rows.slow[: int(self._rows.counters[rows.SLOWS])].tolist()
            for slot in running:
                self._lift(self._rows.key(slot))
                effects.cost += PLAIN_COST
                yield
            yield from self._run_plain_due(effects)
            yield

    def _run_plain_due(self, effects: Effects) -> Iterator[None]:
        for _ in super()._run_due(effects):
            if len(self._touched) >= LOWERED_AT_ONCE:
                self._lower_touched()
            yield
        self._lower_touched()
        self._at_hand = (None, None)

    def confirm(self, clock_ms: int) -> bool:
        """Give back slots of orders forgotten before the replay's start; see the base."""
        has_more = super().confirm(clock_ms)
        return self._rows.retire(clock_ms) or has_more

    def _note(self, totals: Sequence[OrderTotal], order: Order, effects: Effects) -> None:
        super()._note(totals, order, effects)
        self._touched.add(order.service_order_number)

    def _take_events(self, effects: Effects) -> None:
        """Make records of the totals that the kernel has noted."""
        totals = take_totals(self._rows, self.place.partition)
        effects.totals += totals
        effects.cost += TOTAL_COST * len(totals)

    # -- slots and blocks ---------------------------------------------------------------------

    def _take_slot(self, number: str) -> int:
        return self._rows.take_slot(number.encode())

    def _give_slot(self, slot: int) -> None:
        self._rows.free_row(slot)

    def _take_changed_blocks(self) -> set[int]:
        return super()._take_changed_blocks() | self._rows.take_changed()

    def _block_snapshot(
        self, block: int, orders: Mapping[int, Order], frozen: list[Any]
    ) -> Snapshot | None:
        return self._rows.snapshot(block, orders, frozen)

    def restore(self, blocks: Iterable[bytes], clock_ms: int) -> None:
        """Fill an empty table from checkpointed entries; see the base."""
        assert not len(self)
        self.clock_ms = clock_ms
        orders, own = self._rows.restore(blocks)
        for slot, order in orders:
            self._put_order(slot, order)
            self._queue(order)
            self._touched.add(order.service_order_number)
        self._note_entries(orders, own)
        self._lower_touched()

    # -- questions ----------------------------------------------------------------------------

    def __len__(self) -> int:
        """Return how many orders are known, settled ones included."""
        return len(self._orders) + int(self._rows.counters[rows.ORDERS])

    def age_of(self, key: bytes) -> tuple[int, int] | None:
        """Return (last offset, last revision) of an order; see the base."""
        slot = self._rows.find(key)
        if slot < 0 or self._rows.orders[slot]["flags"] & rows.ODD:
            return super().age_of(key)
        row = self._rows.orders[slot]
        return int(row["source_offset"]), int(row["revision"])

    def oldest_deadline_ms(self) -> int | None:
        """Return the earliest instant at which a total is due (None: there is none)."""
        deadlines = (super().oldest_deadline_ms(), self._rows.oldest_deadline_ms())
        return min((each for each in deadlines if each is not None), default=None)

    def next_due_ms(self, now_ms: int) -> int | None:
        """Return the earliest deadline of an order that is not settled; see the base."""
        deadlines = (super().next_due_ms(now_ms), self._rows.next_due_ms(now_ms))
        return min((each for each in deadlines if each is not None), default=None)

    def _known(self, number: str) -> Order | None:
        slot = self._rows.find(number.encode("utf-8", "surrogatepass"))
        if slot < 0 or self._rows.orders[slot]["flags"] & rows.ODD:
            return super()._known(number)
        return self._order_of(slot)


def compile_kernel() -> None:
    """Have the kernel compiled, or loaded from its cache, before there is a stream to hold up.

    The first time takes about half a minute, later ones less than a second.
    """
    ColumnTable(Place(0, 1), Policy(), OWN_SCHEMA_ONLY).warm_up()
