"""Checks and Avro bodies of a request's segments, in one compiled pass.

Theory: librdkafka takes a record at 0.4 us. Checking a segment and encoding it cost ten times as
much in Python, more than all the rest together. So the numbers of all segments of a request lie in
one array, and a loop that numba has compiled checks each and writes what Kafka gets into one
buffer. It only tells *that* a segment breaks a rule; which one, and in what words, `schemas` says,
whose bytes and verdicts these are (a property test compares the two).
"""

import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from durabill.producers.gateway.compiling import compiled
from durabill.producers.gateway.rows import ROW_BYTES, PackedRows, Row, pack
from durabill.schemas import SEGMENT_HEADER
from durabill.schemas.limits import ORDER_NUMBER_BYTES_MAX, SEGMENT_LENGTH_MAX_MS
from durabill.schemas.wire import zigzag

_LONG_MAX = 2**63 - 1
_FIELDS = 4  # of a row
_LONG_BYTES_MAX = 10
_HEAD_BYTES_MAX = len(SEGMENT_HEADER + zigzag(ORDER_NUMBER_BYTES_MAX)) + ORDER_NUMBER_BYTES_MAX
_RECORD_BYTES_MAX = _HEAD_BYTES_MAX + 3 * _LONG_BYTES_MAX + 1
_WANTED, _FOUND = 5, 6  # how many numbers an upload has, going in and coming out


@compiled("int64(uint8[::1], int64, int64)")
def _put_long(out: Any, at: int, value: int) -> int:
    """Write a long that isn't negative as Avro does; return the position after it."""
    rest = np.uint64(value) << np.uint64(1)
    while rest > np.uint64(127):
        out[at] = np.uint8(rest & np.uint64(127) | np.uint64(128))
        rest >>= np.uint64(7)
        at += 1
    out[at] = np.uint8(rest)
    return at + 1


@compiled(
    "int64(int64[::1], uint8[::1], int64[::1], uint8[::1], int64[::1], int64[::1], int64, int64)"
)
def _encode(
    rows: Any,
    heads: Any,
    wanted: Any,
    out: Any,
    ends: Any,
    found: Any,
    uploads: int,
    longest_ms: int,
) -> int:
    """Write the records of all uploads one after the other; return how many rows are wrong.

    `ends` gets the end of each row's record, -1 of a wrong one, which is left out.
    """
    at = row = head_start = wrong = 0
    for upload in range(uploads):
        want, tell = upload * 5, upload * 6
        head_end, last_row = wanted[want], wanted[want + 1]
        earliest_start, earliest_end, latest_end = wanted[want + 2 : want + 5]
        good, least_end, greatest_end, has_end, in_row, before = 0, _LONG_MAX, 0, 0, 1, 0
        while row < last_row:
            number, start_ms = rows[4 * row], rows[4 * row + 1]
            end_ms, is_end = rows[4 * row + 2], rows[4 * row + 3]
            if (
                number < 1
                or start_ms < 0
                or start_ms < earliest_start
                or end_ms < start_ms
                or (end_ms == start_ms and is_end == 0)
                or end_ms - start_ms > longest_ms
                or end_ms < earliest_end
                or end_ms > latest_end
            ):
                ends[row] = -1
                wrong += 1
            else:
                for index in range(head_start, head_end):
                    out[at] = heads[index]
                    at += 1
                at = _put_long(out, at, number)
                at = _put_long(out, at, start_ms)
                at = _put_long(out, at, end_ms)
                out[at] = is_end
                at += 1
                ends[row] = at
                if good > 0 and number != before + 1:
                    in_row = 0
                before = number
                good += 1
                least_end = min(least_end, end_ms)
                greatest_end = max(greatest_end, end_ms)
                has_end |= is_end
            row += 1
        head_start = head_end
        found[tell], found[tell + 1], found[tell + 2] = at, good, least_end
        found[tell + 3], found[tell + 4], found[tell + 5] = greatest_end, has_end, in_row
    return wrong


class Wanted(NamedTuple):
    """The segments of one upload, and what their times must be within, see `leases.Bounds`."""

    key: bytes
    rows: Sequence[Row]
    earliest_start_ms: int
    earliest_end_ms: int
    latest_end_ms: int


class Encoded(NamedTuple):
    """The records of one upload: `values` of its good rows, in their order; `body` is all of them.

    `wrong` are the indices of the rows that break a rule. The rest is of the good rows alone:
    `is_consecutive` tells whether each number is one more than the one before.
    """

    values: list[bytes]
    body: bytes
    wrong: list[int]
    least_end_ms: int
    greatest_end_ms: int
    has_end: bool
    is_consecutive: bool


class Encoder:
    """Encodes requests of up to `segments_max` segments, in as many uploads at most.

    `framing` is what records begin with. Has scratch space of its own, so it belongs to one thread.
    """

    def __init__(self, segments_max: int, framing: bytes = SEGMENT_HEADER) -> None:
        assert len(framing) <= len(SEGMENT_HEADER)
        self._begins = [framing + zigzag(size) for size in range(ORDER_NUMBER_BYTES_MAX + 1)]
        """What each record of an order begins with, by the length of its number, which follows."""
        self._rows = np.zeros(segments_max * _FIELDS, np.int64)
        self._wanted = np.zeros(segments_max * _WANTED, np.int64)
        self._heads: Any = np.zeros(segments_max * _HEAD_BYTES_MAX, np.uint8)
        self._out = np.zeros(segments_max * _RECORD_BYTES_MAX, np.uint8)
        self._heads_view = self._heads.data
        self._wanted_view = self._wanted.view(np.uint8).data
        self._rows_view = self._rows.view(np.uint8).data
        self._ends = np.zeros(segments_max, np.int64)
        self._found = np.zeros(segments_max * _FOUND, np.int64)

    def encode(self, uploads: Sequence[Wanted]) -> list[Encoded]:
        """Return the records of each upload; raise TypeError for a row with what is no long."""
        heads: list[bytes] = []
        heads_end = rows_end = 0
        wanted: list[int] = []
        packed: list[bytes] = []
        for key, rows, earliest_start_ms, earliest_end_ms, latest_end_ms in uploads:
            head = self._begins[len(key)]
            heads += head, key
            heads_end += len(head) + len(key)
            packed.append(rows.packed if isinstance(rows, PackedRows) else pack(rows))
            rows_end += len(rows)
            wanted += heads_end, rows_end, earliest_start_ms, earliest_end_ms, latest_end_ms
        self._heads_view[:heads_end] = b"".join(heads)
        self._wanted_view[: len(wanted) * 8] = struct.pack(f"={len(wanted)}q", *wanted)
        self._rows_view[: rows_end * ROW_BYTES] = b"".join(packed)
        _encode(
            self._rows,
            self._heads,
            self._wanted,
            self._out,
            self._ends,
            self._found,
            len(uploads),
            SEGMENT_LENGTH_MAX_MS,
        )
        return self._told(uploads, rows_end)

    def _told(self, uploads: Sequence[Wanted], count: int) -> list[Encoded]:
        found = self._found[: len(uploads) * _FOUND].tolist()
        ends = self._ends[:count].tolist()
        size = found[-_FOUND] if found else 0
        whole = self._out[:size].tobytes()
        told = []
        row = body_at = 0
        for index, upload in enumerate(uploads):
            body_end, good, least, greatest, has_end, in_row = found[index * 6 : index * 6 + 6]
            own = ends[row : row + len(upload.rows)]
            wrong: list[int] = []
            if good < len(own):
                wrong = [at for at, end in enumerate(own) if end < 0]
                own = [end for end in own if end >= 0]
            values = [whole[at:end] for at, end in zip([body_at, *own], own, strict=False)]
            body = whole if len(uploads) == 1 else whole[body_at:body_end]
            told.append(Encoded(values, body, wrong, least, greatest, has_end == 1, in_row == 1))
            row += len(upload.rows)
            body_at = body_end
        return told
