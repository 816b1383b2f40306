"""The interval table of a partition: what goes where, and what a checkpoint holds."""

from unittest import mock

import pytest

from durabill.schemas import SEGMENT_HEADER, Reason, SegmentEvent, WriterSchemas, encode_segment
from durabill.schemas.errors import StateError
from durabill.schemas.headers import FORWARDED_FROM
from durabill.schemas.partitioner import partition_for
from durabill.schemas.wire import Headers
from durabill.stream_processors.core.order import Order, Policy
from durabill.stream_processors.engine import slots as slots_module
from durabill.stream_processors.engine.batch import Chunk
from durabill.stream_processors.engine.blocks import decode_block, plain_snapshot
from durabill.stream_processors.engine.plain import PlainTable
from durabill.stream_processors.engine.table import Effects, Place
from tests.property.batches import encode_batch
from tests.property.histories import totals_in

POLICY = Policy(settle_grace_ms=5, idle_timeout_ms=9, correction_window_ms=60)
NOW = 300_000_000
FORGET_MS = 60 + 60_000
LONG_MAX = 2**63 - 1


class Log:
    """A partition's log that is folded into a table record by record."""

    def __init__(self, place: Place | None = None) -> None:
        self.table = PlainTable(place or Place(0, 1), POLICY, WriterSchemas())
        self.next_offset = 0

    def segment(
        self,
        order: str,
        number: int = 1,
        *,
        start_ms: int = NOW - 10,
        end_ms: int = NOW,
        end: bool = False,
        at_ms: int = NOW,
        headers: Headers = (),
    ) -> Effects:
        """Append a segment."""
        value = encode_segment(SegmentEvent(order, number, start_ms, end_ms, end))
        return self.record(order.encode(), value, at_ms=at_ms, headers=headers)

    def record(
        self, key: bytes | None, value: bytes | None, *, at_ms: int = NOW, headers: Headers = ()
    ) -> Effects:
        """Append a record."""
        data = encode_batch(self.next_offset, at_ms, [(self.next_offset, (key, value, headers))])
        chunk = Chunk(self.next_offset, self.next_offset + 1, data)
        self.next_offset += 1
        return self.table.fold(chunk)

    def offsets(self, order: str) -> int:
        """Return the offset that an order has seen."""
        known = self.table.describe(order)
        assert known is not None
        return int(known.source_offset)


def order_for(partition: int, partitions: int) -> str:
    """Return an order number that belongs in `partition`."""
    names = (f"SO{number}" for number in range(1_000))
    return next(each for each in names if partition_for(each.encode(), partitions) == partition)


# -- dead letters -----------------------------------------------------------------------------

RAW_BAD_UTF8 = SEGMENT_HEADER + b"\x02\xff\x02\x00\x02\x00"


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        (b"SO1", None, Reason.NOT_AVRO),
        (b"SO1", b"", Reason.NOT_AVRO),
        (b"SO1", b"\xc3\x01" + bytes(8), Reason.UNKNOWN_SCHEMA),
        (None, encode_segment(SegmentEvent("SO1", 1, 1, 2, False)), Reason.KEY_MISMATCH),
        (b"SO2", encode_segment(SegmentEvent("SO1", 1, 1, 2, False)), Reason.KEY_MISMATCH),
        (b"\xff", RAW_BAD_UTF8, Reason.BAD_ORDER_NUMBER),
        (b"\xfe", RAW_BAD_UTF8, Reason.KEY_MISMATCH),
    ],
)
def test_dead_letter(key: bytes | None, value: bytes | None, reason: Reason) -> None:
    log = Log()
    [letter] = log.record(key, value).dead_letters
    assert (letter.reason, letter.record.key, letter.record.value) == (reason, key, value)
    assert len(log.table) == 0
    assert log.table.take_changed_entries() == []


@pytest.mark.parametrize(
    ("start_ms", "end_ms", "reason"),
    [
        (NOW, NOW + 60_000, None),
        (NOW, NOW + 60_001, Reason.IN_THE_FUTURE),
        (NOW - 86_400_000, NOW, None),
        (NOW - 86_400_001, NOW, Reason.TOO_LONG),
        (NOW - 86_400_000, NOW + 60_001, Reason.IN_THE_FUTURE),
        (NOW - 70, NOW - 60, None),
        (NOW - 70, NOW - 61, Reason.TOO_LATE),
        (NOW - 86_400_070, NOW - 61, Reason.TOO_LONG),
        (0, 1, Reason.TOO_LATE),
        (0, LONG_MAX, Reason.IN_THE_FUTURE),
    ],
)
def test_times_at_their_limits(start_ms: int, end_ms: int, reason: Reason | None) -> None:
    letters = Log().segment("SO1", start_ms=start_ms, end_ms=end_ms).dead_letters
    assert [letter.reason for letter in letters] == ([] if reason is None else [reason])


def test_dead_letter_leaves_its_order_untouched() -> None:
    log = Log()
    log.segment("SO1")
    log.table.take_changed_entries()
    before = log.table.describe("SO1")
    log.segment("SO1", start_ms=NOW, end_ms=NOW + 60_002, at_ms=NOW + 1)
    assert before == log.table.describe("SO1")
    assert log.table.take_changed_entries() == []


def test_dead_letter_moves_the_partitions_clock() -> None:
    log = Log()
    log.segment("SO1")
    [total] = totals_in([log.record(b"SO2", b"", at_ms=NOW + 9)])
    assert (total.service_order_number, total.settled_at_ms) == ("SO1", NOW + 9)


def test_brokers_clock_that_runs_backwards_does_not_move_ours() -> None:
    log = Log()
    log.record(b"x", b"", at_ms=NOW + 100)
    [letter] = log.segment("SO1", start_ms=NOW - 10, end_ms=NOW + 39, at_ms=NOW - 50).dead_letters
    assert letter.reason is Reason.TOO_LATE
    assert log.table.clock_ms == NOW + 100


# -- wrong partition --------------------------------------------------------------------------


def test_record_in_the_wrong_partition_is_sent_on_with_its_origin() -> None:
    log = Log(Place(2, 4))
    log.next_offset = 17
    order = order_for(1, 4)
    effects = log.segment(order, headers=(("trace", b"7"),))
    [forward] = effects.forwards
    assert forward.partition == 1
    assert forward.headers == (("trace", b"7"), (FORWARDED_FROM, b"2/17"))
    assert (effects.totals, effects.dead_letters, len(log.table)) == ([], [], 0)


def test_record_that_comes_back_is_a_dead_letter() -> None:
    log = Log(Place(2, 4))
    effects = log.segment(order_for(1, 4), headers=((FORWARDED_FROM, b"1/5"),))
    assert [letter.reason for letter in effects.dead_letters] == [Reason.WRONG_PARTITION]
    assert effects.forwards == []


def test_illegal_record_in_the_wrong_partition_is_not_sent_on() -> None:
    log = Log(Place(2, 4))
    effects = log.segment(order_for(1, 4), end_ms=NOW + 60_001)
    assert [letter.reason for letter in effects.dead_letters] == [Reason.IN_THE_FUTURE]


def test_record_sent_on_twice_counts_once() -> None:
    log = Log(Place(0, 4))
    name = order_for(0, 4)
    for origin in (b"1/5", b"1/6", b"1/5", b"1/6", b"2/5"):
        log.segment(name, headers=((FORWARDED_FROM, origin),))
    known = log.table.describe(name)
    assert known is not None
    assert known.duplicates == 2
    assert known.source_offset == 4


@pytest.mark.parametrize(
    "content",
    [
        None,
        b"",
        b"/",
        b"1",
        b"-1/5",
        b"1/-5",
        b"a/b",
        b"1/" + b"9" * 30,
        b"9" * 30 + b"/1",
        b"1/99999999999999999999",
        b"99999999999999999999/1",
        b"1/5/6",
        b"2/5",  # there is no such partition, so that its copies can't be told apart for ever
        "٣/٣".encode(),
    ],
)
def test_forged_origin_is_nothing_and_can_be_checkpointed(content: bytes | None) -> None:
    # Twenty digits did not fit a checkpoint's 64 bits, and the worker could not go on.
    log, name = Log(Place(0, 2)), order_for(0, 2)
    for _ in range(2):
        log.segment(name, headers=((FORWARDED_FROM, content),))
    known = log.table.describe(name)
    assert known is not None
    assert known.duplicates == 1
    assert len(log.table.take_changed_entries()) == 1


# -- time -------------------------------------------------------------------------------------


def test_tick_settles_what_is_due_and_nothing_else() -> None:
    log = Log()
    log.segment("SO1")
    log.segment("SO2", at_ms=NOW + 1)
    assert log.table.oldest_deadline_ms() == NOW + 9
    assert log.table.tick(NOW + 8).totals == []
    [total] = totals_in([log.table.tick(NOW + 9)])
    assert total.service_order_number == "SO1"
    assert log.table.oldest_deadline_ms() == NOW + 10
    assert log.table.tick(NOW + 9).totals == []


def test_end_brings_the_deadline_forward() -> None:
    log = Log()
    log.segment("SO1", 2)
    log.segment("SO1", 3, end=True)
    [total] = totals_in([log.table.tick(NOW + 5)])
    assert (total.status, total.settled_at_ms) == ("INCOMPLETE", NOW + 5)


def test_record_at_the_deadline_finds_its_order_settled() -> None:
    log = Log()
    log.segment("SO1")
    [total] = totals_in([log.segment("SO1", 2, end_ms=NOW + 5, at_ms=NOW + 9)])
    assert (total.status, total.segments, total.source_offset) == ("ABANDONED", 1, 0)


def test_forgotten_order_begins_anew() -> None:
    log = Log()
    [first] = totals_in([log.segment("SO1", end=True)])
    known_until_ms = NOW + FORGET_MS
    log.segment("SO1", 2, end=True, end_ms=known_until_ms, at_ms=known_until_ms)
    settled_ms = known_until_ms + POLICY.settle_grace_ms
    [second] = totals_in([log.table.tick(settled_ms)])
    assert (first.revision, second.revision) == (1, 2)
    later_ms = settled_ms + FORGET_MS + 1
    [third] = totals_in(
        [log.segment("SO1", end=True, start_ms=later_ms - 1, end_ms=later_ms, at_ms=later_ms)]
    )
    assert (third.revision, third.previous_digest, third.segments) == (1, "", 1)


# -- blocks -----------------------------------------------------------------------------------


def test_only_changed_blocks_are_handed_out() -> None:
    with mock.patch.object(slots_module, "BLOCK_SLOTS", 1):
        log = Log()
        log.segment("SO1")
        log.segment("SO2")
        assert [block for block, _ in log.table.take_changed_entries()] == ["0", "1"]
        assert log.table.take_changed_entries() == []
        log.segment("SO2", at_ms=NOW + 1)
        assert [block for block, _ in log.table.take_changed_entries()] == ["1"]


def test_block_is_of_the_moment_at_which_it_was_taken() -> None:
    log = Log(Place(1, 2))
    name = order_for(1, 2)
    log.segment(name, headers=((FORWARDED_FROM, b"0/3"),))
    snapshot = log.table.snapshot("0")
    assert snapshot is not None
    log.segment(name, 2, headers=((FORWARDED_FROM, b"0/4"),))
    [(_, order)] = decode_block(snapshot.pack()).orders
    assert (order.accepted, order.forwarded) == (1, {0: 3})


def test_block_of_forgotten_orders_is_deleted() -> None:
    log = Log()
    log.segment("SO1", end=True)
    log.table.take_changed_entries()
    log.table.confirm(NOW + FORGET_MS)
    assert len(log.table) == 1
    log.table.confirm(NOW + FORGET_MS + 1)
    assert len(log.table) == 0
    assert log.table.take_changed_entries() == [("0", None)]


def test_order_that_is_known_for_longer_is_given_back_in_the_end() -> None:
    log = Log()
    log.segment("SO1", end=True)
    later_ms = NOW + 60_000
    empty_ms = later_ms + 60_000
    effects = log.segment("SO1", end=True, start_ms=empty_ms, end_ms=empty_ms, at_ms=later_ms)
    assert (effects.totals, effects.dead_letters) == ([], [])
    log.table.confirm(later_ms + FORGET_MS)
    assert len(log.table) == 1
    log.table.confirm(later_ms + FORGET_MS + 1)
    assert len(log.table) == 0


def test_slots_are_used_again() -> None:
    with mock.patch.object(slots_module, "BLOCK_SLOTS", 1):
        log = Log()
        for order in ("SO1", "SO2"):
            log.segment(order, end=True)
        at_ms = NOW + FORGET_MS + 1
        log.table.confirm(at_ms)
        log.table.take_changed_entries()
        log.segment("SO3", start_ms=at_ms - 1, end_ms=at_ms, at_ms=at_ms)
        assert [block for block, _ in log.table.take_changed_entries()] == ["0"]


def test_restore_takes_the_newer_of_two_states() -> None:
    blocks = []
    for records, slot in ((3, 0), (1, 5), (2, 9)):
        log = Log()
        for number in range(1, records + 1):
            log.segment("SO1", number)
        [(_, order)] = decode_block(log.table.take_changed_entries()[0][1] or b"").orders
        blocks.append(plain_snapshot([(slot, order)]).pack())
    for order_of_blocks in (blocks, blocks[::-1], blocks[1:] + blocks[:1]):
        restored = Log()
        restored.table.restore(order_of_blocks, NOW)
        assert restored.offsets("SO1") == 2
        assert len(restored.table) == 1


def test_restored_table_settles_as_if_nothing_had_happened() -> None:
    log, restored = Log(), Log()
    log.segment("SO1")
    restored.table.restore([content or b"" for _, content in log.table.take_changed_entries()], NOW)
    assert log.table.describe("SO1") == restored.table.describe("SO1")
    assert log.table.tick(NOW + 9) == restored.table.tick(NOW + 9)


def test_replayed_records_are_passed_over() -> None:
    log, restored = Log(), Log()
    log.segment("SO1")
    restored.table.restore([content or b"" for _, content in log.table.take_changed_entries()], NOW)
    restored.segment("SO1")
    assert log.table.describe("SO1") == restored.table.describe("SO1")


@pytest.mark.parametrize(
    "block",
    [b"", b"\x00", b"\x02abc", b"\x63abc", b"\x01", b"\x01abc", plain_snapshot([]).pack()[:-1]],
)
def test_damaged_block_is_a_state_error(block: bytes) -> None:
    with pytest.raises(StateError):
        Log().table.restore([block], NOW)


def test_block_with_an_impossible_order_is_refused_when_written() -> None:
    with pytest.raises(AssertionError):
        plain_snapshot([(0, Order("SO1", 0))])


def test_extreme_order_survives_a_block() -> None:
    log = Log()
    log.segment("x" * 64, LONG_MAX, headers=((FORWARDED_FROM, b"0/999999999999999999"),))
    [(block, content)] = log.table.take_changed_entries()
    restored = Log()
    restored.table.restore([content or b""], NOW)
    assert log.table.describe("x" * 64) == restored.table.describe("x" * 64)
    assert block == "0"


def test_unknown_order_is_described_as_none() -> None:
    assert Log().table.describe("SO1") is None
    assert Log().table.oldest_deadline_ms() is None
