"""The worker's web server: the state of orders, and the worker's health.

    GET /orders/{number}   the live state of an order in a partition of this worker; with
                           ?tenant= only if it is that tenant's, else as if it were unknown
    GET /status            lag, deadlines, checkpoints, by partition
    GET /health/live       is it well? Needs no token: process managers ask it
    GET /health/ready      is it at work?

A worker knows the orders of its own partitions and forwards no question: clients ask every worker.
421 NOT_OWNED means that the order is another worker's. 503 CATCHING_UP means that it is ours, but
the log as read so far doesn't tell about it. A server that listens on more than the loopback can be
reached by anybody on the network, so it asks for a token. Without a token it answers to this
machine's names alone, or a web page could read it (see `schemas.web`).
"""

import hmac
import logging
import re
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import msgspec
from aiohttp import hdrs, web

from durabill.schemas import BadRecord, partition_for
from durabill.schemas.errors import SettingsError
from durabill.schemas.order_state import listed_for, page_of
from durabill.schemas.tenants import tenant_of
from durabill.schemas.web import (
    CROSS_ORIGIN,
    OUR_FAULT,
    AllowedHosts,
    is_loopback,
    is_same_origin,
    names_another,
    number_in_path,
    read_page,
    reason_of,
)
from durabill.stream_processors.settings import Settings
from durabill.stream_processors.worker.processor import Processor
from durabill.stream_processors.worker.turns import Turns
from durabill.stream_processors.worker.web_port import WebPort, error_page, let_in

log = logging.getLogger("durabill.worker")

KEEPALIVE_S = 75.0
SHUTDOWN_S = 2.0
TOKEN_CHARS_MIN = 16
OPEN_PATH = "/health/live"

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Reports(Protocol):
    """Whether a worker is well; see `health.Health`."""

    def problems(self) -> list[str]:
        """Return what stands still and must not."""

    def unready(self) -> list[str]:
        """Return why it isn't at work."""


def check_access(settings: Settings) -> None:
    """Raise SettingsError unless the web server is for this machine alone, or has a token."""
    token = settings.worker_token
    if token and not re.fullmatch(rf"[!-~]{{{TOKEN_CHARS_MIN},}}", token):
        raise SettingsError(
            [
                f"DURABILL_WORKER_TOKEN: at least {TOKEN_CHARS_MIN} printable ASCII characters"
                " without blanks are needed; `openssl rand -hex 32` makes one"
            ]
        )
    if not token and not is_loopback(settings.worker_host):
        raise SettingsError(
            [
                f"DURABILL_WORKER_HOST={settings.worker_host} lets others on the network ask this"
                " worker about orders: give it a DURABILL_WORKER_TOKEN (or a file of it,"
                " DURABILL_WORKER_TOKEN_FILE), and the gateway the same; or listen on 127.0.0.1"
            ]
        )


class Pages:
    """The web server of one worker, from `start` to `stop`."""

    def __init__(
        self, processor: Processor, health: Reports, settings: Settings, port: int, partitions: int
    ) -> None:
        check_access(settings)
        self._processor = processor
        self._health = health
        self._partitions = partitions
        self._host, self._port = settings.worker_host, port
        self._token = settings.worker_token.encode()
        self._hosts = AllowedHosts(self._host)
        self._web: WebPort | None = None
        self._turns = Turns()
        self._described = Turns()  # apart: who asks for health doesn't wait for large orders

    async def start(self) -> None:
        """Listen. Raises SettingsError where the address can't be had."""
        app = web.Application(middlewares=[self._guard])
        # Without a pattern of its own aiohttp's `{number}` takes no braces.
        app.router.add_get("/orders/{number:[^/]+}", self._order)
        app.router.add_get("/status", self._status)
        app.router.add_get(OPEN_PATH, self._live)
        app.router.add_get("/health/ready", self._ready)
        self._web = WebPort(app, keepalive_s=KEEPALIVE_S, shutdown_s=SHUTDOWN_S)
        try:
            await self._web.start(self._host, self._port)
        except OSError as error:
            where = f"{self._host}:{self._port}"
            why = error.strerror or str(error)
            problem = f"the worker's web server can't listen on {where} ({why})."
            raise SettingsError([f"{problem} Choose another --worker-port, or 0"]) from error

    @property
    def port(self) -> int | None:
        """Return the port that it listens on, None before it does."""
        return None if self._web is None else self._web.port

    async def stop(self) -> None:
        """Answer nobody any more."""
        if self._web is not None:
            await self._web.stop()

    async def _order(self, request: web.Request) -> web.Response:
        async with self._described:
            if request.transport is None:  # it has gone meanwhile: nobody waits for it
                return error_page(503, "GONE", "the client has not waited for the answer")
            return self._page_of(request)

    def _page_of(self, request: web.Request) -> web.Response:
        try:
            number = number_in_path(request.rel_url.raw_path, "/orders/")
        except BadRecord as error:
            return error_page(422, error.reason, error.detail)
        try:
            page = read_page(request.query)
        except ValueError as error:
            return error_page(422, "BAD_PAGE", str(error))
        processor = self._processor
        if not processor.is_assigned:
            return error_page(503, "NOT_READY", "it has no partitions yet, or no more")
        partition = partition_for(number.encode(), self._partitions)
        if partition not in processor.tasks:
            return error_page(421, "NOT_OWNED", f"partition {partition} is not this worker's")
        if processor.tasks[partition].is_broken:
            return error_page(
                503, "CATCHING_UP", f"partition {partition} is stopped by a bug of ours"
            )
        asks_for = request.query.get("tenant")
        # Whose it is comes first: how long another's takes to be described is nobody's business.
        is_seen = asks_for in (None, tenant_of(number, processor.opened_by(number)))
        state = processor.describe(number, listed_for(page)) if is_seen else None
        lag = self._lag(partition)
        if lag is None or (state is None and lag):
            return error_page(
                503, "CATCHING_UP", f"partition {partition} has not been read to its end"
            )
        if state is not None:
            return _json(page_of(state, page, lag))
        return error_page(404, "UNKNOWN_ORDER", "no open order, and none that settled lately")

    def _lag(self, partition: int) -> int | None:
        """Return how many records wait; None while the broker has not told where the log ends."""
        if self._processor.runtime.log_end(partition) is None:
            return None
        return self._processor.lag(partition)

    async def _status(self, _: web.Request) -> web.Response:
        async with self._described:
            return _json(self._processor.status())

    async def _live(self, _: web.Request) -> web.Response:
        problems = self._health.problems()
        return _json({"live": not problems, "problems": problems}, 503 if problems else 200)

    async def _ready(self, _: web.Request) -> web.Response:
        problems = self._health.unready()
        return _json({"ready": not problems, "problems": problems}, 503 if problems else 200)

    @property
    def _guard(self) -> Any:
        @web.middleware
        async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
            try:
                if self._shows_token(request):  # before all strangers that wait
                    let_in(request)
                    refused = self._refuse(request)
                else:
                    async with self._turns:
                        refused = self._refuse(request)
                return await handler(request) if refused is None else refused
            except web.HTTPException as error:
                page = error_page(error.status, reason_of(error.status), error.reason)
                if isinstance(error, web.HTTPMethodNotAllowed):
                    page.headers[hdrs.ALLOW] = error.headers[hdrs.ALLOW]
                return page
            except Exception:
                log.exception("%s %s failed", request.method, request.rel_url.raw_path)
                return error_page(*OUR_FAULT)

        return guard

    def _shows_token(self, request: web.Request) -> bool:
        """Tell whether there is a token, and a request has it."""
        given = request.headers.get(hdrs.AUTHORIZATION, "").encode("utf-8", "surrogateescape")
        return bool(self._token) and hmac.compare_digest(given, b"Bearer " + self._token)

    def _refuse(self, request: web.Request) -> web.Response | None:
        host = request.headers.get(hdrs.HOST, "")
        origin = request.headers.get(hdrs.ORIGIN)
        if origin is not None and not is_same_origin(origin, host):
            return error_page(*CROSS_ORIGIN)
        if not self._token:
            if names_another(request.raw_path, host) or not self._hosts.allows(
                host, _local_address(request)
            ):
                return error_page(403, "HOST_NOT_ALLOWED", "this server has another name")
            return None
        if request.rel_url.raw_path == OPEN_PATH or self._shows_token(request):
            return None
        refused = error_page(
            401, "TOKEN_NEEDED", "say Authorization: Bearer, and the worker's token"
        )
        refused.headers[hdrs.WWW_AUTHENTICATE] = "Bearer"
        return refused


def _local_address(request: web.Request) -> str:
    transport = request.transport
    name = None if transport is None else transport.get_extra_info("sockname")
    return str(name[0]) if isinstance(name, tuple) else ""


def _json(value: object, status: int = 200) -> web.Response:
    body = msgspec.json.encode(value)
    return web.Response(body=body, status=status, content_type="application/json")
