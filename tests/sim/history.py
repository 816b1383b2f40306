"""One history: clients, brokers, workers and faults, all from a seed, and the auditor's verdict."""

from collections.abc import Callable
from contextvars import copy_context
from dataclasses import dataclass, replace
from functools import partial
from random import Random

from durabill.schemas.errors import FencedError
from durabill.stream_processors.worker.effect_order import ignore_step
from tests.sim.audit import Auditor
from tests.sim.broker import Broker
from tests.sim.faults import Faults, Plan, draw_plan
from tests.sim.group import Group
from tests.sim.host import SimWorker, draw_crash_step
from tests.sim.loop import HOST, Host, Killed, SimLoop, Stuck
from tests.sim.tables import small_blocks
from tests.sim.traffic import OPEN_S_MAX, Clients, Sending

STEPS_MAX = 200_000
CALM_S = 90.0
STOPPING_S = 60.0
WATCH_S = 1.0
TARGETS = (
    "", "", "changelog", "totals", "commit transaction", "commit offsets", "open writer",
    "side output", "read changelog", "fetch", "join", "leave",
)  # fmt: skip


@dataclass(slots=True)
class Doom:
    """What befalls a worker at its n-th request of some kind."""

    target: str
    left: int
    befall: Callable[[SimWorker], None]


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a history ended."""

    plan: Plan
    problems: list[str]
    trace: list[str]
    steps: int


class History:
    """Runs the history of a plan."""

    def __init__(self, plan: Plan, *, trace: bool = False) -> None:
        self._plan = plan
        self._faults = plan.faults
        self._dice = Random(plan.seed + 1)
        self._loop = SimLoop()  # type: ignore[abstract]  # all that nobody here calls
        self._broker = Broker(self._loop, plan, self._dice)
        self._group = Group(self._broker, plan.partitions)
        self._auditor = Auditor(plan, self._broker)
        self._workers: dict[int, SimWorker] = {}
        self._lives = 0
        self._dooms: dict[Host, list[Doom]] = {}
        self._calm = self._over = False
        self._night = (0.0, 0.0)
        self._trace: list[str] | None = [] if trace else None
        for log in self._broker.segments:
            log.on_visible = self._auditor.on_append
        self._broker.on_commit = self._auditor.on_commit
        self._broker.on_request = self._on_request
        self._group.on_move = self._auditor.on_move
        if trace:
            self._broker.trace = self._note

    def run(self) -> Verdict:
        """Run it to its end."""
        problems = self._auditor.problems
        with small_blocks(self._plan.columns):
            try:
                self._loop.run(self._main(), STEPS_MAX)
            except Stuck as error:
                problems.append(f"stuck: {error}")
        problems += [f"nobody caught {error!r}" for error in self._loop.errors]
        return Verdict(self._plan, problems, self._trace or [], self._loop.steps)

    def _note(self, what: str) -> None:
        if self._trace is not None:
            self._trace.append(f"{self._loop.time():9.3f} {what}")

    async def _main(self) -> None:
        plan, loop, broker = self._plan, self._loop, self._broker
        sendings = Clients(plan, self._dice).sendings()
        for sending in sendings:
            loop.call_at(sending.at_s, self._send, sending)
        for slot in range(plan.workers):
            loop.call_at(self._dice.random() * 2.0, self._launch, slot)
        if plan.gap_s and self._dice.random() < self._faults.night:
            falls_s = plan.traffic_s / 2 + self._dice.uniform(-2.0, 3.0)
            self._night = (falls_s, falls_s + plan.gap_s + self._dice.uniform(-3.0, 5.0))
            loop.call_at(falls_s, self._end_all)
        self._watch()
        last_s = max((each.at_s for each in sendings), default=0.0)
        await broker.sleep(
            max(plan.traffic_s + plan.gap_s, last_s, self._night[1]) + 3.0 + OPEN_S_MAX
        )
        self._be_calm()
        until_s = loop.time() + CALM_S
        while not self._is_settled() and loop.time() < until_s:
            await self._broker.sleep(WATCH_S)
        if not self._is_settled():
            self._auditor.problems.append(f"not settled {CALM_S:.0f} s after the last fault")
        await self._stop_all()
        self._auditor.check_end(self._group.offsets)

    def _send(self, sending: Sending) -> None:
        """Have what a client sends reach the brokers."""
        broker, partition = self._broker, sending.partition
        is_open = sending.open_s is not None
        batch = broker.append_segments(partition, sending.entries, is_open=is_open)
        if sending.open_s is not None:
            end = partial(broker.end_transaction, partition, batch, is_aborted=sending.aborted)
            self._loop.call_later(sending.open_s, end)

    def _change_leader(self, partition: int) -> None:
        """Have another broker lead a partition; clients send what was not acknowledged again."""
        lost = self._broker.change_leader(partition, keeps=self._dice.random() < 0.5)
        self._note(f"{partition} has another leader, {len(lost)} batches are lost")
        for batch in lost:
            again = Sending(0.0, partition, batch.entries)
            if batch.entries[0][0] is not None:  # clock marks are sent again by who waits for them
                self._loop.call_later(self._dice.uniform(0.1, 2.0), self._send, again)

    # -- workers ------------------------------------------------------------------------------

    def _launch(self, slot: int) -> None:
        if self._over:
            return
        if self._night[0] <= self._loop.time() < self._night[1]:
            self._loop.call_at(self._night[1] + self._dice.random(), self._launch, slot)
            return
        self._lives += 1
        name = f"w{slot}.{self._lives}"
        worker = SimWorker(name, self._plan, self._broker, self._group, self._dice, self._on_death)
        self._workers[slot] = worker
        if not self._calm:
            self._doom(worker)
        self._note(f"{name} begins")
        context = copy_context()
        context.run(HOST.set, worker)
        context.run(worker.start)

    def _doom(self, worker: SimWorker) -> None:
        """Draw what is to befall a worker in this life."""
        dice, faults, dooms = self._dice, self._faults, self._dooms.setdefault(worker, [])
        for ratio, befall in (
            (faults.crash, self._crash),
            (faults.freeze, self._freeze),
            (faults.cut_off, self._cut_off),
        ):
            if dice.random() < ratio:
                target = dice.choice(TARGETS)
                times = dice.randint(1, 8) if target not in ("", "fetch") else dice.randint(1, 150)
                dooms.append(Doom(target, times, befall))
        if dice.random() < faults.crash_step:
            worker.crash_after(*draw_crash_step(dice))
        if dice.random() < faults.stop:
            self._loop.call_later(dice.uniform(1.0, 15.0), self._stop, worker)
        if dice.random() < faults.worker_clock:
            self._jump(worker)

    def _on_request(self, host: Host, what: str) -> None:
        for doom in self._dooms.get(host, ()):
            if what.startswith(doom.target):
                doom.left -= 1
                if doom.left == 0:
                    assert isinstance(host, SimWorker)
                    self._befall(doom, host)

    def _befall(self, doom: Doom, worker: SimWorker) -> None:
        """Let it happen: before the request is out, or somewhere until after its answer."""
        if self._dice.random() < 0.3:
            doom.befall(worker)
            if worker.dead:
                raise Killed
            return
        self._outside(self._dice.random() * 0.08, doom.befall, worker)

    def _outside(self, delay_s: float, action: Callable[..., None], worker: SimWorker) -> None:
        context = copy_context()
        context.run(HOST.set, None)
        self._loop.call_later(delay_s, action, worker, context=context)

    def _crash(self, worker: SimWorker) -> None:
        if not worker.dead and not self._calm:
            worker.end(None)

    def _end_all(self) -> None:
        """Have the night fall."""
        self._note("night falls")
        for worker in list(self._workers.values()):
            self._crash(worker)

    def _freeze(self, worker: SimWorker) -> None:
        if worker.dead or self._calm:
            return
        for_s = self._dice.choice((1.0, 5.0, 12.0, 30.0))
        self._note(f"{worker.name} freezes for {for_s} s")
        worker.frozen = True
        self._outside(for_s, self._thaw, worker)

    def _thaw(self, worker: SimWorker) -> None:
        if worker.frozen:
            self._note(f"{worker.name} goes on")
            self._loop.thaw(worker)

    def _cut_off(self, worker: SimWorker) -> None:
        if worker.dead or self._calm:
            return
        for_s = self._dice.choice((1.0, 5.0, 12.0))
        self._note(f"{worker.name} is cut off for {for_s} s")
        self._broker.cut_off_until_s[worker] = self._loop.time() + for_s

    def _stop(self, worker: SimWorker) -> None:
        if not worker.dead and not worker.processor.stopping and not self._calm:
            self._begin_stop(worker)

    def _begin_stop(self, worker: SimWorker) -> None:
        self._note(f"{worker.name} is told to stop")
        context = copy_context()
        context.run(HOST.set, worker)
        context.run(worker.spawn_stop)

    def _on_death(self, worker: SimWorker, error: BaseException | None) -> None:
        how = "stops" if worker.left else "dies"
        how += f" at {worker.killed_at}" if worker.killed_at else ""
        self._note(f"{worker.name} {how}{f': {error!r}' if error else ''}")
        if error is not None and not isinstance(error, FencedError):
            self._auditor.problems.append(f"{worker.name} died of {error!r}")
        slot = next(each for each, now in self._workers.items() if now is worker)
        self._outside(self._dice.uniform(0.1, 2.0), lambda _: self._launch(slot), worker)

    # -- the world ----------------------------------------------------------------------------

    def _watch(self) -> None:
        """Let pass what takes time, and let happen what happens to all."""
        dice, faults, broker = self._dice, self._faults, self._broker
        self._group.expire()
        for coordinator in broker.coordinators:
            coordinator.expire()
        if not self._calm:
            if dice.random() < faults.outage * 0.3:
                for_s = dice.choice((0.5, 3.0, 10.0))
                broker.down_until_s = self._loop.time() + for_s
                self._note(f"no broker answers for {for_s} s")
            for partition in range(self._plan.partitions):
                if dice.random() < faults.stall * 0.3:
                    for_s = dice.choice((1.0, 4.0, 9.0))
                    broker.stalled_until_s[partition] = self._loop.time() + for_s
                    self._note(f"a follower of {partition} stalls for {for_s} s")
                if dice.random() < faults.leader * 0.3:
                    self._change_leader(partition)
            if dice.random() < faults.broker_clock * 0.2:
                partition = dice.randrange(self._plan.partitions)
                broker.skew_ms[partition] = dice.choice((-1000, -500, 0, 0, 700, 2500))
                self._note(f"clock of {partition}: {broker.skew_ms[partition]} ms")
            for worker in self._workers.values():
                if dice.random() < faults.worker_clock * 0.2:
                    self._jump(worker)
        self._loop.call_later(WATCH_S, self._watch)

    def _jump(self, worker: SimWorker) -> None:
        worker.skew_ms = self._dice.choice((-36_000_000, -6000, 0, 900, 5000, 36_000_000))
        self._note(f"clock of {worker.name}: {worker.skew_ms} ms")

    def _be_calm(self) -> None:
        self._note("calm")
        self._calm = True
        self._dooms.clear()
        broker = self._broker
        broker.down_until_s = 0.0
        broker.slow = broker.gave_up = 0.0
        broker.stalled_until_s = [0.0] * self._plan.partitions
        broker.cut_off_until_s.clear()
        for worker in self._workers.values():
            worker.skew_ms = 0
            worker.on_step = ignore_step
            self._thaw(worker)

    def _is_settled(self) -> bool:
        """Tell whether all that will ever be sent has been taken in and settled."""
        alive = [worker for worker in self._workers.values() if not worker.dead]
        owned = sum(len(worker.processor.tasks) for worker in alive)
        is_silent = not self._broker.appends_on_the_way
        return (
            is_silent
            and owned == self._plan.partitions
            and all(
                worker.processor.is_assigned
                and self._group.has(worker, worker.processor.tasks)
                and worker.has_published()
                and all(
                    task.next_offset == self._broker.segments[partition].log_end
                    and task.table.oldest_deadline_ms() is None
                    for partition, task in worker.processor.tasks.items()
                )
                for worker in alive
            )
        )

    async def _stop_all(self) -> None:
        for worker in self._workers.values():
            for task in worker.processor.tasks.values():
                if task.published and not worker.dead:
                    self._auditor.problems.append(f"published, but not repeated: {task.published}")
        self._over = True
        for worker in self._workers.values():
            if not worker.dead and not worker.processor.stopping:
                self._begin_stop(worker)
        until_s = self._loop.time() + STOPPING_S
        coordinators = self._broker.coordinators
        while not all(each.dead for each in self._workers.values()) or not all(
            each.is_quiet() for each in coordinators
        ):
            if self._loop.time() > until_s:
                self._auditor.problems.append("a worker doesn't stop")
                return
            await self._broker.sleep(WATCH_S)


def run_seed(seed: int, *, trace: bool = False, without: tuple[str, ...] = ()) -> Verdict:
    """Run the history of a seed, with some of its faults left out."""
    plan = draw_plan(seed)
    if without:
        plan = replace(plan, faults=replace(plan.faults, **dict.fromkeys(without, 0.0)))
    return History(plan, trace=trace).run()


__all__ = ["Faults", "History", "Verdict", "run_seed"]
