"""A log that grows: what the sealer holds of one partition."""

import logging
from pathlib import Path

from durabill.schemas.merkle import leaf_hash
from durabill.stream_processors.audit.seal.checkpoints import (
    RECORDS_LOST,
    RECREATED,
    Checkpoint,
    Closed,
    Follows,
    Origin,
    parse_checkpoint,
    read_checkpoint,
)
from durabill.stream_processors.audit.seal.entries import entry_of, large_path
from durabill.stream_processors.audit.seal.errors import NotVerified, SealError, Unreadable
from durabill.stream_processors.audit.seal.folder import (
    CHECKPOINT,
    PENDING,
    OnStep,
    log_folder,
    logs_in,
)
from durabill.stream_processors.audit.seal.keys import KeyFile
from durabill.stream_processors.audit.seal.merkle import EMPTY_ROOT
from durabill.stream_processors.audit.seal.notes import parse_note
from durabill.stream_processors.audit.seal.tiles import (
    WIDTH,
    Frontier,
    Tile,
    TileError,
    TileReader,
    bundle_of,
)

_log = logging.getLogger(__name__)


class GrowingLog:
    """One log, as of its last checkpoint, and the records read since.

    `expected` is a checkpoint that somebody holds already, of a log that was larger than what the
    folder has: it must come out the same again.
    """

    def __init__(
        self, folder: Path, origin: Origin, keys: KeyFile, on_step: OnStep = lambda step: None
    ) -> None:
        self.origin, self._keys = origin, keys
        self._files = log_folder(folder, origin, on_step)
        self.expected: Checkpoint | None = None
        self.note = ""
        self.checkpoint = Checkpoint(origin, 0, EMPTY_ROOT, origin.first_offset)
        self._frontier = Frontier()
        self._entries: list[bytes] = []
        self._large: dict[str, bytes] = {}
        self._next_offset = origin.first_offset
        self.bytes_waiting = 0

    @property
    def next_offset(self) -> int:
        """Return the offset of the record that comes next."""
        return self._next_offset

    @property
    def waiting(self) -> int:
        """Return how many records have come since the last checkpoint."""
        return self._frontier.size - self.checkpoint.size

    def begin(self, follows: Follows | None) -> None:
        """Begin a new log by the checkpoint of an empty one."""
        checkpoint = Checkpoint(
            self.origin, 0, EMPTY_ROOT, self.origin.first_offset, follows=follows
        )
        self._sign(checkpoint)

    def resume(self) -> bool:
        """Go on from the folder; return False where the log isn't there.

        Raises SealError where the folder isn't what a sealer with our keys left behind.
        """
        note = self._read(CHECKPOINT)
        if note is None:
            return False
        where = self._files.folder
        try:
            parsed = parse_note(note)
            signer = parsed.signer(self._keys.trusted)
            self.checkpoint = parse_checkpoint(parsed.text)
            if self.checkpoint.origin != self.origin:
                raise NotVerified(f"it is of another log, {self.checkpoint.origin}")
        except (NotVerified, Unreadable) as error:
            raise SealError(
                f"{where / CHECKPOINT}: {error}. If the key was changed, it has to be by: durabill"
                " keys rotate OLD-KEY-FILE NEW-KEY-FILE"
            ) from error
        self.note = note
        self._drop_pending()
        self._load()
        if signer != self._keys.key.public:
            _log.info("%s: signed by the new key %s from now on", self.origin, self._keys.key)
            self._sign(self.checkpoint)
        return True

    def _drop_pending(self) -> None:
        pending = self._read(PENDING)
        if pending is not None:
            try:
                size = read_checkpoint(pending).size
            except Unreadable as error:
                raise SealError(f"{self._files.folder / PENDING}: {error}. Remove it") from error
            self._files.drop_pending(self.checkpoint.size, size)

    def _load(self) -> None:
        size = self.checkpoint.size
        reader = TileReader(self._files.read, size)
        try:
            self._frontier = reader.frontier()
            self._entries = reader.entries(size // WIDTH) if size % WIDTH else []
            row = self._frontier.levels[0] if self._entries else []
            if self._frontier.root() != self.checkpoint.root:
                raise TileError("the tiles have another root than the checkpoint")
            if [leaf_hash(each) for each in self._entries] != row:
                raise TileError("the last bundle has other hashes than its tile")
        except TileError as error:
            raise SealError(
                f"{self._files.folder} was altered: {error}. `durabill seal check` says where; move"
                " the log's folder away, and it is made again from the topic"
            ) from error
        self._next_offset = self.checkpoint.next_offset
        self.bytes_waiting = 0

    def append(self, offset: int, value: bytes | None) -> None:
        """Take the next record."""
        assert offset >= self._next_offset, "records come in their order"
        entry = entry_of(value)
        self._frontier.append(entry)
        self._entries.append(entry)
        self._next_offset = offset + 1
        self.bytes_waiting += len(value or b"")
        if value is not None and (path := large_path(entry)) is not None:
            self._large[path] = value
        expected = self.expected
        if expected is not None and self._frontier.size == expected.size:
            if self._frontier.root() != expected.root:
                raise SealError(
                    f"{self.origin}: the first {expected.size} records of the topic aren't those"
                    f" that were sealed: their root is not that of the checkpoint that was"
                    " published. Nothing is signed. Keep that checkpoint, and run durabill audit"
                )
            self.expected = None

    def check_reach(self, first_offset: int, end_offset: int) -> None:
        """Raise SealError where the topic has lost records that are sealed, at its end."""
        expected = self.expected or self.checkpoint
        if end_offset < expected.next_offset:
            raise SealError(
                f"{self.origin}: records up to offset {expected.next_offset} are sealed, but the"
                f" topic holds [{first_offset}, {end_offset}): it has lost records at its end."
                " Bring them back (the right cluster, a restored topic); nothing is signed"
            )

    def commit(self) -> bool:
        """Seal what was read since the last checkpoint; return whether there was any."""
        if not self.waiting:
            return False
        before = self.checkpoint
        size, root = self._frontier.size, self._frontier.root()
        after = Checkpoint(self.origin, size, root, self._next_offset, before.follows)
        first = before.size // WIDTH * WIDTH

        def content(tile: Tile) -> bytes:
            if tile.level >= 0:
                return self._frontier.content(tile)
            start = tile.number * WIDTH - first
            return bundle_of(self._entries[start : start + tile.width])

        note = after.signed(self._keys.key)
        self._files.grow(before.size, size, note, content, self._large)
        self.checkpoint, self.note = after, note
        self._frontier.forget()
        self._entries = self._entries[size // WIDTH * WIDTH - first :]
        self._large, self.bytes_waiting = {}, 0
        return True

    def close(self, reason: str, by: Origin) -> None:
        """Sign the log's last word: which one goes on. What waits is dropped."""
        old = self.checkpoint
        closed = Closed(reason, by)
        self._sign(Checkpoint(old.origin, old.size, old.root, old.next_offset, old.follows, closed))

    def _sign(self, checkpoint: Checkpoint) -> None:
        self.note = checkpoint.signed(self._keys.key)
        self._files.sign(self.note)
        self.checkpoint = checkpoint

    def _read(self, name: str) -> str | None:
        try:
            return self._files.text(name)
        except Unreadable as error:
            raise SealError(f"{error}: it was altered") from error


def open_log(
    folder: Path, origin: Origin, keys: KeyFile, on_step: OnStep = lambda step: None
) -> tuple[GrowingLog, list[GrowingLog]]:
    """Return the log of an origin, resumed or new, and the logs that it has closed just now.

    An older log of the same partition that is not closed is closed by it: its topic was recreated,
    or records are gone that it should have had next. The new log is there first, so that a crash
    between the two leaves nothing that the next start doesn't mend.
    """
    log = GrowingLog(folder, origin, keys, on_step)
    is_there = log.resume()
    before = [
        each for each in _older(folder, origin, keys, on_step) if each.checkpoint.closed is None
    ]
    if not is_there:
        last = max((each.checkpoint for each in before), key=_age, default=None)
        log.begin(None if last is None else Follows(last.origin, last.size, last.root))
    for each in before:
        same_topic = each.origin.topic_id == origin.topic_id
        each.close(RECORDS_LOST if same_topic else RECREATED, origin)
    return log, before


def newest_origin(folder: Path, cluster: str, topic: str, topic_id: str, at: int) -> Origin:
    """Return which log of a partition goes on: the one that begins at the greatest offset."""
    found = [each for each in logs_in(folder, cluster, topic, topic_id) if each.partition == at]
    plain = Origin(cluster, topic, topic_id, at)
    return max(found, key=lambda each: each.first_offset, default=plain)


def _older(folder: Path, origin: Origin, keys: KeyFile, on_step: OnStep) -> list[GrowingLog]:
    logs = []
    for each in logs_in(folder, origin.cluster, origin.topic):
        if each.partition == origin.partition and each != origin:
            log = GrowingLog(folder, each, keys, on_step)
            if log.resume():
                logs.append(log)
    return logs


def _age(checkpoint: Checkpoint) -> tuple[int, int]:
    return checkpoint.origin.first_offset, checkpoint.next_offset
