"""Suspends by two clocks, and the timekeeper that makes one time of clocks and servers."""

import time

import pytest

from durabill.producers.sdk.server_clock import ServerStamps
from durabill.producers.sdk.suspends import (
    Clocks,
    SuspendMeter,
    SuspendPolicy,
    is_pair,
    system_clocks,
)
from durabill.producers.sdk.timekeeper import (
    ClockNotice,
    ClockSetBack,
    ClockStepped,
    MachineSlept,
    Timekeeper,
)

MS, S = 1_000, 1_000_000
SERVER_MS = 1_770_000_000_000


class Machine:
    """A machine whose clocks the test moves; `between_us` passes before each clock is read."""

    def __init__(self) -> None:
        self.counting_us = self.running_us = 100 * S
        self.between_us = 0
        self.reads = 0

    def run(self, for_us: int) -> None:
        self.counting_us += for_us
        self.running_us += for_us

    def sleep(self, for_us: int) -> None:
        self.counting_us += for_us

    def clocks(self) -> Clocks:
        return Clocks(
            lambda: self._read().counting_us * 1_000, lambda: self._read().running_us * 1_000
        )

    def _read(self) -> "Machine":
        self.reads += 1
        self.run(self.between_us)
        return self

    def now(self) -> ServerStamps:
        stamp_ms = SERVER_MS + self.counting_us / 1_000
        return ServerStamps(stamp_ms, stamp_ms, "a")


def test_this_systems_clocks_go_forwards_and_are_a_pair_on_linux() -> None:
    clocks = system_clocks()
    first_ns, second_ns = clocks.counting_ns(), clocks.counting_ns()
    assert first_ns <= second_ns
    assert (clocks.running_ns is None) == (not hasattr(time, "CLOCK_BOOTTIME"))


def test_clocks_that_can_not_be_a_pair_are_none() -> None:
    def raises() -> int:
        raise OSError("no such clock in this sandbox")

    assert not is_pair(Clocks(time.monotonic_ns))
    assert not is_pair(Clocks(raises, time.monotonic_ns))
    assert not is_pair(Clocks(lambda: 0, lambda: 1))  # it can't have counted more
    assert is_pair(Clocks(lambda: 1, lambda: 1))


def test_suspends_are_counted_and_measured() -> None:
    machine = Machine()
    meter = SuspendMeter(machine.clocks())
    machine.run(10 * S)
    assert meter.look() == (110 * S, 0)
    machine.sleep(3_600 * S)
    machine.run(5 * S)
    assert meter.look() == (3_715 * S, 3_600 * S)
    assert meter.look() == (3_715 * S, 0)
    machine.sleep(2 * S)
    assert meter.look()[1] == 2 * S
    assert meter.count == 2


def test_a_thread_that_is_held_up_between_two_clocks_is_no_suspend() -> None:
    machine = Machine()
    meter = SuspendMeter(machine.clocks())
    for machine.between_us in (700 * MS, 0, 90 * MS, 2 * S, 0):
        machine.run(S)
        assert meter.look()[1] == 0
    machine.sleep(S)
    assert meter.look()[1] == S


def test_one_clock_alone_sees_none() -> None:
    machine = Machine()
    meter = SuspendMeter(Clocks(machine.clocks().counting_ns))
    machine.sleep(S)
    assert meter.look() == (101 * S, 0)


def keeper_of(machine: Machine, policy: str = "exclude") -> tuple[Timekeeper, list[ClockNotice]]:
    notices: list[ClockNotice] = []
    keeper = Timekeeper(machine.clocks(), suspends=policy, tell=notices.append)
    keeper.learn(keeper.tick_us(), machine.now())
    return keeper, notices


def test_a_suspend_is_told_and_left_out_by_default() -> None:
    machine = Machine()
    keeper, notices = keeper_of(machine)
    before = keeper.read()
    machine.sleep(60 * S)
    after = keeper.read()
    (notice,) = notices
    assert isinstance(notice, MachineSlept)
    assert (notice.for_ms, "not counted" in str(notice)) == (60_000, True)
    assert (after.paused_ms - before.paused_ms, after.suspends) == (60_000, 1)
    assert abs(after.now_ms - before.now_ms - 60_000) <= after.bound_ms
    assert after.unsettled_ms >= 1_000
    assert keeper.should_ask()


def test_a_suspend_is_told_and_counted_where_it_is_to_be() -> None:
    machine = Machine()
    keeper, notices = keeper_of(machine, "count")
    machine.sleep(60 * S)
    after = keeper.read()
    assert "are counted" in str(notices)
    assert (after.paused_ms, after.unsettled_ms, after.suspends) == (0, 0, 1)


def test_a_server_says_how_long_the_machine_slept() -> None:
    """Its own clock was 900 ms wrong after that: by whole seconds, or by the cold."""
    machine = Machine()
    keeper, _ = keeper_of(machine)
    before = keeper.read()
    machine.sleep(60 * S)
    keeper.read()
    stamp_ms = SERVER_MS + (machine.counting_us + 900 * MS) / 1_000
    keeper.learn(keeper.tick_us(), ServerStamps(stamp_ms, stamp_ms, "a"))
    after = keeper.read()
    assert abs(after.paused_ms - 60_900) <= 5
    assert after.unsettled_ms == 0
    assert after.doubt_ms - before.doubt_ms <= 10


def test_an_exchange_from_before_the_sleep_settles_nothing() -> None:
    machine = Machine()
    keeper, _ = keeper_of(machine)
    asked_us = keeper.tick_us()
    machine.sleep(60 * S)
    keeper.learn(asked_us, machine.now())
    assert keeper.read().unsettled_ms > 0


def test_without_a_server_it_is_in_doubt_how_long_the_machine_slept() -> None:
    machine = Machine()
    keeper, _ = keeper_of(machine)
    before = keeper.read()
    machine.sleep(60 * S)
    unsettled_ms = keeper.read().unsettled_ms
    machine.run(61 * S)
    after = keeper.read()
    assert after.unsettled_ms == 0
    assert after.doubt_ms - before.doubt_ms >= unsettled_ms - 1


def test_two_sleeps_before_a_server_is_heard_are_settled_as_one() -> None:
    machine = Machine()
    keeper, _ = keeper_of(machine)
    for _ in range(2):
        machine.sleep(60 * S)
        keeper.read()
        machine.run(S)
    keeper.learn(keeper.tick_us(), machine.now())
    after = keeper.read()
    assert abs(after.paused_ms - 120_000) <= 5
    assert (after.unsettled_ms, after.suspends) == (0, 2)


@pytest.mark.parametrize("policy", SuspendPolicy)
def test_a_step_of_the_server_is_told(policy: SuspendPolicy) -> None:
    machine = Machine()
    keeper, notices = keeper_of(machine, policy)
    before = keeper.read()
    stamp_ms = SERVER_MS + machine.counting_us / 1_000 + 7_200_000
    keeper.learn(keeper.tick_us(), ServerStamps(stamp_ms, stamp_ms, "a"))
    after = keeper.read()
    (notice,) = notices
    assert isinstance(notice, ClockStepped)
    assert abs(notice.by_ms - 7_200_000) <= 5
    assert abs(after.now_ms - before.now_ms - 7_200_000) <= 5
    assert after.doubt_ms - before.doubt_ms >= 7_199_990
    skipped_ms = 7_200_000 if policy is SuspendPolicy.EXCLUDE else 0
    assert abs(after.skipped_ms - skipped_ms) <= 5


def test_the_first_answer_is_no_step_that_anybody_is_told_of() -> None:
    keeper, notices = keeper_of(Machine())
    assert notices == []
    assert keeper.read().skipped_ms == 0


def test_a_local_clock_that_is_set_back_has_stood_still() -> None:
    machine = Machine()
    keeper, notices = keeper_of(machine)
    before = keeper.read()
    machine.run(-3_600 * S)
    keeper.read()
    machine.run(5 * S)
    after = keeper.read()
    (notice,) = notices
    assert isinstance(notice, ClockSetBack)
    assert (notice.by_ms, after.local_ms - before.local_ms) == (3_600_000, 5_000)
    assert after.now_ms - before.now_ms == 5_000
    assert after.bound_ms - before.bound_ms >= 1_000  # for the time since the look before it


def test_a_local_clock_that_jumps_forwards_is_not_believed_before_a_server_was_heard() -> None:
    machine = Machine()
    keeper = Timekeeper(Clocks(machine.clocks().counting_ns), absent_us=60 * S)
    keeper.learn(keeper.tick_us(), machine.now())
    true = machine.now()
    machine.run(7_200 * S)
    assert keeper.read().unsettled_ms > 0
    assert keeper.should_ask()
    keeper.learn(keeper.tick_us(), true)
    after = keeper.read()
    assert after.unsettled_ms == 0
    assert abs(after.now_ms - true.sent_ms) <= after.bound_ms


def test_who_was_stopped_and_can_not_ask_waits_for_a_minute_only() -> None:
    machine = Machine()
    keeper = Timekeeper(machine.clocks(), absent_us=60 * S)
    keeper.learn(keeper.tick_us(), machine.now())
    machine.run(7_200 * S)
    assert keeper.read().unsettled_ms > 0
    for _ in range(61):
        machine.run(S)
        keeper.read()
    assert keeper.read().unsettled_ms == 0


def test_a_server_is_asked_where_its_time_is_known_badly_but_not_all_the_time() -> None:
    machine = Machine()
    keeper = Timekeeper(machine.clocks())
    assert keeper.bound_ms() is None
    assert keeper.should_ask()
    assert not keeper.should_ask()
    keeper.learn(keeper.tick_us(), machine.now())
    machine.run(60 * S)
    assert not keeper.should_ask()
    machine.run(3_600 * S)
    bound_ms = keeper.bound_ms()
    assert bound_ms is not None
    assert bound_ms > 1_000
    assert keeper.should_ask()
    assert not keeper.should_ask()
    machine.run(31 * S)
    assert keeper.should_ask()  # there was no answer


def test_a_policy_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="forget"):
        Timekeeper(suspends="forget")
