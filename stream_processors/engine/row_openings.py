"""The openings of rows, beside them: a row alone says that its order was opened, not by what."""

from collections.abc import Callable
from typing import Any

import numpy as np

from durabill.stream_processors.core.opening import Opened
from durabill.stream_processors.engine.blocks import RowOpenings
from durabill.stream_processors.engine.kernel import maintain, rows
from durabill.stream_processors.engine.row_index import RowIndex


class OpeningsOfRows:
    """Which orders of a store's rows were opened, and by what; and how many openings wait."""

    def __init__(self, arrays: rows.RowArrays, index: RowIndex) -> None:
        self._arrays = arrays
        self._index = index
        self._owners: dict[int, bytes] = {}
        """Whose they are, by slot; a row that isn't OPENED may have an old one."""

    def at(self, slot: int) -> Opened | None:
        """Return the opening of a row's order, None if it was not opened."""
        if not self._arrays.orders[slot]["key_size"] & rows.OPENED:
            return None
        begin_ms, until_ms, offset = self._arrays.openings[slot].tolist()
        return Opened(begin_ms, until_ms, offset, *_tenant_and_client(self._owners[slot]))

    def put(self, slot: int, opened: Opened) -> None:
        """Give a row's order an opening."""
        self._arrays.orders[slot]["key_size"] |= rows.OPENED
        assert opened.extended_at < 0, "such an order doesn't fit a row"
        self._arrays.openings[slot] = opened[:3]
        self._owners[slot] = f"{opened.tenant}\0{opened.client}".encode()

    def among(self, slots: Any) -> RowOpenings | None:
        """Return the openings of those rows that have one, None if none has."""
        opened = slots[self._arrays.orders["key_size"][slots] & rows.OPENED != 0]
        if not len(opened):
            return None
        owners = [self._owners[slot] for slot in opened.tolist()]
        return RowOpenings(opened.tobytes(), self._arrays.openings[opened].tobytes(), owners)

    def restore(self, openings: RowOpenings, is_there: Callable[[int], bool]) -> None:
        """Put the openings of a checkpoint's rows, of those that `is_there` says were restored."""
        slots = np.frombuffer(openings.slots, np.int32).tolist()
        terms = np.frombuffer(openings.terms, rows.OPENING).tolist()
        for slot, found, owner in zip(slots, terms, openings.owners, strict=True):
            if is_there(slot):
                begin_ms, until_ms, offset = found
                owned_by = _tenant_and_client(owner)
                self.put(slot, Opened(begin_ms, until_ms, offset, *owned_by))

    def note_waiting(self, key: bytes, count: int) -> None:
        """Count an opening of a name as waiting, or as not waiting any more."""
        words = self._index.words_of(key)
        if words is not None:
            maintain.note_waiting(self._arrays, words, self._index.seed, count)


def _tenant_and_client(owner: bytes) -> tuple[str, str]:
    tenant, _, client = owner.decode().partition("\0")
    return tenant, client
