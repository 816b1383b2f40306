"""One worker: the lanes of its partitions, folded, timed and checkpointed on one event loop.

Faust decides which partitions are ours and recovers the checkpoint table; everything about
billing is in the tables. After every rebalance the exits of our partitions are opened anew, which
shuts those of any other worker, and only then is anything read: what another may have written
in between must not be mixed with what we remember, nor come after it.
"""

import asyncio
import logging
import os
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from itertools import chain
from typing import Any, NoReturn, Protocol

from schemas import WriterSchemas
from stream_processors.batch import Chunk
from stream_processors.blocks import Snapshot
from stream_processors.checkpoint import (
    META,
    START_ANEW,
    Cut,
    Lane,
    Marks,
    entry_key,
    marks_of,
    restore_lane,
)
from stream_processors.columns import ColumnTable
from stream_processors.errors import ContractError, DurabillError
from stream_processors.order import Policy
from stream_processors.outlet import Entry
from stream_processors.runtime import Exit, Runtime
from stream_processors.settings import Settings
from stream_processors.table import Effects, IntervalTable, Place

log = logging.getLogger("durabill.worker")

TICK_S = 0.1
BLOCKS_AT_ONCE = 32
"""Blocks taken between two chunks of the stream: about 2 ms of its time."""

CLOSING_S = 5.0
SHUTDOWN_S = 20.0
"""How long a last checkpoint may take; without it the next owner replays a little more."""


def die(error: BaseException) -> NoReturn:
    """End the process: whoever restarts it finds a consistent checkpoint and replays the rest.

    Faust would restart the agent and leave a hole in the log, so nothing is unwound.
    """
    if isinstance(error, DurabillError):
        log.critical("%s", error)
    else:
        log.critical("the worker stops on an error of its own", exc_info=error)
    logging.shutdown()
    sys.stderr.flush()
    os._exit(getattr(error, "exit_code", 70))


def kill() -> None:
    """End the process at once, as the system does to one that it runs out of memory for."""
    os.kill(os.getpid(), signal.SIGKILL)


def new_table(place: Place, policy: Policy, writers: WriterSchemas) -> IntervalTable:
    """Return an empty table whose index nobody outside can foresee."""
    return ColumnTable(place, policy, writers, seed=int.from_bytes(os.urandom(7), "little"))


class CrashStep:
    """Kills the process after the n-th time that a named step is done; for the crash tests."""

    def __init__(self, spec: str, kill: Callable[[], None]) -> None:
        self._name, _, times = spec.partition(":")
        self._times = int(times or 1)
        self._kill = kill
        self._seen: Counter[str] = Counter()

    def __call__(self, name: str) -> None:
        """Take note that the step `name` is done."""
        self._seen[name] += 1
        if name == self._name and self._seen[name] == self._times:
            self._kill()


class Letters(Protocol):
    """Where dead letters and records to be sent on go; see `publisher.Publisher`."""

    async def publish(self, partition: int, effects: Effects) -> None:
        """Queue the dead letters and forwards of a partition."""

    def cut(self) -> int:
        """Close the current epoch and return it."""

    async def delivered(self, epoch: int) -> None:
        """Return once every record of the epoch, and before, has been acknowledged."""

    def stop(self) -> None:
        """Flush what is queued, and end."""


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
        new_table: Callable[[Place, Policy, WriterSchemas], IntervalTable] = new_table,
        kill: Callable[[], None] = kill,
    ) -> None:
        self.settings = settings
        self.runtime = runtime
        self.letters = letters
        self.lanes: dict[int, Lane] = {}
        self.exits: dict[int, Exit] = {}
        self.stopping = False
        self._writers = writers
        self._now_ms = now_ms
        self._step = CrashStep(settings.crash_at_step, kill)
        self._new_table = new_table
        self._checkpoint_lock = asyncio.Lock()
        # What a table holds and what has been queued of it must not be told apart by a checkpoint.
        self._effects_lock = asyncio.Lock()
        self._slack_ms = round(settings.clock_slack_s * 1000)
        self.last_checkpoint_ms: int | None = None
        self.last_tick_ms: int | None = None
        self.is_assigned = False

    # -- rebalances ---------------------------------------------------------------------------

    async def on_assigned(self, partitions: Iterable[int]) -> None:
        """Shut everybody else out of these partitions, then build their lanes.

        Nothing that belongs to a partition is read before its exit is open: until then a frozen
        owner could still write to it.
        """
        assigned = sorted(partitions)
        await self._let_go()
        opened = await asyncio.gather(*(self.runtime.open_exit(each) for each in assigned))
        exits = self.exits = dict(zip(assigned, opened, strict=True))
        lanes = await self._build_lanes(exits)
        self.runtime.start_at({partition: lane.next_offset for partition, lane in lanes.items()})
        if self.stopping:
            return await self._let_go()
        self.lanes, self.is_assigned = lanes, True
        orders = sum(len(lane.table) for lane in lanes.values())
        said = sum(map(len, chain.from_iterable(lane.said.values() for lane in lanes.values())))
        log.info(
            "partitions %s, %d orders known, %d totals said since the checkpoint",
            *(assigned, orders, said),
        )

    async def _build_lanes(self, exits: Mapping[int, Exit]) -> dict[int, Lane]:
        if not exits:
            return {}
        origin, partitions = self.runtime.origin, list(exits)
        # In this order, each after what it is held against: had another worker the partitions by
        # now, which only our exits will tell us, then what it wrote would look like a loss.
        committed = await self.runtime.committed(partitions)
        entries = await self.runtime.read_entries(partitions)
        bounds = await self.runtime.log_bounds(partitions)
        marks: dict[int, Marks | None] = {}
        for partition, offset in committed.items():
            found = marks_of(entries, partition, origin, offset)
            _check_offset(origin.topic, partition, found, bounds[partition])
            marks[partition] = found
        tails = await self.runtime.totals_since(
            {each: found.totals_offset if found else None for each, found in marks.items()}
        )
        lanes = {}
        for partition, found in marks.items():
            place = Place(partition, origin.partitions)
            lane = restore_lane(
                self._new_table(place, self.settings.policy, self._writers),
                entries,
                origin,
                found,
                first_offset=bounds[partition][0],
                tail=tails[partition],
            )
            way_out = exits[partition]
            way_out.position = tails[partition].end
            if found is None:
                # Ahead of the first total: a recovery has to know from where on to look for it.
                way_out.put_entries([lane.first_marks(tails[partition].end)])
            lanes[partition] = lane
        return lanes

    async def on_revoked(self) -> None:
        """Write a last checkpoint of all lanes and let them go."""
        try:
            async with asyncio.timeout(SHUTDOWN_S):
                await self.checkpoint()
        except TimeoutError:
            log.warning("no last checkpoint within %s s; the next owner replays more", SHUTDOWN_S)
        await self._let_go()

    async def _let_go(self) -> None:
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
        """Take in a chunk of a partition that may have been taken from us meanwhile."""
        async with self._effects_lock:
            lane = self.lanes.get(partition)
            if lane is None or self.stopping or chunk.next_offset <= lane.next_offset:
                return
            assert chunk.first_offset <= lane.next_offset, (
                f"partition {partition}: a hole, {lane.next_offset} to {chunk.first_offset}"
            )
            effects = lane.table.fold(chunk)
            lane.next_offset = chunk.next_offset
            await self._publish(lane, effects)

    async def _publish(self, lane: Lane, effects: Effects) -> None:
        way_out = self.exits[lane.partition]
        way_out.put_totals(lane.unsaid(effects.totals))
        if effects.dead_letters or effects.forwards:
            await self.letters.publish(lane.partition, effects)
        if effects.totals or effects.dead_letters or effects.forwards:
            self._step("folded")
        await way_out.has_room()

    async def tick(self) -> None:
        """Publish what is due in partitions that are silent, by the broker's last answer."""
        async with self._effects_lock:
            for partition, lane in list(self.lanes.items()):
                if self.stopping or self.lanes.get(partition) is not lane:
                    continue  # taken from us while the one before it was published
                answered_ms = self.runtime.silent_since_ms(partition, lane.next_offset)
                if answered_ms is not None:
                    effects = lane.table.tick(answered_ms - self._slack_ms)
                    await self._publish(lane, effects)
        self.last_tick_ms = self._now_ms()

    # -- checkpoints --------------------------------------------------------------------------

    async def checkpoint(self) -> None:
        """Write a checkpoint of every lane with changes; see `checkpoint` for the steps."""
        async with self._checkpoint_lock:
            async with self._effects_lock:
                exits = dict(self.exits)
                lanes = [(lane, exits[lane.partition]) for lane in self.lanes.values()]
                cuts = [cut for lane, out in lanes if (cut := lane.cut(out.position)) is not None]
            if not cuts:
                self.last_checkpoint_ms = self._now_ms()
                return
            entries = [await self._encode(cut) for cut in cuts]
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
                while cut.lane.table.confirm(cut.clock_ms):
                    await asyncio.sleep(0)
            self._step("confirmed")
            self.last_checkpoint_ms = self._now_ms()

    async def _encode(self, cut: Cut) -> list[Entry]:
        """Return the cut's entries, packed beside the stream: zstd needs no interpreter lock."""
        entries: list[Entry] = []
        for snapshots in cut.snapshots(BLOCKS_AT_ONCE):
            entries += await self.runtime.aside(_pack, snapshots)
        entries.append((entry_key(cut.lane.partition, META), cut.marks))
        return entries

    # -- questions ----------------------------------------------------------------------------

    def describe(self, number: str) -> dict[str, Any] | None:
        """Return the live state of an order in one of our partitions, None if unknown."""
        for lane in self.lanes.values():
            state = lane.table.describe(number)
            if state is not None:
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
            "last_checkpoint_ms": self.last_checkpoint_ms,
            "partitions": {
                str(partition): {
                    "next_offset": lane.next_offset,
                    "lag": self.lag(partition),
                    "unpublished_s": round(self.exits[partition].waiting_s(), 3),
                    "checkpointed_offset": lane.written_offset,
                    "orders": len(lane.table),
                    "records": lane.table.records,
                    "clock_ms": lane.table.clock_ms,
                    "oldest_deadline_ms": lane.table.oldest_deadline_ms(),
                }
                for partition, lane in sorted(self.lanes.items())
            },
        }


def _check_offset(topic: str, partition: int, marks: Marks | None, bounds: tuple[int, int]) -> None:
    """Refuse to go on where the log, [first, after), no longer holds what has not been read."""
    first, after = bounds
    if marks is not None and not first <= marks.next_offset <= after:
        raise ContractError(
            f"{topic}/{partition}: the next offset to read is {marks.next_offset}, but the log"
            f" holds {first} to {after}: segments are lost. Restore them from the archive, or"
            f" accept the loss and {START_ANEW}"
        )


def _pack(snapshots: list[tuple[bytes, Snapshot | None]]) -> list[Entry]:
    return [(key, snapshot.pack() if snapshot else None) for key, snapshot in snapshots]
