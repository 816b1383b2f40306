"""What becomes of totals that only one of the two streams has."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from durabill.schemas import OrderTotal, encode_total
from durabill.stream_processors.audit.findings import Kind
from durabill.stream_processors.audit.grounds import Grounds
from durabill.stream_processors.audit.matching import Judgement, Matcher, judge
from durabill.stream_processors.audit.totals_log import Published
from tests.broker.ledger_kit import a_total, complete

FIRST = a_total()
SECOND = complete(FIRST)
END, TOTALS_END = 1_000, 50


def grounds(
    was_given: Callable[[OrderTotal], bool] = lambda total: True,
    *,
    as_of: bool = False,
    from_ms: int = 0,
    from_offset: int = 0,
) -> Grounds:
    return Grounds(
        topic="totals",
        partition=0,
        partitions=1,
        end_offset=END,
        clock_ms=FIRST.settled_at_ms,
        totals_end=TOTALS_END,
        may_all_be_newer=as_of,
        was_given=was_given,
        provable_from_ms=from_ms,
        provable_from_offset=from_offset,
    )


def record(total: OrderTotal, offset: int = 0) -> Published:
    return Published(offset, total.service_order_number.encode(), encode_total(total))


def judged(computed: list[OrderTotal], published: list[Published], by: Grounds) -> Judgement:
    """What the leftovers of these two streams are."""
    matcher = Matcher()
    for each in published:
        matcher.add_published(each)
    for total in computed:
        matcher.add_computed(total.service_order_number.encode(), encode_total(total))
    siblings: dict[bytes | None, list[Published]] = {each.key: [] for each in published}
    for each in published:
        siblings[each.key].append(each)
    return judge(matcher.computed, matcher.published, siblings, by)


def kinds(found: Judgement) -> list[Kind]:
    return [each.kind for each in found.findings]


@pytest.mark.parametrize("published_first", [True, False])
def test_equal_totals_are_forgotten_at_once_whichever_comes_first(published_first: bool) -> None:
    matcher, key = Matcher(), FIRST.service_order_number.encode()
    steps: list[Callable[[], None]] = [
        lambda: matcher.add_published(record(FIRST)),
        lambda: matcher.add_computed(key, encode_total(FIRST)),
    ]
    for step in steps if published_first else reversed(steps):
        step()
    assert (matcher.proven, dict(matcher.computed), dict(matcher.published)) == (1, {}, {})


def test_a_number_that_is_used_again_has_its_revisions_again() -> None:
    again = replace(FIRST, source_offset=500, duplicates=9)
    found = judged([FIRST, again], [record(FIRST, 1), record(again, 2)], grounds())
    assert found == Judgement()


def test_a_total_that_workers_have_yet_to_publish_is_not_missing() -> None:
    assert kinds(judged([FIRST], [], grounds())) == [Kind.MISSING_TOTAL]
    found = judged([FIRST], [], grounds(lambda total: False))
    assert (found.findings, found.not_yet_published) == ([], 1)


def test_newer_is_only_what_was_published_after_the_end_and_says_so_itself() -> None:
    newer = replace(SECOND, source_offset=END)
    late = replace(SECOND, settled_at_ms=FIRST.settled_at_ms + 1)
    old = replace(SECOND, settled_at_ms=FIRST.settled_at_ms)
    for total, offset, is_newer in (
        (newer, TOTALS_END, True),
        (late, TOTALS_END, True),
        (old, TOTALS_END, False),
        (newer, TOTALS_END - 1, False),
        (late, TOTALS_END - 1, False),
    ):
        found = judged([], [record(total, offset)], grounds())
        assert found.newer == is_newer
        assert kinds(found) == ([] if is_newer else [Kind.TOTAL_WITHOUT_EVIDENCE])
    assert judged([], [record(newer, 0)], grounds(as_of=True)).newer == 1


def test_what_may_have_begun_before_the_head_of_the_log_is_no_finding() -> None:
    changed = replace(FIRST, duplicates=FIRST.duplicates + 1)
    for by in (grounds(from_ms=FIRST.started_ms + 1), grounds(from_offset=78)):
        found = judged([FIRST], [record(changed)], by)
        assert (found.findings, found.unprovable) == ([], 1)
    for by in (grounds(from_ms=FIRST.started_ms), grounds(from_offset=77)):
        assert kinds(judged([FIRST], [record(changed)], by)) == [Kind.FIELD_DIFFERS]


def test_a_repeat_is_told_with_the_place_of_the_first_and_what_differs() -> None:
    other = replace(FIRST, overlap_ms=8)
    (same,) = judged([FIRST], [record(FIRST, 3), record(FIRST, 4)], grounds()).findings
    assert (same.kind, same.field, same.place) == (Kind.PUBLISHED_TWICE, "", "totals/0/4")
    assert "offset 3" in same.expected
    (differs,) = judged([FIRST], [record(FIRST, 3), record(other, 4)], grounds()).findings
    assert (differs.kind, differs.field) == (Kind.PUBLISHED_TWICE, "overlap_ms")


def test_each_field_that_differs_is_a_finding_with_both_values() -> None:
    changed = replace(FIRST, duplicates=2, previous_digest="d" * 64)
    found = judged([FIRST], [record(changed)], grounds()).findings
    assert [(each.kind, each.field, each.expected, each.found) for each in found] == [
        (Kind.FIELD_DIFFERS, "duplicates", "1", "2"),
        (Kind.BROKEN_REVISION_CHAIN, "previous_digest", "", "d" * 64),
    ]


@pytest.mark.parametrize(
    ("key", "value"), [(b"SO1", b"junk"), (b"SO2", encode_total(FIRST)), (None, None)]
)
def test_a_record_that_is_no_total_is_a_finding(key: bytes | None, value: bytes | None) -> None:
    found = judged([], [Published(1, key, value)], grounds())
    assert kinds(found) == [Kind.TOTAL_WITHOUT_EVIDENCE]


@pytest.mark.parametrize(
    ("ours", "names", "own_from", "is_before"),
    [
        ("id", "before", None, True),
        ("id", "before", 5, True),
        ("id", "before", 3, False),
        ("id", "id", None, False),
        ("id", "", None, False),
        ("", "before", None, False),
    ],
)
def test_a_total_of_a_log_before_is_counted_apart(
    ours: str, names: str, own_from: int | None, is_before: bool
) -> None:
    """The segments topic was made anew. Behind the first total of ours no worker names another."""
    old = record(replace(FIRST, service_order_number="OLD"), 4)._replace(log_id=names)
    by = replace(grounds(), log_id=ours, own_from=own_from)
    found = judged([FIRST], [record(FIRST, 5), old], by)
    assert found.others == ({"before": 1} if is_before else {})
    assert kinds(found) == ([] if is_before else [Kind.TOTAL_WITHOUT_EVIDENCE])


def test_a_total_that_was_restored_is_proven_whatever_log_it_names() -> None:
    by = replace(grounds(), log_id="id")
    found = judged([FIRST], [record(FIRST, 5)._replace(log_id="before")], by)
    assert (found.findings, found.others) == ([], {})
