"""What a new owner records before anything rests on it, life after life, on a stand-in of Kafka."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import pytest

from schemas import OWN_SCHEMA_ONLY, SegmentEvent, encode_segment
from stream_processors.batch import Chunk
from stream_processors.checkpoint import Lane, Origin, entry_key
from stream_processors.lanes import LaneBuilder
from stream_processors.order import Policy
from stream_processors.outlet import Entry
from stream_processors.policies import (
    POLICY,
    History,
    PolicyRecord,
    Terms,
    decode_history,
    encode_history,
)
from stream_processors.reading import Tail
from stream_processors.runtime import Exit, Runtime
from stream_processors.table import IntervalTable, Total
from stream_processors.verdicts import SCHEMAS
from tests.property.batches import encode_batch

OLD, NEW = Terms(Policy(settle_grace_ms=5)), Terms(Policy(settle_grace_ms=7))
AT_MS = 1_000_000
KEY = entry_key(0, POLICY)
OF_BEFORE: History = (PolicyRecord(0, OLD), PolicyRecord(2, NEW))
VERDICTS = b'{"decided_to":3,"schemas":[]}'


class Way:
    """An exit whose entries are in the changelog at once."""

    position = 0

    def __init__(self, changelog: dict[bytes, bytes]) -> None:
        self._changelog = changelog

    def starts_at(self, totals_end: int) -> None:
        self.position = totals_end

    def put_entries(self, entries: Sequence[Entry]) -> None:
        self._changelog.update({key: content for key, content in entries if content is not None})

    async def flushed(self) -> None:
        """All of it is."""


class World:
    """One partition's log, its totals, and the changelogs of an application id and the one before.

    `start` is a life of a worker up to where its lane is built.
    """

    origin = Origin("segments", "id", 1)

    def __init__(self, previous: Mapping[bytes, bytes]) -> None:
        self.changelog: dict[bytes, bytes] = {}
        self.totals: list[Total] = []
        self.previous = previous
        self.asked_previous: list[Sequence[int]] = []
        self.log_end = 5

    async def committed(self, partitions: Sequence[int]) -> dict[int, int | None]:
        return dict.fromkeys(partitions, None)

    async def read_entries(self, partitions: Sequence[int]) -> dict[bytes, bytes]:
        return dict(self.changelog)

    async def read_previous_entries(self, partitions: Sequence[int]) -> dict[bytes, bytes]:
        self.asked_previous.append(partitions)
        return dict(self.previous)

    async def log_bounds(self, partitions: Sequence[int]) -> dict[int, tuple[int, int]]:
        return dict.fromkeys(partitions, (0, self.log_end))

    async def totals_since(self, starts: Mapping[int, int | None]) -> dict[int, Tail]:
        records = [(at, *total) for at, total in enumerate(self.totals)]
        known = {each: start or 0 for each, start in starts.items()}
        end = len(self.totals)
        return {each: Tail([*records[start:]], end) for each, start in known.items()}

    async def aside(self, work: Callable[..., Any], *arguments: Any) -> Any:
        return work(*arguments)

    def start(self, wanted: Terms) -> Lane:
        builder = LaneBuilder(
            cast(Runtime, self), wanted, OWN_SCHEMA_ONLY, IntervalTable, lambda step: None
        )
        exits = {0: cast(Exit, Way(self.changelog))}
        return asyncio.run(builder.build(exits))[0]

    def recorded(self) -> History:
        return decode_history(self.changelog.get(KEY))


@pytest.fixture
def world() -> World:
    """A new application id, whose previous one changed its policy once, and published a total."""
    made = World({KEY: b"", entry_key(0, SCHEMAS): VERDICTS})
    lane = World({}).start(OLD)
    value = encode_segment(SegmentEvent("SO1", 1, AT_MS - 10, AT_MS, True))
    chunk = Chunk(0, 1, encode_batch(0, AT_MS, [(0, (b"SO1", value, ()))]))
    made.totals = lane.table.fold(chunk).totals
    assert len(made.totals) == 1
    made.previous = {**made.previous, KEY: encode_history(OF_BEFORE)}
    return made


def test_what_is_inherited_is_recorded_also_where_it_stays_as_it_is(world: World) -> None:
    lane = world.start(NEW)
    assert OF_BEFORE == lane.history == world.recorded()
    assert VERDICTS == world.changelog[entry_key(0, SCHEMAS)]
    assert 1 == len(lane.said)


@pytest.mark.parametrize("wanted", [OLD, NEW])
def test_an_heir_that_dies_at_once_is_billed_by_what_it_inherited(
    world: World, wanted: Terms
) -> None:
    world.start(NEW)
    world.previous = {}  # it may be gone by now
    lane = world.start(wanted)
    assert OF_BEFORE == lane.history[:2]
    assert OLD.policy == lane.table.policy
    assert 1 == len(lane.said)


def test_other_settings_hold_from_the_logs_end_on(world: World) -> None:
    assert (*OF_BEFORE, PolicyRecord(5, OLD)) == world.start(OLD).history == world.recorded()
    world.log_end = 9
    assert (*OF_BEFORE, PolicyRecord(5, OLD)) == world.start(OLD).history
    third = (*OF_BEFORE, PolicyRecord(5, OLD), PolicyRecord(9, NEW))
    assert third == world.start(NEW).history == world.recorded()


def test_the_previous_id_is_asked_by_an_heir_alone(world: World) -> None:
    world.start(NEW)
    world.start(NEW)
    assert [[0]] == world.asked_previous
