"""The gateway's HTTP server: aiohttp's, with bounds on what strangers may hold and for how long.

Theory: a connection is in one of three states. Either we wait for bytes of its client (a head, a
body, the next request, the reading of our answer), since a known time and with a limit to it; or
its request is being worked on. Once a second whoever has kept us waiting too long is cut off. At
the limits of connections and of body bytes in memory it is the one that has kept us waiting longest
that goes: so slow clients, however many, don't keep out those that are quick.
"""

import asyncio
import ipaddress
import json
import logging
import resource
import socket
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, cast

from aiohttp import hdrs, web
from aiohttp.http_exceptions import HttpProcessingError

from durabill.producers.gateway.damping import Damper
from durabill.schemas.web import BAD_HTTP, OUR_FAULT, PROBLEM, SERVER_NAME, UNEXPECTED, problem

log = logging.getLogger(__name__)

READ_BUFFER_BYTES = 32 * 1024
WRITE_BUFFER_BYTES = 16 * 1024
DISCARD_BYTES_MAX = 2 * 1024 * 1024
"""What is read and thrown away of a body that was refused: a client that is still sending could
not read our answer otherwise. Beyond that the connection is cut."""
DISCARD_S_MAX = 3.0
SWEEP_S = 1.0
LISTEN_BACKLOG = 1_024
SEND_BUFFER_BYTES = 64 * 1024
"""Of an answer so much waits in the kernel, which would take megabytes for each slow reader."""
OTHER_FILES = 256
"""File descriptors that are left for Kafka, workers, the ledger and the log."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What the clients of a server may hold. Raises ValueError for values below 1.

    `head_timeout_s` counts from a connection's start, or from the first byte of a later head, to
    the head's end; `body_timeout_s` from there to the body's end; `keepalive_s` from an answer
    to the first byte of the next request. An address is an IPv4 address or an IPv6 /64.
    """

    connections_max: int = 4_000
    connections_per_address_max: int = 2_000
    head_timeout_s: float = 15.0
    body_timeout_s: float = 20.0
    keepalive_s: float = 75.0
    body_bytes_max: int = 1024 * 1024
    bodies_bytes_max: int = 64 * 1024 * 1024
    answers_bytes_max: int = 64 * 1024 * 1024

    def __post_init__(self) -> None:
        counts = (
            self.connections_max,
            self.connections_per_address_max,
            self.body_bytes_max,
            self.bodies_bytes_max,
            self.answers_bytes_max,
        )
        if min(counts) < 1 or min(self.head_timeout_s, self.body_timeout_s, self.keepalive_s) <= 0:
            raise ValueError("limits of connections, bytes (body_bytes_max) and times: 1 or more")


def fit_limits(limits: Limits) -> Limits:
    """Return limits of connections that this process has file descriptors for.

    Raises its soft limit of open files as far as that is needed and allowed.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = limits.connections_max + OTHER_FILES
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return limits
    given = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (given, hard))
    if given == wanted:
        return limits
    fitting = max(1, given - OTHER_FILES)
    text = "%d open files are allowed (ulimit -n), so at most %d connections at once, not %d"
    log.warning(text, given, fitting, limits.connections_max)
    return replace(limits, connections_max=fitting)


class BodyFailed(Exception):
    """A body did not come whole: too large (413), too slow (408), or no more (400)."""

    def __init__(self, status: int, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.status, self.reason, self.detail = status, reason, detail


def client_of(address: str) -> str:
    """Return what counts as one client: an IPv4 address, or the /64 of an IPv6 one."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv4Address):
        return str(parsed)
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.ip_network((parsed, 64), strict=False))


class Held(Protocol):
    """What counts as a connection: one that has requests, or is still on its way to them."""

    client: str
    waits_until_s: float | None
    body_bytes: int

    @property
    def unread_bytes(self) -> int:
        """Of answers that its client hasn't read."""

    @property
    def is_there(self) -> bool:
        """Whether it has not ended."""

    def cut_off(self) -> None:
        """End it now."""


class Connection(web.RequestHandler):
    """One client's connection. All times are those of the event loop."""

    def __init__(self, owner: "Connections", *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._owner = owner
        self.client = ""
        self.local_address = ""
        self.waits_until_s: float | None = None  # for bytes of the client; None: we work
        self.is_idle = False
        self.body_bytes = 0
        self.good_host: str | None = None  # a Host that was found to be ours
        self.replaces: Held | None = None  # what has stood for it so far
        self._discarded: int | None = None  # bytes, once the rest is only thrown away

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the connection, or close it at once where there are too many."""
        if self.replaces is not None:
            self._owner.remove(self.replaces)
            self.replaces = None
        peer = transport.get_extra_info("peername")
        local = transport.get_extra_info("sockname")
        self.client = client_of(peer[0]) if isinstance(peer, tuple) else ""
        self.local_address = local[0] if isinstance(local, tuple) else ""
        super().connection_made(transport)
        # uvloop's transports are none by their class.
        cast(asyncio.WriteTransport, transport).set_write_buffer_limits(high=WRITE_BUFFER_BYTES)
        self._owner.add(self)

    @property
    def is_there(self) -> bool:
        """Whether it has not ended."""
        return self.transport is not None

    @property
    def unread_bytes(self) -> int:
        """Of answers that its client hasn't read."""
        transport = cast(asyncio.WriteTransport | None, self.transport)
        return 0 if transport is None else transport.get_write_buffer_size()

    def connection_lost(self, exc: BaseException | None) -> None:
        """Forget it."""
        self._owner.remove(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take bytes; the first ones after an answer begin a head, which must end in time."""
        if self.is_idle and data:
            self.is_idle = False
            self._owner.waits(self, self._owner.limits.head_timeout_s)
        if self._discarded is not None and data:
            self._discarded += len(data)
            if self._discarded > DISCARD_BYTES_MAX:
                self.cut_off()
                return
        super().data_received(data)

    def request_begins(self) -> None:
        """Note that a head has come whole: whatever takes time now is ours, or the body's."""
        self.is_idle = False
        self._discarded = None
        self._owner.works(self)

    def request_ends(self, has_unread_body: bool) -> None:
        """Note that the answer goes out: what is left of the body is thrown away, within limits."""
        self._discarded = 0 if has_unread_body else None
        self.is_idle = True
        self._owner.waits(self, self._owner.limits.keepalive_s)

    async def read_body(self, request: web.BaseRequest) -> bytes | bytearray:
        """Return the body as it was sent; raise BodyFailed for what is too large or too slow."""
        size, limit = request.content_length, self._owner.limits.body_bytes_max
        if size is not None and size > limit:
            raise _too_large(limit)
        content = request.content
        try:
            if content.is_eof():  # it came with the head, as most do
                body = content.read_nowait()
                if len(body) > limit:
                    raise _too_large(limit)
                return body
            timeout_s = self._owner.limits.body_timeout_s
            self._owner.waits(self, timeout_s + SWEEP_S)  # it ends here, with an answer
            async with asyncio.timeout(timeout_s):
                return await self._read_slowly(content, limit)
        except TimeoutError as error:
            raise BodyFailed(408, "BODY_TIMEOUT", "the body did not come in time") from error
        except (ConnectionError, web.RequestPayloadError, HttpProcessingError) as error:
            # aiohttp's stream keeps the exception, whose frames keep the stream, and the body.
            error.__traceback__ = None
            raise BodyFailed(400, "BAD_BODY", "the body broke off, or is framed wrongly") from error
        finally:
            self._owner.works(self)
            self._owner.gave_back(self)

    async def _read_slowly(self, content: Any, limit: int) -> bytearray:
        body = bytearray()
        try:
            while chunk := await content.readany():
                body += chunk
                if len(body) > limit:
                    raise _too_large(limit)
                self._owner.holds(self, len(body))
        except BaseException:
            body.clear()  # whatever still refers to it
            raise
        return body

    def cut_off(self) -> None:
        """End the connection now, whatever is under way on it."""
        self._owner.remove(self)
        transport = self.transport
        self.force_close()
        if transport is not None:
            transport.abort()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer what is no HTTP. That is the client's mistake, so the log has nothing of it."""
        if isinstance(exc, HttpProcessingError):
            response = _said(*BAD_HTTP)
        elif hdrs.EXPECT in request.headers and isinstance(exc, UnicodeEncodeError):
            response = _said(*UNEXPECTED)  # aiohttp's own answer would repeat what is no text
        else:
            super().handle_error(request, status, exc, message)  # tells the log
            response = _said(*OUR_FAULT)
        self.request_ends(has_unread_body=True)
        response.force_close()
        return response

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Send an answer, within limits.

        aiohttp gives one by itself to an `Expect` where there is no route.
        """
        if isinstance(resp, web.HTTPException):
            resp = _said(*UNEXPECTED)
            self.request_ends(has_unread_body=True)
            resp.force_close()
        self._owner.answers(resp.content_length or 0)
        return await super().finish_response(request, resp, start_time)


def _said(status: int, reason: str, detail: str) -> web.Response:
    """Return the answer to what came to no route, in the form of all errors."""
    body = json.dumps(problem(status, reason, detail)).encode()
    headers = {hdrs.SERVER: SERVER_NAME}
    return web.Response(body=body, status=status, content_type=PROBLEM, headers=headers)


def _too_large(limit: int) -> BodyFailed:
    return BodyFailed(413, "REQUEST_ENTITY_TOO_LARGE", f"a body has at most {limit} bytes")


@dataclass(slots=True)
class _Group:
    """Connections that share a limit: how many, and those that wait, the longest first."""

    count: int = 0
    waiting: dict[Held, None] = field(default_factory=dict)


class Connections:
    """All connections of a server, and what they hold together. Belongs to one event loop."""

    def __init__(self, limits: Limits, damper: Damper | None = None) -> None:
        self.limits = limits
        self._damper = Damper(log) if damper is None else damper
        self.now_s: Callable[[], float] = asyncio.get_running_loop().time
        self._all = _Group()
        self._clients: dict[str, _Group] = {}
        self._known: set[Held] = set()
        self._body_bytes = 0
        self._answer_bytes = 0
        """Of answers that are not read yet, at most."""

    def add(self, new: Held) -> None:
        """Take a new connection; at a limit, end the one that has kept us waiting longest for it.

        Where all are at work, the new one is ended.
        """
        own = self._clients.setdefault(new.client, _Group())
        if own.count >= self.limits.connections_per_address_max:
            self._make_room(own, new, f"from {new.client}")
        elif self._all.count >= self.limits.connections_max:
            self._make_room(self._all, new, "in all")
        if not new.is_there:
            if not own.count:
                del self._clients[new.client]
            return
        self._known.add(new)
        for group in (self._all, self._clients.setdefault(new.client, own)):
            group.count += 1
        self.waits(new, self.limits.head_timeout_s)

    def _make_room(self, group: _Group, new: Held, what: str) -> None:
        self._damper.warning(
            f"connections {what}",
            "the limit of %d connections %s is reached; the longest waiting go",
            group.count,
            what,
        )
        next(iter(group.waiting), new).cut_off()

    def remove(self, gone: Held) -> None:
        """Forget a connection that has ended."""
        if gone not in self._known:
            return
        self.works(gone)
        self.gave_back(gone)
        self._known.discard(gone)
        own = self._clients[gone.client]
        for group in (self._all, own):
            group.count -= 1
        if not own.count:
            del self._clients[gone.client]

    def waits(self, each: Held, may_wait_s: float) -> None:
        """Note that we wait for a connection's client from now on, and how long at most."""
        each.waits_until_s = self.now_s() + may_wait_s
        if each in self._known:
            for group in (self._all, self._clients[each.client]):
                group.waiting.pop(each, None)
                group.waiting[each] = None

    def works(self, each: Held) -> None:
        """Note that its client waits for us."""
        each.waits_until_s = None
        if each in self._known:
            for group in (self._all, self._clients[each.client]):
                group.waiting.pop(each, None)

    def holds(self, reader: Held, body_bytes: int) -> None:
        """Note that a body has come so far; cut off the slowest ones if all are too much."""
        self._body_bytes += body_bytes - reader.body_bytes
        reader.body_bytes = body_bytes
        while self._body_bytes > self.limits.bodies_bytes_max:
            slowest = next((each for each in self._all.waiting if each.body_bytes), reader)
            limit = self.limits.bodies_bytes_max
            text = "bodies of over %d bytes wait for their ends; the slowest go"
            self._damper.warning("bodies", text, limit)
            self.gave_back(slowest)
            slowest.cut_off()

    def gave_back(self, reader: Held) -> None:
        """Note that a connection holds no body any more."""
        self._body_bytes -= reader.body_bytes
        reader.body_bytes = 0

    def answers(self, answer_bytes: int) -> None:
        """Note that an answer goes out now; cut off who reads the slowest if all are too much."""
        self._answer_bytes += answer_bytes
        limit = self.limits.answers_bytes_max
        if self._answer_bytes <= limit:
            return
        # Most of it has been read by now. What is left is halved, so this comes seldom.
        unread = {each: each.unread_bytes for each in self._all.waiting}
        left = sum(unread.values())
        if left > limit // 2:
            text = "answers of over %d bytes wait for their readers; the slowest go"
            self._damper.warning("answers", text, limit // 2)
        for each in [each for each, size in unread.items() if size]:
            if left <= limit // 2:
                break
            left -= unread[each]
            each.cut_off()
        self._answer_bytes = left + answer_bytes

    def end_greetings(self) -> None:
        """Cut off whatever has no requests yet: nobody else would end it."""
        for each in [each for each in self._known if not isinstance(each, Connection)]:
            each.cut_off()

    async def sweep_forever(self) -> None:
        """Cut off whoever has kept us waiting for too long."""
        while True:
            await asyncio.sleep(min(SWEEP_S, self.limits.head_timeout_s / 4))
            now_s = self.now_s()
            for each in list(self._all.waiting):
                if each.waits_until_s is not None and now_s > each.waits_until_s:
                    each.cut_off()


class Listener(Protocol):
    """Takes connections in another way than the event loop's own server."""

    async def start(
        self, host: str, port: int, owner: Connections, connect: Callable[[], Connection]
    ) -> int:
        """Listen, and return the port. Raises OSError if it can't be had."""

    def close(self) -> None:
        """Take no more."""


class BoundedServer:
    """Serves an aiohttp application within limits, from `start` to `stop`.

    `listener` takes the connections where they don't speak HTTP at once.
    """

    def __init__(
        self,
        app: web.Application,
        limits: Limits,
        *,
        access_log: logging.Logger | None,
        shutdown_timeout_s: float,
        listener: Listener | None = None,
    ) -> None:
        self._listener = listener
        self._runner = web.AppRunner(app, shutdown_timeout=shutdown_timeout_s)
        self._limits = limits
        self._options: dict[str, Any] = {
            "keepalive_timeout": limits.keepalive_s,
            "auto_decompress": False,  # nobody's bytes are unpacked here
            "read_bufsize": READ_BUFFER_BYTES,
            "lingering_time": DISCARD_S_MAX,
            "access_log": access_log,
            "access_log_format": '%a "%r" %s %b %Tf s',
            "logger": log,
        }
        self._listening: asyncio.Server | None = None
        self._connections: Connections | None = None
        self.sweeper: asyncio.Task[None] | None = None
        """Runs while the server does; if it ends by itself, the limits hold no more."""

    async def start(self, host: str, port: int) -> int:
        """Start the application and listen; return the port. Raises OSError if it can't."""
        await self._runner.setup()
        server = self._runner.server
        assert server is not None
        loop = asyncio.get_running_loop()
        connections = Connections(self._limits)

        def connect() -> Connection:
            return Connection(connections, server, loop=loop, **self._options)

        self._connections = connections
        if self._listener is not None:
            bound = await self._listener.start(host, port, connections, connect)
        else:
            self._listening = await loop.create_server(
                connect, host or None, port, backlog=LISTEN_BACKLOG
            )
            for each in self._listening.sockets:  # what it takes is as it is
                each.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
            bound = self._listening.sockets[0].getsockname()[1]
        self.sweeper = asyncio.create_task(connections.sweep_forever())
        return bound

    async def stop(self) -> None:
        """Take no more, finish what is under way, and clean the application up."""
        if self._listening is not None:
            self._listening.close()
        if self._listener is not None:
            self._listener.close()
        if self._connections is not None:
            self._connections.end_greetings()
        if self.sweeper is not None:
            self.sweeper.cancel()
        await self._runner.cleanup()
