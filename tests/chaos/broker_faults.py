"""Does to brokers what a schedule says; each fault ends when all copies are in sync again.

What a cluster of three shows that one broker can't: records that are in the leader's log, with
their append time, and not to be seen, since a frozen follower is in sync by name; leaders that
move; coordinators that are gone. No two brokers are down at once but where all are meant to be.
"""

import time
from collections.abc import Callable
from contextlib import closing

from confluent_kafka import KafkaException

from tests.chaos.brokers import GROUPS, TRANSACTIONS, Probe
from tests.chaos.cluster import Cluster
from tests.chaos.proofs import Check, Injected, Proofs
from tests.chaos.schedule import Fault, Kind

PROBE = b"\xc3\x01 a probe of what a stalled follower holds back"
_HELD_BACK_S = 0.5
_FREEZES_MAX = 5
_HOPEFUL_S = 3.0
"""Whether a frozen follower holds a record back shows at once, or never."""
_ELECTED_S = 30.0

Action = Callable[[Fault, Injected], None]


class BrokerFaults:
    """The faults of brokers, by kind."""

    def __init__(self, cluster: Cluster, proofs: Proofs) -> None:
        self._cluster = cluster
        self._brokers = cluster.brokers
        self._proofs = proofs

    def actions(self) -> dict[Kind, Action]:
        """Return how each kind is carried out."""
        return {
            Kind.KILL_BROKER: self._kill,
            Kind.KILL_FOLLOWER: self._kill,
            Kind.KILL_GROUP_COORDINATOR: self._kill,
            Kind.KILL_TRANSACTION_COORDINATOR: self._kill,
            Kind.BROKERS_DOWN: self._kill_all,
            Kind.FREEZE_BROKER: self._freeze,
            Kind.FREEZE_FOLLOWER: self._freeze_follower,
            Kind.MOVE_LEADERS: self._move_leaders,
            Kind.ROLLING_RESTART: self._restart_all,
        }

    def _aim(self, fault: Fault, injected: Injected) -> int:
        """Return the number of the broker that is meant."""
        application = self._cluster.settings.application_id
        if fault.target == "leader":
            number = self._brokers.leader_most()
        elif fault.target == "follower":
            number = self._brokers.leader_least()
        elif fault.target == "group coordinator":
            number = self._brokers.coordinator(GROUPS, application)
        else:  # of the transactions of partition 0's producer, which `runtime.open_exit` names so
            number = self._brokers.coordinator(TRANSACTIONS, f"{application}-0")
        leads = sum(each == number for each in self._brokers.leaders().values())
        injected.target = f"{fault.target}: broker {number}"
        injected.evidence.append(f"broker {number} led {leads} partitions of segments")
        return number

    def _kill(self, fault: Fault, injected: Injected) -> None:
        """Kill -9 of one broker. Where there are others, they must have taken over."""
        number = self._aim(fault, injected)
        if self._brokers.count == 1:
            self._kill_alone(fault, injected, number)
            return
        flowing = self._proofs.flowing(injected)
        pid = self._brokers.kill(number)
        injected.evidence.append(f"pid {pid} is gone")
        try:
            self._proofs.hold(fault, injected, flowing, self._taken_over(number))
        finally:
            self._brokers.start(number)
        self._brokers.wait_in_sync()

    def _kill_alone(self, fault: Fault, injected: Injected, number: int) -> None:
        pushing = self._proofs.pushing(injected)
        with self._proofs.back_again(injected):
            injected.evidence.append(f"pid {self._brokers.kill(number)} is gone")
            try:
                self._proofs.hold(fault, injected, pushing)
            finally:
                self._brokers.start(number)

    def _taken_over(self, number: int) -> Check:
        """Return the check that a broker is no longer counted, and leads nothing."""

        def check() -> str:
            try:
                leaders, living = set(self._brokers.leaders().values()), self._brokers.living()
            except KafkaException as error:
                return f"nobody says who leads: {error}"
            if number in living or number in leaders:
                return f"broker {number} is still counted"
            return "a partition has no leader" if -1 in leaders else ""

        return check

    def _kill_all(self, fault: Fault, injected: Injected) -> None:
        pushing = self._proofs.pushing(injected)
        with self._proofs.back_again(injected):
            pids = self._brokers.kill_all()
            injected.evidence.append(f"pids {', '.join(map(str, pids))} are gone")
            try:
                self._proofs.hold(fault, injected, pushing)
            finally:
                self._brokers.start_all()
        self._brokers.wait_in_sync()

    def _freeze(self, fault: Fault, injected: Injected) -> None:
        number = self._aim(fault, injected)
        pushing = self._proofs.pushing(injected)
        with self._proofs.back_again(injected):
            pid = self._brokers.freeze(number)
            try:
                self._proofs.hold(fault, injected, pushing, self._proofs.stopped(pid))
            finally:
                self._brokers.thaw(number)
            injected.evidence.append(f"pid {pid} was stopped")
        self._brokers.wait_in_sync()

    def _freeze_follower(self, fault: Fault, injected: Injected) -> None:
        """SIGSTOP, for less than the controller needs to miss it: the high watermarks stand.

        A follower that a busy machine had out of sync by then holds nothing back: it is frozen
        once more when all are in sync again.
        """
        number = self._aim(fault, injected)
        for _ in range(_FREEZES_MAX):
            self._freeze_once(fault, injected, number)
            self._brokers.wait_in_sync()
            if injected.is_proven:
                return

    def _freeze_once(self, fault: Fault, injected: Injected, number: int) -> None:
        with closing(self._brokers.probe(number)) as probe, self._proofs.back_again(injected):
            pid = self._brokers.freeze(number)
            try:
                held_back = self._held_back(probe, injected)
                stopped = self._proofs.stopped(pid)
                self._proofs.hold(fault, injected, stopped, held_back, patience_s=_HOPEFUL_S)
            finally:
                self._brokers.thaw(number)
            injected.evidence.append(f"pid {pid} was stopped")

    def _held_back(self, probe: Probe, injected: Injected) -> Check:
        """Return the check that a record is in a leader's log and, for a while, not to be seen."""
        offset = probe.append(PROBE)
        appended_s = time.monotonic()
        proven: list[bool] = []

        def check() -> str:
            if offset is None:
                return "no leader took a record"
            waited_s = time.monotonic() - appended_s
            if not proven and waited_s >= _HELD_BACK_S:
                try:
                    seen = probe.visible_until()
                except KafkaException as error:
                    return f"the leader doesn't say what is visible: {error}"
                if seen > offset:
                    return f"the record at {probe.partition}/{offset} was to be seen at once"
                proven.append(True)
                injected.waiting = offset + 1 - seen
                injected.evidence.append(
                    f"{probe.partition}/{offset} was in the log, and {waited_s:.1f} s later "
                    f"consumers saw what is before {seen}"
                )
            return "" if proven else "not watched for long enough"

        return check

    def _move_leaders(self, fault: Fault, injected: Injected) -> None:
        """A controlled stop hands the leaders over; an election brings them back."""
        number = self._aim(fault, injected)
        before = self._brokers.leaders()
        flowing = self._proofs.flowing(injected)
        self._brokers.stop(number)
        try:
            self._proofs.hold(fault, injected, flowing, self._taken_over(number))
            between = self._brokers.leaders()
        finally:
            self._brokers.start(number)
        self._brokers.wait_in_sync()
        self._brokers.elect_preferred()
        moved = sum(before[each] != between[each] for each in before)

        def leads_again() -> bool:
            return number in self._brokers.leaders().values()

        if not moved or not self._proofs.wait_for(leads_again, _ELECTED_S):
            injected.missing = f"{moved} leaders moved away, and broker {number} leads none again"
        injected.evidence.append(f"{moved} leaders moved away from broker {number}, and back")

    def _restart_all(self, fault: Fault, injected: Injected) -> None:
        """Stop and start each broker, the next one when all are in sync."""
        flowing = self._proofs.flowing(injected)
        for number in range(1, self._brokers.count + 1):
            self._brokers.stop(number)
            self._proofs.pause(fault.hold_s / self._brokers.count)
            self._brokers.start(number)
            self._brokers.wait_in_sync()
        self._proofs.hold(fault, injected, flowing)
        injected.evidence.append(f"brokers 1 to {self._brokers.count} were stopped and started")
