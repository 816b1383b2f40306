"""The plain core against the naive oracle, on random histories."""

import itertools
from typing import Any
from unittest import mock

from hypothesis import event, example, given
from hypothesis import strategies as st

from durabill.schemas import Status, encode_total
from durabill.stream_processors.engine import slots as slots_module
from durabill.stream_processors.engine.batch import Chunk
from durabill.stream_processors.engine.table import Effects, IntervalTable
from tests.property.histories import (
    BASE_MS,
    FAR_FUTURE_MS,
    TIMES,
    arriving_together,
    by_order,
    chunk_of,
    histories,
    new_table,
    run,
    sudden_histories,
)
from tests.property.oracle import Entry, Segment, answer

CUTS = st.lists(st.integers(1, 29), max_size=6)


def log_of(*records: tuple[int, str, int, int, int, bool]) -> list[Entry]:
    """Return a log of (append time, order, number, start, end, end?), times counted from BASE."""
    return [
        Entry(
            offset,
            BASE_MS + append_ms,
            order.encode(),
            Segment(order, number, BASE_MS + start_ms, BASE_MS + end_ms, end),
        )
        for offset, (append_ms, order, number, start_ms, end_ms, end) in enumerate(records)
    ]


# An empty end comes again, later than the time that is known: no evidence, but it must keep the
# order known until a repeat of it would be too late (was forgotten before, and began anew).
LATER_EMPTY_END = log_of(
    (0, "SO1", 1, -5, 0, True),
    (60_000, "SO1", 1, 120_000, 120_000, True),
    (60_055, "SO1", 1, 120_000, 120_000, True),
    (60_061, "SO1", 1, 120_000, 120_000, True),
)


@given(histories(), CUTS)
@example(LATER_EMPTY_END, [])
def test_totals_equal_the_oracles(log: list[Entry], cuts: list[int]) -> None:
    expected = answer(log, TIMES)
    found = run(log, cuts)
    for totals in expected.totals.values():
        for total in totals:
            event(f"{total.status}, revision {min(total.revision, 3)}")
    assert expected.totals == found


@given(histories())
def test_dead_letters_equal_the_oracles(log: list[Entry]) -> None:
    effects = new_table().fold(chunk_of(log))
    found = [(each.record.offset, each.reason.value) for each in effects.dead_letters]
    for _, why in found:
        event(why)
    assert answer(log, TIMES).dead_letters == found
    assert effects.forwards == []


@given(histories())
def test_live_state_equals_the_oracles(log: list[Entry]) -> None:
    table = new_table()
    table.fold(chunk_of(log))
    for order, life in answer(log, TIMES).open_lives.items():
        known = table.describe(order)
        assert known is not None
        total = life.total(Status.ABANDONED if life.end_number() is None else Status.INCOMPLETE, 0)
        assert known.intervals == list(total.intervals)
        assert known.missing_numbers == list(total.missing_numbers)
        for name in ("duration_ms", "started_ms", "ended_ms", "end_number"):
            assert getattr(known, name) == getattr(total, name)
        for name in ("segments", "duplicates", "overlap_ms", "source_offset", "source_partition"):
            assert getattr(known, name) == getattr(total, name)


@given(histories(), CUTS)
def test_totals_do_not_depend_on_how_the_log_is_cut(log: list[Entry], cuts: list[int]) -> None:
    assert run(log) == run(log, cuts) == run(log, range(len(log)))


@given(histories(), st.lists(st.tuples(st.integers(0, 29), st.integers(0, 70_000)), max_size=8))
def test_totals_do_not_depend_on_when_timers_look(
    log: list[Entry], ticks: list[tuple[int, int]]
) -> None:
    table = new_table()
    effects: list[Effects] = []
    for at, entry in enumerate(log):
        # At most the next record's append time: the caller has to know that nothing precedes it.
        for ahead_ms in sorted((ahead for before, ahead in ticks if before == at), reverse=True):
            effects.append(table.tick(entry.append_ms - ahead_ms))
        effects.append(table.fold(chunk_of([entry])))
    effects.append(table.tick(FAR_FUTURE_MS))
    assert run(log) == by_order(effects)


# -- the evidence is a set --------------------------------------------------------------------

UNBOUNDED = 1_000
"""Pieces: which of too many are refused depends on the sequence."""

COUNTS = ("duplicates", "overlap_ms")
EVIDENCE = (
    "duration_ms",
    "intervals",
    "started_ms",
    "ended_ms",
    "end_number",
    "missing_numbers",
    "segments",
)


def final_state(log: list[Entry], *fields: str) -> dict[str, dict[str, Any]]:
    """Return these fields of each order's state, and the last total's status and digest."""
    table = new_table(UNBOUNDED)
    effects = [table.fold(chunk_of(log)), table.tick(FAR_FUTURE_MS)]
    states: dict[str, dict[str, Any]] = {}
    for order, totals in by_order(effects).items():
        state = table.describe(order)
        assert state is not None
        states[order] = {name: getattr(state, name) for name in fields}
        states[order] |= {"status": totals[-1].status, "digest": totals[-1].digest}
    return states


def legal_segments(log: list[Entry]) -> list[Segment]:
    """Return the segments of a log that holds nothing else."""
    return [entry.segment for entry in log if entry.segment is not None]


@given(sudden_histories(), st.data())
def test_order_of_arrival_does_not_matter(log: list[Entry], data: st.DataObject) -> None:
    shuffled = arriving_together(data.draw(st.permutations(legal_segments(log))))
    fields = (*EVIDENCE, *COUNTS)
    assert final_state(log, *fields) == final_state(shuffled, *fields)


@given(sudden_histories(), st.data())
def test_repeats_change_nothing_but_counts(log: list[Entry], data: st.DataObject) -> None:
    found = legal_segments(log)
    repeats = data.draw(st.lists(st.sampled_from(found), max_size=8)) if found else []
    again = arriving_together([*found, *repeats])
    assert final_state(log, *EVIDENCE) == final_state(again, *EVIDENCE)


@given(sudden_histories())
def test_second_time_around_gives_no_revision(log: list[Entry]) -> None:
    twice = arriving_together(legal_segments(log) * 2)
    assert final_state(log, *EVIDENCE) == final_state(twice, *EVIDENCE)
    table = new_table(UNBOUNDED)
    once = table.fold(chunk_of(twice[: len(log)]))
    settled = {total.key for total in once.totals}
    late = table.fold(chunk_of(twice[len(log) :]))
    assert [total for total in late.totals if total.key in settled] == []


@given(sudden_histories(), st.data())
def test_splitting_a_segment_keeps_the_time(log: list[Entry], data: st.DataObject) -> None:
    pieces: list[Segment] = []
    for at, each in enumerate(legal_segments(log)):
        # Not so early that the first piece would be too late by itself.
        cut_ms = data.draw(st.integers(min(each.end_ms, BASE_MS - TIMES.window_ms), each.end_ms))
        if each.start_ms < cut_ms < each.end_ms:
            first = Segment(each.order, 100 + at, each.start_ms, cut_ms, False)
            rest = Segment(each.order, each.number, cut_ms, each.end_ms, each.end_identifier)
            pieces += [rest, first]
        else:
            pieces.append(each)

    def time(found: list[Entry]) -> dict[str, Any]:
        states = final_state(found, "intervals", "duration_ms")
        return {order: (each["intervals"], each["duration_ms"]) for order, each in states.items()}

    assert time(log) == time(arriving_together(pieces))


@given(sudden_histories(), st.data())
def test_total_never_falls_when_a_segment_is_added(log: list[Entry], data: st.DataObject) -> None:
    found = legal_segments(log)
    table = new_table(UNBOUNDED)
    duration_ms: dict[str, int] = {}
    for entry in arriving_together(data.draw(st.permutations(found))):
        table.fold(chunk_of([entry]))
        order = entry.key.decode()
        state = table.describe(order)
        assert state is not None
        assert state.duration_ms >= duration_ms.get(order, 0)
        duration_ms[order] = state.duration_ms


@given(histories())
def test_revisions_of_a_life_count_up_and_never_fall(log: list[Entry]) -> None:
    for totals in run(log).values():
        for before, after in itertools.pairwise(totals):
            if after.revision == 1:
                continue  # the order had been forgotten and began anew
            assert after.revision == before.revision + 1
            assert after.previous_digest == before.digest
            assert after.duration_ms >= before.duration_ms
            assert after.settled_at_ms >= before.settled_at_ms
            assert after.source_offset >= before.source_offset
            if Status.RUNNING in (before.status, after.status):
                continue  # it goes on, whether or not anything came
            assert after.digest != before.digest
            assert after.source_offset > before.source_offset


# -- crashes and torn checkpoints -------------------------------------------------------------


class Worker:
    """A partition's worker with a checkpoint store; crashes when told to."""

    def __init__(self, log: list[Entry]) -> None:
        self.log = log
        self.table: IntervalTable = new_table()
        self.next_offset = 0
        self.effects: list[Effects] = []
        self.store: dict[str, bytes] = {}
        self.committed_offset = 0
        self.committed_clock_ms = 0

    def fold(self, count: int) -> None:
        """Take in the next `count` records; replayed ones come in the batches that hold them."""
        ahead = [entry for entry in self.log if entry.offset >= self.next_offset][:count]
        if not ahead:
            return
        end = ahead[-1].offset
        whole = [
            entry
            for entry in self.log
            if entry.offset <= end
            and (entry.offset >= self.next_offset or entry.append_ms == ahead[0].append_ms)
        ]
        chunk = chunk_of(whole, self.next_offset)
        self.effects.append(self.table.fold(Chunk(self.next_offset, end + 1, chunk.data)))
        self.next_offset = end + 1

    def checkpoint(self) -> None:
        """Write every changed block, then move the offset, then give slots back."""
        for block, content in self.table.take_changed_entries():
            self._write(block, content)
        self.committed_offset = self.next_offset
        self.committed_clock_ms = self.table.clock_ms
        self.table.confirm(self.committed_clock_ms)

    def crash(self, written: list[bool]) -> None:
        """Die in a checkpoint of which only some blocks got written; recover."""
        changed = self.table.take_changed_entries()
        for (block, content), done in zip(changed, written, strict=False):
            if done:
                self._write(block, content)
        self.table = new_table()
        self.table.restore(self.store.values(), self.committed_clock_ms)
        self.next_offset = self.committed_offset

    def _write(self, block: str, content: bytes | None) -> None:
        if content is None:
            self.store.pop(block, None)
        else:
            self.store[block] = content


ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("fold"), st.integers(1, 6)),
        st.just(("checkpoint",)),
        st.tuples(st.just("crash"), st.lists(st.booleans(), min_size=6, max_size=6)),
    ),
    max_size=25,
)

# A life ends and the next begins in another block between two checkpoints, of which only the
# block without the order gets written: a replayed repeat would have started it once more.
REBIRTH = log_of(
    (0, "SO1", 1, -5, 0, True),
    (10, "SO2", 1, 60_000, 60_010, True),
    (60_065, "SO3", 1, 60_050, 60_055, False),
    (60_070, "SO2", 1, 60_000, 60_010, True),
    (60_071, "SO2", 1, 60_060, 60_071, True),
)


@given(histories(orders=5, size_max=30), ACTIONS, st.integers(1, 3))
@example(
    REBIRTH,
    [("fold", 3), ("checkpoint",), ("fold", 2), ("crash", [False, True, True, True, True, True])],
    1,
)
def test_torn_checkpoints_do_no_harm(
    log: list[Entry], actions: list[tuple[Any, ...]], slots: int
) -> None:
    expected = {encode_total(total) for totals in run(log).values() for total in totals}
    with mock.patch.object(slots_module, "BLOCK_SLOTS", slots):
        worker = Worker(log)
        for name, *arguments in actions:
            getattr(worker, name)(*arguments)
        worker.fold(len(log))
        undisturbed = new_table()
        undisturbed.fold(chunk_of(log))
        for entry in log:
            ours = worker.table.describe(entry.key.decode())
            if ours is not None:
                assert undisturbed.describe(entry.key.decode()) == ours
        worker.effects.append(worker.table.tick(FAR_FUTURE_MS))
        assert {total.value for each in worker.effects for total in each.totals} == expected
        worker.checkpoint()
        worker.checkpoint()
        # All is over, so nothing is kept: neither in memory nor in the store.
        assert (len(worker.table), worker.store) == (0, {})
