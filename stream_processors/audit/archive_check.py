"""Whether an archive can be joined to the log, and how far; what is wrong with it is a finding.

The audit reads the archive's manifest and each file's digest, and with a key the manifest's signed
head. What a file holds is proven by the replay, as far as it is read from there.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path

from msgspec.structs import replace

from durabill.stream_processors.audit.archive.folder import ArchiveFolder
from durabill.stream_processors.audit.archive.manifest import LOG_FIELDS, Manifest
from durabill.stream_processors.audit.findings import Finding
from durabill.stream_processors.kafka.reading import Progress
from durabill.stream_processors.settings import Settings

_PARTITION = re.compile(r"partition=([0-9]+)/")


@dataclass(slots=True)
class ArchiveCheck:
    """What is to be said of an archive; partitions in `usable` can be read from it."""

    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    manifest: Manifest | None = None
    usable: set[int] = field(default_factory=set)

    def settings_for(self, settings: Settings, partition: int) -> Settings:
        """Return the settings by which a partition is read: with the archive, or without it."""
        return settings if partition in self.usable else replace(settings, archive_dir="")

    def begins(self, partition: int, kafka_first: int) -> int:
        """Return where a partition's log begins, the archive's part included."""
        if self.manifest is None or partition not in self.usable:
            return kafka_first
        reach = self.manifest.reach()[partition]
        return min(kafka_first, reach.first_offset) if reach.files else kafka_first


def check_archive(
    settings: Settings, key: str, trusted: Path | None, progress: Progress
) -> ArchiveCheck:
    """Check the archive of the settings. Raises ArchiveError where there is none."""
    # Parquet and signatures are an extra's, for those who have an archive.
    from durabill.stream_processors.audit.archive.reach import live_log
    from durabill.stream_processors.audit.archive.signing import verify_signed
    from durabill.stream_processors.audit.archive.verify import finding, verify

    folder, check = ArchiveFolder(Path(settings.archive_dir)), ArchiveCheck()
    if key:
        verified = verify_signed(folder, key, trusted, progress, deep=False)
    else:
        verified = verify(folder, progress, deep=False)
        check.notes.append(
            f"the archive {folder.root} is checked by its own manifest, which whoever can write"
            " there can make anew; --archive-key has the manifest's signed head checked"
        )
    check.findings, check.manifest = list(verified.findings), verified.manifest
    check.notes += verified.notes
    if check.manifest is None:
        return check
    of = live_log(settings)
    others = [
        finding(name, getattr(of, name), getattr(check.manifest.of, name), str(folder.root))
        for name in LOG_FIELDS
        if getattr(of, name) != getattr(check.manifest.of, name)
    ]
    check.findings += others
    bad = {_partition_of(each) for each in check.findings}
    if not others and None not in bad:
        check.usable = set(range(of.partitions)) - {each for each in bad if each is not None}
    return check


def _partition_of(each: Finding) -> int | None:
    """Return whose files a finding is about; None: all of them, for all that is known."""
    found = _PARTITION.search(each.place)
    return int(found[1]) if found else None


def archived_since(
    settings: Settings, manifest: Manifest, partition: int, since_ms: int
) -> int | None:
    """Return the first archived offset of a partition that was appended at an instant or later."""
    # Parquet is an extra's, for those who have an archive.
    from durabill.stream_processors.audit.archive.files import ArchiveFile

    for entry in manifest.entries:
        if entry.partition != partition or entry.clock_ms < since_ms:
            continue
        file = ArchiveFile(Path(settings.archive_dir) / entry.path)
        try:
            for table in file.tables(("offset", "append_ms")):
                for offset, append_ms in zip(
                    table.column("offset").to_pylist(),
                    table.column("append_ms").to_pylist(),
                    strict=True,
                ):
                    if append_ms >= since_ms:
                        return int(offset)
        finally:
            file.close()
    return None
