"""A "what if" against naive oracles: its duration rules, and a history under another policy."""

import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain

from hypothesis import given, settings
from hypothesis import strategies as st

from durabill.schemas import OrderTotal, decode_total
from durabill.stream_processors.audit.bills import Bill, Difference
from durabill.stream_processors.audit.replay import Engine, LogPart, PartitionTerms
from durabill.stream_processors.audit.what_if import compare_partition
from durabill.stream_processors.core.intervals import IntervalSet
from durabill.stream_processors.core.order import Policy
from durabill.stream_processors.core.what_if import (
    DurationRules,
    PolicyChange,
    WhatIf,
    bridge,
    round_up,
)
from durabill.stream_processors.engine.table import Total
from tests.property.histories import chunk_of, histories
from tests.property.oracle import Entry, Times, answer

PIECES = st.lists(st.tuples(st.integers(0, 120), st.integers(1, 15)), max_size=8)
RULES = st.builds(
    DurationRules,
    bridge_gaps_ms=st.integers(0, 20),
    minimum_duration_ms=st.integers(0, 150),
    round_up_to_ms=st.integers(1, 40),
)


def union_of(pieces: list[tuple[int, int]]) -> list[tuple[int, int]]:
    return list(IntervalSet((start, start + length) for start, length in pieces))


def bridged_naively(milliseconds: set[int], gap_max_ms: int) -> set[int]:
    """Every run of absent milliseconds between two present ones that is short enough is filled."""
    filled = set(milliseconds)
    for first in range(min(milliseconds, default=0), max(milliseconds, default=0)):
        run = []
        for each in range(first, max(milliseconds)):
            if each in milliseconds:
                break
            run.append(each)
        if first - 1 in milliseconds and 0 < len(run) <= gap_max_ms:
            filled.update(run)
    return filled


@given(PIECES, st.integers(0, 20))
def test_bridging_fills_the_short_gaps(pieces: list[tuple[int, int]], gap_max_ms: int) -> None:
    present = {each for start, length in pieces for each in range(start, start + length)}
    found_ms = bridge(union_of(pieces), gap_max_ms)
    assert found_ms == len(bridged_naively(present, gap_max_ms))


@given(st.integers(0, 10_000), st.integers(1, 400))
def test_rounding_takes_whole_steps_only(duration_ms: int, step_ms: int) -> None:
    counted_ms = 0
    while counted_ms < duration_ms:
        counted_ms += step_ms
    assert round_up(duration_ms, step_ms) == counted_ms


@given(PIECES, RULES)
def test_the_rules_come_one_after_the_other(
    pieces: list[tuple[int, int]], rules: DurationRules
) -> None:
    present = {each for start, length in pieces for each in range(start, start + length)}
    expected_ms = len(bridged_naively(present, rules.bridge_gaps_ms))
    if expected_ms < rules.minimum_duration_ms:
        expected_ms = rules.minimum_duration_ms
    while expected_ms % rules.round_up_to_ms:
        expected_ms += 1
    assert rules.billed_ms(union_of(pieces)) == expected_ms


@given(PIECES)
def test_without_rules_the_proven_time_is_billed(pieces: list[tuple[int, int]]) -> None:
    union = union_of(pieces)
    proven_ms = sum(end - start for start, end in union)
    assert DurationRules().billed_ms(union) == proven_ms


@given(PIECES, RULES)
def test_rules_never_take_time_away(pieces: list[tuple[int, int]], rules: DurationRules) -> None:
    union = union_of(pieces)
    assert rules.billed_ms(union) >= sum(end - start for start, end in union)


# -- a whole partition under another policy -----------------------------------------------------

POLICIES = st.builds(
    Policy,
    settle_grace_ms=st.sampled_from([0, 3, 5, 12]),
    idle_timeout_ms=st.sampled_from([4, 9, 30]),
    correction_window_ms=st.sampled_from([0, 20, 60, 200]),
    interim_interval_ms=st.sampled_from([0, 6, 15]),
)


@dataclass
class ListedLog:
    """A log in memory, given out in chunks that end at some of its records."""

    log: list[Entry]
    cuts: list[int]
    partition: int = 0

    @property
    def first_offset(self) -> int:
        return 0

    @property
    def end_offset(self) -> int:
        return self.log[-1].offset + 1

    def parts(self) -> Iterator[LogPart]:
        edges = sorted({0, *(each for each in self.cuts if each < len(self.log)), len(self.log)})
        first = 0
        for start, end in itertools.pairwise(edges):
            yield LogPart(chunk_of(self.log[start:end], first), end - start)
            first = self.log[end - 1].offset + 1


def totals_of(log: list[Entry], policy: Policy) -> dict[str, list[OrderTotal]]:
    """Return every total that the log gives once all timers have fired, by the naive oracle."""
    times = Times(
        *(policy.settle_grace_ms, policy.idle_timeout_ms, policy.correction_window_ms),
        policy.interim_interval_ms,
    )
    return answer(log, times).totals


def bills_of(
    log: list[Entry], policy: Policy, rules: DurationRules
) -> dict[str, tuple[int, str, int]]:
    """Work out what each order comes to, its last status, and its last revision by then."""
    end_ms = max(each.append_ms for each in log)
    bills = {}
    for order, totals in totals_of(log, policy).items():
        following = [*totals[1:], None]
        last_of_lives = [
            each
            for each, after in zip(totals, following, strict=True)
            if after is None or after.revision == 1
        ]
        last_life = totals[-totals[-1].revision :]
        last = totals[-1]
        status = "RUNNING" if last.settled_at_ms > end_ms else last.status.value
        billed_ms = sum(rules.billed_ms(each.intervals) for each in last_of_lives)
        bills[order] = billed_ms, status, sum(each.settled_at_ms <= end_ms for each in last_life)
    return bills


def gist(bill: Bill | None) -> tuple[int, str, int] | None:
    return (bill.billed_ms, bill.status.value, bill.revision) if bill else None


@given(histories(), st.lists(st.integers(1, 29), max_size=4), POLICIES, POLICIES, RULES)
def test_another_policy_bills_what_the_oracle_bills_by_it(
    log: list[Entry], cuts: list[int], old: Policy, new: Policy, rules: DurationRules
) -> None:
    change = PolicyChange(
        *(new.settle_grace_ms, new.idle_timeout_ms, new.correction_window_ms),
        new.interim_interval_ms,
    )
    found: list[Difference] = []
    totals: list[Total] = []
    terms = PartitionTerms.of_policy(old)
    compared = compare_partition(
        *(ListedLog(log, cuts), terms, 1, WhatIf(change, rules)),
        engine=Engine.REFERENCE,
        top=1_000,
        on_difference=found.append,
        on_totals=totals.extend,
    )
    before, after = bills_of(log, old, DurationRules()), bills_of(log, new, rules)
    assert {each.service_order_number: (gist(each.old), gist(each.new)) for each in found} == {
        order: (before.get(order), after.get(order)) for order in {**before, **after}
    }
    assert compared.summary.old_ms == sum(billed_ms for billed_ms, *_ in before.values())
    assert compared.summary.new_ms == sum(billed_ms for billed_ms, *_ in after.values())
    assert compared.summary.orders == len(found)
    biggest = sorted((each for each in found if each.is_changed), key=lambda each: each.rank)
    assert compared.biggest == biggest
    end_ms = max(each.append_ms for each in log)
    expected = chain.from_iterable(totals_of(log, new).values())
    assert Counter(decode_total(each.value) for each in totals) == Counter(
        each for each in expected if each.settled_at_ms <= end_ms
    )


@given(histories(), POLICIES, RULES)
def test_duration_rules_alone_leave_the_totals_as_they_are(
    log: list[Entry], policy: Policy, rules: DurationRules
) -> None:
    found: list[Difference] = []
    terms = PartitionTerms.of_policy(policy)
    compare_partition(
        *(ListedLog(log, []), terms, 1, WhatIf(PolicyChange(), rules)),
        engine=Engine.REFERENCE,
        on_difference=found.append,
    )
    for each in found:
        assert each.old is not None
        assert each.new == replace(each.old, billed_ms=each.new_ms)
    assert {each.service_order_number: each.new_ms for each in found} == {
        order: billed_ms for order, (billed_ms, *_) in bills_of(log, policy, rules).items()
    }


@settings(max_examples=25)
@given(histories(), POLICIES, POLICIES, RULES)
def test_both_engines_compare_alike(
    log: list[Entry], old: Policy, new: Policy, rules: DurationRules
) -> None:
    what_if = WhatIf(PolicyChange(new.settle_grace_ms, new.idle_timeout_ms), rules)
    terms = PartitionTerms.of_policy(replace(old, interim_interval_ms=0))
    columns, reference = (
        compare_partition(ListedLog(log, []), terms, 1, what_if, engine=each) for each in Engine
    )
    assert columns == reference
