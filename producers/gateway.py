"""The gateway: HTTP in, Kafka out. It keeps no state of its own, so run as many as you like.

    POST /v1/orders                     go: order number, server timestamp, report interval
    POST /v1/orders/{number}/segments   one or many; 200 means that Kafka has them all
    GET  /v1/orders/{number}            the live interval table, or the total
    GET  /v1/time /healthz /readyz /openapi.json /docs

The effects of a POST of segments, in this order:
  1. read and check everything; any fault refuses the whole request, nothing is stored
  2. refuse (503) if too many segments wait for Kafka
  3. produce all of them, and wait for every acknowledgement
  4. answer 200 with the receipts, or 503 if one is missing: the sender repeats all of it
Between 3 and 4 a crash leaves segments that their sender doesn't know of. It repeats them, and
the stream processor removes repeats.
"""

import asyncio
import logging
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote_to_bytes

import msgspec
import uvloop
from aiohttp import web
from yarl import URL

from producers.gateway_api import (
    ApiError,
    ErrorAnswer,
    ErrorBody,
    Health,
    OrderAnswer,
    OrderGrant,
    Receipt,
    SegmentsAnswer,
    ServerTime,
    check_number,
    check_segments,
    docs_page,
    openapi,
    read_order,
    read_segments,
)
from producers.gateway_backends import BackendUnavailable, Ledger, Overloaded, Publisher, Workers
from producers.session import SEGMENT_LENGTH_MAX_MS, ProducerError
from producers.transport import KafkaConfig
from schemas import SEGMENTS_TOPIC, Reason, encode_segment

log = logging.getLogger(__name__)

_CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_RETRY_AFTER_S = 2
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class GatewayFailed(ProducerError):
    """The Kafka producer can't be used any more; a new process can."""


@dataclass(frozen=True, slots=True)
class GatewayConfig:
    """All that a gateway needs to know. Port 0 takes a free one.

    `correction_window_ms` is the stream processor's, if it is known here: then what is
    certainly TOO_LATE is refused instead of becoming a dead letter. `clock` gives ns since the
    epoch, `entropy` so many unguessable bytes. Raises ValueError for values without sense.
    """

    kafka: KafkaConfig = field(repr=False)  # it may hold a password
    topic: str = SEGMENTS_TOPIC
    host: str = "127.0.0.1"
    port: int = 0
    report_interval_ms: int = 10_000
    worker_urls: tuple[str, ...] = ()
    ledger_dsn: str | None = field(default=None, repr=False)  # it may hold a password
    correction_window_ms: int | None = None
    body_bytes_max: int = 1024 * 1024
    in_flight_segments_max: int = 50_000
    delivery_timeout_ms: int = 10_000
    lookup_timeout_s: float = 2.0
    shutdown_timeout_s: float = 15.0
    clock: Callable[[], int] = time.time_ns
    entropy: Callable[[int], bytes] = os.urandom

    def __post_init__(self) -> None:
        if not 1 <= self.report_interval_ms <= SEGMENT_LENGTH_MAX_MS:
            raise ValueError(f"report_interval_ms is {self.report_interval_ms}, 1 to 24 h allowed")
        if min(self.body_bytes_max, self.in_flight_segments_max, self.delivery_timeout_ms) < 1:
            raise ValueError(
                "body_bytes_max, in_flight_segments_max, delivery_timeout_ms: 1 or more"
            )


def new_order_number(now_ms: int, entropy: Callable[[int], bytes]) -> str:
    """Return 26 characters that sort by time (ms) and hold 80 bits that nobody can guess.

    48 bits of time, then the entropy, in Crockford's base 32: the layout of a ULID.
    """
    value = (now_ms << 80 | int.from_bytes(entropy(10), "big")) & (1 << 130) - 1
    return "".join(_CROCKFORD[value >> shift & 31] for shift in range(125, -1, -5))


class Gateway:
    """The handlers. Backends exist between the application's startup and cleanup."""

    publisher: Publisher
    workers: Workers
    ledger: Ledger | None = None

    def __init__(self, config: GatewayConfig) -> None:
        self._config = config
        self._openapi = openapi()
        self._docs = docs_page()

    async def backends(self, _: web.Application) -> AsyncIterator[None]:
        """Open the backends, and close them after the last request (aiohttp's cleanup_ctx)."""
        config = self._config
        self.publisher = Publisher(
            config.kafka,
            config.topic,
            delivery_timeout_ms=config.delivery_timeout_ms,
            in_flight_max=config.in_flight_segments_max,
        )
        self.workers = Workers(config.worker_urls, config.lookup_timeout_s)
        if config.ledger_dsn is not None:
            self.ledger = Ledger(config.ledger_dsn, config.lookup_timeout_s)
        yield
        await self.publisher.close(config.shutdown_timeout_s)
        await self.workers.close()
        if self.ledger is not None:
            await self.ledger.close()

    async def start_order(self, request: web.Request) -> web.Response:
        """POST /v1/orders"""
        wanted = read_order(await request.read()).service_order_number
        now_ms = self._now_ms()
        number = new_order_number(now_ms, self._config.entropy) if wanted is None else wanted
        return _json(OrderGrant(number, now_ms, self._config.report_interval_ms), status=201)

    async def add_segments(self, request: web.Request) -> web.Response:
        """POST /v1/orders/{number}/segments"""
        number = _number(request)
        segments = check_segments(
            number,
            read_segments(await request.read()),
            now_ms=self._now_ms(),
            correction_window_ms=self._config.correction_window_ms,
        )
        values = [encode_segment(segment) for segment in segments]
        try:
            stored = await self.publisher.publish(number.encode(), values)
        except Overloaded as error:
            raise _later("OVERLOADED", str(error)) from error
        except BackendUnavailable as error:
            raise _later("KAFKA_UNAVAILABLE", str(error)) from error
        assert len(stored) == len(segments)
        receipts = [
            Receipt(segment.business_data_number, at.partition, at.offset, at.append_ms)
            for segment, at in zip(segments, stored, strict=True)
        ]
        return _json(SegmentsAnswer(len(receipts), receipts))

    async def get_order(self, request: web.Request) -> web.Response:
        """GET /v1/orders/{number}: of the worker while it knows the order, else of the ledger."""
        number = _number(request)
        answer = OrderAnswer(number)
        no_worker: str | None = None
        if self._config.worker_urls:
            try:
                answer.live = await self.workers.live(number)
            except BackendUnavailable as error:
                no_worker = str(error)
        is_open = answer.live is not None and answer.live.get("phase") != "SETTLED"
        if self.ledger is not None and not is_open:
            try:
                total = await self.ledger.total(number)
                answer.total = None if total is None else dict(total)
            except BackendUnavailable as error:
                answer.total_unavailable = str(error)
        if answer.live is None and answer.total is None:
            raise self._unknown(no_worker, answer.total_unavailable)
        return _json(answer)

    def _unknown(self, no_worker: str | None, no_ledger: str | None) -> ApiError:
        if no_worker is not None:
            return _later("NO_WORKER_REACHABLE", no_worker)
        if no_ledger is not None:
            return _later("LEDGER_UNREACHABLE", no_ledger)
        asked = {"a worker": bool(self._config.worker_urls), "the ledger": self.ledger is not None}
        if not any(asked.values()):
            return _later("NOT_CONFIGURED", "this gateway knows no worker and no ledger to ask")
        names = " and ".join(name for name, was_asked in asked.items() if was_asked)
        return ApiError(404, "UNKNOWN_ORDER", f"{names} was asked: no segment of it has been seen")

    async def get_time(self, _: web.Request) -> web.Response:
        """GET /v1/time"""
        return _json(ServerTime(self._now_ms()))

    async def get_health(self, _: web.Request) -> web.Response:
        """GET /healthz"""
        if self.publisher.failed.is_set():
            raise _later("KAFKA_PRODUCER_FAILED", "the process has to be started again")
        return _json(Health("ok"))

    async def get_readiness(self, _: web.Request) -> web.Response:
        """GET /readyz"""
        problem = await self.publisher.not_ready()
        if problem is not None:
            raise _later("KAFKA_UNAVAILABLE", problem)
        return _json(Health("ready"))

    async def get_openapi(self, _: web.Request) -> web.Response:
        """GET /openapi.json"""
        return _json(self._openapi)

    async def get_docs(self, _: web.Request) -> web.Response:
        """GET /docs"""
        # The page needs nothing from anywhere, so the browser may not fetch anything.
        policy = "default-src 'none'; style-src 'unsafe-inline'"
        headers = {"content-security-policy": policy}
        return web.Response(text=self._docs, content_type="text/html", headers=headers)

    def _now_ms(self) -> int:
        return self._config.clock() // 1_000_000


GATEWAY = web.AppKey("gateway", Gateway)


def make_app(config: GatewayConfig) -> web.Application:
    """Return the gateway as an aiohttp application; nothing is connected before its startup."""
    gateway = Gateway(config)
    app = web.Application(client_max_size=config.body_bytes_max, middlewares=[_errors])
    app[GATEWAY] = gateway
    app.cleanup_ctx.append(gateway.backends)
    app.router.add_post("/v1/orders", gateway.start_order)
    app.router.add_post("/v1/orders/{number}/segments", gateway.add_segments)
    app.router.add_get("/v1/orders/{number}", gateway.get_order)
    app.router.add_get("/v1/time", gateway.get_time)
    app.router.add_get("/healthz", gateway.get_health)
    app.router.add_get("/readyz", gateway.get_readiness)
    app.router.add_get("/openapi.json", gateway.get_openapi)
    app.router.add_get("/docs", gateway.get_docs)
    return app


async def serve_gateway(
    config: GatewayConfig, stop: asyncio.Event, on_ready: Callable[[str], None] | None = None
) -> None:
    """Serve until `stop` is set; then take no more, finish what is under way, and return.

    `on_ready` is called with the base URL once connections are taken. Raises OSError if the
    port can't be had, GatewayFailed if the Kafka producer died.
    """
    app = make_app(config)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=config.shutdown_timeout_s)
    await runner.setup()
    try:
        await web.TCPSite(runner, config.host, config.port).start()
        if on_ready is not None:
            port = runner.addresses[0][1]
            on_ready(str(URL.build(scheme="http", host=config.host, port=port)))
        failed = app[GATEWAY].publisher.failed
        waits = [asyncio.ensure_future(event.wait()) for event in (stop, failed)]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
    finally:
        await runner.cleanup()
    if failed.is_set():
        raise GatewayFailed("the Kafka producer died, see the log; start the gateway again")


def run_gateway(config: GatewayConfig, on_ready: Callable[[str], None] | None = None) -> None:
    """Serve until SIGTERM or SIGINT. Call it in the main thread. Raises as `serve_gateway`."""

    async def serve() -> None:
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        await serve_gateway(config, stop, on_ready)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve())


def _number(request: web.Request) -> str:
    """Return the order number in the path. aiohttp's own decoding hides bytes that aren't UTF-8."""
    raw = request.rel_url.raw_path.partition("/v1/orders/")[2].partition("/")[0]
    try:
        number = unquote_to_bytes(raw).decode()
    except UnicodeDecodeError as error:
        raise ApiError(422, Reason.BAD_ORDER_NUMBER, "is no UTF-8") from error
    check_number(number)
    return number


def _later(reason: str, detail: str) -> ApiError:
    return ApiError(503, reason, detail, retry_after_s=_RETRY_AFTER_S)


def _json(value: Any, status: int = 200) -> web.Response:
    body = msgspec.json.encode(value)
    return web.Response(body=body, status=status, content_type="application/json")


@web.middleware
async def _errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Give every error the same JSON form."""
    try:
        return await handler(request)
    except ApiError as error:
        response = _json(error.answer, error.status)
        if error.retry_after_s is not None:
            response.headers["retry-after"] = str(error.retry_after_s)
        return response
    except web.HTTPException as error:
        reason = error.reason.upper().replace(" ", "_")
        detail = error.text or error.reason
        response = _json(ErrorAnswer(ErrorBody(reason, detail, error.status)), error.status)
        if isinstance(error, web.HTTPMethodNotAllowed):
            response.headers["allow"] = error.headers["allow"]
        return response
    except Exception:
        log.exception("%s %s failed", request.method, request.path)
        detail = "this is our fault, the log knows more"
        return _json(ErrorAnswer(ErrorBody("INTERNAL", detail, 500)), 500)
