"""The server's receipts, kept in the spool: proofs that it took segments.

What a receipt is stands in docs/http.md; who made it is for `durabill verify-receipt` to say. Here
they are kept, in little room (`receipt_pack`), and found again. Those of orders whose total is
known to be out (`receipt_clerk` asks) go first where room is needed, and after `KEPT_MS`. All
others go only where there is no room else, the oldest first, and are counted. Receipts have a half
of the spool's room; where segments need it, an eighth. The client's own clock has no say.

A row's `kept_ms` is the server's time; once the totals of all its orders are out it is -1 - that.
"""

import base64
import json
from collections.abc import Iterable, Sequence
from contextlib import suppress
from itertools import islice
from typing import NamedTuple

from durabill.producers.sdk.receipt_pack import (
    BLOCK_BYTES_MIN,
    BLOCK_CHARS_MAX,
    packed,
    unpacked,
)
from durabill.producers.sdk.spool_errors import SpoolFull
from durabill.producers.sdk.spool_file import SpoolFile
from durabill.producers.sdk.spool_tables import ID_MAX

KEPT_MS = 35 * 86_400_000
ROOM_PART = 2  # of the spool's limit
_LEAST_PART = 8  # whatever segments need
_GIVEN_PART = 64  # at once, to segments
_AT_ONCE_MAX = 16  # rows that are dropped for their age
_PRESSED_AT_ONCE = 64
_INSERT = "INSERT INTO receipts VALUES (?, ?, ?)"
_DELETE = "DELETE FROM receipts WHERE id = ?"


class _Row(NamedTuple):
    receipt_id: int
    kept_ms: int
    is_settled: bool  # the totals of all its orders are out
    size_bytes: int


class ReceiptBox:
    """The receipts of one spool. The caller holds the spool's lock."""

    def __init__(self, limit_bytes: int) -> None:
        self._bytes_max = limit_bytes // ROOM_PART
        self._bytes_least = limit_bytes // _LEAST_PART
        self._given_bytes = max(1, limit_bytes // _GIVEN_PART)
        self._rows: dict[int, _Row] = {}  # by id, rising
        self._damaged: list[int] = []  # ids of rows that aren't what was written
        self.size_bytes = 0
        self.dropped = 0
        """How many receipts have gone for want of room though no total was known to be out."""

    def load(self, file: SpoolFile) -> None:
        """Learn what is there."""
        rows = file.rows(
            "SELECT id, typeof(kept_ms) = 'integer' AND typeof(content) IN ('text', 'blob'),"
            " kept_ms, length(content) FROM receipts ORDER BY id"
        )
        whole = [row for row in rows if row[1] and row[0] <= ID_MAX]
        self._rows, self.size_bytes = {}, 0
        for receipt_id, _, kept_ms, size_bytes in whole:
            is_settled = kept_ms < 0
            kept_ms = -1 - kept_ms if is_settled else kept_ms
            self._add(_Row(receipt_id, kept_ms, is_settled, size_bytes))
        self._damaged = [row[0] for row in rows if row[0] not in self._rows]

    def keep(self, file: SpoolFile, receipt: str, kept_ms: int) -> None:
        """Keep one more, as of the server's time; nothing is kept where there is no room.

        Nor is anything that can't be one: all of a receipt is ASCII.
        """
        if not receipt.isascii() or not receipt.isprintable():
            return
        content, kept_ms = packed([receipt]), max(kept_ms, 0)
        if len(content) > self._bytes_max:
            self.dropped += 1
            return
        over = self._for_room(self._bytes_max - len(content))
        over += islice((each for each in self._old(kept_ms) if each not in over), _AT_ONCE_MAX)
        lost = self._unsettled(file, over)
        row = _Row(next(reversed(self._rows), 0) + 1, kept_ms, False, len(content))

        def change() -> None:
            gone = [*self._damaged, *(each.receipt_id for each in over)]
            file.db.executemany(_DELETE, [(each,) for each in gone])
            file.db.execute(_INSERT, (row.receipt_id, kept_ms, content))

        try:
            file.commit(change, durable=False)
        except SpoolFull:  # room is for segments first
            self.dropped += 1
            return
        self._damaged = []
        self._drop(over, lost)
        self._add(row)
        with suppress(SpoolFull):
            self._press(file)

    def give_room(self, file: SpoolFile) -> bool:
        """Drop some, since segments need their room; tell whether any could go."""
        if self.size_bytes <= self._bytes_least:
            return False
        over = self._for_room(max(self._bytes_least, self.size_bytes - self._given_bytes))
        lost = self._unsettled(file, over)

        def change() -> None:
            file.db.executemany(_DELETE, [(each.receipt_id,) for each in over])

        file.removing(change, durable=False, is_small=False)
        self._drop(over, lost)
        return True

    def of(self, file: SpoolFile, service_order_number: str | None) -> list[str]:
        """Return the receipts that name an order, or all of them, oldest first."""
        found: list[str] = []
        for receipt_id in self._rows:
            for receipt in _read(file, receipt_id):
                if service_order_number is None or service_order_number in orders_of(receipt):
                    found.append(receipt)
        return found

    # -- for the clerk -------------------------------------------------------------------------

    def in_doubt(self, after_id: int, now_ms: int) -> int | None:
        """Return the next row of which it were good to know whether its totals are out.

        That is so of receipts that are old, and of all where room gets scarce.
        """
        is_scarce = self.size_bytes > self._bytes_max // 2
        for row in self._rows.values():
            is_due = is_scarce or now_ms - row.kept_ms > KEPT_MS
            if is_due and row.receipt_id > after_id and not row.is_settled:
                return row.receipt_id
        return None

    def orders_in(self, file: SpoolFile, receipt_id: int) -> set[str]:
        """Return the orders that a row's receipts name."""
        receipts = _read(file, receipt_id) if receipt_id in self._rows else []
        return {number for each in receipts for number in orders_of(each)}

    def settle(self, file: SpoolFile, receipt_id: int) -> None:
        """Note that the totals of all orders of a row are out."""
        row = self._rows.get(receipt_id)
        if row is None or row.is_settled:  # it was dropped, or pressed, meanwhile
            return

        def change() -> None:
            query = "UPDATE receipts SET kept_ms = ? WHERE id = ?"
            file.db.execute(query, (-1 - row.kept_ms, receipt_id))

        with suppress(SpoolFull):  # it is asked for once more
            file.commit(change, durable=False)
            self._rows[receipt_id] = row._replace(is_settled=True)

    # -- inside --------------------------------------------------------------------------------

    def _add(self, row: _Row) -> None:
        self._rows[row.receipt_id] = row
        self.size_bytes += row.size_bytes

    def _drop(self, rows: Iterable[_Row], lost: int = 0) -> None:
        for row in rows:
            del self._rows[row.receipt_id]
            self.size_bytes -= row.size_bytes
        self.dropped += lost

    def _old(self, now_ms: int) -> Iterable[_Row]:
        rows = self._rows.values()
        return (each for each in rows if each.is_settled and now_ms - each.kept_ms > KEPT_MS)

    def _for_room(self, bytes_max: int) -> list[_Row]:
        """Return what has to go so that no more than `bytes_max` are left."""
        over: list[_Row] = []
        left_bytes = self.size_bytes
        for is_settled in (True, False):
            for row in self._rows.values():
                if left_bytes <= bytes_max:
                    return over
                if row.is_settled is is_settled:
                    over.append(row)
                    left_bytes -= row.size_bytes
        return over

    def _unsettled(self, file: SpoolFile, rows: Sequence[_Row]) -> int:
        return sum(len(_read(file, row.receipt_id)) for row in rows if not row.is_settled)

    def _press(self, file: SpoolFile) -> None:
        """Make one row of the last ones, if they are many that have one receipt each."""
        last = list(islice(reversed(self._rows.values()), _PRESSED_AT_ONCE))
        if len(last) < _PRESSED_AT_ONCE or any(
            each.is_settled or each.size_bytes >= BLOCK_BYTES_MIN for each in last
        ):
            return
        receipts = [each for row in reversed(last) for each in _read(file, row.receipt_id)]
        if sum(map(len, receipts)) > BLOCK_CHARS_MAX:
            return
        content = packed(receipts)
        row = last[0]._replace(size_bytes=len(content))

        def change() -> None:
            file.db.executemany(_DELETE, [(each.receipt_id,) for each in last])
            file.db.execute(_INSERT, (row.receipt_id, row.kept_ms, content))

        file.commit(change, durable=False)
        self._drop(last)
        self._add(row)


def _read(file: SpoolFile, receipt_id: int) -> list[str]:
    """Return the receipts of a row: none of one that is damaged."""
    for (content,) in file.rows("SELECT content FROM receipts WHERE id = ?", (receipt_id,)):
        with suppress(ValueError, TypeError):
            return unpacked(content)
    return []


def orders_of(receipt: str) -> set[str]:
    """Return the orders that a receipt names: none for what is no receipt."""
    try:
        statement = receipt.split("~", 2)[1]
        said = json.loads(base64.urlsafe_b64decode(statement + "=" * (-len(statement) % 4)))
        return {str(each["ord"]) for each in said["uploads"]}
    except (IndexError, ValueError, KeyError, TypeError, RecursionError):
        return set()
