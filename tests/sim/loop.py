"""An asyncio event loop with a time of its own: no clock, no thread, no socket, no chance.

Time stands still while anything can run, and then jumps to the next timer. Callbacks run in the
order in which they were put, so what happens when is decided by how long a seeded dice has the
simulated brokers take to answer, and by nothing else.

What runs on a host carries it in its context. A frozen host's callbacks are kept until it goes on;
a dead host's never run: whatever it was waiting for, it is gone at that very point.
"""

import asyncio
import heapq
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import Context, ContextVar
from itertools import count
from typing import Any


class Host:
    """A process, as far as the loop has to do with it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.frozen = False
        self.dead = False
        self.held: list[asyncio.Handle] = []


HOST: ContextVar[Host | None] = ContextVar("host", default=None)
"""The host that the running code belongs to; None: the world outside."""


class Killed(BaseException):
    """Ends the code that was running on a host when it died."""


class Stuck(Exception):
    """Nothing is left that could ever happen."""


class SimLoop(asyncio.AbstractEventLoop):
    """The loop of one history."""

    def __init__(self) -> None:
        self.errors: list[BaseException | str] = []
        """What nobody caught."""
        self.steps = 0
        self._now_s = 0.0
        self._ready: deque[asyncio.Handle] = deque()
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._numbers = count()
        self._tasks: list[asyncio.Task[Any]] = []

    # -- what asyncio asks of a loop ----------------------------------------------------------

    def time(self) -> float:
        """Return the time since the history began, in seconds."""
        return self._now_s

    def get_debug(self) -> bool:
        """Tell that asyncio is to do without its own checks."""
        return False

    def is_running(self) -> bool:
        """Tell that it runs: nobody can ask otherwise."""
        return True

    def is_closed(self) -> bool:
        """Tell that it is open."""
        return False

    def create_future(self) -> "asyncio.Future[Any]":
        """Return a new future."""
        return asyncio.Future(loop=self)

    def create_task(
        self, coro: Any, *, name: str | None = None, context: Context | None = None
    ) -> "asyncio.Task[Any]":
        """Have a coroutine run."""
        task = asyncio.Task(coro, loop=self, name=name, context=context)
        task._log_destroy_pending = False  # type: ignore[attr-defined]  # the dead leave some
        self._tasks.append(task)
        return task

    def call_soon(  # type: ignore[override]  # mypy can't follow the arguments of callbacks
        self, callback: Callable[..., Any], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        """Have a callback run after those that are ready."""
        handle = asyncio.Handle(callback, args, self, context)
        self._ready.append(handle)
        return handle

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Callable[..., Any], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        """Have a callback run in a while."""
        return self.call_at(self._now_s + delay, callback, *args, context=context)

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., Any], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        """Have a callback run at a time."""
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        heapq.heappush(self._timers, (when, next(self._numbers), handle))
        return handle

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """Take no note: a cancelled timer is passed over when it comes up."""

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Keep what went wrong for the history's verdict."""
        self.errors.append(context.get("exception") or str(context.get("message")))

    # -- running ------------------------------------------------------------------------------

    def run(self, main: Coroutine[Any, Any, Any], steps_max: int) -> None:
        """Run until `main` is done; raises what it raises, Stuck if it can't get there."""
        asyncio._set_running_loop(self)
        try:
            task = self.create_task(main)
            while not task.done():
                self._run_one()
                self.steps += 1
                if self.steps > steps_max:
                    raise Stuck(f"not done after {steps_max} steps")
            task.result()
        finally:
            self._end_tasks()
            asyncio._set_running_loop(None)

    def _run_one(self) -> None:
        if not self._ready:
            if not self._timers:
                raise Stuck("nothing is left to happen")
            when, _, timer = heapq.heappop(self._timers)
            if timer.cancelled():
                return
            self._now_s = when
            self._ready.append(timer)
        handle = self._ready.popleft()
        if handle.cancelled():
            return
        host = handle._context.get(HOST)  # type: ignore[attr-defined]
        if host is not None and host.dead:
            return
        if host is not None and host.frozen:
            host.held.append(handle)
            return
        handle._run()

    def thaw(self, host: Host) -> None:
        """Let a frozen host go on."""
        host.frozen = False
        held, host.held = host.held, []
        self._ready.extend(held)

    def _end_tasks(self) -> None:
        """Close what is unfinished here and now, not whenever memory is collected."""
        for task in self._tasks:
            if not task.done():
                task.get_coro().close()
