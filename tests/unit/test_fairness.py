"""A worker whose partitions share one event loop: none waits for another's chunk."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from confluent_kafka import Producer

from durabill.schemas import OWN_SCHEMA_ONLY
from durabill.stream_processors.engine.batch import Chunk
from durabill.stream_processors.engine.checkpoint import SegmentsTopic
from durabill.stream_processors.engine.plain import PlainTable
from durabill.stream_processors.engine.policies import PolicyRecord, Terms
from durabill.stream_processors.engine.table import Effects, Place, Total
from durabill.stream_processors.settings import Settings
from durabill.stream_processors.worker.output_topic import OutputTopic
from durabill.stream_processors.worker.partition_task import PartitionTask
from durabill.stream_processors.worker.partition_writer import (
    BACKLOG_BYTES_MAX,
    KafkaPartitionWriter,
)
from durabill.stream_processors.worker.processor import Processor
from tests.unit.test_steps import chunk_of
from tests.waiting import HANG_S

PARTITIONS = 2
LONG, SHORT = 12_000, 10


class Ports:
    """A worker's surroundings, as far as folding needs them; time passes with each look."""

    def __init__(self, s_a_look: float) -> None:
        self.held: set[int] = set()
        self.given: list[int] = []
        self._now_s = 0.0
        self._s_a_look = s_a_look

    def elapsed_s(self) -> float:
        self._now_s += self._s_a_look
        return self._now_s

    def hold(self, partition: int, *, held: bool) -> None:
        (self.held.add if held else self.held.discard)(partition)

    async def publish(self, partition: int, effects: Effects) -> None:
        self.given += [partition] * len(effects.dead_letters)


class Writer:
    """A partition's writer that takes everything."""

    def __init__(self) -> None:
        self.totals: list[Total] = []

    def put_totals(self, totals: list[Total]) -> None:
        self.totals += totals

    async def wait_for_room(self) -> None:
        await asyncio.sleep(0)

    def close(self) -> None:
        pass

    async def closed(self) -> None:
        pass


def processor_on(ports: Any) -> Processor:
    found = Processor(Settings(), ports, OWN_SCHEMA_ONLY, ports, lambda: 0)
    segments_topic, terms = SegmentsTopic("segments", "id", PARTITIONS), Terms(Settings().policy)
    for partition in range(PARTITIONS):
        table = PlainTable(Place(partition, PARTITIONS), Settings().policy, OWN_SCHEMA_ONLY)
        found.tasks[partition] = PartitionTask(
            table, segments_topic, 0, history=(PolicyRecord(0, terms),)
        )
        writers: dict[int, Any] = found.writers
        writers[partition] = Writer()
    return found


def garbage(count: int, first_offset: int = 0) -> Chunk:
    return chunk_of([(b"S1", b"x", ())] * count, first_offset)


def run(check: Callable[[Processor, Ports], Awaitable[None]], s_a_look: float) -> None:
    async def go() -> None:
        ports = Ports(s_a_look)
        await check(processor_on(ports), ports)

    asyncio.run(go())


async def idle(processor: Processor) -> None:
    while processor._background:
        await asyncio.sleep(0)


def test_a_chunk_that_takes_long_is_folded_beside_those_of_others() -> None:
    async def check(processor: Processor, ports: Ports) -> None:
        await processor.fold(0, garbage(LONG))
        assert 0 < len(ports.given) < LONG / 2
        assert {0} == ports.held
        begun = len(ports.given)
        await processor.fold(0, garbage(SHORT, LONG))  # had been handed out before
        await processor.fold(1, garbage(SHORT))
        assert ports.given.count(1) == SHORT
        assert len(ports.given) < begun + LONG / 4
        await idle(processor)
        assert ports.given.count(0) == LONG + SHORT
        assert (set(), LONG + SHORT) == (ports.held, processor.tasks[0].next_offset)
        await processor.fold(0, garbage(SHORT, LONG + SHORT))  # and all is as before
        assert processor.tasks[0].next_offset == LONG + 2 * SHORT

    run(check, 0.1)


def test_an_ordinary_chunk_is_folded_at_once() -> None:
    async def check(processor: Processor, ports: Ports) -> None:
        await processor.fold(0, garbage(LONG))
        assert (LONG, set(), set()) == (len(ports.given), ports.held, processor._background)

    run(check, 0.0001)


def test_a_checkpoint_need_not_wait_for_the_end_of_a_chunk() -> None:
    async def check(processor: Processor, ports: Ports) -> None:
        folding = asyncio.create_task(processor.fold(0, garbage(LONG)))
        await asyncio.sleep(0)
        async with processor._effects_lock:
            task = processor.tasks[0]
            assert 0 < task.next_offset < LONG
            assert task.next_offset == len(ports.given)
        await folding

    run(check, 0.0001)


def test_a_partition_that_is_taken_away_meanwhile_is_left_at_once() -> None:
    async def check(processor: Processor, ports: Ports) -> None:
        await processor.fold(0, garbage(LONG))
        await processor.fold(0, garbage(SHORT, LONG))
        begun = len(ports.given)
        await processor._release()
        await idle(processor)
        assert (begun, set()) == (len(ports.given), ports.held)

    run(check, 0.1)


def test_a_worker_that_stops_leaves_what_it_has_begun() -> None:
    async def check(processor: Processor, ports: Ports) -> None:
        await processor.fold(0, garbage(LONG))
        await processor.fold(0, garbage(SHORT, LONG))
        processor.stopping = True
        await idle(processor)
        assert len(ports.given) == processor.tasks[0].next_offset < LONG

    run(check, 0.1)


def test_nobody_waits_for_room_behind_a_closed_writer() -> None:
    async def check() -> None:
        writer = KafkaPartitionWriter(
            Producer({"bootstrap.servers": "127.0.0.1:1", "log_level": 0}),
            partition=0,
            totals=OutputTopic("totals", lambda start, end: []),
            orders=OutputTopic("orders", lambda start, end: []),
            checkpoint_topic="checkpoint",
            on_fatal=lambda error: None,
        )
        writer._backlog_bytes = BACKLOG_BYTES_MAX + 1
        waiting = asyncio.create_task(writer.wait_for_room())
        await asyncio.sleep(0.02)
        assert not waiting.done()
        writer.close()
        await asyncio.wait_for(waiting, HANG_S)

    asyncio.run(check())
