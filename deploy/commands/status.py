"""`durabill status`: how all workers are, who has which partition, and what stands in the way."""

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import typer

from durabill.deploy.commands.ask_workers import AT_ONCE_MAX, ask_page, known_workers
from durabill.deploy.commands.common import (
    AS_JSON,
    CONNECTION,
    located,
    quiet_kafka,
    with_settings,
    without_password,
)
from durabill.deploy.terminal import (
    counted,
    emit,
    human_ms,
    human_time,
    plain,
)

if TYPE_CHECKING:
    from durabill.deploy.commands.status_report import Answer, Owned, Report
    from durabill.stream_processors.ledger.lookups import Recorded
    from durabill.stream_processors.settings import Settings

KAFKA_PATIENCE_S = 5.0
LEDGER_TIMEOUT_S = 10
STATE_CHARS_MAX = 40
"""So much of a reason fits the table; below it stands in whole."""

RIGHT = (
    *("", "lag", "next offset", "orders", "to be reported", "passed on"),
    *("unpublished", "marks", "age"),
)
LINE_CHARS_MAX = 250
"""A partition is one line, which a narrow terminal breaks where it likes."""


@with_settings(*CONNECTION, "segments_topic", "application_id", "worker_urls", "ledger_dsn")
def status(settings: "Settings", as_json: AS_JSON = False) -> None:
    """Show how the workers are, and each partition: its owner, lag, deadlines, policy, trouble.

    Asks all workers at once: those of --worker-urls, else those that run from the data folder. Of
    opened orders it tells how many are to be reported yet, and how many the worker that runs has
    passed on to the orders topic. A policy is told as grace/idle/window/interim @ the offset that
    it holds from. A partition that waits for a client's open transaction goes on by itself; one
    that is held, or stopped by a bug, is a problem. The ledger is asked where there is one.

    Exit code 0 if all is well; 1 if a worker isn't ready or can't be asked, a partition is held,
    stopped or without an owner, workers have different policies, or Kafka or the ledger can't be
    asked. Disputed and unreadable totals are shown, and stay for good: they don't count in it.

        durabill status
        durabill status --json | jq -r '.problems[]'
    """
    from durabill.deploy.commands.status_report import make_report

    settings = located(settings, ledger=True)
    answers = ask_all(known_workers(settings), settings.worker_token)
    count, no_kafka = _partition_count(settings)
    recorded, no_ledger = _ledger(settings)
    unknown = [each for each in (no_kafka, no_ledger) if each]
    report = make_report(settings.application_id, answers, count, problems=unknown)
    if as_json:
        ledger = None if recorded is None else dict(vars(recorded))
        emit({**report.as_json(), "ledger": ledger})
    else:
        _show(report)
        if recorded is not None:
            _show_ledger(recorded, without_password(settings.ledger_dsn))
        _show_problems(report)
    if report.problems:
        raise typer.Exit(1)


def ask_all(urls: list[str], token: str) -> "list[Answer]":
    """Return what each worker says, in this order, each asked once and at once."""
    urls = list(dict.fromkeys(url.rstrip("/") for url in urls))
    if not urls:
        return []
    with ThreadPoolExecutor(min(len(urls), AT_ONCE_MAX)) as pool:
        return list(pool.map(lambda url: _ask(url, token), urls))


def _ask(url: str, token: str) -> "Answer":
    from durabill.deploy.commands.status_report import read_answer

    told, why_not = ask_page(url, token, "/status")
    if told is None:
        return read_answer(url, None, None, why_not)
    ready, no_word = ask_page(url, token, "/health/ready")
    return read_answer(url, told, ready, why_no_readiness=no_word)


def _partition_count(settings: "Settings") -> tuple[int | None, str]:
    """Return how many partitions the segments have, or None and why Kafka can't be asked."""
    from confluent_kafka import KafkaException

    from durabill.deploy.connect import await_kafka
    from durabill.schemas.errors import AccessError, UnreachableError
    from durabill.stream_processors.kafka.reading import partition_count

    if not settings.bootstrap_servers:
        return None, "no Kafka is known (DURABILL_BOOTSTRAP_SERVERS), nor a local one that runs"
    try:
        await_kafka(settings, patience_s=KAFKA_PATIENCE_S)
        return partition_count(quiet_kafka(settings), settings.segments_topic), ""
    except (UnreachableError, AccessError) as error:
        return None, " ".join(str(error).split())
    except KafkaException as error:
        return None, f"Kafka: {error.args[0].str()}"


def _ledger(settings: "Settings") -> "tuple[Recorded | None, str]":
    """Return what the ledger has recorded; None if there is none, or it can't be asked."""
    if not settings.ledger_dsn:
        return None, ""
    import psycopg

    from durabill.stream_processors.dsn import connect, error_text
    from durabill.stream_processors.ledger.lookups import recorded

    try:
        with connect(settings.ledger_dsn) as conn:
            conn.execute(f"SET statement_timeout = '{LEDGER_TIMEOUT_S}s'")
            return recorded(conn), ""
    except psycopg.Error as error:
        where = without_password(settings.ledger_dsn)
        return None, f"the ledger at {where} can't be asked: {error_text(error)}"


def _show(report: "Report") -> None:
    from rich.console import Console

    console = Console(width=max(Console().width, LINE_CHARS_MAX))
    console.print(_worker_table(report))
    console.print()
    console.print(_partition_table(report))


def _table(title: str, *columns: str) -> Any:
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=None)
    for name in columns:
        right = name in RIGHT
        table.add_column(name, justify="right" if right else "left", no_wrap=True)
    return table


def _worker_table(report: "Report") -> Any:
    from rich.text import Text

    title = f"{counted(len(report.answers), 'worker')} of {plain(report.application_id)}"
    table = _table(title, "worker", "state", "last checkpoint", "partitions")
    for each in report.answers:
        state = "ready" if each.is_ready else "not ready"
        age_ms = each.checkpoint_age_ms
        told = each.status
        cells = (
            plain(each.url),
            "can't be asked" if told is None else state,
            "" if told is None else "none" if age_ms is None else f"{human_ms(age_ms)} ago",
            "" if told is None else str(len(told.partitions)),
        )
        table.add_row(*map(Text, cells))
    return table


def _partition_table(report: "Report") -> Any:
    from rich.text import Text

    count = report.partition_count
    known = "? partitions" if count is None else counted(count, "partition")
    title = f"{known}; deadlines in UTC; policy: grace/idle/window/interim"
    columns = (
        *("owner", "next offset", "lag", "orders", "to be reported", "passed on"),
        *("oldest deadline", "unpublished", "marks"),
    )
    table = _table(title, "", *columns, "policy @ offset", "state")
    rows = [(each.partition, _cells(each)) for each in report.partitions]
    rows += [(each, ("nobody", *[""] * 9, "no owner")) for each in report.unowned]
    for partition, cells in sorted(rows):
        table.add_row(*(Text(cell) for cell in (str(partition), *cells)))
    return table


def _cells(owned: "Owned") -> tuple[str, ...]:
    from durabill.deploy.commands.status_report import short_policy

    task = owned.task
    deadline = "" if task.oldest_deadline_ms is None else human_time(task.oldest_deadline_ms)
    state = "ok"
    if task.is_broken or task.held:
        state = f"{'STOPPED' if task.is_broken else 'held'}: {plain(task.held or '')}"
    elif task.waiting_for_transaction_s:
        state = f"waits for a transaction, {task.waiting_for_transaction_s:.0f} s"
    if len(state) > STATE_CHARS_MAX:
        state = state[: STATE_CHARS_MAX - 1] + "…"
    return (
        plain(owned.owner.partition("://")[2]),
        str(task.next_offset),
        f"{task.lag:,}",
        f"{task.orders:,}",
        f"{task.openings_waiting:,}",
        f"{task.openings_passed_on:,}",
        deadline.partition(".")[0],
        f"{task.unpublished_s:.1f} s",
        str(task.clock_marks),
        short_policy(task),
        state,
    )


def _show_ledger(recorded: "Recorded", where: str) -> None:
    print(f"\nThe ledger at {where}: {counted(recorded.totals, 'total')}, ", end="")
    if recorded.orders is not None:
        print(f"{counted(recorded.orders, 'opened order')}, ", end="")
    print(f"{recorded.disputed:,} disputed, {recorded.unreadable:,} unreadable", end="")
    if recorded.last_settled_at_ms is None or recorded.last_recorded_at_ms is None:
        print()
        return
    print(f"; the last settled at {human_time(recorded.last_settled_at_ms)}, recorded at ", end="")
    print(human_time(recorded.last_recorded_at_ms))


def _show_problems(report: "Report") -> None:
    print()
    for each in report.notes:
        print(f"note: {plain(each)}")
    for each in report.problems:
        print(f"- {plain(each)}")
    print(counted(len(report.problems), "problem") if report.problems else "All is well.")
