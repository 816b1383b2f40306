"""Which terms hold from which offset on."""

from dataclasses import replace

import pytest

from durabill.schemas.errors import StateError
from durabill.stream_processors.core.order import Policy
from durabill.stream_processors.engine.batch import Chunk
from durabill.stream_processors.engine.policies import (
    RULES,
    History,
    PolicyRecord,
    Terms,
    decode_history,
    encode_history,
    in_force,
    split,
    taken_over,
)
from tests.property.batches import encode_batch

OLD = Terms(Policy(settle_grace_ms=1))
NEW = Terms(Policy(settle_grace_ms=2))
NEWEST = Terms(Policy(settle_grace_ms=2), registry=True)
HISTORY: History = (PolicyRecord(0, OLD), PolicyRecord(10, NEW), PolicyRecord(30, NEWEST))


def test_a_history_comes_back() -> None:
    assert decode_history(encode_history(HISTORY)) == HISTORY
    assert decode_history(None) == ()


@pytest.mark.parametrize("raw", [b"", b"{}", b"[{}]", b'[{"from_offset":1}]', b"\xff"])
def test_a_damaged_one(raw: bytes) -> None:
    with pytest.raises(StateError, match="damaged"):
        decode_history(raw)


def test_a_newer_program_has_been_here() -> None:
    later = PolicyRecord(40, Terms(OLD.policy, rules=RULES + 1))
    with pytest.raises(StateError, match="newer version"):
        decode_history(encode_history((*HISTORY, later)))


@pytest.mark.parametrize(
    ("offset", "terms"), [(0, OLD), (9, OLD), (10, NEW), (29, NEW), (30, NEWEST), (10**9, NEWEST)]
)
def test_the_terms_in_force_at_an_offset(offset: int, terms: Terms) -> None:
    assert terms == in_force(HISTORY, offset)


def test_the_first_holds_for_what_was_before_it() -> None:
    assert in_force((PolicyRecord(5, OLD),), 3) == OLD


def test_two_changes_without_a_record_between() -> None:
    assert in_force((PolicyRecord(5, OLD), PolicyRecord(5, NEW)), 5) == NEW


def taken(history: History, wanted: Terms, *, unseen: bool = False) -> History:
    return taken_over(history, wanted, next_offset=7, log_end=50, has_unseen_totals=unseen)


def test_the_same_terms_change_nothing() -> None:
    assert taken(HISTORY, NEWEST, unseen=True) == HISTORY


def test_other_terms_hold_from_the_end_of_the_log() -> None:
    assert (*HISTORY, PolicyRecord(50, OLD)) == taken(HISTORY, OLD, unseen=True)


def test_a_checkpoint_without_a_history_is_continued_from_where_it_is() -> None:
    assert (PolicyRecord(7, OLD),) == taken((), OLD)


def test_other_rules_wait_for_no_tail() -> None:
    before: History = (PolicyRecord(0, Terms(OLD.policy, rules=1)),)
    assert (*before, PolicyRecord(7, OLD)) == taken(before, OLD)
    for history in (before, ()):
        with pytest.raises(StateError, match="another version of Durabill"):
            taken(history, OLD, unseen=True)


def chunk(*bases: int) -> Chunk:
    """Return a chunk with batches of five records each that begin at these offsets."""
    data = b"".join(
        encode_batch(base, 1, [(base + each, (b"k", b"v", ())) for each in range(5)])
        for base in bases
    )
    return Chunk(bases[0] + 1, bases[-1] + 5, data)


def test_a_chunk_without_a_change_is_whole() -> None:
    whole = chunk(10, 15, 20)
    assert [(NEW, whole)] == split(whole, HISTORY)


def test_a_chunk_is_cut_where_the_terms_change() -> None:
    whole = chunk(0, 5, 10, 15, 25, 30)
    pieces = split(whole, HISTORY)
    assert [(terms, piece.first_offset, piece.next_offset) for terms, piece in pieces] == [
        (OLD, 1, 10),
        (NEW, 10, 30),
        (NEWEST, 30, 35),
    ]
    assert whole.data == b"".join(piece.data for _, piece in pieces)


def test_a_change_inside_a_batch_holds_from_the_next_one() -> None:
    history: History = (PolicyRecord(0, OLD), PolicyRecord(12, NEW))
    pieces = split(chunk(10, 15), history)
    assert [(terms, piece.first_offset, piece.next_offset) for terms, piece in pieces] == [
        (OLD, 11, 15),
        (NEW, 15, 20),
    ]


def test_what_was_handed_over_before_stays_so() -> None:
    whole = replace(chunk(5, 10, 15), first_offset=12)
    pieces = split(whole, HISTORY)
    assert [(terms, piece.first_offset, piece.next_offset) for terms, piece in pieces] == [
        (OLD, 12, 12),
        (NEW, 12, 20),
    ]


def test_a_chunk_without_batches() -> None:
    empty = Chunk(3, 40, b"")
    assert [(None, empty)] == split(empty, HISTORY)
