"""Single records: what their fields are, and exactly which bytes they have."""

from typing import Any

from durabill.schemas import (
    CLOCK_MARK_HEADER,
    SEGMENT_HEADER,
    BadRecord,
    ClockMark,
    SegmentEvent,
    encode_clock_mark,
    encode_segment,
    read_clock_mark,
)
from durabill.schemas.order_opened import (
    OPENING_HEADER,
    OrderOpened,
    encode_opening,
    read_opening,
)
from durabill.schemas.partitioner import murmur2, partition_for
from durabill.stream_processors.core.admission import Place
from durabill.stream_processors.core.order import Policy
from tests.vectors.cases import COUNTS, DAY_MS, Case, judged, raw_opening, raw_segment
from tests.vectors.edges import (
    openings_that_count,
    openings_that_do_not,
    segments_that_count,
    segments_that_do_not,
)
from tests.vectors.orders import T0_MS, fold_one

LONG_MAX = 2**63 - 1
PARTITION_COUNTS = (1, 4, 12, 100)
"""Partitions of the topics that the vectors speak of."""

_ORDERS = (
    "SO1",
    "SO2",
    "order-42",
    "ride-9",
    "日本-7",
    "a",
    "ab",
    "abc",
    "abcd",
    "ü/😀 &%",
    "x" * 64,
)


def segments_file() -> dict[str, Any]:
    """Segments that count, and records that don't, each with the first rule that it breaks."""
    good = [
        *(SegmentEvent(order, 1, T0_MS, T0_MS + 10_000, False) for order in _ORDERS),
        SegmentEvent("SO1", 3, 100, 200, True),
        SegmentEvent("SO1", 2, 0, 1, False),
        SegmentEvent("SO1", 64, 63, 64, False),
        SegmentEvent("SO1", 8_192, 8_191, 8_192, False),
        SegmentEvent("SO1", 4, T0_MS, T0_MS, True),
        SegmentEvent("SO1", 2**53 - 1, T0_MS - DAY_MS, T0_MS, False),
    ]
    return {
        "about": "Values of the segments topic, keyed by the order number. All times are ms since "
        "the epoch. `murmur2` is of the key; `partitions` has the partition by how many there are. "
        "`verdict` is COUNTS, or why a record that comes at `arrival_ms` is a dead letter. What is "
        "`odd` counts all the same.",
        "header_hex": SEGMENT_HEADER.hex(),
        "segments": [_segment(each) for each in good],
        "beyond_2_53": {
            "about": "Numbers are strings here: JSON in JavaScript would round them.",
            "segment": {
                "service_order_number": "SO1",
                "business_data_number": str(LONG_MAX),
                "start_ms": str(T0_MS),
                "end_ms": str(T0_MS + 1),
                "end_identifier": True,
            },
            "value_hex": encode_segment(
                SegmentEvent("SO1", LONG_MAX, T0_MS, T0_MS + 1, True)
            ).hex(),
        },
        "odd": judged(segments_that_count(), counts=True),
        "bad": judged([*_bad_segments(), *segments_that_do_not()]),
    }


def _segment(each: SegmentEvent) -> dict[str, Any]:
    key = each.service_order_number.encode()
    given = fold_one(Place(0, 1), Policy(), each.end_ms, key, encode_segment(each))
    assert not given.dead_letters
    return {
        "segment": {
            "service_order_number": each.service_order_number,
            "business_data_number": each.business_data_number,
            "start_ms": each.start_ms,
            "end_ms": each.end_ms,
            "end_identifier": each.end_identifier,
        },
        "key_hex": key.hex(),
        "value_hex": encode_segment(each).hex(),
        "murmur2": f"{murmur2(key):08x}",
        "partitions": {str(count): partition_for(key, count) for count in PARTITION_COUNTS},
        "arrival_ms": each.end_ms,
        "verdict": COUNTS,
    }


def _bad_segments() -> list[Case]:
    key, end_ms = b"SO1", T0_MS + 10
    fine = raw_segment(key, 1, T0_MS, end_ms)
    head = SEGMENT_HEADER
    cases: list[Case] = [
        ("no value", key, None),
        ("an empty value", key, b""),
        ("the marker alone", key, head[:2]),
        ("a header that is cut off", key, head[:9]),
        ("a header alone", key, head),
        ("a body that is cut off", key, fine[:-1]),
        ("a byte after the body", key, fine + b"\x00"),
        ("a boolean that is 2", key, fine[:-1] + b"\x02"),
        ("a long of eleven bytes", key, head + b"\x06SO1" + b"\x82" * 10 + b"\x00\x02\x04\x00"),
        ("a registry's framing without a registry", key, b"\x00\x00\x00\x00\x07" + fine[10:]),
        ("another fingerprint", key, fine[:2] + bytes.fromhex("0123456789abcdef") + fine[10:]),
        ("no key", None, fine),
        ("another order's key", b"SO2", fine),
        ("an order number of no characters", b"", raw_segment(b"", 1, T0_MS, end_ms)),
        ("an order number of 65 bytes", b"x" * 65, raw_segment(b"x" * 65, 1, T0_MS, end_ms)),
        ("a line feed in the order number", b"a\nb", raw_segment(b"a\nb", 1, T0_MS, end_ms)),
        ("U+0085 in the order number", b"\xc2\x85", raw_segment(b"\xc2\x85", 1, T0_MS, end_ms)),
        ("an order number that is no UTF-8", b"\xff", raw_segment(b"\xff", 1, T0_MS, end_ms)),
        (
            "a surrogate in the order number",
            b"\xed\xa0\x80",
            raw_segment(b"\xed\xa0\x80", 1, T0_MS, end_ms),
        ),
    ]
    sequences = {
        "number 0": (0, T0_MS, end_ms),
        "number -1": (-1, T0_MS, end_ms),
        "a start before the epoch": (1, -1, end_ms),
        "an end before the start": (1, end_ms, T0_MS),
        "an empty segment without the end identifier": (1, T0_MS, T0_MS),
        "an end 60,001 ms after the arrival": (1, T0_MS, T0_MS + 60_001),
        "a segment of 24 h and 1 ms": (1, T0_MS - DAY_MS - 1, T0_MS),
        "an end a window and 1 ms before the arrival": (1, T0_MS - DAY_MS - 9, T0_MS - DAY_MS - 1),
    }
    return [*cases, *((name, key, raw_segment(key, *each)) for name, each in sequences.items())]


def clock_marks_file() -> dict[str, Any]:
    """Clock marks, which producers never write and consumers pass over."""
    marks = [ClockMark("durabill", T0_MS), ClockMark("ü", 0)]
    fine = encode_clock_mark(marks[0])
    bad: list[Case] = [
        ("a clock mark with a key", b"SO1", fine),
        ("a clock mark that is cut off", None, fine[:-1]),
        ("a byte after a clock mark", None, fine + b"\x00"),
    ]
    for mark in marks:
        assert read_clock_mark(None, encode_clock_mark(mark)) == mark
    return {
        "about": "Clock marks in the segments topic, without a key. Workers and gateways write "
        "them, nobody else.",
        "header_hex": CLOCK_MARK_HEADER.hex(),
        "clock_marks": [
            {"clock_mark": each._asdict(), "value_hex": encode_clock_mark(each).hex()}
            for each in marks
        ],
        "bad": judged(bad),
    }


def openings_file() -> dict[str, Any]:
    """Openings of orders, and records that claim to be one."""
    full = OrderOpened(
        "acme:ride-9",
        "acme",
        "bike-7",
        "ride",
        (("city", "Köln"), ("plan", "")),
        T0_MS,
        10_000,
        T0_MS + 7 * DAY_MS,
    )
    bare = OrderOpened("SO1", "default", "", "", (), 0, 1, 0)
    for each in (full, bare):
        key = each.service_order_number.encode()
        assert read_opening(key, encode_opening(each)) == each
    fine = encode_opening(full)
    key = full.service_order_number.encode()
    bad: list[Case] = [
        ("no key", None, fine),
        ("another order's key", b"SO1", fine),
        ("an opening that is cut off", key, fine[:-1]),
        ("a byte after an opening", key, fine + b"\x00"),
        *_bad_openings(bare),
        *openings_that_do_not(),
    ]
    return {
        "about": "Openings of orders, in the segments topic under the order's key. Attributes are "
        "written in the order of their keys, in one block; what is `odd` counts all the same.",
        "header_hex": OPENING_HEADER.hex(),
        "openings": [_opening(each) for each in (full, bare)],
        "odd": judged(openings_that_count(), counts=True),
        "bad": judged(bad),
    }


def _opening(opened: OrderOpened) -> dict[str, Any]:
    return {
        "opening": {**opened._asdict(), "attributes": dict(opened.attributes)},
        "key_hex": opened.service_order_number.encode().hex(),
        "value_hex": encode_opening(opened).hex(),
    }


def _bad_openings(bare: OrderOpened) -> list[Case]:
    """Return openings that break a rule by a field, as their own bytes."""
    wrong = {
        "a tenant of no characters": bare._replace(tenant=""),
        "a tenant with a blank": bare._replace(tenant="a b"),
        "an order number with a line feed": bare._replace(service_order_number="a\nb"),
        "no report interval": bare._replace(report_interval_ms=0),
        "accepted until before it begins": bare._replace(server_timestamp_ms=5),
        "an attribute without a key": bare._replace(attributes=(("", "x"),)),
    }
    out: list[Case] = []
    for name, each in wrong.items():
        try:
            encode_opening(each)
        except BadRecord:
            out.append((name, each.service_order_number.encode(), raw_opening(each)))
    assert len(out) == len(wrong)
    return out
