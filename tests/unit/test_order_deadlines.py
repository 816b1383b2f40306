"""When an order gives totals: corrections are gathered, and none runs on unbilled for ever."""

import pytest

from durabill.schemas import OrderTotal, SegmentEvent, Status
from durabill.stream_processors.core.order import NEVER_MS, Order, Phase, Policy, describe_order
from tests.unit.test_order import empty_end, segment, settle_if_due

POLICY = Policy(
    settle_grace_ms=10, idle_timeout_ms=300, correction_window_ms=10**6, interim_interval_ms=0
)
DAILY = Policy(
    settle_grace_ms=10, idle_timeout_ms=300, correction_window_ms=10**6, interim_interval_ms=100
)


def brief(totals: list[OrderTotal]) -> list[tuple[int, str, int]]:
    """Return (revision, status, settled at) of each."""
    return [(each.revision, each.status.value, each.settled_at_ms) for each in totals]


def piece(at: int) -> SegmentEvent:
    """Return a millisecond of its own under a known number."""
    return SegmentEvent("SO1", 1, 2_000 + 2 * at, 2_001 + 2 * at, False)


def complete_order() -> Order:
    order = Order("SO1", 0)
    assert order.apply(segment(1, end=True), 1_000, 0, POLICY) is not None
    return order


def test_late_flood_is_one_correction() -> None:
    order = complete_order()
    for at in range(500):
        assert order.apply(piece(at), 5_000 + at // 50, 1 + at, POLICY) is None
        assert settle_if_due(order, 5_000 + at // 50, POLICY) == []
    assert (order.phase, order.deadline_ms) == (Phase.REOPENED, 5_010)
    assert settle_if_due(order, 5_009, POLICY) == []
    (total,) = settle_if_due(order, 5_010, POLICY)
    assert brief([total]) == [(2, "COMPLETE", 5_010)]
    assert (len(total.intervals), total.duplicates + 1) == (501, 501)


def test_each_correction_waits_twice_as_long_as_the_one_before() -> None:
    order = complete_order()
    at_ms, waits_ms = 5_000, []
    for at in range(11):
        assert order.apply(piece(at), at_ms, 1 + at, POLICY) is None
        waits_ms.append(order.deadline_ms - at_ms)
        at_ms = order.deadline_ms
        assert [(at + 2, "COMPLETE", at_ms)] == brief(settle_if_due(order, at_ms, POLICY))
        order.check()
    assert waits_ms == [10, 20, 40, 80, 160, 320, 640, 1_280, 1_280, 1_280, 1_280]


@pytest.mark.parametrize(
    ("events", "status"),
    [
        ([segment(1)], "ABANDONED"),
        ([segment(3)], "ABANDONED"),
        ([segment(3, end=True)], "INCOMPLETE"),
        ([segment(3, end=True), segment(1)], "COMPLETE"),
        ([segment(3, end=True), segment(1), segment(5)], "INCOMPLETE"),
    ],
)
def test_reopened_order_settles_by_what_it_is_at_its_deadline(
    events: list[SegmentEvent], status: str
) -> None:
    order = Order("SO1", 0)
    order.apply(segment(2), 1_000, 0, POLICY)
    assert brief(settle_if_due(order, 1_300, POLICY)) == [(1, "ABANDONED", 1_300)]
    for offset, event in enumerate(events, start=1):
        assert order.apply(event, 1_304, offset, POLICY) is None
    assert settle_if_due(order, 1_313, POLICY) == []
    assert [(2, status, 1_314)] == brief(settle_if_due(order, 9_000, POLICY))


def test_repeats_that_never_stop_do_not_put_off_the_idle_deadline() -> None:
    order = Order("SO1", 0)
    order.apply(segment(1), 1_000, 0, POLICY)
    for offset, at_ms in enumerate(range(1_010, 1_300, 10), start=1):
        assert settle_if_due(order, at_ms, POLICY) == []
        assert order.apply(segment(1), at_ms, offset, POLICY) is None
    assert brief(settle_if_due(order, 1_300, POLICY)) == [(1, "ABANDONED", 1_300)]


def test_order_that_runs_on_gives_an_interim_total_an_interval_and_goes_on() -> None:
    order = Order("SO1", 0)
    found = []
    for number, at_ms in enumerate(range(1_000, 1_401, 50), start=1):
        found += settle_if_due(order, at_ms, DAILY) if number > 1 else []
        assert order.apply(segment(number), at_ms, number, DAILY) is None
        assert (Phase.OPEN, at_ms + 300) == (order.phase, order.deadline_ms)
        order.check()
    assert [(n, "RUNNING", 1_000 + 100 * n) for n in range(1, 5)] == brief(found)
    assert [each.segments for each in found] == [2, 4, 6, 8]
    last = order.apply(segment(10, end=True), 1_420, 10, DAILY)
    assert last is not None
    assert brief([last]) == [(5, "COMPLETE", 1_420)]
    assert found[-1].digest == last.previous_digest
    assert order.settlements == 1  # so the first correction waits no longer than ever


def test_catching_up_gives_all_that_was_due_in_the_order_of_time() -> None:
    order = Order("SO1", 0)
    order.apply(segment(1), 1_000, 0, DAILY)
    assert settle_if_due(order, 1_099, DAILY) == []
    expected = [(1, "RUNNING", 1_100), (2, "RUNNING", 1_200), (3, "ABANDONED", 1_300)]
    assert brief(settle_if_due(order, 50_000, DAILY)) == expected


def test_of_an_interim_and_a_settlement_at_one_instant_only_the_settlement_comes() -> None:
    order = Order("SO1", 0)
    policy = Policy(100, 300, 10**6, 100)
    order.apply(segment(2, end=True), 1_000, 0, policy)
    assert brief(settle_if_due(order, 9_000, policy)) == [(1, "INCOMPLETE", 1_100)]


@pytest.mark.parametrize("reopens", [False, True])
def test_waiting_orders_give_interim_totals_too(reopens: bool) -> None:
    order = Order("SO1", 0)
    policy = Policy(250, 300, 10**6, 100)
    order.apply(segment(2, end=True), 1_000, 0, policy)
    if not reopens:
        expected = [(1, "RUNNING", 1_100), (2, "RUNNING", 1_200), (3, "INCOMPLETE", 1_250)]
        assert brief(settle_if_due(order, 9_000, policy)) == expected
        return
    settle_if_due(order, 1_250, policy)
    assert order.apply(segment(1), 2_000, 1, policy) is None
    assert order.next_due_ms(policy) == 2_100
    expected = [(4, "RUNNING", 2_100), (5, "RUNNING", 2_200), (6, "COMPLETE", 2_250)]
    totals = settle_if_due(order, 9_000, policy)
    assert brief(totals) == expected
    # All numbers are there, but it may still change: only the settlement bounds it so closely.
    assert [each.upper_bound_ms for each in totals] == [20, 20, 20]
    assert [totals[0].status, totals[0].missing_numbers] == [Status.RUNNING, ()]


def test_without_an_interval_there_are_no_interim_totals() -> None:
    order = Order("SO1", 0)
    order.apply(segment(1), 1_000, 0, POLICY)
    assert order.next_due_ms(POLICY) == 1_300
    assert POLICY.interim_after_ms == NEVER_MS
    assert brief(settle_if_due(order, 2**61, POLICY)) == [(1, "ABANDONED", 1_300)]


def test_live_state_tells_the_next_interim_total() -> None:
    order = Order("SO1", 0)
    order.apply(segment(1), 1_000, 0, DAILY)
    assert describe_order(order, DAILY).interim_deadline_ms == 1_100
    assert describe_order(order, POLICY).interim_deadline_ms is None
    order.apply(empty_end(3), 1_050, 1, DAILY)
    assert order.deadline_ms == 1_060
    assert describe_order(order, DAILY).interim_deadline_ms is None
    settle_if_due(order, 1_060, DAILY)
    assert describe_order(order, DAILY).interim_deadline_ms is None
