"""Writes HTML and SVG in which a stranger's text can do nothing: all text is escaped here.

Order numbers, headers and details of dead letters come from hostile clients. So there is one way to
make an element, and it escapes every text and every attribute; only what an element returned goes
into another one as it is. Nothing here makes a script, a link or a reference to elsewhere.
"""

import html
import re

from durabill.schemas.text import plain

_NAME = re.compile(r"[a-zA-Z][a-zA-Z0-9:-]*")
_VOID = frozenset({"meta", "br", "hr", "col"})

CONTENT_SECURITY_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
"""What a page of ours may load: nothing at all, and its own styles."""


class Markup(str):
    """Text that is markup already: made by `element`, or a constant of ours."""

    __slots__ = ()


Content = str | int | None
"""What goes into an element: markup as it is, text and numbers escaped, None not at all."""


def element(tag: str, *content: Content, **attributes: Content) -> Markup:
    """Return an element. Of an attribute's name `_` is read as `-`, and one at its end left out.

    What can't be seen in a text (controls, bidi marks) is shown as an escape, so no text can look
    like another one, or turn the line that it stands in.
    """
    assert _NAME.fullmatch(tag), tag
    parts = [f"<{tag}"]
    for name, value in attributes.items():
        if value is not None:
            name = name.rstrip("_").replace("_", "-")
            assert _NAME.fullmatch(name), name
            parts.append(f' {name}="{escaped(value)}"')
    if tag in _VOID:
        return Markup("".join(parts) + ">")
    inner = "".join(escaped(each) for each in content if each is not None)
    return Markup("".join(parts) + (f">{inner}</{tag}>" if inner else f"></{tag}>"))


def escaped(content: Content) -> str:
    """Return content as it may stand in a text or, between double quotes, in an attribute."""
    if isinstance(content, Markup):
        return content
    return "" if content is None else html.escape(plain(str(content)))


def joined(*parts: Markup | None, by: str = "\n") -> Markup:
    """Return elements one after the other, a line each."""
    return Markup(by.join(each for each in parts if each is not None))


def page(title: str, style: str, *body: Markup | None) -> str:
    """Return a whole HTML page: one file, without scripts, which loads nothing."""
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=CONTENT_SECURITY_POLICY),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="referrer", content="no-referrer"),
        element("title", title),
        Markup(f"<style>\n{style}\n</style>"),
    )
    main = element("main", Markup("\n"), joined(*body), Markup("\n"))
    return f"<!doctype html>\n{element('html', head, element('body', main), lang='en')}\n"


def table(
    names: tuple[str, ...],
    rows: list[tuple[Content, ...]],
    *,
    right: tuple[int, ...] = (),
    wrap: tuple[int, ...] = (),
    class_: str | None = None,
) -> Markup:
    """Return a table; its head is repeated on every printed page.

    Columns `right` are numbers. Columns `wrap` may have long texts of strangers without a blank.
    """
    looks = {**dict.fromkeys(right, "r"), **dict.fromkeys(wrap, "w")}

    def cells(tag: str, row: tuple[Content, ...]) -> Markup:
        found = (element(tag, each, class_=looks.get(at)) for at, each in enumerate(row))
        return element("tr", *found)

    head = element("thead", cells("th", names))
    body = element("tbody", Markup("\n"), *(joined(cells("td", row), Markup("")) for row in rows))
    return element("table", head, body, class_=class_)


PAGE_STYLE = """\
:root { color-scheme: light; }
body { margin: 0; background: #fff; color: #1c2733;
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 28px 24px 48px; }
h1 { font-size: 26px; line-height: 1.25; margin: 0 0 4px; overflow-wrap: anywhere; }
h2 { font-size: 18px; margin: 34px 0 8px; padding-bottom: 4px; border-bottom: 2px solid #dde3ea; }
h3 { font-size: 15px; margin: 20px 0 6px; }
p { margin: 6px 0 10px; max-width: 76ch; }
.muted { color: #5b6875; }
.box { border-left: 6px solid #5b6875; background: #f4f6f9; padding: 12px 18px; margin: 18px 0;
  font-size: 17px; }
.box p { max-width: none; margin: 4px 0; }
.good { border-color: #2e7d4f; background: #eef7f1; }
.bad { border-color: #b3261e; background: #fdf0ef; }
.doubt { border-color: #b26a00; background: #fdf6ea; }
.big { font-size: 24px; font-weight: 650; }
table { border-collapse: collapse; width: 100%; margin: 8px 0 14px; font-size: 13px;
  font-variant-numeric: tabular-nums; }
th { text-align: left; border-bottom: 2px solid #9aa7b4; padding: 4px 8px; vertical-align: bottom; }
td { border-bottom: 1px solid #e3e8ee; padding: 4px 8px; vertical-align: top; }
.w { overflow-wrap: anywhere; min-width: 9em; }
.r { text-align: right; white-space: nowrap; } .n { white-space: nowrap; }
th.r { white-space: normal; }
table.facts { width: auto; min-width: 50%; }
table.facts td:first-child { color: #5b6875; padding-right: 24px; white-space: nowrap; }
code, .mono { font-family: ui-monospace, "DejaVu Sans Mono", monospace; font-size: 12px;
  overflow-wrap: anywhere; }
.bad-text { color: #b3261e; } .good-text { color: #2e7d4f; }
dl { display: grid; grid-template-columns: 14em 1fr; gap: 6px 20px; margin: 8px 0; }
dt { font-weight: 650; } dd { margin: 0; max-width: 80ch; }
figure { margin: 12px 0; } figure svg { width: 100%; height: auto; display: block; }
footer { margin-top: 40px; font-size: 12px; color: #5b6875; border-top: 1px solid #dde3ea;
  padding-top: 8px; }
@page { margin: 14mm; }
@media print {
  body { font-size: 11px; } main { max-width: none; padding: 0; }
  h1 { font-size: 20px; } h2 { font-size: 15px; } h3 { font-size: 12px; } .box { font-size: 13px; }
  .big { font-size: 18px; } table { font-size: 9.5px; }
  h2, h3, thead { break-after: avoid; } tr, figure, .box, dd { break-inside: avoid; }
  * { -webkit-print-color-adjust: exact; print-color-adjust: exact; }
}"""
