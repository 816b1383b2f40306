"""HTTP calls that end in time, whatever the server does.

Theory: the socket timeouts of HTTP libraries bound one wait, not a call. A server that sends a
byte a second keeps each wait short and the call for ever; endless headers or an endless body
fill the memory besides. Here every wait of a call (look-up of the name, connect, TLS handshake,
each send and each read) gets what is left of the call's time, and what is read is counted.
`http.client` does the protocol: all that it wants of a socket is `_Wire`.
"""

import http.client
import io
import socket
import ssl
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

from durabill.producers.sdk.answers import HttpAnswer
from durabill.producers.sdk.uplink import UplinkUnavailable

ANSWER_BYTES_MAX = 1024 * 1024
"""How much of an answer is read, headers included; over it the call fails."""
_TIMEOUT_MAX_S = 86_400.0
_INTERIM_MAX = 100
_IDLE_CONNECTIONS_MAX = 4
_IDLE_MAX_S = 60.0  # a gateway closes idle connections after 75 s: don't meet it in the act
_SEND_BYTES = 64 * 1024  # at once: the time is looked at after each
_LOOPBACK = {"localhost", "127.0.0.1", "::1"}
_AddressInfo = tuple[Any, ...]  # as of socket.getaddrinfo


class _AnswerTooLarge(OSError):
    """More bytes than any answer of the contract has."""


@dataclass(eq=False, slots=True)
class _Wire:
    """A connected socket with one deadline, on time.monotonic(), for all waits of a call."""

    sock: socket.socket
    until_s: float
    bytes_read: int = 0
    used_s: float = field(default_factory=time.monotonic)
    reader: io.BufferedReader | None = None  # of the call that is under way

    def arm(self) -> None:
        """Have the next wait end when the call has to."""
        self.sock.settimeout(_left_s(self.until_s))

    def sendall(self, data: bytes) -> None:
        """Send all of it by the deadline. For http.client."""
        view = memoryview(data)
        while view:
            self.arm()
            view = view[self.sock.send(view[:_SEND_BYTES]) :]

    def makefile(self, _mode: str) -> io.BufferedReader:
        """Return a reader that keeps the deadline, and counts. For http.client.

        All responses of a call are read by one: what follows an interim one may be in its buffer.
        """
        if self.reader is None:
            self.reader = io.BufferedReader(_Reader(self))
        return self.reader

    def close(self) -> None:
        """Close the connection, once its readers are closed as well. For http.client."""
        self.sock.close()

    def is_idle(self) -> bool:
        """Tell whether a connection can be used again: open, and the server owes nothing."""
        if time.monotonic() - self.used_s > _IDLE_MAX_S:
            return False
        try:
            self.sock.settimeout(0.0)
            self.sock.recv(1)  # the end, or bytes that nobody asked for
        except (BlockingIOError, ssl.SSLWantReadError):
            return True
        except OSError:
            return False
        return False

    def abort(self) -> None:
        """End every wait on it, in whichever thread."""
        with suppress(OSError):  # it was not connected any more
            self.sock.shutdown(socket.SHUT_RDWR)


class _Reader(io.RawIOBase):
    def __init__(self, wire: _Wire) -> None:
        self._wire = wire
        self._raw = wire.sock.makefile("rb", buffering=0)  # it keeps the socket open until closed

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        self._wire.arm()
        count = self._raw.readinto(buffer)
        self._wire.bytes_read += count or 0
        if self._wire.bytes_read > ANSWER_BYTES_MAX:
            raise _AnswerTooLarge(f"the answer is longer than {ANSWER_BYTES_MAX} bytes")
        return count

    def close(self) -> None:
        self._raw.close()
        super().close()


class BoundedHttp:
    """Calls to one server, HTTP/1.1, with connections kept open. Safe for several threads.

    `base_url` as in `https://host:port/path`. Redirects are not followed, nothing is decoded,
    and nothing is tried twice. Raises ValueError for a URL or a timeout that can't be meant.
    """

    def __init__(
        self,
        base_url: str,
        *,
        timeout_s: float,
        headers: Mapping[str, str],
        ca_file: str | Path | None = None,
    ) -> None:
        parts = urlsplit(base_url)
        if not base_url.isascii() or not base_url.isprintable() or " " in base_url:
            raise ValueError(f"{base_url!r}: write it in ASCII, without spaces")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{base_url!r} is no URL of a gateway: http://host:port or https://")
        if parts.username is not None or parts.query or parts.fragment:
            wrong = "a URL of a gateway has no user, query or fragment; use headers instead"
            raise ValueError(f"{parts.hostname}: {wrong}")
        self.base_url = f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"
        self._path = parts.path.rstrip("/")
        self._host = parts.hostname
        self._port = parts.port or (443 if parts.scheme == "https" else 80)
        self._tls: ssl.SSLContext | None = None
        if parts.scheme == "https":
            self._tls = ssl.create_default_context(cafile=ca_file)
        elif ca_file is not None:
            raise ValueError(f"{base_url!r}: certificates need https")
        self.is_plain = self._tls is None and self._host not in _LOOPBACK
        """Whether what is sent can be read on its way."""
        self._timeout_s = _checked(timeout_s)
        given = {name.lower(): value for name, value in headers.items()}
        self._headers = {"host": parts.netloc, **given}
        self._resolver = _Resolver(self._host, self._port)
        self._mutex = threading.Lock()
        self._idle: list[_Wire] = []
        self._busy: set[_Wire] = set()

    def call(
        self,
        method: str,
        path: str,
        body: bytes | None,
        *,
        timeout_s: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> HttpAnswer:
        """Ask once; return the whole answer, or raise UplinkUnavailable.

        All of it takes the given time at most, and never more than this object's `timeout_s`.
        `headers` go before those of this object.
        """
        given = {name.lower(): value for name, value in (headers or {}).items()}
        headers = {**self._headers, **given}
        given_s = self._timeout_s if timeout_s is None else min(timeout_s, self._timeout_s)
        given_s = max(given_s, 0.0)
        try:
            return self._exchange(method, path, body, headers, time.monotonic() + given_s)
        except TimeoutError as error:
            what = f"no whole answer within {given_s:g} s"
            raise UplinkUnavailable(f"{self.base_url}: {what}") from error
        except _AnswerTooLarge as error:
            raise UplinkUnavailable(f"{self.base_url}: {error}") from error
        except (OSError, http.client.HTTPException, ValueError) as error:
            # ValueError: what http.client makes of some answers that are no HTTP.
            what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            raise UplinkUnavailable(f"{self.base_url}: {what}") from error

    def close(self) -> None:
        """Close all connections; calls that are under way fail at once."""
        with self._mutex:
            idle, self._idle = self._idle, []
            busy = list(self._busy)
        for wire in idle:
            wire.close()
        for wire in busy:
            wire.abort()

    def _exchange(
        self,
        method: str,
        path: str,
        body: bytes | None,
        headers: Mapping[str, str],
        until_s: float,
    ) -> HttpAnswer:
        wire = self._take(until_s)
        is_reusable = False
        try:
            connection = http.client.HTTPConnection(self._host, self._port)
            connection.sock = cast(Any, wire)
            # A server may answer before it has read all, 413 for one, and close.
            with suppress(BrokenPipeError, ConnectionResetError):
                connection.request(method, self._path + path, body, dict(headers))
            with _response(wire, method) as response:
                content = _whole_body(response)
                is_over = response.isclosed() and not response.will_close
                is_reusable = is_over and response.status >= 200
            return _answer(response, content)
        finally:
            self._give_back(wire, is_reusable=is_reusable)

    def _take(self, until_s: float) -> _Wire:
        wire: _Wire | None = None
        while wire is None:
            with self._mutex:
                wire = self._idle.pop() if self._idle else None
            if wire is None:
                wire = self._connected(until_s)
            elif not wire.is_idle():
                wire.close()
                wire = None
        wire.until_s = until_s
        wire.bytes_read = 0
        with self._mutex:
            self._busy.add(wire)
        return wire

    def _give_back(self, wire: _Wire, *, is_reusable: bool) -> None:
        wire.used_s = time.monotonic()
        if wire.reader is not None:  # it would keep the socket open
            wire.reader.close()
            wire.reader = None
        with self._mutex:
            self._busy.discard(wire)
            if is_reusable and len(self._idle) < _IDLE_CONNECTIONS_MAX:
                self._idle.append(wire)
                return
        wire.close()

    def _connected(self, until_s: float) -> _Wire:
        addresses = self._resolver.addresses(until_s)
        failure: OSError | None = None
        for at, (family, kind, protocol, _, address) in enumerate(addresses):
            sock = socket.socket(family, kind, protocol)
            try:
                # One that swallows everything leaves its share of the time to the others.
                sock.settimeout(_left_s(until_s) / (len(addresses) - at))
                sock.connect(address)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                return _Wire(self._encrypted(sock, until_s), until_s)
            except OSError as error:
                failure = error
                sock.close()
            except BaseException:
                sock.close()
                raise
        raise failure or OSError(f"{self._host} has no address")

    def _encrypted(self, sock: socket.socket, until_s: float) -> socket.socket:
        if self._tls is None:
            return sock
        sock.settimeout(_left_s(until_s))
        return self._tls.wrap_socket(sock, server_hostname=self._host)  # takes so long in all


class _Resolver:
    """Looks a name up by a deadline, which the system's own look-up doesn't know.

    It runs in a thread, and goes on there when nobody waits for it any more. The next one who
    asks waits for the same one: however long a name server stalls, it is one thread.
    """

    def __init__(self, host: str, port: int) -> None:
        self._host, self._port = host, port
        self._mutex = threading.Lock()
        self._running: _LookUp | None = None

    def addresses(self, until_s: float) -> list[_AddressInfo]:
        """Return the host's addresses; raise OSError, or TimeoutError at the deadline."""
        with suppress(socket.gaierror):  # no number: ask
            return _getaddrinfo(self._host, self._port, socket.AI_NUMERICHOST)
        with self._mutex:
            if self._running is None or self._running.is_over.is_set():
                try:
                    self._running = _LookUp(self._host, self._port)
                except RuntimeError as error:  # the system has no thread left
                    raise OSError(f"{self._host} can't be looked up: {error}") from error
            running = self._running
        if not running.is_over.wait(_left_s(until_s)):
            raise TimeoutError
        found = running.found
        if isinstance(found, OSError):
            raise OSError(f"{self._host}: {found}") from found
        return found


class _LookUp:
    def __init__(self, host: str, port: int) -> None:
        self.is_over = threading.Event()
        self.found: list[_AddressInfo] | OSError = []
        threading.Thread(target=self._run, args=(host, port), daemon=True).start()

    def _run(self, host: str, port: int) -> None:
        try:
            self.found = _getaddrinfo(host, port)
        except (OSError, UnicodeError) as error:  # UnicodeError: no name that DNS could know
            self.found = error if isinstance(error, OSError) else OSError(str(error))
        finally:
            self.is_over.set()


def _getaddrinfo(host: str, port: int, flags: int = 0) -> list[_AddressInfo]:
    return list(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=flags))


def _response(wire: _Wire, method: str) -> http.client.HTTPResponse:
    """Return the final response, past interim ones: http.client takes all but 100 for final."""
    for _ in range(_INTERIM_MAX):
        response = http.client.HTTPResponse(cast(Any, wire), method=method)
        response.begin()
        if response.status >= 200 or response.status == http.client.SWITCHING_PROTOCOLS:
            return response
        response.fp = cast(Any, None)  # it would close the reader
    raise http.client.HTTPException(f"more than {_INTERIM_MAX} interim responses")


def _whole_body(response: http.client.HTTPResponse) -> bytes:
    parts: list[bytes] = []
    while part := response.read(_SEND_BYTES):
        parts.append(part)
    if response.length:  # http.client takes a body that was cut off for a whole one
        raise http.client.IncompleteRead(b"".join(parts), response.length)
    return b"".join(parts)


def _answer(response: http.client.HTTPResponse, body: bytes) -> HttpAnswer:
    content_type = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    return HttpAnswer(
        response.status,
        content_type,
        body,
        retry_after_s(response.headers.get("retry-after"), response.headers.get("date")),
        response.headers.get("location"),
    )


def retry_after_s(wish: str | None, date: str | None) -> float | None:
    """Return the pause that a Retry-After wishes, in either form; None where it is neither.

    A point in time is taken against the same answer's Date, so the client's clock has no say;
    without a Date there is nothing else.
    """
    if wish is None:
        return None
    wish = wish.strip()
    if wish.isascii() and wish.isdigit():
        return float(wish)
    try:
        now_s = time.time() if date is None else parsedate_to_datetime(date).timestamp()
        return max(0.0, parsedate_to_datetime(wish).timestamp() - now_s)
    except (ValueError, OverflowError):
        return None


def _left_s(until_s: float) -> float:
    left_s = until_s - time.monotonic()
    if left_s <= 0:
        raise TimeoutError
    return left_s


def _checked(timeout_s: float) -> float:
    if not 0 < timeout_s <= _TIMEOUT_MAX_S:
        raise ValueError(f"timeout_s is {timeout_s}, more than 0 to {_TIMEOUT_MAX_S:g} s allowed")
    return float(timeout_s)
