"""Which records of a producer Kafka has acknowledged, by flush generation.

A record is counted in the generation that is open when it is produced. Whoever needs all of them
delivered closes the generation, and waits until nothing of it, or of those before, is missing.
Reports come from the thread that polls the producer, and waiters are on the event loop.

(Two producers of the stream processors need no such count. A transaction's commit speaks for all
that is in it; and a record that is sent back is waited for by `flush`, then looked up.)
"""

import asyncio
import contextlib
import threading
from collections.abc import Callable
from functools import partial

from confluent_kafka import KafkaError, Message

OnDelivery = Callable[[KafkaError | None, Message], None]


class Deliveries:
    """Counts records until they are acknowledged; `on_lost` gets the error of one that can't be.

    `expect` and the reports it returns may be called by any thread; `on_lost` is called by the one
    that reports. A generation with a lost record is never acknowledged.
    """

    def __init__(self, on_lost: Callable[[BaseException], None]) -> None:
        self._on_lost = on_lost
        self._generation = 0
        self._missing = {0: 0}
        self._mutex = threading.Lock()
        self._waiters: list[tuple[int, asyncio.Future[None]]] = []

    def expect(self) -> OnDelivery:
        """Count one more record; return its `on_delivery`."""
        with self._mutex:
            self._missing[self._generation] += 1
            return partial(self._report, self._generation)

    def close_generation(self) -> int:
        """Close the open generation and return it: all records so far are in it or before."""
        with self._mutex:
            closed = self._generation
            self._generation += 1
            self._missing[self._generation] = 0
        return closed

    async def acknowledged(self, generation: int) -> None:
        """Return once every record of a closed generation, and before, has been acknowledged."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        with self._mutex:
            if self._is_acknowledged(generation):
                return
            self._waiters.append((generation, waiter))
        await waiter

    def _is_acknowledged(self, generation: int) -> bool:
        for each in sorted(self._missing):
            if each > generation:
                return True
            if self._missing[each]:
                return False
            if each < self._generation:
                del self._missing[each]
        return True

    def _report(self, generation: int, error: KafkaError | None, message: Message) -> None:
        if error is not None:
            lost = f"a record for {message.topic()} was not delivered: {error}"
            self._on_lost(RuntimeError(lost))
            return
        with self._mutex:
            self._missing[generation] -= 1
            if self._missing[generation]:
                return
            ready = [each for each in self._waiters if self._is_acknowledged(each[0])]
            self._waiters = [each for each in self._waiters if each not in ready]
        for _, waiter in ready:
            # A report that comes while the process ends finds the loop closed, and nobody to tell.
            with contextlib.suppress(RuntimeError):
                waiter.get_loop().call_soon_threadsafe(_resolve, waiter)


def _resolve(waiter: "asyncio.Future[None]") -> None:
    if not waiter.done():
        waiter.set_result(None)
