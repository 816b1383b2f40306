"""Openings: the plain core against the naive oracle, and both engines through torn checkpoints."""

import itertools
from dataclasses import asdict, dataclass, replace
from typing import Any
from unittest import mock

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from durabill.producers.fleet.truth import LogRecord, read_log
from durabill.producers.fleet.truth_order import Policy as FleetPolicy
from durabill.schemas import WriterSchemas
from durabill.stream_processors.core.order import Policy
from durabill.stream_processors.engine import openings as openings_module
from durabill.stream_processors.engine import slots as slots_module
from durabill.stream_processors.engine.batch import Chunk
from durabill.stream_processors.engine.columns import ColumnTable
from durabill.stream_processors.engine.plain import PlainTable
from durabill.stream_processors.engine.table import Effects, IntervalTable, Place
from tests.property.histories import (
    FAR_FUTURE_MS,
    POLICY,
    TIMES,
    by_order,
    chunk_of,
    extended_histories,
    opened_histories,
    value_of,
)
from tests.property.oracle import Entry, answer

LOGS = opened_histories()
TABLES: dict[str, type[PlainTable] | type[ColumnTable]] = {
    "plain": PlainTable,
    "columns": ColumnTable,
}
KINDS = pytest.mark.parametrize("kind", TABLES)


@given(LOGS, st.booleans(), st.lists(st.integers(1, 29), max_size=4))
def test_the_plain_core_equals_the_oracle(
    log: list[Entry], opened_only: bool, cuts: list[int]
) -> None:
    policy = replace(POLICY, opened_only=opened_only)
    table = PlainTable(Place(0, 1), policy, WriterSchemas(), pieces_max=TIMES.pieces_max)
    edges = sorted({0, *(cut for cut in cuts if cut < len(log)), len(log)})
    effects = [table.fold(chunk_of(log[start:end])) for start, end in itertools.pairwise(edges)]
    letters = [
        (each.record.offset, each.reason.value) for found in effects for each in found.dead_letters
    ]
    for _, why in letters:
        event(why)
    expected = answer(log, replace(TIMES, opened_only=opened_only))
    assert expected.dead_letters == letters
    assert expected.opened == [each.offset for found in effects for each in found.openings]
    assert expected.totals == by_order([*effects, table.tick(FAR_FUTURE_MS)])


@given(LOGS, st.booleans())
def test_the_plain_core_equals_the_fleets_oracle(log: list[Entry], opened_only: bool) -> None:
    policy = replace(POLICY, opened_only=opened_only)
    table = PlainTable(Place(0, 1), policy, WriterSchemas(), pieces_max=TIMES.pieces_max)
    folded = table.fold(chunk_of(log))
    records = [
        LogRecord(0, each.offset, each.append_ms, each.key, value_of(each), ()) for each in log
    ]
    found = read_log(records, FleetPolicy(**asdict(policy)), 1, pieces_max=TIMES.pieces_max)
    assert [(each.offset, each.reason) for each in found.dead_letters] == [
        (each.record.offset, each.reason) for each in folded.dead_letters
    ]
    assert found.opened == {b"0/%d" % each.offset for each in folded.openings}
    assert found.totals == by_order([folded, table.tick(FAR_FUTURE_MS)])


# -- crashes ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Life:
    """What a worker does from its recovery on, in records: fold some, and then crash.

    It begins a checkpoint after `begun` records, encodes its entries one by one after each of as
    many further records as there are, and gets `written` of them written (None: all of it).
    """

    begun: int
    entries_apart: int
    written: int | None
    records: int


LIVES = st.lists(
    st.builds(
        Life,
        st.integers(0, 12),
        st.integers(0, 3),
        st.sampled_from([None, None, 0, 1, 2, 3]),
        st.integers(1, 14),
    ),
    max_size=5,
)


def sent_by(found: Effects) -> set[Any]:
    """Return what effects send, of which a recovery may send things again."""
    return {
        *((total.key, total.value) for total in found.totals),
        *((each.record.offset, each.reason) for each in found.dead_letters),
        *found.openings,
    }


class Worker:
    """A table of one partition and its checkpoint, over several lives."""

    def __init__(self, kind: str, policy: Policy, log: list[Entry]) -> None:
        self._kind, self._policy = kind, policy
        self._chunks = [chunk_of([each]) for each in log]
        self._blocks: dict[str, bytes] = {}
        self._position = self._clock_ms = 0
        self.sent: set[Any] = set()

    def _table(self) -> IntervalTable:
        table = TABLES[self._kind](
            Place(0, 1), self._policy, WriterSchemas(), pieces_max=max(9, TIMES.pieces_max)
        )
        table.restore(self._blocks.values(), self._clock_ms)
        table.confirm(self._clock_ms)
        return table

    def _fold(self, table: IntervalTable, chunk: Chunk) -> None:
        self.sent |= sent_by(table.fold(chunk))

    def live(self, life: Life) -> None:
        """Recover, go on for a while with a checkpoint in it, and die."""
        table, waiting = self._table(), list(self._chunks[self._position :])
        coming = iter(waiting[: life.records])
        begun = 0
        for chunk in itertools.islice(coming, life.begun):
            self._fold(table, chunk)
            begun += 1
        position, clock_ms = self._position + begun, table.clock_ms
        entries = []
        for name in table.take_changed():
            snapshot = table.snapshot(name)
            entries.append((name, snapshot.pack() if snapshot else None))
            for chunk in itertools.islice(coming, life.entries_apart):
                self._fold(table, chunk)
        for name, content in entries[: life.written]:
            if content is None:
                self._blocks.pop(name, None)
            else:
                self._blocks[name] = content
        if life.written is None:
            self._position, self._clock_ms = position, clock_ms
            while table.confirm(clock_ms):
                pass

    def finish(self) -> IntervalTable:
        """Recover, and fold all that is left."""
        table = self._table()
        for chunk in self._chunks[self._position :]:
            self._fold(table, chunk)
        self.sent |= sent_by(table.tick(FAR_FUTURE_MS))
        return table


@KINDS
@given(LOGS, st.booleans(), LIVES)
def test_crashes_change_nothing(
    kind: str, log: list[Entry], opened_only: bool, lives: list[Life]
) -> None:
    check_lives(kind, log, opened_only, lives)


AHEAD = st.builds(Life, st.integers(2, 8), st.just(0), st.sampled_from([1, 1, 2, None]), st.just(9))


@KINDS
@settings(max_examples=150)
@given(extended_histories(), st.tuples(AHEAD, AHEAD))
def test_states_that_are_ahead_change_nothing_about_extensions(
    kind: str, log: list[Entry], lives: tuple[Life, Life]
) -> None:
    """Each record is judged by the extensions before it, though the state has later ones."""
    check_lives(kind, log, False, list(lives))


def check_lives(kind: str, log: list[Entry], opened_only: bool, lives: list[Life]) -> None:
    policy = replace(POLICY, opened_only=opened_only)
    undisturbed = PlainTable(Place(0, 1), policy, WriterSchemas(), pieces_max=9)
    expected = sent_by(undisturbed.fold(chunk_of(log))) | sent_by(undisturbed.tick(FAR_FUTURE_MS))
    with (
        mock.patch.object(openings_module, "ENTRY_PLACES", 1),
        mock.patch.object(slots_module, "BLOCK_SLOTS", 1024 if kind == "columns" else 1),
    ):
        worker = Worker(kind, policy, log)
        for life in lives:
            worker.live(life)
            assert worker.sent <= expected
        table = worker.finish()
        assert worker.sent == expected
        while table.confirm(2 * FAR_FUTURE_MS):
            pass
        assert len(table) == table.openings_waiting == 0
