"""The files of sealed logs: written whole or not at all, in an order that a crash can't spoil.

Below the folder of a sealer:

    lock                                    held by the one sealer that works here
    hand-overs                              how its keys follow one another (see `keys`)
    logs/CLUSTER/TOPIC/TOPIC_ID/PARTITION/  one log
        checkpoint                          its last signed checkpoint: what the log is
        pending                             the next one, while its tiles are being written
        tile/...                            tlog-tiles
        large/SHA256                        values that are too large for tlog-tiles (see `entries`)

A log grows in steps (`Step`): `pending` is there before any file that it needs, `checkpoint` after
all of them. So what is wider than `checkpoint` is either explained by a signed `pending`, or was
put there by somebody else. A sealer that finds a `pending` drops it with the files that only it
needs, and reads the records again.
"""

import fcntl
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from enum import Enum
from pathlib import Path

from durabill.stream_processors.audit.seal.checkpoints import Origin, parse_origin
from durabill.stream_processors.audit.seal.errors import SealBusy, SealError, Unreadable
from durabill.stream_processors.audit.seal.tiles import WIDTH, Tile, tiles_between

CHECKPOINT, PENDING, HAND_OVERS, LOGS = "checkpoint", "pending", "hand-overs", "logs"
_BEING_WRITTEN = ".new"


class Step(Enum):
    """The steps in which a log grows; each rests on those before it."""

    ANNOUNCED = "announced"  # the next checkpoint stands in `pending`
    BUNDLED = "bundled"  # its entries are in their bundles
    TILED = "tiled"  # their hashes are in the tiles
    SIGNED = "signed"  # the checkpoint is the log's
    CLEARED = "cleared"  # `pending` is gone, and partial tiles of which there is a full one


OnStep = Callable[[Step], None]


class LogFolder:
    """The files of one log."""

    def __init__(self, folder: Path, on_step: OnStep = lambda step: None) -> None:
        self.folder, self._on_step = folder, on_step

    def read(self, path: str) -> bytes | None:
        """Return a file's content, None where it isn't there. Raises SealError."""
        try:
            return (self.folder / path).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise SealError(f"{self.folder / path} can't be read: {error.strerror}") from error

    def text(self, name: str) -> str | None:
        """Return a note's text. Raises Unreadable where it is no text."""
        data = self.read(name)
        try:
            return None if data is None else data.decode()
        except UnicodeDecodeError as error:
            raise Unreadable(f"{self.folder / name} is no text") from error

    def tiles(self) -> Iterator[str]:
        """Yield the paths of all files below `tile`, but for those that are being written."""
        for folder, _, names in os.walk(self.folder / "tile"):
            for name in names:
                if not name.endswith(_BEING_WRITTEN):
                    yield str((Path(folder) / name).relative_to(self.folder))

    def grow(
        self,
        old_size: int,
        new_size: int,
        note: str,
        content: Callable[[Tile], bytes],
        others: Mapping[str, bytes],
    ) -> None:
        """Bring the log to a new size, whose checkpoint is `note`; `content` gives its tiles.

        `others` are files that belong to the entries, by their paths.
        """
        tiles = list(tiles_between(old_size, new_size))
        self._write({PENDING: note.encode()})
        self._on_step(Step.ANNOUNCED)
        self._write({**others, **{each.path: content(each) for each in tiles if each.level < 0}})
        self._on_step(Step.BUNDLED)
        self._write({each.path: content(each) for each in tiles if each.level >= 0})
        self._on_step(Step.TILED)
        self.sign(note)
        self._on_step(Step.SIGNED)
        (self.folder / PENDING).unlink()
        for each in tiles:
            if each.width == WIDTH:
                shutil.rmtree(self.folder / f"{each.path}.p", ignore_errors=True)
        self._on_step(Step.CLEARED)

    def sign(self, note: str) -> None:
        """Make a note the log's checkpoint."""
        self._write({CHECKPOINT: note.encode()})

    def drop_pending(self, size: int, pending_size: int) -> None:
        """Remove `pending`, and the files of a log that grew no further than `size`."""
        for tile in tiles_between(size, pending_size):
            for name in (tile.path, tile.path + _BEING_WRITTEN):
                (self.folder / name).unlink(missing_ok=True)
        (self.folder / PENDING).unlink(missing_ok=True)

    def _write(self, files: dict[str, bytes]) -> None:
        """Write files so that each is there whole, and stays there when the power fails."""
        write_files(self.folder, files)


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write files, each whole or not at all; return once they would outlive a power failure.

    All are written before the first is forced to the disk: so one force does most of the work.
    """
    folders: set[Path] = set()
    paths = [folder / name for name in files]
    news = [path.with_name(path.name + _BEING_WRITTEN) for path in paths]
    try:
        for path, new, data in zip(paths, news, files.values(), strict=True):
            _make(path.parent, folders)
            handle = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(handle, "wb", buffering=0) as file:
                rest = memoryview(data)
                while rest:
                    rest = rest[file.write(rest) :]
        for new in news:
            _force(new, os.O_RDONLY)
        for path, new in zip(paths, news, strict=True):
            os.replace(new, path)
        for each in folders:
            _force(each, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        for new in news:  # a full disk: what is half-written only takes room
            with suppress(OSError):
                new.unlink()
        raise


def _force(path: Path, flags: int) -> None:
    handle = os.open(path, flags)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _make(folder: Path, touched: set[Path]) -> None:
    """Make a folder with its parents, and take note of all whose entries change."""
    if folder in touched:
        return
    touched.add(folder)
    if not folder.is_dir():
        _make(folder.parent, touched)
        folder.mkdir(mode=0o700, exist_ok=True)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a sealer's folder. Raises SealBusy where another sealer does, SealError."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise SealError(
            f"the folder {folder} (DURABILL_SEAL_DIR) can't be used: {error.strerror}"
        ) from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise SealBusy(
                f"another sealer works in {folder} (DURABILL_SEAL_DIR): one folder has one sealer."
                " Stop that one, or give this one a folder of its own"
            ) from error
        yield
    finally:
        os.close(handle)


def log_folder(folder: Path, origin: Origin, on_step: OnStep = lambda step: None) -> LogFolder:
    """Return the files of a log in a sealer's folder."""
    return LogFolder(folder / LOGS / origin.folder, on_step)


def logs_in(folder: Path, *below: str) -> Iterable[Origin]:
    """Return the logs in a sealer's folder, or below CLUSTER, TOPIC … alone, sorted."""
    root = folder / LOGS
    found = []
    for path in root.joinpath(*below).rglob(CHECKPOINT):
        name = str(path.parent.relative_to(root))
        with suppress(Unreadable):  # a stranger's file of that name
            found.append(parse_origin(f"durabill-seal/{name}"))
    return sorted(found, key=lambda each: (str(each).split("/")[:4], each.partition, str(each)))
