"""Folders and files that only their owner may read.

What we write holds passwords, order numbers and addresses: folders get mode 0700, files 0600,
whatever the umask. When root runs PostgreSQL, its files belong to another user, who has to get
through to them; the folders on that way are passable (0711): others may step through to a name
that they know, and see nothing, for all else in them is closed.
"""

import os
from pathlib import Path

PRIVATE = 0o700
PASSABLE = 0o711


def private_folder(folder: Path, *, passable: bool = False) -> Path:
    """Make a folder, with its parents, for its owner alone; close one of ours that is there.

    Only `folder` itself is closed where it was there before, never a parent, which may be shared.
    `passable`, and any parent that is made, let root's PostgreSQL through.
    """
    mode = PASSABLE if passable and os.geteuid() == 0 else PRIVATE
    if not folder.parent.exists():
        private_folder(folder.parent, passable=True)
    folder.mkdir(mode=PRIVATE, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        found = os.fstat(handle)
        if found.st_uid == os.geteuid() and found.st_mode & 0o777 != mode:
            os.fchmod(handle, mode)
    finally:
        os.close(handle)
    return folder


def data_folder(folder: Path) -> Path:
    """Make the data folder; one that is there is left as it is, for it may hold other things."""
    return folder if folder.exists() else private_folder(folder, passable=True)


def open_private(path: str, flags: int) -> int:
    """Return a handle of a file for its owner alone; an `opener` for `open`."""
    return os.open(path, flags, 0o600)
