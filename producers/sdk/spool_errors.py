"""What can be wrong with a spool's file, and which of SQLite's errors says so."""

import errno
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from durabill.producers.sdk.session import ProducerError

_LOST = ("no such", "already exists", "has no column")  # the schema isn't what the header says
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT}
_DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}


class SpoolError(ProducerError):
    """Something about the spool's file."""


class SpoolFull(SpoolError):
    """The size limit or the disk is full. Nothing of the call was stored."""


class ReceiptsDropped(SpoolError):
    """There was no room for receipts of orders whose total isn't known to be out: `count` so far.

    Told alone, never raised: metering and sending go on.
    """

    def __init__(self, count: int, size_bytes: int) -> None:
        room = f"receipts take {size_bytes} bytes; read them with receipts(), or give more room"
        said = f"{count} receipts were dropped of orders whose total isn't known to be out"
        super().__init__(f"{said}: {room}")
        self.count = count


class SpoolBusy(SpoolError):
    """Another process, or another Spool of this one, has the file open."""


class SpoolBroken(SpoolError):
    """The file can't be opened or read as a spool of this version."""


class SpoolDamaged(SpoolBroken):
    """The file isn't what was written. Told by a client that has put it aside and goes on."""


class SpoolUnsynced(SpoolBroken):
    """The disk could not be synced: what was written last may be gone, though it can be read."""


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Have SQLite's errors, and those of the operating system, come as ours."""
    try:
        yield
    except UnicodeDecodeError as error:  # SQLite's words hold a damaged name
        raise SpoolDamaged(f"{path}: {error}") from error
    except OSError as error:
        if error.errno in _NO_ROOM:
            raise SpoolFull(f"{path}: {error}; free some space") from error
        raise SpoolBroken(f"{path}: {error}") from error
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        text = f"{path}: {error}"
        if code == sqlite3.SQLITE_FULL:
            raise SpoolFull(f"{text}; nothing was stored, free some space") from error
        if code == sqlite3.SQLITE_BUSY:
            raise SpoolBusy(f"{text}; one process at a time may use a spool") from error
        # Text that is no UTF-8 has no code.
        if code in _DAMAGED or (code == 0 and "UTF-8" in str(error)):
            raise SpoolDamaged(text) from error
        if getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_IOERR_FSYNC:
            raise SpoolUnsynced(f"{text}: it could not be synced") from error
        if code == sqlite3.SQLITE_ERROR and any(each in str(error) for each in _LOST):
            raise SpoolDamaged(f"{text}: it has lost a part") from error
        raise SpoolBroken(text) from error
