"""Waiting for what other threads, other processes and servers do."""

import time
from collections.abc import Callable

HANG_S = 120.0
"""A wait that takes longer has hung. It only bounds waits for what comes in a moment, so it costs
nothing; it is long because a busy machine may not run a process for half a minute, and short of
the 300 s after which pytest ends the whole test."""


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float = HANG_S) -> None:
    """Returns as soon as the condition holds; fails after `timeout_s`."""
    until_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < until_s, f"{what}: not within {timeout_s:g} s"
        time.sleep(0.02)
