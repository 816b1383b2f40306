"""The client's on-disk queue of segments that the server has not acknowledged yet.

One SQLite file in WAL mode holds three things: the segments still to be sent, the ones that
were refused for good (with the reason), and the state of every running session. `append` writes
segments and session state in one transaction, so that after a crash a business data number is
neither lost nor given twice.

What survives what: every commit is fsynced (`synchronous=FULL`), so an appended segment survives
a kill -9, a kernel panic and a power cut. With `fsync=False` it survives a kill of the process,
but the last moments before a power cut may be gone. A torn tail (a write that was cut off) is
cut away by SQLite's own checksums when the file is opened again. A segment that was acknowledged
but could not be removed is sent again, which does no harm: the server removes repeats.

A full disk: to remove something, SQLite has to write. So that a disk that the spool itself has
filled doesn't stay full, a file beside it (`-reserve`) keeps room for that, and is given up for
it; an empty queue takes its next segments into that room, too. A full spool: what the server
refused is set aside within the limit and an eighth of it more, so that refusals make room.
Nothing has to be restarted for either to end.

One process at a time: the file stays locked (`locking_mode=EXCLUSIVE`) until `close`, or until
the operating system ends the process. Inside the process all methods may be called by any thread.

Nobody else can read the files: they have the mode 0600 whatever the umask, and those of an older
spool get it, where they are ours.
"""

import logging
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import astuple, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from durabill.producers.sdk.private_files import create_private, make_private
from durabill.producers.sdk.reserve import Reserve
from durabill.producers.sdk.session import ProducerError, SessionState
from durabill.producers.sdk.spool_tables import FORMAT, NAMES, TABLES
from durabill.schemas import SegmentEvent

log = logging.getLogger(__name__)
T = TypeVar("T")

LIMIT_BYTES_DEFAULT = 64 * 1024 * 1024
LIMIT_BYTES_MIN = 64 * 1024
_LOCK_WAIT_S = 0.2
_ORDERS_MAX = 1_000  # in one query; old versions of SQLite take 32,766 values
_LOG_PAGES = 128  # of 4 KiB: the write-ahead log is worked into the file when it is as long
_OPENING = threading.Lock()  # see create_private: no other spool may lock the file meanwhile


class SpoolError(ProducerError):
    """Something about the spool's file."""


class SpoolFull(SpoolError):
    """The size limit or the disk is full. Nothing of the call was stored."""


class SpoolBusy(SpoolError):
    """Another process, or another Spool of this one, has the file open."""


class SpoolBroken(SpoolError):
    """The file can't be opened or read as a spool of this version."""


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


class Spool:
    """A queue in the file `path`, which is made if it is missing (its folder is not).

    `limit_bytes` bounds the file for new segments: an eighth more is for setting refused ones
    aside, 2 MB or so for the log and the reserve beside it. Raises SpoolBusy, SpoolBroken,
    SpoolFull for a new file on a full disk, and ValueError for a limit below 64 KiB.
    """

    def __init__(
        self, path: Path | str, *, limit_bytes: int = LIMIT_BYTES_DEFAULT, fsync: bool = True
    ) -> None:
        if limit_bytes < LIMIT_BYTES_MIN:
            raise ValueError(f"limit_bytes is {limit_bytes}, at least {LIMIT_BYTES_MIN} are needed")
        self.path = Path(path)
        self._real_path = Path(os.path.realpath(self.path))  # SQLite's other files lie beside it
        self._reserve = Reserve(self._beside("reserve"))
        self._log_pages = 0
        self._mutex = threading.RLock()
        with _OPENING:
            try:
                create_private(self._real_path)
                self._db = sqlite3.connect(
                    self.path, timeout=_LOCK_WAIT_S, isolation_level=None, check_same_thread=False
                )
            except (sqlite3.Error, OSError) as error:
                raise SpoolBroken(f"{self.path}: {error}") from error
            try:
                self._open(limit_bytes, fsync)
            except BaseException:
                self._db.close()
                raise

    def _open(self, limit_bytes: int, fsync: bool) -> None:
        with self._errors():
            # The order matters: exclusive before the first touch of the WAL, so that SQLite
            # takes the lock for good and needs no shared-memory file.
            self._db.execute("PRAGMA locking_mode=EXCLUSIVE")
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute(f"PRAGMA synchronous={'FULL' if fsync else 'NORMAL'}")
            self._page_bytes = self._one("PRAGMA page_size")
            self._limit_pages = limit_bytes // self._page_bytes
            self._db.execute(f"PRAGMA max_page_count={self._limit_pages}")
            with self._transaction():
                version = self._one("PRAGMA user_version")
                if version == 0:
                    for table in TABLES:
                        self._db.execute(table)
                    self._db.execute(f"PRAGMA user_version={FORMAT}")
                elif version != FORMAT:
                    wrong = f"format {version}, this version knows {FORMAT}"
                    raise SpoolBroken(f"{self.path}: {wrong}")
        self._tighten()
        self._reserve.take()
        self._bound_log()

    def _tighten(self) -> None:
        files = [self._real_path, *(self._beside(each) for each in ("wal", "shm", "journal"))]
        for path in files:
            if not make_private(path):
                log.warning("others may read %s: it isn't ours to change that", path)

    def _beside(self, suffix: str) -> Path:
        return self._real_path.with_name(f"{self._real_path.name}-{suffix}")

    def append(self, segments: Sequence[SegmentEvent], state: SessionState) -> None:
        """Store segments and the state of their session after them: both or neither.

        The state of a session that has ended is not kept: there is nothing to resume.
        Raises SpoolFull, and then nothing has been stored.
        """
        assert all(each.service_order_number == state.service_order_number for each in segments)

        def store() -> None:
            self._db.executemany(
                f"INSERT INTO pending ({NAMES}) VALUES (?, ?, ?, ?, ?)",
                [astuple(segment) for segment in segments],
            )
            if state.ended:
                self._db.execute(
                    "DELETE FROM sessions WHERE service_order_number = ?",
                    (state.service_order_number,),
                )
            else:
                self._db.execute(
                    "INSERT OR REPLACE INTO sessions VALUES (?, ?, ?, ?, ?)", astuple(state)
                )

        with self._mutex:
            try:
                self._commit(store)
            except SpoolFull:
                # The reserve is for new segments as well: all of it where nothing is to be
                # removed, else all but the last of it.
                if is_empty := not self._any_pending():
                    self._reserve.give_up()
                else:
                    self._reserve.shrink()
                self._empty_log()
                try:
                    self._commit(store)
                except SpoolFull as error:
                    raise self._explained(error) from None
                finally:
                    self._empty_log()
                    if is_empty:
                        self._reserve.take()
                    self._bound_log()

    def oldest(self, count_max: int, *, without: Sequence[str] = ()) -> list[SpooledSegment]:
        """Return up to `count_max` waiting segments, in the order in which they were stored.

        None of the orders `without`, of which a thousand at most are looked at.
        """
        without = without[:_ORDERS_MAX]
        marks = ", ".join("?" * len(without))
        query = f"SELECT id, {NAMES} FROM pending WHERE service_order_number NOT IN ({marks})"
        rows = self._rows(f"{query} ORDER BY id LIMIT ?", *without, count_max)
        return [SpooledSegment(row[0], _segment(row[1:])) for row in rows]

    def acknowledge(self, entry_ids: Sequence[int]) -> None:
        """Remove segments that the server has; ids that are gone already are ignored.

        Works on a full disk as well, by the reserve, and in small pieces where there is little of
        it. Raises SpoolFull where not even one can be removed.
        """
        self._in_pieces(entry_ids, self._remove)

    def reject(self, rejected: Sequence[RejectedSegment]) -> None:
        """Set segments that were refused for good aside, with the server's words; see above."""
        self._in_pieces(rejected, self._set_aside)

    def rejected(self, service_order_number: str | None = None) -> list[RejectedSegment]:
        """Return what was refused, oldest first: of one order, or of all."""
        where, values = _of_order(service_order_number)
        query = f"SELECT id, {NAMES}, reason, detail FROM rejected{where} ORDER BY id"
        rows = self._rows(query, *values)
        return [RejectedSegment(row[0], _segment(row[1:6]), row[6], row[7]) for row in rows]

    def retry_rejected(self) -> int:
        """Put everything that was refused back into the queue, and return how much it was."""
        count = 0

        def put_back() -> None:
            nonlocal count
            self._db.execute(
                f"INSERT INTO pending ({NAMES}) SELECT {NAMES} FROM rejected ORDER BY id"
            )
            count = self._db.execute("DELETE FROM rejected").rowcount

        self._removing(put_back)
        return count

    def discard_rejected(self, service_order_number: str | None = None) -> int:
        """Forget what was refused, of one order or of all, and return how much it was."""
        count = 0

        def discard() -> None:
            nonlocal count
            where, values = _of_order(service_order_number)
            count = self._db.execute(f"DELETE FROM rejected{where}", values).rowcount

        self._removing(discard)
        return count

    def pending(self, service_order_number: str | None = None) -> int:
        """Return how many segments wait to be sent: of one order, or of all."""
        where, values = _of_order(service_order_number)
        return int(self._rows(f"SELECT count(*) FROM pending{where}", *values)[0][0])

    def rejected_count(self) -> int:
        """Return how many segments were set aside."""
        return int(self._rows("SELECT count(*) FROM rejected")[0][0])

    def sessions(self) -> list[SessionState]:
        """Return the state of every session that was started and has not ended."""
        rows = self._rows("SELECT * FROM sessions ORDER BY rowid")
        return [SessionState(row[0], row[1], row[2], row[3], bool(row[4])) for row in rows]

    def close(self) -> None:
        """Close and unlock the file. Closing twice is allowed."""
        with self._mutex:
            self._db.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _removing(self, change: Callable[[], None]) -> None:
        """Make a change that must be possible on a full disk and in a full spool, too."""
        with self._mutex:
            try:
                self._commit(change)
            except SpoolFull:
                self._reserve.give_up()
                self._empty_log()
                with self._wider_limit():
                    self._commit(change)
            finally:
                self._reserve.take()
                self._bound_log()

    def _in_pieces(self, items: Sequence[T], change: Callable[[Sequence[T]], None]) -> None:
        try:
            self._removing(lambda: change(items))
        except SpoolFull:
            if len(items) <= 1:
                raise
            half = len(items) // 2
            self._in_pieces(items[:half], change)
            self._in_pieces(items[half:], change)

    def _commit(self, change: Callable[[], None]) -> None:
        with self._errors(), self._transaction():
            change()

    @contextmanager
    def _wider_limit(self) -> Iterator[None]:
        """Let the file grow by an eighth over its limit: never for new segments."""
        wider_pages = self._limit_pages + max(self._limit_pages // 8, 4)
        self._db.execute(f"PRAGMA max_page_count={wider_pages}")
        try:
            yield
        finally:
            self._db.execute(f"PRAGMA max_page_count={self._limit_pages}")

    def _bound_log(self) -> None:
        """See to it that the log fits into the reserve: it may have to be worked into the file."""
        pages = max(1, min(_LOG_PAGES, self._reserve.size_bytes // self._page_bytes // 2))
        if pages != self._log_pages:
            with self._errors():
                self._db.execute(f"PRAGMA wal_autocheckpoint={pages}")
            self._log_pages = pages

    def _empty_log(self) -> None:
        """Work the log into the file, as far as there is room for that, and cut it off."""
        with suppress(SpoolFull), self._errors():
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def _explained(self, error: SpoolFull) -> SpoolFull:
        rejected = self.rejected_count()
        hint = f"{error}; {rejected} refused segments take room, see discard_rejected"
        return SpoolFull(hint) if rejected else error

    def _remove(self, entry_ids: Sequence[int]) -> None:
        self._db.executemany("DELETE FROM pending WHERE id = ?", [(each,) for each in entry_ids])

    def _any_pending(self) -> bool:
        with self._errors():
            return self._one("SELECT EXISTS (SELECT 1 FROM pending)") == 1

    def _set_aside(self, rejected: Sequence[RejectedSegment]) -> None:
        self._remove([each.entry_id for each in rejected])  # it makes room
        self._db.executemany(
            f"INSERT OR REPLACE INTO rejected (id, {NAMES}, reason, detail)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            [
                (each.entry_id, *astuple(each.segment), each.reason, each.detail)
                for each in rejected
            ],
        )

    def _one(self, query: str) -> int:
        return int(self._db.execute(query).fetchone()[0])

    def _rows(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        with self._mutex, self._errors():
            return self._db.execute(query, values).fetchall()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:  # SQLite may have rolled back by itself (a full disk)
                self._db.execute("ROLLBACK")
            raise

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF
            text = f"{self.path}: {error}"
            if code == sqlite3.SQLITE_FULL:
                raise SpoolFull(f"{text}; nothing was stored, free some space") from error
            if code == sqlite3.SQLITE_BUSY:
                raise SpoolBusy(f"{text}; one process at a time may use a spool") from error
            raise SpoolBroken(text) from error


def _of_order(service_order_number: str | None) -> tuple[str, tuple[str, ...]]:
    """Return the condition, and its values, for one order or for all."""
    if service_order_number is None:
        return "", ()
    return " WHERE service_order_number = ?", (service_order_number,)


def _segment(row: Sequence[Any]) -> SegmentEvent:
    return SegmentEvent(row[0], row[1], row[2], row[3], bool(row[4]))
