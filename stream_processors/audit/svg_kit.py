"""What the drawings are made of: shapes, labels, a time axis, and their look."""

from collections.abc import Iterable

from durabill.stream_processors.audit.markup import Content, Markup, element
from durabill.stream_processors.audit.timeline import Scale, ticks

WIDTH = 1_200
MARGIN = 24
LEFT = 152
PLOT_WIDTH = 1_020
COLUMNS = PLOT_WIDTH
"""Pixel columns, in which is gathered what is too much to be drawn piece by piece."""

CHARACTER_WIDTH = 6.9
"""Of a label's characters, about; labels that would meet are left out or put elsewhere."""

STYLE = """\
.s-bg{fill:#fff}.s-t{font:12px system-ui,"Segoe UI",Roboto,"DejaVu Sans",sans-serif;fill:#1c2733}
.s-h{font-size:20px;font-weight:650}.s-h2{font-size:14px;font-weight:650}.s-m{fill:#5b6875}
.s-s{font-size:11px}.s-w{fill:#fff}.s-d{fill:#173a5e}.s-b{font-weight:650}.s-bad{fill:#b3261e}
.s-grid{stroke:#e6eaef}.s-axis{stroke:#8793a0}.s-day{stroke:#aeb8c2}
.s-frame{fill:#f8fafb;stroke:#e6eaef}
.s-added{fill:#2563a8}.s-again{fill:#c3d8ee;stroke:#8fb4d9;stroke-width:.6}.s-again-run{fill:#c3d8ee}
.s-end{stroke:#101820;stroke-width:2.5}.s-bad-box{fill:#fdecea;stroke:#b3261e}
.s-union{fill:#2e7d4f}.s-gap{fill:url(#s-hatch);stroke:#b26a00;stroke-width:.7}
.s-gap-run{fill:url(#s-hatch)}
.s-rev{stroke:#5b2a86;stroke-width:1.4}
.s-rev-thin{stroke:#b9a2cf}.s-dot{fill:#5b2a86}
.s-OPEN{fill:#bfe0f2}.s-ENDED{fill:#ffe08a}.s-SETTLED{fill:#bfe3c9}.s-REOPENED{fill:#f8c9a0}
.s-FORGOTTEN{fill:#dde1e6}"""

DEFINITIONS = Markup(
    '<defs><pattern id="s-hatch" width="7" height="7" patternUnits="userSpaceOnUse"'
    ' patternTransform="rotate(45)"><rect width="7" height="7" fill="#fff8ec"/>'
    '<rect width="2.4" height="7" fill="#e0a045"/></pattern></defs>'
)


def number(value: float) -> str:
    """Return a coordinate in few characters, always the same ones."""
    return f"{value:.1f}".removesuffix(".0")


def label(x: float, y: float, text: Content, look: str = "", anchor: str | None = None) -> Markup:
    """Return a line of text; `anchor` is `end` or `middle` where `x` isn't its beginning."""
    class_ = f"s-t {look}".strip()
    return element("text", text, x=number(x), y=number(y), class_=class_, text_anchor=anchor)


def box(
    x: float, y: float, width: float, height: float, look: str, hint: str | None = None
) -> Markup:
    """Return a rectangle, with a text that browsers show where the mouse is."""
    title = None if hint is None else element("title", hint)
    sizes = {"width": number(width), "height": number(height)}
    return element("rect", title, x=number(x), y=number(y), **sizes, class_=look)


def line(x: float, y: float, x_to: float, y_to: float, look: str) -> Markup:
    """Return a line."""
    return element(
        "line", x1=number(x), y1=number(y), x2=number(x_to), y2=number(y_to), class_=look
    )


def boxes(found: Iterable[tuple[float, float, float, float]], look: str) -> Markup | None:
    """Return many rectangles (x, y, width, height) as one shape; None where there are none."""
    path = "".join(
        f"M{number(x)} {number(y)}h{number(width)}v{number(height)}h{number(-width)}z"
        for x, y, width, height in found
    )
    return element("path", d=path, class_=look) if path else None


def fits(text: str, width: float) -> bool:
    """Tell whether a label has room in a box."""
    return len(text) * CHARACTER_WIDTH + 6 <= width


def axis(scale: Scale, top: float, bottom: float) -> list[Markup]:
    """Return a time axis in UTC at `top`, whose grid goes down to `bottom`; takes 34 above."""
    right = scale.left + scale.width
    found = [line(scale.left, top, right, top, "s-axis")]
    free_from = 0.0
    for tick in ticks(scale):
        x = scale.x(tick.at_ms)
        found.append(line(x, top, x, bottom, "s-day" if tick.date else "s-grid"))
        if tick.label:
            found.append(label(x, top - 5, tick.label, "s-s s-m", "middle"))
        if tick.date and x >= free_from:
            found.append(label(x, top - 19, tick.date, "s-s s-b", "middle"))
            free_from = x + len(tick.date) * CHARACTER_WIDTH + 10
    found.append(label(LEFT - 36, top - 5, "UTC", "s-s s-m", "end"))
    return found
