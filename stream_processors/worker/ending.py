"""How a worker's process ends: at once and for a reason, or, for the crash tests, by a signal."""

import logging
import os
import signal
import sys
from collections import Counter
from collections.abc import Callable
from typing import NoReturn

from durabill.schemas.errors import DurabillError, InputError

log = logging.getLogger("durabill.worker")


def die(error: BaseException) -> NoReturn:
    """End the process: whoever restarts it finds a consistent checkpoint and replays the rest.

    Faust would restart the agent and leave a hole in the log, so nothing is unwound.
    """
    if isinstance(error, DurabillError) and not isinstance(error, InputError):
        log.critical("%s", error)
    else:
        log.critical("the worker stops on an error of its own", exc_info=error)
    logging.shutdown()
    sys.stderr.flush()
    os._exit(getattr(error, "exit_code", 70))


def kill() -> None:
    """End the process at once, as the system does to one that it runs out of memory for."""
    os.kill(os.getpid(), signal.SIGKILL)


class CrashStep:
    """Kills the process after the n-th time that a named step is done; for the crash tests."""

    def __init__(self, spec: str, kill: Callable[[], None]) -> None:
        self._name, _, times = spec.partition(":")
        self._times = int(times or 1)
        self._kill = kill
        self._seen: Counter[str] = Counter()

    def __call__(self, name: str) -> None:
        """Take note that the step `name` is done."""
        self._seen[name] += 1
        if name == self._name and self._seen[name] == self._times:
            self._kill()
