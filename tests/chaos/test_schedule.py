"""The schedule is a function of the seed, has every fault, and never asks for the impossible."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import takewhile

import pytest

from tests.chaos.schedule import (
    LONG,
    OF_BROKER,
    OF_CLUSTER,
    OF_PROXY,
    PROXIED,
    SESSION_S,
    WORKERS_FIRST,
    WORKERS_MAX,
    WORKERS_MIN,
    Form,
    Kind,
    Planner,
    Step,
    long_kinds,
    short_cluster_schedule,
    short_schedule,
)

SEEDS = range(1, 60)


ALONE = replace(LONG, kinds=long_kinds(1))


def rounds(seed: int, count: int, form: Form = LONG) -> list[Step]:
    """The steps of the first rounds of a seed's schedule."""
    steps = takewhile(lambda pair: pair[0] < count, Planner(seed, form).steps())
    return [step for _, step in steps]


def kinds(steps: Sequence[Step]) -> set[Kind]:
    return {fault.kind for step in steps for fault in step.faults}


def test_the_same_seed_gives_the_same_schedule() -> None:
    assert rounds(7, 3) == rounds(7, 3)
    assert rounds(7, 1) != rounds(8, 1)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_round_has_every_kind_of_fault(seed: int) -> None:
    assert kinds(rounds(seed, 1)) == set(Kind)
    assert kinds(rounds(seed, 1, ALONE)) == set(Kind) - OF_CLUSTER
    without = replace(LONG, kinds=long_kinds(3, frozenset({Kind.CLOCK_OFF})))
    assert kinds(rounds(seed, 1, without)) == set(Kind) - {Kind.CLOCK_OFF}


@pytest.mark.parametrize("seed", SEEDS)
def test_never_two_faults_of_brokers_at_once(seed: int) -> None:
    for step in rounds(seed, 4):
        assert sum(fault.kind in OF_BROKER for fault in step.faults) <= 1


@pytest.mark.parametrize("seed", SEEDS)
def test_clocks_are_hours_off_in_both_directions(seed: int) -> None:
    off_s = [f.clock_off_s for s in rounds(seed, 12) for f in s.faults if f.kind is Kind.CLOCK_OFF]
    assert all(3_600 <= abs(each) <= 24 * 3_600 for each in off_s)
    assert min(off_s) < 0 < max(off_s)
    others = [f for s in rounds(seed, 4) for f in s.faults if f.kind is not Kind.CLOCK_OFF]
    assert not any(each.clock_off_s for each in others)


@pytest.mark.parametrize("seed", SEEDS)
def test_workers_are_there_when_they_are_meant(seed: int) -> None:
    workers = set(WORKERS_FIRST)
    for step in rounds(seed, 4):
        targets = [fault.target for fault in step.faults]
        assert len(targets) == len(set(targets)), "two faults at once on one target"
        for fault in step.faults:
            if fault.kind is Kind.ADD_WORKER:
                assert fault.target not in workers
                workers.add(fault.target)
            elif fault.target.startswith("worker"):
                assert fault.target in workers
            if fault.kind in (Kind.REMOVE_WORKER, Kind.DROP_WORKER):
                assert fault.target not in PROXIED
                workers.remove(fault.target)
        assert WORKERS_MIN <= len(workers) <= WORKERS_MAX


@pytest.mark.parametrize("seed", SEEDS)
def test_somebody_is_left_to_take_over_from_a_frozen_worker(seed: int) -> None:
    for step in rounds(seed, 4):
        mine = kinds([step])
        if mine & {Kind.FREEZE_WORKER, Kind.DROP_WORKER, Kind.REMOVE_WORKER, *OF_PROXY}:
            assert Kind.KILL_WORKER not in mine or len(mine) == 1
        for fault in step.faults:
            assert fault.kind is not Kind.FREEZE_WORKER or fault.hold_s > SESSION_S


def test_the_short_form_freezes_beyond_the_session_and_restarts_both_servers() -> None:
    steps = short_schedule()
    assert {Kind.FREEZE_WORKER, Kind.KILL_BROKER, Kind.KILL_POSTGRES} <= kinds(steps)
    frozen = [f for s in steps for f in s.faults if f.kind is Kind.FREEZE_WORKER]
    assert all(each.hold_s > SESSION_S for each in frozen)


def test_the_short_form_on_three_brokers_shows_what_one_cannot() -> None:
    steps = short_cluster_schedule()
    assert kinds(steps) == {Kind.FREEZE_FOLLOWER, Kind.KILL_GROUP_COORDINATOR, Kind.CLOCK_OFF}
