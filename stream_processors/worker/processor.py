"""One worker: the lanes of its partitions, folded, timed and checkpointed on one event loop.

Faust decides which partitions are ours and recovers the checkpoint table; everything about
billing is in the tables. After every rebalance the exits of our partitions are opened anew, which
shuts those of any other worker, and only then is anything read: what another may have written
in between must not be mixed with what we remember, nor come after it.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from dataclasses import replace
from itertools import chain
from typing import Any

from durabill.schemas import ClockMark, WriterSchemas, encode_clock_mark
from durabill.schemas.errors import PoisonError
from durabill.schemas.text import counted, ranges
from durabill.stream_processors.engine.batch import Chunk
from durabill.stream_processors.engine.table import Effects
from durabill.stream_processors.settings import Settings
from durabill.stream_processors.worker.checkpoint import META, Cut, Lane, entry_key, packed
from durabill.stream_processors.worker.ending import CrashStep, die, kill
from durabill.stream_processors.worker.faust_runtime import Exit, Letters, Runtime
from durabill.stream_processors.worker.partition_writer import Entry, WriterClosed
from durabill.stream_processors.worker.policies import (
    Terms,
    describe_history,
    from_here,
    in_force,
    split,
)
from durabill.stream_processors.worker.recovery import LaneBuilder, TableMaker, new_table
from durabill.stream_processors.worker.schema_lookups import Ask, SchemaLookups, no_registry
from durabill.stream_processors.worker.verdicts import SCHEMAS

log = logging.getLogger("durabill.worker")

TICK_S = 0.1
PATIENCE_S = 0.5
"""How long other partitions wait for a chunk; a fetch of ordinary records takes a tenth of that."""

BLOCKS_AT_ONCE = 32
"""Entries taken between two steps of the stream: about 2 ms of its time,"""

SNAPSHOT_WEIGHT_MAX = 20_000
"""or a large one: so much of `Snapshot.weight`, and the last one of them whole."""

CLOSING_S = 5.0
SHUTDOWN_S = 20.0
"""How long a last checkpoint may take; without it the next owner replays a little more."""


class Processor:
    """The lanes of a worker, and what moves them: chunks, time, checkpoints, rebalances."""

    def __init__(
        self,
        settings: Settings,
        runtime: Runtime,
        writers: WriterSchemas,
        letters: Letters,
        now_ms: Callable[[], int],
        *,
        new_table: TableMaker = new_table,
        kill: Callable[[], None] = kill,
        ask_registry: Ask = no_registry,
        on_fatal: Callable[[BaseException], Any] = die,
    ) -> None:
        self.settings = settings
        self.runtime = runtime
        self.letters = letters
        self.lanes: dict[int, Lane] = {}
        self.exits: dict[int, Exit] = {}
        self.stopping = False
        wanted = Terms(settings.policy, registry=bool(settings.schema_registry_url))
        self._step = CrashStep(settings.crash_at_step, kill)
        self._builder = LaneBuilder(runtime, wanted, writers, new_table, self._step)
        self._lookups = SchemaLookups(ask_registry)
        self._on_fatal = on_fatal
        self._tasks: set[asyncio.Task[None]] = set()
        self._now_ms = now_ms
        self._checkpoint_lock = asyncio.Lock()
        # What a table holds and what has been queued of it must not be told apart by a checkpoint.
        self._effects_lock = asyncio.Lock()
        self.last_checkpoint_ms: int | None = None
        self.last_tick_ms: int | None = None
        self.is_assigned = False

    # -- rebalances ---------------------------------------------------------------------------

    async def on_assigned(self, partitions: Iterable[int]) -> None:
        """Shut everybody else out of these partitions, then build their lanes.

        Nothing that belongs to a partition is read before its exit is open: until then a frozen
        owner could still write to it.
        """
        assigned, began_s = sorted(partitions), self.runtime.elapsed_s()
        await self._let_go()
        opened = await asyncio.gather(*(self.runtime.open_exit(each) for each in assigned))
        exits = self.exits = dict(zip(assigned, opened, strict=True))
        try:
            lanes = await self._builder.build(exits)
        except WriterClosed:
            return  # told to stop meanwhile
        self.runtime.start_at({partition: lane.next_offset for partition, lane in lanes.items()})
        if self.stopping:
            return await self._let_go()
        self.lanes, self.is_assigned = lanes, True
        orders = sum(len(lane.table) for lane in lanes.values())
        said = sum(map(len, chain.from_iterable(lane.said.values() for lane in lanes.values())))
        took_s = self.runtime.elapsed_s() - began_s
        log.info(
            "ready: partitions %s of %d, %s known, %s said since the checkpoint; it took %.1f s",
            *(ranges(assigned), self.runtime.origin.partitions),
            *(counted(orders, "order"), counted(said, "total"), took_s),
        )

    async def on_revoked(self) -> None:
        """Write a last checkpoint of all lanes and let them go."""
        try:
            async with asyncio.timeout(SHUTDOWN_S):
                await self.checkpoint()
        except TimeoutError:
            log.warning("no last checkpoint within %s s; the next owner replays more", SHUTDOWN_S)
        await self._let_go()

    async def _let_go(self) -> None:
        for lane in self.lanes.values():
            self.runtime.hold(lane.partition, held=False)
        for task in self._tasks:
            task.cancel()  # what they wait for concerns others now
        self.lanes, self.is_assigned = {}, False
        exits, self.exits = list(self.exits.values()), {}
        for each in exits:
            each.close()
        try:
            async with asyncio.timeout(CLOSING_S):
                for each in exits:
                    await each.closed()
        except TimeoutError:
            log.warning("not all transactions ended within %s s; they are undone", CLOSING_S)

    async def shutdown(self) -> None:
        """Stop folding, checkpoint, and stop publishing."""
        self.stopping = True
        await self.on_revoked()
        self.letters.stop()

    # -- the stream ---------------------------------------------------------------------------

    async def fold(self, partition: int, chunk: Chunk) -> None:
        """Take in a chunk of a partition that may have been taken from us meanwhile.

        Returns after PATIENCE_S at the latest; what is left is folded beside the next chunks, so
        that no partition waits for another's.
        """
        lane = self.lanes.get(partition)
        if lane is None or self.stopping or lane.is_broken:
            return
        if lane.held or lane.is_slow:
            lane.backlog.append(chunk)
            return
        begun_s = self.runtime.elapsed_s()
        folding = self._fold(lane, chunk)
        async for _ in folding:
            if self.runtime.elapsed_s() - begun_s > PATIENCE_S:
                lane.is_slow = True
                self.runtime.hold(partition, held=True)
                return self._spawn(self._go_on(lane, folding))

    async def _go_on(self, lane: Lane, folding: AsyncIterator[None] | None = None) -> None:
        """Fold to its end what has been begun, then all that came meanwhile."""
        while True:
            if folding is not None:
                async for _ in folding:
                    pass
            if lane.held or not lane.backlog or not self._is_ours(lane):
                break
            folding = self._fold(lane, lane.backlog.popleft())
        lane.is_slow = False
        if not lane.held and self._is_ours(lane):
            self.runtime.hold(lane.partition, held=False)

    def _is_ours(self, lane: Lane) -> bool:
        """Tell whether a lane is still ours, after others have had their turn."""
        return not self.stopping and self.lanes.get(lane.partition) is lane

    async def _fold(self, lane: Lane, chunk: Chunk) -> AsyncIterator[None]:
        """Fold what the lane has not seen of a chunk, a step for each item of the iterator.

        Holds the lane where that can't be judged; ends once the lane has been let go.
        """
        if chunk.next_offset <= lane.next_offset:
            return
        assert chunk.first_offset <= lane.next_offset, (
            f"partition {lane.partition}: a hole, {lane.next_offset} to {chunk.first_offset}"
        )
        for terms, piece in split(replace(chunk, first_offset=lane.next_offset), lane.history):
            if terms is not None:
                lane.use(terms)
            reads_ids = lane.schemas.reads_ids
            ids = await self.runtime.aside(lane.undecided_ids, piece) if reads_ids else []
            if not self._is_ours(lane):
                return
            if ids:
                lane.backlog.appendleft(chunk)
                self._hold(lane, "asks the schema registry")
                self._spawn(self._decide(lane, ids, piece))
                return
            steps = lane.table.steps(piece)
            while True:
                async with self._effects_lock:
                    if not self._is_ours(lane):
                        return
                    way_out = self.exits[lane.partition]
                    try:
                        step = next(steps, None)
                    except PoisonError as error:
                        self._break(lane, error)
                        return
                    if step is None:
                        break
                    lane.next_offset = step.next_offset
                    await self._publish(lane, way_out, step.effects)
                await way_out.has_room()
                await asyncio.sleep(0)  # whatever else there is gets its turn
                yield
        # Whatever comes next begins here or later: also what is due by other terms is due now.
        lane.use(in_force(lane.history, lane.next_offset))
        lane.clock.note_folded(lane.table.clock_ms, self.runtime.elapsed_s())

    def _break(self, lane: Lane, error: PoisonError) -> None:
        """Give up a partition whose table can't be trusted any more; the others go on."""
        log.critical("%s", error, exc_info=error.__cause__)
        lane.is_broken = True
        lane.backlog.clear()
        self._hold(lane, str(error))

    def _hold(self, lane: Lane, why: str) -> None:
        """Have nothing more of a partition folded; an empty reason lets it go on."""
        lane.held = why
        self.runtime.hold(lane.partition, held=bool(why))

    async def _decide(self, lane: Lane, ids: list[int], piece: Chunk) -> None:
        """Find out what a held lane's ids stand for, record it, and let the lane go on."""

        def tell(why: str) -> None:
            if lane.held != why:
                log.warning("partition %d waits: %s", lane.partition, why)
            lane.held = why

        found = await self._lookups.decide(ids, tell)
        if not self._is_ours(lane):
            return
        way_out = self.exits[lane.partition]
        verdicts = lane.schemas.decide(found, piece.first_offset, piece.next_offset)
        way_out.put_entries([(entry_key(lane.partition, SCHEMAS), verdicts)])
        try:
            await way_out.flushed()  # nothing may rest on a verdict that could still get lost
        except WriterClosed:
            return
        lane.held, lane.is_slow = "", True
        await self._go_on(lane)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run something beside the stream; its failure is the worker's."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._note_done)

    def _note_done(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._on_fatal(error)

    async def _publish(self, lane: Lane, way_out: Exit, effects: Effects) -> None:
        way_out.put_totals(lane.unsaid(effects.totals))
        if effects.dead_letters or effects.forwards:
            await self.letters.publish(lane.partition, effects)
        if effects.totals or effects.dead_letters or effects.forwards:
            self._step("folded")

    async def tick(self) -> None:
        """Write clock marks where a deadline may have come in a partition that is silent."""
        now_s = self.runtime.elapsed_s()
        for partition, lane in self.lanes.items():
            end = self.runtime.log_end(partition)
            high_watermark = self.runtime.high_watermark(partition)
            lane.transaction.note(lane.next_offset, end, high_watermark, now_s)
            # Silent: all that there is has been folded, by the broker's last answer.
            is_silent = high_watermark is not None and lane.next_offset >= high_watermark
            if self.stopping or lane.held or not is_silent:
                continue
            due_ms = lane.table.next_due_ms(lane.clock.guess_ms(now_s))
            if due_ms is not None and lane.clock.is_mark_due(due_ms, now_s):
                self._mark(partition, lane, due_ms)
        self.last_tick_ms = self._now_ms()

    def _mark(self, partition: int, lane: Lane, due_ms: int) -> None:
        def on_told(append_ms: int | None) -> None:
            lane.clock.note_told(append_ms, self.runtime.elapsed_s())

        mark = ClockMark(self.settings.application_id, due_ms)
        lane.clock.note_asked()
        self.letters.publish_mark(partition, encode_clock_mark(mark), on_told)

    # -- checkpoints --------------------------------------------------------------------------

    async def checkpoint(self) -> None:
        """Write a checkpoint of every lane with changes; see `checkpoint` for the steps."""
        with contextlib.suppress(WriterClosed):  # the partitions were let go meanwhile
            await self._write_checkpoint()

    async def _write_checkpoint(self) -> None:
        async with self._checkpoint_lock:
            async with self._effects_lock:
                exits = dict(self.exits)
                lanes = [(lane, exits[lane.partition]) for lane in self.lanes.values()]
                cuts = [cut for lane, out in lanes if (cut := lane.cut(out.position)) is not None]
            if not cuts:
                self.last_checkpoint_ms = self._now_ms()
                return
            encoded = [(cut, await self._encode(cut)) for cut in cuts]
            # A lane that broke meanwhile: what was taken of its table since can't be trusted.
            encoded = [(cut, own) for cut, own in encoded if not cut.lane.is_broken]
            cuts, entries = [cut for cut, _ in encoded], [own for _, own in encoded]
            if not cuts:
                return
            self._step("cut")
            async with self._effects_lock:
                epoch = self.letters.cut()
            ways_out = [exits[cut.lane.partition] for cut in cuts]
            await self.letters.delivered(epoch)
            await asyncio.gather(*(each.flushed() for each in ways_out))
            self._step("published")
            for way_out, own in zip(ways_out, entries, strict=True):
                way_out.put_entries(own)
            await asyncio.gather(*(each.flushed() for each in ways_out))
            for cut in cuts:
                cut.lane.is_written(cut)
            self._step("written")
            if not await self.runtime.commit({cut.lane.partition: cut.next_offset for cut in cuts}):
                log.warning("partitions %s are no longer ours", sorted(exits))
                return
            self._step("committed")
            for cut in cuts:
                while not cut.lane.is_broken and cut.lane.table.confirm(cut.clock_ms):
                    await asyncio.sleep(0)
            self._step("confirmed")
            self.last_checkpoint_ms = self._now_ms()

    async def _encode(self, cut: Cut) -> list[Entry]:
        """Return the cut's entries, packed beside the stream: zstd needs no interpreter lock."""
        entries: list[Entry] = []
        for snapshots in cut.snapshots(BLOCKS_AT_ONCE, SNAPSHOT_WEIGHT_MAX):
            entries += await self.runtime.aside(packed, snapshots)
        entries.append((entry_key(cut.lane.partition, META), cut.marks))
        return entries

    # -- questions ----------------------------------------------------------------------------

    def describe(self, number: str) -> dict[str, Any] | None:
        """Return the live state of an order in one of our partitions, None if unknown."""
        for lane in self.lanes.values():
            if not lane.is_broken and (state := lane.table.describe(number)) is not None:
                return state
        return None

    def lag(self, partition: int) -> int:
        """Return how many records of a partition of ours wait, by the broker's last answer."""
        log_end = self.runtime.log_end(partition)
        return 0 if log_end is None else max(0, log_end - self.lanes[partition].next_offset)

    def status(self) -> dict[str, Any]:
        """Return how the worker is doing, as plain values for JSON."""
        return {
            "application_id": self.settings.application_id,
            "now_ms": self._now_ms(),
            "last_checkpoint_ms": self.last_checkpoint_ms,
            "partition_count": self.runtime.origin.partitions,
            "partitions": {
                str(partition): {
                    "next_offset": lane.next_offset,
                    "lag": self.lag(partition),
                    "unpublished_s": round(self.exits[partition].waiting_s(), 3),
                    "checkpointed_offset": lane.written_offset,
                    "orders": len(lane.table),
                    "records": lane.table.records,
                    "clock_marks": lane.table.clock_marks,
                    "held": lane.held or None,
                    "is_broken": lane.is_broken,
                    "waiting_for_transaction_s": round(
                        lane.transaction.waiting_s(self.runtime.elapsed_s()), 3
                    ),
                    "policy": describe_history(from_here(lane.history, lane.next_offset)),
                    "clock_ms": lane.table.clock_ms,
                    # Of a broken table nothing is looked for: it may be half changed.
                    "oldest_deadline_ms": (
                        None if lane.is_broken else lane.table.oldest_deadline_ms()
                    ),
                }
                for partition, lane in sorted(self.lanes.items())
            },
        }
