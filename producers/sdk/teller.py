"""Tells the caller what goes wrong, and never while a lock of ours is held.

What comes up under locks (a damaged file while segments are stored, a step of the clock while a
service is cut) is queued, and told soon by a thread that holds none. So whoever is told may use
the client as he likes: end its services, or close it.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable

log = logging.getLogger(__name__)


class Teller:
    """Calls `on_error`, or logs where there is none. Safe for several threads."""

    def __init__(self, on_error: Callable[[Exception], None] | None) -> None:
        self._on_error = on_error
        self._waiting: deque[Exception] = deque()
        self._telling = threading.local()

    def later(self, error: Exception) -> None:
        """Queue what came up, maybe under a lock."""
        self._waiting.append(error)

    def now(self, error: Exception) -> None:
        """Tell it, after all that waits. The calling thread must hold no lock."""
        self._waiting.append(error)
        self.tell_waiting()

    def tell_waiting(self) -> None:
        """Tell what waits. The calling thread must hold no lock.

        Where it is just telling something (`on_error` has called us) it goes on with that first.
        """
        if getattr(self._telling, "is_on", False):
            return
        self._telling.is_on = True
        try:
            while self._waiting:
                try:
                    error = self._waiting.popleft()
                except IndexError:  # another thread tells it
                    return
                self._tell(error)
        finally:
            self._telling.is_on = False

    def _tell(self, error: Exception) -> None:
        if self._on_error is None:
            log.warning("%s: %s", type(error).__name__, error)
            return
        try:
            self._on_error(error)
        except Exception:
            log.exception("on_error raised; it was told of %s: %s", type(error).__name__, error)
