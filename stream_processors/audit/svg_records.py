"""Draws one life's records over the time that they report, and their union below.

Few records are drawn one by one, in lanes. Many are gathered by pixel column: in their lanes as
long as few lie over each other, else as how many lie over each other. So the drawing's size has a
bound, whatever a client sends.
"""

import math
from collections.abc import Sequence

from durabill.schemas.text import counted, human_ms, human_time
from durabill.stream_processors.audit.markup import Markup
from durabill.stream_processors.audit.story import Life
from durabill.stream_processors.audit.story_rows import Row
from durabill.stream_processors.audit.svg_kit import (
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
)
from durabill.stream_processors.audit.timeline import (
    Piece,
    Scale,
    coverage,
    depth_max,
    lanes_of,
    runs,
    scale_of,
    shares,
    short_ms,
)

LANES_MAX = 16
SINGLE_MAX = 400
"""So many records (each with one piece that it adds), or pieces of a union, are drawn singly."""

GATHERED_FINE_MAX = 4
"""With more lanes than that, many records are gathered by two pixels."""

LANE_HEIGHT = 15
LANE_STEP = 18
DEPTH_HEIGHT = 130
UNION_HEIGHT = 26


def draw_records(life: Life, rows: Sequence[Row], top: float) -> tuple[list[Markup], float]:
    """Return the drawing of a life's records, from `top` down, and where it ends."""
    counting = [each for each in rows if each.counts]
    pieces = [piece_of(each) for each in counting]
    scale = scale_of(life.started_ms, life.ended_ms, LEFT, PLOT_WIDTH)
    lanes = lanes_of(pieces, LANES_MAX)
    found = [label(MARGIN, top, "1 · The time that the records report", "s-h2")]
    top += 52
    body: list[Markup] = []
    if lanes is None:
        y = _depths(body, scale, pieces, life, top + 8)
    elif sum(1 + len(each.gained) for each in counting) <= 2 * SINGLE_MAX:
        y = _single(body, scale, counting, lanes, top + 8)
    else:
        y = _gathered(body, scale, counting, lanes, top + 8)
    y = _rejected(body, scale, rows, y + 8)
    ends = [each.end_ms or 0 for each in counting if each.end_identifier]
    y = _union(body, scale, life, max(ends, default=None), y + 10)
    return [*found, *axis(scale, top, y - 20), *body], y


def piece_of(row: Row) -> Piece:
    """Return the time of a record that counts."""
    assert row.start_ms is not None
    assert row.end_ms is not None
    return row.start_ms, row.end_ms


def hint_of(row: Row) -> str:
    """Return what is told of a record where the mouse is on it."""
    end = ", end" if row.end_identifier else ""
    return (
        f"record {row.partition}/{row.offset}, number {row.number}{end}:"
        f" {human_time(row.start_ms or 0)} to {human_time(row.end_ms or 0)}; {row.verdict}"
    )


def _single(
    body: list[Markup], scale: Scale, rows: Sequence[Row], lanes: Sequence[int], top: float
) -> float:
    body.append(label(LEFT - 10, top + 12, "records, as received", "s-s", "end"))
    for row, lane in zip(rows, lanes, strict=True):
        start_ms, end_ms = piece_of(row)
        y, x = top + LANE_STEP * lane, scale.x(start_ms)
        width = max(scale.x(end_ms) - x - 0.8, 1.2)
        body.append(box(x, y, width, LANE_HEIGHT, "s-again", hint_of(row)))
        for gained in row.gained:
            left = scale.x(gained[0])
            gained_width = max(scale.x(gained[1]) - left - 0.8, 1.2)
            body.append(box(left, y, gained_width, LANE_HEIGHT, "s-added", hint_of(row)))
        name = str(row.number)
        if fits(name, width):
            look = "s-s s-w" if row.gained and row.gained[0][0] == start_ms else "s-s s-d"
            body.append(label(x + 4, y + 11.5, name, look))
        if row.end_identifier:
            right = max(scale.x(end_ms), x + 1.2)
            body.append(line(right, y - 1.5, right, y + LANE_HEIGHT + 1.5, "s-end"))
    return top + LANE_STEP * (max(lanes, default=0) + 1)


def _gathered(
    body: list[Markup], scale: Scale, rows: Sequence[Row], lanes: Sequence[int], top: float
) -> float:
    """Draw many records in few lanes: a column is as high as its share that is in a record."""
    count = max(lanes, default=0) + 1
    pixels = 1 if count <= GATHERED_FINE_MAX else 2
    edges = scale.edges(COLUMNS // pixels)
    body.append(label(LEFT - 10, top + 12, f"{counted(len(rows), 'record')},", "s-s", "end"))
    body.append(label(LEFT - 10, top + 26, "gathered by pixel", "s-s", "end"))
    added, again = [], []
    for lane in range(count):
        own = [row for row, at in zip(rows, lanes, strict=True) if at == lane]
        new = shares((piece for row in own for piece in row.gained), edges, LANE_HEIGHT)
        both = shares(map(piece_of, own), edges, LANE_HEIGHT)
        bottom = top + LANE_STEP * lane + LANE_HEIGHT
        for first, after, look in runs(
            [low * 99 + all_ for low, all_ in zip(new, both, strict=True)]
        ):
            low, all_ = divmod(look, 99)
            x, width = LEFT + pixels * first, pixels * (after - first)
            if all_ > low:
                again.append((x, bottom - all_, width, all_ - low))
            if low:
                added.append((x, bottom - low, width, low))
    body += filter(None, (boxes(again, "s-again-run"), boxes(added, "s-added")))
    return top + max(LANE_STEP * count, 30)


def _depths(
    body: list[Markup], scale: Scale, pieces: Sequence[Piece], life: Life, top: float
) -> float:
    """Draw how many records lie over each other, a column a pixel: by the logarithm, if many."""
    edges = scale.edges(COLUMNS)
    deepest = depth_max(pieces)
    bottom = top + DEPTH_HEIGHT
    is_log = deepest > 12

    def height(depth: float) -> float:
        share = math.log2(1 + depth) / math.log2(1 + deepest) if is_log else depth / deepest
        return DEPTH_HEIGHT * min(share, 1.0)

    added, again = [], []
    union = coverage(life.union, edges)
    for at, all_ms in enumerate(coverage(pieces, edges)):
        column_ms = edges[at + 1] - edges[at]
        if all_ms and column_ms:
            tall, low = height(all_ms / column_ms), height(union[at] / column_ms)
            again.append((LEFT + at, bottom - tall, 1, tall - low))
            added.append((LEFT + at, bottom - low, 1, low))
    body += filter(None, (boxes(again, "s-again-run"), boxes(added, "s-added")))
    body.append(line(LEFT, bottom, LEFT + PLOT_WIDTH, bottom, "s-axis"))
    marks = [1]
    while marks[-1] * (4 if is_log else 2) <= deepest:
        marks.append(marks[-1] * (4 if is_log else 2))
    for mark in marks:
        y = bottom - height(mark)
        body.append(line(LEFT - 4, y, LEFT, y, "s-axis"))
        body.append(label(LEFT - 8, y + 4, f"{mark:,}", "s-s s-m", "end"))
    words = f"{counted(len(pieces), 'record')}, up to {deepest:,} over each other"
    body.append(label(LEFT + 6, top + 4, f"{words}; gathered by pixel", "s-s"))
    return bottom


def _rejected(body: list[Markup], scale: Scale, rows: Sequence[Row], top: float) -> float:
    """Draw the time of dead letters, as far as it could be read and lies on the axis."""
    found = [row for row in rows if row.reason is not None]
    if not found:
        return top - 8
    timed = [
        (row.start_ms, max(row.end_ms, row.start_ms), row)
        for row in found
        if row.start_ms is not None and row.end_ms is not None
    ]
    seen = [each for each in timed if each[0] < scale.to_ms and each[1] >= scale.from_ms]
    name = counted(len(found), "dead letter")
    body.append(label(LEFT - 10, top + 11, name, "s-s s-bad", "end"))
    if len(seen) <= SINGLE_MAX:
        for start_ms, end_ms, row in seen:
            x = scale.x(start_ms)
            width = max(scale.x(end_ms) - x, 1.5)
            body.append(box(x, top, width, 13, "s-bad-box", hint_of(row)))
    else:
        filled = coverage([each[:2] for each in seen], scale.edges(COLUMNS))
        shapes = [
            (float(LEFT + first), top, float(after - first), 13.0)
            for first, after, is_full in runs([int(each > 0) for each in filled])
            if is_full
        ]
        body += filter(None, (boxes(shapes, "s-bad-box"),))
    if len(seen) < len(found):
        words = f"{len(found) - len(seen):,} outside the time drawn here, or with no legible time"
        y = top + 27 if seen else top + 11
        body.append(label(LEFT + 4, y, words, "s-s s-bad"))
        return y + 6
    return top + 16


def _union(
    body: list[Markup], scale: Scale, life: Life, end_seen_ms: int | None, top: float
) -> float:
    """Draw the time that is proven, and hatch what no record covers."""
    body.append(label(LEFT - 10, top + 12, "union: what counts,", "s-s s-b", "end"))
    body.append(label(LEFT - 10, top + 25, "each ms once", "s-s s-b", "end"))
    gaps = life.gaps
    if len(life.union) <= SINGLE_MAX:
        for start_ms, end_ms in life.union:
            words = f"{human_time(start_ms)} to {human_time(end_ms)}: {human_ms(end_ms - start_ms)}"
            _piece(body, scale, (start_ms, end_ms), top, "s-union", words)
        for start_ms, end_ms in gaps:
            words = (
                f"gap, {human_time(start_ms)} to {human_time(end_ms)}:"
                f" {human_ms(end_ms - start_ms)} in no record"
            )
            _piece(body, scale, (start_ms, end_ms), top, "s-gap", words)
    else:
        _gathered_union(body, scale, life, top)
    bottom = top + UNION_HEIGHT
    if end_seen_ms is not None:
        x = scale.x(end_seen_ms)
        body.append(line(x, top - 3, x, bottom + 3, "s-end"))
    gap_ms = life.ended_ms - life.started_ms - life.union.measure
    words = f"{human_ms(life.union.measure)} proven of {human_ms(life.ended_ms - life.started_ms)}"
    words += f"; {human_ms(gap_ms)} in {counted(len(gaps), 'gap')}" if gaps else "; no gap"
    body.append(label(LEFT + 4, bottom + 17, words, "s-b"))
    return bottom + 22


def _piece(
    body: list[Markup], scale: Scale, piece: Piece, top: float, look: str, hint: str
) -> None:
    x = scale.x(piece[0])
    width = max(scale.x(piece[1]) - x, 1.5)
    body.append(box(x, top, width, UNION_HEIGHT, look, hint))
    text = short_ms(piece[1] - piece[0])
    if fits(text, width):
        words = "s-s s-w s-b" if look == "s-union" else "s-s s-b"
        if look == "s-gap":  # a ground, or the hatching would cross the letters
            ground = len(text) * 6.3 + 6
            middle = x + width / 2
            body.append(box(middle - ground / 2, top + 6, ground, 14, "s-bg"))
        body.append(label(x + width / 2, top + 17, text, words, "middle"))


def _gathered_union(body: list[Markup], scale: Scale, life: Life, top: float) -> None:
    edges = scale.edges(COLUMNS)
    proven, gaps = [], []
    covered = shares(life.union, edges, UNION_HEIGHT)
    inside = shares([(life.started_ms, life.ended_ms)], edges, UNION_HEIGHT)
    bottom = top + UNION_HEIGHT
    for first, after, look in runs([a * 99 + b for a, b in zip(covered, inside, strict=True)]):
        full, within = divmod(look, 99)
        x, width = LEFT + first, after - first
        if full < within:
            gaps.append((x, top, width, UNION_HEIGHT - full))
        if full:
            proven.append((x, bottom - full, width, full))
    body += filter(None, (boxes(gaps, "s-gap-run"), boxes(proven, "s-union")))
    words = f"{counted(len(life.union), 'piece')}, gathered by pixel: as high as its proven share"
    x = LEFT + PLOT_WIDTH - 4
    body.append(label(x, top + UNION_HEIGHT + 17, words, "s-s s-m", "end"))
