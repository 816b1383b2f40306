"""Judges the ends of processes that nobody had asked to end: a fault must explain each.

A process that is started again loses nothing, so the audit can't see why one ended. A crash of the
interpreter or of a library would pass unseen, and would be met in production. So an end passes only
if a fault was on that this process may rightly end for, and if it ended in a way that is meant.
"""

from collections.abc import Iterable, Iterator

from tests.chaos.cluster import Exit
from tests.chaos.proofs import Injected
from tests.chaos.schedule import OF_BROKER, OF_PROXY, PROXIED, Kind

AFTERMATH_S = 150.0
"""How long after a fault it may end a process: a worker that is stuck ends after two minutes."""

ERROR, STALLED = 1, 75
_MEANT = {"worker": {ERROR, STALLED}, "ledger": {ERROR}, "gateway": {ERROR}}
"""Exit codes by which each says that it can't go on, and why."""


def unexplained(exits: Iterable[Exit], injected: Iterable[Injected]) -> Iterator[str]:
    """Yield a violation for each end that no fault explains."""
    faults = list(injected)
    for each in exits:
        role = each.name.partition("-")[0]
        if each.code not in _MEANT.get(role, set()):
            why = "which is no way to end"
        elif not any(_explains(fault, each, role) for fault in faults):
            why = "and no fault explains it"
        else:
            continue
        yield (
            f"{each.name} ended by itself at {each.at_s} s with exit code {each.code}, {why}:"
            f"\n{each.last_words}"
        )


def _explains(fault: Injected, end: Exit, role: str) -> bool:
    if not fault.began_s <= end.at_s <= fault.began_s + fault.lasted_s + AFTERMATH_S:
        return False
    if fault.kind in OF_BROKER:
        return True
    if fault.kind in OF_PROXY:
        return end.name in PROXIED
    if role == "worker":
        return fault.kind is Kind.FREEZE_WORKER and fault.target == end.name
    return role == "ledger" and fault.kind is Kind.KILL_POSTGRES
