"""The gateway: HTTP in, Kafka out. It keeps no state of its own, so run as many as you like.

    POST /v1/orders                     go: order number, server timestamp, report interval
    POST /v1/orders/{number}/segments   one or many; 200 means that Kafka has them all
    GET  /v1/orders/{number}            the live interval table, or the total
    GET  /v1/time /healthz /readyz /openapi.json /docs

The effects of a POST of segments, in this order:
  1. read and check everything; any fault refuses the whole request, nothing is stored
  2. refuse if too many segments wait for Kafka, of this client (429) or in all (503)
  3. produce all of them, and wait for every acknowledgement
  4. answer 200 with the receipts, or 503 if one is missing: the sender repeats all of it. By the
     broker's time in the acknowledgement the answer says which of them count
Between 3 and 4 a crash leaves segments that their sender doesn't know of. It repeats them, and
the stream processor removes repeats.
"""

import asyncio
import logging
import os
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace

import msgspec
import uvloop
from aiohttp import web
from yarl import URL

from durabill.producers.gateway.api import (
    Health,
    OrderGrant,
    Receipt,
    SegmentsAnswer,
    ServerTime,
    TimeRules,
    check_segments,
    read_order,
    read_segments,
)
from durabill.producers.gateway.backends import TotalsReader, WorkerPool
from durabill.producers.gateway.broker_clock import BrokerClock
from durabill.producers.gateway.checks import Gate, connection_of, json_answer, read_body
from durabill.producers.gateway.damping import Damper
from durabill.producers.gateway.kafka import BackendUnavailable, Overloaded, SegmentProducer
from durabill.producers.gateway.lookup import Lookup, number_of
from durabill.producers.gateway.openapi import docs_page, openapi
from durabill.producers.gateway.problems import ApiError, try_later
from durabill.producers.gateway.web_server import BoundedServer, Limits, fit_limits
from durabill.producers.sdk.kafka_uplink import KafkaConfig
from durabill.producers.sdk.session import ProducerError
from durabill.schemas import SEGMENTS_TOPIC, encode_segment
from durabill.schemas.limits import SEGMENT_LENGTH_MAX_MS
from durabill.schemas.web import AllowedHosts

log = logging.getLogger(__name__)
access_log = logging.getLogger("durabill.access")  # by this name it is not damped

_CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_QUOTA_RETRY_AFTER_S = 1
_CLOCK_WANDER_MS = 1_000
"""How far broker's clocks may differ among each other, or wander until the next acknowledgement."""
CLOCK_OFFSET_TOLD_MS = 2_000


class GatewayFailed(ProducerError):
    """The Kafka producer can't be used any more; a new process can."""


@dataclass(frozen=True, slots=True)
class GatewayConfig:
    """All that a gateway needs to know. Port 0 takes a free one.

    `allowed_hosts` are names that it has besides the address it listens on. Workers and ledger
    may come and go: `find_workers` returns the addresses of the first, `find_ledger` the DSN of the
    second, as of now; both are called in threads, again and again, and default to what
    `worker_urls` and `ledger_dsn` say. `correction_window_ms` is the stream processor's, if it is
    known here: without it nothing is told to be TOO_LATE. `client_segments_max` of one client
    (by address) may wait for Kafka at once. The gateway isn't ready while its clock is further
    than `clock_offset_max_ms` off the broker's. `clock` gives ns since the epoch, `monotonic` ns
    without steps, `entropy` so many unguessable bytes. Raises ValueError for values without sense.
    """

    kafka: KafkaConfig = field(repr=False)  # it may hold a password
    topic: str = SEGMENTS_TOPIC
    host: str = "127.0.0.1"
    port: int = 0
    report_interval_ms: int = 10_000
    allowed_hosts: tuple[str, ...] = ()
    access_log: bool = False
    worker_urls: tuple[str, ...] = ()
    worker_token: str = field(default="", repr=False)
    find_workers: Callable[[], tuple[str, ...]] | None = None
    ledger_dsn: str | None = field(default=None, repr=False)  # it may hold a password
    find_ledger: Callable[[], str | None] | None = None
    correction_window_ms: int | None = None
    limits: Limits = field(default_factory=Limits)
    client_segments_max: int = 2_000
    in_flight_segments_max: int = 50_000
    clock_offset_max_ms: int = 30_000
    delivery_timeout_ms: int = 10_000
    lookup_timeout_s: float = 2.0
    shutdown_timeout_s: float = 15.0
    clock: Callable[[], int] = time.time_ns
    monotonic: Callable[[], int] = time.monotonic_ns
    entropy: Callable[[int], bytes] = os.urandom

    def __post_init__(self) -> None:
        if not 1 <= self.report_interval_ms <= SEGMENT_LENGTH_MAX_MS:
            raise ValueError(f"report_interval_ms is {self.report_interval_ms}, 1 to 24 h allowed")
        counts = self.client_segments_max, self.in_flight_segments_max, self.delivery_timeout_ms
        if min(*counts, self.clock_offset_max_ms) < 1:
            raise ValueError(
                "client_segments_max, in_flight_segments_max, delivery_timeout_ms, "
                "clock_offset_max_ms: 1 or more"
            )


def new_order_number(now_ms: int, entropy: Callable[[int], bytes]) -> str:
    """Return 26 characters that sort by time (ms) and hold 80 bits that nobody can guess.

    48 bits of time, then the entropy, in Crockford's base 32: the layout of a ULID.
    """
    value = (now_ms << 80 | int.from_bytes(entropy(10), "big")) & (1 << 130) - 1
    return "".join(_CROCKFORD[value >> shift & 31] for shift in range(125, -1, -5))


class Gateway:
    """The handlers. Backends exist between the application's startup and cleanup."""

    publisher: SegmentProducer
    lookup: Lookup

    def __init__(self, config: GatewayConfig) -> None:
        self._config = config
        self._openapi = msgspec.json.encode(openapi())
        self._docs = docs_page().encode()
        self._clock = BrokerClock(config.clock, config.monotonic)
        self._damper = Damper(log)
        self._in_flight: Counter[str] = Counter()  # segments by client

    async def backends(self, _: web.Application) -> AsyncIterator[None]:
        """Open the backends, and close them after the last request (aiohttp's cleanup_ctx)."""
        config = self._config
        self.publisher = SegmentProducer(
            config.kafka,
            config.topic,
            delivery_timeout_ms=config.delivery_timeout_ms,
            in_flight_max=config.in_flight_segments_max,
            clock=self._clock,
        )
        find_workers = config.find_workers or (lambda: config.worker_urls)
        find_ledger = config.find_ledger or (lambda: config.ledger_dsn)
        workers = WorkerPool(find_workers, config.worker_token, config.lookup_timeout_s)
        ledger = TotalsReader(find_ledger, config.lookup_timeout_s)
        self.lookup = Lookup(workers, ledger)
        yield
        await self.publisher.close(config.shutdown_timeout_s)
        await workers.close()
        await ledger.close()

    async def start_order(self, request: web.Request) -> web.Response:
        """POST /v1/orders"""
        wanted = read_order(await read_body(request)).service_order_number
        now_ms = self._clock.now_ms()
        number = new_order_number(now_ms, self._config.entropy) if wanted is None else wanted
        return json_answer(OrderGrant(number, now_ms, self._config.report_interval_ms), status=201)

    async def add_segments(self, request: web.Request) -> web.Response:
        """POST /v1/orders/{number}/segments"""
        client, quota = connection_of(request).client, self._config.client_segments_max
        if self._in_flight[client] >= quota:  # before anything is read
            raise _over_quota(quota)
        number = number_of(request)
        requests = read_segments(await read_body(request))
        rules = self._rules()
        segments = check_segments(number, requests, rules)
        values = [encode_segment(segment) for segment in segments]
        before = self._in_flight[client]
        if before and before + len(values) > quota:  # a request by itself is always taken
            raise _over_quota(quota)
        self._in_flight[client] += len(values)
        try:
            stored = await self.publisher.publish(number.encode(), values)
        except Overloaded as error:
            raise try_later("OVERLOADED", str(error)) from error
        except BackendUnavailable as error:
            raise try_later("KAFKA_UNAVAILABLE", str(error)) from error
        finally:
            self._in_flight[client] -= len(values)
            if not self._in_flight[client]:
                del self._in_flight[client]
        self._watch_clock()
        self.lookup.is_stored(number)
        receipts = [
            Receipt(segment.business_data_number, at.partition, at.offset, at.append_ms)
            for segment, at in zip(segments, stored, strict=True)
        ]
        results = rules.judge_all(segments, [at.append_ms for at in stored])
        accepted = len(results) - [each.counts for each in results].count(False)
        return json_answer(SegmentsAnswer(accepted, receipts, results))

    def _rules(self) -> TimeRules:
        """Return the rules about times as of now, with what is known of the broker's clock."""
        window_ms, now_ms = self._config.correction_window_ms, self._clock.now_ms()
        error_ms = self._clock.error_ms()
        if error_ms is None:
            return TimeRules(window_ms, now_ms)
        error_ms += _CLOCK_WANDER_MS
        # It may take until the delivery's timeout to arrive, and be the less early then.
        return TimeRules(window_ms, now_ms, error_ms + self._config.delivery_timeout_ms, error_ms)

    def _watch_clock(self) -> None:
        offset_ms = self._clock.offset_ms()
        if offset_ms is not None and abs(offset_ms) > CLOCK_OFFSET_TOLD_MS:
            text = "this machine's clock is %d ms %s the broker's, which counts; set it right"
            side = "behind" if offset_ms > 0 else "ahead of"
            self._damper.warning("clock", text, abs(offset_ms), side)

    async def get_order(self, request: web.Request) -> web.Response:
        """GET /v1/orders/{number}: of the worker while it knows the order, else of the ledger."""
        return json_answer(await self.lookup.order(request))

    async def get_time(self, _: web.Request) -> web.Response:
        """GET /v1/time"""
        return json_answer(ServerTime(self._clock.now_ms()))

    async def get_health(self, _: web.Request) -> web.Response:
        """GET /healthz"""
        if self.publisher.failed.is_set():
            detail = "its Kafka producer has failed; the process has to be started again"
            raise try_later("KAFKA_PRODUCER_FAILED", detail)
        return json_answer(Health("ok"))

    async def get_readiness(self, _: web.Request) -> web.Response:
        """GET /readyz"""
        problem = await self.publisher.not_ready()
        if problem is not None:
            raise try_later("KAFKA_UNAVAILABLE", problem)
        offset_ms, limit_ms = self._clock.offset_ms(), self._config.clock_offset_max_ms
        if offset_ms is not None and abs(offset_ms) > limit_ms:
            detail = f"its clock is {abs(offset_ms)} ms off the broker's, {limit_ms} are allowed"
            raise try_later("CLOCK_OFF", detail)
        return json_answer(Health("ready"))

    async def get_openapi(self, _: web.Request) -> web.Response:
        """GET /openapi.json"""
        return web.Response(body=self._openapi, content_type="application/json")

    async def get_docs(self, _: web.Request) -> web.Response:
        """GET /docs"""
        # The page needs nothing from anywhere, so the browser may not fetch anything.
        policy = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"
        headers = {"content-security-policy": policy, "x-content-type-options": "nosniff"}
        return web.Response(
            body=self._docs, content_type="text/html", charset="utf-8", headers=headers
        )


GATEWAY = web.AppKey("gateway", Gateway)


def make_app(config: GatewayConfig) -> web.Application:
    """Return the gateway as an aiohttp application; nothing is connected before its startup.

    It is served by a `BoundedServer` alone, whose connections it relies on.
    """
    gateway = Gateway(config)
    hosts = AllowedHosts(config.host, config.allowed_hosts)
    gate = Gate(hosts, config.limits.body_bytes_max)
    app = web.Application(middlewares=[gate.middleware])
    app[GATEWAY] = gateway
    app.cleanup_ctx.append(gateway.backends)
    # Without a pattern of its own aiohttp's `{number}` takes no braces.
    one = "/v1/orders/{number:[^/]+}"
    app.router.add_post("/v1/orders", gateway.start_order, expect_handler=gate.expects)
    app.router.add_post(f"{one}/segments", gateway.add_segments, expect_handler=gate.expects)
    app.router.add_get(one, gateway.get_order, expect_handler=gate.expects)
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
    server = BoundedServer(
        app,
        config.limits,
        access_log=access_log if config.access_log else None,
        shutdown_timeout_s=config.shutdown_timeout_s,
    )
    try:
        port = await server.start(config.host, config.port)
        if on_ready is not None:
            on_ready(str(URL.build(scheme="http", host=config.host, port=port)))
        publisher = app[GATEWAY].publisher
        assert server.sweeper is not None
        events = [asyncio.create_task(event.wait()) for event in (stop, publisher.failed)]
        await asyncio.wait([*events, server.sweeper], return_when=asyncio.FIRST_COMPLETED)
        for event in events:
            event.cancel()
        if server.sweeper.done():
            server.sweeper.result()  # it never ends but by an error
    finally:
        await server.stop()
    if publisher.failed.is_set():
        raise GatewayFailed(f"{publisher.failure}; start the gateway again")


def run_gateway(config: GatewayConfig, on_ready: Callable[[str], None] | None = None) -> None:
    """Serve until SIGTERM or SIGINT. Call it in the main thread. Raises as `serve_gateway`."""

    async def serve() -> None:
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        await serve_gateway(replace(config, limits=fit_limits(config.limits)), stop, on_ready)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve())


def _over_quota(quota: int) -> ApiError:
    detail = f"{quota} segments of this client may wait for Kafka at once; send fewer in parallel"
    return ApiError(429, "TOO_MANY_IN_FLIGHT", detail, retry_after_s=_QUOTA_RETRY_AFTER_S)
