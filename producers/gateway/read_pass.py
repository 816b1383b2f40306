"""Segments out of their JSON, in one compiled pass.

Theory: msgspec reads JSON at 0.14 us a segment, which is as good as it gets. But what it makes of
a segment are an object and three numbers, which are then taken apart and thrown away, and that
costs three times as much. So msgspec reads all of a request but the lists of segments, and this
reads the numbers of these into an array. It takes what clients write: objects with the four fields,
in any sequence, or lists of the four values; whole numbers of up to 18 digits. Whatever is written
in another way it leaves to msgspec, so there is one place that says what is wrong with it. That
what it takes means the same to both is a property test.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from msgspec import Raw

from durabill.producers.gateway.compiling import compiled
from durabill.producers.gateway.rows import ROW_BYTES, ROW_NUMBERS, PackedRows

_NO = -1  # it is left to msgspec
_DIGITS_MAX = 18
_NAMES: Any = np.frombuffer(b"business_data_numberstart_msend_msend_identifier", np.uint8)
_WORDS: Any = np.frombuffer(b"falsetrue", np.uint8)
_QUOTE, _COLON, _COMMA, _ZERO, _NINE = (np.uint8(ord(each)) for each in '":,09')
_OPEN_LIST, _CLOSE_LIST, _OPEN_OBJECT, _CLOSE_OBJECT = (np.uint8(ord(each)) for each in "[]{}")
_SPACE, _TAB, _LINE, _RETURN = (np.uint8(ord(each)) for each in " \t\n\r")
_TRUE_BEGINS = np.uint8(ord("t"))


@compiled("int64(uint8[::1], int64)")
def _skip(text: Any, at: int) -> int:
    """Return the position of the first that is no white space. The text ends with none."""
    while text[at] == _SPACE or text[at] == _LINE or text[at] == _RETURN or text[at] == _TAB:
        at += 1
    return at


@compiled("int64(uint8[::1], int64, int64, int64)")
def _name(text: Any, at: int, size: int, seen: int) -> int:
    """Return which of the fields has its name after a quote at `at` - 1; -1 if none, or again."""
    begin = at
    while at < size and text[at] != _QUOTE:
        at += 1
    length = at - begin
    if length == 20:
        field, name = 0, 0
    elif length == 8:
        field, name = 1, 20
    elif length == 6:
        field, name = 2, 28
    elif length == 14:
        field, name = 3, 34
    else:
        return _NO
    if seen & (1 << field):
        return _NO
    for index in range(length):
        if text[begin + index] != _NAMES[name + index]:
            return _NO
    return field


@compiled("int64(uint8[::1], int64, int64[::1], int64)")
def _number(text: Any, at: int, rows: Any, cell: int) -> int:
    """Read a whole number into `cell`; return the position after it, -1 for what is none."""
    begin, value = at, 0
    while _ZERO <= text[at] <= _NINE:
        if at - begin == _DIGITS_MAX:
            return _NO
        value = value * 10 + np.int64(text[at] - _ZERO)
        at += 1
    if at == begin or (text[begin] == _ZERO and at - begin > 1):
        return _NO
    rows[cell] = value
    return at


@compiled("int64(uint8[::1], int64, int64, int64[::1], int64)")
def _truth(text: Any, at: int, size: int, rows: Any, cell: int) -> int:
    """Read true or false into `cell`; return the position after it, -1 for what is neither."""
    begin, length, value = 0, 5, 0
    if text[at] == _TRUE_BEGINS:
        begin, length, value = 5, 4, 1
    if at + length > size:
        return _NO
    for index in range(length):
        if text[at + index] != _WORDS[begin + index]:
            return _NO
    rows[cell] = value
    return at + length


@compiled("int64(uint8[::1], int64, int64, int64[::1], int64)")
def _row(text: Any, at: int, size: int, rows: Any, row: int) -> int:
    """Read a segment into its row; return the position after it, -1 if that can't be done."""
    is_object = text[at] == _OPEN_OBJECT
    if not is_object and text[at] != _OPEN_LIST:
        return _NO
    close = _CLOSE_OBJECT if is_object else _CLOSE_LIST
    at += 1
    seen = 0
    for field in range(ROW_NUMBERS):
        at = _skip(text, at)
        which = field
        if is_object:
            if text[at] != _QUOTE:
                return _NO
            which = _name(text, at + 1, size, seen)
            if which == _NO:
                return _NO
            seen |= 1 << which
            at = _skip(text, at + 2 + (20, 8, 6, 14)[which])
            if text[at] != _COLON:
                return _NO
            at = _skip(text, at + 1)
        cell = row * ROW_NUMBERS + which
        at = _truth(text, at, size, rows, cell) if which == 3 else _number(text, at, rows, cell)
        if at == _NO:
            return _NO
        at = _skip(text, at)
        if text[at] != (close if field == ROW_NUMBERS - 1 else _COMMA):
            return _NO
        at += 1
    return at


@compiled("int64(uint8[::1], int64[::1], int64[::1])")
def _read(text: Any, rows: Any, ends: Any) -> int:
    """Read lists of segments that stand one after the other; return how many segments, or -1.

    `text` ends with a byte that is in no list. `ends` gets the number of rows up to each list's
    end.
    """
    at, row, size, rows_max = 0, 0, text.size - 1, rows.size // ROW_NUMBERS
    for index in range(ends.size):
        if text[at] != _OPEN_LIST:
            return _NO
        at = _skip(text, at + 1)
        if text[at] == _CLOSE_LIST:
            at += 1
        else:
            while True:
                if row == rows_max:
                    return _NO
                at = _row(text, at, size, rows, row)
                if at == _NO:
                    return _NO
                row += 1
                at = _skip(text, at)
                if text[at] == _CLOSE_LIST:
                    at += 1
                    break
                if text[at] != _COMMA:
                    return _NO
                at = _skip(text, at + 1)
        ends[index] = row
    return row if at == size else _NO


def read_rows(lists: Sequence[Raw], rows_max: int) -> list[PackedRows] | None:
    """Return the rows of each list, None if some list has to be read in another way.

    So it is where there are more than `rows_max` rows in all.
    """
    text = np.frombuffer(bytearray().join([*lists, b"\0"]), np.uint8)
    rows = np.empty(rows_max * ROW_NUMBERS, np.int64)
    ends = np.empty(len(lists), np.int64)
    count = _read(text, rows, ends)
    if count == _NO:
        return None
    packed = rows[: count * ROW_NUMBERS].tobytes()
    if len(lists) == 1:
        return [PackedRows(packed)]
    at_bytes = [0, *(ends * ROW_BYTES).tolist()]
    return [PackedRows(packed[begin:end]) for begin, end in pairwise(at_bytes)]
