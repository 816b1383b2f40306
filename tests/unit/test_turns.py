"""Whoever asks the worker gets a share of its loop, one after the other."""

import asyncio

import pytest

from durabill.schemas.order_state import listed_for, page_of
from durabill.schemas.web import Page
from durabill.stream_processors.worker.turns import BURST_S, LEAST_S, SHARE, Turns
from tests.state_kit import a_state
from tests.waiting import HANG_S


class Clock:
    """Time passes by sleeping, and by work alone."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.slept_s = 0.0

    def __call__(self) -> float:
        return self.now_s

    async def sleep(self, wait_s: float) -> None:
        self.now_s += wait_s
        self.slept_s += wait_s
        await asyncio.sleep(0)


@pytest.mark.parametrize("cost_s", [0.0, 0.001, 0.05])
def test_a_flood_of_questions_gets_its_share_and_no_more(cost_s: float) -> None:
    clock, count = Clock(), 1_000

    async def ask(turns: Turns) -> None:
        async with turns:
            clock.now_s += cost_s

    async def flood() -> None:
        turns = Turns(clock, clock.sleep)
        await asyncio.gather(*(ask(turns) for _ in range(count)))

    asyncio.run(flood())
    one_s, took_s = max(cost_s, LEAST_S), clock.now_s - 100.0
    assert took_s >= (one_s * (count - 1) - BURST_S) / SHARE - 1e-6
    assert took_s <= one_s * count / SHARE


def test_few_small_questions_wait_for_nothing() -> None:
    clock = Clock()

    async def ask() -> None:
        turns = Turns(clock, clock.sleep)
        for _ in range(1_000):
            async with turns:
                clock.now_s += LEAST_S
            clock.now_s += LEAST_S / SHARE

    asyncio.run(ask())
    assert clock.slept_s == 0


def test_who_goes_while_it_waits_holds_up_nobody() -> None:
    async def ask() -> None:
        turns = Turns()
        async with turns:
            gone = asyncio.create_task(turns.__aenter__())
            await asyncio.sleep(0)
            gone.cancel()
        async with asyncio.timeout(HANG_S), turns:
            pass

    asyncio.run(ask())


@pytest.mark.parametrize(("intervals", "missing"), [(0, 0), (3, 2), (4, 9), (5, 4), (9, 5)])
def test_a_first_page_needs_no_more_than_it_shows(intervals: int, missing: int) -> None:
    page = Page(limit=4)
    whole = a_state(intervals=intervals, missing=missing)
    limit = listed_for(page)
    assert limit == 5
    cut = a_state(intervals=intervals, missing=missing)
    del cut.intervals[limit:], cut.missing_numbers[limit:]
    assert page_of(cut, page, 0) == page_of(whole, page, 0)
    assert listed_for(Page(limit=4, after_ms=0)) is None
    assert listed_for(Page(limit=4, after_number=1)) is None
