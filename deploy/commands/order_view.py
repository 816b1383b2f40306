"""Shows an order to people: its records, its lives drawn over time, its state, its totals."""

import sys
from typing import Any

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from durabill.deploy.commands.order_log import Totals
from durabill.deploy.terminal import (
    counted,
    human_bound,
    human_doubts,
    human_ms,
    human_time,
    plain,
    shown,
)
from durabill.schemas.order_state import OrderState, Phase
from durabill.stream_processors.audit.story import Given, Life, Story, key_of
from durabill.stream_processors.audit.story_rows import Row
from durabill.stream_processors.audit.words import (
    cause_words,
    number_ranges,
    opening_lines,
    policy_lines,
)
from durabill.stream_processors.core.intervals import IntervalSet
from durabill.stream_processors.core.order import DEADLINE_OF

BAR_WIDTH = 72
GAPS_SHOWN = 10
VERDICT_WIDTH = 12
DAY_MS = 86_400_000
DAYS_MAX = 99


def show_story(story: Story, rows: int) -> None:
    """Show what the log tells: at most `rows` records, and lives; 0 shows all."""
    console = Console()
    console.print(Text(f"Order {shown(story.number)}, partition {story.partition}", style="bold"))
    print(*map(plain, opening_lines(story)), *policy_lines(story.basis), sep="\n")
    if story.rows:
        table = _table(story, rows)
        needed = sum(_width(column) for column in table.columns[:-1]) + VERDICT_WIDTH
        if console.width < needed:  # a terminal wraps lines, and a table would cut them
            table.width = needed
        console.print(table, crop=False)
    for note in story.notes:
        print(f"note: {note}")
    lives = story.lives[-rows:] if rows else story.lives
    if len(lives) < len(story.lives):
        print(f"\n{len(story.lives) - len(lives)} lives before, --rows 0 shows all")
    for life in lives:
        name = f"Life {life.life}" if len(story.lives) > 1 else "By the log"
        print(f"\n{name}: {_standing(life)}")
        _show_time(console, life.union)


# -- records ----------------------------------------------------------------------------------


def _table(story: Story, rows: int) -> Table:
    """Return the records as a table: the first and the last ones if there are more than `rows`."""
    found = story.rows
    first_ms = min(each.append_ms for each in found)
    title = f"{counted(len(found), 'record')} in the log, times in UTC, {human_time(first_ms)[:10]}"
    table = Table(title=title, title_justify="left", box=None)
    has_lives = len(story.lives) > 1
    for name in ("place", "appended", "number", "start", "length", "", "life", "verdict"):
        if name != "life" or has_lives:
            right = "right" if name in ("number", "length", "life") else "left"
            table.add_column(name, justify=right, no_wrap=name != "verdict")  # type: ignore[arg-type]
    if not rows or len(found) <= rows:
        head, tail = found, []
    else:
        head, tail = found[: rows - rows // 2], found[len(found) - rows // 2 :]
    completed = {each.offset for each in story.given.values() if each.deadline is None}

    def add(each: Row) -> None:
        completes = each.partition == story.partition and each.offset in completed
        cells = _cells(each, first_ms // DAY_MS, completes)
        if not has_lives:
            del cells[-2]
        table.add_row(*map(Text, cells))

    for each in head:
        add(each)
    if hidden := len(found) - len(head) - len(tail):
        blanks = [""] * (len(table.columns) - 2)
        table.add_row("…", *blanks, f"{hidden} more, --rows 0 shows all")
    for each in tail:
        add(each)
    return table


def _width(column: Column) -> int:
    """Return how wide a column is with its padding, uncut."""
    return max(len(str(each)) for each in (column.header, *column.cells)) + 2


def _time(ms: int, day: int) -> str:
    """Return a time of the day that stands above, or so many days before or after it."""
    later = ms // DAY_MS - day
    if abs(later) > DAYS_MAX:  # made up, as likely as not
        return human_time(ms)
    return human_time(ms)[11:] + (f" {later:+} d" if later else "")


def _cells(each: Row, day: int, completes: bool) -> list[str]:
    start_ms, end_ms = each.start_ms, each.end_ms
    return [
        f"{each.partition}/{each.offset}",
        _time(each.append_ms, day),
        "" if each.number is None else str(each.number),
        "" if start_ms is None else _time(start_ms, day),
        "" if start_ms is None or end_ms is None else f"{end_ms - start_ms:,} ms",
        "end" if each.end_identifier else "",
        str(each.life or ""),
        _verdict(each, completes),
    ]


def _verdict(each: Row, completes: bool) -> str:
    words = each.verdict
    if each.detail:
        words += f" ({each.detail})"
    if each.dead_letter:
        words += f", dead letter {each.dead_letter}"
    if each.forwarded_from:
        words += f", sent on from {each.forwarded_from}"
    if each.reopens:
        words += ", reopens it"
    return words + (", completes it" if completes else "")


# -- lives ------------------------------------------------------------------------------------


def _standing(life: Life) -> str:
    if life.state is not None:
        return state_words(life.state)
    accepted = f"{counted(life.accepted, 'record')} taken in"
    assert life.forgotten_at_ms is not None
    return f"forgotten after {human_time(life.forgotten_at_ms)}, {accepted}"


def state_words(state: OrderState) -> str:
    """Return where an order stands, and until when if nothing comes."""
    deadline = DEADLINE_OF[state.phase]
    what = "forgotten after" if state.phase is Phase.SETTLED else f"{deadline} passes at"
    if not state.segments:
        return f"OPENED, no segment yet, forgotten after {human_time(state.deadline_ms)}"
    return (
        f"{state.phase}, {human_ms(state.duration_ms)}, {counted(state.segments, 'segment')},"
        f" {counted(state.duplicates, 'repeat')}, revision {state.revision},"
        f" {what} {human_time(state.deadline_ms)}"
        f"{human_doubts(state.gap_ms, state.numbers_after_end)}"
    )


def _show_time(console: Console, union: IntervalSet) -> None:
    bounds = list(union)
    if not bounds:
        return
    start_ms, end_ms = bounds[0][0], bounds[-1][1]
    is_plain = "utf" not in (sys.stdout.encoding or "").lower()
    width = min(BAR_WIDTH, console.width - 2)
    print(draw(union, start_ms, end_ms, width, "#+." if is_plain else "█▒·"))
    print(f"{human_time(start_ms)} to {human_time(end_ms)}: ", end="")
    print(f"{human_ms(union.measure)} proven of {human_ms(end_ms - start_ms)}")
    gaps = union.missing(start_ms, end_ms)
    for gap_start_ms, gap_end_ms in gaps[:GAPS_SHOWN]:
        print(f"  gap {human_time(gap_start_ms)}, {human_ms(gap_end_ms - gap_start_ms)}")
    if len(gaps) > GAPS_SHOWN:
        print(f"  and {counted(len(gaps) - GAPS_SHOWN, 'more gap')}")


def draw(union: IntervalSet, start_ms: int, end_ms: int, width: int, marks: str = "█▒·") -> str:
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


def show_live(live: OrderState | None, why_not: str) -> None:
    """Show what the order's worker says of it now."""
    print(f"\nLive state: {why_not if live is None else state_words(live)}")
    if live is None:
        return
    if live.opened is not None:
        until = human_time(live.opened.accept_until_ms)
        print(f"  opened by tenant {shown(live.opened.tenant)}, accepted until {until}")
    if live.interim_deadline_ms is not None:
        print(f"  interim total at {human_time(live.interim_deadline_ms)}")
    if live.missing_numbers:
        print(f"  missing: {number_ranges(live.missing_numbers)}")


# -- totals -----------------------------------------------------------------------------------


def show_totals(story: Story, totals: Totals, rows: int) -> None:
    """Show the published totals, what the ledger has set aside, and what is still to come."""
    aside = totals.set_aside or []
    told = f", {len(aside):,} set aside" if aside else ""
    print(f"\n{counted(totals.count, 'total')} in {totals.source}{told}")
    if totals.count > len(totals.found):
        print(f"  the latest {len(totals.found)}; --rows 0 shows all")
    for total in totals.found:
        _show_total(story, total)
    for total in aside[-rows:] if rows else aside:
        _show_total(story, total)
        print(f"    set aside: another total of revision {total.revision} was recorded before it")
    if totals.count > len(totals.found):
        return
    published = {key_of(each) for each in (*totals.found, *aside)}
    waiting = [each for key, each in story.given.items() if key not in published]
    for given in waiting[-rows:] if rows else waiting:
        print(
            f"  revision {given.revision}  {given.status:10}  {human_ms(given.duration_ms)}"
            f"  by the log, not found there\n    {_cause(story, given)}"
        )


def _show_total(story: Story, total: Any) -> None:
    print(
        f"  revision {total.revision}  {total.status:10}  {human_ms(total.duration_ms)}"
        f" ({human_bound(total.upper_bound_ms)})  {counted(total.segments, 'segment')},"
        f" {counted(total.duplicates, 'repeat')},"
        f" {human_ms(total.overlap_ms)} counted twice removed"
        f"{human_doubts(total.gap_ms, total.numbers_after_end)}"
    )
    missing = number_ranges(total.missing_numbers)
    when = "as of" if total.status == "RUNNING" else "settled"
    print(
        f"    {when} {human_time(total.settled_at_ms)} at record"
        f" {total.source_partition}/{total.source_offset}, digest {total.digest[:16]}…"
        + (f", missing {missing}" if missing else "")
    )
    given = story.given.get(key_of(total))
    print(f"    {_cause(story, given) if given else 'the log gives no such total by this policy'}")


def _cause(story: Story, given: Given) -> str:
    """Return which life a revision is of, and what caused it: a record, or a deadline."""
    life = f"life {given.life}: " if len(story.lives) > 1 else ""
    return life + cause_words(given, story)
