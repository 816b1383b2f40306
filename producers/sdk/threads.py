"""Threads that don't die in silence, and work that no signal interrupts."""

import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from queue import SimpleQueue
from typing import TypeVar

log = logging.getLogger(__name__)

T = TypeVar("T")

_PAUSE_S = _LOOK_EVERY_S = 1.0
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


class Shield:
    """Does what a main thread asks for in a thread of its own, where no signal handler raises.

    In the main thread they do (KeyboardInterrupt for one), at any instruction: also between a
    commit and the note of it. Here they end the waiting alone. The thread is made when it is first
    needed, and is there then, also when there is no memory for another one.
    """

    def __init__(self) -> None:
        self._asked: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._is_over = False

    def run(self, act: Callable[[], T], undo: Callable[[T], object] = lambda made: made) -> T:
        """Return what `act` does; in another thread than the main one it is just called.

        Where the waiting is interrupted, what was made all the same is undone: nobody has it.
        """
        if self._is_over or threading.current_thread() is not threading.main_thread():
            return act()
        done: Future[T] = Future()
        try:
            try:
                thread = self._started()
            except RuntimeError:  # the system has no thread left, or is about to end this process
                return act()
            self._asked.put(lambda: _do(act, done))
            while not done.done():
                with suppress(TimeoutError):
                    return done.result(_LOOK_EVERY_S)
                if not thread.is_alive() and not done.done():
                    raise RuntimeError("the thread for it is gone")
            return done.result()
        except BaseException:
            done.add_done_callback(lambda made: _undo(made, undo))
            raise

    def stop(self) -> None:
        """End the thread, once it has done what it was asked for."""
        self._is_over = True
        if self._thread is not None:
            self._asked.put(None)

    def _started(self) -> threading.Thread:
        if self._thread is None or not self._thread.is_alive():
            thread = threading.Thread(target=self._work, name="durabill-shield", daemon=True)
            thread.start()
            self._thread = thread
        return self._thread

    def _work(self) -> None:
        while (asked := self._asked.get()) is not None:
            asked()


def _do(act: Callable[[], T], done: "Future[T]") -> None:
    try:
        made = act()
    except BaseException as error:
        failed = error
        _settle(lambda: done.set_exception(failed), done)
    else:
        _settle(lambda: done.set_result(made), done)


def _settle(settle: Callable[[], None], done: "Future[T]") -> None:
    while not done.done():  # where there is no memory to say what became of it, it is said again
        try:
            settle()
        except MemoryError:
            time.sleep(_PAUSE_S)


def _undo(made: "Future[T]", undo: Callable[[T], object]) -> None:
    with suppress(Exception):  # it could not be made, or goes on as if it had been left
        undo(made.result())
