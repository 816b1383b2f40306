"""Connections to the worker's web server: few enough, and every error in our form.

Theory: who connects is nobody yet, and every connection takes a file descriptor, which Kafka's
clients need as well. So there is a limit, and at the limit another connection goes for the new one.
It is a stranger's, as long as there is any that has not shown the worker's token. Some strangers
wait for nothing of ours: they have asked nothing, or don't read their answers. Others ask. Of those
that are more it is the one that has been silent longest: so whoever comes next is served, and
strangers keep out nobody, be it that they hold connections or ask without end.
"""

import asyncio
import logging
from typing import Any, cast

from aiohttp import hdrs, web
from aiohttp.http_exceptions import HttpProcessingError

from durabill.schemas.web import (
    BAD_HTTP,
    OUR_FAULT,
    PROBLEM,
    SERVER_NAME,
    UNEXPECTED,
    Fault,
    problem,
    reason_of,
)

log = logging.getLogger("durabill.worker")

CONNECTIONS_MAX = 250
"""A quarter of the files that a process may have open where nobody has said more (1,024)."""
_RETRY_AFTER_S = "1"


def error_page(status: int, reason: str, detail: str) -> web.Response:
    """Return an error in the form of all errors."""
    body = problem(status, reason, detail)
    response = web.json_response(body, status=status, content_type=PROBLEM)
    if status == 503:
        response.headers[hdrs.RETRY_AFTER] = _RETRY_AFTER_S
    return response


class Connection(web.RequestHandler):
    """One client's connection."""

    def __init__(self, owner: "Connections", *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._owner = owner
        self.is_known = False
        """Whether it has shown the worker's token."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take it; where there are too many, the one that has been silent longest ends."""
        super().connection_made(transport)
        self._owner.hears(self)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Forget it."""
        self._owner.forget(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take bytes: it isn't silent."""
        if data:
            self._owner.hears(self)
        super().data_received(data)

    @property
    def has_asked(self) -> bool:
        """Whether its client waits for us."""
        return self._current_request is not None

    def cut_off(self) -> None:
        """End it now, whatever is under way on it."""
        transport = cast(asyncio.WriteTransport | None, self.transport)
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
        """Answer what is no HTTP; the log has nothing of that, for anybody can send it."""
        if request.writer.output_size > 0:
            raise ConnectionError("a part of an answer is out already")
        if isinstance(exc, HttpProcessingError):
            response = error_page(*BAD_HTTP)
        elif hdrs.EXPECT in request.headers and isinstance(exc, UnicodeEncodeError):
            response = error_page(*UNEXPECTED)  # aiohttp's own answer would repeat what is no text
        else:
            log.error("a request failed", exc_info=exc)
            response = error_page(*OUR_FAULT)
        response.force_close()
        return response

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Send an answer, in our form also where aiohttp gives one by itself: to an `Expect`."""
        if isinstance(resp, web.HTTPException):
            fault = Fault(resp.status, reason_of(resp.status), "")
            resp = error_page(*(UNEXPECTED if resp.status == UNEXPECTED.status else fault))
        resp.headers[hdrs.SERVER] = SERVER_NAME  # aiohttp would tell its version
        return await super().finish_response(request, resp, start_time)


def let_in(request: web.BaseRequest) -> None:
    """Note that the connection that a request came in by is no stranger's."""
    connection = request.protocol
    assert isinstance(connection, Connection)
    connection.is_known = True


class Connections:
    """All connections of a server: at most so many. Belongs to one event loop."""

    def __init__(self, connections_max: int = CONNECTIONS_MAX) -> None:
        self._max = connections_max
        self._heard: dict[Connection, None] = {}  # the longest silent first

    def __len__(self) -> int:
        return len(self._heard)

    def hears(self, connection: Connection) -> None:
        """Note that a connection has begun, or bytes of it have come."""
        self.forget(connection)
        self._heard[connection] = None
        if len(self._heard) > self._max:
            gone = self._least_missed()
            self.forget(gone)
            gone.cut_off()

    def _least_missed(self) -> Connection:
        *others, _ = self._heard
        strangers = [each for each in others if not each.is_known] or others
        asking = [each for each in strangers if each.has_asked]
        silent = [each for each in strangers if not each.has_asked]
        return (asking if len(asking) > len(silent) else silent)[0]

    def forget(self, connection: Connection) -> None:
        """Note that it has ended."""
        self._heard.pop(connection, None)


class WebPort:
    """Serves an application from `start` to `stop`, on connections of a bounded number."""

    def __init__(self, app: web.Application, *, keepalive_s: float, shutdown_s: float) -> None:
        self._runner = web.AppRunner(app, shutdown_timeout=shutdown_s)
        self._options: dict[str, Any] = {
            "access_log": None,
            "keepalive_timeout": keepalive_s,
            "auto_decompress": False,
            "lingering_time": 0,
        }
        self._listening: asyncio.Server | None = None

    async def start(self, host: str, port: int) -> None:
        """Listen. Raises OSError where the address can't be had."""
        await self._runner.setup()
        loop, server, connections = asyncio.get_running_loop(), self._runner.server, Connections()
        assert server is not None

        def connect() -> Connection:
            return Connection(connections, server, loop=loop, **self._options)

        self._listening = await loop.create_server(connect, host or None, port)

    @property
    def port(self) -> int | None:
        """Return the port that it listens on, None while it doesn't."""
        if self._listening is None or not self._listening.sockets:
            return None
        bound: int = self._listening.sockets[0].getsockname()[1]
        return bound

    async def stop(self) -> None:
        """Answer nobody any more."""
        if self._listening is not None:
            self._listening.close()
        await self._runner.cleanup()
