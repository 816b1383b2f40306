"""Where an archive's files end is a function of the log: against an oracle that sees all of it."""

from hypothesis import given
from hypothesis import strategies as st

from durabill.stream_processors.audit.archive.cuts import DAY_MS, Cutter, FileRange
from durabill.stream_processors.audit.archive.gaps import Gap, Why, between, join, size, split

Log = list[tuple[int, int]]
"""(offset, append time) of each record."""


@st.composite
def logs(draw: st.DrawFn) -> tuple[Log, int, int, int]:
    """(records, first offset, end, offsets a file); clocks jump by days, and backwards too."""
    first = draw(st.integers(0, 30))
    steps = draw(st.lists(st.tuples(st.integers(1, 5), st.integers(-1, 1)), max_size=60))
    offset, time_ms, records = first - 1, 20_000 * DAY_MS + DAY_MS // 2, []
    for gap, days in steps:
        offset += gap
        time_ms += days * draw(st.sampled_from([1_000, DAY_MS // 2, DAY_MS]))
        records.append((offset, time_ms))
    end = max(first + 1, offset + draw(st.integers(1, 12)))
    return records, first, end, draw(st.sampled_from([1, 3, 7, 50]))


def oracle(records: Log, first: int, end: int, per_file: int) -> list[FileRange]:
    """Every offset decides by itself whether a file begins there."""
    times = dict(records)
    clock_ms, day, starts, found = 0, None, [first], []
    clocks, days = {}, {}
    for offset in range(first, end):
        if offset > first and offset % per_file == 0:
            starts.append(offset)
            day = None
        if offset in times:
            clock_ms = max(clock_ms, times[offset])
            if day is not None and clock_ms // DAY_MS != day:
                starts.append(offset)
            day = clock_ms // DAY_MS
        clocks[offset] = clock_ms
        days[offset] = clock_ms // DAY_MS if day is None else day
    for start, after in zip(starts, [*starts[1:], end], strict=True):
        found.append(FileRange(start, after - 1, days[after - 1], clocks[after - 1]))
    return found


def cut(
    records: Log, first: int, end: int, per_file: int, pieces: list[int], restarts: list[int]
) -> list[FileRange]:
    """What a cutter makes of the log in pieces, and started anew now and then."""
    cutter, found, at = Cutter(per_file, first), list[FileRange](), first
    for stop in [*sorted(each for each in {*pieces, *restarts} if first < each < end), end]:
        part = [each for each in records if at <= each[0] < stop]
        offsets, times_ms = [each[0] for each in part], [each[1] for each in part]
        given = []
        for rows in cutter.parts(offsets, times_ms, stop):
            given += offsets[rows.start : rows.stop]
            found += [rows.closes] if rows.closes else []
        assert given == offsets
        at = stop
        if stop in restarts:  # what is archived by now is all that is known
            at = found[-1].last_offset + 1 if found else first
            cutter = Cutter(per_file, at, found[-1].clock_ms if found else 0)
    rest = cutter.close(end)
    return found + ([rest] if rest else [])


@given(logs(), st.lists(st.integers(0, 300)), st.lists(st.integers(0, 300), max_size=5))
def test_pieces_and_restarts_change_no_cut(
    made: tuple[Log, int, int, int], pieces: list[int], restarts: list[int]
) -> None:
    assert cut(*made, pieces, restarts) == oracle(*made)


@given(logs(), st.integers(0, 300))
def test_an_end_that_was_asked_for_is_one_more_cut(
    made: tuple[Log, int, int, int], stop: int
) -> None:
    """A file that a run with --once ended is the same, whoever makes it again by the hint."""
    records, first, end, per_file = made
    stop = min(max(stop, first + 1), end)
    before = cut([each for each in records if each[0] < stop], first, stop, per_file, [], [])
    last = before[-1]
    again = Cutter(
        per_file,
        last.first_offset,
        before[-2].clock_ms if len(before) > 1 else 0,
        end_hint=last.last_offset + 1,
    )
    part = [each for each in records if each[0] >= last.first_offset]
    closed = [
        rows.closes
        for rows in again.parts([each[0] for each in part], [each[1] for each in part], end)
        if rows.closes
    ]
    assert closed[0] == last


@given(st.sets(st.integers(0, 60)), st.integers(0, 60), st.lists(st.sampled_from(Why), min_size=61))
def test_gaps_and_rows_are_all_there_is(rows: set[int], at: int, whys: list[Why]) -> None:
    ranges = between(sorted(rows), 0, 61)
    found = join(Gap(each, each, whys[each]) for first, last in ranges
                 for each in range(first, last + 1))  # fmt: skip
    before, after = split(found, at)
    assert all(each.last < at for each in before)
    assert all(each.first >= at for each in after)
    assert join([*before, *after]) == found
    assert sum(size(found, why) for why in Why) + len(rows) == 61
