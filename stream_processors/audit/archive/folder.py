"""The folder of an archive: how files come into it whole, once, and by one process at a time.

    1. the file is written in `_tmp` and synced
    2. it gets its name, as a second link to the same file: that fails where the name is taken
    3. its folder is synced
    4. its manifest entry is made the same way: from here on it counts

A crash before 4 leaves a file that doesn't count; `unlisted` finds it, and whoever archives next
makes it again and compares.
"""

import contextlib
import errno
import fcntl
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count, takewhile
from pathlib import Path

from durabill.stream_processors.audit.archive.manifest import (
    ArchiveError,
    ArchiveOf,
    BadManifest,
    Entry,
    Manifest,
    encode,
    read_manifest,
)

MANIFEST, TEMPORARY = "_manifest", "_tmp"
_ENTRY_DIGITS = 8
_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}
READ, WRITTEN = "read", "written"
_FULL = {errno.ENOSPC, errno.EDQUOT}


class ArchiveBusy(ArchiveError):
    """Another process archives into the same folder."""


class ArchiveUnreadable(ArchiveError):
    """An archive can't be read, or isn't there: nothing can be said about it."""

    exit_code = 2


class ArchiveFolder:
    """An archive's folder; nothing is made before something is written."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._entries = root / MANIFEST / "entries"

    @property
    def head_path(self) -> Path:
        """Return where the signed head of the manifest is."""
        return self.root / MANIFEST / "head"

    @property
    def hand_overs_path(self) -> Path:
        """Return where it is told which signing key handed over to which."""
        return self.root / MANIFEST / "hand-overs"

    @property
    def exists(self) -> bool:
        """Tell whether there is an archive here: a manifest with at least its entry 0."""
        return self._entry_path(0).exists()

    def manifest(self) -> Manifest:
        """Return the manifest; raise BadManifest, or ArchiveError where there is none."""
        lines = self.lines()
        if strange := self.strange_entries(len(lines)):
            raise BadManifest(
                f"{self._entries}: entry {len(lines)} is missing, but there is {strange[0]}"
            )
        return read_manifest(lines)

    def lines(self) -> list[bytes]:
        """Return the entries' bytes in order, up to the first that is missing.

        Raises ArchiveError where there is no archive.
        """
        with told(self.root, READ):
            if not self.exists:
                raise ArchiveUnreadable(
                    f"{self.root} is no archive: it has no {MANIFEST}/entries/{0:0{_ENTRY_DIGITS}}"
                    ".json. Give the folder that `durabill archive` writes to"
                    " (--archive-dir, DURABILL_ARCHIVE_DIR)"
                )
            names = set(os.listdir(self._entries))
            paths = takewhile(lambda path: path.name in names, map(self._entry_path, count()))
            return [path.read_bytes() for path in paths]

    def strange_entries(self, known: int) -> list[str]:
        """Return what there is among the entries besides the first `known`."""
        with told(self.root, READ):
            names = set(os.listdir(self._entries))
        return sorted(names - {self._entry_path(each).name for each in range(known)})

    def files(self) -> set[str]:
        """Return the paths of all files below the folder that readers would take for data."""
        with told(self.root, READ):
            return {
                str(path.relative_to(self.root))
                for path in self.root.rglob("*")
                if path.relative_to(self.root).parts[0] not in (MANIFEST, TEMPORARY)
                and not path.is_dir()
            }

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder's lock; raise ArchiveBusy where another process does.

        Clears away what a killed archiver left in the making.
        """
        with told(self.root, WRITTEN):
            (self.root / TEMPORARY).mkdir(parents=True, exist_ok=True)
            handle = os.open(self.root / TEMPORARY / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise self.busy() from error
            for path in (self.root / TEMPORARY).glob("*.part"):
                path.unlink(missing_ok=True)
            yield
        finally:
            os.close(handle)

    def busy(self) -> ArchiveBusy:
        """Return the error for a folder that another process writes to."""
        return ArchiveBusy(
            f"another process archives into {self.root}. One is enough: leave it at that, or stop"
            " it and start again. Nothing is damaged"
        )

    def is_locked(self) -> bool:
        """Tell whether some process archives into the folder now."""
        try:
            handle = os.open(self.root / TEMPORARY / "lock", os.O_RDWR)
        except OSError:
            return False
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(handle)
        return False

    def new_part(self) -> Path:
        """Return a new name for a file in the making."""
        return self.root / TEMPORARY / f"{os.getpid()}-{uuid.uuid4().hex}.part"

    def publish(self, part: Path, path: str) -> bool:
        """Give a finished file its name; False where the name is taken, and then nothing changes.

        The part is synced first, and gone afterwards where it got its name.
        """
        final = self.root / path
        with told(self.root, WRITTEN):
            _sync(part)
            _make_folder(final.parent, self.root)
            if not _rename(part, final):
                return False
            _sync(final.parent)
        return True

    def append(self, number: int, entry: ArchiveOf | Entry) -> bytes:
        """Add a manifest entry and return its bytes; raise ArchiveBusy where there is one."""
        line, part = encode(entry), self.new_part()
        with told(self.root, WRITTEN):
            part.write_bytes(line)
        if not self.publish(part, str(self._entry_path(number).relative_to(self.root))):
            part.unlink()
            raise self.busy()
        return line

    def replace(self, path: Path, content: bytes) -> None:
        """Write a file in place of the one before; a crash leaves one of the two."""
        part = self.new_part()
        with told(self.root, WRITTEN):
            part.write_bytes(content)
            _sync(part)
            part.replace(path)
            _sync(path.parent)

    def unlisted(self, manifest: Manifest) -> set[str]:
        """Return the files that are in no entry."""
        return self.files() - {each.path for each in manifest.entries}

    def _entry_path(self, number: int) -> Path:
        return self._entries / f"{number:0{_ENTRY_DIGITS}}.json"


@contextmanager
def told(root: Path, what: str) -> Iterator[None]:
    """Turn what the system says of the folder into an ArchiveError."""
    try:
        yield
    except OSError as error:
        if isinstance(error, ArchiveError):
            raise
        if error.errno in _FULL:
            raise ArchiveError(
                f"the disk of {root} is full. What is in the archive stays whole, and nothing that"
                " is half-written counts: make room and start again, it goes on where it was"
            ) from error
        where = f"{error.filename}: " if error.filename else ""
        kind = ArchiveUnreadable if what == READ else ArchiveError
        raise kind(
            f"the archive in {root} can't be {what}: {where}{error.strerror or error}"
        ) from error


def _rename(part: Path, final: Path) -> bool:
    """Give a file its name instead of the one it has; False where that is taken."""
    try:
        os.link(part, final)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        # A file system without links. The lock keeps others from coming in between.
        if final.exists():
            return False
        part.rename(final)
        return True
    part.unlink()
    return True


def _make_folder(folder: Path, root: Path) -> None:
    """Make a folder below the root, each level synced into the one above."""
    if folder.is_dir():
        return
    if folder != root:
        _make_folder(folder.parent, root)
    with contextlib.suppress(FileExistsError):
        folder.mkdir()
    _sync(folder.parent)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
