"""An ordinary batch of records taken apart into columns, for the archive.

Ordinary is a batch without a hole whose records can all be read, with headers' names in ASCII,
order numbers in ASCII, and no clock mark among them. Any other is left to the plain way, which
`audit.archive.rows` has; both give the same columns. A column of bytes is as in `pack`.
"""

from typing import Any

from durabill.stream_processors.engine.kernel import compiled
from durabill.stream_processors.engine.kernel.parse import (
    AFTER,
    DELTA,
    HEADER_BYTES,
    KEY_AT,
    KEY_SIZE,
    VALUE_AT,
    VALUE_END,
    read_frame,
    read_varint,
)

SEGMENT, UNDECODABLE, OPENING = 0, 1, 2
NOT_ORDINARY = -1

# The fields of a segment that are numbers, by column.
NUMBER, START_MS, END_MS, IS_END = 0, 1, 2, 3


@compiled
def copy_bytes(data: Any, start: int, end: int, out: Any, at: int) -> int:
    """Copy bytes; return the position after them."""
    for i in range(start, end):
        out[at] = data[i]
        at += 1
    return at


@compiled
def is_ascii(data: Any, start: int, end: int, least: int) -> bool:
    """Tell whether all bytes are ASCII, and `least` or more."""
    for i in range(start, end):
        if data[i] < least or data[i] > 0x7F:
            return False
    return True


@compiled
def starts_with(data: Any, at: int, end: int, header: Any) -> bool:
    """Tell whether a value begins with a schema's header."""
    if end - at < HEADER_BYTES:
        return False
    for i in range(HEADER_BYTES):
        if data[at + i] != header[i]:
            return False
    return True


@compiled
def add_segment(
    data: Any, at: int, end: int, row: int, order_at: Any, orders: Any, fields: Any
) -> int:
    """Read a segment's body into the columns of a row; return what the value is."""
    size, at = read_varint(data, at, end)
    if at < 0 or size < 0 or size > end - at:
        return UNDECODABLE
    name_at = at
    at += size
    for field in (NUMBER, START_MS, END_MS):
        value, at = read_varint(data, at, end)
        if at < 0:
            return UNDECODABLE
        fields[field, row] = value
    if at + 1 != end or data[at] > 1:
        return UNDECODABLE
    fields[IS_END, row] = data[at]
    if not is_ascii(data, name_at, name_at + size, 0):
        return NOT_ORDINARY
    order_at[row + 1] = copy_bytes(data, name_at, name_at + size, orders, order_at[row])
    return SEGMENT


@compiled
def add_headers(data: Any, at: int, end: int, header: int, columns: Any) -> int:
    """Read a record's headers into their columns from `header` on; return how many, or -1."""
    name_at, names, content_at, contents, content_null = columns
    count, at = read_varint(data, at, end)
    if header + count >= name_at.shape[0]:
        return NOT_ORDINARY
    for each in range(header, header + count):
        size, at = read_varint(data, at, end)
        if not is_ascii(data, at, at + size, 1):
            return NOT_ORDINARY
        name_at[each + 1] = copy_bytes(data, at, at + size, names, name_at[each])
        size, at = read_varint(data, at + size, end)
        content_null[each] = size < 0
        size = max(size, 0)
        content_at[each + 1] = copy_bytes(data, at, at + size, contents, content_at[each])
        at += size
    return count


@compiled
def add_batch(
    data: Any,
    count: int,
    base_offset: int,
    append_ms: int,
    schema_headers: Any,
    record: Any,
    row: int,
    places: Any,
    keys_and_values: Any,
    header_at: Any,
    headers: Any,
    segments: Any,
) -> bool:
    """Add all records of a batch as rows from `row` on; False: it isn't ordinary.

    Then what stands in the rows from `row` on means nothing. There must be room for `count` rows,
    and in each column of bytes for the batch. `record` is scratch. Columns come in tuples:
    `places` (offsets, append times), `keys_and_values` (positions, data and nulls of both),
    `headers` (positions and data of names and contents, nulls of contents), `segments` (kinds,
    positions and data of order numbers, the numbers).
    """
    segment_header, opening_header, mark_header = schema_headers
    offsets, times_ms = places
    key_at, keys, key_null, value_at, values, value_null = keys_and_values
    kinds, order_at, orders, fields = segments
    at = 0
    for number in range(count):
        if at >= data.shape[0] or not read_frame(data, at, record) or record[DELTA] != number:
            return False
        at, start, end = record[AFTER], record[VALUE_AT], record[VALUE_END]
        key_end = record[KEY_AT] + max(record[KEY_SIZE], 0)
        value_size, _ = read_varint(data, key_end, end)
        offsets[row], times_ms[row] = base_offset + number, append_ms
        key_null[row], value_null[row] = record[KEY_SIZE] < 0, value_size < 0
        key_at[row + 1] = copy_bytes(data, record[KEY_AT], key_end, keys, key_at[row])
        value_at[row + 1] = copy_bytes(data, start, end, values, value_at[row])
        header_at[row + 1] = header_at[row]
        if data[end] != 0:
            found = add_headers(data, end, at, header_at[row], headers)
            if found < 0:
                return False
            header_at[row + 1] += found
        kinds[row], order_at[row + 1] = UNDECODABLE, order_at[row]
        if starts_with(data, start, end, segment_header):
            body_at = start + HEADER_BYTES
            kinds[row] = add_segment(data, body_at, end, row, order_at, orders, fields)
        elif starts_with(data, start, end, opening_header):
            kinds[row] = OPENING
        if kinds[row] == NOT_ORDINARY or starts_with(data, start, end, mark_header):
            return False
        row += 1
    return at == data.shape[0]
