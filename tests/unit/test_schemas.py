"""The contract: wire forms byte by byte, writer schemas of other ages, the partitioner."""

import contextlib
import io
import json
from dataclasses import FrozenInstanceError, replace
from typing import Any

import avro.io
import avro.schema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from durabill.schemas import (
    SEGMENT_HEADER,
    SEGMENT_SCHEMA,
    TOTAL_HEADER,
    TOTAL_SCHEMA,
    BadRecord,
    BadTotal,
    Interval,
    NumberRange,
    OrderTotal,
    Reason,
    SegmentEvent,
    Status,
    WriterSchemas,
    decode_segment,
    decode_total,
    encode_segment,
    encode_total,
    partition_for,
)
from durabill.schemas.partitioner import murmur2
from durabill.schemas.wire import read_long, zigzag

EXAMPLE = SegmentEvent("SO1", 3, 100, 200, True)
EXAMPLE_BYTES = bytes.fromhex("c301 ba627070e049bb87 06534f31 06 c801 9003 01")
LONG_MAX = 2**63 - 1

LONGS = st.integers(0, LONG_MAX)
ORDER_NUMBERS = (
    st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1, max_size=64)
    .map(lambda text: text.encode()[:64].decode(errors="ignore"))
    .filter(bool)
)


@st.composite
def segments(draw: st.DrawFn) -> SegmentEvent:
    """Any legal segment, the extremes of 64 bits included."""
    start_ms, end_ms = sorted((draw(LONGS), draw(LONGS)))
    end_identifier = draw(st.booleans()) or start_ms == end_ms
    number = draw(st.integers(1, LONG_MAX))
    return SegmentEvent(draw(ORDER_NUMBERS), number, start_ms, end_ms, end_identifier)


TOTAL = OrderTotal(
    service_order_number="SO1",
    revision=2,
    status=Status.INCOMPLETE,
    duration_ms=30,
    upper_bound_ms=50,
    started_ms=100,
    ended_ms=150,
    intervals=(Interval(100, 110), Interval(120, 140)),
    end_number=9,
    missing_numbers=(NumberRange(2, 2), NumberRange(5, 8)),
    segments=4,
    duplicates=1,
    overlap_ms=7,
    gap_ms=20,
    numbers_after_end=0,
    digest="ab" * 32,
    previous_digest="cd" * 32,
    source_partition=3,
    source_offset=1234,
    settled_at_ms=30_200,
)


def rejected(value: bytes | None, writers: WriterSchemas | None = None) -> Reason:
    """Return the reason for which `value` is no segment."""
    with pytest.raises(BadRecord) as error:
        decode_segment(value, writers or WriterSchemas())
    return error.value.reason


def body_by_apache(schema: dict[str, Any], record: dict[str, Any]) -> bytes:
    """Return the Avro body that the Avro project's own Python library writes."""
    out = io.BytesIO()
    writer = avro.io.DatumWriter(avro.schema.parse(json.dumps(schema)))
    writer.write(record, avro.io.BinaryEncoder(out))
    return out.getvalue()


# -- segments on the wire ---------------------------------------------------------------------


def test_worked_example_is_written_byte_for_byte() -> None:
    assert encode_segment(EXAMPLE) == EXAMPLE_BYTES


def test_worked_example_is_read() -> None:
    assert decode_segment(EXAMPLE_BYTES) == EXAMPLE


def test_header_is_marker_and_little_endian_fingerprint() -> None:
    assert bytes.fromhex("c301ba627070e049bb87") == SEGMENT_HEADER


@given(segments())
def test_segment_round_trip(event: SegmentEvent) -> None:
    assert decode_segment(encode_segment(event)) == event


@given(segments())
def test_apache_avro_writes_the_same_bytes(event: SegmentEvent) -> None:
    record = {name: getattr(event, name) for name in SegmentEvent.__slots__}
    assert encode_segment(event) == SEGMENT_HEADER + body_by_apache(SEGMENT_SCHEMA, record)


@given(st.integers(-(2**63), LONG_MAX))
def test_long_round_trip(value: int) -> None:
    data = b"\x55" + zigzag(value) + b"\x55"
    assert read_long(data, 1) == (value, len(data) - 1)


def test_null_value_is_not_avro() -> None:
    assert rejected(None) is Reason.NOT_AVRO


@pytest.mark.parametrize("value", [b"", b"\xc3", b"\xc3\x01", EXAMPLE_BYTES[:9], b"{}", b"\x00"])
def test_without_header_is_not_avro(value: bytes) -> None:
    assert rejected(value) is Reason.NOT_AVRO


@pytest.mark.parametrize("size", range(10, len(EXAMPLE_BYTES)))
def test_truncated_body_is_not_avro(size: int) -> None:
    assert rejected(EXAMPLE_BYTES[:size]) is Reason.NOT_AVRO


def test_trailing_byte_is_not_avro() -> None:
    assert rejected(EXAMPLE_BYTES + b"\x00") is Reason.NOT_AVRO


@pytest.mark.parametrize("byte", [2, 0x7F, 0x80, 0xFF])
def test_end_identifier_other_than_0_or_1_is_not_avro(byte: int) -> None:
    assert rejected(EXAMPLE_BYTES[:-1] + bytes([byte])) is Reason.NOT_AVRO


def test_negative_order_number_length_is_not_avro() -> None:
    assert rejected(SEGMENT_HEADER + b"\x01" + EXAMPLE_BYTES[11:]) is Reason.NOT_AVRO


@pytest.mark.parametrize(
    "long", [b"\x80" * 10 + b"\x00", b"\xff" * 9 + b"\x02", b"\xff" * 9 + b"\x7f", b"\xff" * 11]
)
def test_number_of_more_than_64_bits_is_not_avro(long: bytes) -> None:
    value = SEGMENT_HEADER + b"\x06SO1" + long + EXAMPLE_BYTES[15:]
    assert rejected(value) is Reason.NOT_AVRO


def test_greatest_long_is_read() -> None:
    event = SegmentEvent("SO1", LONG_MAX, LONG_MAX, LONG_MAX, True)
    assert decode_segment(encode_segment(event)) == event


def test_unknown_fingerprint_is_unknown_schema() -> None:
    assert rejected(b"\xc3\x01" + b"\x00" * 8 + EXAMPLE_BYTES[10:]) is Reason.UNKNOWN_SCHEMA


def test_order_number_that_is_no_utf8_is_bad_order_number() -> None:
    for raw in (b"\xff", b"\xed\xa0\x80", b"\xc0\x80"):
        value = SEGMENT_HEADER + zigzag(len(raw)) + raw + EXAMPLE_BYTES[14:]
        assert rejected(value) is Reason.BAD_ORDER_NUMBER


@given(st.binary(max_size=40))
def test_any_bytes_are_read_or_refused(tail: bytes) -> None:
    for value in (tail, SEGMENT_HEADER + tail):
        with contextlib.suppress(BadRecord):
            decode_segment(value)


# -- frozen values ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"service_order_number": ""}, Reason.BAD_ORDER_NUMBER),
        ({"service_order_number": "x" * 65}, Reason.BAD_ORDER_NUMBER),
        ({"service_order_number": "é" * 33}, Reason.BAD_ORDER_NUMBER),
        ({"service_order_number": "a\x00"}, Reason.BAD_ORDER_NUMBER),
        ({"service_order_number": "a\n"}, Reason.BAD_ORDER_NUMBER),
        ({"service_order_number": "a\x7f"}, Reason.BAD_ORDER_NUMBER),
        ({"service_order_number": "a\x85"}, Reason.BAD_ORDER_NUMBER),
        ({"service_order_number": "\ud800"}, Reason.BAD_ORDER_NUMBER),
        ({"business_data_number": 0}, Reason.BAD_BUSINESS_DATA_NUMBER),
        ({"business_data_number": -1}, Reason.BAD_BUSINESS_DATA_NUMBER),
        ({"business_data_number": LONG_MAX + 1}, Reason.BAD_BUSINESS_DATA_NUMBER),
        ({"start_ms": -1}, Reason.BAD_TIME_SEQUENCE),
        ({"start_ms": 201}, Reason.BAD_TIME_SEQUENCE),
        ({"start_ms": -5, "end_ms": -1}, Reason.BAD_TIME_SEQUENCE),
        ({"end_ms": LONG_MAX + 1}, Reason.BAD_TIME_SEQUENCE),
        ({"start_ms": 200, "end_identifier": False}, Reason.BAD_TIME_SEQUENCE),
        ({"service_order_number": "", "business_data_number": 0}, Reason.BAD_ORDER_NUMBER),
        ({"business_data_number": 0, "start_ms": -1}, Reason.BAD_BUSINESS_DATA_NUMBER),
    ],
)
def test_illegal_segment_cannot_be_made(changes: dict[str, Any], reason: Reason) -> None:
    with pytest.raises(BadRecord) as error:
        replace(EXAMPLE, **changes)
    assert error.value.reason is reason
    assert str(error.value) == f"{reason}: {error.value.detail}"


@pytest.mark.parametrize(
    "changes",
    [
        {"service_order_number": "x" * 64},
        {"service_order_number": "é" * 32},
        {"service_order_number": "a\u200db \u3000"},
        {"start_ms": 200},
        {"start_ms": 0, "end_ms": 0},
        {"end_ms": LONG_MAX},
        {"start_ms": 199, "end_identifier": False},
    ],
)
def test_extreme_segment_can_be_made(changes: dict[str, Any]) -> None:
    event = replace(EXAMPLE, **changes)
    assert decode_segment(encode_segment(event)) == event


def test_values_are_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        EXAMPLE.end_ms = 7  # type: ignore[misc]
    with pytest.raises(FrozenInstanceError):
        TOTAL.duration_ms = 7  # type: ignore[misc]


@pytest.mark.parametrize(
    "changes",
    [
        {"intervals": (Interval(100, 120), Interval(120, 130))},
        {"intervals": (Interval(120, 140), Interval(100, 110))},
        {"intervals": (Interval(100, 130), Interval(140, 140))},
        {"duration_ms": 31},
        {"upper_bound_ms": 29},
        {"upper_bound_ms": 51},
        {"upper_bound_ms": None},
        {"gap_ms": 19},
        {"gap_ms": 21},
        {"revision": 0},
        {"previous_digest": ""},
        {"segments": 0},
        {"duplicates": -1},
        {"overlap_ms": -1},
        {"status": Status.COMPLETE},
        {"status": Status.COMPLETE, "missing_numbers": ()},
        {"status": Status.ABANDONED},
        {"end_number": None},
    ],
)
def test_contradictory_total_cannot_be_made(changes: dict[str, Any]) -> None:
    with pytest.raises(BadTotal):
        replace(TOTAL, **changes)


# -- totals on the wire -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "total",
    [
        TOTAL,
        replace(TOTAL, status=Status.ABANDONED, end_number=None),
        replace(TOTAL, status=Status.ABANDONED, end_number=None, upper_bound_ms=None),
        replace(TOTAL, status=Status.RUNNING),
        replace(TOTAL, status=Status.RUNNING, missing_numbers=()),
        replace(TOTAL, status=Status.RUNNING, end_number=None, upper_bound_ms=None),
        replace(TOTAL, missing_numbers=(NumberRange(1, 2),), upper_bound_ms=None),
        replace(TOTAL, status=Status.COMPLETE, missing_numbers=(), upper_bound_ms=30),
        replace(TOTAL, intervals=(), duration_ms=0, gap_ms=50, revision=1, previous_digest=""),
        replace(TOTAL, end_number=LONG_MAX, missing_numbers=(NumberRange(1, LONG_MAX),)),
    ],
)
def test_total_round_trip(total: OrderTotal) -> None:
    value = encode_total(total)
    assert decode_total(value) == total
    assert value == encode_total(decode_total(value))


def fields_of(total: OrderTotal) -> dict[str, Any]:
    """Return a total as Avro's libraries take it."""
    record: dict[str, Any] = {name: getattr(total, name) for name in OrderTotal.__slots__}
    record["status"] = total.status.value
    record["intervals"] = [each._asdict() for each in total.intervals]
    record["missing_numbers"] = [each._asdict() for each in total.missing_numbers]
    return record


def test_total_as_apache_avro_writes_it() -> None:
    assert decode_total(TOTAL_HEADER + body_by_apache(TOTAL_SCHEMA, fields_of(TOTAL))) == TOTAL


def test_total_has_the_fields_of_its_schema_in_order() -> None:
    assert tuple(field["name"] for field in TOTAL_SCHEMA["fields"]) == OrderTotal.__slots__
    assert tuple(field["name"] for field in SEGMENT_SCHEMA["fields"]) == SegmentEvent.__slots__


@given(st.binary(max_size=30), st.integers(0, 200), st.integers(0, 200))
def test_damaged_total_is_refused_or_read(noise: bytes, at: int, removed: int) -> None:
    value = encode_total(TOTAL)
    with contextlib.suppress(BadTotal):
        decode_total(value[:10] + value[10 : 10 + at] + noise + value[10 + at + removed :])


@pytest.mark.parametrize("value", [None, b"", EXAMPLE_BYTES, encode_total(TOTAL) + b"\x00"])
def test_other_values_are_no_total(value: bytes | None) -> None:
    with pytest.raises(BadTotal):
        decode_total(value)


# -- partitioner ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "java_hash"),
    [
        (b"21", -973932308),
        (b"foobar", -790332482),
        (b"a-little-bit-long-string", -985981536),
        (b"a-little-bit-longer-string", -1486304829),
        (b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971),
        (b"abc", 479470107),
    ],
)
def test_murmur2_is_javas(key: bytes, java_hash: int) -> None:
    assert murmur2(key) == java_hash & 0xFFFFFFFF


def test_partition_is_of_the_hash_without_its_sign() -> None:
    assert partition_for(b"21", 12) == (-973932308 & 0x7FFFFFFF) % 12


@given(st.binary(max_size=70), st.integers(1, 1000))
def test_partition_as_other_clients_have_it(key: bytes, partitions: int) -> None:
    from aiokafka.partitioner import DefaultPartitioner

    every = list(range(partitions))
    assert partition_for(key, partitions) == DefaultPartitioner()(key, every, every)
