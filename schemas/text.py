"""How a stranger's text, such as an order number, is put into a line that people read.

An order number may hold whatever isn't a control: blanks at its ends, marks that turn the writing
direction, line separators, characters of no width. Where it is shown as it is, two numbers look
alike, or a line looks like another one.
"""

import json
import unicodedata
from collections.abc import Iterable


def shown(text: str) -> str:
    """Return a stranger's text so that its line stays what it is, and no two texts look alike.

    As it is where every character can be seen; else between quotes, with what can't be seen or
    would turn the line (controls, bidi marks, zero width, line separators) as JSON's escapes.
    """
    seen = not any(_is_hidden(each) or each in '"\\' for each in text)
    if text and seen and text.strip() == text:
        return text
    return '"' + "".join(f"\\{each}" if each in '"\\' else _shown(each) for each in text) + '"'


def plain(text: str) -> str:
    """Return a sentence that may hold a stranger's text, with what can't be seen escaped."""
    return text if text.isprintable() else "".join(map(_shown, text))


def _shown(character: str) -> str:
    return json.dumps(character)[1:-1] if _is_hidden(character) else character


def _is_hidden(character: str) -> bool:
    """Tell whether a character can't be seen: controls and formats, and all spaces but one."""
    return unicodedata.category(character)[0] in "CZ" and character != " "


def ranges(numbers: Iterable[int]) -> str:
    """Return numbers in order, as people write them: `0-3, 7`; `none` where there are none."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(f"{a}" if a == b else f"{a}-{b}" for a, b in runs) or "none"


def counted(number: int, one: str, many: str = "") -> str:
    """Return a number with what it counts: `1 order`, `2,000 orders`."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"
