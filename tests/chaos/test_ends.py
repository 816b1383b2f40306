"""An end passes only where a fault explains it, and only as an end that is meant."""

import pytest

from tests.chaos.cluster import Exit
from tests.chaos.ends import AFTERMATH_S, unexplained
from tests.chaos.proofs import Injected
from tests.chaos.schedule import Kind

FAULTS = [
    Injected(Kind.FREEZE_WORKER, "worker-0", began_s=100.0, lasted_s=15.0),
    Injected(Kind.KILL_BROKER, "broker-2", began_s=1_000.0, lasted_s=10.0),
    Injected(Kind.CUT_OFF, "proxy", began_s=2_000.0, lasted_s=10.0),
    Injected(Kind.KILL_POSTGRES, "PostgreSQL", began_s=3_000.0, lasted_s=10.0),
]
FROZEN_UNTIL_S = 115.0 + AFTERMATH_S


@pytest.mark.parametrize(
    ("name", "at_s", "code", "passes"),
    [
        ("worker-0", 99.9, 1, False),
        ("worker-0", 100.0, 1, True),
        ("worker-0", FROZEN_UNTIL_S, 75, True),
        ("worker-0", FROZEN_UNTIL_S + 0.1, 75, False),
        ("worker-1", 110.0, 1, False),  # another one was frozen
        ("worker-3", 1_005.0, 1, True),
        ("worker-3", 1_005.0, -11, False),  # SIGSEGV, whatever was on
        ("worker-3", 1_005.0, -9, False),
        ("worker-3", 1_005.0, 0, False),
        ("worker-3", 1_005.0, 70, False),
        ("worker-3", 1_005.0, None, False),
        ("gateway", 1_005.0, 1, True),
        ("gateway", 1_005.0, 75, False),
        ("gateway", 2_005.0, 1, True),
        ("worker-1", 2_005.0, 1, True),
        ("worker-0", 2_005.0, 1, False),  # it isn't behind the proxy
        ("ledger", 2_005.0, 1, False),
        ("ledger", 3_005.0, 1, True),
        ("gateway", 3_005.0, 1, False),
        ("broker-1", 1_005.0, 1, False),
        ("PostgreSQL", 3_005.0, None, False),
    ],
)
def test_an_end_needs_a_fault_and_a_meaning(
    name: str, at_s: float, code: int | None, passes: bool
) -> None:
    found = list(unexplained([Exit(name, at_s, code, "its last words")], FAULTS))
    assert passes == (not found)
    assert all(name in each and "its last words" in each for each in found)
