"""Openings are passed on once, whatever dies between two steps; what the table tells of them."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any, cast

import pytest

from durabill.schemas import (
    OWN_SCHEMA_ONLY,
    OrderOpened,
    SegmentEvent,
    encode_opening,
    encode_segment,
)
from durabill.schemas.errors import StateError
from durabill.schemas.order_state import Opened, Phase
from durabill.stream_processors.core.admission import Place
from durabill.stream_processors.core.order import Policy
from durabill.stream_processors.engine.batch import Chunk
from durabill.stream_processors.engine.columns import ColumnTable
from durabill.stream_processors.engine.effects import Opening
from durabill.stream_processors.engine.plain import PlainTable
from durabill.stream_processors.engine.table import IntervalTable
from durabill.stream_processors.settings import Settings
from durabill.stream_processors.worker.effect_order import Step, ignore_step
from durabill.stream_processors.worker.ports import PublishedOpening, Runtime
from durabill.stream_processors.worker.processor import Processor
from durabill.stream_processors.worker.published_openings import PublishedOpenings
from tests.property.batches import Entry, encode_batch
from tests.unit.stand import StandSideOutput, World

AT_MS = 1_800_000_000_000
WINDOW_MS = 86_400_000
PLACE = Place(0, 1)


def opening(number: str, tenant: str = "acme", until_ms: int = AT_MS + 60_000) -> Entry:
    opened = OrderOpened(number, tenant, "c", "gpu", (), AT_MS - 50, 10_000, until_ms)
    return number.encode(), encode_opening(opened), ()


def segment(number: str) -> Entry:
    value = encode_segment(SegmentEvent(number, 1, AT_MS - 10, AT_MS, True))
    return number.encode(), value, ()


def chunk(first: int, *entries: Entry, at_ms: int = AT_MS) -> Chunk:
    data = encode_batch(first, at_ms, [*enumerate(entries, first)])
    return Chunk(first, first + len(entries), data)


def published(
    offset: int, source_offset: int, entry: Entry, topic_id: str = "id"
) -> PublishedOpening:
    assert entry[0] is not None
    assert entry[1] is not None
    return PublishedOpening(offset, source_offset, entry[0], entry[1], topic_id)


def given(source_offset: int, entry: Entry) -> Opening:
    _, _, key, value, _ = published(0, source_offset, entry)
    return Opening(key, value, source_offset)


# -- what a replay gives once more ------------------------------------------------------------


def test_what_is_published_is_suppressed_once() -> None:
    a, b = opening("A"), opening("B")
    known = PublishedOpenings([published(5, 12, a)], PLACE, 10)
    assert known.not_among([given(12, a), given(13, b)]) == [given(13, b)]
    assert known.not_among([given(12, a)]) == [given(12, a)]
    assert not known


def test_a_recovery_looks_from_the_first_on_that_a_replay_may_bring() -> None:
    a, b, c = map(opening, "ABC")
    found = [published(4, 9, a), published(6, 12, b), published(8, 15, c)]
    known = PublishedOpenings(found, PLACE, 10)
    assert len(known) == 2
    assert known.start(9) == 6
    known.pass_over(13)  # a block of the checkpoint was ahead: the replay never gave it
    assert known.start(9) == 8
    assert known.not_among([given(15, c)]) == []
    assert known.start(9) == 9
    assert known.start(11) == 11


def test_another_opening_in_its_place_is_refused() -> None:
    known = PublishedOpenings([published(5, 12, opening("A"))], PLACE, 10, "id")
    with pytest.raises(StateError, match="another opening at offset 12 than the one at offset 5"):
        known.not_among([given(12, opening("A", "other"))])


@pytest.mark.parametrize(("theirs", "ours"), [("before", "id"), ("", "id"), ("id", ""), ("", "")])
def test_what_another_log_had_there_is_ignored(theirs: str, ours: str) -> None:
    """The segments topic was recreated, and its offsets began anew."""
    found = [published(5, 12, opening("A"), theirs), published(6, 40, opening("B"), theirs)]
    known = PublishedOpenings(found, PLACE, 0, ours)
    assert known.not_among([given(12, opening("C"))]) == [given(12, opening("C"))]
    known.pass_over(41)
    assert (len(known), known.start(9)) == (0, 9)


@pytest.mark.parametrize("theirs", ["before", ""])
def test_of_two_logs_each_is_known(theirs: str) -> None:
    a, b, c = map(opening, "ABC")
    old = [published(0, 12, a, theirs), published(1, 90, b, theirs)]
    found = [*old, published(2, 12, c), published(3, 13, b)]
    known = PublishedOpenings(found, PLACE, 0, "id")
    assert known.not_among([given(12, c)]) == []
    assert known.start(9) == 1
    known.pass_over(14)
    assert (len(known), known.start(9)) == (1, 1)
    known.pass_over(91)
    assert known.start(9) == 9


@pytest.mark.parametrize(("theirs", "ours"), [("before", "id"), ("", "id"), ("id", "")])
def test_the_same_bytes_in_the_same_place_are_not_published_twice(theirs: str, ours: str) -> None:
    """The topics were restored, or a worker from before the header published it."""
    known = PublishedOpenings([published(5, 12, opening("A"), theirs)], PLACE, 10, ours)
    assert known.not_among([given(12, opening("A"))]) == []


def test_another_log_may_have_had_other_partitions() -> None:
    found = [published(5, each, opening("A"), "before") for each in (1, 2)]
    assert len(PublishedOpenings(found, Place(1, 64), 0, "id")) == 2


def test_openings_of_other_partitions_are_refused() -> None:
    with pytest.raises(StateError, match="another number of partitions"):
        PublishedOpenings([published(5, each, opening("A")) for each in (1, 2)], Place(1, 64), 0)


@pytest.mark.parametrize("topic_id", ["id", ""])
def test_with_a_checkpoint_they_are_nobodys(topic_id: str) -> None:
    """The partitions are as many as they were when this worker's application began."""
    found = [published(5 + at, 7, opening("A"), topic_id) for at in (0, 1)]
    known = PublishedOpenings(found, Place(1, 64), 0, "id", has_checkpoint=True)
    assert (known.strays, len(known), known.start(9)) == ([5, 6], 0, 9)


# -- a worker that dies --------------------------------------------------------------------------

ENTRIES = [
    *(opening("A"), segment("A"), opening("B"), opening("A"), opening("B", "thief")),
    *(opening("C"), segment("D"), segment("C"), opening("D"), opening("E")),
]
ACCEPTED = [given(at, ENTRIES[at]) for at in (0, 2, 5, 9)]


class Died(Exception):
    """The worker was killed."""


def die_at(step: Step, times: int) -> Callable[[Step], None]:
    left = [times]

    def on_step(done: Step) -> None:
        left[0] -= done is step
        if not left[0]:
            raise Died

    return on_step


def worker(world: World, on_step: Callable[[Step], None], table: Any) -> Processor:
    return Processor(
        Settings(),
        cast(Runtime, world),
        OWN_SCHEMA_ONLY,
        StandSideOutput(),
        lambda: 0,
        new_table=table,
        on_step=on_step,
    )


async def live(processor: Processor) -> None:
    """Fold the log in pieces, a checkpoint after each, from where the checkpoint before begins."""
    await processor.on_assigned([0])
    for first in range(0, len(ENTRIES), 3):
        entries = ENTRIES[first : first + 3]
        if first + len(entries) > processor.tasks[0].next_offset:
            await processor.fold(0, chunk(first, *entries))
            await processor.checkpoint()


@pytest.mark.parametrize("table", [PlainTable, ColumnTable])
@pytest.mark.parametrize("step", [each for each in Step if each.value != "recorded"])
def test_each_is_published_once_wherever_workers_die(step: Step, table: Any) -> None:
    world = World()
    world.log_end_offset = len(ENTRIES)
    for times in (1, 2, 3, 1):
        with suppress(Died):  # a later life may have less to do, and come to its end
            asyncio.run(live(worker(world, die_at(step, times), table)))
    asyncio.run(live(worker(world, ignore_step, table)))
    assert world.openings == ACCEPTED
    assert [each.key for each in world.totals] == [b"A", b"D", b"C"]


@pytest.mark.parametrize("forgets", [True, False])
def test_a_new_application_id_publishes_nothing_again(forgets: bool) -> None:
    world = World()
    world.log_end_offset = len(ENTRIES)
    asyncio.run(live(worker(world, ignore_step, PlainTable)))
    world.changelog.clear()
    if forgets:
        world.openings = world.openings[:2]
    asyncio.run(live(worker(world, ignore_step, PlainTable)))
    assert world.openings == ACCEPTED


# -- what the table tells ------------------------------------------------------------------------


@pytest.mark.parametrize("make", [PlainTable, ColumnTable])
def test_the_state_says_who_opened_the_order(make: type[IntervalTable]) -> None:
    table = make(PLACE, Policy(correction_window_ms=WINDOW_MS), OWN_SCHEMA_ONLY)
    table.fold(chunk(0, opening("A"), segment("Z")))
    opened = Opened(
        tenant="acme", client="c", server_timestamp_ms=AT_MS - 50, accept_until_ms=AT_MS + 60_000
    )
    state = table.describe("A")
    assert state is not None
    assert (state.phase, state.opened, state.segments) == (Phase.OPEN, opened, 0)
    assert (state.started_ms, state.deadline_ms) == (AT_MS - 50, AT_MS + 120_000)
    table.fold(chunk(2, segment("A")))
    state = table.describe("A")
    assert state is not None
    assert (state.phase, state.opened, state.segments) == (Phase.SETTLED, opened, 1)
    other = table.describe("Z")
    assert other is not None
    assert other.opened is None


def test_an_opening_that_is_forgotten_is_not_told() -> None:
    table = PlainTable(PLACE, Policy(), OWN_SCHEMA_ONLY)
    table.fold(chunk(0, opening("A")))
    table.fold(chunk(1, segment("Z"), at_ms=AT_MS + 120_001))
    assert table.describe("A") is None


def test_an_order_that_was_opened_again_is_the_new_one() -> None:
    table = PlainTable(PLACE, Policy(), OWN_SCHEMA_ONLY)
    table.fold(chunk(0, opening("A"), segment("A")))
    later_ms = AT_MS + WINDOW_MS + 120_001
    effects = table.fold(chunk(2, opening("A", "next", later_ms + 5), at_ms=later_ms))
    assert [each.offset for each in effects.openings] == [2]
    state = table.describe("A")
    assert state is not None
    assert state.opened is not None
    assert (state.opened.tenant, state.segments) == ("next", 0)
