"""One Parquet file of the archive: written as a function of its rows, and read back.

The bytes depend on the rows, the file's description and pyarrow's version, and on nothing else:
a row group ends with its 65,536th row, or the one that makes it 64 MiB, however the rows came.
"""

import contextlib
import hashlib
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from durabill.schemas.extras import ExtraMissing
from durabill.stream_processors.audit.archive.columns import Columns
from durabill.stream_processors.audit.archive.folder import WRITTEN, told
from durabill.stream_processors.audit.archive.gaps import Gap
from durabill.stream_processors.audit.archive.manifest import ArchiveError, ArchiveOf
from durabill.stream_processors.audit.archive.pieces import Whole
from durabill.stream_processors.audit.archive.rows import SCHEMA
from durabill.stream_processors.engine.batch import Record

try:
    import pyarrow as pa
    import pyarrow.parquet as pq
except ModuleNotFoundError as error:
    raise ExtraMissing(__name__, "pyarrow", "audit") from error

ROW_GROUP_ROWS = 65_536
ROW_GROUP_BYTES = 64 * 1024 * 1024
DESCRIPTION = b"durabill.archive"
_DELTA = ("offset", "append_ms", "business_data_number", "start_ms", "end_ms")
_DICTIONARY = ("kind", "headers.list.element.name", "end_identifier")
_OPTIONS: dict[str, Any] = {
    "version": "2.6",
    "compression": "zstd",
    "compression_level": 3,
    "use_dictionary": list(_DICTIONARY[:2]),
    # Numbers that grow by steps take a byte or two each so; every reader of Parquet knows it.
    "column_encoding": dict.fromkeys(_DELTA, "DELTA_BINARY_PACKED"),
    "write_statistics": ["offset", "append_ms", "start_ms", "end_ms", "service_order_number"],
}


class BadFile(ArchiveError):
    """A file of the archive can't be read as what it should be."""


class Description(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a file says of itself: the log, the offsets, and why some of these have no record."""

    of: ArchiveOf
    partition: int
    first_offset: int
    last_offset: int
    clock_ms: int
    gaps: tuple[Gap, ...]


class Made(NamedTuple):
    """A finished file: where it is, and what it is."""

    part: Path
    rows: int
    bytes: int
    sha256: str


class FileMaker:
    """Writes one file; `part` is where. Nothing is opened before the first rows, or `finish`."""

    def __init__(self, part: Path, root: Path) -> None:
        self.rows = 0
        self._part, self._root = part, root
        self._columns: Columns | None = None
        self._group_bytes = 0
        self._writer: Any = None

    def add(self, records: Sequence[Record], bad: Collection[int] = ()) -> None:
        """Take rows, in order; those at the offsets `bad` are bad batches."""
        for each in records:
            columns = self._row_group()
            self._group_bytes += columns.add_record(each, is_bad=each.offset in bad)
            self.rows += 1
            if columns.rows >= ROW_GROUP_ROWS or self._group_bytes >= ROW_GROUP_BYTES:
                self._write()

    def add_whole(self, whole: Whole) -> bool:
        """Take all records of a batch; False where that can't be, and then none is taken.

        It isn't ordinary then (see `columnize`), or a row group may end in it.
        """
        count, columns = whole.header.record_count, self._row_group()
        if (
            columns.rows + count >= ROW_GROUP_ROWS
            or self._group_bytes + len(whole.body) >= ROW_GROUP_BYTES
        ):
            return False
        size = columns.add(whole)
        if size is None:
            return False
        self._group_bytes += size
        self.rows += count
        return True

    def _row_group(self) -> Columns:
        if self._columns is None:
            self._columns = Columns(ROW_GROUP_ROWS)
        return self._columns

    def finish(self, description: Description) -> Made:
        """Write what is left; the file is as it will be, but for its name."""
        if self._columns is not None and self._columns.rows:
            self._write()
        with told(self._root, WRITTEN):
            writer = self._open()
            writer.add_key_value_metadata({DESCRIPTION: msgspec.json.encode(description)})
            writer.close()
            size = self._part.stat().st_size
            return Made(self._part, self.rows, size, file_digest(self._part))

    def give_up(self) -> None:
        """Remove what has been written so far."""
        if self._writer is not None:
            with contextlib.suppress(OSError, pa.ArrowException):  # the disk may be full
                self._writer.close()
        self._part.unlink(missing_ok=True)

    def _write(self) -> None:
        table = self._row_group().take()
        self._group_bytes = 0
        with told(self._root, WRITTEN):
            self._open().write_table(table, row_group_size=ROW_GROUP_ROWS)

    def _open(self) -> Any:
        if self._writer is None:
            self._part.parent.mkdir(parents=True, exist_ok=True)
            self._writer = pq.ParquetWriter(self._part, SCHEMA, **_OPTIONS)
        return self._writer


class ArchiveFile:
    """An archived file, open for reading; raises BadFile where it is damaged."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._file = pq.ParquetFile(path, memory_map=False)
            found = (self._file.metadata.metadata or {}).get(DESCRIPTION)
        except (OSError, pa.ArrowException) as error:
            raise BadFile(f"it is no readable Parquet: {_first_line(error)}") from error
        if found is None:
            raise BadFile(f"it has no description {DESCRIPTION.decode()}: it isn't of an archive")
        try:
            self.description = msgspec.json.decode(found, type=Description)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise BadFile(f"its description can't be read: {error}") from error
        if not self._file.schema_arrow.equals(SCHEMA):
            raise BadFile("its columns are not those of an archive")
        self.rows: int = self._file.metadata.num_rows

    def tables(self, columns: tuple[str, ...] | None = None) -> Iterator[Any]:
        """Yield its rows, a row group at a time."""
        chosen = None if columns is None else list(columns)
        for group in range(self._file.num_row_groups):
            try:
                yield self._file.read_row_group(group, columns=chosen, use_threads=False)
            except (OSError, pa.ArrowException) as error:
                raise BadFile(f"row group {group} can't be read: {_first_line(error)}") from error

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in lower-case hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def holds_the_same(one: Path, other: Path) -> bool:
    """Tell whether two files have the same description and rows, whatever wrote them."""
    first, second = ArchiveFile(one), ArchiveFile(other)
    try:
        same: bool = (
            first.description == second.description
            and first.rows == second.rows
            and pa.concat_tables([SCHEMA.empty_table(), *first.tables()]).equals(
                pa.concat_tables([SCHEMA.empty_table(), *second.tables()])
            )
        )
        return same
    finally:
        first.close()
        second.close()


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
