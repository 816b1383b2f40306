"""Quotas: what one tenant may have under way, and what is left for the others."""

import asyncio
from contextlib import ExitStack
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from durabill.producers.gateway.backends import TotalsReader
from durabill.producers.gateway.caller import ALL_SCOPES, Caller
from durabill.producers.gateway.open_orders import ENDED_KEPT_MS, UNOPENED_KEPT_MS
from durabill.producers.gateway.problems import ApiError
from durabill.producers.gateway.quotas import (
    LOOKUPS_AT_ONCE,
    QuotaLimits,
    Quotas,
)
from durabill.producers.gateway.tenant_turns import TenantTurns

ROOM = 1_000


def of(tenant: str, client: str = "c") -> Caller:
    return Caller(tenant, client, ALL_SCOPES, f"key of {tenant}")


def address(text: str) -> Caller:
    return Caller("default", text, ALL_SCOPES)


def quotas(**limits: int) -> Quotas:
    wide = {
        "client_segments_max": ROOM,
        "tenant_segments_max": ROOM,
        "in_flight_segments_max": ROOM,
    }
    return Quotas(QuotaLimits(**{**wide, **limits}))


def tried(stack: ExitStack, counts: Quotas, caller: Caller, size: int) -> ApiError | None:
    """Take a request in, until the stack ends; return why it isn't let in."""
    try:
        stack.enter_context(counts.segments(caller, size))
    except ApiError as error:
        return error
    return None


def flood(stack: ExitStack, counts: Quotas, caller: Caller, size: int) -> int:
    """Take in as many requests of that size as are let in; return the segments."""
    taken = 0
    while (error := tried(stack, counts, caller, size)) is None:
        taken += size
    assert error.status in (429, 503)
    assert int(error.headers["retry-after"]) > 0
    return taken


def test_alone_a_tenant_gets_half_and_two_a_third_each() -> None:
    with ExitStack() as stack:
        counts = quotas()
        assert flood(stack, counts, of("a"), 1) == ROOM // 2
        assert flood(stack, counts, of("b"), 1) == ROOM // 4
    with ExitStack() as stack:
        found = {tried(stack, counts, of(tenant), 1) for _ in range(ROOM) for tenant in ("a", "b")}
        assert {error.reason for error in found if error is not None} == {"QUOTA_SEGMENTS"}
        assert counts.in_flight in range(2 * ROOM // 3, 2 * ROOM // 3 + 3)


@given(
    st.lists(st.tuples(st.sampled_from("abcdefgh"), st.integers(1, 50)), max_size=200),
    st.integers(1, 8),
)
def test_whoever_comes_next_finds_room(asked: list[tuple[str, int]], tenants: int) -> None:
    """However few flood in whatever way, a share is left for a tenant that had nothing."""
    counts = quotas()
    with ExitStack() as stack:
        for tenant, size in asked:
            if ord(tenant) - ord("a") < tenants:
                error = tried(stack, counts, of(tenant), size)
                assert error is None or error.status in (429, 503)
        # A first request is taken whole, so each of them may be one request over its share.
        least = ROOM // (tenants + 1) - 50 * tenants
        if least > 0:
            with counts.segments(of("newcomer"), least):
                assert counts.in_flight <= ROOM


def test_what_has_come_back_takes_no_memory() -> None:
    counts = quotas()
    for at in range(100):
        with counts.request(of(f"t{at}")), counts.segments(of(f"t{at}"), 3):
            assert (len(counts._requests), len(counts._segments)) == (1, 3)
        counts.opens(of(f"t{at}"), "SO1", 0, 10)
        counts.sees(of(f"t{at}"), {"SO2"}, 0)
    # The tenants never come back; whoever comes next has what has lapsed of them forgotten.
    counts.opens(of("next"), "SO1", UNOPENED_KEPT_MS, 2 * UNOPENED_KEPT_MS)
    assert [tenant for tenant, _ in counts._orders] == ["next"]
    counts.not_opened(of("next"), "SO1")
    counts.sees(of("later"), {"SO1"}, 2 * UNOPENED_KEPT_MS)
    assert [tenant for tenant, _ in counts._orders] == ["later"]
    counts._sweep(3 * UNOPENED_KEPT_MS)
    assert not counts._requests
    assert not counts._segments
    assert not counts._orders
    assert counts.in_flight == 0


def test_places_come_back_from_requests_that_fail() -> None:
    counts = quotas(tenant_requests_max=1)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError), counts.request(of("a")), counts.segments(of("a"), 9):
            raise ZeroDivisionError
    with counts.request(of("a")):
        pass


def test_a_tenants_requests() -> None:
    counts = quotas(tenant_requests_max=2)
    with counts.request(of("a")), counts.request(of("a", "other client")):
        with pytest.raises(ApiError) as error, counts.request(of("a")):
            pass
        assert (error.value.status, error.value.reason) == (429, "QUOTA_REQUESTS")
        with counts.request(of("b")):
            pass


def test_a_clients_segments_and_a_tenants() -> None:
    counts = quotas(client_segments_max=10, tenant_segments_max=25)
    with ExitStack() as stack:
        assert flood(stack, counts, of("a", "1"), 5) == 10
        assert flood(stack, counts, of("a", "2"), 5) == 10
        assert flood(stack, counts, of("a", "3"), 5) == 5
        with pytest.raises(ApiError, match="this tenant"):
            counts.check_segments(of("a", "4"))
        with pytest.raises(ApiError, match="this client"):
            counts.check_segments(of("a", "1"))
        counts.check_segments(of("b"))


def test_a_request_by_itself_is_taken_whatever_its_size() -> None:
    counts = quotas(client_segments_max=2, tenant_segments_max=2)
    with counts.segments(of("a"), ROOM):
        with pytest.raises(ApiError) as error:
            counts.check_segments(of("b"))
        assert (error.value.status, error.value.reason) == (503, "OVERLOADED")
    with pytest.raises(ApiError, match="503 OVERLOADED"), counts.segments(of("a"), ROOM + 1):
        pass


def test_without_authentication_an_address_stands_for_a_tenant() -> None:
    counts = quotas(tenant_requests_max=1)
    with ExitStack() as stack:
        for each in ("192.0.2.1", "192.0.2.2"):
            stack.enter_context(counts.request(address(each)))
        with pytest.raises(ApiError):
            stack.enter_context(counts.request(address("192.0.2.1")))
    with ExitStack() as stack:
        assert flood(stack, counts, address("192.0.2.1"), 1) == ROOM // 2


def test_open_orders_end_by_their_end_or_by_their_time() -> None:
    counts = quotas(tenant_orders_max=3)
    for at in range(3):
        counts.opens(of("a"), f"SO{at}", at, 100 + at)
    counts.opens(of("a"), "SO1", 50, 150)  # a repeat isn't counted again
    with pytest.raises(ApiError) as error:
        counts.opens(of("a"), "SO3", 50, 150)
    assert (error.value.status, error.value.reason) == (429, "QUOTA_ORDERS")
    counts.opens(of("b"), "SO3", 50, 150)
    counts.not_opened(of("b"), "SO0")  # it isn't b's
    with pytest.raises(ApiError):
        counts.opens(of("a"), "SO3", 50, 150)
    counts.not_opened(of("a"), "SO0")
    counts.opens(of("a"), "SO3", 50, 150)
    with pytest.raises(ApiError):
        counts.opens(of("a"), "SO4", 100, 200)
    counts.opens(of("a"), "SO4", 150, 250)  # the others' times have passed


def test_an_ended_order_counts_for_some_minutes_more() -> None:
    """Its worker keeps it, whether or not the end counts: ends alone free nothing."""
    counts = quotas(tenant_orders_max=3)
    far_ms = 10 * ENDED_KEPT_MS
    counts.opens(of("a"), "long", 0, far_ms)  # what was opened earlier and stays holds up nothing
    counts.opens(of("a"), "lapses", 0, 10)
    counts.opens(of("a"), "SO1", 0, far_ms)
    counts.ended(of("a"), "SO1", 5)
    counts.ended(of("a"), "lapses", 5)
    with pytest.raises(ApiError, match="QUOTA_ORDERS"):
        counts.opens(of("a"), "SO2", 9, far_ms)
    counts.ended(of("a"), "SO1", 9)  # another end changes nothing
    counts.opens(of("a"), "SO1", 9, far_ms)  # it is counted already
    counts.ended(of("a"), "SO1", 9)
    counts.opens(of("a"), "SO2", ENDED_KEPT_MS + 9, far_ms)
    counts.opens(of("a"), "SO3", ENDED_KEPT_MS + 9, far_ms)
    with pytest.raises(ApiError, match="QUOTA_ORDERS"):
        counts.opens(of("a"), "SO4", ENDED_KEPT_MS + 9, far_ms)


def test_numbers_that_nobody_opened_count_too() -> None:
    counts = quotas(tenant_orders_max=3)
    counts.sees(of("a"), {"SO1", "SO2"}, 0)
    counts.sees(of("a"), {"SO1", "SO2"}, 5)
    counts.opens(of("a"), "SO1", 5, 10_000_000)
    with pytest.raises(ApiError, match="QUOTA_ORDERS"):
        counts.sees(of("a"), {"SO3", "SO4"}, 5)
    counts.sees(of("a"), {"SO1", "SO3"}, 6)
    with pytest.raises(ApiError, match="QUOTA_ORDERS"):
        counts.opens(of("a"), "SO4", 6, 100)
    counts.sees(of("b"), {"SO4"}, 6)
    counts.sees(of("a"), {"SO4"}, 5 + UNOPENED_KEPT_MS)  # SO2 didn't come again


@pytest.mark.parametrize("name", ["client_segments_max", "tenant_orders_max"])
def test_quotas_of_nothing_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        quotas(**{name: 0})


def test_who_reads_much_holds_up_nobody_elses_reading() -> None:
    """The ledger and an order's worker serve one question after the other."""
    served: list[str] = []

    async def ask(counts: Quotas, ledger: asyncio.Lock, tenant: str) -> None:
        async with counts.lookup(of(tenant)), ledger:
            await asyncio.sleep(0)
            served.append(tenant)

    async def read() -> None:
        counts, ledger = quotas(), asyncio.Lock()
        greedy = [asyncio.create_task(ask(counts, ledger, "greedy")) for _ in range(100)]
        await asyncio.sleep(0)
        await ask(counts, ledger, "good")
        await asyncio.gather(*greedy)
        assert not counts._lookups  # it takes no memory any more

    asyncio.run(read())
    assert len(served) == 101
    assert served.index("good") <= LOOKUPS_AT_ONCE


def test_who_reads_too_much_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else its requests, which wait, would take all connections."""
    monkeypatch.setattr("durabill.producers.gateway.quotas.LOOKUP_WAITS_S", 0.01)
    answered = asyncio.Event()

    async def ask(counts: Quotas) -> None:
        async with counts.lookup(of("greedy")):
            await answered.wait()

    async def read() -> None:
        counts = quotas()
        first = [asyncio.create_task(ask(counts)) for _ in range(LOOKUPS_AT_ONCE)]
        await asyncio.sleep(0)
        with pytest.raises(ApiError) as refused:
            await ask(counts)
        assert (refused.value.status, refused.value.reason) == (429, "QUOTA_REQUESTS")
        answered.set()
        await asyncio.gather(*first)
        await ask(counts)
        assert not counts._lookups

    asyncio.run(read())


def test_a_slow_ledger_answers_one_tenant_after_the_other() -> None:
    """Of many questions of one tenant that wait one stands before everybody else's."""
    served: list[str] = []

    async def ask(reader: TotalsReader, tenant: str) -> None:
        await reader.total(tenant, whose=of(tenant).counted_as)

    async def read() -> None:
        reader = TotalsReader(lambda: None, timeout_s=60)

        async def row(_query: Any, named: dict[str, str]) -> None:
            await asyncio.sleep(0)
            served.append(named["number"])

        reader._row = row  # type: ignore[assignment, method-assign]
        names = [*["greedy"] * LOOKUPS_AT_ONCE, "good-1", *["greedy"] * 9, "good-2", "good-1"]
        await asyncio.gather(*(ask(reader, each) for each in names))
        assert not len(reader._turns)

    asyncio.run(read())
    assert served[:4] == ["greedy", "good-1", "good-2", "greedy"]
    assert len(served) == LOOKUPS_AT_ONCE + 12


def test_who_gives_up_in_the_row_holds_up_nobody() -> None:
    async def wait() -> None:
        turns = TenantTurns()
        async with turns.turn("slow"):
            waiting = [asyncio.create_task(have(turns, each)) for each in ("a", "a", "b")]
            await asyncio.sleep(0)
            waiting[0].cancel()
            waiting[2].cancel()
            await asyncio.sleep(0)
        await waiting[1]
        assert not len(turns)

    async def have(turns: TenantTurns, whose: str) -> None:
        async with turns.turn(whose):
            pass

    asyncio.run(wait())
