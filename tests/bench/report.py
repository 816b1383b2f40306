"""The results as JSON and as Markdown, beside what was promised."""

import os
import platform
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from tests.bench.audit import Cost, Proofs
from tests.bench.gateway import GOAL_BATCH, GatewayCost
from tests.bench.latency import LOW_RATE, Latency
from tests.bench.peers import SETTINGS
from tests.bench.scaling import Recovery, Scale
from tests.bench.sdk_client import Metered
from tests.bench.throughput import Run, Series
from tests.bench.turns import Turn

MIB = 2**20


@dataclass
class Results:
    """What has been measured; empty where a part did not run."""

    compared: list[Series] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)
    bytes_a_record: float = 0.0
    shapes: list[Series] = field(default_factory=list)
    scales: list[Scale] = field(default_factory=list)
    open_orders: list[Series] = field(default_factory=list)
    recovery: Recovery | None = None
    table: dict[str, dict[str, Any]] = field(default_factory=dict)
    turns: list[Turn] = field(default_factory=list)
    proofs: Proofs | None = None
    gateway: GatewayCost | None = None
    latencies: list[Latency] = field(default_factory=list)
    clients: list[Metered] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def named(self, name: str) -> Series | None:
        """Return the series of a contender that has runs, or None."""
        return next((each for each in self.compared if each.name == name and each.runs), None)


def per_cpu_s(series: Series) -> float:
    """Return the median of the records a CPU-second."""
    return median(run.per_cpu_s for run in series.runs)


def as_json(results: Results, took_s: float, arguments: str) -> dict[str, Any]:
    """Return everything that was measured as plain values."""
    return {
        "date": time.strftime("%Y-%m-%d"),
        "arguments": arguments,
        "took_s": round(took_s),
        "machine": _machine(),
        "peers": SETTINGS,
        "results": asdict(results),
    }


def _machine() -> dict[str, Any]:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": models[0] if models else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory / 2**30),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


def markdown(results: Results, content: dict[str, Any]) -> str:
    """Return the results for people."""
    machine = content["machine"]
    parts = [
        "# Measurements",
        "",
        f"Made by `make bench{_with_arguments(content)}` on {content['date']} in"
        f" {content['took_s'] / 60:.0f} minutes: {machine['cores']} cores ({machine['cpu']}),"
        f" {machine['memory_gib']} GiB, {machine['system']}, Python {machine['python']}. Kafka ran"
        " on the same machine.",
        *_goals(results),
        *_compared(results),
        *_alone(results),
        *_others(results),
    ]
    if results.problems:
        parts += ["", "## Not measured", "", *(f"- {each}" for each in results.problems)]
    return "\n".join(parts) + "\n"


def _with_arguments(content: dict[str, Any]) -> str:
    return f' ARGS="{content["arguments"]}"' if content["arguments"] else ""


# -- what was promised ----------------------------------------------------------------------------


def _goals(results: Results) -> list[str]:
    rows = [
        (what, f"{goal:,} {unit}", f"{actual:,.{digits}f}", "yes" if met else "NO")
        for what, goal, unit, actual, digits, met in _goal_rows(results)
    ]
    if not rows:
        return []
    return ["", *_table(("goal", "at least / at most", "measured", "met"), rows)]


def _goal_rows(results: Results) -> Iterable[tuple[str, float, str, float, int, bool]]:
    worker, streams = results.named("worker"), results.named("streams")
    if worker is not None:
        speed = per_cpu_s(worker)
        goal = 2_000_000
        yield "segments a CPU-second, in order", goal, "or more", speed, 0, speed >= goal
        startup_s = median(run.startup_s or 0 for run in worker.runs)
        yield "start to first record, s", 5, "or less", startup_s, 1, startup_s <= 5
        if streams is not None:
            ratio = speed / per_cpu_s(streams)
            yield "times Kafka Streams", 5, "or more", ratio, 1, ratio >= 5
    if (checkpoint := results.table.get("checkpoint")) is not None:
        size = checkpoint["bytes_an_order"]
        name = f"bytes an open order, at {checkpoint['orders']:,}"
        yield name, 250, "or less", size, 0, size <= 250
        growth = results.table["growth"]
        pause_s = growth["pause_ms"] / 1000
        name = f"longest fold of a 1 MB batch on the way to {growth['orders']:,} orders, s"
        yield name, 1, "or less", pause_s, 2, pause_s <= 1
    if (again := results.recovery) is not None:
        name = f"back at work after kill -9 with {again.orders:,} open orders, s"
        yield name, 10, "or less", again.caught_up_s, 1, again.caught_up_s <= 10
    if (proofs := results.proofs) is not None:
        speed = max(each.per_cpu_s for each in proofs.audits[:-1])
        goal = 1_000_000
        yield "segments a CPU-second, audited", goal, "or more", speed, 0, speed >= goal
        each_us = _us_a_total(proofs)
        yield "µs of CPU a total, sealed", 10, "or less", each_us, 1, each_us <= 10
    if results.gateway is not None:
        (took,) = (each for each in results.gateway.takes if each.batch == GOAL_BATCH)
        speed, goal = median(took.gateway), 200_000
        name = f"segments a CPU-second, gateway, {GOAL_BATCH} a request"
        yield name, goal, "or more", speed, 0, speed >= goal
        name = f"p99 of the gateway's answers at {took.rate:,.0f} segments a second, ms"
        yield name, 50, "or less", took.p99_ms, 0, took.p99_ms <= 50
    for each in results.latencies:
        goal = 250 if each.rate < 2 * LOW_RATE else 1_000
        name = f"p99 latency at {each.rate:,.0f} segments a second, ms"
        yield name, goal, "or less", each.p99_ms, 0, each.p99_ms <= goal
    yield from _client_goals(results.clients)


def _client_goals(
    clients: Sequence[Metered],
) -> Iterable[tuple[str, float, str, float, int, bool]]:
    for each in clients:
        if each.name == "services" and each.services == 1:
            share = 100 * each.cpu_s / each.wall_s
            yield "% of a core, a client with one service", 1, "or less", share, 2, share <= 1
            size_mb = each.rss_mib * MIB / 1e6
            yield "MB above bare Python, the same", 20, "or less", size_mb, 1, size_mb <= 20
        elif each.name == "services":
            rate, goal = each.segments / each.wall_s, each.services / 10
            name = f"segments a second, {each.services:,} services"
            yield name, goal, "delivered", rate, 0, rate >= 0.97 * goal


# -- the tables -----------------------------------------------------------------------------------


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[str]:
    lines = ["| " + " | ".join(head) + " |", "|---" + "|--:" * (len(head) - 1) + "|"]
    return lines + ["| " + " | ".join(row) + " |" for row in rows]


def _spread(values: Iterable[float]) -> str:
    given = sorted(values)
    middle = f"{_short(median(given))}"
    return middle if len(given) == 1 else f"{middle} ({_short(given[0])} to {_short(given[-1])})"


def _short(value: float) -> str:
    """Return three digits that mean something, with thousands separated."""
    if value >= 100_000:
        return f"{round(value, -3):,.0f}"
    return f"{round(value, -2):,.0f}" if value >= 1_000 else f"{value:.3g}"


def _row(series: Series, *more: str) -> tuple[str, ...]:
    runs = series.runs
    return (
        series.title,
        _spread(run.per_cpu_s for run in runs),
        _spread(run.per_s for run in runs),
        f"{max(run.peak_mb for run in runs):,.0f}",
        f"{median(run.broker_cpu_s / run.records * 1e6 for run in runs):.2f}",
        f"{runs[0].records:,}",
        *more,
    )


_HEAD = (
    "",
    "records a CPU-second",
    "records a second",
    "peak MiB",
    "broker's CPU-s a million",
    "records a run",
)


def _compared(results: Results) -> list[str]:
    if not any(series.runs for series in results.compared):
        return []
    streams = results.named("streams")
    base = per_cpu_s(streams) if streams else 0.0
    rows = [
        _row(series, f"{per_cpu_s(series) / base:.3g}" if base else "-")
        for series in results.compared
        if series.runs
    ]
    rounds = max(len(series.runs) for series in results.compared)
    errors = [f"- {each.title}: {each.error}" for each in results.compared if each.error]
    errors += [f"- without {name}: {reason}" for name, reason in results.missing.items()]
    return [
        "",
        "## The worker and its peers",
        "",
        "The same topic, one after another, the median of "
        f"{rounds} rounds (least to greatest): orders of 80 segments, 10 % repeats, thousands of"
        " orders interleaved, 4 partitions. Produced by confluent-kafka: lz4, linger.ms=50,"
        f" batch.size=1 MiB, {results.bytes_a_record:.0f} bytes a record in the log.",
        "",
        *_table((*_HEAD, "times Kafka Streams"), rows),
        *([""] if errors else []),
        *errors,
        "",
        "CPU-seconds are user and system time of the contender's process with all its threads. The"
        " worker's run from the moment before its first record until the checkpoint of the last one"
        " is committed, with totals, dead letters and a checkpoint a second; the others' from"
        " after a warm-up (Kafka Streams: a quarter of its records, so that the JVM has compiled),"
        " until they have done theirs. The peers keep no deadlines and no dead letters. The totals"
        " of the worker are checked against the traffic by count and sum of durations, the peers'"
        " by the latter.",
        "",
        *(f"- {text}." for text in SETTINGS.values()),
    ]


def _alone(results: Results) -> list[str]:
    lines: list[str] = []
    shapes = [each for each in results.shapes if each.runs]
    if shapes:
        lines += ["", "## Other traffic", "", *_table(_HEAD, [_row(each) for each in shapes])]
    opened = [each for each in results.open_orders if each.runs]
    if opened:
        rows = [_row(each, f"{_resident(each.runs):,.0f}") for each in opened]
        lines += [
            "",
            "## Open orders",
            "",
            "No order ends; every record finds its order at random.",
        ]
        lines += ["", *_table((*_HEAD, "resident MiB"), rows)]
    return lines


def _resident(runs: list[Run]) -> float:
    return median(run.resident_mb for run in runs)


def _others(results: Results) -> list[str]:
    lines: list[str] = []
    if results.scales:
        lines += ["", "## Workers that share a topic", "", *_scales(results.scales)]
    if results.turns:
        turns = [(each.name, f"{each.steps:,}", f"{each.took_ms:,.2f}") for each in results.turns]
        head = ("what", "steps", "CPU ms, the longest")
        lines += ["", "## Turns of the event loop at the limits", "", *_table(head, turns)]
    if results.table:
        lines += ["", "## The interval table alone", "", *_table_alone(results.table)]
    if results.recovery is not None:
        lines += ["", "## After kill -9", "", *_recovery(results.recovery)]
    if results.proofs is not None:
        lines += ["", "## Proving it", "", *_proofs(results.proofs)]
    if results.gateway is not None:
        lines += ["", "## The gateway", "", *_gateway(results.gateway)]
    if results.latencies:
        lines += ["", "## Latency", "", *_latencies(results.latencies)]
    if results.clients:
        lines += ["", "## The SDK", "", *_clients(results.clients)]
    return lines


def _clients(clients: Sequence[Metered]) -> list[str]:
    names = {
        "services": "{:,} services, a segment each 10 s",
        "backlog": "what has piled up, of {:,} orders",
        "floor": "floor: http.client alone, no spool, of {:,} orders",
    }
    rows = [
        (
            names[each.name].format(each.services),
            f"{each.segments / each.wall_s:,.1f}",
            f"{100 * each.cpu_s / each.wall_s:.2f} %",
            _short(each.segments / max(each.cpu_s, 0.001)),
            f"{each.rss_mib:.1f}",
            f"{each.written_bytes / max(each.segments, 1):,.0f}",
            f"{each.durable_commits / max(each.segments, 1):.4f}",
            f"{each.starts_s:.1f}",
            f"{each.left:,}",
        )
        for each in clients
    ]
    head = (
        "client",
        "segments a second",
        "of a core",
        "a CPU-second",
        "MiB above bare Python",
        "bytes written a segment",
        "fsyncs a segment",
        "s to start",
        "left over",
    )
    return [
        "The server is a stand-in that answers at once, so the client alone is measured.",
        "",
        *_table(head, rows),
    ]


def _us_a_total(proofs: Proofs) -> float:
    """Return what sealing a total costs beyond starting the command, in µs of CPU."""
    sealed, started = proofs.seals
    return (sealed.cpu_s - started.cpu_s) / max(sealed.count, 1) * 1e6


def _proofs(proofs: Proofs) -> list[str]:
    def row(each: Cost, what: str) -> tuple[str, ...]:
        rate = f"{_short(each.per_cpu_s)} {what}"
        return each.title, rate, f"{each.cpu_s:.1f}", f"{each.wall_s:.1f}", f"{each.peak_mb:,.0f}"

    rows = [row(each, "records") for each in (*proofs.audits, *proofs.archives)]
    rows += [row(each, "totals") for each in proofs.seals]
    return [
        *_table(("", "a CPU-second", "CPU-s", "s", "peak MiB"), rows),
        "",
        "Whole commands, their start and the loading of the kernel included; memory is that of"
        f" the first process. The archive takes {proofs.archive_bytes_a_record:.1f} bytes a record;"
        f" sealing a total takes {_us_a_total(proofs):.1f} µs of CPU.",
    ]


def _scales(scales: list[Scale]) -> list[str]:
    head = ("workers", "records a second", "records a CPU-second", "records")
    rows = [
        (
            str(each.workers),
            _short(each.records / each.wall_s),
            _short(each.records / max(each.cpu_s, 0.01)),
            f"{each.records:,}",
        )
        for each in scales
    ]
    text = "All records become readable at once. The broker has its share of the cores, too."
    return [text, "", *_table(head, rows)]


def _table_alone(marks: dict[str, dict[str, Any]]) -> list[str]:
    at, end = marks["checkpoint"], marks["growth"]
    return [
        f"- {at['orders']:,} open orders: {at['bytes_an_order']:.0f} bytes each in memory.",
        f"- A checkpoint with all of them changed: {at['copy_ms']:.0f} ms to copy"
        f" ({at['pause_ms']:.1f} ms at a time at most, between two folds), {at['pack_ms']:.0f} ms"
        f" to pack beside the stream; {at['blocks_bytes'] / MIB:.1f} MiB in {at['blocks']:,}"
        " blocks.",
        f"- On the way to {end['orders']:,}: the longest fold of a batch of"
        f" {end['batch_bytes'] / 1e6:.1f} MB took {end['pause_ms']:.0f} ms, at"
        f" {end['pause_at_orders']:,} orders; {end['bytes_an_order']:.0f} bytes each at the end.",
    ]


def _recovery(again: Recovery) -> list[str]:
    return [
        f"With {again.orders:,} open orders and a tail of {again.tail_records:,} records that no"
        " checkpoint has seen.",
        "",
        "- A process started after the group gave up the dead one: first record after"
        f" {again.start_s:.1f} s, tail folded after {again.caught_up_s:.1f} s.",
        f"- A process started at once: tail folded {again.at_once_s:.1f} s after the kill, of"
        " which up to 6 s are the group waiting for the dead one (its session timeout).",
    ]


def _gateway(cost: GatewayCost) -> list[str]:
    head = ("segments a request", "segments a CPU-second", "the floor", "at half load", "p50 ms")
    rows = [
        (
            str(each.batch),
            _spread(each.gateway),
            _spread(each.floor),
            f"{each.rate:,.0f} a second",
            f"{each.p50_ms:.0f}",
            f"{each.p99_ms:.0f}",
        )
        for each in cost.takes
    ]
    return [
        "POST /v1/segments with leases, quotas and receipts; requests of one order each, over"
        " up to 128 connections. CPU-seconds are those of the gateway's process with all its"
        " threads. The floor is aiohttp, msgspec, Avro by hand in Python, and one report a request,"
        " and it checks, bounds and signs nothing; the two take turns, slice by slice. Half load is"
        " half of what the gateway took with the broker and the clients on the same cores.",
        "",
        *_table((*head, "p99 ms"), rows),
        "",
        f"{_short(cost.handshakes)} new TLS connections a CPU-second, each with one request (TLS"
        " 1.3, ECDSA P-256, nothing resumed).",
    ]


def _latencies(latencies: list[Latency]) -> list[str]:
    head = ("", "segments a second", "p50 ms", "p99 ms", "greatest ms", "totals")
    rows = [
        (
            each.title,
            f"{each.rate:,.0f}",
            *(f"{value:.0f}" for value in (each.p50_ms, each.p99_ms, each.max_ms)),
            f"{each.totals:,}",
        )
        for each in latencies
    ]
    text = "From the acknowledgement of an order's last segment to its readable total."
    return [text, "", *_table(head, rows)]
