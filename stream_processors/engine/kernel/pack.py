"""Records in columns put together as uncompressed record batches, for what was archived.

A column of bytes is its positions (int32, one more than rows), its data, and for each row 1 where
it is null. Headers are two such columns for all rows together, and the positions of each row's.
"""

from typing import Any

from durabill.stream_processors.engine.kernel import compiled

BATCH_RECORDS_MAX = 10_000
BATCH_BYTES_MAX = 4 * 1024 * 1024
"""A batch ends with the record that makes it so large: far less than a batch may unpack to."""

HEADER_BYTES = 61  # as in `batch`, which a test holds it against
RECORD_FRAME_BYTES = 40
"""The most that a record takes besides its key, value and headers."""

HEADER_FRAME_BYTES = 10
_MAGIC, _MAGIC_AT = 2, 16
_LOG_APPEND_TIME = 8


@compiled
def put_int(out: Any, at: int, value: int, size: int) -> int:
    """Write a big-endian number of so many bytes; return the position after it."""
    for i in range(size):
        out[at + i] = (value >> (8 * (size - 1 - i))) & 0xFF
    return at + size


@compiled
def put_varint(out: Any, at: int, value: int) -> int:
    """Write a number of at most 62 bits, zigzag; return the position after it."""
    rest = (value << 1) ^ (value >> 63)
    while rest > 0x7F:
        out[at] = rest & 0x7F | 0x80
        rest >>= 7
        at += 1
    out[at] = rest
    return at + 1


@compiled
def varint_size(value: int) -> int:
    """Return how many bytes `put_varint` takes."""
    rest = (value << 1) ^ (value >> 63)
    size = 1
    while rest > 0x7F:
        rest >>= 7
        size += 1
    return size


@compiled
def put_bytes(out: Any, at: int, data: Any, start: int, stop: int, is_null: int) -> int:
    """Write bytes with their length before them; return the position after them."""
    if is_null:
        return put_varint(out, at, -1)
    at = put_varint(out, at, stop - start)
    for i in range(start, stop):
        out[at] = data[i]
        at += 1
    return at


@compiled
def put_batch_header(
    out: Any, at: int, end: int, base_offset: int, last_delta: int, append_ms: int, count: int
) -> None:
    """Write the header of the batch that reaches from `at` to `end`."""
    put_int(out, at, base_offset, 8)
    put_int(out, at + 8, end - at - 12, 4)
    put_int(out, at + 12, 0, 4)
    out[at + _MAGIC_AT] = _MAGIC
    put_int(out, at + 17, 0, 4)
    put_int(out, at + 21, _LOG_APPEND_TIME, 2)
    put_int(out, at + 23, last_delta, 4)
    put_int(out, at + 27, append_ms, 8)
    put_int(out, at + 35, append_ms, 8)
    put_int(out, at + 43, -1, 8)
    put_int(out, at + 51, -1, 2)
    put_int(out, at + 53, -1, 4)
    put_int(out, at + 57, count, 4)


@compiled
def pack_batches(
    offsets: Any,
    append_ms: Any,
    key_at: Any,
    keys: Any,
    key_null: Any,
    value_at: Any,
    values: Any,
    value_null: Any,
    header_at: Any,
    name_at: Any,
    names: Any,
    content_at: Any,
    contents: Any,
    content_null: Any,
    out: Any,
) -> int:
    """Write all rows as batches into `out`, and return how many bytes that took.

    A batch has one append time. `out` has room for the three FRAME and HEADER bytes of each.
    """
    rows = offsets.shape[0]
    at = row = 0
    while row < rows:
        first, start = row, at
        base, time_ms = offsets[row], append_ms[row]
        at += HEADER_BYTES
        while row < rows and append_ms[row] == time_ms and row - first < BATCH_RECORDS_MAX:
            if at - start >= BATCH_BYTES_MAX:
                break
            key_size = key_at[row + 1] - key_at[row]
            value_size = value_at[row + 1] - value_at[row]
            delta = offsets[row] - base
            size = 2 + varint_size(delta) + varint_size(header_at[row + 1] - header_at[row])
            size += 1 if key_null[row] else varint_size(key_size) + key_size
            size += 1 if value_null[row] else varint_size(value_size) + value_size
            for header in range(header_at[row], header_at[row + 1]):
                name_size = name_at[header + 1] - name_at[header]
                content_size = content_at[header + 1] - content_at[header]
                size += varint_size(name_size) + name_size
                size += 1 if content_null[header] else varint_size(content_size) + content_size
            at = put_varint(out, at, size)
            out[at] = out[at + 1] = 0  # attributes; the timestamp's delta
            at = put_varint(out, at + 2, delta)
            at = put_bytes(out, at, keys, key_at[row], key_at[row + 1], key_null[row])
            at = put_bytes(out, at, values, value_at[row], value_at[row + 1], value_null[row])
            at = put_varint(out, at, header_at[row + 1] - header_at[row])
            for header in range(header_at[row], header_at[row + 1]):
                at = put_bytes(out, at, names, name_at[header], name_at[header + 1], 0)
                first_byte, after = content_at[header], content_at[header + 1]
                at = put_bytes(out, at, contents, first_byte, after, content_null[header])
            row += 1
        last_delta = offsets[row - 1] - base
        put_batch_header(out, start, at, base, last_delta, time_ms, row - first)
    return at
