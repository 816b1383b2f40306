"""The compiled pass of the gateway against `schemas`: the same bytes, the same refusals."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from durabill.producers.gateway.api import SEGMENTS_MAX
from durabill.producers.gateway.encode_pass import Encoder, Wanted
from durabill.producers.gateway.rows import Row
from durabill.schemas import BadRecord, SegmentEvent, encode_segment
from durabill.schemas.limits import LONG_MAX, LONG_MIN, SEGMENT_LENGTH_MAX_MS

ENCODER = Encoder(SEGMENTS_MAX)  # one for all examples: nothing of one may be left in the next
NOW_MS = 1_764_000_000_000
EDGES = (0, 1, 63, 64, 127, 128, 8_191, 8_192, NOW_MS, LONG_MAX - 1, LONG_MAX, -1, LONG_MIN)

longs = st.sampled_from(EDGES) | st.integers(LONG_MIN, LONG_MAX)
near = st.integers(NOW_MS - 5, NOW_MS + 5)


@st.composite
def rows(draw: st.DrawFn) -> Row:
    """A segment: any four values, or one that is nearly right."""
    if draw(st.booleans()):
        return draw(st.tuples(longs, longs, longs, st.booleans()))
    start_ms = draw(near)
    length_ms = draw(st.sampled_from((-1, 0, 1, 10_000, SEGMENT_LENGTH_MAX_MS))) + draw(
        st.integers(0, 1)
    )
    return draw(st.integers(0, 300)), start_ms, start_ms + length_ms, draw(st.booleans())


@st.composite
def wanted(draw: st.DrawFn) -> Wanted:
    """An upload with bounds near its times, or without any."""
    number = draw(st.text("aü0😀", min_size=1, max_size=64).filter(lambda t: len(t.encode()) <= 64))
    bounds = draw(
        st.sampled_from(((0, 0, LONG_MAX), (0, -5, NOW_MS)))
        | st.tuples(near, near, near)
        | st.tuples(longs, longs, longs)
    )
    return Wanted(number.encode(), draw(st.lists(rows(), max_size=12)), *bounds)


def is_good(upload: Wanted, row: Row) -> bool:
    """Whether the rules of `schemas` and the bounds take a row."""
    try:
        segment = SegmentEvent(upload.key.decode(), *row)
    except BadRecord:
        return False
    return (
        segment.end_ms - segment.start_ms <= SEGMENT_LENGTH_MAX_MS
        and segment.start_ms >= upload.earliest_start_ms
        and upload.earliest_end_ms <= segment.end_ms <= upload.latest_end_ms
    )


@given(st.lists(wanted(), max_size=6))
def test_it_writes_what_the_reference_writes_and_refuses_what_that_refuses(
    uploads: Sequence[Wanted],
) -> None:
    told = ENCODER.encode(uploads)
    assert len(told) == len(uploads)
    for upload, found in zip(uploads, told, strict=True):
        good = [row for row in upload.rows if is_good(upload, row)]
        assert found.wrong == [at for at, row in enumerate(upload.rows) if not is_good(upload, row)]
        assert found.values == [
            encode_segment(SegmentEvent(upload.key.decode(), *row)) for row in good
        ]
        assert found.body == b"".join(found.values)
        if good:
            ends_ms, numbers = [row[2] for row in good], [row[0] for row in good]
            assert (found.least_end_ms, found.greatest_end_ms) == (min(ends_ms), max(ends_ms))
            assert found.has_end == any(row[3] for row in good)
            counted = range(numbers[0], numbers[0] + len(numbers))
            assert found.is_consecutive == (numbers == list(counted))


@pytest.mark.parametrize("odd", [1.0, 0.5, float("inf"), LONG_MAX + 1, LONG_MIN - 1, 10**400, None])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_what_is_no_long_is_not_taken_for_one(odd: object, place: int) -> None:
    row: list[object] = [1, NOW_MS, NOW_MS + 1, False]
    row[place] = odd
    with pytest.raises(TypeError):
        ENCODER.encode([Wanted(b"SO1", [tuple(row)], 0, 0, LONG_MAX)])  # type: ignore[list-item]


def test_as_many_and_as_long_as_there_may_be() -> None:
    key = ("x" * 64).encode()
    times = LONG_MAX - 1, LONG_MAX, True
    many: list[Row] = [(LONG_MAX - at, *times) for at in range(SEGMENTS_MAX)]
    (all_in_one,) = ENCODER.encode([Wanted(key, many, 0, 0, LONG_MAX)])
    each_alone = ENCODER.encode([Wanted(key, [row], 0, 0, LONG_MAX) for row in many])
    assert [value for found in each_alone for value in found.values] == all_in_one.values
    assert all_in_one.values[0] == encode_segment(SegmentEvent("x" * 64, LONG_MAX, *times))


def test_uploads_of_nothing() -> None:
    assert ENCODER.encode([]) == []
    (found,) = ENCODER.encode([Wanted(b"", [], 0, 0, LONG_MAX)])
    assert (found.values, found.body, found.wrong) == ([], b"", [])
