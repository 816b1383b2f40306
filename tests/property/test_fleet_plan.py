"""The fleet: its oracle against two others, its plan against itself, its garbage."""

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from durabill.producers.fleet.garbage import KINDS, garbage
from durabill.producers.fleet.plan import Fault, Faults, FleetPlan, Send, in_publishing_order
from durabill.producers.fleet.truth import LogRecord, LogTruth, judge, read_log
from durabill.producers.fleet.truth_order import Policy
from durabill.schemas import (
    BadRecord,
    OrderTotal,
    Reason,
    WriterSchemas,
    decode_segment,
    decode_total,
    partition_for,
)
from durabill.stream_processors.core.order import Policy as CorePolicy
from durabill.stream_processors.engine.batch import Chunk
from durabill.stream_processors.engine.plain import PlainTable
from durabill.stream_processors.engine.table import Effects, Place
from tests.property.batches import encode_batch
from tests.property.histories import TIMES, histories, value_of
from tests.property.oracle import Entry, answer

NOW_MS = 1_800_000_000_000
PARTITIONS = 4
POLICY = Policy(settle_grace_ms=3_000, idle_timeout_ms=8_000)
WINDOW_MS = POLICY.correction_window_ms


def plan_of(faults: Faults, seed: int = 1, orders: int = 30, mean: int = 20) -> FleetPlan:
    return FleetPlan(seed=seed, orders=orders, segments_per_order=mean, faults=faults)


def sends_of(plan: FleetPlan) -> list[Send]:
    return in_publishing_order(plan.order_plans(random.Random, NOW_MS, PARTITIONS))


def log_of(sends: Iterable[Send], pause_ms: int = 10_000) -> list[LogRecord]:
    """The log of a broker that takes ten records a ms."""
    offsets: Counter[int] = Counter()
    log = []
    for count, send in enumerate(sends):
        place = send.partition
        if place is None:
            place = partition_for(send.key or b"", PARTITIONS)
        append_ms = NOW_MS + count // 10 + (send.wave - 1) * pause_ms
        log.append(LogRecord(place, offsets[place], append_ms, send.key, send.value, ()))
        offsets[place] += 1
    return log


# -- the oracle ---------------------------------------------------------------------------


@settings(max_examples=300)
@given(histories())
def test_truth_equals_sets_of_milliseconds(log: list[Entry]) -> None:
    policy = Policy(
        settle_grace_ms=TIMES.grace_ms,
        idle_timeout_ms=TIMES.idle_ms,
        correction_window_ms=TIMES.window_ms,
        interim_interval_ms=TIMES.interim_ms,
    )
    records = [LogRecord(0, e.offset, e.append_ms, e.key, value_of(e), ()) for e in log]
    truth = read_log(records, policy, partitions=1, pieces_max=TIMES.pieces_max)
    expected = answer(log, TIMES)
    assert truth.totals == expected.totals
    found = [(letter.offset, letter.reason.value) for letter in truth.dead_letters]
    assert found == expected.dead_letters


def chunk_of(records: Sequence[LogRecord]) -> Chunk:
    data = b"".join(
        encode_batch(r.offset, r.append_ms, [(r.offset, (r.key, r.value, r.headers))])
        for r in records
    )
    return Chunk(0, records[-1].offset + 1, data)


def with_copies(log: list[LogRecord], found: list[Effects]) -> list[LogRecord]:
    """The log and, at its end, the records that the tables sent on."""
    sizes = Counter(record.partition for record in log)
    last_ms = max(record.append_ms for record in log)
    copies = []
    for forward in (forward for effects in found for forward in effects.forwards):
        place, record = forward.partition, forward.record
        copy = LogRecord(
            place, sizes[place], last_ms + 1, record.key, record.value, tuple(forward.headers)
        )
        copies.append(copy)
        sizes[place] += 1
    return log + copies


def fold(log: list[LogRecord]) -> list[Effects]:
    core = CorePolicy(POLICY.settle_grace_ms, POLICY.idle_timeout_ms, WINDOW_MS)
    found = []
    for partition in range(PARTITIONS):
        table = PlainTable(Place(partition, PARTITIONS), core, WriterSchemas())
        found.append(table.fold(chunk_of([r for r in log if r.partition == partition])))
        found.append(table.tick(NOW_MS * 2))
    return found


@pytest.mark.parametrize("seed", range(3))
def test_core_comes_to_the_fleets_truth(seed: int) -> None:
    log = log_of(sends_of(plan_of(Faults.everything(), seed, orders=60, mean=40)))
    first = fold(log)
    log = with_copies(log, first)
    found = fold(log)
    truth = read_log(log, POLICY, PARTITIONS)
    totals: dict[str, list[OrderTotal]] = {}
    for total in (decode_total(each.value) for effects in found for each in effects.totals):
        totals.setdefault(total.service_order_number, []).append(total)
    assert totals == truth.totals
    assert truth.sent_on
    assert truth.sent_on == truth.forwarded
    reasons = Counter(letter.reason for effects in found for letter in effects.dead_letters)
    assert reasons == Counter(letter.reason for letter in truth.dead_letters)


# -- the plan -----------------------------------------------------------------------------


def test_same_seed_gives_the_same_plan() -> None:
    plan = plan_of(Faults.everything())
    first = plan.order_plans(random.Random, NOW_MS, PARTITIONS)
    assert first == plan.order_plans(random.Random, NOW_MS, PARTITIONS)
    assert first != plan_of(Faults.everything(), 2).order_plans(random.Random, NOW_MS, PARTITIONS)


@given(st.integers(0, 10**9), st.integers(1, 9), st.integers(1, 12))
def test_size_is_exact_and_times_are_recent(seed: int, orders: int, mean: int) -> None:
    plan = plan_of(Faults.everything(), seed, orders, mean)
    planned = plan.order_plans(random.Random, NOW_MS, PARTITIONS)
    cut = sum(order.segments for order in planned)
    assert len(planned) == orders
    assert orders * mean <= cut <= orders * (mean + 2)  # numbers after the end come on top
    for send in in_publishing_order(planned):
        assert (send.segment is None) == (send.expected is not None)
        if send.segment is not None:
            assert NOW_MS - plan.window_ms < send.segment.end_ms <= NOW_MS
            assert decode_segment(send.value) == send.segment


def test_without_faults_every_order_is_complete_and_sent_once() -> None:
    planned = plan_of(Faults.none()).order_plans(random.Random, NOW_MS, PARTITIONS)
    sends = in_publishing_order(planned)
    assert len(sends) == 30 * 20
    assert {send.wave for send in sends} == {1}
    assert all(send.fault is None and send.partition is None for send in sends)
    assert all(order.faults == frozenset() for order in planned)
    truth = read_log(log_of(sends), POLICY, PARTITIONS)
    for order in planned:
        (total,) = truth.totals[order.number]
        assert total.duration_ms == order.end_ms - order.start_ms
        assert (total.status.value, total.duplicates, total.overlap_ms) == ("COMPLETE", 0, 0)


@pytest.mark.parametrize("fault", Fault)
def test_each_fault_is_there_when_on_and_alone(fault: Fault) -> None:
    faults = Faults(**{fault.value: 0.2})
    planned = plan_of(faults).order_plans(random.Random, NOW_MS, PARTITIONS)
    assert set().union(*(order.faults for order in planned)) == {fault}


def test_faults_of_the_demo_are_all_on() -> None:
    plan = plan_of(Faults.everything(), orders=400, mean=30)
    planned = plan.order_plans(random.Random, NOW_MS, PARTITIONS)
    assert set().union(*(order.faults for order in planned)) == set(Fault)


def only(fault: Fault) -> tuple[list[Send], LogTruth]:
    """The sends with one fault on, and their truth."""
    sends = sends_of(plan_of(Faults(**{fault.value: 0.3})))
    return sends, read_log(log_of(sends), POLICY, PARTITIONS)


def statuses(truth: LogTruth) -> Counter[tuple[str, ...]]:
    return Counter(tuple(t.status.value for t in totals) for totals in truth.totals.values())


def test_late_segments_make_a_second_revision() -> None:
    _, truth = only(Fault.LATE)
    assert statuses(truth)["INCOMPLETE", "COMPLETE"] > 5


def test_clients_that_return_were_abandoned_before() -> None:
    _, truth = only(Fault.DIE_AND_RETURN)
    assert statuses(truth)["ABANDONED", "COMPLETE"] > 3


def test_lost_segments_leave_incomplete_or_abandoned_orders() -> None:
    sends, truth = only(Fault.LOST)
    assert len(sends) < 30 * 20
    assert statuses(truth).keys() <= {("INCOMPLETE",), ("ABANDONED",), ("COMPLETE",)}
    assert statuses(truth)[("INCOMPLETE",)] > 5


def test_clients_that_never_end_are_abandoned() -> None:
    _, truth = only(Fault.NEVER_END)
    assert statuses(truth)[("ABANDONED",)] > 3


def test_numbers_after_the_end_are_counted() -> None:
    _, truth = only(Fault.AFTER_END)
    assert any(totals[-1].numbers_after_end for totals in truth.totals.values())


def test_steps_of_the_wall_clock_show_only_in_timestamps() -> None:
    sends, _ = only(Fault.STEP)
    behind_ms = {send.segment.end_ms - send.client_clock_ms for send in sends if send.segment}
    assert behind_ms == {0, 3_600_000}


def test_reordered_numbers_come_out_of_order_with_the_same_result() -> None:
    sends, truth = only(Fault.REORDER)
    last: dict[str, int] = {}
    swapped = 0
    for send in sends:
        assert send.segment is not None
        number = send.segment.business_data_number
        swapped += number < last.get(send.order_number, 0)
        last[send.order_number] = number
    assert swapped > 10
    assert statuses(truth) == {("COMPLETE",): 30}


@pytest.mark.parametrize(
    "fault", [Fault.REPEAT, Fault.BURST_REPEAT, Fault.OVERLAP, Fault.GARBAGE, Fault.STEP]
)
def test_faults_that_must_not_cost_a_millisecond(fault: Fault) -> None:
    sends, truth = only(fault)
    duration_ms = {number: totals[-1].duration_ms for number, totals in truth.totals.items()}
    planned = plan_of(Faults(**{fault.value: 0.3})).order_plans(random.Random, NOW_MS, PARTITIONS)
    for order in planned:
        started_ms = min(s.segment.start_ms for s in order.sends if s.segment is not None)
        assert duration_ms[order.number] == order.end_ms - started_ms
    assert {send.fault for send in sends} <= {None, fault}


def test_orders_are_interleaved() -> None:
    sends = sends_of(plan_of(Faults.none()))
    neighbours = pairwise(sends)
    assert sum(a.order_number == b.order_number for a, b in neighbours) < len(sends) / 4


def test_plan_and_truth_come_to_the_same_end() -> None:
    plan = plan_of(Faults.everything(), orders=100)
    planned = plan.order_plans(random.Random, NOW_MS, partitions=1)
    log = [
        r._replace(partition=0, offset=i)
        for i, r in enumerate(log_of(in_publishing_order(planned)))
    ]
    truth = read_log(log, POLICY, partitions=1)
    for order in planned:
        intended = order.intended()
        assert (intended is None) == (order.number not in truth.totals)
        if intended is not None:
            last = truth.totals[order.number][-1]
            assert tuple(getattr(last, name) for name in intended._fields) == intended


def test_impossible_fleets_are_refused() -> None:
    with pytest.raises(ValueError, match="reaches back"):
        FleetPlan(seed=1, orders=1, segments_per_order=5_000)
    with pytest.raises(ValueError, match="lost"):
        Faults(lost=1.5)


# -- garbage ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("order", ["SO1", "SO-1-110-Ünï 単/%", "x" * 60])
def test_garbage_gets_its_reason(kind: str, order: str) -> None:
    for seed in range(20):
        bad = garbage(random.Random(seed), order, NOW_MS, WINDOW_MS, kind)
        place = partition_for(bad.key or b"", PARTITIONS)
        record = LogRecord(place, 0, NOW_MS, bad.key, bad.value, ())
        for arrival_ms in (NOW_MS, NOW_MS + 12 * 3_600_000):
            assert judge(record, arrival_ms, POLICY, PARTITIONS) is bad.reason


@pytest.mark.parametrize("kind", KINDS)
def test_garbage_is_refused_by_the_schemas_for_the_same_reason(kind: str) -> None:
    bad = garbage(random.Random(kind), "SO1", NOW_MS, WINDOW_MS, kind)
    needs_key_or_clock = {
        Reason.KEY_MISMATCH,
        Reason.IN_THE_FUTURE,
        Reason.TOO_LONG,
        Reason.TOO_LATE,
    }
    if bad.reason in needs_key_or_clock:
        return
    with pytest.raises(BadRecord) as caught:
        decode_segment(bad.value)
    assert caught.value.reason is bad.reason


def test_every_reason_that_a_record_has_by_itself_has_garbage() -> None:
    drawn = {garbage(random.Random(s), "SO1", NOW_MS, WINDOW_MS).reason for s in range(300)}
    others = {Reason.WRONG_PARTITION, Reason.TOO_FRAGMENTED, Reason.BAD_BATCH}
    others |= {Reason.ALREADY_OPENED, Reason.NOT_OPENED, Reason.BEFORE_OPENING}
    assert drawn == set(Reason) - others
