"""The results as a picture: bars, written as SVG by hand."""

import math
from collections.abc import Sequence
from xml.sax.saxutils import escape

from tests.bench.report import Results
from tests.bench.throughput import Series

WIDTH, LABEL, RIGHT = 760, 250, 70
ROW, HEAD, GAP = 30, 62, 24
OURS, THEIRS, INK, FAINT = "#2563a8", "#9aa5b1", "#1f2933", "#d9dee4"


def svg(results: Results) -> str:
    """Return a picture of what the worker and its peers did a CPU-second."""
    compared = [each for each in results.compared if each.runs]
    alone = [each for each in (*results.shapes, *results.open_orders) if each.runs]
    parts: list[str] = []
    height = 10
    if compared:
        title = "Records a CPU-second, same topic, same job (logarithmic)"
        parts.append(_panel(title, compared, height, is_log=True))
        height += HEAD + ROW * len(compared) + GAP
    if alone:
        title = "The worker on other traffic, records a CPU-second"
        parts.append(_panel(title, alone, height, is_log=False))
        height += HEAD + ROW * len(alone) + GAP
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img"'
        f' font-family="system-ui, sans-serif" font-size="13" fill="{INK}">\n'
        "<title>Throughput of the Durabill worker and its peers</title>\n"
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>\n' + "".join(parts) + "</svg>\n"
    )


def _panel(title: str, shown: Sequence[Series], top: int, *, is_log: bool) -> str:
    speeds = [[run.per_cpu_s for run in each.runs] for each in shown]
    greatest = max(max(each) for each in speeds)
    least = 10 ** math.floor(math.log10(min(min(each) for each in speeds))) if is_log else 0.0
    most = 10 ** math.ceil(math.log10(greatest)) if is_log else _above(greatest)

    def x(value: float) -> float:
        share = math.log(value / least, most / least) if is_log else value / most
        return LABEL + share * (WIDTH - LABEL - RIGHT)

    out = [f'<text x="14" y="{top + 20}" font-size="15" font-weight="600">{escape(title)}</text>\n']
    bottom = top + HEAD + ROW * len(shown) - 6
    for mark in _marks(least, most, is_log):
        at = f"{x(mark):.1f}"
        out.append(f'<path d="M{at} {top + 50}V{bottom}" stroke="{FAINT}"/>\n')
        out.append(f'<text x="{at}" y="{top + 44}" text-anchor="middle">{_name(mark)}</text>\n')
    for number, (series, values) in enumerate(zip(shown, speeds, strict=True)):
        y = top + HEAD + ROW * number
        values = sorted(values)
        middle = (values[(len(values) - 1) // 2] + values[len(values) // 2]) / 2
        colour = OURS if series.name == "worker" or not is_log else THEIRS
        out.append(
            f'<text x="{LABEL - 10}" y="{y + 13}" text-anchor="end">{escape(series.title)}</text>\n'
            f'<rect x="{LABEL}" y="{y}" width="{x(middle) - LABEL:.1f}" height="18"'
            f' fill="{colour}"/>\n'
            f'<path d="M{x(values[0]):.1f} {y + 9}H{x(values[-1]):.1f}" stroke="{INK}"'
            ' stroke-width="1.5"/>\n'
            f'<text x="{x(values[-1]) + 6:.1f}" y="{y + 13}">{_name(middle)}</text>\n'
        )
    return "".join(out)


def _above(value: float) -> float:
    """Return the next round number, so that the marks fall on round ones."""
    step = 10 ** math.floor(math.log10(value))
    return float(step * math.ceil(value / step))


def _marks(least: float, most: float, is_log: bool) -> list[float]:
    if is_log:
        first, last = round(math.log10(least)), round(math.log10(most))
        return [10.0**power for power in range(first, last + 1)]
    return [most * part / 4 for part in range(5)]


def _name(value: float) -> str:
    for size, letter in ((1e6, " M"), (1e3, " k")):
        if value >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"
