"""HTTP calls against servers that trickle, flood, stall, cut off and redirect."""

import datetime
import http.server
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from durabill.producers.sdk.bounded_http import ANSWER_BYTES_MAX, BoundedHttp
from durabill.producers.sdk.http_uplink import HttpUplink
from durabill.producers.sdk.uplink import UplinkUnavailable
from durabill.schemas import SegmentEvent
from tests.broker.gateway_kit import answer, serving
from tests.waiting import HANG_S, wait_until

TIMEOUT_S = 0.3
LONG_S = 30.0
"""What takes less took not for ever, however busy the machine; every server here takes longer."""

OK = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
Script = Callable[[socket.socket], None]


class Served:
    """A server that answers as a script says: its URL, its connections, what it got rid of."""

    def __init__(self) -> None:
        self.url = ""
        self.connections = self.ended = 0
        self.bytes_sent = 0


@contextmanager
def scripted(script: Script) -> Iterator[Served]:
    """A server that runs `script` on each connection, until the client goes away."""
    served = Served()

    class Handler(http.server.BaseHTTPRequestHandler):
        def handle(self) -> None:
            served.connections += 1
            with suppress(OSError):
                script(Counting(self.connection, served))  # type: ignore[arg-type]
                self.connection.shutdown(socket.SHUT_RDWR)
            served.ended += 1

    with serving(Handler) as served.url:
        yield served


class Counting:
    """A socket that counts what was sent."""

    def __init__(self, sock: socket.socket, served: Served) -> None:
        self._sock = sock
        self._served = served
        self.recv = sock.recv

    def sendall(self, data: bytes) -> None:
        self._sock.sendall(data)
        self._served.bytes_sent += len(data)


@contextmanager
def caller(url: str, timeout_s: float = TIMEOUT_S) -> Iterator[BoundedHttp]:
    http_ = BoundedHttp(url, timeout_s=timeout_s, headers={})
    try:
        yield http_
    finally:
        http_.close()


def trickle(head: bytes, rest: bytes) -> Script:
    """At once the head, then the rest, a byte at a time, over and over."""

    def run(sock: socket.socket) -> None:
        sock.recv(65_536)
        sock.sendall(head)
        while True:
            for byte in rest:
                time.sleep(0.02)
                sock.sendall(bytes([byte]))

    return run


def flood(head: bytes, piece: bytes) -> Script:
    """At once the head, then the piece over and over, as fast as it is taken."""

    def run(sock: socket.socket) -> None:
        sock.recv(65_536)
        sock.sendall(head)
        while True:
            sock.sendall(piece)

    return run


def silence(sock: socket.socket) -> None:
    """Read everything, say nothing."""
    while sock.recv(65_536):
        pass


@pytest.mark.parametrize(
    "script",
    [
        silence,
        trickle(b"", b"HTTP/1.1 200 OK and so on and on "),
        trickle(OK, b"x-header: and so on\r\n"),
        trickle(OK, b"x-header-without-an-end"),
        trickle(OK + b"content-length: 1000\r\n\r\n", b" "),
        trickle(OK + b"connection: close\r\n\r\n", b" "),
        trickle(OK + b"transfer-encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
        trickle(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    ],
)
def test_slow_answer_takes_no_longer_than_the_call_may(script: Script) -> None:
    with scripted(script) as served, caller(served.url) as http_:
        started_s = time.monotonic()
        with pytest.raises(UplinkUnavailable, match=r"no whole answer within 0\.3 s"):
            http_.call("GET", "/v1/time", None)
        assert TIMEOUT_S <= time.monotonic() - started_s < LONG_S


def test_given_time_shortens_a_call_and_never_prolongs_it() -> None:
    with scripted(silence) as served, caller(served.url) as http_:
        for given_s, expected_s in [(0.1, "0.1"), (50.0, "0.3"), (0.0, "0"), (-1.0, "0")]:
            started_s = time.monotonic()
            with pytest.raises(UplinkUnavailable, match=f"within {expected_s} s"):
                http_.call("GET", "/v1/time", None, timeout_s=given_s)
            assert time.monotonic() - started_s < LONG_S


def test_server_that_takes_nothing_takes_no_time() -> None:
    def deaf(_: socket.socket) -> None:
        time.sleep(3 * LONG_S)

    with scripted(deaf) as served, caller(served.url) as http_:
        started_s = time.monotonic()
        with pytest.raises(UplinkUnavailable, match="no whole answer"):
            http_.call("POST", "/", bytes(50_000_000))
        assert time.monotonic() - started_s < LONG_S


def test_slow_tls_handshake_takes_no_longer_than_the_call_may() -> None:
    record = b"\x16\x03\x03\x40\x00" + bytes(60)  # a handshake record of 16 KiB, never whole
    with scripted(trickle(record, bytes(40))) as served:
        http_ = BoundedHttp(served.url.replace("http:", "https:"), timeout_s=TIMEOUT_S, headers={})
        started_s = time.monotonic()
        with pytest.raises(UplinkUnavailable, match="no whole answer"):
            http_.call("GET", "/", None)
        assert time.monotonic() - started_s < LONG_S
        http_.close()


def test_name_server_that_stalls_costs_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, over = list[str](), threading.Event()
    real = socket.getaddrinfo

    def getaddrinfo(host: str, port: int, **options: Any) -> Any:
        if options.get("flags", 0) & socket.AI_NUMERICHOST:
            return real(host, port, **options)
        asked.append(host)
        over.wait(6 * LONG_S)
        return real("127.0.0.1", port, **options)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    with serving(Whole) as url, caller(url.replace("127.0.0.1", "meter.test")) as http_:
        for _ in range(3):
            started_s = time.monotonic()
            with pytest.raises(UplinkUnavailable, match="no whole answer"):
                http_.call("GET", "/", None)
            assert time.monotonic() - started_s < LONG_S
        assert asked == ["meter.test"]
        over.set()
        assert http_.call("GET", "/", None, timeout_s=HANG_S).status == 200


def test_name_that_is_unknown_is_told() -> None:
    unknown = pytest.raises(UplinkUnavailable, match=r"no-such-host\.invalid")
    with caller("http://no-such-host.invalid:80", timeout_s=10) as http_, unknown:
        http_.call("GET", "/", None)


@pytest.mark.parametrize(
    "script",
    [
        flood(OK + b"content-length: 99999999999\r\n\r\n", bytes(65_536)),
        flood(OK + b"\r\n", bytes(65_536)),
        flood(OK + b"transfer-encoding: chunked\r\n\r\n", b"10000\r\n" + bytes(65_536) + b"\r\n"),
        flood(OK, b"x-header: and so on\r\n" * 1000),
        flood(OK + b"x-header: ", b"and so on" * 1000),
        flood(b"", b"and so on" * 1000),
        flood(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 1000),
    ],
)
def test_endless_answer_is_not_read_to_its_end(script: Script) -> None:
    with scripted(script) as served, caller(served.url, timeout_s=HANG_S) as http_:
        started_s = time.monotonic()
        with pytest.raises(UplinkUnavailable):
            http_.call("GET", "/", None)
        assert time.monotonic() - started_s < 3 * LONG_S
        assert served.bytes_sent < 16 * ANSWER_BYTES_MAX  # the rest is in the system's buffers


@pytest.mark.parametrize(("beyond", "is_read"), [(-1, True), (0, True), (1, False)])
def test_longest_answer(beyond: int, is_read: bool) -> None:
    def exact(sock: socket.socket) -> None:
        sock.recv(65_536)
        head = OK + b"connection: close\r\n\r\n"
        sock.sendall(head + bytes(ANSWER_BYTES_MAX + beyond - len(head)))

    with scripted(exact) as served, caller(served.url, timeout_s=HANG_S) as http_:
        if is_read:
            assert len(http_.call("GET", "/", None).body) > ANSWER_BYTES_MAX - 200
        else:
            with pytest.raises(UplinkUnavailable, match="longer than 1048576 bytes"):
                http_.call("GET", "/", None)


def test_count_begins_anew_with_each_call() -> None:
    class Large(Whole):
        content = bytes(ANSWER_BYTES_MAX * 2 // 3)

    with serving(Large) as url, caller(url, timeout_s=HANG_S) as http_:
        for _ in range(3):
            assert Large.content == http_.call("GET", "/", None).body


@pytest.mark.parametrize(
    "said",
    [
        OK + b"content-length: 10\r\n\r\n12345",
        OK + b"transfer-encoding: chunked\r\n\r\n5\r\n123",
        OK + b"transfer-encoding: chunked\r\n\r\n-5\r\n12345\r\n0\r\n\r\n",
        OK + b"transfer-encoding: chunked\r\n\r\nzz\r\n",
        b"",
        b"\0\xff" * 100,
        b"HTTP/1.1 two hundred OK\r\n\r\n",
        b"HTTP/9.9 200 OK\r\n\r\n",
        b"220 mail.example ESMTP\r\n",
    ],
)
def test_answer_that_is_cut_off_or_no_http_is_none(said: bytes) -> None:
    def run(sock: socket.socket) -> None:
        sock.recv(65_536)
        sock.sendall(said)

    refused = pytest.raises(UplinkUnavailable, match=r"http://127\.0\.0\.1:\d+: \w+")
    with scripted(run) as served, caller(served.url, timeout_s=HANG_S) as http_, refused:
        http_.call("GET", "/", None)


@pytest.mark.parametrize("interim", [100, 102, 103, 199])
@pytest.mark.parametrize("at_once", [True, False])
def test_interim_responses_are_passed_over(interim: int, at_once: bool) -> None:
    """Also by calls after it, on the same connection: http.client takes 103 for the answer."""

    def script(sock: socket.socket) -> None:
        for at in range(2):
            sock.recv(65_536)
            before = b"HTTP/1.1 %d Soon\r\nlink: x\r\n\r\n" % interim * 3
            answer = OK + b"content-length: 1\r\n\r\n%d" % at
            for piece in [before + answer] if at_once else [before, answer]:
                sock.sendall(piece)

    with scripted(script) as served, caller(served.url, LONG_S) as http_:
        for at in range(2):
            answer = http_.call("GET", "/v1/time", None)
            assert (answer.status, answer.body) == (200, b"%d" % at)


def test_a_switch_of_protocols_is_no_answer_and_ends_the_connection() -> None:
    def script(sock: socket.socket) -> None:
        sock.recv(65_536)
        sock.sendall(b"HTTP/1.1 101 Switch\r\nupgrade: x\r\n\r\n")
        silence(sock)

    with scripted(script) as served, caller(served.url, LONG_S) as http_:
        assert http_.call("GET", "/v1/time", None).status == 101
        assert http_._idle == []


def test_endless_interim_responses_are_no_answer() -> None:
    soon = b"HTTP/1.1 102 Soon\r\n\r\n"
    with (
        scripted(flood(b"", soon)) as served,
        caller(served.url, LONG_S) as http_,
        pytest.raises(UplinkUnavailable, match="interim responses"),
    ):
        http_.call("GET", "/v1/time", None)


class Whole(http.server.BaseHTTPRequestHandler):
    """Answers every request the same way, and keeps its connections."""

    protocol_version = "HTTP/1.1"
    content = b"{}"

    def do_GET(self) -> None:
        answer(self, 200, self.content)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


def test_connections_are_kept_unless_something_is_wrong_with_them() -> None:
    whole = OK + b"content-length: 2\r\n\r\n{}"
    ways = iter([(whole, whole), (whole + b"more",), (whole,), (whole, whole)])

    def run(sock: socket.socket) -> None:
        for said in next(ways):  # a connection: so many answers, then its end
            sock.recv(65_536)
            sock.sendall(said)

    with scripted(run) as served, caller(served.url, timeout_s=HANG_S) as http_:
        made = []
        for ended in (0, 1, 2, 3, 3, 4):
            assert http_.call("GET", "/", None).body == b"{}"
            # For the end, or what nobody asked for, to arrive.
            wait_until(lambda: served.ended == ended, "the server has ended it")  # noqa: B023
            made.append(served.connections)
    assert made == [1, 1, 2, 3, 4, 4]


def test_closing_ends_a_call_that_is_under_way() -> None:
    with scripted(silence) as served, caller(served.url, timeout_s=HANG_S) as http_:
        threading.Timer(0.2, http_.close).start()
        started_s = time.monotonic()
        with pytest.raises(UplinkUnavailable):
            http_.call("GET", "/", None)
        assert time.monotonic() - started_s < 3 * LONG_S


def test_redirect_is_told_and_not_followed() -> None:
    asked = list[str]()

    class Elsewhere(Whole):
        def handle(self) -> None:
            asked.append(str(self.client_address))

    with serving(Elsewhere) as elsewhere:

        class Redirect(Whole):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["content-length"]))
                answer(self, status, b"", location=elsewhere + "/v1/orders")

        with serving(Redirect) as url:
            uplink = HttpUplink(url)
            for status in (301, 302, 303, 307, 308):
                with pytest.raises(UplinkUnavailable, match=f"{status}, a redirect to .*not foll"):
                    uplink.start()
                result = uplink.send([SegmentEvent("SO1", 1, 0, 5, False)])
                assert (result.accepted, result.refused, result.failed) == ([], {}, {})
                assert "a redirect to" in str(result.problem)
            uplink.close()
    assert asked == []


@pytest.mark.parametrize(
    "url",
    [
        "",
        "127.0.0.1:8080",
        "ftp://gateway",
        "http://",
        "http:///v1",
        "http://gateway:port",
        "http://gateway:99999",
        "http://me:secret@gateway",
        "http://gateway/?a=1",
        "http://gateway/#a",
        "http://gate way",
        "http://gateway/a\nb",
        "http://日本",
    ],
)
def test_url_that_cannot_be_meant_is_refused_at_once(url: str) -> None:
    with pytest.raises(ValueError) as refused:  # noqa: PT011 - it may be urlsplit's
        HttpUplink(url)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize("timeout_s", [0, -1, float("nan"), float("inf"), 86_401])
def test_timeout_that_cannot_be_meant_is_refused_at_once(timeout_s: float) -> None:
    with pytest.raises(ValueError, match="timeout_s"):
        HttpUplink("http://127.0.0.1:1", timeout_s=timeout_s)


def certificate(folder: Path) -> Path:
    """A key and a certificate for it, signed by itself, for 127.0.0.1."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "gateway")])
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    path = folder / "gateway.pem"
    own = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain)
    path.write_bytes(own + made.public_bytes(pem))
    return path


def test_tls_keeps_its_connections_and_trusts_no_stranger(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, connections = certificate(tmp_path), list[object]()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)

    class Encrypted(Whole):
        def handle(self) -> None:
            with suppress(OSError), context.wrap_socket(self.connection, server_side=True) as sock:
                connections.append(sock)
                while sock.recv(65_536):
                    sock.sendall(OK + b"content-length: 2\r\n\r\n{}")

    with serving(Encrypted) as url:
        url = url.replace("http:", "https:")
        mistrust = pytest.raises(UplinkUnavailable, match="CERTIFICATE_VERIFY_FAILED")
        with caller(url, timeout_s=HANG_S) as http_, mistrust:
            http_.call("GET", "/", None)
        connections.clear()
        trusting = BoundedHttp(url, timeout_s=HANG_S, headers={}, ca_file=path)
        assert trusting.call("GET", "/", None).body == b"{}"
        trusting.close()
        connections.clear()
        monkeypatch.setenv("SSL_CERT_FILE", str(path))
        with caller(url, timeout_s=HANG_S) as http_:
            for _ in range(3):
                assert http_.call("GET", "/", None).body == b"{}"
    assert len(connections) == 1
