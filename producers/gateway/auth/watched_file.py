"""A file that is read again when it has changed, and that never takes away what was read before.

Theory: a look at the file costs a system call, so it is done once in a while, in a thread. Size,
times and inode tell whether it is another one. A file that was written less than two seconds ago
may be written once more with the same time and size, so it is read again at the next look. What
can't be read, or isn't right, changes nothing but the log: the last good content holds.
"""

import asyncio
import logging
import os
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from durabill.schemas.errors import DurabillError

log = logging.getLogger(__name__)

LOOK_S = 1.0
TOLD_AGAIN_S = 60.0
_RACY_NS = 2_000_000_000
T = TypeVar("T")
_Stamp = tuple[int, int, int, int]


class UnsafeFile(DurabillError):
    """A file that decides who may ask is no plain file of its owner's alone, or is too large."""

    exit_code = 2


class WatchedFile(Generic[T]):
    """The newest good content of a file, as `decode` reads it; `kind` is what messages call it.

    `decode` raises a DurabillError for what isn't right. `on_change` is called in the event loop
    after each change. Raises that error, or OSError, where the first content can't be read.
    """

    def __init__(
        self,
        path: Path,
        kind: str,
        decode: Callable[[bytes], T],
        *,
        bytes_max: int,
        on_change: Callable[[T], None] = lambda _: None,
    ) -> None:
        self._path, self._kind = path, kind
        self._decode, self._bytes_max = decode, bytes_max
        self._on_change = on_change
        self._stamp: _Stamp | None = None
        self._data = b""
        self._told = ""
        self._told_s = float("-inf")
        data, self._stamp = self._read()
        self.content = self._decode(data)
        self._data = data

    async def watch(self, look_s: float = LOOK_S) -> None:
        """Look again and again, until cancelled."""
        while True:
            await asyncio.sleep(look_s)
            await self.look()

    async def look(self) -> None:
        """Take the file's content if it is another one, and good."""
        try:
            found = await asyncio.to_thread(self._changed)
        except (DurabillError, OSError) as error:
            self._tell(error)
            return
        if self._told:
            log.warning("%s %s can be read again", self._kind, self._path)
            self._told, self._told_s = "", float("-inf")
        if found is not None:
            self.content = found
            log.info("%s %s has changed; what it says now holds", self._kind, self._path)
            self._on_change(found)

    def _changed(self) -> T | None:
        stamp = _stamp_of(os.stat(self._path))
        is_fresh = time.time_ns() - stamp[0] < _RACY_NS
        if stamp == self._stamp and not is_fresh and not self._told:
            return None
        data, stamp = self._read()
        if data == self._data:
            self._stamp = stamp
            return None
        found = self._decode(data)
        self._data, self._stamp = data, stamp
        return found

    def _read(self) -> tuple[bytes, _Stamp]:
        # Not blocking: it may be a pipe, which would have us wait for a writer.
        with open(self._path, "rb", opener=without_waiting) as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise UnsafeFile("it is no file")
            if found.st_mode & 0o022:
                raise UnsafeFile(
                    f"others than its owner can write it (mode {found.st_mode & 0o777:o}), so"
                    " anybody could make keys: chmod 600 it"
                )
            data = file.read(self._bytes_max + 1)
        if len(data) > self._bytes_max:
            raise UnsafeFile(f"it has over {self._bytes_max} bytes")
        return data, _stamp_of(found)

    def _tell(self, error: Exception) -> None:
        why = (error.strerror if isinstance(error, OSError) else None) or str(error)
        now_s = time.monotonic()
        if why != self._told or now_s - self._told_s >= TOLD_AGAIN_S:
            text = "%s %s can't be used: %s. What was read before still holds; mend the file"
            log.error(text, self._kind, self._path, why)
            self._told, self._told_s = why, now_s


def without_waiting(path: str, flags: int) -> int:
    """Open a file as `open` does, but wait for no writer where it is a pipe."""
    return os.open(path, flags | os.O_NONBLOCK)


def _stamp_of(found: os.stat_result) -> _Stamp:
    return found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino
