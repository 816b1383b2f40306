"""Simulated clients with bad clocks on bad networks: is what is billed within the stated bound?

python -m tests.sim.metering      prints the table of docs/time.md

The client's own code (`Timekeeper`, `Session`) runs in a world whose true time only the simulation
knows. A service has begun when the server said go, or when its answer arrived: what is billed may
be off by more than the stated bound from neither. And no segment may reach a server whose time it
is ahead of by more than the contract allows, or begin before the server's timestamp.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from random import Random

from durabill.producers.sdk.server_clock import VAGUE_US, ServerStamps
from durabill.producers.sdk.session import Session
from durabill.producers.sdk.suspends import Clocks, SuspendPolicy
from durabill.producers.sdk.timekeeper import ClockNotice, Timekeeper
from durabill.schemas import SegmentEvent
from durabill.schemas.limits import FUTURE_TOLERANCE_MS

MS, S = 1_000, 1_000_000
MINUTE, HOUR, DAY = 60 * S, 3_600 * S, 86_400 * S
EPOCH_US = 1_770_000_000 * S
TIMEOUT_US = 15 * S


@dataclass(frozen=True)
class Span:
    """Of true time in us, half-open."""

    from_us: int
    until_us: int

    def overlap_us(self, from_us: int, until_us: int) -> int:
        return max(0, min(self.until_us, until_us) - max(self.from_us, from_us))


@dataclass(frozen=True)
class Gateway:
    """A server whose clock is ahead by `ahead_us`, and by more from each of `steps` on."""

    clock_id: str = "a"
    ahead_us: int = 0
    steps: tuple[tuple[int, int], ...] = ()
    """(from which instant on, by how much)"""
    tells_steps: bool = False
    """Each step gives the clock another id, as those of our gateways do."""

    def id_at(self, true_us: int) -> str:
        steps = sum(from_us <= true_us for from_us, _ in self.steps)
        return f"{self.clock_id}.{steps}" if self.tells_steps else self.clock_id

    def now_us(self, true_us: int) -> int:
        stepped_us = sum(by_us for from_us, by_us in self.steps if from_us <= true_us)
        return EPOCH_US + true_us + self.ahead_us + stepped_us


@dataclass(frozen=True)
class Scenario:
    """A client, its network and its servers. Times are true time in us from its start on."""

    name: str
    lasts_us: int = 10 * HOUR
    interval_us: int = 10 * MINUTE
    drift_ppm: int = 0
    ways_us: tuple[int, int] = (20 * MS, 20 * MS)
    """The longest that a request, and an answer, are under way."""
    lost: float = 0.0
    """The share of answers that never come."""
    gateways: tuple[Gateway, ...] = (Gateway(),)
    switches: tuple[int, ...] = ()
    """When the next gateway takes over; without any, each exchange is with one of them by chance"""
    sleeps: tuple[Span, ...] = ()
    sees_suspends: bool = True
    suspends: SuspendPolicy = SuspendPolicy.EXCLUDE
    offline: tuple[Span, ...] = ()
    dead: tuple[Span, ...] = ()
    """When the client's process is dead; it counts the gap."""
    rounds: bool = False
    """The servers say whole ms."""


@dataclass
class Outcome:
    """What was billed, and what should have been."""

    billed_us: int = 0
    errors_us: tuple[int, int] = (0, 0)
    bound_ms: int = 0
    segments: list[SegmentEvent] = field(default_factory=list)
    in_the_future: int = 0
    before_the_opening: int = 0
    notices: list[ClockNotice] = field(default_factory=list)
    clock_wrong_us: int = 0
    """By how much the told time was outside of its bound of any gateway just heard."""

    @property
    def error_ms(self) -> float:
        """The larger of the errors, by either definition of the start."""
        return max(abs(each) for each in self.errors_us) / 1000


class World:
    """True time, and what clocks and networks make of it."""

    def __init__(self, scenario: Scenario, dice: Random) -> None:
        self.scenario = scenario
        self._dice = dice
        self.true_us = 0

    def clocks(self) -> Clocks:
        if self.scenario.sees_suspends:
            return Clocks(lambda: self._ticks_ns(0), lambda: self._ticks_ns(self._slept_us()))
        return Clocks(lambda: self._ticks_ns(self._slept_us()))

    def go_to(self, true_us: int) -> None:
        """Let time pass; while the machine sleeps, nothing is done."""
        self.true_us = max(self.true_us, true_us)
        for sleep in self.scenario.sleeps:
            if sleep.from_us <= self.true_us < sleep.until_us:
                self.true_us = sleep.until_us

    def exchange(self) -> tuple[Gateway, int, ServerStamps | None]:
        """Ask a server: which took it, when (-1: none), and its answer, if it comes."""
        gateway = self._gateway()
        if any(span.overlap_us(self.true_us, self.true_us + 1) for span in self.scenario.offline):
            self.go_to(self.true_us + TIMEOUT_US)
            return gateway, -1, None
        self.go_to(self.true_us + self._dice.randint(0, self.scenario.ways_us[0]))
        taken_us = self.true_us
        self.go_to(self.true_us + self._dice.randint(0, 3 * MS))
        done_us = self.true_us
        stamps = [gateway.now_us(each) for each in (taken_us, done_us)]
        if self._dice.random() < self.scenario.lost:
            self.go_to(self.true_us + TIMEOUT_US)
            return gateway, taken_us, None
        self.go_to(self.true_us + self._dice.randint(0, self.scenario.ways_us[1]))
        whole_us = MS if self.scenario.rounds else 1
        received_ms, sent_ms = (each // whole_us * whole_us / 1000 for each in stamps)
        if stamps[1] - stamps[0] != done_us - taken_us:  # set while it answered: not even that
            return gateway, taken_us, None
        return gateway, taken_us, ServerStamps(received_ms, sent_ms, gateway.id_at(done_us))

    def _gateway(self) -> Gateway:
        gateways = self.scenario.gateways
        if self.scenario.switches:
            return gateways[sum(at_us <= self.true_us for at_us in self.scenario.switches)]
        return self._dice.choice(gateways)

    def slept_us(self, from_us: int, until_us: int) -> int:
        """Return for how long the machine has slept between two instants."""
        return sum(each.overlap_us(from_us, until_us) for each in self.scenario.sleeps)

    def _slept_us(self) -> int:
        return self.slept_us(0, self.true_us)

    def _ticks_ns(self, without_us: int) -> int:
        shown_us = self.true_us - without_us
        return (17 * S + shown_us) * 1_000 + shown_us * self.scenario.drift_ppm // 1_000


class Meter:
    """One service, metered from its start to its end."""

    def __init__(self, scenario: Scenario, seed: int) -> None:
        self._scenario = scenario
        self._world = World(scenario, Random(seed))
        self._outcome = Outcome()
        self._waiting: list[SegmentEvent] = []
        self._heard: dict[str, tuple[Gateway, int]] = {}
        self._keeper = self._new_keeper()
        self._stored_us = 0
        self._gaps: list[tuple[int, int]] = []  # counted, whether the machine slept or not

    def run(self) -> Outcome:
        """Return what was billed, and how far it is off."""
        world, scenario, outcome = self._world, self._scenario, self._outcome
        self._ask_time()
        opened_us, session = self._start()
        begun_us = self._stored_us = world.true_us
        end_us = begun_us + scenario.lasts_us
        dead = list(scenario.dead)
        while True:
            reading = self._keeper.read()
            self._check_clock(reading.now_ms, reading.bound_ms)
            wait_us = max(session.due_at() - reading.now_ms, 1) * MS
            if dead and world.true_us + wait_us >= dead[0].from_us:
                world.go_to(dead.pop(0).until_us)
                session = self._restart(session)
                continue
            if world.true_us + wait_us >= end_us:
                break
            world.go_to(world.true_us + wait_us)
            if segments := session.report(self._keeper.read()):
                self._stored_us = world.true_us
                self._upload(segments)
            if self._keeper.should_ask():
                self._upload([])
        world.go_to(max(end_us, world.true_us))
        ended_us = world.true_us  # what is asked from here on takes its time, too
        self._upload(session.end(self._keeper.read()))
        outcome.bound_ms = session.state.clock_bound_ms
        outcome.billed_us = sum(each.end_ms - each.start_ms for each in outcome.segments) * MS
        for at, from_us in enumerate((opened_us, begun_us)):
            true_us = ended_us - from_us
            if scenario.suspends is SuspendPolicy.EXCLUDE:
                true_us -= world.slept_us(from_us, ended_us)
                true_us += sum(world.slept_us(*gap) for gap in self._gaps)
            errors = list(outcome.errors_us)
            errors[at] = outcome.billed_us - true_us
            outcome.errors_us = (errors[0], errors[1])
        return outcome

    def _new_keeper(self) -> Timekeeper:
        return Timekeeper(
            self._world.clocks(),
            suspends=self._scenario.suspends,
            tell=self._outcome.notices.append,
        )

    def _start(self) -> tuple[int, Session]:
        opened_us, stamp_ms, asked = -1, 0, self._keeper.read()
        while True:  # the server gives the same answer as often as it is asked
            asked_us = self._keeper.tick_us()
            gateway, taken_us, stamps = self._world.exchange()
            if opened_us < 0 <= taken_us:
                opened_us, stamp_ms = taken_us, gateway.now_us(taken_us) // MS
            if stamps is not None:
                self._learn(gateway, asked_us, stamps)
                break
        self._stamp_ms = stamp_ms
        interval_ms = self._scenario.interval_us // MS
        reading = self._keeper.read()
        return opened_us, Session("SO1", stamp_ms, interval_ms, reading, asked=asked)

    def _restart(self, session: Session) -> Session:
        self._keeper = self._new_keeper()
        self._heard = {}
        self._ask_time()
        self._gaps.append((self._stored_us, self._world.true_us))
        self._stored_us = self._world.true_us
        return Session.resume(session.state, self._keeper.read(), count_gap=True)

    def _ask_time(self) -> None:
        while not self._keeper.is_known:
            asked_us = self._keeper.tick_us()
            gateway, _, stamps = self._world.exchange()
            self._learn(gateway, asked_us, stamps)

    def _learn(self, gateway: Gateway, asked_us: int, stamps: ServerStamps | None) -> None:
        is_vague = self._keeper.tick_us() - asked_us > VAGUE_US - 3 * S  # it slept meanwhile
        self._keeper.learn(asked_us, stamps)
        if stamps is not None and not is_vague:
            self._heard[gateway.clock_id] = gateway, self._world.true_us

    def _upload(self, segments: list[SegmentEvent]) -> None:
        self._outcome.segments += segments
        self._waiting += segments
        asked_us = self._keeper.tick_us()
        gateway, taken_us, stamps = self._world.exchange()
        if taken_us >= 0:
            latest_ms = gateway.now_us(taken_us) // MS + FUTURE_TOLERANCE_MS
            self._outcome.in_the_future += sum(each.end_ms > latest_ms for each in self._waiting)
            starts_ms = [each.start_ms for each in self._waiting]
            self._outcome.before_the_opening += sum(each < self._stamp_ms for each in starts_ms)
        if stamps is not None:
            self._waiting = []
        self._learn(gateway, asked_us, stamps)

    def _check_clock(self, now_ms: int, bound_ms: int) -> None:
        for gateway, heard_us in self._heard.values():
            if self._world.true_us - heard_us < MINUTE:
                wrong_us = abs(now_ms * MS - gateway.now_us(self._world.true_us)) - bound_ms * MS
                self._outcome.clock_wrong_us = max(self._outcome.clock_wrong_us, wrong_us)


NIGHTS = tuple(Span(day * DAY + 14 * HOUR, day * DAY + 22 * HOUR) for day in range(5))
TWO = (Gateway("a"), Gateway("b", 300 * MS))
MANY = tuple(Gateway(f"{each}", 5 * MS * (each % 2)) for each in range(32))
MONTH = 30 * DAY
COUNT = SuspendPolicy.COUNT

SCENARIOS = (
    Scenario("crystal right, ten hours, a report every ten seconds", interval_us=10 * S),
    Scenario("crystal 50 ppm fast, a month", MONTH, drift_ppm=50),
    Scenario("crystal 50 ppm slow, a month", MONTH, drift_ppm=-50),
    Scenario("crystal 500 ppm fast, a month", MONTH, drift_ppm=500),
    Scenario("crystal 500 ppm slow, a month", MONTH, drift_ppm=-500),
    Scenario("requests take up to 2 s, answers no time", ways_us=(2 * S, 0)),
    Scenario("answers take up to 2 s, requests no time", ways_us=(0, 2 * S)),
    Scenario("the gateway says whole ms, and one instant of time", DAY, rounds=True),
    Scenario("half of the answers are lost", DAY, 30 * S, lost=0.5),
    Scenario("two gateways, 300 ms apart, by chance", DAY, 30 * S, gateways=TWO),
    Scenario("two gateways, 300 ms apart, the one goes", DAY, gateways=TWO, switches=(9 * HOUR,)),
    Scenario("32 gateways, 5 ms apart, by chance", DAY, 30 * S, gateways=MANY),
    Scenario(
        "offline for three days, 500 ppm fast",
        5 * DAY,
        drift_ppm=500,
        offline=(Span(DAY, 4 * DAY),),
    ),
    Scenario(
        "offline for three days, then another gateway, 500 ppm slow",
        5 * DAY,
        drift_ppm=-500,
        offline=(Span(DAY, 4 * DAY),),
        gateways=TWO,
        switches=(2 * DAY,),
    ),
    Scenario(
        "ends while offline for three days, 500 ppm fast",
        4 * DAY,
        drift_ppm=500,
        offline=(Span(DAY, 5 * DAY),),
    ),
    Scenario("asleep at night, not counted", 5 * DAY, drift_ppm=50, sleeps=NIGHTS),
    Scenario("asleep at night, counted", 5 * DAY, drift_ppm=50, sleeps=NIGHTS, suspends=COUNT),
    Scenario(
        "asleep for an hour, unseen, not counted",
        sleeps=(Span(HOUR, 2 * HOUR),),
        sees_suspends=False,
    ),
    Scenario(
        "asleep for an hour, unseen, counted",
        sleeps=(Span(HOUR, 2 * HOUR),),
        sees_suspends=False,
        suspends=COUNT,
    ),
    Scenario(
        "the server's clock is set forward by two hours",
        gateways=(Gateway("a", steps=((5 * HOUR, 2 * HOUR),)),),
    ),
    Scenario(
        "the server's clock is set back by two hours, counted",
        gateways=(Gateway("a", steps=((5 * HOUR, -2 * HOUR),)),),
        suspends=COUNT,
    ),
    Scenario(
        "killed for an hour, gap counted, answers take up to 2 s",
        ways_us=(0, 2 * S),
        dead=(Span(4 * HOUR, 5 * HOUR),),
    ),
    Scenario(
        "all at once, a month, 500 ppm fast",
        MONTH,
        drift_ppm=500,
        ways_us=(2 * S, 50 * MS),
        lost=0.2,
        gateways=TWO,
        sleeps=NIGHTS,
        offline=(Span(10 * DAY, 13 * DAY),),
        dead=(Span(20 * DAY, 20 * DAY + HOUR),),
    ),
)


def table(outcomes: Mapping[Scenario, Outcome]) -> str:
    """Return the table, in Markdown: what each client was billed wrong, and what it said."""
    head = ["| client | billed, h | error, ms | stated bound, ms |", "|---|---|---|---|"]
    return "\n".join(head + [row_of(*each) for each in outcomes.items()])


def row_of(scenario: Scenario, outcome: Outcome) -> str:
    """Return a client's row."""
    billed_h = outcome.billed_us / HOUR
    return f"| {scenario.name} | {billed_h:,.3f} | {outcome.error_ms:,.0f} | {outcome.bound_ms:,} |"


if __name__ == "__main__":
    print(table({scenario: Meter(scenario, 1).run() for scenario in SCENARIOS}))
