"""How every process of ours logs: one line an event on standard error, repeats damped.

While Kafka is away, each client in a process says so again and again, some ten times a second. Of
lines that differ in numbers and addresses alone the first is shown at once, with its cause, and the
next one only after twenty seconds, with the count of those left out; all repeats together are one
line a second at most. What is logged with `extra={"undamped": True}`, and whatever is CRITICAL, is
always shown.
"""

import logging
import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

from durabill.schemas.text import plain

REPEAT_AFTER_S = 20.0
"""A line of a kind that has been shown is shown again after this, not before."""

REPEATS_PAUSE_S = 1.0
"""Between any two lines that repeat something."""

KINDS_MAX = 1000
_SHAPE_CHARACTERS = 160
_FORMAT = "%(asctime)s %(levelname)s %(name)s %(message)s"
_CHATTY = (
    *("aiohttp", "aiokafka", "asyncio", "faust", "kafka", "mode"),
    # Faust's word on the services that are our classes; our own loggers are called durabill.
    *("durabill.stream_processors.worker.app", "durabill.stream_processors.worker.driver"),
)
"""Loggers whose INFO is chatter; what matters in a start and a rebalance we say ourselves."""

_LAST_WORDS = ("Crashed reason=", "Drain messages raised: ")
"""Of Faust, for what the worker then ends over; as it ends it tells the same, and better."""

_ROUTINE = ("Heartbeat failed for group",)
"""Warnings of what happens whenever a worker comes or goes; the outcome is our own line."""

_NUMBERS = re.compile(r"0x[0-9a-fA-F]+|[0-9a-fA-F]{8}-[0-9a-fA-F-]{27}|\d+(\.\d+)*")


@dataclass(slots=True)
class _Kind:
    shown_s: float
    left_out: int = 0


class Damping(logging.Filter):
    """Lets the first line of a kind through, and repeats seldom.

    A kind is the logger, the level, and the text with its numbers folded. A damped line that goes
    through after others have been left out says how many.
    """

    def __init__(self, clock_s: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock_s = clock_s
        self._kinds: dict[tuple[str, int, str], _Kind] = {}
        self._repeated_s = float("-inf")

    def filter(self, record: logging.LogRecord) -> bool:
        """Tell whether to show a line; the logging module calls it under the handler's lock."""
        if record.levelno >= logging.CRITICAL or getattr(record, "undamped", False):
            return True
        if record.levelno < logging.WARNING and record.name.startswith("durabill"):
            return True  # what we tell in passing is told when it happens
        now_s = self._clock_s()
        text = _message(record)
        if text.endswith("because it is rebalancing") and text.startswith(_ROUTINE):
            return False
        if any(word in text for word in _LAST_WORDS):
            record.exc_info = None
        key = record.name, record.levelno, _NUMBERS.sub("#", text)[:_SHAPE_CHARACTERS]
        kind = self._kinds.get(key)
        if kind is None:
            if len(self._kinds) >= KINDS_MAX:
                self._kinds.clear()
            self._kinds[key] = _Kind(now_s)
            return True
        is_due = now_s >= kind.shown_s + REPEAT_AFTER_S
        if not is_due or now_s < self._repeated_s + REPEATS_PAUSE_S:
            kind.left_out += 1
            return False
        if kind.left_out:
            record.msg, record.args = f"{text} ({kind.left_out} more like it left out)", None
            self._repeated_s = now_s
        kind.shown_s, kind.left_out = now_s, 0
        return True


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except (TypeError, ValueError):  # wrong arguments: the formatter tells, not we
        return str(record.msg)


class OneLine(logging.Formatter):
    """Shows what can't be seen as escapes, and indents what follows a line feed.

    A line may quote a stranger's text, which could turn the terminal's writing direction, or make
    up a line of its own.
    """

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 (logging's name)
        """Return the line without its traceback."""
        return "\n  ".join(map(plain, super().formatMessage(record).split("\n")))


def set_up_logging(level: int = logging.INFO) -> None:
    """Have this process log to standard error, damped; whatever was set up before is replaced."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(OneLine(_FORMAT))
    handler.addFilter(Damping())
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level)
    for name in _CHATTY:
        logging.getLogger(name).setLevel(max(level, logging.WARNING))
