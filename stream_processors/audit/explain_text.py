"""An order explained in plain text, for a terminal: every record, state and revision, and why."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

from durabill.schemas.text import counted, human_ms, human_time, plain, shown
from durabill.stream_processors.audit.story import Life, Story
from durabill.stream_processors.audit.story_rows import Row
from durabill.stream_processors.audit.words import (
    Published,
    bound_words,
    cause_words,
    missing_words,
    opening_lines,
    origin_words,
    pieces_words,
    policy_lines,
    standing_words,
    verdict_words,
)

GAPS_SHOWN = 20

_Each = TypeVar("_Each")


def lines_of(story: Story, rows_max: int, published: Published | None) -> Iterator[str]:
    """Yield the explanation a line each: at most `rows_max` records and revisions; 0: all.

    `published` says which revisions were found where totals are published, None if nobody looked.
    """
    yield f"Order {shown(story.number)}, partition {story.partition}; all times in UTC"
    yield from map(plain, opening_lines(story))
    yield from policy_lines(story.basis)
    for note in story.notes:
        yield plain(f"note: {note}")
    yield ""
    yield f"{counted(len(story.rows), 'record')} received"
    yield from _few(story.rows, rows_max, _record)
    for life in story.lives:
        yield ""
        yield from _life(story, life, rows_max, published)
    if published is not None:
        for total in published.strangers:
            yield plain(
                f"note: revision {total.revision} in {published.source},"
                f" {human_ms(total.duration_ms)} {total.status}, is none that the log gives by"
                " these policies"
            )


def _record(row: Row) -> Iterator[str]:
    end = " end" if row.end_identifier else ""
    what = "an opening" if row.is_opening else "not legible"
    if row.number is not None and row.start_ms is not None and row.end_ms is not None:
        length_ms = row.end_ms - row.start_ms
        what = f"number {row.number}{end}, {human_time(row.start_ms)} + {length_ms:,} ms"
    when = human_time(row.append_ms)
    if row.arrival_ms != row.append_ms:
        when += f" (the partition's clock: {human_time(row.arrival_ms)})"
    life = f" [life {row.life}]" if row.life > 1 else ""
    yield f"  {row.partition}/{row.offset}  appended {when}  {what}{life}"
    yield plain(f"      {verdict_words(row)}")
    if row.counts and row.start_ms is not None and row.end_ms is not None:
        whole_ms = row.end_ms - row.start_ms
        yield (
            f"      adds {pieces_words(row.gained, whole_ms)};"
            f" counted already {pieces_words(row.counted_before, whole_ms)}"
        )
    if origin := origin_words(row):
        yield f"      {origin}"


def _life(story: Story, life: Life, rows_max: int, published: Published | None) -> Iterator[str]:
    name = f"Life {life.life}" if len(story.lives) > 1 else "By the log"
    yield f"{name}: {human_ms(life.union.measure)} proven; {standing_words(life)}"
    yield (
        f"  {counted(life.accepted, 'record')} taken in, {human_ms(life.length_sum_ms)} together,"
        f" {human_ms(life.length_sum_ms - life.union.measure)} of it counted twice and removed"
    )
    for sentence in missing_words(life):
        yield f"  ! {sentence}"
    gaps = life.gaps
    for start_ms, end_ms in gaps[:GAPS_SHOWN]:
        yield f"    gap {human_time(start_ms)}, {human_ms(end_ms - start_ms)}"
    if len(gaps) > GAPS_SHOWN:
        yield f"    and {counted(len(gaps) - GAPS_SHOWN, 'more gap')}"
    states = [each for each in story.states if each.life == life.life]
    yield "  States"
    yield from _few(
        states,
        rows_max,
        lambda each: [f"    {human_time(each.at_ms)}  {each.phase:10} {cause_words(each, story)}"],
    )
    given = [each for each in story.given.values() if each.life == life.life]
    where = "" if published is None else f", looked up in {published.source}"
    yield f"  {counted(len(given), 'revision')}{where}"
    yield from _few(
        given,
        rows_max,
        lambda each: [
            f"    {each.revision}  {each.status:10}  {human_ms(each.duration_ms)}"
            f" (upper bound {bound_words(each.upper_bound_ms)})"
            f"  {human_time(each.settled_at_ms)}"
            + ("" if published is None else f", {published.says(each)}"),
            f"       {cause_words(each, story)}; digest {each.digest[:16]}…",
        ],
    )


def _few(
    found: Sequence[_Each], most: int, lines: Callable[[_Each], Iterable[str]]
) -> Iterator[str]:
    """Yield the lines of each, or those of the first and the last ones if there are too many."""
    head = found if not most or len(found) <= most else found[: most - most // 2]
    for each in head:
        yield from lines(each)
    if hidden := len(found) - len(head):
        tail = most // 2
        yield f"  … {hidden - tail:,} more, --rows 0 shows all"
        for each in found[len(found) - tail :]:
            yield from lines(each)
