"""Answers that were hours on their way, and clocks that nobody has confirmed yet."""

import pytest

from durabill.producers.sdk.server_clock import VAGUE_US, ServerClock, ServerStamps
from durabill.producers.sdk.session import Session
from durabill.producers.sdk.suspends import Clocks
from durabill.producers.sdk.timekeeper import SLEPT_ERROR_US, Timekeeper

MS, S = 1_000, 1_000_000
MINUTE, HOUR, DAY = 60 * S, 3_600 * S, 86_400 * S
SERVER_MS = 1_770_000_000_000


def stamps_at(true_us: int, clock_id: str = "a") -> ServerStamps:
    stamp_ms = SERVER_MS + true_us / 1_000
    return ServerStamps(stamp_ms, stamp_ms, clock_id)


def off_us(clock: ServerClock, true_us: int) -> int:
    return clock.at(true_us)[0] - SERVER_MS * MS - true_us


class Machine:
    """Its clocks show true time, but where the test has them err, stand or jump."""

    def __init__(self) -> None:
        self.true_us = self.counting_us = self.running_us = 100 * S

    def clocks(self) -> Clocks:
        return Clocks(lambda: self.counting_us * 1_000, lambda: self.running_us * 1_000)

    def run(self, for_us: int) -> None:
        self.true_us += for_us
        self.counting_us += for_us
        self.running_us += for_us

    def sleep(self, for_us: int, *, lost_us: int = 0) -> None:
        self.true_us += for_us
        self.counting_us += for_us - lost_us

    def now(self, clock_id: str = "a") -> ServerStamps:
        return stamps_at(self.true_us, clock_id)

    def hear(self, keeper: Timekeeper, clock_id: str = "a") -> None:
        """An answer without delay."""
        keeper.learn(keeper.tick_us(), self.now(clock_id))

    def off_ms(self, keeper: Timekeeper) -> float:
        return keeper.read().now_ms - SERVER_MS - self.true_us / 1_000


def test_a_time_that_the_caller_gave_goes_on_through_late_first_answers() -> None:
    """Found by a simulator: a request was under way when the machine was suspended for hours."""
    machine = Machine()
    keeper = Timekeeper(machine.clocks(), suspends="count")
    session = Session("SO1", SERVER_MS, 60_000, keeper.read(), own_time=True)
    begun_us = machine.true_us
    asked_us, taken = keeper.tick_us(), machine.now()
    machine.run(S)
    machine.sleep(3 * HOUR)
    keeper.learn(asked_us, taken)  # so the server is ahead by 0 to 3 h
    late = session.report(keeper.read())
    machine.hear(keeper)
    good = session.report(keeper.read())
    true_ms = SERVER_MS + (machine.true_us - begun_us) // MS
    assert true_ms - 61_000 <= [*late, *good][-1].end_ms <= true_ms + 1_000
    assert session.bound_ms(keeper.read()) < 8 * HOUR // MS


@pytest.mark.parametrize("clock_id", ["a", "b"])
def test_a_late_answer_tells_nothing_to_who_knows_better(clock_id: str) -> None:
    """Not of another server either: how far apart the two are can't be known from it."""
    clock = ServerClock(0)
    clock.learn(0, 10 * MS, stamps_at(5 * MS))
    later_us = 2 * HOUR
    clock.learn(later_us, later_us + 10 * MS, stamps_at(later_us + 5 * MS))
    before = clock.at(later_us + 10 * MS), clock.doubt_us
    clock.learn(10 * MS, later_us + 10 * MS, stamps_at(later_us, clock_id))
    assert (clock.at(later_us + 10 * MS), clock.doubt_us) == before


def test_of_late_answers_alone_the_time_is_known_within_its_bound_and_never_too_late() -> None:
    clock = ServerClock(0)
    for at_us in range(0, 10 * HOUR, HOUR):
        clock.learn(at_us, at_us + 2 * HOUR, stamps_at(at_us + HOUR // 2))
        told_us, bound_us = clock.at(at_us + 2 * HOUR)
        assert abs(told_us - SERVER_MS * MS - at_us - 2 * HOUR) <= bound_us <= 2 * HOUR
        assert off_us(clock, at_us + 2 * HOUR) <= VAGUE_US
    jumped_us = clock.jumped_us
    clock.learn(20 * HOUR, 20 * HOUR + MS, stamps_at(20 * HOUR, "b"))
    told_us, bound_us = clock.at(20 * HOUR + MS)
    assert bound_us < 10 * MS
    assert clock.jumped_us != jumped_us  # what the caller's own times don't follow


@pytest.mark.parametrize("year_ms", [0, 4_200_000_000_000])
def test_a_server_that_does_not_know_the_year_says_nothing(year_ms: int) -> None:
    """One whose machine has lost its clock, and whose Kafka is away, tells of 1970."""
    clock = ServerClock(0)
    insane = ServerStamps(year_ms, year_ms, "b")
    assert clock.learn(0, MS, insane) is None
    assert not clock.is_known
    clock.learn(0, MS, stamps_at(0))
    before = clock.at(S), clock.doubt_us
    assert clock.learn(0, MS, insane) is None
    assert (clock.at(S), clock.doubt_us) == before


def test_an_answer_that_spans_a_suspend_is_as_unsure_as_the_clock_after_it() -> None:
    """Some machines' clocks know whole seconds after a suspend."""
    machine = Machine()
    keeper = Timekeeper(machine.clocks())
    asked_us, taken = keeper.tick_us(), machine.now()
    machine.sleep(20 * S, lost_us=SLEPT_ERROR_US - 10 * MS)
    sent = machine.now()
    keeper.learn(asked_us, ServerStamps(taken.received_ms, sent.sent_ms, "a"))
    assert keeper.is_known
    assert abs(machine.off_ms(keeper)) <= keeper.read().bound_ms
    machine.hear(keeper)
    assert abs(machine.off_ms(keeper)) <= 20
    assert keeper.read().bound_ms <= 20


def test_an_absence_is_within_the_bound_until_a_server_has_confirmed_it() -> None:
    """Nobody knows whether the clock has jumped, or the process stood still."""
    machine = Machine()
    keeper = Timekeeper(lambda: machine.counting_us * 1_000, absent_us=60 * S)
    machine.hear(keeper)
    session = Session("SO1", SERVER_MS, 10_000, keeper.read())
    machine.counting_us += HOUR
    session.end(keeper.read())
    assert session.state.clock_bound_ms >= HOUR // MS - 10
    machine.counting_us -= HOUR  # the same again, but true
    keeper = Timekeeper(lambda: machine.counting_us * 1_000, absent_us=60 * S)
    machine.hear(keeper)
    machine.run(HOUR)
    assert keeper.read().bound_ms >= HOUR // MS
    assert keeper.should_ask()
    machine.hear(keeper)
    assert keeper.read().bound_ms <= 20


def test_a_suspend_while_servers_are_away_for_long_is_measured_by_the_machine() -> None:
    """They know it worse by then: what drifted for a month isn't how long the machine slept."""
    machine = Machine()
    keeper = Timekeeper(machine.clocks())
    machine.hear(keeper)
    for _ in range(30):
        machine.counting_us += 40 * S  # the crystal is fast by 463 ppm
        machine.running_us += 40 * S
        machine.run(DAY)
        keeper.read()
    machine.sleep(HOUR)
    keeper.read()
    machine.hear(keeper)
    assert abs(keeper.read().paused_ms - HOUR // MS) <= SLEPT_ERROR_US // MS


def test_servers_that_come_and_go_put_no_more_in_doubt_than_any_two_can_be_apart() -> None:
    """Else a bill by the hundredth process of a gateway would be as good as none."""
    machine = Machine()
    keeper = Timekeeper(lambda: machine.true_us * 1_000)
    machine.hear(keeper, "0")
    session = Session("SO1", SERVER_MS + machine.true_us // MS, 60_000, keeper.read())
    for each in range(1, 300):
        asked_us = keeper.tick_us()
        machine.run(S)
        keeper.learn(asked_us, machine.now(str(each)))
        machine.run(MINUTE)
        session.report(keeper.read())
    assert session.state.clock_bound_ms < 4_000


@pytest.mark.parametrize("fast_ppm", [500, -500])
def test_a_time_that_the_caller_gave_goes_on_through_what_is_learned_of_the_days_before(
    fast_ppm: int,
) -> None:
    """Found by a simulator: nobody was heard for days, and then an order began by a given time."""
    machine = Machine()
    keeper = Timekeeper(lambda: machine.true_us * 1_000 + machine.true_us * fast_ppm // 1_000)
    machine.hear(keeper)
    machine.run(4 * DAY)
    session = Session("SO1", SERVER_MS, 60_000, keeper.read(), own_time=True)
    machine.run(HOUR)
    machine.hear(keeper)
    segments = session.report(keeper.read())
    machine.run(HOUR)
    machine.hear(keeper)
    segments += session.end(keeper.read())
    billed_ms = sum(each.end_ms - each.start_ms for each in segments)
    assert abs(billed_ms - 2 * HOUR // MS) <= 2_000  # 500 ppm of an hour
    assert session.state.clock_bound_ms >= 2_000
