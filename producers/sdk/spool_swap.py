"""How a new file takes the place of a damaged spool, whenever the process is killed meanwhile.

1. The new file is written under another name, `.part`, until it is complete and on the disk.
2. It gets the name `.new`: from here on it is the one that counts, once the damaged one is gone.
3. The damaged file, and then its log, are renamed to `.damaged-N` beside it.
4. The new file gets the spool's name.

Killed before 3, the damaged file is found under its own name, with all that it has. Killed after
it, there is none of that name, and `finish_swap` does the rest. A step that fails leaves the same.
"""

import os
import sqlite3
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

from durabill.producers.sdk.private_files import open_private
from durabill.producers.sdk.spool_errors import SpoolDamaged, SpoolFull, translated
from durabill.producers.sdk.spool_file import SUFFIXES
from durabill.producers.sdk.spool_tables import PAGE_BYTES, make_tables

_DAMAGED = ".damaged-"


def prepare_new(path: Path, fill: Callable[[sqlite3.Connection], None]) -> None:
    """Make the file that is to take the place of a spool's: on the disk, filled by `fill`.

    Where this fails, SpoolFull and SpoolBroken say so, and nothing has changed.
    """
    real_path = real(path)
    part = _beside(real_path, ".part")
    with translated(path):
        try:
            try:
                _build(part, fill)
            except SpoolFull:  # that is what the reserve is for
                _beside(real_path, "-reserve").unlink(missing_ok=True)
                _build(part, fill)
        except BaseException:
            remove(part)
            raise
        os.replace(part, _beside(real_path, ".new"))
        _sync_folder(real_path)


def put_new(path: Path) -> Path:
    """Put a spool's file aside, and what `prepare_new` made in its place; return the old one.

    Nobody may have it open. Raises as `prepare_new` does; then `finish_swap` may do the rest.
    """
    with translated(path):
        return _swap(real(path))


def finish_swap(path: Path) -> Path | None:
    """Finish what a killed process began; return the damaged file's name, None if nothing was."""
    real_path = real(path)
    with translated(path):
        if real_path.exists() or not _beside(real_path, ".new").exists():
            return None
        return _swap(real_path)


def forget_swap(path: Path) -> None:
    """Remove what a killed process had made, and nobody needs: the spool is open."""
    for suffix in (".part", ".new", ".copy", ".copy.page"):  # see `salvage`
        with suppress(OSError):
            remove(_beside(real(path), suffix))


def restore_removed(db: sqlite3.Connection, path: Path) -> None:
    """Give an open file whose name is gone its name again; where it is damaged, make an empty one.

    Where there is no room for that, SpoolFull says so.
    """
    real_path = real(path)
    if real_path.exists():
        return
    part = _beside(real_path, ".part")
    with translated(path):
        try:
            remove(part)
            os.close(open_private(part))
            try:
                with translated(path):
                    _back_up(db, part)
            except SpoolDamaged:
                remove(part)
                os.close(open_private(part))
            for suffix in SUFFIXES:  # of the file that was removed
                _beside(real_path, suffix).unlink(missing_ok=True)
            os.replace(part, real_path)
        except BaseException:
            remove(part)
            raise


def real(path: Path) -> Path:
    """Return where a spool's file lies: its other files are beside it."""
    return Path(os.path.realpath(path))


def beside(path: Path, suffix: str) -> Path:
    """Return where a file of the spool at `path` lies that has this suffix."""
    return _beside(real(path), suffix)


def remove(path: Path) -> None:
    """Remove a file, and its log, if they are there."""
    for suffix in ("", *SUFFIXES):
        _beside(path, suffix).unlink(missing_ok=True)


def _back_up(db: sqlite3.Connection, part: Path) -> None:
    with closing(sqlite3.connect(part)) as target:
        try:
            db.backup(target)
        except sqlite3.ProgrammingError as error:
            raise SpoolDamaged(f"{part}: it was closed already") from error


def _build(part: Path, fill: Callable[[sqlite3.Connection], None]) -> None:
    remove(part)
    os.close(open_private(part))
    with translated(part), closing(sqlite3.connect(part, isolation_level=None)) as db:
        db.execute("PRAGMA locking_mode=EXCLUSIVE")
        db.execute(f"PRAGMA page_size={PAGE_BYTES}")
        db.execute("PRAGMA journal_mode=OFF")  # it is whole, or removed
        db.execute("PRAGMA synchronous=OFF")
        db.execute("BEGIN")
        make_tables(db)
        fill(db)
        db.execute("COMMIT")
        db.execute("PRAGMA journal_mode=WAL")
    handle = os.open(part, os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _swap(real_path: Path) -> Path:
    number = 1
    while _beside(real_path, f"{_DAMAGED}{number}").exists():
        number += 1
    if real_path.exists():
        aside = _beside(real_path, f"{_DAMAGED}{number}")
        os.rename(real_path, aside)
    else:  # a process was killed here
        aside = _beside(real_path, f"{_DAMAGED}{max(1, number - 1)}")
    for suffix in SUFFIXES:  # a log that stayed would be taken for the new file's
        with suppress(FileNotFoundError):
            os.replace(_beside(real_path, suffix), _beside(aside, suffix))
    os.replace(_beside(real_path, ".new"), real_path)
    _sync_folder(real_path)
    return aside


def _sync_folder(real_path: Path) -> None:
    with suppress(OSError):  # not every system can
        handle = os.open(real_path.parent, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(f"{path.name}{suffix}")
