"""Hostile traffic is what it says: the oracle's word on each kind, and no honest order is named."""

import random
from itertools import chain

import pytest

from durabill.producers.fleet.truth import LogRecord, judge, read_log
from durabill.producers.fleet.truth_order import Policy
from durabill.schemas import Reason, SegmentEvent, partition_for
from tests.chaos.cluster import PARTITIONS
from tests.chaos.hostile import Hit, extremes, forged, garbage, is_hostile, islands

NOW_MS = 1_795_000_000_000
POLICY = Policy(settle_grace_ms=2_000, idle_timeout_ms=5_000)


def records(hits: list[Hit]) -> list[LogRecord]:
    """The hits as the log has them, in the partitions of their keys."""
    return [
        LogRecord(
            partition_for(hit.key or b"", PARTITIONS) if hit.partition is None else hit.partition,
            offset,
            NOW_MS,
            hit.key,
            hit.value,
            hit.headers,
        )
        for offset, hit in enumerate(hits)
    ]


def test_garbage_is_all_rejected() -> None:
    found = records(list(garbage(random.Random(1))))
    assert len(found) > 10
    judged = [judge(each, NOW_MS, POLICY, PARTITIONS) for each in found]
    assert {Reason.NOT_AVRO, Reason.UNKNOWN_SCHEMA, Reason.KEY_MISMATCH} <= set(judged)
    assert not any(isinstance(each, SegmentEvent) for each in judged)


def test_extremes_reach_both_ends_of_64_bits() -> None:
    judged = [
        judge(each, NOW_MS, POLICY, PARTITIONS) for each in records([*extremes("H-e", NOW_MS)])
    ]
    assert {Reason.TOO_LONG, Reason.IN_THE_FUTURE, Reason.BAD_TIME_SEQUENCE} & set(judged)
    assert Reason.BAD_BUSINESS_DATA_NUMBER in judged
    numbers = {each.business_data_number for each in judged if isinstance(each, SegmentEvent)}
    assert {2**62, 2**63 - 1} <= numbers


@pytest.mark.parametrize("seed", range(6))
def test_islands_have_as_many_pieces_as_they_should(seed: int) -> None:
    hits = list(islands(random.Random(seed), "H-i", NOW_MS, 50))
    (totals,) = read_log(records(hits), POLICY, PARTITIONS).totals.values()
    assert len(totals[-1].intervals) == 50


def test_islands_rise_fall_and_are_shuffled() -> None:
    names = {next(islands(random.Random(seed), "H-i", NOW_MS, 9)).key for seed in range(20)}
    assert {b"H-i-rising", b"H-i-falling", b"H-i-shuffled"} == names


def test_forged_copies_are_told_from_true_ones_by_their_key() -> None:
    hits = list(forged(random.Random(1), "H-f", NOW_MS))
    assert {"forwarded_from"} == {name for hit in hits for name, _ in hit.headers}
    assert any(hit.partition is not None for hit in hits)
    assert all(is_hostile(hit.key) for hit in hits)


def test_no_segment_is_of_an_order_that_is_not_hostile() -> None:
    dice, now_ms = random.Random(2), NOW_MS
    kinds = (garbage(dice), forged(dice, "H-f", now_ms), extremes("H-e", now_ms))
    truth = read_log(records(list(chain(*kinds))), POLICY, PARTITIONS)
    assert truth.totals
    assert all(is_hostile(number.encode()) for number in truth.totals)
    assert not is_hostile(b"C0-1-1")
    assert not is_hostile(None)
