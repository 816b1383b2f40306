"""`durabill audit`: recompute every total from the log, and compare."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from durabill.deploy.commands.common import (
    AS_JSON,
    CONNECTION,
    POLICY,
    REGISTRY,
    TOPICS,
    located,
    with_settings,
)
from durabill.deploy.terminal import emit, progress_bars, say

if TYPE_CHECKING:
    from durabill.stream_processors.audit.findings import AuditResult
    from durabill.stream_processors.audit.options import AuditOptions
    from durabill.stream_processors.audit.replay import Engine
    from durabill.stream_processors.settings import Settings

_OFFSETS = re.compile(r"[0-9]{1,9}:[0-9]{1,18}(,[0-9]{1,9}:[0-9]{1,18})*")
_EPOCH_MS = re.compile(r"[0-9]{11,15}")
_TIME = "a time such as 2026-03-01 or 2026-03-01T12:30:00+01:00 (UTC where no zone is given)"


Order = Annotated[str, typer.Option(help="Only this order's totals.")]
Partition = Annotated[
    list[int] | None, typer.Option(help="Only this partition; may be given several times.")
]
Since = Annotated[str, typer.Option("--from", help="Only totals settled at this time or later.")]
Until = Annotated[str, typer.Option("--to", help="Only totals settled before.")]
AsOf = Annotated[
    str,
    typer.Option(
        help="Replay no further than this: a time, or PARTITION:OFFSET, several with commas."
    ),
]
EngineName = Annotated[
    str, typer.Option(help="columns (fast), or reference (record by record, the plain rules).")
]
Processes = Annotated[
    int | None,
    typer.Option(min=1, help="How many processes share the partitions. Default: one a core."),
]
NoLedger = Annotated[bool, typer.Option("--no-ledger", help="Leave the ledger out.")]
NoArchive = Annotated[bool, typer.Option("--no-archive", help="Leave the archive out.")]
FromArchive = Annotated[
    bool, typer.Option("--from-archive", help="Read from the archive also what Kafka still has.")
]
ArchiveKey = Annotated[
    str, typer.Option(help="The archive's public key, or a file with it: checks its signed head.")
]
ArchiveTrusted = Annotated[
    Path | None, typer.Option(help="A head of the archive that somebody kept.")
]
SealKey = Annotated[
    str, typer.Option(help="The sealer's public key, or a file with it. Default: the key file's.")
]
Trusted = Annotated[
    list[Path] | None,
    typer.Option(help="A checkpoint of the sealed log, or a receipt, that somebody kept."),
]
Csv = Annotated[Path | None, typer.Option(help="Write all findings to this file.", dir_okay=False)]
Html = Annotated[
    Path | None, typer.Option(help="Write the report as a page for finance.", dir_okay=False)
]


@with_settings(
    *CONNECTION,
    *TOPICS,
    *REGISTRY,
    *("previous_application_id", "ledger_dsn"),
    *("archive_dir", "seal_topic", "seal_dir", "seal_key_file"),
    *POLICY,
)
def audit(
    settings: "Settings",
    order: Order = "",
    partition: Partition = None,
    since: Since = "",
    until: Until = "",
    as_of: AsOf = "",
    engine: EngineName = "columns",
    processes: Processes = None,
    no_ledger: NoLedger = False,
    no_archive: NoArchive = False,
    from_archive: FromArchive = False,
    archive_key: ArchiveKey = "",
    archive_trusted: ArchiveTrusted = None,
    seal_key: SealKey = "",
    trusted: Trusted = None,
    csv: Csv = None,
    html: Html = None,
    as_json: AS_JSON = False,
) -> None:
    """Prove every total, or say exactly what differs and why.

    Reads the whole log (and the archive, where Kafka has deleted it), recomputes every revision by
    the recorded policies, and compares it with the totals, the ledger's rows, the dead letters and
    the sealed log. Disturbs nothing, also while workers are at work: orders that are still open and
    totals that are newer than the start are no findings. Exit code 0 only if all is proven, 1 if
    something differs, 2 if the audit could not be carried out.

        durabill audit
        durabill audit --from 2026-03-01 --to 2026-04-01 --csv march.csv --html march.html
    """
    from durabill.stream_processors.audit.options import AuditOptions

    options = AuditOptions(
        order=order,
        partitions=tuple(sorted(set(partition or ()))),
        from_ms=_instant("--from", since),
        to_ms=_instant("--to", until),
        as_of_ms=None if _offsets(as_of) else _instant("--as-of", as_of),
        as_of_offsets=_offsets(as_of),
        as_of=as_of,
        engine=_engine(engine),
        processes=processes,
        with_ledger=not no_ledger,
        with_archive=not no_archive,
        from_archive=from_archive,
        archive_key=archive_key,
        archive_trusted=archive_trusted,
        seal_key=seal_key,
        trusted=tuple(trusted or ()),
    )
    _carry_out(settings, options, csv, html, as_json)


def _carry_out(
    settings: "Settings",
    options: "AuditOptions",
    csv: Path | None,
    html: Path | None,
    as_json: bool,
) -> None:
    from durabill.stream_processors.audit.errors import AuditError
    from durabill.stream_processors.audit.html_report import write_report
    from durabill.stream_processors.audit.report_file import check_report_path, write_report_file
    from durabill.stream_processors.audit.run import audit as run_audit

    _check(settings, options)
    with _writing():
        for path in (csv, html):
            if path is not None:
                check_report_path(path)
    settings = _entered(settings, with_ledger=options.with_ledger)
    with progress_bars(quiet=as_json, paced=True) as progress:
        result = run_audit(settings, options, progress)
    unwritten: AuditError | None = None
    try:
        with _writing():
            if csv is not None:
                write_report_file(csv, csv_of(result))
                say(f"all findings are in {csv}")
            if html is not None:
                write_report(result, html)
                say(f"the report is in {html}")
    except AuditError as error:
        unwritten = error  # what was found is told all the same
    if as_json:
        emit(result.as_json())
    else:
        from durabill.deploy.commands.audit_view import show_result

        show_result(result)
    if unwritten is not None:
        raise unwritten
    if not result.is_proven:
        raise typer.Exit(1)


@contextmanager
def _writing() -> Iterator[None]:
    """Raise AuditError where a report can't be written: exit code 1 says that something differs."""
    from durabill.stream_processors.audit.errors import AuditError

    try:
        yield
    except OSError as error:
        raise AuditError(f"{error.filename}: {error.strerror}: no report was written") from error


def _engine(name: str) -> "Engine":
    from durabill.stream_processors.audit.replay import Engine

    if name not in list(Engine):
        raise typer.BadParameter(f"--engine is one of {', '.join(Engine)}")
    return Engine(name)


def _check(settings: "Settings", options: "AuditOptions") -> None:
    """Refuse flags that need others, and packages that are missing, before anything is read."""
    from durabill.schemas.extras import require

    archive = bool(settings.archive_dir) and options.with_archive
    if (options.from_archive or options.archive_key or options.archive_trusted) and not archive:
        raise typer.BadParameter("--from-archive and the archive's keys need --archive-dir")
    if options.archive_trusted is not None and not options.archive_key:
        raise typer.BadParameter("--archive-trusted needs --archive-key")
    if archive:
        require("durabill audit with an archive", "audit", "pyarrow")
    if options.seal_key or settings.seal_key_file or options.trusted or options.archive_key:
        require("durabill audit of signatures", "audit", "cryptography")


def _entered(settings: "Settings", *, with_ledger: bool) -> "Settings":
    """Return the settings with addresses, once Kafka lets us in; raise AuditError if it doesn't."""
    from durabill.stream_processors.audit.pool import audit_errors

    with audit_errors():
        return located(settings, "bootstrap_servers", ledger=with_ledger, role="audit")


def _offsets(text: str) -> dict[int, int]:
    """Return partition -> offset, empty where the text is no list of places."""
    if not _OFFSETS.fullmatch(text):
        return {}
    pairs = [each.split(":") for each in text.split(",")]
    return {int(partition): int(offset) for partition, offset in pairs}


def _instant(flag: str, text: str) -> int | None:
    """Return an instant in milliseconds since the epoch, None where none is given."""
    if not text:
        return None
    if _EPOCH_MS.fullmatch(text):
        return int(text)
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        more = ", or PARTITION:OFFSET, several with commas" if flag == "--as-of" else ""
        raise typer.BadParameter(f"{flag} takes {_TIME}{more}") from None
    at = at if at.tzinfo is not None else at.replace(tzinfo=UTC)
    return round(at.timestamp() * 1000)


_NEGATIVE = re.compile(r"-[0-9.]*$")


def csv_of(result: "AuditResult") -> str:
    """Return all findings as CSV.

    A text that a spreadsheet would take for a formula has a quote before it: order numbers are
    strangers' text.
    """
    import csv
    from dataclasses import asdict
    from io import StringIO

    from durabill.schemas.text import harmless
    from durabill.stream_processors.audit.findings import FINDING_COLUMNS

    def cell(value: Any) -> Any:
        return harmless(value) if isinstance(value, str) and not _NEGATIVE.match(value) else value

    out = StringIO(newline="")
    writer = csv.DictWriter(out, FINDING_COLUMNS)
    writer.writeheader()
    for each in result.findings:
        writer.writerow({name: cell(value) for name, value in asdict(each).items()})
    return out.getvalue()
