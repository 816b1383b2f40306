"""Does what a schedule says, and proves of every fault that it hit while segments flowed.

A fault is held for its time, and longer where its proof is still missing (up to `PROOF_S`):
records were appended while it lasted, or pushed by the fleet where no broker was there to append
them; there was work that it kept from being done; and the target was really in the state meant.
"""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

from deploy.stack import StackError
from tests.chaos.cluster import PARTITIONS, Cluster, process_state
from tests.chaos.proxy import Mode
from tests.chaos.schedule import Fault, Kind, Step
from tests.chaos.vitals import Vitals

PROOF_S = 25.0
CALM_S = 120.0
"""How long a mended cluster may take to be back at work."""

LATENCY_S = 0.4
_LOOK_S = 0.1
_TAKES_OVER_S = 60.0

Check = Callable[[], str]
"""Returns what is still missing for a proof, empty when it is complete."""


@dataclass(slots=True)
class Injected:
    """One fault as it went: what the target was, what flowed and what waited meanwhile."""

    kind: Kind
    target: str
    began_s: float
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


class Injector:
    """Carries out steps; `injected` grows by every fault, `problems` by what went wrong."""

    def __init__(self, cluster: Cluster, vitals: Vitals, say: Callable[[str], None]) -> None:
        self.injected: list[Injected] = []
        self.problems: list[str] = []
        self._cluster = cluster
        self._vitals = vitals
        self._say = say
        self._interrupted = threading.Event()
        self._actions: dict[Kind, Callable[[Fault, Injected], None]] = {
            Kind.KILL_WORKER: self._kill_process,
            Kind.KILL_LEDGER: self._kill_process,
            Kind.KILL_GATEWAY: self._kill_process,
            Kind.FREEZE_WORKER: self._freeze_worker,
            Kind.ADD_WORKER: self._add_worker,
            Kind.REMOVE_WORKER: self._remove_worker,
            Kind.DROP_WORKER: self._remove_worker,
            Kind.KILL_POSTGRES: self._kill_postgres,
            Kind.KILL_BROKER: self._kill_broker,
            Kind.BROKERS_DOWN: self._kill_broker,
            Kind.FREEZE_BROKER: self._freeze_broker,
            Kind.SLOW_BROKER: self._trouble_line,
            Kind.SILENT_BROKER: self._trouble_line,
            Kind.CUT_OFF: self._trouble_line,
        }

    def run(self, step: Step) -> None:
        """Carry out a step, and wait until the cluster is back at work if it says so."""
        with ThreadPoolExecutor(len(step.faults)) as pool:
            try:
                for done in [pool.submit(self._inject, fault) for fault in step.faults]:
                    done.result()
            except BaseException:
                self._interrupted.set()  # so that no fault is held any longer
                raise
        if step.calm_after:
            self.wait_for_calm()

    def wait_for_calm(self) -> None:
        """Return when every partition has an owner and what is now in the log is committed."""
        began_s = time.monotonic()
        target: int | None = None
        while time.monotonic() - began_s < CALM_S:
            last = self._vitals.samples[-1] if self._vitals.samples else None
            if last is not None and last.at_s > began_s and last.answered:
                target = last.segments if target is None else target
                if (last.committed or 0) >= (target or 0) and self._cluster.all_shared_out():
                    return
            time.sleep(_LOOK_S)
        self.problems.append(
            f"the cluster was not back at work within {CALM_S:g} s of a step: "
            f"{self._cluster.states()}"
        )

    def _inject(self, fault: Fault) -> None:
        self._pause(fault.delay_s)
        at_s = time.monotonic() - self._cluster.began_s
        injected = Injected(fault.kind, fault.target, round(at_s, 1))
        self._say(f"{at_s:6.1f} s  {fault.kind} ({fault.target})")
        began_s = time.monotonic()
        self._actions[fault.kind](fault, injected)
        injected.lasted_s = round(time.monotonic() - began_s, 1)
        if injected.missing:
            self.problems.append(
                f"not proven to have hit: {fault.kind} at {injected.began_s} s: {injected.missing}"
            )
        self.injected.append(injected)

    # -- holding and proving ------------------------------------------------------------------

    def _pause(self, seconds: float) -> None:
        self._interrupted.wait(seconds)

    def _hold(self, fault: Fault, injected: Injected, *checks: Check) -> None:
        """Hold the fault for its time, and until it is proven or hopeless."""
        began_s = time.monotonic()
        while not self._interrupted.is_set():
            held_s = time.monotonic() - began_s
            missing = [found for check in checks if (found := check())]
            injected.missing = "; ".join(missing)
            if held_s >= fault.hold_s and (not missing or held_s >= fault.hold_s + PROOF_S):
                return
            self._pause(_LOOK_S)

    def _flowing(self, injected: Injected, waits: str = "lag") -> Check:
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

    def _pushing(self, injected: Injected) -> Check:
        """Return the check that the fleet pushed records at a broker that didn't answer."""
        began_s = time.monotonic()

        def check() -> str:
            now_s = time.monotonic()
            injected.waiting = self._vitals.backlog_max(began_s, now_s)
            if not injected.waiting:
                return "the fleet had nothing unacknowledged"
            return "" if self._vitals.silences(began_s, now_s) else "the broker answered"

        return check

    # -- processes ----------------------------------------------------------------------------

    def _kill_process(self, fault: Fault, injected: Injected) -> None:
        """Kill -9, and start it again, as a process manager would after a moment."""
        process = self._cluster.processes[fault.target]
        waits = "totals" if fault.kind is Kind.KILL_LEDGER else "lag"
        flowing = self._flowing(injected, waits)
        pid, code = process.kill()
        injected.evidence.append(f"pid {pid} ended with {code}")
        killed = "" if code == -signal.SIGKILL else f"it had ended with {code} before"
        self._hold(fault, injected, flowing, lambda: killed)
        process.start()

    def _freeze_worker(self, fault: Fault, injected: Injected) -> None:
        """SIGSTOP beyond the session: another worker must have taken over; then SIGCONT."""
        process = self._cluster.processes[fault.target]
        flowing = self._flowing(injected)
        pid = process.signal(signal.SIGSTOP)
        try:
            self._hold(fault, injected, flowing, self._stopped(pid), self._taken_over(fault))
            injected.evidence.append(
                f"pid {pid} was stopped, others owned all {PARTITIONS} partitions meanwhile"
            )
        finally:
            process.signal(signal.SIGCONT)

    def _stopped(self, pid: int | None) -> Check:
        def check() -> str:
            state = "" if pid is None else process_state(pid)
            return "" if state == "T" else f"pid {pid} is not stopped but {state!r}"

        return check

    def _taken_over(self, fault: Fault) -> Check:
        """Return the check that the other workers own all partitions at some time from now on."""
        seen: list[bool] = []

        def check() -> str:
            if not seen and len(self._cluster.shared_out(without=fault.target)) == PARTITIONS:
                seen.append(True)
            return "" if seen else "no other worker took over"

        return check

    def _add_worker(self, fault: Fault, injected: Injected) -> None:
        flowing = self._flowing(injected)
        process = self._cluster.add(fault.target)
        injected.evidence.append(f"pid {process.pid()}")
        self._hold(fault, injected, flowing, lambda: self._owns_nothing(fault.target))

    def _owns_nothing(self, name: str) -> str:
        everything = self._cluster.shared_out()
        others = self._cluster.shared_out(without=name)
        return "" if len(everything) == PARTITIONS > len(others) else "it owns no partition yet"

    def _remove_worker(self, fault: Fault, injected: Injected) -> None:
        """Let a worker go, asked or killed; others must take over with records flowing."""
        process = self._cluster.processes[fault.target]
        flowing, taken_over = self._flowing(injected), self._taken_over(fault)
        if fault.kind is Kind.DROP_WORKER:
            pid, code = process.kill()
            injected.evidence.append(f"pid {pid} ended with {code}")
        else:
            try:
                code = process.stop()
            except StackError as error:
                self.problems.append(str(error))
                process.kill()
            else:
                injected.evidence.append(f"ended with {code} when asked")
                if code != 0:
                    words = f"ended with {code} when asked to:\n{process.log_tail()}"
                    self.problems.append(f"{fault.target} {words}")
        self._cluster.forget(fault.target)
        self._hold(fault, injected, flowing, taken_over)

    # -- servers ------------------------------------------------------------------------------

    def _kill_postgres(self, fault: Fault, injected: Injected) -> None:
        flowing = self._flowing(injected, "totals")
        pid = self._cluster.kill_postgres()
        injected.evidence.append(f"pid {pid} is gone")
        try:
            self._hold(fault, injected, flowing)
        finally:
            self._cluster.start_postgres()

    def _kill_broker(self, fault: Fault, injected: Injected) -> None:
        pushing = self._pushing(injected)
        with self._back_again(injected):
            pid = self._cluster.kill_broker()
            injected.evidence.append(f"pid {pid} is gone")
            try:
                self._hold(fault, injected, pushing)
            finally:
                self._cluster.start_broker()

    def _freeze_broker(self, fault: Fault, injected: Injected) -> None:
        pushing = self._pushing(injected)
        with self._back_again(injected):
            pid = self._cluster.signal_broker(signal.SIGSTOP)
            try:
                self._hold(fault, injected, pushing, self._stopped(pid))
            finally:
                self._cluster.signal_broker(signal.SIGCONT)
            injected.evidence.append(f"pid {pid} was stopped")

    @contextmanager
    def _back_again(self, injected: Injected) -> Iterator[None]:
        """Have the log grow again after the block, which proves that the fleet had gone on."""
        before = self._newest_end()
        yield
        until_s = time.monotonic() + _TAKES_OVER_S
        while time.monotonic() < until_s and not self._interrupted.is_set():
            injected.appended = self._newest_end() - before
            if injected.appended > 0:
                return
            self._pause(_LOOK_S)
        self.problems.append(f"after '{injected.kind}' nothing was appended any more")

    def _newest_end(self) -> int:
        known = (each.segments for each in reversed(self._vitals.samples))
        return next((each for each in known if each is not None), 0)

    # -- the line between ---------------------------------------------------------------------

    def _trouble_line(self, fault: Fault, injected: Injected) -> None:
        """Slow down, silence or cut the proxied line; the others reach the broker all the while."""
        proxy = self._cluster.proxy
        mode = {
            Kind.SLOW_BROKER: Mode.SLOW,
            Kind.SILENT_BROKER: Mode.SILENT,
            Kind.CUT_OFF: Mode.CUT,
        }[fault.kind]
        flowing = self._flowing(injected)
        before = proxy.counters.held()
        proxy.switch(mode, LATENCY_S)

        def held() -> str:
            return "" if proxy.counters.held() > before else "the proxy held nothing back"

        try:
            self._hold(fault, injected, flowing, held)
        finally:
            proxy.switch(Mode.PASS)
        more = proxy.counters.held() - before
        what = "connections cut or refused" if mode is Mode.CUT else "bytes held back"
        injected.evidence.append(f"{more:,} {what}")
