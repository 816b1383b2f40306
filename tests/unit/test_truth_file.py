"""The truth file, and the comparison with what really came."""

import random
from dataclasses import replace
from pathlib import Path

import pytest

from durabill.producers.fleet.plan import Faults, FleetPlan
from durabill.producers.fleet.truth import DeadLetter, LogRecord, read_log
from durabill.producers.fleet.truth_file import (
    compare,
    compare_dead_letters,
    read_truth,
    write_truth,
)
from durabill.producers.fleet.truth_order import Policy
from durabill.schemas import OrderTotal, Reason

NOW_MS = 1_800_000_000_000
LETTERS = [DeadLetter(Reason.NOT_AVRO, 0, 7), DeadLetter(Reason.TOO_LATE, 3, 9)]


class Run:
    def __init__(self, path: Path) -> None:
        self.path = path
        faults = Faults(late=0.2, lost=0.1)
        plan = FleetPlan(seed=1, orders=12, segments_per_order=8, faults=faults)
        orders = plan.order_plans(random.Random, NOW_MS, partitions=1)
        sends = sorted((send for each in orders for send in each.sends), key=lambda s: s.wave)
        log = [
            LogRecord(0, at, NOW_MS + 10**6 * send.wave, send.key, send.value, ())
            for at, send in enumerate(sends)
        ]
        truth = read_log(log, Policy(), partitions=1)
        self.totals = [total for each in truth.totals.values() for total in each]
        rows = ((order, truth.totals.get(order.number, [])) for order in orders)
        write_truth(path, {"order_prefix": plan.order_prefix}, rows, LETTERS)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path / "truth.jsonl")


def test_truth_is_for_its_owner_alone(run: Run) -> None:
    assert run.path.stat().st_mode & 0o777 == 0o600


def test_truth_agrees_with_itself_in_any_order(run: Run) -> None:
    found = compare(run.path, reversed(run.totals))
    assert found.exact
    assert found.expected == found.right == len(run.totals)
    assert max(total.revision for total in run.totals) > 1


@pytest.mark.parametrize("name", [n for n in OrderTotal.__slots__ if n != "service_order_number"])
def test_a_difference_in_any_field_is_found(run: Run, name: str) -> None:
    victim = next(total for total in run.totals if total.missing_numbers and total.upper_bound_ms)
    fake = object.__new__(OrderTotal)  # past the checks: the ledger may hold anything
    for each in OrderTotal.__slots__:
        object.__setattr__(fake, each, getattr(victim, each))
    values = {"revision": 99, "status": type(victim.status).COMPLETE, "end_number": 99}
    changed = values.get(name, {int: 1, str: "x", tuple: ()}.get(type(getattr(victim, name))))
    object.__setattr__(fake, name, changed)
    others = [total for total in run.totals if total is not victim]
    found = compare(run.path, [*others, fake])
    assert not found.exact
    if name == "revision":
        assert (found.wrong, found.missing, found.unexpected) == (0, 1, 1)
    else:
        assert (found.wrong, found.missing, found.unexpected) == (1, 0, 0)
        assert f"{name} is " in found.explain()
    assert found.right == found.expected - 1


def test_missing_and_foreign_and_repeated_totals(run: Run) -> None:
    foreign = replace(run.totals[0], service_order_number="other-1")
    found = compare(run.path, [*run.totals[:-1], run.totals[0], foreign])
    assert (found.missing, found.repeated, found.foreign) == (1, 1, 1)
    assert not found.exact
    assert "missing" in found.explain()


def test_two_different_totals_under_one_revision_are_wrong(run: Run) -> None:
    other = replace(run.totals[0], source_offset=10**6)
    for totals in ([*run.totals, other], [other, *run.totals]):
        found = compare(run.path, totals)
        assert (found.wrong, found.missing) == (1, 0)


def test_unknown_order_of_this_run_is_unexpected(run: Run) -> None:
    other = replace(run.totals[0], service_order_number="SO-1-99")
    assert compare(run.path, [*run.totals, other]).unexpected == 1


def test_dead_letters_are_compared_by_origin_and_reason(run: Run) -> None:
    assert compare_dead_letters(run.path, [*LETTERS, LETTERS[0]]).exact
    wrong = DeadLetter(Reason.TOO_LONG, 0, 7)
    extra = DeadLetter(Reason.NOT_AVRO, 1, 1)
    found = compare_dead_letters(run.path, [wrong, extra])
    assert (found.wrong, found.unexpected, found.missing) == (1, 1, 1)


def test_file_tells_what_was_intended(run: Run) -> None:
    lines = list(read_truth(run.path))
    assert [line["kind"] for line in lines] == ["run"] + ["order"] * 12 + ["dead_letter"] * 2
    for line in lines[1:13]:
        if line["totals"]:
            last = line["totals"][-1]
            assert {name: last[name] for name in line["intended"]} == line["intended"]
