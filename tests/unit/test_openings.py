"""Openings in both tables: each rule at its boundaries, checkpoints, and what the kernel keeps."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any
from unittest import mock

import cramjam
import msgspec
import pytest

from durabill.schemas import (
    OrderOpened,
    Reason,
    SegmentEvent,
    WriterSchemas,
    decode_total,
    encode_opening,
    encode_segment,
    limits,
    partition_for,
)
from durabill.schemas.headers import FORWARDED_FROM
from durabill.stream_processors.core.opening import Opened
from durabill.stream_processors.core.order import Order, Policy
from durabill.stream_processors.engine.batch import Chunk
from durabill.stream_processors.engine.blocks import (
    PLAIN_VERSION,
    WaitingState,
    decode_block,
    openings_snapshot,
    plain_snapshot,
)
from durabill.stream_processors.engine.columns import ColumnTable
from durabill.stream_processors.engine.kernel import rows
from durabill.stream_processors.engine.openings import ENTRY_PLACES, SWEPT_MIN, WaitingOpenings
from durabill.stream_processors.engine.orders import PlainOrders
from durabill.stream_processors.engine.plain import PlainTable
from durabill.stream_processors.engine.policies import Terms
from durabill.stream_processors.engine.table import Effects, IntervalTable, Place
from tests.property.batches import Entry, encode_batch
from tests.property.column_histories import assert_same_effects

NOW = 1_800_000_000_000
WINDOW_MS = 1_000
POLICY = Policy(5_000, 10_000, WINDOW_MS, 0)
ONLY = replace(POLICY, opened_only=True)
HOME = Place(0, 1)
TABLES: dict[str, type[IntervalTable]] = {"plain": PlainTable, "columns": ColumnTable}
KINDS = pytest.mark.parametrize("kind", TABLES)


class Partition:
    """A table, and the log that it has folded, a batch at a time."""

    def __init__(self, kind: str, policy: Policy = POLICY, place: Place = HOME) -> None:
        self._of = kind, policy, place
        self.table = TABLES[kind](place, policy, WriterSchemas())
        self.next_offset = 0

    def fold(self, at_ms: int, *entries: Entry) -> Effects:
        """Append records at an instant after NOW, and fold them."""
        first, self.next_offset = self.next_offset, self.next_offset + len(entries)
        batch = encode_batch(first, NOW + at_ms, list(enumerate(entries, first)))
        return self.table.fold(Chunk(first, self.next_offset, batch))

    def refused(self, at_ms: int, *entries: Entry) -> list[Reason]:
        """Do the same; return why records become dead letters."""
        return [each.reason for each in self.fold(at_ms, *entries).dead_letters]

    def restored(
        self, blocks: Sequence[bytes], clock_ms: int, next_offset: int | None = None
    ) -> "Partition":
        """Return another with a checkpoint's entries, which goes on here or from an offset."""
        other = Partition(*self._of)
        other.next_offset = self.next_offset if next_offset is None else next_offset
        other.table.restore(blocks, NOW + clock_ms)
        return other


def opening(
    until_ms: int = 50_000, begin_ms: int = 0, client: str = "c", number: str = "SO1", **more: Any
) -> Entry:
    opened = OrderOpened(number, "t", client, "", (), NOW + begin_ms, 10_000, NOW + until_ms)
    return number.encode(), encode_opening(opened._replace(**more)), ()


def segment(start_ms: int, end_ms: int, number: int = 1, order: str = "SO1", **more: Any) -> Entry:
    event = SegmentEvent(order, number, NOW + start_ms, NOW + end_ms, more.get("end", False))
    return order.encode(), encode_segment(event), ()


# -- the rules --------------------------------------------------------------------------------


@KINDS
def test_the_first_opening_counts_and_is_passed_on(kind: str) -> None:
    partition = Partition(kind)
    first, other = opening(), opening(tenant="another")
    found = partition.fold(0, first, opening(begin_ms=-7), other, opening(client="d"))
    assert found.openings == [(first[0], first[1], 0)]
    assert [each.reason for each in found.dead_letters] == [Reason.ALREADY_OPENED] * 2
    assert partition.table.openings_repeated == partition.table.openings_waiting == 1
    again = partition.fold(10, segment(0, 5), opening(until_ms=40_000), other)
    assert [each.reason for each in again.dead_letters] == [Reason.ALREADY_OPENED]
    state = partition.table.describe("SO1")
    assert state is not None
    assert state.opened is not None
    assert (state.opened.client, state.opened.accept_until_ms) == ("c", NOW + 50_000)


@KINDS
def test_an_order_that_began_with_a_segment_is_not_opened_any_more(kind: str) -> None:
    partition = Partition(kind)
    assert partition.refused(0, segment(-5, 0), opening()) == [Reason.ALREADY_OPENED]


@KINDS
@pytest.mark.parametrize(
    ("entry", "reasons"),
    [
        (opening(begin_ms=60_010, until_ms=60_010), []),
        (opening(begin_ms=60_011, until_ms=60_011), [Reason.IN_THE_FUTURE]),
        (opening(until_ms=10), []),
        (opening(until_ms=9), [Reason.TOO_LATE]),
        ((b"SO2", opening()[1], ()), [Reason.KEY_MISMATCH]),
        ((b"SO1", (opening()[1] or b"") + b"\0", ()), [Reason.NOT_AVRO]),
    ],
)
def test_an_opening_by_itself(kind: str, entry: Entry, reasons: list[Reason]) -> None:
    assert Partition(kind).refused(10, entry) == reasons


@KINDS
def test_no_segment_begins_before_its_order(kind: str) -> None:
    partition = Partition(kind)
    partition.fold(0, opening(begin_ms=-20))
    assert partition.refused(5, segment(-21, -10)) == [Reason.BEFORE_OPENING]
    assert partition.refused(5, segment(-10, 0), segment(-20, -10, 2), segment(-21, -9, 3)) == [
        Reason.BEFORE_OPENING
    ]


@KINDS
def test_nothing_is_too_late_until_the_opening_says_so(kind: str) -> None:
    partition = Partition(kind)
    partition.fold(0, opening(until_ms=5_000), segment(0, 10, 1, "SO2"))
    late = segment(0, 10), segment(10, 20, 2)
    assert partition.refused(5_000, *late, segment(10, 20, 2, "SO2")) == [Reason.TOO_LATE]
    assert partition.refused(5_001, *late, segment(4_000, 4_001, 3)) == [Reason.TOO_LATE] * 2
    assert partition.refused(5_001, segment(4_001, 4_002, 4)) == []


@KINDS
def test_an_opened_order_is_known_as_long_as_its_segments_may_come(kind: str) -> None:
    partition = Partition(kind)
    partition.fold(0, opening(until_ms=100_000), segment(0, 10, 1, "SO2", end=True))
    assert len(partition.fold(0, segment(0, 10, end=True)).totals) == 1
    # SO2 is forgotten by then, SO1 a millisecond later.
    found = partition.fold(160_000, opening(client="d"), opening(number="SO2", until_ms=200_000))
    assert [each.reason for each in found.dead_letters] == [Reason.TOO_LATE]
    other = opening(client="d", until_ms=200_000)
    assert partition.refused(160_000, other) == [Reason.ALREADY_OPENED]
    assert [each.offset for each in partition.fold(160_001, other).openings] == [6]
    found = partition.fold(160_002, segment(160_000, 160_001, 1, end=True))
    assert [decode_total(each.value).revision for each in found.totals] == [1]


@KINDS
def test_an_opening_without_segments_is_forgotten_and_gives_nothing(kind: str) -> None:
    partition = Partition(kind)
    partition.fold(0, opening(until_ms=1_000))
    assert partition.table.oldest_deadline_ms() is None
    assert partition.refused(61_000, opening(client="d", until_ms=70_000)) == [
        Reason.ALREADY_OPENED
    ]
    found = partition.fold(61_001, segment(-61_000 + 122_000, 61_001))  # as any other order's
    assert not found.dead_letters
    state = partition.table.describe("SO1")
    assert state is not None
    assert state.opened is None
    assert not partition.fold(200_000).totals
    while partition.table.confirm(NOW + 61_001):
        pass
    assert partition.table.openings_waiting == 0


@KINDS
def test_who_opened_an_order_is_told_as_its_description_has_it(kind: str) -> None:
    """Also of an opening whose order has not begun, of a forgotten one, and of one without."""
    partition = Partition(kind)
    until_ms = 2_000

    def told() -> list[str | None]:
        table = partition.table
        names = "SO1", "SO2", "SO3", "nobody's"
        states = {name: table.describe(name) for name in names}
        opened = {name: None if state is None else state.opened for name, state in states.items()}
        tenants = [table.opened_by(name) for name in names]
        assert tenants == [None if each is None else each.tenant for each in opened.values()]
        return tenants

    partition.fold(0, opening(until_ms), segment(0, 1, end=True))
    partition.fold(1, opening(until_ms, number="SO2"), segment(0, 1, order="SO3"))
    assert told() == ["t", "t", None, None]
    partition.fold(500_000, opening(600_000, 500_000, tenant="umbra"))
    assert told()[:2] == ["umbra", None]


@KINDS
def test_opened_orders_only(kind: str) -> None:
    partition = Partition(kind)
    partition.fold(0, segment(-5, 0), segment(-5, 0, 1, "SO2"))
    partition.table.set_policy(ONLY)
    refused = partition.refused(
        5, segment(0, 5, 2), segment(0, 5, 1, "new"), opening(number="SO3"),
        segment(0, 5, 1, "SO3"), segment(0, 5, 1, "x" * 41),
    )  # fmt: skip
    assert refused == [Reason.NOT_OPENED] * 3
    partition.table.set_policy(POLICY)
    assert partition.refused(9, segment(0, 5, 2), segment(0, 5, 1, "new")) == []


@KINDS
def test_in_a_wrong_partition_it_is_sent_on(kind: str) -> None:
    assert partition_for(b"SO1", 4) == 2
    partition = Partition(kind, ONLY, Place(0, 4))
    found = partition.fold(0, opening(), segment(0, 5))
    assert not found.openings
    assert [(each.partition, each.headers) for each in found.forwards] == [
        (2, ((FORWARDED_FROM, b"0/0"),)),
        (2, ((FORWARDED_FROM, b"0/1"),)),
    ]
    sent_on_before = (*opening()[:2], ((FORWARDED_FROM, b"1/7"),))
    assert partition.refused(0, sent_on_before) == [Reason.WRONG_PARTITION]


@KINDS
def test_rules_of_before_read_no_openings(kind: str) -> None:
    assert not Terms(POLICY, rules=2).reads_openings
    partition = Partition(kind)
    partition.table.writers.reads_openings = False
    assert partition.refused(0, opening()) == [Reason.UNKNOWN_SCHEMA]
    partition.table.writers.reads_openings = True
    assert partition.refused(0, opening()) == []


# -- checkpoints ------------------------------------------------------------------------------


def contents(table: IntervalTable) -> dict[str, bytes]:
    found = {name: block for name, block in table.take_changed_entries() if block is not None}
    assert all(len(each) <= limits.CHECKPOINT_ENTRY_BYTES_MAX for each in found.values())
    return found


@KINDS
def test_a_checkpoint_has_openings_whether_they_wait_or_their_orders_have_begun(kind: str) -> None:
    partition = Partition(kind)
    names = ("SO1", "SO2", "SO3", "é", "x" * 41)
    partition.fold(0, *(opening(number=each) for each in names))
    partition.fold(1, *(segment(0, 1, 1, each) for each in names[1:]))
    other = partition.restored([*contents(partition.table).values()], 1)
    for name in names:
        assert partition.table.describe(name) == other.table.describe(name)
        assert other.table.knows_opening(name.encode(), names.index(name))
    assert other.table.openings_waiting == 1
    late = [segment(0, 1, 1, each) for each in names]
    assert other.refused(50_000, *late) == []


@KINDS
def test_a_lapsed_opening_is_kept_for_what_a_replay_judges_again(kind: str) -> None:
    """A torn checkpoint has the second opening; the replay begins under the first."""
    partition = Partition(kind)
    partition.fold(0, opening(until_ms=10))
    early = segment(-9, -5)
    assert partition.refused(1, early) == [Reason.BEFORE_OPENING]
    partition.fold(60_011, opening(client="d", until_ms=90_000, begin_ms=60_000))
    replay = partition.restored([*contents(partition.table).values()], 0, 1)
    assert replay.refused(1, early) == [Reason.BEFORE_OPENING]
    assert replay.refused(60_012, segment(60_001, 60_002)) == []


@KINDS
def test_an_opening_stays_until_its_orders_block_is_certainly_written(kind: str) -> None:
    """The block was encoded before the order began, the entry of openings after it."""
    partition = Partition(kind)
    partition.fold(0, opening(), segment(-1, 0, 1, "SO2"))
    blocks = contents(partition.table)
    partition.fold(1, segment(0, 1))
    (waiting,) = (name for name in blocks if name.startswith("openings"))
    snapshot = partition.table.snapshot(waiting)
    assert snapshot is not None
    replay = partition.restored([*(blocks | {waiting: snapshot.pack()}).values()], 0, 2)
    assert replay.refused(1, segment(-1, 1)) == [Reason.BEFORE_OPENING]
    while partition.table.confirm(NOW + 2):
        pass
    assert partition.table.snapshot(waiting) is None


def test_of_those_that_have_gone_nothing_stays() -> None:
    """Each may be known for years after its order has begun."""
    years_ms = NOW + 10**11
    waiting = WaitingOpenings(lambda _number, _count: None)
    waiting.add("first", Opened(NOW, years_ms + 1, 0, "t", "c"))
    for offset in range(1, 4 * SWEPT_MIN):
        opened = Opened(NOW, years_ms, offset, "t", "c")
        waiting.add(f"SO{offset}", opened)
        waiting.take(f"SO{offset}", opened, NOW + offset)
        assert not waiting.confirm(NOW + offset + 1)
        assert len(waiting._forgotten) <= SWEPT_MIN + 3
    assert waiting.has(0)
    assert not waiting.confirm(Opened(NOW, years_ms + 1, 0, "t", "c").known_until_ms + 1)
    assert (len(waiting), waiting._forgotten) == (0, [])


def test_an_entry_of_the_largest_openings_is_small_enough() -> None:
    states = [
        WaitingState(place, "n" * 64, 2**60, 2**60, 2**60, "t" * 64, "c" * 64)
        for place in range(ENTRY_PLACES)
    ]
    size = len(msgspec.msgpack.encode(states))
    assert size <= 256 * 1024
    assert decode_block(openings_snapshot(states).pack()).waiting == tuple(states)


def test_a_block_of_before_has_no_openings_or_no_extensions() -> None:
    order = Order("SO1", 0, opening=Opened(0, 9, 0, "t", "c"))
    order.apply(SegmentEvent("SO1", 1, 1, 2, False), 5, 1, POLICY)
    (state,) = plain_snapshot([(3, order)]).content
    fields = list(msgspec.to_builtins(state))
    for lacks, opening in ((1, order.opening), (2, None)):
        before = msgspec.msgpack.encode([fields[:-lacks]])
        block = bytes([PLAIN_VERSION]) + bytes(cramjam.zstd.compress(before))
        ((slot, found),) = decode_block(block).orders
        assert (slot, found) == (3, replace(order, opening=opening))


# -- the kernel -------------------------------------------------------------------------------


def plain_keys(partition: Partition, at_ms: int, *entries: Entry) -> list[bytes | None]:
    """Fold records; return the keys of those that the plain core had to look at."""
    real, keys = PlainOrders.fold_record, []

    def fold_record(self: PlainOrders, record: Any, clock_ms: int, effects: Effects) -> None:
        keys.append(record.key)
        real(self, record, clock_ms, effects)

    with mock.patch.object(PlainOrders, "fold_record", fold_record):
        partition.fold(at_ms, *entries)
    return keys


def test_only_an_opening_and_its_orders_first_segment_leave_the_kernel() -> None:
    partition = Partition("columns", replace(POLICY, idle_timeout_ms=90_000))
    assert plain_keys(partition, 0, opening()) == [b"SO1"]
    others = [segment(-1, 0, 1, f"other {each}") for each in range(100)]
    assert plain_keys(partition, 0, *others) == []
    assert plain_keys(partition, 0, segment(0, 1, 2)) == [b"SO1"]
    more = [segment(each, each + 1, each + 1) for each in range(2, 50)]
    assert plain_keys(partition, 10, *more, *more) == []
    late = [segment(0, 1, 1), segment(50, 51, 51, end=True)]
    assert plain_keys(partition, 40_000, *late) == []
    state = partition.table.describe("SO1")
    assert state is not None
    assert (state.phase, state.duration_ms) == ("SETTLED", 50)
    assert state.deadline_ms == NOW + 50_000 + 60_000
    assert plain_keys(partition, 41_000, *more) == []


def test_a_flood_of_orders_that_nobody_opened_takes_no_rows() -> None:
    partition = Partition("columns", ONLY)
    flood = [segment(-1, 0, 1, f"flood {each}") for each in range(1_000)]
    assert len(partition.refused(0, *flood)) == len(flood)
    assert isinstance(partition.table, ColumnTable)
    assert partition.table._store.counters[rows.ROWS_USED] == 0


@pytest.mark.parametrize("policy", [POLICY, ONLY])
def test_without_a_free_row_a_segment_may_follow_its_opening_in_a_batch(policy: Policy) -> None:
    """The opening is deferred and has no placeholder: the kernel can't tell that it came."""
    partition = Partition("plain"), Partition("columns")
    partition[1].table = ColumnTable(HOME, POLICY, WriterSchemas(), rows_max=1)
    for each in partition:
        each.fold(0, segment(-1, 0, 1, "SO0"))
        each.table.set_policy(policy)
    late = [opening(number="SO1", begin_ms=-90_000), segment(-80_000, -79_000)]
    plain, columns = (
        each.fold(1, *late, opening(number="SO2"), segment(0, 1, 1, "SO2"), segment(0, 1, 1, "new"))
        for each in partition
    )
    assert_same_effects(plain, columns)
    assert [each.key for each in columns.openings] == [b"SO1", b"SO2"]
    assert [each.record.key for each in columns.dead_letters] == [b"new"] * policy.opened_only
