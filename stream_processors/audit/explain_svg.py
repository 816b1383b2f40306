"""An order as a picture: its records over time, their union, its states and its revisions.

One SVG without scripts, fonts or references: it can be opened by itself, or stand in a page. Its
size has a bound, however many records, pieces, states and revisions there are.
"""

from durabill.schemas.order_state import Phase
from durabill.schemas.text import counted, human_ms, shown
from durabill.stream_processors.audit.markup import Markup, element, joined
from durabill.stream_processors.audit.story import Given, Life, Story
from durabill.stream_processors.audit.story_rows import Row
from durabill.stream_processors.audit.svg_arrivals import draw_arrivals
from durabill.stream_processors.audit.svg_kit import (
    DEFINITIONS,
    LEFT,
    MARGIN,
    STYLE,
    WIDTH,
    box,
    label,
    line,
    number,
)
from durabill.stream_processors.audit.svg_records import draw_records
from durabill.stream_processors.audit.words import bound_words, number_ranges

LIVES_MAX = 4
"""So many lives of a number are drawn, the latest ones."""


def svg_of(story: Story) -> str:
    """Return the picture as a file of its own."""
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{picture_of(story)}\n'


def picture_of(story: Story) -> Markup:
    """Return the picture as an element."""
    body: list[Markup] = [label(MARGIN, 34, f"Order {shown(story.number)}", "s-h")]
    body.append(label(MARGIN, 54, _counts(story), "s-m"))
    y = 78.0
    lives = story.lives[-LIVES_MAX:]
    if len(lives) < len(story.lives):
        words = f"{len(story.lives) - len(lives)} lives before these are not drawn"
        body.append(label(MARGIN, y, words, "s-m"))
        y += 22
    for life in lives:
        rows = [row for row in story.rows if row.life == life.life]
        if len(story.lives) > 1:
            body.append(line(MARGIN, y, WIDTH - MARGIN, y, "s-axis"))
            body.append(label(MARGIN, y + 24, f"Life {life.life} of this number", "s-h2"))
            y += 44
        y = _draw_life(body, story, life, rows, y)
    if not lives:
        body.append(label(MARGIN, y + 10, "No record of this order counts.", "s-h2"))
        shapes, y = draw_arrivals(story, 0, story.rows, y + 48)
        body += shapes
    y = _legend(body, y + 34)
    title = f"Order {shown(story.number)}: its records, their union, its states and revisions"
    return element(
        "svg",
        element("title", title),
        element("style", Markup(STYLE)),
        DEFINITIONS,
        box(0, 0, WIDTH, y, "s-bg"),
        Markup("\n"),
        joined(*body),
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {WIDTH} {number(y)}",
        width=WIDTH,
        height=number(y),
        role="img",
    )


def _counts(story: Story) -> str:
    rejected = sum(row.reason is not None for row in story.rows)
    counting = sum(row.counts for row in story.rows)
    others = len(story.rows) - counting - rejected
    return (
        f"partition {story.partition} · {counted(len(story.rows), 'record')} received:"
        f" {counting:,} taken in, {counted(rejected, 'dead letter')}"
        + (f", {others:,} sent on or passed over" if others else "")
        + " · all times in UTC"
    )


def _draw_life(body: list[Markup], story: Story, life: Life, rows: list[Row], top: float) -> float:
    given = [each for each in story.given.values() if each.life == life.life]
    body.append(label(MARGIN, top + 6, _verdict(life, given[-1] if given else None), "s-h2"))
    y = top + 26
    if missing := life.missing_numbers:
        words = f"numbers that never arrived: {number_ranges(missing, 12)}"
        body.append(label(MARGIN, y, words, "s-bad"))
        y += 20
    shapes, y = draw_records(life, rows, y + 16)
    body += shapes
    shapes, y = draw_arrivals(story, life.life, rows, y + 36)
    body += shapes
    return y + 20


def _verdict(life: Life, latest: Given | None) -> str:
    proven = f"{human_ms(life.union.measure)} proven"
    if latest is None:
        return f"{proven}, no total yet"
    words = f"{proven} · {latest.status}, revision {latest.revision}"
    if life.state is not None and life.state.phase is not Phase.SETTLED:
        words += f" · {life.state.phase} now: a further total follows"
    if latest.upper_bound_ms != latest.duration_ms:
        words += f" · upper bound {bound_words(latest.upper_bound_ms)}"
    return words


def _legend(body: list[Markup], top: float) -> float:
    x = float(LEFT)
    entries = (
        ("s-added", "adds time"),
        ("s-again", "time that was counted already"),
        ("s-bad-box", "dead letter: doesn't count"),
        ("s-union", "proven"),
        ("s-gap", "gap: in no record"),
    )
    for look, words in entries:
        body.append(box(x, top - 10, 22, 12, look))
        body.append(label(x + 28, top, words, "s-s"))
        x += 28 + len(words) * 6 + 24
    body.append(line(x, top - 12, x, top + 3, "s-end"))
    body.append(label(x + 7, top, "end identifier", "s-s"))
    x += 110
    body.append(element("circle", cx=number(x), cy=number(top - 4), r="4.5", class_="s-dot"))
    body.append(label(x + 9, top, "revision", "s-s"))
    x = float(LEFT)
    for phase, words in _PHASES.items():
        text = f"{phase}: {words}"
        body.append(box(x, top + 10, 22, 12, f"s-{phase}"))
        body.append(label(x + 28, top + 20, text, "s-s"))
        x += 28 + len(text) * 6 + 20
    return top + 40


_PHASES = {
    Phase.OPEN: "goes on",
    Phase.ENDED: "end seen, waits for what is missing",
    Phase.SETTLED: "its total stands",
    Phase.REOPENED: "new evidence came, a new total follows",
}
