"""The gateway: HTTP in, Kafka out. It keeps no state of its own, so run as many as you like.

`routes.ROUTES` is the table of what it answers; here is what each route does.

Of a start see `orders`, of segments `uploads`.
"""

import asyncio
import gc
import logging
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace

import msgspec
import uvloop
from aiohttp import web
from yarl import URL

from durabill.producers.gateway.admission import Admission
from durabill.producers.gateway.api import Health, ServerTime
from durabill.producers.gateway.auth.access import Clocks
from durabill.producers.gateway.auth.config import AccessConfig, check_access, open_access
from durabill.producers.gateway.authority import Authority, AuthorityConfig
from durabill.producers.gateway.backends import TotalsReader, WorkerPool
from durabill.producers.gateway.broker_clock import BrokerClock, awake_or_asleep_ns
from durabill.producers.gateway.caller import caller_of
from durabill.producers.gateway.checks import Gate, json_answer
from durabill.producers.gateway.damping import NoSecrets
from durabill.producers.gateway.kafka import SegmentProducer
from durabill.producers.gateway.lookup import Lookup
from durabill.producers.gateway.openapi import docs_page, openapi
from durabill.producers.gateway.orders import OrderDesk
from durabill.producers.gateway.problems import try_later
from durabill.producers.gateway.quotas import QuotaLimits
from durabill.producers.gateway.routes import Handler, bind
from durabill.producers.gateway.tls import ServedTls, TlsFiles
from durabill.producers.gateway.uploads import UploadDesk
from durabill.producers.gateway.web_server import BoundedServer, Limits, fit_limits
from durabill.producers.sdk.kafka_uplink import KafkaConfig
from durabill.producers.sdk.session import ProducerError
from durabill.schemas import SEGMENT_HEADER, SEGMENTS_TOPIC
from durabill.schemas.limits import SEGMENT_LENGTH_MAX_MS
from durabill.schemas.web import AllowedHosts

log = logging.getLogger(__name__)
access_log = logging.getLogger("durabill.access")  # by this name it is not damped
access_log.addFilter(NoSecrets())

_HEAR_S = 1.0  # so long a client waits for its time while the broker hasn't been heard
_HEAR_AGAIN_S = 10.0
_COLLECT_AFTER = 20_000
"""So many more containers than before make Python look for cycles."""


class GatewayFailed(ProducerError):
    """The Kafka producer can't be used any more; a new process can."""


@dataclass(frozen=True, slots=True)
class GatewayConfig:
    """All that a gateway needs to know. Port 0 takes a free one.

    `segments_framing` is what values begin with: the contract's header, or 00 and a schema's id.
    `allowed_hosts` are names that it has besides the address it listens on. Workers and ledger
    may come and go: `find_workers` returns the addresses of the first, `find_ledger` the DSN of the
    second, as of now; both are called in threads, again and again, and default to what
    `worker_urls` and `ledger_dsn` say. `correction_window_ms` is the stream processor's, if it is
    known here: without it nothing is told to be TOO_LATE. The numbers of segments, requests and
    orders are quotas, see there; `authority` says what leases and receipts are signed with. The
    gateway isn't ready while its clock is further than `clock_offset_max_ms` off the broker's.
    `clock` gives ns since the epoch, `monotonic` ns without steps, `entropy` so many unguessable
    bytes. Raises ValueError for values without sense.
    """

    kafka: KafkaConfig = field(repr=False)  # it may hold a password
    topic: str = SEGMENTS_TOPIC
    segments_framing: bytes = SEGMENT_HEADER
    host: str = "127.0.0.1"
    port: int = 0
    report_interval_ms: int = 10_000
    allowed_hosts: tuple[str, ...] = ()
    access_log: bool = False
    tls: TlsFiles | None = None
    access: AccessConfig = field(default_factory=AccessConfig)
    worker_urls: tuple[str, ...] = ()
    worker_token: str = field(default="", repr=False)
    find_workers: Callable[[], tuple[str, ...]] | None = None
    ledger_dsn: str | None = field(default=None, repr=False)  # it may hold a password
    find_ledger: Callable[[], str | None] | None = None
    correction_window_ms: int | None = None
    limits: Limits = field(default_factory=Limits)
    client_segments_max: int = 2_000
    tenant_segments_max: int = 20_000
    tenant_requests_max: int = 1_000
    tenant_orders_max: int = 100_000
    in_flight_segments_max: int = 50_000
    authority: AuthorityConfig = field(default_factory=AuthorityConfig)
    clock_offset_max_ms: int = 30_000
    delivery_timeout_ms: int = 10_000
    lookup_timeout_s: float = 2.0
    shutdown_timeout_s: float = 15.0
    clock: Callable[[], int] = time.time_ns
    monotonic: Callable[[], int] = awake_or_asleep_ns
    entropy: Callable[[int], bytes] = os.urandom

    def __post_init__(self) -> None:
        if not 1 <= self.report_interval_ms <= SEGMENT_LENGTH_MAX_MS:
            raise ValueError(f"report_interval_ms is {self.report_interval_ms}, 1 to 24 h allowed")
        if min(self.delivery_timeout_ms, self.clock_offset_max_ms) < 1:
            raise ValueError("delivery_timeout_ms, clock_offset_max_ms: 1 or more")
        _ = self.quotas  # checks the others

    @property
    def quotas(self) -> QuotaLimits:
        """Return what clients and tenants may have under way."""
        return QuotaLimits(
            client_segments_max=self.client_segments_max,
            tenant_segments_max=self.tenant_segments_max,
            tenant_requests_max=self.tenant_requests_max,
            tenant_orders_max=self.tenant_orders_max,
            in_flight_segments_max=self.in_flight_segments_max,
        )


class Gateway:
    """The handlers. Backends exist between the application's startup and cleanup."""

    publisher: SegmentProducer
    lookup: Lookup
    orders: OrderDesk
    uploads: UploadDesk

    def __init__(self, config: GatewayConfig) -> None:
        self._config = config
        check_access(config.access, config.host)
        self.access = open_access(config.access, Clocks(config.clock, config.monotonic))
        self._openapi = msgspec.json.encode(openapi())
        self._docs = docs_page().encode()
        self._clock = BrokerClock(config.clock, config.monotonic)
        self._hearing: asyncio.Task[None] | None = None
        self._heard_s = 0.0
        self.authority = Authority(
            config.authority,
            config.quotas,
            topic=config.topic,
            broker_clock=self._clock,
            monotonic_ns=config.monotonic,
            entropy=config.entropy,
            report_interval_ms=config.report_interval_ms,
            correction_window_ms=config.correction_window_ms,
        )

    def handlers(self) -> dict[str, Handler]:
        """Return what is called, by the `operation` of its row in `routes.ROUTES`.

        What costs more than an answer that lies ready is within its tenant's quota of requests.
        """
        limited = self.authority.limited
        return {
            "startOrder": limited(self.start_order),
            "renewLease": limited(self.renew_lease),
            "getOrder": limited(self.get_order),
            "addUploads": limited(self.add_uploads),
            "addSegments": limited(self.add_segments),
            "getClients": limited(self.authority.get_clients),
            "getReceiptKeys": self.authority.get_receipt_keys,
            "getTime": self.get_time,
            "getHealth": self.get_health,
            "getReadiness": self.get_readiness,
            "getOpenapi": self.get_openapi,
            "getDocs": self.get_docs,
        }

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
        self.orders = OrderDesk(
            self.authority,
            self.publisher,
            self.lookup,
            report_interval_ms=config.report_interval_ms,
            correction_window_ms=config.correction_window_ms,
            entropy=config.entropy,
        )
        self.uploads = UploadDesk(
            self.authority,
            self.publisher,
            self.lookup,
            self._clock,
            framing=config.segments_framing,
            correction_window_ms=config.correction_window_ms,
            delivery_timeout_ms=config.delivery_timeout_ms,
        )
        yield
        if self._hearing is not None:
            self._hearing.cancel()
        await self.publisher.close(config.shutdown_timeout_s)
        await workers.close()
        await ledger.close()
        await self.access.close()

    async def start_order(self, request: web.Request) -> web.Response:
        """POST /v1/orders"""
        return await self.orders.start(request)

    async def renew_lease(self, request: web.Request) -> web.Response:
        """POST /v1/orders/{number}/lease"""
        return await self.orders.renew(request)

    async def add_uploads(self, request: web.Request) -> web.Response:
        """POST /v1/segments"""
        return await self.uploads.add(request)

    async def add_segments(self, request: web.Request) -> web.Response:
        """POST /v1/orders/{number}/segments"""
        return await self.uploads.add_of_one(request)

    async def get_order(self, request: web.Request) -> web.Response:
        """GET /v1/orders/{number}: of the worker while it knows the order, else of the ledger."""
        async with self.authority.quotas.lookup(caller_of(request)):
            if request.transport is None:  # it has gone meanwhile: nobody waits for it
                raise try_later("GONE", "the client has not waited for the answer")
            return json_answer(await self.lookup.order(request))

    async def get_time(self, _: web.Request) -> web.Response:
        """GET /v1/time: the broker is asked first where it hasn't been heard for a minute."""
        clock = self.authority.clock
        came = clock.came()
        if self._clock.error_ms() is None:
            await self._hear_broker()
        received_ms, sent_ms, clock_id = clock.stamps(came)
        return json_answer(ServerTime(int(sent_ms), received_ms, sent_ms, clock_id))

    async def _hear_broker(self) -> None:
        """Learn the broker's time, within a second; where Kafka is away, the machine's has to do.

        Else a gateway that was just started would tell a wrong clock's time, one that was idle for
        days what its own crystal made of it, and gaps that a client counts by it (`resume`) would
        be billed.
        """
        now_s = asyncio.get_running_loop().time()
        if self._hearing is None or (
            self._hearing.done() and now_s >= self._heard_s + _HEAR_AGAIN_S
        ):
            self._heard_s = now_s
            self._hearing = asyncio.ensure_future(self._learn_time())
            self._hearing.add_done_callback(lambda task: task.cancelled() or task.exception())
        left_s = self._heard_s + _HEAR_S - now_s
        if left_s > 0:
            await asyncio.wait({self._hearing}, timeout=left_s)

    async def _learn_time(self) -> None:
        if await self.publisher.not_ready() is not None:
            return  # a mark would wait for a Kafka that is away
        await self.publisher.learn_time()

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
    gate = Gate(hosts, Admission(gateway.access), config.limits.body_bytes_max)
    app = web.Application(middlewares=[gate.middleware])
    app[GATEWAY] = gateway
    app.cleanup_ctx.append(gateway.backends)
    bind(app.router, gateway.handlers(), gate.expects)
    return app


async def serve_gateway(
    config: GatewayConfig,
    stop: asyncio.Event,
    on_ready: Callable[[str], None] | None = None,
    tls: ServedTls | None = None,
) -> None:
    """Serve until `stop` is set; then take no more, finish what is under way, and return.

    `on_ready` is called with the base URL once connections are taken. `tls` is made of the
    config's files where it is not given. Raises OSError if the port can't be had, GatewayFailed if
    the Kafka producer died, a DurabillError where what is set can't be served.
    """
    app = make_app(config)
    if tls is None and config.tls is not None:
        tls = ServedTls(config.tls)
    server = BoundedServer(
        app,
        config.limits,
        access_log=access_log if config.access_log else None,
        shutdown_timeout_s=config.shutdown_timeout_s,
        listener=None if tls is None else tls.listener(),
    )
    beside: list[asyncio.Task[None]] = []
    try:
        port = await server.start(config.host, config.port)
        watches = app[GATEWAY].access.watches() + ([] if tls is None else [tls.watch()])
        assert server.sweeper is not None
        beside = [server.sweeper, *(asyncio.ensure_future(each) for each in watches)]
        if on_ready is not None:
            scheme = "http" if tls is None else "https"
            on_ready(str(URL.build(scheme=scheme, host=config.host, port=port)))
        publisher = app[GATEWAY].publisher
        events = [asyncio.create_task(event.wait()) for event in (stop, publisher.failed)]
        await asyncio.wait([*events, *beside], return_when=asyncio.FIRST_COMPLETED)
        for event in events:
            event.cancel()
        for each in beside:
            if each.done():
                each.result()  # it never ends but by an error
    finally:
        for each in beside:
            each.cancel()
        await asyncio.gather(*beside, return_exceptions=True)
        await server.stop()
    if publisher.failed.is_set():
        raise GatewayFailed(f"{publisher.failure}; start the gateway again")


def run_gateway(config: GatewayConfig, on_ready: Callable[[str], None] | None = None) -> None:
    """Serve until SIGTERM or SIGINT. Call it in the main thread. Raises as `serve_gateway`."""

    async def serve() -> None:
        stop = asyncio.Event()
        # What is there by now stays, so it needs no looking through; and a request makes some
        # hundred values that die with it, for which the default would look eight requests apart.
        gc.collect()
        gc.freeze()
        gc.set_threshold(_COLLECT_AFTER, 20, 50)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        tls = None if config.tls is None else ServedTls(config.tls)
        if tls is not None:
            loop.add_signal_handler(signal.SIGHUP, tls.reload_soon)
        fitting = replace(config, limits=fit_limits(config.limits))
        await serve_gateway(fitting, stop, on_ready, tls)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve())
