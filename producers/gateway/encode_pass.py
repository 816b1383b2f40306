"""Checks and Avro bodies of a request's segments, in one compiled pass.

Theory: msgspec reads JSON at 0.14 us a segment, librdkafka takes a record at 0.8 us. Between the
two, checking a segment and encoding it cost 4.4 us in Python, more than all the rest together. So
the numbers of all segments of a request go into one array, and a loop that numba has compiled
checks each and writes what Kafka gets into one buffer. It only tells *that* a segment breaks a
rule; which one, and in what words, `schemas` says, whose bytes and verdicts these are (a property
test compares the two).

numba compiles it when this module is first imported, which takes a second or two, and keeps the
result beside the source, or in the user's cache folder where that can't be written. It notices a
change of this file, but not of what is imported here: so limits come in as arguments.
"""

import struct
from collections.abc import Sequence
from itertools import chain
from typing import Any, NamedTuple

import numba
import numpy as np

from durabill.schemas import SEGMENT_HEADER
from durabill.schemas.limits import ORDER_NUMBER_BYTES_MAX, SEGMENT_LENGTH_MAX_MS
from durabill.schemas.wire import zigzag

Row = tuple[int, int, int, bool]
"""A segment: (business_data_number, start_ms, end_ms, end_identifier)."""

_LONG_MAX = 2**63 - 1
_FIELDS = 4  # of a row
_LONG_BYTES_MAX = 10
_HEAD_BYTES_MAX = len(SEGMENT_HEADER + zigzag(ORDER_NUMBER_BYTES_MAX)) + ORDER_NUMBER_BYTES_MAX
_RECORD_BYTES_MAX = _HEAD_BYTES_MAX + 3 * _LONG_BYTES_MAX + 1
_WANTED, _FOUND = 5, 6  # how many numbers an upload has, going in and coming out


def _compiled(signature: str) -> Any:
    """Compile with numba, for these types alone; cached where any folder can be written."""

    def decorate(function: Any) -> Any:
        try:
            return numba.njit(signature, cache=True, nogil=True)(function)
        except RuntimeError:  # no folder for the cache: it is compiled anew each time
            return numba.njit(signature, nogil=True)(function)

    return decorate


@_compiled("int64(uint8[::1], int64, int64)")
def _put_long(out: Any, at: int, value: int) -> int:
    """Write a long that isn't negative as Avro does; return the position after it."""
    rest = np.uint64(value) << np.uint64(1)
    while rest > np.uint64(127):
        out[at] = np.uint8(rest & np.uint64(127) | np.uint64(128))
        rest >>= np.uint64(7)
        at += 1
    out[at] = np.uint8(rest)
    return at + 1


@_compiled(
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
        self._ends = np.zeros(segments_max, np.int64)
        self._found = np.zeros(segments_max * _FOUND, np.int64)
        self._packers: dict[int, struct.Struct] = {}

    def encode(self, uploads: Sequence[Wanted]) -> list[Encoded]:
        """Return the records of each upload; raise TypeError for a row with what is no long."""
        heads: list[bytes] = []
        heads_end = 0
        wanted: list[int] = []
        segments: list[Row] = []
        for key, rows, earliest_start_ms, earliest_end_ms, latest_end_ms in uploads:
            head = self._begins[len(key)]
            heads += head, key
            heads_end += len(head) + len(key)
            segments += rows
            wanted += (
                heads_end,
                len(segments),
                earliest_start_ms,
                earliest_end_ms,
                latest_end_ms,
            )
        self._heads_view[:heads_end] = b"".join(heads)
        self._pack(self._wanted, wanted)
        self._pack(self._rows, [*chain.from_iterable(segments)])
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
        return self._told(uploads, len(segments))

    def _pack(self, into: Any, numbers: Sequence[int]) -> None:
        count = len(numbers)
        packer = self._packers.get(count)
        if packer is None:
            packer = self._packers[count] = struct.Struct(f"{count}q")
        try:
            packer.pack_into(into, 0, *numbers)
        except struct.error as error:
            raise TypeError("a row has what is no long") from error

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
