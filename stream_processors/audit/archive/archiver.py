"""Makes an archive's files out of what is read of the log, and resumes where it was.

The log comes as pieces (`Piece`), partition by partition, each going on where the one before ended.
Whoever reads it decides how large they are; see `cuts` for where the files end.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from durabill.stream_processors.audit.archive.cuts import Cutter, FileRange
from durabill.stream_processors.audit.archive.files import (
    BadFile,
    Description,
    FileMaker,
    Made,
    holds_the_same,
)
from durabill.stream_processors.audit.archive.folder import READ, ArchiveBusy, ArchiveFolder, told
from durabill.stream_processors.audit.archive.gaps import Gap, Why, join, size, split
from durabill.stream_processors.audit.archive.manifest import (
    LOG_FIELDS,
    ArchiveError,
    ArchiveOf,
    Entry,
    Manifest,
    day_text,
    digest,
    path_of,
    read_manifest,
)
from durabill.stream_processors.audit.archive.pieces import Piece, Whole

OnCommit = Callable[[Entry], None]


class OtherLog(ArchiveError):
    """The archive in this folder is of another log."""


class PartitionArchiver:
    """Turns one partition's log into files; `commit` is called with each that is finished."""

    def __init__(
        self,
        folder: ArchiveFolder,
        of: ArchiveOf,
        partition: int,
        cutter: Cutter,
        commit: Callable[[int, FileRange, Made, list[Gap]], None],
    ) -> None:
        self.next_offset = cutter.first_offset
        self.waits_since_ms: int | None = None
        self._folder, self._of, self._partition = folder, of, partition
        self._cutter, self._commit = cutter, commit
        self._gaps: list[Gap] = []
        self._maker: FileMaker | None = None

    def take(self, piece: Piece) -> None:
        """Take the next piece of the log; finish the files that end in it."""
        assert piece.next_offset >= self.next_offset, "pieces come in order"
        if piece.whole is not None:
            if self._take_whole(piece, piece.whole):
                return
            piece = piece.whole.plain()
        records = piece.records
        self._gaps += piece.gaps
        offsets = [each.offset for each in records]
        times_ms = [each.append_ms for each in records]
        for part in self._cutter.parts(offsets, times_ms, piece.next_offset):
            if part.stop > part.start:
                if self.waits_since_ms is None:
                    self.waits_since_ms = times_ms[part.start]
                self._file().add(records[part.start : part.stop], piece.bad)
            if part.closes is not None:
                self._finish(part.closes)
        self.next_offset = piece.next_offset

    def _take_whole(self, piece: Piece, whole: Whole) -> bool:
        """Take a batch at once; False where that can't be, and then nothing is taken."""
        if not self._cutter.passes(piece.next_offset, whole.append_ms):
            return False
        if not self._file().add_whole(whole):
            return False
        self._cutter.pass_over(whole.append_ms)
        self._gaps += piece.gaps
        self.next_offset = piece.next_offset
        if self.waits_since_ms is None:
            self.waits_since_ms = whole.append_ms
        return True

    def close_tail(self) -> None:
        """Finish the file in the making where the log ends now."""
        closed = self._cutter.close(self.next_offset)
        if closed is not None:
            self._finish(closed)

    def give_up(self) -> None:
        """Forget the file in the making: whoever archives next reads it again."""
        if self._maker is not None:
            self._maker.give_up()

    def _file(self) -> FileMaker:
        if self._maker is None:
            self._maker = FileMaker(self._folder.new_part(), self._folder.root)
        return self._maker

    def _finish(self, closed: FileRange) -> None:
        gaps, self._gaps = split(join(self._gaps), closed.last_offset + 1)
        made = self._file().finish(
            Description(
                of=self._of,
                partition=self._partition,
                first_offset=closed.first_offset,
                last_offset=closed.last_offset,
                clock_ms=closed.clock_ms,
                gaps=tuple(gaps),
            )
        )
        self._commit(self._partition, closed, made, gaps)
        self._maker, self.waits_since_ms = None, None


class Archiver:
    """An archive that is being written; made by `opened`, which holds the folder's lock."""

    def __init__(
        self, folder: ArchiveFolder, manifest: Manifest, on_commit: OnCommit | None = None
    ) -> None:
        self.folder, self.of = folder, manifest.of
        self.entries = list(manifest.entries)
        self.lines = list(manifest.lines)
        self._on_commit = on_commit
        hints = _ends_of_unlisted(folder, manifest)
        self.partitions = {
            each.partition: PartitionArchiver(
                folder,
                manifest.of,
                each.partition,
                Cutter(
                    manifest.of.offsets_per_file,
                    each.next_offset,
                    each.clock_ms,
                    hints.get((each.partition, each.next_offset), 0),
                ),
                self._commit,
            )
            for each in manifest.reach().values()
        }
        self._has_files = {each.partition for each in manifest.entries}

    @property
    def manifest(self) -> Manifest:
        """Return the manifest as it is by now."""
        return Manifest(self.of, tuple(self.entries), tuple(self.lines))

    def begin_at(self, partition: int, first_offset: int, end_offset: int | None = None) -> None:
        """Say where the log of a partition begins, and ends; raise ArchiveError if that can't be.

        A partition without a file begins there.
        """
        archiver = self.partitions[partition]
        place = f"{self.of.topic}/{partition}"
        if partition not in self._has_files and archiver.next_offset == 0:
            hints = _ends_of_unlisted(self.folder, self.manifest)
            hint = hints.get((partition, first_offset), 0)
            cutter = Cutter(self.of.offsets_per_file, first_offset, 0, hint)
            self.partitions[partition] = PartitionArchiver(
                self.folder, self.of, partition, cutter, self._commit
            )
        elif archiver.next_offset < first_offset:
            raise ArchiveError(
                f"{place}: the archive goes up to offset {archiver.next_offset}, but Kafka's log"
                f" begins at {first_offset}: the records between were deleted before they were"
                " archived. Begin another archive in another folder (--archive-dir), and let"
                " Kafka keep records for longer (retention.ms) than an archiver may be away"
            )
        if end_offset is not None and end_offset < self.partitions[partition].next_offset:
            raise ArchiveError(
                f"{place}: the archive goes up to offset {archiver.next_offset}, but Kafka's log"
                f" ends at {end_offset}: it has lost records that are in the archive (a broker's"
                " log that was cut off). New records would get their offsets. Begin another archive"
                " in another folder (--archive-dir), and keep this one"
            )

    def _commit(self, partition: int, closed: FileRange, made: Made, gaps: list[Gap]) -> None:
        day = day_text(closed.day)
        path = path_of(day, partition, closed.first_offset, closed.last_offset)
        is_ours = self.folder.publish(made.part, path)
        if not is_ours:
            made = self._accept(made, path)
        entry = Entry(
            number=len(self.lines),
            previous=digest(self.lines[-1]),
            partition=partition,
            day=day,
            first_offset=closed.first_offset,
            last_offset=closed.last_offset,
            rows=made.rows,
            control=size(gaps, Why.CONTROL),
            aborted=size(gaps, Why.ABORTED),
            unreadable=size(gaps, Why.UNREADABLE),
            absent=size(gaps, Why.ABSENT),
            clock_ms=closed.clock_ms,
            bytes=made.bytes,
            sha256=made.sha256,
        )
        assert entry.explained == entry.next_offset - entry.first_offset, (
            "every offset is explained"
        )
        try:
            self.lines.append(self.folder.append(entry.number, entry))
        except ArchiveBusy:
            if is_ours and path in self.folder.unlisted(self.folder.manifest()):
                (self.folder.root / path).unlink()  # else it would be a second one of its offsets
            raise
        self.entries.append(entry)
        self._has_files.add(partition)
        if self._on_commit is not None:
            self._on_commit(entry)

    def _accept(self, made: Made, path: str) -> Made:
        """Return what is there under a file's name already, if it holds the same."""
        there = self.folder.root / path
        with told(self.folder.root, READ):
            content = there.read_bytes()
        try:
            same = digest(content) == made.sha256 or holds_the_same(there, made.part)
        except BadFile:
            same = False
        if not same:
            made.part.unlink()
            raise ArchiveError(
                f"{path} is there, is in no entry of the manifest, and holds something else than"
                " the log: it was put there by somebody else, or damaged. Move it away and start"
                " again"
            )
        made.part.unlink()
        return made._replace(bytes=len(content), sha256=digest(content))


@contextmanager
def opened(
    folder: ArchiveFolder, of: ArchiveOf, on_commit: OnCommit | None = None
) -> Iterator[Archiver]:
    """Open an archive for writing, or begin one; raise ArchiveError where it is of another log.

    `offsets_per_file` is decided when an archive begins: that of the archive counts.
    """
    with folder.locked():
        if folder.exists:
            manifest = folder.manifest()
            check_log(folder, manifest.of, of)
        else:
            manifest = read_manifest([folder.append(0, of)])
        archiver = Archiver(folder, manifest, on_commit)
        try:
            yield archiver
        finally:
            for each in archiver.partitions.values():
                each.give_up()


def check_log(folder: ArchiveFolder, archived: ArchiveOf, live: ArchiveOf) -> None:
    """Raise OtherLog unless an archive is of this log."""
    for field, name in LOG_FIELDS.items():
        was, now = getattr(archived, field), getattr(live, field)
        if was != now:
            raise OtherLog(
                f"the archive in {folder.root} is of another log: its {name} is {was}, that of"
                f" this Kafka's is {now}. Give each log a folder of its own (--archive-dir,"
                " DURABILL_ARCHIVE_DIR)"
            )


def _ends_of_unlisted(folder: ArchiveFolder, manifest: Manifest) -> dict[tuple[int, int], int]:
    """Return where files end that have their name, but no entry: {(partition, first): after}."""
    ends: dict[tuple[int, int], int] = {}
    for path in folder.unlisted(manifest):
        try:
            _, partition, name = path.split("/")
            first, last = name.removesuffix(".parquet").split("-")
            ends[int(partition.removeprefix("partition=")), int(first)] = int(last) + 1
        except ValueError:
            continue  # no name of ours: `--verify` tells of it
    return ends
