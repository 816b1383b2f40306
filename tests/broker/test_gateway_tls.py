"""TLS of the gateway: what is spoken, certificates that change, clients that don't shake hands."""

import asyncio
import contextlib
import http.client
import json
import logging
import os
import socket
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import uvloop
from cryptography.hazmat.primitives.asymmetric import ec

from durabill.producers.gateway.server import GatewayConfig
from durabill.producers.gateway.tls import ServedTls, TlsFiles
from durabill.producers.gateway.web_server import Limits
from durabill.schemas.errors import SettingsError
from tests.broker.gateway_kit import exchange, gateway
from tests.broker.tls_kit import HOST, Authority, client_context, pem_of
from tests.waiting import HANG_S, wait_until

CA = Authority()
KAFKA = {"bootstrap.servers": "127.0.0.1:1"}


def config(files: TlsFiles, **limits: Any) -> GatewayConfig:
    return GatewayConfig(KAFKA, tls=files, limits=Limits(**limits), delivery_timeout_ms=100)


def get(url: str, context: ssl.SSLContext, path: str = "/v1/time") -> tuple[int, Any]:
    parts = urlsplit(url)
    assert parts.scheme == "https"
    connection = http.client.HTTPSConnection(
        parts.hostname or "", parts.port, timeout=30, context=context
    )
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


def shaken(url: str, context: ssl.SSLContext) -> ssl.SSLSocket:
    plain = socket.create_connection((HOST, urlsplit(url).port), timeout=HANG_S)
    try:
        return context.wrap_socket(plain, server_hostname=HOST)
    except BaseException:
        plain.close()
        raise


def session_of(
    url: str, context: ssl.SSLContext, before: ssl.SSLSession | None
) -> tuple[ssl.SSLSession | None, bool]:
    """The session of a connection that is answered, and whether it is the one of `before`."""
    plain = socket.create_connection((HOST, urlsplit(url).port), timeout=HANG_S)
    with plain, context.wrap_socket(plain, server_hostname=HOST, session=before) as connection:
        connection.sendall(b"GET /v1/time HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n")
        if not connection.recv(1):  # with TLS 1.3 a client learns only now that it is refused
            raise ConnectionResetError
        return connection.session, bool(connection.session_reused)


def serial_of(url: str, context: ssl.SSLContext) -> str:
    with shaken(url, context) as connection:
        found = connection.getpeercert()
        assert found is not None
        return str(found["serialNumber"])


# A gateway that is run has uvloop's, whose transports are of other classes.
LOOPS = pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
NewLoop = Callable[[], asyncio.AbstractEventLoop]


@LOOPS
def test_it_speaks_tls_and_nothing_else(tmp_path: Path, new_loop: NewLoop) -> None:
    context = client_context(CA.root(tmp_path))
    files = TlsFiles(*CA.certificate(tmp_path, "server"))
    with gateway(config(files), new_loop) as url:
        assert get(url, context)[0] == 200
        with shaken(url, context) as connection:
            assert connection.version() == "TLSv1.3"
            sent = b"GET /v1/time HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n"
            for _ in range(3):  # kept open
                connection.sendall(sent)
                assert connection.recv(65_536).startswith(b"HTTP/1.1 200 ")
        plain = url.replace("https", "http")
        assert b"HTTP/1.1 200" not in exchange(plain, sent)
        older = client_context(CA.root(tmp_path))
        older.maximum_version = ssl.TLSVersion.TLSv1_2
        assert get(url, older)[0] == 200
        with pytest.raises(ssl.SSLError):
            get(url, ssl.create_default_context())


def test_what_is_older_than_tls_1_2_is_not_spoken(tmp_path: Path) -> None:
    served = ServedTls(TlsFiles(*CA.certificate(tmp_path, "server")))
    assert served.context.minimum_version == ssl.TLSVersion.TLSv1_2


def test_a_changed_certificate_is_served_to_who_comes_next(tmp_path: Path) -> None:
    """Also one of another kind of key; whoever is connected stays so."""
    context = client_context(CA.root(tmp_path))
    files = CA.certificate(tmp_path, "server", is_rsa=True)
    with gateway(config(TlsFiles(*files))) as url:
        before = serial_of(url, context)
        with shaken(url, context) as connection:
            for new, old in zip(CA.certificate(tmp_path, "next"), files, strict=True):
                os.replace(new, old)
            wait_until(lambda: serial_of(url, context) != before, "the new one is served")
            after = serial_of(url, context)
            for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
                context.maximum_version = version
                assert serial_of(url, context) == after
            connection.sendall(b"GET /v1/time HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n")
            assert connection.recv(65_536).startswith(b"HTTP/1.1 200 ")


def test_a_certificate_without_its_key_changes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    context = client_context(CA.root(tmp_path))
    files = CA.certificate(tmp_path, "server")
    with gateway(config(TlsFiles(*files))) as url, caplog.at_level(logging.ERROR):
        before = serial_of(url, context)
        certificate, key = CA.certificate(tmp_path, "next")
        os.replace(certificate, files[0])
        wait_until(lambda: any("is not changed" in each for each in caplog.messages), "told")
        assert serial_of(url, context) == before
        os.replace(key, files[1])
        wait_until(lambda: serial_of(url, context) != before, "the new one is served")


def test_clients_show_certificates_where_they_have_to(tmp_path: Path) -> None:
    own_ca, other_ca = Authority("clients"), Authority("others")
    root = CA.root(tmp_path)
    files = TlsFiles(*CA.certificate(tmp_path, "server"), own_ca.root(tmp_path))
    good = client_context(root, own_ca.certificate(tmp_path, "meter"))
    wrong = client_context(root, other_ca.certificate(tmp_path, "stranger"))
    with gateway(config(files)) as url:
        assert get(url, good)[0] == 200
        for context in (wrong, client_context(root)):
            with pytest.raises(OSError):  # noqa: PT011 — an SSLError, or a reset
                get(url, context)
        before, is_reused = session_of(url, good, None)
        assert not is_reused
        assert session_of(url, good, before)[1]
        # Another authority from now on.
        assert files.client_ca is not None
        os.replace(other_ca.root(tmp_path), files.client_ca)

        def takes_the_other() -> bool:
            with contextlib.suppress(OSError):
                return get(url, wrong)[0] == 200
            return False

        wait_until(takes_the_other, "the other authority is known")
        with pytest.raises(OSError):  # noqa: PT011 — a session of before opens nothing
            session_of(url, good, before)


@LOOPS
def test_who_shakes_no_hands_is_cut_off(tmp_path: Path, new_loop: NewLoop) -> None:
    """Within the time of a head, in the number of connections, and while the server ends."""
    context = client_context(CA.root(tmp_path))
    files = TlsFiles(*CA.certificate(tmp_path, "server"))
    with gateway(config(files, head_timeout_s=0.5), new_loop) as url:
        address = (HOST, urlsplit(url).port)
        with socket.create_connection(address, timeout=HANG_S) as silent:
            assert silent.recv(100) == b""
        with socket.create_connection(address, timeout=HANG_S) as garbage:
            garbage.sendall(b"\x16\x03\x01\xff\xff" + b"x" * 1_000)
            with contextlib.suppress(ConnectionError):
                while garbage.recv(100):
                    pass
        assert get(url, context)[0] == 200
    with gateway(config(files, connections_per_address_max=3), new_loop) as url:
        address = (HOST, urlsplit(url).port)
        silent_ones = [socket.create_connection(address, timeout=HANG_S) for _ in range(8)]
        ended = 0
        for each in silent_ones[:5]:  # the longest waiting go
            with contextlib.suppress(ConnectionError):
                assert each.recv(100) == b""
            ended += 1
        assert ended == 5
        assert get(url, context)[0] == 200
    for each in silent_ones:
        each.close()  # the server has ended with some of them open


def test_a_client_that_goes_in_the_middle_of_a_handshake_leaves_nothing(tmp_path: Path) -> None:
    context = client_context(CA.root(tmp_path))
    with gateway(config(TlsFiles(*CA.certificate(tmp_path, "server")), connections_max=2)) as url:
        address = (HOST, urlsplit(url).port)
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        handshake = context.wrap_bio(incoming, outgoing, server_hostname=HOST)
        with contextlib.suppress(ssl.SSLWantReadError):
            handshake.do_handshake()
        hello = outgoing.read()
        for _ in range(10):
            with socket.create_connection(address, timeout=HANG_S) as connection:
                connection.sendall(hello)
                assert connection.recv(10)
        assert get(url, context)[0] == 200


def put_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda files: files[0].unlink(), "No such file"),
        (lambda files: files[1].unlink(), "No such file"),
        (lambda files: files[0].write_bytes(b"no certificate"), "PEM|NO_START_LINE|pem lib"),
        (
            lambda files: files[1].write_bytes(pem_of(ec.generate_private_key(ec.SECP256R1()))),
            "MISMATCH",
        ),
        (lambda files: put_pipe(files[0]), "is no file"),
        (lambda files: files[1].unlink() or files[1].symlink_to("/dev/zero"), "is no file"),
        (lambda files: os.truncate(files[0], 1 << 40), "has over"),
    ],
)
def test_files_of_no_use_are_told_at_the_start(
    spoil: Callable[[tuple[Path, Path]], object], why: str, tmp_path: Path
) -> None:
    files = CA.certificate(tmp_path, "server")
    spoil(files)
    with pytest.raises(SettingsError, match="DURABILL_GATEWAY_TLS") as raised:
        ServedTls(TlsFiles(*files))
    assert any(word.lower() in str(raised.value).lower() for word in why.split("|"))


def test_a_key_with_a_password_is_refused_and_asks_nobody(tmp_path: Path) -> None:
    certificate, key = CA.certificate(tmp_path, "server")
    key.write_bytes(pem_of(ec.generate_private_key(ec.SECP256R1()), b"secret"))
    with pytest.raises(SettingsError):
        ServedTls(TlsFiles(certificate, key))


def test_a_signal_has_the_files_read_at_the_next_look(tmp_path: Path) -> None:
    served = ServedTls(TlsFiles(*CA.certificate(tmp_path, "server")))
    before = served.context

    async def look() -> None:
        watching = asyncio.ensure_future(served.watch(0.01))
        await asyncio.sleep(0.1)
        assert served.context is before
        served.reload_soon()
        while served.context is before:
            await asyncio.sleep(0.01)
        watching.cancel()

    asyncio.run(look())
