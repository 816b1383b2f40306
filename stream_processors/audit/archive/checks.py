"""What is looked at in every row of an archive, on whole columns."""

from typing import Any

from durabill.schemas.extras import ExtraMissing
from durabill.stream_processors.audit.archive.columns import Columns
from durabill.stream_processors.audit.archive.cuts import DAY_MS
from durabill.stream_processors.audit.archive.rows import DECODED_COLUMNS
from durabill.stream_processors.audit.archive.source import batches_of
from durabill.stream_processors.engine.batch import HEADER_SIZE, headers_in

try:
    import numpy as np
except ModuleNotFoundError as error:
    raise ExtraMissing(__name__, "numpy", "audit") from error


def arrivals_ms(append_times_ms: Any, clock_ms: int) -> Any:
    """Return each row's arrival, where the last one before was `clock_ms`."""
    return np.maximum.accumulate(np.maximum(append_times_ms, clock_ms))


def day_changes(clocks_ms: Any, day: int) -> list[int]:
    """Return the rows that arrived on another day than the row before, the first than `day`."""
    days = clocks_ms // DAY_MS
    return [int(at) for at in np.flatnonzero(np.diff(days, prepend=day))]


def joined(parts: list[Any]) -> Any:
    """Return parts of a column as one."""
    return np.concatenate(parts) if parts else np.empty(0, np.int64)


def out_of_place(offsets: Any, first: int, last: int) -> list[int]:
    """Return the offsets that don't rise, or aren't in [first, last]."""
    before = np.concatenate([[first - 1], offsets[:-1]])
    return [int(each) for each in offsets[(offsets <= before) | (offsets > last)]]


def ranges_without(offsets: Any, first: int, after: int) -> list[tuple[int, int]]:
    """Return what [first, after) has besides these offsets, which rise, as ranges [first, last]."""
    edges = np.concatenate([[first - 1], offsets, [after]])
    holes = np.flatnonzero(np.diff(edges) > 1)
    return [(int(edges[at]) + 1, int(edges[at + 1]) - 1) for at in holes]


def decodes_as_told(table: Any) -> bool:
    """Tell whether the decoded columns are what the records say, as far as the kernel can tell.

    False also where it can't: then the rows are looked at one by one.
    """
    data = batches_of(table)
    columns = Columns(table.num_rows)
    view = memoryview(data)
    for at, header in headers_in(data):
        if header.record_count != header.last_offset_delta + 1:
            return False
        body = np.frombuffer(view[at + HEADER_SIZE : at + header.size], np.uint8)
        if columns.add_records(body, header, header.max_timestamp_ms) is None:
            return False
    found = columns.take().select(DECODED_COLUMNS)
    return bool(found.equals(table.select(DECODED_COLUMNS).combine_chunks()))
