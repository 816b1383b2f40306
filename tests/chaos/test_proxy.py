"""The proxy is slow, silent or cut off when it is told to be, and otherwise invisible."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from durabill.deploy.local.stack import HOST, find_free_ports
from tests.chaos.proxy import Mode, Proxy
from tests.waiting import HANG_S


def echo(listener: socket.socket) -> None:
    """Sends back what comes, on any number of connections, until the listener is closed."""

    def serve(connection: socket.socket) -> None:
        with connection:
            while data := connection.recv(4096):
                connection.sendall(data)

    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        threading.Thread(target=serve, args=(connection,), daemon=True).start()


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    """A proxy in front of an echo server."""
    front, behind = find_free_ports(2)
    with socket.create_server((HOST, behind)) as listener:
        thread = threading.Thread(target=echo, args=(listener,), daemon=True)
        thread.start()
        with Proxy(front, behind) as made:
            yield made
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


@contextmanager
def connected(proxy: Proxy) -> Iterator[socket.socket]:
    with socket.create_connection((HOST, proxy.listen_port), timeout=HANG_S) as made:
        yield made


def round_trip_s(connection: socket.socket) -> float:
    began_s = time.monotonic()
    connection.sendall(b"ping")
    assert connection.recv(100) == b"ping"
    return time.monotonic() - began_s


def is_ended(connection: socket.socket) -> bool:
    """Whether the other side has ended it, in good order or not."""
    try:
        return connection.recv(100) == b""
    except ConnectionError:
        return True


def test_passes(proxy: Proxy) -> None:
    with connected(proxy) as connection:
        round_trip_s(connection)
    assert proxy.counters.passed_bytes == 8
    assert proxy.counters.held() == 0


def test_slow_is_slow_both_ways_until_it_is_not(proxy: Proxy) -> None:
    with connected(proxy) as connection:
        round_trip_s(connection)
        proxy.switch(Mode.SLOW, 0.5)
        assert round_trip_s(connection) >= 1.0
        proxy.switch(Mode.PASS)
        assert min(round_trip_s(connection) for _ in range(20)) < 1.0
    assert proxy.counters.held() == 8  # as it was slow, and not since


def test_silent_holds_everything_back_and_loses_nothing(proxy: Proxy) -> None:
    with connected(proxy) as connection:
        round_trip_s(connection)
        proxy.switch(Mode.SILENT)
        connection.sendall(b"ping")
        connection.settimeout(0.3)
        with pytest.raises(TimeoutError):
            connection.recv(100)
        proxy.switch(Mode.PASS)
        connection.settimeout(30)
        assert connection.recv(100) == b"ping"
    assert proxy.counters.held() == 4


def test_cut_ends_open_connections_and_refuses_new_ones(proxy: Proxy) -> None:
    with connected(proxy) as connection:
        round_trip_s(connection)
        proxy.switch(Mode.CUT)
        assert is_ended(connection)
    with connected(proxy) as connection:
        assert is_ended(connection)
    assert proxy.counters.cut == proxy.counters.refused == 1
    proxy.switch(Mode.PASS)
    with connected(proxy) as connection:
        round_trip_s(connection)
