"""Threads that don't die in silence: what they did would then be done by nobody."""

import logging
import os
import sys
import threading
from collections.abc import Callable

log = logging.getLogger(__name__)

EXIT_CODE = 70
"""What a process ends with whose thread died of an error of ours (EX_SOFTWARE)."""


def end_process(error: BaseException) -> None:
    """Say which thread died of what, and end the process: who restarts it gets a whole one."""
    name = threading.current_thread().name
    log.critical("the thread %s died; the process ends", name, exc_info=error)
    logging.shutdown()
    sys.stderr.flush()
    os._exit(EXIT_CODE)


def start_thread(
    target: Callable[[], None],
    name: str,
    on_death: Callable[[BaseException], None] = end_process,
) -> threading.Thread:
    """Start a daemon thread that calls `target` once; whatever it raises goes to `on_death`.

    `on_death` is called in that thread. By default it ends the process.
    """

    def run() -> None:
        try:
            target()
        except BaseException as error:
            on_death(error)

    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    return thread
