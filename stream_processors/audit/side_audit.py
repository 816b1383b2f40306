"""Reads the dead letters and the copies of records sent on, and has them checked.

Where something is missing, it may be yet to come. So then the checkpoints are read, which tell up
to where all has been published, and after them what was missing is looked for once more.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from durabill.schemas.text import counted
from durabill.stream_processors.audit.archive_check import ArchiveCheck
from durabill.stream_processors.audit.findings import Finding
from durabill.stream_processors.audit.pool import Progress
from durabill.stream_processors.audit.side_checks import (
    Copies,
    LetterCheck,
    Outcomes,
    PublishedTo,
    drop_arrived,
    forwards_of,
    letters_are_gone,
    missing_copies,
    missing_letters,
)
from durabill.stream_processors.audit.sources import open_source
from durabill.stream_processors.audit.terms import RecordedTerms
from durabill.stream_processors.core.admission import Place
from durabill.stream_processors.dead_letters.letters import list_dead_letters
from durabill.stream_processors.kafka.options import DEAD_LETTERS_GROUP, LOOK_GROUP, quiet
from durabill.stream_processors.kafka.reading import partition_count, read_bounds
from durabill.stream_processors.settings import Settings


@dataclass(frozen=True, slots=True)
class _Part:
    """A partition's log as Kafka has it now."""

    place: Place
    first_offset: int
    end_offset: int


class SideAudit:
    """What records became besides totals, in one audit."""

    def __init__(
        self,
        settings: Settings,
        archive: ArchiveCheck,
        partitions: int,
        order: str,
        progress: Progress,
    ) -> None:
        self.notes: list[str] = []
        self._settings = settings
        self._archive = archive
        self._kafka = quiet(settings.librdkafka())
        self._partitions = partitions
        self._order = order
        self._progress = progress

    def check_letters(self, outcomes: Outcomes) -> LetterCheck:
        """Return the dead letters that are there now, compared with what was rejected."""
        topic = self._settings.dead_letters_topic
        check = LetterCheck(self._settings.segments_topic, self._partitions, outcomes)
        key = self._order.encode()
        letters = list_dead_letters(self._kafka, topic, repeats=True)
        check.read(each for each in letters if not key or each.key == key)
        if check.newer:
            segments = self._settings.segments_topic
            bounds = read_bounds(self._kafka, LOOK_GROUP, segments, list(outcomes))
            check.check_newer({each: end for each, (_, end) in bounds.items()})
        return check

    def letters(self, outcomes: Outcomes, check: LetterCheck) -> list[Finding]:
        """Return the findings about dead letters; `check` is of a reading just made."""
        topic = self._settings.dead_letters_topic
        missing: list[Finding] = []
        if lost := check.missing():
            if self._is_cut(topic):
                missing = [letters_are_gone(topic, len(lost))]
            else:
                published_to = self._published_to(outcomes, {each[0] for each in lost})
                check = self.check_letters(outcomes)
                segments = self._settings.segments_topic
                missing = missing_letters(segments, check.missing(), published_to)
        if check.of_other_topics:
            told = counted(check.of_other_topics, "dead letter")
            self.notes.append(f"{told} in {topic} are of other topics")
        return [*check.findings, *missing]

    def copies(self, outcomes: Outcomes) -> list[Finding]:
        """Return the findings about records that were sent on."""
        findings = []
        segments = self._settings.segments_topic
        for target, wanted in sorted(forwards_of(outcomes).items()):
            first_offset = self._drop_arrived(target, wanted)
            if wanted and first_offset > 0:
                self.notes.append(
                    f"{segments}/{target} no longer begins at its first offset: whether"
                    f" {counted(len(wanted), 'record')} sent on arrived there can't be told"
                )
            elif wanted:
                published_to = self._published_to(outcomes, {each[0] for each in wanted})
                self._drop_arrived(target, wanted)
                findings += missing_copies(segments, target, wanted, published_to)
        return findings

    def _drop_arrived(self, target: int, wanted: Copies) -> int:
        """Remove from `wanted` what has arrived; return where the log of the target begins."""
        topic = self._settings.segments_topic
        self._progress("looking for records that were sent on", target, self._partitions)
        bounds = read_bounds(self._kafka, LOOK_GROUP, topic, [target])[target]
        part = _Part(Place(target, self._partitions), *bounds)
        source = open_source(self._archive.settings_for(self._settings, target), part)
        drop_arrived(source, wanted)
        return source.first_offset

    def _published_to(self, outcomes: Outcomes, partitions: Iterable[int]) -> PublishedTo:
        """Return up to where workers have published by now: nothing where none has begun."""
        recorded = RecordedTerms(self._settings, partitions)

        def published_to(partition: int) -> int | None:
            known = recorded.published_to(partition)
            return known if known is not None or outcomes[partition].has_worked else 0

        return published_to

    def _is_cut(self, topic: str) -> bool:
        count = partition_count(self._kafka, topic)
        bounds = read_bounds(self._kafka, DEAD_LETTERS_GROUP, topic, range(count))
        return any(first > 0 for first, _ in bounds.values())
