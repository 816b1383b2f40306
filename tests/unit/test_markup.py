"""Markup: whatever text goes in stays text."""

from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from durabill.stream_processors.audit.markup import (
    CONTENT_SECURITY_POLICY,
    Markup,
    element,
    escaped,
    joined,
    page,
    table,
)

HOSTILE = [
    "<script>alert(1)</script>",
    '" onload="alert(1)',
    "' onload='alert(1)",
    "]]><!--",
    "&amp;<",
    "\u202eevil\u2066",
    "\x00\x1b[2J\n\uffff\ufffe",
    "</style></td></table>",
]


class Names(HTMLParser):
    """The elements and attributes of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs


@pytest.mark.parametrize("text", HOSTILE)
def test_a_hostile_text_is_text_in_elements_and_attributes(text: str) -> None:
    made = element("p", text, title=text)
    found = ElementTree.fromstring(made)
    assert list(found) == []
    assert list(found.attrib) == ["title"]
    assert found.text == found.attrib["title"]
    names = Names(page(text, "p { }", made, table(("a",), [(text,)])))
    assert "script" not in names.tags
    assert [name for name, _ in names.attributes if name.startswith("on")] == []
    assert not any(each in made for each in "\u202e\u2066\x00\x1b\uffff")


def test_what_is_markup_stays_and_none_is_nothing() -> None:
    inner = element("b", "x < y")
    assert element("p", inner, None, 3, class_="a", data_x=None) == (
        '<p class="a"><b>x &lt; y</b>3</p>'
    )
    assert escaped(Markup("<b>")) == "<b>"
    assert joined(inner, None, inner, by="|") == f"{inner}|{inner}"


@pytest.mark.parametrize("name", ["a b", "a>", "", "1", "on=x"])
def test_names_are_names(name: str) -> None:
    with pytest.raises(AssertionError):
        element(name)
    with pytest.raises(AssertionError):
        element("p", **{f"x{name} ": "1"})


def test_a_page_allows_nothing_from_elsewhere() -> None:
    names = Names(page("t", "p { color: red; }", element("p", "x")))
    assert ("content", CONTENT_SECURITY_POLICY) in names.attributes
    assert CONTENT_SECURITY_POLICY.startswith("default-src 'none'")
    assert [each for each, _ in names.attributes if each in ("src", "href")] == []


def test_a_table_escapes_its_cells() -> None:
    found = ElementTree.fromstring(table(("a", "b"), [("x", 1), (None, "<")], right=(1,)))
    assert [cell.text for cell in found.iter("th")] == ["a", "b"]
    assert [cell.text for cell in found.iter("td")] == ["x", "1", None, "<"]
    assert [cell.get("class") for cell in found.iter("td")] == [None, "r", None, "r"]
