"""TLS of the gateway: its certificate, which changes under it, and handshakes within the limits.

Theory: a context that serves can't be given another certificate safely, for one of another kind of
key would stand beside the old one. So a new context is made of the files, and only when that has
worked are connections taken with it. It knows no session of the one before, or a client could go
on with one although its certificate isn't taken any more. What can't be loaded (a certificate
without its key, which may just be on its way) changes nothing but the log.

A handshake costs more than any request, and its client is nobody yet. So connections are counted,
and bounded in number and time, from their first byte: a `Greeter` stands for one until its
handshake is over.
"""

import asyncio
import errno
import logging
import os
import socket
import ssl
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from durabill.producers.gateway.auth.watched_file import without_waiting
from durabill.producers.gateway.web_server import (
    LISTEN_BACKLOG,
    SEND_BUFFER_BYTES,
    Connection,
    Connections,
    client_of,
)
from durabill.schemas.errors import SettingsError

log = logging.getLogger(__name__)

LOOK_S = 1.0
_NO_FILES_PAUSE_S = 0.5
_FILE_BYTES_MAX = 4 * 1024 * 1024
_Stamp = tuple[int, int, int] | None
_NO_PEM = "one of them is no PEM file, or the key has a password"
_WORDS = {"KEY_VALUES_MISMATCH": "the key is not the certificate's (KEY_VALUES_MISMATCH)"}


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files: the certificate with those between it and its root, its key, and, where clients
    have to show certificates, whose they must be signed by."""

    certificate: Path
    key: Path
    client_ca: Path | None = None

    @property
    def paths(self) -> tuple[Path, ...]:
        """Return all that are read."""
        own = (self.certificate, self.key)
        return own if self.client_ca is None else (*own, self.client_ca)


def load_context(files: TlsFiles) -> ssl.SSLContext:
    """Return a server's context of these files; raise OSError (an SSLError is one)."""
    for each in files.paths:
        _check_file(each)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_CIPHER_SERVER_PREFERENCE
    # Without a password it would ask for one at the terminal.
    context.load_cert_chain(files.certificate, files.key, password="")
    if files.client_ca is not None:
        context.load_verify_locations(files.client_ca)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


class ServedTls:
    """The `context` that connections are taken with. Raises SettingsError for files of no use."""

    def __init__(self, files: TlsFiles) -> None:
        self._files = files
        self._stamps = [_stamp_of(each) for each in files.paths]
        try:
            self.context = load_context(files)
        except OSError as error:
            raise SettingsError([f"DURABILL_GATEWAY_TLS_…: {_why(files, error)}"]) from error

    def listener(self) -> "TlsListener":
        """Return what takes connections."""
        return TlsListener(lambda: self.context)

    def reload_soon(self) -> None:
        """Have the files read at the next look, whether they have changed or not. For SIGHUP."""
        self._stamps = []

    async def watch(self, look_s: float = LOOK_S) -> None:
        """Look at the files again and again, until cancelled."""
        while True:
            await asyncio.sleep(look_s)
            stamps = await asyncio.to_thread(lambda: [_stamp_of(p) for p in self._files.paths])
            if stamps != self._stamps:
                self._stamps = stamps
                await self.reload()

    async def reload(self) -> None:
        """Take what the files have now; where that is of no use, what was there goes on."""
        try:
            self.context = await asyncio.to_thread(load_context, self._files)
        except OSError as error:
            text = "the TLS certificate is not changed: %s. The one before goes on"
            log.error(text, _why(self._files, error))
            return
        log.info("the TLS certificate %s has been read", self._files.certificate)


def _check_file(path: Path) -> None:
    """Raise OSError, which names it, unless it is a file of a size that OpenSSL can be given.

    It would wait for a pipe's writer, or read a device, for ever.
    """
    with open(path, "rb", opener=without_waiting) as file:
        found = os.fstat(file.fileno())
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "it is no file", str(path))
    if found.st_size > _FILE_BYTES_MAX:
        raise OSError(errno.EFBIG, f"it has over {_FILE_BYTES_MAX} bytes", str(path))


def _stamp_of(path: Path) -> _Stamp:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def _why(files: TlsFiles, error: OSError) -> str:
    if error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    # OpenSSL doesn't say which one it is.
    names = ", ".join(str(each) for each in files.paths)
    reason = getattr(error, "reason", None) or _NO_PEM
    return f"{names}: {_WORDS.get(reason, reason)}"


class TlsListener:
    """Takes connections from `start` to `close`, and has each shake hands within the limits.

    `context` is asked for each of them what it is to be taken with.
    """

    def __init__(self, context: Callable[[], ssl.SSLContext]) -> None:
        self._context = context
        self._sockets: list[socket.socket] = []
        self._tasks: list[asyncio.Task[None]] = []

    async def start(
        self, host: str, port: int, owner: Connections, connect: Callable[[], Connection]
    ) -> int:
        """Listen, and return the port. Raises OSError if it can't be had."""
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        try:
            for family, *_, address in dict.fromkeys(found):
                self._sockets.append(_listening(family, address))
        except BaseException:
            self.close()
            raise
        for each in self._sockets:
            self._tasks.append(loop.create_task(self._accept_forever(each, owner, connect)))
        bound: int = self._sockets[0].getsockname()[1]
        return bound

    def close(self) -> None:
        """Take no more."""
        for task in self._tasks:
            task.cancel()
        for each in self._sockets:
            each.close()

    async def _accept_forever(
        self, listening: socket.socket, owner: Connections, connect: Callable[[], Connection]
    ) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                accepted, address = await loop.sock_accept(listening)
            except OSError as error:
                # It went away before we took it; or there is no file for it, which takes a while.
                if error.errno not in (errno.ECONNABORTED, errno.EINTR):
                    log.warning("a connection can't be taken: %s", error.strerror or error)
                    await asyncio.sleep(_NO_FILES_PAUSE_S)
                continue
            Greeter(owner, accepted, address[0]).begin(self._context(), connect)


def _listening(family: int, address: Any) -> socket.socket:
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        made.setblocking(False)
        made.bind(address)
        made.listen(LISTEN_BACKLOG)
    except BaseException:
        made.close()
        raise
    return made


class Greeter:
    """A connection until its handshake is over; then it becomes what `connect` makes."""

    def __init__(self, owner: Connections, accepted: socket.socket, address: str) -> None:
        self.client = client_of(address)
        self.waits_until_s: float | None = None
        self.body_bytes = self.unread_bytes = 0
        self._owner = owner
        self._socket: socket.socket | None = accepted  # None once somebody else closes it
        self._task: asyncio.Task[None] | None = None
        self.is_there = True

    def begin(self, context: ssl.SSLContext, connect: Callable[[], Connection]) -> None:
        """Begin the handshake, or end the connection at once where there are too many."""
        self._owner.add(self)
        if self.is_there:
            handshake = self._shake_hands(context, connect)
            self._task = asyncio.get_running_loop().create_task(handshake)

    def cut_off(self) -> None:
        """End the connection now."""
        self._owner.remove(self)
        self.is_there = False
        if self._task is not None:
            self._task.cancel()
        if self._socket is not None:
            self._socket.close()

    async def _shake_hands(
        self, context: ssl.SSLContext, connect: Callable[[], Connection]
    ) -> None:
        accepted, self._socket = self._socket, None
        assert accepted is not None

        def become() -> Connection:
            connection = connect()
            connection.replaces = self
            return connection

        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                become,
                accepted,
                ssl=context,
                ssl_handshake_timeout=self._owner.limits.head_timeout_s,
            )
        except (OSError, TimeoutError):
            accepted.close()  # the client's doing: nothing to be told
        finally:
            self._owner.remove(self)
