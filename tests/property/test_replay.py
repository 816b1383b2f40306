"""A replay gives what the live table gave, on both engines, however the log was cut or kept."""

import itertools
from unittest import mock

from hypothesis import given, settings
from hypothesis import strategies as st

from durabill.stream_processors.audit import replay as replay_module
from durabill.stream_processors.audit.replay import (
    Engine,
    PartitionTerms,
    Replay,
    chunk_of_rows,
    cuts_of,
)
from durabill.stream_processors.core.order import Policy
from durabill.stream_processors.engine.batch import Chunk, records
from durabill.stream_processors.engine.plain import PlainTable
from durabill.stream_processors.engine.policies import PolicyRecord, Terms, in_force
from durabill.stream_processors.engine.table import Effects, Place
from tests.property.batches import Entry, encode_batch
from tests.property.column_histories import (
    BASE_MS,
    BATCHES,
    PLACES,
    POLICIES,
    BatchSpec,
    Writer,
    by_key,
    letters,
    writers,
)


def log_of(specs: list[BatchSpec]) -> list[Chunk]:
    """Return the log that these batches make, a chunk for each."""
    writer, now_ms, offset, chunks = Writer(), BASE_MS, 0, []
    for spec in specs:
        now_ms += spec.step_ms
        base, entries = offset, list[tuple[int, Entry]]()
        for each in spec.records:
            entries.append((offset, writer.entry(each, now_ms)))
            offset += each.gap
        offset = max(offset, base + 1)
        data = encode_batch(base, now_ms, entries, codec=spec.codec, next_offset=offset)
        chunks.append(Chunk(base, offset, data))
    return chunks


def live(place: Place, terms: PartitionTerms, log: list[Chunk]) -> Effects:
    """Return what a worker's table gives, a chunk a batch, that never gives a slot back."""
    table = PlainTable(place, terms.history[0].terms.policy, writers())
    given_so_far = Effects()
    for chunk in log:
        table.set_policy(in_force(terms.history, chunk.first_offset).policy)
        given_so_far.extend(table.fold(chunk))
    return given_so_far


def replayed(place: Place, terms: PartitionTerms, log: list[Chunk], engine: Engine) -> Effects:
    """Return what a replay gives that gives slots back as soon as it can."""
    with mock.patch.object(replay_module, "CONFIRM_RECORDS", 1):
        replay = Replay(place, terms, engine, writers=writers())
        found = Effects()
        for chunk in log:
            for step in replay.fold(chunk):
                found.extend(step.effects)
    return found


def merged(log: list[Chunk], sizes: list[int]) -> list[Chunk]:
    """Return the log with several batches in a chunk."""
    left, out = iter(log), list[Chunk]()
    for size in itertools.cycle(sizes):
        if not (some := list(itertools.islice(left, size))):
            return out
        data = b"".join(each.data for each in some)
        out.append(Chunk(some[0].first_offset, some[-1].next_offset, data))
    raise AssertionError("a cycle ends nowhere")


def as_rows(log: list[Chunk], terms: PartitionTerms) -> list[Chunk]:
    """Return the log as one chunk, made of its records as an archive has them."""
    rows = [each for chunk in log for each in records(chunk)]
    return [chunk_of_rows(rows, log[0].first_offset, log[-1].next_offset, cuts_of(terms))]


@settings(max_examples=60)
@given(
    specs=st.lists(BATCHES, min_size=1, max_size=12),
    place=PLACES,
    policies=st.tuples(POLICIES, POLICIES),
    change_at=st.integers(0, 12),
    sizes=st.lists(st.integers(1, 5), min_size=1, max_size=3),
)
def test_a_replay_gives_what_the_live_table_gave(
    specs: list[BatchSpec],
    place: Place,
    policies: tuple[Policy, Policy],
    change_at: int,
    sizes: list[int],
) -> None:
    log = log_of(specs)
    changed_at = log[min(change_at, len(log) - 1)].next_offset
    history = tuple(
        PolicyRecord(offset, Terms(each))
        for offset, each in zip((0, changed_at), policies, strict=True)
    )
    terms = PartitionTerms(history)
    expected = live(place, terms, log)
    for engine in Engine:
        for way in (log, merged(log, sizes), as_rows(log, terms)):
            found = replayed(place, terms, way, engine)
            assert by_key(found) == by_key(expected)
            assert [each.forwards for each in (found,)] == [expected.forwards]
            assert letters(found) == letters(expected)
