"""The client's on-disk queue of segments that the server has not acknowledged yet.

One SQLite file (`spool_file`) holds: the segments still to be sent, the ones that were refused
for good (with the reason), the state and the lease of every service that runs or has segments
here, and the server's receipts. `append` writes segments and session state in one durable
transaction, so that after a crash a business data number is neither lost nor given twice. What
several threads append at once, and what is due at one moment, is committed together. A segment
that was acknowledged but could not be removed is sent again, which does no harm: the server
removes repeats.

The size has a limit. What doesn't fit isn't stored, and SpoolFull says so; the running session
holds the time, and cuts it as one longer segment as soon as there is room. No segment that
was stored is ever dropped for something newer. Receipts have half of the limit, and make room for
segments down to an eighth of it (see `spool_receipts`). Nothing has to be restarted for a full disk
or a full spool to end.

What is asked often is known in memory: the services, and how much of each waits. All methods may
be called by any thread. A file that turns out to be damaged is put aside (see `salvage`), if the
spool was told whom to tell; else SpoolDamaged is raised. So it goes with a file that could not be
synced: what is after it in the log might be lost with it, so all of it is written anew.
"""

import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from durabill.producers.sdk.salvage import read_what_is_left
from durabill.producers.sdk.session import SessionState
from durabill.producers.sdk.spool_errors import (
    SpoolBroken,
    SpoolBusy,
    SpoolDamaged,
    SpoolError,
    SpoolFull,
    SpoolUnsynced,
    translated,
)
from durabill.producers.sdk.spool_file import SpoolFile
from durabill.producers.sdk.spool_lock import SpoolLock
from durabill.producers.sdk.spool_receipts import ReceiptBox
from durabill.producers.sdk.spool_swap import (
    beside,
    finish_swap,
    forget_swap,
    prepare_new,
    put_new,
    remove,
    restore_removed,
)
from durabill.producers.sdk.spool_tables import (
    ID_MAX,
    NAMES,
    SERVICE_NAMES,
    insert_service,
    segment_of,
    segment_row,
    service_row,
    state_of,
    terms_of,
    terms_row,
    words_of,
)
from durabill.producers.sdk.uplink import OrderTerms
from durabill.schemas import SegmentEvent

__all__ = [
    "LIMIT_BYTES_DEFAULT",
    "Entry",
    "RejectedSegment",
    "Spool",
    "SpoolBroken",
    "SpoolBusy",
    "SpoolDamaged",
    "SpoolError",
    "SpoolFull",
    "SpoolUnsynced",
    "SpooledSegment",
]

T = TypeVar("T")

LIMIT_BYTES_DEFAULT = 64 * 1024 * 1024
_UNSYNCED_MAX_S = 0.1
_SYNC_RETRY_S = 1.0
_HEAL_QUICK_S = 0.1  # a new file that can't be made in this time is tried again after a pause
_HEAL_PAUSE = 10.0  # so many times as long as it took
_WORDS_MAX = 100  # of a refusal that has room where a longer one hasn't
_AT_ONCE_MAX = 500  # values in one query; old versions of SQLite take 999


@dataclass(frozen=True, slots=True)
class SpooledSegment:
    """A segment waiting to be sent; `entry_id` is its place in the queue."""

    entry_id: int
    segment: SegmentEvent


@dataclass(frozen=True, slots=True)
class RejectedSegment:
    """A segment that the server refused for good, and its words."""

    entry_id: int
    segment: SegmentEvent
    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class Entry:
    """What is stored together: segments, the state of their session after them, new terms."""

    segments: Sequence[SegmentEvent]
    state: SessionState
    terms: OrderTerms | None = None


@dataclass(eq=False, slots=True)
class _Order:
    """What is known of an order in memory. Without a state it has segments here, no more."""

    service_id: int = 0
    state: SessionState | None = None
    terms: OrderTerms = field(default_factory=OrderTerms)
    pending: int = 0


@dataclass(eq=False, slots=True)
class _Ticket:
    entries: Sequence[Entry]
    is_durable: bool
    is_done: bool = False
    error: BaseException | None = None


class Spool:
    """A queue in the file `path`, which is made if it is missing (its folder is not).

    `limit_bytes` bounds the file for new segments: a quarter more is for setting refused ones
    aside, 2 MB or so for the log and the reserve beside it. With `fsync=False` what was appended
    survives a kill of the process, but the last moments before a power cut may be gone. Raises
    SpoolBusy, SpoolBroken, SpoolFull for a new file on a full disk, and ValueError for a limit
    below 64 KiB.
    """

    def __init__(
        self,
        path: Path | str,
        *,
        limit_bytes: int = LIMIT_BYTES_DEFAULT,
        fsync: bool = True,
        on_damage: Callable[[SpoolDamaged], None] | None = None,
    ) -> None:
        self.path = Path(path)
        self._limit_bytes = limit_bytes
        self._fsync = fsync
        self._on_damage = on_damage
        self._mutex = threading.RLock()
        self._waiting: deque[_Ticket] = deque()
        self._orders: dict[str, _Order] = {}
        self._pending = self._next_id = self._next_service_id = 0
        self._unsynced_at_s: float | None = None
        self._hurt_by: SpoolBroken | None = None  # the file is not to be used any more
        self._is_replaced = False
        self._heal_from_s = float("-inf")
        self._is_unsure = False  # memory may not be as the file is
        self._untold: list[SpoolDamaged] = []  # what was put aside, until the new file is open
        self._with_rejected: set[str] = set()  # orders, whose lease may be needed again
        self._receipts = ReceiptBox(limit_bytes)
        self._lock = SpoolLock(beside(self.path, "-lock"))
        try:
            self._begin()
        except BaseException:
            self._close()
            raise

    # -- appending -----------------------------------------------------------------------------

    def append(self, segments: Sequence[SegmentEvent], state: SessionState) -> None:
        """Store segments and the state of their session after them: both or neither.

        Raises SpoolFull, and then nothing has been stored.
        """
        self.append_all([Entry(segments, state)])

    def append_all(self, entries: Sequence[Entry], *, durable: bool = True) -> None:
        """Store entries of several sessions in one transaction: all or nothing.

        Threads that come while another one commits wait, and are committed together. What isn't
        `durable` survives a kill at once, and a power cut only after the next durable commit, or
        `sync`, which is due soon (`sync_due_s`).
        """
        for entry in entries:
            number = entry.state.service_order_number
            assert all(each.service_order_number == number for each in entry.segments)
        self._check_ours()
        ticket = _Ticket(entries, durable)
        self._waiting.append(ticket)
        with self._mutex:
            if not ticket.is_done:
                self._commit_waiting()
        if ticket.error is not None:
            raise ticket.error
        if not ticket.is_done:  # a thread that had it has failed: see `state`
            raise SpoolBroken(f"{self.path}: nobody knows whether it was stored")

    def _commit_waiting(self) -> None:
        tickets: list[_Ticket] = []
        while self._waiting:
            tickets.append(self._waiting.popleft())
        groups = [tickets] if len(tickets) == 1 else [tickets, *([each] for each in tickets)]
        for group in groups:  # together; else each by itself, with its own error
            try:
                durable = any(each.is_durable for each in group)
                entries = [entry for each in group for entry in each.entries]
                self._guarded(lambda: self._store(entries, durable))  # noqa: B023
            except BaseException as error:
                if not self._are_stored(group):
                    for each in group:
                        each.error = error
                    continue
            for each in group:
                each.error = None
            if group is tickets:
                break
        for each in tickets:
            each.is_done = True

    def _are_stored(self, tickets: Sequence[_Ticket]) -> bool:
        """Tell whether an error came behind the commit that it seems to have stopped."""
        if not self._is_unsure:
            return False
        states = {e.state.service_order_number: e.state for each in tickets for e in each.entries}
        with suppress(Exception):
            self._guarded(lambda: None)
            found = {number: self._orders.get(number, _Order()).state for number in states}
            return found == states
        return False

    def _store(self, entries: Sequence[Entry], durable: bool) -> None:
        next_id, next_service_id = self._next_id, self._next_service_id
        known: dict[str, int] = {}

        def change() -> None:
            nonlocal next_id, next_service_id
            next_id, next_service_id = self._next_id, self._next_service_id
            known.clear()
            rows: list[tuple[Any, ...]] = []
            for entry in entries:
                for segment in entry.segments:
                    rows.append((next_id, *segment_row(segment)))
                    next_id += 1
                number = entry.state.service_order_number
                order = self._orders.get(number)
                service_id = known.get(number) or (order.service_id if order else 0)
                if not service_id:
                    service_id = next_service_id
                    next_service_id += 1
                    insert_service(self._file.db, service_id, entry.state)
                else:
                    self._update_service(service_id, entry.state)
                known[number] = service_id
                if entry.terms is not None:
                    self._file.db.execute(
                        "INSERT OR REPLACE INTO terms VALUES (?, ?)",
                        (service_id, terms_row(entry.terms)),
                    )
            self._file.db.executemany(
                f"INSERT INTO pending (id, {NAMES}, sum) VALUES (?, ?, ?, ?, ?, ?, ?)", rows
            )

        self._append(change, durable)
        if durable:
            self._unsynced_at_s = None
        elif self._unsynced_at_s is None:
            self._unsynced_at_s = time.monotonic()
        self._next_id, self._next_service_id = next_id, next_service_id
        for entry in entries:
            order = self._orders.setdefault(entry.state.service_order_number, _Order())
            order.service_id, order.state = known[entry.state.service_order_number], entry.state
            order.terms = order.terms if entry.terms is None else entry.terms
            order.pending += len(entry.segments)
            self._pending += len(entry.segments)

    def _append(self, change: Callable[[], None], durable: bool) -> None:
        while True:
            try:
                self._file.appending(change, is_empty=not self._pending, durable=durable)
                return
            except SpoolFull as error:
                if not self._receipts.give_room(self._file):
                    raise self._explained(error) from None

    def sync_due_s(self) -> float | None:
        """Return in how many seconds `sync` is due, None where it isn't."""
        at_s = self._unsynced_at_s
        return None if at_s is None else max(0.0, at_s + _UNSYNCED_MAX_S - time.monotonic())

    def sync(self) -> None:
        """Have all that was stored survive a power cut. Where it fails, it is due again soon."""

        def sync() -> None:
            self._file.sync()
            self._unsynced_at_s = None

        self._unsynced_at_s = time.monotonic() + _SYNC_RETRY_S - _UNSYNCED_MAX_S
        with suppress(SpoolFull):  # the next segments say so
            self._locked(sync)

    def _update_service(self, service_id: int, state: SessionState) -> None:
        names = ", ".join(f"{each.strip()} = ?" for each in SERVICE_NAMES.split(",")[1:])
        self._file.db.execute(
            f"UPDATE services SET {names} WHERE id = ?", (*service_row(state)[1:], service_id)
        )

    def keep_terms(self, terms: Mapping[str, OrderTerms]) -> None:
        """Keep new terms of orders, of those that are still known."""

        def keep() -> None:
            known = {
                self._orders[number]: each
                for number, each in terms.items()
                if number in self._orders and self._orders[number].service_id
            }
            rows = [(order.service_id, terms_row(each)) for order, each in known.items()]
            query = "INSERT OR REPLACE INTO terms VALUES (?, ?)"
            self._file.removing(lambda: self._run_many(query, rows), durable=False)
            for order, each in known.items():
                order.terms = each

        self._locked(keep)

    # -- taking out ----------------------------------------------------------------------------

    def oldest(self, count_max: int, *, without: Sequence[str] = ()) -> list[SpooledSegment]:
        """Return up to `count_max` waiting segments, in the order in which they were stored.

        None of the orders `without`.
        """
        asked = without if len(without) <= _AT_ONCE_MAX else ()
        where = f"id > ? AND service_order_number NOT IN ({', '.join('?' * len(asked))})"
        query = f"SELECT id, {NAMES}, sum FROM pending WHERE {where} ORDER BY id LIMIT ?"
        passed_over = set(without)

        def read() -> list[SpooledSegment]:
            found: list[SpooledSegment] = []
            after = -1
            while len(found) < count_max:
                rows = self._file.rows(query, (after, *asked, count_max))
                if not rows:
                    break
                after = rows[-1][0]
                wanted = [row for row in rows if row[1] not in passed_over]
                found += [SpooledSegment(row[0], self._segment(row[1:])) for row in wanted]
            return found[:count_max]

        return self._locked(read)

    def acknowledge(
        self, entry_ids: Sequence[int], receipt: str | None = None, *, kept_ms: int = 0
    ) -> None:
        """Remove segments that the server has; ids that are gone already are ignored.

        Works on a full disk as well, by the reserve, and in small pieces where there is little of
        it. Raises SpoolFull where not even one can be removed. The server's receipt for them is
        kept, if there is room.
        """
        self._locked(lambda: self._in_pieces(entry_ids, self._remove))
        if receipt is not None:
            self._locked(lambda: self._receipts.keep(self._file, receipt, kept_ms))

    def reject(self, rejected: Sequence[RejectedSegment]) -> None:
        """Set segments that were refused for good aside, with the server's words."""
        self._locked(lambda: self._in_pieces(rejected, self._set_aside))

    def rejected(self, service_order_number: str | None = None) -> list[RejectedSegment]:
        """Return what was refused, oldest first: of one order, or of all."""
        where, values = _of_order(service_order_number)
        query = f"SELECT id, {NAMES}, sum, reason, detail FROM rejected{where} ORDER BY id"

        def read() -> list[RejectedSegment]:
            rows = self._file.rows(query, values)
            return [
                RejectedSegment(r[0], self._segment(r[1:7]), words_of(r[7]), words_of(r[8]))
                for r in rows
            ]

        return self._locked(read)

    def retry_rejected(self) -> int:
        """Put everything that was refused back into the queue, and return how much it was."""

        def put_back_all() -> int:
            found = self._file.rows(f"SELECT id, {NAMES}, sum FROM rejected ORDER BY id")
            segments = [self._segment(row[1:]) for row in found]
            rows = [(self._next_id + at, *segment_row(s)) for at, s in enumerate(segments)]

            def change() -> None:
                self._run("DELETE FROM rejected")
                self._file.db.executemany(
                    f"INSERT INTO pending (id, {NAMES}, sum) VALUES (?, ?, ?, ?, ?, ?, ?)", rows
                )

            self._file.removing(change)
            self._next_id += len(rows)
            self._with_rejected.clear()
            for row in rows:
                self._orders.setdefault(row[1], _Order()).pending += 1
                self._pending += 1
            return len(rows)

        return self._locked(put_back_all)

    def discard_rejected(self, service_order_number: str | None = None) -> int:
        """Forget what was refused, of one order or of all, and return how much it was."""
        where, values = _of_order(service_order_number)

        def discard() -> int:
            (count,) = self._file.rows(f"SELECT count(*) FROM rejected{where}", values)[0]
            over = self._with_rejected.intersection(values or self._with_rejected)
            drained = [n for n in over if not self.pending(n) and self._is_over(n)]

            def change() -> None:
                self._run(f"DELETE FROM rejected{where}", values)
                self._forget_rows(drained)

            self._file.removing(change)
            self._with_rejected -= over
            self._forget(drained)
            return int(count)

        return self._locked(discard)

    # -- looking -------------------------------------------------------------------------------

    def pending(self, service_order_number: str | None = None) -> int:
        """Return how many segments wait to be sent: of one order, or of all."""
        with self._mutex:
            if service_order_number is None:
                return self._pending
            order = self._orders.get(service_order_number)
            return order.pending if order else 0

    def rejected_count(self) -> int:
        """Return how many segments were set aside."""
        return int(self._locked(lambda: self._file.rows("SELECT count(*) FROM rejected"))[0][0])

    def oldest_end_ms(self) -> int | None:
        """Return when the segment that has waited longest ended, in server time."""
        query = "SELECT end_ms FROM pending ORDER BY id LIMIT 1"

        def read() -> int | None:
            rows = self._file.rows(query)
            if rows and not isinstance(rows[0][0], int):
                raise SpoolDamaged(f"{self.path}: a segment's row isn't what was written")
            return rows[0][0] if rows else None

        return self._locked(read)

    def waiting_since(self, end_ms: int) -> list[tuple[str, int, int]]:
        """Return (order, how many, the first end in ms) of what ended by then and still waits."""
        query = (
            "SELECT service_order_number, count(*), min(end_ms) FROM pending"
            " WHERE end_ms <= ? GROUP BY service_order_number"
        )
        return [
            (str(row[0]), int(row[1]), int(row[2]))
            for row in self._locked(lambda: self._file.rows(query, (end_ms,)))
        ]

    def sessions(self) -> list[SessionState]:
        """Return the state of every session that was started and has not ended."""
        with self._mutex:
            orders = [each.state for each in self._orders.values()]
        return [state for state in orders if state is not None and not state.ended]

    def session(self, service_order_number: str) -> SessionState | None:
        """Return the state of one session that was started and has not ended."""
        with self._mutex:
            order = self._orders.get(service_order_number)
        state = order.state if order else None
        return None if state is None or state.ended else state

    def knows(self, service_order_number: str) -> bool:
        """Tell whether an order runs here, or has segments here that wait or were refused."""
        with self._mutex:
            is_rejected = service_order_number in self._with_rejected
            return is_rejected or service_order_number in self._orders

    def state(self, service_order_number: str) -> SessionState | None:
        """Return the state of a session as it is stored; None once it has ended, and nothing waits.

        Raises where that isn't known now.
        """
        order = self._locked(lambda: self._orders.get(service_order_number))
        return order.state if order else None

    def terms(self, service_order_number: str) -> OrderTerms:
        """Return what the server has granted an order: empty where nothing is known."""
        with self._mutex:
            order = self._orders.get(service_order_number)
        return order.terms if order else OrderTerms()

    def report_interval_ms(self) -> int:
        """Return the longest report interval of the services here, 0 where there are none."""
        with self._mutex:
            states = [each.state for each in self._orders.values() if each.state is not None]
        return max((each.report_interval_ms for each in states), default=0)

    def receipts(self, service_order_number: str | None = None) -> list[str]:
        """Return the server's receipts that are still kept: for one order, or all."""
        return self._locked(lambda: self._receipts.of(self._file, service_order_number))

    def receipts_in_doubt(self, after_id: int, now_ms: int) -> tuple[int, set[str]] | None:
        """Return the next row of receipts of which it were good to know whether totals are out.

        With its orders; with none where one of them still runs or waits here. See `ReceiptBox`.
        """

        def look() -> tuple[int, set[str]] | None:
            receipt_id = self._receipts.in_doubt(after_id, now_ms)
            if receipt_id is None:
                return None
            orders = self._receipts.orders_in(self._file, receipt_id)
            return receipt_id, set() if orders & self._orders.keys() else orders

        return self._locked(look)

    def settle_receipts(self, receipt_id: int) -> None:
        """Note that the totals of all orders of a row of receipts are out: these may go first."""
        self._locked(lambda: self._receipts.settle(self._file, receipt_id))

    def receipts_size(self) -> tuple[int, int]:
        """Return how many bytes receipts take, and how many were dropped for want of room."""
        with self._mutex:
            return self._receipts.size_bytes, self._receipts.dropped

    def look_after(self) -> None:
        """See to it that the file is still there: somebody may have removed it."""
        try:
            is_there = self._file.real_path.exists()
        except OSError:  # nobody can tell
            is_there = True
        if not is_there:
            gone = SpoolDamaged(f"{self.path}: somebody has removed the file")
            self._locked(lambda: self._heal(gone) if self._on_damage is not None else None)

    def size_bytes(self) -> int:
        """Return how much of the disk the spool has."""
        return self._file.size_bytes()

    def commit_counts(self) -> tuple[int, int]:
        """Return how many commits there were, and how many of them waited for the disk."""
        return self._file.commits, self._file.durable_commits

    def is_ours(self) -> bool:
        """Tell whether this process opened the spool; not so in a fork of it."""
        return self._file.is_ours()

    def close(self) -> None:
        """Close and unlock the file. Closing twice is allowed."""
        if self.is_ours():
            with self._mutex:
                self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # -- inside --------------------------------------------------------------------------------

    def _close(self) -> None:
        if hasattr(self, "_file"):
            self._file.close()
        self._lock.release()

    def _begin(self) -> None:
        self._finish_swap()
        try:
            self._open()
            self._tell()
        except SpoolDamaged as error:
            if self._on_damage is None:
                raise
            self._heal(error)

    def _finish_swap(self) -> bool:
        aside = finish_swap(self.path)
        if aside is not None:
            text = f"{self.path}: a damaged file was put aside as {aside}, and then we were stopped"
            self._untold.append(SpoolDamaged(f"{text}; what couldn't be read of it may be lost"))
        return aside is not None

    def _tell(self) -> None:
        self._hurt_by, self._is_replaced = None, False
        told, self._untold = self._untold, []
        for each in told:
            if self._on_damage is not None:
                self._on_damage(each)

    def _open(self) -> None:
        self._file = SpoolFile(self.path, limit_bytes=self._limit_bytes, fsync=self._fsync)
        self._load()
        forget_swap(self.path)

    def _load(self) -> None:
        """Learn from the file what is kept in memory."""
        orders: dict[str, _Order] = {}
        for row in self._file.rows(f"SELECT id, {SERVICE_NAMES} FROM services ORDER BY id"):
            state = state_of(row[1:])
            if state is None:
                raise SpoolDamaged(f"{self.path}: a service's row isn't what was written")
            orders[state.service_order_number] = _Order(row[0], state)
        by_id = {each.service_id: each for each in orders.values()}
        for service_id, content in self._file.rows("SELECT id, content FROM terms"):
            if service_id in by_id:
                by_id[service_id].terms = terms_of(content)
        pending = 0
        counts = self._file.rows(
            "SELECT service_order_number, count(*) FROM pending GROUP BY service_order_number"
        )
        for number, count in counts:
            orders.setdefault(str(number), _Order()).pending = count
            pending += count
        rejected = self._file.rows("SELECT DISTINCT service_order_number FROM rejected")
        with_rejected = {str(row[0]) for row in rejected}
        greatest = self._file.rows(
            "SELECT max(coalesce((SELECT max(id) FROM pending), 0),"
            " coalesce((SELECT max(id) FROM rejected), 0)),"
            " coalesce((SELECT max(id) FROM services), 0)"
        )[0]
        if max(greatest) > ID_MAX:
            raise SpoolDamaged(f"{self.path}: a row's id isn't what was written")
        # An id never comes again while we live: a late acknowledgement can't hit a new segment.
        self._next_id = max(self._next_id, greatest[0] + 1)
        self._next_service_id = max(self._next_service_id, greatest[1] + 1)
        self._receipts.load(self._file)
        self._orders, self._pending, self._with_rejected = orders, pending, with_rejected
        self._is_unsure = False

    def _check_ours(self) -> None:
        if not self.is_ours():  # before any lock: a thread of the parent's may have held it
            raise SpoolBusy(f"{self.path}: this process is a fork of the one that has it open")

    def _locked(self, act: Callable[[], T]) -> T:
        self._check_ours()
        with self._mutex:
            return self._guarded(act)

    def _guarded(self, act: Callable[[], T]) -> T:
        """Do something with the file; where it turns out to be damaged, with a new one."""
        try:
            if self._hurt_by is not None:
                raise type(self._hurt_by)(str(self._hurt_by))
            return self._surely(act)
        except (SpoolDamaged, SpoolUnsynced) as error:
            if self._on_damage is None:
                raise
            self._heal(error)
            return self._surely(act)

    def _surely(self, act: Callable[[], T]) -> T:
        """Do something; after an error learn anew what is in the file, before the next thing.

        MemoryError, or a disk that fails, may come between a commit and the note of it.
        """
        try:
            with translated(self.path):
                if self._is_unsure:
                    self._file.roll_back()
                    self._load()
                return act()
        except SpoolFull:  # nothing was changed
            raise
        except BaseException:
            self._is_unsure = True
            raise

    def _heal(self, error: SpoolBroken) -> None:
        """Go on in a new file with what can be read of this one, which is put aside.

        Where that can't be done now, SpoolFull or SpoolBroken says so, and a later call tries: the
        next one, or one after a pause, where it takes long.
        """
        self._hurt_by = error
        began_s = time.monotonic()
        if began_s < self._heal_from_s:
            raise SpoolBroken(f"{error}; a new file could not be made yet, it is tried again soon")
        try:
            with translated(self.path):
                self._is_replaced = self._is_replaced or self._finish_swap()
                if hasattr(self, "_file"):
                    if not self._is_replaced:
                        restore_removed(self._file.db, self.path)
                    if self._is_replaced or not isinstance(error, SpoolUnsynced):
                        self._file.close()
                if not self._is_replaced:
                    self._replace(error)
                try:
                    self._open()
                except SpoolDamaged:  # the new one as well
                    self._is_replaced = False
                    raise
        except BaseException:
            now_s = time.monotonic()
            self._heal_from_s = now_s + _HEAL_PAUSE * max(0.0, now_s - began_s - _HEAL_QUICK_S)
            raise
        self._tell()

    def _replace(self, error: SpoolBroken) -> None:
        left = read_what_is_left(self.path)
        states = dict(left.states)
        known = {n: o.state for n, o in self._orders.items() if o.state is not None}
        lost = len(known.keys() - states.keys())
        states.update(known)  # memory knows better
        terms = {**left.terms, **{number: order.terms for number, order in self._orders.items()}}
        # What a call had written that failed was not stored: its numbers are given again.
        left.pending = [
            row for row in left.pending if row[1] not in known or row[2] < known[row[1]].next_number
        ]

        def fill(db: sqlite3.Connection) -> None:
            for service_id, (number, state) in enumerate(states.items(), 1):
                insert_service(db, service_id, state)
                row = (service_id, terms_row(terms.get(number, OrderTerms())))
                db.execute("INSERT INTO terms VALUES (?, ?)", row)
            left.write(db)

        prepare_new(self.path, fill)
        if hasattr(self, "_file"):  # only now: to close it is to write, maybe what is gone
            self._file.close()
        aside = put_new(self.path)
        self._is_replaced = True
        self._untold.append(SpoolDamaged(left.told(error, aside, lost)))
        if isinstance(error, SpoolUnsynced) and not left.unread:  # a disk may fail so again
            with suppress(OSError):
                remove(aside)

    def _segment(self, row: Sequence[Any]) -> SegmentEvent:
        segment = segment_of(row, may_lack_sum=self._file.may_lack_sums)
        if segment is None:
            raise SpoolDamaged(f"{self.path}: a segment's row isn't what was written")
        return segment

    def _in_pieces(self, items: Sequence[T], change: Callable[[Sequence[T]], None]) -> None:
        try:
            change(items)
        except SpoolFull:
            if len(items) <= 1:
                raise
            half = len(items) // 2
            self._in_pieces(items[:half], change)
            self._in_pieces(items[half:], change)

    def _explained(self, error: SpoolFull) -> SpoolFull:
        rejected = int(self._file.rows("SELECT count(*) FROM rejected")[0][0])
        hint = f"{error}; {rejected} refused segments take room, see discard_rejected"
        return SpoolFull(hint) if rejected else error

    def _remove(
        self,
        entry_ids: Sequence[int],
        besides: Callable[[], object] = lambda: None,
        keep: Set[str] = frozenset(),
        *,
        is_small: bool = True,
    ) -> None:
        numbers: list[str] = []
        for at in range(0, len(entry_ids), _AT_ONCE_MAX):
            ids = entry_ids[at : at + _AT_ONCE_MAX]
            marks = ", ".join("?" * len(ids))
            query = f"SELECT service_order_number FROM pending WHERE id IN ({marks})"
            numbers += [row[0] for row in self._file.rows(query, tuple(ids))]
        if not self._orders.keys() >= set(numbers):
            raise SpoolDamaged(f"{self.path}: a segment's row isn't what was written")
        left = {number: self._orders[number].pending for number in set(numbers)}
        for number in numbers:
            left[number] -= 1
        drained = [n for n, count in left.items() if not count and self._is_over(n)]
        drained = [n for n in drained if n not in self._with_rejected and n not in keep]

        def change() -> None:
            self._file.db.executemany("DELETE FROM pending WHERE id = ?", [(i,) for i in entry_ids])
            self._forget_rows(drained)
            besides()

        self._file.removing(change, durable=False, is_small=is_small)
        self._pending -= len(numbers)
        for number, count in left.items():
            self._orders[number].pending = count
        self._forget(drained)

    def _is_over(self, number: str) -> bool:
        order = self._orders.get(number)
        return order is None or order.state is None or order.state.ended

    def _forget_rows(self, numbers: Sequence[str]) -> None:
        ids = [(self._orders[each].service_id,) for each in numbers if each in self._orders]
        for table in ("services", "terms"):
            self._file.db.executemany(f"DELETE FROM {table} WHERE id = ?", ids)

    def _forget(self, numbers: Sequence[str]) -> None:
        for each in numbers:
            self._orders.pop(each, None)

    def _set_aside(self, rejected: Sequence[RejectedSegment]) -> None:
        rows = [
            (each.entry_id, *segment_row(each.segment), each.reason, each.detail)
            for each in rejected
        ]
        query = (
            f"INSERT OR REPLACE INTO rejected (id, {NAMES}, sum, reason, detail)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
        )
        numbers = {each.segment.service_order_number for each in rejected}
        ids = [each.entry_id for each in rejected]  # removing them makes room
        is_small = all(len(each.detail) <= _WORDS_MAX for each in rejected)
        self._remove(
            ids, lambda: self._file.db.executemany(query, rows), numbers, is_small=is_small
        )
        self._with_rejected |= numbers

    def _run_many(self, query: str, rows: Sequence[Sequence[object]]) -> None:
        self._file.db.executemany(query, rows)

    def _run(self, query: str, values: Sequence[object] = ()) -> None:
        self._file.db.execute(query, values)


def _of_order(service_order_number: str | None) -> tuple[str, tuple[str, ...]]:
    """Return the condition, and its values, for one order or for all."""
    if service_order_number is None:
        return "", ()
    return " WHERE service_order_number = ?", (service_order_number,)
