"""Whether a worker that runs also makes progress: each value that must change is watched.

A watched value has to change as long as there is something to do: the offset of a partition with
records waiting, the time of the last checkpoint, the time of the last look at the timers. The age
of the oldest uncommitted record is watched as well. A value that has stood still for
`stall_timeout_s` is a problem, which `/health/live` shows. After twice that time the worker ends
itself, because a restart repairs more than waiting. A thread watches the event loop, which could
not tell that it hangs.
"""

import asyncio
import faulthandler
import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from durabill.schemas.errors import StallError
from durabill.stream_processors.worker.processor import Processor

log = logging.getLogger("durabill.worker")

REMIND_S = 60.0
"""How often the log says again that a partition is held."""


class Watch(NamedTuple):
    """A watched value: it must change while `is_due`, or the worker is stuck."""

    name: str
    value: Any
    is_due: bool


@dataclass(slots=True)
class _Held:
    since_s: float
    told_s: float


@dataclass(slots=True)
class _Seen:
    value: Any
    since_s: float


class Health:
    """Watches a processor. `observe` is called every second or so on the event loop.

    `unowned` returns the partitions that no worker of the group owns.
    """

    def __init__(
        self,
        processor: Processor,
        stall_timeout_s: float,
        clock_s: Callable[[], float] = time.monotonic,
        *,
        unowned: Callable[[], list[int]] = list,
    ) -> None:
        self._processor = processor
        self._unowned = unowned
        self._timeout_s = stall_timeout_s
        self._clock_s = clock_s
        self._seen: dict[str, _Seen] = {}
        self._held: dict[int, _Held] = {}

    def observe(self) -> None:
        """Look at every watch; raise StallError if one has stood still for too long."""
        now_s = self._clock_s()
        self._remind(now_s)
        watches = {watch.name: watch for watch in self._watches()}
        for name in self._seen.keys() - watches.keys():
            del self._seen[name]
        for name, watch in watches.items():
            seen = self._seen.get(name)
            if seen is None or not watch.is_due or seen.value != watch.value:
                self._seen[name] = _Seen(watch.value, now_s)
        if problems := self._problems(2 * self._timeout_s):
            raise StallError(f"the worker is stuck and ends itself: {'; '.join(problems)}")

    def _remind(self, now_s: float) -> None:
        """Log every REMIND_S what is still held, so that the last lines of a log show it."""
        tasks = {each: task for each, task in self._processor.tasks.items() if task.held}
        for partition in self._held.keys() - tasks.keys():
            del self._held[partition]
        for partition, task in tasks.items():
            held = self._held.setdefault(partition, _Held(now_s, now_s))
            if now_s - held.told_s >= REMIND_S:
                held.told_s = now_s
                log.log(
                    logging.CRITICAL if task.is_broken else logging.WARNING,
                    "partition %d has been held for %.0f s: %s",
                    partition,
                    now_s - held.since_s,
                    task.held,
                )

    def _watches(self) -> list[Watch]:
        processor = self._processor
        tasks = processor.tasks.items()
        at_work = bool(tasks)
        return [
            Watch("checkpoints", processor.last_checkpoint_ms, at_work),
            Watch("timers", processor.last_tick_ms, at_work),
            *(
                # `lag` ends at an open transaction; a held partition waits for something else.
                Watch(
                    f"reading partition {each}",
                    task.next_offset,
                    processor.lag(each) > 0 and not task.held,
                )
                for each, task in tasks
            ),
        ]

    def _problems(self, timeout_s: float) -> list[str]:
        now_s = self._clock_s()
        still_s = {name: now_s - seen.since_s for name, seen in self._seen.items()}
        for partition, writer in self._processor.writers.items():
            still_s[f"publishing partition {partition}"] = writer.waiting_s()
        return [f"{name}: still for {s:.0f} s" for name, s in still_s.items() if s > timeout_s]

    def problems(self) -> list[str]:
        """Return what stands still and must not, each in a few words; empty if all is well."""
        return self._problems(self._timeout_s)

    def unready(self) -> list[str]:
        """Return why the worker isn't at work, yet or any more; empty if it is."""
        if self._processor.stopping:
            return ["it is stopping"]
        if not self._processor.is_assigned:
            return ["it has no partitions: it joins the group, or recovers"]
        if not self._processor.tasks and (unowned := self._unowned()):
            # A spare worker is ready only as long as the others own all partitions.
            return [f"it has no partitions, and nobody has {', '.join(map(str, unowned))}"]
        held = [
            f"partition {each} is held: {task.held}"
            for each, task in self._processor.tasks.items()
            if task.held
        ]
        return [*held, *self.problems()]


class Watchdog:
    """Ends the process when its event loop hangs, after it has shown where."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._beaten_s = 0.0
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start to watch the loop; call this on the loop."""
        self._beat(loop)
        self._thread.start()

    def _beat(self, loop: asyncio.AbstractEventLoop) -> None:
        self._beaten_s = time.monotonic()
        loop.call_later(min(1.0, self._timeout_s / 8), self._beat, loop)

    def _watch(self) -> None:
        while True:
            time.sleep(min(1.0, self._timeout_s / 8))
            still_s = time.monotonic() - self._beaten_s
            if still_s > self._timeout_s:
                log.critical("the event loop has hung for %.0f s; the worker ends itself", still_s)
                faulthandler.dump_traceback(sys.stderr)
                sys.stderr.flush()
                os._exit(StallError.exit_code)
