"""The bytes of a record: its frame, its headers, and a segment's body, read without allocation.

Every read is checked against the end of its source. `batch.read_record` and `schemas.wire` are the
plain way to read the same; both ways accept and refuse the same bytes.
"""

from typing import Any

import numpy as np

from durabill.stream_processors.engine.kernel import compiled, hot
from durabill.stream_processors.engine.kernel.rows import KEY_BYTES_MAX
from durabill.stream_processors.engine.kernel.unaligned import load_u64, trailing_zeros

HEADER_BYTES = 10
HEADERS_MAX = 1000  # as in `batch`, which a test holds it against
FORWARDED_FROM = np.frombuffer(b"forwarded_from", np.uint8)  # as in `schemas.headers`
_NAME_BYTES = len(FORWARDED_FROM)

# What a record is, int64: first its frame,
AFTER = 0  # where the next record starts
DELTA = 1  # its offset less the batch's
KEY_AT = 2
KEY_SIZE = 3  # -1: null
VALUE_AT = 4
VALUE_END = 5
FORWARDED = 6  # 1 if a header says that it was forwarded from a wrong partition
# then the segment that it holds,
NUMBER = 7
START_MS = 8
END_MS = 9
IS_END = 10
# and whether that has been read already.
IS_READ = 11
AT = 12  # where it starts
FIELDS = 16

# A record is read by words only if so many bytes follow it; at a batch's end it is byte by byte.
BYTES_AFTER = 24
_LENGTH_BYTES_MIN = 28  # an ordinary record has more, with the shortest of names
_ATTRIBUTES_BYTES = 1
_VALUE_BYTES_MIN = HEADER_BYTES + 1 + 4  # without the name
_STOPS = np.uint64(0x8080808080808080)
_SEVENS = np.uint64(0x7F7F7F7F7F7F7F7F)
_ODD_7, _EVEN_7 = np.uint64(0x7F007F007F007F00), np.uint64(0x007F007F007F007F)
_ODD_14, _EVEN_14 = np.uint64(0x3FFF00003FFF0000), np.uint64(0x00003FFF00003FFF)
_HIGH_28, _LOW_28 = np.uint64(0x0FFFFFFF00000000), np.uint64(0x000000000FFFFFFF)
_LOW_16 = np.uint64(0xFFFF)
_1, _2, _4 = np.uint64(1), np.uint64(2), np.uint64(4)


@hot
def varint_of(word: Any) -> tuple[int, int]:
    """Return (zigzag varint, its size) of what starts a word; size 0: it is longer than a word."""
    stops = ~word & _STOPS
    if stops == 0:
        return 0, 0
    bits = word & (stops ^ (stops - _1)) & _SEVENS
    bits = (bits & _EVEN_7) | ((bits & _ODD_7) >> _1)
    bits = (bits & _EVEN_14) | ((bits & _ODD_14) >> _2)
    bits = (bits & _LOW_28) | ((bits & _HIGH_28) >> _4)
    return np.int64(bits >> _1) ^ -np.int64(bits & _1), (trailing_zeros(stops) >> 3) + 1


@hot
def read_varint(data: Any, at: int, end: int) -> tuple[int, int]:
    """Return (zigzag varint, position after it); the position is -1 if it doesn't fit."""
    value = np.uint64(0)
    shift = np.uint64(0)
    while at < end:
        byte = data[at]
        at += 1
        if shift == np.uint64(63) and byte > 1:
            return 0, -1
        value |= np.uint64(byte & 0x7F) << shift
        if byte < 0x80:
            return np.int64(value >> np.uint64(1)) ^ -np.int64(value & np.uint64(1)), at
        shift += np.uint64(7)
    return 0, -1


@hot
def was_forwarded(data: Any, at: int, end: int) -> int:
    """Look through a record's headers: 1 if one says it was forwarded, 0 if none, -1 if broken."""
    found = 0
    count, at = read_varint(data, at, end)
    if at < 0 or not 0 <= count <= HEADERS_MAX:
        return -1
    for _ in range(count):
        size, at = read_varint(data, at, end)
        if at < 0 or size < 0 or size > end - at:
            return -1
        if size == _NAME_BYTES:
            same = True
            for i in range(_NAME_BYTES):
                same &= data[at + i] == FORWARDED_FROM[i]
            if same:
                found = 1
        at += size
        size, at = read_varint(data, at, end)
        if at < 0 or size > end - at:
            return -1
        at += max(size, 0)
    return found if at == end else -1


@hot
def read_ordinary(data: Any, at: Any, head: Any, tail: Any, record: Any) -> bool:
    """Read an ordinary record, frame and segment, by words; False: read it with care.

    What it accepts, `read_frame` and `parse_segment` accept and read alike. Reads at most
    BYTES_AFTER bytes after the record's end. `head` and `tail` are the schema's header as words.
    """
    size = data.shape[0]
    if at + BYTES_AFTER > size:
        return False
    length, used = varint_of(load_u64(data, at))
    at += used
    end = at + length
    if used == 0 or length < _LENGTH_BYTES_MIN or end > size - BYTES_AFTER:
        return False
    at += _ATTRIBUTES_BYTES
    stops = ~load_u64(data, at) & _STOPS
    if stops == 0:
        return False
    at += (trailing_zeros(stops) >> 3) + 1
    record[DELTA], used = varint_of(load_u64(data, at))
    at += used
    if used == 0 or not 0 <= record[DELTA] < 2**31:
        return False
    if data[at] & 1 or not 2 <= data[at] <= 2 * KEY_BYTES_MAX:
        return False
    key_size = np.int64(data[at] >> 1)
    record[AFTER], record[KEY_AT], record[KEY_SIZE] = end, at + 1, key_size
    at += 1 + key_size
    if at >= end:
        return False
    value_size, used = varint_of(load_u64(data, at))
    at += used
    if used == 0 or value_size < _VALUE_BYTES_MIN + key_size or value_size >= end - at:
        return False
    value_end = at + value_size
    record[VALUE_AT], record[VALUE_END] = at, value_end
    has_headers = data[value_end] != 0 or value_end + 1 != end
    if has_headers and was_forwarded(data, value_end, end) != 0:
        return False
    record[FORWARDED] = 0
    record[IS_READ] = 1
    return read_ordinary_segment(data, head, tail, record)


@hot
def read_ordinary_segment(data: Any, head: Any, tail: Any, record: Any) -> bool:
    """Read a value that is long enough for its header, the record's name and four bytes."""
    at, end, size = record[VALUE_AT], record[VALUE_END], record[KEY_SIZE]
    if load_u64(data, at) != head or load_u64(data, at + 8) & _LOW_16 != tail:
        return False
    at += HEADER_BYTES
    if data[at] != 2 * size or not are_same(data, at + 1, record[KEY_AT], size):
        return False
    at += 1 + size
    record[NUMBER], used = varint_of(load_u64(data, at))
    if used == 0:
        return False
    at += used
    record[START_MS], used = varint_of(load_u64(data, at))
    if used == 0:
        return False
    at += used
    record[END_MS], used = varint_of(load_u64(data, at))
    at += used
    if used == 0 or at + 1 != end or data[at] > 1:
        return False
    record[IS_END] = data[at]
    return True


@hot
def are_same(data: Any, at: int, other: int, size: int) -> bool:
    """Tell whether the `size` bytes at two positions are equal; eight more must follow both."""
    differ = np.uint64(0)
    for w in range(size >> 3):
        differ |= load_u64(data, at + 8 * w) ^ load_u64(data, other + 8 * w)
    whole = size & ~7
    last = load_u64(data, at + whole) ^ load_u64(data, other + whole)
    return differ | (last & ((_1 << np.uint64(8 * (size & 7))) - _1)) == 0


@hot
def read_frame(data: Any, at: int, record: Any) -> bool:
    """Read the frame of the record at `at`; False if it doesn't add up."""
    size = data.shape[0]
    length, at = read_varint(data, at, size)
    if at < 0 or length < 1 or length > size - at:
        return False
    end = at + length
    record[AFTER] = end
    _, at = read_varint(data, at + 1, end)  # past the attributes: the timestamp's delta
    if at < 0:
        return False
    record[DELTA], at = read_varint(data, at, end)
    if at < 0 or not 0 <= record[DELTA] < 2**31:
        return False
    key_size, at = read_varint(data, at, end)
    if at < 0 or key_size > end - at:
        return False
    record[KEY_AT] = at
    record[KEY_SIZE] = key_size
    value_size, at = read_varint(data, at + max(key_size, 0), end)
    if at < 0 or value_size > end - at:
        return False
    record[VALUE_AT] = at
    record[VALUE_END] = at + max(value_size, 0)
    record[FORWARDED] = was_forwarded(data, record[VALUE_END], end)
    record[IS_READ] = 0
    return record[FORWARDED] >= 0


@hot
def parse_segment(data: Any, header: Any, record: Any) -> bool:
    """Parse a value of our own schema, strictly; False: the plain core has to look at it."""
    if record[IS_READ]:
        return True
    key_at, key_size = record[KEY_AT], record[KEY_SIZE]
    at, end = record[VALUE_AT], record[VALUE_END]
    if end - at < HEADER_BYTES or not 1 <= key_size <= KEY_BYTES_MAX:
        return False
    if load_u64(data, at) != load_u64(header, 0):
        return False
    if data[at + 8] != header[8] or data[at + 9] != header[9]:
        return False
    size, at = read_varint(data, at + HEADER_BYTES, end)
    if at < 0 or size != key_size or size > end - at:
        return False
    for i in range(key_size):
        if data[at + i] != data[key_at + i]:
            return False
    record[NUMBER], at = read_varint(data, at + size, end)
    if at < 0:
        return False
    record[START_MS], at = read_varint(data, at, end)
    if at < 0:
        return False
    record[END_MS], at = read_varint(data, at, end)
    if at < 0 or at + 1 != end or data[at] > 1:
        return False
    record[IS_END] = data[at]
    record[IS_READ] = 1
    return True


@hot
def is_unreadable(data: Any, header: Any, record: Any, others: int, registry: int) -> bool:
    """Tell whether the plain core can't read a value either that `parse_segment` has refused.

    Another fingerprint can be right only if `others` are known, an id only with a `registry`; an
    opening's is, whose header stands in `header` after the segment's.
    """
    at, end = record[VALUE_AT], record[VALUE_END]
    if at == end:
        return True
    if data[at] == 0:
        return registry == 0
    if data[at] != header[0] or end - at < HEADER_BYTES:
        return True
    if load_u64(data, at) == load_u64(header, HEADER_BYTES) and (
        data[at + 8] == header[HEADER_BYTES + 8] and data[at + 9] == header[HEADER_BYTES + 9]
    ):
        return False
    if others == 0:
        return True
    for i in range(HEADER_BYTES):
        if data[at + i] != header[i]:
            return False
    return True


@compiled
def is_plain_text(data: Any, at: int, size: int) -> bool:
    """Tell whether a key is printable ASCII, so certainly a legal order number."""
    for i in range(size):
        if data[at + i] < 0x20 or data[at + i] > 0x7E:
            return False
    return True


@compiled
def partition_of(data: Any, at: int, size: int, partitions: int) -> int:
    """Return the partition of a key; see `schemas.partitioner`."""
    m = np.uint32(0x5BD1E995)
    h = np.uint32(0x9747B28C) ^ np.uint32(size)
    whole = size & ~3
    for i in range(at, at + whole, 4):
        k = (
            np.uint32(data[i])
            | (np.uint32(data[i + 1]) << np.uint32(8))
            | (np.uint32(data[i + 2]) << np.uint32(16))
            | (np.uint32(data[i + 3]) << np.uint32(24))
        )
        k = np.uint32(k * m)
        k = np.uint32((k ^ (k >> np.uint32(24))) * m)
        h = np.uint32(np.uint32(h * m) ^ k)
    if whole < size:
        for i in range(size - whole - 1, -1, -1):
            h = np.uint32(h ^ (np.uint32(data[at + whole + i]) << np.uint32(8 * i)))
        h = np.uint32(h * m)
    h = np.uint32((h ^ (h >> np.uint32(13))) * m)
    h = np.uint32(h ^ (h >> np.uint32(15)))
    return np.int64(h & np.uint32(0x7FFFFFFF)) % partitions
