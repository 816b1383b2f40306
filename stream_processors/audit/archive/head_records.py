"""The records of a partition that Kafka has deleted and the archive has, for a look at an order."""

from collections.abc import Iterator
from pathlib import Path

from durabill.stream_processors.audit.archive.folder import ArchiveFolder
from durabill.stream_processors.audit.archive.manifest import LOG_FIELDS, ArchiveError, ArchiveOf
from durabill.stream_processors.audit.archive.source import ArchivedLog
from durabill.stream_processors.engine.batch import Record, records


class ArchivedHead:
    """What an archive has of a partition before `log_begins`, where Kafka's log of it begins.

    Each file's digest is compared with the manifest as it is read. Raises ArchiveError where the
    archive is of another log, can't be read, or was altered.
    """

    def __init__(self, root: Path, of: ArchiveOf, partition: int, log_begins: int) -> None:
        folder = ArchiveFolder(root)
        manifest = folder.manifest()
        for name, words in LOG_FIELDS.items():
            found, expected = getattr(manifest.of, name), getattr(of, name)
            if found != expected:
                raise ArchiveError(
                    f"the archive {root} is of another log: its {words} is {found}, that of Kafka's"
                    f" is {expected}. Give the right --archive-dir, or none"
                )
        self._root, self._partition, self._log_begins = root, partition, log_begins
        self._log = ArchivedLog(folder, manifest, partition, log_begins)

    def records(self) -> Iterator[Record]:
        """Yield its records that count, in the order of the log."""
        for part in self._log.parts():
            yield from records(part.chunk)

    def notes(self) -> list[str]:
        """Return what is to be told: where the records are from, and which are nowhere."""
        first, end = self._log.first_offset, self._log.end_offset
        name = f"partition {self._partition}"
        if first >= end:
            return [f"the archive {self._root} has nothing of {name} before Kafka's log"]
        found = [f"the records of {name} from offset {first} to {end - 1} are the archive's"]
        if first:
            found.append(f"offsets 0 to {first - 1} of {name} are neither in Kafka nor archived")
        if end < self._log_begins:
            last = self._log_begins - 1
            found.append(f"offsets {end} to {last} of {name} are neither in Kafka nor archived")
        return found
