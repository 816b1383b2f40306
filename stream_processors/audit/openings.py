"""Whether each opening that a log gives is in the orders topic: once, and byte for byte.

Theory of operation. Both are streams in the order of the log, and each record of the orders topic
says in a header where its opening lies. So they are matched as they pass by, and only what is not
the same is kept. What is left over at the end is judged: a record can be newer than the end of the
replay, an opening can be one that workers have yet to publish.

Where the segments topic was deleted and made anew, the orders topic has openings of logs that are
gone. A record names its log; one of another log is counted, and told. No worker writes such a
record once our log has one in the partition: what says so behind it is forged.
"""

from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from durabill.schemas.text import counted, shown
from durabill.stream_processors.audit.findings import Finding, Kind
from durabill.stream_processors.audit.ledger_orders import OrderRows
from durabill.stream_processors.audit.partition_job import PartitionJob, PartitionOutcome
from durabill.stream_processors.audit.replay import LogSource
from durabill.stream_processors.audit.terms import RecordedTerms
from durabill.stream_processors.audit.totals_log import Published, TotalsLog
from durabill.stream_processors.engine.effects import Opening
from durabill.stream_processors.kafka.options import LOOK_GROUP, quiet
from durabill.stream_processors.kafka.reading import read_bounds


@dataclass(slots=True)
class OpeningsOutcome:
    """What the comparison of one partition's openings came to."""

    published: int = 0
    proven: int = 0
    newer: int = 0
    not_yet_published: int = 0
    unprovable: int = 0
    others: Counter[str] = field(default_factory=Counter)
    """Id of another log -> how many of its openings there are."""
    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def counts(self) -> dict[str, int]:
        """Return what the partition's account has of it."""
        of_other_logs = sum(self.others.values())
        return {
            "openings": self.published - self.newer - of_other_logs,
            "openings_proven": self.proven,
            "openings_not_yet_published": self.not_yet_published,
            "openings_of_other_logs": of_other_logs,
        }


class OpeningsAudit:
    """Compares the two streams of one partition; must be closed."""

    def __init__(self, job: PartitionJob) -> None:
        self.outcome = OpeningsOutcome()
        self._job = job
        self._topic = job.settings.orders_topic
        self._kafka = quiet(job.settings.librdkafka())
        self._given: dict[int, Opening] = {}
        self._published: dict[int | None, list[Published]] = {}
        self._matched: array[int] = array("q")
        self._counted = [0, 0]
        """How many the log has given, and how many have been read of the topic."""
        self._log = TotalsLog(
            self._kafka, self._topic, job.place.partition, *job.orders, job.log_id
        )
        self.rows: OrderRows | None = None
        if job.ledger is not None and job.ledger.has_orders:
            order = job.scope.order or None
            self.rows = OrderRows(job.ledger, self._topic, job.place.partition, order)

    def open(self) -> None:
        """Begin to read the ledger. Raises psycopg.Error."""
        if self.rows is not None:
            self.rows.open()

    def close(self) -> None:
        """Close what is open."""
        self._log.close()
        if self.rows is not None:
            self.rows.close()

    def take(self, openings: Iterable[Opening]) -> None:
        """Take in what the log gives, in its order."""
        for each in openings:
            if not self._job.scope.has_record(each.key):
                continue
            self._counted[0] += 1
            waiting = self._published.get(each.offset, [])
            same = next((one for one in waiting if _is_same(one, each)), None)
            if same is None:
                self._given[each.offset] = each
                continue
            waiting.remove(same)
            if not waiting:
                del self._published[each.offset]
            self._match(each.offset)

    def follow(self) -> None:
        """Read of the topic about as much as the log has given."""
        while self._log.has_more and self._counted[1] < self._counted[0]:
            self._read()

    def _read(self) -> None:
        for record in self._log.read():
            if not self._job.scope.has_record(record.key):
                continue
            self._counted[1] += 1
            if self.rows is not None:
                self.rows.add_record(record)
            source = record.source_offset
            given = None if source is None else self._given.get(source)
            if source is not None and given is not None and _is_same(record, given):
                del self._given[source]
                self._match(source)
            else:
                self._published.setdefault(source, []).append(record)

    def _match(self, source_offset: int) -> None:
        self.outcome.proven += 1
        self._matched.append(source_offset)

    # -- what is left over --------------------------------------------------------------------

    def finish(self, source: LogSource, total: PartitionOutcome, *, has_holes: bool) -> None:
        """Judge what is left once the log has been replayed, and add it to the partition's outcome.

        In this order: the checkpoint, the topic's end now, the topic up to it.
        """
        job, partition = self._job, self._job.place.partition
        first_offset, end_offset = source.first_offset, source.end_offset
        is_recorded = job.terms.assumed_because or job.terms.history[0].from_offset <= first_offset
        is_whole = first_offset == 0 and not has_holes and bool(is_recorded)
        published_to: int | None = None
        while self._log.has_more:
            self._read()
        if self._given:
            published_to = RecordedTerms(job.settings, [partition]).published_to(partition)
            if published_to is None:
                published_to = end_offset if total.has_worked else 0
        if job.has_orders:
            end = read_bounds(self._kafka, LOOK_GROUP, self._topic, [partition])[partition][1]
            self._log.extend(end)
            while self._log.has_more:
                self._read()
            if self.rows is not None:
                self.rows.finish(end)
                self.outcome.findings += self.rows.findings
        outcome = self.outcome
        total.has_leftovers |= bool(self._given or self._published)
        outcome.published = self._counted[1]
        self._matched = array("q", sorted(self._matched))
        self._judge_published(first_offset, end_offset, is_whole=is_whole)
        self._judge_given(published_to or 0, is_whole=is_whole)
        if not job.has_orders:
            outcome.notes.append(
                f"there is no topic {self._topic}, or it must not be read: whether the openings of"
                " the log were passed on can't be told. `durabill topics create` makes it"
            )
        if outcome.unprovable:
            outcome.notes.append(
                f"{self._topic}/{partition}: {counted(outcome.unprovable, 'opening')} can't be"
                " proven: a part of the log, or of the policies, is missing"
            )
        outcome.notes += notes_of_others(f"{self._topic}/{partition}", "opening", outcome.others)
        total.findings += outcome.findings
        total.notes += outcome.notes
        if self.rows is not None:
            total.order_rows = (self.rows.rows, self.rows.proven, self.rows.not_yet_recorded)

    def _judge_published(self, first_offset: int, end_offset: int, *, is_whole: bool) -> None:
        outcome = self.outcome
        newer: list[Published] = []
        for source, records in self._published.items():
            for each in records:
                if source is None:
                    self._find(Kind.OPENING_WITHOUT_EVIDENCE, each, "a header with its place")
                elif each.log_id and self._job.log_id not in ("", each.log_id):
                    self._judge_other(each)
                elif source >= end_offset:
                    newer.append(each)
                elif self._was_matched(source):
                    self._find(Kind.OPENED_TWICE, each, "one record of this opening")
                elif source < first_offset or not is_whole:
                    outcome.unprovable += 1
                    self._given.pop(source, None)
                elif self._given.pop(source, None) is not None:
                    self._find(Kind.OPENING_DIFFERS, each, "the opening as it came")
                    self._matched.insert(bisect_left(self._matched, source), source)
                else:
                    self._find(Kind.OPENING_WITHOUT_EVIDENCE, each, "no opening that counts")
        if newer:
            topic, partition = self._job.settings.segments_topic, self._job.place.partition
            end = read_bounds(self._kafka, LOOK_GROUP, topic, [partition])[partition][1]
            for each in newer:
                if each.source_offset is not None and each.source_offset >= end:
                    expected = "an opening that is in the log"
                    self._find(Kind.OPENING_WITHOUT_EVIDENCE, each, expected)
                else:
                    outcome.newer += 1

    def _judge_other(self, record: Published) -> None:
        """Judge a record that names another log than ours, and that ours doesn't give."""
        own_from = self._log.own_from
        if own_from is None or record.offset < own_from:
            self.outcome.others[record.log_id] += 1
        else:
            expected = f"no other log's behind offset {own_from}, where this one's begin"
            self._find(Kind.OPENING_WITHOUT_EVIDENCE, record, expected)

    def _judge_given(self, published_to: int, *, is_whole: bool) -> None:
        outcome, topic = self.outcome, self._job.settings.segments_topic
        if not self._job.has_orders:
            outcome.not_yet_published += len(self._given)
            return
        for offset, each in self._given.items():
            if not is_whole:
                outcome.unprovable += 1
            elif offset >= published_to:
                outcome.not_yet_published += 1
            else:
                number = each.key.decode("utf-8", "replace")
                place = f"{topic}/{self._job.place.partition}/{offset}"
                expected = f"a record in {self._topic}, with the same key and value"
                finding = Finding(
                    Kind.OPENING_MISSING, number, None, "", expected, "no such record", place
                )
                outcome.findings.append(finding)

    def _was_matched(self, source: int) -> bool:
        at = bisect_left(self._matched, source)
        return at < len(self._matched) and self._matched[at] == source

    def _find(self, kind: Kind, record: Published, expected: str) -> None:
        partition = self._job.place.partition
        number = (record.key or b"").decode("utf-8", "replace")
        found = "no header" if record.source_offset is None else f"offset {record.source_offset}"
        if record.log_id and record.log_id != self._job.log_id:
            found += f" of the log {shown(record.log_id)}"
        place = f"{self._topic}/{partition}/{record.offset}"
        self.outcome.findings.append(Finding(kind, number, None, "", expected, found, place))


def notes_of_others(where: str, what: str, others: Mapping[str, int]) -> Iterator[str]:
    """Yield a note for each other log of which there are records in a partition."""
    for log_id, count in sorted(others.items()):
        yield (
            f"{where}: {counted(count, what)} of another log, of the segments topic with the id"
            f" {shown(log_id)}: not compared"
        )


def _is_same(record: Published, opening: Opening) -> bool:
    return (record.key, record.value) == (opening.key, opening.value)
