"""One worker: the lanes of its partitions, folded, timed and checkpointed on one event loop.

Faust decides which partitions are ours and recovers the checkpoint table; everything about
billing is in the tables. After every rebalance the lanes are built anew from the changelog: what
another worker may have written in between must not be mixed with what we remember.
"""

import asyncio
import logging
import os
import signal
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import faust
from faust.types import TP

from schemas import WriterSchemas
from stream_processors.batch import Chunk
from stream_processors.blocks import Snapshot
from stream_processors.checkpoint import META, Cut, Lane, entry_key, restore_lane
from stream_processors.columns import ColumnTable, compile_kernel
from stream_processors.driver import Consumer
from stream_processors.errors import ContractError, DurabillError
from stream_processors.publisher import Publisher
from stream_processors.settings import Settings
from stream_processors.table import Effects, Place

log = logging.getLogger("durabill.worker")

TICK_S = 0.1
BLOCKS_AT_ONCE = 32
"""Blocks taken between two chunks of the stream: about 2 ms of its time."""

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


class CrashStep:
    """Kills the process after the n-th time that a named step is done; for the crash tests."""

    def __init__(self, spec: str) -> None:
        self._name, _, times = spec.partition(":")
        self._times = int(times or 1)
        self._seen: Counter[str] = Counter()

    def __call__(self, name: str) -> None:
        """Take note that the step `name` is done."""
        self._seen[name] += 1
        if name == self._name and self._seen[name] == self._times:
            os.kill(os.getpid(), signal.SIGKILL)


class Processor:
    """The lanes of a worker, and what moves them: chunks, time, checkpoints, rebalances."""

    def __init__(
        self,
        settings: Settings,
        partitions: int,
        writers: WriterSchemas,
        publisher: Publisher,
        now_ms: Callable[[], int],
    ) -> None:
        self.settings = settings
        self.partitions = partitions
        self.publisher = publisher
        self.lanes: dict[int, Lane] = {}
        self.stopping = False
        self._writers = writers
        self._now_ms = now_ms
        self._step = CrashStep(settings.crash_at_step)
        self._checkpoint_lock = asyncio.Lock()
        # What a table holds and what has been queued of it must not be told apart by a checkpoint.
        self._effects_lock = asyncio.Lock()
        compile_kernel()
        self._slack_ms = round(settings.clock_slack_s * 1000)
        self.last_checkpoint_ms: int | None = None
        self.app: faust.App
        self.table: Any = None

    @property
    def consumer(self) -> Consumer:
        """Return the app's consumer, which is of our own transport."""
        consumer = self.app.consumer
        assert isinstance(consumer, Consumer)
        return consumer

    @property
    def _recovery(self) -> Any:
        """Faust's recovery of tables, which its interface doesn't mention."""
        tables: Any = self.app.tables
        return tables.recovery

    # -- rebalances ---------------------------------------------------------------------------

    async def on_recovered(self) -> None:
        """Build the lanes from the table that Faust has just recovered."""
        try:
            await self._build_lanes()
        except Exception as error:  # Faust would swallow it and start with empty lanes
            die(error)

    async def _build_lanes(self) -> None:
        entries: Mapping[bytes, bytes | None] = dict(self.table.data.items())
        topic = self.settings.segments_topic
        tps = [tp for tp in self.consumer.assignment() if tp.topic == topic]
        committed = {tp: await self.consumer.committed_offset(tp) for tp in tps}
        # For all at once: each such question waits behind a fetch that waits for news.
        first, after = await asyncio.gather(
            self.consumer.earliest_offsets(*tps), self.consumer.highwaters(*tps)
        )
        for tp in tps:
            _check_offset(tp, committed[tp], first[tp], after[tp])
        lanes = {}
        for tp in tps:
            place = Place(tp.partition, self.partitions)
            seed = int.from_bytes(os.urandom(7), "little")
            table = ColumnTable(place, self.settings.policy, self._writers, seed=seed)
            lane = restore_lane(table, entries, committed[tp])
            if lane.next_offset is None:
                lane.next_offset = first[tp]  # so that a hole is noticed from the first chunk on
            lanes[tp.partition] = lane
        self.lanes = lanes
        self.forget_recovered()
        log.info(
            "partitions %s, %d orders known",
            sorted(lanes),
            sum(len(lane.table) for lane in lanes.values()),
        )

    def forget_recovered(self) -> None:
        """Drop Faust's copy of the table, so that the next recovery reads everything anew."""
        self.table.data.clear()
        self._recovery.active_offsets.clear()

    async def on_revoked(self) -> None:
        """Write a last checkpoint of all lanes and let them go."""
        try:
            async with asyncio.timeout(SHUTDOWN_S):
                await self.checkpoint()
        except TimeoutError:
            log.warning("no last checkpoint within %s s; the next owner replays more", SHUTDOWN_S)
        except Exception as error:
            die(error)
        self.lanes = {}
        self._recovery.active_offsets.clear()

    async def shutdown(self) -> None:
        """Stop folding, checkpoint, and stop publishing."""
        self.stopping = True
        await self.on_revoked()
        self.publisher.stop()

    # -- the stream ---------------------------------------------------------------------------

    async def fold(self, partition: int, chunk: Chunk) -> None:
        """Take in a chunk of a partition that may have been taken from us meanwhile."""
        async with self._effects_lock:
            lane = self.lanes.get(partition)
            if lane is None or self.stopping:
                return
            if lane.next_offset is not None:
                if chunk.next_offset <= lane.next_offset:
                    return
                assert chunk.first_offset <= lane.next_offset, (
                    f"partition {partition}: a hole, {lane.next_offset} to {chunk.first_offset}"
                )
            effects = lane.table.fold(chunk)
            lane.next_offset = chunk.next_offset
            await self._publish(partition, effects)

    async def _publish(self, partition: int, effects: Effects) -> None:
        await self.publisher.publish(partition, effects)
        if effects.totals or effects.dead_letters or effects.forwards:
            self._step("folded")

    async def tick(self) -> None:
        """Publish what is due in partitions that are silent, by the broker's last answer."""
        async with self._effects_lock:
            for partition, lane in list(self.lanes.items()):
                if lane.next_offset is None or self.stopping:
                    continue
                tp = TP(self.settings.segments_topic, partition)
                answered_ms = self.consumer.silent_since_ms(tp, lane.next_offset)
                if answered_ms is not None:
                    effects = lane.table.tick(answered_ms - self._slack_ms)
                    await self._publish(partition, effects)

    # -- checkpoints --------------------------------------------------------------------------

    async def checkpoint(self) -> None:
        """Write a checkpoint of every lane with changes; see `checkpoint` for the steps."""
        async with self._checkpoint_lock:
            async with self._effects_lock:
                cuts = [cut for lane in self.lanes.values() if (cut := lane.cut()) is not None]
            if not cuts:
                return
            entries = [await self._encode(cut) for cut in cuts]
            self._step("cut")
            async with self._effects_lock:
                epoch = self.publisher.cut()
            await self.publisher.delivered(epoch)
            self._step("published")
            if not await self._still_ours(cuts):
                log.warning("partitions %s are no longer ours", sorted(self.lanes))
                return
            await self._write(cuts, entries)
            self._step("written")
            offsets = {
                TP(self.settings.segments_topic, cut.lane.partition): cut.next_offset
                for cut in cuts
            }
            if not await self.consumer.commit_offsets(offsets):
                log.warning("partitions %s are no longer ours", sorted(self.lanes))
                return
            self._step("committed")
            for cut in cuts:
                cut.lane.commit_worked(cut)
            self._step("confirmed")
            self.last_checkpoint_ms = self._now_ms()

    async def _still_ours(self, cuts: list[Cut]) -> bool:
        """Ask the group's coordinator, by committing once more what is committed.

        A worker that was frozen past its session wakes up with partitions that another has by now;
        its blocks must not go over the other's. This leaves the time from the answer to the
        delivery of the blocks: no fence, but milliseconds in place of the length of a freeze.
        """
        known = {
            TP(self.settings.segments_topic, cut.lane.partition): cut.lane.committed[0]
            for cut in cuts
            if cut.lane.committed is not None
        }
        return not known or await self.consumer.commit_offsets(known)

    async def _encode(self, cut: Cut) -> list[tuple[bytes, bytes | None]]:
        """Return the cut's entries, packed beside the stream: zstd needs no interpreter lock."""
        entries: list[tuple[bytes, bytes | None]] = []
        for snapshots in cut.snapshots(BLOCKS_AT_ONCE):
            entries += await asyncio.to_thread(_pack, snapshots)
        entries.append((entry_key(cut.lane.partition, META), cut.marks))
        return entries

    async def _write(
        self, cuts: list[Cut], entries: list[list[tuple[bytes, bytes | None]]]
    ) -> None:
        """Send the entries to the changelog and wait for the delivery of every one."""
        sent = [
            self.table.send_changelog(cut.lane.partition, key, value, "raw", "raw")
            for cut, own in zip(cuts, entries, strict=True)
            for key, value in own
        ]
        for each in sent:
            await each

    # -- questions ----------------------------------------------------------------------------

    def describe(self, number: str) -> dict[str, Any] | None:
        """Return the live state of an order in one of our partitions, None if unknown."""
        for lane in self.lanes.values():
            state = lane.table.describe(number)
            if state is not None:
                return state
        return None

    def status(self) -> dict[str, Any]:
        """Return how the worker is doing, as plain values for JSON."""
        return {
            "application_id": self.settings.application_id,
            "last_checkpoint_ms": self.last_checkpoint_ms,
            "partitions": {
                str(partition): {
                    "next_offset": lane.next_offset,
                    "committed_offset": lane.committed[0] if lane.committed else None,
                    "orders": len(lane.table),
                    "records": lane.table.records,
                    "clock_ms": lane.table.clock_ms,
                    "oldest_deadline_ms": lane.table.oldest_deadline_ms(),
                }
                for partition, lane in sorted(self.lanes.items())
            },
        }


def _check_offset(tp: TP, committed: int | None, first: int, after: int) -> None:
    """Refuse to go on where the log, [first, after), no longer holds what has not been read."""
    if committed is not None and not first <= committed <= after:
        raise ContractError(
            f"{tp.topic}/{tp.partition}: the next offset to read is {committed}, but the log"
            f" holds {first} to {after}: segments are lost. Restore them from the archive, or"
            " accept the loss and start anew from the first segment left under another"
            " DURABILL_APPLICATION_ID"
        )


def _pack(snapshots: list[tuple[bytes, Snapshot | None]]) -> list[tuple[bytes, bytes | None]]:
    return [(key, snapshot.pack() if snapshot else None) for key, snapshot in snapshots]
