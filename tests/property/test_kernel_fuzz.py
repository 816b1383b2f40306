"""Random and mutated bytes for the kernel's parser, against the plain reader of the same bytes.

Whatever the bytes are: both tables give the same totals, dead letters and state, those of what
is left of a batch included. The same corpus is run three times: as compiled for production; by
plain Python, where arrays refuse every position outside (negative ones too, which compiled code
wraps around); and compiled with numba's bounds checks. The last two run in processes of their own,
since numba decides how to compile when the kernel is imported.
"""

import json
import os
import random
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from durabill.schemas import OWN_SCHEMA_ONLY, SEGMENT_HEADER, Reason, WriterSchemas
from durabill.schemas.wire import zigzag
from durabill.stream_processors.core.order import Policy
from durabill.stream_processors.engine.batch import Chunk
from durabill.stream_processors.engine.columns import ColumnTable
from durabill.stream_processors.engine.kernel import fold, maintain, rows, tasks, totals, unaligned
from durabill.stream_processors.engine.plain import PlainTable
from durabill.stream_processors.engine.table import Effects, IntervalTable, Place
from tests.property.batches import LOG_APPEND_TIME, encode_batch, encode_record
from tests.property.column_histories import (
    NEWER_HEADER,
    by_key,
    letters,
    registry,
    value_of,
    writers,
)

ROOT = Path(__file__).resolve().parents[2]
NOW_MS = 1_700_000_000_000
NAMES = [b"SO1", b"SO2", b"SO3", b"8 bytes!", b"x" * 40, b"x" * 41, "é".encode(), b"new"]
EXTREMES = [0, -1, 1, 63, 64, 2**31 - 1, 2**31, -(2**31), 2**32, 2**62, 2**63 - 1, -(2**63)]
STARTS = [SEGMENT_HEADER] * 20 + [NEWER_HEADER, b"\xc3\x01unknown!", b"\0\0\0\0\7", b"\xc3", b""]
NO_EXPLAINING = settings(phases=[phase for phase in Phase if phase is not Phase.explain])


# -- odd batches ------------------------------------------------------------------------------


class Numbers:
    """Writes varints; one of them, the `victim`, in a way that it should not be."""

    def __init__(self, dice: random.Random, victim: int) -> None:
        self.dice = dice
        self.left = victim

    def __call__(self, value: int) -> bytes:
        """Return `value` as a varint, or something else if it is the victim's turn."""
        self.left -= 1
        if self.left:
            return zigzag(value)
        ways: list[Callable[[], bytes]] = [
            lambda: zigzag(self.dice.choice(EXTREMES)),
            lambda: zigzag(value + self.dice.choice([-2, -1, 1, 2])),
            lambda: zigzag(value)[:-1] + bytes([zigzag(value)[-1] | 0x80, 0]),
            lambda: zigzag(value)[:-1] + bytes([zigzag(value)[-1] | 0x80, *[0x80] * 12, 0]),
            lambda: b"\x80" * self.dice.randrange(8, 12) + bytes([self.dice.randrange(128)]),
            lambda: b"\xff" * 9 + bytes([self.dice.randrange(256)]),
            lambda: self.dice.randbytes(self.dice.randrange(4)),
        ]
        return self.dice.choice(ways)()


def odd_record(dice: random.Random, delta: int) -> bytes:
    """Return a record, mostly with one number that is wrong or strangely written."""
    number = Numbers(dice, dice.choice([0] * 25 + [*range(1, 16)]))
    name = dice.choice(NAMES)
    key = name if dice.random() < 0.95 else dice.choice([b"", name + b"\0", b"\xff", name[:-1]])
    end_ms = NOW_MS - dice.randrange(20)
    body = number(len(name)) + name + number(dice.choice([1, 1, 2, 3, 2**31, 2**63 - 1]))
    body += number(end_ms - dice.randrange(1, 6)) + number(end_ms)
    body += bytes([dice.choice([0, 0, 0, 1, 1, 2, 255])])
    value = dice.choice(STARTS) + body
    headers = dice.choice([[]] * 4 + [[(b"forwarded_from", b"3/5")], [(b"a", b""), (b"b", b"c")]])
    content = dice.choice([b"\0", b"\0", b"\xff"]) + number(0) + number(delta)
    content += number(len(key)) + key + number(len(value)) + value + number(len(headers))
    for title, said in headers:
        content += number(len(title)) + title + number(len(said)) + said
    return number(len(content)) + content


def with_odd_bytes(dice: random.Random, body: bytes) -> bytes:
    """Return `body` with some bytes changed, lost, doubled or put in."""
    found = bytearray(body)
    for _ in range(dice.choice([1, 1, 2, 5])):
        at = dice.randrange(len(found) + 1)
        how = dice.randrange(6)
        if how <= 2 and at < len(found):
            odd = [0, 1, 0x7F, 0x80, 0xFF, dice.randrange(256), found[at] ^ 1 << dice.randrange(8)]
            found[at] = dice.choice(odd)
        elif how == 3:
            del found[at : at + dice.choice([1, 1, 2, 9])]
        elif how == 4:
            found[at:at] = dice.randbytes(dice.choice([1, 1, 2, 9]))
        elif how == 5:
            found[at:at] = found[at : at + dice.randrange(40)]
    return bytes(found[: dice.randrange(len(found) + 1)] if dice.random() < 0.05 else found)


def raw_batch(base_offset: int, count: int, body: bytes) -> bytes:
    """Return a batch with any body at all; its CRC has been verified by those before us."""
    times = (NOW_MS, NOW_MS, -1, -1, -1)
    rest = struct.pack(">hiqqqhii", LOG_APPEND_TIME, max(0, count - 1), *times, count) + body
    return struct.pack(">qiibI", base_offset, len(rest) + 9, 0, 2, 0) + rest


def odd_batch(dice: random.Random, base_offset: int) -> bytes:
    """Return a batch that may be wrong in any way that still has a good header."""
    count = dice.randrange(1, 6)
    if dice.random() < 0.05:
        return raw_batch(base_offset, count, dice.randbytes(dice.randrange(120)))
    astray = [0] * 60 + [-1, 1, count, 2**31]
    body = b"".join(odd_record(dice, delta + dice.choice(astray)) for delta in range(count))
    if dice.random() < 0.25:
        body = with_odd_bytes(dice, body)
    return raw_batch(base_offset, count + dice.choice([0] * 20 + [-1, 1, 2**31 - 1 - count]), body)


# -- the two tables ---------------------------------------------------------------------------


def first_chunk() -> Chunk:
    """Return what the tables know beforehand: an order with holes, a settled, an ended one."""
    segments = [(b"SO1", 1, 90, 95, 0), (b"SO1", 5, 60, 70, 0), (b"SO2", 1, 80, 85, 1)]
    segments += [(b"SO3", 2, 20, 30, 1), (b"x" * 40, 1, 20, 30, 0), (b"x" * 41, 1, 20, 30, 0)]
    entries = [
        (at, (name, value_of(name, number, NOW_MS - 100 + start, NOW_MS - 100 + end, last > 0), ()))
        for at, (name, number, start, end, last) in enumerate(segments)
    ]
    return Chunk(0, len(entries), encode_batch(0, NOW_MS - 3, entries))


class Pair:
    """A plain table and a column table that have seen the same."""

    def __init__(self, known: WriterSchemas = OWN_SCHEMA_ONLY) -> None:
        policy, place = Policy(5, 9, 1_000), Place(0, 1)
        self.tables: list[IntervalTable] = [
            PlainTable(place, policy, known),
            ColumnTable(place, policy, known, seed=3, rows_max=64),
        ]
        self.next_offset = first_chunk().next_offset
        for table in self.tables:
            table.fold(first_chunk())

    def agrees_about(self, data: bytes) -> bool:
        """Assert that both tables make the same of a chunk; tell whether all of it counts."""
        chunk = Chunk(self.next_offset, self.next_offset + 8, data)
        effects = [table.fold(chunk) for table in self.tables]
        plain, columns = map(outcome, effects, self.tables)
        assert plain == columns
        self.next_offset += 8
        return all(each.reason is not Reason.BAD_BATCH for each in effects[0].dead_letters)

    def agrees_after_a_restart(self) -> None:
        """Assert that the columns' checkpoint holds what the plain table knows."""
        plain, columns = self.tables
        restored = ColumnTable(plain.place, plain.policy, writers(), seed=4, rows_max=64)
        blocks = [content for _, content in columns.take_changed_entries() if content is not None]
        restored.restore(blocks, plain.clock_ms)
        assert state(plain) == state(restored)


def outcome(effects: Effects, table: IntervalTable) -> Any:
    """Return all that a chunk has done to a table."""
    return by_key(effects), letters(effects), effects.forwards, state(table)


def state(table: IntervalTable) -> Any:
    """Return what a table knows."""
    known = [table.describe(name.decode()) for name in NAMES]
    return known, len(table), table.oldest_deadline_ms()


def fuzz(seed: int, batches: int) -> tuple[int, int]:
    """Feed odd batches to a pair of tables; return how many counted whole, how many in part."""
    dice, readable = random.Random(seed), 0
    known = [OWN_SCHEMA_ONLY, writers(), WriterSchemas(registry)]
    pair = Pair(dice.choice(known))
    for _ in range(batches):
        readable += pair.agrees_about(odd_batch(dice, pair.next_offset))
    pair.agrees_after_a_restart()
    return readable, batches - readable


# -- compiled as in production ----------------------------------------------------------------


@given(st.integers(0, 2**32))
@NO_EXPLAINING
def test_odd_batches(seed: int) -> None:
    fuzz(seed, batches=8)


@given(st.binary(max_size=60), st.integers(0, 8))
@NO_EXPLAINING
def test_random_bytes(body: bytes, count: int) -> None:
    Pair().agrees_about(raw_batch(6, count, body))


def test_what_comes_before_a_bad_record_counts_and_what_comes_after_the_batch() -> None:
    pair = Pair()
    done, new = (
        encode_record(0, (name, value_of(name, 1, NOW_MS - 5, NOW_MS, True), ()))
        for name in (b"done", b"next")
    )
    assert not pair.agrees_about(raw_batch(pair.next_offset, 2, done + b"\0"))
    assert pair.tables[1].describe("done") is not None
    good = raw_batch(pair.next_offset, 1, new)
    effects = pair.tables[1].fold(Chunk(pair.next_offset, pair.next_offset + 1, good))
    assert [total.key for total in effects.totals] == [b"next"]


# -- in plain Python, and with bounds checks --------------------------------------------------

BATCHES = {"plain Python": 300, "bounds checks": 3_000}
START = """
import numba, durabill.stream_processors.engine.kernel
# Compiled code without the checks must neither be taken from the cache nor the other way round.
numba.config.CACHE_DIR += "-boundscheck"
from tests.property import test_kernel_fuzz
test_kernel_fuzz.run({mode!r})
"""


@pytest.mark.parametrize(
    ("mode", "switch"),
    [
        ("plain Python", "DISABLE_JIT"),
        # Slow: the whole kernel is compiled once more, with the checks.
        pytest.param("bounds checks", "BOUNDSCHECK", marks=pytest.mark.slow),
    ],
)
def test_nothing_is_read_or_written_outside(mode: str, switch: str) -> None:
    # The checks are in the code either way; LLVM's work on it takes most of a minute.
    environment = {**os.environ, f"NUMBA_{switch}": "1", "NUMBA_OPT": "0"}
    done = subprocess.run(
        [sys.executable, "-c", START.format(mode=mode)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4_000:]
    readable, corrupt = json.loads(done.stdout)
    assert min(readable, corrupt) > BATCHES[mode] // 5


def run(mode: str) -> None:
    """Run the corpus in a process of its own; writes the counts as JSON."""
    if mode == "plain Python":
        assert not hasattr(fold.fold, "py_func")  # it is plain Python, nothing is compiled
        refuse_positions_outside()
        np.seterr(over="ignore")  # the hash is meant to wrap around
    else:
        assert hasattr(fold.fold, "py_func")
    assert_that_outside_is_refused()
    sys.stdout.write(json.dumps(fuzz(20_261_122, BATCHES[mode])))


def assert_that_outside_is_refused() -> None:
    """Make sure that the checks are on, not left out by a cache."""
    with pytest.raises(IndexError):
        totals.put_decimal(np.zeros(1, np.uint8), 3, 5)
    table = ColumnTable(Place(0, 1), Policy(), writers(), rows_max=64)
    arrays, task = table._store.arrays._replace(deferred=np.empty(0, np.int64)), table._task
    task[tasks.RECORDS] = task[tasks.NEXT_DELTA] = 1
    data = np.frombuffer(b"\x0c\0\0\0\1\1\0", np.uint8)
    with pytest.raises(IndexError):
        fold.fold(arrays, data, task, np.frombuffer(SEGMENT_HEADER, np.uint8))


class Checked(np.ndarray[Any, Any]):
    """An array that takes no negative positions: in the kernel they are always a mistake."""

    def __getitem__(self, at: Any) -> Any:
        """Return an element, as an array does."""
        return super().__getitem__(not_negative(at))

    def __setitem__(self, at: Any, value: Any) -> None:
        """Set an element, as an array does."""
        super().__setitem__(not_negative(at), value)


class Row:
    """One row with its fields as attributes, as compiled code has them."""

    array: Any
    at: int

    def __init__(self, array: Any, at: int) -> None:
        self.__dict__["array"], self.__dict__["at"] = array, at

    def __getattr__(self, name: str) -> Any:
        """Return a field."""
        return int(self.array[name][self.at])

    def __setattr__(self, name: str, value: Any) -> None:
        """Set a field."""
        self.array[name][self.at] = value

    def __getitem__(self, name: str) -> Any:
        """Return a field, as numpy's rows do."""
        return self.array[name][self.at]

    __setitem__ = __setattr__


class Table:
    """An array of rows for plain Python: compiled code's `rows[at].field`, and checked."""

    def __init__(self, array: Any) -> None:
        self.array = array
        self.shape = array.shape

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.array)

    def __getitem__(self, at: Any) -> Any:
        """Return a row; anything else as an array does."""
        if not isinstance(at, int | np.integer):
            return self.array[at]
        if not 0 <= at < len(self.array):
            raise IndexError(at)
        return Row(self.array, int(at))

    def __setitem__(self, at: int, row: Row) -> None:
        """Copy a row."""
        assert 0 <= at < len(self.array)
        self.array[at] = row.array[row.at]


def not_negative(at: Any) -> Any:
    """Return `at`, or raise IndexError if it is or holds a negative position."""
    for each in at if isinstance(at, tuple) else (at,):
        if isinstance(each, int | np.integer) and each < 0:
            raise IndexError(at)
    return at


def refuse_positions_outside() -> None:
    """Have column tables made of arrays that check every position; for plain Python only."""
    from durabill.stream_processors.engine import store

    make = store.RowStore.__init__

    def make_checked(self: store.RowStore, *arguments: Any) -> None:
        make(self, *arguments)
        checked: dict[str, Any] = {}
        for name, array in self.arrays._asdict().items():
            is_rows = isinstance(array, Table) or array.dtype == rows.ORDER
            raw = array.array if isinstance(array, Table) else array
            checked[name] = Table(raw) if is_rows else raw.view(Checked)
        self.arrays = rows.RowArrays(**checked)
        self.orders = self.index.orders = checked["orders"]

    store.RowStore.__init__ = make_checked  # type: ignore[method-assign, assignment]
    restore_rows, are_sound = maintain.restore_rows, maintain.are_sound
    maintain.restore_rows = lambda arrays, new, *rest: restore_rows(arrays, Table(new), *rest)
    maintain.are_sound = lambda held, lists: are_sound(Table(held), lists.view(Checked))
    assert unaligned.load_u64 is unaligned._load_u64_plainly
