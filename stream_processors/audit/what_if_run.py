"""A "what if" over all partitions: each in a process of its own, then put together.

It reads up to the ends that the partitions have when it begins, and disturbs nobody: it is in no
group, and writes nothing unless it is told to, and then to a topic of its own.
"""

import csv
import hashlib
import heapq
import json
import multiprocessing
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from queue import Empty
from tempfile import TemporaryDirectory
from typing import Any, TextIO

from confluent_kafka.admin import AdminClient

from durabill.schemas import decode_total
from durabill.schemas.errors import PoisonError, SettingsError
from durabill.schemas.headers import WHAT_IF_DURATION, WHAT_IF_RUN
from durabill.stream_processors.audit.bills import COLUMNS, Difference, Summary
from durabill.stream_processors.audit.errors import AuditError
from durabill.stream_processors.audit.outcome import Outcome, RecordHeaders
from durabill.stream_processors.audit.raw_log import FetchedLog
from durabill.stream_processors.audit.replay import Engine, PartitionTerms
from durabill.stream_processors.audit.terms import RecordedTerms
from durabill.stream_processors.audit.what_if import Compared, changed_terms, compare_partition
from durabill.stream_processors.core.what_if import WhatIf
from durabill.stream_processors.engine.policies import describe_history
from durabill.stream_processors.engine.table import Total
from durabill.stream_processors.kafka.errors import Right, patiently
from durabill.stream_processors.kafka.options import LOOK_GROUP, quiet
from durabill.stream_processors.kafka.reading import Progress, partition_count, read_bounds
from durabill.stream_processors.kafka.topic_ids import topic_ids
from durabill.stream_processors.settings import Settings

_ASK_S = 0.2


@dataclass(frozen=True, slots=True)
class Job:
    """What one process does: one partition, [first_offset, end_offset)."""

    settings: Settings
    partition: int
    partitions: int
    first_offset: int
    end_offset: int
    terms: PartitionTerms
    what_if: WhatIf
    engine: Engine
    top: int
    publish_to: str = ""
    run_id: str = ""
    rows_path: Path | None = None
    """Where the differences of all its orders go, sorted, for the CSV file."""


@dataclass(frozen=True, slots=True)
class WhatIfResult:
    """What the whole log comes to under both policies; `biggest` has the biggest first."""

    what_if: WhatIf
    summary: Summary
    biggest: tuple[Difference, ...]
    jobs: tuple[Job, ...]
    published: int = 0
    """How many totals this run has appended to `--publish-to`; those there before don't count."""

    @property
    def notes(self) -> list[str]:
        """Return what was assumed, or could not be known."""
        notes = []
        for job in self.jobs:
            if job.terms.assumed_because:
                notes.append(
                    f"partition {job.partition}: the settings' policy was taken for the recorded"
                    f" one: {job.terms.assumed_because}"
                )
            if job.first_offset:
                notes.append(
                    f"partition {job.partition}: the log before offset {job.first_offset} is gone;"
                    " orders that began there are not whole, under either policy"
                )
        return notes

    def as_json(self) -> dict[str, Any]:
        """Return it as plain values."""
        return {
            "policy": self.what_if.as_json(),
            **self.summary.as_json(),
            "published": self.published,
            "notes": self.notes,
            "partitions": [
                {
                    "partition": job.partition,
                    "first_offset": job.first_offset,
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
    *,
    top: int,
    engine: Engine = Engine.COLUMNS,
    processes: int = 1,
    csv_file: TextIO | None = None,
    publish_to: str = "",
    progress: Progress | None = None,
) -> WhatIfResult:
    """Return what the log would have come to under another policy.

    `csv_file` gets all orders. Raises SettingsError where the policy is none, AuditError where the
    log can't be read, ContractError where `publish_to` holds records of others.
    """
    with TemporaryDirectory(prefix="durabill-what-if-") as folder:
        rows = Path(folder) if csv_file is not None else None
        jobs = _jobs(settings, what_if, engine, top, publish_to, rows, progress)
        outcomes = _run(jobs, processes, progress)
        summary, published = Summary(), 0
        for compared, appended in outcomes.values():
            summary.add(compared.summary)
            published += appended
        biggest = heapq.nsmallest(
            top,
            (each for compared, _ in outcomes.values() for each in compared.biggest),
            key=lambda each: each.rank,
        )
        if csv_file is not None:
            _write_csv(csv_file, jobs)
    return WhatIfResult(what_if, summary, tuple(biggest), tuple(jobs), published)


def _jobs(
    settings: Settings,
    what_if: WhatIf,
    engine: Engine,
    top: int,
    publish_to: str,
    rows: Path | None,
    progress: Progress | None,
) -> list[Job]:
    kafka = quiet(settings.librdkafka())
    count = partition_count(kafka, settings.segments_topic)
    bounds = read_bounds(kafka, LOOK_GROUP, settings.segments_topic, range(count))
    recorded = RecordedTerms(settings, range(count), progress)
    terms = {each: recorded.of(each) for each in range(count)}
    for each in terms.values():
        changed_terms(each, what_if.change)  # refused at once, not in one of many processes
    run_id = _run_id(settings, what_if, terms) if publish_to else ""
    return [
        Job(
            *(settings, partition, count, *bounds[partition], terms[partition]),
            *(what_if, engine, top, publish_to, run_id),
            rows / f"{partition}.rows" if rows else None,
        )
        for partition in range(count)
    ]


def _run_id(settings: Settings, what_if: WhatIf, terms: Mapping[int, PartitionTerms]) -> str:
    """Return what tells this run from runs on another log or under another policy.

    The log may have grown since: a later run goes on with what an earlier one has written.
    """
    kafka, topic = settings.librdkafka(), settings.segments_topic
    admin = AdminClient(quiet(kafka))
    right = Right("Describe", "topic", topic)
    ids = patiently(lambda s: topic_ids(admin, [topic], s), "the topic's id", kafka, right)
    said = {
        "policy": what_if.as_json(),
        "segments": [topic, ids[topic], len(terms)],
        "recorded": {str(each): describe_history(of.history) for each, of in terms.items()},
    }
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


# -- processes --------------------------------------------------------------------------------

_told: Any = None
"""In a process of the pool: where it tells how far it has come."""

_stopped: Any = None
"""In a process of the pool: whether another one has failed, so that this one needn't go on."""


def _set_up(told: Any, stopped: Any) -> None:
    global _told, _stopped
    _told, _stopped = told, stopped


def _run(
    jobs: list[Job], processes: int, progress: Progress | None
) -> dict[int, tuple[Compared, int]]:
    """Run all jobs; return what each partition comes to, and how many totals it has appended."""
    total = sum(job.end_offset - job.first_offset for job in jobs)
    done = {job.partition: 0 for job in jobs}

    def tell(job: Job, next_offset: int) -> None:
        done[job.partition] = next_offset - job.first_offset
        if progress is not None:
            progress(f"replaying {job.settings.segments_topic}", sum(done.values()), total)

    if min(processes, len(jobs)) <= 1:
        return {job.partition: run_job(job, lambda at, job=job: tell(job, at)) for job in jobs}  # type: ignore[misc]
    context = multiprocessing.get_context("spawn")
    news, stopped = context.Queue(), context.Event()
    by_partition = {job.partition: job for job in jobs}
    with ProcessPoolExecutor(
        min(processes, len(jobs)), context, initializer=_set_up, initargs=(news, stopped)
    ) as pool:
        futures = {pool.submit(_run_told, job): job.partition for job in jobs}
        try:
            while not all(each.done() for each in futures):
                for partition, next_offset in _news(news):
                    tell(by_partition[partition], next_offset)
                if any(each.done() and each.exception() is not None for each in futures):
                    break
            return {futures[each]: each.result() for each in as_completed(futures)}
        except BrokenProcessPool as error:
            raise AuditError(
                "a process of the replay was killed, perhaps for want of memory; run it again with"
                " a smaller --processes"
            ) from error
        finally:
            stopped.set()
            pool.shutdown(cancel_futures=True)


def _news(queue: Any) -> Iterator[tuple[int, int]]:
    try:
        yield queue.get(timeout=_ASK_S)
    except Empty:
        return


def _run_told(job: Job) -> tuple[Compared, int]:
    def on_offset(next_offset: int) -> None:
        if _stopped.is_set():
            raise AuditError("another partition can't be replayed")
        _told.put((job.partition, next_offset))

    try:
        return run_job(job, on_offset)
    except (PoisonError, SettingsError) as error:
        raise AuditError(str(error)) from error  # these two can't be sent to another process


def run_job(job: Job, on_offset: Callable[[int], None]) -> tuple[Compared, int]:
    """Compare one partition; return that, and how many totals were appended to its outcome."""
    settings = job.settings
    source = FetchedLog(
        settings, settings.segments_topic, job.partition, job.first_offset, job.end_offset
    )
    rows: list[Difference] = []
    with ExitStack() as stack:
        outcome = stack.enter_context(closing(_outcome(job))) if job.publish_to else None
        compared = compare_partition(
            *(source, job.terms, job.partitions, job.what_if),
            engine=job.engine,
            top=job.top,
            on_difference=rows.append if job.rows_path else None,
            on_totals=outcome.put if outcome else None,
            on_offset=on_offset,
        )
        if outcome is not None:
            outcome.finish()
    if job.rows_path is not None:
        rows.sort(key=lambda each: each.rank)
        with job.rows_path.open("w", encoding="utf-8") as file:
            file.writelines(
                json.dumps([*each.rank, *each.as_json().values()]) + "\n" for each in rows
            )
    return compared, outcome.appended if outcome else 0


def _outcome(job: Job) -> Outcome:
    """Open the partition of the topic that the totals go to."""

    def headers_of(total: Total) -> RecordHeaders:
        billed_ms = job.what_if.duration.billed_ms(decode_total(total.value).intervals)
        return (WHAT_IF_RUN, job.run_id.encode()), (WHAT_IF_DURATION, str(billed_ms).encode())

    return Outcome(
        quiet(job.settings.librdkafka()),
        job.publish_to,
        job.partition,
        f"{job.settings.application_id}-what-if-{job.publish_to}-{job.partition}",
        headers_of,
        run_id=job.run_id,
    )


# -- the CSV file -----------------------------------------------------------------------------


def _write_csv(file: TextIO, jobs: list[Job]) -> None:
    """Merge what the partitions have sorted: all orders, the biggest difference first."""
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(COLUMNS)
    with ExitStack() as stack:
        sorted_rows = [
            _rows_in(stack.enter_context(job.rows_path.open(encoding="utf-8")))
            for job in jobs
            if job.rows_path is not None
        ]
        for row in heapq.merge(*sorted_rows, key=lambda row: row[:3]):
            number, *rest = row[3:]
            writer.writerow([harmless(number), *rest])


def _rows_in(file: TextIO) -> Iterator[list[Any]]:
    return (json.loads(line) for line in file)


def harmless(text: str) -> str:
    """Return a stranger's text so that no spreadsheet takes it for a formula: `'=1+1`."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text
