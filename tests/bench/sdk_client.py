"""The client's process of `sdk`: imports no more than a client does, for its memory is measured."""

import http.client
import json
import resource
import sys
import time
from pathlib import Path
from typing import NamedTuple

import msgspec

from durabill.producers.sdk.client import Client
from durabill.producers.sdk.http_uplink import HttpUplink
from durabill.producers.sdk.session import SessionState
from durabill.producers.sdk.spool import Entry, Spool
from durabill.producers.sdk.uploads import segment_fields
from durabill.schemas import SegmentEvent

INTERVAL_S = 10.0
BACKLOG = 100_000
REQUEST_SEGMENTS = 1_000


class Metered(NamedTuple):
    """What a process took for its segments. `per_s` of those that were delivered."""

    name: str
    services: int
    segments: int
    wall_s: float
    cpu_s: float
    rss_mib: float
    """above that of a bare interpreter"""
    written_bytes: int
    durable_commits: int
    starts_s: float = 0.0
    """what it took to start the services, each with a go of the server"""
    left: int = 0
    """segments that were due and not delivered by the end"""


def run_services(url: str, spool: str, services: int, seconds: float) -> Metered:
    """Meter so many services for a while, then count what isn't delivered."""
    with Client(HttpUplink(url, timeout_s=30), spool) as client:
        begun_s = time.monotonic()
        running = [client.start(timeout_s=60) for _ in range(services)]
        starts_s = time.monotonic() - begun_s
        if services > 1:  # from the first interval on the load is even
            time.sleep(INTERVAL_S)
        before = Before(client)
        time.sleep(seconds if services > 1 else max(seconds, 3 * INTERVAL_S))
        result = before.until_now("services", services, client)
        given = sum(each.state.next_number - 1 for each in running)
        left = client.stats().pending
        assert given >= client.stats().acknowledged
        client.close(timeout_s=0)
    return result._replace(starts_s=starts_s, left=left)


def run_backlog(url: str, spool: str, orders: int, _: float) -> Metered:
    """Send what has piled up."""
    now_ms = time.time_ns() // 1_000_000
    each = BACKLOG // orders
    with Spool(spool, fsync=False) as filled:
        for at in range(orders):
            number, start_ms = f"SO-{at:023}", now_ms - each * 10_000
            segments = [
                SegmentEvent(number, n + 1, start_ms + n * 10_000, start_ms + n * 10_000 + 9, False)
                for n in range(each)
            ]
            filled.append_all(
                [Entry(segments, SessionState(number, 10_000, each + 1, now_ms, True))]
            )
    with Client(HttpUplink(url, timeout_s=30), spool) as client:
        before = Before(client)
        left = client.flush(120)
        return before.until_now("backlog", orders, client)._replace(left=left)


def run_floor(url: str, _: str, orders: int, __: float) -> Metered:
    """Send as many segments in as large requests, with nothing around it."""
    host = url.removeprefix("http://")
    before = Before(None)
    connection = http.client.HTTPConnection(host)
    for first in range(0, BACKLOG, REQUEST_SEGMENTS):
        uploads = [
            {
                "service_order_number": f"SO-{at:023}",
                "segments": [
                    segment_fields(SegmentEvent(f"SO-{at:023}", n, n, n + 9, False))
                    for n in range(1, 11)
                ],
            }
            for at in range(first // 10, (first + REQUEST_SEGMENTS) // 10)
        ]
        body = msgspec.json.encode({"uploads": uploads})
        headers = {"content-type": "application/json"}
        connection.request("POST", "/v1/segments", body, headers)
        msgspec.json.decode(connection.getresponse().read())
    connection.close()
    return before.until_now("floor", orders, None)._replace(segments=BACKLOG)


class Before:
    """The counts of this process before something is measured."""

    def __init__(self, client: Client | None) -> None:
        self._at_s = time.monotonic()
        self._cpu_s = _cpu_s()
        self._bytes = _written_bytes()
        self._commits = client._spool.commit_counts()[1] if client is not None else 0
        self._segments = client.stats().acknowledged if client is not None else 0

    def until_now(self, name: str, services: int, client: Client | None) -> Metered:
        """Return what has been since."""
        segments = commits = 0
        wall_s, cpu_s = time.monotonic() - self._at_s, _cpu_s() - self._cpu_s
        if client is not None:
            segments = client.stats().acknowledged - self._segments
            commits = client._spool.commit_counts()[1] - self._commits
        written = _written_bytes() - self._bytes
        return Metered(name, services, segments, wall_s, cpu_s, _rss_mib(), written, commits)


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _written_bytes() -> int:
    """Return what was handed to the system for disks: whole pages, counted once they are dirty."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("write_bytes")).split()[1])


def _rss_mib() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) / 1024


def _main() -> None:
    kind, url, spool, services, seconds = sys.argv[1:]
    run = {"services": run_services, "backlog": run_backlog, "floor": run_floor}[kind]
    print(json.dumps(run(url, spool, int(services), float(seconds))._asdict()))


if __name__ == "__main__":
    _main()
