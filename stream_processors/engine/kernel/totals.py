"""Settled rows as evidence texts (for the digest) and as Avro bodies of OrderTotal, in bulk.

They are the bytes that `order.evidence_digest` hashes and `schemas.encode_total` writes; a property
test compares them. A settlement is a row as it was when it settled.
"""

from typing import Any

import numpy as np

from durabill.stream_processors.engine.kernel import compiled
from durabill.stream_processors.engine.kernel.rows import (
    COMPLETE,
    INTERVALS,
    LIST_SIZE,
    NUMBERS,
    PIECES_MAX,
    list_inline,
)

TEXT_FIRST_LINE = np.frombuffer(b"durabill-evidence-1\n", np.uint8)
TEXT_BYTES_MAX = 20 + 64 + 4 * 21 * PIECES_MAX + 32
TOTAL_BYTES_MAX = 10 + 70 + 30 * 12 + 4 * 10 * (PIECES_MAX + 2) + 140
DIGEST_BYTES = 32
_HEX_DIGITS = np.frombuffer(b"0123456789abcdef", np.uint8)
_DIGIT_0 = 48
_NEWLINE = 10
_COMMA = 44
_MINUS = 45


@compiled
def key_byte(order: Any, at: int) -> int:
    """Return a byte of a row's key."""
    word = order.k0
    if at >= 32:
        word = order.k4
    elif at >= 24:
        word = order.k3
    elif at >= 16:
        word = order.k2
    elif at >= 8:
        word = order.k1
    return np.int64((word >> np.uint64(8 * (at & 7))) & np.uint64(0xFF))


@compiled
def pieces_of(order: Any, settled_lists: Any, row: Any) -> None:
    """Put the intervals and ranges of a settlement into `row`, in the layout of a piece list."""
    if order.list_at >= 0:
        for i in range(LIST_SIZE):
            row[i] = settled_lists[order.list_at, i]
        return
    list_inline(order, row)


@compiled
def put_decimal(out: Any, at: int, value: int) -> int:
    """Write a non-negative number in decimal; return the position after it."""
    digits = 1
    rest = value
    while rest >= 10:
        rest //= 10
        digits += 1
    for i in range(digits - 1, -1, -1):
        out[at + i] = _DIGIT_0 + value % 10
        value //= 10
    return at + digits


@compiled
def put_long(out: Any, at: int, value: int) -> int:
    """Write an Avro long; return the position after it."""
    rest = np.uint64((value << 1) ^ (value >> 63))
    while rest > np.uint64(0x7F):
        out[at] = np.uint8(rest & np.uint64(0x7F)) | np.uint8(0x80)
        rest >>= np.uint64(7)
        at += 1
    out[at] = np.uint8(rest)
    return at + 1


@compiled
def write_texts(
    settlements: Any, first: int, count: int, settled_lists: Any, row: Any, out: Any, ends: Any
) -> None:
    """Write the canonical evidence of `count` settlements from `first` on; `ends[i]` is where.

    `row` is scratch of the size of a piece list.
    """
    at = 0
    for i in range(count):
        order = settlements[first + i]
        pieces_of(order, settled_lists, row)
        for byte in TEXT_FIRST_LINE:
            out[at] = byte
            at += 1
        at = put_key(out, at, order)
        out[at] = _NEWLINE
        at += 1
        for base, pieces, last in ((INTERVALS, row[0], 0), (NUMBERS, row[1], 1)):
            for p in range(pieces):
                if p:
                    out[at] = _COMMA
                    at += 1
                at = put_decimal(out, at, row[base + 2 * p])
                out[at] = _MINUS
                at = put_decimal(out, at + 1, row[base + 2 * p + 1] - last)
            out[at] = _NEWLINE
            at += 1
        if order.end_number:
            at = put_decimal(out, at, order.end_number)
        else:
            out[at] = _MINUS
            at += 1
        out[at] = _NEWLINE
        at += 1
        ends[i] = at


@compiled
def put_pieces(out: Any, at: int, row: Any, base: int, count: int, last: int) -> int:
    """Write an Avro array of pairs."""
    if count:
        at = put_long(out, at, count)
        for p in range(count):
            at = put_long(out, at, row[base + 2 * p])
            at = put_long(out, at, row[base + 2 * p + 1] - last)
    return put_long(out, at, 0)


@compiled
def put_missing(out: Any, at: int, row: Any, after: int) -> int:
    """Write the Avro array of the numbers of [1, after) that are in none of the ranges."""
    gaps = 0
    for write in range(2):
        if write and gaps:
            at = put_long(out, at, gaps)
        gaps = 0
        expected = 1
        for p in range(row[1] + 1):
            first = after
            if p < row[1]:
                first = min(row[NUMBERS + 2 * p], after)
            if first > expected:
                gaps += 1
                if write:
                    at = put_long(out, at, expected)
                    at = put_long(out, at, first - 1)
            if p < row[1]:
                expected = max(expected, row[NUMBERS + 2 * p + 1])
    return put_long(out, at, 0)


@compiled
def put_key(out: Any, at: int, order: Any) -> int:
    """Write the bytes of a row's key."""
    for b in range(order.key_size):
        out[at + b] = key_byte(order, b)
    return at + order.key_size


@compiled
def put_digest(out: Any, at: int, digests: Any, first: int) -> int:
    """Write the digest at `first` in hex, and an empty one of the revision before.

    There is no revision before: rows settle for the first time.
    """
    at = put_long(out, at, 2 * DIGEST_BYTES)
    for b in range(DIGEST_BYTES):
        out[at] = _HEX_DIGITS[digests[first + b] >> 4]
        out[at + 1] = _HEX_DIGITS[digests[first + b] & 15]
        at += 2
    return put_long(out, at, 0)


@compiled
def count_numbers(row: Any, end_number: int) -> tuple[int, int]:
    """Return how many numbers the ranges hold, and how many of them are after the end (0: none)."""
    count = after_end = 0
    for p in range(row[1]):
        first, after = row[NUMBERS + 2 * p], row[NUMBERS + 2 * p + 1]
        count += after - first
        if end_number:
            after_end += max(0, after - max(first, end_number + 1))
    return count, after_end


@compiled
def write_totals(
    settlements: Any,
    first: int,
    count: int,
    settled_at_ms: Any,
    settled_status: Any,
    settled_lists: Any,
    row: Any,
    digests: Any,
    partition: int,
    header: Any,
    out: Any,
    ends: Any,
) -> None:
    """Write the record values of `count` totals of revision 1; see `write_texts`."""
    at = 0
    for i in range(count):
        order = settlements[first + i]
        pieces_of(order, settled_lists, row)
        duration_ms = 0
        for p in range(row[0]):
            duration_ms += row[INTERVALS + 2 * p + 1] - row[INTERVALS + 2 * p]
        segments, numbers_after_end = count_numbers(row, order.end_number)
        span_ms = order.end_ms - order.start_ms
        status = settled_status[first + i]
        for byte in header:
            out[at] = byte
            at += 1
        at = put_key(out, put_long(out, at, order.key_size), order)
        at = put_long(out, at, order.revision)
        at = put_long(out, at, status)
        at = put_long(out, at, duration_ms)
        if order.end_number and row[NUMBERS] == 1:
            at = put_long(out, put_long(out, at, 1), duration_ms if status == COMPLETE else span_ms)
        else:
            at = put_long(out, at, 0)
        at = put_long(out, at, order.start_ms)
        at = put_long(out, at, order.end_ms)
        at = put_pieces(out, at, row, INTERVALS, row[0], 0)
        if order.end_number:
            at = put_long(out, at, 1)
            at = put_long(out, at, order.end_number)
        else:
            at = put_long(out, at, 0)
        at = put_missing(out, at, row, row[NUMBERS + 2 * row[1] - 1])
        at = put_long(out, at, segments)
        at = put_long(out, at, order.accepted - segments)
        at = put_long(out, at, order.overlap_ms)
        at = put_long(out, at, span_ms - duration_ms)
        at = put_long(out, at, numbers_after_end)
        at = put_digest(out, at, digests, i * DIGEST_BYTES)
        at = put_long(out, at, partition)
        at = put_long(out, at, order.source_offset)
        at = put_long(out, at, settled_at_ms[first + i])
        ends[i] = at
