"""`durabill kafka`, `durabill postgres`, `durabill topics`: what the engine runs on."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from durabill.deploy.commands.common import (
    AS_JSON,
    CONNECTION,
    TOPICS,
    located,
    quiet_kafka,
    with_settings,
)
from durabill.deploy.terminal import (
    answer,
    counted,
    emit,
    say,
)

if TYPE_CHECKING:
    from durabill.stream_processors.settings import Settings

NOT_RUNNING = 3
"""Exit code of `status` for a server that does not run, as `systemctl status` has it."""

kafka_app = typer.Typer(
    no_args_is_help=True, help="Run a real Kafka on this machine: one broker, or three."
)
postgres_app = typer.Typer(no_args_is_help=True, help="Run a PostgreSQL for the ledger here.")
topics_app = typer.Typer(no_args_is_help=True, help="Make and check the topics.")

Port = Annotated[
    int | None,
    typer.Option(min=1, max=65535, help="Port to listen on. Default: the last, else a free one."),
]
FirstPort = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=65535,
        help="Port of the first broker; the next ones take those after it. Default: the last "
        "ones, else free ones.",
    ),
]
Brokers = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=9,
        help="How many brokers, each some 350 MB. Default: as many as the data folder has, else 1.",
    ),
]


@kafka_app.command("start")
@with_settings("data_dir")
def start_kafka(
    settings: "Settings",
    port: FirstPort = None,
    brokers: Brokers = None,
    as_json: AS_JSON = False,
) -> None:
    """Start Kafka, or find it running, and print its address.

    The first start fetches the broker's jars. Other commands find this Kafka by themselves
    while it runs, so nothing has to be set:

        durabill kafka start && durabill topics create && durabill worker

    With three brokers there are three copies of everything, two of them in sync at least, as in
    production: one broker may die, freeze or restart. A broker that doesn't run is started:

        durabill kafka start --brokers 3
    """
    from durabill.deploy.local.kafka import LocalKafka

    address = LocalKafka(Path(settings.data_dir), port, brokers=brokers, say=say).start()
    answer({"bootstrap_servers": address}, address, as_json)


@kafka_app.command("stop")
@with_settings("data_dir")
def stop_kafka(settings: "Settings") -> None:
    """Stop that Kafka cleanly, all brokers of it. Its records stay for the next start."""
    from durabill.deploy.local.kafka import LocalKafka

    kafka = LocalKafka(Path(settings.data_dir))
    ran = any(node.pid is not None for node in kafka.status().nodes)
    kafka.stop()
    _tell_stopped("Kafka", ran, kafka.data_dir)


@kafka_app.command("status")
@with_settings("data_dir")
def show_kafka(settings: "Settings", as_json: AS_JSON = False) -> None:
    """Tell whether it runs, and where. Exit code 0 if all its brokers do, 3 if not."""
    from durabill.deploy.local.kafka import LocalKafka

    status = LocalKafka(Path(settings.data_dir)).status()
    where = {"bootstrap_servers": status.bootstrap_servers}
    if len(status.nodes) == 1:
        _show("Kafka", status, where, as_json)
    brokers = [{"broker": n.number, "address": n.address, "pid": n.pid} for n in status.nodes]
    if as_json:
        emit({"running": status.running, "pid": status.pid, **where, "brokers": brokers})
    else:
        running = sum(node.pid is not None for node in status.nodes)
        print(f"{running} of {len(brokers)} brokers of the Kafka in {status.data_dir} run")
        for node in status.nodes:
            state = "does not run" if node.pid is None else f"runs (pid {node.pid})"
            print(f"broker {node.number} at {node.address} {state}")
    raise typer.Exit(0 if status.running else NOT_RUNNING)


@postgres_app.command("start")
@with_settings("data_dir")
def start_postgres(settings: "Settings", port: Port = None, as_json: AS_JSON = False) -> None:
    """Start PostgreSQL, or find it running, bring the ledger's tables up to date, print the DSN.

    Other commands find it by themselves while it runs. For SQL:

        psql "$(durabill postgres start)" -c 'SELECT * FROM ledger_status'
    """
    from durabill.deploy.local.postgres import LocalPostgres
    from durabill.deploy.migrate import migrate

    dsn = LocalPostgres(Path(settings.data_dir), port, say=say).start()
    migrate(dsn)
    answer({"ledger_dsn": dsn}, dsn, as_json)


@postgres_app.command("stop")
@with_settings("data_dir")
def stop_postgres(settings: "Settings") -> None:
    """Stop that PostgreSQL cleanly. The ledger stays for the next start."""
    from durabill.deploy.local.postgres import LocalPostgres

    postgres = LocalPostgres(Path(settings.data_dir))
    ran = postgres.status().running
    postgres.stop()
    _tell_stopped("PostgreSQL", ran, postgres.data_dir)


@postgres_app.command("status")
@with_settings("data_dir")
def show_postgres(settings: "Settings", as_json: AS_JSON = False) -> None:
    """Tell whether it runs, and where. Exit code 0 if it does, 3 if not."""
    from durabill.deploy.local.postgres import LocalPostgres

    status = LocalPostgres(Path(settings.data_dir)).status()
    _show("PostgreSQL", status, {"ledger_dsn": status.dsn}, as_json)


def _tell_stopped(name: str, ran: bool, data_dir: Path) -> None:
    say(f"{name} has stopped" if ran else f"{name} did not run in {data_dir}")


def _show(name: str, status: Any, where: dict[str, str | None], as_json: bool) -> NoReturn:
    """Print a server's status and end with the exit code that goes with it."""
    if as_json:
        emit({"running": status.running, "pid": status.pid, **where})
    elif status.running:
        print(f"{name} runs at {next(iter(where.values()))} (pid {status.pid})")
    else:
        print(f"{name} does not run in {status.data_dir}")
    raise typer.Exit(0 if status.running else NOT_RUNNING)


@topics_app.command("create")
@with_settings(*CONNECTION, *TOPICS, "seal_topic")
def create_topics_command(
    settings: "Settings",
    partitions: Annotated[
        int, typer.Option(min=1, help="Partitions: the most workers that can share the load.")
    ] = 4,
    replication_factor: Annotated[
        int | None,
        typer.Option(min=1, help="Copies of each record. Default: 3, or as many as brokers."),
    ] = None,
    alter: Annotated[
        bool, typer.Option("--alter", help="Give existing topics our settings as well.")
    ] = False,
    as_json: AS_JSON = False,
) -> None:
    """Create the topics that are missing, and check all of them.

    Choose the partitions well: an order belongs to a partition by its number, so a topic in use
    can't get more later.

        durabill topics create --partitions 12 --replication-factor 3
    """
    from durabill.deploy.connect import await_kafka
    from durabill.deploy.topics import create_topics

    settings = located(settings, "bootstrap_servers")
    await_kafka(settings)
    check = create_topics(
        quiet_kafka(settings),
        settings.all_topics,
        partitions=partitions,
        replication_factor=replication_factor,
        alter=alter,
    )
    _show_topics(settings, check.partitions, check.warnings, as_json)


@topics_app.command("check")
@with_settings(*CONNECTION, *TOPICS, "seal_topic", "archive_dir")
def check_topics_command(settings: "Settings", as_json: AS_JSON = False) -> None:
    """Say whether a worker may start on the topics, and how to put right what is wrong."""
    settings = located(settings, "bootstrap_servers", role="check")
    partitions, warnings = checked_topics(settings, seal=True)
    _show_topics(settings, partitions, warnings, as_json)


def checked_topics(settings: "Settings", *, seal: bool = False) -> tuple[int, tuple[str, ...]]:
    """Return the segments topic's partition count and remarks; raise ContractError if unusable.

    `seal`: look at the topic of the sealed log's checkpoints too, which a worker doesn't need.
    """
    from durabill.deploy.topics import check_group, check_topics
    from durabill.stream_processors.audit.archive.reach import coverage

    kafka = quiet_kafka(settings)
    check_group(kafka, application_id=settings.application_id, segments=settings.segments_topic)
    archived = coverage(settings)
    topics = settings.all_topics if seal else settings.topics
    check = check_topics(kafka, topics, is_archived=archived.is_whole)
    return check.partitions, (*check.warnings, *archived.words)


def _show_topics(
    settings: "Settings", partitions: int, warnings: tuple[str, ...], as_json: bool
) -> None:
    names = settings.all_topics.by_role
    if as_json:
        emit({"topics": names, "partitions": partitions, "warnings": warnings})
        return
    for warning in warnings:
        say(f"note: {warning}")
    print(f"{', '.join(names.values())}: ready, {counted(partitions, 'partition')}")
