"""What is done to the cluster, and when: a function of the seed alone.

A schedule is an endless sequence of steps, the first of which have every kind of fault of the form
at least once. The faults of a step overlap; the next step begins when all of them are mended, and
either when the cluster has caught up or, so that recoveries get disturbed too, at once.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import count
from random import Random

SESSION_S = 10.0
"""How long Kafka waits for a worker or ledger that says nothing, by their own settings."""

WORKERS_FIRST = ("worker-0", "worker-1")
PROXIED = ("worker-1", "gateway")
"""These reach the broker through the proxy, all others directly."""

WORKERS_MIN = 2
WORKERS_MAX = 4


class Kind(StrEnum):
    """Every fault there is, by the name that the report gives it."""

    KILL_WORKER = "worker killed and restarted"
    FREEZE_WORKER = "worker frozen beyond its session"
    ADD_WORKER = "worker added"
    REMOVE_WORKER = "worker removed gracefully"
    DROP_WORKER = "worker killed for good"
    KILL_LEDGER = "ledger killed and restarted"
    KILL_GATEWAY = "gateway killed and restarted"
    KILL_POSTGRES = "PostgreSQL killed and restarted"
    CLOCK_OFF = "worker restarted with its clock hours off"
    KILL_BROKER = "broker killed and restarted"
    FREEZE_BROKER = "broker frozen for a moment"
    BROKERS_DOWN = "all brokers down"
    FREEZE_FOLLOWER = "follower frozen while the leader appends"
    KILL_FOLLOWER = "follower killed and restarted"
    MOVE_LEADERS = "leaders moved away and back"
    KILL_GROUP_COORDINATOR = "coordinator of the group killed and restarted"
    KILL_TRANSACTION_COORDINATOR = "coordinator of transactions killed and restarted"
    ROLLING_RESTART = "all brokers restarted one by one"
    SLOW_BROKER = "broker slow for one worker and the gateway"
    SILENT_BROKER = "broker silent for one worker and the gateway"
    CUT_OFF = "one worker and the gateway cut off from the broker"


OF_CLUSTER = {
    Kind.FREEZE_FOLLOWER,
    Kind.KILL_FOLLOWER,
    Kind.MOVE_LEADERS,
    Kind.KILL_GROUP_COORDINATOR,
    Kind.KILL_TRANSACTION_COORDINATOR,
    Kind.ROLLING_RESTART,
}
"""These need several brokers, all of which are up and in sync when the fault begins and ends."""

OF_BROKER = {Kind.KILL_BROKER, Kind.FREEZE_BROKER, Kind.BROKERS_DOWN, *OF_CLUSTER}
OF_PROXY = {Kind.SLOW_BROKER, Kind.SILENT_BROKER, Kind.CUT_OFF}
OF_WORKERS = {
    Kind.KILL_WORKER,
    Kind.CLOCK_OFF,
    Kind.FREEZE_WORKER,
    Kind.ADD_WORKER,
    Kind.REMOVE_WORKER,
    Kind.DROP_WORKER,
}
_BROKERS = {
    Kind.KILL_BROKER: "leader",
    Kind.FREEZE_BROKER: "leader",
    Kind.BROKERS_DOWN: "brokers",
    Kind.FREEZE_FOLLOWER: "follower",
    Kind.KILL_FOLLOWER: "follower",
    Kind.MOVE_LEADERS: "leader",
    Kind.KILL_GROUP_COORDINATOR: "group coordinator",
    Kind.KILL_TRANSACTION_COORDINATOR: "transaction coordinator",
    Kind.ROLLING_RESTART: "brokers",
}
COMPANIONS = (Kind.KILL_LEDGER, Kind.KILL_GATEWAY, Kind.KILL_POSTGRES, Kind.KILL_WORKER)
"""What may come on top of another fault of a step."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault: begins `delay_s` after its step, and is mended after `hold_s` at the earliest.

    Which broker is a leader, a follower or a coordinator is known only when the fault begins, so
    the target says no more. `clock_off_s` is how far ahead a worker's clock is.
    """

    kind: Kind
    target: str
    delay_s: float
    hold_s: float
    clock_off_s: int = 0


@dataclass(frozen=True, slots=True)
class Step:
    """Faults that overlap; with `calm_after` the cluster may catch up before the next step."""

    faults: tuple[Fault, ...]
    calm_after: bool


@dataclass(frozen=True, slots=True)
class Form:
    """How hard a run is: the kinds that must come, and how long the brokers are down."""

    kinds: tuple[Kind, ...]
    down_s: float
    companion_ratio: float
    calm_ratio: float


def long_kinds(brokers: int, without: frozenset[Kind] = frozenset()) -> tuple[Kind, ...]:
    """Return every kind of fault that so many brokers can have."""
    impossible = without | (OF_CLUSTER if brokers == 1 else set())
    return tuple(kind for kind in Kind if kind not in impossible)


LONG = Form(long_kinds(3), down_s=60.0, companion_ratio=0.5, calm_ratio=0.6)


def short_schedule() -> tuple[Step, ...]:
    """Return the steps of the short form: as much as fits into less than a minute.

    The group waits out a session for each dead or frozen worker, so these waits are shared.
    """
    zombie = Fault(Kind.FREEZE_WORKER, "worker-1", 0.0, SESSION_S + 4)
    return (
        Step(
            (
                zombie,
                Fault(Kind.KILL_WORKER, "worker-0", 0.5, 0.5),
                Fault(Kind.KILL_LEDGER, "ledger", 2.0, 0.5),
                Fault(Kind.KILL_POSTGRES, "PostgreSQL", 8.0, 1.0),
            ),
            calm_after=False,
        ),
        Step((Fault(Kind.KILL_BROKER, "leader", 0.0, 1.0),), calm_after=False),
    )


def short_cluster_schedule() -> tuple[Step, ...]:
    """Return the steps of the short form on three brokers: what one broker can't show."""
    return (
        Step((Fault(Kind.FREEZE_FOLLOWER, "follower", 0.0, 4.5),), calm_after=False),
        Step(
            (
                Fault(Kind.KILL_GROUP_COORDINATOR, "group coordinator", 0.0, 0.5),
                Fault(Kind.CLOCK_OFF, "worker-0", 2.0, 0.0, clock_off_s=3 * 3600),
            ),
            calm_after=False,
        ),
    )


class Planner:
    """Deals out faults, and keeps in mind which workers there are by then."""

    def __init__(self, seed: int, form: Form) -> None:
        self._roll = Random(f"chaos-{seed}")
        self._form = form
        self._workers = list(WORKERS_FIRST)
        self._serial = count(len(WORKERS_FIRST))

    def steps(self) -> Iterator[tuple[int, Step]]:
        """Yield (round, step) for ever; every round has every kind of the form."""
        for turn in count():
            kinds = list(self._form.kinds)
            self._roll.shuffle(kinds)
            while kinds:
                kind = self._possible(kinds)
                yield turn, self._step(kind)

    def _possible(self, kinds: list[Kind]) -> Kind:
        """Take the next kind; another worker comes first where one has to go and none may."""
        gone = {Kind.REMOVE_WORKER, Kind.DROP_WORKER}
        crowded = len(self._workers) >= WORKERS_MAX
        if kinds[0] in gone and len(self._workers) <= WORKERS_MIN:
            if Kind.ADD_WORKER in kinds:
                kinds.remove(Kind.ADD_WORKER)
            return Kind.ADD_WORKER
        if kinds[0] is Kind.ADD_WORKER and crowded:
            return Kind.REMOVE_WORKER
        return kinds.pop(0)

    def _step(self, kind: Kind) -> Step:
        first = self._fault(kind, delay_s=0.0, busy=())
        faults = [first]
        if self._roll.random() < self._form.companion_ratio:
            others = [each for each in COMPANIONS if self._goes_with(each, first)]
            other = self._roll.choice(others)
            delay_s = self._roll.uniform(0.0, 3.0)
            faults.append(self._fault(other, delay_s=delay_s, busy=(first.target,)))
        calm = self._roll.random() < self._form.calm_ratio
        return Step(tuple(faults), calm)

    def _goes_with(self, other: Kind, first: Fault) -> bool:
        """Tell whether a fault can be seen to hit beside the first one."""
        if other is first.kind:
            return False
        if other is Kind.KILL_GATEWAY:
            return first.kind not in OF_PROXY and first.kind not in OF_BROKER
        if other is Kind.KILL_WORKER:
            # With all the others dead or cut off nobody would be left to take over.
            return first.kind in OF_BROKER or first.kind is Kind.ADD_WORKER
        return True

    def _fault(self, kind: Kind, *, delay_s: float, busy: Sequence[str]) -> Fault:
        roll = self._roll
        direct = [each for each in self._workers if each not in busy]
        hold_s = roll.uniform(0.2, 2.0)
        target = direct[roll.randrange(len(direct))]
        clock_off_s = 0
        if kind is Kind.FREEZE_WORKER:
            hold_s = SESSION_S + roll.uniform(3.0, 8.0)
        elif kind is Kind.CLOCK_OFF:
            clock_off_s = roll.choice([-1, 1]) * roll.randrange(3_600, 24 * 3_600)
            hold_s = 0.0
        elif kind is Kind.ADD_WORKER:
            target = f"worker-{next(self._serial)}"
            self._workers.append(target)
            hold_s = 0.0
        elif kind in (Kind.REMOVE_WORKER, Kind.DROP_WORKER):
            # Never the worker behind the proxy, whose faults need it.
            target = roll.choice([each for each in direct if each not in PROXIED])
            self._workers.remove(target)
            hold_s = 0.0
        elif kind in OF_BROKER:
            target = _BROKERS[kind]
            hold_s = roll.uniform(0.0, 4.0)
            if kind is Kind.FREEZE_BROKER:
                hold_s = roll.uniform(2.0, 6.0)
            elif kind is Kind.FREEZE_FOLLOWER:
                hold_s = roll.uniform(3.0, 5.0)
            elif kind is Kind.BROKERS_DOWN:
                hold_s = self._form.down_s
        elif kind in OF_PROXY:
            target = "proxy"
            longer = kind is not Kind.SLOW_BROKER and roll.random() < 0.7
            hold_s = SESSION_S + roll.uniform(3.0, 8.0) if longer else roll.uniform(4.0, 8.0)
        elif kind not in OF_WORKERS:
            target = {
                Kind.KILL_LEDGER: "ledger",
                Kind.KILL_GATEWAY: "gateway",
                Kind.KILL_POSTGRES: "PostgreSQL",
            }[kind]
        return Fault(kind, target, round(delay_s, 2), round(hold_s, 2), clock_off_s)
