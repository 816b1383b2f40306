"""The whole audit: takes the ends, has the partitions audited, compares the rest, sums up.

What is read when decides whether a live system can raise a false alarm. In this order:

    1 a moment of the ledger     every row of it stands for a total that is in the topic by then
    2 the ends of the totals     every total before them rests on records in the log by then
    3 the ends of the segments   up to these the log is replayed
    4 the recorded terms         later ones hold from later offsets, but for one that is just being
                                 recorded: where something differs they are read again
    5 all of it is compared      what workers have yet to publish is told by their checkpoint, which
                                 is read before the totals, dead letters and copies of by then
"""

import itertools
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace

from durabill.schemas import partition_for
from durabill.stream_processors.audit.archive_check import (
    ArchiveCheck,
    archived_since,
    check_archive,
)
from durabill.stream_processors.audit.errors import AuditError
from durabill.stream_processors.audit.findings import (
    AuditResult,
    Finding,
    LedgerAccount,
    Scope,
    in_order,
)
from durabill.stream_processors.audit.ledger_view import OpenLedger, open_ledger
from durabill.stream_processors.audit.options import AuditOptions as AuditOptions
from durabill.stream_processors.audit.partition_audit import audit_partition
from durabill.stream_processors.audit.partition_job import PartitionJob, PartitionOutcome
from durabill.stream_processors.audit.pool import Progress, audit_errors, run_jobs
from durabill.stream_processors.audit.scope import TotalsScope
from durabill.stream_processors.audit.seal_check import check_sealed
from durabill.stream_processors.audit.side_audit import SideAudit
from durabill.stream_processors.audit.side_checks import LetterCheck
from durabill.stream_processors.audit.terms import RecordedTerms, are_other
from durabill.stream_processors.core.admission import Place
from durabill.stream_processors.kafka.options import LOOK_GROUP, quiet
from durabill.stream_processors.kafka.reading import offsets_since, partition_count, read_bounds
from durabill.stream_processors.settings import Settings

RERUNS_MAX = 3

Bounds = dict[int, tuple[int, int]]


def audit(settings: Settings, options: AuditOptions, progress: Progress) -> AuditResult:
    """Return what the audit comes to. Raises AuditError where it can't be carried out."""
    with audit_errors():
        return Audit(settings, options, progress).run()


class Audit:
    """One audit of one deployment."""

    def __init__(self, settings: Settings, options: AuditOptions, progress: Progress) -> None:
        self._settings = settings
        self._options = options
        self._progress = progress
        self._kafka = quiet(settings.librdkafka())
        self._notes: list[str] = []
        self._outcomes: dict[int, PartitionOutcome] = {}
        self._archive = ArchiveCheck()

    def run(self) -> AuditResult:
        """Carry it out."""
        began_ms, began_s = time.time_ns() // 10**6, time.monotonic()
        settings, options = self._settings, self._options
        partitions = self._partition_count()
        wanted = self._wanted(partitions)
        self._check_archive()
        dsn = settings.ledger_dsn if options.with_ledger else ""
        opened = open_ledger(dsn, settings.totals_topic) if dsn else nullcontext()
        with opened as ledger:
            jobs = self._jobs(wanted, partitions, ledger)
            side = SideAudit(settings, self._archive, partitions, options.order, self._progress)
            processes, letters = self._run(jobs, side)
            own_s = time.process_time()
            findings = list(self._archive.findings)
            findings += [each for one in self._outcomes.values() for each in one.findings]
            findings += side.letters(self._outcomes, letters)
            findings += side.copies(self._outcomes)
            account = None
            if ledger is not None:
                order = options.order or None
                findings += ledger.strangers(settings.totals_topic, partitions, order)
                account = self._ledger_account(ledger)
            findings += self._sealed()
        own_s = time.process_time() - own_s
        return AuditResult(
            segments_topic=settings.segments_topic,
            totals_topic=settings.totals_topic,
            scope=Scope(
                options.order, options.partitions, options.from_ms, options.to_ms, options.as_of
            ),
            engine=options.engine.value,
            processes=processes,
            began_at_ms=began_ms,
            elapsed_s=time.monotonic() - began_s,
            cpu_s=own_s + sum(each.cpu_s for each in self._outcomes.values()),
            partitions=tuple(each.account for each in self._outcomes.values()),
            findings=tuple(in_order(findings)),
            ledger=account,
            notes=tuple(self._all_notes(side)),
        )

    # -- before -------------------------------------------------------------------------------

    def _partition_count(self) -> int:
        settings = self._settings
        counts = {
            topic: partition_count(self._kafka, topic)
            for topic in (settings.segments_topic, settings.totals_topic)
        }
        if len(set(counts.values())) != 1:
            told = ", ".join(f"{topic} has {count}" for topic, count in counts.items())
            raise AuditError(f"the topics must have as many partitions each: {told}")
        return counts[settings.segments_topic]

    def _wanted(self, partitions: int) -> list[int]:
        options = self._options
        wrong = [each for each in options.partitions if not 0 <= each < partitions]
        wrong += [each for each in options.as_of_offsets if not 0 <= each < partitions]
        if wrong:
            raise AuditError(
                f"{self._settings.segments_topic} has no partition"
                f" {', '.join(map(str, wrong))}: it has 0 to {partitions - 1}"
            )
        wanted = set(options.partitions or range(partitions))
        if options.order:
            own = partition_for(options.order.encode(), partitions)
            if own not in wanted:
                raise AuditError(f"order {options.order} lives in partition {own}")
            wanted = {own}
        return sorted(wanted)

    def _jobs(
        self, wanted: Sequence[int], partitions: int, ledger: OpenLedger | None
    ) -> list[PartitionJob]:
        settings, options = self._settings, self._options
        totals = read_bounds(self._kafka, LOOK_GROUP, settings.totals_topic, wanted)
        segments = read_bounds(self._kafka, LOOK_GROUP, settings.segments_topic, wanted)
        ends = self._ends(segments)
        recorded = RecordedTerms(settings, wanted, self._progress)
        archive = self._archive
        return [
            PartitionJob(
                archive.settings_for(settings, each),
                Place(each, partitions),
                recorded.of(each),
                segments[each][0],
                ends[each],
                *totals[each],
                TotalsScope(options.order, options.from_ms, options.to_ms),
                options.engine,
                is_as_of=ends[each] < segments[each][1],
                has_checkpoint=recorded.has_checkpoint(each),
                ledger=None if ledger is None else ledger.view,
                begins=archive.begins(each, segments[each][0]),
                from_archive=options.from_archive and each in archive.usable,
            )
            for each in wanted
        ]

    def _ends(self, segments: Bounds) -> dict[int, int]:
        """Return where the replay of each partition ends."""
        options, topic = self._options, self._settings.segments_topic
        ends = {each: end for each, (_, end) in segments.items()}
        if options.as_of_ms is not None:
            since = offsets_since(self._kafka, topic, options.as_of_ms, list(ends))
            ends = {each: min(end, since.get(each, end)) for each, end in ends.items()}
            ends.update(self._archived_ends(segments, ends, options.as_of_ms))
        for each, offset in options.as_of_offsets.items():
            if each in ends and offset > ends[each]:
                raise AuditError(f"{topic}/{each} ends at offset {ends[each]}, before {offset}")
            if each in ends:
                ends[each] = offset
        begins = {each: self._archive.begins(each, first) for each, (first, _) in segments.items()}
        return {each: max(begins[each], end) for each, end in ends.items()}

    def _archived_ends(
        self, segments: Bounds, ends: Mapping[int, int], as_of_ms: int
    ) -> dict[int, int]:
        """Return where the replay ends of partitions whose end is in the archive's part."""
        manifest, found = self._archive.manifest, {}
        for each in self._archive.usable & set(ends):
            if manifest is not None and ends[each] == segments[each][0]:
                offset = archived_since(self._settings, manifest, each, as_of_ms)
                found[each] = ends[each] if offset is None else min(offset, ends[each])
        return found

    def _check_archive(self) -> None:
        settings, options = self._settings, self._options
        if settings.archive_dir and options.with_archive:
            self._archive = check_archive(
                settings, options.archive_key, options.archive_trusted, self._progress
            )
            self._notes += self._archive.notes

    # -- the partitions -----------------------------------------------------------------------

    def _run(self, jobs: list[PartitionJob], side: SideAudit) -> tuple[int, LetterCheck]:
        """Have all jobs done, and those again whose terms were only just being recorded."""
        processes = 1
        for reruns in itertools.count():
            outcomes, used = run_jobs(
                jobs, audit_partition, self._options.processes, self._progress
            )
            processes = max(processes, used)
            for job, outcome in zip(jobs, outcomes, strict=True):
                self._outcomes[job.place.partition] = outcome
            self._outcomes = dict(sorted(self._outcomes.items()))
            letters = side.check_letters(self._outcomes)
            jobs = self._with_new_terms(jobs, letters) if reruns < RERUNS_MAX else []
            if not jobs:
                break
        return processes, letters

    def _with_new_terms(self, jobs: list[PartitionJob], letters: LetterCheck) -> list[PartitionJob]:
        """Return the jobs where something differs, and other terms are recorded by now."""
        doubted = [
            job
            for job in jobs
            if self._outcomes[job.place.partition].has_leftovers
            or job.place.partition in letters.doubted
        ]
        if not doubted:
            return []
        recorded = RecordedTerms(self._settings, [job.place.partition for job in doubted])
        again = (replace(job, terms=recorded.of(job.place.partition)) for job in doubted)
        return [
            now
            for job, now in zip(doubted, again, strict=True)
            if are_other(job.terms, now.terms, job.end_offset)
        ]

    def _sealed(self) -> list[Finding]:
        """Return what is wrong with the sealed log, where there is one to check."""
        options = self._options
        found, notes = check_sealed(
            self._settings, options.seal_key, options.trusted, self._progress
        )
        self._notes += notes
        return found

    def _ledger_account(self, ledger: OpenLedger) -> LedgerAccount:
        counts = (each.ledger for each in self._outcomes.values())
        rows, proven, not_yet_recorded, set_aside = map(sum, zip(*counts, strict=True))
        topic = self._settings.totals_topic
        if not ledger.view.next_offsets:
            self._notes.append(f"the ledger {ledger.source} has never read {topic}")
        return LedgerAccount(
            ledger.source,
            rows=rows,
            proven=proven,
            not_yet_recorded=not_yet_recorded,
            set_aside=set_aside,
            unreadable=ledger.unreadable(topic),
        )

    def _all_notes(self, side: SideAudit) -> list[str]:
        return [
            *self._notes,
            *side.notes,
            *(note for each in self._outcomes.values() for note in each.notes),
        ]
