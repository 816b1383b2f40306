"""Writes a report's file as a whole or not at all, for its owner alone."""

import errno
import os
import tempfile
from contextlib import suppress
from pathlib import Path


def check_report_path(path: Path) -> None:
    """Raise OSError where a report can't be written: known before a log is read for it."""
    folder = path.resolve().parent
    if path.is_dir():
        raise OSError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not folder.is_dir():
        raise OSError(errno.ENOENT, "there is no such folder", str(folder))
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OSError(errno.EACCES, os.strerror(errno.EACCES), str(folder))


def write_report_file(path: Path, content: str) -> None:
    """Write a report; one that is there is replaced once the new one is whole and on the disk.

    What is no regular file, such as a pipe or a terminal, is written to as it is. Raises OSError
    that names `path`.
    """
    path = path.resolve()
    if path.exists() and not path.is_file() and not path.is_dir():
        with open(path, "w", encoding="utf-8") as file:
            file.write(content)
        return
    check_report_path(path)
    try:
        handle, fresh = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:100]}.")
        try:
            with open(handle, "w", encoding="utf-8") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(fresh, path)
        except BaseException:
            with suppress(FileNotFoundError):
                os.unlink(fresh)
            raise
    except OSError as error:
        # Not by the name of the file that has been made in its place.
        raise OSError(error.errno, error.strerror, str(path)) from error
