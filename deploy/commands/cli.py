"""The `durabill` command: what there is, and how errors are told.

Each command imports what it needs when it runs, so that `--help` answers at once.
"""

import os
import sys
from typing import Annotated, Any

import typer

from durabill import __version__
from durabill.deploy.commands.archive import archive
from durabill.deploy.commands.asyncapi import asyncapi
from durabill.deploy.commands.audit import audit
from durabill.deploy.commands.clients import clients
from durabill.deploy.commands.conformance import conformance_app
from durabill.deploy.commands.dead_letters import letters_app
from durabill.deploy.commands.demo import demo
from durabill.deploy.commands.error_lines import check_arguments, error_lines
from durabill.deploy.commands.explain_order import explain
from durabill.deploy.commands.fleet import fleet, totals
from durabill.deploy.commands.framing import schemas_app
from durabill.deploy.commands.keys import keys_app
from durabill.deploy.commands.leakage import leakage
from durabill.deploy.commands.openapi import openapi
from durabill.deploy.commands.order import order
from durabill.deploy.commands.rebuild import rebuild_app
from durabill.deploy.commands.receipt import receipt, verify
from durabill.deploy.commands.replay import replay
from durabill.deploy.commands.run import gateway, ledger, worker
from durabill.deploy.commands.seal import seal_app
from durabill.deploy.commands.stack import kafka_app, postgres_app, topics_app
from durabill.deploy.commands.status import status
from durabill.deploy.commands.verify_receipt import verify_receipt
from durabill.deploy.streams import (
    OutputError,
    finish_streams,
    give_up_output,
    guard_streams,
)
from durabill.deploy.terminal import say
from durabill.schemas.text import without_secrets

HELP = """Exact, provable billing of services that are charged by time, on Kafka.

See it work, with a fleet of faulty clients, in about a minute:

    durabill demo

Run it on this machine, each line in a terminal of its own:

    durabill kafka start && durabill postgres start && durabill topics create
    durabill worker
    durabill ledger
    durabill gateway

Run it on your own Kafka and PostgreSQL: set DURABILL_BOOTSTRAP_SERVERS and DURABILL_LEDGER_DSN.
Every setting is a variable DURABILL_..., and a flag of the commands that need it; flags win.
"""

app = typer.Typer(
    help=HELP,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
_RUN, _LOOK, _PROVE, _STACK = "Run", "Look", "Prove", "Local stack"
app.command(rich_help_panel="Start here")(demo)
for _command in (worker, ledger, gateway, archive):
    app.command(rich_help_panel=_RUN)(_command)
app.add_typer(seal_app, name="seal", rich_help_panel=_RUN)
app.command(rich_help_panel=_LOOK)(status)
app.command(rich_help_panel=_LOOK)(order)
app.command(rich_help_panel=_LOOK)(explain)
app.command(rich_help_panel=_LOOK)(totals)
app.command(rich_help_panel=_LOOK)(leakage)
app.command(rich_help_panel=_LOOK)(clients)
app.add_typer(letters_app, name="dead-letters", rich_help_panel=_LOOK)
app.command(rich_help_panel=_LOOK)(fleet)
app.command(rich_help_panel=_PROVE)(receipt)
app.command(rich_help_panel=_PROVE)(verify)
app.command("verify-receipt", rich_help_panel=_PROVE)(verify_receipt)
app.add_typer(keys_app, name="keys", rich_help_panel=_PROVE)
app.command(rich_help_panel=_PROVE)(audit)
app.command(rich_help_panel=_PROVE)(replay)
app.add_typer(rebuild_app, name="rebuild", rich_help_panel=_PROVE)
app.command(rich_help_panel=_PROVE)(asyncapi)
app.command(rich_help_panel=_PROVE)(openapi)
app.add_typer(conformance_app, name="conformance", rich_help_panel=_PROVE)
app.add_typer(kafka_app, name="kafka", rich_help_panel=_STACK)
app.add_typer(postgres_app, name="postgres", rich_help_panel=_STACK)
app.add_typer(topics_app, name="topics", rich_help_panel=_STACK)
app.add_typer(schemas_app, name="schemas", rich_help_panel=_RUN)


@app.callback(invoke_without_command=True)
def _options(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        print(f"durabill {__version__}")
        raise typer.Exit


def main() -> None:
    """Run the command line; an error that somebody can mend is a message, not a traceback."""
    os.umask(0o077)  # what commands write (logs, data, truth files) is for their user alone
    guard_streams()
    code = _run(sys.argv[1:])
    try:
        finish_streams()
    except OutputError as error:
        told = _tell(error, [])
        code = code or told
    sys.exit(code)


def _fold_long_words() -> None:
    """Have the help show a long flag on two lines in a narrow terminal; typer would cut it."""
    from rich.table import Table
    from typer import rich_utils

    class Folding(Table):
        def add_row(self, *cells: Any, **options: Any) -> None:
            super().add_row(*cells, **options)
            for column in self.columns:
                column.overflow = "fold"

    rich_utils.Table = Folding  # type: ignore[attr-defined]


def _run(arguments: list[str]) -> int:
    """Run a command and return its exit code; a bug of ours is raised."""
    try:
        check_arguments(arguments)
        if "--help" in arguments:
            _fold_long_words()
        code = app(arguments, prog_name="durabill", standalone_mode=False)
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        return _tell(error, arguments)
    return code if isinstance(code, int) else 0


def _tell(error: Exception, arguments: list[str]) -> int:
    lines = error_lines(error, arguments)
    if lines is None:
        raise error
    if isinstance(error, OutputError):
        give_up_output()
    if not (isinstance(error, OutputError) and error.is_gone):
        for line in lines:
            say(f"error: {without_secrets(line)}")  # what was typed may be repeated in it
    return int(getattr(error, "exit_code", 1))


if __name__ == "__main__":
    main()
