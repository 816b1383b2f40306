"""Checks one sealed log by the records that it is of: every tile, bundle and checkpoint.

Nothing in the folder is taken as given. The root is computed from the records' values as they come
from the topic (of a log that is closed, whose topic is gone, from its own bundles), and every file
is compared with what it must be. Then every checkpoint that anybody has must be one of this log:
the folder's, those that were published, those that somebody kept.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from durabill.schemas import BadTotal, decode_total
from durabill.stream_processors.audit.seal.checkpoints import (
    Checkpoint,
    Origin,
    parse_checkpoint,
)
from durabill.stream_processors.audit.seal.entries import entry_of, large_path
from durabill.stream_processors.audit.seal.errors import NotVerified, Unreadable
from durabill.stream_processors.audit.seal.folder import CHECKPOINT, PENDING, LogFolder
from durabill.stream_processors.audit.seal.notes import PublicKey, parse_note
from durabill.stream_processors.audit.seal.tile_check import TileCheck
from durabill.stream_processors.audit.seal.tiles import WIDTH, Frontier, TileError, TileReader

KIND = "seal_inconsistent"
"""The kind of all these findings, as `durabill audit` calls it."""

Pair = tuple[bytes, bytes | None]
"""An entry, and the value that it stands for where that is known."""


@dataclass(frozen=True, slots=True)
class SealFinding:
    """One inconsistency. `place` is a file, a topic or a log; what doesn't apply is empty."""

    field: str
    expected: str
    found: str
    place: str
    service_order_number: str = ""
    revision: int | None = None
    kind: str = KIND


@dataclass(frozen=True, slots=True)
class Witnessed:
    """A checkpoint that somebody has: the signed note, and where it is from, in words.

    `is_current`: it is what this place serves as the log's newest, and was read after all others.
    `trouble` is what is wrong with it before its note is looked at.
    """

    place: str
    note: str
    is_current: bool = False
    trouble: str = ""


@dataclass(slots=True)
class LogCheck:
    """What came of a check: the findings, and what there is beside them."""

    origin: Origin
    findings: list[SealFinding] = field(default_factory=list)
    checkpoint: Checkpoint | None = None
    records: int = 0
    """Records that there are; those from `checkpoint.size` on are not sealed yet."""
    head: int = 0
    """So many of them, the first ones, are in the log's own bundles alone: the topic has lost
    them, by its retention. The signed root still proves them."""

    @property
    def unsealed(self) -> int:
        """Return how many records came after the last checkpoint."""
        return max(0, self.records - (self.checkpoint.size if self.checkpoint else 0))

    def find(self, name: str, expected: str, found: str, place: str, entry: bytes = b"") -> None:
        """Add a finding; `entry` is the record that it is about, where it is about one."""
        order, revision = "", None
        if entry:
            try:
                total = decode_total(entry)
                order, revision = total.service_order_number, total.revision
            except BadTotal:
                order = ""  # it is no total, which the audit of the totals tells
        self.findings.append(SealFinding(name, expected, found, place, order, revision))


def check_log(
    files: LogFolder | None,
    origin: Origin,
    keys: Sequence[PublicKey],
    values: Iterable[bytes | None] | None,
    *,
    head: int = 0,
    end_offset: int | None = None,
    end_now: Callable[[], int] | None = None,
    witnessed: Sequence[Witnessed] = (),
    offset: Callable[[], int | None] = lambda: None,
) -> LogCheck:
    """Check one log; `values` are its records' in their order, None takes the log's own bundles.

    `values` begin at the record of index `head`; those before are taken from the bundles. They end
    at `end_offset`: what a checkpoint has beyond is newer, and is checked by the log's own bundles,
    provided that the partition goes on so far by now, by `end_now`. `files` None: there is no
    folder, and the checkpoints alone are checked.

    `offset` tells the offset of the record that `values` gave last, None where it isn't known: what
    a checkpoint says of offsets has to be true as well.

    A sealer may be at work: what it is writing is explained by its signed `pending`. For this
    `witnessed` must have been read before.
    """
    check = LogCheck(origin, head=head)
    listed = [] if files is None else sorted(files.tiles())  # before the checkpoint, which is wider
    known = _Checkpoints(check, keys)
    known.read(files, witnessed)
    if check.checkpoint is None:
        return check
    last = max(known.by_size)
    if end_now is not None and known.reaches_beyond(end_offset) and known.reaches_beyond(end_now()):
        end_offset = None  # it isn't newer: it was removed
    pairs = _pairs(check, files, values, end_offset, last, known)
    tiles = None if files is None else TileCheck(check.find, files, listed, check.checkpoint.size)
    _compare(check, known, pairs, last, tiles, offset)
    if tiles is not None:
        tiles.strangers(known.width)
    return check


def _compare(
    check: LogCheck,
    known: "_Checkpoints",
    pairs: Iterator[Pair],
    last: int,
    tiles: TileCheck | None,
    offset: Callable[[], int | None],
) -> None:
    """Compare everything up to the widest checkpoint; count what comes after."""
    frontier = tiles.frontier if tiles is not None else Frontier()
    known.compare(0, frontier.root())
    for entry, value in pairs:
        check.records += 1
        known.compare_offsets(check.records, offset())
        if check.records > last:
            continue
        frontier.append(entry)
        if tiles is not None:
            tiles.grown(entry, value)
        else:
            frontier.forget()
        if check.records in known.by_size:
            known.compare(check.records, frontier.root())
    if tiles is not None:
        tiles.ended()


def _pairs(
    check: LogCheck,
    files: LogFolder | None,
    values: Iterable[bytes | None] | None,
    end_offset: int | None,
    last: int,
    known: "_Checkpoints",
) -> Iterator[Pair]:
    """Yield the log's entries: the topic's, then those of its own that are newer."""
    count = check.head
    if values is not None and files is not None and count:
        yield from _own_pairs(check, files, 0, count, known.width)
    for value in values or ():
        count += 1
        yield entry_of(value), value
    if values is not None and count < last and not known.reaches_beyond(end_offset):
        found = f"{count} records are there: the rest was removed from the topic"
        check.find("size", f"{last} sealed records", found, str(check.origin))
    elif files is not None and count < (size := check.checkpoint.size if check.checkpoint else 0):
        # Not up to `pending`, whose bundles may be about to be written.
        yield from _own_pairs(check, files, count, size, size)


def _own_pairs(
    check: LogCheck, files: LogFolder, start: int, end: int, size: int
) -> Iterator[Pair]:
    """Yield the entries [start, end) out of the bundles of a log of `size`."""
    reader = TileReader(files.read, size)
    try:
        for number in range(start // WIDTH, -(-end // WIDTH)):
            for at, entry in enumerate(reader.entries(number), number * WIDTH):
                if not start <= at < end:
                    continue
                path = large_path(entry)
                value = None if path is None else files.read(path)
                if path is not None and (value is None or entry_of(value) != entry):
                    place = f"{files.folder}/{path}"
                    check.find("large value", path, "none, or another one", place)
                yield entry, None
    except TileError as error:
        check.find("bundle", f"{end} sealed records", str(error), str(files.folder))


class _Checkpoints:
    """The checkpoints of a log, from wherever they are."""

    def __init__(self, check: LogCheck, keys: Sequence[PublicKey]) -> None:
        self._check, self._keys = check, keys
        self.by_size: dict[int, list[tuple[str, Checkpoint]]] = {}
        self.width = 0
        """The log's files may be as wide as this."""

    def read(self, files: LogFolder | None, witnessed: Sequence[Witnessed]) -> None:
        """Take all of them; the folder's own one is the log's, else the widest."""
        check = self._check
        if files is not None:
            pending = self._of(files, PENDING)  # first: once it is gone, the checkpoint is wider
            check.checkpoint = self._of(files, CHECKPOINT)
            self.width = max((each.size for each in (check.checkpoint, pending) if each), default=0)
        others = [(each.place, self._parsed(each.place, each.note)) for each in witnessed]
        self._compare_current(witnessed)
        if files is None:
            seen = (found for _, found in others if found is not None)
            check.checkpoint = max(seen, key=lambda each: each.size, default=None)
            return
        own = check.checkpoint
        size = -1 if own is None else own.size
        if own is None and not (files.folder / CHECKPOINT).exists():
            place = f"{files.folder}/{CHECKPOINT}"
            check.find("checkpoint", "a signed checkpoint", "none", place)
        for place, found in others:
            if found is not None and found.size > size:
                what = f"{found.size} or more, as {place} has it"
                was = f"{max(size, 0)}: the log was cut back, or an old checkpoint was put there"
                check.find("size", what, was, f"{files.folder}/{CHECKPOINT}")

    def _compare_current(self, witnessed: Sequence[Witnessed]) -> None:
        """Tell of a place that serves an older checkpoint than somebody had before."""
        sizes: dict[str, int] = {}
        for size, pairs in self.by_size.items():
            for place, _ in pairs:
                sizes[place] = max(size, sizes.get(place, 0))
        for current in {each.place for each in witnessed if each.is_current} & set(sizes):
            for place, size in sorted(sizes.items()):
                if size > sizes[current] and any(place == each.place for each in witnessed):
                    what = f"{size} or more, as {place} has it"
                    self._check.find("size", what, f"{sizes[current]}: an old one", current)

    def compare(self, size: int, root: bytes) -> None:
        """Compare the root that the records give with the checkpoints of this size."""
        for place, each in self.by_size.get(size, ()):
            if each.root != root:
                what = f"{root.hex()}, the root of the first {size} records"
                self._check.find("root", what, each.root.hex(), place)

    def compare_offsets(self, size: int, offset: int | None) -> None:
        """Compare the offset of the record that makes the log this wide with the checkpoints.

        Those of this size must end after it, and those of one less before it.
        """
        if offset is None:
            return
        for wide, is_right in ((size, offset.__lt__), (size - 1, offset.__ge__)):
            for place, each in self.by_size.get(wide, ()):
                if not is_right(each.next_offset):
                    what = f"an end that fits record {size - 1} at offset {offset}"
                    self._check.find("offsets", what, str(each.next_offset), place)

    def reaches_beyond(self, offset: int | None) -> bool:
        """Tell whether a checkpoint was signed of records after the offset."""
        if offset is None:
            return False
        every = (each for pairs in self.by_size.values() for _, each in pairs)
        return any(each.next_offset > offset for each in every)

    def _of(self, files: LogFolder, name: str) -> Checkpoint | None:
        place = f"{files.folder}/{name}"
        try:
            note = files.text(name)
        except Unreadable as error:
            self._check.find(name, "a signed checkpoint", str(error), place)
            return None
        return None if note is None else self._parsed(place, note)

    def _parsed(self, place: str, note: str) -> Checkpoint | None:
        try:
            parsed = parse_note(note)
            parsed.signer(self._keys)
            found = parse_checkpoint(parsed.text)
            if found.origin != self._check.origin:
                raise NotVerified(f"it is of another log, {found.origin}")
        except (Unreadable, NotVerified) as error:
            self._check.find("checkpoint", "one that the sealer has signed", str(error), place)
            return None
        self.by_size.setdefault(found.size, []).append((place, found))
        return found
