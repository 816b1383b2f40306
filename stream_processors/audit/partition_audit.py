"""The audit of one partition: its log is replayed, its totals and its rows are compared."""

import time
from collections.abc import Callable, Collection
from contextlib import closing

from durabill.schemas import BadTotal, OrderTotal, total_record
from durabill.stream_processors.audit.findings import Finding, Kind, PartitionAccount
from durabill.stream_processors.audit.grounds import grounds_of
from durabill.stream_processors.audit.ledger_rows import LedgerRows
from durabill.stream_processors.audit.matching import Judgement, Matcher, judge
from durabill.stream_processors.audit.openings import OpeningsAudit, notes_of_others
from durabill.stream_processors.audit.partition_job import (
    REASONS,
    PartitionJob,
    PartitionOutcome,
    notes_of,
    print_of,
)
from durabill.stream_processors.audit.published import read_checkpoint
from durabill.stream_processors.audit.replay import LogPart, LogSource, Replay, cuts_of
from durabill.stream_processors.audit.sources import open_source
from durabill.stream_processors.audit.totals_log import Published, TotalsLog
from durabill.stream_processors.engine.batch import headers_in
from durabill.stream_processors.engine.effects import Effects
from durabill.stream_processors.engine.policies import describe_history
from durabill.stream_processors.kafka.options import LOOK_GROUP, quiet
from durabill.stream_processors.kafka.reading import read_bounds

_HOLES_TOLD_MAX = 100

Tell = Callable[[int, int], None]
"""Called as tell(partition, next offset) now and then."""


class PartitionAudit:
    """The work on one job."""

    def __init__(self, job: PartitionJob, tell: Tell) -> None:
        self._job = job
        self._tell = tell
        self._kafka = quiet(job.settings.librdkafka())
        self._topic = job.settings.totals_topic
        self._matcher = Matcher()
        self._replay = Replay(job.place, job.terms, job.engine)
        self._counts = {"data": 0, "control": 0, "aborted": 0, "unexplained": 0}
        self._head_ms: int | None = None
        """When the first record was appended that is there without a hole after it."""
        self._newer = 0
        self._totals = self._totals_from(job.totals_end)
        self._rows: LedgerRows | None = None
        if job.ledger is not None:
            self._rows = LedgerRows(
                job.ledger, self._topic, job.place.partition, job.scope.order or None
            )
        self._openings = OpeningsAudit(job)
        self._outcome = PartitionOutcome(PartitionAccount(job.place.partition), [])

    def run(self) -> PartitionOutcome:
        """Return what was found. Raises what Kafka and PostgreSQL bring up."""
        began_s = time.process_time()
        job = self._job
        source = open_source(
            job.settings, job, from_archive=job.from_archive, cuts=cuts_of(job.terms)
        )
        try:
            if self._rows is not None:
                self._rows.open()
            self._openings.open()
            self._replay_all(source)
            judgement = self._judge(source)
            self._openings.finish(source, self._outcome, has_holes=self._counts["unexplained"] > 0)
            if self._rows is not None:
                self._rows.finish(self._job.totals_end)
        finally:
            self._totals.close()
            self._openings.close()
            if self._rows is not None:
                self._rows.close()
        self._sum_up(source, judgement)
        self._outcome.cpu_s = time.process_time() - began_s
        return self._outcome

    def _totals_from(self, end_offset: int) -> TotalsLog:
        job = self._job
        bounds = job.place.partition, job.totals_first, end_offset
        return TotalsLog(self._kafka, self._topic, *bounds, job.log_id)

    # -- the two streams ----------------------------------------------------------------------

    def _replay_all(self, source: LogSource) -> None:
        matcher, totals = self._matcher, self._totals
        for part in source.parts():
            self._account(part)
            for step in self._replay.fold(part.chunk):
                self._take(step.effects)
            while totals.has_more and matcher.published_count < matcher.computed_count:
                self._read_totals(self._rows)
            self._openings.follow()
            self._tell(self._job.place.partition, part.chunk.next_offset)
        while totals.has_more:
            self._read_totals(self._rows)

    def _account(self, part: LogPart) -> None:
        if part.missing:
            self._head_ms = None
        if self._head_ms is None and part.chunk.data:
            self._head_ms = next(headers_in(part.chunk.data))[1].max_timestamp_ms
        self._counts["data"] += part.data
        self._counts["control"] += part.control
        self._counts["aborted"] += part.aborted
        topic, partition = self._job.settings.segments_topic, self._job.place.partition
        for first, after in part.missing:
            self._counts["unexplained"] += after - first
            if len(self._outcome.findings) < _HOLES_TOLD_MAX:
                self._outcome.findings.append(
                    Finding(
                        Kind.OFFSET_UNEXPLAINED,
                        expected=f"{after - first} records, markers or aborted records",
                        found="nothing",
                        place=f"{topic}/{partition}/{first}-{after - 1}",
                    )
                )

    def _take(self, effects: Effects) -> None:
        scope, outcome = self._job.scope, self._outcome
        self._openings.take(effects.openings)
        for key, value in effects.totals:
            if scope.has(key, value):
                self._matcher.add_computed(key, value)
        for letter in effects.dead_letters:
            if scope.has_record(letter.record.key):
                outcome.rejected.append(letter.record.offset)
                outcome.reasons.append(REASONS.index(letter.reason))
                outcome.rejected_prints += print_of(letter.record.key, letter.record.value)
        for forward in effects.forwards:
            if scope.has_record(forward.record.key):
                outcome.forwarded.append(forward.record.offset)
                outcome.forwarded_to.append(forward.partition)
                outcome.forwarded_prints += print_of(forward.record.key, forward.record.value)

    def _read_totals(self, rows: LedgerRows | None) -> None:
        scope, matcher = self._job.scope, self._matcher
        for record in self._totals.read():
            if not scope.has_record(record.key):
                continue
            if rows is not None:
                rows.add_record(record)
            if not scope.has(record.key, record.value):
                continue
            if self._job.is_as_of and rests_on(record, self._job.end_offset):
                self._newer += 1  # not kept: after an early end these are most of all totals
            else:
                matcher.add_published(record)

    # -- what is left over --------------------------------------------------------------------

    def _judge(self, source: LogSource) -> Judgement:
        """Judge what the streams don't share.

        In this order: the checkpoint, the totals' end now, the totals up to it. So what the
        checkpoint rests on is among them.
        """
        job, matcher = self._job, self._matcher
        checkpoint = read_checkpoint(job.settings, job.place) if matcher.computed else None
        partition = job.place.partition
        bounds = read_bounds(self._kafka, LOOK_GROUP, self._topic, [partition])
        self._outcome.has_worked = job.has_checkpoint or bounds[partition][1] > 0
        self._totals.extend(bounds[partition][1])
        while self._totals.has_more:
            self._read_totals(None)
        self._outcome.has_leftovers = bool(matcher.computed or matcher.published)
        again = self._totals_from(self._totals.position)
        siblings = records_of(again, matcher.published)
        grounds = grounds_of(
            job,
            source,
            head_ms=self._head_ms,
            has_holes=self._counts["unexplained"] > 0,
            clock_ms=self._replay.table.clock_ms,
            was_given=self._was_given if checkpoint is None else checkpoint.was_given,
            own_from=self._totals.own_from,
        )
        return judge(matcher.computed, matcher.published, siblings, grounds)

    def _was_given(self, total: OrderTotal) -> bool:
        """Tell whether a total must be there although no checkpoint says so.

        Where nothing was ever published no worker has begun yet.
        """
        return self._outcome.has_worked

    # -- the outcome --------------------------------------------------------------------------

    def _sum_up(self, source: LogSource, judgement: Judgement) -> None:
        job, outcome, matcher = self._job, self._outcome, self._matcher
        partition, topic = job.place.partition, job.settings.segments_topic
        outcome.findings += judgement.findings
        outcome.findings += matcher.out_of_order(f"{self._topic}/{partition}")
        if source.first_offset > 0:
            outcome.findings.append(
                Finding(
                    Kind.LOG_HEAD_MISSING,
                    expected="a log from offset 0 on, on Kafka or in the archive",
                    found=f"offsets from {source.first_offset} on"
                    f" ({judgement.unprovable} totals can't be proven)",
                    place=f"{topic}/{partition}",
                )
            )
        if self._rows is not None:
            rows = self._rows
            outcome.findings += rows.findings
            outcome.ledger = (rows.rows, rows.proven, rows.not_yet_recorded, rows.set_aside)
        outcome.notes += notes_of(job, source, has_worked=outcome.has_worked)
        outcome.notes += notes_of_others(f"{self._topic}/{partition}", "total", judgement.others)
        outcome.account = PartitionAccount(
            partition,
            first_offset=source.first_offset,
            end_offset=source.end_offset,
            **self._counts,
            clock_marks=self._replay.table.clock_marks,
            dead_letters=len(outcome.rejected),
            forwarded=len(outcome.forwarded),
            totals=matcher.published_count - judgement.newer - judgement.others.total(),
            totals_of_other_logs=judgement.others.total(),
            proven=matcher.proven + judgement.proven,
            newer_totals=judgement.newer + self._newer,
            not_yet_published=judgement.not_yet_published,
            unprovable_totals=judgement.unprovable,
            open_orders=self._replay.table.unsettled(),
            **self._openings.outcome.counts(),
            archived_to=getattr(source, "archived_to", None),
            policies=tuple(describe_history(job.terms.history)),
            policy_assumed_because=job.terms.assumed_because,
        )


def audit_partition(job: PartitionJob, tell: Tell) -> PartitionOutcome:
    """Do one job; see `pool.run_jobs`."""
    return PartitionAudit(job, tell).run()


def records_of(
    totals: TotalsLog, keys: Collection[bytes | None]
) -> dict[bytes | None, list[Published]]:
    """Return all that was published of some orders; the log is closed in the end."""
    found: dict[bytes | None, list[Published]] = {key: [] for key in keys}
    with closing(totals):
        while found and totals.has_more:
            for record in totals.read():
                if record.key in found:
                    found[record.key].append(record)
    return found


def rests_on(record: Published, offset: int) -> bool:
    """Tell whether a total rests, by its own word, on a record at an offset or after it."""
    try:
        return int(total_record(record.value)["source_offset"]) >= offset
    except BadTotal:
        return False
