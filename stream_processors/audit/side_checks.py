"""Whether what a log's records became besides totals is there: dead letters, and copies sent on."""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from durabill.schemas import headers
from durabill.schemas.text import counted
from durabill.stream_processors.audit.findings import Finding, Kind
from durabill.stream_processors.audit.partition_job import (
    PRINT_BYTES,
    REASONS,
    PartitionOutcome,
    print_of,
)
from durabill.stream_processors.audit.replay import LogSource
from durabill.stream_processors.dead_letters.letters import DeadLetter
from durabill.stream_processors.engine.batch import (
    BATCH_UNPACKED_BYTES_MAX,
    CODEC_MASK,
    HEADER_SIZE,
    Record,
    headers_in,
    read_batch,
)
from durabill.stream_processors.engine.unpack import BadBatch, Room

ORIGIN_BYTES_MAX = 32
"""As long as the place in a header of ours can be."""

Outcomes = Mapping[int, PartitionOutcome]
Copies = dict[tuple[int, int], bytes]
"""Where records stand that were sent on: (partition, offset); and the print of each."""
PublishedTo = Callable[[int], int | None]
"""Partition -> the offset up to which all has been published; None: not known."""


@dataclass(slots=True)
class LetterCheck:
    """The dead letters of one reading, compared with the records that were rejected."""

    segments_topic: str
    partitions: int
    outcomes: Outcomes
    findings: list[Finding] = field(default_factory=list)
    of_other_topics: int = 0
    doubted: set[int] = field(default_factory=set)
    """Partitions of which a letter is missing, or is there against what the replay gave."""
    newer: list[DeadLetter] = field(default_factory=list)
    """Letters of records after the end of the replay."""
    _seen: dict[int, bytearray] = field(default_factory=dict)

    def read(self, letters: Iterable[DeadLetter]) -> None:
        """Compare the letters with what the replay has rejected."""
        self._seen = {
            partition: bytearray(len(outcome.rejected))
            for partition, outcome in self.outcomes.items()
        }
        for letter in letters:
            if letter.source_topic not in ("", self.segments_topic):
                self.of_other_topics += 1
            elif (why := self._why_unjustified(letter)) is not None:
                if letter.origin is not None:
                    self.doubted.add(letter.origin[1])
                self._find(letter, why)
        self.doubted |= {partition for partition, _, _ in self.missing()}

    def _find(self, letter: DeadLetter, why: str) -> None:
        place = f"dead letter {letter.partition}/{letter.offset}"
        if letter.origin is not None:
            place += f", of {self.segments_topic}/{letter.origin[1]}/{letter.origin[2]}"
        number = (letter.key or b"").decode("utf-8", "replace")
        found = letter.reason or "no reason"
        kind = Kind.DEAD_LETTER_UNJUSTIFIED
        self.findings.append(Finding(kind, number, None, "reason", why, found, place))

    def check_newer(self, ends: Mapping[int, int]) -> None:
        """Find the letters whose records aren't in the log; `ends` were asked for after `read`."""
        for letter in self.newer:
            assert letter.origin is not None, "else it isn't newer"
            _, partition, offset = letter.origin
            if offset >= ends[partition]:
                self._find(letter, "a record that is in the log")

    def _why_unjustified(self, letter: DeadLetter) -> str | None:
        """Return what the log says in place of a letter; None: the letter is right, or newer."""
        if letter.origin is None:
            return "a record that its headers name"
        _, partition, offset = letter.origin
        outcome = self.outcomes.get(partition)
        if outcome is None:
            is_one = 0 <= partition < self.partitions
            return None if is_one else f"a partition from 0 to {self.partitions - 1}"
        if offset >= outcome.account.end_offset:
            self.newer.append(letter)
        if not outcome.account.first_offset <= offset < outcome.account.end_offset:
            return None  # newer than the end, or of the part that is gone
        at = bisect_left(outcome.rejected, offset)
        if at == len(outcome.rejected) or outcome.rejected[at] != offset:
            return "no rejection"
        reason = REASONS[outcome.reasons[at]].value
        if letter.reason != reason:
            return reason
        if print_of(letter.key, letter.value) != _print(outcome.rejected_prints, at):
            return f"{reason}, with the key and the value of the record that was rejected"
        self._seen[partition][at] = True
        return None

    def missing(self) -> list[tuple[int, int, str]]:
        """Return (partition, offset, reason) of the rejected records that have no letter."""
        return [
            (partition, outcome.rejected[at], REASONS[outcome.reasons[at]].value)
            for partition, outcome in self.outcomes.items()
            for at, seen in enumerate(self._seen[partition])
            if not seen
        ]


def missing_letters(
    topic: str, missing: Iterable[tuple[int, int, str]], published_to: PublishedTo
) -> list[Finding]:
    """Return a finding for each missing letter that workers must have published."""
    return [
        Finding(
            Kind.DEAD_LETTER_MISSING,
            expected=reason,
            found="no dead letter",
            place=f"{topic}/{partition}/{offset}",
        )
        for partition, offset, reason in missing
        if _is_due(offset, published_to(partition))
    ]


def letters_are_gone(topic: str, rejected: int) -> Finding:
    """Return the finding for dead letters that were deleted together with the topic's head."""
    return Finding(
        Kind.DEAD_LETTER_MISSING,
        expected=f"a dead letter of each rejected record; {topic} is to keep them for good",
        found=f"{topic} no longer begins at its first offset: whether"
        f" {counted(rejected, 'rejected record')} had a dead letter can't be told",
        place=topic,
    )


def _print(prints: bytearray, at: int) -> bytes:
    return bytes(prints[at * PRINT_BYTES : (at + 1) * PRINT_BYTES])


def forwards_of(outcomes: Outcomes) -> dict[int, Copies]:
    """Return, for each partition that records were sent on to, which ones."""
    wanted: dict[int, Copies] = {}
    for partition, outcome in outcomes.items():
        pairs = zip(outcome.forwarded, outcome.forwarded_to, strict=True)
        for at, (offset, target) in enumerate(pairs):
            prints = outcome.forwarded_prints
            wanted.setdefault(target, {})[partition, offset] = _print(prints, at)
    return wanted


def drop_arrived(source: LogSource, wanted: Copies) -> None:
    """Remove from `wanted` what has a copy in a partition's log, with the same key and value."""
    room = Room(BATCH_UNPACKED_BYTES_MAX)
    name = headers.FORWARDED_FROM.encode()
    for part in source.parts():
        view = memoryview(part.chunk.data)
        for at, header in headers_in(part.chunk.data):
            packed = view[at + HEADER_SIZE : at + header.size]
            try:
                body = room.unpack(header.attributes & CODEC_MASK, packed)
            except BadBatch:
                continue  # of such a batch no record counts
            if name not in body.tobytes():
                continue
            for record in read_batch(header, packed, room):
                if isinstance(record, Record):
                    for origin in _origins(record) & wanted.keys():
                        if print_of(record.key, record.value) == wanted[origin]:
                            del wanted[origin]
        if not wanted:
            return


def _origins(record: Record) -> set[tuple[int, int]]:
    found = set()
    for name, content in record.headers:
        if name != headers.FORWARDED_FROM or content is None or len(content) > ORIGIN_BYTES_MAX:
            continue
        partition, _, offset = content.partition(b"/")
        if partition.isdigit() and offset.isdigit():
            found.add((int(partition), int(offset)))
    return found


def missing_copies(
    topic: str, target: int, missing: Iterable[tuple[int, int]], published_to: PublishedTo
) -> list[Finding]:
    """Return a finding for each record whose copy workers must have sent on."""
    return [
        Finding(
            Kind.COPY_MISSING,
            expected=f"a copy in {topic}/{target}, with the same key and value",
            found="no such copy",
            place=f"{topic}/{partition}/{offset}",
        )
        for partition, offset in sorted(missing)
        if _is_due(offset, published_to(partition))
    ]


def _is_due(offset: int, published_to: int | None) -> bool:
    return published_to is None or offset < published_to
