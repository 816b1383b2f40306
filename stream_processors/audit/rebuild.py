"""What the rebuilding of a checkpoint and of totals share: one partition, replayed from its start.

A rebuild rests on the whole log. Where its head is gone, or offsets are missing without an
explanation, nothing is rebuilt: what came out could look whole, and be wrong.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from durabill.schemas import TOTAL_HEADER
from durabill.stream_processors.audit.archived import check_archive_of
from durabill.stream_processors.audit.errors import AuditError
from durabill.stream_processors.audit.pool import Progress
from durabill.stream_processors.audit.replay import (
    Engine,
    LogPart,
    LogSource,
    PartitionTerms,
    cuts_of,
)
from durabill.stream_processors.audit.sources import open_source
from durabill.stream_processors.audit.terms import RecordedTerms
from durabill.stream_processors.core.admission import Place
from durabill.stream_processors.kafka.options import LOOK_GROUP, quiet
from durabill.stream_processors.kafka.reading import (
    common_partition_count,
    partition_count,
    read_bounds,
)
from durabill.stream_processors.settings import Settings


@dataclass(frozen=True, slots=True)
class RebuildJob:
    """One partition; Kafka has [first_offset, end_offset) of its segments."""

    settings: Settings
    place: Place
    first_offset: int
    end_offset: int
    totals_first: int
    totals_end: int
    orders: tuple[int, int]
    """What the orders topic holds."""
    terms: PartitionTerms
    engine: Engine
    letters: frozenset[int] = frozenset()
    """The offsets of rejected records that have a dead letter."""
    topic_id: str = ""
    checkpoint_id: str = ""
    dry_run: bool = False
    into: str = ""
    """The topic that rebuilt totals go to."""
    framing: bytes = TOTAL_HEADER
    """What rebuilt totals begin with: the contract's header, or 00 and a schema's id."""
    begins: int = 0
    """Where the log begins with the archive's part before Kafka's."""


def segments_partitions(settings: Settings) -> range:
    """Return the partitions of the segments."""
    return range(partition_count(quiet(settings.librdkafka()), settings.segments_topic))


def rebuild_jobs(
    settings: Settings,
    partitions: Sequence[int],
    engine: Engine,
    progress: Progress,
    *,
    with_totals: bool,
) -> list[RebuildJob]:
    """Return a job for each partition, up to the ends as they are now.

    The ends of totals and orders are taken first: all before them rests on records in the log by
    then. Without `with_totals` nobody asks for these topics, which may be lost.
    """
    kafka = quiet(settings.librdkafka())
    archive = check_archive_of(settings, progress)
    if archive.findings:
        found = archive.findings[0]
        raise AuditError(
            f"the archive can't be relied on ({len(archive.findings):,} findings, the first:"
            f" {found.place}: {found.expected}, found {found.found}). `durabill archive --verify`"
            " tells more"
        )
    totals = orders = dict.fromkeys(partitions, (0, 0))
    if with_totals:
        common_partition_count(
            kafka, settings.segments_topic, settings.totals_topic, settings.orders_topic
        )
        orders = read_bounds(kafka, LOOK_GROUP, settings.orders_topic, partitions)
        totals = read_bounds(kafka, LOOK_GROUP, settings.totals_topic, partitions)
    segments = read_bounds(kafka, LOOK_GROUP, settings.segments_topic, partitions)
    recorded = RecordedTerms(settings, partitions, progress)
    if recorded.why:
        # A look may go by the settings then. Whoever writes has the right to read what is recorded.
        raise AuditError(f"{recorded.why}. If the topic is gone: durabill topics create")
    return [
        RebuildJob(
            settings,
            Place(each, len(partitions)),
            *segments[each],
            *totals[each],
            orders[each],
            recorded.of(each),
            engine,
            begins=archive.begins(each, segments[each][0]),
        )
        for each in partitions
    ]


def whole_log(job: RebuildJob) -> LogSource:
    """Return a partition's log from its very first record on; raise AuditError where it is cut."""
    source = open_source(job.settings, job, cuts=cuts_of(job.terms))
    if source.first_offset > 0:
        raise AuditError(
            f"{job.settings.segments_topic}/{job.place.partition}: the log before offset"
            f" {source.first_offset} is gone, so orders that began there can't be rebuilt. Restore"
            " it, or name its archive in DURABILL_ARCHIVE_DIR"
        )
    return source


def explained(source: LogSource, job: RebuildJob) -> Iterator[LogPart]:
    """Yield a log's parts; raise AuditError where offsets are missing without an explanation."""
    for part in source.parts():
        for first, after in part.missing:
            raise AuditError(
                f"{job.settings.segments_topic}/{source.partition}: offsets {first} to"
                f" {after - 1} are missing, and are no markers and of no aborted transaction:"
                " `durabill audit` tells more"
            )
        yield part


def notes_of(jobs: Sequence[RebuildJob]) -> list[str]:
    """Return what had to be assumed."""
    return [
        f"{job.settings.segments_topic}/{job.place.partition}: the policy of the settings is taken"
        f" for the recorded one: {job.terms.assumed_because}"
        for job in jobs
        if job.terms.assumed_because
    ]
