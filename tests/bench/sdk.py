"""What the SDK costs a client: `python -m tests.bench.sdk`, or the bench's part of that name.

A client process meters 1, 100 and 10,000 services at a 10 s interval, and one more sends what has
piled up. The server is a stand-in in this process that answers in the contract's form at once, so
that the client alone is measured. Beside it stands a floor: the same segments sent by `http.client`
in requests as large, without a spool, an order of effects or a clock: what gets lost is lost. No
broker is needed; a minute.
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec

from tests.bench.sdk_client import INTERVAL_S, Metered

SERVICES = (1, 100, 10_000)
RECEIPT = "e30." + "A" * 60 + "." + "B" * 86 + "~e30~R" + "C" * 43


def measure(seconds: float = INTERVAL_S) -> list[Metered]:
    """Measure all of it, each in a process of its own."""
    found: list[Metered] = []
    with standing_in() as url, tempfile.TemporaryDirectory() as folder:
        for services in SERVICES:
            found.append(_in_process("services", url, f"{folder}/{services}", services, seconds))
        found.append(_in_process("backlog", url, f"{folder}/backlog", 1_000, seconds))
        found.append(_in_process("floor", url, folder, 1_000, seconds))
    return found


def line_of(each: Metered) -> str:
    """Return one measurement in words."""
    per_segment = max(each.segments, 1)
    return (
        f"{each.name:9} {each.services:6,} services: {each.segments:7,} segments in"
        f" {each.wall_s:5.1f} s, {each.left} left;"
        f" {100 * each.cpu_s / each.wall_s:5.2f} % of a core,"
        f" {each.segments / max(each.cpu_s, 0.001):7,.0f} a CPU-second,"
        f" {each.rss_mib:5.1f} MiB above a bare interpreter,"
        f" {each.written_bytes / per_segment:6,.0f} bytes written and"
        f" {each.durable_commits / per_segment:.4f} fsyncs a segment;"
        f" started in {each.starts_s:.1f} s"
    )


def _in_process(kind: str, url: str, spool: str, services: int, seconds: float) -> Metered:
    bare = "print(next(l for l in open('/proc/self/status') if l.startswith('VmRSS')).split()[1])"
    bare_kib = int(subprocess.check_output([sys.executable, "-c", bare], text=True))
    command = [sys.executable, "-m", "tests.bench.sdk_client", kind, url, spool]
    command += [str(services), str(seconds)]
    found = json.loads(subprocess.check_output(command, text=True).splitlines()[-1])
    found["rss_mib"] = (found["rss_mib"] * 1024 - bare_kib) / 1024
    metered = Metered(**found)
    print(line_of(metered), flush=True)
    return metered


# -- the stand-in -----------------------------------------------------------------------------


class _StandIn(asyncio.Protocol):
    """Answers what a client asks, for one connection: enough of HTTP for that."""

    def __init__(self) -> None:
        self._received = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        while True:
            head, found, rest = self._received.partition(b"\r\n\r\n")
            if not found:
                return
            length = 0
            for line in head.lower().split(b"\r\n"):
                if line.startswith(b"content-length:"):
                    length = int(line.partition(b":")[2])
            if len(rest) < length:
                return
            self._received = rest[length:]
            self._answer(head.split(b" ", 2)[1].decode(), rest[:length])

    def _answer(self, path: str, body: bytes) -> None:
        now_ms = time.time_ns() / 1_000_000
        stamps = {"received_ms": now_ms, "sent_ms": now_ms, "clock_id": "1"}
        said: dict[str, object] = dict(stamps)
        if path == "/v1/segments":
            uploads = msgspec.json.decode(body)["uploads"]
            said["receipt"] = RECEIPT
            said["uploads"] = [
                {
                    "service_order_number": each["service_order_number"],
                    "count": len(each["segments"]),
                    "stored": len(each["segments"]),
                    "accept_until_ms": 10**13,
                }
                for each in uploads
            ]
        elif path == "/v1/orders":
            number = os.urandom(13).hex()
            said["service_order_number"] = number
            said["server_timestamp_ms"] = int(now_ms)
            said["report_interval_ms"] = int(1000 * INTERVAL_S)
        else:
            said["server_timestamp_ms"] = int(now_ms)
        content = msgspec.json.encode(said)
        head = (
            f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(content)}"
        )
        assert self._transport is not None
        self._transport.write(head.encode() + b"\r\n\r\n" + content)


@contextmanager
def standing_in() -> Iterator[str]:
    """A stand-in for a gateway; its URL."""
    loop = asyncio.new_event_loop()
    server = loop.run_until_complete(loop.create_server(_StandIn, "127.0.0.1", 0))
    port = server.sockets[0].getsockname()[1]
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()


def _main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.sdk")
    parser.add_argument("--seconds", type=float, default=INTERVAL_S)
    measure(parser.parse_args().seconds)


if __name__ == "__main__":
    _main()
