"""The kernel's parts, each against the plain function that says what it must do."""

import itertools
import random
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from durabill.schemas import SEGMENT_HEADER, Reason, partition_for
from durabill.schemas.wire import zigzag
from durabill.stream_processors.core.intervals import IntervalSet
from durabill.stream_processors.core.order import Order, Phase, Policy
from durabill.stream_processors.engine.batch import Chunk
from durabill.stream_processors.engine.blocks import plain_snapshot
from durabill.stream_processors.engine.columns import ColumnTable
from durabill.stream_processors.engine.kernel import index, parse, rows, totals
from durabill.stream_processors.engine.plain import PlainTable
from durabill.stream_processors.engine.store import RowStore
from durabill.stream_processors.engine.table import IntervalTable, Place
from tests.property.batches import Entry, encode_batch
from tests.property.column_histories import assert_same_effects, value_of, writers
from tests.property.test_kernel_fuzz import raw_batch

NOW_MS = 1_700_000_000_000
POLICY = Policy(5, 9, 60)
PLACE = Place(0, 1)
COMPILES = settings(deadline=None)  # at its first call


# -- the index --------------------------------------------------------------------------------


def hash_of(key: bytes, seed: int = 0) -> int:
    """Return the hash of a key."""
    words = np.frombuffer(key.ljust(rows.KEY_BYTES_MAX, b"\0"), np.uint64)
    return int(index.hash_key(words, seed))


def neighbours(count: int) -> list[bytes]:
    """Return names of one table that all want one of its last two places, so wrap around."""
    names = (b"order %d" % at for at in itertools.count())
    wanted = (name for name in names if hash_of(name) & 0xFF == 5)
    return list(itertools.islice((n for n in wanted if hash_of(n) >> 8 & 63 >= 62), count))


def assert_index_is(store: RowStore, expected: dict[bytes, int], absent: set[bytes]) -> None:
    """Assert that the index finds exactly these names."""
    assert {name: store.find(name) for name in expected} == expected
    assert {store.find(name) for name in absent} <= {-1}


@pytest.mark.parametrize("seed", range(4))
def test_removing_closes_the_gap_among_colliding_names(seed: int) -> None:
    names = neighbours(24)
    dice = random.Random(seed)
    store = RowStore(0, 64)
    slots = {name: store.take_slot(name) for name in names}
    assert_index_is(store, slots, {b"another"})
    for name in dice.sample(names, 20):
        store.free_slot(slots.pop(name))
        assert_index_is(store, slots, set(names) - set(slots))
    # No tombstones: a table that has been emptied has room for all again.
    slots |= {name: store.take_slot(name) for name in names if name not in slots}
    assert_index_is(store, slots, set())
    assert int(store.index.tables[5, index.FILLED]) == len(names)


def test_thousands_of_names_come_and_go() -> None:
    dice = random.Random(1)
    store = RowStore(2**50 + 1, 1 << 14)
    names = [b"%x" % dice.getrandbits(dice.choice([8, 40, 150])) for _ in range(20_000)]
    slots: dict[bytes, int] = {}
    for step, name in enumerate(names):
        if name not in slots:
            slots[name] = store.take_slot(name)
        if step % 3 == 0:
            store.free_slot(slots.pop(dice.choice(list(itertools.islice(slots, 50)))))
        if step % 4_000 == 0:
            assert_index_is(store, slots, set(names) - set(slots))
    assert_index_is(store, slots, set(names) - set(slots))
    assert len(set(slots.values())) == len(slots) == int(store.index.tables[:, index.FILLED].sum())
    assert int(store.index.tables[:, index.MASK].max()) > index.FIRST_ENTRIES


@given(st.binary(min_size=1, max_size=40), st.binary(max_size=20), st.integers(0, 12))
@COMPILES
def test_a_key_is_loaded_as_its_bytes_wherever_it_stands(key: bytes, rest: bytes, at: int) -> None:
    data = np.frombuffer(b"\xff" * at + key + rest, np.uint8)
    words = np.full(5, 2**64 - 1, np.uint64)
    index.load_key(data, at, len(key), words)
    assert words.tobytes() == key.ljust(40, b"\0")


@given(st.binary(min_size=1, max_size=40), st.integers(1, 1000))
@COMPILES
def test_partition_is_javas(key: bytes, partitions: int) -> None:
    found = parse.partition_of(np.frombuffer(b"?" + key, np.uint8), 1, len(key), partitions)
    assert partition_for(key, partitions) == found


# -- intervals and numbers --------------------------------------------------------------------

PAIRS = st.lists(st.tuples(st.integers(0, 60), st.integers(1, 9)), max_size=40)


@given(PAIRS, st.sampled_from([rows.INTERVALS, rows.NUMBERS]))
@COMPILES
def test_unite_is_the_interval_set(pairs: list[tuple[int, int]], base: int) -> None:
    row, count, expected = np.full(rows.LIST_SIZE, -7, np.int64), 0, IntervalSet()
    outside = [at for at in range(rows.LIST_SIZE) if not base <= at < base + 16]
    for start, length in pairs:
        before = row.copy()
        count_now, gained = rows.unite(row, base, count, start, start + length)
        if count_now < 0:
            bigger = IntervalSet([*expected, (start, start + length)])
            assert (len(bigger), row.tolist()) == (rows.PIECES_MAX + 1, before.tolist())
            continue
        count = count_now
        assert expected.add(start, start + length) == gained
        flat = [edge for pair in expected for edge in pair]
        assert flat == row[base : base + 2 * count].tolist()
        assert (row[outside] == -7).all()


@given(PAIRS, st.integers(0, 70), st.integers(1, 9))
@COMPILES
def test_covers_is_the_interval_sets(pairs: list[tuple[int, int]], start: int, length: int) -> None:
    known = IntervalSet((first, first + size) for first, size in pairs[: rows.PIECES_MAX])
    row = row_of(known)
    found = rows.covers(row, rows.NUMBERS, len(known), start, start + length)
    assert known.covers(start, start + length) == found


def row_of(numbers: IntervalSet) -> Any:
    """Return a piece list that holds these ranges of numbers."""
    row = np.zeros(rows.LIST_SIZE, np.int64)
    flat = [edge for pair in numbers for edge in pair]
    row[1] = len(numbers)
    row[rows.NUMBERS : rows.NUMBERS + len(flat)] = flat
    return row


@given(PAIRS.filter(bool), st.integers(1, 80))
@COMPILES
def test_missing_numbers_are_the_interval_sets(pairs: list[tuple[int, int]], after: int) -> None:
    known = IntervalSet((1 + first, 1 + first + size) for first, size in pairs[: rows.PIECES_MAX])
    gaps = known.missing(1, after)
    expected = b"".join(zigzag(first) + zigzag(end - 1) for first, end in gaps)
    out = np.zeros(600, np.uint8)
    at = totals.put_missing(out, 0, row_of(known), after)
    assert (zigzag(len(gaps)) + expected + b"\0" if gaps else b"\0") == out[:at].tobytes()


# -- numbers as bytes -------------------------------------------------------------------------

LONGS = [0, 1, 9, 10, 63, 64, 99, 100, 2**31, 10**18 - 1, 10**18, 2**62 - 1, 2**62, 2**63 - 1]


@pytest.mark.parametrize("value", LONGS)
def test_decimals_and_longs_at_their_edges(value: int) -> None:
    out = np.full(30, 7, np.uint8)
    end = totals.put_decimal(out, 2, value)
    assert str(value).encode() == out[2:end].tobytes()
    end = totals.put_long(out, 2, value)
    assert zigzag(value) == out[2:end].tobytes()


@pytest.mark.parametrize("seen", [3, None], ids=["INCOMPLETE", "ABANDONED"])
def test_the_longest_total_there_can_be_fits(seen: int | None) -> None:
    """Eight intervals and ranges, all edges and counts as long as a row can hold them."""
    top, most = 2**62, rows.NUMBER_MAX
    time = IntervalSet((top - 100 * at - 50, top - 100 * at) for at in range(8))
    numbers = IntervalSet((most - 100 * at - 50, most - 100 * at) for at in range(7))
    numbers.add(3, 4)
    order = Order("x" * 40, 0, time, numbers, seen, rows.ACCEPTED_MAX - 1, 2**61)
    order.started_ms, order.ended_ms = next(iter(time))[0], top
    order.phase = Phase.ENDED if seen else Phase.OPEN
    order.deadline_ms, order.unbilled_since_ms, order.source_offset = top + 10, top, 2**62
    block = plain_snapshot([(0, order)]).pack()
    plain = PlainTable(PLACE, POLICY, writers())
    columns = ColumnTable(PLACE, POLICY, writers(), rows_max=8)
    for table in (plain, columns):
        table.restore([block], NOW_MS)
    assert not len(columns._plain.slots)  # it is a row, not a plain order
    expected, found = plain.tick(top + 11), columns.tick(top + 11)
    assert len(expected.totals) == 1
    assert_same_effects(expected, found)


def test_event_buffers_have_room_for_the_longest() -> None:
    pieces = 2 * 2 * rows.PIECES_MAX
    text = 20 + (rows.KEY_BYTES_MAX + 1) + pieces * 20 + 2 + 20
    assert text <= totals.TEXT_BYTES_MAX
    longs = 13 + 2 * 2 + (2 * rows.PIECES_MAX + 2 * (rows.PIECES_MAX + 1))
    total = 10 + rows.KEY_BYTES_MAX + 2 * totals.DIGEST_BYTES + 10 * longs + 10
    assert total <= totals.TOTAL_BYTES_MAX


# -- records that could be taken for others ---------------------------------------------------


def both(*chunks: Chunk) -> list[IntervalTable]:
    """Return the two tables after these chunks, having checked that they gave the same."""
    tables = [
        PlainTable(PLACE, POLICY, writers()),
        ColumnTable(PLACE, POLICY, writers(), rows_max=64),
    ]
    for chunk in chunks:
        assert_same_effects(*(table.fold(chunk) for table in tables))
    return tables


def chunk(offset: int, append_ms: int, *entries: Entry) -> Chunk:
    """Return a chunk of one batch."""
    numbered = [(offset + at, each) for at, each in enumerate(entries)]
    data = encode_batch(offset, append_ms, numbered, next_offset=offset + max(1, len(entries)))
    return Chunk(offset, offset + max(1, len(entries)), data)


def segment(name: bytes, number: int = 1, end: bool = False) -> Entry:
    """Return a good segment's record."""
    start_ms = NOW_MS - 20 + number
    return name, value_of(name, number, start_ms, start_ms + 1, end), ()


@pytest.mark.parametrize("name", [b"SO1\0", b"SO1" + b"\0" * 37, b"SO1\0\0\0\0\0"])
def test_a_name_with_zeros_is_not_the_order_without_them(name: bytes) -> None:
    """Rows are padded with zeros, so it was billed to SO1 before."""
    for entries in (
        [segment(b"SO1"), segment(name, 2, True)],
        [segment(name, 2, True), segment(b"SO1")],
    ):
        plain, columns = both(chunk(0, NOW_MS, *entries))
        known = columns.describe("SO1")
        assert known is not None
        assert known.segments == 1
        assert columns.describe(name.decode()) is None
        assert plain.describe("SO1") == known


def test_a_dead_letter_keeps_its_own_append_time() -> None:
    """It was given the partition's clock, which is later where the broker's ran backwards."""
    *_, columns = both(chunk(0, NOW_MS, segment(b"SO1")))
    effects = columns.fold(chunk(1, NOW_MS - 3, (b"SO1", None, ())))
    assert [(each.record.append_ms, each.reason) for each in effects.dead_letters] == [
        (NOW_MS - 3, Reason.NOT_AVRO)
    ]


def test_a_batch_without_records_is_nobodys_arrival() -> None:
    """As compaction leaves one; it moved the clock, and settled orders, in the columns only."""
    plain, columns = both(chunk(0, NOW_MS, segment(b"SO1")), chunk(1, NOW_MS + 50))
    assert plain.clock_ms == columns.clock_ms == NOW_MS


def test_a_batch_handed_over_before_is_nobodys_arrival() -> None:
    old = chunk(0, NOW_MS + 50, segment(b"SO1"))
    new = chunk(1, NOW_MS, segment(b"SO2"))
    plain, columns = both(Chunk(1, 2, old.data + new.data))
    assert plain.clock_ms == columns.clock_ms == NOW_MS


def test_a_lone_surrogate_is_no_order() -> None:
    for table in both(chunk(0, NOW_MS, segment(b"SO1"))):
        assert table.describe("\ud800") is None
        assert table.describe("\udcff") is None


# -- instants that a random history seldom hits -----------------------------------------------

IDLE_MS, GRACE_MS = POLICY.idle_timeout_ms, POLICY.settle_grace_ms


@pytest.mark.parametrize("late_ms", [-1, 0, 1])
@pytest.mark.parametrize(
    ("end", "after_ms"), [(False, IDLE_MS), (True, GRACE_MS)], ids=["ABANDONED", "INCOMPLETE"]
)
def test_a_record_about_the_deadline(end: bool, after_ms: int, late_ms: int) -> None:
    now_ms = NOW_MS + after_ms + late_ms
    plain, columns = both(
        chunk(0, NOW_MS, segment(b"SO1", 2, end)),
        chunk(1, now_ms, segment(b"SO1", 2), segment(b"SO1", 3), segment(b"SO1", 1)),
    )
    known = columns.describe("SO1")
    assert known is not None
    assert (known.revision > 0) == (late_ms >= 0 or end)
    assert plain.describe("SO1") == known


def test_an_end_among_known_numbers_reopens_a_settled_order() -> None:
    plain, columns = both(
        chunk(0, NOW_MS, *(segment(b"SO1", number) for number in (1, 2, 3, 5))),
        chunk(4, NOW_MS + IDLE_MS, segment(b"SO2")),
        chunk(5, NOW_MS + IDLE_MS, segment(b"SO1", 2)),
        chunk(6, NOW_MS + IDLE_MS, segment(b"SO1", 5, True)),
        chunk(7, NOW_MS + IDLE_MS, segment(b"SO1", 3, True)),
        chunk(8, NOW_MS + IDLE_MS, segment(b"SO1", 4)),
    )
    known = columns.describe("SO1")
    assert known is not None
    assert (known.end_number, known.revision, known.phase) == (5, 1, "REOPENED")
    assert plain.describe("SO1") == known
    later_ms = NOW_MS + IDLE_MS + GRACE_MS
    assert_same_effects(plain.tick(later_ms), columns.tick(later_ms))
    known = columns.describe("SO1")
    assert known is not None
    assert (known.missing_numbers, known.revision, known.phase) == ([], 2, "SETTLED")


@pytest.mark.parametrize("number", [rows.NUMBER_MAX, rows.NUMBER_MAX + 1, 2**31, 2**32 + 1])
def test_numbers_about_the_greatest_of_a_row(number: int) -> None:
    entries = [segment(b"SO1", 1), (b"SO1", value_of(b"SO1", number, NOW_MS - 9, NOW_MS, True), ())]
    plain, columns = both(chunk(0, NOW_MS, *entries), chunk(2, NOW_MS + 1, *entries[::-1]))
    assert plain.describe("SO1") == columns.describe("SO1")
    assert_same_effects(plain.tick(NOW_MS + 9), columns.tick(NOW_MS + 9))


@pytest.mark.parametrize("count", [2, 1_000, 2**31 - 1])
def test_more_records_than_there_are_bytes_for(count: int) -> None:
    """The one that is there counts; nothing is allocated for the others."""
    body = encode_batch(0, NOW_MS, [(0, segment(b"SO1"))])[61:]
    for table in both():
        (letter,) = table.fold(Chunk(0, count, raw_batch(0, count, body))).dead_letters
        assert f"the last {count - 1} don't count" in letter.detail
        assert (letter.reason, letter.record.offset, len(table)) == (Reason.BAD_BATCH, 1, 1)


@pytest.mark.parametrize("delta", [-1, 2**31, 2**63 - 1])
def test_an_offset_outside_what_a_batch_can_span(delta: int) -> None:
    content = b"\0\0" + zigzag(delta) + zigzag(-1) + zigzag(-1) + zigzag(0)
    body = zigzag(len(content)) + content
    for table in both():
        (letter,) = table.fold(Chunk(0, 1, raw_batch(2**62, 1, body))).dead_letters
        assert (letter.reason, letter.record.offset) == (Reason.BAD_BATCH, 2**62)


def test_the_header_is_that_of_segments() -> None:
    assert len(SEGMENT_HEADER) == parse.HEADER_BYTES


# -- what a batch is unpacked into ------------------------------------------------------------


def test_batches_of_all_sizes_in_the_same_memory() -> None:
    """The second frame of a body is nobody's loss, nor what a longer batch before has left."""
    plain, columns = both()
    offset = 0
    for codec in ("lz4", "zstd", "none", "snappy", "gzip"):
        for count in (3, 400, 1, 20, 900):
            entries = [
                (offset + at, segment(b"%s %d" % (codec.encode(), count), at + 1))
                for at in range(count)
            ]
            data = encode_batch(offset, NOW_MS + 1_000, entries, codec=codec)
            part = Chunk(offset, offset + count, data)
            assert_same_effects(plain.fold(part), columns.fold(part))
            name = f"{codec} {count}"
            assert plain.describe(name) == columns.describe(name)
            offset += count


AFTER_WARM_UP = """
from durabill.stream_processors.engine import columns
from durabill.stream_processors.engine.kernel import fold, index, maintain, rows, settle, totals
from tests.unit import test_kernel
def signatures():
    kernel = {**vars(fold), **vars(index), **vars(maintain), **vars(rows)}
    kernel |= {**vars(settle), **vars(totals)}
    return {name: each.signatures for name, each in kernel.items() if hasattr(each, "signatures")}
columns.compile_kernel()
known = signatures()
assert known["move_table"]
test_kernel.run_everything()
assert signatures() == known, [name for name, each in signatures().items() if each != known[name]]
"""


def run_everything() -> None:
    """Have a table grow, leave records to the plain core, settle, write and restore."""
    table = ColumnTable(PLACE, POLICY, writers())
    for codec, offset in (("none", 0), ("lz4", 30_000), ("lz4", 60_000)):
        entries = [(offset + at, segment(b"%s %d" % (codec.encode(), at))) for at in range(30_000)]
        entries[7:9] = [(offset + 7, segment(b"holes", 9)), (offset + 8, (b"bad", None, ()))]
        data = encode_batch(offset, NOW_MS + offset, entries, codec=codec)
        table.fold(Chunk(offset, offset + len(entries), data))
    blocks = [block for _, block in table.take_changed_entries() if block is not None]
    ColumnTable(PLACE, POLICY, writers()).restore(blocks, NOW_MS)
    table.tick(NOW_MS + 10**9)
    table.confirm(NOW_MS + 10**9)


def test_nothing_is_left_to_be_compiled_in_the_stream() -> None:
    """The first table of the index that grew held the stream up by 0.4 s."""
    done = subprocess.run(
        [sys.executable, "-c", AFTER_WARM_UP], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2_000:]
