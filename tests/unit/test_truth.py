"""The fleet's oracle against DESIGN's rules, one by one, and against its own parts."""

import hashlib
from dataclasses import replace
from typing import Any

import pytest

from durabill.producers.fleet.garbage import raw_segment
from durabill.producers.fleet.truth import LogRecord, judge, read_log
from durabill.producers.fleet.truth_order import Arrived, Policy, history, missing, union
from durabill.schemas import (
    Interval,
    NumberRange,
    OrderTotal,
    Reason,
    SegmentEvent,
    Status,
    encode_segment,
    partition_for,
)

POLICY = Policy(settle_grace_ms=30, idle_timeout_ms=300, correction_window_ms=100_000)
T0 = 1_000_000
PARTITIONS = 4
HOME = partition_for(b"SO1", PARTITIONS)

Row = tuple[int, int, int, int, bool]
"""Arrival, number, start, end, end identifier; times in ms since T0, the offset is the row's."""


def arrived(rows: list[Row]) -> list[Arrived]:
    return [
        Arrived(at, T0 + arrival, SegmentEvent("SO1", number, T0 + start, T0 + end, last))
        for at, (arrival, number, start, end, last) in enumerate(rows)
    ]


def totals_of(rows: list[Row], until: int | None = None) -> list[OrderTotal]:
    until_ms = None if until is None else T0 + until
    return history(arrived(rows), POLICY, partition=HOME, until_ms=until_ms)


def brief(rows: list[Row], until: int | None = None) -> list[tuple[int, str, int, int]]:
    """Revision, status, duration, settled at (relative to T0) of each total."""
    return [
        (total.revision, total.status.value, total.duration_ms, total.settled_at_ms - T0)
        for total in totals_of(rows, until)
    ]


def test_every_field_of_a_complete_total() -> None:
    (total,) = totals_of([(5, 2, 10, 20, True), (6, 1, 0, 12, False)])
    text = f"durabill-evidence-1\nSO1\n{T0}-{T0 + 20}\n1-2\n2\n"
    expected = OrderTotal(
        service_order_number="SO1",
        revision=1,
        status=Status.COMPLETE,
        duration_ms=20,
        upper_bound_ms=20,
        started_ms=T0,
        ended_ms=T0 + 20,
        intervals=(Interval(T0, T0 + 20),),
        end_number=2,
        missing_numbers=(),
        segments=2,
        duplicates=0,
        overlap_ms=2,
        gap_ms=0,
        numbers_after_end=0,
        digest=hashlib.sha256(text.encode()).hexdigest(),
        previous_digest="",
        source_partition=HOME,
        source_offset=1,
        settled_at_ms=T0 + 6,
    )
    assert total == expected


def test_incomplete_total_tells_what_is_missing() -> None:
    (total,) = totals_of([(0, 2, 10, 20, False), (1, 5, 40, 50, True), (2, 9, 90, 90, True)])
    assert total.status is Status.INCOMPLETE
    assert total.missing_numbers == (NumberRange(1, 1), NumberRange(3, 4), NumberRange(6, 8))
    assert (total.end_number, total.duration_ms, total.upper_bound_ms) == (9, 20, None)
    assert (total.numbers_after_end, total.settled_at_ms) == (0, T0 + 1 + 30)


def test_abandoned_total_counts_missing_up_to_the_greatest_seen() -> None:
    (total,) = totals_of([(0, 1, 0, 10, False), (1, 3, 20, 30, False), (2, 3, 20, 30, False)])
    assert total.status is Status.ABANDONED
    assert (total.missing_numbers, total.end_number) == ((NumberRange(2, 2),), None)
    assert (total.segments, total.duplicates, total.overlap_ms) == (2, 1, 10)
    assert (total.upper_bound_ms, total.settled_at_ms) == (None, T0 + 1 + 300)


HISTORIES: dict[str, tuple[list[Row], list[tuple[int, str, int, int]]]] = {
    "complete at once": ([(0, 1, 0, 10, True)], [(1, "COMPLETE", 10, 0)]),
    "the last missing number before the deadline": (
        [(0, 2, 10, 20, True), (29, 1, 0, 10, False)],
        [(1, "COMPLETE", 20, 29)],
    ),
    "a record at the deadline finds the order settled": (
        [(0, 2, 10, 20, True), (30, 1, 0, 10, False)],
        [(1, "INCOMPLETE", 10, 30), (2, "COMPLETE", 20, 60)],
    ),
    "a later end doesn't move the grace": (
        [(0, 2, 10, 20, True), (20, 4, 30, 40, True)],
        [(1, "INCOMPLETE", 20, 30)],
    ),
    "new evidence moves the idle time": (
        [(0, 1, 0, 10, False), (299, 1, 0, 11, False), (598, 2, 11, 20, True)],
        [(1, "COMPLETE", 20, 598)],
    ),
    "a repeat doesn't": (
        [(0, 1, 0, 10, False), (299, 1, 0, 10, False), (301, 2, 10, 20, True)],
        [(1, "ABANDONED", 10, 300), (2, "COMPLETE", 20, 331)],
    ),
    "a repeat of a settled order is no revision": (
        [(0, 1, 0, 10, True), (50, 1, 0, 10, True), (60, 1, 5, 8, False)],
        [(1, "COMPLETE", 10, 0)],
    ),
    "new time under a known number reopens": (
        [(0, 1, 0, 10, True), (50, 1, 5, 15, False)],
        [(1, "COMPLETE", 10, 0), (2, "COMPLETE", 15, 80)],
    ),
    "an end identifier on a known greater number reopens": (
        [(0, 1, 0, 10, True), (1, 2, 10, 20, False), (2, 2, 10, 20, True)],
        [(1, "COMPLETE", 10, 0), (2, "COMPLETE", 20, 31)],
    ),
    "an end above a gap comes to nothing where the gap is filled in time": (
        [(0, 1, 0, 10, True), (50, 3, 20, 30, True), (79, 2, 10, 20, False)],
        [(1, "COMPLETE", 10, 0), (2, "COMPLETE", 30, 80)],
    ),
    "each correction waits twice as long": (
        [(0, 1, 0, 10, True), (10, 1, 0, 11, False), (50, 1, 0, 12, False), (99, 1, 0, 13, False)],
        [(1, "COMPLETE", 10, 0), (2, "COMPLETE", 11, 40), (3, "COMPLETE", 13, 110)],
    ),
    "a number after the end proves that one before it is missing": (
        [(0, 1, 0, 10, False), (1, 3, 20, 30, False), (2, 1, 0, 10, True)],
        [(1, "INCOMPLETE", 20, 32)],
    ),
    "an end above a gap makes a complete order incomplete": (
        [(0, 1, 0, 10, True), (50, 3, 20, 30, True)],
        [(1, "COMPLETE", 10, 0), (2, "INCOMPLETE", 20, 80)],
    ),
    "an abandoned order carries on without a revision for each segment": (
        [(0, 1, 0, 10, False), (300, 2, 10, 20, False), (400, 3, 20, 30, False)],
        [(1, "ABANDONED", 10, 300), (2, "ABANDONED", 20, 330), (3, "ABANDONED", 30, 460)],
    ),
    "an incomplete order's grace runs from what reopened it": (
        [(0, 3, 20, 30, True), (100, 1, 0, 10, False), (129, 1, 0, 10, False)],
        [(1, "INCOMPLETE", 10, 30), (2, "INCOMPLETE", 20, 130)],
    ),
    "known at the last ms of the window": (
        [(0, 1, 0, 10, True), (160_000, 2, 159_990, 160_000, False)],
        [(1, "COMPLETE", 10, 0), (2, "COMPLETE", 20, 160_030)],
    ),
    "forgotten a ms later": (
        [(0, 1, 0, 10, True), (160_001, 2, 159_990, 160_000, False)],
        [(1, "COMPLETE", 10, 0), (1, "ABANDONED", 10, 160_301)],
    ),
    "an end in the future keeps the order known longer": (
        [(0, 1, 0, 10, False), (1, 2, 10, 60_001, True), (160_001, 1, 0, 11, False)],
        [(1, "COMPLETE", 60_001, 1)],
    ),
}


@pytest.mark.parametrize("name", HISTORIES)
def test_the_oracle_gives_the_totals_of_a_history(name: str) -> None:
    rows, expected = HISTORIES[name]
    assert brief(rows) == expected


def test_later_counts_show_in_the_next_revision() -> None:
    rows = [(0, 1, 0, 10, True), (1, 1, 0, 10, True), (2, 2, 10, 20, False)]
    first, second = totals_of(rows)
    assert (first.duplicates, first.source_offset) == (0, 0)
    assert (second.duplicates, second.overlap_ms, second.numbers_after_end) == (1, 10, 1)
    assert (second.previous_digest, second.source_offset) == (first.digest, 2)


def test_order_that_runs_on_gives_an_interim_total_a_day() -> None:
    rows = [(60 * at, at + 1, 60 * at, 60 * at + 60, at == 5) for at in range(6)]
    daily = replace(POLICY, interim_interval_ms=100)
    found = [
        (total.revision, total.status.value, total.duration_ms, total.settled_at_ms - T0)
        for total in history(arrived(rows), daily, partition=HOME)
    ]
    running = [(n, "RUNNING", 120 * n - 60 * (n == 3), 100 * n) for n in (1, 2, 3)]
    assert [*running, (4, "COMPLETE", 360, 300)] == found


def test_running_on_for_ever_comes_to_an_end_with_the_idle_time() -> None:
    daily = replace(POLICY, interim_interval_ms=100)
    found = history(arrived([(0, 1, 0, 10, False)]), daily, partition=HOME)
    expected = [("RUNNING", 100), ("RUNNING", 200), ("ABANDONED", 300)]
    assert [(each.status.value, each.settled_at_ms - T0) for each in found] == expected


def test_time_has_to_reach_the_deadline() -> None:
    rows = [(0, 1, 0, 10, False)]
    assert brief(rows, until=299) == []
    assert brief(rows, until=300) == [(1, "ABANDONED", 10, 300)]


def test_union_merges_what_touches() -> None:
    assert union([(5, 7), (1, 3), (3, 5), (9, 9), (8, 9)]) == (Interval(1, 7), Interval(8, 9))


def test_missing_up_to_an_astronomical_number() -> None:
    assert missing({1, 2, 5}, 2**62) == (NumberRange(3, 4), NumberRange(6, 2**62))


def record(value: bytes | None, **changes: Any) -> LogRecord:
    return LogRecord(HOME, 0, T0, b"SO1", value, ())._replace(**changes)


def verdict(wrong: LogRecord) -> Reason | None:
    judged = judge(wrong, wrong.append_ms, POLICY, PARTITIONS)
    return judged if isinstance(judged, Reason) else None


def test_good_record_is_read_as_the_schemas_wrote_it() -> None:
    event = SegmentEvent("SO1", 2**63 - 1, T0 - 7, T0, True)
    assert judge(record(encode_segment(event)), T0, POLICY, PARTITIONS) == event


def test_designs_example_in_bytes() -> None:
    wire = bytes.fromhex("c301ba627070e049bb8706534f3106c801900301")
    expected = SegmentEvent("SO1", 3, 100, 200, True)
    assert judge(record(wire), 200, POLICY, PARTITIONS) == expected
    assert raw_segment(b"SO1", 3, 100, 200, True) == wire


@pytest.mark.parametrize(
    ("start", "end", "reason"),
    [
        (0, 60_000, None),
        (0, 60_001, Reason.IN_THE_FUTURE),
        (-86_400_001, 0, Reason.TOO_LONG),
        (-86_400_000, 0, None),
        (-100_001, -100_000, None),
        (-100_002, -100_001, Reason.TOO_LATE),
    ],
)
def test_boundaries_of_time(start: int, end: int, reason: Reason | None) -> None:
    now_ms = 10**12
    value = raw_segment(b"SO1", 1, now_ms + start, now_ms + end)
    assert verdict(record(value, append_ms=now_ms)) is reason


def test_first_reason_that_holds_is_given() -> None:
    worst = raw_segment(b"", 0, 9, 5)
    assert verdict(record(b"\xc3")) is Reason.NOT_AVRO
    assert verdict(record(worst[:-1])) is Reason.NOT_AVRO
    assert verdict(record(worst[:2] + b"\x00" + worst[3:-1])) is Reason.UNKNOWN_SCHEMA
    assert verdict(record(worst)) is Reason.KEY_MISMATCH
    assert verdict(record(worst, key=b"")) is Reason.BAD_ORDER_NUMBER
    assert verdict(record(raw_segment(b"SO1", 0, 9, 5))) is Reason.BAD_BUSINESS_DATA_NUMBER
    assert verdict(record(raw_segment(b"SO1", 1, 2**62, 5))) is Reason.BAD_TIME_SEQUENCE
    assert verdict(record(raw_segment(b"SO1", 1, 0, 2**62))) is Reason.IN_THE_FUTURE
    late = record(raw_segment(b"SO1", 1, 0, 5), partition=HOME - 1)
    assert verdict(late) is Reason.TOO_LATE
    elsewhere = record(raw_segment(b"SO1", 1, T0 - 5, T0), partition=HOME - 1)
    assert verdict(elsewhere) is Reason.WRONG_PARTITION


def test_record_in_the_wrong_partition_counts_once_as_its_copy() -> None:
    value = raw_segment(b"SO1", 1, T0, T0 + 5, True)
    away = (HOME + 1) % PARTITIONS
    copied = (("forwarded_from", b"%d/7" % away),)
    log = [
        record(value, partition=away, offset=7),
        record(value, offset=3, append_ms=T0 + 1, headers=copied),
        record(value, offset=4, append_ms=T0 + 2, headers=copied),
    ]
    truth = read_log(log, POLICY, PARTITIONS)
    assert truth.sent_on == truth.forwarded == {b"%d/7" % away}
    assert truth.dead_letters == []
    (total,) = truth.totals["SO1"]
    assert (total.source_offset, total.duplicates, total.settled_at_ms) == (3, 0, T0 + 1)


def test_copy_counts_though_an_earlier_one_was_rejected() -> None:
    value = raw_segment(b"SO1", 1, T0, T0 + 60_500, True)
    away = (HOME + 1) % PARTITIONS
    copied = (("forwarded_from", b"%d/7" % away),)
    log = [
        record(value, offset=3, headers=copied),  # ends too far in the future
        record(value, offset=4, append_ms=T0 + 600, headers=copied),
        record(value, offset=5, append_ms=T0 + 700, headers=copied),
    ]
    truth = read_log(log, POLICY, PARTITIONS)
    assert truth.dead_letters == [(Reason.IN_THE_FUTURE, HOME, 3)]
    (total,) = truth.totals["SO1"]
    assert (total.source_offset, total.duplicates) == (4, 0)


def test_copy_that_came_to_a_wrong_partition_is_a_dead_letter() -> None:
    away = (HOME + 1) % PARTITIONS
    copied = (("forwarded_from", b"%d/7" % HOME),)
    value = raw_segment(b"SO1", 1, T0, T0 + 5)
    truth = read_log([record(value, partition=away, headers=copied)], POLICY, PARTITIONS)
    assert truth.dead_letters == [(Reason.WRONG_PARTITION, away, 0)]
    assert (truth.sent_on, truth.totals) == (set(), {})


def test_header_that_names_no_place_is_no_copy() -> None:
    value = raw_segment(b"SO1", 1, T0, T0 + 5, True)
    odd = (("forwarded_from", b"over there"),)
    log = [record(value, headers=odd), record(value, offset=1, headers=odd)]
    assert read_log(log, POLICY, PARTITIONS).accepted == 2


def test_brokers_clock_that_runs_back_is_not_followed() -> None:
    log = [
        record(raw_segment(b"SO1", 2, T0, T0 + 5, True)),
        record(b"garbage", offset=1, append_ms=T0 + 30),
        record(raw_segment(b"SO1", 1, T0 - 5, T0), offset=2, append_ms=T0 + 1),
    ]
    truth = read_log(log, POLICY, PARTITIONS)
    statuses = [(total.status, total.settled_at_ms) for total in truth.totals["SO1"]]
    assert statuses == [(Status.INCOMPLETE, T0 + 30), (Status.COMPLETE, T0 + 60)]
