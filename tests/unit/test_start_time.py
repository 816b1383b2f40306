"""The server timestamp of a start whose number is bound to it, before the time is known."""

import asyncio
import json
import os
from collections.abc import Sequence
from typing import Any

import pytest
from aiohttp.test_utils import make_mocked_request

from durabill.producers.gateway.api import OrderGrant
from durabill.producers.gateway.broker_clock import KEPT_MS, BrokerClock
from durabill.producers.gateway.caller import ALL_SCOPES, Caller, set_caller
from durabill.producers.gateway.kafka import BackendUnavailable, SegmentProducer
from durabill.producers.gateway.orders import OrderDesk
from durabill.producers.gateway.problems import ApiError
from durabill.producers.gateway.starts import Start
from durabill.producers.sdk.stored import Stored
from durabill.schemas.clock_mark import is_clock_mark
from durabill.schemas.order_opened import is_opening, read_opening
from tests.unit.authority_kit import authority_of

NOW_MS = 1_800_000_000_000
WRONG_MS = 120_000
DAY_MS = 86_400_000
NOBODY = Caller("default", "192.0.2.1", ALL_SCOPES)


class Producer(SegmentProducer):
    """Appends to a list, at the right time."""

    clock: BrokerClock

    def __init__(self, clock: BrokerClock) -> None:
        self.clock = clock
        self.records: list[tuple[bytes, bytes]] = []
        self.has_times, self.is_away = True, False
        self._learning = asyncio.Lock()
        self._teaches_time = True

    async def publish(self, key: bytes, values: Sequence[bytes]) -> list[Stored]:
        if self.is_away:
            raise BackendUnavailable("away")
        self.records += [(key, value) for value in values]
        tick_ms = self.clock.tick_ms()
        if self.has_times:
            self.clock.learn(tick_ms, tick_ms, NOW_MS + tick_ms)
        return [Stored(0, len(self.records), NOW_MS)]


class Stand:
    """A desk whose machine's clock is wrong."""

    def __init__(self, wrong_ms: int) -> None:
        self.tick_ms = 0
        clock = BrokerClock(
            lambda: (NOW_MS + wrong_ms) * 1_000_000, lambda: self.tick_ms * 1_000_000
        )
        self.kafka = Producer(clock)
        authority = authority_of(clock, None, monotonic_ns=lambda: self.tick_ms * 1_000_000)
        self.authority = authority
        surroundings: Any = self
        self.desk = OrderDesk(
            authority,
            self.kafka,
            surroundings,
            report_interval_ms=10_000,
            correction_window_ms=None,
            entropy=os.urandom,
        )

    async def in_use(self, _number: str, _caller: Caller) -> None:
        """Nobody knows it."""

    def note_stored(self, _number: str, _tenant: str) -> None:
        """Nobody asks."""

    async def start(self, key: str | None, number: str | None = None) -> OrderGrant:
        wanted = Start(NOBODY, number, "", (), key)
        return await (self.desk._grant(wanted) if key is None else self.desk._grant_once(wanted))

    def kinds(self) -> str:
        return "".join("m" if is_clock_mark(value) else "o" for _, value in self.kafka.records)


@pytest.mark.parametrize("wrong_ms", [-WRONG_MS, WRONG_MS])
@pytest.mark.parametrize(("key", "number"), [("k", None), ("k", "SO1"), (None, "SO1")])
def test_no_order_is_opened_at_a_wrong_time(
    wrong_ms: int, key: str | None, number: str | None
) -> None:
    async def play() -> None:
        stand = Stand(wrong_ms)
        grant = await stand.start(key, number)
        assert grant.server_timestamp_ms == NOW_MS
        (opened,) = [read_opening(*each) for each in stand.kafka.records if is_opening(each[1])]
        assert (opened.server_timestamp_ms, stand.kinds()) == (NOW_MS, "mo")
        assert stand.kafka.records[0][0] == b""  # a mark with a key is a dead letter

    asyncio.run(play())


def test_the_time_is_asked_once_a_minute_at_most() -> None:
    async def play() -> None:
        stand = Stand(WRONG_MS)
        await asyncio.gather(*(stand.start(key) for key in "abc"))
        assert stand.kinds() == "mooo"
        stand.tick_ms += KEPT_MS + 1
        assert (await stand.start("d")).server_timestamp_ms == NOW_MS + stand.tick_ms
        assert stand.kinds() == "mooomo"

    asyncio.run(play())


def test_a_topic_without_the_brokers_time_is_asked_once() -> None:
    async def play() -> None:
        stand = Stand(0)
        stand.kafka.has_times = False
        for key in "ab":
            await stand.start(key)
        assert stand.kinds() == "moo"

    asyncio.run(play())


@pytest.mark.parametrize("wrong_ms", [8 * DAY_MS, 80 * DAY_MS])
def test_a_renewal_opens_nothing_at_a_wrong_time(wrong_ms: int) -> None:
    """A gateway that has just been started, with a clock that is days ahead."""
    stand = Stand(wrong_ms)
    leases = stand.authority.leases
    token, lease = leases.mint("SO1", "default", "", now_ms=NOW_MS, interval_ms=10_000)
    request = make_mocked_request("POST", "/v1/orders/SO1/lease", {"lease": token})
    set_caller(request, NOBODY)
    answer = asyncio.run(stand.desk.renew(request))
    assert isinstance(answer.body, bytes)
    said = json.loads(answer.body)
    assert (said["lease_expires_ms"], stand.kinds()) == (lease.expires_ms, "m")
    assert abs(said["sent_ms"] - NOW_MS) < 1


def test_while_the_time_cannot_be_learned_nothing_is_opened() -> None:
    async def play() -> None:
        stand = Stand(WRONG_MS)
        stand.kafka.is_away = True
        with pytest.raises(ApiError) as refused:
            await stand.start("k")
        assert (refused.value.status, refused.value.reason) == (503, "KAFKA_UNAVAILABLE")
        stand.kafka.is_away = False
        assert (await stand.start("k")).server_timestamp_ms == NOW_MS

    asyncio.run(play())
