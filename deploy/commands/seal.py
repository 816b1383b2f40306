"""`durabill seal`: keep the sealed log, and check it."""

import os
import signal
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from durabill.deploy.commands.common import (
    AS_JSON,
    CONNECTION,
    located,
    quiet_kafka,
    with_settings,
    without_password,
)
from durabill.deploy.commands.process_words import introduce, process_log, since_s, stopping
from durabill.deploy.terminal import answer, counted, emit, plain, progress_bars, say

if TYPE_CHECKING:
    from durabill.stream_processors.audit.seal.check import Witnessed
    from durabill.stream_processors.audit.seal.check_all import SealCheck
    from durabill.stream_processors.audit.seal.opening import SealPlan
    from durabill.stream_processors.settings import Settings

seal_app = typer.Typer(invoke_without_command=True)

Once = Annotated[
    bool, typer.Option("--once", help="Seal what is there, and end; for a job, or a last look.")
]
_SETTINGS = (*CONNECTION, "totals_topic", "seal_topic", "seal_dir", "seal_key_file", "ledger_dsn")


@seal_app.callback()
@with_settings(*_SETTINGS, "seal_interval_s", "application_id")
def seal(
    settings: "Settings", context: typer.Context, once: Once = False, as_json: AS_JSON = False
) -> None:
    """Keep the sealed log: every total into a Merkle log, checkpoints signed and published.

    A log a partition, in the form of C2SP's tlog-tiles, in a folder that anybody may copy. Each
    checkpoint goes to the folder, to a topic and, with DURABILL_LEDGER_DSN, to the ledger. One
    sealer a folder; after a crash, start it again. `durabill receipt` makes receipts out of it,
    `durabill seal check` checks all of it against the topic.

        durabill keys make seal.key
        durabill seal --seal-key-file seal.key
        durabill seal --seal-key-file seal.key --once
    """
    if context.invoked_subcommand is not None:
        _check_flags(context)
        return
    from durabill.deploy.connect import COMMAND_PATIENCE_S, PROCESS_PATIENCE_S, enter
    from durabill.deploy.files import data_folder
    from durabill.deploy.logs import set_up_logging
    from durabill.stream_processors.audit.seal.keys import read_key_file
    from durabill.stream_processors.audit.seal.opening import SealPlan
    from durabill.stream_processors.audit.seal.sealer import run_sealer

    set_up_logging()
    began_s = time.monotonic()
    settings.require("seal_key_file")
    keys = read_key_file(Path(settings.seal_key_file))
    settings = located(settings, "bootstrap_servers", ledger=True)
    enter(settings, "seal", patience_s=COMMAND_PATIENCE_S if once else PROCESS_PATIENCE_S)
    plan = SealPlan(
        kafka=quiet_kafka(settings),
        totals_topic=settings.totals_topic,
        folder=settings.seal_folder,
        keys=keys,
        checkpoints_topic=settings.seal_topic,
        dsn=settings.ledger_dsn,
        interval_s=settings.seal_interval_s,
    )
    if not settings.seal_dir:
        data_folder(Path(settings.data_dir))  # others' servers may live in it: made as they need it
    what = _described(plan)
    introduce("sealer", settings, **what, key=str(keys.key.public))
    _prepare_ledger(plan.dsn)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())

    def on_ready() -> None:
        process_log.info("sealer ready after %.1f s", since_s(began_s))
        if as_json and not once:
            emit({"started": "seal", **what, "pid": os.getpid()})

    with progress_bars(quiet=as_json or not once) as progress, stopping("sealer"):
        stats = run_sealer(plan, stop=stop, once=once, on_ready=on_ready, progress=progress)
    if once:
        text = f"{counted(stats.sealed, 'total')} sealed, {counted(stats.logs, 'log')}"
        answer(asdict(stats), f"{text} in {plan.folder}", as_json)


def _described(plan: "SealPlan") -> dict[str, str]:
    """Return what is sealed, and where to."""
    ledger = without_password(plan.dsn) if plan.dsn else "none (DURABILL_LEDGER_DSN)"
    return {"topic": plan.totals_topic, "folder": str(plan.folder), "ledger": ledger}


def _check_flags(context: typer.Context) -> None:
    """Raise BadParameter for a flag that stands before the subcommand."""
    given = [name for name, value in context.params.items() if value not in (None, False)]
    if given:
        flag = "json" if given[0] == "as_json" else given[0].replace("_", "-")
        raise typer.BadParameter(f"--{flag} goes after `{context.invoked_subcommand}`")


def _prepare_ledger(dsn: str) -> None:
    """Bring the ledger's tables up to date; a ledger that is away is owed the checkpoints."""
    if not dsn:
        return
    import psycopg

    from durabill.deploy.migrate import migrate
    from durabill.stream_processors.dsn import error_text

    try:
        for name in migrate(dsn):
            process_log.info("applied %s", name)
    except psycopg.OperationalError as error:
        process_log.warning("the ledger's PostgreSQL is away: %s", error_text(error))


@seal_app.command("check")
@with_settings(*_SETTINGS)
def check(
    settings: "Settings",
    key: Annotated[
        str | None,
        typer.Option(help="The sealer's public key, or a file with it. Default: the key file's."),
    ] = None,
    trusted: Annotated[
        list[Path] | None,
        typer.Option(help="A checkpoint, or a receipt, that somebody kept; several may be given."),
    ] = None,
    as_json: AS_JSON = False,
) -> None:
    """Check every tile, bundle and checkpoint of the sealed log against the topic.

    The root is computed again from the totals in the topic. It must be that of every checkpoint:
    the folder's, the published ones, the ledger's, and those that somebody kept, which shows a log
    that was cut back or made anew. Exit code 0 if all is consistent, 1 for findings.

        durabill seal check --key seal.pub --trusted checkpoint-of-last-year
    """
    from durabill.stream_processors.audit.seal.check_all import check_seal
    from durabill.stream_processors.audit.seal.source import sealed_topic
    from durabill.stream_processors.audit.seal.witnesses import all_witnesses, keys_of

    settings = located(settings, "bootstrap_servers", ledger=True, role="seal check")
    kafka, folder = quiet_kafka(settings), settings.seal_folder
    keys = keys_of(folder, key, settings.seal_key_file)
    witnessed: list[Witnessed] = all_witnesses(
        kafka, settings.seal_topic, settings.totals_topic, settings.ledger_dsn, trusted or ()
    )
    with progress_bars(quiet=as_json) as progress:
        topic = sealed_topic(kafka, settings.totals_topic, progress)
        result = check_seal(folder if folder.exists() else None, topic, keys, witnessed)
    if as_json:
        emit(_as_json(result))
    else:
        _show(result)
    if result.findings:
        raise typer.Exit(1)


def _as_json(result: "SealCheck") -> dict[str, Any]:
    return {
        "result": "differs" if result.findings else "consistent",
        "logs": [
            {
                "origin": str(each.origin),
                "size": each.checkpoint.size if each.checkpoint else None,
                "root": each.checkpoint.root.hex() if each.checkpoint else None,
                "unsealed": each.unsealed,
                "only_in_the_log": each.head,
                "findings": len(each.findings),
            }
            for each in result.logs
        ],
        "findings": [asdict(each) for each in result.findings],
    }


def _show(result: "SealCheck") -> None:
    for each in result.logs:
        size = 0 if each.checkpoint is None else each.checkpoint.size
        unsealed = f", {each.unsealed:,} not sealed yet" if each.unsealed else ""
        head = f", {each.head:,} of them gone from the topic" if each.head else ""
        good = "consistent" if not each.findings else counted(len(each.findings), "finding")
        print(f"{each.origin}: {counted(size, 'total')} sealed{head}{unsealed}: {good}")
    for finding in result.findings:
        print(f"- {plain(finding.place)}: {finding.field}: it must be {plain(finding.expected)};")
        print(f"  it is {plain(finding.found)}")
    if not result.logs and not result.findings:
        say("There is no sealed log: run durabill seal.")
