"""A "what if" over all partitions: several at once, then put together.

It reads up to the ends that the partitions have when it begins, and disturbs nobody: it is in no
group, and writes nothing unless it is told to, and then to a topic of its own.
"""

import hashlib
import heapq
import json
from collections.abc import Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TextIO

from durabill.schemas import decode_total
from durabill.schemas.headers import WHAT_IF_DURATION, WHAT_IF_RUN
from durabill.stream_processors.audit.archive_check import ArchiveCheck
from durabill.stream_processors.audit.archived import check_archive_of, notes_of
from durabill.stream_processors.audit.bill_rows import write_csv, write_rows
from durabill.stream_processors.audit.bills import Difference, Summary
from durabill.stream_processors.audit.outcome import Outcome, RecordHeaders
from durabill.stream_processors.audit.pool import Progress, Tell, audit_errors, run_jobs
from durabill.stream_processors.audit.replay import Engine, PartitionTerms, cuts_of
from durabill.stream_processors.audit.sources import open_source
from durabill.stream_processors.audit.terms import RecordedTerms
from durabill.stream_processors.audit.what_if import Compared, changed_terms, compare_partition
from durabill.stream_processors.core.admission import Place
from durabill.stream_processors.core.what_if import WhatIf
from durabill.stream_processors.engine.policies import describe_history
from durabill.stream_processors.engine.table import Total
from durabill.stream_processors.kafka.options import LOOK_GROUP, quiet
from durabill.stream_processors.kafka.reading import partition_count, read_bounds
from durabill.stream_processors.kafka.topic_ids import find_topic_ids
from durabill.stream_processors.settings import Settings


@dataclass(frozen=True, slots=True)
class WhatIfOptions:
    """What is asked for besides the policy; `top` is how many differences are kept."""

    top: int
    engine: Engine = Engine.COLUMNS
    processes: int | None = None
    """None: as many as are worth it."""

    publish_to: str = ""


@dataclass(frozen=True, slots=True)
class WhatIfJob:
    """One partition and how it is replayed; Kafka has [first_offset, end_offset) of it."""

    settings: Settings
    place: Place
    first_offset: int
    end_offset: int
    terms: PartitionTerms
    what_if: WhatIf
    options: WhatIfOptions
    run_id: str
    rows_path: Path | None
    """Where the differences of all its orders go, for the CSV file."""
    begins: int
    """Where the log begins with the archive's part before Kafka's."""

    @property
    def engine(self) -> Engine:
        """Return by what the log is folded."""
        return self.options.engine

    @property
    def notes(self) -> list[str]:
        """Return what is assumed, or can't be known."""
        where, notes = f"{self.settings.segments_topic}/{self.place.partition}", []
        if self.terms.assumed_because:
            notes.append(
                f"{where}: the policy of the settings is taken for the recorded one:"
                f" {self.terms.assumed_because}"
            )
        if self.begins:
            notes.append(
                f"{where}: the log before offset {self.begins} is gone; orders that began"
                " there are not whole, under either policy"
            )
        return notes


@dataclass(frozen=True, slots=True)
class WhatIfResult:
    """What the whole log comes to under both policies; `biggest` has the biggest first."""

    what_if: WhatIf
    summary: Summary
    biggest: tuple[Difference, ...]
    jobs: tuple[WhatIfJob, ...]
    archive_notes: tuple[str, ...]
    published: int
    """How many totals this run has appended to `publish_to`; those there before don't count."""

    @property
    def notes(self) -> list[str]:
        """Return what was assumed, or could not be known."""
        return [*self.archive_notes, *(note for job in self.jobs for note in job.notes)]

    def as_json(self) -> dict[str, Any]:
        """Return it as plain values."""
        return {
            "policy": self.what_if.as_json(),
            **self.summary.as_json(),
            "published": self.published,
            "notes": self.notes,
            "partitions": [
                {
                    "partition": job.place.partition,
                    "first_offset": job.begins,
                    "end_offset": job.end_offset,
                    "recorded_policies": describe_history(job.terms.history),
                }
                for job in self.jobs
            ],
            "differences_shown": len(self.biggest),
            "differences": [each.as_json() for each in self.biggest],
        }


def run_what_if(
    settings: Settings,
    what_if: WhatIf,
    options: WhatIfOptions,
    progress: Progress,
    csv_file: TextIO | None = None,
) -> WhatIfResult:
    """Return what the log would have come to under another policy.

    `csv_file` gets all orders. Raises SettingsError where the policy is none, AuditError where the
    log can't be read, or `publish_to` holds records of others.
    """
    with audit_errors(), TemporaryDirectory(prefix="durabill-what-if-") as folder:
        rows = None if csv_file is None else Path(folder)
        archive = check_archive_of(settings, progress)
        jobs = _jobs(settings, what_if, options, rows, archive, progress)
        phase = f"replaying {settings.segments_topic}"
        found, _ = run_jobs(jobs, replay_partition, options.processes, progress, phase)
        summary = Summary()
        for compared, _ in found:
            summary.add(compared.summary)
        differences = (each for compared, _ in found for each in compared.biggest)
        biggest = heapq.nsmallest(options.top, differences, key=lambda each: each.rank)
        if csv_file is not None:
            write_csv(csv_file, [job.rows_path for job in jobs if job.rows_path])
        published = sum(appended for _, appended in found)
        notes = tuple(notes_of(archive))
        return WhatIfResult(what_if, summary, tuple(biggest), tuple(jobs), notes, published)


def _jobs(
    settings: Settings,
    what_if: WhatIf,
    options: WhatIfOptions,
    rows: Path | None,
    archive: ArchiveCheck,
    progress: Progress,
) -> list[WhatIfJob]:
    kafka = quiet(settings.librdkafka())
    partitions = range(partition_count(kafka, settings.segments_topic))
    bounds = read_bounds(kafka, LOOK_GROUP, settings.segments_topic, partitions)
    recorded = RecordedTerms(settings, partitions, progress)
    terms = {each: recorded.of(each) for each in partitions}
    for each in terms.values():
        changed_terms(each, what_if.change)  # refused at once, not in one of many processes
    run_id = _run_id(settings, what_if, terms) if options.publish_to else ""
    return [
        WhatIfJob(
            archive.settings_for(settings, each),
            Place(each, len(partitions)),
            *bounds[each],
            terms[each],
            what_if,
            options,
            run_id,
            rows / f"{each}.rows" if rows else None,
            archive.begins(each, bounds[each][0]),
        )
        for each in partitions
    ]


def _run_id(settings: Settings, what_if: WhatIf, terms: Mapping[int, PartitionTerms]) -> str:
    """Return what tells this run from runs on another log or under another policy.

    The log may have grown since: a later run goes on with what an earlier one has written.
    """
    topic = settings.segments_topic
    ids = find_topic_ids(settings.librdkafka(), topic)
    said = {
        "policy": what_if.as_json(),
        "segments": [topic, ids[topic], len(terms)],
        "recorded": {str(each): describe_history(of.history) for each, of in terms.items()},
    }
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def replay_partition(job: WhatIfJob, tell: Tell) -> tuple[Compared, int]:
    """Compare one partition; return that, and how many totals were appended to its outcome."""
    rows: list[Difference] = []
    with ExitStack() as stack:
        is_published = bool(job.options.publish_to)
        outcome = stack.enter_context(closing(_outcome(job))) if is_published else None
        compared = compare_partition(
            open_source(job.settings, job, cuts=cuts_of(job.terms)),
            job.terms,
            job.place.partitions,
            job.what_if,
            engine=job.engine,
            top=job.options.top,
            on_difference=rows.append if job.rows_path else None,
            on_totals=outcome.put if outcome else None,
            on_offset=lambda offset: tell(job.place.partition, offset),
        )
        if outcome is not None:
            outcome.finish()
    if job.rows_path is not None:
        write_rows(job.rows_path, rows)
    return compared, outcome.appended if outcome else 0


def _outcome(job: WhatIfJob) -> Outcome:
    """Open the partition of the topic that the totals go to."""

    def headers_of(total: Total) -> RecordHeaders:
        billed_ms = job.what_if.duration.billed_ms(decode_total(total.value).intervals)
        return (WHAT_IF_RUN, job.run_id.encode()), (WHAT_IF_DURATION, str(billed_ms).encode())

    topic, partition = job.options.publish_to, job.place.partition
    transactional_id = f"{job.settings.application_id}-what-if-{topic}-{partition}"
    kafka = quiet(job.settings.librdkafka())
    return Outcome(kafka, topic, partition, transactional_id, headers_of, run_id=job.run_id)
