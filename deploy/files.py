"""Folders and files that only their owner may read.

What we write holds passwords, order numbers and addresses: folders get mode 0700, files 0600,
whatever the umask. When root runs PostgreSQL, its files belong to another user, who has to get
through to them; the folders on that way are passable (0711): others may step through to a name
that they know, and see nothing, for all else in them is closed.
"""

import errno
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from durabill.schemas.errors import DurabillError

PRIVATE = 0o700
PASSABLE = 0o711


class ForeignFolder(DurabillError, PermissionError):
    """Root would work in another user's folder, where any name may be a link to any file."""

    def __init__(self, folder: Path, owner: int) -> None:
        super().__init__(
            errno.EPERM,
            f"{folder} belongs to another user (id {owner}), and root does nothing in there. Run"
            " this as that user, or give another --data-dir",
        )

    def __str__(self) -> str:
        return str(self.strerror)


class UnusableFolder(DurabillError, OSError):
    """A folder that we need can't be made, or be used."""

    def __init__(self, folder: Path, cause: OSError) -> None:
        is_file = isinstance(cause, (FileExistsError, NotADirectoryError))
        why = "it is no folder" if is_file else cause.strerror or str(cause)
        if cause.filename not in (None, str(folder), folder):
            why = f"{cause.filename}: {why}"
        super().__init__(
            cause.errno or errno.EIO,
            f"the folder {folder} can't be used: {why}. Mend that, or give another --data-dir"
            " (DURABILL_DATA_DIR)",
        )

    def __str__(self) -> str:
        return str(self.strerror)


@contextmanager
def _told(folder: Path) -> Iterator[None]:
    try:
        yield
    except (ForeignFolder, UnusableFolder):
        raise
    except OSError as error:
        raise UnusableFolder(folder, error) from error


def private_folder(folder: Path, *, passable: bool = False) -> Path:
    """Make a folder, with its parents, for its owner alone; close one of ours that is there.

    Only `folder` itself is closed where it was there before, never a parent, which may be shared.
    `passable`, and any parent that is made, let root's PostgreSQL through. Raises ForeignFolder
    where root meets another user's, UnusableFolder where it can't be made or opened.
    """
    with _told(folder):
        return _private_folder(folder, passable=passable)


def _private_folder(folder: Path, *, passable: bool) -> Path:
    mode = PASSABLE if passable and os.geteuid() == 0 else PRIVATE
    if not folder.parent.exists():
        private_folder(folder.parent, passable=True)
    folder.mkdir(mode=PRIVATE, exist_ok=True)
    named = folder.lstat()
    is_link = stat.S_ISLNK(named.st_mode)
    if is_link and named.st_uid not in (0, os.geteuid()):
        raise ForeignFolder(folder, named.st_uid)
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | (0 if is_link else os.O_NOFOLLOW))
    try:
        found = os.fstat(handle)
        if os.geteuid() == 0 and found.st_uid != 0:
            raise ForeignFolder(folder, found.st_uid)
        if found.st_uid == os.geteuid() and found.st_mode & 0o777 != mode:
            os.fchmod(handle, mode)
    finally:
        os.close(handle)
    return folder


def data_folder(folder: Path) -> Path:
    """Make the data folder; one that is there is left as it is, for it may hold other things.

    Raises ForeignFolder where root meets another user's, UnusableFolder where it can't be made.
    """
    with _told(folder):
        if not folder.exists():
            return private_folder(folder, passable=True)
        if not folder.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))
        owner = folder.stat().st_uid
    if os.geteuid() == 0 and owner != 0:
        raise ForeignFolder(folder, owner)
    return folder


def open_private(path: str, flags: int) -> int:
    """Return a handle of a file for its owner alone; an `opener` for `open`."""
    return os.open(path, flags, 0o600)


@contextmanager
def whole_file(path: Path) -> Iterator[TextIO]:
    """Yield a new text file for its owner alone, that gets its name once it is whole.

    A file of that name is replaced then; after an error it is as it was.
    """
    handle, draft = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    except BaseException:
        os.unlink(draft)
        raise
