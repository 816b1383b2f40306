"""`durabill rebuild`: what workers or the ledger have lost, made again from the log."""

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from durabill.deploy.commands.common import (
    AS_JSON,
    CONNECTION,
    POLICY,
    TOPICS,
    located,
    with_settings,
    without_password,
)
from durabill.deploy.terminal import counted, emit, plain, progress_bars, say, shown

if TYPE_CHECKING:
    from durabill.stream_processors.audit.findings import AuditResult
    from durabill.stream_processors.audit.replay import Engine
    from durabill.stream_processors.settings import Settings

rebuild_app = typer.Typer(
    no_args_is_help=True,
    help="Make again from the log what was lost; `durabill audit` proves it at the end.",
)

Yes = Annotated[bool, typer.Option("--yes", help="Don't ask before writing.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only find out; write nothing.")]
EngineName = Annotated[str, typer.Option(help="columns, or reference: the plain core, slowly.")]
Processes = Annotated[
    int | None, typer.Option(min=1, help="Partitions at once. Default: as many as are worth it.")
]
NoAudit = Annotated[bool, typer.Option("--no-audit", help="Don't prove the result at the end.")]
_WORKERS = (
    *CONNECTION,
    *TOPICS,
    "previous_application_id",
    *POLICY,
    "schema_registry_url",
    "archive_dir",
)


@rebuild_app.command()
@with_settings(*_WORKERS)
def checkpoint(
    settings: "Settings",
    dry_run: DryRun = False,
    yes: Yes = False,
    engine: EngineName = "columns",
    processes: Processes = None,
    as_json: AS_JSON = False,
) -> None:
    """Write the workers' checkpoints anew, so that workers go on where they had published.

    For a checkpoint topic that was lost or damaged. All workers must be stopped; that is made
    sure. The whole log is replayed, and every published total and opening must be one that it
    gives; else nothing is written. What was not published yet, a worker publishes when it starts;
    what was, it doesn't publish again. So an orders topic that was lost is filled again as well.

        durabill rebuild checkpoint --dry-run
        durabill rebuild checkpoint --yes
    """
    from durabill.stream_processors.audit.rebuild_checkpoint import rebuild_checkpoint

    settings = _entered(settings, "worker")
    if not dry_run:
        _ask(f"write the checkpoints in {settings.checkpoint_topic} anew", yes)
    with progress_bars(quiet=as_json, paced=True) as progress:
        done = rebuild_checkpoint(
            settings, progress, engine=_engine(engine), processes=processes, dry_run=dry_run
        )
    if as_json:
        emit({"dry_run": dry_run, **asdict(done)})
        return
    for each in done.partitions:
        print(
            f"partition {each.partition}: goes on at offset {each.next_offset} of"
            f" {each.end_offset}, {counted(each.orders, 'order')},"
            f" {counted(each.totals, 'total')} compared, {each.unpublished:,} not published yet"
        )
    _tell(done.notes, "the checkpoints are written; start the workers", dry_run)


@rebuild_app.command()
@with_settings(*_WORKERS, "seal_topic", "seal_dir", "seal_key_file", "ledger_dsn")
def totals(
    settings: "Settings",
    into: Annotated[
        str, typer.Option(metavar="TOPIC", help="The new topic; it is made if it isn't there.")
    ],
    dry_run: DryRun = False,
    yes: Yes = False,
    no_audit: NoAudit = False,
    engine: EngineName = "columns",
    processes: Processes = None,
    as_json: AS_JSON = False,
) -> None:
    """Publish every total that the log gives to a new topic, each revision exactly once.

    For a totals topic that was lost, or that an audit has found to be altered; the old one stays as
    it is. All workers must be stopped; that is made sure. A run that was killed is gone on with by
    running it again. The new topic is proven by an audit at the end: exit code 1 if it differs.
    Where the old topic is sealed, its logs are handed over to the new one's by signed lines.

        durabill rebuild totals --into billing.totals-2 --dry-run
        durabill rebuild totals --into billing.totals-2 --yes
    """
    import msgspec

    from durabill.deploy.commands.replay import check_outcome
    from durabill.deploy.topics import create_totals_topic
    from durabill.stream_processors.audit.rebuild import segments_partitions
    from durabill.stream_processors.audit.rebuild_totals import rebuild_totals
    from durabill.stream_processors.kafka.options import quiet

    settings = _entered(settings, "worker")
    check_outcome(settings, into)
    if not dry_run:
        _ask(f"publish all totals that the log gives to {into}", yes)
        count = len(segments_partitions(settings))
        create_totals_topic(quiet(settings.librdkafka()), into, partitions=count)
    with progress_bars(quiet=as_json, paced=True) as progress:
        done = rebuild_totals(
            settings, into, progress, engine=_engine(engine), processes=processes, dry_run=dry_run
        )
    there = msgspec.structs.replace(settings, totals_topic=into)
    proof = None if dry_run or no_audit else _proven(there, as_json, with_ledger=False)
    is_good = not dry_run and (proof is None or proof.is_proven)
    logs = _hand_over(settings, into) if is_good else 0
    if as_json:
        told = {"handed_over_logs": logs, "audit": proof and proof.as_json()}
        emit({"dry_run": dry_run, **asdict(done), **told})
    else:
        for each in done.partitions:
            print(
                f"partition {each.partition}: {counted(each.totals, 'total')} up to offset"
                f" {each.end_offset}, {each.appended:,} of them appended"
            )
        next_step = f"set DURABILL_TOTALS_TOPIC={shown(into)}, then: durabill rebuild checkpoint"
        _tell(done.notes, next_step, dry_run)
    _end(proof)


@rebuild_app.command()
@with_settings(*CONNECTION, *TOPICS, "previous_application_id", *POLICY, "ledger_dsn")
def ledger(
    settings: "Settings",
    dry_run: DryRun = False,
    yes: Yes = False,
    no_audit: NoAudit = False,
    as_json: AS_JSON = False,
) -> None:
    """Fill a new ledger, the database of DURABILL_LEDGER_DSN, with all totals and openings.

    A ledger never changes a row, so one that was altered isn't mended: name an empty database, and
    the old one stays as it is. Workers may go on. A run that was killed is gone on with by running
    it again, or by `durabill ledger`. The new ledger is proven by an audit at the end, row by row
    against the log: exit code 1 if it differs.

        durabill rebuild ledger --dry-run
        durabill rebuild ledger --yes
    """
    from durabill.deploy.migrate import migrate
    from durabill.stream_processors.audit.rebuild_ledger import dry_run_ledger, rebuild_ledger

    settings.require("ledger_dsn")  # a local ledger that happens to run is not meant
    settings = _entered(settings, "totals")
    where = without_password(settings.ledger_dsn)
    if not dry_run:
        topics = f"{settings.totals_topic} and {settings.orders_topic}"
        _ask(f"fill the ledger at {where} from {topics}", yes)
        migrate(settings.ledger_dsn)
    with progress_bars(quiet=as_json, paced=True) as progress:
        fill = dry_run_ledger if dry_run else rebuild_ledger
        done = fill(settings, settings.ledger_dsn, progress)
    proof = None if dry_run or no_audit else _proven(settings, as_json, with_ledger=True)
    if as_json:
        emit({"dry_run": dry_run, **asdict(done), "audit": proof and proof.as_json()})
    else:
        verb = "to record" if dry_run else "recorded"
        openings = counted(done.opened, "opening")
        print(f"{where}: {counted(done.recorded, 'total')} and {openings} {verb}")
        _tell((), "start the ledger on it", dry_run)
    _end(proof)


def _entered(settings: "Settings", role: str) -> "Settings":
    """Return the settings with Kafka's address, once it lets us in."""
    from durabill.stream_processors.audit.pool import audit_errors

    with audit_errors():
        return located(settings, "bootstrap_servers", role=role)


def _engine(name: str) -> "Engine":
    from durabill.stream_processors.audit.replay import Engine

    if name not in set(Engine):
        raise typer.BadParameter(f"--engine {shown(name)} is none of {', '.join(Engine)}")
    return Engine(name)


def _ask(what: str, yes: bool) -> None:
    """Return if the user wants it; end the command where not."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise typer.BadParameter(f"nobody can be asked whether to {plain(what)}: give --yes")
    try:
        if typer.confirm(f"This will {plain(what)}. Go on?", err=True):
            return
    except typer.Abort:
        pass
    say("nothing was written")
    raise typer.Exit(1)


def _proven(settings: "Settings", as_json: bool, *, with_ledger: bool) -> "AuditResult":
    """Return what an audit says of what was rebuilt; show it to people."""
    from durabill.deploy.commands.audit_view import show_result
    from durabill.stream_processors.audit.run import AuditOptions, audit

    options = AuditOptions(processes=None, with_ledger=with_ledger)
    with progress_bars(quiet=as_json, paced=True) as progress:
        result = audit(settings, options, progress)
    if not as_json:
        show_result(result)
    return result


def _hand_over(settings: "Settings", into: str) -> int:
    """Have the sealed logs of the rebuilt topic follow the old one's; return how many do now."""
    from pathlib import Path

    from durabill.schemas.extras import require

    require("durabill rebuild totals", "audit", "cryptography")
    from durabill.stream_processors.audit.seal.folder import logs_in

    old = [each for each in logs_in(settings.seal_folder) if each.topic == settings.totals_topic]
    if not old:
        return 0
    if not settings.seal_key_file:
        say(
            f"note: {settings.totals_topic} is sealed in {settings.seal_folder}, and is not handed"
            " over: run this again with --seal-key-file, before a sealer begins with the new topic"
        )
        return 0
    from durabill.stream_processors.audit.seal.keys import read_key_file
    from durabill.stream_processors.audit.seal.opening import SealPlan
    from durabill.stream_processors.audit.seal.rebuilt import hand_over_topic
    from durabill.stream_processors.kafka.options import quiet

    plan = SealPlan(
        kafka=quiet(settings.librdkafka()),
        totals_topic=settings.totals_topic,
        folder=settings.seal_folder,
        keys=read_key_file(Path(settings.seal_key_file)),
        checkpoints_topic=settings.seal_topic,
        dsn=settings.ledger_dsn,
    )
    count = hand_over_topic(plan, into)
    say(f"{counted(count, 'sealed log')} handed over to {shown(into)}")
    return count


def _tell(notes: tuple[str, ...], next_step: str, dry_run: bool) -> None:
    for note in notes:
        say(f"note: {plain(note)}")
    say("nothing was written" if dry_run else next_step)


def _end(proof: Any) -> None:
    if proof is not None and not proof.is_proven:
        raise typer.Exit(1)
