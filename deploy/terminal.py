"""What a person sees of a command: results, words beside them, times, progress bars.

Nothing heavy is imported here, so that `durabill --help` answers at once.
"""

import json
import sys
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

Progress = Callable[[str, int, int], None]
"""Called as progress(phase, done, total) now and then."""


def say(text: str) -> None:
    """Tell the user something that is not the command's result."""
    print(text, file=sys.stderr, flush=True)


def emit(value: object) -> None:
    """Print a result as one line of JSON, with what can't be seen escaped: exact, and one line."""
    text = json.dumps(value, ensure_ascii=False)
    print(text if text.isprintable() else "".join(map(_shown, text)), flush=True)


def shown(text: str) -> str:
    """Return a stranger's text, such as an order number, so that its line stays what it is.

    As it is where every character can be seen; else between quotes, with what can't be seen or
    would turn the line (controls, bidi marks, zero width, line separators) as JSON's escapes.
    """
    seen = not any(_is_hidden(each) or each in '"\\' for each in text)
    if text and seen and text.strip() == text:
        return text
    return '"' + "".join(f"\\{each}" if each in '"\\' else _shown(each) for each in text) + '"'


def _shown(character: str) -> str:
    return _escaped(character) if _is_hidden(character) else character


def _is_hidden(character: str) -> bool:
    """Tell whether a character can't be seen: controls and formats, and all spaces but one."""
    return unicodedata.category(character)[0] in "CZ" and character != " "


def _escaped(text: str) -> str:
    return json.dumps(text)[1:-1]


def answer(value: object, text: str, as_json: bool) -> None:
    """Print a result: `value` as JSON for scripts, `text` for people."""
    if as_json:
        emit(value)
    else:
        print(text, flush=True)


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
    after = f", {counted(numbers_after_end, 'number')} after the end" if numbers_after_end else ""
    return gaps + after


def counted(count: int, noun: str) -> str:
    """Return a count of things: `1 total`, `2 totals`."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def human_time(epoch_ms: int) -> str:
    """Return an instant in UTC, to the millisecond."""
    try:
        at = datetime.fromtimestamp(epoch_ms // 1000, UTC)
    except (OverflowError, ValueError, OSError):
        return f"{epoch_ms} ms"  # beyond the year 9999
    return f"{at:%Y-%m-%d %H:%M:%S}.{epoch_ms % 1000:03}"


@contextmanager
def progress_bars(*, quiet: bool = False, lines: bool = False) -> Iterator[Progress]:
    """Show progress on standard error: bars on a terminal.

    Elsewhere nothing, or a line for each phase with `lines`. `quiet` shows nothing anywhere.
    """
    phases: set[str] = set()
    if quiet or not sys.stderr.isatty():

        def tell(phase: str, done: int, total: int) -> None:
            if phase not in phases:
                phases.add(phase)
                if lines and not quiet:
                    say(phase)

        yield tell
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    with Bars(*columns, TimeElapsedColumn(), console=Console(stderr=True)) as bars:
        tasks: dict[str, Any] = {}

        def show(phase: str, done: int, total: int) -> None:
            if phase not in tasks:
                tasks[phase] = bars.add_task(phase)
            bars.update(tasks[phase], completed=done, total=total)

        yield show
