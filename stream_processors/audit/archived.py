"""The archive of the settings, for whoever replays the log and is no audit."""

from durabill.stream_processors.audit.archive_check import ArchiveCheck, check_archive
from durabill.stream_processors.audit.pool import Progress
from durabill.stream_processors.settings import Settings


def check_archive_of(settings: Settings, progress: Progress) -> ArchiveCheck:
    """Return what is to be said of the archive; nothing where the settings name none.

    Files that aren't as their manifest says are findings, and their partitions aren't read from the
    archive.
    """
    if not settings.archive_dir:
        return ArchiveCheck()
    return check_archive(settings, "", None, progress)


def notes_of(check: ArchiveCheck) -> list[str]:
    """Return what has to be told of an archive in words, its findings among it."""
    found = [
        f"the archive: {each.place}: {each.expected}, found {each.found}" for each in check.findings
    ]
    return [*check.notes, *found]
