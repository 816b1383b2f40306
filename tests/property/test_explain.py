"""An order explained from the log is the order that a partition's table has billed."""

import itertools
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

from hypothesis import event, example, given
from hypothesis import strategies as st

from durabill.schemas import OrderTotal, Reason
from durabill.stream_processors.audit.story import Basis, Story
from durabill.stream_processors.core.admission import Fate, Place
from durabill.stream_processors.core.explain import (
    Forgotten,
    Happening,
    Revision,
    Standing,
    Verdict,
    explain,
)
from durabill.stream_processors.core.order import Policy
from durabill.stream_processors.engine.batch import Chunk, Record, records
from durabill.stream_processors.engine.plain import PlainTable
from durabill.stream_processors.engine.policies import History, PolicyRecord, Terms, in_force, split
from tests.property import column_histories
from tests.property.batches import encode_batch
from tests.property.column_histories import BATCHES, PIECES_MAX, PLACES, POLICIES, Writer, writers
from tests.property.histories import TIMES, chunk_of, histories, totals_in
from tests.property.oracle import Entry
from tests.property.test_core import LATER_EMPTY_END, REBIRTH

POLICY = Policy(TIMES.grace_ms, TIMES.idle_ms, TIMES.window_ms, TIMES.interim_ms)
OTHERS = st.builds(
    Policy,
    st.sampled_from([5, 0, 20]),
    st.sampled_from([9, 90]),
    st.sampled_from([60, 20_000]),
    st.sampled_from([0, 6, 40]),
)
CHANGES = st.lists(st.tuples(st.integers(0, 40), OTHERS), max_size=3)


def history_of(first: Policy, changes: Sequence[tuple[int, Policy]], starts: set[int]) -> History:
    """Return recorded terms that change where batches begin, as a worker's takeover has it."""
    later = sorted((each for each in changes if each[0] in starts), key=lambda each: each[0])
    found = [(0, first), *later]
    return tuple(PolicyRecord(at, Terms(policy)) for at, policy in found)


def told(
    number: str, log: Sequence[Record], place: Place, history: History, pieces_max: int
) -> list[Happening]:
    """Return what explain() tells of an order."""

    def policy_at(offset: int) -> Policy:
        return in_force(history, offset).policy

    read: Callable[[bytes | None, int], Any] = writers().read
    return list(explain(number, log, place, policy_at, read, pieces_max=pieces_max))


class Folded:
    """What a table gives of a log, cut into chunks."""

    def __init__(
        self, chunks: Sequence[Chunk], place: Place, history: History, pieces_max: int
    ) -> None:
        self.table = PlainTable(place, history[0].terms.policy, writers(), pieces_max=pieces_max)
        effects = []
        for chunk in chunks:
            for terms, piece in split(chunk, history):
                if terms is not None:
                    self.table.set_policy(terms.policy)
                effects.append(self.table.fold(piece))
            self.table.set_policy(in_force(history, chunk.next_offset).policy)
        self.totals: dict[str, list[OrderTotal]] = {}
        for total in totals_in(effects):
            self.totals.setdefault(total.service_order_number, []).append(total)
        self.letters = {
            each.record.offset: (each.reason, each.detail)
            for part in effects
            for each in part.dead_letters
        }
        self.forwards = {
            each.record.offset: each.partition for part in effects for each in part.forwards
        }


def assert_told(number: str, log: Sequence[Record], folded: Folded, found: list[Happening]) -> None:
    """Assert that an explanation is what the table did."""
    given = [each for each in found if isinstance(each, Revision)]
    assert folded.totals.get(number, []) == [each.total for each in given]
    verdicts = {each.record.offset: each for each in found if isinstance(each, Verdict)}
    for record in log:
        if record.key == number.encode() and record.offset not in verdicts:
            raise AssertionError(f"nothing is told of {record}")
    for offset, each in verdicts.items():
        letter: tuple[Reason, str] | None = folded.letters.get(offset)
        assert (letter is None) == (each.fate is not None)
        assert letter is None or (each.reason, each.detail) == letter or len(letter[1]) == 500
        assert (each.fate is Fate.FORWARDED) == (offset in folded.forwards)
        assert each.partition == folded.forwards.get(offset)
        event(f"{each.fate or each.reason}")
    standing = found[-1]
    assert isinstance(standing, Standing)
    assert standing.clock_ms == folded.table.clock_ms
    known = folded.table.describe(number)
    is_over = known is not None and known.phase == "SETTLED"
    if is_over and known is not None and known.deadline_ms < standing.clock_ms:
        known = None  # forgotten, though its slot has not been given back
    assert known == standing.state
    assert_lives_are_apart(found)
    assert_milliseconds(number, found, standing)


def assert_milliseconds(number: str, found: list[Happening], standing: Standing) -> None:
    """Assert which milliseconds each record is said to add: those that no record before it has.

    What is gathered in a story is what the order's state is at the end.
    """
    known: dict[int, list[tuple[int, int]]] = {}
    for each in found:
        if isinstance(each, Verdict) and each.fate in (Fate.BEGINS, Fate.COUNTS):
            assert each.raw is not None
            before = known.setdefault(each.life, [])
            # Between any two edges all milliseconds are alike: one stands for them.
            pieces = [each.raw[2:4], *each.gained, *before]
            for at in {edge for piece in pieces for edge in piece}:
                if not each.raw[2] <= at < each.raw[3]:
                    continue
                is_new = not any(start <= at < end for start, end in before)
                assert any(start <= at < end for start, end in each.gained) == is_new
            assert all(each.raw[2] <= start < end <= each.raw[3] for start, end in each.gained)
            assert each.gained_ms == sum(end - start for start, end in each.gained)
            before.append((each.raw[2], each.raw[3]))
        elif isinstance(each, Verdict):
            assert not each.gained
    story = Story(number, 0, Basis(()))
    story.add(0, found)
    for life in story.lives:
        states = [each for each in story.states if each.life == life.life]
        assert all(a.phase != b.phase for a, b in pairwise(states))
        assert [each.at_ms for each in states] == sorted(each.at_ms for each in states)
    if standing.state is not None:
        last = story.lives[-1]
        assert standing.state.phase == story.states[-1].phase
        assert standing.state.missing_numbers == last.missing_numbers
        assert standing.state.end_number == last.end_number
        assert standing.state.intervals == list(last.union)
        assert (last.started_ms, last.ended_ms) == (
            standing.state.started_ms,
            standing.state.ended_ms,
        )


def assert_lives_are_apart(found: list[Happening]) -> None:
    """Assert that each life's revisions count from 1, and that no life goes on once it is over."""
    counts: dict[int, int] = {}
    over: set[int] = set()
    for each in found:
        if isinstance(each, Forgotten):
            over.add(each.life)
        elif isinstance(each, Revision):
            counts[each.life] = counts.get(each.life, 0) + 1
            assert counts[each.life] == each.total.revision
            assert each.life not in over
            cause = each.deadline or "a record"
            event(f"{each.total.status} by {cause}")
            assert (each.deadline is None) <= (each.offset == each.total.source_offset)
        elif isinstance(each, Verdict):
            assert each.life not in over
    event(f"{len(over)} lives are over")


@given(histories(), CHANGES)
@example(LATER_EMPTY_END, [])
@example(REBIRTH, [])
@example(REBIRTH, [(1, Policy(0, 9, 60, 6)), (3, Policy(5, 90, 20_000, 0))])
def test_explained_orders_are_the_tables(
    log: list[Entry], changes: list[tuple[int, Policy]]
) -> None:
    edges = [0, *(at for at in range(1, len(log)) if log[at].append_ms != log[at - 1].append_ms)]
    history = history_of(POLICY, changes, {log[at].offset for at in edges} | {log[-1].offset + 1})
    chunk = chunk_of(log)
    place, pieces_max = Place(0, 1), TIMES.pieces_max
    found = list(records(chunk))
    folded = Folded([chunk], place, history, pieces_max)
    for number in {each.key.decode() for each in log if each.key.decode(errors="replace")}:
        assert_told(number, found, folded, told(number, found, place, history, pieces_max))


@given(st.lists(BATCHES, max_size=8), PLACES, POLICIES, CHANGES)
def test_explained_records_of_all_kinds_are_the_tables(
    batches: list[column_histories.BatchSpec],
    place: Place,
    policy: Policy,
    changes: list[tuple[int, Policy]],
) -> None:
    writer = Writer()
    append_ms, offset = column_histories.BASE_MS, 0
    chunks: list[Chunk] = []
    starts: set[int] = set()
    for batch in batches:
        append_ms += batch.step_ms
        entries = []
        starts.add(offset)
        first = offset
        for spec in batch.records:
            entries.append((offset, writer.entry(spec, append_ms)))
            offset += spec.gap
        if entries:
            data = encode_batch(first, append_ms, entries, codec=batch.codec)
            chunks.append(Chunk(first, offset, data))
    found = list(itertools.chain.from_iterable(map(records, chunks)))
    # What is told last holds right after the last record; offsets without one may follow it.
    end = found[-1].offset + 1 if found else 0
    history = history_of(policy, changes, {each for each in starts if each < end} | {end})
    folded = Folded(chunks, place, history, PIECES_MAX)
    for number in sorted(writer.names | {"never seen"}):
        assert_told(number, found, folded, told(number, found, place, history, PIECES_MAX))
