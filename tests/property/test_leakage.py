"""The leakage report against a naive oracle that keeps every total and counts number by number."""

from collections import Counter
from collections.abc import Sequence
from fractions import Fraction

from hypothesis import example, given
from hypothesis import strategies as st

from durabill.schemas import Interval, NumberRange, OrderTotal, Status
from durabill.stream_processors.audit.leakage import Group, Leakage
from durabill.stream_processors.audit.leakage_cases import DAY_MS, HOUR_MS
from durabill.stream_processors.ledger.lookups import summary_of

Letter = tuple[str, str | None, int]


@st.composite
def totals(draw: st.DrawFn) -> OrderTotal:
    """Return a total that the contract allows, of one of a few orders."""
    number = draw(st.sampled_from(["a", "b", "c", "d"]))
    started_ms = draw(st.integers(0, 3 * HOUR_MS))
    edges = sorted(draw(st.sets(st.integers(0, 4 * HOUR_MS), min_size=2, max_size=8)))
    edges = edges[: len(edges) // 2 * 2]
    pieces = [
        Interval(started_ms + a, started_ms + b)
        for a, b in zip(edges[::2], edges[1::2], strict=True)
    ]
    seen = sorted(draw(st.sets(st.integers(1, 30), min_size=1, max_size=12)))
    missing = [each for each in range(1, seen[-1]) if each not in seen]
    end_number = draw(st.sampled_from([None, *seen]))
    duration_ms = sum(b - a for a, b in pieces)
    begin_ms, end_ms = pieces[0][0], pieces[-1][1]
    if end_number is None:
        status = draw(st.sampled_from([Status.ABANDONED, Status.RUNNING]))
    else:
        status = Status.INCOMPLETE if missing else Status.COMPLETE
    bound_ms: int | None = end_ms - begin_ms
    if status is Status.COMPLETE:
        bound_ms = duration_ms
    elif end_number is None or seen[0] != 1:
        bound_ms = None
    revision = draw(st.integers(1, 3))
    return OrderTotal(
        number,
        revision,
        status,
        duration_ms,
        bound_ms,
        begin_ms,
        end_ms,
        tuple(pieces),
        end_number,
        tuple(ranges_of(missing)),
        len(seen),
        draw(st.integers(0, 5)),
        draw(st.integers(0, HOUR_MS)),
        end_ms - begin_ms - duration_ms,
        0 if end_number is None else sum(each > end_number for each in seen),
        "digest",
        "before" if revision > 1 else "",
        ord(number) % 2,
        draw(st.integers(0, 99)),
        end_ms,
    )


def ranges_of(numbers: list[int]) -> list[NumberRange]:
    """Return sorted numbers as ranges that don't touch."""
    found: list[NumberRange] = []
    for number in numbers:
        if found and found[-1].last == number - 1:
            found[-1] = NumberRange(found[-1].first, number)
        else:
            found.append(NumberRange(number, number))
    return found


def missing_of(total: OrderTotal) -> list[int]:
    return [each for first, last in total.missing_numbers for each in range(first, last + 1)]


LETTERS = st.lists(
    st.tuples(
        st.sampled_from(["TOO_LATE", "NOT_AVRO"]),
        st.sampled_from([None, "a", "b", "y", "z"]),
        st.integers(0, DAY_MS),
    ),
    max_size=8,
)


def latest_of_lives(found: Sequence[OrderTotal]) -> list[OrderTotal]:
    """Return the last total of each life: one whose successor doesn't have a greater revision."""
    latest = []
    for number in {each.service_order_number for each in found}:
        own = [each for each in found if each.service_order_number == number]
        latest += [
            each
            for at, each in enumerate(own)
            if at + 1 == len(own) or own[at + 1].revision <= each.revision
        ]
    return latest


def doubt_ms(total: OrderTotal) -> int:
    if total.upper_bound_ms is not None:
        return total.upper_bound_ms - total.duration_ms
    missing = missing_of(total)
    before = next(at for at in range(31) if at + 1 not in missing)
    mean_ms = Fraction(total.duration_ms + total.overlap_ms, total.segments + total.duplicates)
    return total.gap_ms + min(int(before * mean_ms), DAY_MS)


def assert_group(group: Group, expected: Sequence[OrderTotal]) -> None:
    assert group.orders == len(expected)
    assert group.proven_ms == sum(each.duration_ms for each in expected)
    bounded = [each for each in expected if each.upper_bound_ms is not None]
    unbounded = [each for each in expected if each.upper_bound_ms is None]
    assert group.may_be_missing_ms == sum(map(doubt_ms, bounded))
    assert group.unbounded_orders == len(unbounded)
    assert group.in_doubt_ms == sum(map(doubt_ms, unbounded))
    assert group.missing_numbers == sum(len(missing_of(each)) for each in expected)
    assert group.orders_with_missing == sum(bool(each.missing_numbers) for each in expected)
    accepted = sum(each.segments + each.duplicates for each in expected)
    repeats = sum(each.duplicates for each in expected)
    assert group.repeat_ratio == (repeats / accepted if accepted else 0)
    reported = sum(each.duration_ms + each.overlap_ms for each in expected)
    overlap = sum(each.overlap_ms for each in expected)
    assert group.overlap_ratio == (overlap / reported if reported else 0)


def told(found: Sequence[OrderTotal], letters: Sequence[Letter], top: int) -> Leakage:
    """Return the report of a topic, read partition by partition."""
    report = Leakage(top)
    for each in letters:
        report.add_letter(*each)
    for partition in (0, 1):
        for total in found:
            if total.source_partition == partition:
                report.add_total(total)
        report.settle()
    report.finish()
    return report


@given(st.lists(totals(), max_size=14), LETTERS)
def test_sums(found: list[OrderTotal], letters: list[Letter]) -> None:
    report, latest = told(found, letters, 3), latest_of_lives(found)
    assert_group(report.all_orders, latest)
    for status in Status:
        own = [each for each in latest if each.status is status]
        assert_group(report.by_status.get(status, Group()), own)
    for partition, group in report.by_partition.items():
        assert_group(group, [each for each in latest if each.source_partition == partition])
    late = [each for each in latest if 1 in missing_of(each)]
    assert_group(report.first_is_not_one, late)
    gaps = [each for each in latest if each.status is Status.COMPLETE and each.gap_ms]
    assert_group(report.complete_with_gaps, gaps)
    assert_group(report.after_end, [each for each in latest if each.numbers_after_end])

    hours: Counter[int] = Counter()
    for total in latest:
        missing, span_ms = missing_of(total), total.ended_ms - total.started_ms
        for number in missing:
            part = Fraction(2 * number - 1, 2 * (total.segments + len(missing)))
            at_ms = total.started_ms + int(span_ms * part)
            hours[at_ms // HOUR_MS * HOUR_MS] += 1
    assert report.missing_by_hour == dict(hours)

    counts = {name: each.count for name, each in report.by_reason.items()}
    assert counts == Counter(reason for reason, _, _ in letters)


@given(st.lists(totals(), max_size=14), LETTERS, st.integers(1, 5))
@example([], [("NOT_AVRO", "z", 0)], 1)
def test_suspects(found: list[OrderTotal], letters: list[Letter], top: int) -> None:
    report, latest = told(found, letters, top), latest_of_lives(found)
    every = Leakage(1_000)
    for each in letters:
        every.add_letter(*each)
    for total in latest:  # as a ledger tells them
        every.add_total(summary_of(total))
        every.settle()
    every.finish()
    assert every.all_orders == report.all_orders
    assert report.suspects == every.suspects[:top]
    ranks = [each.rank for each in every.suspects]
    assert ranks == sorted(ranks)

    numbers = {each.service_order_number for each in latest}
    with_letters = {number for _, number, _ in letters if number is not None}
    assert report.only_letters == len(with_letters - numbers)
    suspects = {each.number for each in every.suspects}
    assert with_letters <= suspects
    for total in latest:
        number = total.service_order_number
        if total.missing_numbers or total.gap_ms or total.status is Status.ABANDONED:
            assert number in suspects
    for number in numbers - with_letters:
        own = [each for each in latest if each.service_order_number == number]
        if all(
            each.status is Status.COMPLETE and not each.gap_ms and not each.numbers_after_end
            for each in own
        ):
            assert number not in suspects
