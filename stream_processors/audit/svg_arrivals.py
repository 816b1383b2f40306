"""Draws when one life's records arrived, in which states the order was, and its revisions."""

import math
from collections.abc import Sequence

from durabill.schemas.text import counted, human_ms, human_time
from durabill.stream_processors.audit.markup import Markup, element
from durabill.stream_processors.audit.story import FORGOTTEN, Given, StateChange, Story
from durabill.stream_processors.audit.story_rows import Row
from durabill.stream_processors.audit.svg_kit import (
    CHARACTER_WIDTH,
    COLUMNS,
    LEFT,
    MARGIN,
    PLOT_WIDTH,
    axis,
    box,
    boxes,
    fits,
    label,
    line,
    number,
)
from durabill.stream_processors.audit.svg_records import SINGLE_MAX, hint_of
from durabill.stream_processors.audit.timeline import Scale, counts, scale_of, short_ms
from durabill.stream_processors.audit.words import cause_words

ARRIVALS_HEIGHT = 34
FLAG_ROWS = 5
FLAG_STEP = 17
FLAGS_MAX = 300
"""So many revisions get a flag of their own: the first and the last ones."""


def draw_arrivals(
    story: Story, life: int, rows: Sequence[Row], top: float
) -> tuple[list[Markup], float]:
    """Return the drawing of a life's arrivals, states and revisions, and where it ends."""
    given = [each for each in story.given.values() if each.life == life]
    states = [each for each in story.states if each.life == life]
    instants = [each.arrival_ms for each in rows]
    instants += [each.settled_at_ms for each in given]
    instants += [each.at_ms for each in states if each.phase != FORGOTTEN]
    found = [label(MARGIN, top, "2 · When it arrived, and what followed", "s-h2")]
    if not instants:
        return found, top
    scale = scale_of(min(instants), max(instants), LEFT, PLOT_WIDTH)
    top += 52
    body: list[Markup] = []
    y = _arrivals(body, scale, rows, top + 8)
    if states:
        y = _states(body, scale, states, y + 8)
    if given:
        y = _revisions(body, scale, story, given, y + 6)
    return [*found, *axis(scale, top, y), *body], y


def _arrivals(body: list[Markup], scale: Scale, rows: Sequence[Row], top: float) -> float:
    bottom = top + ARRIVALS_HEIGHT
    body.append(label(LEFT - 10, top + 20, "arrivals", "s-s", "end"))
    groups = (
        ("s-added", [row for row in rows if row.gained_ms or (row.counts and row.is_new_number)]),
        ("s-again", [row for row in rows if row.counts and not row.gained_ms]),
        ("s-bad-box", [row for row in rows if row.reason is not None]),
    )
    if len(rows) <= SINGLE_MAX:
        for at, (look, group) in enumerate(groups):
            for row in group:
                hint = f"{human_time(row.arrival_ms)}: {hint_of(row)}"
                body.append(box(scale.x(row.arrival_ms) - 1, top + 4 + 9 * at, 2.2, 10, look, hint))
        return bottom
    edges = scale.edges(COLUMNS)
    columns = [counts((row.arrival_ms for row in group), edges) for _, group in groups]
    most = max(map(sum, zip(*columns, strict=True)))
    base = [bottom] * COLUMNS
    for (look, _), column in zip(groups, columns, strict=True):
        shapes = []
        for at, count in enumerate(column):
            if count:
                tall = ARRIVALS_HEIGHT * math.log2(1 + count) / math.log2(1 + most)
                tall = min(max(tall, 2.0), base[at] - top)
                base[at] -= tall
                shapes.append((float(LEFT + at), base[at], 1.0, tall))
        look = look.replace("s-again", "s-again-run")
        body += filter(None, (boxes(shapes, look),))
    body.append(label(LEFT - 10, top + 33, f"{most:,} a pixel at most", "s-s s-m", "end"))
    return bottom


def _states(body: list[Markup], scale: Scale, states: Sequence[StateChange], top: float) -> float:
    """Draw the order's states; beyond what can be seen, one a pixel column, which began last."""
    body.append(label(LEFT - 10, top + 14, "state", "s-s", "end"))
    right = scale.left + scale.width
    starts = [scale.x(each.at_ms) for each in states]
    ends = [*starts[1:], float(right)]
    for each, x, x_to in zip(states, starts, ends, strict=True):
        if each.phase == FORGOTTEN or (len(states) > SINGLE_MAX and x_to - x < 1):
            continue
        hint = f"{each.phase} from {human_time(each.at_ms)} on: {cause_words(each)}"
        body.append(box(x, top, max(x_to - x, 1), 20, f"s-{each.phase}", hint))
        name = each.phase
        if fits(name, x_to - x):
            body.append(label(x + 5, top + 14, name, "s-s"))
    if states[-1].phase == FORGOTTEN:
        words = f"forgotten after {human_time(states[-1].at_ms)}"
        body.append(label(right - 4, top + 14, words, "s-s s-m", "end"))
    return top + 22


def _revisions(
    body: list[Markup], scale: Scale, story: Story, given: Sequence[Given], top: float
) -> float:
    """Draw a dot for each revision, and its text in one of a few rows, where there is room."""
    body.append(label(LEFT - 10, top + 12, "revisions", "s-s", "end"))
    shown = given
    if len(given) > FLAGS_MAX:
        shown = [*given[: FLAGS_MAX // 2], *given[-FLAGS_MAX // 2 :]]
    texts = [f"{each.revision}: {each.status} {short_ms(each.duration_ms)}" for each in shown]
    flags = [
        (scale.x(each.settled_at_ms), len(text) * CHARACTER_WIDTH + 10)
        for each, text in zip(shown, texts, strict=True)
    ]
    right = scale.left + scale.width
    rows = next(
        (
            found
            for count in range(1, FLAG_ROWS + 1)
            if None not in (found := flag_rows(flags, right, count)) or count == FLAG_ROWS
        ),
    )
    dots, y = [], top + 8
    for each, text, (x, width), row in zip(shown, texts, flags, rows, strict=True):
        hint = (
            f"revision {each.revision}, {each.status}, {human_ms(each.duration_ms)}, settled at"
            f" {human_time(each.settled_at_ms)}: {cause_words(each, story)}"
        )
        title = element("title", hint)
        dots.append(element("circle", title, cx=number(x), cy=number(y), r="4.5", class_="s-dot"))
        body.append(line(x, top - 26, x, y, "s-rev"))
        if row is not None:
            text_y = y + 18 + FLAG_STEP * row
            body.append(line(x, y, x, text_y, "s-rev-thin"))
            is_left = x + width > right
            body.append(
                label(x + (-4 if is_left else 4), text_y, text, "s-s", "end" if is_left else None)
            )
    body += dots
    bottom = y + 22 + FLAG_STEP * max((row for row in rows if row is not None), default=0)
    untold = len(given) - sum(row is not None for row in rows)
    if untold:
        words = f"{counted(len(given), 'revision')}, {untold:,} of them without room for their text"
        body.append(label(LEFT + 4, bottom + 12, words, "s-s s-m"))
        bottom += 16
    return bottom


def flag_rows(flags: Sequence[tuple[float, float]], right: float, rows: int) -> list[int | None]:
    """Return for each flag (x, width) the row of its text, None where there is no room for it.

    The flags come from left to right; the last one's text is always there. No two texts meet, and
    no pole crosses a text: it hangs down from the top, so at its place the rows above its own are
    free too.
    """
    free_from = [0.0] * rows
    found: list[int | None] = []
    *others, last = flags
    last_begin, last_after = _span(*last, right)
    for x, width in others:
        begin, after = _span(x, width, right)
        passable = next((at for at in range(rows) if free_from[at] > x), rows)
        fitting = (at for at in range(min(passable, rows - 1), -1, -1) if free_from[at] <= begin)
        row = next(fitting, None)
        if (row == 0 and after > last_begin) or last_begin - 2 <= x <= last_after + 2:
            row = None
        if row is not None:
            for above in range(row):
                free_from[above] = x + 2
            free_from[row] = after
        found.append(row)
    return [*found, 0]


def _span(x: float, width: float, right: float) -> tuple[float, float]:
    """Return from where to where a flag's text goes: to the left of it if there is no room."""
    return (x - width, x + 4) if x + width > right else (x, x + width)
