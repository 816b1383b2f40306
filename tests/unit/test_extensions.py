"""Openings that come again for longer, in both tables: each rule at its boundaries, and replays."""

import pytest

from durabill.schemas import Reason, SegmentEvent, decode_total
from durabill.stream_processors.core.opening import Opened
from durabill.stream_processors.engine.blocks import decode_block, plain_snapshot
from durabill.stream_processors.engine.columns import ColumnTable
from durabill.stream_processors.engine.openings import WaitingOpenings
from durabill.stream_processors.engine.policies import Terms
from tests.unit.test_openings import (
    KINDS,
    NOW,
    POLICY,
    Partition,
    contents,
    opening,
    plain_keys,
    segment,
)

LATE = Reason.TOO_LATE


def until_ms(partition: Partition, number: str = "SO1") -> int:
    """Return until when, after NOW, an order's segments are accepted."""
    state = partition.table.describe(number)
    assert state is not None
    assert state.opened is not None
    return state.opened.accept_until_ms - NOW


@KINDS
@pytest.mark.parametrize("begun", [False, True])
def test_segments_are_accepted_until_the_latest_that_was_said(kind: str, begun: bool) -> None:
    partition = Partition(kind)
    partition.fold(0, opening(until_ms=5_000))
    if begun:
        assert partition.refused(0, segment(0, 1)) == []
    assert partition.refused(4_000, opening(until_ms=9_000)) == []
    assert partition.refused(4_001, opening(until_ms=8_999, begin_ms=3_000)) == []
    assert until_ms(partition) == 9_000
    assert partition.refused(9_000, segment(1, 10, 2)) == []
    assert partition.refused(9_001, segment(10, 20, 3)) == [LATE]
    table = partition.table
    assert (table.openings_extended, table.openings_repeated) == (1, 1)


@KINDS
def test_what_was_too_late_stays_so(kind: str) -> None:
    """A record is judged by what stands before it alone, in the same batch too."""
    partition = Partition(kind)
    partition.fold(0, opening(until_ms=2_000), segment(0, 1))
    late = segment(1, 10, 2)
    found = partition.fold(2_001, late, opening(until_ms=9_000), late, segment(10, 20, 3))
    assert [each.record.offset for each in found.dead_letters] == [2]
    assert found.openings == []


@KINDS
@pytest.mark.parametrize("another", [{"client": "d"}, {"tenant": "u"}])
def test_nobody_else_may_extend(kind: str, another: dict[str, str]) -> None:
    partition = Partition(kind)
    foreign = opening(90_000, **another)  # type: ignore[arg-type]
    refused = partition.refused(0, opening(5_000), foreign, segment(0, 1), foreign)
    assert refused == [Reason.ALREADY_OPENED] * 2
    assert until_ms(partition) == 5_000


@KINDS
def test_a_settled_order_is_known_for_longer(kind: str) -> None:
    """Else the number of a lease that was just renewed would be forgotten."""
    partition = Partition(kind)
    partition.fold(0, opening(until_ms=5_000))
    assert len(partition.fold(1, segment(0, 1, end=True)).totals) == 1
    partition.fold(65_000, opening(until_ms=300_000))
    found = partition.fold(300_000, segment(1, 10, 2, end=True))
    assert not found.dead_letters
    (total,) = partition.table.tick(NOW + 400_000).totals
    assert decode_total(total.value).revision == 2
    assert [each.offset for each in partition.fold(500_000, opening(600_000)).openings] == [4]


@KINDS
@pytest.mark.parametrize("begun", [False, True])
def test_where_the_order_is_forgotten_it_opens_it_anew(kind: str, begun: bool) -> None:
    partition = Partition(kind)
    partition.fold(0, opening(until_ms=5_000))
    if begun:
        partition.fold(0, segment(0, 1, end=True))
    again = opening(until_ms=200_000, begin_ms=64_000)
    assert partition.fold(65_001, again).openings
    assert partition.refused(65_002, segment(63_999, 65_001)) == [Reason.BEFORE_OPENING]


@KINDS
def test_an_opening_that_is_extended_waits_for_longer(kind: str) -> None:
    partition = Partition(kind)
    partition.fold(0, opening(until_ms=5_000))
    partition.fold(1, *(opening(until_ms=each) for each in range(6_000, 300_000, 1_000)))
    while partition.table.confirm(NOW + 70_000):
        pass
    assert partition.table.openings_waiting == 1
    blocks = [*contents(partition.table).values()]
    assert sum(len(decode_block(each).waiting) for each in blocks) == 1
    assert partition.refused(299_000, segment(0, 1)) == []
    other = partition.restored(blocks, 70_000, 300)
    while other.table.confirm(NOW + 299_000 + 60_000):
        pass
    assert other.table.openings_waiting == 1
    assert not other.table.confirm(NOW + 299_000 + 60_001)
    assert other.table.openings_waiting == 0


def test_of_one_that_is_extended_for_ever_nothing_grows() -> None:
    waiting = WaitingOpenings(lambda _number, _count: None)
    opened = Opened(NOW, NOW, 0, "t", "c")
    waiting.add("SO1", opened)
    for each in range(1, 5_000):
        opened = replace_until(opened, NOW + each, each)
        waiting.extend(opened)
        waiting.confirm(NOW + each + 60_000)
        assert (len(waiting), len(waiting._forgotten)) == (1, 1)


def replace_until(opened: Opened, accept_until_ms: int, offset: int) -> Opened:
    return opened._replace(accept_until_ms=accept_until_ms, extended_at=offset)


@KINDS
def test_rules_of_before_extend_nothing(kind: str) -> None:
    assert not Terms(POLICY, rules=3).extends_openings
    assert Terms(POLICY, rules=3).reads_openings
    partition = Partition(kind)
    partition.table.writers.extends_openings = False
    partition.fold(0, opening(5_000), opening(9_000), segment(0, 1), opening(9_000))
    assert (until_ms(partition), partition.table.openings_repeated) == (5_000, 2)
    assert partition.refused(5_001, segment(1, 2, 2)) == [LATE]


# -- replays ----------------------------------------------------------------------------------


@KINDS
@pytest.mark.parametrize("begun", [False, True])
def test_a_state_that_is_ahead_has_judged_what_stands_before_its_extension(
    kind: str, begun: bool
) -> None:
    """The checkpoint was encoded after the extension; its replay begins before a late record."""
    partition = Partition(kind)
    partition.fold(0, opening(until_ms=2_000), *[segment(0, 1)] * begun)
    replayed_from = partition.next_offset
    late, longer, taken = segment(1, 10, 2), opening(until_ms=9_000), segment(10, 20, 3)
    assert partition.refused(2_001, late) == [LATE]
    partition.fold(2_002, longer)
    blocks = [*contents(partition.table).values()]
    assert partition.refused(2_003, taken) == []
    replay = partition.restored(blocks, 1, replayed_from)
    assert replay.table.knows_opening(b"SO1", replayed_from + 1)
    replay.fold(2_001, late)
    found = replay.fold(2_002, longer)
    assert not found.openings
    assert replay.table.openings_extended == replay.table.openings_repeated == 0
    assert replay.refused(2_003, taken) == []
    assert replay.table.describe("SO1") == partition.table.describe("SO1")
    assert replay.table.tick(NOW + 10**9) == partition.table.tick(NOW + 10**9)


@KINDS
def test_a_state_that_is_ahead_of_a_new_life_judges_the_old_one(kind: str) -> None:
    """What stands before the opening belongs to the life before, though it was extended since."""
    partition = Partition(kind)
    partition.fold(0, opening(until_ms=2_000), segment(0, 1))
    old = [*contents(partition.table).values()]
    more = segment(1, 10, 2)
    partition.fold(3, more)
    partition.fold(100_000, opening(until_ms=101_000, begin_ms=99_000))
    partition.fold(100_001, opening(until_ms=103_000))
    new = [block for block in contents(partition.table).values() if decode_block(block).waiting]
    replay = partition.restored([*old, *new], 0, 2)
    assert replay.refused(3, more) == []
    state = replay.table.describe("SO1")
    assert state is not None
    assert (state.started_ms, state.source_offset) == (NOW, 2)
    (total,) = replay.table.tick(NOW + 100_000).totals
    assert decode_total(total.value).duration_ms == 10


def test_a_plain_orders_extension_is_kept_in_its_block() -> None:
    partition = Partition("plain")
    partition.fold(0, opening(), segment(0, 1), opening(until_ms=60_000))
    ((_, order),) = (
        each for block in contents(partition.table).values() for each in decode_block(block).orders
    )
    assert order.opening == Opened(NOW, NOW + 60_000, 0, "t", "c", extended_at=2)
    (state,) = plain_snapshot([(0, order)]).content
    assert state.extended_at == 2
    order.apply(SegmentEvent("SO1", 2, NOW + 1, NOW + 2, False), NOW + 2, 3, POLICY)
    assert order.opening == Opened(NOW, NOW + 60_000, 0, "t", "c")


# -- the kernel -------------------------------------------------------------------------------


def test_only_the_segment_behind_an_extension_leaves_the_kernel() -> None:
    partition = Partition("columns")
    partition.fold(0, opening(), segment(0, 1))
    assert plain_keys(partition, 1, opening(until_ms=60_000)) == [b"SO1"]
    assert isinstance(partition.table, ColumnTable)
    assert plain_keys(partition, 1, segment(1, 2, 2)) == [b"SO1"]
    more = [segment(each, each + 1, each + 1) for each in range(2, 50)]
    assert plain_keys(partition, 2, *more, *more) == []
    assert plain_keys(partition, 9_000, segment(50, 51, 51)) == []
    assert until_ms(partition) == 60_000
