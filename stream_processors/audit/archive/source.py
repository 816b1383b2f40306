"""The archive as a log to replay: a partition's files as record batches, joined to Kafka's log.

What the archive has is read from it up to where Kafka's log begins, all else from Kafka: so the
join is one offset, and nothing is taken from the archive that the log itself can tell. Batches come
out otherwise than they went in, with the same records and append times; a replay gives the same.
"""

from collections.abc import Callable, Iterator
from typing import Any

from durabill.schemas.extras import ExtraMissing
from durabill.stream_processors.audit.archive import gaps
from durabill.stream_processors.audit.archive.files import ArchiveFile, BadFile, file_digest
from durabill.stream_processors.audit.archive.folder import READ, ArchiveFolder, told
from durabill.stream_processors.audit.archive.gaps import Why
from durabill.stream_processors.audit.archive.manifest import Entry, Manifest
from durabill.stream_processors.audit.archive.rows import BAD_BATCH, RECORD_COLUMNS
from durabill.stream_processors.audit.replay import LogPart, LogSource
from durabill.stream_processors.engine.batch import Chunk
from durabill.stream_processors.engine.kernel import pack
from durabill.stream_processors.engine.standing import Standing

try:
    import numpy as np
except ModuleNotFoundError as error:
    raise ExtraMissing(__name__, "numpy", "audit") from error

_STANDING = {Why.CONTROL: Standing.MARKER, Why.ABORTED: Standing.ABORTED}


class ArchivedLog:
    """One partition of an archive: [first_offset, end_offset), as far as it is asked for.

    Files that end before `from_offset` aren't read.
    """

    def __init__(
        self,
        folder: ArchiveFolder,
        manifest: Manifest,
        partition: int,
        end_offset: int | None = None,
        from_offset: int = 0,
    ) -> None:
        reach = manifest.reach()[partition]
        self.partition = partition
        self.first_offset = reach.first_offset
        self.end_offset = reach.next_offset
        if end_offset is not None:
            self.end_offset = max(self.first_offset, min(self.end_offset, end_offset))
        self._folder = folder
        self._entries = [
            each
            for each in manifest.entries
            if each.partition == partition
            and each.first_offset < self.end_offset
            and each.next_offset > from_offset
        ]

    def parts(self) -> Iterator[LogPart]:
        """Yield all of it. Raises BadFile where a file isn't what its entry says."""
        for entry in self._entries:
            yield from self._file_parts(entry)

    def _file_parts(self, entry: Entry) -> Iterator[LogPart]:
        path = self._folder.root / entry.path
        with told(self._folder.root, READ):
            digest = file_digest(path)
        if digest != entry.sha256:
            raise BadFile(
                f"{path} was changed: its SHA-256 is {digest}, its entry says {entry.sha256}."
                " durabill archive --verify tells more"
            )
        file = ArchiveFile(path)
        try:
            start, rows = entry.first_offset, 0
            end = min(entry.next_offset, self.end_offset)
            rest = list(file.description.gaps)
            for table in file.tables((*RECORD_COLUMNS, "kind")):
                rows += table.num_rows
                offsets = table.column("offset").to_numpy()
                is_last = rows == file.rows or int(offsets[-1]) + 1 >= end
                after = end if is_last else int(offsets[-1]) + 1
                rest, later = gaps.split(rest, after)
                table = table.slice(0, int(np.searchsorted(offsets, after)))
                yield from _parts(table, rest, start, after)
                start, rest = after, later
                if is_last:
                    return
            yield from _parts(None, gaps.split(rest, end)[0], start, end)
        finally:
            file.close()


class JoinedLog:
    """An archive's partition up to where Kafka's log of it begins, and Kafka's from there on.

    `open_log` opens Kafka's, given the offsets [first, end). A hole between the two is told as
    missing offsets.
    """

    def __init__(
        self,
        archived: Callable[[int], ArchivedLog],
        open_log: Callable[[int, int], LogSource],
        kafka_bounds: tuple[int, int],
    ) -> None:
        first, end = kafka_bounds
        self._archived = archived(first)
        self.partition = self._archived.partition
        has_archived = self._archived.first_offset < self._archived.end_offset
        self.archived_to = self._archived.end_offset if has_archived else None
        self._log_begins = first
        self.first_offset = self._archived.first_offset if has_archived else first
        self._open_log, self._end = open_log, end
        self.end_offset = max(end, self.archived_to or 0)

    def parts(self) -> Iterator[LogPart]:
        """Yield all of it, in the order of the log."""
        if self.archived_to is not None:
            yield from self._archived.parts()
            if self.archived_to < self._log_begins:
                hole = (self.archived_to, self._log_begins)
                yield LogPart(Chunk(*hole, b""), 0, missing=(hole,))
        if self._log_begins < self._end:
            log = self._open_log(self._log_begins, self._end)
            yield from log.parts()
            self.end_offset = log.end_offset


def _parts(table: Any, found: list[gaps.Gap], start: int, after: int) -> Iterator[LogPart]:
    """Yield what [start, after) is, by its rows and gaps; a bad batch is a part of its own."""
    if table is not None and table.num_rows:
        for at, kind in enumerate(table.column("kind").to_pylist()):
            if kind == BAD_BATCH:
                offset = table.column("offset")[at].as_py()
                before, rest = gaps.split(found, offset)
                if offset > start:
                    yield _part(table.slice(0, at), before, start, offset)
                unread = [each for each in rest if each.why is Why.UNREADABLE]
                is_own = bool(unread) and unread[0].first == offset + 1
                end = unread[0].last + 1 if is_own else offset + 1
                batch = table.column("value")[at].as_py()
                yield LogPart(Chunk(offset, end, batch), end - offset)
                yield from _parts(table.slice(at + 1), gaps.split(rest, end)[1], end, after)
                return
    if start < after:
        yield _part(table, found, start, after)


def _part(table: Any, found: list[gaps.Gap], start: int, after: int) -> LogPart:
    data = b"" if table is None or not table.num_rows else batches_of(table)
    rows = 0 if table is None else table.num_rows
    return LogPart(
        Chunk(start, after, data),
        rows + gaps.size(found, Why.UNREADABLE),
        gaps.size(found, Why.CONTROL),
        gaps.size(found, Why.ABORTED),
        tuple((each.first, each.last + 1) for each in found if each.why is Why.ABSENT),
        tuple(
            (each.first, each.last + 1, _STANDING[each.why])
            for each in found
            if each.why in _STANDING
        ),
    )


def batches_of(table: Any) -> bytes:
    """Return the records of a table as uncompressed record batches."""
    table = table.combine_chunks()
    headers = _chunk(table, "headers")
    cells = headers.values
    columns = (
        *_bytes_column(_chunk(table, "key")),
        *_bytes_column(_chunk(table, "value")),
        np.asarray(headers.offsets),
        *_bytes_column(cells.field("name"))[:2],
        *_bytes_column(cells.field("value")),
    )
    size = sum(column.nbytes for column in columns if column.dtype == np.uint8)
    frames = pack.HEADER_BYTES + pack.RECORD_FRAME_BYTES
    size += table.num_rows * frames + len(cells) * pack.HEADER_FRAME_BYTES
    out = np.empty(size, np.uint8)
    offsets = _chunk(table, "offset").to_numpy()
    times_ms = _chunk(table, "append_ms").to_numpy()
    return out[: pack.pack_batches(offsets, times_ms, *columns, out)].tobytes()


def _chunk(table: Any, name: str) -> Any:
    """Return a column in one piece."""
    column = table.column(name).combine_chunks()
    return column.chunk(0) if hasattr(column, "chunk") else column


def _bytes_column(array: Any) -> tuple[Any, Any, Any]:
    """Return the positions, the data and the nulls of a column of bytes or text."""
    _, positions, data = array.buffers()
    first = array.offset
    at = np.frombuffer(positions, np.int32)[first : first + len(array) + 1] if len(array) else None
    return (
        np.zeros(1, np.int32) if at is None else at,
        np.empty(0, np.uint8) if data is None else np.frombuffer(data, np.uint8),
        (~array.is_valid().to_numpy(zero_copy_only=False)).astype(np.uint8),
    )
