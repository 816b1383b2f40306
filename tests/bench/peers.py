"""What the worker is measured beside, and how each is built and started.

No peer is crippled: each runs with settings that favour throughput (large fetches, caches and
batches, lz4, commits seldom), told in SETTINGS and printed with the results. All are at-least-once.
"""

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from durabill.deploy.local.java import find_java, java_version
from durabill.schemas import SEGMENT_HEADER, TOTAL_HEADER
from tests.bench.lab import PARTITIONS, ROOT, STATE_DIR, Lab, Names
from tests.bench.processes import BenchError, Child

BUILD_TIMEOUT_S = 900
HERE = Path(__file__).resolve().parent

SETTINGS = {
    "streams": "Kafka Streams 4.1.1, Processor API, in-memory store with caching (256 MiB) and"
    " changelog, 1 stream thread, at-least-once, commit.interval.ms=30000, max.poll.records=10000,"
    " buffered.records.per.partition=20000, fetch.min.bytes=256 KiB, max.partition.fetch.bytes=4"
    " MiB, producer lz4, linger.ms=100, batch.size=256 KiB; hand-written Avro and state codecs;"
    " -Xms1g -Xmx2g -XX:+UseParallelGC. Stopped with a last commit, which counts",
    "quix": "Quix Streams 3.28.1, stateful apply (RocksDB and changelog), commit_interval=5, fetch"
    " 4 MiB a partition, queued.min.messages=1000000, producer lz4, linger.ms=50, batch.size=1 MiB;"
    " fastavro. Stopped with a last commit, which counts",
    "faust": "faust-streaming 0.15.3, agent and table on aiokafka, in-memory store with changelog,"
    " uvloop, Cython parts, stream_buffer_maxsize=16384, broker_max_poll_records=5000, no CRC"
    " check, producer lz4, linger_ms=50, max_batch_size=1 MiB; fastavro",
    "floor": "confluent-kafka consume(10000), queued.min.messages=1000000, fastavro; no state,"
    " nothing produced",
}


@dataclass(frozen=True)
class Peer:
    """A contender beside the worker. It handles `warm` records uncounted, then `count` counted."""

    name: str
    title: str
    warm: int
    count: int
    launch: Callable[["Peer", Lab, Names], Child]


def missing_parts(say: Callable[[str], None]) -> dict[str, str]:
    """Build what the peers need; return those that can't run here, each with the reason."""
    missing = {}
    for name, build in (("streams", _build_streams), ("quix", _build_quix)):
        try:
            build(say)
        except (BenchError, OSError, subprocess.SubprocessError) as error:
            missing[name] = str(error)
    return missing


# -- Kafka Streams --------------------------------------------------------------------------------

JARS = STATE_DIR / "bench-jars"
CLASSES = STATE_DIR / "bench-classes"


def _build_streams(say: Callable[[str], None]) -> None:
    maven, javac = shutil.which("mvn"), shutil.which("javac")
    if javac is None:
        raise BenchError("no javac: install a JDK 17 or later (Debian: openjdk-17-jdk-headless)")
    if maven is None:
        raise BenchError("no Maven (mvn) to fetch the jars of Kafka Streams with")
    pom = HERE / "java" / "pom.xml"
    if _changed(JARS, pom):
        say("fetching the jars of Kafka Streams with Maven")
        command = [maven, "--batch-mode", "--quiet", "--file", str(pom)]
        _run([*command, "dependency:copy-dependencies", f"-DoutputDirectory={JARS}"])
        _settle(JARS, pom)
    sources = sorted((HERE / "java").glob("*.java"))
    if _changed(CLASSES, *sources):
        _run([javac, "-d", str(CLASSES), "-cp", f"{JARS}/*", *map(str, sources)])
        _settle(CLASSES, *sources)


def _launch_streams(peer: Peer, lab: Lab, names: Names) -> Child:
    java = find_java()
    if (java_version(java) or 0) < (java_version(Path(shutil.which("javac") or "javac")) or 0):
        raise BenchError(f"{java} is older than the javac that compiled the peer")
    options = ["-Xms1g", "-Xmx2g", "-XX:+UseParallelGC", f"-Djava.io.tmpdir={lab.dir}"]
    options += ["-Dorg.slf4j.simpleLogger.defaultLogLevel=error", "-cp", f"{JARS}/*:{CLASSES}"]
    headers = [SEGMENT_HEADER.hex(), TOTAL_HEADER.hex()]
    command = [str(java), *options, "StreamsPeer", *_arguments(peer, lab, names), *headers]
    return Child(peer.title, command, lab.dir / f"{names.totals}.log", {})


# -- Quix Streams, Faust, the floor ---------------------------------------------------------------

QUIX_VENV = STATE_DIR / "bench-venv"


def _build_quix(say: Callable[[str], None]) -> None:
    requirements = HERE / "requirements.txt"
    if not _changed(QUIX_VENV, requirements):
        return
    say("making a virtual environment for Quix Streams")
    _run([sys.executable, "-m", "venv", "--clear", str(QUIX_VENV)])
    pip = [str(QUIX_VENV / "bin" / "python"), "-m", "pip", "install", "--quiet"]
    _run([*pip, "--disable-pip-version-check", "--requirement", str(requirements)])
    _settle(QUIX_VENV, requirements)


def _launch_quix(peer: Peer, lab: Lab, names: Names) -> Child:
    python = str(QUIX_VENV / "bin" / "python")
    return _launch_python(python, "tests.bench.peer_quix", peer, lab, names)


def _launch_faust(peer: Peer, lab: Lab, names: Names) -> Child:
    return _launch_python(sys.executable, "tests.bench.peer_faust", peer, lab, names)


def _launch_floor(peer: Peer, lab: Lab, names: Names) -> Child:
    command = [sys.executable, "-m", "tests.bench.peer_floor", lab.servers, names.segments]
    command += [str(peer.warm), str(peer.count)]
    log = lab.dir / f"{names.totals}.log"
    return Child(peer.title, command, log, {"PYTHONPATH": str(ROOT)})


def _launch_python(python: str, module: str, peer: Peer, lab: Lab, names: Names) -> Child:
    command = [python, "-m", module, *_arguments(peer, lab, names)]
    log = lab.dir / f"{names.totals}.log"
    return Child(peer.title, command, log, {"PYTHONPATH": str(ROOT)})


def _arguments(peer: Peer, lab: Lab, names: Names) -> list[str]:
    folder = lab.dir / f"state-{names.totals}"
    counts = [str(peer.warm), str(peer.count)]
    return [lab.servers, names.segments, names.totals, *counts, str(folder)]


def peers(quick: bool) -> list[Peer]:
    """Return the contenders; slower ones get fewer records, since rates are a record."""
    small = 10 if quick else 1
    streams = 1_000_000 // small, 3_000_000 // small
    return [
        Peer("streams", "Kafka Streams", *streams, _launch_streams),
        Peer("quix", "Quix Streams", 50_000 // small, 200_000 // small, _launch_quix),
        Peer("faust", "stock Faust table", 10_000 // small, 50_000 // small, _launch_faust),
        Peer(
            "floor",
            "consumer that only decodes",
            100_000 // small,
            1_000_000 // small,
            _launch_floor,
        ),
    ]


# -- building -------------------------------------------------------------------------------------


def _run(command: list[str]) -> None:
    ran = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=BUILD_TIMEOUT_S,
        check=False,
    )
    if ran.returncode:
        tail = (ran.stdout + ran.stderr).strip().splitlines()[-5:]
        raise BenchError(f"{Path(command[0]).name} failed: " + " / ".join(tail))


def _digest(*sources: Path) -> str:
    content = b"".join(each.read_bytes() for each in sources) + sys.version.encode()
    return hashlib.sha256(content).hexdigest()


def _changed(folder: Path, *sources: Path) -> bool:
    stamp = folder / "bench-stamp"
    return not stamp.exists() or stamp.read_text() != _digest(*sources)


def _settle(folder: Path, *sources: Path) -> None:
    (folder / "bench-stamp").write_text(_digest(*sources))


assert PARTITIONS == 4, "the peers' own topics have as many partitions"
