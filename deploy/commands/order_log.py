"""Reads what Kafka and the ledger hold of an order: its log, the policies, its totals."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from durabill.deploy.commands.common import quiet_kafka, without_password, writer_schemas
from durabill.deploy.terminal import Progress, say, shown
from durabill.schemas import (
    BadTotal,
    OrderTotal,
    Reason,
    WriterSchemas,
    decode_total,
    is_opening,
    partition_for,
)
from durabill.schemas.wire import RawSegment
from durabill.stream_processors.audit.raw_log import FetchedLog
from durabill.stream_processors.audit.story import Basis, Story
from durabill.stream_processors.audit.story_rows import Row
from durabill.stream_processors.audit.terms import RecordedTerms
from durabill.stream_processors.core.admission import LogRecord, Place
from durabill.stream_processors.core.explain import Extends, IsOpening, PolicyAt, Read, explain
from durabill.stream_processors.dead_letters.letters import DeadLetter, list_dead_letters
from durabill.stream_processors.engine.batch import records
from durabill.stream_processors.engine.policies import History, in_force
from durabill.stream_processors.engine.verdicts import RecordedSchemas
from durabill.stream_processors.kafka.options import LOOK_GROUP
from durabill.stream_processors.kafka.reading import partition_count, read_bounds, read_topic
from durabill.stream_processors.settings import Settings


def read_story(settings: Settings, number: str, everywhere: bool, progress: Progress) -> Story:
    """Return what the log tells of an order; `everywhere`: in wrong partitions as well."""
    kafka, topic = quiet_kafka(settings), settings.segments_topic
    partitions = partition_count(kafka, topic)
    own = partition_for(number.encode(), partitions)
    asked = sorted(range(partitions), key=lambda each: each != own) if everywhere else [own]
    recorded = _Recorded(settings, asked, progress)
    bases = {each: recorded.basis_of(each) for each in asked}
    story = Story(number, own, bases[own])
    bounds = read_bounds(kafka, LOOK_GROUP, topic, asked)
    for partition, basis in bases.items():
        live = _live(settings, partition, bounds[partition], progress)
        archived, notes = _before(settings, partition, bounds[partition][0])
        log = chain(archived, live)
        story.notes += notes
        place, policy_at = Place(partition, partitions), _policy_at(basis.history)
        read = recorded.reader_of(partition, basis)
        is_read = _is_opening_at(basis.history)
        extends = _extends_at(basis.history)
        happened = explain(
            number, log, place, policy_at, read, is_opening_at=is_read, extends_at=extends
        )
        story.add(partition, happened)
    letters = list_dead_letters(kafka, settings.dead_letters_topic)
    story.notes += compare_letters(story.rows, letters, topic, own)
    return story


def _live(
    settings: Settings, partition: int, bounds: tuple[int, int], progress: Progress
) -> Iterator[LogRecord]:
    """Yield the records of a partition that Kafka has, as the worker reads them.

    A consumer's library stops for ever at a batch that unpacks to too much, which anybody may write
    who may write at all; the worker passes it over.
    """
    topic = settings.segments_topic
    for part in FetchedLog(settings, topic, partition, *bounds).parts():
        yield from records(part.chunk, is_look=True)
        progress(f"reading {topic}", part.chunk.next_offset - bounds[0], bounds[1] - bounds[0])


def _before(
    settings: Settings, partition: int, log_begins: int
) -> tuple[Iterable[LogRecord], list[str]]:
    """Return the records before Kafka's log of a partition, if it lacks some, and what to note."""
    if not log_begins:
        return (), []
    if not settings.archive_dir:
        return (), [
            f"the log of partition {partition} begins at offset {log_begins}: what was before it is"
            " gone from Kafka, so records of the order may be missing here, and with them what they"
            " caused. --archive-dir reads them from an archive"
        ]
    # Parquet is an extra's, for those who have an archive.
    from durabill.stream_processors.audit.archive.head_records import ArchivedHead
    from durabill.stream_processors.audit.archive.reach import live_log

    head = ArchivedHead(Path(settings.archive_dir), live_log(settings), partition, log_begins)
    return head.records(), head.notes()


def _policy_at(history: History) -> PolicyAt:
    return lambda offset: in_force(history, offset).policy


def _is_opening_at(history: History) -> IsOpening:
    return lambda value, offset: is_opening(value) and in_force(history, offset).reads_openings


def _extends_at(history: History) -> Extends:
    return lambda offset: in_force(history, offset).extends_openings


class _Recorded:
    """How values of partitions are read, and by what policies they are judged: as was recorded."""

    def __init__(self, settings: Settings, partitions: Iterable[int], progress: Progress) -> None:
        self._settings = settings
        self._recorded = RecordedTerms(settings, partitions, progress)

    def basis_of(self, partition: int) -> Basis:
        """Return the policies of a partition; the settings' where none could be read."""
        terms = self._recorded.of(partition)
        return Basis(terms.history, terms.assumed_because)

    def reader_of(self, partition: int, basis: Basis) -> Read:
        """Return how values of a partition are read: with the schemas that were recorded.

        Where the recorded ones can't be read, or have no word on an id yet, the registry is asked.
        """
        terms, asked = self._recorded.of(partition), writer_schemas(self._settings)
        if basis.assumed_because:
            return asked.read
        known = RecordedSchemas(WriterSchemas(), terms.schemas)

        def read(value: bytes | None, offset: int) -> RawSegment:
            known.reads_ids = in_force(terms.history, offset).registry
            if known.reads_ids and asked.has_registry and value is not None and value[:1] == b"\0":
                schema_id = int.from_bytes(value[1:5], "big")
                if known.undecided({schema_id: offset}):
                    return asked.read(value, offset)
            return known.read(value, offset)

        return read


def compare_letters(
    rows: list[Row], letters: Iterable[DeadLetter], topic: str, own: int
) -> list[str]:
    """Note on each record where its dead letter is; return what was published otherwise."""
    by_place = {(each.partition, each.offset): each for each in rows}
    last_offset = max((each.offset for each in rows if each.partition == own), default=-1)
    notes, cut = [], []
    for letter in letters:
        if letter.origin is None or letter.source_topic != topic:
            continue
        place = letter.origin[1:]
        row = by_place.get(place)
        if letter.reason == Reason.BAD_BATCH:
            # Of the rest of a batch: its records aren't told one by one.
            if place[0] == own and place[1] <= last_offset:
                cut.append(f"{place[0]}/{place[1]}")
        elif row is not None:
            row.dead_letter = f"{letter.partition}/{letter.offset}"
            if row.reason != letter.reason:
                notes.append(
                    f"record {place[0]}/{place[1]} was published as a dead letter of the reason"
                    f" {shown(letter.reason)}: it was judged by another policy than is told here"
                )
    if cut:
        more = f" and {len(cut) - 3} more" if len(cut) > 3 else ""
        notes.append(
            f"from {', '.join(cut[:3])}{more} on the rest of a batch doesn't count (BAD_BATCH);"
            " its records are not told here"
        )
    return notes


@dataclass(slots=True)
class Totals:
    """An order's published totals, oldest first, `count` in all, and those set aside.

    A ledger sets a total aside where it has recorded another one of the same revision; None where
    no ledger could be asked.
    """

    found: list[Any]
    count: int
    source: str
    set_aside: list[OrderTotal] | None = None


def read_totals(settings: Settings, number: str, limit: int | None, *, whole: bool) -> Totals:
    """Return the latest `limit` totals (None: all); without their intervals unless `whole`."""
    if settings.ledger_dsn:
        import psycopg

        from durabill.stream_processors.dsn import connect, error_text
        from durabill.stream_processors.ledger import lookups

        source = f"the ledger at {without_password(settings.ledger_dsn)}"
        try:
            with connect(settings.ledger_dsn) as connection:
                if whole:
                    found: list[Any] = list(lookups.revisions(connection, number))
                    totals = Totals(found, len(found), source)
                else:
                    found, count = lookups.revision_summaries(connection, number, limit)
                    totals = Totals(found, count, source)
                try:
                    totals.set_aside = lookups.set_aside_totals(connection, number)
                except psycopg.errors.InsufficientPrivilege as error:
                    connection.rollback()
                    say(f"note: totals that were set aside can't be read: {error_text(error)}")
                return totals
        except psycopg.Error as error:
            say(f"note: the ledger can't be asked: {error_text(error)}")
    found = totals_in_topic(settings, number)
    return Totals(found[-(limit or len(found)) :], len(found), f"topic {settings.totals_topic}")


def totals_in_topic(settings: Settings, number: str) -> list[OrderTotal]:
    """Return the order's totals in the totals topic, oldest first, each once."""
    kafka, key = quiet_kafka(settings), number.encode()
    partition = partition_for(key, partition_count(kafka, settings.totals_topic))
    found: dict[OrderTotal, None] = {}
    for _, _, message in read_topic(
        kafka, settings.totals_topic, partitions=frozenset({partition})
    ):
        value = message.value()
        if message.key() == key and isinstance(value, bytes):
            try:
                found[decode_total(value)] = None
            except BadTotal:
                continue
    return list(found)
