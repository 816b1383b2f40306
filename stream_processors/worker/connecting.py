"""Faust's clients, which wait where Kafka has gone between our first look at it and their start."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

from aiokafka.errors import KafkaConnectionError
from faust.transport.drivers import aiokafka as base
from faust.types import TP

from durabill.schemas.errors import UnreachableError

log = logging.getLogger("durabill.kafka")

CONNECT_PATIENCE_S = 120.0
"""As long as brokers may be gone later on, before a worker ends."""

CONNECT_PAUSE_S = 0.5
WATCH_S = 1.0


async def until_connected(start: Callable[[], Awaitable[None]], client: Callable[[], Any]) -> None:
    """Start an aiokafka client; a broker that has gone since we looked is waited for.

    `client` returns the one that `start` made. Raises UnreachableError when patience is over.
    """
    started_s = time.monotonic()
    while True:
        try:
            return await start()
        except KafkaConnectionError as error:
            log.warning("waiting for Kafka: %s", error)
            await client().stop()
            if time.monotonic() > started_s + CONNECT_PATIENCE_S:
                raise UnreachableError(
                    f"Kafka hasn't answered for {CONNECT_PATIENCE_S:g} s: {error}"
                ) from error
        await asyncio.sleep(CONNECT_PAUSE_S)


class PatientConsumerThread(base.AIOKafkaConsumerThread):
    """Faust's consumer thread.

    What is wrong with the group, aiokafka keeps until somebody fetches; Faust doesn't before it has
    partitions, and would wait for ever. So it is looked for here.
    """

    _watching: "asyncio.Task[None] | None" = None

    async def on_start(self) -> None:
        """Start the consumer, as soon as Kafka is there."""
        await until_connected(super().on_start, lambda: self._consumer)
        self._watching = asyncio.ensure_future(self._watch_group())

    async def on_thread_stop(self) -> None:
        """Stop looking, then stop the consumer."""
        if self._watching is not None:
            self._watching.cancel()
        await super().on_thread_stop()

    async def _watch_group(self) -> None:
        while not self.should_stop:
            await asyncio.sleep(WATCH_S)
            error = self._ensure_consumer()._coordinator._pending_exception
            if error is not None:
                await self.crash(error)
                return


class PatientConsumer(base.Consumer):
    """Faust's consumer, which asks Kafka nothing in a recovery that has nothing to recover."""

    async def earliest_offsets(self, *partitions: TP) -> dict[TP, int]:
        """Return 0: Faust asks where changelogs begin that have been read to their ends already.

        Asked for it, aiokafka would give up after 30 s without a broker, and Faust with it.
        """
        return dict.fromkeys(partitions, 0)


class PatientProducer(base.Producer):
    """Faust's producer."""

    async def on_start(self) -> None:
        """Start it, as soon as Kafka is there."""
        await until_connected(super().on_start, lambda: self._producer)
