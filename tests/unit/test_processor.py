"""A worker's partitions that are revoked at any moment, and terms that change."""

import asyncio
import json
from collections.abc import Callable
from typing import Any, cast

import pytest

from durabill.schemas import (
    OWN_SCHEMA_ONLY,
    SEGMENT_SCHEMA,
    SegmentEvent,
    decode_total,
    encode_segment,
)
from durabill.stream_processors.engine.batch import Chunk
from durabill.stream_processors.engine.plain import PlainTable
from durabill.stream_processors.settings import Settings
from durabill.stream_processors.worker.clock import SILENCE_S
from durabill.stream_processors.worker.ports import Runtime
from durabill.stream_processors.worker.processor import Processor
from durabill.stream_processors.worker.schema_lookups import Ask, no_registry
from tests.property.batches import Entry, encode_batch
from tests.unit.stand import StandSideOutput, World
from tests.waiting import HANG_S

AT_MS = 300_000_000
REGISTRY = "http://127.0.0.1:9"


def processor(world: World, ask: Ask = no_registry, **settings: Any) -> Processor:
    """Return a worker's processor in the world."""

    def fail(error: BaseException) -> None:
        raise error

    return Processor(
        Settings(**settings),
        cast(Runtime, world),
        OWN_SCHEMA_ONLY,
        StandSideOutput(),
        lambda: 0,
        new_table=PlainTable,
        ask_registry=ask,
        on_fatal=fail,
    )


def chunk(first: int, *entries: Entry, at_ms: int = AT_MS) -> Chunk:
    data = encode_batch(first, at_ms, [*enumerate(entries, first)])
    return Chunk(first, first + len(entries), data)


def segment(
    order: str, number: int = 1, *, end: bool = True, framing: bytes | None = None
) -> Entry:
    event = SegmentEvent(order, number, AT_MS - 10, AT_MS, end)
    value = encode_segment(event) if framing is None else encode_segment(event, framing)
    return order.encode(), value, ()


def orders(world: World) -> list[str]:
    return [decode_total(value).service_order_number for _, value in world.totals]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(HANG_S):
        while not condition():
            await asyncio.sleep(0)


def test_a_partition_that_is_revoked_between_two_steps() -> None:
    """Nothing more of it is published; whoever has the partition next publishes the rest once."""

    async def run() -> None:
        world = World()
        of_one = processor(world)
        whole = chunk(0, *(segment(f"SO{each}") for each in range(20_000)))
        world.log_end_offset = whole.next_offset
        await of_one.on_assigned([0])
        folding = asyncio.create_task(of_one.fold(0, whole))
        await until(lambda: bool(world.totals))
        await of_one.on_assigned([0])
        published = len(world.totals)
        assert 0 < published < 20_000
        await folding
        assert published == len(world.totals)
        await of_one.fold(0, whole)
        assert [f"SO{each}" for each in range(20_000)] == orders(world)

    asyncio.run(run())


def test_a_held_partition_that_is_revoked() -> None:
    """Its question is dropped; the task that follows is held, and resumed, by its own."""

    async def run() -> None:
        world = World()
        answers: list[str] = []
        asking = 0

        async def ask(schema_id: int) -> str | None:
            nonlocal asking
            asking += 1
            try:
                while not answers:
                    await asyncio.sleep(0)
            finally:
                asking -= 1
            return answers[0]

        of_one = processor(world, ask, schema_registry_url=REGISTRY)
        framed = chunk(0, segment("SO1", framing=b"\0\0\0\0\7"), segment("SO2"))
        world.log_end_offset = framed.next_offset
        await of_one.on_assigned([0])
        await of_one.fold(0, framed)
        await until(lambda: asking == 1)
        assert {0} == world.held
        await of_one.on_assigned([0])
        assert set() == world.held
        await until(lambda: asking == 0)
        await of_one.fold(0, framed)
        await until(lambda: asking == 1)
        assert {0} == world.held
        await of_one.fold(0, chunk(2, segment("SO3")))
        answers.append(json.dumps(SEGMENT_SCHEMA))
        await until(lambda: not world.held)
        assert orders(world) == ["SO1", "SO2", "SO3"]
        await until(lambda: not of_one._background)

    asyncio.run(run())


@pytest.mark.parametrize("tail", [0, 1])
def test_what_is_due_by_other_terms_alone_is_asked_for(tail: int) -> None:
    """A shorter interim interval holds from the log's end on, once the tail has been folded."""

    async def run() -> None:
        world = World()
        first, second = segment("SO1", end=False), segment("SO1", 2, end=False)
        world.log_end_offset = 1
        before = processor(world, interim_interval_s=3600)
        await before.on_assigned([0])
        await before.fold(0, chunk(0, first))
        await before.checkpoint()
        world.log_end_offset += tail
        after = processor(world, interim_interval_s=10)
        await after.on_assigned([0])
        if tail:
            await after.fold(0, chunk(1, second))
        output = cast(StandSideOutput, after.side_output)
        world.now_s += SILENCE_S
        await after.tick()
        (told,) = output.marks  # the first one tells the broker's clock
        told[1](AT_MS + 1)
        world.now_s += 9
        await after.tick()
        assert len(output.marks) == 1
        world.now_s += 1
        await after.tick()
        assert len(output.marks) == 2

    asyncio.run(run())
