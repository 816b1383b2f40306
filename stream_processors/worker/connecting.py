"""Faust's clients, made to wait for a Kafka that went away after the worker's first look at it."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

from aiokafka.cluster import ClusterMetadata
from aiokafka.errors import KafkaConnectionError
from faust.transport.drivers import aiokafka as base
from faust.types import TP

from durabill.schemas.errors import UnreachableError

log = logging.getLogger("durabill.kafka")

CONNECT_PATIENCE_S = 120.0
"""The same time for which brokers may be gone later on, before a worker ends."""

CONNECT_PAUSE_S = 0.5
WATCH_S = 1.0


async def until_connected(
    start: Callable[[], Awaitable[None]],
    client: Callable[[], Any],
    cluster: Callable[[], ClusterMetadata],
) -> None:
    """Start an aiokafka client, and wait for a broker that has gone since we looked.

    `client` returns the client that `start` made, `cluster` what that one has learned. Raises
    UnreachableError after CONNECT_PATIENCE_S.
    """
    started_s = time.monotonic()
    while True:
        try:
            await start()
            if not cluster().brokers():
                # Its controller has heard of no broker for so long that it took all for dead. A
                # consumer would end its group's routine on that, and wait for ever.
                raise KafkaConnectionError("it answers, but names no broker that is alive")
            return
        except KafkaConnectionError as error:
            log.warning("waiting for Kafka: %s", error)
            await client().stop()
            if time.monotonic() > started_s + CONNECT_PATIENCE_S:
                raise UnreachableError(
                    f"Kafka hasn't answered for {CONNECT_PATIENCE_S:g} s: {error}"
                ) from error
        await asyncio.sleep(CONNECT_PAUSE_S)


def group_error(coordinator: Any) -> BaseException | None:
    """Return what aiokafka's part in the group has failed of, by now."""
    routine: asyncio.Task[None] = coordinator._coordination_task
    ended = routine.exception() if routine.done() and not routine.cancelled() else None
    pending: BaseException | None = coordinator._pending_exception
    return ended or pending


class PatientConsumerThread(base.AIOKafkaConsumerThread):
    """Faust's consumer thread, which also raises errors of the group.

    aiokafka keeps such an error, and what ended its group's routine, until the next fetch. Faust
    fetches nothing before it has partitions, so it would wait forever.
    """

    _watching: "asyncio.Task[None] | None" = None

    async def on_start(self) -> None:
        """Start the consumer, as soon as Kafka answers."""
        await until_connected(
            super().on_start,
            lambda: self._consumer,
            lambda: self._ensure_consumer()._client.cluster,
        )
        self._watching = asyncio.ensure_future(self._watch_group())

    async def on_thread_stop(self) -> None:
        """Stop watching the group, then stop the consumer."""
        if self._watching is not None:
            self._watching.cancel()
        await super().on_thread_stop()

    async def _watch_group(self) -> None:
        while not self.should_stop:
            await asyncio.sleep(WATCH_S)
            error = group_error(self._ensure_consumer()._coordinator)
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

        def cluster() -> ClusterMetadata:
            return self._ensure_producer().client.cluster

        await until_connected(super().on_start, lambda: self._producer, cluster)
