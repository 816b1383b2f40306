"""Log lines that would come again and again: the first at once, then few, with their number."""

import logging
import time
from collections.abc import Callable

from durabill.schemas.text import without_secrets

PAUSE_S = 60.0
_KINDS_MAX = 1_000


class Damper:
    """Logs the first line of a kind at once, then at most one a `pause_s`, with how many came.

    For any thread. `kind` says what is the same; the text may differ.
    """

    def __init__(
        self,
        log: logging.Logger,
        pause_s: float = PAUSE_S,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._log = log
        self._pause_s = pause_s
        self._clock_s = clock_s
        self._seen: dict[str, tuple[float, int]] = {}  # kind -> (last logged at, held back since)

    def warning(self, kind: str, text: str, *values: object) -> None:
        """Log a warning of this kind, unless one came a moment ago."""
        held_back = self.held_back(kind)
        if held_back is not None:
            more = f" (and {held_back} times more like it before)" if held_back else ""
            self._log.warning(text + "%s", *values, more)

    def held_back(self, kind: str) -> int | None:
        """Return how many of this kind were held back since the last; None holds this one back."""
        now_s = self._clock_s()
        last_s, count = self._seen.get(kind, (float("-inf"), 0))
        if now_s - last_s < self._pause_s:
            self._seen[kind] = (last_s, count + 1)
            return None
        if len(self._seen) >= _KINDS_MAX:
            self._seen.clear()
        self._seen[kind] = (now_s, 0)
        return count


class NoSecrets(logging.Filter):
    """Hides keys and tokens in the lines of a logger: somebody may put one into a URL."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Let the line through without them."""
        text = record.getMessage()
        hidden = without_secrets(text)
        if hidden != text:
            record.msg, record.args = hidden, ()
            record.__dict__["first_request_line"] = ""  # aiohttp's own copy of it
        return True


class DampingFilter(logging.Filter):
    """Damps the lines of a logger that somebody else writes to: librdkafka, by its first word.

    Those lines begin with what happened, as in `FAIL [rdkafka#producer-1] ...`.
    """

    def __init__(
        self, pause_s: float = PAUSE_S, clock_s: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__()
        self._damper = Damper(logging.getLogger(__name__), pause_s, clock_s)

    def filter(self, record: logging.LogRecord) -> bool:
        """Tell whether the line is to be logged; says in it how many were not."""
        held_back = self._damper.held_back(record.getMessage().partition(" ")[0])
        if held_back:
            record.msg = f"{record.getMessage()} (and {held_back} times more like it before)"
            record.args = ()
        return held_back is not None
