"""Measures Durabill and its peers: `python -m tests.bench`, or `make bench ARGS="--quick"`.

Linux only (/proc). Starts a Kafka of its own and stops it; everything else on the machine should be
quiet. Parts, for --only:

    throughput   the worker beside Kafka Streams, Quix Streams, stock Faust and a bare consumer
    shapes       the worker on other traffic
    workers      one and two workers that share a topic
    open-orders  the worker with 10 thousand, 100 thousand and a million open orders
    recovery     restarts after `kill -9` with the greatest of these
    table        the interval table alone: memory an order, checkpoints, pauses while it grows
    turns        the longest turns of the event loop, and a segment's cost in the largest orders
    audit        proving it all: audit, archive, sealed log, beside a plain script
    gateway      segments into Kafka by HTTP, beside the least that Python needs for it
    latency      from the last segment's acknowledgement to the readable total
    sdk          what a client costs: with 1, 100 and 10,000 services, and after an outage

A whole run takes some 12 minutes and writes results.json, results.md and results.svg beside this
file; a part of it, or --quick, writes them to .durabill/bench.
"""

import argparse
import json
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from tests.bench import (
    audit,
    gateway,
    latency,
    plot,
    report,
    scaling,
    sdk,
    throughput,
    traffic,
    turns,
)
from tests.bench.lab import STATE_DIR, Lab, Stream
from tests.bench.peers import missing_parts, peers
from tests.bench.processes import BenchError
from tests.bench.report import Results

BUDGET_S = 26 * 60
"""When it is over, no further part or round is begun; the longest one takes under three minutes."""


@dataclass(frozen=True)
class Sizes:
    """How much of everything, in records unless said otherwise."""

    rounds: int
    headline: int
    shape: int
    two_segments: int
    workers: int
    open_orders: tuple[int, ...]
    open_records: int
    tail: int
    table_orders: int
    audit: tuple[int, ...]
    low_s: float
    half_s: float
    gateway_s: float


FULL = Sizes(
    3,
    8_000_000,
    3_000_000,
    1_000_000,
    5_000_000,
    (10_000, 100_000, 1_000_000),
    3_000_000,
    200_000,
    10_000_000,
    (2_000_000, 10_000_000),
    20.0,
    10.0,
    3.0,
)
QUICK = Sizes(
    1,
    900_000,
    400_000,
    200_000,
    400_000,
    (10_000, 100_000),
    400_000,
    20_000,
    1_000_000,
    (200_000, 1_000_000),
    6.0,
    4.0,
    0.8,
)


class Bench:
    """The parts, in the order in which they run."""

    def __init__(self, lab: Lab, sizes: Sizes, rounds: int, is_quick: bool) -> None:
        self.lab = lab
        self.sizes = sizes
        self.rounds = rounds
        self.results = Results()
        self._is_quick = is_quick
        self._greatest: Stream | None = None

    def parts(self) -> dict[str, Callable[[], None]]:
        """Return the parts by name."""
        return {
            "throughput": self.throughput,
            "shapes": self.shapes,
            "workers": self.workers,
            "open-orders": self.open_orders,
            "recovery": self.recovery,
            "table": self.table,
            "turns": self.turns,
            "audit": self.audit,
            "gateway": self.gateway,
            "latency": self.latency,
            "sdk": self.sdk,
        }

    def warm_up(self) -> None:
        """Have the kernel compiled and cached, before anything is measured."""
        stream = self.lab.preload(traffic.IN_ORDER.scaled(100), 10_000)
        throughput.measure_worker(self.lab, stream)
        self.lab.drop(stream.topic)

    def throughput(self) -> None:
        """See the module's docstring."""
        missing = missing_parts(self.lab.say)
        for name, reason in missing.items():
            self.lab.say(f"without {name}: {reason}")
        stream = self.lab.preload(traffic.IN_ORDER, self.sizes.headline)
        others = [peer for peer in peers(self._is_quick) if peer.name not in missing]
        self.results.compared = throughput.compare(self.lab, stream, others, self.rounds)
        self.results.missing = missing
        self.results.bytes_a_record = stream.bytes_a_record
        self.lab.drop(stream.topic)

    def shapes(self) -> None:
        """See the module's docstring."""
        for shape in (traffic.OUT_OF_ORDER, traffic.TWO_SEGMENTS, traffic.GARBAGE):
            is_short = shape.segments == 2
            count = self.sizes.two_segments if is_short else self.sizes.shape
            stream = self.lab.preload(shape, count)
            self.results.shapes.append(throughput.worker_alone(self.lab, stream, self.rounds))
            self.lab.drop(stream.topic)

    def workers(self) -> None:
        """See the module's docstring."""
        shape = traffic.IN_ORDER
        for count in (1, 2):
            scale = scaling.with_workers(self.lab, shape, self.sizes.workers, count)
            self.results.scales.append(scale)
            self.lab.say(f"{count} workers: {scale.records / scale.wall_s:,.0f} records a second")

    def open_orders(self) -> None:
        """See the module's docstring."""
        for count in self.sizes.open_orders:
            stream = self._open(count)
            series = throughput.worker_alone(self.lab, stream, self.rounds)
            self.results.open_orders.append(series)
            if count == self.sizes.open_orders[-1]:
                self._greatest = stream
            else:
                self.lab.drop(stream.topic)

    def recovery(self) -> None:
        """See the module's docstring."""
        stream = self._greatest or self._open(min(self.sizes.open_orders[-1], 1_000_000))
        self.results.recovery = scaling.recovery(self.lab, stream, self.sizes.tail)
        self.lab.say(str(self.results.recovery))
        self.lab.drop(stream.topic)

    def table(self) -> None:
        """See the module's docstring."""
        self.results.table = scaling.table_alone(self.lab, self.sizes.table_orders)
        self.lab.say(str(self.results.table))

    def turns(self) -> None:
        """See the module's docstring."""
        self.results.turns = turns.measure()

    def audit(self) -> None:
        """See the module's docstring."""
        self.results.proofs = audit.measure(self.lab, self.sizes.audit)

    def gateway(self) -> None:
        """See the module's docstring."""
        rounds = self.rounds if self._is_quick else 2 * self.rounds
        self.results.gateway = gateway.measure(self.lab, rounds, self.sizes.gateway_s)

    def latency(self) -> None:
        """See the module's docstring."""
        self.results.latencies.append(latency.at_low_load(self.lab, self.sizes.low_s))
        if not self.results.compared:
            stream = self.lab.preload(traffic.IN_ORDER, self.sizes.headline // 4)
            series = throughput.worker_alone(self.lab, stream, 1)
            self.lab.drop(stream.topic)
        else:
            series = self.results.compared[0]
        if series.error:
            raise BenchError("the full rate is not known")
        rate = median(run.per_s for run in series.runs) / 2
        self.results.latencies.append(latency.at_rate(self.lab, rate, self.sizes.half_s))
        for each in self.results.latencies:
            self.lab.say(str(each))

    def sdk(self) -> None:
        """See the module's docstring."""
        self.results.clients = sdk.measure()

    def _open(self, count: int) -> Stream:
        records = max(self.sizes.open_records, 2 * count)
        return self.lab.preload(traffic.open_orders(count), records)


def main() -> int:
    """Run the bench; return the exit code."""
    arguments = _arguments()
    if not Path("/proc/self/stat").exists():
        print("The bench reads CPU-seconds and memory from /proc, so it needs Linux.")
        return 69
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the broker is stopped
    sizes = QUICK if arguments.quick else FULL
    if arguments.hundred_million:
        sizes = Sizes(**{**vars(sizes), "audit": (*sizes.audit, 100_000_000)})
    if arguments.ten_million:
        sizes = Sizes(**{**vars(sizes), "open_orders": (*sizes.open_orders, 10_000_000)})
    begun_s = time.monotonic()

    def say(text: str) -> None:
        print(f"[{time.monotonic() - begun_s:5.0f} s] {text}", flush=True)

    failed = False
    is_long = arguments.ten_million or arguments.hundred_million
    with Lab(say, BUDGET_S * (2 if is_long else 1)) as lab:
        bench = Bench(lab, sizes, arguments.rounds or sizes.rounds, arguments.quick)
        bench.warm_up()
        for name, part in bench.parts().items():
            if arguments.only and name not in arguments.only:
                continue
            if lab.is_late():
                bench.results.problems.append(f"{name}: left out, the time was over")
                continue
            say(f"--- {name}")
            try:
                part()
            except BenchError as error:
                failed = True
                bench.results.problems.append(f"{name}: {error}")
                say(f"{name} failed: {error}")
    whole = not (arguments.quick or arguments.only)
    folder = arguments.out or (Path(__file__).parent if whole else STATE_DIR / "bench")
    _write(folder, bench.results, time.monotonic() - begun_s, " ".join(sys.argv[1:]))
    return 1 if failed else 0


def _write(folder: Path, results: Results, took_s: float, arguments: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    content = report.as_json(results, took_s, arguments)
    text = report.markdown(results, content)
    (folder / "results.json").write_text(json.dumps(content, indent=1) + "\n")
    (folder / "results.md").write_text(text)
    (folder / "results.svg").write_text(plot.svg(results))
    print(f"\n{text}\nwritten to {folder}/results.json, .md and .svg")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = (
        "throughput",
        "shapes",
        "workers",
        "open-orders",
        "recovery",
        "table",
        "turns",
        "audit",
        "gateway",
        "latency",
        "sdk",
    )
    parser.add_argument("--quick", action="store_true", help="small and rough, under 4 minutes")
    parser.add_argument("--only", action="append", choices=names, help="may be given repeatedly")
    parser.add_argument("--rounds", type=int, help="how often each throughput is measured")
    parser.add_argument(
        "--ten-million", action="store_true", help="also a worker with 10 million open orders"
    )
    parser.add_argument(
        "--hundred-million", action="store_true", help="also an audit of 100 million segments"
    )
    parser.add_argument("--out", type=Path, help="folder for the results")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
