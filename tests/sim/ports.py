"""The simulation's implementations of `worker.ports`: no Faust, no Kafka client."""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from durabill.schemas.errors import FencedError, StateError
from durabill.stream_processors.engine.checkpoint import SegmentsTopic
from durabill.stream_processors.engine.effects import Opening
from durabill.stream_processors.engine.table import Effects, Total
from durabill.stream_processors.worker.ports import (
    Ends,
    Entry,
    OpeningsTail,
    PublishedOpening,
    Tail,
    WriterClosed,
)
from tests.property.batches import Entry as LogEntry
from tests.sim.broker import AckedAppend, Broker, Coordinator, Fenced, GaveUp, TopicLog
from tests.sim.group import Group
from tests.sim.loop import Host

T = TypeVar("T")
ROOM_RUNS = 12
PAUSE_S = 0.005
LOST_MARK = 0.05
FULL = 0.2
"""How often the producer's queue is full for a while."""


@dataclass(frozen=True, slots=True)
class Connection:
    """A host's way to the brokers."""

    host: Host
    broker: Broker
    group: Group
    on_fatal: Callable[[BaseException], None]
    runs_max: int


class SimPartitionWriter:
    """A transactional producer's queue, served as `KafkaPartitionWriter` serves its own."""

    def __init__(self, link: Connection, coordinator: Coordinator, epoch: int) -> None:
        self.ends = Ends(0, 0)
        self.strays = 0
        self._link = link
        self._coordinator = coordinator
        self._epoch = epoch
        self._runs: deque[tuple[TopicLog, Sequence[Entry]]] = deque()
        self._put = self._committed = 0
        self._waiters: list[tuple[int, asyncio.Future[None]]] = []
        self._closing = False
        self._wake = asyncio.Event()
        self._server = link.broker.loop.create_task(self._serve())

    def put_totals(self, totals: Sequence[Total]) -> None:
        """Queue totals."""
        if totals:
            self._append(self._link.broker.totals, totals)

    def put_openings(self, openings: Sequence[Opening]) -> None:
        """Queue openings."""
        if openings:
            records = [(each.key, with_source(each)) for each in openings]
            self._append(self._link.broker.orders, records)

    def put_entries(self, entries: Sequence[Entry]) -> None:
        """Queue entries of the checkpoint."""
        for entry in entries:
            self._append(self._link.broker.changelog, [entry])

    def _append(self, topic: Sequence[TopicLog], records: Sequence[Entry]) -> None:
        self._runs.append((topic[self._coordinator.partition], records))
        self._put += 1
        self._wake.set()

    async def flushed(self) -> None:
        """Return once everything put so far is committed; raise WriterClosed if it can't be."""
        if self._committed < self._put:
            if self._closing:
                raise WriterClosed
            waiter: asyncio.Future[None] = self._link.broker.loop.create_future()
            self._waiters.append((self._put, waiter))
            await waiter

    async def wait_for_room(self) -> None:
        """Return once little enough is queued."""
        while len(self._runs) > ROOM_RUNS:
            await self._link.broker.sleep(PAUSE_S * 10)

    def waiting_s(self) -> float:
        """Return 0: health is not what is simulated."""
        return 0.0

    def close(self) -> None:
        """Stop writing."""
        self._closing = True
        self._wake.set()
        waiters, self._waiters = self._waiters, []
        for _, waiter in waiters:
            if not waiter.done():
                waiter.set_exception(WriterClosed())

    def starts_at(self, ends: Ends) -> None:
        """Take note where the outputs ended when they were read."""
        self.ends = ends

    async def closed(self) -> None:
        """Return once it has stopped."""
        while not self._server.done():
            await self._link.broker.sleep(PAUSE_S)

    async def _serve(self) -> None:
        dice = self._link.broker.dice
        while True:
            while not self._runs and not self._closing:
                self._wake.clear()
                await self._wake.wait()
            await self._link.broker.sleep(dice.random() * 0.05)
            if self._closing:
                return
            count = min(len(self._runs), dice.randint(1, self._link.runs_max))
            runs = [self._runs[at] for at in range(count)]
            try:
                if not await self._commit(runs):
                    return
            except Fenced:
                if not self._closing:
                    self._link.on_fatal(FencedError("fenced"))
                return
            self._note_committed(count)

    async def _commit(self, runs: Sequence[tuple[TopicLog, Sequence[Entry]]]) -> bool:
        broker, coordinator, epoch = self._link.broker, self._coordinator, self._epoch
        while not self._closing:
            try:
                for log, records in runs:
                    what = f"{log.topic}/{log.partition}"
                    offset = -1
                    for key, value in records:
                        offset = await broker.ask(what, coordinator.append, epoch, log, key, value)
                    if log.topic in self.ends._fields:
                        self.ends = self.ends._replace(**{log.topic: offset + 1})
                if self._closing:
                    break
                await broker.ask("commit transaction", coordinator.commit, epoch)
            except GaveUp:
                continue
            return True
        return False

    def _note_committed(self, count: int) -> None:
        for _ in range(count):
            self._runs.popleft()
        self._committed += count
        ready = [waiter for number, waiter in self._waiters if number <= self._committed]
        self._waiters = [each for each in self._waiters if each[0] > self._committed]
        for waiter in ready:
            if not waiter.done():
                waiter.set_result(None)


class SimSideOutput:
    """Dead letters and forwards, at least once, in their order, as `KafkaSideOutput` does."""

    def __init__(self, link: Connection) -> None:
        self._link = link
        self._queue: deque[tuple[int, Callable[[], object]]] = deque()
        self._generation = 0
        self._waiters: list[tuple[int, asyncio.Future[None]]] = []
        self._wake = asyncio.Event()
        link.broker.loop.create_task(self._serve())

    async def publish(self, partition: int, effects: Effects) -> None:
        """Queue the dead letters and forwards of a partition."""
        broker = self._link.broker
        for letter in effects.dead_letters:
            record = letter.record
            source = f"{partition}/{record.offset}".encode()
            headers = (("reason", letter.reason.value.encode()), ("source", source))
            entry: LogEntry = (record.key, record.value, (*record.headers, *headers))
            await self._put(partial(broker.letters.append, entry))
        for forward in effects.forwards:
            copy: LogEntry = (forward.record.key, forward.record.value, forward.headers)
            await self._put(AckedAppend(broker, forward.partition, copy))

    async def _put(self, append: Callable[[], object]) -> None:
        self._queue.append((self._generation, append))
        self._wake.set()
        dice = self._link.broker.dice
        while len(self._queue) > ROOM_RUNS or dice.random() < FULL:
            await self._link.broker.sleep(dice.random() * 0.3)

    def publish_mark(
        self, partition: int, value: bytes, on_told: Callable[[int | None], None]
    ) -> None:
        """Append a clock mark; sometimes it can't be written."""
        self._link.broker.loop.create_task(self._mark(partition, value, on_told))

    async def _mark(
        self, partition: int, value: bytes, on_told: Callable[[int | None], None]
    ) -> None:
        broker = self._link.broker
        if broker.dice.random() < LOST_MARK:
            await broker.sleep(broker.dice.random())
            on_told(None)
        else:
            on_told(await broker.ask("mark", AckedAppend(broker, partition, (None, value, ()))))

    def close_generation(self) -> int:
        """Close the current flush generation and return it."""
        self._generation += 1
        return self._generation - 1

    async def delivered(self, generation: int) -> None:
        """Return once every record of the generation, and of older ones, has been acknowledged."""
        if self._queue and self._queue[0][0] <= generation:
            waiter: asyncio.Future[None] = self._link.broker.loop.create_future()
            self._waiters.append((generation, waiter))
            await waiter

    def stop(self) -> None:
        """Do nothing: `drained` flushes, as here nothing may block."""

    def is_empty(self) -> bool:
        """Tell whether nothing is queued."""
        return not self._queue

    async def drained(self) -> None:
        """Return once nothing is queued."""
        await self.delivered(self._generation)

    async def _serve(self) -> None:
        while True:
            while not self._queue:
                self._wake.clear()
                await self._wake.wait()
            _, append = self._queue[0]
            await self._link.broker.ask("side output", append)
            self._queue.popleft()
            oldest = self._queue[0][0] if self._queue else self._generation + 1
            ready = [waiter for number, waiter in self._waiters if number < oldest]
            self._waiters = [each for each in self._waiters if each[0] >= oldest]
            for waiter in ready:
                if not waiter.done():
                    waiter.set_result(None)


def with_source(opening: Opening) -> bytes:
    """Return an opening's record; simulated ones have no header, so its content comes first."""
    return b"%d " % opening.offset + opening.value


def openings_in(records: Iterable[tuple[int, bytes, bytes | None]]) -> list[PublishedOpening]:
    """Return what simulated records of the orders topic pass on."""
    found = []
    for offset, key, record in records:
        source_offset, _, value = (record or b"").partition(b" ")
        found.append(PublishedOpening(offset, int(source_offset), key, value, "id"))
    return found


class SimRuntime:
    """The group, the log, the changelog and the outputs, as one simulated worker sees them."""

    def __init__(self, link: Connection, segments_topic: SegmentsTopic) -> None:
        self.segments_topic = segments_topic
        self.shares: list[int] = []
        self.starts: dict[int, int] = {}
        self.log_ends: dict[int, tuple[int, int]] = {}
        self._link = link
        self._began_s = link.broker.dice.uniform(0.0, 1e6)

    def assigned(self) -> list[int]:
        """Return the partitions that the group has given us."""
        return list(self.shares)

    async def committed(self, partitions: Sequence[int]) -> dict[int, int | None]:
        """Ask the coordinator."""
        offsets = self._link.group.offsets
        return await self._link.broker.ask(
            "committed", lambda: {each: offsets.get(each) for each in partitions}
        )

    async def commit(self, offsets: Mapping[int, int]) -> bool:
        """Ask the coordinator to move offsets."""
        link = self._link
        return await link.broker.ask("commit offsets", link.group.commit, link.host, dict(offsets))

    def start_at(self, offsets: Mapping[int, int]) -> None:
        """Take note of where to read on from."""
        self.starts = dict(offsets)

    async def log_bounds(self, partitions: Sequence[int]) -> dict[int, tuple[int, int]]:
        """Ask for the bounds of the log."""
        logs = self._link.broker.segments
        return await self._link.broker.ask(
            "log bounds", lambda: {each: (0, logs[each].visible_end) for each in partitions}
        )

    async def read_entries(self, partitions: Sequence[int]) -> dict[bytes, bytes]:
        """Read the changelog, partition by partition."""
        broker = self._link.broker
        latest: dict[bytes, bytes | None] = {}
        for partition in partitions:
            log = broker.changelog[partition]
            records = await broker.ask("read changelog", log.committed, 0)
            latest.update((key, value) for _, key, value in records)
        return {key: value for key, value in latest.items() if value is not None}

    async def read_previous_entries(self, partitions: Sequence[int]) -> dict[bytes, bytes]:
        """Return none: there is no other application id."""
        return {}

    def log_end(self, partition: int) -> int | None:
        """Return the committed log's end as last heard of."""
        return self.log_ends[partition][1] if partition in self.log_ends else None

    def high_watermark(self, partition: int) -> int | None:
        """Return the high watermark as last heard of."""
        return self.log_ends[partition][0] if partition in self.log_ends else None

    def hold(self, partition: int, *, held: bool) -> None:
        """Do nothing: what comes all the same is kept."""

    def elapsed_s(self) -> float:
        """Return the time on a clock that nobody sets, and that began at any moment."""
        return self._link.broker.loop.time() + self._began_s

    async def open_writer(self, partition: int) -> SimPartitionWriter:
        """Fence all other writers of the partition, and return a new one."""
        broker = self._link.broker
        coordinator = broker.coordinators[partition]
        epoch = await broker.ask(f"open writer {partition}", coordinator.init)
        return SimPartitionWriter(self._link, coordinator, epoch)

    async def totals_since(self, starts: Mapping[int, int | None]) -> dict[int, Tail]:
        """Read the committed totals."""
        broker = self._link.broker
        tails = {}
        for partition, start in starts.items():
            log = broker.totals[partition]
            end = await broker.ask("totals' end", log.stable_end)
            if start is not None and start > end:
                raise StateError(f"the totals end at {end}, before {start}")
            found = await broker.ask("totals", log.committed, start or 0)
            tails[partition] = Tail([each for each in found if each[0] < end], end)
        return tails

    async def openings_since(self, starts: Mapping[int, int | None]) -> dict[int, OpeningsTail]:
        """Read the committed openings."""
        broker = self._link.broker
        tails = {}
        for partition, start in starts.items():
            log = broker.orders[partition]
            end = await broker.ask("orders' end", log.stable_end)
            if start is not None and start > end:
                raise StateError(f"the orders end at {end}, before {start}")
            found = await broker.ask("orders", log.committed, start or 0)
            tails[partition] = OpeningsTail(
                openings_in(each for each in found if each[0] < end), end
            )
        return tails

    async def aside(self, work: Callable[..., T], *arguments: Any) -> T:
        """Do it some time later: a thread begins whenever it pleases."""
        broker = self._link.broker
        await broker.sleep(broker.dice.choice((0.01, 0.05, 0.4)) * broker.dice.random())
        return work(*arguments)
