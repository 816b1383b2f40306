"""Does what a schedule says to processes and lines; `tests.chaos.broker_faults` does to brokers."""

import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from confluent_kafka import KafkaException

from durabill.deploy.local.stack import StackError
from tests.chaos.broker_faults import BrokerFaults
from tests.chaos.cluster import PARTITIONS, Cluster
from tests.chaos.proofs import JOINS_S, Check, Injected, Proofs
from tests.chaos.proxy import Mode
from tests.chaos.schedule import Fault, Kind, Step
from tests.chaos.vitals import Vitals

CALM_S = 120.0
"""How long a mended cluster may take to be back at work."""

LATENCY_S = 0.4
_LOOK_S = 0.1


class Injector:
    """Carries out steps; `injected` grows by every fault, `problems` by what went wrong."""

    def __init__(self, cluster: Cluster, vitals: Vitals, say: Callable[[str], None]) -> None:
        self.injected: list[Injected] = []
        self.problems: list[str] = []
        self.calm_ms: list[int] = []
        """When the cluster was seen to be back at work, by the wall clock."""
        self._cluster = cluster
        self._vitals = vitals
        self._say = say
        self._proofs = Proofs(vitals, self.problems)
        self._actions: dict[Kind, Callable[[Fault, Injected], None]] = {
            Kind.KILL_WORKER: self._kill_process,
            Kind.KILL_LEDGER: self._kill_process,
            Kind.KILL_GATEWAY: self._kill_process,
            Kind.FREEZE_WORKER: self._freeze_worker,
            Kind.ADD_WORKER: self._add_worker,
            Kind.REMOVE_WORKER: self._remove_worker,
            Kind.DROP_WORKER: self._remove_worker,
            Kind.KILL_POSTGRES: self._kill_postgres,
            Kind.CLOCK_OFF: self._set_clock,
            Kind.SLOW_BROKER: self._trouble_line,
            Kind.SILENT_BROKER: self._trouble_line,
            Kind.CUT_OFF: self._trouble_line,
            **BrokerFaults(cluster, self._proofs).actions(),
        }

    def run(self, step: Step) -> None:
        """Carry out a step, and wait until the cluster is back at work if it says so."""
        with ThreadPoolExecutor(len(step.faults)) as pool:
            try:
                for done in [pool.submit(self._inject, fault) for fault in step.faults]:
                    done.result()
            except BaseException:
                self._proofs.interrupt()  # so that no fault is held any longer
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
                    self.calm_ms.append(time.time_ns() // 10**6)
                    return
            time.sleep(_LOOK_S)
        self.problems.append(
            f"the cluster was not back at work within {CALM_S:g} s of a step: "
            f"{self._cluster.states()}"
        )

    def _inject(self, fault: Fault) -> None:
        self._proofs.pause(fault.delay_s)
        at_s = time.monotonic() - self._cluster.began_s
        injected = Injected(fault.kind, fault.target, round(at_s, 1), time.time_ns() // 10**6)
        self._say(f"{at_s:6.1f} s  {fault.kind} ({fault.target})")
        began_s = time.monotonic()
        try:
            self._actions[fault.kind](fault, injected)
        except (StackError, KafkaException) as error:
            self.problems.append(f"{fault.kind}: {error}")
        injected.lasted_s = round(time.monotonic() - began_s, 1)
        if injected.missing:
            self.problems.append(
                f"not proven to have hit: {fault.kind} at {injected.began_s} s: {injected.missing}"
            )
        self.injected.append(injected)

    # -- processes ----------------------------------------------------------------------------

    def _kill_process(self, fault: Fault, injected: Injected) -> None:
        """Kill -9, and start it again, as a process manager would after a moment."""
        process = self._cluster.processes[fault.target]
        waits = "totals" if fault.kind is Kind.KILL_LEDGER else "lag"
        flowing = self._proofs.flowing(injected, waits)
        pid, code = process.kill()
        injected.evidence.append(f"pid {pid} ended with {code}")
        killed = "" if code == -signal.SIGKILL else f"it had ended with {code} before"
        self._proofs.hold(fault, injected, flowing, lambda: killed)
        process.start()

    def _set_clock(self, fault: Fault, injected: Injected) -> None:
        """Kill -9, and start it again with a wall clock that is hours off; it must own some."""
        process = self._cluster.processes[fault.target]
        flowing = self._proofs.flowing(injected)
        pid, code = process.kill()
        killed = "" if code == -signal.SIGKILL else f"it had ended with {code} before"
        again = process.start(fault.clock_off_s)
        injected.evidence.append(
            f"pid {pid} ended with {code}; {again} is {fault.clock_off_s} s off"
        )
        self._proofs.hold(
            fault,
            injected,
            flowing,
            lambda: killed,
            lambda: self._owns_nothing(fault.target),
            patience_s=JOINS_S,
        )

    def _freeze_worker(self, fault: Fault, injected: Injected) -> None:
        """SIGSTOP beyond the session: another worker must have taken over; then SIGCONT."""
        process = self._cluster.processes[fault.target]
        flowing = self._proofs.flowing(injected)
        pid = process.signal(signal.SIGSTOP)
        try:
            self._proofs.hold(
                fault, injected, flowing, self._proofs.stopped(pid), self._taken_over(fault)
            )
            injected.evidence.append(
                f"pid {pid} was stopped, others owned all {PARTITIONS} partitions meanwhile"
            )
        finally:
            process.signal(signal.SIGCONT)

    def _taken_over(self, fault: Fault) -> Check:
        """Return the check that the other workers own all partitions at some time from now on."""
        seen: list[bool] = []

        def check() -> str:
            if not seen and len(self._cluster.shared_out(without=fault.target)) == PARTITIONS:
                seen.append(True)
            return "" if seen else "no other worker took over"

        return check

    def _add_worker(self, fault: Fault, injected: Injected) -> None:
        flowing = self._proofs.flowing(injected)
        process = self._cluster.add(fault.target)
        injected.evidence.append(f"pid {process.pid()}")
        self._proofs.hold(
            fault,
            injected,
            flowing,
            lambda: self._owns_nothing(fault.target),
            patience_s=JOINS_S,
        )

    def _owns_nothing(self, name: str) -> str:
        everything = self._cluster.shared_out()
        others = self._cluster.shared_out(without=name)
        return "" if len(everything) == PARTITIONS > len(others) else "it owns no partition yet"

    def _remove_worker(self, fault: Fault, injected: Injected) -> None:
        """Let a worker go, asked or killed; others must take over with records flowing."""
        process = self._cluster.processes[fault.target]
        flowing, taken_over = self._proofs.flowing(injected), self._taken_over(fault)
        if fault.kind is Kind.DROP_WORKER:
            pid, code = process.kill()
            injected.evidence.append(f"pid {pid} ended with {code}")
            if code != -signal.SIGKILL:
                words = f"had ended with {code} before it was killed:\n{process.log_tail()}"
                self.problems.append(f"{fault.target} {words}")
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
        self._proofs.hold(fault, injected, flowing, taken_over)

    # -- servers ------------------------------------------------------------------------------

    def _kill_postgres(self, fault: Fault, injected: Injected) -> None:
        flowing = self._proofs.flowing(injected, "totals")
        pid = self._cluster.kill_postgres()
        injected.evidence.append(f"pid {pid} is gone")
        try:
            self._proofs.hold(fault, injected, flowing)
        finally:
            self._cluster.start_postgres()

    # -- the line between ---------------------------------------------------------------------

    def _trouble_line(self, fault: Fault, injected: Injected) -> None:
        """Slow down, silence or cut the proxied line; the others reach the broker all the while."""
        line = self._cluster.brokers.line
        mode = {
            Kind.SLOW_BROKER: Mode.SLOW,
            Kind.SILENT_BROKER: Mode.SILENT,
            Kind.CUT_OFF: Mode.CUT,
        }[fault.kind]
        flowing = self._proofs.flowing(injected)
        before = line.held()
        line.switch(mode, LATENCY_S)

        def held() -> str:
            return "" if line.held() > before else "the proxy held nothing back"

        try:
            self._proofs.hold(fault, injected, flowing, held)
        finally:
            line.switch(Mode.PASS)
        more = line.held() - before
        what = "connections cut or refused" if mode is Mode.CUT else "bytes held back"
        injected.evidence.append(f"{more:,} {what}")
