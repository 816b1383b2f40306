"""The Faust app: one agent on the segments, the checkpoint table, timers and web pages."""

import asyncio
import gc
import logging
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any, NoReturn

import faust
from faust.types import TP
from faust.types.auth import SASLMechanism

from durabill.schemas import TOTAL_HEADER, WriterSchemas
from durabill.schemas.errors import SettingsError
from durabill.schemas.limits import CHECKPOINT_ENTRY_BYTES_MAX
from durabill.stream_processors.engine.columns import compile_kernel
from durabill.stream_processors.engine.scan import IdScanner
from durabill.stream_processors.kafka.errors import explained
from durabill.stream_processors.kafka.options import telling
from durabill.stream_processors.kafka.rights import rights_of
from durabill.stream_processors.settings import Settings
from durabill.stream_processors.worker.driver import Recovered
from durabill.stream_processors.worker.effect_order import OnStep, ignore_step
from durabill.stream_processors.worker.ending import FindLost, die, know_nothing
from durabill.stream_processors.worker.faust_runtime import FaustRuntime, find_segments_topic
from durabill.stream_processors.worker.health import Health, Watchdog
from durabill.stream_processors.worker.membership import Assignor
from durabill.stream_processors.worker.pages import Pages
from durabill.stream_processors.worker.processor import TICK_S, Processor
from durabill.stream_processors.worker.registry import registry_of
from durabill.stream_processors.worker.schema_lookups import ask_beside, no_registry
from durabill.stream_processors.worker.side_output import KafkaSideOutput

log = logging.getLogger("durabill.worker")

FETCH_BYTES_MAX = 4 * 1024 * 1024
CHUNKS_QUEUED_MAX = 16
PAUSE_RATIO = 4
PAUSE_S_MAX = 5.0
OBSERVE_S = 1.0
GC_THRESHOLD = 100_000


class AsIs(faust.Schema[Any, Any]):
    """Passes keys and values on as the transport gives them: a chunk is no serialized message."""

    def loads_key(self, app: Any, message: Any, **_: Any) -> Any:
        """Return the key."""
        return message.key

    def loads_value(self, app: Any, message: Any, **_: Any) -> Any:
        """Return the value."""
        return message.value


class App(faust.App):
    """A Faust app that knows its segments topic and checkpoints before it stops."""

    segments_topic_name: str
    segments_partitions: int
    processor: Processor
    side_output: KafkaSideOutput
    health: Health
    pages: Pages
    die: Callable[[BaseException], NoReturn]
    """Ends the process; names the right that a Kafka error is about."""
    _observing: "asyncio.Task[None]"

    async def on_start(self) -> None:
        """Start what a partition needs before it is assigned."""
        try:
            await self.pages.start()
        except SettingsError as error:
            die(error)
        self.side_output.start(asyncio.get_running_loop())
        watchdog = Watchdog(2 * self.processor.settings.stall_timeout_s)
        watchdog.start(asyncio.get_running_loop())
        # Faust's own tasks start after the first assignment, and that may be what hangs.
        self._observing = asyncio.create_task(_repeat(self, OBSERVE_S, self.health.observe))
        await super().on_start()

    async def _on_partitions_assigned(self, assigned: set[TP], generation_id: int = 0) -> None:
        """Recover, before Faust looks at the changelog."""
        segments = [tp.partition for tp in assigned if tp.topic == self.segments_topic_name]
        try:
            await self.processor.on_assigned(segments)
        except Exception as error:
            self.die(error)
        await super()._on_partitions_assigned(assigned, generation_id)

    def _create_directories(self) -> None:
        """Create none: all state is in the changelog and in memory."""

    def unowned(self) -> list[int]:
        """Return the partitions that no worker of the group owns, as far as we know."""
        assignor = self.assignor
        assert isinstance(assignor, Assignor)
        return assignor.unowned()

    async def on_stop(self) -> None:
        """Checkpoint while the consumer still owns its partitions, then stop."""
        if self.crash_reason is not None:
            # With parts of Faust gone, a last checkpoint could only hang.
            self.die(self.crash_reason)
        await self.processor.shutdown()
        await self.pages.stop()
        await super().on_stop()


def create_app(
    settings: Settings,
    partitions: int,
    port: int,
    writer_schemas: WriterSchemas,
    on_step: OnStep = ignore_step,
    find_lost: FindLost = know_nothing,
    *,
    totals_framing: bytes = TOTAL_HEADER,
) -> App:
    """Return the worker's app for a segments topic of `partitions` partitions.

    `port` is the web server's. The topics have been checked; nothing is connected yet.
    """
    app = _faust_app(settings, port)
    app.die = die_of(settings, find_lost)
    app.segments_topic_name = settings.segments_topic
    app.segments_partitions = partitions
    side_output = KafkaSideOutput(
        telling(settings.librdkafka()),
        segments_topic=settings.segments_topic,
        dead_letters_topic=settings.dead_letters_topic,
        on_fatal=app.die,
    )
    compile_kernel()
    segments_topic = find_segments_topic(settings, partitions)
    runtime = FaustRuntime(settings, segments_topic, app.die, totals_framing)
    runtime.app = app
    has_registry = bool(settings.schema_registry_url)
    processor = Processor(
        settings,
        runtime,
        writer_schemas,
        side_output,
        lambda: time.time_ns() // 10**6,
        ask_registry=ask_beside(registry_of(settings)) if has_registry else no_registry,
        on_fatal=app.die,
        on_step=on_step,
    )
    app.processor = processor
    app.side_output = side_output
    app.health = Health(processor, settings.stall_timeout_s, unowned=app.unowned)
    app.pages = Pages(processor, app.health, settings, port, partitions)
    _add_stream(app, processor, runtime)
    return app


def _faust_app(settings: Settings, port: int) -> App:
    """Return the app with Faust's own options."""
    return App(
        settings.application_id,
        broker=[f"durabill://{each}" for each in settings.bootstrap_servers.split(",")],
        broker_credentials=_credentials(settings),
        autodiscover=False,
        store="memory://",
        Table=Recovered,
        web_enabled=False,  # Faust's pages show tables to anybody; ours are in `pages`
        canonical_url=f"http://{settings.worker_host}:{port}",  # our name in the group
        # Checkpoints commit the offsets (see `driver`); Faust's own commits find nothing to do.
        broker_commit_interval=3600.0,
        broker_session_timeout=6.0,
        broker_heartbeat_interval=1.0,
        broker_request_timeout=30.0,
        broker_check_crcs=True,  # a flipped bit must not become a bill
        consumer_auto_offset_reset="earliest",
        consumer_max_fetch_size=FETCH_BYTES_MAX,
        stream_buffer_maxsize=CHUNKS_QUEUED_MAX,
        stream_recovery_delay=0.0,
        producer_acks=-1,  # a block that one broker alone has seen is no checkpoint
        producer_max_request_size=CHECKPOINT_ENTRY_BYTES_MAX,
        topic_allow_declare=False,  # only `durabill topics create` creates topics
        topic_disable_leader=True,
        stream_wait_empty=False,  # chunks are never acked, so there is nothing to wait for
        table_standby_replicas=0,  # blocks are small; a new owner reads them from the changelog
        PartitionAssignor=Assignor,
    )


def die_of(settings: Settings, find_lost: FindLost) -> Callable[[BaseException], NoReturn]:
    """Return a function that ends a worker with these settings."""
    kafka, rights = settings.librdkafka(), rights_of(settings, "worker")
    return lambda error: die(explained(error, kafka, *rights), find_lost)


def _credentials(settings: Settings) -> Any:
    context = settings.ssl_context()
    if settings.security_protocol.startswith("SASL"):
        return faust.SASLCredentials(
            username=settings.sasl_username,
            password=settings.sasl_password,
            mechanism=SASLMechanism(settings.sasl_mechanism),
            ssl_context=context,
        )
    return None if context is None else faust.SSLCredentials(context)


def _add_stream(app: App, processor: Processor, runtime: FaustRuntime) -> None:
    segments = app.topic(processor.settings.segments_topic, schema=AsIs())

    # Faust uses it for the co-partitioned assignment and for who has which order; see `driver`.
    app.Table(
        "checkpoint", partitions=runtime.segments_topic.partitions, key_type=bytes, value_type=bytes
    )

    @app.agent(segments, name="fold")
    async def fold(stream: Any) -> None:
        async for event in stream.noack().events():
            try:
                await processor.fold(event.message.partition, event.message.value)
            except Exception as error:
                die(error)

    async def revoked(app: Any, revoked: Any, **_: Any) -> None:
        try:
            if not processor.stopping:
                await processor.on_revoked()
        except Exception as error:
            die(error)

    on_revoked: Any = app.on_partitions_revoked
    on_revoked.connect(revoked, weak=False)
    _every(app, TICK_S, processor.tick)
    _every(app, processor.settings.checkpoint_interval_s, processor.checkpoint)


def _every(app: App, interval_s: float, action: Callable[[], Awaitable[None] | None]) -> None:
    async def repeat(app: Any) -> None:
        await _repeat(app, interval_s, action)

    app.task(repeat)


async def _repeat(
    app: faust.App, interval_s: float, action: Callable[[], Awaitable[None] | None]
) -> None:
    pause_s = interval_s
    while not app.should_stop:
        await asyncio.sleep(pause_s)
        started_s = time.monotonic()
        try:
            if (waiting := action()) is not None:
                await waiting
        except Exception as error:
            die(error)
        # A long action (a checkpoint of a million orders) is repeated less often; but waiting for a
        # broker must not put it off for long.
        pause_s = PAUSE_RATIO * (time.monotonic() - started_s)
        pause_s = max(interval_s, min(pause_s, PAUSE_S_MAX))


def _die_of_thread(args: threading.ExceptHookArgs) -> None:
    """End the process when a thread dies: a worker without it looks alive and does nothing."""
    die(args.exc_value or RuntimeError(f"thread {args.thread} died of {args.exc_type}"))


def run_worker(
    settings: Settings,
    partitions: int,
    port: int,
    writer_schemas: WriterSchemas,
    on_step: OnStep = ignore_step,
    find_lost: FindLost = know_nothing,
    *,
    totals_framing: bytes = TOTAL_HEADER,
) -> None:
    """Run a worker until it is told to stop; ends the process.

    `on_step` is told of each step of the effect order. `find_lost` says where lost segments may be.
    `totals_framing` is what totals begin with: the contract's header, or 00 and a schema's id.
    """
    IdScanner().warm_up()
    app = create_app(
        settings,
        partitions,
        port,
        writer_schemas,
        on_step,
        find_lost,
        totals_framing=totals_framing,
    )
    threading.excepthook = _die_of_thread
    # The objects of now stay, and later ones (chunks, totals) form no cycles: counting frees them.
    gc.freeze()
    gc.set_threshold(GC_THRESHOLD)
    # The process has set up its logging; Faust would replace it.
    worker = faust.Worker(app, override_logging=False, redirect_stdouts=False)
    worker.spinner = None
    worker.execute_from_commandline()
