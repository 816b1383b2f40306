"""When a silent partition gets a clock mark, with a clock by hand."""

import pytest

from durabill.stream_processors.worker.clock import (
    REFRESH_S,
    RETRY_S,
    SILENCE_S,
    SPACING_S,
    BrokerClock,
)

BROKER_MS = 1_700_000_000_000


@pytest.fixture
def clock() -> BrokerClock:
    """A clock that was told at second 100 of ours."""
    made = BrokerClock()
    made.note_asked()
    made.note_told(BROKER_MS, 100.0)
    return made


def test_nothing_is_known_at_first() -> None:
    clock = BrokerClock()
    assert clock.guess_ms(5.0) == 0
    assert clock.is_mark_due(BROKER_MS + 10**9, 5.0)


def test_one_mark_at_a_time() -> None:
    clock = BrokerClock()
    clock.note_asked()
    assert not clock.is_mark_due(BROKER_MS, 10_000.0)


@pytest.mark.parametrize(("after_s", "is_due"), [(4.999, False), (5.0, True), (6.0, True)])
def test_at_the_deadline(clock: BrokerClock, after_s: float, is_due: bool) -> None:
    assert clock.is_mark_due(BROKER_MS + 5000, 100.0 + after_s) is is_due


def test_a_mark_that_passes_the_deadline_is_enough(clock: BrokerClock) -> None:
    assert not clock.is_mark_due(BROKER_MS, 100.0 + REFRESH_S)
    assert clock.is_mark_due(BROKER_MS + 1, 100.0 + SPACING_S)


def test_not_more_often_than_its_spacing(clock: BrokerClock) -> None:
    assert not clock.is_mark_due(BROKER_MS + 1, 100.0 + SPACING_S - 0.01)


def test_one_that_could_not_be_written(clock: BrokerClock) -> None:
    clock.note_asked()
    clock.note_told(None, 110.0)
    assert not clock.is_mark_due(BROKER_MS + 1, 110.0 + RETRY_S - 0.01)
    assert clock.is_mark_due(BROKER_MS + 1, 110.0 + RETRY_S)


def test_a_leader_whose_clock_is_behind_is_waited_for(clock: BrokerClock) -> None:
    clock.note_asked()
    clock.note_told(BROKER_MS + 2000, 105.0)  # three seconds behind the one before
    assert not clock.is_mark_due(BROKER_MS + 5000, 107.9)
    assert clock.is_mark_due(BROKER_MS + 5000, 108.0)


def test_a_leader_whose_clock_is_ahead_is_found_out_in_time(clock: BrokerClock) -> None:
    due_ms = BROKER_MS + 10**9
    assert not clock.is_mark_due(due_ms, 100.0 + REFRESH_S)
    assert clock.is_mark_due(due_ms, 100.01 + REFRESH_S)


def test_old_records_tell_nothing_new(clock: BrokerClock) -> None:
    clock.note_folded(BROKER_MS - 10**9, 103.0)
    assert clock.guess_ms(103.0) == BROKER_MS + 3000


def test_records_that_are_ahead_of_the_guess_correct_it(clock: BrokerClock) -> None:
    clock.note_folded(BROKER_MS + 4000, 103.0)
    assert clock.guess_ms(104.0) == BROKER_MS + 5000


def test_records_that_flow_need_no_mark(clock: BrokerClock) -> None:
    for at in range(100):
        clock.note_folded(BROKER_MS + 10 * at, 100.0 + 0.01 * at)
    assert not clock.is_mark_due(BROKER_MS + 1, 100.98 + SILENCE_S)
    assert clock.is_mark_due(BROKER_MS + 1, 101.0 + SILENCE_S)


def test_records_that_move_no_time_put_no_mark_off(clock: BrokerClock) -> None:
    """Aborted ones, and those of a leader whose clock is behind: the deadline needs a mark."""
    for at in range(100):
        clock.note_folded(BROKER_MS, 100.0 + 0.01 * at)
    assert clock.is_mark_due(BROKER_MS + 900, 101.0)


def test_the_first_mark_is_not_written_while_records_flow() -> None:
    clock = BrokerClock()
    clock.note_folded(BROKER_MS, 100.0)
    assert not clock.is_mark_due(BROKER_MS + 1, 100.1)
    assert clock.is_mark_due(BROKER_MS + 10**9, 100.0 + SILENCE_S)
