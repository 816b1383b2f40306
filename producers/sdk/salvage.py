"""What can be read of a damaged spool, so that metering goes on in a new one.

The damaged file stays as it is, with its log (see `spool_swap`). Of a copy, or of the file itself
where there is no room for one, every row is read that SQLite can still reach, past what it can't
read; a row whose sum is wrong isn't taken. Where one of the pages is gone that say where all
others are, those of a new spool stand in for them: the tables begin on the same pages there, unless
the file was made by an older version.
"""

import os
import sqlite3
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path

from durabill.producers.sdk.private_files import open_private
from durabill.producers.sdk.receipt_pack import unpacked
from durabill.producers.sdk.session import SessionState
from durabill.producers.sdk.spool_swap import real, remove
from durabill.producers.sdk.spool_tables import (
    ID_MAX,
    NAMES,
    PAGE_BYTES,
    SERVICE_NAMES,
    Row,
    make_tables,
    segment_of,
    segment_row,
    state_of,
    terms_of,
    words_of,
)
from durabill.producers.sdk.uplink import OrderTerms

_STEP_MAX = 4_096
_ERRORS = (sqlite3.Error, UnicodeDecodeError)  # the latter of names in a damaged schema
_SYSTEMS = {
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_NOMEM,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_CANTOPEN,
}
_PASSED_OVER = (sqlite3.SQLITE_IOERR,)  # one page that the disk doesn't give is no more than that
_HEADER = b"SQLite format 3\0"


@dataclass(slots=True)
class Salvaged:
    """Rows that are whole. `unread` were there and are not; more may be gone without a trace."""

    pending: list[Row] = field(default_factory=list)
    rejected: list[Row] = field(default_factory=list)
    receipts: list[Row] = field(default_factory=list)
    states: dict[str, SessionState] = field(default_factory=dict)
    terms: dict[str, OrderTerms] = field(default_factory=dict)
    unread: int = 0

    def take(self, rows: list[Row], row: Row, may_lack_sum: bool) -> None:
        """Add a segment's row to `rows`, if it is whole."""
        with suppress(Exception):  # whatever damaged values are taken for
            segment = segment_of(row[1:7], may_lack_sum=may_lack_sum)
            if segment is not None:
                rows.append((row[0], *segment_row(segment), *row[7:]))
                return
        self.unread += 1

    def write(self, db: sqlite3.Connection) -> None:
        """Write segments and receipts into a new file's tables, under the ids that they had."""
        db.executemany(
            f"INSERT INTO pending (id, {NAMES}, sum) VALUES (?,?,?,?,?,?,?)", self.pending
        )
        names = f"id, {NAMES}, sum, reason, detail"
        db.executemany(f"INSERT INTO rejected ({names}) VALUES (?,?,?,?,?,?,?,?,?)", self.rejected)
        db.executemany("INSERT INTO receipts VALUES (?, ?, ?)", self.receipts)

    def told(self, error: Exception, aside: Path, services_lost: int) -> str:
        """Say what happened, what was saved, and what may be gone."""
        saved = (
            f"{len(self.pending)} waiting and {len(self.rejected)} refused segments and"
            f" {len(self.states)} services were read from it"
        )
        gone = f"{self.unread} rows can't be read" if self.unread else "whatever else it held"
        text = f"{error}; it was put aside as {aside}: {saved}; {gone} may be lost"
        if services_lost:
            text += f", {services_lost} running services go on from memory"
        return text


def read_what_is_left(path: Path) -> Salvaged:
    """Read all that can be read from a damaged file that nobody has open; it stays as it is.

    Raises OSError, and SQLite's own errors, where the file can't be read now but may be later.
    """
    real_path = real(path)
    copy = real_path.with_name(f"{real_path.name}.copy")
    try:
        try:
            _copy(real_path, copy)
        except OSError:  # no room for a copy, or a part of the disk can't be read
            left = _read_in_place(real_path)
            if left is None:
                raise
            return left
        left = _read(f"{copy.as_uri()}?mode=rw")
        if left is None:
            _mend_schema(copy)
            left = _read(f"{copy.as_uri()}?mode=rw")
        return left or Salvaged()
    finally:
        with suppress(OSError):
            remove(copy)


def _copy(real_path: Path, copy: Path) -> None:
    import shutil  # late: with the packers that it loads, half a megabyte that hardly anybody needs

    remove(copy)  # an old log would be taken for this one's
    for suffix in ("", "-wal"):
        if os.path.exists(f"{real_path}{suffix}"):
            os.close(open_private(Path(f"{copy}{suffix}")))
            shutil.copyfile(f"{real_path}{suffix}", f"{copy}{suffix}")


def _read_in_place(real_path: Path) -> Salvaged | None:
    if not real_path.stat().st_size:  # SQLite would remove its log
        return None
    # Without locks SQLite needs no file of its own for it, and doesn't work the log in.
    vfs = "&vfs=unix-none" if os.name == "posix" else ""
    return _read(f"{real_path.as_uri()}?mode=ro{vfs}")


def _read(uri: str) -> Salvaged | None:
    """Read a file; return None where it doesn't say which tables it has."""
    with closing(sqlite3.connect(uri, isolation_level=None, uri=True)) as db:
        try:
            db.execute("PRAGMA locking_mode=EXCLUSIVE")
            names = {row[0] for row in db.execute("SELECT name FROM sqlite_master")}
        except _ERRORS as error:
            if _is_the_systems(error):
                raise
            return None
        if "pending" not in names:
            return None
        left = Salvaged()
        is_old = "services" not in names
        may_lack_sum = is_old or "sqlite_sequence" in names  # see `may_lack_sums`
        segments = f"id, {NAMES}" + (", NULL" if is_old else ", sum")
        for row in _rows(db, "pending", segments, left):
            left.take(left.pending, row, may_lack_sum)
        for row in _rows(db, "rejected", f"{segments}, reason, detail", left):
            left.take(left.rejected, (*row[:7], *map(words_of, row[7:])), may_lack_sum)
        if is_old:
            return left
        for row in _rows(db, "receipts", "id, kept_ms, content", left):
            with suppress(ValueError, TypeError):
                if isinstance(row[1], int) and unpacked(row[2]):
                    left.receipts.append(row)
                    continue
            left.unread += 1
        terms = {row[0]: terms_of(row[1]) for row in _rows(db, "terms", "id, content", left)}
        for row in _rows(db, "services", f"id, {SERVICE_NAMES}", left):
            with suppress(Exception):  # whatever damaged values are taken for
                state = state_of(row[1:])
                if state is not None:
                    left.states[state.service_order_number] = state
                    left.terms[state.service_order_number] = terms.get(row[0], OrderTerms())
                    continue
            left.unread += 1
        return left


def _is_the_systems(error: Exception, *but: int) -> bool:
    """Tell whether an error says nothing about the file: no room, no memory, a disk that fails."""
    code = getattr(error, "sqlite_errorcode", 0)
    if code == sqlite3.SQLITE_IOERR_SHORT_READ:
        return False
    return code & 0xFF in _SYSTEMS.difference(but)


def _rows(db: sqlite3.Connection, table: str, names: str, left: Salvaged) -> list[Row]:
    """Return the rows of a table that can be reached, by their id: whole pages may be gone."""
    found: dict[int, Row] = {}
    last = _ends(db, table)
    after, step = -1, 1
    query = f"SELECT {names} FROM {table} WHERE id > ? AND id <= {ID_MAX} ORDER BY id"
    while True:
        try:
            for row in db.execute(query, (after,)):
                found[row[0]] = row
                if row[0] > after:  # pages may name each other in a circle
                    after, step = row[0], 1
            break
        except _ERRORS as error:
            if _is_the_systems(error, *_PASSED_OVER):
                raise
            if last is None or after >= min(last, ID_MAX):
                break
            after, step = after + step, min(step * 2, _STEP_MAX)
    if last is not None and last > max(found, default=-1):
        left.unread += 1
    return [found[each] for each in sorted(found)]


def _ends(db: sqlite3.Connection, table: str) -> int | None:
    """Return the last id of a table, as far as that can be told."""
    try:
        (last,) = db.execute(f"SELECT max(id) FROM {table}").fetchone()
    except _ERRORS:
        return None
    return last if isinstance(last, int) else None


def _mend_schema(path: Path) -> None:
    """Have the pages of an empty spool that say where its tables are stand in for a file's own."""
    template = path.with_name(f"{path.name}.page")
    try:
        remove(template)
        os.close(open_private(template))
        with closing(sqlite3.connect(template, isolation_level=None)) as db:
            db.execute(f"PRAGMA page_size={PAGE_BYTES}")
            make_tables(db)
            roots = {row[0] for row in db.execute("SELECT rootpage FROM sqlite_master")}
        content = template.read_bytes()
        page = bytearray(content[:PAGE_BYTES])
        assert page.startswith(_HEADER)
        pages = path.stat().st_size // PAGE_BYTES
        page[18:20] = b"\2\2"  # a log belongs to it; what that has of this page goes before it
        page[28:32] = max(pages, 1).to_bytes(4, "big")  # the file's length, so that none is missing
        with open(path, "r+b") as file:
            file.write(page)
            for number in set(range(2, len(content) // PAGE_BYTES + 1)) - roots:
                at = (number - 1) * PAGE_BYTES
                file.seek(at)
                file.write(content[at : at + PAGE_BYTES])
    finally:
        template.unlink(missing_ok=True)
