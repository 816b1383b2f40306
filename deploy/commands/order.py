"""`durabill order NUMBER`: what the log, the worker and the ledger know of one order."""

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from durabill.deploy.commands.ask_workers import ask_workers, known_workers
from durabill.deploy.commands.common import (
    AS_JSON,
    CONNECTION,
    TOPICS,
    located,
    quiet_kafka,
    with_settings,
    without_password,
)
from durabill.deploy.commands.run import writer_schemas
from durabill.deploy.terminal import (
    Progress,
    emit,
    human_bound,
    human_doubts,
    human_ms,
    human_time,
    progress_bars,
    say,
)

if TYPE_CHECKING:
    from durabill.schemas import OrderTotal, WriterSchemas
    from durabill.stream_processors.core.intervals import IntervalSet
    from durabill.stream_processors.settings import Settings

BAR_WIDTH = 72


@dataclass(frozen=True, slots=True)
class Seen:
    """One record of the log that is the order's, and what became of it, in words."""

    partition: int
    offset: int
    append_ms: int
    number: int | None
    start_ms: int | None
    end_ms: int | None
    end_identifier: bool | None
    verdict: str


@with_settings(*CONNECTION, *TOPICS, "ledger_dsn", "worker_urls", "schema_registry_url")
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

    Each record is shown with its place, the broker's append time and what became of it. The bar
    shows which part of the time is proven, and where gaps are. Of many totals the latest are
    shown; with --json all of them, with their intervals. Reads the order's partition from its
    start. Exit code 1 if nobody knows the order.

        durabill order 01J9ZK3V5Q8W7N2M4R6T8Y0ABC
    """
    settings = located(settings, "bootstrap_servers", ledger=True, role="order")
    with progress_bars(quiet=as_json) as progress:
        seen, union = _from_log(settings, number, everywhere, progress)
    live, no_live = ask_workers(known_workers(settings), settings.worker_token, number)
    totals, count, source = _totals(settings, number, None if as_json else rows or None, as_json)
    if as_json:
        emit(_as_json(number, seen, union, live, totals))
    else:
        _show(number, seen, union, rows)
        _show_live(live, no_live)
        _show_totals(totals, count, source)
    if not (seen or live or totals):
        say(f"Nobody knows order {number}.")
        raise typer.Exit(1)


def _from_log(
    settings: "Settings", number: str, everywhere: bool, progress: Progress
) -> "tuple[list[Seen], IntervalSet]":
    """Return the order's records, and the union of those that count."""
    from durabill.schemas import partition_for
    from durabill.stream_processors.core.intervals import IntervalSet
    from durabill.stream_processors.dead_letters.letters import list_dead_letters
    from durabill.stream_processors.kafka.reading import read_topic, topic_ends

    kafka, topic = quiet_kafka(settings), settings.segments_topic
    key = number.encode()
    own = partition_for(key, len(topic_ends(kafka, topic)))
    rejected = {
        letter.origin: letter.reason
        for letter in list_dead_letters(kafka, settings.dead_letters_topic)
        if letter.origin is not None
    }
    writers = writer_schemas(settings)
    partitions = None if everywhere else frozenset({own})
    seen: list[Seen] = []
    union, numbers = IntervalSet(), IntervalSet()
    for partition, offset, message in read_topic(
        kafka, topic, partitions=partitions, progress=progress
    ):
        value = message.value()
        if message.key() != key and not (isinstance(value, bytes) and key in value):
            continue
        fields = _raw_fields(value if isinstance(value, bytes) else None, writers)
        reason = rejected.get((topic, partition, offset))
        if message.key() != key and (fields is None or fields[0] != key):
            continue  # the number only happens to be among other bytes
        if reason is not None:
            verdict = f"dead letter: {reason}"
        elif partition != own:
            verdict = f"sent on to partition {own}"
        elif fields is None:
            verdict = "not judged yet"
        else:
            verdict = _count(fields, union, numbers)
        number_in, start_ms, end_ms, is_end = (None,) * 4 if fields is None else fields[1:]
        append_ms = message.timestamp()[1]
        seen.append(
            Seen(partition, offset, append_ms, number_in, start_ms, end_ms, is_end, verdict)
        )
    return seen, union


def _raw_fields(value: bytes | None, writers: "WriterSchemas") -> Any:
    from durabill.schemas import BadRecord

    try:
        return writers.read(value)
    except BadRecord:
        return None


def _count(fields: Any, union: "IntervalSet", numbers: "IntervalSet") -> str:
    """Take an accepted segment into the union; say what it brought."""
    _, number, start_ms, end_ms, _ = fields
    if number < 1 or not 0 <= start_ms <= end_ms:
        return "not judged yet"
    gained_ms = union.add(start_ms, end_ms)
    verdict = "counted" if numbers.add(number, number + 1) else "repeat"
    overlap_ms = end_ms - start_ms - gained_ms
    if verdict == "repeat":
        return f"repeat, adds {human_ms(gained_ms)}" if gained_ms else "repeat, adds nothing"
    return f"counted, less {human_ms(overlap_ms)} known already" if overlap_ms else "counted"


def _totals(
    settings: "Settings", number: str, limit: int | None, whole: bool
) -> tuple[list[Any], int, str]:
    """Return the latest revisions, oldest first, how many there are, and where they were read.

    Without their intervals if they need not be whole.
    """
    if settings.ledger_dsn:
        import psycopg

        from durabill.stream_processors.dsn import error_text
        from durabill.stream_processors.ledger.lookups import revision_summaries, revisions

        source = f"the ledger at {without_password(settings.ledger_dsn)}"
        try:
            if whole:
                found = revisions(settings.ledger_dsn, number)
                return found, len(found), source
            return *revision_summaries(settings.ledger_dsn, number, limit), source
        except psycopg.Error as error:
            say(f"note: the ledger can't be asked: {error_text(error)}")
    found = totals_in_topic(settings, number)
    return found[-(limit or len(found)) :], len(found), f"topic {settings.totals_topic}"


def totals_in_topic(settings: "Settings", number: str) -> "list[OrderTotal]":
    """Return the order's totals in the totals topic, oldest first, each once."""
    from durabill.schemas import BadTotal, decode_total, partition_for
    from durabill.stream_processors.kafka.reading import read_topic, topic_ends

    kafka, key = quiet_kafka(settings), number.encode()
    partition = partition_for(key, len(topic_ends(kafka, settings.totals_topic)))
    found: dict[OrderTotal, None] = {}
    for _, _, message in read_topic(
        kafka, settings.totals_topic, partitions=frozenset({partition})
    ):
        value = message.value()
        if message.key() == key and isinstance(value, bytes):
            try:
                found[decode_total(value)] = None
            except BadTotal:
                continue
    return list(found)


def _as_json(
    number: str,
    seen: list[Seen],
    union: "IntervalSet",
    live: dict[str, Any] | None,
    totals: "list[OrderTotal]",
) -> dict[str, Any]:
    from durabill.producers.fleet.truth_file import total_as_json

    return {
        "service_order_number": number,
        "records": [{name: getattr(each, name) for name in Seen.__slots__} for each in seen],
        "intervals": [list(each) for each in union],
        "duration_ms": union.measure,
        "live": live,
        "totals": [total_as_json(total) for total in totals],
    }


def draw(union: "IntervalSet", start_ms: int, end_ms: int, width: int, marks: str = "█▒·") -> str:
    """Return [start_ms, end_ms) as `width` cells: covered wholly, in part, not at all."""
    assert start_ms < end_ms
    cells = []
    length = end_ms - start_ms
    for cell in range(width):
        left = start_ms + length * cell // width
        right = max(start_ms + length * (cell + 1) // width, left + 1)
        gap = sum(after - first for first, after in union.missing(left, right))
        cells.append(marks[0] if not gap else marks[2] if gap == right - left else marks[1])
    return "".join(cells)


def _show(number: str, seen: list[Seen], union: "IntervalSet", rows: int) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console()
    console.print(Text(f"Order {number}", style="bold"))
    if seen:
        console.print(_table(seen, rows))
    bounds = list(union)
    if not bounds:
        return
    start_ms, end_ms = bounds[0][0], bounds[-1][1]
    plain = "utf" not in (sys.stdout.encoding or "").lower()
    width = min(BAR_WIDTH, console.width - 2)
    console.print()
    console.print(Text(draw(union, start_ms, end_ms, width, "#+." if plain else "█▒·")))
    console.print(f"{human_time(start_ms)} to {human_time(end_ms)}: ", end="")
    console.print(f"{human_ms(union.measure)} proven of {human_ms(end_ms - start_ms)}")
    gaps = union.missing(start_ms, end_ms)
    for gap_start_ms, gap_end_ms in gaps[:10]:
        console.print(f"  gap {human_time(gap_start_ms)}, {human_ms(gap_end_ms - gap_start_ms)}")
    if len(gaps) > 10:
        console.print(f"  and {len(gaps) - 10} more gaps")


def _table(seen: list[Seen], rows: int) -> Any:
    """Return the records as a table: the first and the last ones if there are more than `rows`."""
    from rich.table import Table
    from rich.text import Text

    days = {human_time(ms)[:10] for each in seen for ms in (each.append_ms, each.start_ms or 0)}
    days.discard(human_time(0)[:10])
    skip = 11 if len(days) == 1 else 0  # characters: one day is told once, above
    title = f"{len(seen)} records in the log, times in UTC"
    table = Table(title=f"{title}, {min(days)}" if skip else title, title_justify="left", box=None)
    for name in ("place", "appended", "number", "start", "length", "", "verdict"):
        right = "right" if name in ("number", "length") else "left"
        table.add_column(name, justify=right, no_wrap=name != "verdict")  # type: ignore[arg-type]
    if not rows or len(seen) <= rows:
        head, tail = seen, []
    else:
        head, tail = seen[: rows - rows // 2], seen[len(seen) - rows // 2 :]
    for each in head:
        table.add_row(*(Text(cell) for cell in _cells(each, skip)))
    if hidden := len(seen) - len(head) - len(tail):
        table.add_row("…", "", "", "", "", "", f"{hidden} more, --rows 0 shows all")
    for each in tail:
        table.add_row(*(Text(cell) for cell in _cells(each, skip)))
    return table


def _cells(each: Seen, skip: int) -> tuple[str, ...]:
    known = each.start_ms is not None and each.end_ms is not None
    return (
        f"{each.partition}/{each.offset}",
        human_time(each.append_ms)[skip:],
        "" if each.number is None else str(each.number),
        human_time(each.start_ms)[skip:] if known and each.start_ms is not None else "",
        ""
        if each.end_ms is None or each.start_ms is None
        else f"{each.end_ms - each.start_ms:,} ms",
        "end" if each.end_identifier else "",
        each.verdict,
    )


def _show_live(live: dict[str, Any] | None, why_not: str) -> None:
    if live is None:
        print(f"\nLive state: {why_not}")
        return
    print(f"\nLive state: {live['phase']}, {human_ms(live['duration_ms'])}, ", end="")
    print(f"{live['segments']} segments, {live['duplicates']} repeats, ", end="")
    print(f"revision {live['revision']}, next deadline {human_time(live['deadline_ms'])}", end="")
    print(human_doubts(live["gap_ms"], live["numbers_after_end"]))
    if live["interim_deadline_ms"] is not None:
        print(f"  interim total at {human_time(live['interim_deadline_ms'])}")
    if live["missing_numbers"]:
        print(f"  missing: {_ranges(live['missing_numbers'])}")


def _show_totals(totals: list[Any], count: int, source: str) -> None:
    print(f"\n{count} totals in {source}")
    if count > len(totals):
        print(f"  the latest {len(totals)}; --rows 0 shows all")
    for total in totals:
        print(
            f"  revision {total.revision}  {total.status:10}  {human_ms(total.duration_ms)}"
            f" ({human_bound(total.upper_bound_ms)})  {total.segments} segments,"
            f" {total.duplicates} repeats, {human_ms(total.overlap_ms)} counted twice removed"
            f"{human_doubts(total.gap_ms, total.numbers_after_end)}"
        )
        missing = _ranges(total.missing_numbers)
        when = "as of" if total.status == "RUNNING" else "settled"
        print(
            f"    {when} {human_time(total.settled_at_ms)} at record"
            f" {total.source_partition}/{total.source_offset}, digest {total.digest[:16]}…"
            + (f", missing {missing}" if missing else "")
        )


def _ranges(ranges: Any) -> str:
    """Return number ranges as people write them: 3, 5-9."""
    texts = [str(first) if first == last else f"{first}-{last}" for first, last in ranges]
    return ", ".join(texts[:20]) + (f" and {len(texts) - 20} more" if len(texts) > 20 else "")
