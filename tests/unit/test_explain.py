"""An order explained, case by case: which record or deadline did what, and in which life."""

from collections.abc import Sequence

from durabill.schemas import (
    OWN_SCHEMA_ONLY,
    ClockMark,
    Reason,
    SegmentEvent,
    encode_clock_mark,
    encode_segment,
    partition_for,
)
from durabill.schemas.headers import FORWARDED_FROM
from durabill.schemas.wire import Headers
from durabill.stream_processors.core.admission import Fate, Place
from durabill.stream_processors.core.explain import (
    Forgotten,
    Happening,
    Revision,
    Standing,
    Verdict,
    explain,
)
from durabill.stream_processors.core.order import Deadline, Policy
from durabill.stream_processors.engine.batch import Record

POLICY = Policy(
    settle_grace_ms=30, idle_timeout_ms=300, correction_window_ms=1_000, interim_interval_ms=0
)
FORGET_MS = 1_000 + 60_000
PLACE = Place(0, 1)
KEY = b"SO1"
NOW = 100_000


def segment(
    offset: int, at_ms: int, number: int, *, end: bool = False, headers: Headers = (), at: int = -1
) -> Record:
    """Return a record of the order: number n's time is [100,000 + 10 n, 100,010 + 10 n)."""
    start_ms = NOW + 10 * (number if at < 0 else at)
    event = SegmentEvent("SO1", number, start_ms, start_ms + 10, end)
    return Record(offset, NOW + at_ms, KEY, encode_segment(event), headers)


def other(offset: int, at_ms: int) -> Record:
    """Return a record of another order."""
    value = encode_segment(SegmentEvent("SO2", 1, NOW, NOW + at_ms, False))
    return Record(offset, NOW + at_ms, b"SO2", value, ())


def mark(offset: int, at_ms: int) -> Record:
    """Return a clock mark, of an application whose name has the order's number in it."""
    return Record(offset, NOW + at_ms, None, encode_clock_mark(ClockMark("SO1", NOW)), ())


def told(log: Sequence[Record], policy: Policy = POLICY, place: Place = PLACE) -> list[Happening]:
    return list(explain("SO1", log, place, lambda _: policy, OWN_SCHEMA_ONLY.read))


def brief(happenings: Sequence[Happening]) -> list[tuple[object, ...]]:
    """Return what happened in short; times from NOW on."""
    found: list[tuple[object, ...]] = []
    for each in happenings:
        match each:
            case Verdict():
                found.append((each.record.offset, each.life, each.reason or each.fate))
            case Revision(total=total):
                why = (each.deadline, each.offset)
                given = (total.revision, str(total.status), total.settled_at_ms - NOW)
                found.append((each.life, *given, *why))
            case Forgotten():
                found.append(("forgotten", each.life, each.at_ms - NOW))
            case Standing():
                found.append(("stands", each.life, each.state and str(each.state.phase)))
    return found


def test_segments_out_of_order_and_the_one_that_completes_it() -> None:
    log = [segment(0, 50, 2, end=True), segment(3, 60, 1), segment(5, 61, 1)]
    assert brief(told(log)) == [
        (0, 1, Fate.BEGINS),
        (3, 1, Fate.COUNTS),
        (1, 1, "COMPLETE", 60, None, 3),
        (5, 1, Fate.COUNTS),
        ("stands", 1, "SETTLED"),
    ]
    _, second, _, repeat, _ = told(log)
    assert isinstance(second, Verdict)
    assert (second.gained_ms, second.is_new_number) == (10, True)
    assert isinstance(repeat, Verdict)
    assert (repeat.gained_ms, repeat.is_new_number, repeat.reopens) == (0, False, False)


def test_time_moves_by_others_records_and_by_clock_marks() -> None:
    ended = segment(0, 50, 2, end=True)
    assert brief(told([ended, other(1, 79)]))[-1] == ("stands", 1, "ENDED")
    settled = (1, 1, "INCOMPLETE", 80, Deadline.SETTLE_GRACE, 0)
    for moved in (other(1, 80), mark(1, 80), other(1, 700)):
        assert [settled, ("stands", 1, "SETTLED")] == brief(told([ended, moved]))[1:]


def test_an_order_without_an_end_is_abandoned_after_its_last_new_evidence() -> None:
    log = [segment(0, 0, 1), segment(1, 100, 2), segment(2, 350, 2), other(3, 400)]
    assert brief(told(log))[3:] == [
        (1, 1, "ABANDONED", 400, Deadline.IDLE_TIMEOUT, 1),
        ("stands", 1, "SETTLED"),
    ]


def test_corrections_are_gathered_until_their_grace_is_over() -> None:
    log = [
        segment(0, 50, 3, end=True),
        segment(1, 90, 1),
        segment(2, 95, 1, at=7),
        segment(3, 100, 2),
        other(4, 200),
        segment(5, 210, 4),
        other(6, 400),
    ]
    found = told(log)
    assert brief(found) == [
        (0, 1, Fate.BEGINS),
        (1, 1, "INCOMPLETE", 80, Deadline.SETTLE_GRACE, 0),
        (1, 1, Fate.COUNTS),
        (2, 1, Fate.COUNTS),
        (3, 1, Fate.COUNTS),
        (1, 2, "COMPLETE", 120, Deadline.CORRECTION_GRACE, 1),
        (5, 1, Fate.COUNTS),
        (1, 3, "COMPLETE", 270, Deadline.CORRECTION_GRACE, 5),
        ("stands", 1, "SETTLED"),
    ]
    reopening = [each.record.offset for each in found if isinstance(each, Verdict) and each.reopens]
    assert reopening == [1, 5]


def test_an_order_that_runs_on() -> None:
    policy = Policy(30, 300, 1_000, 100)
    log = [segment(at, 90 * at, at + 1) for at in range(4)]
    assert brief(told(log, policy)) == [
        (0, 1, Fate.BEGINS),
        (1, 1, Fate.COUNTS),
        (1, 1, "RUNNING", 100, Deadline.INTERIM_INTERVAL, None),
        (2, 1, Fate.COUNTS),
        (1, 2, "RUNNING", 200, Deadline.INTERIM_INTERVAL, None),
        (3, 1, Fate.COUNTS),
        ("stands", 1, "OPEN"),
    ]
    standing = told(log, policy)[-1]
    assert isinstance(standing, Standing)
    assert standing.state is not None
    assert (standing.state.interim_deadline_ms, standing.next_offset) == (NOW + 300, 4)


def test_a_number_that_is_used_again_has_two_lives() -> None:
    over_ms = 50 + FORGET_MS
    again = segment(2, over_ms + 1, 1, end=True, at=6_100)
    log = [segment(0, 50, 1, end=True), segment(1, 60, 1, end=True), again, other(3, over_ms + 5)]
    assert brief(told(log)) == [
        (0, 1, Fate.BEGINS),
        (1, 1, "COMPLETE", 50, None, 0),
        (1, 1, Fate.COUNTS),
        ("forgotten", 1, over_ms),
        (2, 2, Fate.BEGINS),
        (2, 1, "COMPLETE", over_ms + 1, None, 2),
        ("stands", 2, "SETTLED"),
    ]
    second = told(log)[5]
    assert isinstance(second, Revision)
    assert (
        second.total.duration_ms,
        second.total.segments,
        second.total.duplicates,
    ) == (10, 1, 0)
    # At its deadline it is still known: the same record is a late correction then.
    log[2] = segment(2, over_ms, 2, end=True, at=6_100)
    assert brief(told(log))[3] == (2, 1, Fate.COUNTS)
    gone = brief(told([log[0], other(1, over_ms + 1)]))
    assert [("forgotten", 1, over_ms), ("stands", 1, None)] == gone[2:]


def test_dead_letters_of_an_order_belong_to_the_life_that_goes_on() -> None:
    late = segment(0, 2_000, 1)
    garbage = Record(2, NOW + 2_010, KEY, b"\x00garbage", ())
    other_key = segment(3, 2_020, 202)._replace(key=b"SO9")
    soon = segment(4, 2_030, 6_204)
    log = [late, segment(1, 2_005, 200), garbage, other_key, soon]
    found = told(log)
    assert brief(found)[:-1] == [
        (0, 0, Reason.TOO_LATE),
        (1, 1, Fate.BEGINS),
        (2, 1, Reason.NOT_AVRO),
        (3, 1, Reason.KEY_MISMATCH),
        (4, 1, Reason.IN_THE_FUTURE),
    ]
    first = found[0]
    assert isinstance(first, Verdict)
    assert first.detail == "ended 1980 ms before its arrival"
    assert first.raw is not None


def test_arrival_is_the_partitions_clock_and_not_the_records() -> None:
    first, late, _ = told([other(0, 3_000), segment(1, 1_500, 100), segment(2, 3_000, 300)])
    assert isinstance(first, Verdict)
    assert (first.reason, first.arrival_ms) == (Reason.TOO_LATE, NOW + 3_000)
    assert isinstance(late, Verdict)
    assert late.fate is Fate.BEGINS


def test_records_that_were_forwarded() -> None:
    own = partition_for(KEY, 3)
    wrong = next(each for each in range(3) if each != own)
    copy: Headers = ((FORWARDED_FROM, f"{wrong}/7".encode()),)
    log = [segment(0, 10, 1, headers=copy), segment(1, 12, 1, headers=copy), segment(2, 20, 2)]
    first, again, second, _ = told(log, place=Place(own, 3))
    assert isinstance(first, Verdict)
    assert ((wrong, 7), Fate.BEGINS) == (first.source, first.fate)
    assert isinstance(again, Verdict)
    assert ((wrong, 7), Fate.SEEN_BEFORE) == (again.source, again.fate)
    assert isinstance(second, Verdict)
    assert (second.source, second.fate) == (None, Fate.COUNTS)

    there, back, stands = told(
        [segment(7, 10, 1), log[0]._replace(offset=8)], POLICY, Place(wrong, 3)
    )
    assert isinstance(there, Verdict)
    assert (Fate.FORWARDED, own, 0) == (there.fate, there.partition, there.life)
    assert isinstance(back, Verdict)
    assert Reason.WRONG_PARTITION is back.reason
    assert isinstance(stands, Standing)
    assert (stands.life, stands.state) == (0, None)


def test_policies_that_change() -> None:
    shorter = Policy(5, 300, 1_000, 0)
    log = [segment(0, 50, 3, end=True), other(2, 70), segment(3, 100, 1), other(4, 112)]

    def policy_at(offset: int) -> Policy:
        return shorter if offset >= 2 else POLICY

    found = list(explain("SO1", log, PLACE, policy_at, OWN_SCHEMA_ONLY.read))
    assert brief(found) == [
        (0, 1, Fate.BEGINS),
        (1, 1, "INCOMPLETE", 80, Deadline.SETTLE_GRACE, 0),  # a deadline that is set stays
        (3, 1, Fate.COUNTS),
        (1, 2, "INCOMPLETE", 105, Deadline.CORRECTION_GRACE, 3),
        ("stands", 1, "SETTLED"),
    ]


def test_what_is_due_by_the_policy_before_is_given_before_the_change() -> None:
    daily, never = Policy(30, 300, 1_000, 100), POLICY
    log = [segment(0, 0, 1), other(1, 250), other(2, 260)]

    def policy_at(offset: int) -> Policy:
        return never if offset >= 2 else daily

    found = list(explain("SO1", log, PLACE, policy_at, OWN_SCHEMA_ONLY.read))
    assert [each.total.settled_at_ms - NOW for each in found if isinstance(each, Revision)] == [
        100,
        200,
    ]


def test_one_piece_too_many_is_explained_as_too_fragmented() -> None:
    log = [segment(at, 10 * at, 2 * at + 1) for at in range(3)]
    found = list(explain("SO1", log, PLACE, lambda _: POLICY, OWN_SCHEMA_ONLY.read, pieces_max=2))
    assert brief(found)[2] == (2, 1, Reason.TOO_FRAGMENTED)


def test_an_order_that_nobody_has_seen() -> None:
    assert brief(told([other(0, 5), mark(1, 6)])) == [("stands", 0, None)]
    assert brief(told([])) == [("stands", 0, None)]
