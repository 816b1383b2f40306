"""The rows' memory: reserved, not touched; slots, piece lists, blocks given and taken back."""

from pathlib import Path

import numpy as np
import pytest

from durabill.schemas import Interval
from durabill.schemas.errors import StateError
from durabill.stream_processors.core.intervals import IntervalSet
from durabill.stream_processors.core.order import Order, Policy
from durabill.stream_processors.engine.batch import Chunk
from durabill.stream_processors.engine.blocks import large_snapshot, plain_snapshot
from durabill.stream_processors.engine.columns import ColumnTable
from durabill.stream_processors.engine.kernel import index, rows
from durabill.stream_processors.engine.memory import reserve
from durabill.stream_processors.engine.plain import PlainTable
from durabill.stream_processors.engine.store import ROWS_MAX, RowStore
from durabill.stream_processors.engine.table import IntervalTable, Place
from tests.property.batches import encode_batch
from tests.property.column_histories import (
    Shape,
    assert_same_effects,
    assert_sound,
    new_columns,
    value_of,
    writers,
)

POLICY = Policy(5, 9, 60)
PLACE = Place(0, 1)


def resident_bytes() -> int:
    """Return the memory that this process really holds."""
    pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    return int(pages) * 4096


def order(name: str, *, holes: bool = False, offset: int = 3, deadline_ms: int = 100) -> Order:
    """Return an open order, with holes one that needs a piece list."""
    time = IntervalSet([(1, 2), (5, 6)] if holes else [(1, 6)])
    numbers = IntervalSet([(1, 2), (4, 5)] if holes else [(1, 3)])
    known = Order(name, 0, time, numbers, None, 2, time.measure, 1, 6)
    known.deadline_ms, known.source_offset = deadline_ms, offset
    return known


def block_of(*orders: tuple[int, Order]) -> bytes:
    """Return these orders as rows of a checkpoint block of the columns."""
    table = ColumnTable(PLACE, POLICY, writers(), rows_max=1 << 14)
    table.restore([plain_snapshot(orders).pack()], 0)
    assert not len(table._plain.slots)
    (block,) = {slot // rows.BLOCK_ROWS for slot, _ in orders}
    snapshot = table.snapshot(str(block))
    assert snapshot is not None
    return snapshot.pack()


# -- memory -----------------------------------------------------------------------------------


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc")
def test_reserved_memory_is_not_held_until_it_is_touched() -> None:
    before = resident_bytes()
    array = reserve(1 << 32, np.uint8)
    store = RowStore(0, ROWS_MAX)
    assert resident_bytes() - before < 8 << 20
    array[:: 1 << 20] = 1
    assert int(array[:: 1 << 20].sum(dtype=np.int64)) == 4096
    assert store.orders.nbytes == 112 * ROWS_MAX


def test_an_order_takes_at_most_158_bytes() -> None:
    """A row and its share of the index, whose tables are between 35 and 70 percent full."""
    count = 20_000
    store = RowStore(0, 1 << 15)
    for at in range(count):
        store.take_slot(b"order %d" % at)
    index_bytes = 8 * int((store.index.tables[:, index.MASK] + 1).sum())
    assert rows.ORDER.itemsize == 112
    assert rows.ORDER.itemsize + index_bytes / count <= 158


def test_the_index_has_room_for_as_many_names_as_rows() -> None:
    store = RowStore(5, 1 << 13)
    for at in range(1 << 13):
        store.take_slot(b"%d" % (at * at))
    assert store.index.entries_used <= len(store.index.entries)
    assert store.take_slot(b"one too many") == 1 << 13  # a slot without a row


# -- slots ------------------------------------------------------------------------------------


def test_slots_without_a_row_are_counted_and_used_again() -> None:
    store = RowStore(0, 2)
    slots = [store.take_slot(b"%d" % at) for at in range(5)]
    assert slots == [0, 1, 2, 3, 4]
    assert [store.has_row(slot) for slot in slots] == [True, True, False, False, False]
    store.free_slot(3)
    store.free_slot(1)
    assert int(store.counters[rows.OVERFLOW]) == 2
    assert {store.take_slot(b"new"), store.take_slot(b"newer")} == {1, 3}


def test_after_a_restore_the_lowest_free_slot_comes_first() -> None:
    table = ColumnTable(PLACE, POLICY, writers(), rows_max=16)
    table.restore([block_of((2, order("SO1")), (5, order("SO2")))], 0)
    assert_sound(table)
    assert [table._store.take_slot(b"%d" % at) for at in range(6)] == [0, 1, 3, 4, 6, 7]


def test_retired_rows_give_back_name_slot_and_list() -> None:
    table = ColumnTable(PLACE, POLICY, writers(), rows_max=16)
    table.restore([block_of((0, order("SO1", holes=True)), (1, order("SO2", holes=True)))], 0)
    assert len(table.tick(100).totals) == 2
    table.take_changed()
    forgotten_ms = 100 + 60 + 60_000
    table.confirm(forgotten_ms)
    assert (len(table), table.take_changed()) == (2, [])
    table.confirm(forgotten_ms + 1)
    assert (len(table), table.take_changed()) == (0, ["0"])
    assert table.snapshot("0") is None
    assert table._store.find(b"SO1") == -1
    assert_sound(table)
    assert int(table._store.counters[rows.LISTS_FREE]) == 2


def test_only_what_is_over_is_retired() -> None:
    """One is over, of one it is the last instant, one is open, in the same block."""
    table = ColumnTable(PLACE, POLICY, writers(), rows_max=16)
    names = [("SO1", 99), ("SO2", 100), ("SO3", 10**9)]
    table.restore(
        [block_of(*((at, order(name, deadline_ms=ms)) for at, (name, ms) in enumerate(names)))], 0
    )
    assert len(table.tick(100).totals) == 2
    table.confirm(100 + 60 + 60_000)
    assert [table.describe(name) is not None for name, _ in names] == [False, True, True]
    table.confirm(10**8)
    assert [table.describe(name) is not None for name, _ in names] == [False, False, True]
    assert_sound(table)


def test_each_row_of_a_block_settles_at_its_own_time() -> None:
    table = ColumnTable(PLACE, POLICY, writers(), rows_max=16)
    table.restore([block_of(*((at, order(f"SO{at}", deadline_ms=10 + at)) for at in range(3)))], 0)
    for now_ms, names in ((9, []), (10, [b"SO0"]), (10, []), (12, [b"SO1", b"SO2"])):
        assert names == [total.key for total in table.tick(now_ms).totals]
        assert_sound(table)
    assert table.oldest_deadline_ms() is None


def test_an_order_without_a_row_stays_so_when_rows_become_free() -> None:
    """Else the kernel, which doesn't know of it, would begin it a second time."""
    policy, now_ms = Policy(0, 10**9, 60), 10**9
    plain = PlainTable(PLACE, policy, writers())
    columns = ColumnTable(PLACE, policy, writers(), rows_max=1)

    def fold(offset: int, at_ms: int, name: bytes, number: int, end: bool) -> None:
        value = value_of(name, number, at_ms - 10 + number, at_ms - 9 + number, end)
        data = encode_batch(offset, at_ms, [(offset, (name, value, ()))])
        chunk = Chunk(offset, offset + 1, data)
        assert_same_effects(plain.fold(chunk), columns.fold(chunk))

    fold(0, now_ms, b"SO1", 1, True)
    fold(1, now_ms, b"SO2", 1, False)
    assert int(columns._store.counters[rows.OVERFLOW]) == 1
    for table in (plain, columns):
        table.confirm(now_ms + 60 + 60_000 + 1)
        assert len(table) == 1
    fold(2, now_ms + 1, b"SO2", 2, False)
    fold(3, now_ms + 1, b"SO3", 2, False)
    fold(4, now_ms + 1, b"SO2", 3, True)
    assert_sound(columns)
    assert [plain.describe(name) for name in ("SO2", "SO3")] == [
        columns.describe(name) for name in ("SO2", "SO3")
    ]


# -- restores ---------------------------------------------------------------------------------


@pytest.mark.parametrize("newer_first", [True, False])
@pytest.mark.parametrize("forms", ["rr", "rp", "pr", "pp"])
def test_of_two_states_the_newer_is_taken(forms: str, newer_first: bool) -> None:
    """As rows (r) or plain orders (p), whichever block is read first."""
    old, new = order("SO1", holes=True), order("SO1", offset=9)
    blocks = [
        block_of((slot, each)) if form == "r" else plain_snapshot([(slot, each)]).pack()
        for form, slot, each in zip(forms, (7, 1024), (old, new), strict=True)
    ]
    table = ColumnTable(PLACE, POLICY, writers(), rows_max=2048)
    table.restore(blocks[::-1] if newer_first else blocks, 0)
    known = table.describe("SO1")
    assert known is not None
    assert (known.source_offset, known.intervals, len(table)) == (9, [Interval(1, 6)], 1)
    assert table._store.find(b"SO1") == 1024
    assert_sound(table)


@pytest.mark.parametrize("newer_first", [True, False])
@pytest.mark.parametrize("forms", ["lr", "lp", "rl", "pl", "ll"])
@pytest.mark.parametrize("kind", [PlainTable, ColumnTable])
def test_of_two_orders_in_one_slot_the_newer_is_taken(
    kind: type[IntervalTable], forms: str, newer_first: bool
) -> None:
    """One in its own entry (l), one in the block, as a row (r) or not (p); the older one is over.

    What stands in the wrong entry is put right by the next checkpoint.
    """
    if kind is PlainTable and "r" in forms:
        return
    written = {
        "r": lambda each: block_of((7, each)),
        "p": lambda each: plain_snapshot([(7, each)]).pack(),
        "l": lambda each: large_snapshot(7, each).pack(),
    }
    entries = [
        written[form](each)
        for form, each in zip(forms, (order("SO1"), order("SO2", offset=9)), strict=True)
    ]
    table = kind(PLACE, POLICY, writers())
    table.restore(entries[::-1] if newer_first else entries, 0)
    assert (len(table), table.describe("SO1")) == (1, None)
    assert table.describe("SO2") is not None
    if isinstance(table, ColumnTable):
        assert_sound(table)
    assert table.take_changed() == ["0", "0.7"]
    assert table.snapshot("0") is not None
    assert table.snapshot("0.7") is None
    assert table.take_changed() == []


def test_a_restore_with_more_lists_than_the_pool_holds() -> None:
    """A torn checkpoint can hold more of them than there ever were at once."""
    first = block_of(*((at, order(f"SO{at}", holes=True)) for at in range(3)))
    second = block_of(*((1024 + at, order(f"SO1{at}", holes=True)) for at in range(3)))
    table = new_columns(Shape(2048, 4, False), PLACE, POLICY)
    table.restore([first, second], 0)
    assert_sound(table)
    assert len(table) == 6
    assert table.describe("SO12") is not None


def test_a_block_of_a_bigger_table_is_refused() -> None:
    """It wrote outside of the rows; this one stays on the page that the few rows have."""
    table = ColumnTable(PLACE, POLICY, writers(), rows_max=8)
    with pytest.raises(StateError):
        table.restore([block_of((20, order("SO1")))], 0)


def test_spilling_an_order_again_and_again_takes_no_memory() -> None:
    """One record a time that the kernel leaves, as garbage under a good key is."""
    table = ColumnTable(PLACE, POLICY, writers(), rows_max=8)
    table.restore([block_of((0, order("SO1")), (1, order("SO2")))], 0)
    assert len(table.tick(99).totals) == 0
    for _ in range(50):
        table._spills.spill(b"SO1")
        table._spills.unspill_touched(table.clock_ms)
    assert len(table._plain._due) + len(table._plain._retiring) <= 2
