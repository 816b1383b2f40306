"""How a new owner builds the lanes of its partitions: checkpoint, terms in force, totals so far."""

import asyncio
import logging
import os
from collections.abc import Callable, Mapping
from functools import partial

from durabill.schemas import WriterSchemas
from durabill.schemas.errors import RESTORE_OR_START_ANEW, ContractError
from durabill.stream_processors.core.order import Policy
from durabill.stream_processors.engine.columns import ColumnTable
from durabill.stream_processors.engine.table import IntervalTable, Place
from durabill.stream_processors.kafka.reading import Tail
from durabill.stream_processors.worker.checkpoint import (
    Lane,
    Marks,
    entry_key,
    marks_of,
    restore_lane,
)
from durabill.stream_processors.worker.faust_runtime import Exit, Runtime
from durabill.stream_processors.worker.policies import (
    POLICY,
    PolicyRecord,
    Terms,
    decode_history,
    encode_history,
    in_force,
    taken_over,
)
from durabill.stream_processors.worker.verdicts import SCHEMAS, RecordedSchemas

log = logging.getLogger("durabill.worker")
TableMaker = Callable[[Place, Policy, WriterSchemas], IntervalTable]


def new_table(place: Place, policy: Policy, writers: WriterSchemas) -> IntervalTable:
    """Return an empty table whose index nobody outside can foresee."""
    return ColumnTable(place, policy, writers, seed=int.from_bytes(os.urandom(7), "little"))


class LaneBuilder:
    """Builds lanes for a worker whose settings ask for `wanted` terms."""

    def __init__(
        self,
        runtime: Runtime,
        wanted: Terms,
        writers: WriterSchemas,
        new_table: TableMaker,
        on_step: Callable[[str], None],
    ) -> None:
        self._runtime = runtime
        self._wanted = wanted
        self._writers = writers
        self._new_table = new_table
        self._on_step = on_step

    async def build(self, exits: Mapping[int, Exit]) -> dict[int, Lane]:
        """Return the lanes of the partitions whose exits are open.

        What they rest on is committed by then. Raises StateError and ContractError where the
        checkpoint, the log and the totals don't fit together; WriterClosed if an exit was closed.
        """
        if not exits:
            return {}
        runtime, partitions = self._runtime, list(exits)
        # In this order, each after what it is held against: had another worker the partitions by
        # now, which only our exits will tell us, then what it wrote would look like a loss.
        committed = await runtime.committed(partitions)
        entries = await runtime.read_entries(partitions)
        marks = {
            partition: marks_of(entries, partition, runtime.origin, offset)
            for partition, offset in committed.items()
        }
        heirs = [each for each in partitions if marks[each] is None]
        previous = await runtime.read_previous_entries(heirs) if heirs else {}
        bounds = await runtime.log_bounds(partitions)
        for partition, found in marks.items():
            _check_offset(runtime.origin.topic, partition, found, bounds[partition])
        tails = await runtime.totals_since(
            {each: found.totals_offset if found else None for each, found in marks.items()}
        )
        built = await asyncio.gather(
            *(
                self._build_one(
                    each, _recorded(entries, previous, each, marks[each]), marks[each],
                    bounds[each], tails[each], exits[each],
                )
                for each in partitions
            )
        )  # fmt: skip
        return dict(zip(partitions, built, strict=True))

    async def _build_one(
        self,
        partition: int,
        entries: Mapping[bytes, bytes],
        marks: Marks | None,
        bounds: tuple[int, int],
        tail: Tail,
        way_out: Exit,
    ) -> Lane:
        origin = self._runtime.origin
        history = decode_history(entries.get(entry_key(partition, POLICY)))
        raw_schemas = entries.get(entry_key(partition, SCHEMAS))
        schemas = RecordedSchemas(self._writers, raw_schemas)
        place = Place(partition, origin.partitions)
        # Beside the event loop: a million orders take their time.
        next_offset = bounds[0] if marks is None else marks.next_offset
        terms = in_force(history, next_offset) if history else self._wanted
        table = self._new_table(place, terms.policy, schemas)
        restore = partial(restore_lane, first_offset=bounds[0], tail=tail)
        lane = await self._runtime.aside(restore, table, entries, origin, marks)
        lane.schemas = schemas
        lane.history = taken_over(
            history,
            self._wanted,
            next_offset=lane.next_offset,
            log_end=max(bounds[1], lane.next_offset),
            has_unseen_totals=marks is not None and bool(lane.said),
        )
        lane.use(in_force(lane.history, lane.next_offset))
        way_out.starts_at(tail.end)
        if history and lane.history != history:
            _tell_change(partition, history[-1], lane.history[-1])
        if marks is None or lane.history != history:  # also what is inherited as it is
            way_out.put_entries([(entry_key(partition, POLICY), encode_history(lane.history))])
        if marks is None:
            if raw_schemas is not None:
                way_out.put_entries([(entry_key(partition, SCHEMAS), raw_schemas)])
            # Ahead of the first total: a recovery has to know from where on to look for it.
            way_out.put_entries([lane.first_marks(tail.end)])
        self._on_step("inherited")
        await way_out.flushed()
        self._on_step("recorded")
        return lane


def _recorded(
    entries: Mapping[bytes, bytes],
    previous: Mapping[bytes, bytes],
    partition: int,
    marks: Marks | None,
) -> Mapping[bytes, bytes]:
    """Return a partition's entries; one without a checkpoint inherits terms, but no orders."""
    if marks is not None:
        return entries
    names = [entry_key(partition, name) for name in (POLICY, SCHEMAS)]
    return {**{name: previous[name] for name in names if name in previous}, **entries}


def _tell_change(partition: int, before: PolicyRecord, now: PolicyRecord) -> None:
    """Say loudly that a partition is billed by other terms from now on."""
    log.warning(
        "partition %d: from offset %d on it is billed by %s; so far, since offset %d, by %s. If"
        " this comes again and again, workers of this application id have different settings",
        *(partition, now.from_offset, now.terms, before.from_offset, before.terms),
    )


def _check_offset(topic: str, partition: int, marks: Marks | None, bounds: tuple[int, int]) -> None:
    """Refuse to go on where the log, [first, after), no longer holds what has not been read."""
    first, after = bounds
    if marks is not None and not first <= marks.next_offset <= after:
        raise ContractError(
            f"{topic}/{partition}: the next offset to read is {marks.next_offset}, but the log"
            f" holds {first} to {after}: segments are lost. {RESTORE_OR_START_ANEW}"
        )
