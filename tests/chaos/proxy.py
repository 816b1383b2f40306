"""A TCP proxy between clients and the broker that can be slow, silent or cut off.

It listens on the port that the broker's second listener advertises, so clients that start there
stay there. It runs an event loop in a thread of its own; its switches may be set from any thread.
"""

import asyncio
import contextlib
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Self

from durabill.deploy.local.stack import HOST, StackError

CHUNK_BYTES = 64 * 1024
_START_S = 10.0


class Mode(StrEnum):
    """What the proxy does with what it gets."""

    PASS = "pass"
    SLOW = "slow"
    SILENT = "silent"
    CUT = "cut"


@dataclass(slots=True)
class Counters:
    """What went through since the start; `late_bytes` those that were held back first."""

    connections: int = 0
    refused: int = 0
    cut: int = 0
    passed_bytes: int = 0
    late_bytes: int = 0

    def held(self) -> int:
        """Return what was not let through at once: bytes, or connections."""
        return self.refused + self.cut + self.late_bytes


class Proxy:
    """Passes connections to `listen_port` on to `target_port`, as its mode says.

    SLOW passes each chunk after `latency_s`, SILENT keeps connections open and passes nothing until
    the mode changes, CUT closes all connections and every new one. A context manager.
    """

    def __init__(self, listen_port: int, target_port: int) -> None:
        self.counters = Counters()
        self.listen_port = listen_port
        self._target_port = target_port
        self._mode = Mode.PASS
        self._latency_s = 0.0
        self._loop = asyncio.new_event_loop()
        self._open: set[asyncio.StreamWriter] = set()
        self._changed = asyncio.Event()
        self._started = threading.Event()
        self._error: OSError | None = None
        self._stop: asyncio.Event = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="proxy", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        if not self._started.wait(_START_S) or self._error is not None:
            raise StackError(f"the proxy can't listen on port {self.listen_port}: {self._error}")
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def switch(self, mode: Mode, latency_s: float = 0.0) -> None:
        """Go over to another mode, for open connections too."""
        self._loop.call_soon_threadsafe(self._switch, mode, latency_s)

    def _switch(self, mode: Mode, latency_s: float) -> None:
        self._mode, self._latency_s = mode, latency_s
        if mode is Mode.CUT:
            self.counters.cut += len(self._open) // 2  # each has two ends
            for writer in self._open:
                writer.transport.abort()
        self._changed.set()
        self._changed = asyncio.Event()

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        try:
            server = await asyncio.start_server(self._accept, HOST, self.listen_port)
        except OSError as error:
            self._error = error
            return
        finally:
            self._started.set()
        await self._stop.wait()
        server.close()
        for writer in self._open:
            writer.transport.abort()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._mode is Mode.CUT:
            self.counters.refused += 1
            writer.transport.abort()
            return
        self.counters.connections += 1
        try:
            back, out = await asyncio.open_connection(HOST, self._target_port)
        except OSError:
            writer.transport.abort()  # the broker is down: so it looks from outside as well
            return
        ends = {writer, out}
        self._open |= ends
        try:
            await asyncio.gather(self._pump(reader, out), self._pump(back, writer))
        except asyncio.CancelledError:
            return  # we stop; asyncio's streams would report a connection that ends so
        finally:
            self._open -= ends
            for each in ends:
                each.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(CHUNK_BYTES):
                await self._hold(len(data))
                self.counters.passed_bytes += len(data)
                writer.write(data)
                await writer.drain()
        writer.transport.abort()

    async def _hold(self, size: int) -> None:
        """Wait as the mode demands."""
        if self._mode is Mode.PASS:
            return
        self.counters.late_bytes += size
        while self._mode is Mode.SILENT:
            await self._changed.wait()
        if self._mode is Mode.SLOW:
            await asyncio.sleep(self._latency_s)


class Line:
    """The proxies of all brokers, switched as one: the line between some clients and Kafka."""

    def __init__(self, proxies: Sequence[Proxy]) -> None:
        self._proxies = proxies

    def switch(self, mode: Mode, latency_s: float = 0.0) -> None:
        """Go over to another mode."""
        for proxy in self._proxies:
            proxy.switch(mode, latency_s)

    def held(self) -> int:
        """Return what was not let through at once: bytes, or connections."""
        return sum(proxy.counters.held() for proxy in self._proxies)
