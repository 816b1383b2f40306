"""The whole audit: takes the ends, has the partitions audited, compares the rest, sums up.

What is read when decides whether a live system can raise a false alarm. In this order:

    1 a moment of the ledger     every row of it stands for a total that is in the topic by then
    2 the ends of the totals     every total before them rests on records in the log by then;
                                 and those of the orders topic
    3 the ends of the segments   up to these the log is replayed
    4 the recorded terms         later ones hold from later offsets, but for one that is just being
                                 recorded: where something differs they are read again
    5 all of it is compared      what workers have yet to publish is told by their checkpoint, which
                                 is read before the totals, dead letters and copies of by then
"""

import itertools
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace

from durabill.schemas.errors import AccessError
from durabill.schemas.text import shown
from durabill.stream_processors.audit.archive_check import ArchiveCheck, check_archive
from durabill.stream_processors.audit.findings import (
    AuditResult,
    LedgerAccount,
    Scope,
    in_order,
)
from durabill.stream_processors.audit.ledger_view import OpenLedger, open_ledger
from durabill.stream_processors.audit.options import AuditOptions as AuditOptions
from durabill.stream_processors.audit.partition_audit import audit_partition
from durabill.stream_processors.audit.partition_job import PartitionJob, PartitionOutcome
from durabill.stream_processors.audit.plan import AuditPlan
from durabill.stream_processors.audit.pool import Progress, audit_errors, run_jobs
from durabill.stream_processors.audit.seal_check import Sealed, check_sealed
from durabill.stream_processors.audit.side_audit import SideAudit
from durabill.stream_processors.audit.side_checks import LetterCheck
from durabill.stream_processors.audit.terms import RecordedTerms, are_other
from durabill.stream_processors.kafka.options import quiet
from durabill.stream_processors.kafka.reading import partition_count
from durabill.stream_processors.settings import Settings

RERUNS_MAX = 3


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
        self._notes: list[str] = []
        self._outcomes: dict[int, PartitionOutcome] = {}
        self._archive = ArchiveCheck()

    def run(self) -> AuditResult:
        """Carry it out."""
        began_ms, began_s = time.time_ns() // 10**6, time.monotonic()
        settings, options = self._settings, self._options
        plan = AuditPlan(settings, options)
        partitions, wanted = plan.partitions, plan.wanted()
        self._check_archive()
        dsn = settings.ledger_dsn if options.with_ledger else ""
        topics = settings.totals_topic, settings.orders_topic
        opened = open_ledger(dsn, *topics) if dsn else nullcontext()
        with opened as ledger:
            jobs = plan.jobs(wanted, self._archive, ledger, self._progress)
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
                others = [each for each in ledger.other_topics(*topics) if self._is_there(each)]
                findings += ledger.strangers(settings.totals_topic, partitions, order, others)
                findings += ledger.strange_orders(settings.orders_topic, partitions, order, others)
                findings += ledger.as_a_whole(order)
                self._notes += ledger.notes(settings.totals_topic, others)
                account = self._ledger_account(ledger)
            sealed = self._check_seal()
            findings += sealed.findings
        own_s = time.process_time() - own_s
        return AuditResult(
            segments_topic=settings.segments_topic,
            totals_topic=settings.totals_topic,
            orders_topic=settings.orders_topic,
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
            sealed=sealed.totals,
            notes=tuple(self._all_notes(side)),
        )

    # -- the partitions -----------------------------------------------------------------------

    def _check_archive(self) -> None:
        settings, options = self._settings, self._options
        if settings.archive_dir and options.with_archive:
            self._archive = check_archive(
                settings, options.archive_key, options.archive_trusted, self._progress
            )
            self._notes += self._archive.notes

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

    def _check_seal(self) -> Sealed:
        options = self._options
        sealed = check_sealed(self._settings, options.seal_key, options.trusted, self._progress)
        self._notes += sealed.notes
        return sealed

    def _is_there(self, topic: str) -> bool:
        try:
            return partition_count(quiet(self._settings.librdkafka()), topic) > 0
        except AccessError:
            return False

    def _ledger_account(self, ledger: OpenLedger) -> LedgerAccount:
        counts = (each.ledger for each in self._outcomes.values())
        rows, proven, not_yet_recorded, set_aside = map(sum, zip(*counts, strict=True))
        openings = (each.order_rows for each in self._outcomes.values())
        orders, orders_proven, orders_to_come = map(sum, zip(*openings, strict=True))
        topic = self._settings.totals_topic
        return LedgerAccount(
            ledger.source,
            rows=rows,
            proven=proven,
            not_yet_recorded=not_yet_recorded,
            set_aside=set_aside,
            unreadable=ledger.unreadable(topic),
            orders=orders,
            orders_proven=orders_proven,
            orders_not_yet_recorded=orders_to_come,
        )

    def _all_notes(self, side: SideAudit) -> list[str]:
        notes = [
            *self._notes,
            *side.notes,
            *(note for each in self._outcomes.values() for note in each.notes),
            *self._without_totals(),
        ]
        return list(dict.fromkeys(notes))  # what holds for all partitions is told once

    def _without_totals(self) -> Iterator[str]:
        """Yield a note where nothing was proven of an order, because there is nothing of it."""
        accounts = [each.account for each in self._outcomes.values()]
        counts = ((e.totals, e.newer_totals, e.not_yet_published) for e in accounts)
        if self._options.order and not any(map(any, counts)):
            yield (
                f"order {shown(self._options.order)} has no total: the log gives none, and none was"
                " published. durabill explain tells whether it has any record"
            )
