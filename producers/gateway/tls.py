"""TLS of the gateway: its certificate, which changes under it, and handshakes within the limits.

Theory: a context that serves can't be given another certificate safely, for one of another kind of
key would stand beside the old one. So a new context is made of the files, and only when that has
worked is it handed out: OpenSSL asks for it at each handshake, whether a client names a server or
not. What can't be loaded (a certificate without its key, which may just be on its way) changes
nothing but the log.

A handshake costs more than any request, and its client is nobody yet. So connections are counted,
and bounded in number and time, from their first byte: a `Greeter` stands for one until its
handshake is over.
"""

import asyncio
import logging
import os
import ssl
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from durabill.producers.gateway.web_server import Connection, Connections, client_of
from durabill.schemas.errors import SettingsError

log = logging.getLogger(__name__)

LOOK_S = 1.0
_Stamp = tuple[int, int, int] | None


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
    """The context that connections are taken with. Raises SettingsError for files of no use."""

    def __init__(self, files: TlsFiles) -> None:
        self._files = files
        self._stamps = [_stamp_of(each) for each in files.paths]
        try:
            self.context, self._current = load_context(files), load_context(files)
        except OSError as error:
            raise SettingsError([f"DURABILL_GATEWAY_TLS_…: {_why(files, error)}"]) from error
        self.context.sni_callback = self._choose

    def greet(self, owner: Connections, connect: Callable[[], Connection]) -> "Greeter":
        """Return what stands for a new connection until its handshake is over."""
        return Greeter(owner, self.context, connect)

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
            self._current = await asyncio.to_thread(load_context, self._files)
        except OSError as error:
            text = "the TLS certificate is not changed: %s. The one before goes on"
            log.error(text, _why(self._files, error))
            return
        log.info("the TLS certificate %s has been read", self._files.certificate)

    def _choose(
        self, connection: ssl.SSLObject | ssl.SSLSocket, _name: str | None, _: ssl.SSLContext
    ) -> None:
        connection.context = self._current


def _stamp_of(path: Path) -> _Stamp:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def _why(files: TlsFiles, error: OSError) -> str:
    names = ", ".join(str(each) for each in files.paths)
    reason = getattr(error, "reason", None) or error.strerror or str(error)
    return f"{names}: {reason}"


class Greeter(asyncio.Protocol):
    """A connection until its handshake is over; then it becomes what `connect` makes."""

    def __init__(
        self, owner: Connections, context: ssl.SSLContext, connect: Callable[[], Connection]
    ) -> None:
        self._owner, self._context, self._connect = owner, context, connect
        self.client = ""
        self.waits_until_s: float | None = None
        self.body_bytes = 0
        self._raw: asyncio.Transport | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def is_there(self) -> bool:
        """Whether it has not been cut off."""
        return self._raw is not None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin the handshake, or close it at once where there are too many."""
        assert isinstance(transport, asyncio.Transport)
        transport.pause_reading()  # what it says is for OpenSSL
        peer = transport.get_extra_info("peername")
        self.client = client_of(peer[0]) if isinstance(peer, tuple) else ""
        self._raw = transport
        self._owner.add(self)
        if self.is_there:
            self._task = asyncio.get_running_loop().create_task(self._shake_hands(transport))

    def cut_off(self) -> None:
        """End the connection now."""
        self._owner.remove(self)
        raw, self._raw = self._raw, None
        if raw is not None:
            raw.abort()

    async def _shake_hands(self, raw: asyncio.Transport) -> None:
        early = _Early()
        encrypted: asyncio.Transport | None = None
        with suppress(OSError, TimeoutError):  # the client's doing: nothing to be told
            encrypted = await asyncio.get_running_loop().start_tls(
                raw,
                early,
                self._context,
                server_side=True,
                ssl_handshake_timeout=self._owner.limits.head_timeout_s,
            )
        if not self.is_there:
            return
        if encrypted is None or encrypted.is_closing() or early.is_over:
            self.cut_off()
            return
        self._owner.remove(self)
        connection = self._connect()
        encrypted.set_protocol(connection)
        connection.connection_made(encrypted)
        if early.data and not encrypted.is_closing():
            connection.data_received(bytes(early.data))


class _Early(asyncio.Protocol):
    """Keeps what comes with the handshake's last bytes."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.is_over = False

    def data_received(self, data: bytes) -> None:
        """Keep it."""
        self.data += data

    def eof_received(self) -> None:
        """Note that nothing more comes."""
        self.is_over = True

    def connection_lost(self, exc: Exception | None) -> None:
        """Note that nobody is there any more."""
        self.is_over = True
