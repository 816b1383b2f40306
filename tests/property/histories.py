"""Random histories of a partition, and the log that they make."""

import itertools
from collections.abc import Sequence
from dataclasses import replace

from hypothesis import strategies as st

from durabill.schemas import (
    OPENING_HEADER,
    SEGMENT_HEADER,
    OrderTotal,
    WriterSchemas,
    decode_total,
)
from durabill.schemas.wire import zigzag
from durabill.stream_processors.core.order import Policy
from durabill.stream_processors.engine.batch import Chunk
from durabill.stream_processors.engine.plain import PlainTable
from durabill.stream_processors.engine.table import Effects, IntervalTable, Place
from tests.property.batches import encode_batch
from tests.property.oracle import Entry, Opening, Segment, Times

BASE_MS = 300_000_000
TIMES = Times(grace_ms=5, idle_ms=9, window_ms=60, interim_ms=6, pieces_max=3)
POLICY = Policy(TIMES.grace_ms, TIMES.idle_ms, TIMES.window_ms, TIMES.interim_ms)
FAR_FUTURE_MS = BASE_MS * 1_000

# A little time mostly; now and then the broker's clock back, past a deadline, past forgetting.
STEPS_MS = st.sampled_from([0] * 6 + [1, 1, 2, 3, 4, 5, 8, 9, 30, -3, 59_990, 60_055, 60_200])
AGES_MS = st.sampled_from(
    [0, 0, 1, 2, 3, 4, 6, 8, 11, 15, 30, 59, 60, 61, 66, -4, -60_000, -60_001]
)
LENGTHS_MS = st.sampled_from([0, 0, 1, 2, 3, 5, 8, 13, 25])


@st.composite
def segments(draw: st.DrawFn, append_ms: int, orders: int) -> Segment:
    """A segment that arrives at about `append_ms`, mostly legal."""
    end_ms = append_ms - draw(AGES_MS)
    length_ms = draw(LENGTHS_MS)
    end_identifier = draw(st.sampled_from([False, False, True])) or length_ms == 0
    order = f"SO{draw(st.integers(1, orders))}"
    number = draw(st.sampled_from([1, 2, 3, 4] * 3 + [6, 8]))
    return Segment(order, number, end_ms - length_ms, end_ms, end_identifier)


@st.composite
def bad_entries(draw: st.DrawFn, offset: int, append_ms: int, orders: int) -> Entry:
    """A record that must become a dead letter."""
    good = draw(segments(append_ms, orders))
    key = good.order.encode()
    at = (good.start_ms, good.end_ms)
    bad = {
        "number": Segment(good.order, 0, *at, True),
        "backwards": Segment(good.order, 1, append_ms, append_ms - 1, True),
        "negative": Segment(good.order, 1, -1, append_ms, True),
        "empty": Segment(good.order, 1, append_ms, append_ms, False),
        "future": Segment(good.order, 1, append_ms, append_ms + 60_001, False),
        "long": Segment(good.order, 1, append_ms - 86_400_001, append_ms, False),
        "late": Segment(good.order, 1, append_ms - 70, append_ms - 61, False),
        "order": Segment("", 1, *at, True),
        "control": Segment("a\nb", 1, *at, True),
    }
    kind = draw(st.sampled_from([*bad, "key", "NOT_AVRO", "UNKNOWN_SCHEMA"]))
    if kind == "key":
        return Entry(offset, append_ms, b"SO", good)
    if kind in bad:
        return Entry(offset, append_ms, bad[kind].order.encode(), bad[kind])
    return Entry(offset, append_ms, key, None, kind)


@st.composite
def histories(draw: st.DrawFn, orders: int = 3, size_max: int = 30) -> list[Entry]:
    """A log of some orders: segments in any order, repeats, garbage, jumps of time and offset."""
    log: list[Entry] = []
    append_ms, offset = BASE_MS, draw(st.integers(0, 3))
    for _ in range(draw(st.integers(1, size_max))):
        append_ms += draw(STEPS_MS)
        kind = draw(st.sampled_from(["segment"] * 5 + ["repeat"] * 3 + ["bad"]))
        if kind == "bad":
            log.append(draw(bad_entries(offset, append_ms, orders)))
        elif kind == "repeat" and log:
            again = draw(st.sampled_from(log))
            log.append(Entry(offset, append_ms, again.key, again.segment, again.garbage))
        else:
            segment = draw(segments(append_ms, orders))
            log.append(Entry(offset, append_ms, segment.order.encode(), segment))
        offset += draw(st.sampled_from([1, 1, 1, 1, 3]))
    return log


# How long after its arrival an opening accepts segments: less than any wait of the policy, or more.
UNTIL_MS = st.sampled_from([0, 3, 9, 30, 90, 400, 60_100, 130_000, -1])
OWNERS = st.sampled_from([("a", "x"), ("a", "x"), ("a", "y"), ("b", "x")])


@st.composite
def opened_histories(draw: st.DrawFn, size_max: int = 30) -> list[Entry]:
    """A log of two orders with openings: first ones, repeats, others', and late segments."""
    log: list[Entry] = []
    append_ms, offset = BASE_MS, 0
    for _ in range(draw(st.integers(1, size_max))):
        append_ms += draw(STEPS_MS)
        kind = draw(st.sampled_from(["segment"] * 5 + ["repeat"] * 3 + ["opening"] * 3))
        if kind == "opening":
            order = f"SO{draw(st.integers(1, 2))}"
            begin_ms = append_ms - draw(AGES_MS)
            until_ms = max(begin_ms, append_ms + draw(UNTIL_MS))
            opening = Opening(order, draw(OWNERS), begin_ms, until_ms)
            log.append(Entry(offset, append_ms, order.encode(), None, opening=opening))
        elif kind == "repeat" and log:
            log.append(replace(draw(st.sampled_from(log)), offset=offset, append_ms=append_ms))
        else:
            segment = draw(segments(append_ms, 2))
            log.append(Entry(offset, append_ms, segment.order.encode(), segment))
        offset += draw(st.sampled_from([1, 1, 1, 1, 3]))
    return log


@st.composite
def extended_histories(draw: st.DrawFn, size_max: int = 9) -> list[Entry]:
    """A log of one order that is opened again and again, with segments at the edge of too late."""
    log: list[Entry] = []
    append_ms = BASE_MS
    for offset in range(draw(st.integers(3, size_max))):
        append_ms += draw(st.sampled_from([0, 1, 5, 30, 61] * 3 + [60_100]))
        if not log or draw(st.sampled_from([True, False])):
            until_ms = append_ms + draw(st.sampled_from([0, 5, 40, 100]))
            owner = draw(st.sampled_from([("a", "x")] * 7 + [("a", "y")]))
            opening = Opening("SO1", owner, append_ms - 200, until_ms)
            log.append(Entry(offset, append_ms, b"SO1", None, opening=opening))
        else:
            end_ms = append_ms - draw(st.sampled_from([0, 59, 61, 61, 80, 120, 190]))
            number, is_end = draw(st.integers(1, 3)), draw(st.booleans())
            segment = Segment("SO1", number, end_ms - draw(st.integers(1, 9)), end_ms, is_end)
            log.append(Entry(offset, append_ms, b"SO1", segment))
    return log


@st.composite
def sudden_histories(draw: st.DrawFn) -> list[Entry]:
    """Legal records of a few orders that all arrive at one instant: before any deadline."""
    found = draw(st.lists(segments(BASE_MS, 2), min_size=1, max_size=14))
    legal = [each for each in found if -60_000 <= BASE_MS - each.end_ms <= 60]
    return arriving_together(legal)


def arriving_together(found: Sequence[Segment]) -> list[Entry]:
    """Return the log of these segments, all with one append time."""
    return [Entry(at, BASE_MS, each.order.encode(), each) for at, each in enumerate(found)]


def value_of(entry: Entry) -> bytes:
    """Return the record's value, written without the code under test's checks."""
    if entry.opening is not None:
        return opening_value(entry.opening)
    if entry.segment is None:
        return b"\xc3\x01garbage!" if entry.garbage == "UNKNOWN_SCHEMA" else b"\x00garbage"
    segment, order = entry.segment, entry.segment.order.encode()
    numbers = (segment.number, segment.start_ms, segment.end_ms)
    body = zigzag(len(order)) + order + b"".join(zigzag(number) for number in numbers)
    return SEGMENT_HEADER + body + bytes([segment.end_identifier])


def opening_value(opening: Opening) -> bytes:
    """Return the record value of an opening without service and attributes."""
    texts = (opening.order.encode(), *(each.encode() for each in opening.owner), b"")
    body = b"".join(zigzag(len(each)) + each for each in texts) + zigzag(0)
    numbers = (opening.begin_ms, 10_000, opening.until_ms)
    return OPENING_HEADER + body + b"".join(map(zigzag, numbers))


def chunk_of(log: Sequence[Entry], first_offset: int = 0, codec: str = "none") -> Chunk:
    """Return a chunk of these records: a new batch where the append time changes."""
    data = b""
    at = 0
    while at < len(log):
        end = at + 1
        while end < len(log) and log[end].append_ms == log[at].append_ms:
            end += 1
        entries = [(each.offset, (each.key, value_of(each), ())) for each in log[at:end]]
        data += encode_batch(log[at].offset, log[at].append_ms, entries, codec=codec)
        at = end
    return Chunk(first_offset, log[-1].offset + 1 if log else first_offset, data)


def new_table(pieces_max: int = TIMES.pieces_max) -> IntervalTable:
    """Return the empty table of a topic's only partition."""
    return PlainTable(Place(0, 1), POLICY, WriterSchemas(), pieces_max=pieces_max)


def totals_in(effects: Sequence[Effects]) -> list[OrderTotal]:
    """Return the totals that come with these effects, in their sequence."""
    totals = []
    for published in (total for each in effects for total in each.totals):
        totals.append(decode_total(published.value))
        assert published.key == totals[-1].service_order_number.encode()
    return totals


def by_order(effects: Sequence[Effects]) -> dict[str, list[OrderTotal]]:
    """Return each order's totals in their sequence."""
    found: dict[str, list[OrderTotal]] = {}
    for total in totals_in(effects):
        found.setdefault(total.service_order_number, []).append(total)
    return found


def run(log: Sequence[Entry], cuts: Sequence[int] = ()) -> dict[str, list[OrderTotal]]:
    """Return each order's totals, the log cut into chunks before the records at `cuts`."""
    table = new_table()
    edges = sorted({0, *(cut for cut in cuts if cut < len(log)), len(log)})
    effects = [table.fold(chunk_of(log[start:end])) for start, end in itertools.pairwise(edges)]
    return by_order([*effects, table.tick(FAR_FUTURE_MS)])
