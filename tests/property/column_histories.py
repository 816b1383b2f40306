"""Histories for the batch path: what records hold, how batches are cut, and a table's soundness."""

import copy
import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import strategies as st

from durabill.schemas import (
    SEGMENT_HEADER,
    SEGMENT_SCHEMA,
    OrderOpened,
    WriterSchemas,
    encode_opening,
    schema_fingerprint,
)
from durabill.schemas.headers import FORWARDED_FROM
from durabill.schemas.wire import zigzag
from durabill.stream_processors.core.intervals import IntervalSet
from durabill.stream_processors.core.order import Order, Phase, Policy, evidence_digest
from durabill.stream_processors.engine.blocks import plain_snapshot
from durabill.stream_processors.engine.columns import ColumnTable
from durabill.stream_processors.engine.kernel import index, rows
from durabill.stream_processors.engine.table import Effects, Place
from tests.property.batches import CODECS, Entry

BASE_MS = 1_700_000_000_000
LONG_MAX = 2**63 - 1
LONGEST = (2**62, LONG_MAX - 1, LONG_MAX)
PIECES_MAX = 9
"""Of an order in these histories: one more than a row holds, so that both ways meet the limit."""

NO_HEADERS: tuple[tuple[str, bytes | None], ...] = ()

POLICIES = st.builds(
    Policy,
    st.sampled_from([5, 50, 0]),
    st.sampled_from([90, 9]),
    st.sampled_from([60, 100_000]),
    st.sampled_from([0, 7, 86_400_000, 40]),
    st.sampled_from([False] * 3 + [True]),
)
PLACES = st.sampled_from([Place(0, 1)] * 4 + [Place(1, 2), Place(2, 5)])
FORGET_ALL_MS = 400_000
"""Longer than any of these policies needs to forget an order, whatever its end."""

# -- one record -------------------------------------------------------------------------------

NAMES = st.one_of(
    st.sampled_from(["SO1", "SO1", "SO2", "SO3"]),
    st.sampled_from(["SO1", "SO2", "SO4", "SO5", "SO6", "SO7"]),
    st.sampled_from(["SO1", "é", "8 bytes!", "y" * 40, "z" * 41, "x" * 64, "名" * 21, "\u2028"]),
    st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1, max_size=16),
)
NUMBERS = st.sampled_from(
    [*range(1, 9), *range(1, 9), *range(1, 40), *range(2**31 - 3, 2**31 + 1), 2**40, *LONGEST]
)
STEPS_MS = st.sampled_from(
    [0] * 16 + [1, 1, 1, 2, 2, 3, 4, 5, 9, 50, 90, -3, -40, 59_990, 70_000, 200_000]
)
AGES_MS = st.sampled_from(
    [*range(32), *range(20), 59, 60, 61, 99_999, 100_001, -4, -9, -60_000, -60_001]
)
LENGTHS_MS = st.sampled_from([0] + [1, 2, 3, 5] * 4 + [8, 13, 25, 86_400_000, 86_400_001])
KINDS = st.sampled_from(
    ["next"] * 5 + ["segment"] * 8 + ["repeat"] * 4 + ["opening"] * 2 + ["evolved", "padded"]
)
UNTIL_MS = (0, 3, 3, 20, 90, 200, 70_000, 150_000, -1)
"""How long after its arrival an opening accepts segments."""
ORIGINS = [b"3/17", b"3/5", b"1/40", b"0/3", b"3/" + b"9" * 18, b"9" * 10 + b"/1", b"x/y", None]
HEADERS = st.sampled_from(
    [NO_HEADERS] * 40
    + [(("trace", b"x"), ("null", None)), (("forwarded_fro\u043c", b"3/5"),)] * 3
    + [((FORWARDED_FROM, each),) for each in ORIGINS]
)
BREAKAGES = [
    "cut", "longer", "null value", "null key", "other key", "no schema", "own end byte",
    "number 0", "negative", "backwards", "empty", "future", "long", "late", "far",
    "empty name", "control", "zero", "only zeros", "no UTF-8", "65 bytes", "huge varint",
]  # fmt: skip


@dataclass(frozen=True)
class Spec:
    """What a record is to be, relative to its arrival and to what came before it."""

    kind: str
    name: str
    number: int
    age_ms: int
    length_ms: int
    end: bool
    headers: tuple[tuple[str, bytes | None], ...]
    breakage: str | None
    again: int
    gap: int


SPECS = st.builds(
    Spec,
    KINDS,
    NAMES,
    NUMBERS,
    AGES_MS,
    LENGTHS_MS,
    st.sampled_from([False] * 6 + [True]),
    HEADERS,
    st.sampled_from([None] * 120 + BREAKAGES),
    st.integers(0, 12),
    st.sampled_from([1] * 9 + [3]),
)


@dataclass(frozen=True)
class BatchSpec:
    """A batch: how long after the one before it, its records, its codec."""

    step_ms: int
    records: tuple[Spec, ...]
    codec: str


BATCHES = st.builds(
    BatchSpec,
    STEPS_MS,
    st.lists(SPECS, max_size=9).map(tuple),
    st.sampled_from(["none", "none", "none", *CODECS]),
)


def newer_schema() -> dict[str, Any]:
    """Return the schema of a writer that has one field more than ours."""
    schema = copy.deepcopy(SEGMENT_SCHEMA)
    schema["fields"].append({"name": "vehicle", "type": "string", "default": ""})
    return schema


NEWER_HEADER = b"\xc3\x01" + schema_fingerprint(newer_schema())


@functools.cache
def writers() -> WriterSchemas:
    """Return the schemas that both tables know: ours and a newer one."""
    known = WriterSchemas()
    known.add(newer_schema())
    return known


def padded(value: int) -> bytes:
    """Return a varint that is longer than it had to be, as no honest writer makes it."""
    plain = zigzag(value)
    return plain[:-1] + bytes([plain[-1] | 0x80, 0x00]) if len(plain) < 9 else plain


def body_of(name: bytes, number: int, start_ms: int, end_ms: int, end: bool) -> bytes:
    """Return the Avro body of a segment, legal or not."""
    numbers = b"".join(zigzag(each) for each in (number, start_ms, end_ms))
    return zigzag(len(name)) + name + numbers + bytes([end])


def value_of(name: bytes, number: int, start_ms: int, end_ms: int, end: bool) -> bytes:
    """Return the record value of a segment, legal or not."""
    return SEGMENT_HEADER + body_of(name, number, start_ms, end_ms, end)


class Writer:
    """Makes records of specs; remembers each order's last segment, and all records."""

    def __init__(self) -> None:
        self.names: set[str] = set()
        self._last: dict[str, tuple[int, int]] = {}
        self._all: list[Entry] = []

    def entry(self, spec: Spec, append_ms: int) -> Entry:
        """Return the record of `spec` that arrives at about `append_ms`."""
        if spec.kind == "repeat" and self._all:
            key, value, _ = self._all[-1 - spec.again % len(self._all)]
            return key, value, spec.headers
        self.names.add(spec.name)
        if spec.kind == "opening":
            entry = self._opening(spec, append_ms)
            self._all.append(entry)
            return entry
        number, end_ms = spec.number, append_ms - spec.age_ms
        start_ms = end_ms - spec.length_ms
        if spec.kind == "next":
            last_number, start_ms = self._last.get(spec.name, (0, append_ms - 20))
            number = last_number + 1
            end_ms = start_ms + spec.length_ms % 100
        end = spec.end or start_ms == end_ms
        if spec.breakage is None:
            self._last[spec.name] = (min(number, LONG_MAX - 1), end_ms)
        entry = self._write(spec, (number, start_ms, end_ms, end), append_ms)
        self._all.append(entry)
        return entry

    def _opening(self, spec: Spec, append_ms: int) -> Entry:
        key = spec.name.encode()
        begin_ms = append_ms - spec.age_ms
        until_ms = max(begin_ms, append_ms + UNTIL_MS[spec.number % len(UNTIL_MS)])
        client = f"é{spec.again % 2}"
        opened = OrderOpened(spec.name, "t", client, "", (), begin_ms, 5, until_ms)
        value = encode_opening(opened)
        if spec.breakage == "cut":
            value = value[:-1]
        return key + b"?" * (spec.breakage == "other key"), value, spec.headers

    def _write(self, spec: Spec, fields: tuple[int, int, int, bool], append_ms: int) -> Entry:
        key = spec.name.encode()
        if spec.breakage is not None:
            return (*break_record(spec.breakage, key, fields, append_ms), spec.headers)
        if spec.kind == "evolved":
            return key, NEWER_HEADER + body_of(key, *fields) + zigzag(2) + b"v1", spec.headers
        if spec.kind == "padded":
            numbers = b"".join(padded(each) for each in fields[:3])
            body = padded(len(key)) + key + numbers + bytes([fields[3]])
            return key, SEGMENT_HEADER + body, spec.headers
        return key, value_of(key, *fields), spec.headers


def break_record(
    how: str, key: bytes, fields: tuple[int, int, int, bool], append_ms: int
) -> tuple[bytes | None, bytes | None]:
    """Return key and value of a record that `how` makes a dead letter of."""
    number, start_ms, end_ms, end = fields
    value = value_of(key, *fields)
    by_value = {
        "cut": value[:-1],
        "longer": value + b"\0",
        "null value": None,
        "no schema": b"\xc3\x01unknown!" + value[10:],
        "own end byte": value[:-1] + b"\2",
        "number 0": value_of(key, 0, start_ms, end_ms, end),
        "negative": value_of(key, number, -1, end_ms, end),
        "backwards": value_of(key, number, end_ms, end_ms - 1, end),
        "empty": value_of(key, number, end_ms, end_ms, False),
        "future": value_of(key, number, append_ms, append_ms + 60_001, end),
        "long": value_of(key, number, append_ms - 86_400_001, append_ms, end),
        "late": value_of(key, number, append_ms - 100_002, append_ms - 100_001, end),
        "far": value_of(key, number, -(2**63), LONG_MAX, end),
        "huge varint": SEGMENT_HEADER + zigzag(len(key)) + key + b"\xff" * 9 + b"\x02",
    }
    by_name = {
        "empty name": b"",
        "control": key[:-1] + b"\x1f",
        "zero": key + b"\0",
        "only zeros": b"\0\0",
        "no UTF-8": key[:1] + b"\xff",
        "65 bytes": b"k" * 65,
    }
    if how in by_value:
        return key, by_value[how]
    if how in by_name:
        return by_name[how], value_of(by_name[how], *fields)
    return (None if how == "null key" else key + b"?"), value


# -- tables -----------------------------------------------------------------------------------

FREE_SLOTS = (3, 1022, 1023, 1024, 2047, 2050, 3071)
FILLED_ROWS = 3072


@dataclass(frozen=True)
class Shape:
    """How big a column table is: its rows, its piece lists (None: the usual), filled beforehand."""

    rows_max: int
    lists: int | None
    filled: bool
    seed: int = 7


SHAPES = st.sampled_from(
    [
        Shape(1 << 16, None, False),
        Shape(1 << 16, 1, False),
        Shape(4, None, False),
        Shape(2, 0, False),
        Shape(FILLED_ROWS, None, True),
        Shape(FILLED_ROWS + 2, 2, True),
        Shape(1 << 16, None, True, seed=2**55 + 12345),
    ]
)


def new_columns(shape: Shape, place: Place, policy: Policy) -> ColumnTable:
    """Return an empty column table of this shape (`filled` is up to the caller)."""
    table = ColumnTable(
        place,
        policy,
        writers(),
        seed=shape.seed,
        rows_max=shape.rows_max,
        pieces_max=PIECES_MAX,
    )
    if shape.lists is not None:
        table._store.counters[rows.LISTS_MAX] = shape.lists
    return table


@functools.cache
def filler_blocks() -> tuple[bytes, ...]:
    """Return three blocks full of settled orders that are never forgotten, but for FREE_SLOTS."""
    orders = []
    for slot in sorted(set(range(FILLED_ROWS)) - set(FREE_SLOTS)):
        name = f"filler {slot}"
        time, numbers = IntervalSet([(1, 2)]), IntervalSet([(1, 2)])
        order = Order(name, 0, time, numbers, 1, 1, 1, 1, 2, Phase.SETTLED, 2**61, 0, 1)
        order.digest, order.settlements = evidence_digest(name, time, numbers, 1), 1
        orders.append((slot, order))
    table = new_columns(Shape(1 << 16, None, False), Place(0, 1), Policy())
    table.restore([plain_snapshot(orders).pack()], 0)
    table._store.arrays.changed[:] = 1
    blocks = [content for _, content in table.take_changed_entries() if content is not None]
    assert len(blocks) == FILLED_ROWS // rows.BLOCK_ROWS
    return tuple(blocks)


def by_key(found: Effects) -> dict[bytes, list[bytes]]:
    """Return each order's totals in their sequence."""
    totals: dict[bytes, list[bytes]] = {}
    for total in found.totals:
        totals.setdefault(total.key, []).append(total.value)
    return totals


def letters(found: Effects) -> list[str]:
    """Return the dead letters, sorted: reason, detail and the record as it came."""
    return sorted(map(repr, found.dead_letters))


def assert_same_effects(plain: Effects, columns: Effects) -> None:
    """Assert that two tables gave the same; only totals of different orders may change places."""
    assert by_key(plain) == by_key(columns)
    assert letters(plain) == letters(columns)
    assert plain.forwards == columns.forwards
    assert plain.openings == columns.openings


def assert_sound(table: ColumnTable) -> None:
    """Assert what has to hold of a column table's memory between batches."""
    store, arrays = table._store, table._store.arrays
    used = int(store.counters[rows.ROWS_USED])
    orders, flags = store.orders[:used], store.orders["flags"][:used]
    spilled = np.flatnonzero(flags & rows.SPILLED)
    held = np.flatnonzero((flags & (rows.USED | rows.SPILLED)) == rows.USED)
    free = arrays.free[: int(store.counters[rows.ROWS_FREE])].tolist()
    assert used <= store.rows_max
    assert not (flags & rows.HAS_DEFERRED).any()
    assert not store.orders["flags"][used:].any()
    assert sorted(free) == np.flatnonzero(flags == 0).tolist()
    assert int(store.counters[rows.ORDERS]) == len(held)
    plain = table._plain.slots.taken()
    assert set(spilled.tolist()) == {slot for slot in plain if slot < store.rows_max}
    assert int(store.counters[rows.OVERFLOW]) == sum(slot >= store.rows_max for slot in plain)
    assert len(table._plain.slots) == len(plain)
    assert all(table._plain.slots.at(slot) is not None for slot in plain)

    assert not (orders["key_size"][spilled] & rows.OPENED).any()
    for slot in held[orders["key_size"][held] & rows.OPENED != 0].tolist():
        opened = store.openings.at(slot)
        assert opened is not None
        assert opened.begin_ms <= orders["start_ms"][slot]
        assert opened.offset < orders["source_offset"][slot]
    waiting = table._plain.waiting
    marked = [
        number.encode()
        for number, known in waiting._by_number.items()
        for each in known
        if each.offset not in waiting._taken
    ]
    marked = [each for each in marked if store.index.words_of(each) is not None]
    assert int(store.counters[rows.WAITING]) == len(marked) == int(arrays.waiting.sum())

    lists = orders["list_at"][held]
    lists = lists[lists >= 0].tolist()
    pool = int(store.counters[rows.LISTS_USED])
    pool_free = arrays.lists_free[: int(store.counters[rows.LISTS_FREE])].tolist()
    assert pool <= len(arrays.lists)
    assert sorted([*lists, *pool_free]) == list(range(pool))

    named = flags.astype(bool) & (orders["key_size"] > 0)
    assert int(arrays.tables[:, index.FILLED].sum()) == int(named.sum())
    settled = (flags & rows.SETTLED).astype(bool)
    interim_ms = orders["unbilled_since_ms"] + table.policy.interim_after_ms
    due_ms = np.minimum(orders["deadline_ms"], interim_ms)
    assert (int(store.counters[rows.NEXT_DUE_MS]) <= due_ms[held[~settled[held]]]).all()
    for slots, bounds, times_ms in (
        (held[~settled[held]], arrays.block_due_ms, due_ms),
        (held[settled[held]], arrays.block_retire_ms, orders["deadline_ms"]),
    ):
        assert (bounds[slots // rows.BLOCK_ROWS] <= times_ms[slots]).all()
