"""`durabill audit`: recompute every total from the log, and compare."""

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from durabill.deploy.commands.common import AS_JSON, CONNECTION, TOPICS, located, with_settings
from durabill.deploy.terminal import emit, progress_bars, say

if TYPE_CHECKING:
    from durabill.stream_processors.audit.findings import AuditResult
    from durabill.stream_processors.audit.options import AuditOptions
    from durabill.stream_processors.settings import Settings

_OFFSETS = re.compile(r"[0-9]{1,9}:[0-9]{1,18}(,[0-9]{1,9}:[0-9]{1,18})*")
_EPOCH_MS = re.compile(r"[0-9]{11,15}")
_POLICY = ("settle_grace_s", "idle_timeout_s", "correction_window_s", "interim_interval_s")
_TIME = "a time such as 2026-03-01 or 2026-03-01T12:30:00+01:00 (UTC where no zone is given)"


@with_settings(
    *CONNECTION,
    *TOPICS,
    *("previous_application_id", "ledger_dsn", "schema_registry_url"),
    *("archive_dir", "seal_topic", "seal_dir", "seal_key_file"),
    *_POLICY,
)
def audit(
    settings: "Settings",
    order: Annotated[str, typer.Option(help="Only this order's totals.")] = "",
    partition: Annotated[
        list[int] | None, typer.Option(help="Only this partition; may be given several times.")
    ] = None,
    since: Annotated[
        str, typer.Option("--from", help="Only totals settled at this time or later.")
    ] = "",
    until: Annotated[str, typer.Option("--to", help="Only totals settled before.")] = "",
    as_of: Annotated[
        str,
        typer.Option(
            help="Replay no further than this: a time, or PARTITION:OFFSET[,PARTITION:OFFSET]."
        ),
    ] = "",
    engine: Annotated[
        str, typer.Option(help="columns (fast), or reference (record by record, the plain rules).")
    ] = "columns",
    processes: Annotated[
        int | None,
        typer.Option(min=1, help="How many processes share the partitions. Default: one a core."),
    ] = None,
    no_ledger: Annotated[bool, typer.Option("--no-ledger", help="Leave the ledger out.")] = False,
    no_archive: Annotated[
        bool, typer.Option("--no-archive", help="Leave the archive out.")
    ] = False,
    from_archive: Annotated[
        bool,
        typer.Option("--from-archive", help="Read from the archive also what Kafka still has."),
    ] = False,
    archive_key: Annotated[
        str, typer.Option(help="The archive's public key, or a file with it: checks its head.")
    ] = "",
    archive_trusted: Annotated[
        Path | None, typer.Option(help="A head of the archive that somebody kept.")
    ] = None,
    seal_key: Annotated[
        str,
        typer.Option(help="The sealer's public key, or a file with it. Default: the key file's."),
    ] = "",
    trusted: Annotated[
        list[Path] | None,
        typer.Option(help="A checkpoint of the sealed log, or a receipt, that somebody kept."),
    ] = None,
    csv: Annotated[
        Path | None, typer.Option(help="Write all findings to this file.", dir_okay=False)
    ] = None,
    html: Annotated[
        Path | None, typer.Option(help="Write the report as a page for finance.", dir_okay=False)
    ] = None,
    as_json: AS_JSON = False,
) -> None:
    """Prove every total, or say exactly what differs and why.

    Reads the whole log with consumers of its own, recomputes every revision by the recorded
    policies, and compares it with the totals topic, byte for byte and field by field, with every
    row of the ledger, and with the dead letters. Accounts for every offset. Disturbs nothing: it
    joins no group and commits nothing. A live system can be audited while it works: orders that are
    still open, and totals that are newer than the end that was taken at the start, are no findings.

    Exit code 0 only if all is proven, 1 if something differs, 2 if the audit could not be carried
    out. With --json, one object on the last line.

        durabill audit
        durabill audit --order 01J9ZK3V5Q8W7N2M4R6T8Y0ABC
        durabill audit --from 2026-03-01 --to 2026-04-01 --csv march.csv
    """
    from durabill.stream_processors.audit.html_report import write_report
    from durabill.stream_processors.audit.options import AuditOptions
    from durabill.stream_processors.audit.replay import Engine
    from durabill.stream_processors.audit.report_file import check_report_path, write_report_file
    from durabill.stream_processors.audit.run import audit as carry_out

    if engine not in list(Engine):
        raise typer.BadParameter(f"--engine is one of {', '.join(Engine)}")
    offsets = _offsets(as_of)
    options = AuditOptions(
        order=order,
        partitions=tuple(sorted(set(partition or ()))),
        from_ms=_instant("--from", since),
        to_ms=_instant("--to", until),
        as_of_ms=None if offsets else _instant("--as-of", as_of),
        as_of_offsets=offsets,
        as_of=as_of,
        engine=Engine(engine),
        processes=processes,
        with_ledger=not no_ledger,
        with_archive=not no_archive,
        from_archive=from_archive,
        archive_key=archive_key,
        archive_trusted=archive_trusted,
        seal_key=seal_key,
        trusted=tuple(trusted or ()),
    )
    _check(settings, options)
    for path in (csv, html):
        if path is not None:
            check_report_path(path)
    settings = _entered(settings, with_ledger=not no_ledger)
    with progress_bars(quiet=as_json, paced=True) as progress:
        result = carry_out(settings, options, progress)
    if csv is not None:
        write_report_file(csv, csv_of(result))
        say(f"all findings are in {csv}")
    if html is not None:
        write_report(result, html)
        say(f"the report is in {html}")
    _tell(result, as_json)
    if not result.is_proven:
        raise typer.Exit(1)


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


def _tell(result: "AuditResult", as_json: bool) -> None:
    if as_json:
        emit(result.as_json())
    else:
        from durabill.deploy.commands.audit_view import show_result

        show_result(result)


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
        more = ", or PARTITION:OFFSET[,PARTITION:OFFSET]" if flag == "--as-of" else ""
        raise typer.BadParameter(f"{flag} takes {_TIME}{more}") from None
    at = at if at.tzinfo is not None else at.replace(tzinfo=UTC)
    return round(at.timestamp() * 1000)


_FORMULA = re.compile(r"[=+@\t\r]|-(?![0-9.]*$)")


def csv_of(result: "AuditResult") -> str:
    """Return all findings as CSV.

    A text that a spreadsheet would take for a formula has a quote before it: order numbers are
    strangers' text.
    """
    import csv
    from dataclasses import asdict
    from io import StringIO

    from durabill.stream_processors.audit.findings import FINDING_COLUMNS

    def cell(value: Any) -> Any:
        return f"'{value}" if isinstance(value, str) and _FORMULA.match(value) else value

    out = StringIO(newline="")
    writer = csv.DictWriter(out, FINDING_COLUMNS)
    writer.writeheader()
    for each in result.findings:
        writer.writerow({name: cell(value) for name, value in asdict(each).items()})
    return out.getvalue()
