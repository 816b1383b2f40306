"""The archive's manifest: which files there are, in the order in which they were made.

Each entry is one line of JSON with its fields in a fixed order, so that it has one spelling, and
carries the SHA-256 of the entry before. Entry 0 says of which log the archive is. The entries are
also the leaves of a Merkle log, whose signed head tells a manifest that was made anew from ours
(see `head`): a chain alone can be computed anew by everybody.
"""

import hashlib
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated, TypeVar

import msgspec

from durabill.schemas.errors import DurabillError

FORMAT = "durabill-archive-1"
OFFSET_DIGITS = 20

Count = Annotated[int, msgspec.Meta(ge=0)]
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class ArchiveError(DurabillError):
    """The archive can't be written or read; what is in it stays as it is."""


LOG_FIELDS = {
    "cluster_id": "cluster",
    "topic": "topic",
    "topic_id": "id of the topic",
    "partitions": "number of partitions",
}
"""By what one log is told from another, and how that is called."""


class BadManifest(ArchiveError):
    """An entry of the manifest is damaged; the message says which, and how."""


class ArchiveOf(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Entry 0: the log that an archive is of, and how its files are cut."""

    format: str = FORMAT
    cluster_id: str
    topic: str
    topic_id: str
    partitions: Annotated[int, msgspec.Meta(ge=1)]
    offsets_per_file: Annotated[int, msgspec.Meta(ge=1)]


class Entry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One file: the offsets of a partition from the first to the last, both included.

    Of these offsets `rows` are records; the rest is told apart by why they are none: `control`
    (markers of transactions), `aborted` (records of aborted transactions), `unreadable` (of a batch
    that can't be read, see `rows`), `absent` (nothing is there). `clock_ms` is the arrival at its
    end.
    """

    number: Count
    previous: str
    partition: Count
    day: str
    first_offset: Count
    last_offset: Count
    rows: Count
    control: Count
    aborted: Count
    unreadable: Count
    absent: Count
    clock_ms: Count
    bytes: Count
    sha256: str

    @property
    def next_offset(self) -> int:
        """Return the offset at which the next file of its partition begins."""
        return self.last_offset + 1

    @property
    def explained(self) -> int:
        """Return of how many offsets it is said what they are."""
        return self.rows + self.control + self.aborted + self.unreadable + self.absent

    @property
    def path(self) -> str:
        """Return where the file is, below the archive's folder."""
        return path_of(self.day, self.partition, self.first_offset, self.last_offset)


T = TypeVar("T", ArchiveOf, Entry)


class Reach(msgspec.Struct, frozen=True, kw_only=True):
    """What the archive has of a partition: offsets [first_offset, next_offset), without a hole."""

    partition: int
    first_offset: int = 0
    next_offset: int = 0
    clock_ms: int = 0
    files: int = 0
    rows: int = 0
    bytes: int = 0


class Manifest(msgspec.Struct, frozen=True):
    """All entries, in order; `lines` are their bytes."""

    of: ArchiveOf
    entries: tuple[Entry, ...]
    lines: tuple[bytes, ...]

    def reach(self) -> dict[int, Reach]:
        """Return how far the files of each partition go, also of those without any."""
        found = {each: Reach(partition=each) for each in range(self.of.partitions)}
        for entry in self.entries:
            before = found[entry.partition]
            found[entry.partition] = Reach(
                partition=entry.partition,
                first_offset=before.first_offset if before.files else entry.first_offset,
                next_offset=entry.next_offset,
                clock_ms=entry.clock_ms,
                files=before.files + 1,
                rows=before.rows + entry.rows,
                bytes=before.bytes + entry.bytes,
            )
        return found


def day_text(day: int) -> str:
    """Return a day (since the epoch) as it is in names: 2026-11-26."""
    return f"{_EPOCH + timedelta(days=day):%Y-%m-%d}"


def path_of(day: str, partition: int, first_offset: int, last_offset: int) -> str:
    """Return a file's path below the archive's folder."""
    name = f"{first_offset:0{OFFSET_DIGITS}}-{last_offset:0{OFFSET_DIGITS}}.parquet"
    return f"day={day}/partition={partition}/{name}"


def digest(data: bytes) -> str:
    """Return the SHA-256 in lower-case hex."""
    return hashlib.sha256(data).hexdigest()


def encode(entry: ArchiveOf | Entry) -> bytes:
    """Return the one spelling of an entry."""
    return msgspec.json.encode(entry) + b"\n"


def read_manifest(lines: Sequence[bytes]) -> Manifest:
    """Return what the entries' bytes say; raise BadManifest for the first that is damaged.

    Numbers, the chain, and that the files of each partition join without a hole or an overlap are
    checked; the files themselves aren't looked at.
    """
    manifest, problems = survey(lines)
    if problems:
        raise BadManifest(problems[0])
    return manifest


def survey(lines: Sequence[bytes]) -> tuple[Manifest, list[str]]:
    """Return what can be read of the entries, and what is wrong with them, each in a sentence.

    Raises BadManifest where entry 0 can't be read: nothing can be said then.
    """
    if not lines:
        raise BadManifest("the manifest has no entry 0, which says of which log it is")
    of = _decode(lines[0], 0, ArchiveOf)
    if of.format != FORMAT:
        raise BadManifest(f"its format is {of.format!r}, this version reads {FORMAT!r}")
    entries: list[Entry] = []
    problems: list[str] = []
    ends: dict[int, int] = {}
    for number, line in enumerate(lines[1:], 1):
        try:
            entry = _decode(line, number, Entry)
        except BadManifest as error:
            problems.append(str(error))
            continue
        found = _problems(entry, number, lines[number - 1], of, ends)
        problems += [f"entry {number}: {each}" for each in found]
        if entry.partition < of.partitions:
            ends[entry.partition] = entry.next_offset
            entries.append(entry)
    return Manifest(of, tuple(entries), tuple(lines)), problems


def _problems(
    entry: Entry, number: int, before: bytes, of: ArchiveOf, ends: dict[int, int]
) -> Iterator[str]:
    size = entry.next_offset - entry.first_offset
    if entry.number != number:
        yield f"it has the number {entry.number}"
    if entry.previous != digest(before):
        yield "it doesn't carry the digest of the entry before"
    if entry.partition >= of.partitions:
        yield f"partition {entry.partition}, but the topic has {of.partitions}"
    expected = ends.get(entry.partition, entry.first_offset)
    if entry.first_offset != expected:
        kind = "a hole" if entry.first_offset > expected else "an overlap"
        yield (
            f"{kind}: partition {entry.partition} goes on at offset {expected}, and the file begins"
            f" at {entry.first_offset}"
        )
    if size < 1 or entry.explained != size:
        yield f"{entry.explained} offsets are accounted for of {size}"
    if entry.first_offset // of.offsets_per_file != entry.last_offset // of.offsets_per_file:
        yield f"the file goes beyond a multiple of {of.offsets_per_file} offsets"


def _decode(line: bytes, number: int, kind: type[T]) -> T:
    try:
        entry = msgspec.json.decode(line, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise BadManifest(f"entry {number} can't be read: {error}") from error
    if encode(entry) != line:
        raise BadManifest(f"entry {number} is not spelled as we spell it")
    return entry
