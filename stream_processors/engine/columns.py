"""The interval table for record batches: the same as `plain.PlainTable`, over columns.

Theory of operation. An order that is simple (few intervals, few ranges of numbers, an ordinary
name) is a row of the `store`. The kernel folds whole decompressed batches into the rows. What it
can't take, it defers: bad records, unknown schemas, unusual names, big numbers, reopened orders,
forwarded records. Deferred records are folded after the kernel's call, in the batch's order, by the
plain rules (`orders`). Where their order is a row, it is spilled first, and unspilled when it has
become simple again (`spill`). A placeholder keeps the order's name and place meanwhile.

Time is the same for all records of a batch (LogAppendTime), so a batch is folded against one clock.
"""

from collections.abc import Iterable, Iterator

import numpy as np

from durabill.schemas import (
    OPENING_HEADER,
    OWN_SCHEMA_ONLY,
    SEGMENT_HEADER,
    SegmentEvent,
    WriterSchemas,
    encode_segment,
)
from durabill.schemas.codec import FRAMING_SIZE
from durabill.schemas.limits import FUTURE_TOLERANCE_MS, ORDER_PIECES_MAX, SEGMENT_LENGTH_MAX_MS
from durabill.schemas.wire import zigzag
from durabill.stream_processors.core.admission import Place
from durabill.stream_processors.core.opening import Opened
from durabill.stream_processors.core.order import SETTLEMENTS_MAX, Order, Policy
from durabill.stream_processors.engine.batch import (
    CODEC_MASK,
    HEADER,
    HEADER_SIZE,
    LOG_APPEND_TIME,
    BatchHeader,
    Chunk,
    read_record,
    rest_of,
    unread,
)
from durabill.stream_processors.engine.effects import (
    BATCH_COST,
    COPIED_BYTES,
    PLAIN_COST,
    SCAN_COST,
    STEP_COST,
    TOTAL_COST,
    Effects,
    plain_cost,
)
from durabill.stream_processors.engine.kernel import fold, parse, rows, tasks
from durabill.stream_processors.engine.row_blocks import RowBlocks
from durabill.stream_processors.engine.row_timers import RowTimers
from durabill.stream_processors.engine.settlements import SettlementWriter
from durabill.stream_processors.engine.slots import BLOCK_SLOTS
from durabill.stream_processors.engine.spill import Spills
from durabill.stream_processors.engine.store import ROWS_MAX, RowStore
from durabill.stream_processors.engine.table import IntervalTable
from durabill.stream_processors.engine.unpack import BadBatch

UNSPILLED_AT_ONCE = 256

_NO_FRAMING = b"\xff" * FRAMING_SIZE
_HEADERS = SEGMENT_HEADER + OPENING_HEADER + _NO_FRAMING

assert len(_HEADERS) == parse.FRAMING_AT + parse.FRAMING_BYTES
assert BLOCK_SLOTS == rows.BLOCK_ROWS
assert SETTLEMENTS_MAX - 1 == rows.TIMES_SETTLED >> rows.TIMES_SETTLED_SHIFT


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
        assert pieces_max >= rows.PIECES_MAX, "the kernel doesn't count the pieces of rows"
        self._store = RowStore(seed, rows_max, policy.interim_after_ms)
        self._blocks = RowBlocks(self._store)
        super().__init__(place, policy, writers, pieces_max=pieces_max, blocks=self._blocks)
        self._timers = RowTimers(self._store)
        self._settlements = SettlementWriter(self._store, place.partition)
        self._spills = Spills(
            place.partition, self._store, self._blocks, self._plain, self._at_hand
        )
        self._headers = np.frombuffer(bytearray(_HEADERS), np.uint8)
        self._framing = self._headers.data[parse.FRAMING_AT :]
        self._task = np.zeros(tasks.TASK, np.int64)
        self._task_view = self._task.data
        """The same memory; one number at a time goes faster this way."""
        self._task[tasks.FUTURE_TOLERANCE_MS] = FUTURE_TOLERANCE_MS
        self._task[tasks.LENGTH_MAX_MS] = SEGMENT_LENGTH_MAX_MS
        self._task[tasks.PARTITION] = place.partition
        self._task[tasks.PARTITIONS] = place.partitions
        self._task[tasks.SEED] = seed
        self._use_policy(policy)

    def _use_policy(self, policy: Policy) -> None:
        super()._use_policy(policy)
        self._task[tasks.INTERIM_AFTER_MS] = policy.interim_after_ms
        self._task[tasks.SETTLE_GRACE_MS] = policy.settle_grace_ms
        self._task[tasks.IDLE_TIMEOUT_MS] = policy.idle_timeout_ms
        self._task[tasks.CORRECTION_WINDOW_MS] = policy.correction_window_ms
        self._task[tasks.OPENED_ONLY] = policy.opened_only

    def _look_again(self) -> None:
        super()._look_again()
        self._timers.look_again(self.policy.interim_after_ms)

    # -- the log comes in ---------------------------------------------------------------------

    def _fold_batch(
        self, header: BatchHeader, batch: memoryview, first_offset: int, effects: Effects
    ) -> Iterator[int]:
        base_offset, record_count = header.base_offset, header.record_count
        try:
            body = self._room.unpack(header.attributes & CODEC_MASK, batch[HEADER_SIZE:])
        except BadBatch as error:
            self._set_aside(header, batch, unread(header, str(error)), effects)
            return
        task, arrays = self._task_view, self._store.arrays
        self._begin_batch(header, first_offset)
        self._at_hand.set(base_offset, None)
        effects.cost += len(body) // COPIED_BYTES
        yield max(first_offset, base_offset)
        raw, done = b"", 0
        while True:
            task[tasks.RECORDS] = min(record_count, done + STEP_COST)
            outcome = fold.fold(arrays, body, self._task, self._headers)
            if outcome >= 0:
                self._store.index.grow(outcome)
                continue
            folded = task[tasks.RECORD]
            effects.cost += BATCH_COST + folded - done
            done = folded
            self._take_settlements(effects)
            if positions := self._store.take_deferred():
                if not raw:
                    raw = body.tobytes()
                    effects.cost += len(raw) // COPIED_BYTES
                yield from self._fold_deferred(raw, header, positions, effects)
                self._at_hand.set(base_offset + task[tasks.LEAST_DELTA], None)
            if outcome != fold.DONE or done == record_count:
                break
            yield max(first_offset, base_offset + task[tasks.LEAST_DELTA])
        self.records_folded += done
        if outcome != fold.DONE or task[tasks.POSITION] != len(body):
            at, least_offset = task[tasks.POSITION], base_offset + task[tasks.LEAST_DELTA]
            rest = rest_of(raw or body.tobytes(), at, header, done, least_offset)
            self._set_aside(header, batch, rest, effects)

    def _begin_batch(self, header: BatchHeader, first_offset: int) -> None:
        """Tell the kernel about a batch. What it counts has been taken since its last call."""
        task = self._task_view
        task[tasks.RECORD] = task[tasks.POSITION] = task[tasks.LEAST_DELTA] = 0
        task[tasks.NEXT_DELTA] = header.last_offset_delta + 1
        task[tasks.BASE_OFFSET] = header.base_offset
        task[tasks.FIRST_OFFSET] = first_offset
        task[tasks.NOW_MS] = self.clock_ms
        task[tasks.OTHERS] = self.writers.has_others
        task[tasks.REGISTRY] = self.writers.has_registry
        self._framing[:] = self.writers.own_framing(header.base_offset) or _NO_FRAMING

    def _take_settlements(self, effects: Effects) -> None:
        """Make totals of what the kernel has settled."""
        if totals := self._settlements.take():
            effects.totals += totals
            effects.cost += TOTAL_COST * len(totals)

    def _fold_deferred(
        self, body: bytes, header: BatchHeader, positions: list[int], effects: Effects
    ) -> Iterator[int]:
        """Fold the records that the kernel has deferred by the plain rules, in their order.

        A position is inverted where the record is a sure dead letter: nothing need be spilled for
        it. Yields where a replay would go on: at the next deferred record, though the kernel has
        gone further.
        """
        keys: set[bytes] = set()
        for position in positions:
            at = position if position >= 0 else ~position
            record, _ = read_record(body, at, header)
            yield record.offset
            self._at_hand.set(record.offset, record.key)
            effects.cost += plain_cost(record)
            if position < 0:
                letters = len(effects.dead_letters)
                self._plain.fold_record(record, self.clock_ms, effects)
                assert len(effects.dead_letters) > letters, "the kernel refused a good record"
                continue
            if record.key is not None:
                keys.add(record.key)
                self._spills.spill(record.key)
                for _ in self._plain.settle_ahead(record.key, self.clock_ms, effects):
                    yield record.offset
            self._plain.fold_record(record, self.clock_ms, effects)
            if record.key is not None:
                self._blocks.note_change(record.key.decode("utf-8", "replace"))
        for key in keys:
            self._spills.let_through(key)
        self._spills.unspill_touched(self.clock_ms)

    # -- time ---------------------------------------------------------------------------------

    def _run_due(self, effects: Effects) -> Iterator[None]:
        block = 0
        while block >= 0:
            block = self._timers.settle_due(
                block, self.clock_ms, self.policy.correction_window_ms, FUTURE_TOLERANCE_MS
            )
            self._take_settlements(effects)
            if block >= 0:
                effects.cost += SCAN_COST
            for slot in self._store.take_deferred():  # an interim total is due
                self._spills.spill_row(slot)
                effects.cost += PLAIN_COST
                yield
            for _ in self._plain.run_due(self.clock_ms, effects):
                if len(self._blocks.touched) >= UNSPILLED_AT_ONCE:
                    self._spills.unspill_touched(self.clock_ms)
                yield
            self._spills.unspill_touched(self.clock_ms)
            self._at_hand.set(None, None)
            yield

    def confirm(self, clock_ms: int) -> bool:
        """Give back slots of orders forgotten before the replay's start; see the base."""
        has_more = self._plain.confirm(clock_ms)
        return self._timers.retire(clock_ms) or has_more

    # -- the table as a whole -----------------------------------------------------------------

    def restore(self, blocks: Iterable[bytes], clock_ms: int) -> None:
        """Fill an empty table from checkpointed entries; see the base."""
        assert not len(self)
        self.clock_ms = clock_ms
        orders, restored = self._blocks.restore(blocks)
        self._plain.restore(orders, restored.own)
        self._plain.waiting.restore(restored.waiting, self._opening_of)
        self._spills.unspill_touched(clock_ms)

    def __len__(self) -> int:
        """Return how many orders are known, settled ones included."""
        return len(self._plain.slots) + len(self._store)

    def unsettled(self) -> int:
        """Return how many orders are known that have yet to settle."""
        return self._plain.unsettled() + self._store.unsettled()

    def age_of(self, key: bytes) -> tuple[int, int] | None:
        """Return (last offset, last revision) of an order; see the base."""
        slot = self._store.find_order(key)
        if slot < 0:
            return self._plain.age_of(key)
        return self._store.age_of(slot)

    def oldest_deadline_ms(self) -> int | None:
        """Return the earliest instant at which a total is due (None: there is none)."""
        deadlines = (self._plain.oldest_deadline_ms(), self._timers.oldest_deadline_ms())
        return min((each for each in deadlines if each is not None), default=None)

    def next_due_ms(self, now_ms: int) -> int | None:
        """Return the earliest deadline of an order that is not settled; see the base."""
        deadlines = (self._plain.next_due_ms(now_ms), self._timers.next_due_ms(now_ms))
        return min((each for each in deadlines if each is not None), default=None)

    def _known(self, number: str) -> Order | None:
        slot = self._store.find_order(number.encode("utf-8", "surrogatepass"))
        return self._plain.slots.get(number) if slot < 0 else self._spills.order_at(slot)

    def _opening_of(self, number: str) -> Opened | None:
        # Without the order's pieces, which may be many.
        slot = self._store.find_order(number.encode("utf-8", "surrogatepass"))
        return super()._opening_of(number) if slot < 0 else self._store.openings.at(slot)

    def warm_up(self) -> None:
        """Have everything compiled: fold, settle, checkpoint and restore one order of its own."""
        segment = SegmentEvent("warm-up", 1, 0, 1, True)
        key, value = b"warm-up", encode_segment(segment)
        record = b"".join((b"\0\0\0", zigzag(len(key)), key, zigzag(len(value)), value, zigzag(0)))
        body = zigzag(len(record)) + record
        size = HEADER_SIZE + len(body)
        header = BatchHeader(0, size - 12, 0, 2, 0, LOG_APPEND_TIME, 0, 0, 0, -1, -1, -1, 1)
        effects = self.fold(Chunk(0, 1, HEADER.pack(*header) + body))
        self._store.index.grow(0)
        assert len(effects.totals) == 1
        blocks = [block for _, block in self.take_changed_entries() if block is not None]
        ColumnTable(self.place, self.policy, self.writers).restore(blocks, 0)
        self._spills.spill(key)
        self._spills.unspill_touched(self.clock_ms)
        while self.confirm(2**62):
            pass
        assert not len(self)
        assert self.oldest_deadline_ms() is self.next_due_ms(0) is None


def compile_kernel() -> None:
    """Have the kernel compiled, or loaded from its cache, before there is a stream to hold up.

    The first time takes about half a minute, later ones less than a second.
    """
    ColumnTable(Place(0, 1), Policy(), OWN_SCHEMA_ONLY).warm_up()
