"""What a new owner records before anything rests on it, life after life, on a stand-in of Kafka."""

import asyncio
from collections.abc import Sequence
from typing import cast

import pytest

from durabill.schemas import OWN_SCHEMA_ONLY, SegmentEvent, encode_segment
from durabill.schemas.errors import ContractError
from durabill.stream_processors.core.order import Policy
from durabill.stream_processors.engine.batch import Chunk
from durabill.stream_processors.engine.checkpoint import entry_key
from durabill.stream_processors.engine.plain import PlainTable
from durabill.stream_processors.engine.policies import (
    POLICY,
    History,
    PolicyRecord,
    Terms,
    decode_history,
    encode_history,
)
from durabill.stream_processors.engine.verdicts import SCHEMAS
from durabill.stream_processors.worker.effect_order import ignore_step
from durabill.stream_processors.worker.partition_task import PartitionTask
from durabill.stream_processors.worker.ports import Entry, PartitionWriter, Runtime, WriterClosed
from durabill.stream_processors.worker.recovery import Recovery
from tests.property.batches import encode_batch
from tests.unit.stand import StandWriter, World

OLD, NEW = Terms(Policy(settle_grace_ms=5)), Terms(Policy(settle_grace_ms=7))
AT_MS = 1_000_000
KEY = entry_key(0, POLICY)
OF_BEFORE: History = (PolicyRecord(0, OLD), PolicyRecord(2, NEW))
VERDICTS = b'{"decided_to":3,"schemas":[]}'


class Lives(World):
    """`start` is a life of a worker up to where its partition is recovered."""

    def start(self, wanted: Terms) -> PartitionTask:
        runtime = cast(Runtime, self)
        recovery = Recovery(runtime, wanted, OWN_SCHEMA_ONLY, PlainTable, ignore_step)
        writers = {0: cast(PartitionWriter, StandWriter(self))}
        return asyncio.run(recovery.recover(writers))[0]

    def recorded(self) -> History:
        return decode_history(self.changelog.get(KEY))


@pytest.fixture
def world() -> Lives:
    """A new application id, whose previous one changed its policy once, and published a total."""
    made = Lives({KEY: b"", entry_key(0, SCHEMAS): VERDICTS})
    task = Lives({}).start(OLD)
    value = encode_segment(SegmentEvent("SO1", 1, AT_MS - 10, AT_MS, True))
    chunk = Chunk(0, 1, encode_batch(0, AT_MS, [(0, (b"SO1", value, ()))]))
    made.totals = task.table.fold(chunk).totals
    assert len(made.totals) == 1
    made.log_end_offset = 5
    made.previous = {**made.previous, KEY: encode_history(OF_BEFORE)}
    return made


def test_what_is_inherited_is_recorded_also_where_it_stays_as_it_is(world: Lives) -> None:
    task = world.start(NEW)
    assert OF_BEFORE == task.history == world.recorded()
    assert world.changelog[entry_key(0, SCHEMAS)] == VERDICTS
    assert len(task.published) == 1


def test_an_owner_that_was_fenced_learns_it_before_it_judges_by_old_terms(world: Lives) -> None:
    """What it finds published, a successor may have published by terms that it hasn't read."""

    class Fenced(StandWriter):
        def put_entries(self, entries: Sequence[Entry]) -> None:
            raise WriterClosed

    world.start(NEW)
    recovery = Recovery(cast(Runtime, world), NEW, OWN_SCHEMA_ONLY, PlainTable, ignore_step)
    with pytest.raises(WriterClosed):
        asyncio.run(recovery.recover({0: cast(PartitionWriter, Fenced(world))}))
    world.totals = []
    world.start(NEW)
    assert len(asyncio.run(recovery.recover({0: cast(PartitionWriter, Fenced(world))}))) == 1


@pytest.mark.parametrize("wanted", [OLD, NEW])
def test_an_heir_that_dies_at_once_is_billed_by_what_it_inherited(
    world: Lives, wanted: Terms
) -> None:
    world.start(NEW)
    world.previous = {}  # it may be gone by now
    task = world.start(wanted)
    assert task.history[:2] == OF_BEFORE
    assert OLD.policy == task.table.policy
    assert len(task.published) == 1


def test_other_settings_hold_from_the_logs_end_on(world: Lives) -> None:
    assert (*OF_BEFORE, PolicyRecord(5, OLD)) == world.start(OLD).history == world.recorded()
    world.log_end_offset = 9
    assert (*OF_BEFORE, PolicyRecord(5, OLD)) == world.start(OLD).history
    third = (*OF_BEFORE, PolicyRecord(5, OLD), PolicyRecord(9, NEW))
    assert third == world.start(NEW).history == world.recorded()


def test_where_it_began_is_recorded_before_the_first_total() -> None:
    """Or segments that are gone before the first checkpoint would never be missed."""
    world = Lives({})
    world.start(OLD)
    world.log_start_offset, world.log_end_offset = 3, 9
    with pytest.raises(ContractError, match="segments are lost"):
        world.start(OLD)


def test_the_previous_id_is_asked_by_an_heir_alone(world: Lives) -> None:
    world.start(NEW)
    world.start(NEW)
    assert world.asked_previous == [[0]]
