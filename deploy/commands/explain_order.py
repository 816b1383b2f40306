"""`durabill explain NUMBER`: why an order comes to what it comes to, record by record."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from durabill.deploy.commands.common import (
    AS_JSON,
    CONNECTION,
    REGISTRY,
    TOPICS,
    located,
    with_settings,
)
from durabill.deploy.terminal import emit, progress_bars, say, shown

if TYPE_CHECKING:
    from durabill.stream_processors.audit.story import Story
    from durabill.stream_processors.audit.words import Published
    from durabill.stream_processors.settings import Settings


@with_settings(*CONNECTION, *TOPICS, *REGISTRY, "ledger_dsn", "archive_dir")
def explain(
    settings: "Settings",
    number: Annotated[str, typer.Argument(help="The service order number.")],
    svg: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw the order into this file.")
    ] = None,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a page for a dispute to this file.")
    ] = None,
    everywhere: Annotated[
        bool, typer.Option("--everywhere", help="Look for records in wrong partitions as well.")
    ] = False,
    rows: Annotated[
        int, typer.Option(min=0, help="Tell at most so many records, and revisions; 0 tells all.")
    ] = 0,
    as_json: AS_JSON = False,
) -> None:
    """Explain an order: what each record did to its total, and why each total was given.

    Told are: every record that was received, with its place, its arrival and where it came from;
    the verdict on it by the billing rules themselves; which of its milliseconds it added, and which
    were counted already; what is missing; each state the order was in; each revision, with the
    record or the deadline that caused it, and whether it was published. The picture (--svg) has the
    records over time above their union. The page (--html) has all of it in words for somebody who
    doesn't know Durabill; it is one file that can be printed and mailed. A file that is there is
    replaced. Reads the order's partition from its start. Exit code 1 if the log has no record of
    the order.

        durabill explain 01J9ZK3V5Q8W7N2M4R6T8Y0ABC --html dispute.html --svg order.svg
    """
    from durabill.deploy.commands.order_log import read_story, read_totals
    from durabill.stream_processors.audit.report_file import check_report_path
    from durabill.stream_processors.audit.words import published_of

    for path in (svg, html):
        if path is not None:
            check_report_path(path)
    settings = located(settings, "bootstrap_servers", ledger=True, role="order")
    with progress_bars(quiet=as_json) as progress:
        story = read_story(settings, number, everywhere, progress)
    totals = read_totals(settings, number, None, whole=False)
    published = published_of(totals.source, [*totals.found, *(totals.set_aside or [])], story)
    if as_json:
        from durabill.stream_processors.audit.story_json import explained

        emit(explained(story, settings.segments_topic, published))
    elif story.rows:
        from durabill.stream_processors.audit.explain_text import lines_of

        print("\n".join(lines_of(story, rows, published)))
    if not story.rows:
        say(f"The log has no record of order {shown(number)}.")
        raise typer.Exit(1)
    _write(settings, story, published, svg, html, rows)


def _write(
    settings: "Settings",
    story: "Story",
    published: "Published",
    svg: Path | None,
    html: Path | None,
    rows: int,
) -> None:
    """Write the files that were asked for."""
    from durabill.stream_processors.audit.explain_html import html_of
    from durabill.stream_processors.audit.explain_svg import svg_of
    from durabill.stream_processors.audit.report_file import write_report_file

    if svg is not None:
        write_report_file(svg, svg_of(story))
        say(f"wrote the picture to {shown(str(svg))}")
    if html is not None:
        write_report_file(html, html_of(story, settings.segments_topic, rows, published))
        say(f"wrote the page to {shown(str(html))}")
