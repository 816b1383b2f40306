"""Throughput: records a CPU-second and a second of wall time, of the worker and its peers.

The worker is measured from the moment before its first record (its partitions are assigned, its
kernel is loaded) until the checkpoint that holds the last record is committed, so every total and
every checkpoint is paid for; wall time ends with the last record folded, since the last checkpoint
waits for its interval. Peers are measured from after a warm-up until they have handled their
records and, where they can be told to stop, committed. All CPU-seconds are of the contender's
process with all its threads; the broker's are told apart.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

from tests.bench.lab import Lab, Names, Stream
from tests.bench.peers import Peer
from tests.bench.processes import BenchError, Child, memory_mb
from tests.bench.worker import Worker, wait_committed, wait_folded

PEER_TIMEOUT_S = 300.0


@dataclass
class Run:
    """One run of a contender."""

    records: int
    cpu_s: float
    wall_s: float
    resident_mb: float
    peak_mb: float
    broker_cpu_s: float
    startup_s: float | None = None
    """From the start of the process until it has folded its first records."""

    @property
    def per_cpu_s(self) -> float:
        """Return the records a CPU-second."""
        return self.records / max(self.cpu_s, 0.01)

    @property
    def per_s(self) -> float:
        """Return the records a second."""
        return self.records / max(self.wall_s, 0.001)


@dataclass
class Series:
    """All runs of one contender on one stream."""

    name: str
    title: str
    runs: list[Run] = field(default_factory=list)
    error: str = ""


def measure_worker(lab: Lab, stream: Stream) -> Run:
    """Run a new worker over the whole stream, and check its totals against the traffic."""
    names = lab.names("worker", stream.topic)
    worker = Worker(lab, names)
    with _ended(worker.child):
        begun_s, begun_cpu_s = worker.wait_ready()
        broker_s = lab.broker_cpu_s()
        first_s = worker.wait_first()
        folded_s = wait_folded([worker], stream.ends)
        wait_committed(lab, [worker], stream.ends)
        run = Run(
            stream.sent.records,
            worker.cpu_s() - begun_cpu_s,
            folded_s - begun_s,
            *worker.memory_mb(),
            lab.broker_cpu_s() - broker_s,
            first_s - worker.child.started_s,
        )
    check_totals(lab, names, stream)
    lab.drop(names.totals, names.orders, names.dead_letters, names.checkpoint)
    return run


def check_totals(lab: Lab, names: Names, stream: Stream) -> None:
    """Raise BenchError unless each ended order has a total, and each fault a letter."""
    expected = stream.sent.orders_ended, stream.sent.ended_duration_ms
    actual = lab.count_totals(names.totals)
    if actual != expected:
        raise BenchError(f"(totals, ms) are {actual}, not {expected}, on {stream.shape.title}")
    letters = sum(lab.ends(names.dead_letters).values())
    if letters != stream.sent.garbage:
        raise BenchError(f"{letters} dead letters, not {stream.sent.garbage}")


def measure_peer(lab: Lab, peer: Peer, stream: Stream) -> Run:
    """Run a peer over the first part of the stream."""
    names = lab.names(peer.name, stream.topic)
    child = peer.launch(peer, lab, names)
    with _ended(child):
        warm_s, warm_cpu_s, warm = child.wait_mark("warm", PEER_TIMEOUT_S)
        broker_s = lab.broker_cpu_s()
        done_s, done_cpu_s, done = child.wait_mark("done", PEER_TIMEOUT_S)
        run = Run(
            done["records"] - warm["records"],
            done_cpu_s - warm_cpu_s,
            done_s - warm_s,
            *memory_mb(child.pid),
            lab.broker_cpu_s() - broker_s,
        )
    if peer.name != "floor":
        _check_peer_totals(lab, names, peer, stream)
    made = [each for each in lab.admin.list_topics(timeout=30).topics if names.totals in each]
    lab.drop(names.orders, names.dead_letters, names.checkpoint, *made)
    return run


def _check_peer_totals(lab: Lab, names: Names, peer: Peer, stream: Stream) -> None:
    totals, duration_ms = lab.count_totals(names.totals)
    one_ms = stream.shape.segments * stream.shape.interval_ms
    if duration_ms != totals * one_ms or totals > stream.sent.orders_ended:
        raise BenchError(f"{peer.title}: {totals} totals of {duration_ms} ms together are wrong")


def compare(lab: Lab, stream: Stream, peers: list[Peer], rounds: int) -> list[Series]:
    """Measure the worker and its peers in turn, `rounds` times."""
    ours = Series("worker", "Durabill worker")
    theirs = {peer.name: Series(peer.name, peer.title) for peer in peers}
    for number in range(1, rounds + 1):
        if number > 1 and lab.is_late():
            break
        measure(lab, ours, number, partial(measure_worker, lab, stream))
        for peer in peers:
            series = theirs[peer.name]
            if not series.error:
                measure(lab, series, number, partial(measure_peer, lab, peer, stream))
    return [ours, *theirs.values()]


def worker_alone(lab: Lab, stream: Stream, rounds: int) -> Series:
    """Measure the worker `rounds` times on a stream."""
    series = Series(stream.shape.name, stream.shape.title)
    for number in range(1, rounds + 1):
        if number > 1 and lab.is_late():
            break
        measure(lab, series, number, partial(measure_worker, lab, stream))
    return series


def measure(lab: Lab, series: Series, number: int, run: Callable[[], Run]) -> None:
    """Add one run to the series, or the reason why there is none."""
    try:
        series.runs.append(run())
    except (BenchError, OSError) as error:
        series.error = str(error)
        lab.say(f"{series.title}: {error}")
        return
    last = series.runs[-1]
    lab.say(
        f"round {number}: {series.title:28} {last.per_cpu_s:12,.0f} records a CPU-second,"
        f" {last.per_s:12,.0f} a second, {last.peak_mb:6,.0f} MiB at its peak"
    )


@contextlib.contextmanager
def _ended(child: Child) -> Iterator[None]:
    try:
        yield
    finally:
        child.stop()
