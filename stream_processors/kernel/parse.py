"""The bytes of a record: its frame, its headers, and a segment's body, read without allocation.

Every read is checked against the end of what it is read from. The plain way to read the same is
`batch.read_record` and `schemas.wire`; both accept and refuse the same bytes.
"""

from typing import Any

import numpy as np

from stream_processors.kernel import compiled, hot
from stream_processors.kernel.rows import KEY_BYTES_MAX
from stream_processors.kernel.unaligned import load_u64

HEADER_BYTES = 10
FORWARDED_FROM = np.frombuffer(b"forwarded_from", np.uint8)
_NAME_BYTES = len(FORWARDED_FROM)

# Fields of a record's frame, int64.
AFTER = 0  # where the next record starts
DELTA = 1  # its offset less the batch's
KEY_AT = 2
KEY_SIZE = 3  # -1: null
VALUE_AT = 4
VALUE_END = 5
SENT_ON = 6  # 1 if a header says that it came from a wrong partition
FRAME = 7

# Fields of a parsed segment, int64.
NUMBER = 0
BEGIN = 1
END = 2
IS_END = 3
SEGMENT = 4


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
def was_sent_on(data: Any, at: int, end: int) -> int:
    """Look through a record's headers: 1 if one says it was sent on, 0 if none, -1 if broken."""
    found = 0
    count, at = read_varint(data, at, end)
    if at < 0 or count < 0:
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
def read_frame(data: Any, at: int, frame: Any) -> bool:
    """Read the frame of the record at `at`; False if it doesn't add up."""
    size = data.shape[0]
    length, at = read_varint(data, at, size)
    if at < 0 or length < 1 or length > size - at:
        return False
    end = at + length
    frame[AFTER] = end
    _, at = read_varint(data, at + 1, end)  # past the attributes: the timestamp's delta
    if at < 0:
        return False
    frame[DELTA], at = read_varint(data, at, end)
    if at < 0 or not 0 <= frame[DELTA] < 2**31:
        return False
    key_size, at = read_varint(data, at, end)
    if at < 0 or key_size > end - at:
        return False
    frame[KEY_AT] = at
    frame[KEY_SIZE] = key_size
    value_size, at = read_varint(data, at + max(key_size, 0), end)
    if at < 0 or value_size > end - at:
        return False
    frame[VALUE_AT] = at
    frame[VALUE_END] = at + max(value_size, 0)
    frame[SENT_ON] = was_sent_on(data, frame[VALUE_END], end)
    return frame[SENT_ON] >= 0


@hot
def parse_segment(data: Any, frame: Any, header: Any, out: Any) -> bool:
    """Parse a value of our own schema, strictly; False: the plain core has to look at it."""
    key_at, key_size = frame[KEY_AT], frame[KEY_SIZE]
    at, end = frame[VALUE_AT], frame[VALUE_END]
    if end - at < HEADER_BYTES or not 1 <= key_size <= KEY_BYTES_MAX:
        return False
    if load_u64(data, at) != load_u64(header, 0):
        return False
    if data[at + 8] != header[8] or data[at + 9] != header[9]:
        return False
    size, at = read_varint(data, at + HEADER_BYTES, end)
    if at < 0 or size != key_size or size > end - at:
        return False
    i = 0
    while i + 8 <= key_size:
        if load_u64(data, at + i) != load_u64(data, key_at + i):
            return False
        i += 8
    while i < key_size:
        if data[at + i] != data[key_at + i]:
            return False
        i += 1
    number, at = read_varint(data, at + size, end)
    if at < 0:
        return False
    start, at = read_varint(data, at, end)
    if at < 0:
        return False
    stop, at = read_varint(data, at, end)
    if at < 0 or at + 1 != end or data[at] > 1:
        return False
    out[NUMBER] = number
    out[BEGIN] = start
    out[END] = stop
    out[IS_END] = data[at]
    return True


@hot
def is_ours_or_nothing(data: Any, frame: Any, header: Any) -> bool:
    """Tell whether a value is of our own schema or of none at all: what we can't read, nobody can.

    Another fingerprint, or a registry's framing, may be of a schema that the plain core knows.
    """
    at, end = frame[VALUE_AT], frame[VALUE_END]
    if at == end:
        return True
    if end - at < HEADER_BYTES:
        return data[at] != 0
    if load_u64(data, at) == load_u64(header, 0):
        return data[at + 8] == header[8] and data[at + 9] == header[9]
    return data[at] != 0 and data[at] != header[0]


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
