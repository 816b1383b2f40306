"""What an order's totals say, field by field, and how long an order is known."""

import hashlib
from dataclasses import replace

import pytest

from durabill.schemas import NumberRange, OrderTotal, SegmentEvent, Status
from durabill.stream_processors.core.intervals import IntervalSet
from durabill.stream_processors.core.order import Order, Phase, Policy, evidence_digest
from tests.unit.test_order import POLICY, empty_end, segment, settle_if_due


def complete_order() -> tuple[Order, OrderTotal]:
    """Return an order of two segments and the COMPLETE total that the second gave."""
    order = Order("SO1", 3)
    assert order.apply(segment(1), 1_000, 7, POLICY) is None
    total = order.apply(segment(2, end=True), 1_001, 8, POLICY)
    assert total is not None
    return order, total


def test_total_of_two_touching_segments() -> None:
    _, total = complete_order()
    assert total == OrderTotal(
        service_order_number="SO1",
        revision=1,
        status=Status.COMPLETE,
        duration_ms=20,
        upper_bound_ms=20,
        started_ms=1_010,
        ended_ms=1_030,
        intervals=total.intervals,
        end_number=2,
        missing_numbers=(),
        segments=2,
        duplicates=0,
        overlap_ms=0,
        gap_ms=0,
        numbers_after_end=0,
        digest=hashlib.sha256(b"durabill-evidence-1\nSO1\n1010-1030\n1-2\n2\n").hexdigest(),
        previous_digest="",
        source_partition=3,
        source_offset=8,
        settled_at_ms=1_001,
    )
    assert total.intervals == ((1_010, 1_030),)


def test_incomplete_total_says_what_is_missing_and_bounds_it() -> None:
    order = Order("SO1", 0)
    order.apply(segment(2), 1_000, 0, POLICY)
    order.apply(segment(5), 1_000, 1, POLICY)
    order.apply(empty_end(8), 1_000, 2, POLICY)
    (total,) = settle_if_due(order, 1_030, POLICY)
    assert total.missing_numbers == (NumberRange(1, 1), NumberRange(3, 4), NumberRange(6, 7))
    assert (total.duration_ms, total.upper_bound_ms, total.gap_ms) == (20, None, 60)
    assert (total.started_ms, total.ended_ms) == (1_020, 1_100)
    evidence = b"durabill-evidence-1\nSO1\n1020-1030,1050-1060\n2-2,5-5,8-8\n8\n"
    assert total.digest == hashlib.sha256(evidence).hexdigest()


def test_incomplete_total_that_has_its_first_number_is_bounded() -> None:
    order = Order("SO1", 0)
    order.apply(segment(1), 1_000, 0, POLICY)
    order.apply(empty_end(8), 1_000, 1, POLICY)
    (total,) = settle_if_due(order, 1_030, POLICY)
    assert (total.duration_ms, total.upper_bound_ms, total.gap_ms) == (10, 1_100 - 1_010, 80)


def test_bound_is_unknown_until_the_first_number_is_there() -> None:
    """Number 3 alone, with the end, once said "at most 10 s", and became 30 s."""
    order = Order("SO1", 0)
    order.apply(segment(3, end=True), 1_000, 0, POLICY)
    (total,) = settle_if_due(order, 1_030, POLICY)
    assert (total.duration_ms, total.upper_bound_ms) == (10, None)
    assert order.apply(segment(1), 1_031, 1, POLICY) is None
    assert order.apply(segment(2), 1_032, 2, POLICY) is None
    totals = settle_if_due(order, 1_031 + POLICY.settle_grace_ms, POLICY)
    assert [(each.duration_ms, each.upper_bound_ms) for each in totals] == [(30, 30)]


def test_total_without_an_end_is_not_bounded() -> None:
    order = Order("SO1", 0)
    order.apply(segment(1), 1_000, 0, POLICY)
    (total,) = settle_if_due(order, 1_199 + 1, POLICY)
    assert (total.status, total.upper_bound_ms, total.missing_numbers) == (Status.RUNNING, None, ())
    (total,) = settle_if_due(order, 1_300, POLICY)
    assert (
        total.status,
        total.upper_bound_ms,
        total.missing_numbers,
    ) == (Status.ABANDONED, None, ())


def test_numbers_beyond_the_end_are_as_good_a_proof_of_what_is_missing() -> None:
    """1, 2 with the end, 3, 5: number 4 is known to exist, so nothing is complete."""
    order = Order("SO1", 0)
    for offset, number in enumerate((5, 3, 1)):
        assert order.apply(segment(number), 1_000, offset, POLICY) is None
    assert order.apply(segment(2, end=True), 1_000, 3, POLICY) is None
    (total,) = settle_if_due(order, 1_030, POLICY)
    assert (Status.INCOMPLETE, (NumberRange(4, 4),)) == (total.status, total.missing_numbers)
    assert (total.end_number, total.numbers_after_end) == (2, 2)


def test_a_lost_number_that_is_sent_again_as_a_moment_leaves_a_gap() -> None:
    order = Order("SO1", 0)
    order.apply(segment(1), 1_000, 0, POLICY)
    order.apply(SegmentEvent("SO1", 2, 1_020, 1_021, False), 1_000, 1, POLICY)
    total = order.apply(segment(3, end=True), 1_000, 2, POLICY)
    assert total is not None
    assert (
        total.status,
        total.duration_ms,
        total.upper_bound_ms,
        total.gap_ms,
    ) == (Status.COMPLETE, 21, 21, 9)


def test_abandoned_total_misses_numbers_up_to_the_greatest_seen() -> None:
    order = Order("SO1", 0)
    order.apply(segment(4), 1_000, 0, POLICY)
    total = settle_if_due(order, 1_300, POLICY)[-1]
    assert (total.end_number, total.missing_numbers) == (None, (NumberRange(1, 3),))
    evidence = b"durabill-evidence-1\nSO1\n1040-1050\n4-4\n-\n"
    assert total.digest == hashlib.sha256(evidence).hexdigest()


def test_total_of_nothing_but_an_empty_end() -> None:
    order = Order("SO1", 0)
    total = order.apply(empty_end(1), 1_000, 0, POLICY)
    assert total is not None
    assert (total.duration_ms, total.intervals) == (0, ())
    assert (total.started_ms, total.ended_ms) == (1_100, 1_100)
    evidence = b"durabill-evidence-1\nSO1\n\n1-1\n1\n"
    assert total.digest == hashlib.sha256(evidence).hexdigest()


def test_next_revision_carries_the_digest_of_the_one_before() -> None:
    order, first = complete_order()
    assert order.apply(segment(2, shift_ms=5), 1_002, 9, POLICY) is None
    (second,) = settle_if_due(order, 1_032, POLICY)
    assert (second.revision, second.previous_digest) == (2, first.digest)
    assert second.digest != first.digest
    assert (second.duplicates, second.overlap_ms, second.duration_ms) == (1, 5, 25)


def test_repeats_between_revisions_are_counted_in_the_next() -> None:
    order, _ = complete_order()
    for offset in (9, 10):
        assert order.apply(segment(1), 1_002, offset, POLICY) is None
    assert order.apply(segment(3), 1_003, 11, POLICY) is None
    (total,) = settle_if_due(order, 1_033, POLICY)
    assert (total.duplicates, total.overlap_ms, total.numbers_after_end) == (2, 20, 1)
    assert total.source_offset == 11


def test_greatest_number_with_the_end_identifier_is_the_end() -> None:
    order, _ = complete_order()
    assert order.apply(segment(4, end=True), 1_002, 9, POLICY) is None
    assert order.end_number == 4
    assert order.apply(segment(3, end=True), 1_003, 10, POLICY) is None
    (total,) = settle_if_due(order, 1_032, POLICY)
    assert (total.end_number, total.status) == (4, Status.COMPLETE)


def test_greatest_possible_number_is_taken() -> None:
    order = Order("SO1", 0)
    order.apply(replace(segment(1), business_data_number=2**63 - 1), 1_000, 0, POLICY)
    order.check()
    total = settle_if_due(order, 1_300, POLICY)[-1]
    assert total.missing_numbers == (NumberRange(1, 2**63 - 2),)


def test_segment_from_the_future_is_remembered_until_its_repeats_are_too_late() -> None:
    order = Order("SO1", 0)
    order.apply(SegmentEvent("SO1", 1, 60_990, 61_000, True), 1_000, 0, POLICY)
    assert order.deadline_ms == 61_000 + 1_000
    assert not order.is_forgotten(62_000)


def test_later_empty_end_is_remembered_until_its_repeats_are_too_late() -> None:
    # Found by reading: the end is no evidence, but a repeat of it must not start the order anew.
    order, _ = complete_order()
    repeat = SegmentEvent("SO1", 2, 121_000, 121_000, True)
    assert order.apply(repeat, 61_500, 9, POLICY) is None
    assert order.phase is Phase.SETTLED
    assert order.deadline_ms == 121_000 + 1_000


def test_negative_policy_is_refused() -> None:
    with pytest.raises(ValueError, match="negative"):
        Policy(settle_grace_ms=-1)


def test_record_before_the_last_offset_is_our_bug() -> None:
    order, _ = complete_order()
    with pytest.raises(AssertionError):
        order.apply(segment(1), 1_001, 8, POLICY)


def test_digest_of_the_canonical_form() -> None:
    time = IntervalSet([(5, 9), (20, 30)])
    numbers = IntervalSet([(1, 4), (7, 8)])
    canonical = "durabill-evidence-1\nSO-é\n5-9,20-30\n1-3,7-7\n7\n".encode()
    assert evidence_digest("SO-é", time, numbers, 7) == hashlib.sha256(canonical).hexdigest()
    by_coreutils = "9574dbb8d57169b427140a725bcfa39b32c140a1a42b32dccd4d4e5d281588b1"
    assert evidence_digest("SO-é", time, numbers, 7) == by_coreutils
