"""What the crash tests inject into a worker as `on_step`: it dies after a step, at a given time."""

import os
import signal
from collections.abc import Callable

from durabill.stream_processors.worker.effect_order import Step


class CrashAt:
    """Has a worker crash after a step has been done for the n-th time."""

    def __init__(self, step: Step, times: int, crash: Callable[[], None]) -> None:
        self._step = step
        self._left = times
        self._crash = crash

    def __call__(self, step: Step) -> None:
        """Take note that a step is done."""
        if step is self._step:
            self._left -= 1
            if self._left == 0:
                self._crash()


def kill_at(spec: str) -> CrashAt:
    """Return what kills this process as `step:n` says."""
    step, _, times = spec.partition(":")
    return CrashAt(Step(step), int(times), lambda: os.kill(os.getpid(), signal.SIGKILL))
