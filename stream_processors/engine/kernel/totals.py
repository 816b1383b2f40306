"""Settled rows as evidence texts (for the digest) and as Avro bodies of OrderTotal, in bulk.

The same bytes as `order.evidence_digest` hashes and `schemas.encode_total` writes; a property test
holds them together. An event is a row as it was when it settled.
"""

from typing import Any

import numpy as np

from durabill.stream_processors.engine.kernel import compiled
from durabill.stream_processors.engine.kernel.rows import (
    COMPLETE,
    EXTRA_SIZE,
    INTERVALS,
    NUMBERS,
    PIECES_MAX,
)

TEXT_FIRST_LINE = np.frombuffer(b"durabill-evidence-1\n", np.uint8)
TEXT_BYTES_MAX = 20 + 64 + 4 * 21 * PIECES_MAX + 32
TOTAL_BYTES_MAX = 10 + 70 + 30 * 12 + 4 * 10 * (PIECES_MAX + 2) + 140
DIGEST_CHARS = 64
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
def pieces_of(order: Any, event_extra: Any, row: Any) -> None:
    """Put an event's intervals and ranges into `row`, in the layout of an extra."""
    if order.extra >= 0:
        for i in range(EXTRA_SIZE):
            row[i] = event_extra[order.extra, i]
        return
    row[0] = 0
    if order.start_ms < order.end_ms:
        row[0] = 1
        row[INTERVALS] = order.start_ms
        row[INTERVALS + 1] = order.end_ms
    row[1] = 1
    row[NUMBERS] = order.first_number
    row[NUMBERS + 1] = order.last_number + 1


@compiled
def put_decimal(out: Any, at: int, value: int) -> int:
    """Write a non-negative number in decimal; return the position after it."""
    digits = 1
    rest = value
    while rest >= 10:
        rest //= 10
        digits += 1
    for i in range(digits - 1, -1, -1):
        out[at + i] = 48 + value % 10
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
def write_texts(events: Any, count: int, event_extra: Any, row: Any, out: Any, ends: Any) -> None:
    """Write the canonical evidence of `count` events one after the other; `ends[i]` is where.

    `row` is scratch of the size of an extra.
    """
    at = 0
    for i in range(count):
        order = events[i]
        pieces_of(order, event_extra, row)
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
    """Write the digest, and an empty one of the revision before: rows settle for the first time."""
    at = put_long(out, at, DIGEST_CHARS)
    for b in range(DIGEST_CHARS):
        out[at + b] = digests[first + b]
    return put_long(out, at + DIGEST_CHARS, 0)


@compiled
def write_totals(
    events: Any,
    count: int,
    event_at: Any,
    event_status: Any,
    event_extra: Any,
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
        order = events[i]
        pieces_of(order, event_extra, row)
        duration = 0
        for p in range(row[0]):
            duration += row[INTERVALS + 2 * p + 1] - row[INTERVALS + 2 * p]
        segments = 0
        beyond = 0
        for p in range(row[1]):
            first, after = row[NUMBERS + 2 * p], row[NUMBERS + 2 * p + 1]
            segments += after - first
            if order.end_number:
                beyond += max(0, after - max(first, order.end_number + 1))
        span = order.end_ms - order.start_ms
        status = event_status[i]
        for byte in header:
            out[at] = byte
            at += 1
        at = put_key(out, put_long(out, at, order.key_size), order)
        at = put_long(out, at, order.revision)
        at = put_long(out, at, status)
        at = put_long(out, at, duration)
        if order.end_number and row[NUMBERS] == 1:
            at = put_long(out, put_long(out, at, 1), duration if status == COMPLETE else span)
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
        at = put_long(out, at, span - duration)
        at = put_long(out, at, beyond)
        at = put_digest(out, at, digests, i * DIGEST_CHARS)
        at = put_long(out, at, partition)
        at = put_long(out, at, order.source_offset)
        at = put_long(out, at, event_at[i])
        ends[i] = at
