"""Faust's clients, made to wait for a Kafka that went away after the worker's first look at it."""

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
"""The same time for which brokers may be gone later on, before a worker ends."""

CONNECT_PAUSE_S = 0.5
WATCH_S = 1.0


async def until_connected(start: Callable[[], Awaitable[None]], client: Callable[[], Any]) -> None:
    """Start an aiokafka client, and wait for a broker that has gone since we looked.

    `client` returns the client that `start` made. Raises UnreachableError after CONNECT_PATIENCE_S.
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
    """Faust's consumer thread, which also raises errors of the group.

    aiokafka keeps such an error until the next fetch. Faust fetches nothing before it has
    partitions, so it would wait forever.
    """

    _watching: "asyncio.Task[None] | None" = None

    async def on_start(self) -> None:
        """Start the consumer, as soon as Kafka answers."""
        await until_connected(super().on_start, lambda: self._consumer)
        self._watching = asyncio.ensure_future(self._watch_group())

    async def on_thread_stop(self) -> None:
        """Stop watching the group, then stop the consumer."""
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
    """Faust's consumer, which asks Kafka nothing when there is nothing to recover."""

    async def earliest_offsets(self, *partitions: TP) -> dict[TP, int]:
        """Return 0: Faust asks where changelogs begin, but we have read them to their ends already.

        Without a broker aiokafka would give up on the question after 30 s, and end Faust.
        """
        return dict.fromkeys(partitions, 0)


class PatientProducer(base.Producer):
    """Faust's producer."""

    async def on_start(self) -> None:
        """Start it, as soon as Kafka answers."""
        await until_connected(super().on_start, lambda: self._producer)
