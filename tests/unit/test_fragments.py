"""Orders in many pieces: the limit, in every order of arrival, by all who judge it the same."""

import time
from collections.abc import Callable, Sequence
from random import Random

import pytest

from durabill.producers.fleet import truth, truth_opening, truth_order
from durabill.schemas import (
    OWN_SCHEMA_ONLY,
    Reason,
    SegmentEvent,
    decode_total,
    encode_segment,
    limits,
)
from durabill.schemas.limits import (
    FORWARD_BYTES_MAX,
    FUTURE_TOLERANCE_MS,
    GRACE_FACTOR_MAX,
    ORDER_PIECES_MAX,
    SEGMENT_LENGTH_MAX_MS,
)
from durabill.stream_processors.core.order import Policy
from durabill.stream_processors.engine.batch import Chunk
from durabill.stream_processors.engine.columns import ColumnTable, compile_kernel
from durabill.stream_processors.engine.plain import PlainTable
from durabill.stream_processors.engine.table import Effects, IntervalTable, Place
from tests.property.batches import encode_batch

BASE_MS = 1_700_000_000_000
HOUR_MS = 3_600_000
POLICY = Policy(settle_grace_ms=HOUR_MS, idle_timeout_ms=HOUR_MS)
TABLES = pytest.mark.parametrize("kind", [PlainTable, ColumnTable])


def island(at: int) -> SegmentEvent:
    """Return a millisecond that touches no other island's, under number 1."""
    return SegmentEvent("SO1", 1, BASE_MS + 2 * at, BASE_MS + 2 * at + 1, False)


def odd_number(at: int) -> SegmentEvent:
    """Return a number that is next to no other odd one's, at a time that is known."""
    return SegmentEvent("SO1", 2 * at + 1, BASE_MS, BASE_MS + 1, False)


def bridge(at: int) -> SegmentEvent:
    """Return the millisecond between an island and the next."""
    return SegmentEvent("SO1", 1, BASE_MS + 2 * at + 1, BASE_MS + 2 * at + 2, False)


def even_number(at: int) -> SegmentEvent:
    """Return the number between an odd one and the next."""
    return SegmentEvent("SO1", 2 * at + 2, BASE_MS, BASE_MS + 1, False)


KINDS = pytest.mark.parametrize(
    ("piece", "filler", "counted", "what"),
    [
        (island, bridge, "intervals", "intervals"),
        (odd_number, even_number, "missing_numbers", "ranges of business data numbers"),
    ],
    ids=["times", "numbers"],
)


class Log:
    """A table, and the log that it reads."""

    def __init__(self, kind: type[IntervalTable], pieces_max: int = ORDER_PIECES_MAX) -> None:
        self.table = kind(Place(0, 1), POLICY, OWN_SCHEMA_ONLY, pieces_max=pieces_max)
        self.records: list[truth.LogRecord] = []

    def fold(self, events: Sequence[SegmentEvent], at_ms: int = BASE_MS + 20_000) -> Effects:
        """Append the events as a batch, and fold it."""
        first = len(self.records)
        for offset, event in enumerate(events, start=first):
            value = encode_segment(event)
            self.records.append(truth.LogRecord(0, offset, at_ms, b"SO1", value, ()))
        entries = [(each.offset, (each.key, each.value, ())) for each in self.records[first:]]
        after = first + len(entries)
        return self.table.fold(Chunk(first, after, encode_batch(first, at_ms, entries)))

    def pieces(self, counted: str) -> int:
        """Return how many intervals, or ranges of numbers, the order has."""
        state = self.table.describe("SO1")
        assert state is not None
        found = getattr(state, counted)
        # Before each range of numbers is a gap, but not before one that begins with 1.
        return len(found) + (counted == "missing_numbers" and found[0][0] != 1)


def shuffled(count: int) -> list[int]:
    places = list(range(count))
    Random(7).shuffle(places)
    return places


SEQUENCES: dict[str, Callable[[int], Sequence[int]]] = {
    "rising": range,
    "falling": lambda count: range(count - 1, -1, -1),
    "shuffled": shuffled,
}


@TABLES
@KINDS
@pytest.mark.parametrize("sequence", SEQUENCES)
def test_one_piece_more_than_the_limit_is_a_dead_letter(
    kind: type[IntervalTable],
    piece: Callable[[int], SegmentEvent],
    filler: Callable[[int], SegmentEvent],
    counted: str,
    what: str,
    sequence: str,
) -> None:
    log = Log(kind)
    places = SEQUENCES[sequence](ORDER_PIECES_MAX + 2)
    events = [piece(at) for at in places]
    compile_kernel()  # is not what is measured
    began_s = time.process_time()
    assert log.fold(events[: ORDER_PIECES_MAX - 1]).dead_letters == []
    # Nothing quadratic: that took half a minute where islands fall.
    assert time.process_time() - began_s < 15
    assert log.pieces(counted) == ORDER_PIECES_MAX - 1
    assert log.fold([events[ORDER_PIECES_MAX - 1]]).dead_letters == []
    assert log.pieces(counted) == ORDER_PIECES_MAX
    before = log.table.describe("SO1")
    (letter,) = log.fold([events[ORDER_PIECES_MAX]]).dead_letters
    assert Reason.TOO_FRAGMENTED is letter.reason
    assert f"its order has 10,000 {what}, and it adds one" == letter.detail
    assert before == log.table.describe("SO1")
    # What adds no piece is welcome; and where two have become one there is room again.
    assert log.fold([events[5], events[77]]).dead_letters == []
    inside = next(at for at in places if {at, at + 1} <= set(places[:ORDER_PIECES_MAX]))
    assert log.fold([filler(inside)]).dead_letters == []
    assert log.fold([events[ORDER_PIECES_MAX]]).dead_letters == []
    assert len(log.fold([events[ORDER_PIECES_MAX + 1]]).dead_letters) == 1


@TABLES
def test_refused_records_change_nothing_of_their_order(kind: type[IntervalTable]) -> None:
    log = Log(kind, pieces_max=9)
    log.fold([island(at) for at in range(9)])
    log.table.take_changed()
    before = log.table.describe("SO1")
    later_ms = BASE_MS + 20_000 + HOUR_MS - 1
    effects = log.fold([island(at) for at in range(20, 520)], later_ms)
    assert (len(effects.dead_letters), effects.totals) == (500, [])
    assert before == log.table.describe("SO1")
    assert log.table.take_changed() == []  # so that a flood rewrites no checkpoint
    # Not even its deadline: it settles as if they had not come.
    (total,) = log.fold([island(20)], later_ms + 1).totals
    assert (decode_total(total.value).segments + 8, decode_total(total.value).duplicates) == (9, 8)
    assert later_ms + 1 == decode_total(total.value).settled_at_ms


@TABLES
def test_forgotten_order_starts_anew_with_one_piece(kind: type[IntervalTable]) -> None:
    log = Log(kind, pieces_max=9)
    log.fold([island(at) for at in range(9)])
    much_later_ms = BASE_MS + 20_000 + HOUR_MS + 86_400_000 + 60_001
    event = SegmentEvent("SO1", 1, much_later_ms - 10, much_later_ms, False)
    assert log.fold([event], much_later_ms).dead_letters == []
    assert log.pieces("intervals") == 1
    assert log.fold([event], much_later_ms).dead_letters == []


@TABLES
@pytest.mark.parametrize("seed", range(4))
def test_truth_refuses_the_same(kind: type[IntervalTable], seed: int) -> None:
    dice = Random(seed)
    log = Log(kind, pieces_max=12)
    letters = []
    for _ in range(30):
        events = []
        for _ in range(dice.randint(1, 9)):
            make = dice.choice((island, island, odd_number, bridge, even_number))
            events.append(make(dice.randrange(40)))
        letters += [(each.reason, 0, each.record.offset) for each in log.fold(events).dead_letters]
    policy = truth_order.Policy(settle_grace_ms=HOUR_MS, idle_timeout_ms=HOUR_MS)
    found = truth.read_log(log.records, policy, 1, pieces_max=12)
    assert found.dead_letters == letters
    assert len(letters) > 20
    assert len(log.records) - len(letters) == found.accepted


@TABLES
def test_total_of_the_largest_order_fits_every_topic(kind: type[IntervalTable]) -> None:
    log = Log(kind)
    # As wide as numbers can be in their sequence: from the greatest down.
    greatest = 2**63 - 1
    events = [
        SegmentEvent("SO1", greatest - 2 * at, BASE_MS + 2 * at, BASE_MS + 2 * at + 1, False)
        for at in range(ORDER_PIECES_MAX)
    ]
    assert log.fold(events).dead_letters == []
    (total,) = log.table.tick(BASE_MS + 20_000 + HOUR_MS).totals
    assert len(decode_total(total.value).intervals) == ORDER_PIECES_MAX
    assert len(total.value) < 1_000_000


def test_the_oracles_own_limits_are_the_contracts() -> None:
    assert ORDER_PIECES_MAX == truth_order.PIECES_MAX
    assert GRACE_FACTOR_MAX == truth_order.GRACES_MAX
    assert FUTURE_TOLERANCE_MS == truth_order.FUTURE_TOLERANCE_MS == truth_order.FORGET_MARGIN_MS
    assert SEGMENT_LENGTH_MAX_MS == truth.SEGMENT_MAX_MS
    assert FORWARD_BYTES_MAX == truth.SENT_ON_BYTES_MAX
    sizes = (limits.TENANT_BYTES_MAX, limits.CLIENT_BYTES_MAX, limits.SERVICE_BYTES_MAX)
    assert sizes == tuple(truth_opening.TEXTS_MAX.values())
    assert limits.ATTRIBUTES_MAX == truth_opening.ATTRIBUTES_MAX
    assert limits.ATTRIBUTE_KEY_BYTES_MAX == truth_opening.ATTRIBUTE_KEY_MAX
    assert limits.ATTRIBUTE_VALUE_BYTES_MAX == truth_opening.ATTRIBUTE_VALUE_MAX
    assert limits.OPENING_SPAN_MAX_MS == truth_opening.SPAN_MAX_MS


# -- headers that anybody can write -----------------------------------------------------------


@TABLES
@pytest.mark.parametrize("origin", [b"2/5", b"4/5", b"999999999/5", b"2/" + b"9" * 18])
def test_origin_that_is_no_other_partition_is_as_if_it_were_not_there(
    kind: type[IntervalTable], origin: bytes
) -> None:
    """SO1 belongs in partition 2 of 4: a record can't have been sent on from there, or from 4."""
    table = kind(Place(2, 4), POLICY, OWN_SCHEMA_ONLY)
    headers = (("forwarded_from", origin),)
    value = encode_segment(island(0))
    entries = [(offset, (b"SO1", value, headers)) for offset in range(3)]
    table.fold(Chunk(0, 3, encode_batch(0, BASE_MS + 20_000, entries)))
    state = table.describe("SO1")
    assert state is not None
    assert state.duplicates == 2
    log = [truth.LogRecord(2, each, BASE_MS + 20_000, b"SO1", value, headers) for each in range(3)]
    assert truth.read_log(log, truth_order.Policy(), 4).accepted == 3
    # Nothing of it is kept, however many partitions somebody makes up.
    assert all(not order.forwarded for order in table._plain.slots)


@TABLES
def test_origin_in_another_partition_counts_once(kind: type[IntervalTable]) -> None:
    table = kind(Place(2, 4), POLICY, OWN_SCHEMA_ONLY)
    value = encode_segment(island(0))
    entries = [
        (at, (b"SO1", value, (("forwarded_from", origin),)))
        for at, origin in enumerate([b"3/5", b"0/5", b"3/4", b"3/5", b"3/6"])
    ]
    table.fold(Chunk(0, 5, encode_batch(0, BASE_MS + 20_000, entries)))
    state = table.describe("SO1")
    assert state is not None
    assert state.duplicates == 2
    log = [
        truth.LogRecord(2, at, BASE_MS + 20_000, b"SO1", value, headers)
        for at, (_, _, headers) in entries
    ]
    assert truth.read_log(log, truth_order.Policy(), 4).accepted == 3
