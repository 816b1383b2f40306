"""What the kernel has settled, as the records that go out."""

import hashlib
from collections.abc import Iterator

import numpy as np

from durabill.schemas import TOTAL_HEADER
from durabill.stream_processors.engine.effects import Total
from durabill.stream_processors.engine.kernel import rows, totals
from durabill.stream_processors.engine.store import RowStore

GROUP = 256
"""Settlements that are written together: as many as the scratch has room for."""

_TOTAL_HEADER = np.frombuffer(TOTAL_HEADER, np.uint8)
_ROW_BYTES = rows.ORDER.itemsize
_KEY_AT = rows.ORDER.fields["k0"][1] if rows.ORDER.fields else 0


class SettlementWriter:
    """Writes a store's settlements as totals; keeps its scratch for the next ones."""

    def __init__(self, store: RowStore, partition: int) -> None:
        self._store = store
        self._partition = partition
        self._texts = np.empty(GROUP * totals.TEXT_BYTES_MAX, np.uint8)
        self._totals = np.empty(GROUP * totals.TOTAL_BYTES_MAX, np.uint8)
        self._ends = np.empty(GROUP, np.int64)
        self._pieces = np.empty(rows.LIST_SIZE, np.int64)

    def take(self) -> list[Total]:
        """Return the totals of the settlements since the last call."""
        counters = self._store.counters
        count = int(counters[rows.SETTLEMENT_COUNT])
        if not count:
            return []
        found: list[Total] = []
        for first in range(0, count, GROUP):
            found += self._write(first, min(GROUP, count - first))
        counters[rows.SETTLEMENT_COUNT] = counters[rows.SETTLEMENT_LISTS] = 0
        return found

    def _write(self, first: int, count: int) -> Iterator[Total]:
        """Return the totals of `count` settlements from `first` on."""
        arrays, ends, pieces = self._store.arrays, self._ends, self._pieces
        settled, lists = arrays.settlements, arrays.settled_lists
        totals.write_texts(settled, first, count, lists, pieces, self._texts, ends)
        after = ends[:count].tolist()
        texts, sha256 = self._texts[: after[-1]].tobytes(), hashlib.sha256
        digests = [sha256(texts[at]).digest() for at in map(slice, [0, *after], after)]
        totals.write_totals(
            settled,
            first,
            count,
            arrays.settled_at_ms,
            arrays.settled_status,
            lists,
            pieces,
            np.frombuffer(b"".join(digests), np.uint8),
            self._partition,
            _TOTAL_HEADER,
            self._totals,
            ends,
        )
        after = ends[:count].tolist()
        encoded = self._totals[: after[-1]].tobytes()
        values = map(encoded.__getitem__, map(slice, [0, *after], after))
        return map(Total, self._keys(first, count), values)

    def _keys(self, first: int, count: int) -> Iterator[bytes]:
        """Return the names of the orders."""
        settled = self._store.arrays.settlements[first : first + count]
        content = settled.tobytes()
        starts = range(_KEY_AT, _KEY_AT + count * _ROW_BYTES, _ROW_BYTES)
        ends = (settled["key_size"] + np.arange(starts.start, starts.stop, _ROW_BYTES)).tolist()
        return map(content.__getitem__, map(slice, starts, ends))
