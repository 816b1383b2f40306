"""Rebuilds the totals from the log, into a new topic: each revision once, where it belongs.

The old topic stays as it is: it may be evidence. Every partition is replayed by its recorded terms,
and what settles is appended in transactions, by the producer that a worker would open. So no worker
publishes meanwhile, and a run that was killed is gone on with by running it again: what is there
already is compared, and not written twice. A topic that holds anything else is refused.
"""

from contextlib import closing
from dataclasses import dataclass, replace

from durabill.schemas import TOTAL_HEADER, framed_total
from durabill.schemas.headers import SEGMENTS_TOPIC_ID
from durabill.stream_processors.audit import stopped
from durabill.stream_processors.audit.outcome import Outcome
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
from durabill.stream_processors.engine.table import Total
from durabill.stream_processors.kafka.options import quiet
from durabill.stream_processors.settings import Settings


@dataclass(frozen=True, slots=True)
class RebuiltTotals:
    """One partition's totals: how many the log gives, and how many were appended by this run."""

    partition: int
    end_offset: int
    totals: int
    appended: int


@dataclass(frozen=True, slots=True)
class RebuiltTopic:
    """What has become of all partitions."""

    partitions: tuple[RebuiltTotals, ...]
    notes: tuple[str, ...]


def rebuild_totals(
    settings: Settings,
    into: str,
    progress: Progress,
    *,
    engine: Engine = Engine.COLUMNS,
    processes: int | None = None,
    dry_run: bool = False,
    framing: bytes = TOTAL_HEADER,
) -> RebuiltTopic:
    """Append every total that the log gives to the topic `into`, which must be there.

    `dry_run`: only find out how many there are. `framing` is what their values begin with. Raises
    AuditError where workers run, the log isn't whole, or `into` holds anything that the log
    doesn't give.
    """
    with audit_errors():
        partitions = segments_partitions(settings)
        stopped.make_sure(settings, partitions, dry_run=dry_run)
        jobs = rebuild_jobs(settings, partitions, engine, progress, with_totals=False)
        jobs = [replace(job, into=into, dry_run=dry_run, framing=framing) for job in jobs]
        done, _ = run_jobs(jobs, rebuild_partition, processes, progress, "replaying")
        return RebuiltTopic(tuple(done), tuple(notes_of(jobs)))


def rebuild_partition(job: RebuildJob, tell: Tell) -> RebuiltTotals:
    """Rebuild the totals of one partition."""
    partition, settings = job.place.partition, job.settings
    if job.dry_run:
        return _replayed(job, tell, None)
    writer_id = stopped.writer_id(settings, partition)
    of_log = ((SEGMENTS_TOPIC_ID, job.topic_id.encode()),) if job.topic_id else ()
    kafka = quiet(settings.librdkafka())
    with closing(Outcome(kafka, job.into, partition, writer_id, lambda _: of_log)) as outcome:
        rebuilt = _replayed(job, tell, outcome)
        outcome.finish()
        return replace(rebuilt, appended=outcome.appended)


def _framed(total: Total, framing: bytes) -> Total:
    return Total(total.key, framed_total(total.value, framing))


def _replayed(job: RebuildJob, tell: Tell, outcome: Outcome | None) -> RebuiltTotals:
    replay, totals = Replay(job.place, job.terms, job.engine), 0
    end_offset = job.first_offset
    for part in explained(whole_log(job), job):
        for step in replay.fold(part.chunk):
            totals += len(step.effects.totals)
            if outcome is not None:
                outcome.put([_framed(each, job.framing) for each in step.effects.totals])
        end_offset = part.chunk.next_offset
        tell(job.place.partition, end_offset)
    return RebuiltTotals(job.place.partition, end_offset, totals, 0)
