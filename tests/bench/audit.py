"""What proving costs: the audit, the archive and the sealed log, as commands of their own.

CPU-seconds are user and system time of the whole command with its processes, from its start: the
imports and the kernel's loading are in it. Memory is the command's own process's peak.
"""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from durabill.deploy.topics import create_topics
from durabill.stream_processors.audit.seal.keys import make_key_file
from tests.bench import traffic
from tests.bench.lab import PARTITIONS, ROOT, Lab, Names, Stream
from tests.bench.processes import BenchError, memory_mb
from tests.bench.throughput import check_totals
from tests.bench.worker import Worker, wait_committed

CLI = ("-m", "durabill.deploy.commands.cli")
PEER_RECORDS_MAX = 1_000_000


@dataclass
class Cost:
    """What one command took for `count` of something."""

    title: str
    count: int
    cpu_s: float
    wall_s: float
    peak_mb: float

    @property
    def per_cpu_s(self) -> float:
        """Return how many of them a CPU-second."""
        return self.count / max(self.cpu_s, 0.01)


@dataclass
class Proofs:
    """All of it."""

    audits: list[Cost] = field(default_factory=list)
    archives: list[Cost] = field(default_factory=list)
    seals: list[Cost] = field(default_factory=list)
    archive_bytes_a_record: float = 0.0


def measure(lab: Lab, lengths: Sequence[int]) -> Proofs:
    """Measure on topics of these lengths, of the last one everything."""
    proofs = Proofs()
    for records in lengths:
        stream = lab.preload(traffic.IN_ORDER, records)
        names = lab.names("audit", stream.topic)
        _publish(lab, names, stream)
        env = _environment(lab, names)
        is_last = records == lengths[-1]
        for processes in (1, 2) if is_last else (1,):
            proofs.audits.append(_audit(lab, env, stream, processes))
        if is_last:
            proofs.audits.append(_peer(lab, env, names, stream))
            _archive(lab, env, stream, proofs)
            topics = replace(names.topics, seal=env["DURABILL_SEAL_TOPIC"])
            create_topics(lab.kafka, topics, partitions=PARTITIONS)
            _seal(lab, env, stream, proofs)
        lab.drop(names.totals, names.orders, names.dead_letters, names.checkpoint, stream.topic)
    return proofs


def _publish(lab: Lab, names: Names, stream: Stream) -> None:
    """Have a worker publish the totals that are audited."""
    worker = Worker(lab, names)
    try:
        worker.wait_ready()
        wait_committed(lab, [worker], stream.ends)
    finally:
        worker.stop()
    check_totals(lab, names, stream)


def _environment(lab: Lab, names: Names) -> dict[str, str]:
    settings = {
        "bootstrap_servers": lab.servers,
        "application_id": names.application_id,
        "segments_topic": names.segments,
        "totals_topic": names.totals,
        "orders_topic": names.orders,
        "dead_letters_topic": names.dead_letters,
        "data_dir": str(lab.dir / "data"),
        "archive_dir": str(lab.dir / f"archive-{names.application_id}"),
        "seal_dir": str(lab.dir / f"seal-{names.application_id}"),
        "seal_topic": f"{names.application_id}.seal",
    }
    return {f"DURABILL_{name.upper()}": value for name, value in settings.items()}


def _audit(lab: Lab, env: Mapping[str, str], stream: Stream, processes: int) -> Cost:
    # Without the archive of a length before: what is measured reads Kafka alone.
    own = {name: value for name, value in env.items() if name != "DURABILL_ARCHIVE_DIR"}
    arguments = ("audit", "--json", "--no-ledger", "--processes", str(processes))
    cost, told = _run((*CLI, *arguments), own, stream.sent.records)
    if told["result"] != "proven" or told["proven"] != stream.sent.orders_ended:
        raise BenchError(f"the audit says {told}")
    cost.title = f"durabill audit, {_count(processes, 'process')}, {stream.sent.records:,} records"
    lab.say(f"{cost.title}: {cost.per_cpu_s:,.0f} a CPU-second, {cost.peak_mb:,.0f} MiB")
    return cost


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}es"


def _peer(lab: Lab, env: Mapping[str, str], names: Names, stream: Stream) -> Cost:
    count = min(stream.sent.records, PEER_RECORDS_MAX)
    arguments = (lab.servers, names.segments, names.totals, str(count))
    cost, told = _run(("-m", "tests.bench.peer_audit", *arguments), env, count)
    if not told["proven"]:
        raise BenchError(f"the plain script proves nothing: {told}")
    cost.title = f"confluent-kafka + fastavro, plain Python, {count:,} records"
    lab.say(f"{cost.title}: {cost.per_cpu_s:,.0f} a CPU-second")
    return cost


def _archive(lab: Lab, env: Mapping[str, str], stream: Stream, proofs: Proofs) -> None:
    written, told = _run((*CLI, "archive", "--once", "--json"), env, stream.sent.records)
    written.title = "durabill archive --once"
    read, _ = _run((*CLI, "archive", "--verify", "--json"), env, stream.sent.records)
    read.title = "durabill archive --verify"
    proofs.archives += [written, read]
    proofs.archive_bytes_a_record = told["bytes"] / max(told["rows"], 1)
    shutil.rmtree(env["DURABILL_ARCHIVE_DIR"])
    lab.say(f"archive: {written.per_cpu_s:,.0f} and {read.per_cpu_s:,.0f} a CPU-second")


def _seal(lab: Lab, env: Mapping[str, str], stream: Stream, proofs: Proofs) -> None:
    """Seal all totals; beside it an empty run, which is what starting costs."""
    key = Path(env["DURABILL_SEAL_DIR"]).with_suffix(".key")
    make_key_file(key)
    env = {**env, "DURABILL_SEAL_KEY_FILE": str(key)}
    for title in ("durabill seal --once", "the same again, with nothing to seal"):
        cost, _ = _run((*CLI, "seal", "--once", "--json"), env, stream.sent.orders_ended)
        cost.title = title
        proofs.seals.append(cost)
    all_of_it, start = proofs.seals
    each_us = (all_of_it.cpu_s - start.cpu_s) / max(stream.sent.orders_ended, 1) * 1e6
    lab.say(f"seal: {each_us:.1f} µs of CPU a total")


def _run(command: Sequence[str], env: Mapping[str, str], count: int) -> tuple[Cost, Any]:
    """Run a command of Python's to its end; return its cost and the last line that it prints."""
    others = {name: value for name, value in os.environ.items() if "DURABILL_" not in name}
    began_s, peak_mb = time.monotonic(), 0.0
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
        child = subprocess.Popen(
            [sys.executable, *command],
            env={**others, **env, "PYTHONPATH": str(ROOT)},
            stdout=out,
            stderr=errors,
        )
        pid = 0
        while not pid:
            # Not by rusage: its peak is that of the process that began it, if that is larger.
            with contextlib.suppress(OSError, KeyError):
                peak_mb = max(peak_mb, memory_mb(child.pid)[1])
            time.sleep(0.02)
            pid, status, usage = os.wait4(child.pid, os.WNOHANG)
        child.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        errors.seek(0)
        told, log = out.read(), errors.read()
    if child.returncode or not told:
        raise BenchError(f"{' '.join(command)} ended with {child.returncode}: {log[-2000:]}")
    cost = Cost(
        "",
        count,
        usage.ru_utime + usage.ru_stime,
        time.monotonic() - began_s,
        peak_mb,
    )
    return cost, json.loads(told.splitlines()[-1])
