"""The columns against the plain core: one order with all kinds of holes, and very many orders."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from durabill.stream_processors.core.order import Policy
from durabill.stream_processors.engine.batch import Chunk
from durabill.stream_processors.engine.plain import PlainTable
from durabill.stream_processors.engine.table import Place
from tests.property.batches import Entry, encode_batch
from tests.property.column_histories import (
    BASE_MS,
    FORGET_ALL_MS,
    PIECES_MAX,
    Shape,
    assert_same_effects,
    assert_sound,
    new_columns,
    value_of,
    writers,
)

# -- one order, all kinds of holes ------------------------------------------------------------

PIECES = st.lists(
    st.tuples(st.integers(1, 24), st.integers(0, 60), st.integers(0, 6), st.integers(0, 11)),
    min_size=1,
    max_size=45,
)


@given(
    PIECES,
    st.lists(st.integers(1, 44), max_size=4),
    st.sampled_from([None, 0, 1]),
    st.sampled_from([0, 3]),
)
def test_holes_of_one_order(
    pieces: list[tuple[int, int, int, int]], cuts: list[int], extras: int | None, interim_ms: int
) -> None:
    policy, place = Policy(5, 9, 100_000, interim_ms), Place(0, 1)
    plain = PlainTable(place, policy, writers(), pieces_max=PIECES_MAX)
    columns = new_columns(Shape(64, extras, False), place, policy)
    entries: list[tuple[int, Entry]] = []
    for offset, (number, start, length, end) in enumerate(pieces):
        at = BASE_MS + start
        value = value_of(b"SO1", number, at, at + length, length == 0 or end == 0)
        entries.append((offset, (b"SO1", value, ())))
    edges = sorted({0, *(cut for cut in cuts if cut < len(entries)), len(entries)})
    for passed_ms, (first, after) in enumerate(itertools.pairwise(edges)):
        data = encode_batch(first, BASE_MS + 70 + 2 * passed_ms, entries[first:after])
        chunk = Chunk(first, after, data)
        assert_same_effects(plain.fold(chunk), columns.fold(chunk))
        assert plain.describe("SO1") == columns.describe("SO1")
        assert_sound(columns)
    later_ms = BASE_MS + 1_000
    assert_same_effects(plain.tick(later_ms), columns.tick(later_ms))
    assert plain.describe("SO1") == columns.describe("SO1")
    restored = new_columns(Shape(64, None, False, seed=99), place, policy)
    restored.restore([each for _, each in columns.take_changed_entries() if each], later_ms)
    assert_sound(restored)
    assert plain.describe("SO1") == restored.describe("SO1")


# -- many orders ------------------------------------------------------------------------------


@pytest.mark.parametrize("rows_max", [1 << 14, 2_500])
def test_more_orders_than_a_block_an_index_table_or_the_scratch_hold(rows_max: int) -> None:
    policy, place = Policy(5, 9, 60), Place(0, 1)
    plain = PlainTable(place, policy, writers())
    columns = new_columns(Shape(rows_max, None, False), place, policy)
    orders, next_offset = 3_100, 0
    for step in range(4):
        now_ms = BASE_MS + step
        entries: list[tuple[int, Entry]] = []
        for at in range(orders):
            name, start_ms = b"order %d" % at, now_ms - 20 + 3 * (step if at % 3 else 2 * step)
            number = 1 + (step if at % 5 else 2 * step)
            ends = step == 3 and at % 2 == 0
            value = value_of(name, number, start_ms, start_ms + 3, ends)
            entries.append((next_offset + at, (name, value, ())))
        chunk = Chunk(next_offset, next_offset + orders, encode_batch(next_offset, now_ms, entries))
        next_offset += orders
        assert_same_effects(plain.fold(chunk), columns.fold(chunk))
        assert_sound(columns)
    now_ms = BASE_MS + 1_000
    expected, found = plain.tick(now_ms), columns.tick(now_ms)
    assert len(expected.totals) > 1_500
    assert_same_effects(expected, found)
    assert_sound(columns)
    assert len(plain) == len(columns) == orders
    restored = new_columns(Shape(rows_max, None, False, seed=99), place, policy)
    restored.restore([each for _, each in columns.take_changed_entries() if each], now_ms)
    assert_sound(restored)
    for at in range(0, orders, 7):
        assert plain.describe(f"order {at}") == restored.describe(f"order {at}")
    for table in (plain, columns, restored):
        table.confirm(now_ms + FORGET_ALL_MS)
        assert len(table) == 0
    assert_sound(columns)
    assert_sound(restored)
