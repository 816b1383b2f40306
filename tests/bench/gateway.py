"""What the gateway takes for a segment: CPU, waiting, handshakes, beside the floor.

The floor (`peer_gateway`) is the least that such a gateway does in Python. The two take turns,
slice by slice, so that whatever else the machine does falls on both.
"""

import os
import socket
import ssl
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.bench.http_load import saturate, uploads, wait_times_s
from tests.bench.lab import ROOT, Lab
from tests.bench.processes import BenchError, Child, cpu_s

GATEWAY, FLOOR = "tests.bench.run_gateway", "tests.bench.peer_gateway"
BATCHES = (1, 10, 50, 500)
GOAL_BATCH = 50
READY_TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Takes:
    """Segments a CPU-second, round by round, at one size of requests; waiting at half load."""

    batch: int
    gateway: list[float]
    floor: list[float]
    per_s: float
    rate: float
    p50_ms: float
    p99_ms: float


@dataclass(frozen=True)
class GatewayCost:
    """All that was measured; handshakes are new TLS connections a CPU-second, with one request."""

    takes: list[Takes]
    handshakes: float


class Served:
    """A process that serves HTTP at `url`."""

    def __init__(self, lab: Lab, name: str, module: str, topic: str, *more: str) -> None:
        command = [sys.executable, "-m", module, lab.servers, topic, *more]
        log = lab.dir / f"{name.replace(' ', '-')}.log"
        self.child = Child(name, command, log, {"PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"})
        self.pid = self.child.pid
        self.url = str(self.child.wait_mark("ready", READY_TIMEOUT_S)[2]["url"])
        self.host = urlsplit(self.url).netloc


def measure(lab: Lab, rounds: int, slice_s: float) -> GatewayCost:
    """Measure all of it: some 10 slices a round, and 5 more."""
    topic = lab.names("gateway").segments
    served: list[Served] = []
    try:
        for name, module in (("the gateway", GATEWAY), ("the floor", FLOOR)):
            served.append(Served(lab, name, module, topic))
        ours, floor = served
        takes = [_takes(lab, ours, floor, batch, rounds, slice_s) for batch in BATCHES]
    finally:
        for each in served:
            each.child.stop()
    certificate, key = _certificate(lab.dir)
    secure = Served(lab, "the gateway with TLS", GATEWAY, topic, str(certificate), str(key))
    try:
        tls = _handshakes_per_cpu_s(secure, slice_s, _trusting(certificate))
    finally:
        secure.child.stop()
    lab.drop(topic)
    return GatewayCost(takes, tls)


def _takes(
    lab: Lab, gateway: Served, floor: Served, batch: int, rounds: int, slice_s: float
) -> Takes:
    per_cpu_s: dict[int, list[float]] = {gateway.pid: [], floor.pid: []}
    per_s: list[float] = []
    requests = {each.pid: uploads(each.host, batch) for each in (gateway, floor)}
    for _ in range(rounds):
        for each in (floor, gateway):
            load = saturate(each.url, requests[each.pid], batch, each.pid, slice_s)
            per_cpu_s[each.pid].append(load.requests * batch / max(load.cpu_s, 0.01))
            if each is gateway:
                per_s.append(load.requests * batch / load.wall_s)
    rate = median(per_s) / 2
    waits_s = wait_times_s(gateway.url, requests[gateway.pid], batch, rate / batch, 2 * slice_s)
    if not waits_s:
        raise BenchError("the gateway answered nothing at half load")
    took = Takes(
        batch,
        per_cpu_s[gateway.pid],
        per_cpu_s[floor.pid],
        median(per_s),
        rate,
        1000 * waits_s[len(waits_s) // 2],
        1000 * waits_s[len(waits_s) * 99 // 100],
    )
    lab.say(str(took))
    return took


def _handshakes_per_cpu_s(served: Served, seconds: float, context: ssl.SSLContext) -> float:
    """Return how many new connections, each with one request, a CPU-second takes."""
    asked = f"GET /healthz HTTP/1.1\r\nhost: {served.host}\r\nconnection: close\r\n\r\n".encode()
    address = urlsplit(served.url)
    _ask(address.hostname or "", address.port or 0, context, asked)
    count, used_s, until_s = 0, cpu_s(served.pid), time.perf_counter() + seconds
    while time.perf_counter() < until_s:
        _ask(address.hostname or "", address.port or 0, context, asked)
        count += 1
    return count / max(cpu_s(served.pid) - used_s, 0.01)


def _ask(host: str, port: int, context: ssl.SSLContext, asked: bytes) -> None:
    with (
        socket.create_connection((host, port), timeout=READY_TIMEOUT_S) as connection,
        context.wrap_socket(connection, server_hostname="localhost") as secured,
    ):
        secured.sendall(asked)
        if not secured.recv(4096).startswith(b"HTTP/1.1 200"):
            raise BenchError("the gateway with TLS isn't well")


def _trusting(certificate: Path) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(certificate))
    context.options |= ssl.OP_NO_TICKET  # each handshake is a whole one
    return context


def _certificate(folder: Path) -> tuple[Path, Path]:
    """Return the files of a certificate for localhost, signed by itself, and of its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    files = folder / "gateway.pem", folder / "gateway.key"
    files[0].write_bytes(made.public_bytes(serialization.Encoding.PEM))
    files[1].write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return files
