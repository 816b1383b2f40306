"""Room on a disk that is kept for later: a file of zeros, removed when the room is needed."""

import logging
import os
from contextlib import suppress
from pathlib import Path

from durabill.producers.sdk.private_files import open_private

log = logging.getLogger(__name__)

RESERVE_BYTES = 1024 * 1024
_STEP_BYTES = 64 * 1024  # a part of the room is better than none
_PART_BYTES = 256 * 1024


class Reserve:
    """A reserve in the file `path`: as much of `RESERVE_BYTES` as there was room for.

    It is there to help and never in the way: whatever the disk says to it, nothing is raised.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.size_bytes = 0

    def take(self) -> None:
        """Take what is missing, as far as there is room. Only we can read the file."""
        if self.size_bytes >= RESERVE_BYTES:
            return
        try:
            handle = open_private(self._path)
        except OSError as error:  # no room for an empty file, or somebody else's has the name
            log.debug("no reserve: %s", error)
            return
        self.size_bytes = 0
        with suppress(OSError):
            try:
                self.size_bytes = _grown(handle)
            finally:
                os.close(handle)
        if not self.size_bytes:
            self._remove()

    def shrink(self) -> None:
        """Make room by a quarter of a whole reserve, unless that little is left."""
        if self.size_bytes >= 2 * _PART_BYTES:
            self.size_bytes -= _PART_BYTES
            with suppress(OSError):  # somebody has removed it, say
                os.truncate(self._path, self.size_bytes)

    def give_up(self) -> None:
        """Make room by all of it."""
        self.size_bytes = 0
        self._remove()

    def _remove(self) -> None:
        with suppress(OSError):
            self._path.unlink(missing_ok=True)


def _grown(handle: int) -> int:
    """Fill the file up with zeros, in whole steps; return how long it is now."""
    size_bytes = os.fstat(handle).st_size
    size_bytes -= size_bytes % _STEP_BYTES
    os.lseek(handle, size_bytes, os.SEEK_SET)
    try:
        while size_bytes < RESERVE_BYTES:
            step = bytes(_STEP_BYTES)
            while step:
                step = step[os.write(handle, step) :]
            size_bytes += _STEP_BYTES
    except OSError:  # no more room: what is whole stays
        os.ftruncate(handle, size_bytes)
    return size_bytes
