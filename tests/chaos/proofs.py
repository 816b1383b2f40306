"""What was injected, and the proofs that each fault hit while segments flowed.

A fault is held for its time, and longer where its proof is still missing (up to `PROOF_S`):
records were appended while it lasted, or pushed by the fleet where no broker was there to append
them; there was work that it kept from being done; and the target was really in the state meant.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

from tests.chaos.cluster import process_state
from tests.chaos.schedule import Fault, Kind
from tests.chaos.vitals import Vitals

PROOF_S = 60.0
JOINS_S = 90.0
"""How long a worker may take to own partitions: the session of the one before, and its start."""

_LOOK_S = 0.1
_GROWS_AGAIN_S = 60.0

Check = Callable[[], str]
"""Returns what is still missing for a proof, empty when it is complete."""


@dataclass(slots=True)
class Injected:
    """One fault as it went: what the target was, what flowed and what waited meanwhile.

    `began_s` is the time since the run's begin, `began_ms` the same moment by the wall clock.
    """

    kind: Kind
    target: str
    began_s: float
    began_ms: int = 0
    lasted_s: float = 0.0
    appended: int = 0
    waiting: int = 0
    evidence: list[str] = field(default_factory=list)
    missing: str = ""

    @property
    def is_proven(self) -> bool:
        """Tell whether it hit while segments flowed."""
        return not self.missing

    def as_json(self) -> dict[str, Any]:
        """Return the fields by name."""
        return asdict(self)


class Proofs:
    """Holds faults until they are proven; `problems` grows by what went wrong."""

    def __init__(self, vitals: Vitals, problems: list[str]) -> None:
        self.problems = problems
        self._vitals = vitals
        self._interrupted = threading.Event()

    def interrupt(self) -> None:
        """Have no fault held any longer."""
        self._interrupted.set()

    def pause(self, seconds: float) -> None:
        """Wait, unless interrupted."""
        self._interrupted.wait(seconds)

    def wait_for(self, condition: Callable[[], bool], timeout_s: float) -> bool:
        """Tell whether the condition held within the time."""
        until_s = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > until_s or self._interrupted.is_set():
                return False
            self.pause(_LOOK_S)
        return True

    def hold(
        self, fault: Fault, injected: Injected, *checks: Check, patience_s: float = PROOF_S
    ) -> None:
        """Hold the fault for its time, and until it is proven or hopeless."""
        began_s = time.monotonic()
        while not self._interrupted.is_set():
            held_s = time.monotonic() - began_s
            missing = [found for check in checks if (found := check())]
            injected.missing = "; ".join(missing)
            if held_s >= fault.hold_s and (not missing or held_s >= fault.hold_s + patience_s):
                return
            self.pause(_LOOK_S)

    def flowing(self, injected: Injected, waits: str = "lag") -> Check:
        """Return the check that records were appended, and that something waited, since now.

        What waits is the group's `lag`, or new `totals`, which the ledger can't record; while the
        broker is away too, what the fleet has pushed.
        """
        began_s = time.monotonic()

        def check() -> str:
            now_s = time.monotonic()
            injected.appended = self._vitals.gained("segments", began_s, now_s)
            lag = self._vitals.lag_max(began_s, now_s)
            totals = self._vitals.gained("totals", began_s, now_s)
            injected.waiting = totals if waits == "totals" else lag
            backlog = self._vitals.backlog_max(began_s, now_s)
            if not injected.appended and backlog and self._vitals.silences(began_s, now_s):
                injected.waiting = backlog  # beside an outage: segments flow, but get nowhere
                return ""
            if not injected.appended:
                return "no segment was appended meanwhile"
            return "" if injected.waiting else f"nothing waited ({waits})"

        return check

    def pushing(self, injected: Injected) -> Check:
        """Return the check that the fleet pushed records at a broker that didn't answer."""
        began_s = time.monotonic()

        def check() -> str:
            now_s = time.monotonic()
            injected.waiting = self._vitals.backlog_max(began_s, now_s)
            if not injected.waiting:
                return "the fleet had nothing unacknowledged"
            return "" if self._vitals.silences(began_s, now_s) else "the broker answered"

        return check

    def stopped(self, pid: int | None) -> Check:
        """Return the check that a process is stopped."""

        def check() -> str:
            state = "" if pid is None else process_state(pid)
            return "" if state == "T" else f"pid {pid} is not stopped but {state!r}"

        return check

    @contextmanager
    def back_again(self, injected: Injected) -> Iterator[None]:
        """Have the log grow again after the block, which proves that the fleet had gone on."""
        before = self._newest_end()
        yield

        def has_grown() -> bool:
            injected.appended = self._newest_end() - before
            return injected.appended > 0

        if not self.wait_for(has_grown, _GROWS_AGAIN_S):
            self.problems.append(f"after '{injected.kind}' nothing was appended any more")

    def _newest_end(self) -> int:
        known = (each.segments for each in reversed(self._vitals.samples))
        return next((each for each in known if each is not None), 0)
