"""The demo: a fleet of faulty clients against the whole engine, every total checked.

In steps: start everything (`processes`); run the fleet, part of it over HTTP, and beside it a few
services metered by the real SDK; wait until every order has settled and the ledger has it; check
(`report`).
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from durabill.deploy.demo.processes import Stage, get_json
from durabill.deploy.demo.proof import prove
from durabill.deploy.demo.report import DemoReport, Metered, make_report
from durabill.deploy.local.stack import StackError
from durabill.deploy.oracle import truth_policy
from durabill.deploy.terminal import Progress
from durabill.producers.fleet.plan import Faults, FleetPlan
from durabill.producers.fleet.run import FleetReport, run_fleet
from durabill.producers.sdk.client import Client
from durabill.producers.sdk.http_uplink import HttpUplink, quote_order_number
from durabill.producers.sdk.kafka_uplink import KafkaUplink
from durabill.stream_processors.kafka.options import quiet
from durabill.stream_processors.kafka.reading import topic_ends
from durabill.stream_processors.ledger.lookups import status as ledger_status
from durabill.stream_processors.settings import Settings

SETTLE_GRACE_S = 3.0
IDLE_TIMEOUT_S = 8.0
REPORT_INTERVAL_S = 0.5
# Its clients are on this machine and show nothing, whatever other gateways are set to ask for.
OPEN_HERE: dict[str, Any] = {
    "gateway_host": "127.0.0.1",
    "gateway_auth": "none",
    **dict.fromkeys(("jwt_issuer", "jwt_audience", "jwks_url", "jwks_file"), ""),
    **dict.fromkeys(("gateway_tls_certificate", "gateway_tls_key", "gateway_tls_client_ca"), ""),
}
HTTP_SHARE = 0.05
SERVICES_OVER_HTTP = 3
SERVICES_OVER_KAFKA = 2
SERVICE_S = 2.5
WAIT_S = 90.0
"""How long after the last deadline everything must be in the ledger."""


@dataclass(frozen=True, slots=True)
class DemoPlan:
    """How much is run; `segments` are those of all orders together.

    `rate` is how many records a second the fleet publishes at most, None lets it do what it can.
    """

    orders: int
    segments: int
    seed: int
    partitions: int
    rate: float | None


def run_demo(
    settings: Settings,
    plan: DemoPlan,
    *,
    keep: bool,
    progress: Progress,
    say: Callable[[str], None],
) -> DemoReport:
    """Run it and return what came of it; raise StackError or FleetError if it can't be run.

    Everything that was started has been stopped by then, unless `keep`.
    """
    began_s = time.monotonic()
    settings = msgspec.structs.replace(
        settings,
        settle_grace_s=SETTLE_GRACE_S,
        idle_timeout_s=IDLE_TIMEOUT_S,
        report_interval_s=REPORT_INTERVAL_S,
        **OPEN_HERE,
    )
    with Stage(settings, plan.partitions, keep=keep, say=say) as stage:
        truth_path = stage.folder / f"truth-{plan.seed}.jsonl"
        meter = _Meter(stage)
        meter.start()
        fleet = _run_fleet(stage, plan, truth_path, progress)
        services = meter.services()
        _await_settled(stage, fleet, progress)
        progress("checking every total", 0, 1)
        report = make_report(stage, plan.seed, fleet, truth_path, services)
        progress("checking every total", 1, 1)
        report.note_proof(prove(stage, report.look_at, progress))
        report.wall_s = round(time.monotonic() - began_s, 1)
        if report.problems:
            stage.keep = False
        return report


def _run_fleet(stage: Stage, plan: DemoPlan, truth_path: Path, progress: Progress) -> FleetReport:
    settings = stage.settings

    def watched(phase: str, done: int, total: int) -> None:
        stage.check()
        progress(phase, done, total)

    return run_fleet(
        FleetPlan(
            seed=plan.seed,
            orders=plan.orders,
            segments_per_order=max(1, -(-plan.segments // plan.orders)),
            faults=Faults.everything(),
        ),
        quiet(settings.librdkafka()),
        settings.segments_topic,
        truth_policy(settings),
        truth_path=truth_path,
        rate=plan.rate,
        gateway_url=stage.urls["gateway"],
        http_share=HTTP_SHARE,
        progress=watched,
    )


class _Meter(threading.Thread):
    """A handful of services metered by the SDK, over HTTP and straight to Kafka."""

    def __init__(self, stage: Stage) -> None:
        super().__init__(name="demo-meter", daemon=True)
        self._stage = stage
        self._services: list[Metered] = []
        self._error: Exception | None = None

    def run(self) -> None:
        """Meter all of them at once."""
        try:
            self._meter()
        except Exception as error:  # told by `services`, in the thread that waits for it
            self._error = error

    def services(self) -> list[Metered]:
        """Return what was metered, once all services have ended."""
        self.join()
        if self._error is not None:
            raise StackError(f"The SDK's services failed: {self._error!r}") from self._error
        return self._services

    def _meter(self) -> None:
        url, settings = self._stage.urls["gateway"], self._stage.settings
        direct = KafkaUplink(
            quiet(settings.librdkafka()), settings.segments_topic, orders=HttpUplink(url)
        )
        folder = self._stage.folder
        for spool in folder.glob("meter-*.spool*"):
            spool.unlink()
        with (
            Client(HttpUplink(url), folder / "meter-http.spool") as over_http,
            Client(direct, folder / "meter-kafka.spool") as over_kafka,
        ):
            running, started_ms = [], []
            for client in [over_http] * SERVICES_OVER_HTTP + [over_kafka] * SERVICES_OVER_KAFKA:
                running.append(client.start())
                # At once: while others start, it may have reported its first segment.
                started_ms.append(running[-1].state.reported_until_ms)
            time.sleep(SERVICE_S)
            live = [self._live(service.service_order_number) for service in running]
            for service, start_ms, seen in zip(running, started_ms, live, strict=True):
                receipt = service.end()
                if not receipt.acknowledged:
                    raise StackError(f"not everything was taken: {receipt}")
                state = service.state
                duration_ms = state.reported_until_ms - start_ms
                self._services.append(
                    Metered(
                        receipt.service_order_number,
                        duration_ms=duration_ms,
                        segments=state.next_number - 1,
                        was_shown_live=seen is not None,
                    )
                )

    def _live(self, number: str) -> Any:
        """Return the live interval table of a running order, asked of the gateway."""
        give_up_s = time.monotonic() + 5
        while time.monotonic() < give_up_s:
            url = f"{self._stage.urls['gateway']}/v1/orders/{quote_order_number(number)}"
            answer = get_json(url)
            if answer is not None and answer["live"] is not None and answer["live"]["intervals"]:
                return answer["live"]
            time.sleep(0.2)
        return None


def _await_settled(stage: Stage, fleet: FleetReport, progress: Progress) -> None:
    """Return when the worker has nothing open and the ledger has every total, or time is up.

    What is missing then is found by the comparison.
    """
    give_up_s = time.monotonic() + max(0.0, fleet.settled_by_ms / 1000 - time.time()) + WAIT_S
    while time.monotonic() < give_up_s:
        stage.check()
        known = ledger_status(stage.settings.ledger_dsn)
        progress("settling, into the ledger", min(known.totals, fleet.totals), fleet.totals)
        if _worker_is_idle(stage):
            time.sleep(0.3)  # what the worker has queued for Kafka is there by then
            kafka, topic = quiet(stage.settings.librdkafka()), stage.settings.totals_topic
            ends = topic_ends(kafka, topic)
            offsets = ledger_status(stage.settings.ledger_dsn).next_offsets
            if all(offsets.get((topic, each), 0) >= end for each, end in ends.items()):
                return
        time.sleep(0.2)


def _worker_is_idle(stage: Stage) -> bool:
    """Tell whether the worker has read the whole log, and no order waits for a deadline."""
    status = get_json(f"{stage.urls['worker']}/status")
    if status is None:
        return False
    ends = topic_ends(quiet(stage.settings.librdkafka()), stage.settings.segments_topic)
    tasks = status["partitions"]
    return all(
        str(partition) in tasks
        and (tasks[str(partition)]["next_offset"] or 0) >= end
        and tasks[str(partition)]["oldest_deadline_ms"] is None
        for partition, end in ends.items()
    )
