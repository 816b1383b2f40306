"""Rebuilds the checkpoints of workers from the log, for workers that have lost theirs.

Theory of operation. A checkpoint must never know more than what has been published, or that would
never be published; and it must say from where on published totals are to be looked for, or they
would be published twice. So first the log is replayed beside what was published: every published
total must be one that the log gives. If nothing is missing, the table at the end is the checkpoint.
If a total, a dead letter or a record sent on is missing (a worker was killed before it came to it),
the checkpoint is of the last batch before the first one that gives something missing. A worker that
starts then replays the rest, publishes what is missing, and suppresses what isn't.

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

from confluent_kafka.admin import AdminClient

from durabill.schemas.errors import StateError
from durabill.stream_processors.audit import stopped
from durabill.stream_processors.audit.errors import AuditError
from durabill.stream_processors.audit.matching import Grounds, Matcher, judge
from durabill.stream_processors.audit.pool import Progress, Tell, audit_errors, run_jobs
from durabill.stream_processors.audit.rebuild import (
    RebuildJob,
    explained,
    notes_of,
    rebuild_jobs,
    segments_partitions,
    whole_log,
)
from durabill.stream_processors.audit.replay import Engine, Replay
from durabill.stream_processors.audit.side_checks import drop_arrived
from durabill.stream_processors.audit.sources import open_source
from durabill.stream_processors.audit.terms import read_entries
from durabill.stream_processors.audit.totals_log import TotalsLog
from durabill.stream_processors.core.admission import Place
from durabill.stream_processors.dead_letters.letters import list_dead_letters
from durabill.stream_processors.engine.batch import Chunk, headers_in
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
from durabill.stream_processors.kafka.errors import Right, patiently
from durabill.stream_processors.kafka.options import LOOK_GROUP, quiet
from durabill.stream_processors.kafka.reading import read_bounds
from durabill.stream_processors.kafka.topic_ids import topic_ids
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
    """How many totals, dead letters and records sent on a worker has yet to publish."""
    orders: int
    entries: int
    totals_offset: int


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
        jobs = rebuild_jobs(settings, partitions, engine, progress)
        ids = _topic_ids(settings)
        letters = _letters(settings)
        jobs = [
            replace(
                job,
                letters=frozenset(letters.get(job.place.partition, ())),
                topic_id=ids[0],
                checkpoint_id=ids[1],
                dry_run=dry_run,
            )
            for job in jobs
        ]
        done, _ = run_jobs(jobs, rebuild_partition, processes, progress, _PHASE)
        if not dry_run:
            # It only follows the checkpoint, as it does where a worker writes one.
            stopped.commit(settings, {each.partition: each.next_offset for each in done})
        return RebuiltCheckpoint(tuple(done), tuple(notes_of(jobs)))


def _topic_ids(settings: Settings) -> tuple[str, str]:
    """Return the ids of the segments and of the checkpoint topic."""
    kafka = quiet(settings.librdkafka())
    admin = AdminClient(kafka)
    names = (settings.segments_topic, settings.checkpoint_topic)
    rights = (Right("Describe", "topic", each) for each in names)
    ids = patiently(lambda s: topic_ids(admin, names, s), "the ids of the topics", kafka, *rights)
    return ids[names[0]], ids[names[1]]


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
    first_pass = _Pass(job, tell).run(job.end_offset)
    first_pass.check()
    missing, last = first_pass.unpublished(), first_pass
    if missing:
        barrier = first_pass.barrier()
        last = _Pass(job, tell).run(barrier)
    rebuilt = RebuiltPartition(
        partition=job.place.partition,
        next_offset=last.next_offset,
        end_offset=first_pass.next_offset,
        totals=first_pass.matcher.computed_count,
        unpublished=missing,
        orders=len(last.replay.table),
        entries=0,
        totals_offset=last.totals_offset(),
    )
    names = last.replay.table.take_changed()
    if not job.dry_run:
        _write(job, last, rebuilt.totals_offset, names)
    return replace(rebuilt, entries=len(names))


class _Pass:
    """One replay of a partition up to some offset, beside all that was published."""

    def __init__(self, job: RebuildJob, tell: Tell) -> None:
        self.replay = Replay(job.place, job.terms, job.engine)
        self.matcher = Matcher()
        self.next_offset = job.first_offset
        self._job = job
        self._tell = tell
        self._letters_due: list[int] = []
        self._forwards: dict[int, set[int]] = {}
        """Partition -> offsets of the records that were sent on to it."""

    def run(self, end_offset: int) -> "_Pass":
        """Fold the log, chunk by chunk, as long as a chunk ends at or before an offset."""
        job, matcher = self._job, self.matcher
        partition = job.place.partition
        kafka, topic = quiet(job.settings.librdkafka()), job.settings.totals_topic
        totals = TotalsLog(kafka, topic, partition, job.totals_first, job.totals_end)
        with closing(totals):
            for part in explained(whole_log(replace(job, end_offset=end_offset)), job):
                for step in self.replay.fold(part.chunk):
                    for total in step.effects.totals:
                        matcher.add_computed(total.key, total.value)
                    self._letters_due += (
                        each.record.offset
                        for each in step.effects.dead_letters
                        if each.record.offset not in job.letters
                    )
                    for each in step.effects.forwards:
                        self._forwards.setdefault(each.partition, set()).add(each.record.offset)
                self.next_offset = part.chunk.next_offset
                while totals.has_more and matcher.published_count < matcher.computed_count:
                    self._read(totals)
                self._tell(partition, self.next_offset)
            while totals.has_more:
                self._read(totals)
        return self

    def _read(self, totals: TotalsLog) -> None:
        for record in totals.read():
            self.matcher.add_published(record)

    def check(self) -> None:
        """Raise AuditError if something was published that the log doesn't give."""
        job = self._job
        grounds = Grounds(
            topic=job.settings.totals_topic,
            partition=job.place.partition,
            partitions=job.place.partitions,
            end_offset=self.next_offset,
            clock_ms=self.replay.table.clock_ms,
            totals_end=job.totals_end,
            may_all_be_newer=False,
            was_given=lambda _: False,  # what is missing is for a worker to publish
        )
        found = judge(self.matcher.computed, self.matcher.published, {}, grounds).findings
        if found:
            first = found[0]
            raise AuditError(
                f"{first.place}: the totals topic holds what the log doesn't give"
                f" ({len(found):,} differences, the first: {first.kind.value}"
                f" {first.field}). A checkpoint on top of it would hide that. `durabill audit` says"
                " what differs. Nothing was written"
            )

    def unpublished(self) -> int:
        """Return how many totals, dead letters and copies are missing; drop those that arrived."""
        job = self._job
        kafka, topic = quiet(job.settings.librdkafka()), job.settings.segments_topic
        for target, offsets in self._forwards.items():
            wanted = {(job.place.partition, each) for each in offsets}
            bounds = read_bounds(kafka, LOOK_GROUP, topic, [target])[target]
            place = Place(target, job.place.partitions)
            log = replace(job, place=place, first_offset=bounds[0], end_offset=bounds[1])
            drop_arrived(open_source(job.settings, log), wanted)
            self._forwards[target] = {offset for _, offset in wanted}
        totals = sum(map(len, self.matcher.computed.values()))
        return totals + len(self._letters_due) + sum(map(len, self._forwards.values()))

    def barrier(self) -> int:
        """Return where the first batch begins that gives something that is missing."""
        job = self._job
        missing = {
            (key, value) for key, all_of in self.matcher.computed.items() for value in all_of
        }
        offsets = {*self._letters_due, *(each for some in self._forwards.values() for each in some)}
        replay = Replay(job.place, job.terms, job.engine)
        for part in explained(whole_log(job), job):
            for batch in batches_of(part.chunk):
                given = {total for step in replay.fold(batch) for total in step.effects.totals}
                if given & missing or any(
                    batch.first_offset <= each < batch.next_offset for each in offsets
                ):
                    return batch.first_offset
        raise StateError("a second replay of the log gave other totals: report it as a bug")

    def totals_offset(self) -> int:
        """Return from where on the totals are that a replay from here gives once more."""
        offsets = (each.offset for some in self.matcher.published.values() for each in some)
        return min(offsets, default=self._job.totals_end)


def batches_of(chunk: Chunk) -> Iterator[Chunk]:
    """Yield a chunk's batches one by one, in chunks of their own that join without a hole."""
    found = list(headers_in(chunk.data))
    first = chunk.first_offset
    for place, (at, header) in enumerate(found):
        is_last = place + 1 == len(found)
        after = chunk.next_offset if is_last else found[place + 1][1].base_offset
        yield Chunk(first, after, chunk.data[at : at + header.size])
        first = after
    if not found:
        yield chunk


# -- what is written --------------------------------------------------------------------------


def _write(job: RebuildJob, last: _Pass, totals_offset: int, names: list[str]) -> None:
    """Write the checkpoint of one partition; see the module's docstring for the steps."""
    settings, partition = job.settings, job.place.partition
    segments = SegmentsTopic(
        settings.segments_topic, job.topic_id, job.place.partitions, job.checkpoint_id
    )
    meta = encode_meta(
        segments,
        next_offset=last.next_offset,
        clock_ms=last.replay.table.clock_ms,
        totals_offset=totals_offset,
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
