"""What counts as a registry's answer, by stand-in servers that say all kinds of things."""

import json
import socket
import threading
import time
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from durabill.stream_processors.worker.registry import NoAnswer, Registry

SCHEMA = json.dumps({"type": "string"})


def answer(status: str, body: bytes, kind: str = "application/json") -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def as_json(status: str, content: object) -> bytes:
    return answer(status, json.dumps(content).encode())


class Server:
    """Says the same to everybody; keeps what it was asked."""

    def __init__(self, said: bytes, pause_s: float) -> None:
        self.asked: list[bytes] = []
        self._said, self._pause_s = said, pause_s
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        self._socket.settimeout(0.1)
        while not self._over.is_set():
            try:
                connection, _ = self._socket.accept()
            except TimeoutError:
                continue
            with connection:
                self._answer(connection)

    def _answer(self, connection: socket.socket) -> None:
        self.asked.append(connection.recv(65536))
        size = 1 if self._pause_s else len(self._said)
        for at in range(0, len(self._said), max(1, size)):
            try:
                connection.sendall(self._said[at : at + size])
            except OSError:
                return
            if self._over.wait(self._pause_s):
                return

    def close(self) -> None:
        self._over.set()
        self._thread.join()
        self._socket.close()


@contextmanager
def server(said: bytes, pause_s: float = 0.0) -> Iterator[Server]:
    made = Server(said, pause_s)
    try:
        yield made
    finally:
        made.close()


def test_a_schema_and_how_it_is_asked_for() -> None:
    with server(as_json("200 OK", {"schema": SCHEMA})) as there:
        registry = Registry(f"http://who:secret@127.0.0.1:{there.port}/apis/v7/")
        assert registry.ask(42) == SCHEMA
        asked = there.asked[0]
    assert asked.startswith(b"GET /apis/v7/schemas/ids/42 HTTP/1.1")
    assert b"uthorization: Basic " + b64encode(b"who:secret") in asked
    assert registry.address == f"http://127.0.0.1:{there.port}/apis/v7"


def test_the_registrys_own_word_that_there_is_none() -> None:
    with server(as_json("404 Not Found", {"error_code": 40403, "message": "none"})) as there:
        assert Registry(f"http://127.0.0.1:{there.port}").ask(42) is None


def test_a_schema_of_another_kind_is_one_that_never_resolves() -> None:
    with server(as_json("200 OK", {"schema": "syntax", "schemaType": "PROTOBUF"})) as there:
        schema = Registry(f"http://127.0.0.1:{there.port}").ask(42)
    assert schema is not None
    assert "PROTOBUF" in json.loads(schema)["type"]


NO_ANSWERS = {
    "another 404": as_json("404 Not Found", {"error_code": 404, "message": "HTTP 404 Not Found"}),
    "a proxy's 404": answer("404 Not Found", b"<html>not found</html>", "text/html"),
    "no such subject": as_json("404 Not Found", {"error_code": 40401}),
    "a login page": answer("200 OK", b"<html>log in</html>", "text/html"),
    "JSON of something else": as_json("200 OK", {"hello": "world"}),
    "a list": as_json("200 OK", [1]),
    "a schema that is no text": as_json("200 OK", {"schema": {"type": "string"}}),
    "not allowed": as_json("401 Unauthorized", {"error_code": 401}),
    "a failure": as_json("500 Internal Server Error", {"error_code": 50001}),
    "a redirect": b"HTTP/1.1 302 Found\r\nLocation: /elsewhere\r\nContent-Length: 0\r\n\r\n",
    "a schema that is no text in UTF-8": answer("200 OK", b'{"schema":"\\ud800"}'),
    "nests without end": answer("200 OK", b"[" * 1_000_000),
    "no HTTP": b"\x00\x01\x02\x03\r\n\r\n",
    "nothing": b"",
    "too much": answer("200 OK", b" " * (5 * 1024 * 1024)),
}


@pytest.mark.parametrize("name", NO_ANSWERS)
def test_what_is_no_answer(name: str) -> None:
    with server(NO_ANSWERS[name]) as there, pytest.raises(NoAnswer):
        Registry(f"http://127.0.0.1:{there.port}", patience_s=2.0).ask(42)


def test_nobody_there() -> None:
    with pytest.raises(NoAnswer):
        Registry("http://127.0.0.1:9", patience_s=2.0).ask(42)


def test_one_byte_at_a_time() -> None:
    said = as_json("200 OK", {"schema": SCHEMA + " " * 10_000})
    with server(said, pause_s=0.05) as there:
        began_s = time.monotonic()
        with pytest.raises(NoAnswer):
            Registry(f"http://127.0.0.1:{there.port}", patience_s=1.0).ask(42)
        assert time.monotonic() - began_s < 120  # the whole of it takes 500 s
