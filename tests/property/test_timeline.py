"""The arithmetic of drawings, against what is naive: lanes, columns, flags, ticks."""

import itertools
from bisect import bisect_right

from hypothesis import given
from hypothesis import strategies as st

from durabill.stream_processors.audit.svg_arrivals import flag_rows
from durabill.stream_processors.audit.timeline import (
    Scale,
    counts,
    coverage,
    depth_max,
    lanes_of,
    runs,
    scale_of,
    shares,
    ticks,
)
from durabill.stream_processors.core.intervals import IntervalSet

PIECES = st.lists(
    st.tuples(st.integers(0, 60), st.integers(0, 20)).map(lambda each: (each[0], sum(each))),
    max_size=30,
)
EDGES = st.lists(st.integers(0, 90), min_size=2, max_size=12, unique=True).map(sorted)


@given(PIECES, st.integers(1, 30))
def test_no_two_pieces_of_a_lane_overlap_and_no_lane_is_too_many(
    pieces: list[tuple[int, int]], lanes_max: int
) -> None:
    longer = [(start, max(end, start + 1)) for start, end in pieces]
    depth = max((sum(a <= at < b for a, b in longer) for at in range(100)), default=0)
    lanes = lanes_of(pieces, lanes_max)
    if lanes is None:
        assert depth > lanes_max
        return
    assert len(set(lanes)) == depth <= lanes_max
    for lane in set(lanes):
        own = sorted(each for each, at in zip(longer, lanes, strict=True) if at == lane)
        assert all(a[1] <= b[0] for a, b in itertools.pairwise(own))


@given(PIECES, EDGES)
def test_columns(pieces: list[tuple[int, int]], edges: list[int]) -> None:
    columns = list(itertools.pairwise(edges))
    assert coverage(pieces, edges) == [
        sum(sum(start <= at < end for start, end in pieces) for at in range(*column))
        for column in columns
    ]
    depth = max((sum(a <= at < b for a, b in pieces) for at in range(100)), default=0)
    assert depth_max(pieces) == depth
    instants = [start for start, _ in pieces if edges[0] <= start <= edges[-1]]
    expected = [0] * len(columns)
    for at in instants:
        expected[min(bisect_right(edges, at) - 1, len(columns) - 1)] += 1
    assert counts(instants, edges) == expected
    for share, covered, (start, end) in zip(
        shares(IntervalSet(pieces), edges, 10),
        coverage(IntervalSet(pieces), edges),
        columns,
        strict=True,
    ):
        assert (share == 0) == (covered == 0)
        assert (share == 10) == (covered == end - start)
        assert abs(share / 10 - covered / (end - start)) < 0.2


@given(st.lists(st.integers(0, 3)))
def test_runs(values: list[int]) -> None:
    found = runs(values)
    assert [value for first, after, value in found for _ in range(first, after)] == values
    assert all(a[2] != b[2] for a, b in itertools.pairwise(found))


@given(
    st.lists(st.tuples(st.integers(0, 1_000), st.integers(20, 200)), min_size=1, max_size=40),
    st.integers(1, 5),
)
def test_texts_of_flags_meet_neither_each_other_nor_a_pole(
    found: list[tuple[int, int]], count: int
) -> None:
    flags = [(float(x), float(width)) for x, width in sorted(found)]
    rows = flag_rows(flags, 1_000.0, count)
    assert rows[-1] == 0
    spans = [
        (row, x, *((x - width, x + 4) if x + width > 1_000 else (x, x + width)))
        for (x, width), row in zip(flags, rows, strict=True)
        if row is not None
    ]
    for at, (row, x, begin, after) in enumerate(spans):
        for other, other_x, other_begin, other_after in spans[at + 1 :]:
            if row == other:
                assert after <= other_begin or other_after <= begin
            if other > row:  # its pole hangs down through this row
                assert not begin < other_x < after
            if row > other:
                assert not other_begin < x < other_after


@given(st.integers(0, 2**53), st.integers(0, 2**45))
def test_ticks_are_few_round_and_inside(from_ms: int, length_ms: int) -> None:
    scale = scale_of(from_ms, from_ms + length_ms, 100, 1_000)
    found = ticks(scale)
    assert 1 <= len(found) <= 8
    assert all(scale.from_ms <= each.at_ms < scale.to_ms for each in found)
    assert found[0].date
    assert all(100 <= scale.x(each.at_ms) <= 1_100 for each in found)


def test_what_is_outside_is_at_the_border() -> None:
    scale = Scale(10, 20, 100, 50)
    assert [scale.x(each) for each in (0, 10, 15, 20, 99)] == [100, 100, 125, 150, 150]
    assert scale.edges(5) == [10, 12, 14, 16, 18, 20]
