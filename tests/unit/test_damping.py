"""Repeated log lines are damped; threads don't die in silence."""

import logging
import subprocess
import sys
import threading

import pytest

from durabill.producers.gateway.damping import Damper, DampingFilter
from durabill.producers.sdk.threads import EXIT_CODE, start_thread
from tests.waiting import HANG_S

log = logging.getLogger("tests.damping")


def test_the_first_of_a_kind_is_logged_and_then_one_a_minute(
    caplog: pytest.LogCaptureFixture,
) -> None:
    now_s = [0.0]
    damper = Damper(log, 60, lambda: now_s[0])
    for at_s in (0, 1, 59, 60, 61, 119, 121):
        now_s[0] = at_s
        damper.warning("a", "came at %d", at_s)
    damper.warning("b", "another")
    assert caplog.messages == [
        "came at 0",
        "came at 60 (and 2 times more like it before)",
        "came at 121 (and 2 times more like it before)",
        "another",
    ]


def test_lines_of_a_library_are_damped_by_their_first_word(
    caplog: pytest.LogCaptureFixture,
) -> None:
    now_s = [0.0]
    library = logging.getLogger("tests.damping.library")
    damping = DampingFilter(60, lambda: now_s[0])
    library.addFilter(damping)
    try:
        for at_s, word in ((0, "FAIL"), (1, "FAIL"), (2, "ERROR"), (61, "FAIL")):
            now_s[0] = at_s
            library.warning("%s [thrd:%d]: it broke", word, at_s)
    finally:
        library.removeFilter(damping)
    assert caplog.messages == [
        "FAIL [thrd:0]: it broke",
        "ERROR [thrd:2]: it broke",
        "FAIL [thrd:61]: it broke (and 1 times more like it before)",
    ]


def test_a_thread_that_dies_tells_whoever_started_it() -> None:
    deaths: list[tuple[str, BaseException]] = []
    told = threading.Event()

    def on_death(error: BaseException) -> None:
        deaths.append((threading.current_thread().name, error))
        told.set()

    def die() -> None:
        raise SystemExit(3)

    start_thread(lambda: None, "ends well", on_death).join()
    start_thread(die, "dies", on_death).join()
    assert told.is_set()
    assert [("dies", SystemExit)] == [(name, type(error)) for name, error in deaths]


def test_by_default_it_ends_the_process_and_says_why() -> None:
    code = (
        "import time\n"
        "from durabill.producers.sdk.threads import start_thread\n"
        "start_thread(lambda: 1 / 0, 'divider')\n"
        "time.sleep(30)\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=HANG_S
    )
    assert ran.returncode == EXIT_CODE
    assert "the thread divider died" in ran.stderr
    assert "ZeroDivisionError" in ran.stderr
