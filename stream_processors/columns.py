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

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from schemas import (
    OWN_SCHEMA_ONLY,
    SEGMENT_HEADER,
    OrderTotal,
    SegmentEvent,
    WriterSchemas,
    encode_segment,
)
from schemas.limits import FUTURE_TOLERANCE_MS, ORDER_PIECES_MAX, SEGMENT_LENGTH_MAX_MS
from schemas.wire import zigzag
from stream_processors.batch import (
    CODEC_MASK,
    HEADER_SIZE,
    BatchHeader,
    Chunk,
    Record,
    append_time_ms,
    decompress,
    decompress_into,
    headers_in,
    misplaced,
    read_record,
)
from stream_processors.blocks import Snapshot
from stream_processors.errors import CorruptBatch
from stream_processors.events import take_totals
from stream_processors.intervals import IntervalSet
from stream_processors.kernel import fold, rows
from stream_processors.order import (
    SETTLEMENTS_MAX,
    Order,
    Phase,
    Policy,
    describe_order,
    evidence_digest,
)
from stream_processors.store import ROWS_MAX, Rows
from stream_processors.table import (
    BLOCK_SLOTS,
    Effects,
    IntervalTable,
    Place,
)

RECORD_BYTES_MIN = 7
"""A record's length, attributes, time, offset, sizes of key and value, count of headers."""

_PHASES = {rows.OPEN: Phase.OPEN, rows.ENDED: Phase.ENDED, rows.SETTLED: Phase.SETTLED}
_FLAGS = {phase: flag for flag, phase in _PHASES.items()}
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
        self._room = np.empty(0, np.uint8)
        self._task = np.zeros(fold.TASK, np.int64)
        self._task[fold.SETTLE_GRACE] = policy.settle_grace_ms
        self._task[fold.IDLE_TIMEOUT] = policy.idle_timeout_ms
        self._task[fold.CORRECTION_WINDOW] = policy.correction_window_ms
        self._task[fold.FUTURE_TOLERANCE] = FUTURE_TOLERANCE_MS
        self._task[fold.LENGTH_MAX] = SEGMENT_LENGTH_MAX_MS
        self._task[fold.PARTITION] = place.partition
        self._task[fold.PARTITIONS] = place.partitions
        self._task[fold.SEED] = seed
        self._task[fold.INTERIM_AFTER] = policy.interim_after_ms

    # -- the log comes in ---------------------------------------------------------------------

    def fold(self, chunk: Chunk) -> Effects:
        """Take in a chunk of the log; return what it gives, timers due by its end included."""
        effects = Effects()
        view = memoryview(chunk.data)
        for at, header in headers_in(chunk.data):
            append_ms = append_time_ms(header)
            if header.record_count and header.next_offset > chunk.first_offset:
                self.clock_ms = max(self.clock_ms, append_ms)
            body = self._unpack(header, view[at + HEADER_SIZE : at + header.size])
            self._fold_batch(body, header, chunk.first_offset, effects)
            self.records += header.record_count
        self._run_due(effects)
        self._lower_touched()
        return effects

    def _unpack(self, header: BatchHeader, packed: memoryview) -> NDArray[np.uint8]:
        """Return the records of a batch, which the next one may overwrite."""
        codec = header.attributes & CODEC_MASK
        size = decompress_into(codec, packed, self._room)
        if size is not None:
            body = self._room[:size]
            body.flags.writeable = False  # as bytes are: the kernel is compiled for these
            return body
        body = np.frombuffer(decompress(codec, bytes(packed)), np.uint8)
        if codec and len(body) > len(self._room):
            self._room = np.empty(len(body) * 5 // 4, np.uint8)
        return body

    def tick(self, now_ms: int) -> Effects:
        """Return the totals due at `now_ms`, which the caller knows no later record can precede."""
        effects = super().tick(now_ms)
        self._lower_touched()
        return effects

    def _fold_batch(
        self, body: NDArray[np.uint8], header: BatchHeader, first_offset: int, effects: Effects
    ) -> None:
        task, store = self._task, self._rows
        task[fold.RECORD] = task[fold.POSITION] = task[fold.LEAST_DELTA] = 0
        task[fold.NEXT_DELTA] = header.last_offset_delta + 1
        task[fold.RECORDS] = header.record_count
        task[fold.BASE_OFFSET] = header.base_offset
        task[fold.FIRST_OFFSET] = first_offset
        task[fold.NOW] = self.clock_ms
        task[fold.OTHERS] = self.writers.has_others
        task[fold.REGISTRY] = self.writers.has_registry
        if header.record_count * RECORD_BYTES_MIN > len(body):
            raise CorruptBatch(f"the batch at {header.base_offset} is too short for its records")
        store.make_room(header.record_count)
        store.counters[[rows.SLOWS, rows.EVENTS, rows.EVENT_EXTRAS]] = 0
        while True:
            outcome = fold.fold(store.arrays, body, task, _SEGMENT_HEADER)
            if outcome < 0:
                break
            store.grow_table(outcome)
        if outcome == fold.MISPLACED:
            raise misplaced(header)
        if outcome == fold.CORRUPT:
            raise CorruptBatch(f"the records of the batch at {header.base_offset} don't add up")
        self._take_events(effects)
        count = int(store.counters[rows.SLOWS])
        if count:
            self._fold_slowly(body.tobytes(), header, store.slow[:count].tolist(), effects)

    def warm_up(self) -> None:
        """Have everything compiled: fold, settle, checkpoint and restore one order of its own."""
        event = SegmentEvent("warm-up", 1, 0, 1, True)
        key, value = b"warm-up", encode_segment(event)
        record = b"".join((b"\0\0\0", zigzag(len(key)), key, zigzag(len(value)), value, zigzag(0)))
        body = zigzag(len(record)) + record
        header = BatchHeader(0, 0, 0, 2, 0, 0, 0, 0, 0, -1, -1, -1, 1)
        effects = Effects()
        self._fold_batch(np.frombuffer(body, np.uint8), header, 0, effects)
        self._rows.grow_table(0)
        assert len(effects.totals) == 1
        self._run_due(effects)
        blocks = [block for _, block in self.take_changed_blocks() if block is not None]
        ColumnTable(self.place, self.policy, self.writers).restore(blocks, 0)
        self._lift(key)
        self._lower_touched()
        self.confirm(2**62)
        assert not len(self)
        assert self.oldest_deadline_ms() is None

    # -- what the kernel left -----------------------------------------------------------------

    def _fold_slowly(
        self, body: bytes, header: BatchHeader, positions: list[int], effects: Effects
    ) -> None:
        """Give the batch's remaining records to the plain rules, in their order.

        `positions` are the kernel's `slow`: for a dead letter nothing need be lifted.
        """
        keys: set[bytes] = set()
        for position in positions:
            at = position if position >= 0 else ~position
            record, _ = read_record(body, at, header.base_offset, header.max_timestamp_ms)
            if position < 0:
                letters = len(effects.dead_letters)
                super()._fold_record(record, effects)
                assert len(effects.dead_letters) > letters, "the kernel refused a good record"
                continue
            if record.key is not None:
                keys.add(record.key)
                self._lift(record.key)
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
        """Put an order into its row, if it fits."""
        number = order.service_order_number
        slot = self._slots[number]
        if not (self._rows.has(slot) and _fits(order) and self._rows.has_extra()):
            return
        order.check()
        self._rows.put(slot, _row_of(order), list(order.time), list(order.numbers))
        del self._orders[number], self._slots[number], self._blocks[slot // BLOCK_SLOTS][slot]

    def _order_of(self, slot: int) -> Order:
        """Return a plain order with a row's content."""
        row = self._rows.orders[slot]
        time, numbers = self._rows.pieces(slot)
        key = self._rows.key(slot)
        order = Order(key.decode(), self.place.partition, IntervalSet(time), IntervalSet(numbers))
        order.end_number = int(row["end_number"]) or None
        order.accepted = int(row["accepted"])
        order.length_sum_ms = int(row["overlap_ms"]) + order.time.measure
        order.started_ms = int(row["start_ms"])
        order.ended_ms = int(row["end_ms"])
        flags = int(row["flags"])
        order.phase = _PHASES[flags & rows.PHASE]
        order.deadline_ms = int(row["deadline_ms"])
        order.unbilled_since_ms = int(row["unbilled_since_ms"])
        order.source_offset = int(row["source_offset"])
        order.revision = int(row["revision"])
        if order.revision:
            order.settlements = ((flags & rows.SETTLEMENTS) >> rows.SETTLEMENTS_SHIFT) + 1
            # A settled row's evidence is that of its last total: new evidence lifts it first.
            order.digest = evidence_digest(
                order.service_order_number, order.time, order.numbers, order.end_number
            )
        return order

    # -- time ---------------------------------------------------------------------------------

    def _run_due(self, effects: Effects) -> None:
        block = 0
        while block >= 0:
            block = self._rows.settle_due(
                block, self.clock_ms, self.policy.correction_window_ms, FUTURE_TOLERANCE_MS
            )
            self._take_events(effects)
            for slot in self._rows.slow[: int(self._rows.counters[rows.SLOWS])].tolist():
                self._lift(self._rows.key(slot))
        super()._run_due(effects)

    def confirm(self, clock_ms: int) -> None:
        """Give back the slots of orders forgotten before the replay's start; see the base."""
        super().confirm(clock_ms)
        self._rows.retire(clock_ms)

    def _note(self, totals: Sequence[OrderTotal], order: Order, effects: Effects) -> None:
        super()._note(totals, order, effects)
        self._touched.add(order.service_order_number)

    def _take_events(self, effects: Effects) -> None:
        """Make records of the totals that the kernel has noted."""
        effects.totals += take_totals(self._rows, self.place.partition)

    # -- slots and blocks ---------------------------------------------------------------------

    def _take_slot(self, number: str) -> int:
        return self._rows.take_slot(number.encode())

    def _give_slot(self, slot: int) -> None:
        self._rows.free_row(slot)

    def take_changed(self) -> list[int]:
        """Return the numbers of the blocks that have changed since the last call."""
        return sorted({*super().take_changed(), *self._rows.take_changed()})

    def snapshot(self, block: int) -> Snapshot | None:
        """Return what a block holds now, None if it is empty."""
        return self._rows.snapshot(block, self._blocks.get(block, {}))

    def restore(self, blocks: Iterable[bytes], clock_ms: int) -> None:
        """Fill an empty table from checkpointed blocks; see the base."""
        assert not len(self)
        self.clock_ms = clock_ms
        for slot, order in self._rows.restore(blocks):
            self._put_order(slot, order)
            self._queue(order)
            self._touched.add(order.service_order_number)
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

    def describe(self, number: str) -> dict[str, Any] | None:
        """Return the live state of an order as plain values for JSON, or None if it is unknown."""
        slot = self._rows.find(number.encode("utf-8", "surrogatepass"))
        if slot < 0 or self._rows.orders[slot]["flags"] & rows.ODD:
            return super().describe(number)
        return describe_order(self._order_of(slot), self.policy)


def compile_kernel() -> None:
    """Have the kernel compiled, or loaded from its cache, before there is a stream to hold up.

    The first time takes about half a minute, later ones less than a second.
    """
    ColumnTable(Place(0, 1), Policy(), OWN_SCHEMA_ONLY).warm_up()


def _fits(order: Order) -> bool:
    """Tell whether an order can be a row; see `kernel.rows`."""
    return (
        len(order.service_order_number.encode()) <= rows.KEY_BYTES_MAX
        and (order.revision == 0 or order.phase is Phase.SETTLED)
        and order.revision <= rows.REVISION_MAX
        and len(order.time) <= rows.PIECES_MAX
        and len(order.numbers) <= rows.PIECES_MAX
        and order.numbers.last() <= rows.NUMBER_MAX
        and order.accepted < rows.ACCEPTED_MAX
        and not order.forwarded
    )


def _row_of(order: Order) -> dict[str, int]:
    settlements = max(0, order.settlements - 1) << rows.SETTLEMENTS_SHIFT
    return {
        "start_ms": order.started_ms,
        "end_ms": order.ended_ms,
        "deadline_ms": order.deadline_ms,
        "unbilled_since_ms": order.unbilled_since_ms,
        "source_offset": order.source_offset,
        "overlap_ms": order.length_sum_ms - order.time.measure,
        "end_number": order.end_number or 0,
        "accepted": order.accepted,
        "revision": order.revision,
        "flags": rows.USED | _FLAGS[order.phase] | settlements,
    }
