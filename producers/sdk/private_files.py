"""Files that nobody but their owner may read, whatever the umask, also where others can write.

What a spool holds says who used which service when, so its files have the mode 0600.
"""

import os
import stat
from contextlib import suppress
from pathlib import Path

MODE = 0o600
_NOFOLLOW = getattr(os, "O_NOFOLLOW", 0)  # there is none on Windows


def create_private(path: Path) -> bool:
    """Make an empty file that only we can read, unless the name is taken; tell whether it was.

    Don't call it while this process has SQLite's lock on the file: see `make_private`.
    Raises OSError.
    """
    try:
        handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | _NOFOLLOW, MODE)
    except FileExistsError:
        return False
    try:
        _set_mode(handle)
    finally:
        os.close(handle)
    return True


def open_private(path: Path) -> int:
    """Open a file for reading and writing, made if it is missing; return its descriptor.

    Only we can read it then. Raises OSError, also for a link, a file of another user, and what
    is no file.
    """
    handle = os.open(path, os.O_CREAT | os.O_RDWR | _NOFOLLOW | _nonblock(), MODE)
    try:
        found = os.fstat(handle)
        if not _is_ours(found):
            raise PermissionError(f"{path} is no file of ours")
        _set_mode(handle)
    except BaseException:
        os.close(handle)
        raise
    return handle


def make_private(path: Path) -> bool:
    """Take the rights of others from a file of ours, if there are any; tell whether it has none.

    A file of another user, a link, and what is no file are left alone. The file isn't opened
    for it: closing any descriptor of a file ends the locks that SQLite has on it.
    """
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return True
    if not _is_ours(found):
        return False
    if not _is_wide(found):
        return True
    if hasattr(os, "O_PATH"):  # a name for the very file that was looked at
        with suppress(OSError):
            handle = os.open(path, os.O_PATH | _NOFOLLOW)
            try:
                if _is_ours(os.fstat(handle)):
                    os.chmod(f"/proc/self/fd/{handle}", MODE)
            finally:
                os.close(handle)
    elif os.chmod in os.supports_follow_symlinks:
        os.chmod(path, MODE, follow_symlinks=False)
    return not _is_wide(os.lstat(path))


def _is_ours(found: os.stat_result) -> bool:
    return stat.S_ISREG(found.st_mode) and found.st_uid == _own_user()


def _is_wide(found: os.stat_result) -> bool:
    return bool(stat.S_IMODE(found.st_mode) & ~MODE)


def _own_user() -> int:
    return os.geteuid() if hasattr(os, "geteuid") else 0


def _nonblock() -> int:
    return getattr(os, "O_NONBLOCK", 0)  # a pipe of that name must not hold us up


def _set_mode(handle: int) -> None:
    if hasattr(os, "fchmod"):
        os.fchmod(handle, MODE)
