"""Segments as rows of four numbers, as the compiled passes have them."""

import struct
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import overload

Row = tuple[int, int, int, bool]
"""A segment: (business_data_number, start_ms, end_ms, end_identifier)."""

ROW_NUMBERS = 4
_ROW = struct.Struct("=4q")
ROW_BYTES = _ROW.size


class PackedRows(Sequence[Row]):
    """Rows as longs that stand one after the other; made into tuples where somebody looks."""

    __slots__ = ("_count", "packed")

    def __init__(self, packed: bytes) -> None:
        self.packed = packed
        self._count = len(packed) // ROW_BYTES

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, at: int) -> Row: ...
    @overload
    def __getitem__(self, at: slice) -> list[Row]: ...
    def __getitem__(self, at: int | slice) -> Row | list[Row]:
        if isinstance(at, slice):
            return list(self)[at]
        if not -self._count <= at < self._count:
            raise IndexError(at)
        number, start_ms, end_ms, is_end = _ROW.unpack_from(
            self.packed, at % self._count * ROW_BYTES
        )
        return number, start_ms, end_ms, is_end != 0

    def __iter__(self) -> Iterator[Row]:
        for number, start_ms, end_ms, is_end in _ROW.iter_unpack(self.packed):
            yield number, start_ms, end_ms, is_end != 0


def pack(rows: Sequence[Row]) -> bytes:
    """Return the longs of some rows; raise TypeError for a row with what is no long."""
    try:
        return struct.pack(f"={len(rows) * ROW_NUMBERS}q", *chain.from_iterable(rows))
    except struct.error as error:
        raise TypeError("a row has what is no long") from error
