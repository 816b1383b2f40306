"""Reads an archive back, all of it, and tells what isn't as it was written.

Nothing is taken from the manifest that the files can tell: each is read, its digest compared, its
offsets counted, its decoded columns worked out again. What is wrong is a `Finding`; what can't be
carried out (no archive there, no right to read it) is an ArchiveError.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from durabill.stream_processors.audit.archive import gaps
from durabill.stream_processors.audit.archive.checks import (
    arrivals_ms,
    day_changes,
    decodes_as_told,
    joined,
    out_of_place,
    ranges_without,
)
from durabill.stream_processors.audit.archive.cuts import DAY_MS
from durabill.stream_processors.audit.archive.files import ArchiveFile, BadFile, file_digest
from durabill.stream_processors.audit.archive.folder import READ, ArchiveFolder, told
from durabill.stream_processors.audit.archive.gaps import Why
from durabill.stream_processors.audit.archive.manifest import (
    ArchiveOf,
    BadManifest,
    Entry,
    Manifest,
    day_text,
    survey,
)
from durabill.stream_processors.audit.archive.rows import (
    BAD_BATCH,
    DECODED_COLUMNS,
    bad_batch,
    decoded,
)
from durabill.stream_processors.audit.findings import Finding, Kind

FINDINGS_PER_FILE_MAX = 100
Progress = Callable[[str, int, int], None]


@dataclass(slots=True)
class Verified:
    """What reading an archive back came to. `manifest` None: not even its entry 0 can be read."""

    manifest: Manifest | None = None
    files: int = 0
    rows: int = 0
    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def finding(what: str, expected: object, found: object, place: str, order: str = "") -> Finding:
    """Return a finding about the archive; `what` names what differs."""
    return Finding(
        kind=Kind.ARCHIVE_INCONSISTENT,
        service_order_number=order,
        field=what,
        expected=str(expected),
        found=str(found),
        place=place,
    )


def verify(
    folder: ArchiveFolder, progress: Progress | None = None, *, deep: bool = True
) -> Verified:
    """Return all that is wrong with an archive; raise ArchiveError where it can't be read.

    Without `deep`, of each file only its name, its digest and its description are looked at.
    """
    verified = Verified()
    there = folder.files()  # before the entries: a file is there before its entry
    lines = folder.lines()
    if strange := folder.strange_entries(len(lines)):
        verified.findings.append(
            finding("manifest", f"entry {len(lines)}", f"only {', '.join(strange)}", "_manifest")
        )
    try:
        manifest, problems = survey(lines)
    except BadManifest as error:
        verified.findings.append(finding("manifest", "entry 0", error, "_manifest"))
        return verified
    verified.manifest = manifest
    verified.findings += [finding("manifest", "", each, "_manifest") for each in problems]
    verified.findings += _strangers(folder, manifest, there)
    clocks: dict[int, int] = {}
    for done, entry in enumerate(manifest.entries):
        check = _FileCheck(folder.root, manifest.of, entry, clocks.get(entry.partition, 0))
        found = list(check.findings(deep=deep))
        verified.findings += found[:FINDINGS_PER_FILE_MAX]
        if len(found) > FINDINGS_PER_FILE_MAX:
            more = len(found) - FINDINGS_PER_FILE_MAX
            verified.notes.append(f"{entry.path}: {more} more findings are not listed")
        verified.files += 1
        verified.rows += check.rows
        clocks[entry.partition] = entry.clock_ms
        if progress is not None:
            progress("reading the archive back", done + 1, len(manifest.entries))
    return verified


def _strangers(folder: ArchiveFolder, manifest: Manifest, there: set[str]) -> Iterator[Finding]:
    """Yield files that are in no entry; what is being archived meanwhile is none."""
    strangers = there - {each.path for each in manifest.entries}
    if strangers and folder.is_locked():
        later, _ = survey(folder.lines())
        strangers -= {each.path for each in later.entries}
        ends = {each.partition: each.next_offset for each in later.reach().values()}
        strangers = {each for each in strangers if not _is_next(each, ends)}
    for each in sorted(strangers):
        yield finding("file", "no such file", "a file that is in no manifest entry", each)


def _is_next(path: str, ends: dict[int, int]) -> bool:
    """Tell whether a file is one that an archiver at work is about to enter."""
    return any(
        f"/partition={partition}/{end:020}-" in f"/{path}" for partition, end in ends.items()
    )


@dataclass(slots=True)
class _FileCheck:
    """Compares one file with its entry, with itself, and with what comes before it."""

    root: Path
    of: ArchiveOf
    entry: Entry
    clock_ms: int
    rows: int = 0

    def findings(self, *, deep: bool) -> Iterator[Finding]:
        """Yield what is wrong."""
        entry, path = self.entry, self.root / self.entry.path
        if not path.is_file():
            yield self._finding("file", "the file", "no file of this name")
            return
        with told(self.root, READ):
            size, digest = path.stat().st_size, file_digest(path)
        if digest != entry.sha256:
            yield self._finding("sha256", entry.sha256, digest)
        if size != entry.bytes:
            yield self._finding("bytes", entry.bytes, size)
        try:
            file = ArchiveFile(path)
        except BadFile as error:
            yield self._finding("file", "readable Parquet", error)
            return
        try:
            yield from self._description(file)
            if deep:
                yield from self._content(file)
        except BadFile as error:
            yield self._finding("file", "readable Parquet", error)
        finally:
            file.close()

    def _description(self, file: ArchiveFile) -> Iterator[Finding]:
        entry, told_of = self.entry, file.description
        for name in ("cluster_id", "topic", "topic_id", "partitions", "offsets_per_file"):
            if getattr(told_of.of, name) != getattr(self.of, name):
                yield self._finding(name, getattr(self.of, name), getattr(told_of.of, name))
        for name in ("partition", "first_offset", "last_offset", "clock_ms"):
            if getattr(told_of, name) != getattr(entry, name):
                yield self._finding(name, getattr(entry, name), getattr(told_of, name))

    def _content(self, file: ArchiveFile) -> Iterator[Finding]:
        entry, told_of = self.entry, file.description
        parts: list[Any] = []
        clock_ms, day = self.clock_ms, None
        for table in file.tables():
            if not table.num_rows:
                continue
            found = table.column("offset").to_numpy()
            clocks_ms = arrivals_ms(table.column("append_ms").to_numpy(), clock_ms)
            day = int(clocks_ms[0]) // DAY_MS if day is None else day
            for at in day_changes(clocks_ms, day):
                now = int(clocks_ms[at]) // DAY_MS
                yield self._finding("day", day_text(day), day_text(now), int(found[at]))
                day = now
            clock_ms = int(clocks_ms[-1])
            parts.append(found)
            if not decodes_as_told(table):
                yield from self._decoded(table)
        offsets = joined(parts)
        self.rows = len(offsets)
        day = clock_ms // DAY_MS if day is None else day
        yield from self._account(offsets, told_of.gaps)
        for name, computed in (("clock_ms", clock_ms), ("day", day_text(day))):
            if computed != getattr(entry, name):
                yield self._finding(name, getattr(entry, name), computed)

    def _account(self, offsets: Any, told_gaps: Iterable[gaps.Gap]) -> Iterator[Finding]:
        """Yield what is wrong with which offsets are rows and which are gaps."""
        entry = self.entry
        wrong = out_of_place(offsets, entry.first_offset, entry.last_offset)
        for offset in wrong:
            yield self._finding("offset", "offsets that rise, inside the file's", offset, offset)
        if wrong:
            return
        told_ranges = _united((each.first, each.last) for each in told_gaps)
        missing = ranges_without(offsets, entry.first_offset, entry.next_offset)
        if missing != told_ranges:
            for first, last in sorted(set(missing) ^ set(told_ranges)):
                is_told = (first, last) in told_ranges
                yield self._finding(
                    "offsets",
                    "no record" if is_told else "a record, or a reason why there is none",
                    "not so" if is_told else "neither",
                    f"{first}-{last}",
                )
        counts = {"rows": len(offsets), **{each.value: gaps.size(told_gaps, each) for each in Why}}
        for name, count in counts.items():
            if count != getattr(entry, name):
                yield self._finding(name, getattr(entry, name), count)

    def _decoded(self, table: Any) -> Iterator[Finding]:
        """Yield where decoded columns are not what the record says."""
        names = ("offset", "key", "value", *DECODED_COLUMNS)
        columns = (table.column(name).to_pylist() for name in names)
        for offset, key, value, *stored in zip(*columns, strict=True):
            computed = decoded(key, value) if stored[0] != BAD_BATCH else bad_batch(value, offset)
            if computed != tuple(stored):
                for name, ours, theirs in zip(DECODED_COLUMNS, computed, stored, strict=True):
                    if ours != theirs:
                        order = computed[1] or ""
                        yield self._finding(name, ours, theirs, offset, order)

    def _finding(
        self, what: str, expected: object, found: object, at: object = None, order: str = ""
    ) -> Finding:
        place = self.entry.path if at is None else f"{self.entry.path} offset {at}"
        return finding(what, expected, found, place, order)


def _united(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return ranges with those united that touch, whatever their reasons."""
    joined: list[tuple[int, int]] = []
    for first, last in ranges:
        if joined and joined[-1][1] + 1 == first:
            first = joined.pop()[0]
        joined.append((first, last))
    return joined
