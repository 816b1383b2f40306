"""`durabill replay`: the same history under another policy, order by order."""

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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
from durabill.deploy.files import whole_file
from durabill.deploy.terminal import (
    counted,
    emit,
    human_ms,
    plain,
    progress_bars,
    say,
    shown,
)

if TYPE_CHECKING:
    from durabill.stream_processors.audit.bills import Difference, Summary
    from durabill.stream_processors.audit.what_if_run import WhatIfResult
    from durabill.stream_processors.settings import Settings

TOP = 20
TOP_AS_JSON = 1_000
LINE_CHARS_MAX = 160
"""An order is one line, which a narrow terminal breaks where it likes."""


PolicyFile = Annotated[
    Path,
    typer.Option(
        exists=True, dir_okay=False, help="TOML file: what is other than the recorded policy."
    ),
]
Top = Annotated[
    int | None,
    typer.Option(
        min=0, help="Show so many orders, the biggest differences. Default: 20; with --json 1000."
    ),
]
CsvFile = Annotated[Path | None, typer.Option("--csv", help="Write all orders to this CSV file.")]
PublishTo = Annotated[
    str | None, typer.Option(metavar="TOPIC", help="Publish the totals to a topic of its own.")
]
EngineName = Annotated[str, typer.Option(help="columns, or reference: the plain core, slowly.")]
Processes = Annotated[
    int | None, typer.Option(min=1, help="Partitions at once. Default: one a core.")
]


@with_settings(*CONNECTION, *TOPICS, "previous_application_id", *POLICY, *REGISTRY, "archive_dir")
def replay(
    settings: "Settings",
    policy: PolicyFile,
    top: Top = None,
    csv_file: CsvFile = None,
    publish_to: PublishTo = None,
    engine: EngineName = "columns",
    processes: Processes = None,
    as_json: AS_JSON = False,
) -> None:
    """Replay the whole log under another policy, and say what would be billed, order by order.

    The file's keys change the recorded policy, wherever it held: settle_grace_s, idle_timeout_s,
    correction_window_s, interim_interval_s, and in [duration] bridge_gaps_ms, minimum_duration_ms,
    round_up_to_ms, applied in this sequence. What it doesn't name stays. Where no policy is
    recorded, the settings' is taken, and that is told. Orders that have not settled by the end of
    the log are compared by their evidence so far, as RUNNING.

    Nothing is published. With --publish-to the totals go to a topic of their own, which is made if
    it is missing; the same run again goes on there, and writes nothing twice.

        durabill replay --policy longer-grace.toml
        durabill replay --policy longer-grace.toml --csv differences.csv --json
    """
    from durabill.deploy.connect import enter
    from durabill.stream_processors.audit.replay import Engine
    from durabill.stream_processors.audit.what_if_run import WhatIfOptions, run_what_if
    from durabill.stream_processors.core.what_if import read_policy_file

    if engine not in set(Engine):
        raise typer.BadParameter(f"--engine {shown(engine)} is none of {', '.join(Engine)}")
    what_if = read_policy_file(_text_of(policy))
    settings = located(settings, "bootstrap_servers")
    enter(settings, "replay")
    if publish_to is not None:
        _prepare(settings, publish_to)
    options = WhatIfOptions(
        top=(TOP_AS_JSON if as_json else TOP) if top is None else top,
        engine=Engine(engine),
        processes=processes,
        publish_to=publish_to or "",
    )
    with ExitStack() as stack:
        file = None if csv_file is None else stack.enter_context(whole_file(csv_file))
        progress = stack.enter_context(progress_bars(quiet=as_json, paced=True))
        result = run_what_if(settings, what_if, options, progress, file)
    if as_json:
        emit(result.as_json())
    else:
        _show(result, options.top)
    if publish_to is not None:
        say(f"published {counted(result.published, 'total')} to {shown(publish_to)}")


def _text_of(path: Path) -> str:
    """Return the policy file's text; raise SettingsError where it is none."""
    from durabill.schemas.errors import SettingsError

    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise SettingsError([f"the policy file {path} is no text in UTF-8"]) from error


def check_outcome(settings: "Settings", topic: str) -> None:
    """Raise SettingsError where a topic that totals are to go to is one of the deployment's own."""
    from durabill.schemas.errors import SettingsError

    for role, name in settings.topics.by_role.items():
        if topic == name:
            raise SettingsError(
                [
                    f"{topic} is the deployment's own topic of {role.replace('_', ' ')}: totals of"
                    " a replay go to a topic of their own. Name another"
                ]
            )


def _prepare(settings: "Settings", topic: str) -> None:
    """Make sure that the totals' topic is there, and that it is none of the deployment's own."""
    from durabill.deploy.topics import create_totals_topic
    from durabill.stream_processors.kafka.options import quiet
    from durabill.stream_processors.kafka.reading import partition_count

    check_outcome(settings, topic)
    kafka = quiet(settings.librdkafka())
    count = partition_count(kafka, settings.segments_topic)
    create_totals_topic(kafka, topic, partitions=count)


def _show(result: "WhatIfResult", top: int) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    print("\n".join(_summary_lines(result.summary)))
    shown_orders = result.biggest[:top]
    if shown_orders:
        table = Table(box=None)
        for name in ("order", "recorded", "replayed", "difference", "", "status"):
            is_number = name in ("recorded", "replayed", "difference", "")
            table.add_column(name, justify="right" if is_number else "left", no_wrap=True)
        for each in shown_orders:
            table.add_row(*map(Text, _cells(each)))
        print()
        Console(width=max(Console().width, LINE_CHARS_MAX)).print(table)
        left = result.summary.changed_orders - len(shown_orders)
        if left:
            say(f"{counted(left, 'more order')} changed, see --top and --csv")
    for note in result.notes:
        say(f"note: {plain(note)}")


def _summary_lines(summary: "Summary") -> list[str]:
    difference = _signed(summary.new_ms - summary.old_ms)
    lines = [
        f"{counted(summary.orders, 'order')}: recorded {human_ms(summary.old_ms)}, replayed"
        f" {human_ms(summary.new_ms)}, difference {difference}"
        f"{_percent(summary.as_json()['difference_percent'])}",
        f"{counted(summary.changed_orders, 'order')} changed: {summary.longer_orders:,} longer,"
        f" {summary.shorter_orders:,} shorter",
    ]
    for status, sums in summary.by_status.items():
        if sums.old_orders or sums.new_orders:
            lines.append(
                f"  {status:<10}  recorded {counted(sums.old_orders, 'order')},"
                f" {human_ms(sums.old_ms)}; replayed {counted(sums.new_orders, 'order')},"
                f" {human_ms(sums.new_ms)}"
            )
    old, new = summary.old_rejected, summary.new_rejected
    lines += [
        f"  {reason}: recorded {counted(old[reason], 'record')} rejected, replayed {new[reason]:,}"
        for reason in sorted({*old, *new})
        if old[reason] != new[reason]
    ]
    return lines


def _cells(each: "Difference") -> tuple[str, ...]:
    old = each.old.status.value if each.old else "none"
    new = each.new.status.value if each.new else "none"
    return (
        shown(each.service_order_number),
        human_ms(each.old_ms),
        human_ms(each.new_ms),
        _signed(each.difference_ms),
        _percent(each.as_json()["difference_percent"]).strip(" ()"),
        old if old == new else f"{old} -> {new}",
    )


def _signed(difference_ms: int) -> str:
    sign = "-" if difference_ms < 0 else "+" if difference_ms else ""
    return sign + human_ms(abs(difference_ms))


def _percent(value: float | None) -> str:
    return "" if value is None else f" ({value:+.2f} %)"
