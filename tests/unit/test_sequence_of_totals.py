"""The sequence in which an order's revisions were published, and bounds of the schema before."""

from dataclasses import replace

import pytest

from durabill.schemas import OrderTotal, Status, encode_total
from durabill.stream_processors.audit.differences import differences
from durabill.stream_processors.audit.findings import Kind
from durabill.stream_processors.audit.matching import Matcher
from durabill.stream_processors.audit.totals_log import Published
from tests.unit.test_schemas import TOTAL

KEY = TOTAL.service_order_number.encode()
FIRST, SECOND, THIRD = (encode_total(replace(TOTAL, revision=each)) for each in (1, 2, 3))
WRONG = encode_total(replace(TOTAL, revision=2, segments=99))


def out_of_order(*published: bytes, log_first: bool) -> list[tuple[Kind, int | None, str]]:
    """What is found where these are published, and the log gives three revisions."""
    matcher = Matcher()
    if not log_first:
        for offset, value in enumerate(published):
            matcher.add_published(Published(offset, KEY, value))
    for value in (FIRST, SECOND, THIRD):
        matcher.add_computed(KEY, value)
    if log_first:
        for offset, value in enumerate(published):
            matcher.add_published(Published(offset, KEY, value))
    found = matcher.out_of_order("totals/0")
    return [(each.kind, each.revision, each.place) for each in found]


@pytest.mark.parametrize("log_first", [True, False])
def test_an_order_whose_revisions_were_published_in_another_sequence_is_found(
    log_first: bool,
) -> None:
    (found,) = out_of_order(FIRST, THIRD, SECOND, log_first=log_first)
    assert found[0] is Kind.BROKEN_REVISION_CHAIN


@pytest.mark.parametrize("log_first", [True, False])
def test_what_is_missing_wrong_or_there_twice_is_no_other_sequence(log_first: bool) -> None:
    assert out_of_order(FIRST, SECOND, THIRD, log_first=log_first) == []
    assert out_of_order(FIRST, THIRD, log_first=log_first) == []
    assert out_of_order(FIRST, WRONG, THIRD, log_first=log_first) == []
    assert out_of_order(FIRST, FIRST, SECOND, THIRD, log_first=log_first) == []


def test_a_bound_of_the_schema_before_is_not_any_bound() -> None:
    log = replace(
        TOTAL, status=Status.ABANDONED, end_number=None, upper_bound_ms=None
    )  # from 100 to 150

    def found(total: OrderTotal) -> list[str]:
        return [each.field for each in differences(log, total, "", is_older_schema=True)]

    assert found(replace(log, upper_bound_ms=50)) == []
    assert found(replace(log, upper_bound_ms=45)) == ["upper_bound_ms"]
