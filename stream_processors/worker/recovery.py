"""How a new owner recovers its partitions: checkpoint, terms in force, what is published so far.

Recovery never publishes a total or an opening twice: the new owner reads those published since the
last checkpoint, replays the log, and suppresses those.
"""

import asyncio
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from durabill.schemas import BadTotal, WriterSchemas, decode_total
from durabill.schemas.errors import REBUILD, RESTORE_OR_START_ANEW, SegmentsLost, StateError
from durabill.stream_processors.core.order import Policy
from durabill.stream_processors.engine.checkpoint import (
    CheckpointMeta,
    SegmentsTopic,
    blocks_in,
    entry_key,
    find_meta,
)
from durabill.stream_processors.engine.columns import ColumnTable
from durabill.stream_processors.engine.policies import (
    POLICY,
    PolicyRecord,
    Terms,
    decode_history,
    encode_history,
    in_force,
    taken_over,
)
from durabill.stream_processors.engine.table import IntervalTable, Place
from durabill.stream_processors.engine.verdicts import SCHEMAS, RecordedSchemas
from durabill.stream_processors.worker.effect_order import OnStep, Step
from durabill.stream_processors.worker.partition_task import PartitionTask
from durabill.stream_processors.worker.ports import (
    Ends,
    OpeningsTail,
    PartitionWriter,
    Runtime,
    Tail,
)
from durabill.stream_processors.worker.published_openings import PublishedOpenings
from durabill.stream_processors.worker.strays import is_misplaced, tell_strays

log = logging.getLogger("durabill.worker")
TableMaker = Callable[[Place, Policy, WriterSchemas], IntervalTable]


def new_table(place: Place, policy: Policy, writer_schemas: WriterSchemas) -> IntervalTable:
    """Return an empty table whose index nobody outside can foresee."""
    return ColumnTable(place, policy, writer_schemas, seed=int.from_bytes(os.urandom(7), "little"))


class Recovery:
    """Recovers partitions for a worker whose settings ask for `wanted` terms."""

    def __init__(
        self,
        runtime: Runtime,
        wanted: Terms,
        writer_schemas: WriterSchemas,
        new_table: TableMaker,
        on_step: OnStep,
    ) -> None:
        self._runtime = runtime
        self._wanted = wanted
        self._writer_schemas = writer_schemas
        self._new_table = new_table
        self._on_step = on_step

    async def recover(self, writers: Mapping[int, PartitionWriter]) -> dict[int, PartitionTask]:
        """Return the tasks of the partitions whose writers are open.

        What they rest on is committed by then. Raises StateError and ContractError where the
        checkpoint, the log and the totals don't fit together; WriterClosed if a writer was closed.
        """
        if not writers:
            return {}
        runtime, partitions = self._runtime, list(writers)
        # In this order: each is read after what it is compared with. Another worker may have the
        # partitions by now, which only our writers will tell us; what it has written meanwhile
        # must not look like a loss.
        committed = await runtime.committed(partitions)
        entries = await runtime.read_entries(partitions)
        metas = {
            partition: find_meta(entries, partition, runtime.segments_topic, offset)
            for partition, offset in committed.items()
        }
        heirs = [each for each in partitions if metas[each] is None]
        previous = await runtime.read_previous_entries(heirs) if heirs else {}
        bounds = await runtime.log_bounds(partitions)
        for partition, meta in metas.items():
            _check_offset(runtime.segments_topic.name, partition, meta, bounds[partition])
        tails = await runtime.totals_since(
            {each: meta.totals_offset if meta else None for each, meta in metas.items()}
        )
        openings = await runtime.openings_since(
            {each: meta.orders_offset if meta else None for each, meta in metas.items()}
        )
        tasks = await asyncio.gather(
            *(
                self._recover_one(
                    each, _recorded(entries, previous, each, metas[each]), metas[each],
                    bounds[each], tails[each], openings[each], writers[each],
                )
                for each in partitions
            )
        )  # fmt: skip
        return dict(zip(partitions, tasks, strict=True))

    async def _recover_one(
        self,
        partition: int,
        entries: Mapping[bytes, bytes],
        meta: CheckpointMeta | None,
        bounds: tuple[int, int],
        tail: Tail,
        openings: OpeningsTail,
        writer: PartitionWriter,
    ) -> PartitionTask:
        segments_topic = self._runtime.segments_topic
        history = decode_history(entries.get(entry_key(partition, POLICY)))
        raw_schemas = entries.get(entry_key(partition, SCHEMAS))
        schemas = RecordedSchemas(self._writer_schemas, raw_schemas)
        place = Place(partition, segments_topic.partitions)
        # Beside the event loop: a million orders take their time.
        next_offset = bounds[0] if meta is None else meta.next_offset
        terms = in_force(history, next_offset) if history else self._wanted
        table = self._new_table(place, terms.policy, schemas)
        restore = partial(restore_task, first_offset=bounds[0], tail=tail, openings=openings)
        task = await self._runtime.aside(restore, table, entries, segments_topic, meta)
        task.schemas = schemas
        task.history = taken_over(
            history,
            self._wanted,
            next_offset=task.next_offset,
            log_end=max(bounds[1], task.next_offset),
            has_unseen_totals=meta is not None and bool(task.published or task.openings),
        )
        task.use(in_force(task.history, task.next_offset))
        ends = Ends(tail.end, openings.end)
        writer.starts_at(ends)
        if history and task.history != history:
            _log_change(partition, history[-1], task.history[-1])
        if meta is None or task.history != history:  # also an inherited history that stays
            writer.put_entries([(entry_key(partition, POLICY), encode_history(task.history))])
        elif task.published or task.openings:
            # A successor may have published them, by terms that it recorded after we had read
            # ours. Then we are fenced, and learn it by this write before we judge by our terms.
            writer.put_entries([(entry_key(partition, POLICY), encode_history(history))])
        if meta is None:
            if raw_schemas is not None:
                writer.put_entries([(entry_key(partition, SCHEMAS), raw_schemas)])
            # Before the first total: a recovery has to know from where on to look for it.
            writer.put_entries([task.first_meta(ends)])
        self._on_step(Step.INHERITED)
        await writer.flushed()
        self._on_step(Step.RECORDED)
        return task


def restore_task(
    table: IntervalTable,
    entries: Mapping[bytes, bytes],
    segments_topic: SegmentsTopic,
    meta: CheckpointMeta | None,
    *,
    first_offset: int,
    tail: Tail,
    openings: OpeningsTail | None = None,
) -> PartitionTask:
    """Return a task with its table filled from the changelog's entries of all partitions.

    `first_offset` is where a log without a meta begins; `tail` is what the totals topic holds from
    the meta's `totals_offset` on, `openings` what the orders topic holds from its `orders_offset`
    on. Raises StateError if entries are damaged.
    """
    # Version 1 could leave blocks without a meta: by a crash in its very first checkpoint.
    clock_ms, next_offset = (0, first_offset) if meta is None else (meta.clock_ms, meta.next_offset)
    try:
        table.restore(blocks_in(entries, table.place.partition), clock_ms)
    except (ValueError, IndexError) as error:  # its columns don't fit together
        partition = table.place.partition
        raise StateError(
            f"the checkpoint of partition {partition} is damaged: {error}. {REBUILD}"
        ) from error
    has_checkpoint = meta is not None
    published, strays = _published_since(table, next_offset, tail.records, has_checkpoint)
    found, unplaced = (openings.openings, openings.strays) if openings else ((), ())
    opened = PublishedOpenings(
        found,
        table.place,
        next_offset,
        segments_topic.topic_id,
        has_checkpoint=has_checkpoint,
    )
    tell_strays(f"the totals, partition {table.place.partition}", strays)
    of_others = sorted([*unplaced, *opened.strays])
    tell_strays(f"the orders topic, partition {table.place.partition}", of_others)
    return PartitionTask(
        table,
        segments_topic,
        next_offset,
        published=published,
        openings=opened or None,
        strays=len(strays) + len(of_others),
    )


def _published_since(
    table: IntervalTable,
    next_offset: int,
    totals: Sequence[tuple[int, bytes, bytes | None]],
    has_checkpoint: bool,
) -> tuple[dict[bytes, list[tuple[int, bytes]]], list[int]]:
    """Return those of the totals that the table doesn't know of: a replay will repeat them.

    Besides, the offsets of records that are no worker's.

    A revision alone doesn't tell: a forgotten order begins again with revision 1. But its records
    are younger than all that it had before. And an order that the table has forgotten altogether
    can only get a total from records that the replay, from `next_offset` on, has yet to bring.
    """
    published: dict[bytes, list[tuple[int, bytes]]] = {}
    strays: list[int] = []
    for offset, key, value in totals:
        try:
            total = decode_total(value)
        except BadTotal:
            strays.append(offset)  # the ledger reports it too
            continue
        if key != total.service_order_number.encode():
            strays.append(offset)
            continue
        if is_misplaced("totals", key, offset, table.place, has_checkpoint=has_checkpoint):
            strays.append(offset)
            continue
        known = table.age_of(key) or (next_offset, 0)
        if (total.source_offset, total.revision) > known:
            assert value is not None, "it was decoded"
            published.setdefault(key, []).append((offset, value))
    return published, strays


def _recorded(
    entries: Mapping[bytes, bytes],
    previous: Mapping[bytes, bytes],
    partition: int,
    meta: CheckpointMeta | None,
) -> Mapping[bytes, bytes]:
    """Return a partition's entries; one without a checkpoint inherits terms, but no orders."""
    if meta is not None:
        return entries
    names = [entry_key(partition, name) for name in (POLICY, SCHEMAS)]
    return {**{name: previous[name] for name in names if name in previous}, **entries}


def _log_change(partition: int, before: PolicyRecord, now: PolicyRecord) -> None:
    """Warn that a partition is billed by other terms from now on."""
    log.warning(
        "partition %d: from offset %d on it is billed by %s; so far, since offset %d, by %s. If"
        " this comes again and again, workers of this application id have different settings",
        partition,
        now.from_offset,
        now.terms,
        before.from_offset,
        before.terms,
    )


def _check_offset(
    topic: str, partition: int, meta: CheckpointMeta | None, bounds: tuple[int, int]
) -> None:
    """Refuse to go on where the log, [first, after), no longer holds the next offset to read."""
    first, after = bounds
    if meta is not None and not first <= meta.next_offset <= after:
        raise SegmentsLost(
            topic,
            partition,
            meta.next_offset,
            f"{topic}/{partition}: the next offset to read is {meta.next_offset}, but the log"
            f" holds {first} to {after}: segments are lost. {RESTORE_OR_START_ANEW}",
        )
