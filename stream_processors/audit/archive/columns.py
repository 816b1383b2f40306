"""Rows of the archive in columns: ordinary batches by the kernel, all else record by record."""

from typing import Any

from durabill.schemas.clock_mark import CLOCK_MARK_HEADER
from durabill.schemas.codec import SEGMENT_HEADER
from durabill.schemas.extras import ExtraMissing
from durabill.schemas.order_opened import OPENING_HEADER
from durabill.stream_processors.audit.archive.pieces import Whole
from durabill.stream_processors.audit.archive.rows import (
    BAD_BATCH,
    HEADER_TYPE,
    KINDS,
    NOTHING,
    SCHEMA,
    decoded,
)
from durabill.stream_processors.engine.batch import BatchHeader, Record
from durabill.stream_processors.engine.kernel import columnize
from durabill.stream_processors.engine.kernel.parse import FIELDS

try:
    import numpy as np
    import pyarrow as pa
except ModuleNotFoundError as error:
    raise ExtraMissing(__name__, "pyarrow", "audit") from error

_SEGMENT_HEADER = np.frombuffer(SEGMENT_HEADER, np.uint8)
_OPENING_HEADER = np.frombuffer(OPENING_HEADER, np.uint8)
_MARK_HEADER = np.frombuffer(CLOCK_MARK_HEADER, np.uint8)
_KINDS = pa.array(KINDS)
_CODE_OF = {kind: code for code, kind in enumerate(KINDS)}
_BYTES_AT_FIRST = 1 << 20


class _Bytes:
    """A column of bytes that grows."""

    def __init__(self, rows: int) -> None:
        self.at = np.zeros(rows + 1, np.int32)
        self.data = np.empty(_BYTES_AT_FIRST, np.uint8)

    def make_room(self, row: int, size: int) -> None:
        """Make room for `size` bytes more, in rows from `row` on."""
        needed = int(self.at[row]) + size
        if needed > len(self.data):
            grown = np.empty(max(needed, 2 * len(self.data)), np.uint8)
            grown[: self.at[row]] = self.data[: self.at[row]]
            self.data = grown

    def put(self, row: int, content: bytes) -> None:
        """Set a row, those before it being set."""
        self.make_room(row, len(content))
        start = int(self.at[row])
        end = self.at[row + 1] = start + len(content)
        self.data[start:end] = np.frombuffer(content, np.uint8)

    def grow(self, rows: int) -> None:
        """Make room for so many rows."""
        if rows >= len(self.at):
            at = np.zeros(max(rows + 1, 2 * len(self.at)), np.int32)
            at[: len(self.at)] = self.at
            self.at = at

    def array(self, kind: Any, rows: int, null: Any = None) -> Any:
        """Return the first rows as an Arrow array of their own."""
        at, data = self.at[: rows + 1].copy(), self.data[: self.at[rows]].copy()
        buffers = [_bitmap(null), pa.py_buffer(at), pa.py_buffer(data)]
        return pa.Array.from_buffers(kind, rows, buffers)


class Columns:
    """Up to `capacity` rows in columns."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.rows = 0
        headers = 4 * capacity
        self._offsets, self._times_ms = (np.empty(capacity, np.int64) for _ in range(2))
        self._keys, self._values, self._orders = (_Bytes(capacity) for _ in range(3))
        self._names, self._contents = (_Bytes(headers) for _ in range(2))
        self._header_at = np.zeros(capacity + 1, np.int32)
        self._key_null, self._value_null = (np.empty(capacity, np.uint8) for _ in range(2))
        self._content_null = np.empty(headers, np.uint8)
        self._kinds = np.empty(capacity, np.int8)
        self._fields = np.zeros((4, capacity), np.int64)
        self._record = np.zeros(FIELDS, np.int64)

    def add(self, batch: Whole) -> int | None:
        """Add a batch's records; return their bytes. None: it isn't ordinary, nothing is added."""
        return self.add_records(batch.body, batch.header, batch.append_ms)

    def add_records(self, body: Any, header: BatchHeader, append_ms: int) -> int | None:
        """Do the same for an unpacked batch."""
        row, count, size = self.rows, header.record_count, len(body)
        if row + count > self.capacity:
            return None
        headers = int(self._header_at[row])
        for column in (self._keys, self._values, self._orders):
            column.make_room(row, size)
        for column in (self._names, self._contents):
            column.make_room(headers, size)
        before = self._bytes(row)
        keys, values, names, contents = self._keys, self._values, self._names, self._contents
        added = columnize.add_batch(
            *(body, count, header.base_offset, append_ms),
            *((_SEGMENT_HEADER, _OPENING_HEADER, _MARK_HEADER), self._record, row),
            (self._offsets, self._times_ms),
            (keys.at, keys.data, self._key_null, values.at, values.data, self._value_null),
            self._header_at,
            (names.at, names.data, contents.at, contents.data, self._content_null),
            (self._kinds, self._orders.at, self._orders.data, self._fields),
        )
        if not added:
            return None
        self.rows += count
        return self._bytes(self.rows) - before

    def add_record(self, record: Record, *, is_bad: bool) -> int:
        """Add one record, or what stands for a bad batch; return its bytes."""
        row = self.rows
        kind, order, *numbers = (BAD_BATCH, *NOTHING) if is_bad else decoded(*record[2:4])
        self._offsets[row], self._times_ms[row] = record.offset, record.append_ms
        self._key_null[row], self._value_null[row] = record.key is None, record.value is None
        self._keys.put(row, record.key or b"")
        self._values.put(row, record.value or b"")
        self._kinds[row] = _CODE_OF[kind]
        self._orders.put(row, (order or "").encode())
        if order is not None:
            self._fields[:, row] = [int(each or 0) for each in numbers]
        header = int(self._header_at[row])
        self._grow_headers(header + len(record.headers))
        for name, content in record.headers:
            self._names.put(header, name.encode())
            self._contents.put(header, content or b"")
            self._content_null[header] = content is None
            header += 1
        self._header_at[row + 1] = header
        self.rows += 1
        return self._bytes(row + 1) - self._bytes(row)

    def _grow_headers(self, headers: int) -> None:
        if headers >= len(self._content_null):
            self._names.grow(headers)
            self._contents.grow(headers)
            null = np.empty(len(self._names.at) - 1, np.uint8)
            null[: len(self._content_null)] = self._content_null
            self._content_null = null

    def _bytes(self, row: int) -> int:
        """Return the bytes of keys, values and headers before a row."""
        header = self._header_at[row]
        columns = self._keys.at[row], self._values.at[row]
        return sum(map(int, (*columns, self._names.at[header], self._contents.at[header])))

    def take(self) -> Any:
        """Return all rows as an Arrow table, and begin anew."""
        rows, headers = self.rows, int(self._header_at[self.rows])
        is_segment = (self._kinds[:rows] == columnize.SEGMENT).astype(np.uint8)
        cells = pa.StructArray.from_arrays(
            [
                self._names.array(pa.string(), headers),
                self._contents.array(pa.binary(), headers, self._content_null[:headers]),
            ],
            fields=list(HEADER_TYPE),
        )
        arrays = {
            "key": self._keys.array(pa.binary(), rows, self._key_null[:rows]),
            "value": self._values.array(pa.binary(), rows, self._value_null[:rows]),
            "headers": pa.ListArray.from_arrays(
                pa.array(self._header_at[: rows + 1].copy()), cells, SCHEMA.field("headers").type
            ),
            "offset": pa.array(self._offsets[:rows].copy()),
            "append_ms": pa.array(self._times_ms[:rows].copy()),
            "kind": _KINDS.take(pa.array(self._kinds[:rows].copy())),
            "service_order_number": self._orders.array(pa.string(), rows, 1 - is_segment),
        }
        names = ("business_data_number", "start_ms", "end_ms", "end_identifier")
        for name, column in zip(names, self._fields, strict=True):
            kind = SCHEMA.field(name).type
            array = pa.array(column[:rows].copy(), mask=is_segment == 0)
            arrays[name] = array if kind == pa.int64() else array.cast(kind)
        self.rows = 0
        return pa.Table.from_arrays([arrays[each.name] for each in SCHEMA], schema=SCHEMA)


def _bitmap(null: Any) -> Any:
    """Return which rows are there, as Arrow has it; None: all."""
    if null is None or not null.any():
        return None
    return pa.py_buffer(np.packbits(null == 0, bitorder="little"))
