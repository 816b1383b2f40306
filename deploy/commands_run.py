"""`durabill worker`, `gateway`, `ledger`: the three long-running processes."""

import contextlib
import json
import logging
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploy.commands_common import (
    AS_JSON,
    CONNECTION,
    POLICY,
    TOPICS,
    emit,
    located,
    say,
    with_settings,
    without_password,
)
from deploy.commands_stack import checked_topics

if TYPE_CHECKING:
    from schemas import WriterSchemas
    from stream_processors.settings import Settings


@with_settings(
    *CONNECTION,
    *TOPICS,
    *POLICY,
    "checkpoint_interval_s",
    "clock_slack_s",
    "stall_timeout_s",
    "worker_host",
    "worker_port",
    "schema_registry_url",
)
def worker(settings: "Settings", as_json: AS_JSON = False) -> None:
    """Run a worker: keep the interval tables, settle orders, publish totals.

    Start as many as there are partitions to share; each finds a free port for its web server,
    which answers GET /orders/NUMBER and /status. All of one deployment need the same application
    id, topics and policy. Ctrl-C stops it after a last checkpoint; after a crash, start it again.

        durabill worker --settle-grace-s 30 --idle-timeout-s 300
    """
    from deploy.stack import find_free_ports
    from stream_processors.app import run_worker

    settings = located(settings, "bootstrap_servers")
    partitions, warnings = checked_topics(settings)
    for warning in warnings:
        say(f"note: {warning}")
    port = settings.worker_port or find_free_ports(1)[0]
    url = f"http://{settings.worker_host}:{port}"
    _announce({"url": url, "pid": os.getpid(), "partitions": partitions}, "worker", as_json)
    with _registered(settings, url):
        run_worker(settings, partitions, port, writer_schemas(settings))


@with_settings(
    *CONNECTION,
    "segments_topic",
    "application_id",
    "correction_window_s",
    "gateway_host",
    "gateway_port",
    "report_interval_s",
    "worker_urls",
    "ledger_dsn",
)
def gateway(settings: "Settings", as_json: AS_JSON = False) -> None:
    """Run the HTTP gateway for clients that don't speak Kafka.

    POST /v1/orders starts an order, POST /v1/orders/NUMBER/segments takes its segments, GET
    /v1/orders/NUMBER shows where it stands; /docs describes all. It keeps no state: run as many
    as you like.

        durabill gateway --gateway-port 8080
        curl -X POST http://127.0.0.1:8080/v1/orders
    """
    from deploy.stack import StackError
    from producers.gateway import GatewayConfig, run_gateway

    log_to_stderr()
    settings = located(settings, "bootstrap_servers", ledger=True)
    urls = tuple(each for each in settings.worker_urls.split(",") if each)
    urls = urls or tuple(local_workers(settings))
    if not urls and not settings.ledger_dsn:
        say("note: no worker and no ledger known (DURABILL_WORKER_URLS, DURABILL_LEDGER_DSN):")
        say("      GET /v1/orders/NUMBER has nobody to ask")
    config = GatewayConfig(
        kafka=settings.librdkafka(),
        topic=settings.segments_topic,
        host=settings.gateway_host,
        port=settings.gateway_port,
        report_interval_ms=round(settings.report_interval_s * 1000),
        worker_urls=urls,
        ledger_dsn=settings.ledger_dsn or None,
        correction_window_ms=settings.policy.correction_window_ms,
    )
    try:
        run_gateway(
            config, lambda url: _announce({"url": url, "pid": os.getpid()}, "gateway", as_json)
        )
    except OSError as error:
        raise StackError(
            f"The gateway can't listen on {settings.gateway_host}:{settings.gateway_port} "
            f"({error.strerror or error}). Choose another port with --gateway-port, or 0 for a "
            "free one."
        ) from error


@with_settings(*CONNECTION, "totals_topic", "application_id", "ledger_dsn")
def ledger(settings: "Settings", as_json: AS_JSON = False) -> None:
    """Run the ledger: every revision of every total into PostgreSQL, once.

    Brings the tables up to date first. Several may run side by side. Finance reads the views
    latest_order_totals, ledger_status and disputed_totals.

        export DURABILL_LEDGER_DSN=postgresql://billing@db.example/ledger
        durabill ledger
    """
    from deploy.migrate import migrate
    from stream_processors.ledger import run_ledger

    log_to_stderr()
    settings = located(settings, "bootstrap_servers", "ledger_dsn")

    def prepare() -> None:
        for name in migrate(settings.ledger_dsn):
            say(f"applied {name}")

    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    started = {"topic": settings.totals_topic, "ledger": without_password(settings.ledger_dsn)}
    run_ledger(
        settings.librdkafka(),
        settings.totals_topic,
        f"{settings.application_id}-ledger",
        settings.ledger_dsn,
        stop=stop,
        prepare=prepare,
        on_ready=lambda: _announce({**started, "pid": os.getpid()}, "ledger", as_json),
    )


def log_to_stderr() -> None:
    """Let a long-running process tell what it does, with the time."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")


def writer_schemas(settings: "Settings") -> "WriterSchemas":
    """Return the schemas that segments may be written with: ours, and the registry's if any."""
    from schemas import WriterSchemas

    if not settings.schema_registry_url:
        return WriterSchemas()
    from confluent_kafka.schema_registry import SchemaRegistryClient
    from confluent_kafka.schema_registry.error import SchemaRegistryError

    client = SchemaRegistryClient({"url": settings.schema_registry_url})

    def look_up(schema_id: int) -> str:
        try:
            return str(client.get_schema(schema_id).schema_str)
        except SchemaRegistryError as error:
            # Only "there is none" is the sender's fault. A registry that fails stops the worker:
            # taking its word would reject good segments.
            if error.http_status_code == 404:
                raise LookupError("the registry has no such schema") from error
            raise

    return WriterSchemas(look_up)


@contextlib.contextmanager
def _registered(settings: "Settings", url: str) -> Iterator[None]:
    """Leave word of this worker in the data folder, so that commands beside it find it."""
    from deploy.files import open_private, private_folder
    from deploy.stack import birth_mark

    pid = os.getpid()
    path = _workers_dir(settings) / f"{pid}.json"
    try:
        private_folder(path.parent)
        path.unlink(missing_ok=True)
        with open(path, "x", opener=open_private) as file:
            json.dump({"url": url, "pid": pid, "birth_mark": birth_mark(pid)}, file)
    except OSError as error:
        say(f"note: {path} can't be written ({error.strerror}); give DURABILL_WORKER_URLS instead")
        path = Path(os.devnull)
    try:
        yield
    finally:
        if path != Path(os.devnull):
            path.unlink(missing_ok=True)


def local_workers(settings: "Settings") -> list[str]:
    """Return the web addresses of this deployment's workers that run from the data folder."""
    from deploy.stack import birth_mark

    urls = []
    for path in sorted(_workers_dir(settings).glob("*.json")):
        try:
            record = json.loads(path.read_text())
        except (OSError, ValueError):
            continue  # being written, or gone by now
        if birth_mark(record["pid"]) == record["birth_mark"]:
            urls.append(record["url"])
        else:
            path.unlink(missing_ok=True)  # it was killed
    return urls


def _workers_dir(settings: "Settings") -> Path:
    return Path(settings.data_dir) / "workers" / settings.application_id


def _announce(what: dict[str, Any], name: str, as_json: bool) -> None:
    """Say that a process is up: one JSON line on standard output, or a sentence."""
    if as_json:
        emit({"started": name, **what})
    else:
        say(f"{name}: " + ", ".join(f"{key} {value}" for key, value in what.items()))
