"""Orders that were opened and have no total: which ones, of whom, and what is told of them."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from durabill.deploy.commands.ask_workers import NOT_KNOWN
from durabill.deploy.commands.leakage import Renewals
from durabill.schemas.order_state import Opened, OrderState
from durabill.stream_processors.audit.leakage import Leakage
from durabill.stream_processors.audit.leakage_report import as_json, lines_of
from durabill.stream_processors.audit.unreported import OpenedGroup, OpenedOrder, Unreported
from durabill.stream_processors.settings import Settings
from tests.state_kit import a_state
from tests.unit.test_schemas import TOTAL

NOW_MS = 1_800_000_000_000


def opened(number: str, tenant: str, offset: int, until_ms: int = NOW_MS) -> OpenedOrder:
    return OpenedOrder(number, tenant, "gpu", NOW_MS - 1_000 + offset, until_ms, offset)


OPENED = opened("renewed", "acme", 0)


def leakage(top: int = 9) -> Leakage:
    return Leakage(top, Unreported(top, NOW_MS))


def test_by_tenant_those_that_may_be_reported_yet_apart() -> None:
    found = leakage()
    for each in (
        opened("A", "acme", 0, NOW_MS - 1),
        opened("B", "acme", 1),
        opened("C", "other", 2, NOW_MS - 1),
        opened("D", "other", 3, NOW_MS - 1),
    ):
        found.unreported.add_opening(each)
    found.add_total(replace(TOTAL, service_order_number="D", source_offset=9))
    found.finish()
    assert found.unreported.by_tenant == {"acme": OpenedGroup(2, 1), "other": OpenedGroup(1, 1)}
    assert [each.number for each in found.unreported.orders] == ["A", "C", "B"]
    told = as_json(found)["opened_without_total"]
    assert (told["opened_orders"], told["orders"], told["never_reported"]) == (4, 3, 2)
    assert told["by_tenant"]["acme"] == {"orders": 2, "never_reported": 1}
    assert [each["never_reported"] for each in told["look_at_first"]] == [True, True, False]
    json.dumps(told)
    text = "\n".join(lines_of(found))
    assert "Opened, and without a total, of 4 orders" in text
    assert "2 orders that nobody reported, the oldest first" in text


def test_where_all_are_reported_or_none_was_opened_little_is_said() -> None:
    found = leakage()
    assert "Opened" not in "\n".join(lines_of(found))
    found.unreported.add_opening(opened("A", "acme", 0))
    found.add_total(replace(TOTAL, service_order_number="A", source_offset=1))
    found.finish()
    assert "Opened, and without a total: none of 1 order" in "\n".join(lines_of(found))


def test_a_total_of_an_earlier_life_is_none_of_the_later_one() -> None:
    found = Unreported(9, NOW_MS)
    found.add_opening(opened("A", "acme", 0))
    found.add_opening(opened("A", "acme", 50))
    found.add_total("A", 20)
    found.add_total("A", 30)
    found.settle()
    assert [each.source_offset for each in found.orders] == [50]


@given(
    st.lists(st.tuples(st.sampled_from("ABC"), st.booleans()), max_size=30),
    st.integers(1, 5),
)
def test_like_a_naive_count(events: list[tuple[str, bool]], top: int) -> None:
    """An event is an opening, or a total that rests on a record there."""
    found = Unreported(top, NOW_MS)
    waiting: dict[str, list[int]] = {}
    for at, (number, is_opening) in enumerate(events):
        if is_opening:
            found.add_opening(opened(number, "acme", at, NOW_MS - 1))
    for at, (number, is_opening) in enumerate(events):
        if is_opening:
            waiting.setdefault(number, []).append(at)
        else:
            found.add_total(number, at)
            waiting[number] = waiting.get(number, [])[:-1]
    found.settle()
    found.cut()
    expected = sorted(at for offsets in waiting.values() for at in offsets)
    assert found.all_orders == OpenedGroup(len(expected), len(expected))
    assert [each.source_offset for each in found.orders] == expected[:top]


@pytest.mark.parametrize("count", [0, 1, 3_000])
def test_however_many_there_are_few_are_kept(count: int) -> None:
    found = Unreported(2, NOW_MS)
    for at in reversed(range(count)):
        found.count(opened(f"SO-{at}", "acme", at, NOW_MS - 1))
    assert len(found.orders) < 1_004
    found.cut()
    assert [each.source_offset for each in found.orders] == [*range(count)][:2]
    assert found.all_orders.orders == count


def test_a_lease_that_was_renewed_is_not_over() -> None:
    def until_ms(each: OpenedOrder) -> int:
        asked.append(each.number)
        return each.accept_until_ms + (each.number == "A") * 9

    asked: list[str] = []
    found = Unreported(9, NOW_MS, accepted_until_ms=until_ms)
    for number, late_ms in (("A", 5), ("B", 5), ("C", -1)):
        found.count(opened(number, "acme", 0, NOW_MS - late_ms))
    assert asked == ["A", "B"]
    assert found.by_tenant == {"acme": OpenedGroup(3, 1)}
    found.cut()
    assert [each.number for each in found.orders if found.is_over(each)] == ["B"]


def test_a_very_long_number_fills_no_screen() -> None:
    found = leakage()
    found.add_letter("BAD_ORDER_NUMBER", "é\n" * 50_000, 0)
    found.finish()
    assert max(map(len, lines_of(found))) < 300


def test_workers_are_asked_until_one_cannot_say(monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(urls: list[str], token: str, number: str) -> tuple[OrderState | None, str]:
        assert (urls, token) == (["http://a", "http://b"], "")
        asked.append(number)
        if number == "away":
            return None, "http://a: timed out"
        if number == "forgotten":
            return None, NOT_KNOWN
        begin_ms = OPENED.server_timestamp_ms + (number == "another life")
        of = Opened(
            tenant="acme", client="c", server_timestamp_ms=begin_ms, accept_until_ms=NOW_MS + 9
        )
        return structs.replace(a_state(number), opened=of), ""

    asked: list[str] = []
    monkeypatch.setattr("durabill.deploy.commands.leakage.ask_workers", ask)
    renewals = Renewals(Settings(worker_urls="http://a,http://b"))
    names = ["renewed", "another life", "forgotten", "away", "renewed"]
    later_ms = [renewals.until_ms(OPENED._replace(number=each)) - NOW_MS for each in names]
    assert (later_ms, renewals.unknown) == ([9, 0, 0, 0, 0], 2)
    assert asked == names[:4]
