"""What is late, and what a fault explains, at the edges of its window."""

from tests.chaos.latency import AFTERMATH_MS, GROSS_MS, Published, Window, measure, windows
from tests.chaos.proofs import Injected
from tests.chaos.schedule import Kind

FAULT = Injected(Kind.KILL_BROKER, "broker-1", began_s=1.0, began_ms=100_000, lasted_s=2.5)
WINDOW = Window(100_000, 102_500 + AFTERMATH_MS)


def total(settled_at_ms: int, published_ms: int) -> Published:
    return Published(("SO1", 1), settled_at_ms, published_ms)


def test_a_fault_explains_delays_from_its_begin_until_all_is_calm_or_a_while_after_it() -> None:
    assert windows([FAULT], []) == [WINDOW]
    assert windows([FAULT], [102_499]) == [WINDOW]  # that was before it was mended
    assert [Window(100_000, 102_500)] == windows([FAULT], [102_500, 110_000])
    assert windows([FAULT], [WINDOW.end_ms + 1]) == [WINDOW]


def test_totals_that_a_fault_touched_are_left_out() -> None:
    before, after = total(0, 99_999), total(WINDOW.end_ms, WINDOW.end_ms + GROSS_MS + 1)
    touched = [total(0, 100_000), total(WINDOW.end_ms - 1, 10**9), total(101_000, 101_010)]
    found = measure([before, *touched, after], [WINDOW])
    assert found.quiet == 2
    assert len(found.gross) == 2


def test_gross_is_more_than_the_limit() -> None:
    assert measure([total(5, 5 + GROSS_MS)], []).gross == []
    assert len(measure([total(5, 6 + GROSS_MS)], []).gross) == 1


def test_percentiles_of_known_values() -> None:
    found = measure([total(0, late_ms) for late_ms in range(200, 0, -1)], [])
    assert (found.quiet, found.p50_ms, found.p99_ms, found.max_ms) == (200, 101, 199, 200)
    assert measure([], []).p99_ms == 0
