"""Openings: their bytes, and what is none."""

import io
from typing import Any

import avro.io
import avro.schema
import pytest

from durabill.schemas import (
    OPENING_HEADER,
    OPENING_SCHEMA,
    BadRecord,
    OrderOpened,
    Reason,
    SegmentEvent,
    encode_opening,
    encode_segment,
    is_opening,
    read_opening,
)
from durabill.schemas.wire import zigzag

NOW = 1_800_000_000_000
DAY_MS = 86_400_000
PLAIN = OrderOpened("SO1", "acme", "meter-7", "gpu", (), NOW, 10_000, NOW + DAY_MS)
FULL = PLAIN._replace(attributes=(("plan", "gold"), ("région", "")))
VALUE = encode_opening(FULL)


def body(*parts: bytes, times: tuple[int, int, int] = FULL[-3:]) -> bytes:
    """Return an opening of SO1 whose attributes are `parts`, as they are."""
    texts = (zigzag(len(each)) + each for each in (b"SO1", b"acme", b"meter-7", b"gpu"))
    return OPENING_HEADER + b"".join([*texts, *parts, *map(zigzag, times)])


@pytest.mark.parametrize("opened", [PLAIN, FULL])
def test_avro_reads_what_we_write(opened: OrderOpened) -> None:
    schema = avro.schema.make_avsc_object(OPENING_SCHEMA)
    decoder = avro.io.BinaryDecoder(io.BytesIO(encode_opening(opened)[10:]))
    record: Any = avro.io.DatumReader(schema).read(decoder)
    assert record == opened._asdict() | {"attributes": dict(opened.attributes)}


@pytest.mark.parametrize("opened", [PLAIN, FULL])
def test_we_read_what_avro_writes(opened: OrderOpened) -> None:
    schema = avro.schema.make_avsc_object(OPENING_SCHEMA)
    out = io.BytesIO()
    record = opened._asdict() | {"attributes": dict(opened.attributes)}
    avro.io.DatumWriter(schema).write(record, avro.io.BinaryEncoder(out))
    assert read_opening(b"SO1", OPENING_HEADER + out.getvalue()) == opened


def test_an_opening_at_its_limits_comes_back() -> None:
    attributes = tuple((f"{i:02}" + "k" * 62, "é" * 128) for i in range(16))
    largest = OrderOpened(
        "n" * 64, "T" * 64, "é" * 32, "s" * 64, attributes, 0, DAY_MS, 315_360_000_000
    )
    least = OrderOpened("n", "-", "", "", (), 0, 1, 0)
    for opened in (largest, least):
        key = opened.service_order_number.encode()
        assert read_opening(key, encode_opening(opened)) == opened


def test_attributes_come_sorted_from_any_blocks() -> None:
    one, other = b"\x02b\x02y", b"\x02a\x02x"
    blocks = [
        zigzag(2) + one + other + zigzag(0),
        zigzag(1) + one + zigzag(1) + other + zigzag(0),
        zigzag(-2) + zigzag(8) + one + other + zigzag(0),
    ]
    for each in blocks:
        assert read_opening(b"SO1", body(each)).attributes == (("a", "x"), ("b", "y"))


def test_nothing_else_claims_to_be_an_opening() -> None:
    segment = encode_segment(SegmentEvent("SO1", 1, 1, 2, False))
    assert not any(map(is_opening, (None, b"", segment, VALUE[:9])))
    assert is_opening(VALUE)


NONE = zigzag(0)
NO_OPENINGS: dict[str, tuple[bytes | None, bytes, Reason]] = {
    "no body": (b"SO1", OPENING_HEADER, Reason.NOT_AVRO),
    "a byte too many": (b"SO1", VALUE + b"\0", Reason.NOT_AVRO),
    "an attribute twice": (
        b"SO1",
        body(zigzag(2) + b"\x02a\x02x\x02a\x02y" + NONE),
        Reason.NOT_AVRO,
    ),
    "17 attributes": (
        b"SO1",
        body(zigzag(17) + b"".join(b"\x02%c\0" % (97 + i) for i in range(17)) + NONE),
        Reason.NOT_AVRO,
    ),
    "a block of most attributes": (b"SO1", body(zigzag(-(2**63)) + NONE), Reason.NOT_AVRO),
    "an attribute without a key": (b"SO1", body(zigzag(1) + b"\0\0" + NONE), Reason.NOT_AVRO),
    "an attribute that is no UTF-8": (
        b"SO1",
        body(zigzag(1) + b"\x02a\x02\xff" + NONE),
        Reason.NOT_AVRO,
    ),
    "no key": (None, VALUE, Reason.KEY_MISMATCH),
    "another key": (b"SO2", VALUE, Reason.KEY_MISMATCH),
    "times below the epoch": (b"SO1", body(NONE, times=(-1, 1, 5)), Reason.BAD_TIME_SEQUENCE),
    "an end before the beginning": (b"SO1", body(NONE, times=(6, 1, 5)), Reason.BAD_TIME_SEQUENCE),
    "no interval": (b"SO1", body(NONE, times=(5, 0, 5)), Reason.BAD_TIME_SEQUENCE),
    "an interval of more than a day": (
        b"SO1",
        body(NONE, times=(5, DAY_MS + 1, 5)),
        Reason.BAD_TIME_SEQUENCE,
    ),
}


@pytest.mark.parametrize("name", NO_OPENINGS)
def test_what_is_no_opening(name: str) -> None:
    key, value, reason = NO_OPENINGS[name]
    with pytest.raises(BadRecord) as caught:
        read_opening(key, value)
    assert caught.value.reason is reason


def test_no_beginning_of_an_opening_is_one() -> None:
    for size in range(10, len(VALUE)):
        with pytest.raises(BadRecord, match="NOT_AVRO"):
            read_opening(b"SO1", VALUE[:size])


@pytest.mark.parametrize(
    "changes",
    [
        {"tenant": ""},
        {"tenant": "a b"},
        {"tenant": "a\n"},
        {"tenant": "t" * 65},
        {"client": "é" * 33},
        {"client": "a\x85"},
        {"service": "s" * 65},
        {"service": "\ud800"},
        {"attributes": (("k" * 65, ""),)},
        {"attributes": (("k", "v" * 257),)},
        {"attributes": (("k", ""), ("k", "v"))},
        {"attributes": tuple((str(i), "") for i in range(17))},
        {"server_timestamp_ms": NOW + DAY_MS - 315_360_000_001},
        {"service_order_number": ""},
        {"service_order_number": "n" * 65},
    ],
)
def test_what_is_outside_its_limits_is_not_written(changes: dict[str, Any]) -> None:
    with pytest.raises(BadRecord):
        encode_opening(PLAIN._replace(**changes))
