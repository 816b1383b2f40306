"""`durabill archive`: the segments topic as Parquet files, and reading them back."""

import logging
import os
import signal
import threading
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from durabill.deploy.commands.common import AS_JSON, CONNECTION, located, with_settings
from durabill.deploy.commands.process_words import introduce, stopping
from durabill.deploy.terminal import answer, counted, emit, progress_bars, say, shown

if TYPE_CHECKING:
    from durabill.stream_processors.audit.archive.archiver import Archiver
    from durabill.stream_processors.audit.archive.folder import ArchiveFolder
    from durabill.stream_processors.audit.archive.manifest import Entry, Manifest
    from durabill.stream_processors.audit.archive.verify import Verified
    from durabill.stream_processors.settings import Settings

log = logging.getLogger("durabill.archive")
FINDINGS_TOLD_MAX = 50
LIVE_FINDINGS_MAX = 10_000

Once = Annotated[bool, typer.Option("--once", help="Archive what is there now, and end.")]
Verify = Annotated[
    bool, typer.Option("--verify", help="Read the archive back, all of it, and say what is wrong.")
]
Status = Annotated[bool, typer.Option("--status", help="Say how far the archive reaches.")]
CompareLive = Annotated[
    bool,
    typer.Option("--live", help="With --verify: compare with what Kafka still has of the log."),
]
Key = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        help="Key file to sign the manifest with; with --verify the public key, or a file with it.",
    ),
]
Trusted = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="With --verify: a head that was kept (_manifest/head); the archive must begin so.",
    ),
]
OffsetsPerFile = Annotated[
    int,
    typer.Option(
        min=1000, max=100_000_000, help="Where files end; decided when an archive begins."
    ),
]
TailHours = Annotated[
    float,
    typer.Option(min=0, help="For so long a record waits at most for its file to be full."),
]


@with_settings(*CONNECTION, "segments_topic", "archive_dir", "seal_key_file")
def archive(
    settings: "Settings",
    once: Once = False,
    verify: Verify = False,
    status: Status = False,
    key: Key = None,
    trusted: Trusted = None,
    live: CompareLive = False,
    offsets_per_file: OffsetsPerFile = 1_000_000,
    tail_hours: TailHours = 24,
    as_json: AS_JSON = False,
) -> None:
    """Archive the segments topic as Parquet files, by day and partition; go on until stopped.

    The files are named by their first and last offset and read as they are by DuckDB, pandas and
    Spark. After a crash start it again: it goes on where it was. One process is enough. With --key,
    or DURABILL_SEAL_KEY_FILE, each change of the manifest is signed. --verify exits with 1 where
    anything is wrong, and with 2 where it could not be carried out.

        durabill archive --archive-dir /srv/archive
        durabill archive --archive-dir /srv/archive --once --json
        durabill archive --archive-dir /srv/archive --verify
    """
    from durabill.schemas.extras import require
    from durabill.stream_processors.audit.archive.folder import ArchiveFolder

    if sum((once, verify, status)) > 1:
        raise typer.BadParameter("give one of --once, --verify and --status")
    if verify and key is None and settings.seal_key_file:
        from durabill.stream_processors.audit.seal.keys import read_key_file

        key = str(read_key_file(Path(settings.seal_key_file)).key.public)
    key = key or settings.seal_key_file or None
    if trusted is not None and (not verify or key is None):
        raise typer.BadParameter("--trusted is for --verify, and needs the public --key")
    if live and not verify:
        raise typer.BadParameter("--live is for --verify")
    settings.require("archive_dir")
    folder = ArchiveFolder(Path(settings.archive_dir))
    if status:
        _tell(folder.root, folder.manifest(), as_json)
        return
    require("durabill archive", "audit", "pyarrow")
    if verify:
        from durabill.stream_processors.audit.pool import audit_errors

        with audit_errors():
            if live:
                settings = located(settings, "bootstrap_servers", role="archive")
            _verify(folder, key, trusted, settings if live else None, as_json)
        return
    settings = located(settings, "bootstrap_servers", role="archive")
    _archive(settings, folder, once, key, offsets_per_file, tail_hours, as_json)


def _archive(
    settings: "Settings",
    folder: "ArchiveFolder",
    once: bool,
    key: str | None,
    offsets_per_file: int,
    tail_hours: float,
    as_json: bool,
) -> None:
    from durabill.deploy.files import private_folder
    from durabill.deploy.logs import set_up_logging
    from durabill.stream_processors.audit.archive.archiver import opened
    from durabill.stream_processors.audit.archive.process import ArchiveRun, Follow
    from durabill.stream_processors.audit.archive.reach import live_log

    if not once:
        set_up_logging()
    sign = _signer(folder, key)
    live = live_log(settings, offsets_per_file)
    if not folder.root.exists():
        private_folder(folder.root)
    with opened(folder, live, _log_entry) as archiver, progress_bars(quiet=as_json) as progress:
        run = ArchiveRun(
            settings,
            archiver,
            progress=progress if once else None,
            after_pass=lambda: sign(archiver),
        )
        if once:
            before = len(archiver.entries)
            run.once()
            _tell(folder.root, archiver.manifest, as_json, len(archiver.entries) - before)
            return
        introduce("archive", settings, topic=live.topic, archive=str(folder.root))
        if as_json:
            emit({"started": "archive", "archive": str(folder.root), "pid": os.getpid()})
        stop = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stop.set())
        with stopping("archive"):
            run.follow(Follow(stop, tail_max_s=tail_hours * 3600))


def _log_entry(entry: "Entry") -> None:
    log.info("archived %s: %d rows, %d bytes", entry.path, entry.rows, entry.bytes)


def _signer(folder: "ArchiveFolder", key: str | None) -> "Callable[[Archiver], None]":
    """Return what signs the manifest when it has grown; without a key nothing."""
    if key is None:
        return lambda archiver: None
    from durabill.stream_processors.audit.archive.signing import Signer

    return Signer(folder, Path(key)).sign


def _verify(
    folder: "ArchiveFolder",
    key: str | None,
    trusted: Path | None,
    settings: "Settings | None",
    as_json: bool,
) -> None:
    """Read an archive back; with `settings` compare it with Kafka's log, too."""
    from durabill.stream_processors.audit.archive.verify import verify

    with progress_bars(quiet=as_json) as progress:
        if key is None:
            verified = verify(folder, progress=progress)
            if folder.head_path.exists():
                verified.notes.append("its signed head wasn't looked at: give the public --key")
        else:
            from durabill.stream_processors.audit.archive.signing import verify_signed

            verified = verify_signed(folder, key, trusted, progress)
        if settings is not None and verified.manifest is not None:
            from durabill.stream_processors.audit.archive.live import compare
            from durabill.stream_processors.audit.archive.process import live

            found = compare(folder, verified.manifest, live(settings), progress)
            verified.findings += islice(found, LIVE_FINDINGS_MAX)
    _tell_verified(folder.root, verified, as_json)
    if verified.findings:
        raise typer.Exit(1)


def _tell_verified(root: Path, verified: "Verified", as_json: bool) -> None:
    from durabill.stream_processors.audit.findings import kinds_of

    findings = verified.findings
    if as_json:
        emit(
            {
                "result": "differs" if findings else "proven",
                "archive": str(root),
                "files": verified.files,
                "rows": verified.rows,
                "findings_by_kind": kinds_of(findings),
                "findings": [_as_json(each) for each in findings[:1000]],
                "findings_shown_max": 1000,
                "notes": verified.notes,
            }
        )
        return
    for each in findings[:FINDINGS_TOLD_MAX]:
        order = f" order {shown(each.service_order_number)}" if each.service_order_number else ""
        expected = f"expected {each.expected}, " if each.expected else ""
        print(f"{each.place}{order}: {each.field}: {expected}found {each.found}")
    if len(findings) > FINDINGS_TOLD_MAX:
        print(f"and {len(findings) - FINDINGS_TOLD_MAX} more")
    for note in verified.notes:
        say(f"note: {note}")
    read = f"{counted(verified.files, 'file')}, {counted(verified.rows, 'row')}"
    verdict = counted(len(findings), "finding") if findings else "all as it was written"
    print(f"{root}: {read} read back: {verdict}")


def _as_json(each: Any) -> dict[str, Any]:
    from dataclasses import asdict

    return asdict(each)


def _tell(root: Path, manifest: "Manifest", as_json: bool, files_new: int | None = None) -> None:
    """Say what an archive has, and how far it reaches."""
    reach = [each for _, each in sorted(manifest.reach().items())]
    files, rows, size = (
        sum(getattr(each, n) for each in reach) for n in ("files", "rows", "bytes")
    )
    value: dict[str, Any] = {
        "archive": str(root),
        "cluster_id": manifest.of.cluster_id,
        "topic": manifest.of.topic,
        "topic_id": manifest.of.topic_id,
        "files": files,
        "rows": rows,
        "bytes": size,
        "bytes_per_segment": round(size / rows, 2) if rows else None,
        "partitions": [
            {
                "partition": each.partition,
                "first_offset": each.first_offset,
                "next_offset": each.next_offset,
                "files": each.files,
                "rows": each.rows,
                "bytes": each.bytes,
            }
            for each in reach
        ],
    }
    if files_new is not None:
        value["files_new"] = files_new
    lines = [
        f"{manifest.of.topic}/{each.partition}: offsets {each.first_offset} to"
        f" {each.next_offset - 1}, {counted(each.files, 'file')}"
        if each.files
        else f"{manifest.of.topic}/{each.partition}: nothing yet"
        for each in reach
    ]
    ratio = f", {size / rows:.1f} bytes a segment" if rows else ""
    new = f" ({files_new} new)" if files_new is not None else ""
    lines.append(
        f"{root}: {counted(files, 'file')}{new}, {counted(rows, 'row')}, {size:,} bytes{ratio}"
    )
    answer(value, "\n".join(lines), as_json)
