"""Turns of the event loop for whoever asks the worker: a share of it, one after the other.

Theory: the loop that answers questions folds records as well, and most of its time belongs to
them. So what answers cost is added up, and paid back at `share` of the time that passes. While
more than `burst_s` are owed, the next one waits. Few and small questions wait for nothing; a flood
of them, or of questions about orders of thousands of intervals, slows down itself.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable

SHARE = 0.25
BURST_S = 0.02
LEAST_S = 0.000_1
"""What a question costs at least: most of it is HTTP, before and after its turn."""


class Turns:
    """`async with turns:` around what takes the loop's time, and waits for nothing itself.

    Belongs to one event loop. `clock_s` never steps back.
    """

    def __init__(
        self,
        clock_s: Callable[[], float] = time.perf_counter,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._clock_s = clock_s
        self._sleep = sleep
        self._mutex = asyncio.Lock()
        self._paid_at_s = float("-inf")
        """When all that was spent is paid back."""
        self._began_s = 0.0

    async def __aenter__(self) -> None:
        await self._mutex.acquire()
        try:
            wait_s = self._paid_at_s - self._clock_s() - BURST_S / SHARE
            if wait_s > 0:
                await self._sleep(wait_s)
        except BaseException:
            self._mutex.release()
            raise
        self._began_s = self._clock_s()

    async def __aexit__(self, *_: object) -> None:
        spent_s = max(LEAST_S, self._clock_s() - self._began_s)
        self._paid_at_s = max(self._paid_at_s, self._began_s) + spent_s / SHARE
        self._mutex.release()
