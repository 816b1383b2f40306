"""Clients of a gateway: requests made beforehand, over kept connections, as cheaply as can be."""

import asyncio
import json
import time
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar, cast
from urllib.parse import urlsplit

import uvloop

from tests.bench.processes import BenchError, cpu_s

CONNECTIONS_MAX = 128
WAITING_SEGMENTS_MAX = 20_000  # well within the gateway's quotas
WARM_UP_S = 0.5
ORDERS = 400
T = TypeVar("T")


@dataclass(frozen=True)
class Load:
    """What a server did in a while."""

    requests: int
    cpu_s: float
    wall_s: float


def uploads(host: str, batch: int) -> list[bytes]:
    """Return requests of POST /v1/segments, each with `batch` segments of one order."""
    begin_ms = time.time_ns() // 10**6 - 3_600_000
    made = []
    for order in range(ORDERS):
        segments = [
            {
                "business_data_number": 1 + order + at,
                "start_ms": begin_ms + at * 1_000,
                "end_ms": begin_ms + (at + 1) * 1_000,
                "end_identifier": False,
            }
            for at in range(batch)
        ]
        number = f"01J{order:023d}"
        body = {"uploads": [{"service_order_number": number, "segments": segments}]}
        made.append(request(host, "/v1/segments", json.dumps(body, separators=(",", ":"))))
    return made


def request(host: str, path: str, body: str) -> bytes:
    """Return a whole request as it goes out."""
    head = f"POST {path} HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\n"
    return f"{head}content-length: {len(body)}\r\n\r\n{body}".encode()


class _Connection(asyncio.Protocol):
    """One request at a time; `on_answer` is called with how long it took."""

    def __init__(self, on_answer: Callable[["_Connection", float], None]) -> None:
        self._on_answer = on_answer
        self._read = b""
        self._since_s = 0.0
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's isn't one by its class

    def ask(self, content: bytes, since_s: float) -> None:
        """Send a request; its time counts from `since_s`."""
        assert self._transport is not None
        self._since_s = since_s
        self._transport.write(content)

    def data_received(self, data: bytes) -> None:
        self._read += data
        head, found, body = self._read.partition(b"\r\n\r\n")
        if not found:
            return
        length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
        if len(body) < length:
            return
        if not head.startswith(b"HTTP/1.1 200"):
            raise BenchError(f"the gateway says {self._read[:300]!r}")
        self._read = b""
        self._on_answer(self, time.perf_counter() - self._since_s)

    def close(self) -> None:
        """End it."""
        if self._transport is not None:
            self._transport.close()


class _Clients:
    """Connections that send `requests` in turn. With a rate they wait for their turn, else not."""

    def __init__(self, requests: list[bytes]) -> None:
        self._requests = requests
        self._next = 0
        self._free: list[_Connection] = []
        self._due: deque[float] = deque()
        self.is_paced = False
        self.took_s: list[float] = []

    async def connect(self, url: str, count: int) -> None:
        """Open connections."""
        loop, address = asyncio.get_running_loop(), urlsplit(url)
        host, port = address.hostname or "", address.port or 0
        for _ in range(count):
            _, connection = await loop.create_connection(
                lambda: _Connection(self._on_answer), host, port
            )
            self._free.append(connection)
        self._all = list(self._free)

    def close(self) -> None:
        """End all connections."""
        for each in self._all:
            each.close()

    def start_all(self) -> None:
        """Have every connection send, and again at each answer."""
        while self._free:
            self._send(self._free.pop(), time.perf_counter())

    async def pace(self, rate: float, seconds: float) -> None:
        """Send at a rate, whether answers come or not: what waits for a connection counts."""
        begun_s, sent = time.perf_counter(), 0
        while (now_s := time.perf_counter()) < begun_s + seconds:
            while (due_s := begun_s + sent / rate) <= now_s:
                sent += 1
                if self._free:
                    self._send(self._free.pop(), due_s)
                else:
                    self._due.append(due_s)
            await asyncio.sleep(0.0005)

    def _send(self, connection: _Connection, since_s: float) -> None:
        self._next = (self._next + 1) % len(self._requests)
        connection.ask(self._requests[self._next], since_s)

    def _on_answer(self, connection: _Connection, took_s: float) -> None:
        self.took_s.append(took_s)
        if not self.is_paced:
            self._send(connection, time.perf_counter())
        elif self._due:
            self._send(connection, self._due.popleft())
        else:
            self._free.append(connection)


def connections_for(batch: int) -> int:
    """Return how many connections keep a server at work with requests of that size.

    A gateway lets requests wait for company for some ms: so many have to wait beside each other.
    """
    return min(CONNECTIONS_MAX, WAITING_SEGMENTS_MAX // batch)


def saturate(url: str, requests: list[bytes], batch: int, pid: int, seconds: float) -> Load:
    """Return what a server does that always has work."""

    async def run() -> Load:
        clients = _Clients(requests)
        await clients.connect(url, connections_for(batch))
        clients.start_all()
        await asyncio.sleep(WARM_UP_S)
        done, used_s, begun_s = len(clients.took_s), cpu_s(pid), time.perf_counter()
        await asyncio.sleep(seconds)
        load = Load(len(clients.took_s) - done, cpu_s(pid) - used_s, time.perf_counter() - begun_s)
        clients.close()
        return load

    return _run(run())


def wait_times_s(
    url: str, requests: list[bytes], batch: int, rate: float, seconds: float
) -> list[float]:
    """Return how long each request took at `rate` requests a second, in order of size."""

    async def run() -> list[float]:
        clients = _Clients(requests)
        clients.is_paced = True
        await clients.connect(url, connections_for(batch))
        await clients.pace(rate, WARM_UP_S)
        done = len(clients.took_s)
        await clients.pace(rate, seconds)
        await asyncio.sleep(1.0)
        clients.close()
        return sorted(clients.took_s[done:])

    return _run(run())


def _run(work: Coroutine[Any, Any, T]) -> T:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        failed: list[BaseException] = []

        def tell(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
            failed.append(context.get("exception") or RuntimeError(context["message"]))

        runner.get_loop().set_exception_handler(tell)
        result = runner.run(work)
    if failed:
        raise failed[0]
    return result
