"""The `durabill` command: what there is, and how errors are told.

Each command imports what it needs when it runs, so that `--help` answers at once.
"""

import os
import sys
from collections.abc import Iterator
from typing import Annotated

import typer

from durabill.deploy.commands.dead_letters import letters_app
from durabill.deploy.commands.demo import demo
from durabill.deploy.commands.fleet import fleet, totals
from durabill.deploy.commands.order import order
from durabill.deploy.commands.run import gateway, ledger, worker
from durabill.deploy.commands.stack import kafka_app, postgres_app, topics_app
from durabill.deploy.commands.status import status
from durabill.schemas.errors import DurabillError
from durabill.schemas.extras import missing_for

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
_RUN, _LOOK, _STACK = "Run", "Look", "Local stack"
app.command(rich_help_panel="Start here")(demo)
for _command in (worker, ledger, gateway):
    app.command(rich_help_panel=_RUN)(_command)
app.command(rich_help_panel=_LOOK)(status)
app.command(rich_help_panel=_LOOK)(order)
app.command(rich_help_panel=_LOOK)(totals)
app.add_typer(letters_app, name="dead-letters", rich_help_panel=_LOOK)
app.command(rich_help_panel=_LOOK)(fleet)
app.add_typer(kafka_app, name="kafka", rich_help_panel=_STACK)
app.add_typer(postgres_app, name="postgres", rich_help_panel=_STACK)
app.add_typer(topics_app, name="topics", rich_help_panel=_STACK)


@app.callback(invoke_without_command=True)
def _options(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        from importlib.metadata import version as version_of

        print(f"durabill {version_of('durabill')}")
        raise typer.Exit


def main() -> None:
    """Run the command line; an error that somebody can mend is a message, not a traceback."""
    os.umask(0o077)  # what commands write (logs, data, truth files) is for their user alone
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(141)  # as if SIGPIPE had ended us: the reader has seen enough
    except Exception as error:
        lines = explain(error)
        if lines is None:
            raise
        for line in lines:
            print(f"error: {line}", file=sys.stderr)
        sys.exit(getattr(error, "exit_code", 1))


def explain(error: Exception) -> list[str] | None:
    """Return what to tell the user, a line each; None if `error` is a bug of ours."""
    if isinstance(error, ImportError):
        missing = missing_for(sys.argv[1:], error.name)
        return None if missing is None else [str(missing)]
    if isinstance(error, DurabillError):
        return str(error).splitlines()
    return next(_explain_foreign(error), None)


def _explain_foreign(error: Exception) -> Iterator[list[str]]:
    if _is_a(error, "confluent_kafka", "KafkaException"):
        cause = error.args[0] if error.args else error
        said = cause.str() if hasattr(cause, "str") else str(cause)
        yield [
            f"Kafka: {said}",
            "Is it running, and is DURABILL_BOOTSTRAP_SERVERS (with its security settings) right?",
        ]
    if _is_a(error, "psycopg", "Error"):
        from durabill.stream_processors.dsn import error_text

        yield [
            f"PostgreSQL: {error_text(error)}",
            "Is it running, and is DURABILL_LEDGER_DSN right?",
        ]


def _is_a(error: Exception, module: str, name: str) -> bool:
    found = sys.modules.get(module)
    return found is not None and isinstance(error, getattr(found, name))


if __name__ == "__main__":
    main()
