"""Sets of integers as unions of half-open intervals: each boundary by name, then any sets."""

import portion
import pytest
from hypothesis import given
from hypothesis import strategies as st

from durabill.stream_processors.core.intervals import IntervalSet

PIECES = st.lists(
    st.tuples(st.integers(0, 60), st.integers(0, 12)).map(lambda p: (p[0], p[0] + p[1])),
    max_size=25,
)


def members(pieces: list[tuple[int, int]]) -> set[int]:
    """Return the naive set."""
    return {integer for start, end in pieces for integer in range(start, end)}


def test_the_empty_set_has_nothing() -> None:
    empty = IntervalSet()
    assert (list(empty), len(empty), empty.measure) == ([], 0, 0)
    assert empty.missing(3, 5) == [(3, 5)]
    assert empty.count_from(0) == 0


def test_empty_interval_adds_nothing() -> None:
    intervals = IntervalSet()
    assert intervals.add(7, 7) == 0
    assert list(intervals) == []


def test_empty_interval_between_two_does_not_join_them() -> None:
    intervals = IntervalSet([(0, 3), (4, 6)])
    assert intervals.add(4, 4) == 0
    assert list(intervals) == [(0, 3), (4, 6)]


def test_touching_intervals_merge() -> None:
    assert list(IntervalSet([(100, 200), (200, 300)])) == [(100, 300)]


def test_touching_intervals_merge_in_reverse() -> None:
    assert list(IntervalSet([(200, 300), (100, 200)])) == [(100, 300)]


def test_intervals_one_apart_stay_apart() -> None:
    assert list(IntervalSet([(100, 200), (201, 300)])) == [(100, 200), (201, 300)]
    assert list(IntervalSet([(201, 300), (100, 200)])) == [(100, 200), (201, 300)]


def test_interval_that_fills_a_gap_joins_both_sides() -> None:
    intervals = IntervalSet([(0, 3), (5, 8)])
    assert intervals.add(3, 5) == 2
    assert list(intervals) == [(0, 8)]


def test_interval_inside_another_adds_nothing() -> None:
    intervals = IntervalSet([(0, 10)])
    assert intervals.add(3, 5) == 0
    assert intervals.add(0, 10) == 0
    assert list(intervals) == [(0, 10)]


def test_interval_around_others_swallows_them() -> None:
    intervals = IntervalSet([(2, 3), (5, 6), (20, 21)])
    assert intervals.add(1, 7) == 4
    assert list(intervals) == [(1, 7), (20, 21)]


def test_interval_across_many_gains_only_the_gaps() -> None:
    intervals = IntervalSet([(0, 2), (4, 6), (8, 10)])
    assert intervals.add(1, 9) == 4
    assert list(intervals) == [(0, 10)]


def test_interval_before_all_comes_first() -> None:
    assert list(IntervalSet([(5, 6), (0, 1)])) == [(0, 1), (5, 6)]


def test_interval_with_end_before_start_is_our_bug() -> None:
    with pytest.raises(AssertionError):
        IntervalSet().add(2, 1)


def test_missing_is_cut_at_both_ends() -> None:
    intervals = IntervalSet([(0, 3), (5, 8), (10, 12)])
    assert intervals.missing(1, 11) == [(3, 5), (8, 10)]
    assert intervals.missing(3, 5) == [(3, 5)]
    assert intervals.missing(4, 20) == [(4, 5), (8, 10), (12, 20)]
    assert intervals.missing(6, 6) == []


def test_covers_an_empty_range_always() -> None:
    assert IntervalSet().covers(5, 5)


def test_covers_up_to_the_very_end() -> None:
    intervals = IntervalSet([(1, 4)])
    assert intervals.covers(1, 4)
    assert not intervals.covers(1, 5)
    assert not intervals.covers(0, 4)


def test_covers_does_not_jump_a_gap() -> None:
    assert not IntervalSet([(1, 4), (5, 9)]).covers(1, 9)


def test_last_is_the_greatest_member() -> None:
    assert IntervalSet([(1, 4), (7, 9)]).last() == 8


def test_count_from_inside_an_interval() -> None:
    intervals = IntervalSet([(1, 4), (7, 9)])
    assert [intervals.count_from(at) for at in (0, 1, 3, 4, 7, 8, 9)] == [5, 5, 3, 2, 2, 1, 0]


def test_check_finds_a_broken_invariant() -> None:
    broken = IntervalSet([(1, 4)])
    broken.measure = 2
    with pytest.raises(AssertionError):
        broken.check()


def test_set_is_not_hashable_and_equals_only_sets() -> None:
    with pytest.raises(TypeError):
        hash(IntervalSet())
    assert IntervalSet([(1, 2)]) != [(1, 2)]
    assert IntervalSet([(1, 2)]) == IntervalSet([(1, 2)])
    assert repr(IntervalSet([(1, 2)])) == "IntervalSet([(1, 2)])"


@given(PIECES)
def test_equals_the_set_of_integers(pieces: list[tuple[int, int]]) -> None:
    intervals = IntervalSet()
    known: set[int] = set()
    for start, end in pieces:
        gained = set(range(start, end)) - known
        known |= gained
        assert intervals.add(start, end) == len(gained)
        intervals.check()
    assert members(list(intervals)) == known
    assert intervals.measure == len(known)


@given(PIECES, st.randoms(use_true_random=False))
def test_order_of_insertion_does_not_matter(pieces: list[tuple[int, int]], dice: object) -> None:
    shuffled = [*pieces, *pieces[:5]]
    dice.shuffle(shuffled)  # type: ignore[attr-defined]  # a random.Random that Hypothesis shrinks
    assert IntervalSet(shuffled) == IntervalSet(pieces)


@given(PIECES, st.integers(0, 75), st.integers(0, 30))
def test_questions_equal_the_naive_answers(
    pieces: list[tuple[int, int]], start: int, size: int
) -> None:
    intervals, known = IntervalSet(pieces), members(pieces)
    asked = set(range(start, start + size))
    assert members(intervals.missing(start, start + size)) == asked - known
    assert IntervalSet(intervals.missing(start, start + size)).measure == len(asked - known)
    assert intervals.covers(start, start + size) == (asked <= known)
    assert intervals.count_from(start) == len([each for each in known if each >= start])
    if known:
        assert intervals.last() == max(known)


@given(PIECES)
def test_equals_portion(pieces: list[tuple[int, int]]) -> None:
    expected = portion.empty()
    for start, end in pieces:
        expected |= portion.closedopen(start, end)
    found = [(each.lower, each.upper) for each in expected if not each.empty]
    assert list(IntervalSet(pieces)) == found
