"""`durabill demo`."""

import os
import signal
import sys
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from durabill.deploy.commands.common import (
    AS_JSON,
    CONNECTION,
    with_settings,
)
from durabill.deploy.commands.fleet import Orders, Seed, Segments
from durabill.deploy.terminal import (
    emit,
    progress_bars,
    say,
)

if TYPE_CHECKING:
    from durabill.stream_processors.settings import Settings


@with_settings(*CONNECTION, "ledger_dsn")
def demo(
    settings: "Settings",
    orders: Orders = 2_000,
    segments: Segments = 200_000,
    seed: Seed = None,
    partitions: Annotated[int, typer.Option(min=1, help="Partitions of the topics.")] = 4,
    rate: Annotated[
        float,
        typer.Option(
            min=0,
            help="Records a second, 0 for no limit. Fleet, broker and worker share this machine:"
            " beyond what it can do at once, the latency is that of a queue.",
        ),
    ] = 15_000,
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave everything running for a look around.")
    ] = False,
    stop: Annotated[bool, typer.Option("--stop", help="Only stop what --keep left.")] = False,
    as_json: AS_JSON = False,
) -> None:
    """Run the whole engine with a fleet of faulty clients, and check every total.

    Starts Kafka, PostgreSQL, gateway, worker and ledger of its own (in .durabill/demo, on free
    ports), publishes segments with every kind of fault, waits until all orders have settled, and
    compares every field of every total, in the topic and in the ledger, with what the fleet knows
    they must be. Then it seals and archives the log, has `durabill audit` prove every total, and
    writes a report, an order's picture and a receipt. Exit code 1 if anything is wrong. Stops all
    that it started.

    Uses existing servers where DURABILL_BOOTSTRAP_SERVERS or DURABILL_LEDGER_DSN are set, with
    topics and a database schema of its own, which it removes afterwards.

        durabill demo
        durabill demo --orders 200 --segments 20000 --seed 7 --json
        durabill demo --keep
    """
    import secrets

    from durabill.deploy.demo.processes import demo_folder, stop_demo
    from durabill.deploy.demo.report import print_report
    from durabill.deploy.demo.run import DemoPlan, run_demo

    folder = demo_folder(settings)
    if stop:
        stop_demo(folder)
        return
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _leave)  # as an exception, so that everything is stopped
    chosen = secrets.randbelow(10**6) if seed is None else seed
    plan = DemoPlan(orders, segments, chosen, partitions, rate or None)
    own_servers = not settings.bootstrap_servers and not settings.ledger_dsn
    with progress_bars(quiet=as_json, lines=not as_json) as progress:
        report = run_demo(
            settings, plan, keep=keep, progress=progress, say=(lambda _: None) if as_json else say
        )
    if as_json:
        emit(report.as_json())
    else:
        shown = os.path.relpath(folder)
        print_report(report, keep=keep, data_dir=shown, own_servers=own_servers)
    if report.problems:
        raise typer.Exit(1)


def _leave(number: int, frame: object) -> NoReturn:
    sys.exit(128 + number)
