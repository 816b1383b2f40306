"""The server's receipts, kept in the spool for a while: proofs that it took segments.

What a receipt is stands in docs/http.md; who made it is for `durabill verify-receipt` to say.
Here it is kept and found again: as long as one of its orders runs or waits here, and for `KEPT_MS`
at least, in which an order that has ended gets its total; but in a part of the spool's room alone,
the oldest going first. The client's own clock has no say.
"""

import base64
import json
from collections import deque
from collections.abc import Container

from durabill.producers.sdk.spool_errors import SpoolFull
from durabill.producers.sdk.spool_file import SpoolFile
from durabill.producers.sdk.spool_tables import ID_MAX

KEPT_MS = 35 * 86_400_000
_PRUNED_AT_ONCE = 16


class ReceiptBox:
    """The receipts of one spool. The caller holds the spool's lock."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._kept: deque[tuple[int, int, int]] = deque()  # id, kept_ms, bytes
        self._bytes = 0
        self._damaged: list[int] = []  # ids of rows that aren't what was written

    def load(self, file: SpoolFile) -> None:
        """Learn what is there."""
        rows = file.rows(
            "SELECT id, typeof(kept_ms) = 'integer' AND typeof(content) = 'text', kept_ms,"
            " length(content) FROM receipts ORDER BY id"
        )
        whole = [row for row in rows if row[1] and row[0] <= ID_MAX]
        self._kept = deque((row[0], row[2], row[3]) for row in whole)
        self._bytes = sum(row[3] for row in whole)
        ids = {row[0] for row in whole}
        self._damaged = [row[0] for row in rows if row[0] not in ids]

    def keep(self, file: SpoolFile, receipt: str, kept_ms: int, living: Container[str]) -> None:
        """Keep one more, as of the server's time; nothing is kept where there is no room.

        None of an order that is `living` is too old.
        """
        if len(receipt) > self._bytes_max:
            return
        over = self._outdated(file, len(receipt), kept_ms, living)
        receipt_id = self._kept[-1][0] + 1 if self._kept else 1

        def change() -> None:
            ids = [(each,) for each in (*self._damaged, *over)]
            file.db.executemany("DELETE FROM receipts WHERE id = ?", ids)
            row = (receipt_id, kept_ms, receipt)
            file.db.execute("INSERT INTO receipts VALUES (?, ?, ?)", row)

        try:
            file.commit(change, durable=False)
        except SpoolFull:  # room is for segments first
            return
        self._damaged = []
        for _ in over:
            self._bytes -= self._kept.popleft()[2]
        self._kept.append((receipt_id, kept_ms, len(receipt)))
        self._bytes += len(receipt)

    def of(self, file: SpoolFile, service_order_number: str | None) -> list[str]:
        """Return the receipts that name an order, or all of them, oldest first."""
        rows = file.rows("SELECT content FROM receipts ORDER BY id")
        found = [row[0] for row in rows if isinstance(row[0], str)]
        if service_order_number is None:
            return found
        return [each for each in found if service_order_number in orders_of(each)]

    def _outdated(
        self, file: SpoolFile, room_bytes: int, now_ms: int, living: Container[str]
    ) -> list[int]:
        over: list[int] = []
        bytes_left = self._bytes + room_bytes
        for receipt_id, kept_ms, size_bytes in self._kept:
            is_old = now_ms - kept_ms > KEPT_MS and len(over) < _PRUNED_AT_ONCE
            if bytes_left <= self._bytes_max and not (
                is_old and self._is_over(file, receipt_id, living)
            ):
                break
            over.append(receipt_id)
            bytes_left -= size_bytes
        return over

    def _is_over(self, file: SpoolFile, receipt_id: int, living: Container[str]) -> bool:
        rows = file.rows("SELECT content FROM receipts WHERE id = ?", (receipt_id,))
        found = [row[0] for row in rows if isinstance(row[0], str)]
        return not any(number in living for each in found for number in orders_of(each))


def orders_of(receipt: str) -> set[str]:
    """Return the orders that a receipt names: none for what is no receipt."""
    try:
        statement = receipt.split("~", 2)[1]
        said = json.loads(base64.urlsafe_b64decode(statement + "=" * (-len(statement) % 4)))
        return {str(each["ord"]) for each in said["uploads"]}
    except (IndexError, ValueError, KeyError, TypeError):
        return set()
