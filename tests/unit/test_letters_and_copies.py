"""Dead letters and copies, compared with the records that they are of."""

from array import array
from collections.abc import Iterator
from dataclasses import replace

import pytest

from durabill.schemas import Reason, headers
from durabill.stream_processors.audit.findings import Kind, PartitionAccount
from durabill.stream_processors.audit.partition_job import REASONS, PartitionOutcome, print_of
from durabill.stream_processors.audit.replay import LogPart
from durabill.stream_processors.audit.side_checks import (
    LetterCheck,
    drop_arrived,
    forwards_of,
    letters_are_gone,
)
from durabill.stream_processors.dead_letters.letters import DeadLetter
from durabill.stream_processors.engine.batch import Chunk
from tests.property.batches import encode_batch

REASON = Reason.TOO_LATE
KEY, VALUE = b"SO1", b"what came"
END = 10


def outcome() -> PartitionOutcome:
    """Of a log of ten records, that at 4 was rejected, and that at 6 sent on to partition 1."""
    account = PartitionAccount(0, first_offset=0, end_offset=END)
    prints = bytearray(print_of(KEY, VALUE))
    return PartitionOutcome(
        account,
        [],
        rejected=array("q", [4]),
        reasons=array("b", [REASONS.index(REASON)]),
        rejected_prints=prints,
        forwarded=array("q", [6]),
        forwarded_to=array("i", [1]),
        forwarded_prints=prints,
    )


LETTER = DeadLetter(0, 0, 0, REASON.value, "", "segments", 0, 4, KEY, VALUE, ())


def check(*letters: DeadLetter, end_now: int = END) -> tuple[list[Kind], int]:
    """The findings about these letters, and how many letters are missing."""
    made = LetterCheck("segments", 2, {0: outcome()})
    made.read(letters)
    made.check_newer({0: end_now})
    return [each.kind for each in made.findings], len(made.missing())


def test_a_letter_is_justified_by_its_record_alone() -> None:
    assert check(LETTER) == ([], 0)
    assert check(LETTER, LETTER) == ([], 0)
    assert check() == ([], 1)


@pytest.mark.parametrize(
    "lie",
    [
        replace(LETTER, value=b"what didn't come"),
        replace(LETTER, value=None),
        replace(LETTER, key=b"SO2"),
        replace(LETTER, key=None),
        replace(LETTER, reason=Reason.NOT_AVRO.value),
    ],
)
def test_a_letter_that_was_altered_is_none(lie: DeadLetter) -> None:
    assert check(lie) == ([Kind.DEAD_LETTER_UNJUSTIFIED], 1)


def test_a_letter_of_what_came_after_the_end_needs_its_record_by_now() -> None:
    newer = replace(LETTER, source_offset=END)
    assert check(LETTER, newer, end_now=END + 1) == ([], 0)
    assert check(LETTER, newer, end_now=END) == ([Kind.DEAD_LETTER_UNJUSTIFIED], 0)


def test_letters_that_were_deleted_are_a_finding() -> None:
    assert letters_are_gone("dead-letters", 3).kind is Kind.DEAD_LETTER_MISSING
    assert "3 rejected records" in letters_are_gone("dead-letters", 3).found


class _Log:
    """A partition's log with one record that says it comes from 0/6."""

    def __init__(self, key: bytes, value: bytes) -> None:
        origin = ((headers.FORWARDED_FROM, b"0/6"),)
        data = encode_batch(0, 1_000, [(0, (key, value, origin))])
        self._part = LogPart(Chunk(0, 1, data), data=1, control=0, aborted=0, missing=())
        self.partition, self.first_offset, self.end_offset = 1, 0, 1

    def parts(self) -> Iterator[LogPart]:
        """Yield the record."""
        yield self._part


@pytest.mark.parametrize(
    ("key", "value", "is_there"),
    [(KEY, VALUE, True), (KEY, b"else", False), (b"SO2", VALUE, False)],
)
def test_a_copy_has_the_key_and_the_value_of_its_record(
    key: bytes, value: bytes, is_there: bool
) -> None:
    wanted = forwards_of({0: outcome()})[1]
    drop_arrived(_Log(key, value), wanted)
    assert (not wanted) is is_there
