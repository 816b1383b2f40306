"""Renewals of leases, also of orders that are forgotten by then; repeats of own numbers' starts."""

import asyncio
import json
import os
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp.test_utils import make_mocked_request

from durabill.producers.gateway.api import OrderGrant, OrderRequest, TimeRules
from durabill.producers.gateway.authority import AuthorityConfig
from durabill.producers.gateway.caller import ALL_SCOPES, Caller, set_caller
from durabill.producers.gateway.kafka import BackendUnavailable
from durabill.producers.gateway.leases import bounds_for
from durabill.producers.gateway.lookup import InUse
from durabill.producers.gateway.orders import OrderDesk
from durabill.producers.gateway.problems import ApiError
from durabill.producers.gateway.starts import checked
from durabill.schemas import SegmentEvent
from durabill.schemas.limits import FUTURE_TOLERANCE_MS, SEGMENT_LENGTH_MAX_MS
from durabill.schemas.order_state import Opened as OpenedState
from durabill.stream_processors.core.admission import (
    Fate,
    Known,
    Place,
    accept_opening,
    admit,
    admit_opening,
)
from durabill.stream_processors.core.opening import Opened
from durabill.stream_processors.core.order import Policy
from tests.unit.authority_kit import authority_of, stopped_clock

NOW_MS = 1_800_000_000_000
DAY_MS = 86_400_000
WINDOW_MS = 2 * DAY_MS
LEASE_MS = 7 * DAY_MS
ANNA = Caller("acme", "anna", ALL_SCOPES, "key-1")
ONLY = Place(0, 1)
POLICY = Policy(correction_window_ms=WINDOW_MS, opened_only=True)


class Stand:
    """An order desk at a time, with an order that was opened at NOW_MS."""

    def __init__(self, now_ms: int) -> None:
        self.now_ms = now_ms
        self.values: list[bytes] = []
        self.is_away = False
        self.authority = authority_of(
            stopped_clock(now_ms), WINDOW_MS, AuthorityConfig(lease_ms=LEASE_MS)
        )
        surroundings: Any = self
        self.desk = OrderDesk(
            self.authority,
            surroundings,
            surroundings,
            report_interval_ms=10_000,
            correction_window_ms=WINDOW_MS,
            entropy=os.urandom,
        )

    async def in_use(self, _number: str, _caller: Caller) -> InUse | None:
        until_ms = self.now_ms + LEASE_MS
        opened = OpenedState(
            tenant="acme", client="anna", server_timestamp_ms=self.now_ms, accept_until_ms=until_ms
        )
        return InUse(opened, has_segments=False) if self.values else None

    async def start(self, key: str | None, **asked: Any) -> OrderGrant:
        wanted = checked(ANNA, OrderRequest(service_order_number="7", **asked), key)
        return await self.desk._grant(wanted)

    async def publish(self, _key: bytes, values: list[bytes]) -> None:
        if self.is_away:
            raise BackendUnavailable("Kafka is away")
        self.values += values

    async def learn_time(self) -> None:
        """The clock is known."""

    def note_stored(self, _number: str, _tenant: str) -> None:
        pass

    async def attributes(self, *who: str) -> tuple[tuple[str, str], ...]:
        assert who == ("SO1", "acme", "anna")
        return (("plan", "gold"),)

    def renew(self) -> dict[str, Any]:
        token, _ = self.authority.leases.mint(
            "SO1", "acme", "anna", "bike", now_ms=NOW_MS, interval_ms=10_000
        )
        request = make_mocked_request("POST", "/v1/orders/SO1/lease", {"lease": token})
        set_caller(request, ANNA)
        answer = asyncio.run(self.desk.renew(request))
        assert isinstance(answer.body, bytes)
        said: dict[str, Any] = json.loads(answer.body)
        return said


@pytest.mark.parametrize("after_ms", [0, LEASE_MS // 8 - 1])
def test_where_it_would_gain_little_nothing_is_opened(after_ms: int) -> None:
    stand = Stand(NOW_MS + after_ms)
    said = stand.renew()
    assert said["lease_expires_ms"] == said["accept_until_ms"] == NOW_MS + LEASE_MS
    assert stand.values == []


@pytest.mark.parametrize("after_ms", [LEASE_MS // 8, LEASE_MS // 2, LEASE_MS])
def test_an_order_that_is_known_is_extended_for_as_long_as_the_lease_holds(after_ms: int) -> None:
    stand = Stand(NOW_MS + after_ms)
    said = stand.renew()
    assert said["server_timestamp_ms"] == NOW_MS
    assert said["lease_expires_ms"] == said["accept_until_ms"] == stand.now_ms + LEASE_MS
    (value,) = stand.values
    opened = accept_opening(b"SO1", value, stand.now_ms)
    assert (opened.service, opened.attributes) == ("bike", ())
    first = Opened(NOW_MS, NOW_MS + LEASE_MS, 1, "acme", "anna")
    record: Any = SimpleNamespace(key=b"SO1", headers=(), size=100)
    admitted = admit_opening(record, opened, Known(None, first), ONLY, stand.now_ms)
    assert admitted.fate is Fate.EXTENDS
    assert first.extended_by(opened, 2).accept_until_ms == said["accept_until_ms"]


@pytest.mark.parametrize("after_ms", [1, 2 * FUTURE_TOLERANCE_MS, DAY_MS, 300 * DAY_MS])
def test_a_forgotten_orders_new_life_is_opened_for_all_that_may_count(after_ms: int) -> None:
    """By the engine's own rules, where only opened orders are taken."""
    now_ms = NOW_MS + LEASE_MS + after_ms
    stand = Stand(now_ms)
    said = stand.renew()
    assert said["lease_expires_ms"] == said["accept_until_ms"] == now_ms + LEASE_MS
    assert said["server_timestamp_ms"] == NOW_MS
    (value,) = stand.values
    record: Any = SimpleNamespace(key=b"SO1", headers=(), size=100)
    opened = accept_opening(b"SO1", value, now_ms)
    assert (opened.tenant, opened.client, opened.service) == ("acme", "anna", "bike")
    assert opened.attributes == (("plan", "gold"),)
    assert admit_opening(record, opened, Known(None, None), ONLY, now_ms).fate is Fate.OPENS
    opening = Opened.by(opened, 7)
    lease = stand.authority.leases.check(said["lease"], "SO1", ANNA, now_ms)
    for arrives_ms in (now_ms, said["lease_expires_ms"]):
        bounds = bounds_for(lease, TimeRules(WINDOW_MS, arrives_ms))
        end_ms = bounds.earliest_end_ms
        assert end_ms == now_ms - WINDOW_MS
        start_ms = max(bounds.earliest_start_ms, end_ms - SEGMENT_LENGTH_MAX_MS)
        segment = SegmentEvent("SO1", 1, start_ms, end_ms, False)
        admitted = admit(record, segment, Known(None, opening), ONLY, arrives_ms, POLICY)
        assert admitted.fate is Fate.BEGINS


def test_without_kafkas_word_no_lease_is_given() -> None:
    stand = Stand(NOW_MS + LEASE_MS + DAY_MS)
    stand.is_away = True
    with pytest.raises(ApiError, match="KAFKA_UNAVAILABLE"):
        stand.renew()


def test_a_number_of_ones_own_is_given_again_to_the_key_that_opened_it() -> None:
    """Where this gateway has opened it; another doesn't know the key."""
    stand, other = Stand(NOW_MS), Stand(NOW_MS)
    grant = asyncio.run(stand.start("key"))
    assert asyncio.run(stand.start("key")) == grant
    assert len(stand.values) == 1
    other.values = stand.values
    assert asyncio.run(other.start("key")).server_timestamp_ms == grant.server_timestamp_ms
    for key, service in (("another", ""), (None, ""), ("key", "another")):
        with pytest.raises(ApiError, match="ORDER_IN_USE"):
            asyncio.run(stand.start(key, service=service))
