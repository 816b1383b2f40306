"""When rows are due: settled, retired, asked for the next deadline."""

from durabill.stream_processors.engine.kernel import maintain, rows, settle
from durabill.stream_processors.engine.store import RowStore


class RowTimers:
    """The deadlines of a store's rows: a bound for each block, made exact where it has come."""

    def __init__(self, store: RowStore) -> None:
        self._store = store

    def settle_due(
        self, block: int, now_ms: int, correction_window_ms: int, future_tolerance_ms: int
    ) -> int:
        """Note the settlements due at `now_ms`; return the block to go on with, or -1.

        `store.take_deferred` then gives the rows that are due an interim total.
        """
        if self._store.counters[rows.NEXT_DUE_MS] > now_ms:
            return -1
        return int(
            settle.settle_due(
                self._store.arrays,
                block,
                now_ms,
                self._store.interim_after_ms,
                correction_window_ms + future_tolerance_ms,
                future_tolerance_ms,
            )
        )

    def look_again(self, interim_after_ms: int) -> None:
        """Take another interval; the next look finds out anew when rows are due."""
        self._store.interim_after_ms = interim_after_ms
        used = int(self._store.counters[rows.ROWS_USED])
        self._store.arrays.block_due_ms[: used // rows.BLOCK_ROWS + 1] = 0
        self._store.counters[rows.NEXT_DUE_MS] = 0

    def retire(self, clock_ms: int) -> bool:
        """Free the rows of orders whose time was over before `clock_ms`; False: that was all."""
        return bool(maintain.retire(self._store.arrays, clock_ms, self._store.index.seed))

    def oldest_deadline_ms(self) -> int | None:
        """Return the earliest instant at which a row gives its next total."""
        arrays, after_ms = self._store.arrays, self._store.interim_after_ms
        return _or_none(maintain.oldest_deadline_ms(arrays, after_ms))

    def next_due_ms(self, now_ms: int) -> int | None:
        """Return when a row gives its next total; an instant after `now_ms` may be too early."""
        arrays, after_ms = self._store.arrays, self._store.interim_after_ms
        return _or_none(maintain.next_due_ms(arrays, now_ms, after_ms))


def _or_none(due_ms: int) -> int | None:
    return None if due_ms == rows.NOT_DUE_MS else int(due_ms)
