"""Dead letters and copies: which are missing, and which nothing justifies."""

from array import array
from dataclasses import replace

from durabill.schemas import Reason
from durabill.schemas.headers import FORWARDED_FROM
from durabill.stream_processors.audit.findings import Kind, PartitionAccount
from durabill.stream_processors.audit.partition_job import REASONS, PartitionOutcome, print_of
from durabill.stream_processors.audit.replay import LogPart, chunk_of_rows
from durabill.stream_processors.audit.side_checks import (
    LetterCheck,
    drop_arrived,
    forwards_of,
    missing_copies,
    missing_letters,
)
from durabill.stream_processors.dead_letters.letters import DeadLetter

LETTER = DeadLetter(0, 3, 0, "TOO_LATE", "", "segments", 1, 7, b"SO1", None, ())


def outcome() -> PartitionOutcome:
    """Partition 1, offsets 5 to 20, of which 7 and 9 were rejected, and 8 was sent on."""
    found = PartitionOutcome(PartitionAccount(1, first_offset=5, end_offset=20), [])
    found.rejected = array("q", [7, 9])
    found.reasons = array("b", [REASONS.index(Reason.TOO_LATE), REASONS.index(Reason.NOT_AVRO)])
    found.rejected_prints = bytearray(2 * print_of(LETTER.key, LETTER.value))
    found.forwarded_prints = bytearray(print_of(b"k", b"v"))
    found.forwarded, found.forwarded_to = array("q", [8]), array("i", [0])
    return found


def checked(*letters: DeadLetter) -> LetterCheck:
    check = LetterCheck("segments", 2, {1: outcome()})
    check.read(letters)
    return check


def test_letters_with_the_right_reason_are_in_order_also_twice() -> None:
    other = replace(LETTER, source_offset=9, reason="NOT_AVRO")
    check = checked(LETTER, LETTER, other)
    assert (check.findings, check.missing(), check.doubted) == ([], [], set())


def test_a_letter_that_is_missing_is_one_only_where_workers_have_come_as_far() -> None:
    missing = checked(LETTER).missing()
    assert missing == [(1, 9, "NOT_AVRO")]
    for published_to, count in ((None, 1), (10, 1), (9, 0)):
        found = missing_letters("segments", missing, lambda _, to=published_to: to)  # type: ignore[misc]
        assert [each.kind for each in found] == [Kind.DEAD_LETTER_MISSING] * count


def test_a_letter_must_be_justified() -> None:
    for letter, expected in (
        (replace(LETTER, reason="TOO_LONG"), "TOO_LATE"),
        (replace(LETTER, source_offset=8), "no rejection"),
        (replace(LETTER, source_partition=None), "a record that its headers name"),
        (replace(LETTER, source_partition=2), "a partition from 0 to 1"),
    ):
        (found,) = checked(letter).findings
        assert (found.kind, found.expected) == (Kind.DEAD_LETTER_UNJUSTIFIED, expected)


def test_letters_of_what_was_not_audited_are_no_findings() -> None:
    others = (
        replace(LETTER, source_offset=20),
        replace(LETTER, source_offset=4),
        replace(LETTER, source_partition=0),
        replace(LETTER, source_topic="elsewhere"),
    )
    check = checked(*others)
    assert (check.findings, check.of_other_topics) == ([], 1)


class Log:
    """A partition of one part."""

    partition, first_offset, end_offset = 0, 0, 2

    def __init__(self, *origins: bytes) -> None:
        rows = [
            (at, 7, b"k", b"v", ((FORWARDED_FROM, origin),)) for at, origin in enumerate(origins)
        ]
        self._part = LogPart(chunk_of_rows(rows, 0, 2), len(rows))

    def parts(self):  # type: ignore[no-untyped-def]
        """The part."""
        yield self._part


def test_a_copy_is_known_by_where_it_came_from() -> None:
    lost = forwards_of({1: outcome()})
    assert lost == {0: {(1, 8): print_of(b"k", b"v")}}
    drop_arrived(Log(b"1/9", b"x/8"), lost[0])
    assert missing_copies("segments", 0, lost[0], lambda _: 8) == []
    (found,) = missing_copies("segments", 0, lost[0], lambda _: 9)
    assert (found.kind, found.place) == (Kind.COPY_MISSING, "segments/1/8")
    drop_arrived(Log(b"1/9", b"1/8"), lost[0])
    assert lost[0] == {}
