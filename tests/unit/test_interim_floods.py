"""Interim totals of many orders at once, and many of one order: all given, in bounded steps."""

import itertools

import pytest

from durabill.schemas import Status, decode_total
from durabill.stream_processors.core.order import Policy
from durabill.stream_processors.engine.batch import Chunk
from durabill.stream_processors.engine.blocks import large_snapshot
from durabill.stream_processors.engine.columns import UNSPILLED_AT_ONCE, ColumnTable
from durabill.stream_processors.engine.table import IntervalTable, Total
from tests.property.column_histories import assert_same_effects, assert_sound, value_of
from tests.unit.test_steps import BOTH, NOW_MS, chunk_of, order_with, segments, table_of

DAILY = Policy(1_000, 100_000, 60_000, 10_000)


def statuses(totals: list[Total]) -> list[tuple[int, Status, int]]:
    """Return (revision, status, settled at) of each, from NOW_MS on."""
    decoded = [decode_total(each.value) for each in totals]
    return [(each.revision, each.status, each.settled_at_ms - NOW_MS) for each in decoded]


def nothing_at(offset: int, at_ms: int) -> Chunk:
    """Return a record of no order."""
    return chunk_of([(None, None, ())], offset, at_ms)


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize(
    "count",
    [UNSPILLED_AT_ONCE - 1, UNSPILLED_AT_ONCE, UNSPILLED_AT_ONCE + 1, 3 * UNSPILLED_AT_ONCE],
)
def test_each_of_many_orders_that_run_on_gives_its_total(
    kind: type[IntervalTable], count: int
) -> None:
    table = table_of(kind, DAILY)
    table.fold(chunk_of(segments(count, lambda at: f"S{at}")))
    effects = table.fold(nothing_at(count, NOW_MS + 10_000))
    assert {f"S{at}".encode() for at in range(count)} == {key for key, _ in effects.totals}
    assert [(1, Status.RUNNING, 10_000)] * count == statuses(effects.totals)
    assert table.fold(nothing_at(count + 1, NOW_MS + 10_001)).totals == []
    assert table.next_due_ms(2**61) == NOW_MS + 20_000


def test_so_many_that_the_rows_are_spilled_in_several_goes() -> None:
    tables = [table_of(kind, DAILY) for kind in BOTH]
    for table in tables:
        table.fold(chunk_of(segments(5_000, lambda at: f"S{at}")))
    plain, columns = (table.fold(nothing_at(5_000, NOW_MS + 10_000)) for table in tables)
    assert_same_effects(plain, columns)
    assert len(plain.totals) == 5_000
    assert isinstance(tables[1], ColumnTable)
    assert_sound(tables[1])


@pytest.mark.parametrize("kind", BOTH)
def test_totals_due_of_one_large_order_are_a_step_each(kind: type[IntervalTable]) -> None:
    large = 4_200  # pieces of each kind: a total costs more than a step
    order = order_with("S1", large, at=NOW_MS)
    order.unbilled_since_ms, order.deadline_ms = NOW_MS, NOW_MS + 100_000
    for record in (False, True):
        table = table_of(kind, DAILY)
        table.restore([large_snapshot(0, order).pack()], NOW_MS)
        entry = (b"S1", value_of(b"S1", 1, NOW_MS + 95_000, NOW_MS + 95_001, False), ())
        chunk = chunk_of(
            [entry if record else (None, None, ())], order.source_offset + 1, NOW_MS + 95_000
        )
        given = [step.effects.totals for step in table.steps(chunk)]
        assert max(map(len, given)) == 1
        totals = list(itertools.chain(*given))
        assert [(n, Status.RUNNING, 10_000 * n) for n in range(1, 10)] == statuses(totals)
        digests = [decode_total(each.value).digest for each in totals]
        assert digests == [digests[0]] * 9
