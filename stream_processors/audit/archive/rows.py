"""What a row of the archive is: the record as it came, and beside it what it says.

The first five columns are the record, byte for byte; all else is worked out from them, for people
and for SQL. `kind` says what the value is: a `segment` (it can be read by the contract's own
schema, which doesn't mean that it counts), an `opening` (it has the fingerprint of one), a
`clock_mark`, or `undecodable` (all else, also what only a schema registry could read). The columns
of a segment are null for the other kinds.

One kind is no record: a `bad_batch` stands for the rest of a batch of which nothing counts from
this offset on. Its value is the whole batch as it lies in the log, for a replay has to see it too.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from durabill.schemas.clock_mark import is_clock_mark, read_clock_mark
from durabill.schemas.codec import HEADER_SIZE, SEGMENT_HEADER
from durabill.schemas.errors import BadRecord
from durabill.schemas.extras import ExtraMissing
from durabill.schemas.order_opened import is_opening
from durabill.schemas.wire import read_segment_body
from durabill.stream_processors.engine.batch import HEADER, BatchHeader, Record
from durabill.stream_processors.engine.batch import HEADER_SIZE as HEADER_BYTES

try:
    import pyarrow as pa
except ModuleNotFoundError as error:
    raise ExtraMissing(__name__, "pyarrow", "audit") from error

SEGMENT, OPENING, CLOCK_MARK, UNDECODABLE = "segment", "opening", "clock_mark", "undecodable"
BAD_BATCH = "bad_batch"
KINDS = (SEGMENT, UNDECODABLE, OPENING, CLOCK_MARK, BAD_BATCH)
"""The first three as the kernel numbers them, see `columnize`."""

HEADER_TYPE = pa.struct([pa.field("name", pa.string(), nullable=False), ("value", pa.binary())])
SCHEMA: Any = pa.schema(
    [
        pa.field("key", pa.binary()),
        pa.field("value", pa.binary()),
        pa.field(
            "headers", pa.list_(pa.field("element", HEADER_TYPE, nullable=False)), nullable=False
        ),
        pa.field("offset", pa.int64(), nullable=False),
        pa.field("append_ms", pa.int64(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("service_order_number", pa.string()),
        pa.field("business_data_number", pa.int64()),
        pa.field("start_ms", pa.int64()),
        pa.field("end_ms", pa.int64()),
        pa.field("end_identifier", pa.bool_()),
    ]
)
RECORD_COLUMNS = ("key", "value", "headers", "offset", "append_ms")
DECODED_COLUMNS = tuple(name for name in SCHEMA.names if name not in RECORD_COLUMNS)

Decoded = tuple[str, str | None, int | None, int | None, int | None, bool | None]
NOTHING = (None, None, None, None, None)


def decoded(key: bytes | None, value: bytes | None) -> Decoded:
    """Return what the columns DECODED_COLUMNS are for a record."""
    if value is not None and value.startswith(SEGMENT_HEADER):
        try:
            order, number, start_ms, end_ms, is_end = read_segment_body(value, HEADER_SIZE)
            return SEGMENT, order.decode(), number, start_ms, end_ms, is_end
        except (BadRecord, UnicodeDecodeError):
            return UNDECODABLE, *NOTHING
    if is_opening(value):
        return OPENING, *NOTHING
    if value is not None and is_clock_mark(value):
        try:
            read_clock_mark(key, value)
        except BadRecord:
            return UNDECODABLE, *NOTHING
        return CLOCK_MARK, *NOTHING
    return UNDECODABLE, *NOTHING


def bad_batch(value: bytes | None, offset: int) -> Decoded:
    """Return what the columns are for a row of the kind `bad_batch`, if its value is one."""
    if value is not None and len(value) >= HEADER_BYTES:
        header = BatchHeader._make(HEADER.unpack_from(value))
        if header.size == len(value) and header.base_offset <= offset < header.next_offset:
            return BAD_BATCH, *NOTHING
    return decoded(None, value)


def to_records(table: Any) -> Iterator[Record]:
    """Yield the records of a table that has at least RECORD_COLUMNS."""
    columns = (table.column(name).to_pylist() for name in RECORD_COLUMNS)
    for key, value, headers, offset, append_ms in zip(*columns, strict=True):
        yield Record(offset, append_ms, key, value, headers_of(headers))


def headers_of(cell: Sequence[Mapping[str, Any]]) -> tuple[tuple[str, bytes | None], ...]:
    """Return the headers in a cell of the column `headers`."""
    return tuple((each["name"], each["value"]) for each in cell)
