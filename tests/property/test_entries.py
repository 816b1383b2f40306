"""Large orders in entries of their own: checkpoints torn anywhere, while orders grow and shrink.

The entries of a checkpoint are taken one by one, and records come in between. A crash leaves the
first few of them written. After each recovery and replay, all that is known must be what a table
knows that was never disturbed; and no block ever holds a large order.
"""

import random
from dataclasses import dataclass, field
from unittest import mock

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from durabill.schemas import OWN_SCHEMA_ONLY
from durabill.schemas.limits import GRACE_FACTOR_MAX
from durabill.stream_processors.core.order import Policy
from durabill.stream_processors.engine import slots
from durabill.stream_processors.engine.batch import Chunk
from durabill.stream_processors.engine.blocks import decode_block
from durabill.stream_processors.engine.columns import ColumnTable
from durabill.stream_processors.engine.kernel.rows import PIECES_MAX
from durabill.stream_processors.engine.plain import PlainTable
from durabill.stream_processors.engine.table import IntervalTable, Place
from tests.property.batches import encode_batch
from tests.property.column_histories import BASE_MS, assert_sound, value_of
from tests.property.test_kernel_fuzz import NO_EXPLAINING

POLICY = Policy(5, 50, 60)
FORGET_MS = 60 + 60_000 + 60
OUTLIVE_MS = FORGET_MS + POLICY.settle_grace_ms * GRACE_FACTOR_MAX
"""Also one that is corrected for the last time after the longest wait is forgotten by then."""

LARGE = 3
LANES = 3
Entries = list[tuple[str, bytes | None]]


@dataclass
class Worker:
    """A table, its checkpoint, the log, and a table that has seen the log once and undisturbed."""

    columns: bool
    dice: random.Random
    now_ms: int = BASE_MS
    log: list[Chunk] = field(default_factory=list)
    store: dict[str, bytes] = field(default_factory=dict)
    position: int = 0
    clock_ms: int = 0
    names: list[str] = field(default_factory=list)
    lives: list[int] = field(default_factory=lambda: [0] * LANES)
    cut: tuple[int, int, list[str], Entries] | None = None
    own_entries: int = 0

    def __post_init__(self) -> None:
        self.truth = self.new_table(columns=False)
        self.table = self.new_table(self.columns)

    def new_table(self, columns: bool) -> IntervalTable:
        """Return an empty table."""
        if columns:
            return ColumnTable(Place(0, 1), POLICY, OWN_SCHEMA_ONLY, rows_max=64)
        return PlainTable(Place(0, 1), POLICY, OWN_SCHEMA_ONLY)

    def segment(self) -> None:
        """A record comes: a further piece, one between two, all at once, a repeat, the end."""
        lane = self.dice.randrange(LANES)
        # Too long a name for a row; lane 0 has one that fits.
        name = f"{lane}-{self.lives[lane]}".ljust(45 if lane else 3, "x")
        if name not in self.names:
            self.names.append(name)
        number, start = self.dice.randrange(1, 9), 2 * self.dice.randrange(9)
        length = self.dice.choice([1, 1, 1, 1, 40 - start])
        at = self.now_ms - 50 + start
        value = value_of(name.encode(), number, at, at + length, self.dice.random() < 0.08)
        offset = len(self.log)
        data = encode_batch(offset, self.now_ms, [(offset, (name.encode(), value, ()))])
        self.log.append(Chunk(offset, offset + 1, data))
        for table in (self.truth, self.table):
            table.fold(self.log[-1])

    def time_passes(self) -> None:
        """So long that orders settle, or that all are forgotten and others come after them."""
        self.now_ms += self.dice.choice([1, 1, 6, 55, FORGET_MS])
        for lane in range(LANES):
            self.lives[lane] += self.dice.random() < 0.3

    def begin(self) -> None:
        """Cut a checkpoint."""
        if self.cut is None:
            changed = self.table.take_changed()
            assert len(set(changed)) == len(changed)
            self.cut = (len(self.log), self.table.clock_ms, changed, [])

    def take(self, count: int = 1) -> None:
        """Encode the next entries, as they are by now."""
        self.begin()
        assert self.cut is not None
        _, _, changed, taken = self.cut
        for name in changed[len(taken) : len(taken) + count]:
            snapshot = self.table.snapshot(name)
            content = snapshot.pack() if snapshot else None
            if content is not None:
                decoded = decode_block(content)
                self.own_entries += decoded.is_own
                assert decoded.is_own == ("." in name)
                if not decoded.is_own:
                    for _, order in decoded.orders:
                        pieces = len(order.time) + len(order.numbers)
                        # A row has a few at most; here that may be more than what is large.
                        assert pieces <= (2 * PIECES_MAX if self.columns else LARGE + 2)
            taken.append((name, content))

    def finish(self) -> None:
        """Write what is left, and the marks; give slots back."""
        self.take(1_000)
        assert self.cut is not None
        self.position, self.clock_ms, _, taken = self.cut
        self.write(taken)
        self.cut = None
        for table in (self.truth, self.table):
            assert not table.confirm(self.clock_ms)

    def write(self, entries: Entries) -> None:
        """Put entries into the checkpoint."""
        for name, content in entries:
            if content is None:
                self.store.pop(name, None)
            else:
                self.store[name] = content

    def crash(self) -> None:
        """Die with the first few entries written; recover, replay, compare."""
        self.take(self.dice.randrange(3))
        assert self.cut is not None
        taken = self.cut[3]
        self.write(taken[: self.dice.randrange(len(taken) + 1)])
        self.cut = None
        self.table = self.new_table(self.columns)
        entries = list(self.store.values())
        self.dice.shuffle(entries)
        self.table.restore(entries, self.clock_ms)
        assert not self.table.confirm(self.clock_ms)
        for chunk in self.log[self.position :]:
            self.table.fold(chunk)
        self.compare()

    def compare(self) -> None:
        """Assert that what is known is what must be."""
        for name in self.names:
            known, truth = self.table.describe(name), self.truth.describe(name)
            # One that is forgotten may be known for longer by either: it makes no difference.
            over = [
                each is None or (each.phase == "SETTLED" and each.deadline_ms < self.now_ms)
                for each in (known, truth)
            ]
            assert all(over) or known == truth
        if isinstance(self.table, ColumnTable):
            assert_sound(self.table)


ACTIONS = (
    [Worker.segment] * 16
    + [Worker.take] * 6
    + [Worker.time_passes, Worker.finish, Worker.crash]
)  # fmt: skip


def run(seed: int, columns: bool, actions: int = 150) -> Worker:
    """Play a history; return its worker."""
    dice = random.Random(seed)
    worker = Worker(columns, dice)
    with (
        mock.patch.object(slots, "LARGE_PIECES", LARGE),
        mock.patch.object(slots, "BLOCK_SLOTS", slots.BLOCK_SLOTS if columns else 2),
    ):
        for _ in range(actions):
            dice.choice(ACTIONS)(worker)
        worker.crash()
        for _ in range(2):
            worker.now_ms += OUTLIVE_MS
            worker.segment()
            for _ in range(3):
                worker.finish()
        # Only the last segment's order is left, and no entry of all that were large before it.
        assert len(worker.table) == 1
        assert len(worker.store) == 1
    return worker


@pytest.mark.parametrize("columns", [False, True])
@given(st.integers(0, 2**32))
@example(253)
@NO_EXPLAINING
def test_no_large_order_is_lost_or_comes_back(columns: bool, seed: int) -> None:
    run(seed, columns)


@pytest.mark.parametrize("columns", [False, True])
def test_the_histories_have_large_orders(columns: bool) -> None:
    assert sum(run(seed, columns).own_entries for seed in range(5)) > 10
