"""What can be read of a damaged spool, so that metering goes on in a new one.

The damaged file is put aside as it is, under another name, with its log. Then every row is read
that SQLite can still reach, from both ends of each table and past what it can't read; a row whose
sum is wrong isn't taken. Where the first page is gone, which says where all others are, the one of
a new spool stands in for it: the tables begin on the same pages there, unless the file was made by
an older version.
"""

import os
import shutil
import sqlite3
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from durabill.producers.sdk.private_files import open_private
from durabill.producers.sdk.session import SessionState
from durabill.producers.sdk.spool_file import SUFFIXES
from durabill.producers.sdk.spool_tables import (
    NAMES,
    PAGE_BYTES,
    SERVICE_NAMES,
    Row,
    make_tables,
    segment_of,
    state_of,
    terms_of,
)
from durabill.producers.sdk.uplink import OrderTerms

_AT_ONCE = 200
_STEP_MAX = 4_096
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


def put_aside(path: Path) -> Path:
    """Give a spool's file, and its log, another name beside it; return that."""
    real_path = Path(os.path.realpath(path))
    aside = _free_name(real_path)
    for suffix in ("", *SUFFIXES):  # a log that stayed would be taken for the new file's
        with suppress(FileNotFoundError):
            os.rename(f"{real_path}{suffix}", f"{aside}{suffix}")
    return aside


def save_removed(db: sqlite3.Connection, path: Path) -> Path | None:
    """Save what an open file has whose name is gone, under a name beside it; None if it isn't."""
    real_path = Path(os.path.realpath(path))
    if real_path.exists():
        return None
    aside = _free_name(real_path)
    try:
        os.close(open_private(aside))
        with closing(sqlite3.connect(aside)) as target:
            db.backup(target)
    except (sqlite3.Error, OSError):  # it was damaged as well, or there is no room
        aside.unlink(missing_ok=True)
        return None
    with suppress(FileNotFoundError):
        os.unlink(f"{real_path}-wal")  # of the file that was removed
    return aside


def _free_name(real_path: Path) -> Path:
    number = 1
    while (aside := real_path.with_name(f"{real_path.name}.damaged-{number}")).exists():
        number += 1
    return aside


def put_back(aside: Path, path: Path) -> None:
    """Undo `put_aside`: there is no room for a new file, or another reason to wait."""
    real_path = Path(os.path.realpath(path))
    for suffix in ("", *SUFFIXES):
        with suppress(FileNotFoundError):
            os.replace(f"{aside}{suffix}", f"{real_path}{suffix}")


def read_what_is_left(aside: Path) -> Salvaged:
    """Read all that can be read from a damaged file, of a copy: the file itself stays as it is."""
    copy = aside.with_name(f"{aside.name}.copy")
    try:
        for suffix in ("", "-wal"):
            with suppress(FileNotFoundError):
                os.close(open_private(Path(f"{copy}{suffix}")))
                shutil.copyfile(f"{aside}{suffix}", f"{copy}{suffix}")
        left = _read(copy)
        if left is None:
            _mend_first_page(copy)
            left = _read(copy)
        return left or Salvaged()
    except OSError:  # no room for a copy
        return Salvaged()
    finally:
        for suffix in ("", *SUFFIXES):
            with suppress(FileNotFoundError):
                os.unlink(f"{copy}{suffix}")


def _read(path: Path) -> Salvaged | None:
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        try:
            db.execute("PRAGMA locking_mode=EXCLUSIVE")
            names = {row[0] for row in db.execute("SELECT name FROM sqlite_master")}
        except sqlite3.Error:
            return None
        if "pending" not in names:
            return None
        left = Salvaged()
        segments = f"id, {NAMES}" + (", sum" if "services" in names else ", NULL")
        for row in _rows(db, "pending", segments, left):
            _take(left, left.pending, row, row[1:])
        for row in _rows(db, "rejected", f"{segments}, reason, detail", left):
            _take(left, left.rejected, row, row[1:7])
        if "services" not in names:
            return left
        left.receipts = _rows(db, "receipts", "id, kept_ms, content", left)
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


def _take(left: Salvaged, rows: list[Row], row: Row, segment: Row) -> None:
    with suppress(Exception):  # whatever damaged values are taken for
        if segment_of(segment) is not None:
            rows.append(row)
            return
    left.unread += 1


def _rows(db: sqlite3.Connection, table: str, names: str, left: Salvaged) -> list[Row]:
    """Return the rows of a table that can be reached, by their id: whole pages may be gone."""
    found: dict[Any, Row] = {}
    last = _ends(db, table)
    after, step = -1, 1
    while True:
        try:
            query = f"SELECT {names} FROM {table} WHERE id > ? ORDER BY id LIMIT ?"
            rows = db.execute(query, (after, _AT_ONCE if step == 1 else 1)).fetchall()
        except sqlite3.Error:
            if last is None or after >= last:
                break
            after, step = after + step, min(step * 2, _STEP_MAX)
            continue
        if not rows:
            break
        found.update((row[0], row) for row in rows)
        after, step = rows[-1][0], 1
    if last is not None and last > max(found, default=-1):
        left.unread += 1
    return [found[each] for each in sorted(found)]


def _ends(db: sqlite3.Connection, table: str) -> int | None:
    """Return the last id of a table, as far as that can be told."""
    try:
        (last,) = db.execute(f"SELECT max(id) FROM {table}").fetchone()
    except sqlite3.Error:
        return None
    return last if isinstance(last, int) else None


def _mend_first_page(path: Path) -> None:
    """Have the first page of an empty spool stand in for a file's own."""
    template = path.with_name(f"{path.name}.page")
    try:
        os.close(open_private(template))
        with closing(sqlite3.connect(template, isolation_level=None)) as db:
            db.execute(f"PRAGMA page_size={PAGE_BYTES}")
            make_tables(db)
        page = bytearray(template.read_bytes()[:PAGE_BYTES])
        assert page.startswith(_HEADER)
        pages = path.stat().st_size // PAGE_BYTES
        page[18:20] = b"\2\2"  # a log belongs to it; what that has of this page goes before it
        page[28:32] = max(pages, 1).to_bytes(4, "big")  # the file's length, so that none is missing
        with open(path, "r+b") as file:
            file.write(page)
    finally:
        template.unlink(missing_ok=True)
