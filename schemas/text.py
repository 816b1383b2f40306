"""How durations, times and a stranger's text are put into a line that people read.

An order number may hold whatever isn't a control: blanks at its ends, marks that turn the writing
direction, line separators, characters of no width. Where it is shown as it is, two numbers look
alike, or a line looks like another one.
"""

import json
import re
import unicodedata
from collections.abc import Iterable
from datetime import UTC, datetime

_SECRET = re.compile(
    # An API key, and a JWT; in a URL some of their characters may be percent-encoded.
    r"(?i:(?:(?<=dbk_)|(?<=dbk%5f))[0-9a-z]+(?:(?:_|%5f)[0-9a-z]*)?)"
    r"|eyJ[0-9A-Za-z_-]+(?:\.|%2[Ee])[0-9A-Za-z_-]+(?:\.|%2[Ee])[0-9A-Za-z_-]*"
)


def shown(text: str) -> str:
    """Return a stranger's text so that its line stays what it is, and no two texts look alike.

    As it is where every character can be seen; else between quotes, with what can't be seen or
    would turn the line (controls, bidi marks, zero width, line separators) as JSON's escapes.
    """
    seen = not any(_is_hidden(each) or each in '"\\' for each in text)
    if text and seen and text.strip() == text:
        return text
    return '"' + "".join(f"\\{each}" if each in '"\\' else _shown(each) for each in text) + '"'


def harmless(text: str) -> str:
    """Return a stranger's text so that no spreadsheet takes it for a formula: `'=1+1`."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


def plain(text: str) -> str:
    """Return a sentence that may hold a stranger's text, with what can't be seen escaped."""
    return text if text.isprintable() else "".join(map(_shown, text))


def wrong_in(text: str, bytes_max: int) -> str:
    """Return what is wrong with a text of the contract, in words that follow its name; or "".

    Wrong are a lone surrogate, more UTF-8 bytes than are allowed, and controls (category Cc).
    """
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        return "holds a lone surrogate"
    if size > bytes_max:
        return f"has {size} UTF-8 bytes, {bytes_max} are allowed"
    if not text.isprintable() and any(unicodedata.category(char) == "Cc" for char in text):
        return "holds a control character"
    return ""


def without_secrets(text: str) -> str:
    """Return a text without API keys and tokens, which people put where they don't belong."""
    return _SECRET.sub("…", text)


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


def human_ms(duration_ms: int) -> str:
    """Return a duration as people write it: `2 h 03 min 04.500 s`."""
    seconds, ms = divmod(duration_ms, 1000)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours:,} h {minutes:02} min {seconds:02}.{ms:03} s"
    return f"{minutes} min {seconds:02}.{ms:03} s" if minutes else f"{seconds}.{ms:03} s"


def human_bound(upper_bound_ms: int | None) -> str:
    """Return what a total says of the duration if all that is missing were found."""
    if upper_bound_ms is None:
        return "upper bound unknown"
    return f"at most {human_ms(upper_bound_ms)}"


def human_doubts(gap_ms: int, numbers_after_end: int) -> str:
    """Return what somebody should look at, each with a comma before it; or nothing."""
    gaps = f", gaps of {human_ms(gap_ms)}" if gap_ms else ""
    late = counted(numbers_after_end, "number")
    return gaps + (f", {late} after the end" if numbers_after_end else "")


def human_time(epoch_ms: int) -> str:
    """Return an instant in UTC, to the millisecond."""
    try:
        at = datetime.fromtimestamp(epoch_ms // 1000, UTC)
    except (OverflowError, ValueError, OSError):
        return f"{epoch_ms} ms"  # beyond the year 9999
    return f"{at:%Y-%m-%d %H:%M:%S}.{epoch_ms % 1000:03}"
