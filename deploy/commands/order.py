"""`durabill order NUMBER`: what the log, the worker and the ledger know of one order."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from durabill.deploy.commands.ask_workers import ask_workers, known_workers
from durabill.deploy.commands.common import AS_JSON, CONNECTION, TOPICS, located, with_settings
from durabill.deploy.terminal import emit, progress_bars, say, shown

if TYPE_CHECKING:
    from durabill.deploy.commands.order_log import Totals
    from durabill.schemas import OrderTotal
    from durabill.schemas.order_state import OrderState
    from durabill.stream_processors.audit.story import Given, Story
    from durabill.stream_processors.settings import Settings


@with_settings(
    *CONNECTION, *TOPICS, "ledger_dsn", "worker_urls", "schema_registry_url", "archive_dir"
)
def order(
    settings: "Settings",
    number: Annotated[str, typer.Argument(help="The service order number.")],
    everywhere: Annotated[
        bool, typer.Option("--everywhere", help="Look for records in wrong partitions as well.")
    ] = False,
    rows: Annotated[
        int, typer.Option(min=0, help="Show at most so many records, and revisions; 0 shows all.")
    ] = 24,
    as_json: AS_JSON = False,
) -> None:
    """Show an order: its records in the log, their union over time, its live state, its totals.

    Its opening is shown first, with tenant, client, service, attributes, and until when its records
    are accepted; and openings that were refused. Each record is shown with its place, the broker's
    append time and the verdict on it, each total with the record or the deadline that caused it. A
    number that was used again after its order was forgotten has several lives, which are told
    apart. The verdicts are the billing rules' own, by the policies that are recorded in the
    checkpoint topic, or, where that can't be read, by the settings'. The bar shows which part of
    the time is proven, and where gaps are. Of many totals the latest are shown; with --json all of
    them, with their intervals. Reads the order's partition from its start. Exit code 1 if nobody
    knows the order.

        durabill order 01J9ZK3V5Q8W7N2M4R6T8Y0ABC
    """
    from durabill.deploy.commands.order_log import read_story, read_totals

    settings = located(settings, "bootstrap_servers", ledger=True, role="order")
    with progress_bars(quiet=as_json) as progress:
        story = read_story(settings, number, everywhere, progress)
    live, no_live = ask_workers(known_workers(settings), settings.worker_token, number)
    totals = read_totals(settings, number, None if as_json else rows or None, whole=as_json)
    if as_json:
        emit(_as_json(story, live, totals))
    else:
        from durabill.deploy.commands.order_view import show_live, show_story, show_totals

        show_story(story, rows)
        show_live(live, no_live)
        show_totals(story, totals, rows)
    if not (story.rows or live or totals.found or totals.set_aside):
        say(f"Nobody knows order {shown(number)}.")
        raise typer.Exit(1)


def _as_json(story: "Story", live: "OrderState | None", totals: "Totals") -> dict[str, Any]:
    import msgspec

    from durabill.producers.fleet.truth_file import total_as_json
    from durabill.stream_processors.audit import story_json
    from durabill.stream_processors.audit.story import key_of
    from durabill.stream_processors.engine.policies import describe_history

    def told(total: "OrderTotal") -> dict[str, Any]:
        given = story.given.get(key_of(total))
        return {**total_as_json(total), **_cause(given)}

    return {
        "service_order_number": story.number,
        "openings": story_json.openings(story),
        "records": [asdict(each) for each in story.rows],
        "intervals": [list(each) for each in story.union],
        "duration_ms": story.union.measure,
        "live": None if live is None else msgspec.to_builtins(live),
        "totals": [told(total) for total in totals.found],
        "set_aside": None
        if totals.set_aside is None
        else [told(each) for each in totals.set_aside],
        "partition": story.partition,
        "policy": describe_history(story.basis.history),
        "policy_assumed_because": story.basis.assumed_because or None,
        "lives": [story_json.life(each) for each in story.lives],
        "revisions": [story_json.revision(each) for each in story.given.values()],
        "notes": story.notes,
    }


def _cause(given: "Given | None") -> dict[str, Any]:
    """Return which life a total is of, and what caused it: a record, or a deadline.

    All are None where the log doesn't give the total by the policy that is told.
    """
    from durabill.stream_processors.audit import story_json

    if given is None:
        return {"life": None, "caused_by": None, "caused_by_offset": None}
    return {"life": given.life, **story_json.cause(given)}
