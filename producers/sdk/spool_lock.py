"""One process at a time for a spool, also while its file is exchanged for another.

SQLite locks the file that it has open. Where a new file takes the place of a damaged one there are
moments in which neither is open, and another process could begin with one of them. So a spool has
an empty file beside it (`-lock`), which stays, and which is locked from before the first look until
the end. The lock is of a process (`fcntl.lockf`): a fork has none, and none outlives its process.
Where there are no such locks (Windows, some network file systems), or no room for the file, it has
to do without: what SQLite does is left then.
"""

import errno
import logging
import os
import threading
import time
from contextlib import suppress
from pathlib import Path

from durabill.producers.sdk.private_files import open_private
from durabill.producers.sdk.spool_errors import SpoolBusy

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

log = logging.getLogger(__name__)

_WAIT_S = 0.2
_STEP_S = 0.02
_TAKEN = {errno.EACCES, errno.EAGAIN}
_MUTEX = threading.Lock()
_HELD: dict[tuple[int, int], int] = {}
"""Device and number of each file that is locked here, and by which process: a fork inherits this.

Within a process such locks don't exclude each other, and the first descriptor of a file that is
closed ends its lock. So a file that we have locked is never opened again.
"""


class SpoolLock:
    """The lock in the file `path`, held from now until `release`. Raises SpoolBusy."""

    def __init__(self, path: Path) -> None:
        self._handle: int | None = None
        self._key: tuple[int, int] | None = None
        until_s = time.monotonic() + _WAIT_S
        while not self._taken(path):
            if time.monotonic() >= until_s:
                raise SpoolBusy(f"{path}: locked; one process at a time may use a spool")
            time.sleep(_STEP_S)

    def release(self) -> None:
        """Give the lock up, if this process has it."""
        with _MUTEX:
            if self._handle is None or self._key is None or _HELD.get(self._key) != os.getpid():
                return
            del _HELD[self._key]
            os.close(self._handle)
            self._handle = None

    def _taken(self, path: Path) -> bool:
        """Lock the file; return False where another one has it."""
        if fcntl is None:
            return True
        with _MUTEX:
            with suppress(OSError):
                if _HELD.get(_key_of(os.stat(path))) == os.getpid():
                    return False
            try:
                handle = open_private(path)
            except OSError as error:
                log.debug("no lock beside the spool: %s", error)
                return True
            try:
                fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self._key = _key_of(os.fstat(handle))
            except OSError as error:
                os.close(handle)
                if error.errno in _TAKEN:
                    return False
                log.debug("no lock beside the spool: %s", error)
                return True
            except BaseException:
                os.close(handle)
                raise
            self._handle = handle
            _HELD[self._key] = os.getpid()
            return True


def _key_of(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino
