"""`durabill fleet` and `durabill totals`: a simulated fleet, and what came of it."""

import re
import secrets
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from durabill.deploy.commands.common import (
    AS_JSON,
    CONNECTION,
    TIMES,
    TOPICS,
    located,
    quiet_kafka,
    with_settings,
)
from durabill.deploy.files import data_folder, open_private
from durabill.deploy.terminal import (
    answer,
    counted,
    emit,
    human_bound,
    human_doubts,
    human_ms,
    plain_lines,
    progress_bars,
    say,
    shown,
)

if TYPE_CHECKING:
    from durabill.producers.fleet.plan import Faults
    from durabill.schemas import OrderTotal
    from durabill.stream_processors.settings import Settings

Orders = Annotated[int, typer.Option(min=1, help="Orders to simulate.")]
Segments = Annotated[
    int, typer.Option(min=1, help="Segments of all of them together, repeats not counted.")
]
Seed = Annotated[
    int | None, typer.Option(min=0, help="The same seed plans the same fleet. Default: new.")
]
Rate = Annotated[
    float | None, typer.Option(min=1, help="Records a second at most. Default: no limit.")
]
GatewayUrl = Annotated[
    str | None, typer.Option(help="Gateway for the share of orders that go over HTTP.")
]
TruthFile = Annotated[
    Path | None, typer.Option(help="File for the truth. Default: in the data folder.")
]
Faultless = Annotated[
    bool, typer.Option("--faultless", help="No faults, except those given by --fault.")
]
FaultRatios = Annotated[
    list[str] | None, typer.Option(help="One fault's ratio, such as lost=0.01. Repeatable.")
]


@with_settings(*CONNECTION, "segments_topic", *TIMES)
def fleet(
    settings: "Settings",
    orders: Orders = 200,
    segments: Segments = 20_000,
    seed: Seed = None,
    rate: Rate = None,
    compression: Annotated[str, typer.Option(help="none, gzip, snappy, lz4 or zstd.")] = "lz4",
    gateway_url: GatewayUrl = None,
    http_share: Annotated[float, typer.Option(min=0, max=1, help="That share.")] = 0.1,
    faultless: Faultless = False,
    fault: FaultRatios = None,
    truth: TruthFile = None,
    as_json: AS_JSON = False,
) -> None:
    """Simulate a fleet of clients with every kind of fault, and write down the truth.

    Publishes to the segments topic and works out, from its plan and the broker's append times
    alone, what every total must be. A worker must run meanwhile, with the same policy. Between its
    two waves it waits until orders have settled: for the idle timeout, so try it with a short one.

        durabill fleet --orders 500 --segments 50000 --seed 7
        durabill totals --check .durabill/truth-7.jsonl
    """
    from durabill.deploy.oracle import truth_policy
    from durabill.producers.fleet.plan import FleetPlan
    from durabill.producers.fleet.run import run_fleet

    _check_ways(compression, gateway_url)
    settings = located(settings, "bootstrap_servers", role="fleet")
    chosen = secrets.randbelow(10**9) if seed is None else seed
    try:
        plan = FleetPlan(
            seed=chosen,
            orders=orders,
            segments_per_order=max(1, round(segments / orders)),
            faults=_faults(faultless, fault or []),
            window_ms=settings.policy.correction_window_ms,
        )
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    path = _truth_path(settings, truth, chosen)
    if seed is None:
        say(f"seed {chosen}")
    with progress_bars(quiet=as_json) as progress:
        report = run_fleet(
            plan,
            quiet_kafka(settings),
            settings.segments_topic,
            truth_policy(settings),
            truth_path=path,
            rate=rate,
            compression=compression,
            gateway_url=gateway_url,
            http_share=http_share,
            progress=progress,
        )
    found = report.as_json()
    answer(found, "\n".join(f"{name:16} {value}" for name, value in found.items()), as_json)
    say(f"Compare with: durabill totals --check {shlex.quote(str(path))}")


def _check_ways(compression: str, gateway_url: str | None) -> None:
    """Raise BadParameter for what would fail, or wait in vain, once the fleet runs."""
    if compression not in _COMPRESSIONS:
        raise typer.BadParameter(
            f"--compression {shown(compression)} is none of {', '.join(_COMPRESSIONS)}"
        )
    if gateway_url is not None and not re.fullmatch(r"https?://[^/?#\s]+/?", gateway_url):
        raise typer.BadParameter(
            f"--gateway-url {shown(gateway_url)} is no address such as http://127.0.0.1:8080"
        )


_COMPRESSIONS = ("none", "gzip", "snappy", "lz4", "zstd")


def _truth_path(settings: "Settings", truth: Path | None, seed: int) -> Path:
    """Return where the truth goes; raise OSError before the run where it can't be written."""
    path = truth or Path(settings.data_dir) / f"truth-{seed}.jsonl"
    data_folder(path.parent)
    with open(path, "a", opener=open_private):
        return path


def _faults(faultless: bool, given: list[str]) -> "Faults":
    from dataclasses import replace

    from durabill.producers.fleet.plan import Faults

    known = [each.name for each in fields(Faults)]
    ratios = {}
    for text in given:
        name, _, ratio = text.partition("=")
        try:
            ratios[name] = float(ratio)
        except ValueError:
            name = ""
        if name not in known:
            raise typer.BadParameter(f"{text}: give NAME=RATIO; names are {', '.join(known)}")
    return replace(Faults.none() if faultless else Faults.everything(), **ratios)


@with_settings(*CONNECTION, *TOPICS, "ledger_dsn")
def totals(
    settings: "Settings",
    status: Annotated[
        str | None, typer.Option(help="Only COMPLETE, INCOMPLETE, ABANDONED or RUNNING ones.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="At most so many: those that settled last.")
    ] = None,
    check: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="Compare with a fleet's truth file."),
    ] = None,
    as_json: AS_JSON = False,
) -> None:
    """List the latest total of every order from the ledger, or from the topic where there is none.

    With --check, compare every revision, every field with what a fleet must have come to, in the
    totals topic and in the ledger; exit code 1 if anything differs.

        durabill totals --status INCOMPLETE --limit 10
        durabill totals --json | jq -r '[.service_order_number, .duration_ms] | @csv'
    """
    from durabill.deploy.connect import enter
    from durabill.producers.fleet.truth_file import total_as_json
    from durabill.schemas import Status

    if status is not None and status not in set(Status):
        raise typer.BadParameter(f"--status {shown(status)} is none of {', '.join(Status)}")
    settings = located(settings, "bootstrap_servers", ledger=True)
    if check is not None or not settings.ledger_dsn:
        enter(settings, "totals")
    if check is not None:
        _check(settings, check, as_json)
        return
    count = 0
    more = None if limit is None else limit + 1  # to know whether there are more
    for total in _latest(settings, status, more, whole=as_json):
        if count == limit:
            say(f"{counted(count, 'order')}; there are more, see --limit")
            return
        count += 1
        text = f"{shown(total.service_order_number)}  revision {total.revision}  {total.status}"
        text += f"  {human_ms(total.duration_ms)} ({human_bound(total.upper_bound_ms)})"
        text += human_doubts(total.gap_ms, total.numbers_after_end)
        answer(total_as_json(total) if as_json else None, text, as_json)
    say(counted(count, "order"))


def _latest(
    settings: "Settings", status: str | None, limit: int | None, *, whole: bool
) -> Iterator[Any]:
    """Yield each order's latest total, the last settled first; without intervals if not whole."""
    from durabill.stream_processors.ledger.lookups import (
        latest_summaries,
        latest_totals,
        summary_of,
    )

    if settings.ledger_dsn:
        look = latest_totals if whole else latest_summaries
        yield from look(settings.ledger_dsn, status=status, limit=limit)
        return
    latest: dict[str, Any] = {}
    for total in in_topic(settings):
        known = latest.get(total.service_order_number)
        if known is None or known.revision < total.revision:
            latest[total.service_order_number] = total if whole else summary_of(total)
    chosen = [each for each in latest.values() if status in (None, each.status)]
    chosen.sort(key=lambda each: (-each.settled_at_ms, each.service_order_number))
    yield from chosen[:limit]


def in_topic(settings: "Settings") -> "Iterator[OrderTotal]":
    """Yield every total in the totals topic; what is none is told in the end."""
    from durabill.schemas import BadTotal, decode_total
    from durabill.stream_processors.kafka.reading import read_topic

    strays = 0
    for _, _, message in read_topic(quiet_kafka(settings), settings.totals_topic):
        value = message.value()
        try:
            total = decode_total(value if isinstance(value, bytes) else None)
        except BadTotal:
            strays += 1
        else:
            yield total
    if strays:
        say(
            f"note: {counted(strays, 'record')} of the topic can't be read as totals, and count as"
            " none; `durabill audit` tells of each"
        )


def _check(settings: "Settings", truth: Path, as_json: bool) -> None:
    from durabill.producers.fleet.truth_file import compare
    from durabill.stream_processors.ledger.lookups import every_total

    places: dict[str, Iterable[OrderTotal]] = {"topic": in_topic(settings)}
    if settings.ledger_dsn:
        places["ledger"] = every_total(settings.ledger_dsn)
    found = {name: compare(truth, those) for name, those in places.items()}
    if as_json:
        emit({name: {"right": each.right, "errors": each.errors} for name, each in found.items()})
    else:
        for name, each in found.items():
            print(plain_lines(f"{name}: {each.explain()}"))
    if not all(each.exact for each in found.values()):
        raise typer.Exit(1)
