"""One replay of a partition beside all that was published of it: what a checkpoint may know."""

from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import replace

from durabill.schemas.errors import StateError
from durabill.schemas.text import counted
from durabill.stream_processors.audit.errors import AuditError
from durabill.stream_processors.audit.grounds import Grounds
from durabill.stream_processors.audit.matching import Matcher, judge
from durabill.stream_processors.audit.partition_job import print_of
from durabill.stream_processors.audit.pool import Tell
from durabill.stream_processors.audit.rebuild import RebuildJob, explained, whole_log
from durabill.stream_processors.audit.replay import Replay
from durabill.stream_processors.audit.side_checks import drop_arrived
from durabill.stream_processors.audit.sources import open_source
from durabill.stream_processors.audit.totals_log import TotalsLog
from durabill.stream_processors.core.admission import Place
from durabill.stream_processors.engine.batch import Chunk, headers_in
from durabill.stream_processors.engine.effects import Opening
from durabill.stream_processors.kafka.openings import FoundOpening, read_openings
from durabill.stream_processors.kafka.options import LOOK_GROUP, quiet
from durabill.stream_processors.kafka.reading import read_bounds
from durabill.stream_processors.kafka.results import may_be_total


class Pass:
    """One replay of a partition up to some offset, beside all that was published."""

    def __init__(self, job: RebuildJob, tell: Tell) -> None:
        self.replay = Replay(job.place, job.terms, job.engine)
        self.matcher = Matcher()
        self.next_offset = job.first_offset
        self._job = job
        self._tell = tell
        self.openings = PublishedOpenings(job)
        self._own_from: int | None = None
        self._letters_due: list[int] = []
        self._forwards: dict[int, dict[int, bytes]] = {}
        """Partition -> offset and print of each record that was sent on to it."""

    def run(self, end_offset: int) -> "Pass":
        """Fold the log, chunk by chunk, as long as a chunk ends at or before an offset."""
        job, matcher = self._job, self.matcher
        partition = job.place.partition
        kafka, topic = quiet(job.settings.librdkafka()), job.settings.totals_topic
        bounds = job.totals_first, job.totals_end
        totals = TotalsLog(kafka, topic, partition, *bounds, job.topic_id)
        with closing(totals):
            for part in explained(whole_log(replace(job, end_offset=end_offset)), job):
                for step in self.replay.fold(part.chunk):
                    self.openings.take(step.effects.openings)
                    for total in step.effects.totals:
                        matcher.add_computed(total.key, total.value)
                    self._letters_due += (
                        each.record.offset
                        for each in step.effects.dead_letters
                        if each.record.offset not in job.letters
                    )
                    for each in step.effects.forwards:
                        sent = self._forwards.setdefault(each.partition, {})
                        sent[each.record.offset] = print_of(each.record.key, each.record.value)
                self.next_offset = part.chunk.next_offset
                while totals.has_more and matcher.published_count < matcher.computed_count:
                    self._read(totals)
                self._tell(partition, self.next_offset)
            while totals.has_more:
                self._read(totals)
        self._own_from = totals.own_from
        return self

    def _read(self, totals: TotalsLog) -> None:
        for record in totals.read():
            if may_be_total(record.key, record.value):  # else nobody's result
                self.matcher.add_published(record)

    def check(self) -> None:
        """Raise AuditError if something was published that the log doesn't give."""
        job = self._job
        self.openings.check(self.next_offset)
        grounds = Grounds(
            topic=job.settings.totals_topic,
            partition=job.place.partition,
            partitions=job.place.partitions,
            end_offset=self.next_offset,
            clock_ms=self.replay.table.clock_ms,
            totals_end=job.totals_end,
            may_all_be_newer=False,
            was_given=lambda _: False,  # what is missing is for a worker to publish
            log_id=job.topic_id,
            own_from=self._own_from,
        )
        found = judge(self.matcher.computed, self.matcher.published, {}, grounds).findings
        if found:
            first = found[0]
            raise AuditError(
                f"{first.place}: the totals topic holds what the log doesn't give"
                f" ({counted(len(found), 'difference')}, the first: {first.kind.value}"
                f" {first.field}). A checkpoint on top of it would hide that. `durabill audit` says"
                " what differs. Nothing was written"
            )

    def unpublished(self) -> int:
        """Return how many totals, dead letters and copies are missing; drop those that arrived."""
        job = self._job
        kafka, topic = quiet(job.settings.librdkafka()), job.settings.segments_topic
        for target, offsets in self._forwards.items():
            wanted = {(job.place.partition, each): known for each, known in offsets.items()}
            bounds = read_bounds(kafka, LOOK_GROUP, topic, [target])[target]
            place = Place(target, job.place.partitions)
            log = replace(job, place=place, first_offset=bounds[0], end_offset=bounds[1])
            drop_arrived(open_source(job.settings, log), wanted)
            self._forwards[target] = {offset: known for (_, offset), known in wanted.items()}
        totals = sum(map(len, self.matcher.computed.values()))
        others = len(self._letters_due) + len(self.openings.missing)
        return totals + others + sum(map(len, self._forwards.values()))

    def barrier(self) -> int:
        """Return where the first batch begins that gives something that is missing."""
        job = self._job
        missing = {
            (key, value) for key, all_of in self.matcher.computed.items() for value in all_of
        }
        offsets = {*self._letters_due, *self.openings.missing}
        offsets |= {each for some in self._forwards.values() for each in some}
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


class PublishedOpenings:
    """The openings of a partition that were published, and what the log has given of them."""

    def __init__(self, job: RebuildJob) -> None:
        self.given = 0
        self.missing: list[int] = []
        """The offsets of openings that were not published."""
        self._job = job
        topic, partition = job.settings.orders_topic, job.place.partition
        self._end = job.orders[1]
        kafka = quiet(job.settings.librdkafka())
        tail = read_openings(kafka, LOOK_GROUP, topic, {partition: job.orders[0]})[partition]
        self._published: dict[int, list[FoundOpening]] = {}
        for each in tail.found:
            if each[0] < self._end:
                self._published.setdefault(each[1], []).append(each)
        self._justified: set[int] = set()
        """Where in the orders topic the records are that the log gives."""

    def take(self, openings: Iterable[Opening]) -> None:
        """Take in what the log gives."""
        for each in openings:
            self.given += 1
            known = self._published.get(each.offset, ())
            same = [one[0] for one in known if one[2:4] == (each.key, each.value)]
            if same:
                self._justified.add(same[0])
            elif not any(map(self._is_ours, known)):
                self.missing.append(each.offset)

    def _is_ours(self, found: FoundOpening) -> bool:
        """Tell whether a record doesn't name another log: those are openings of logs before."""
        return not found[4] or self._job.topic_id in ("", found[4])

    def check(self, next_offset: int) -> None:
        """Raise AuditError if one was published that the log before an offset doesn't give."""
        wrong = [
            each
            for source_offset, known in self._published.items()
            if source_offset < next_offset
            for each in known
            if self._is_ours(each) and each[0] not in self._justified
        ]
        if wrong:
            topic, partition = self._job.settings.orders_topic, self._job.place.partition
            raise AuditError(
                f"{topic}/{partition}/{wrong[0][0]}: the orders topic holds what the log doesn't"
                f" give ({counted(len(wrong), 'record')}). A checkpoint on top of it would hide"
                " that. `durabill audit` says what differs. Nothing was written"
            )

    def orders_offset(self, next_offset: int) -> int:
        """Return from where on the openings are that a replay from an offset gives once more."""
        waiting = (known for at, known in self._published.items() if at >= next_offset)
        return min((each[0] for known in waiting for each in known), default=self._end)


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
