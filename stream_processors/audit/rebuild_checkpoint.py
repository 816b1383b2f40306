"""Rebuilds the checkpoints of workers from the log, for workers that have lost theirs.

Theory of operation. A checkpoint must never know more than what has been published, or that would
never be published; and it must say from where on published totals are to be looked for, or they
would be published twice. So first the log is replayed beside what was published: every published
total and opening must be one that the log gives. If nothing is missing, the table at the end is the
checkpoint. If a total, an opening, a dead letter or a record sent on is missing (a worker was
killed before it came to it), the checkpoint is of the last batch before the first one that gives
something missing. A worker that starts then replays the rest, publishes what is missing, and
suppresses what isn't.

Written is in transactions, by the producer that a worker would open:

    1 the old meta and the old blocks are removed: two numberings of slots must never be mixed
    2 the recorded policy and schemas, where they are missing
    3 every block
    4 the meta, alone in the last transaction

A crash between any two leaves a partition without a meta whose group has an offset: no worker
starts on it, each says so, and another run begins anew.
"""

from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace

from durabill.stream_processors.audit import stopped
from durabill.stream_processors.audit.errors import AuditError
from durabill.stream_processors.audit.pool import Progress, Tell, audit_errors, run_jobs
from durabill.stream_processors.audit.rebuild import (
    RebuildJob,
    notes_of,
    rebuild_jobs,
    segments_partitions,
)
from durabill.stream_processors.audit.rebuild_pass import Pass
from durabill.stream_processors.audit.replay import Engine
from durabill.stream_processors.audit.terms import read_entries
from durabill.stream_processors.dead_letters.letters import list_dead_letters
from durabill.stream_processors.engine.checkpoint import (
    META,
    SegmentsTopic,
    encode_meta,
    entry_key,
)
from durabill.stream_processors.engine.policies import POLICY, decode_history, encode_history
from durabill.stream_processors.engine.table import IntervalTable
from durabill.stream_processors.engine.verdicts import SCHEMAS
from durabill.stream_processors.kafka.appending import Appender, NewRecord
from durabill.stream_processors.kafka.options import quiet
from durabill.stream_processors.kafka.topic_ids import find_topic_ids
from durabill.stream_processors.settings import Settings

Entry = tuple[bytes, bytes | None]
TRANSACTION_BYTES_MAX = 2 * 1024 * 1024
_PHASE = "replaying"


@dataclass(frozen=True, slots=True)
class RebuiltPartition:
    """What has become of one partition's checkpoint; `next_offset` is where a worker goes on."""

    partition: int
    next_offset: int
    end_offset: int
    totals: int
    """How many totals the log gives, all of them compared with what was published."""
    unpublished: int
    """How many totals, openings, dead letters and records sent on a worker has yet to publish."""
    orders: int
    entries: int
    totals_offset: int
    orders_offset: int
    openings: int = 0
    """How many openings the log gives, all of them compared with what was published."""


@dataclass(frozen=True, slots=True)
class RebuiltCheckpoint:
    """What has become of all checkpoints."""

    partitions: tuple[RebuiltPartition, ...]
    notes: tuple[str, ...]


def rebuild_checkpoint(
    settings: Settings,
    progress: Progress,
    *,
    engine: Engine = Engine.COLUMNS,
    processes: int | None = None,
    dry_run: bool = False,
) -> RebuiltCheckpoint:
    """Write the checkpoint of every partition anew; `dry_run`: only find out what it would be.

    Raises AuditError where workers run, the log isn't whole, or the totals topic holds what the log
    doesn't give. Then nothing has been written, or a partition's checkpoint is missing, in which
    case no worker starts on it.
    """
    with audit_errors():
        partitions = segments_partitions(settings)
        stopped.make_sure(settings, partitions, dry_run=dry_run)
        jobs = rebuild_jobs(settings, partitions, engine, progress, with_totals=True)
        ids = find_topic_ids(
            settings.librdkafka(), settings.segments_topic, settings.checkpoint_topic
        )
        letters = _letters(settings)
        jobs = [
            replace(
                job,
                letters=frozenset(letters.get(job.place.partition, ())),
                topic_id=ids[settings.segments_topic],
                checkpoint_id=ids[settings.checkpoint_topic],
                dry_run=dry_run,
            )
            for job in jobs
        ]
        done, _ = run_jobs(jobs, rebuild_partition, processes, progress, _PHASE)
        if not dry_run:
            # It only follows the checkpoint, as it does where a worker writes one.
            stopped.commit(settings, {each.partition: each.next_offset for each in done})
        return RebuiltCheckpoint(tuple(done), tuple(notes_of(jobs)))


def _letters(settings: Settings) -> dict[int, set[int]]:
    """Return the offsets of rejected records that have a dead letter, by partition."""
    found: dict[int, set[int]] = {}
    kafka, topic = quiet(settings.librdkafka()), settings.dead_letters_topic
    for letter in list_dead_letters(kafka, topic):
        origin = letter.origin
        if origin is not None and origin[0] == settings.segments_topic:
            found.setdefault(origin[1], set()).add(origin[2])
    return found


# -- one partition ----------------------------------------------------------------------------


def rebuild_partition(job: RebuildJob, tell: Tell) -> RebuiltPartition:
    """Rebuild the checkpoint of one partition; see the module's docstring."""
    first_pass = Pass(job, tell).run(job.end_offset)
    first_pass.check()
    missing, last = first_pass.unpublished(), first_pass
    if missing:
        barrier = first_pass.barrier()
        last = Pass(job, tell).run(barrier)
    rebuilt = RebuiltPartition(
        partition=job.place.partition,
        next_offset=last.next_offset,
        end_offset=first_pass.next_offset,
        totals=first_pass.matcher.computed_count,
        unpublished=missing,
        orders=len(last.replay.table),
        entries=0,
        totals_offset=last.totals_offset(),
        orders_offset=last.openings.orders_offset(last.next_offset),
        openings=first_pass.openings.given,
    )
    names = last.replay.table.take_changed()
    if not job.dry_run:
        _write(job, last, rebuilt, names)
    return replace(rebuilt, entries=len(names))


# -- what is written --------------------------------------------------------------------------


def _write(job: RebuildJob, last: Pass, rebuilt: RebuiltPartition, names: list[str]) -> None:
    """Write the checkpoint of one partition; see the module's docstring for the steps."""
    settings, partition = job.settings, job.place.partition
    segments = SegmentsTopic(
        settings.segments_topic, job.topic_id, job.place.partitions, job.checkpoint_id
    )
    meta = encode_meta(
        segments,
        next_offset=last.next_offset,
        clock_ms=last.replay.table.clock_ms,
        totals_offset=rebuilt.totals_offset,
        orders_offset=rebuilt.orders_offset,
    )
    appender = Appender(quiet(settings.librdkafka()), stopped.writer_id(settings, partition))
    with closing(appender):
        there = read_entries(settings, settings.checkpoint_topic, {partition})
        recorded = _recorded(job, there)
        # The meta first, also where there is none: nobody may rest on what comes now.
        gone = [entry_key(partition, META), *(key for key in there if key not in recorded)]
        first: list[Entry] = [(key, None) for key in dict.fromkeys(gone)]
        first += [(key, value) for key, value in recorded.items() if key not in there]
        _append(appender, job, first)
        for some in _blocks(last.replay.table, partition, names):
            _append(appender, job, some)
        _append(appender, job, [(entry_key(partition, META), meta)])


def _recorded(job: RebuildJob, there: Mapping[bytes, bytes]) -> dict[bytes, bytes]:
    """Return the entries of the policy and the schemas by which the log was replayed.

    Raises AuditError where others are recorded by now: what is recorded is never written over.
    """
    partition, terms = job.place.partition, job.terms
    recorded = {entry_key(partition, POLICY): encode_history(terms.history)}
    if terms.schemas is not None:
        recorded[entry_key(partition, SCHEMAS)] = terms.schemas
    for key in (entry_key(partition, POLICY), entry_key(partition, SCHEMAS)):
        before = recorded.get(key)
        if key in there and (before is None or there[key] != before):
            if key == entry_key(partition, POLICY) and decode_history(there[key]) == terms.history:
                recorded[key] = there[key]  # the same, as another version wrote it
                continue
            raise AuditError(
                f"partition {partition}: a policy or a schema was recorded while this was at work:"
                " a worker was started. Stop it, and run this again"
            )
    return recorded


def _append(appender: Appender, job: RebuildJob, entries: list[Entry]) -> None:
    topic, partition = job.settings.checkpoint_topic, job.place.partition
    appender.append([NewRecord(topic, partition, key, value) for key, value in entries])


def _blocks(table: IntervalTable, partition: int, names: list[str]) -> Iterator[list[Entry]]:
    """Yield the entries that hold the orders, as much at a time as one transaction takes."""
    some: list[Entry] = []
    size = 0
    for name in names:
        snapshot = table.snapshot(name)
        if snapshot is None:
            continue
        content = snapshot.pack()
        some.append((entry_key(partition, name), content))
        size += len(content)
        if size >= TRANSACTION_BYTES_MAX:
            yield some
            some, size = [], 0
    if some:
        yield some
