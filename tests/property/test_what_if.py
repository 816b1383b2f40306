"""The duration rules of a "what if" against naive oracles."""

from hypothesis import given
from hypothesis import strategies as st

from durabill.stream_processors.core.intervals import IntervalSet
from durabill.stream_processors.core.what_if import DurationRules, bridge, round_up

PIECES = st.lists(st.tuples(st.integers(0, 120), st.integers(1, 15)), max_size=8)
RULES = st.builds(
    DurationRules,
    bridge_gaps_ms=st.integers(0, 20),
    minimum_duration_ms=st.integers(0, 150),
    round_up_to_ms=st.integers(1, 40),
)


def union_of(pieces: list[tuple[int, int]]) -> list[tuple[int, int]]:
    return list(IntervalSet((start, start + length) for start, length in pieces))


def bridged_naively(milliseconds: set[int], gap_max_ms: int) -> set[int]:
    """Every run of absent milliseconds between two present ones that is short enough is filled."""
    filled = set(milliseconds)
    for first in range(min(milliseconds, default=0), max(milliseconds, default=0)):
        run = []
        for each in range(first, max(milliseconds)):
            if each in milliseconds:
                break
            run.append(each)
        if first - 1 in milliseconds and 0 < len(run) <= gap_max_ms:
            filled.update(run)
    return filled


@given(PIECES, st.integers(0, 20))
def test_bridging_fills_the_short_gaps(pieces: list[tuple[int, int]], gap_max_ms: int) -> None:
    present = {each for start, length in pieces for each in range(start, start + length)}
    found_ms = bridge(union_of(pieces), gap_max_ms)
    assert found_ms == len(bridged_naively(present, gap_max_ms))


@given(st.integers(0, 10_000), st.integers(1, 400))
def test_rounding_takes_whole_steps_only(duration_ms: int, step_ms: int) -> None:
    counted_ms = 0
    while counted_ms < duration_ms:
        counted_ms += step_ms
    assert round_up(duration_ms, step_ms) == counted_ms


@given(PIECES, RULES)
def test_the_rules_come_one_after_the_other(
    pieces: list[tuple[int, int]], rules: DurationRules
) -> None:
    present = {each for start, length in pieces for each in range(start, start + length)}
    expected_ms = len(bridged_naively(present, rules.bridge_gaps_ms))
    if expected_ms < rules.minimum_duration_ms:
        expected_ms = rules.minimum_duration_ms
    while expected_ms % rules.round_up_to_ms:
        expected_ms += 1
    assert rules.billed_ms(union_of(pieces)) == expected_ms


@given(PIECES)
def test_without_rules_the_proven_time_is_billed(pieces: list[tuple[int, int]]) -> None:
    union = union_of(pieces)
    proven_ms = sum(end - start for start, end in union)
    assert DurationRules().billed_ms(union) == proven_ms


@given(PIECES, RULES)
def test_rules_never_take_time_away(pieces: list[tuple[int, int]], rules: DurationRules) -> None:
    union = union_of(pieces)
    assert rules.billed_ms(union) >= sum(end - start for start, end in union)
