"""The columns against the plain core: one log, two tables, the same effects and the same state.

The plain table is never disturbed. The column table writes checkpoints, crashes, comes back from a
mixture of older and newer blocks, or from blocks of the plain table as an upgrade finds them, and
replays. Whenever it has caught up, everything that can be asked of the two must be equal.
"""

import itertools
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from durabill.stream_processors.core.order import Policy
from durabill.stream_processors.engine import columns as columns_module
from durabill.stream_processors.engine import slots as slots_module
from durabill.stream_processors.engine import steps as steps_module
from durabill.stream_processors.engine.batch import Chunk
from durabill.stream_processors.engine.columns import ColumnTable
from durabill.stream_processors.engine.plain import PlainTable
from durabill.stream_processors.engine.table import Effects, Place
from tests.property.batches import Entry, encode_batch
from tests.property.column_histories import (
    BASE_MS,
    BATCHES,
    FORGET_ALL_MS,
    PIECES_MAX,
    PLACES,
    POLICIES,
    SHAPES,
    BatchSpec,
    Shape,
    Writer,
    assert_same_effects,
    assert_sound,
    filler_blocks,
    new_columns,
    writers,
)

WRITTEN = st.integers(0, 8)
"""How many of a checkpoint's entries get written before a crash."""


class Published:
    """What has been sent to Kafka, as a set: a recovery may send things again."""

    def __init__(self) -> None:
        self.seen: set[Any] = set()
        self._at_commit: set[Any] = set()

    def add(self, found: Effects) -> None:
        """Add a step's effects."""
        self.seen |= {(total.key, total.value) for total in found.totals}
        self.seen |= {(each.record.offset, each.reason) for each in found.dead_letters}
        self.seen |= {("forward", each.record.offset) for each in found.forwards}

    def commit(self) -> None:
        """Remember what has certainly been sent."""
        self._at_commit = set(self.seen)

    def lose(self) -> None:
        """Crash before anything since the last commit was sent."""
        self.seen = set(self._at_commit)


class Store:
    """A checkpoint: entries, the chunk from which to replay, and the clock there."""

    def __init__(self, blocks: dict[str, bytes]) -> None:
        self.blocks = blocks
        self.position = 0
        self.clock_ms = 0
        self.next_offset = 0  # what comes before it in that chunk has been folded

    def write(self, changed: list[tuple[str, bytes | None]]) -> None:
        """Write some entries."""
        for block, content in changed:
            if content is None:
                self.blocks.pop(block, None)
            else:
                self.blocks[block] = content

    def torn(self, changed: list[tuple[str, bytes | None]], written: int) -> "Store":
        """Return the checkpoint with only the first few of its newest entries written."""
        mixed = Store(dict(self.blocks))
        mixed.position, mixed.clock_ms = self.position, self.clock_ms
        mixed.next_offset = self.next_offset
        mixed.write(changed[:written])
        return mixed


@dataclass(frozen=True)
class Cut:
    """A checkpoint that has begun: where to replay from, the clock there, what to write."""

    position: int
    clock_ms: int
    changed: list[str]


class Histories(RuleBasedStateMachine):
    """One partition's log, and the two tables."""

    columns: ColumnTable

    @initialize(
        policy=POLICIES,
        place=PLACES,
        shape=SHAPES,
        large=st.sampled_from([3, 3, 4, 9, 32]),
        step_cost=st.sampled_from([1, 64, 65, 200, 24_576]),
    )
    def start(self, policy: Policy, place: Place, shape: Shape, large: int, step_cost: int) -> None:
        """Begin with empty tables, or with columns that have few places left.

        Orders may be large with few pieces, and steps be short.
        """
        self.patched = ExitStack()
        for module, name, value in (
            (slots_module, "LARGE_PIECES", large),
            (steps_module, "STEP_COST", step_cost),
            (columns_module, "STEP_COST", step_cost),
        ):
            self.patched.enter_context(mock.patch.object(module, name, value))
        self.policy, self.place, self.shape = policy, place, shape
        self.plain = PlainTable(place, policy, writers(), pieces_max=PIECES_MAX)
        self.columns = new_columns(shape, place, policy)
        self.writer = Writer()
        self.log: list[Chunk] = []
        self.position = 0  # the next chunk for the columns
        self.now_ms = self.floor_ms = BASE_MS
        self.next_offset = 0
        self.sent, self.expected = Published(), Published()
        blocks = filler_blocks() if shape.filled else ()
        self.cut: Cut | None = None
        self.store, self.plain_store = (
            Store({str(at): block for at, block in enumerate(blocks)}),
            Store({}),
        )
        self.columns.restore(blocks, 0)
        self.fillers = len(self.columns)
        self.filled_blocks = set(self.store.blocks)

    def teardown(self) -> None:
        """Undo what `start` has changed."""
        self.patched.close()

    def caught_up(self) -> bool:
        """Tell whether the columns have seen the whole log."""
        return self.position == len(self.log)

    # -- the log and the clock ----------------------------------------------------------------

    def _batch(self, spec: BatchSpec) -> bytes:
        self.now_ms = max(self.floor_ms, self.now_ms + spec.step_ms)
        entries: list[tuple[int, Entry]] = []
        base_offset = self.next_offset
        for each in spec.records:
            entries.append((self.next_offset, self.writer.entry(each, self.now_ms)))
            self.next_offset += each.gap
        if not entries:
            self.next_offset += 1
        after = entries[-1][0] + 1 if entries else self.next_offset
        return encode_batch(base_offset, self.now_ms, entries, codec=spec.codec, next_offset=after)

    @rule(batches=st.lists(BATCHES, min_size=1, max_size=4), skipped=st.sampled_from([0, 0, 0, 2]))
    def log_grows(self, batches: list[BatchSpec], skipped: int) -> None:
        """A chunk of some batches comes; it may start in the middle of a batch."""
        chunk = self._chunk(batches, skipped)
        caught_up = self.caught_up()
        self.log.append(chunk)
        expected = self.plain.fold(chunk)
        self.expected.add(expected)
        if caught_up:
            found = self.columns.fold(chunk)
            self.sent.add(found)
            self.position += 1
            assert_same_effects(expected, found)

    def _chunk(self, batches: list[BatchSpec], skipped: int) -> Chunk:
        first_offset = self.next_offset + skipped
        data = b"".join(map(self._batch, batches))
        return Chunk(first_offset, max(first_offset, self.next_offset), data)

    @rule(
        batches=st.lists(BATCHES, min_size=1, max_size=4),
        steps=st.integers(1, 12),
        written=st.sampled_from([None, None, *range(5)]),
    )
    @precondition(lambda self: self.caught_up())
    def dies_between_two_steps(
        self, batches: list[BatchSpec], steps: int, written: int | None
    ) -> None:
        """Die in or after a checkpoint that began in the middle of a chunk's folding."""
        chunk = self._chunk(batches, 0)
        self.expected.add(self.plain.fold(chunk))
        next_offset = chunk.first_offset
        for step in itertools.islice(self.columns.steps(chunk), steps):
            assert next_offset <= step.next_offset <= chunk.next_offset
            next_offset = step.next_offset
            self.sent.add(step.effects)
        self.log.append(chunk)
        # One that was begun before has not been written, so what it noted is to be written now.
        begun = [] if self.cut is None else self.cut.changed
        changed = [*begun, *(each for each in self.columns.take_changed() if each not in begun)]
        cut = Cut(self.position, self.columns.clock_ms, changed)
        self.sent.commit()
        store = self.store.torn(self._snapshots(cut), 1_000 if written is None else written)
        if written is None:
            store.position, store.clock_ms = cut.position, cut.clock_ms
            store.next_offset = next_offset
        self._recover(store)

    @rule(ahead_ms=st.sampled_from([0, 1, 5, 9, 50, 90, 60_000, 200_000]))
    def time_passes(self, ahead_ms: int) -> None:
        """A timer looks; no later record can have arrived before."""
        self.floor_ms = self.now_ms = max(self.floor_ms, self.now_ms + ahead_ms)
        expected = self.plain.tick(self.now_ms)
        self.expected.add(expected)
        if self.caught_up():
            found = self.columns.tick(self.now_ms)
            self.sent.add(found)
            assert_same_effects(expected, found)

    # -- checkpoints, crashes, recovery -------------------------------------------------------

    @rule()
    def begin_checkpoint(self) -> None:
        """Note the offset and the blocks to write."""
        if self.cut is None:
            self.cut = Cut(self.position, self.columns.clock_ms, self.columns.take_changed())

    @rule()
    def checkpoint(self) -> None:
        """Write the noted blocks as they are by now, move the offset, give slots back."""
        self.begin_checkpoint()
        assert self.cut is not None
        self.store.write(self._snapshots(self.cut))
        self.store.position, self.store.clock_ms = self.cut.position, self.cut.clock_ms
        self.sent.commit()
        self.columns.confirm(self.cut.clock_ms)
        if self.caught_up():
            self.plain_store.write(self.plain.take_changed_entries())
            self.plain_store.position = self.position
            self.plain_store.clock_ms = self.plain.clock_ms
            self.plain.confirm(self.cut.clock_ms)
        self.cut = None

    def _snapshots(self, cut: "Cut") -> list[tuple[str, bytes | None]]:
        snapshots = [(block, self.columns.snapshot(block)) for block in cut.changed]
        return [(block, each.pack() if each else None) for block, each in snapshots]

    @rule(back_ms=st.sampled_from([0, 1, 50, 60_000]))
    @precondition(lambda self: self.caught_up())
    def confirm_late(self, back_ms: int) -> None:
        """Give slots back as of an earlier instant than the last checkpoint's."""
        clock_ms = min(self.store.clock_ms, self.plain_store.clock_ms) - back_ms
        self.columns.confirm(clock_ms)
        self.plain.confirm(clock_ms)

    @rule(written=WRITTEN, lost=st.booleans())
    def crash(self, written: int, lost: bool) -> None:
        """Die in a checkpoint, or long before one with effects that were never sent."""
        self.begin_checkpoint()
        assert self.cut is not None
        changed = self._snapshots(self.cut)
        if lost:
            self.sent.lose()
            written = 0
        else:
            self.sent.commit()
        self._recover(self.store.torn(changed, written))

    @rule(written=WRITTEN)
    def upgrade(self, written: int) -> None:
        """Go on from the plain table's checkpoint, which may be torn as well."""
        changed = self.plain.take_changed_entries()
        torn = self.plain_store.torn(changed, written)
        self.plain_store.write(changed)
        self.fillers, self.filled_blocks = 0, set()
        self.sent.seen |= self.expected.seen  # by the plain table's worker, before it was stopped
        self.sent.commit()
        self._recover(torn)

    def _recover(self, store: Store) -> None:
        self.columns = new_columns(self.shape, self.place, self.policy)
        self.columns.restore(store.blocks.values(), store.clock_ms)
        self.columns.confirm(store.clock_ms)
        self.store, self.position, self.cut = store, store.position, None
        if self.caught_up():
            self._catch_up()

    @rule(chunks=st.integers(1, 6))
    @precondition(lambda self: not self.caught_up())
    def replay(self, chunks: int) -> None:
        """Fold some chunks again; nothing may come out that the plain table never said."""
        for chunk in self.log[self.position : self.position + chunks]:
            first_offset = max(chunk.first_offset, self.store.next_offset)
            self.sent.add(self.columns.fold(replace(chunk, first_offset=first_offset)))
            self.position += 1
        assert self.sent.seen <= self.expected.seen
        if self.caught_up():
            self._catch_up()

    def _catch_up(self) -> None:
        self.sent.add(self.columns.tick(self.plain.clock_ms))
        self.cut = None  # the next one is to be as of now, for both tables
        self.columns._store.arrays.changed[:] = 1
        self.checkpoint()

    @rule()
    def all_is_over(self) -> None:
        """After a long time nothing is known or kept any more."""
        while not self.caught_up():
            self.replay(len(self.log))
        self.time_passes(FORGET_ALL_MS)
        for _ in ("one that may have begun before", "forgets", "writes what is left: nothing"):
            self.checkpoint()
        assert len(self.plain) == 0
        assert len(self.columns) == self.fillers
        assert set(self.store.blocks) == self.filled_blocks

    # -- what has to hold ---------------------------------------------------------------------

    @invariant()
    def memory_is_sound(self) -> None:
        """The rows, their index and their pool fit together."""
        assert_sound(self.columns)

    @invariant()
    def tables_agree(self) -> None:
        """Everything that can be asked of the two tables is equal."""
        if not self.caught_up():
            return
        assert self.sent.seen == self.expected.seen
        assert self.plain.clock_ms == self.columns.clock_ms
        for name in (*self.writer.names, "SO0\0", "never heard of", "\ud800"):
            assert self.plain.describe(name) == self.columns.describe(name)
        assert len(self.plain) + self.fillers == len(self.columns)
        assert self.plain.oldest_deadline_ms() == self.columns.oldest_deadline_ms()


TestColumnsEqualThePlainCore = Histories.TestCase
TestColumnsEqualThePlainCore.settings = settings(
    stateful_step_count=15,
    # To explain a failure Hypothesis traces every line, which takes hours through numba.
    phases=[phase for phase in Phase if phase is not Phase.explain],
)
