"""What a person sees of a command: results, words beside them, times, progress bars.

Nothing heavy is imported here, so that `durabill --help` answers at once.
"""

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from durabill.schemas.text import (
    counted,
    human_bound,
    human_doubts,
    human_ms,
    human_time,
    plain,
    shown,
)

__all__ = [
    "Progress",
    "answer",
    "counted",
    "emit",
    "human_bound",
    "human_doubts",
    "human_ms",
    "human_time",
    "plain",
    "plain_lines",
    "progress_bars",
    "say",
    "shown",
    "why_not",
]

Progress = Callable[[str, int, int], None]
"""Called as progress(phase, done, total) now and then."""


def say(text: str) -> None:
    """Tell the user something that is not the command's result.

    Who listens to no such words (standard error is closed, or full) still gets the result.
    """
    if sys.stderr is not None:
        with contextlib.suppress(OSError):
            print(plain_lines(text), file=sys.stderr, flush=True)


def emit(value: object) -> None:
    """Print a result as one line of JSON, with what can't be seen escaped: exact, and one line."""
    text = plain(json.dumps(value, ensure_ascii=False))
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        text = json.dumps(value)
    print(text, flush=True)


def why_not(error: Exception) -> str:
    """Return the system's own word in an error of urllib's, as in `Connection refused`."""
    cause = getattr(error, "reason", error)
    return getattr(cause, "strerror", None) or str(cause) or type(error).__name__


def plain_lines(text: str) -> str:
    """Return lines that may hold a stranger's text, with all but the line feeds escaped."""
    return "\n".join(map(plain, text.split("\n")))


def answer(value: object, text: str, as_json: bool) -> None:
    """Print a result: `value` as JSON for scripts, `text` for people."""
    if as_json:
        emit(value)
    else:
        print(text, flush=True)


@contextmanager
def progress_bars(
    *, quiet: bool = False, lines: bool = False, paced: bool = False
) -> Iterator[Progress]:
    """Show progress on standard error: bars on a terminal, `paced` with the rate and the time left.

    Elsewhere nothing, or a line for each phase with `lines`. `quiet` shows nothing anywhere.
    """
    phases: set[str] = set()
    if quiet or sys.stderr is None or not sys.stderr.isatty():

        def tell(phase: str, done: int, total: int) -> None:
            if phase not in phases:
                phases.add(phase)
                if lines and not quiet:
                    say(phase)

        yield tell
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        ProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as Bars
    from rich.text import Text

    class Rate(ProgressColumn):
        """How many a second."""

        def render(self, task: Any) -> Text:
            return Text(f"{task.finished_speed or task.speed or 0:,.0f}/s")

    columns: list[Any] = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()]
    columns += [Rate(), TimeRemainingColumn()] if paced else [TimeElapsedColumn()]
    with Bars(*columns, console=Console(stderr=True)) as bars:
        tasks: dict[str, Any] = {}

        def show(phase: str, done: int, total: int) -> None:
            if phase not in tasks:
                for task in bars.tasks:  # phases follow one another, and some don't count
                    bars.update(task.id, completed=task.total)
                tasks[phase] = bars.add_task(phase)
            bars.update(tasks[phase], completed=min(done, total), total=total)

        yield show
