"""`durabill worker`, `gateway`, `ledger`: the three long-running processes."""

import errno
import logging
import os
import signal
import threading
import time
from functools import partial
from typing import TYPE_CHECKING

from durabill.deploy.commands.ask_workers import known_workers
from durabill.deploy.commands.common import (
    AS_JSON,
    CONNECTION,
    POLICY,
    REGISTRY,
    TOPICS,
    local_ledger,
    located,
    quiet_kafka,
    with_settings,
    without_password,
)
from durabill.deploy.commands.framing import totals_framing
from durabill.deploy.commands.process_words import (
    check_address,
    introduce,
    process_log,
    registered,
    since_s,
    stopping,
)
from durabill.deploy.commands.stack import checked_topics
from durabill.deploy.terminal import (
    emit,
    say,
)

log = logging.getLogger("durabill.settings")

if TYPE_CHECKING:
    from durabill.stream_processors.settings import Settings


@with_settings(
    *CONNECTION,
    *TOPICS,
    *POLICY,
    "checkpoint_interval_s",
    "previous_application_id",
    "stall_timeout_s",
    "worker_host",
    "worker_port",
    *REGISTRY,
    "totals_framing",
    "report_interval_s",
    "archive_dir",
)
def worker(settings: "Settings", as_json: AS_JSON = False) -> None:
    """Run a worker: keep the interval tables, settle orders, publish totals.

    Start as many as there are partitions to share; each finds a free port for its web server,
    which answers GET /orders/NUMBER and /status. It listens on this machine alone, unless
    --worker-host says another address: then whoever asks it needs DURABILL_WORKER_TOKEN. All of
    one deployment need the same application id, topics and policy. Ctrl-C stops it after a last
    checkpoint; after a crash, start it again.

        durabill worker --settle-grace-s 30 --idle-timeout-s 300
    """
    from durabill.deploy.connect import PROCESS_PATIENCE_S, enter
    from durabill.deploy.local.stack import find_free_ports
    from durabill.deploy.logs import set_up_logging
    from durabill.schemas import WriterSchemas
    from durabill.stream_processors.audit.archive.reach import word_of_lost
    from durabill.stream_processors.worker.pages import check_access

    set_up_logging()
    check_access(settings)
    check_address("worker", settings.worker_host, settings.worker_port)
    port = settings.worker_port or find_free_ports(1, settings.worker_host)[0]
    settings = located(settings, "bootstrap_servers")
    warn_of_policy(settings)
    enter(settings, "worker", patience_s=PROCESS_PATIENCE_S)
    from durabill.stream_processors.worker.app import (
        run_worker,  # takes a while: what is wrong is told before
    )

    partitions, warnings = checked_topics(settings)
    framing = totals_framing(settings)
    for warning in warnings:
        say(f"note: {warning}")
    host = settings.worker_host
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    topics = [settings.topics.by_role[each] for each in ("segments", "totals", "orders")]
    introduce(
        "worker", settings, topics=", ".join([*topics, settings.dead_letters_topic]), web_server=url
    )
    if as_json:
        emit({"started": "worker", "url": url, "pid": os.getpid(), "partitions": partitions})
    with registered(settings, url), stopping("worker"):
        run_worker(
            settings,
            partitions,
            port,
            WriterSchemas(),
            find_lost=partial(word_of_lost, settings),
            totals_framing=framing,
        )


@with_settings(
    *CONNECTION,
    *REGISTRY,
    "segments_topic",
    "segments_framing",
    "application_id",
    "correction_window_s",
    "idle_timeout_s",
    "gateway_host",
    "gateway_port",
    "gateway_allowed_hosts",
    "gateway_access_log",
    "gateway_auth",
    "api_keys_file",
    "jwt_issuer",
    "jwt_audience",
    "jwt_tenant_claim",
    "jwks_url",
    "jwks_file",
    "gateway_caller_requests_per_s",
    "gateway_auth_failures_per_min",
    "gateway_tls_certificate",
    "gateway_tls_key",
    "gateway_tls_client_ca",
    "gateway_client_segments",
    "gateway_tenant_segments",
    "gateway_tenant_requests",
    "gateway_tenant_orders",
    "gateway_connections",
    "gateway_address_connections",
    "gateway_clock_offset_max_s",
    "report_interval_s",
    "opened_only",
    "leases",
    "lease_s",
    "lease_keys_file",
    "receipt_key_file",
    "worker_urls",
    "ledger_dsn",
)
def gateway(settings: "Settings", as_json: AS_JSON = False) -> None:
    """Run the HTTP gateway for clients that don't speak Kafka.

    POST /v1/orders starts an order, POST /v1/orders/NUMBER/segments takes its segments, GET
    /v1/orders/NUMBER shows where it stands; /docs describes all. It keeps no state: run as many
    as you like. Workers and ledger may be started after it. Where clients know it by another
    name than the address it listens on, list that in --gateway-allowed-hosts. On this machine
    everybody may ask it; it listens elsewhere only where --gateway-auth says who may.

        durabill gateway --gateway-port 8080
        curl -X POST http://127.0.0.1:8080/v1/orders
    """
    from durabill.deploy.commands.gateway_config import (
        check_gateway,
        gateway_config,
        warn_of_absent,
    )
    from durabill.deploy.connect import PROCESS_PATIENCE_S, enter
    from durabill.deploy.logs import set_up_logging
    from durabill.producers.gateway.server import run_gateway

    set_up_logging()
    began_s = time.monotonic()
    check_gateway(settings)
    check_address("gateway", settings.gateway_host, settings.gateway_port)
    settings = located(settings, "bootstrap_servers")  # the ledger may come and go
    warn_of_policy(settings)
    config = gateway_config(settings)
    enter(settings, "gateway", patience_s=PROCESS_PATIENCE_S)
    known = known_workers(settings)
    ledger = settings.ledger_dsn or local_ledger(settings)
    introduce(
        "gateway",
        settings,
        topic=settings.segments_topic,
        authentication=settings.gateway_auth,
        workers=", ".join(known) or "none yet (DURABILL_WORKER_URLS, or one in the data folder)",
        ledger=without_password(ledger) if ledger else "none yet (DURABILL_LEDGER_DSN)",
    )
    warn_of_absent(settings, ledger)

    def on_ready(url: str) -> None:
        process_log.info("gateway ready after %.1f s: it listens on %s", since_s(began_s), url)
        if as_json:
            emit({"started": "gateway", "url": url, "pid": os.getpid()})

    try:
        with stopping("gateway"):
            run_gateway(config, on_ready)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:  # somebody has taken it since we looked
            check_address("gateway", settings.gateway_host, settings.gateway_port)
        raise


@with_settings(*CONNECTION, "totals_topic", "orders_topic", "application_id", "ledger_dsn")
def ledger(settings: "Settings", as_json: AS_JSON = False) -> None:
    """Run the ledger: every revision of every total, and every opening, into PostgreSQL, once.

    Brings the tables up to date first. Several may run side by side. Finance reads the views
    latest_order_totals, tenant_totals, ledger_status and disputed_totals.

        export DURABILL_LEDGER_DSN=postgresql://billing@db.example/ledger
        durabill ledger
    """
    from durabill.deploy.connect import PROCESS_PATIENCE_S, enter
    from durabill.deploy.logs import set_up_logging
    from durabill.deploy.migrate import migrate
    from durabill.stream_processors.kafka.options import ledger_group
    from durabill.stream_processors.ledger.consumer import run_ledger

    set_up_logging()
    began_s = time.monotonic()
    settings = located(settings, "bootstrap_servers", "ledger_dsn")
    enter(settings, "ledger", patience_s=PROCESS_PATIENCE_S)
    topic, where = settings.totals_topic, without_password(settings.ledger_dsn)
    introduce("ledger", settings, topic=topic, postgresql=where)

    def prepare() -> None:
        for name in migrate(settings.ledger_dsn):
            process_log.info("applied %s", name)

    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())

    def on_ready() -> None:
        process_log.info("ledger ready after %.1f s", since_s(began_s))
        if as_json:
            emit({"started": "ledger", "topic": topic, "ledger": where, "pid": os.getpid()})

    with stopping("ledger"):
        run_ledger(
            quiet_kafka(settings),
            topic,
            ledger_group(settings.application_id),
            settings.ledger_dsn,
            stop=stop,
            orders_topic=settings.orders_topic,
            prepare=prepare,
            on_ready=on_ready,
        )


def warn_of_policy(settings: "Settings") -> None:
    """Say loudly that by the settings orders are abandoned that are between two reports."""
    report_s, idle_s = settings.report_interval_s, settings.idle_timeout_s
    if report_s > idle_s:
        log.warning(
            "DURABILL_REPORT_INTERVAL_S (%g s) is longer than DURABILL_IDLE_TIMEOUT_S (%g s):"
            " orders whose clients report that seldom settle as ABANDONED between two reports. Give"
            " worker and gateway the same settings, and an idle timeout of several reports",
            *(report_s, idle_s),
        )
