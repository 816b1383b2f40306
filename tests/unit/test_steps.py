"""Chunks folded in steps: what a step may cost, where a replay goes on, and our own bugs."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import cramjam
import msgspec
import pytest

from durabill.schemas import OWN_SCHEMA_ONLY, NumberRange
from durabill.schemas.errors import ContractError, PoisonError
from durabill.stream_processors.core.admission import accept
from durabill.stream_processors.core.intervals import IntervalSet
from durabill.stream_processors.core.order import Order, Phase, Policy
from durabill.stream_processors.engine import slots
from durabill.stream_processors.engine.batch import Chunk
from durabill.stream_processors.engine.blocks import decode_block, large_snapshot, plain_snapshot
from durabill.stream_processors.engine.columns import ColumnTable
from durabill.stream_processors.engine.effects import STEP_COST, Effects, Step
from durabill.stream_processors.engine.kernel import fold, rows
from durabill.stream_processors.engine.plain import PlainTable
from durabill.stream_processors.engine.slots import LARGE_PIECES
from durabill.stream_processors.engine.table import IntervalTable, Place
from tests.property.batches import Entry, encode_batch
from tests.property.column_histories import assert_same_effects, assert_sound, value_of
from tests.unit.test_store import order

NOW_MS = 1_700_000_000_000
POLICY = Policy(1_000, 2_000, 60_000)
PLACE = Place(0, 1)
BOTH: list[type[IntervalTable]] = [PlainTable, ColumnTable]


def table_of(kind: type[IntervalTable], policy: Policy = POLICY) -> IntervalTable:
    """Return an empty table."""
    return kind(PLACE, policy, OWN_SCHEMA_ONLY)


def chunk_of(entries: list[Entry], first_offset: int = 0, at_ms: int = NOW_MS) -> Chunk:
    """Return one batch of these records as a chunk."""
    numbered = list(enumerate(entries, first_offset))
    data = encode_batch(first_offset, at_ms, numbered, codec="lz4")
    return Chunk(first_offset, first_offset + len(entries), data)


def segments(
    count: int, name: Callable[[int], str], end: bool = False, number: int = 1
) -> list[Entry]:
    """Return so many segments with the same number, of different orders or not."""
    return [
        (key := name(at).encode(), value_of(key, number, NOW_MS - 10, NOW_MS, end), ())
        for at in range(count)
    ]


def costs(steps: Iterator[Step]) -> tuple[list[int], list[int], Effects]:
    """Return what the steps cost, where they end, and what they gave together."""
    spent, offsets, effects = [], [], Effects()
    for step in steps:
        spent.append(step.effects.cost)
        offsets.append(step.next_offset)
        effects.extend(step.effects)
    return spent, offsets, effects


# -- what a step may cost ---------------------------------------------------------------------


def test_an_ordinary_batch_is_one_step_and_one_call_of_the_kernel(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = []
    kernel = fold.fold

    def counted(*arguments: Any) -> Any:
        calls.append(1)
        return kernel(*arguments)

    monkeypatch.setattr(fold, "fold", counted)
    table = table_of(ColumnTable)
    table.fold(chunk_of(segments(20_000, lambda at: f"SO{at % 50}")))
    assert len(calls) == 1
    chunk = chunk_of(segments(20_000, lambda at: f"SO{at % 50}"), 20_000)
    spent, offsets, _ = costs(table.steps(chunk))
    assert (len(spent), offsets, len(calls)) == (1, [40_000], 2)


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize(
    ("name", "garbage", "end"),
    [
        ("SO{}", False, False),
        ("SO{}", False, True),
        ("SO1", False, False),
        ("a name that is too long for a row, with number {}", False, False),
        ("SO{}", True, False),
    ],
)
def test_no_step_costs_much_more_than_it_should(
    kind: type[IntervalTable], name: str, garbage: bool, end: bool
) -> None:
    entries = segments(30_000, name.format, end)
    if garbage:
        entries = [(key, b"no avro", ()) for key, _, _ in entries]
    chunk = chunk_of(entries)
    table = table_of(kind)
    spent, offsets, effects = costs(table.steps(chunk))
    assert max(spent) <= 2 * STEP_COST
    assert min(spent[:-1], default=STEP_COST) >= STEP_COST
    assert offsets == sorted(offsets)
    assert offsets[-1] == chunk.next_offset
    assert len(effects.dead_letters) == 30_000 * garbage
    assert len(effects.totals) == 30_000 * end
    if kind is ColumnTable and (garbage or end):
        assert len(spent) > 5
    assert_same_effects(table_of(PlainTable).fold(chunk), effects)


@pytest.mark.parametrize("kind", BOTH)
def test_orders_that_are_due_together_settle_in_steps(kind: type[IntervalTable]) -> None:
    table, count = table_of(kind), 12_000
    table.fold(chunk_of(segments(count, lambda at: f"SO{at}")))
    late = chunk_of([(None, None, ())], count, NOW_MS + 2_000)
    spent, offsets, effects = costs(table.steps(late))
    assert len(effects.totals) == count
    assert len(spent) > 3
    assert max(spent) <= 2 * STEP_COST
    # Inside the batch that brought the time: its terms hold for what is still due.
    assert {count} == set(offsets[:-1])
    assert count + 1 == offsets[-1]


@pytest.mark.parametrize("kind", BOTH)
def test_timers_of_settled_orders_are_looked_through_in_steps(kind: type[IntervalTable]) -> None:
    """Each order that completes leaves one; they come up together."""
    table, count = table_of(kind), 30_000
    long = "a name that is too long for a row, with number {}".format
    table.fold(chunk_of(segments(count, long)))
    table.fold(chunk_of(segments(count, long, end=True), count))
    late = chunk_of([(None, None, ())], 2 * count, NOW_MS + 2_000)
    spent, _, effects = costs(table.steps(late))
    assert (len(spent) > 2, effects.totals) == (True, [])


def test_large_orders_settle_one_a_step() -> None:
    table = table_of(ColumnTable)
    large = [order_with(f"SO{at}", 2_500, deadline_ms=NOW_MS) for at in range(3)]
    table.restore([large_snapshot(at, each).pack() for at, each in enumerate(large)], NOW_MS - 1)
    _, _, effects = costs(table.steps(chunk_of([(None, None, ())])))
    assert len(effects.totals) == 3
    table = table_of(ColumnTable)
    table.restore([large_snapshot(at, each).pack() for at, each in enumerate(large)], NOW_MS - 1)
    steps = list(table.steps(chunk_of([(None, None, ())])))
    assert [len(each.effects.totals) for each in steps] == [1, 1, 1, 0]


@pytest.mark.parametrize("kind", BOTH)
def test_a_replay_goes_on_where_a_step_ended(kind: type[IntervalTable]) -> None:
    """After each of the steps, from a checkpoint of that moment."""
    names = [f"SO{at}" for at in range(40)] + ["x" * 50]
    entries: list[Entry] = []
    for at in range(2_000):
        key = names[at * 7 % len(names)].encode()
        start_ms = NOW_MS - 10_000 + at % 97 * 3
        entries.append((key, value_of(key, at % 31 + 1, start_ms, start_ms + 2, False), ()))
    chunk = chunk_of(entries)
    whole = table_of(kind)
    expected = whole.fold(chunk)
    count = len(list(table_of(kind).steps(chunk)))
    for stop in range(0, count, max(1, count // 5)):
        table, sent = table_of(kind), Effects()
        for _, step in zip(range(stop + 1), table.steps(chunk), strict=False):
            sent.extend(step.effects)
        contents = [content for _, content in table.take_changed_entries() if content is not None]
        restored = table_of(kind)
        restored.restore(contents, table.clock_ms)
        sent.extend(restored.fold(Chunk(step.next_offset, chunk.next_offset, chunk.data)))
        assert_same_effects(expected, sent)
        for name in names:
            assert whole.describe(name) == restored.describe(name)


# -- our own bugs -----------------------------------------------------------------------------


def test_a_bug_of_ours_names_partition_offset_and_order(monkeypatch: pytest.MonkeyPatch) -> None:
    def faulty_accept(*arguments: Any) -> Any:
        event = accept(*arguments)
        assert event.business_data_number != 13, "we don't like this number"
        return event

    monkeypatch.setattr("durabill.stream_processors.engine.orders.accept", faulty_accept)
    table = ColumnTable(PLACE, POLICY, OWN_SCHEMA_ONLY)
    key = b"a name that is too long for a row of the columns"
    entries: list[Entry] = [
        (key, value_of(key, number, NOW_MS - 10, NOW_MS, False), ()) for number in (12, 13)
    ]
    with pytest.raises(PoisonError) as caught:
        table.fold(chunk_of(entries, 7))
    error = caught.value
    assert (0, 8, key) == (error.partition, error.offset, error.key)
    assert isinstance(error.__cause__, AssertionError)
    for part in ("partition 0 ", "offset 8", key.decode(), "we don't like this number"):
        assert part in str(error)


def test_a_bug_in_a_timer_names_the_order(monkeypatch: pytest.MonkeyPatch) -> None:
    table = table_of(PlainTable)
    table.fold(chunk_of(segments(1, lambda at: "SO1")))
    monkeypatch.setattr(Order, "give_due", lambda *_: 1 / 0)
    with pytest.raises(PoisonError, match=r"from a timer, order 'SO1'.*ZeroDivisionError"):
        table.fold(chunk_of([(None, None, ())], 1, NOW_MS + 2_000))


def test_what_the_operator_has_to_mend_is_no_bug() -> None:
    data = encode_batch(0, NOW_MS, [(0, (b"k", b"v", ()))], attributes=0)
    with pytest.raises(ContractError, match="client's time"):
        table_of(ColumnTable).fold(Chunk(0, 1, data))


# -- what is asked and given back a little at a time ------------------------------------------


@pytest.mark.parametrize("kind", BOTH)
def test_slots_are_given_back_a_little_at_a_time(kind: type[IntervalTable]) -> None:
    table, count = table_of(kind), 40_000
    table.fold(chunk_of(segments(count, lambda at: f"SO{at}", end=True)))
    over_ms = NOW_MS + 60_000 + 60_000 + 1
    left = [len(table)]
    while table.confirm(over_ms):
        left.append(len(table))
    assert len(table) == 0
    assert len(left) > 2
    assert max(a - b for a, b in itertools.pairwise(left)) < 18_000
    assert not table.confirm(over_ms)
    if isinstance(table, ColumnTable):
        assert_sound(table)


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize("name", ["SO{}", "a name that is too long for a row, with number {}"])
def test_the_next_deadline(kind: type[IntervalTable], name: str) -> None:
    """Exact where it has come; the bound of a block, or a timer, may be from before."""
    table = table_of(kind)
    assert table.next_due_ms(2**62) is None
    count = 3_000
    table.fold(chunk_of(segments(count, name.format)))
    due_ms = NOW_MS + 2_000
    assert due_ms == table.next_due_ms(NOW_MS) == table.next_due_ms(due_ms)
    assert table.oldest_deadline_ms() == due_ms
    table.fold(chunk_of(segments(count, name.format, number=2), count, NOW_MS + 500))
    assert table.next_due_ms(due_ms - 1) in (due_ms, due_ms + 500)
    assert table.next_due_ms(due_ms) == due_ms + 500
    assert table.next_due_ms(due_ms - 1) == due_ms + 500
    assert table.oldest_deadline_ms() == due_ms + 500
    table.fold(chunk_of([(None, None, ())], 2 * count, due_ms + 500))
    assert table.next_due_ms(2**62) is table.oldest_deadline_ms() is None


@pytest.mark.parametrize("kind", BOTH)
def test_the_oldest_deadline_is_exact_whatever_the_bounds_are(kind: type[IntervalTable]) -> None:
    table = table_of(kind)
    table.fold(chunk_of(segments(3_500, lambda at: f"SO{at}")))
    for step, first in enumerate((0, 1_024, 3_000, 3_499)):
        later = segments(3_500, lambda at: f"SO{at}", number=step + 2)[first:]
        table.fold(chunk_of(later, 3_500 * (step + 1), NOW_MS + 10 * step + 10))
        expected = NOW_MS + 2_000 + (10 if first == 0 or step else 0)
        assert table.oldest_deadline_ms() == expected
    more = segments(3_500, lambda at: f"SO{at}", number=9)
    keep_open = [each for at, each in enumerate(more) if at != 9]
    table.fold(chunk_of(keep_open, 50_000, NOW_MS + 1_000))
    assert table.oldest_deadline_ms() == NOW_MS + 2_010


@pytest.mark.parametrize("kind", BOTH)
def test_a_description_may_be_cut_and_counts_all(kind: type[IntervalTable]) -> None:
    table = table_of(kind)
    entries: list[Entry] = []
    for number in range(1, 40, 2):
        start_ms = NOW_MS - 1_000 + 10 * number
        value = value_of(b"SO1", number, start_ms, start_ms + 5, False)
        entries.append((b"SO1", value, ()))
    table.fold(chunk_of(entries))
    whole, cut = table.describe("SO1"), table.describe("SO1", 3)
    assert whole is not None
    assert cut is not None
    assert (whole.intervals_count, whole.missing_numbers_count) == (20, 19)
    assert (len(whole.intervals), len(whole.missing_numbers)) == (20, 19)
    missing = [NumberRange(2, 2), NumberRange(4, 4), NumberRange(6, 6)]
    assert cut == msgspec.structs.replace(
        whole, intervals=whole.intervals[:3], missing_numbers=missing
    )


# -- the size of entries ----------------------------------------------------------------------

ENTRY_BYTES_MAX = 1_000_000


def order_with(
    name: str, pieces: int, *, at: int = NOW_MS - 10**8, deadline_ms: int = 1, copies: int = 0
) -> Order:
    """Return a settled order with so many intervals and ranges of numbers."""
    time_ = IntervalSet((at + 3 * each, at + 3 * each + 1) for each in range(pieces))
    numbers = IntervalSet((at + 2 * each, at + 2 * each + 1) for each in range(pieces))
    found = Order(name, 0, time_, numbers, None, pieces, time_.measure, at, at + 3 * pieces)
    found.deadline_ms, found.source_offset, found.unbilled_since_ms = deadline_ms, 3, NOW_MS
    found.forwarded = {2**30 + each: 2**62 for each in range(copies)}
    return found


def worst_order(at: int) -> Order:
    """Return the largest order that gets no entry of its own, or is frozen when it does."""
    half = (LARGE_PIECES + 2) // 2
    found = order_with(f"{at:064}", half, at=2**62, deadline_ms=2**62)
    found.end_number, found.phase, found.revision = 2**62, Phase.SETTLED, 2**30
    found.accepted = found.length_sum_ms = found.source_offset = 2**62
    found.digest, found.settlements = "f" * 64, 8
    return found


def test_no_block_takes_a_megabyte() -> None:
    """Nor before it is packed, so that nothing depends on how well it is."""
    snapshot = plain_snapshot((2**30 + at, worst_order(at)) for at in range(slots.BLOCK_SLOTS))
    raw = cramjam.zstd.decompress(snapshot.pack()[1:])
    assert 800_000 < len(bytes(raw)) < ENTRY_BYTES_MAX
    copies = [order_with(f"{at:064}", 1, at=2**62, copies=LARGE_PIECES - 2) for at in range(1024)]
    raw = cramjam.zstd.decompress(plain_snapshot(enumerate(copies)).pack()[1:])
    assert len(bytes(raw)) < ENTRY_BYTES_MAX
    assert 2 * rows.PIECES_MAX <= LARGE_PIECES


def test_no_entry_of_a_large_order_takes_a_megabyte() -> None:
    largest = order_with("x" * 64, 10_000, at=2**62)
    snapshot = large_snapshot(2**30, largest)
    raw = cramjam.zstd.decompress(snapshot.pack()[1:])
    assert len(bytes(raw)) < ENTRY_BYTES_MAX // 2
    [(slot, found)] = decode_block(snapshot.pack()).orders
    assert (slot, found) == (2**30, largest)


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize("pieces", [LARGE_PIECES // 2, LARGE_PIECES // 2 + 1])
def test_an_order_is_large_from_so_many_pieces_on(kind: type[IntervalTable], pieces: int) -> None:
    table = table_of(kind)
    entries: list[Entry] = []
    for number in range(1, 2 * pieces, 2):
        start_ms = NOW_MS - 10_000 + 10 * number
        value = value_of(b"SO1", number, start_ms, start_ms + 5, False)
        entries.append((b"SO1", value, ()))
    table.fold(chunk_of(entries))
    is_large = 2 * pieces > LARGE_PIECES
    assert (["0.0", "0"] if is_large else ["0"]) == table.take_changed()
    assert (table.snapshot("0.0") is not None) == is_large
    assert (table.snapshot("0") is None) == is_large
    table.fold(chunk_of(entries[:1], len(entries)))  # a repeat
    assert ["0.0" if is_large else "0"] == table.take_changed()


def test_blocks_of_the_versions_before_are_read_and_large_orders_get_their_entries() -> None:
    table = table_of(ColumnTable)
    before = [(0, order("SO1")), (1, order_with("SO2", 20)), (2, order_with("SO3", 300))]
    table.restore([plain_snapshot(before).pack()], 0)
    assert table.take_changed()[:3] == ["0.1", "0.2", "0"]
    assert [name for name in ("0.1", "0.2") if decode_pack(table, name) != 1] == []
    assert decode_pack(table, "0") == 0  # SO1 is a row


def decode_pack(table: IntervalTable, name: str) -> int:
    """Return how many plain orders an entry holds."""
    snapshot = table.snapshot(name)
    assert snapshot is not None
    return len(decode_block(snapshot.pack()).orders)


def test_weights_tell_what_takes_long() -> None:
    large = large_snapshot(0, order_with("SO1", 10_000))
    assert large.weight == 20_000 + 16
    assert plain_snapshot([(0, order("SO2"))]).weight == 16 + 2
