"""One worker: the tasks of its partitions, folded, timed and checkpointed on one event loop.

Faust decides which partitions are ours; the tables decide everything about billing. After every
rebalance the worker opens new writers of its partitions, which fences every other worker, and reads
only then: what another worker wrote in between must neither mix with what we remember, nor come
after it.
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
from durabill.schemas.order_state import OrderState
from durabill.schemas.text import counted, ranges
from durabill.stream_processors.engine.batch import Chunk
from durabill.stream_processors.engine.checkpoint import META, entry_key, packed
from durabill.stream_processors.engine.policies import (
    Terms,
    describe_history,
    from_here,
    in_force,
    split,
)
from durabill.stream_processors.engine.table import Effects
from durabill.stream_processors.engine.verdicts import SCHEMAS
from durabill.stream_processors.settings import Settings
from durabill.stream_processors.worker.effect_order import OnStep, Step, ignore_step
from durabill.stream_processors.worker.ending import die
from durabill.stream_processors.worker.partition_task import CheckpointBarrier, PartitionTask
from durabill.stream_processors.worker.ports import (
    Entry,
    PartitionWriter,
    Runtime,
    SideOutput,
    WriterClosed,
)
from durabill.stream_processors.worker.recovery import Recovery, TableMaker, new_table
from durabill.stream_processors.worker.schema_lookups import Ask, SchemaLookups, no_registry

log = logging.getLogger("durabill.worker")

TICK_S = 0.1
PATIENCE_S = 0.5
"""How long a chunk may keep other partitions waiting; an ordinary fetch takes a tenth of that."""

BLOCKS_AT_ONCE = 32
"""How many entries of a checkpoint are taken in one turn of the event loop: about 2 ms."""

SNAPSHOT_WEIGHT_MAX = 20_000
"""A turn also ends with the entry that brings its `Snapshot.weight` to this much."""

NOTHING = Effects()
CLOSING_S = 5.0
SHUTDOWN_S = 20.0
"""How long a last checkpoint may take; without it the next owner replays a little more."""


class Processor:
    """The tasks of a worker, and what moves them: chunks, time, checkpoints, rebalances.

    `on_step` is told of each step of the effect order.
    """

    def __init__(
        self,
        settings: Settings,
        runtime: Runtime,
        writer_schemas: WriterSchemas,
        side_output: SideOutput,
        now_ms: Callable[[], int],
        *,
        new_table: TableMaker = new_table,
        ask_registry: Ask = no_registry,
        on_fatal: Callable[[BaseException], Any] = die,
        on_step: OnStep = ignore_step,
    ) -> None:
        self.settings = settings
        self.runtime = runtime
        self.side_output = side_output
        self.tasks: dict[int, PartitionTask] = {}
        self.writers: dict[int, PartitionWriter] = {}
        self.stopping = False
        wanted = Terms(settings.policy, registry=bool(settings.schema_registry_url))
        self._on_step = on_step
        self._recovery = Recovery(runtime, wanted, writer_schemas, new_table, on_step)
        self._lookups = SchemaLookups(ask_registry)
        self._on_fatal = on_fatal
        self._background: set[asyncio.Task[None]] = set()
        self._now_ms = now_ms
        self._checkpoint_lock = asyncio.Lock()
        # A checkpoint must not come between what a table holds and what has been queued of it.
        self._effects_lock = asyncio.Lock()
        self.last_checkpoint_ms: int | None = None
        self.last_tick_ms: int | None = None
        self.is_assigned = False

    # -- rebalances ---------------------------------------------------------------------------

    async def on_assigned(self, partitions: Iterable[int]) -> None:
        """Fence every other worker from these partitions, then recover their tasks.

        Nothing that belongs to a partition is read before its writer is open: until then a frozen
        owner could still write to it.
        """
        assigned, began_s = sorted(partitions), self.runtime.elapsed_s()
        await self._release()
        opened = await asyncio.gather(*(self.runtime.open_writer(each) for each in assigned))
        writers = self.writers = dict(zip(assigned, opened, strict=True))
        try:
            tasks = await self._recovery.recover(writers)
        except WriterClosed:
            return  # told to stop meanwhile
        self.runtime.start_at({partition: task.next_offset for partition, task in tasks.items()})
        if self.stopping:
            return await self._release()
        self.tasks, self.is_assigned = tasks, True
        orders = sum(len(task.table) for task in tasks.values())
        totals = chain.from_iterable(task.published.values() for task in tasks.values())
        openings = sum(len(task.openings or ()) for task in tasks.values())
        took_s = self.runtime.elapsed_s() - began_s
        log.info(
            "ready: partitions %s of %d, %s known, %s and %s published since the checkpoint;"
            " it took %.1f s",
            *(ranges(assigned), self.runtime.segments_topic.partitions),
            *(counted(orders, "order"), counted(openings, "opening")),
            *(counted(sum(map(len, totals)), "total"), took_s),
        )

    async def on_revoked(self) -> None:
        """Write a last checkpoint of all tasks and release them."""
        try:
            async with asyncio.timeout(SHUTDOWN_S):
                await self.checkpoint()
        except TimeoutError:
            log.warning("no last checkpoint within %s s; the next owner replays more", SHUTDOWN_S)
        await self._release()

    async def _release(self) -> None:
        for task in self.tasks.values():
            self.runtime.hold(task.partition, held=False)
        for background in self._background:
            background.cancel()  # what they wait for concerns the next owner now
        self.tasks, self.is_assigned = {}, False
        writers, self.writers = list(self.writers.values()), {}
        for each in writers:
            each.close()
        try:
            async with asyncio.timeout(CLOSING_S):
                for each in writers:
                    await each.closed()
        except TimeoutError:
            log.warning("not all transactions ended within %s s; they are aborted", CLOSING_S)

    async def shutdown(self) -> None:
        """Stop folding, checkpoint, and stop publishing."""
        self.stopping = True
        await self.on_revoked()
        self.side_output.stop()

    # -- the stream ---------------------------------------------------------------------------

    async def fold(self, partition: int, chunk: Chunk) -> None:
        """Fold a chunk of a partition, unless the partition has been revoked meanwhile.

        Returns after PATIENCE_S at the latest; the rest of the chunk is folded in the background,
        so that no partition waits for another's.
        """
        task = self.tasks.get(partition)
        if task is None or self.stopping or task.is_broken:
            return
        if task.held or task.is_slow:
            task.backlog.append(chunk)
            return
        begun_s = self.runtime.elapsed_s()
        folding = self._fold(task, chunk)
        async for _ in folding:
            if self.runtime.elapsed_s() - begun_s > PATIENCE_S:
                task.is_slow = True
                self.runtime.hold(partition, held=True)
                return self._spawn(self._go_on(task, folding))

    async def _go_on(self, task: PartitionTask, folding: AsyncIterator[None] | None = None) -> None:
        """Fold the chunk that was begun to its end, then the chunks that came meanwhile."""
        while True:
            if folding is not None:
                async for _ in folding:
                    pass
            if task.held or not task.backlog or not self._is_ours(task):
                break
            folding = self._fold(task, task.backlog.popleft())
        task.is_slow = False
        if not task.held and self._is_ours(task):
            self.runtime.hold(task.partition, held=False)

    def _is_ours(self, task: PartitionTask) -> bool:
        """Tell whether a task is still ours: a rebalance may have come at any `await`."""
        return not self.stopping and self.tasks.get(task.partition) is task

    async def _fold(self, task: PartitionTask, chunk: Chunk) -> AsyncIterator[None]:
        """Fold what the task has not seen of a chunk, one step of the table for each item.

        Holds the task where a registry id is undecided; ends once the task has been released.
        """
        if chunk.next_offset <= task.next_offset:
            return
        assert chunk.first_offset <= task.next_offset, (
            f"partition {task.partition}: a hole, {task.next_offset} to {chunk.first_offset}"
        )
        for terms, piece in split(replace(chunk, first_offset=task.next_offset), task.history):
            if terms is not None:
                task.use(terms)
            reads_ids = task.schemas.reads_ids
            ids = await self.runtime.aside(task.undecided_ids, piece) if reads_ids else []
            if not self._is_ours(task):
                return
            if ids:
                task.backlog.appendleft(chunk)
                self._hold(task, "asks the schema registry")
                self._spawn(self._decide(task, ids, piece))
                return
            steps = task.table.steps(piece)
            while True:
                async with self._effects_lock:
                    if not self._is_ours(task):
                        return
                    writer = self.writers[task.partition]
                    try:
                        step = next(steps, None)
                    except PoisonError as error:
                        self._break(task, error)
                        return
                    if step is None:
                        break
                    task.next_offset = step.next_offset
                    await self._publish(task, writer, step.effects)
                await writer.wait_for_room()
                await asyncio.sleep(0)  # let others run
                yield
        # The next record begins here or later, so deadlines follow the terms in force here.
        task.use(in_force(task.history, task.next_offset))
        task.clock.note_folded(task.table.clock_ms, self.runtime.elapsed_s())

    def _break(self, task: PartitionTask, error: PoisonError) -> None:
        """Stop a partition whose table can't be trusted any more; the others go on."""
        log.critical("%s", error, exc_info=error.__cause__)
        task.is_broken = True
        task.backlog.clear()
        self._hold(task, str(error))

    def _hold(self, task: PartitionTask, why: str) -> None:
        """Fold nothing more of a partition; an empty reason resumes it."""
        task.held = why
        self.runtime.hold(task.partition, held=bool(why))

    async def _decide(self, task: PartitionTask, ids: list[int], piece: Chunk) -> None:
        """Find out which schemas a held task's ids stand for, record them, and resume the task."""

        def tell(why: str) -> None:
            if task.held != why:
                log.warning("partition %d waits: %s", task.partition, why)
            task.held = why

        found = await self._lookups.decide(ids, tell)
        if not self._is_ours(task):
            return
        writer = self.writers[task.partition]
        verdicts = task.schemas.decide(found, piece.first_offset, piece.next_offset)
        writer.put_entries([(entry_key(task.partition, SCHEMAS), verdicts)])
        try:
            await writer.flushed()  # no total may rest on a verdict that could still get lost
        except WriterClosed:
            return
        task.held, task.is_slow = "", True
        await self._go_on(task)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run something in the background; its failure is fatal for the worker."""
        background = asyncio.get_running_loop().create_task(work)
        self._background.add(background)
        background.add_done_callback(self._note_done)

    def _note_done(self, background: "asyncio.Task[None]") -> None:
        self._background.discard(background)
        if not background.cancelled() and (error := background.exception()) is not None:
            self._on_fatal(error)

    async def _publish(
        self, task: PartitionTask, writer: PartitionWriter, effects: Effects
    ) -> None:
        if effects.openings:  # ahead of the totals of their orders
            writer.put_openings(task.openings_not_yet_published(effects.openings))
        writer.put_totals(task.not_yet_published(effects.totals))
        if effects.dead_letters or effects.forwards:
            await self.side_output.publish(task.partition, effects)
        if effects != NOTHING:
            self._on_step(Step.FOLDED)

    async def tick(self) -> None:
        """Write clock marks where a deadline may have come in a partition that is silent."""
        now_s = self.runtime.elapsed_s()
        for partition, task in self.tasks.items():
            end = self.runtime.log_end(partition)
            high_watermark = self.runtime.high_watermark(partition)
            task.transaction.note(task.next_offset, end, high_watermark, now_s)
            # Silent: we have folded all that the broker's last answer told of.
            is_silent = high_watermark is not None and task.next_offset >= high_watermark
            if self.stopping or task.held or not is_silent:
                continue
            due_ms = task.table.next_due_ms(task.clock.guess_ms(now_s))
            if due_ms is not None and task.clock.is_mark_due(due_ms, now_s):
                self._mark(partition, task, due_ms)
        self.last_tick_ms = self._now_ms()

    def _mark(self, partition: int, task: PartitionTask, due_ms: int) -> None:
        def on_told(append_ms: int | None) -> None:
            task.clock.note_told(append_ms, self.runtime.elapsed_s())

        mark = ClockMark(self.settings.application_id, due_ms)
        task.clock.note_asked()
        self.side_output.publish_mark(partition, encode_clock_mark(mark), on_told)

    # -- checkpoints --------------------------------------------------------------------------

    async def checkpoint(self) -> None:
        """Write a checkpoint of every task with changes; `effect_order` has the steps."""
        with contextlib.suppress(WriterClosed):  # the partitions were released meanwhile
            await self._write_checkpoint()

    async def _write_checkpoint(self) -> None:
        async with self._checkpoint_lock:
            async with self._effects_lock:
                writers = dict(self.writers)
                barriers = self._begin_checkpoints()
            if not barriers:
                self.last_checkpoint_ms = self._now_ms()
                return
            encoded = [(barrier, await self._encode(barrier)) for barrier in barriers]
            # A task that broke meanwhile: what was taken of its table since can't be trusted.
            encoded = [(barrier, own) for barrier, own in encoded if not barrier.task.is_broken]
            barriers, entries = [barrier for barrier, _ in encoded], [own for _, own in encoded]
            if not barriers:
                return
            self._on_step(Step.ENCODED)
            async with self._effects_lock:
                generation = self.side_output.close_generation()
            involved = [writers[barrier.task.partition] for barrier in barriers]
            await self.side_output.delivered(generation)
            await asyncio.gather(*(each.flushed() for each in involved))
            self._on_step(Step.PUBLISHED)
            for writer, own in zip(involved, entries, strict=True):
                writer.put_entries(own)
            await asyncio.gather(*(each.flushed() for each in involved))
            for barrier in barriers:
                barrier.task.note_written(barrier)
            self._on_step(Step.WRITTEN)
            offsets = {each.task.partition: each.next_offset for each in barriers}
            if not await self.runtime.commit(offsets):
                log.warning("partitions %s are no longer ours", sorted(writers))
                return
            self._on_step(Step.COMMITTED)
            for barrier in barriers:
                while not barrier.task.is_broken and barrier.task.table.confirm(barrier.clock_ms):
                    await asyncio.sleep(0)
            self._on_step(Step.CONFIRMED)
            self.last_checkpoint_ms = self._now_ms()

    def _begin_checkpoints(self) -> list[CheckpointBarrier]:
        """Return a barrier for each task with changes."""
        begun = (
            task.begin_checkpoint(self.writers[partition].ends)
            for partition, task in self.tasks.items()
        )
        return [barrier for barrier in begun if barrier is not None]

    async def _encode(self, barrier: CheckpointBarrier) -> list[Entry]:
        """Return the entries, packed beside the event loop: zstd needs no interpreter lock."""
        entries: list[Entry] = []
        for snapshots in barrier.snapshots(BLOCKS_AT_ONCE, SNAPSHOT_WEIGHT_MAX):
            entries += await self.runtime.aside(packed, snapshots)
        entries.append((entry_key(barrier.task.partition, META), barrier.meta))
        return entries

    # -- questions ----------------------------------------------------------------------------

    def describe(self, number: str, limit: int | None = None) -> OrderState | None:
        """Return the live state of an order in one of our partitions, None if unknown.

        At most `limit` intervals and ranges of missing numbers are listed, the first ones.
        """
        for task in self.tasks.values():
            if not task.is_broken and (state := task.table.describe(number, limit)) is not None:
                return state
        return None

    def opened_by(self, number: str) -> str | None:
        """Return the tenant that opened an order in one of our partitions, None if nobody did."""
        for task in self.tasks.values():
            if not task.is_broken and (tenant := task.table.opened_by(number)) is not None:
                return tenant
        return None

    def lag(self, partition: int) -> int:
        """Return how many records of a partition of ours wait, by the broker's last answer."""
        log_end = self.runtime.log_end(partition)
        return 0 if log_end is None else max(0, log_end - self.tasks[partition].next_offset)

    def status(self) -> dict[str, Any]:
        """Return how the worker is doing, as plain values for JSON."""
        return {
            "application_id": self.settings.application_id,
            "now_ms": self._now_ms(),
            "last_checkpoint_ms": self.last_checkpoint_ms,
            "partition_count": self.runtime.segments_topic.partitions,
            "partitions": {
                str(partition): {
                    "next_offset": task.next_offset,
                    "lag": self.lag(partition),
                    "unpublished_s": round(self.writers[partition].waiting_s(), 3),
                    "strays": task.strays + self.writers[partition].strays,
                    "checkpointed_offset": task.written_offset,
                    "orders": len(task.table),
                    "records": task.table.records_folded,
                    "clock_marks": task.table.clock_marks,
                    "openings_passed_on": task.openings_passed_on,
                    "openings_waiting": task.table.openings_waiting,
                    "openings_repeated": task.table.openings_repeated,
                    "openings_extended": task.table.openings_extended,
                    "held": task.held or None,
                    "is_broken": task.is_broken,
                    "waiting_for_transaction_s": round(
                        task.transaction.waiting_s(self.runtime.elapsed_s()), 3
                    ),
                    "policy": describe_history(from_here(task.history, task.next_offset)),
                    "clock_ms": task.table.clock_ms,
                    # A broken table is not asked: it may be half changed.
                    "oldest_deadline_ms": (
                        None if task.is_broken else task.table.oldest_deadline_ms()
                    ),
                }
                for partition, task in sorted(self.tasks.items())
            },
        }
