"""A worker's process: the engine's `Processor`, and around it what Faust does for it."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from random import Random
from typing import Any

from durabill.schemas import OWN_SCHEMA_ONLY
from durabill.stream_processors.engine.batch import Chunk
from durabill.stream_processors.engine.checkpoint import SegmentsTopic
from durabill.stream_processors.worker.effect_order import OnStep, Step, ignore_step
from durabill.stream_processors.worker.processor import Processor
from tests.crash_at import CrashAt
from tests.sim.broker import Broker
from tests.sim.faults import Plan
from tests.sim.group import Group
from tests.sim.loop import HOST, Host, Killed
from tests.sim.ports import Connection, SimRuntime, SimSideOutput
from tests.sim.tables import table_maker
from tests.sim.traffic import BASE_MS, GRAIN_MS

HEARTBEAT_S = 0.8
POLL_S = 0.2
POLL_MAX_S = 1.6
QUEUE_MAX = 4
DRAIN_S = 10.0


class SimWorker(Host):
    """One life of a worker's process."""

    def __init__(
        self,
        name: str,
        plan: Plan,
        broker: Broker,
        group: Group,
        dice: Random,
        on_death: Callable[["SimWorker", BaseException | None], None],
    ) -> None:
        super().__init__(name)
        self.skew_ms = 0
        self._plan = plan
        self._broker = broker
        self._group = group
        self._dice = dice
        self._on_death = on_death
        self._link = Connection(self, broker, group, self.die, plan.runs_max)
        self.runtime = SimRuntime(self._link, SegmentsTopic("segments", "id", plan.partitions))
        self.processor: Processor
        self._side_output: SimSideOutput
        self._queue: asyncio.Queue[tuple[int, Chunk]]
        self._fetches: list[asyncio.Task[None]] = []
        self._rejoin: asyncio.Event
        self.on_step: OnStep = ignore_step
        self.left = False
        self.killed_at = ""

    def start(self) -> None:
        """Have the process begin; called with the host in the context."""
        assert HOST.get() is self
        self._queue = asyncio.Queue(QUEUE_MAX)
        self._rejoin = asyncio.Event()
        self._side_output = SimSideOutput(self._link)
        self.processor = Processor(
            self._plan.settings_at(self._broker.loop.time(), self._dice),
            self.runtime,
            OWN_SCHEMA_ONLY,
            self._side_output,
            self.now_ms,
            new_table=table_maker(self._plan.columns, self._dice),
            on_fatal=self.die,
            on_step=lambda step: self.on_step(step),
        )
        for work in (self._membership, self._heartbeats, self._fold):
            self._spawn(work)
        self._spawn(self._every, self._plan.tick_s, lambda: self.processor.tick())
        self._spawn(self._every, self._plan.checkpoint_s, lambda: self.processor.checkpoint())

    def has_published(self) -> bool:
        """Tell whether no dead letter and no copy waits."""
        return self._side_output.is_empty()

    def now_ms(self) -> int:
        """Return the machine's wall clock."""
        now_ms = BASE_MS + round(self._broker.loop.time() * 1000) + self.skew_ms
        return now_ms - now_ms % GRAIN_MS

    # -- the end ------------------------------------------------------------------------------

    def crash_after(self, step: Step, times: int) -> None:
        """Have the process end, in the midst of what it does, after the n-th time of a step."""

        def crash() -> None:
            self.killed_at = step.value
            self.end(None)
            raise Killed

        self.on_step = CrashAt(step, times, crash)

    def die(self, error: BaseException) -> None:
        """End the process for an error."""
        self.end(error)

    def end(self, error: BaseException | None) -> None:
        if not self.dead:
            self.dead = True
            self._on_death(self, error)

    async def stop(self) -> None:
        """Stop as a SIGTERM makes it."""
        await self.processor.shutdown()
        with suppress(TimeoutError):  # what isn't delivered by then is published again
            async with asyncio.timeout(DRAIN_S):
                await self._side_output.drained()
        await self._broker.ask("leave", self._group.leave, self)
        self.left = True
        self.end(None)

    def spawn_stop(self) -> None:
        """Begin to stop."""
        self._spawn(self.stop)

    # -- what runs ----------------------------------------------------------------------------

    def _spawn(self, work: Callable[..., Awaitable[None]], *of: Any) -> "asyncio.Task[None]":
        return self._broker.loop.create_task(self._guard(work, *of))

    async def _guard(self, work: Callable[..., Awaitable[None]], *of: Any) -> None:
        """End the process on any error, as `app` does."""
        with suppress(Killed):
            try:
                await work(*of)
            except Exception as error:
                self.die(error)

    async def _every(self, interval_s: float, action: Callable[[], Awaitable[None]]) -> None:
        while not self.processor.stopping:
            await self._broker.sleep(interval_s * self._dice.uniform(0.5, 1.5))
            await action()

    async def _heartbeats(self) -> None:
        while True:
            await self._broker.sleep(HEARTBEAT_S * self._dice.uniform(0.5, 1.5))
            if self._group.calls(self):
                self._rejoin.set()

    async def _membership(self) -> None:
        broker, group, processor = self._broker, self._group, self.processor
        while not processor.stopping:
            self._rejoin.clear()
            await broker.ask("join", group.join, self)
            shares = await broker.ask("share", group.share, self)
            if shares is None or processor.stopping:
                continue
            self.runtime.shares = shares
            await processor.on_assigned(shares)
            if processor.stopping:
                continue
            self._fetches = [
                self._spawn(self._fetch, each, self.runtime.starts[each]) for each in shares
            ]
            await self._rejoin.wait()
            for fetch in self._fetches:
                fetch.cancel()
            while not self._queue.empty():
                self._queue.get_nowait()
            if not processor.stopping:
                await processor.on_revoked()

    async def _fetch(self, partition: int, position: int) -> None:
        log, pause_s = self._broker.segments[partition], POLL_S
        while True:
            count = self._dice.randint(1, 4)
            chunk, *ends = await self._broker.ask("fetch", log.fetch, position, count)
            self.runtime.log_ends[partition] = (ends[0], ends[1])
            if chunk is None:
                await self._broker.sleep(pause_s * self._dice.random())
                pause_s = min(2 * pause_s, POLL_MAX_S)
            else:
                pause_s = POLL_S
                position = chunk.next_offset
                await self._queue.put((partition, chunk))

    async def _fold(self) -> None:
        while True:
            partition, chunk = await self._queue.get()
            await self.processor.fold(partition, chunk)


def draw_crash_step(dice: Random) -> tuple[Step, int]:
    """Return a step of the effect order, and after which time of it to crash."""
    return dice.choice(tuple(Step)), dice.choice((1, 1, 2, 3, 6))
