"""The time that clients are told goes evenly, and says when it doesn't."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from durabill.producers.gateway.broker_clock import BrokerClock
from durabill.producers.gateway.served_clock import SLEW_PPM, STEP_MS, ServedClock


class Machine:
    """Its clocks, moved by hand, and what it has learned of the broker's."""

    def __init__(self, wall_ms: int = 1_800_000_000_000) -> None:
        self.wall_ms = float(wall_ms)
        self.tick_ms = 5_000.0
        self.broker = BrokerClock(lambda: int(self.wall_ms * 1e6), lambda: int(self.tick_ms * 1e6))
        self.clock = ServedClock(self.broker, lambda: int(self.tick_ms * 1e6), lambda n: b"a" * n)

    def passes(self, span_ms: float) -> None:
        self.wall_ms += span_ms
        self.tick_ms += span_ms

    def learns(self, ahead_ms: int) -> None:
        """That the broker's clock is so far ahead of the wall clock, exactly."""
        tick_ms = self.broker.tick_ms()
        self.broker.learn(tick_ms, tick_ms, int(self.wall_ms) + ahead_ms)


def test_it_begins_with_the_machines_time() -> None:
    machine = Machine()
    assert abs(machine.clock.stamp_ms() - machine.wall_ms) < 1
    assert machine.clock.now_ms() == int(machine.clock.stamp_ms())


@given(st.lists(st.tuples(st.floats(0, 20_000), st.integers(-200, 200)), max_size=30))
def test_it_never_goes_back_and_its_scale_is_even(steps: list[tuple[float, int]]) -> None:
    machine = Machine()
    machine.learns(0)
    told_ms, clock_id = machine.clock.stamp_ms(), machine.clock.clock_id
    for span_ms, ahead_ms in steps:
        machine.passes(span_ms)
        machine.learns(ahead_ms)
        later_ms = machine.clock.stamp_ms()
        allowed_ms = span_ms * SLEW_PPM / 1_000_000 + 0.01
        assert abs(later_ms - told_ms - span_ms) <= allowed_ms
        told_ms = later_ms
    assert machine.clock.clock_id == clock_id


def test_it_comes_to_the_brokers_time_slowly() -> None:
    machine = Machine()
    machine.learns(0)
    machine.clock.stamp_ms()
    machine.learns(100)
    for _ in range(110):
        machine.passes(10_000)
        machine.learns(100)
        machine.clock.stamp_ms()
    assert abs(machine.clock.stamp_ms() - machine.wall_ms - 100) < 2


def test_a_step_is_told_by_another_clock_id() -> None:
    machine = Machine()
    ids = [machine.clock.clock_id]
    for ahead_ms in (int(STEP_MS) + 10, 0, 3_600_000, -3_600_000):
        machine.passes(1_000)
        machine.learns(ahead_ms)
        assert abs(machine.clock.stamp_ms() - machine.wall_ms - ahead_ms) < 2
        ids.append(machine.clock.clock_id)
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("ahead_ms", [-300, 12, 300])
def test_what_was_told_before_the_first_acknowledgement_is_another_scale(ahead_ms: int) -> None:
    """Else the scale would come to the broker's slowly, and an order would be billed by it."""
    machine = Machine()
    came = machine.clock.came()
    machine.passes(20)
    machine.learns(ahead_ms)
    received_ms, sent_ms, clock_id = machine.clock.stamps(came)
    assert clock_id != came.clock_id
    assert abs(sent_ms - machine.wall_ms - ahead_ms) < 1
    assert abs(sent_ms - received_ms - 20) < 1


def test_setting_the_wall_clock_is_no_step_once_the_broker_is_known() -> None:
    machine = Machine()
    machine.learns(0)
    machine.clock.stamp_ms()
    before, told_ms = machine.clock.clock_id, machine.clock.stamp_ms()
    machine.wall_ms += 7_200_000
    assert (machine.clock.clock_id, machine.clock.stamp_ms()) == (before, told_ms)


def test_each_process_has_ids_of_its_own() -> None:
    machine = Machine()
    other = ServedClock(machine.broker, lambda: 0, lambda n: b"b" * n)
    assert machine.clock.clock_id.partition(".")[0] != other.clock_id.partition(".")[0]
