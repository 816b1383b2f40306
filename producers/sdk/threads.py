"""Threads that don't die in silence, and work that no signal interrupts."""

import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import TypeVar

log = logging.getLogger(__name__)

T = TypeVar("T")

_PAUSE_S = 1.0
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


def persistently(
    step: Callable[[], None], is_over: Callable[[], bool], failed: Callable[[Exception], None]
) -> None:
    """Call `step` until it is over; after an error, tell it and pause. No error ends it.

    Where there is no memory, telling may fail as well, and so may pausing.
    """
    is_hurt = False
    while True:
        try:
            if is_hurt:
                time.sleep(_PAUSE_S)
            while not is_over():
                try:
                    is_hurt = False
                    step()
                except Exception as error:
                    is_hurt = True
                    failed(error)
                    time.sleep(_PAUSE_S)
            return
        except Exception:
            is_hurt = True


def shielded(act: Callable[[], T], undo: Callable[[T], object] = lambda made: made) -> T:
    """Return what `act` does, in a thread of its own where this is the main thread.

    There signal handlers run, and raise (KeyboardInterrupt for one), at any instruction: also
    between a commit and the note of it. So they end the waiting alone. What was made all the same
    is undone then: nobody has it.
    """
    if threading.current_thread() is not threading.main_thread():
        return act()
    done: Future[T] = Future()

    def run() -> None:
        try:
            done.set_result(act())
        except BaseException as error:
            done.set_exception(error)

    try:
        try:
            threading.Thread(target=run, name="durabill-shielded", daemon=True).start()
        except RuntimeError:  # the system has no thread left, or is about to end this process
            return act()
        return done.result()
    except BaseException:
        done.add_done_callback(lambda made: _undo(made, undo))
        raise


def _undo(made: "Future[T]", undo: Callable[[T], object]) -> None:
    with suppress(Exception):  # it could not be made, or goes on as if it had been left
        undo(made.result())
