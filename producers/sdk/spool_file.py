"""A spool's SQLite file: opened for us alone, changed in transactions, on full disks as well.

What survives what: a durable commit is fsynced (`synchronous=FULL`), so it survives a kill -9, a
kernel panic and a power cut. Others (what the server has may be sent again) are fsynced with the
next durable one. A torn tail, a write that was cut off, is cut away by SQLite's own checksums
when the file is opened again. After an fsync that fails nothing is known of what it was for: the
kernel may have forgotten it, and say yes the next time. Then SpoolUnsynced says so, and the file is
not to be written again (see `Spool`). For the same reason SQLite, which tells nobody of a failure
then, works its log into the file only after commits that were fsynced.

A full disk: to remove something, SQLite has to write. So that a disk that the spool itself has
filled doesn't stay full, a file beside it (`-reserve`) keeps room for that, and is given up for
it. A full spool: what the server refused is set aside within the limit and a quarter of it more,
of which long words may have half.

One process at a time: the file stays locked (`locking_mode=EXCLUSIVE`) until `close`, or until
the operating system ends the process. A fork of the process has nothing to do with the file any
more: SQLite in it would take the log away from its parent. Nobody else can read the files: they
have the mode 0600 whatever the umask.
"""

import logging
import os
import sqlite3
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from durabill.producers.sdk.private_files import create_private, make_private
from durabill.producers.sdk.reserve import Reserve
from durabill.producers.sdk.spool_errors import (
    SpoolBroken,
    SpoolBusy,
    SpoolDamaged,
    SpoolFull,
    translated,
)
from durabill.producers.sdk.spool_log import lost_commits
from durabill.producers.sdk.spool_tables import (
    FORMAT,
    PAGE_BYTES,
    make_tables,
    may_lack_sums,
    migrate_from_1,
)

log = logging.getLogger(__name__)

LIMIT_BYTES_MIN = 64 * 1024
SUFFIXES = ("-wal", "-shm", "-journal")
_LOCK_WAIT_S = 0.2
_LOG_BYTES = 512 * 1024  # the write-ahead log is worked into the file when it is as long
_UNSYNCED_COMMITS_MAX = 8  # in a row: only then may the log be worked into the file
_OPENING = threading.Lock()  # see create_private: no other spool may lock the file meanwhile
_PART_BYTES_MIN = 32 * 1024


class SpoolFile:
    """The file `path`, made if it is missing (its folder is not). The caller holds a lock.

    Raises SpoolBusy, SpoolDamaged, SpoolBroken, SpoolFull for a new file on a full disk, and
    ValueError for a limit below 64 KiB.
    """

    def __init__(self, path: Path | str, *, limit_bytes: int, fsync: bool) -> None:
        if limit_bytes < LIMIT_BYTES_MIN:
            raise ValueError(f"limit_bytes is {limit_bytes}, at least {LIMIT_BYTES_MIN} are needed")
        self.path = Path(path)
        self.real_path = Path(os.path.realpath(self.path))  # SQLite's other files lie beside it
        self.commits = self.durable_commits = 0
        self._reserve = Reserve(self._beside("-reserve"))
        self._log_pages = 0
        self._fsync = fsync
        self._is_full_sync = fsync
        self._unsynced_commits = 0
        self._pid = os.getpid()
        with _OPENING:
            try:
                create_private(self.real_path)
                self.db = sqlite3.connect(
                    self.path, timeout=_LOCK_WAIT_S, isolation_level=None, check_same_thread=False
                )
            except (sqlite3.Error, OSError) as error:
                raise SpoolBroken(f"{self.path}: {error}") from error
            try:
                self._open(limit_bytes)
            except BaseException:
                self.db.close()
                raise
        _forget_in_child(self)

    def _open(self, limit_bytes: int) -> None:
        with self.errors():
            # The order matters: exclusive before the first touch of the WAL, so that SQLite
            # takes the lock for good and needs no shared-memory file.
            self.db.execute("PRAGMA locking_mode=EXCLUSIVE")
            self.db.execute(f"PRAGMA page_size={PAGE_BYTES}")  # of a new file only
            self.db.execute("PRAGMA journal_mode=WAL")
            self.db.execute(f"PRAGMA synchronous={'FULL' if self._fsync else 'NORMAL'}")
            self._page_bytes = self.one("PRAGMA page_size")
            self._limit_pages = limit_bytes // self._page_bytes
            self.db.execute(f"PRAGMA max_page_count={self._limit_pages}")
            version = self.one("PRAGMA user_version")
            if version not in (0, 1, FORMAT):
                wrong = f"format {version}, this version knows {FORMAT}"
                raise SpoolBroken(f"{self.path}: {wrong}")
            _check_log(self._beside("-wal"), self._page_bytes)  # while nothing was written yet
        _tighten(map(self._beside, ("", *SUFFIXES)))
        if version == 0:
            self.commit(lambda: make_tables(self.db))
        elif version == 1:
            self.removing(lambda: migrate_from_1(self.db))
        else:  # takes the lock
            self.commit(lambda: None)
        self._reserve.take()
        self._bound_log()
        with self.errors():
            self.may_lack_sums = may_lack_sums(self.db)

    def close(self) -> None:
        """Close and unlock the file. Closing twice is allowed."""
        if self.is_ours():
            self.db.close()

    def is_ours(self) -> bool:
        """Tell whether this process opened the file; not so in a fork of it."""
        return self._pid == os.getpid()

    def size_bytes(self) -> int:
        """Return how much of the disk the spool has, with log and reserve."""
        return _size_bytes(self._beside(each) for each in ("", "-wal", "-reserve"))

    def rows(self, query: str, values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """Return all rows of a query."""
        with self.errors():
            return self.db.execute(query, values).fetchall()

    def one(self, query: str) -> int:
        """Return the number that a query gives."""
        return int(self.db.execute(query).fetchone()[0])

    def commit(self, change: Callable[[], object], *, durable: bool = True) -> None:
        """Make a change, all of it or nothing."""
        durable = durable or self._unsynced_commits >= _UNSYNCED_COMMITS_MAX
        self.roll_back()
        with self.errors():
            if self._fsync and durable != self._is_full_sync:
                self._is_full_sync = durable
                self.db.execute(f"PRAGMA synchronous={'FULL' if durable else 'NORMAL'}")
                self._set_log_pages()
            with self._transaction():
                change()
        self.commits += 1
        self.durable_commits += durable
        self._unsynced_commits = 0 if durable else self._unsynced_commits + 1

    def roll_back(self) -> None:
        """See to it that nothing is left of a change that failed, as without memory."""
        with self.errors():
            if self.db.in_transaction:
                self.db.execute("ROLLBACK")

    def sync(self) -> None:
        """Have every commit survive a power cut. (An empty one would not touch the disk.)"""
        self.commit(lambda: self.db.execute(f"PRAGMA user_version={FORMAT}"))

    def appending(
        self, change: Callable[[], None], *, is_empty: bool, durable: bool = True
    ) -> None:
        """Commit something new. Where there is no room the reserve helps out.

        All of it where nothing waits to be removed (`is_empty`), else all but the last of it.
        """
        try:
            self.commit(change, durable=durable)
        except SpoolFull:
            if is_empty:
                self._reserve.give_up()
            else:
                self._reserve.shrink()
            self._empty_log()
            try:
                self.commit(change, durable=durable)
            finally:
                self._empty_log()
                if is_empty:
                    self._reserve.take()
                self._bound_log()

    def removing(
        self, change: Callable[[], None], *, durable: bool = True, is_small: bool = True
    ) -> None:
        """Commit a change that must be possible on a full disk and in a full spool, too.

        One that isn't small must leave some of that room.
        """
        try:
            self.commit(change, durable=durable)
        except SpoolFull:
            self._reserve.give_up()
            self._empty_log()
            with self._wider_limit(2 if is_small else 1):
                self.commit(change, durable=durable)
        finally:
            self._reserve.take()
            self._bound_log()

    @contextmanager
    def _wider_limit(self, parts: int) -> Iterator[None]:
        """Let the file grow by so many eighths over its limit: never for new segments."""
        part_pages = max(self._limit_pages // 8, _PART_BYTES_MIN // self._page_bytes)
        wider_pages = self._limit_pages + parts * part_pages
        self.db.execute(f"PRAGMA max_page_count={wider_pages}")
        try:
            yield
        finally:
            self.db.execute(f"PRAGMA max_page_count={self._limit_pages}")

    def _bound_log(self) -> None:
        """See to it that the log fits into the reserve: it may have to be worked into the file."""
        log_bytes = min(_LOG_BYTES, self._reserve.size_bytes // 2)
        pages = max(1, log_bytes // self._page_bytes)
        if pages != self._log_pages:
            self._log_pages = pages
            with self.errors():
                self._set_log_pages()

    def _set_log_pages(self) -> None:
        is_synced = self._is_full_sync or not self._fsync
        self.db.execute(f"PRAGMA wal_autocheckpoint={self._log_pages if is_synced else 0}")

    def _empty_log(self) -> None:
        """Work the log into the file, as far as there is room for that, and cut it off."""
        with suppress(SpoolFull), self.errors():
            self.db.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def _beside(self, suffix: str) -> Path:
        return self.real_path.with_name(f"{self.real_path.name}{suffix}")

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self.db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self.db.execute("COMMIT")
        except BaseException:
            if self.db.in_transaction:  # SQLite may have rolled back by itself (a full disk)
                self.db.execute("ROLLBACK")
            raise

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Have SQLite's errors come as ours."""
        if not self.is_ours():
            raise SpoolBusy(f"{self.path}: this process is a fork of the one that has it open")
        with translated(self.path):
            yield


def _check_log(path: Path, page_bytes: int) -> None:
    if path.exists() and lost_commits(path.read_bytes(), page_bytes):
        raise SpoolDamaged(f"{path}: the log is damaged, what was stored behind that is lost")


def _size_bytes(paths: Iterable[Path]) -> int:
    size_bytes = 0
    for path in paths:
        with suppress(OSError):
            size_bytes += path.stat().st_size
    return size_bytes


def _tighten(paths: Iterable[Path]) -> None:
    for path in paths:
        if not make_private(path):
            log.warning("others may read %s: it isn't ours to change that", path)


_FILES: "weakref.WeakSet[SpoolFile]" = weakref.WeakSet()


def _forget_in_child(file: SpoolFile) -> None:
    _FILES.add(file)


def _keep_connections() -> None:
    """See to it that no connection of the parent's is ever closed in its child."""
    import ctypes  # it would cost every client its memory

    for file in list(_FILES):
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(file.db))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_keep_connections)
