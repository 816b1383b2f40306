"""Whether a server could listen at an address: on each family of addresses that there is."""

import errno
import os
import socket
from typing import Any

import pytest

from durabill.deploy.commands.process_words import check_address
from durabill.deploy.local import stack
from durabill.deploy.local.ports import why_not_listen
from durabill.deploy.local.stack import StackError, find_free_ports

OTHER_HOST = "127.0.0.2"


def without(monkeypatch: pytest.MonkeyPatch, *families: int) -> None:
    """Have a kernel that lacks these families; every name has an address of both."""
    real = socket.socket

    def made(family: int, *arguments: Any) -> socket.socket:
        if family in families:
            raise OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT))
        return real(family, *arguments)

    def both(host: str, port: int, **_: Any) -> list[Any]:
        kind = socket.SOCK_STREAM
        return [
            (socket.AF_INET6, kind, 0, "", ("::1", port, 0, 0)),
            (socket.AF_INET, kind, 0, "", ("127.0.0.1", port)),
        ]

    monkeypatch.setattr(socket, "socket", made)
    monkeypatch.setattr(socket, "getaddrinfo", both)


def test_a_family_that_the_kernel_lacks_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, socket.AF_INET6)
    assert why_not_listen("localhost", 0) is None
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert why_not_listen("localhost", port) == "it is in use by another program"


def test_where_none_is_left_nobody_can_listen(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, socket.AF_INET6, socket.AF_INET)
    assert (
        why_not_listen("localhost", 0) == "this machine has no addresses of the kind of localhost"
    )


def test_a_free_port_is_free_on_the_host_that_was_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server((OTHER_HOST, 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setattr(stack, "_PORT_MIN", port)
        monkeypatch.setattr(stack, "_PORT_MAX", port + 1)
        with pytest.raises(StackError, match=f"No 1 free ports on {OTHER_HOST}"):
            find_free_ports(1, OTHER_HOST)


def test_port_0_asks_about_the_host_alone() -> None:
    check_address("worker", "127.0.0.1", 0)
    with pytest.raises(StackError, match=r"192\.0\.2\.1 is no address of this machine"):
        check_address("worker", "192.0.2.1", 0)
