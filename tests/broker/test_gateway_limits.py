"""Slow and many clients: none of them holds the gateway up, nor fills its memory."""

import contextlib
import logging
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from durabill.producers.gateway.server import GatewayConfig
from durabill.producers.gateway.web_server import Limits, client_of
from tests.broker.gateway_kit import call, gateway
from tests.waiting import HANG_S, wait_until

NOTHING_HERE = {"bootstrap.servers": "127.0.0.1:1"}  # a port that nobody listens on
HEAD = b"POST /v1/orders HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
BODY_TO_COME = HEAD + b"content-length: 1000\r\n\r\n"
NEVER_S = 60.0
"""For so long a connection is watched that should have ended after one second or two."""

LINE = b"GET /v1/time HTTP/1.1\r\n"
TIME = b"GET /v1/time HTTP/1.1\r\nhost: localhost\r\n\r\n"


@contextmanager
def limited(**limits: float) -> Iterator[str]:
    """A gateway with these limits, for what is answered before Kafka is asked."""
    with gateway(GatewayConfig(NOTHING_HERE, limits=Limits(**limits))) as url:  # type: ignore[arg-type]
        yield url


def connect(url: str, source: str = "127.0.0.1") -> socket.socket:
    parts = urlsplit(url)
    return socket.create_connection(
        (parts.hostname, parts.port), HANG_S, source_address=(source, 0)
    )


def ended_after_s(connection: socket.socket, drip: bytes = b"") -> tuple[float, bytes]:
    """How long until the server ends a connection that drips; and what it sent."""
    started_s, answer = time.monotonic(), b""
    connection.settimeout(0.1)
    while time.monotonic() - started_s < NEVER_S:
        try:
            if drip:
                connection.send(drip)
            chunk = connection.recv(65_536)
        except TimeoutError:
            continue
        except ConnectionError:
            break
        if not chunk:
            break
        answer += chunk
    return time.monotonic() - started_s, answer


def is_open(connection: socket.socket) -> bool:
    connection.settimeout(0.05)
    try:
        return connection.recv(1) != b""
    except TimeoutError:
        return True
    except ConnectionError:
        return False


def wait_until_open(connections: list[socket.socket], expected: list[bool]) -> None:
    """Waits until these are open and the others ended; then it stays so."""
    wait_until(lambda: list(map(is_open, connections)) == expected, "some are ended")
    assert list(map(is_open, connections)) == expected


@pytest.mark.parametrize(
    ("start", "drip"),
    [(b"", b""), (LINE, b""), (LINE, b"x: y\r\n"), (TIME, b""), (TIME + LINE, b"x: y\r\n")],
)
def test_a_head_has_to_end_in_time(start: bytes, drip: bytes) -> None:
    with limited(head_timeout_s=1.0, keepalive_s=2.0) as url, connect(url) as connection:
        connection.sendall(start)
        ended_s, answer = ended_after_s(connection, drip)
        assert 0.9 < ended_s < NEVER_S
        assert start.startswith(TIME) == answer.startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("drip", [b"", b" "])
def test_a_body_has_to_end_in_time(drip: bytes) -> None:
    with limited(head_timeout_s=1, body_timeout_s=0.5, keepalive_s=1) as url:
        with connect(url) as connection:
            connection.sendall(BODY_TO_COME)
            ended_s, answer = ended_after_s(connection, drip)
        assert 0.4 < ended_s < NEVER_S
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b"BODY_TIMEOUT" in answer


def test_who_does_not_read_the_answers_is_cut_off() -> None:
    with limited(keepalive_s=1.0) as url, connect(url) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        connection.settimeout(NEVER_S)
        requests = TIME.replace(b"/v1/time", b"/docs") * 1_000_000
        with pytest.raises(ConnectionError):
            connection.sendall(requests)  # a TimeoutError is none


def test_answers_that_nobody_reads_are_bounded_together() -> None:
    """Of ten with 900 kB each, less the kernel's part, some are too much; a reader is served."""
    body = b'{"uploads": [{"service_order_number": "%s", "segments": [[1, 1, 2, false]]}]}'
    body %= b"x" * 900_000
    head = HEAD.replace(b"/v1/orders", b"/v1/segments") + b"content-length: %d\r\n\r\n" % len(body)
    with limited(answers_bytes_max=4_000_000) as url, ExitStack() as stack:
        slow = []
        for _ in range(10):
            slow.append(stack.enter_context(socket.socket()))
            slow[-1].setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
            slow[-1].settimeout(HANG_S)
            slow[-1].connect((urlsplit(url).hostname, urlsplit(url).port))
            slow[-1].sendall(head + body)
            assert slow[-1].recv(12) == b"HTTP/1.1 200"  # it begins, and is read no further
        rest = 0
        with contextlib.suppress(ConnectionError):
            while chunk := slow[0].recv(65_536):
                rest += len(chunk)
        assert rest < 900_000, "the first went: its answer breaks off"
        answer = call(url, "POST", "/v1/segments", body)[1]
        assert len(answer["uploads"][0]["service_order_number"]) == 900_000


def test_idle_connections_are_kept_for_a_while() -> None:
    with limited(head_timeout_s=0.5, keepalive_s=4.0) as url, connect(url) as connection:
        for _ in range(2):
            connection.sendall(TIME)
            assert connection.recv(65_536).startswith(b"HTTP/1.1 200 ")
            time.sleep(1)
        assert 0 < ended_after_s(connection)[0] < NEVER_S
    assert Limits().keepalive_s == 75.0


def test_at_the_limit_of_an_address_its_longest_waiting_goes(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    with limited(connections_per_address_max=4) as url, ExitStack() as stack:
        other = stack.enter_context(connect(url, "127.0.0.2"))
        own = [stack.enter_context(connect(url)) for _ in range(4)]
        time.sleep(0.5)
        own[0].sendall(TIME)  # so it has waited for less than the others
        assert own[0].recv(65_536).startswith(b"HTTP/1.1 200 ")
        assert all(map(is_open, [other, *own]))
        for _ in range(2):
            assert call(url, "GET", "/healthz")[0] == 200
            time.sleep(0.5)  # until the server has seen its end
        wait_until_open(own, [True, False, True, True])
        own.append(stack.enter_context(connect(url)))
        own.append(stack.enter_context(connect(url)))
        wait_until_open(own, [True, False, False, True, True, True])
        assert is_open(other)
    lines = [each for each in caplog.messages if "limit of 4 connections from 127.0.0.1" in each]
    assert len(lines) == 1, "damped"


def test_at_the_limit_of_all_the_longest_waiting_goes(caplog: pytest.LogCaptureFixture) -> None:
    with limited(connections_max=3) as url, ExitStack() as stack:
        sources = ["127.0.0.2", "127.0.0.3", "127.0.0.4", "127.0.0.5"]
        opened = []
        for source in sources:
            opened.append(stack.enter_context(connect(url, source)))
            time.sleep(0.1)
        wait_until_open(opened, [False, True, True, True])
    assert len([each for each in caplog.messages if "limit of 3 connections in all" in each]) == 1


def test_bodies_that_wait_are_bounded_together() -> None:
    """Ten that wait with 40 kB each are too much for 256 kB; quick ones get through."""
    with limited(bodies_bytes_max=256_000) as url, ExitStack() as stack:
        head = HEAD + b"content-length: 900000\r\n\r\n"
        slow = []
        for _ in range(10):
            slow.append(stack.enter_context(connect(url)))
            with contextlib.suppress(ConnectionError):
                slow[-1].sendall(head + b" " * 40_000)
            time.sleep(0.05)
        wait_until_open(slow, [False] * 4 + [True] * 6)  # the first ones went
        body = b'{"service_order_number": ""}' + b" " * 200_000
        assert call(url, "POST", "/v1/orders", body)[0] == 422


MAIN = """
import resource, sys
from durabill.producers.gateway.server import GatewayConfig, run_gateway
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (256, min(int(sys.argv[1]), hard)))
run_gateway(GatewayConfig({"bootstrap.servers": "127.0.0.1:1"}), lambda url: print(url, flush=True))
"""


@contextmanager
def process(files_max: int) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A gateway in a process of its own, which may open so many files."""
    command = [sys.executable, "-c", MAIN, str(files_max)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as ran:
        assert ran.stdout is not None
        try:
            yield ran.stdout.readline().strip(), ran
        finally:
            ran.kill()


def peak_bytes(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    return next(int(each.split()[1]) * 1024 for each in lines if each.startswith("VmHWM:"))


def test_memory_under_slow_connections() -> None:
    """500 that send two thirds of a body and wait: 300 MB were sent, 64 MiB of bodies may be kept.

    The other half of the bound is what a connection takes itself, times two thousand.
    """
    head = HEAD + b"content-length: 900000\r\n\r\n"
    with process(8_192) as (url, ran), ExitStack() as stack:
        assert call(url, "GET", "/healthz")[0] == 200
        before = peak_bytes(ran.pid)
        for _ in range(500):
            connection = stack.enter_context(connect(url))
            connection.setblocking(False)
            with contextlib.suppress(BlockingIOError, ConnectionError):
                connection.send(head + b" " * 600_000)
        assert call(url, "GET", "/healthz")[0] == 200
        assert peak_bytes(ran.pid) - before < 140_000_000


def test_there_are_files_for_the_connections_or_there_are_fewer() -> None:
    with process(400) as (url, ran), ExitStack() as stack:
        for _ in range(200):  # 256 were allowed at first, and 256 are for other things
            stack.enter_context(connect(url))
        assert call(url, "GET", "/healthz")[0] == 200
        ran.terminate()
        assert ran.stderr is not None
        told = ran.stderr.read()
    assert "400 open files are allowed (ulimit -n), so at most 144 connections" in told
    assert "Traceback" not in told


def test_limits_without_sense_are_refused() -> None:
    for wrong in ({"connections_max": 0}, {"bodies_bytes_max": 0}, {"keepalive_s": 0}):
        with pytest.raises(ValueError, match="1 or more"):
            Limits(**wrong)


def test_what_counts_as_one_client() -> None:
    expected = {
        "10.0.0.1": "10.0.0.1",
        "::ffff:10.0.0.1": "10.0.0.1",
        "2001:db8:1:2:3:4:5:6": "2001:db8:1:2::/64",
        "2001:db8:1:2::1": "2001:db8:1:2::/64",
        "fe80::1%eth0": "fe80::/64",
        "": "",
    }
    assert {address: client_of(address) for address in expected} == expected
