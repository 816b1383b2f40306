"""A bug of ours in a table: its order is named, and what broke is neither written nor asked."""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, cast

import pytest

from durabill.schemas import OWN_SCHEMA_ONLY, partition_for
from durabill.schemas.errors import PoisonError
from durabill.schemas.order_state import OrderState
from durabill.stream_processors.core.admission import accept
from durabill.stream_processors.core.order import Order, Policy
from durabill.stream_processors.engine.batch import Record
from durabill.stream_processors.engine.checkpoint import SegmentsTopic
from durabill.stream_processors.engine.columns import ColumnTable
from durabill.stream_processors.engine.effects import Effects
from durabill.stream_processors.engine.plain import PlainTable
from durabill.stream_processors.engine.policies import PolicyRecord, Terms
from durabill.stream_processors.engine.row_timers import RowTimers
from durabill.stream_processors.engine.slots import BLOCK_SLOTS
from durabill.stream_processors.engine.table import Place
from durabill.stream_processors.settings import Settings
from durabill.stream_processors.worker import processor as worker
from durabill.stream_processors.worker.partition_task import PartitionTask
from durabill.stream_processors.worker.ports import Ends, Runtime, SideOutput
from durabill.stream_processors.worker.processor import Processor
from tests.property.batches import Entry
from tests.unit.test_steps import NOW_MS, chunk_of, segments, table_of

PARTITIONS = 2
SEGMENTS = SegmentsTopic("segments", "id", PARTITIONS)
HISTORY = (PolicyRecord(0, Terms(Policy())),)


class Faulty(PlainTable):
    """Fails on number 13, and whenever it is asked for something after that."""

    is_broken = False

    def _fold_record(self, record: Record, effects: Effects) -> None:
        raw = self.writers.read(record.value, record.offset)
        event = accept(raw, record.key, self.clock_ms)
        self.is_broken = event.business_data_number == 13
        assert not self.is_broken, "we don't like this number"
        super()._fold_record(record, effects)

    def snapshot(self, name: str) -> Any:
        assert not self.is_broken
        return super().snapshot(name)

    def confirm(self, clock_ms: int) -> bool:
        assert not self.is_broken
        return super().confirm(clock_ms)

    def describe(self, number: str, limit: int | None = None) -> OrderState | None:
        assert not self.is_broken
        return super().describe(number, limit)

    def oldest_deadline_ms(self) -> int | None:
        assert not self.is_broken
        return super().oldest_deadline_ms()


class Ports:
    """A worker's runtime, writers and side output, of which it needs little here.

    `on_aside` and `on_commit` run while a checkpoint is packed, and committed.
    """

    segments_topic = SEGMENTS
    ends = Ends(0, 0)

    def __init__(self) -> None:
        self.entries: list[bytes] = []
        self.held: set[int] = set()
        self.committed: dict[int, int] = {}
        self.totals: list[bytes] = []
        self.on_aside: Callable[[], Any] = self.flushed
        self.on_commit: Callable[[], Any] = self.flushed

    async def aside(self, work: Callable[..., Any], *arguments: Any) -> Any:
        await self.on_aside()
        return work(*arguments)

    async def commit(self, offsets: Mapping[int, int]) -> bool:
        self.committed.update(offsets)
        await self.on_commit()
        return True

    def hold(self, partition: int, *, held: bool) -> None:
        (self.held.add if held else self.held.discard)(partition)

    def elapsed_s(self) -> float:
        return 0.0

    def log_end(self, partition: int) -> int:
        return 10_000

    def high_watermark(self, partition: int) -> int:
        return 10_000

    def put_entries(self, entries: Any) -> None:
        self.entries += [key for key, _ in entries]

    def put_totals(self, totals: Any) -> None:
        self.totals += [each.key for each in totals]

    strays = 0

    def waiting_s(self) -> float:
        return 0.0

    async def wait_for_room(self) -> None:
        """Return at once, as the rest does."""

    async def flushed(self) -> None:
        """Return at once."""

    async def delivered(self, generation: int) -> None:
        """Return at once."""

    def close_generation(self) -> int:
        return 0


@pytest.fixture
def ports() -> Ports:
    return Ports()


@pytest.fixture
def processor(ports: Ports, monkeypatch: pytest.MonkeyPatch) -> Processor:
    """A worker of two partitions, the first with more than one block of orders."""
    monkeypatch.setattr(worker, "BLOCKS_AT_ONCE", 1)
    made = Processor(
        Settings(),
        cast(Runtime, ports),
        OWN_SCHEMA_ONLY,
        cast(SideOutput, ports),
        lambda: NOW_MS,
        on_fatal=lambda error: pytest.fail(str(error)),
    )
    for partition, kind in enumerate((Faulty, PlainTable)):
        table = kind(Place(partition, PARTITIONS), Policy(), OWN_SCHEMA_ONLY)
        made.tasks[partition] = PartitionTask(table, SEGMENTS, 0, history=HISTORY)
        made.writers[partition] = cast(Any, ports)
    return made


def names(partition: int) -> Callable[[int], str]:
    """Return names of orders of a partition, by a number."""
    known = (f"SO{at}" for at in range(100_000))
    those = [each for each in known if partition_for(each.encode(), PARTITIONS) == partition]
    return lambda at: those[at]


ORDERS = BLOCK_SLOTS + 1


async def fill(processor: Processor) -> None:
    for partition in range(PARTITIONS):
        count = ORDERS if partition == 0 else 1
        await processor.fold(partition, chunk_of(segments(count, names(partition))))


async def poison(processor: Processor) -> None:
    await processor.fold(0, chunk_of(segments(1, names(0), number=13), ORDERS))


def test_a_table_that_breaks_while_it_is_packed_is_not_written(
    processor: Processor, ports: Ports
) -> None:
    async def run() -> None:
        await fill(processor)
        ports.on_aside = lambda: poison(processor)
        await processor.checkpoint()

    asyncio.run(run())
    assert processor.tasks[0].is_broken
    assert ports.committed == {1: 1}
    assert ports.entries
    assert all(each.startswith(b"1/") for each in ports.entries)
    assert processor.tasks[0].written_offset is None
    assert {0} == ports.held


def test_a_table_that_breaks_once_it_is_packed_is_written_as_it_was(
    processor: Processor, ports: Ports
) -> None:
    async def run() -> None:
        await fill(processor)
        ports.on_commit = lambda: poison(processor)
        await processor.checkpoint()
        await processor.checkpoint()  # and never again

    asyncio.run(run())
    assert processor.tasks[0].is_broken
    assert ports.committed == {0: ORDERS, 1: 1}
    assert ports.entries.count(b"0/meta") == 1
    assert processor.tasks[0].written_offset == ORDERS


def test_a_broken_table_is_not_asked_and_takes_nothing(processor: Processor, ports: Ports) -> None:
    async def run() -> None:
        await fill(processor)
        await poison(processor)
        for partition in range(PARTITIONS):
            later = chunk_of(segments(1, names(partition), number=2, end=True), ORDERS + 1)
            if partition == 1:
                later = chunk_of(segments(1, names(1), number=2, end=True), 1)
            await processor.fold(partition, later)
        await processor.tick()

    asyncio.run(run())
    assert processor.describe(names(0)(0)) is None
    other = processor.describe(names(1)(0))
    assert other is not None
    assert other.segments == 2
    tasks = processor.status()["partitions"]
    assert [tasks[each]["is_broken"] for each in "01"] == [True, False]
    assert tasks["0"]["next_offset"] == ORDERS
    assert tasks["0"]["oldest_deadline_ms"] is None
    assert "we don't like this number" in tasks["0"]["held"]
    assert f"offset {ORDERS}, order {names(0)(0)!r}" in tasks["0"]["held"]
    assert not processor.tasks[0].backlog, "nothing piles up"


def test_a_bug_in_a_timer_of_the_rows_is_no_records(monkeypatch: pytest.MonkeyPatch) -> None:
    table = table_of(ColumnTable)
    monkeypatch.setattr(RowTimers, "settle_due", lambda *_: 1 / 0)
    with pytest.raises(PoisonError, match=r"from a timer, order not known: .*ZeroDivisionError"):
        table.fold(chunk_of([*segments(1, lambda at: "SO1"), (b"no", b"segment", ())]))


def test_a_check_that_fails_names_its_order(monkeypatch: pytest.MonkeyPatch) -> None:
    table, names = table_of(ColumnTable), ["SO1", "SO2", "SO3"]
    table.fold(chunk_of(segments(3, names.__getitem__)))
    check = Order.check

    def failing(self: Order) -> None:
        check(self)
        assert self.service_order_number != "SO2", "it is unsound"

    monkeypatch.setattr(Order, "check", failing)
    more: list[Entry] = [
        (key, value, (("forwarded_from", b"9/9"),))  # so plain rules take it, and unspill its order
        for key, value, _ in segments(3, names.__getitem__, number=2)
    ]
    with pytest.raises(PoisonError, match=r"from offset 4, order 'SO2'.*it is unsound"):
        table.fold(chunk_of(more, 3))
