"""A gateway's authority for the unit tests, on clocks that the test holds."""

import os
from collections.abc import Callable

from durabill.producers.gateway.authority import Authority, AuthorityConfig
from durabill.producers.gateway.broker_clock import BrokerClock
from durabill.producers.gateway.quotas import QuotaLimits

INTERVAL_MS = 10_000


def stopped_clock(now_ms: int, *, knows_broker: bool = True) -> BrokerClock:
    """A clock that stands still, and is the broker's too."""
    clock = BrokerClock(lambda: now_ms * 1_000_000, lambda: 0)
    if knows_broker:
        clock.learn(0, 0, now_ms)
    return clock


def authority_of(
    clock: BrokerClock,
    correction_window_ms: int | None,
    config: AuthorityConfig | None = None,
    monotonic_ns: Callable[[], int] = lambda: 0,
) -> Authority:
    """An authority without keys, quotas or an issuer."""
    return Authority(
        config or AuthorityConfig(),
        QuotaLimits(),
        topic="segments",
        broker_clock=clock,
        monotonic_ns=monotonic_ns,
        entropy=os.urandom,
        report_interval_ms=INTERVAL_MS,
        correction_window_ms=correction_window_ms,
    )
