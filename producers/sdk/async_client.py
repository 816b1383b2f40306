"""The SDK for asyncio: the same client, on the same spool, without blocking the event loop.

    async with AsyncClient(HttpUplink("http://gateway:8080"), "meter.spool") as client:
        service = await client.start()
        ...
        await service.end()

Whatever may wait for a disk or a server runs in threads of the client's own. Waiting until the
server has something takes none: ten thousand may await their `end` at once.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from durabill.producers.sdk.client import Client, ClientStopped
from durabill.producers.sdk.service import EndReceipt, Service
from durabill.producers.sdk.session import SessionState
from durabill.producers.sdk.spool import RejectedSegment
from durabill.producers.sdk.standing import ClientStats
from durabill.producers.sdk.uplink import Grant, Uplink

T = TypeVar("T")

_THREADS_MAX = 16
_LOOK_EVERY_S = 5.0  # for those who wait, should a word get lost


class AsyncService:
    """A service that is being metered. Made by `AsyncClient.start` and `resume`.

    As an asynchronous context manager it ends when the block does.
    """

    def __init__(self, client: "AsyncClient", service: Service) -> None:
        self._client = client
        self._service = service

    @property
    def service_order_number(self) -> str:
        """The order number that the server knows this service by."""
        return self._service.service_order_number

    @property
    def state(self) -> SessionState:
        """Where the service stands as of its last stored segment."""
        return self._service.state

    async def end(self, timeout_s: float = 30.0) -> EndReceipt:
        """Store the last segments, wait until the server has everything, and say how it stands.

        As `Service.end`. Where it is cancelled, the service has ended all the same.
        """
        return await self._client._end(self._service, timeout_s)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.end()


class AsyncClient:
    """Meters services, as `Client` does, with the same arguments; for one event loop.

    It is open from `open`, or the beginning of its `async with` block, on. Raises what `Client`
    does; before it is open, and after `close`, ClientStopped.
    """

    def __init__(self, uplink: Uplink, spool_path: Path | str, **options: Any) -> None:
        self._make = lambda: Client(uplink, spool_path, **options)
        self._threads = ThreadPoolExecutor(_THREADS_MAX, "durabill-async")
        self._opened: Client | None = None
        self._waiting: dict[asyncio.Future[None], str | None] = {}
        self._check: asyncio.Task[None] | None = None
        self._has_changed = asyncio.Event()
        self._watch = AsyncExitStack()

    async def open(self) -> Self:
        """Open the spool, and begin to send what is in it."""
        if self._opened is None:
            loop = asyncio.get_running_loop()
            self._opened = await self._kept(self._make, lambda made: made.close(timeout_s=0.0))

            def changed() -> None:
                with suppress(RuntimeError):  # the loop is closed: nobody waits
                    loop.call_soon_threadsafe(self._has_changed.set)

            self._watch.enter_context(self._opened.watched(changed))
            self._check = asyncio.create_task(self._check_forever())
        return self

    async def start(
        self,
        service_order_number: str | None = None,
        *,
        grant: Grant | None = None,
        timeout_s: float = 10.0,
    ) -> AsyncService:
        """Ask the server for an order and begin to meter it, as `Client.start`.

        Where it is cancelled, an order that the server grants all the same is ended at once.
        """
        client = self._client()
        service = await self._kept(
            lambda: client.start(service_order_number, grant=grant, timeout_s=timeout_s),
            lambda started: started.end(timeout_s=0.0),
        )
        return AsyncService(self, service)

    async def unfinished(self) -> list[SessionState]:
        """Return the services that an earlier client on this spool left running."""
        return await self._run(self._client().unfinished)

    async def resume(
        self,
        service_order_number: str,
        *,
        count_gap: bool = False,
        server_timestamp_ms: int | None = None,
        timeout_s: float = 10.0,
    ) -> AsyncService:
        """Carry on a service of `unfinished()`, as `Client.resume`.

        Where it is cancelled, the service stays unfinished, or is so again.
        """
        client = self._client()
        service = await self._kept(
            lambda: client.resume(
                service_order_number,
                count_gap=count_gap,
                server_timestamp_ms=server_timestamp_ms,
                timeout_s=timeout_s,
            ),
            client.let_go,
        )
        return AsyncService(self, service)

    async def stats(self) -> ClientStats:
        """Return how the client stands, as `Client.stats`."""
        return await self._run(self._client().stats)

    async def rejected(self) -> list[RejectedSegment]:
        """Return the segments that were set aside, as `Client.rejected`."""
        return await self._run(self._client().rejected)

    async def retry_rejected(self) -> int:
        """Send the refused segments once more, as `Client.retry_rejected`."""
        return await self._run(self._client().retry_rejected)

    async def discard_rejected(self, service_order_number: str | None = None) -> int:
        """Drop the refused segments, as `Client.discard_rejected`."""
        client = self._client()
        return await self._run(lambda: client.discard_rejected(service_order_number))

    async def receipts(self, service_order_number: str | None = None) -> list[str]:
        """Return the server's receipts, as `Client.receipts`."""
        client = self._client()
        return await self._run(lambda: client.receipts(service_order_number))

    async def flush(self, timeout_s: float = 30.0) -> int:
        """Wait until all that is stored has been sent or refused; return how much still waits."""
        return await self._sent(None, timeout_s)

    async def close(self, timeout_s: float = 5.0) -> None:
        """Store what is due, give the sender `timeout_s`, stop: as `Client.close`."""
        client, self._opened = self._opened, None
        if client is None:
            return
        try:
            await asyncio.shield(self._run(lambda: client.close(timeout_s)))
        finally:
            await self._watch.aclose()
            if self._check is not None:
                self._check.cancel()
            for future in self._waiting:
                if not future.done():
                    future.set_exception(ClientStopped("this client is closed"))
            self._threads.shutdown(wait=False)

    async def __aenter__(self) -> Self:
        return await self.open()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    def _client(self) -> Client:
        if self._opened is None:
            raise ClientStopped("this client is not open: use it as `async with AsyncClient(…)`")
        return self._opened

    async def _run(self, act: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, act)

    async def _kept(self, make: Callable[[], T], undo: Callable[[T], object]) -> T:
        """Return what a thread makes; where we are cancelled, undo what it makes all the same."""
        asked = self._threads.submit(make)
        try:
            return await asyncio.wrap_future(asked)
        except asyncio.CancelledError:
            # Nobody would ever have it; in the thread that makes it, or in this one if it has.
            asked.add_done_callback(lambda done: _undo_quietly(done, undo))
            raise

    async def _end(self, service: Service, timeout_s: float) -> EndReceipt:
        client, number = self._client(), service.service_order_number
        receipt = await asyncio.shield(self._run(lambda: service.end(timeout_s=0.0)))
        if not receipt.pending or timeout_s <= 0:
            return receipt
        pending = await self._sent(number, timeout_s)
        return await self._run(lambda: client.end_receipt(service, pending))

    async def _sent(self, number: str | None, timeout_s: float) -> int:
        client = self._client()
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[future] = number
        self._has_changed.set()
        try:
            with client.hurried():
                async with asyncio.timeout(timeout_s):
                    await future
        except TimeoutError:
            pass
        finally:
            del self._waiting[future]
        return (await self._run(lambda: client.pending_of([number])))[number]

    async def _check_forever(self) -> None:
        """See to those who wait, all at once, whenever something has changed."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_EVERY_S):
                    await self._has_changed.wait()
            self._has_changed.clear()
            client = self._opened
            if client is None or not self._waiting:
                continue
            numbers = list(set(self._waiting.values()))
            try:
                pending = await self._run(lambda: client.pending_of(numbers))  # noqa: B023
            except Exception as error:
                for future in self._waiting:
                    if not future.done():
                        future.set_exception(error)
                continue
            for future, number in self._waiting.items():
                if not pending.get(number, 1) and not future.done():
                    future.set_result(None)


def _undo_quietly(made: Future[T], undo: Callable[[T], object]) -> None:
    with suppress(Exception):  # it could not be made, or will be unfinished: nothing is lost
        if not made.cancelled():
            undo(made.result())
