"""The segment's wire form, read strictly.

A body is one string, three longs and a boolean, so it is parsed here by hand: the batch
path's kernel does the same to columns, and both must refuse exactly the same bytes. The
general reader (fastavro) is lenient where a bill can't be: it wraps longs that do not fit
64 bits, and ignores what follows the record.

A body is read into (service_order_number as bytes, business_data_number, start_ms, end_ms,
end_identifier); whether the number is legal is judged later, because a wrong key comes first.
"""

from durabill.schemas.errors import BadRecord, Reason

RawSegment = tuple[bytes, int, int, int, bool]

Headers = tuple[tuple[str, bytes | None], ...]
"""A record's headers, in their order."""


def zigzag(value: int) -> bytes:
    """Return the Avro long `value` (64-bit signed) as a zigzag varint."""
    rest = (value << 1) ^ (value >> 63)
    out = bytearray()
    while rest > 0x7F:
        out.append(rest & 0x7F | 0x80)
        rest >>= 7
    out.append(rest)
    return bytes(out)


def read_long(data: bytes, at: int) -> tuple[int, int]:
    """Return (value, position after it) of the Avro long at `at`; raise BadRecord(NOT_AVRO)."""
    value = shift = 0
    while True:
        if at >= len(data):
            raise BadRecord(Reason.NOT_AVRO, "the body ends inside a number")
        byte = data[at]
        at += 1
        if shift == 63 and byte > 1:
            raise BadRecord(Reason.NOT_AVRO, "a number has more than 64 bits")
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return (value >> 1) ^ -(value & 1), at
        shift += 7


def read_segment_body(data: bytes, at: int) -> RawSegment:
    """Read the SegmentEvent body that fills `data` from `at` on; raise BadRecord(NOT_AVRO)."""
    size, at = read_long(data, at)
    if not 0 <= size <= len(data) - at:
        raise BadRecord(Reason.NOT_AVRO, "the order number is longer than the record")
    order = data[at : at + size]
    business_data_number, at = read_long(data, at + size)
    start_ms, at = read_long(data, at)
    end_ms, at = read_long(data, at)
    if at >= len(data):
        raise BadRecord(Reason.NOT_AVRO, "the body ends before the end identifier")
    if data[at] > 1:
        raise BadRecord(Reason.NOT_AVRO, f"the end identifier is byte {data[at]}, not 0 or 1")
    if at + 1 != len(data):
        raise BadRecord(Reason.NOT_AVRO, f"{len(data) - at - 1} bytes follow the record")
    return order, business_data_number, start_ms, end_ms, data[at] == 1
