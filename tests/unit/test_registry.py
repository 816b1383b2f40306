"""What counts as a registry's answer, by stand-in servers that say all kinds of things."""

import json
import socket
import ssl
import threading
import time
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from msgspec.structs import replace

from durabill.schemas.errors import SettingsError, UnreachableError
from durabill.stream_processors.settings import Settings, load_settings
from durabill.stream_processors.worker.registry import NoAnswer, Registry, registry_of
from durabill.stream_processors.worker.subjects import look_up, registered
from tests.broker.test_client_http import certificate

SCHEMA = json.dumps({"type": "string"})


def answer(status: str, body: bytes, kind: str = "application/json") -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def as_json(status: str, content: object) -> bytes:
    return answer(status, json.dumps(content).encode())


class Server:
    """Says the same to everybody; keeps what it was asked."""

    def __init__(self, said: bytes, pause_s: float, tls: ssl.SSLContext | None) -> None:
        self.asked: list[bytes] = []
        self._said, self._pause_s, self._tls = said, pause_s, tls
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
                if self._tls is None:
                    self._answer(connection)
                    continue
                # Who does not trust us, or shows no certificate, ends the handshake.
                with suppress(OSError), self._tls.wrap_socket(connection, True) as encrypted:
                    self._answer(encrypted)

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
def server(
    said: bytes, pause_s: float = 0.0, tls: ssl.SSLContext | None = None
) -> Iterator[Server]:
    made = Server(said, pause_s, tls)
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


def test_user_and_password_of_the_settings_win_over_those_in_the_url() -> None:
    with server(as_json("200 OK", {"schema": SCHEMA})) as there:
        url = f"http://old:old@127.0.0.1:{there.port}"
        settings = Settings(
            schema_registry_url=url,
            schema_registry_username="who",
            schema_registry_password="s3:cret",
        )
        assert registry_of(settings).ask(42) == SCHEMA
        assert b"uthorization: Basic " + b64encode(b"who:s3:cret") in there.asked[0]


@pytest.mark.parametrize(
    ("in_url", "username", "password"),
    [("", "jürgen", "пароль"), ("who%40here:s%2F%D0%BF@", "", "")],
    ids=["settings", "url"],
)
def test_user_and_password_of_any_letters(in_url: str, username: str, password: str) -> None:
    with server(as_json("200 OK", {"schema": SCHEMA})) as there:
        url = f"http://{in_url}127.0.0.1:{there.port}"
        assert Registry(url, username=username, password=password).ask(42) == SCHEMA
        given = f"{username}:{password}" if username else "who@here:s/п"
        assert b"uthorization: Basic " + b64encode(given.encode()) in there.asked[0]


def test_a_registry_that_lets_nobody_in_is_told_without_the_password() -> None:
    with server(as_json("401 Unauthorized", {"error_code": 401})) as there:
        registry = Registry(f"http://127.0.0.1:{there.port}", username="who", password="s3cret")
        with pytest.raises(NoAnswer, match="the user that it was given") as raised:
            registry.ask(42)
        with pytest.raises(UnreachableError) as told:
            look_up(registry, "t-value", {})
    assert "s3cret" not in str(raised.value) + str(told.value)


def test_tls_trusts_whom_it_is_told_to_and_shows_a_certificate(tmp_path: Path) -> None:
    path = certificate(tmp_path)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=path)
    context.load_cert_chain(path)
    context.verify_mode = ssl.CERT_REQUIRED
    with server(as_json("200 OK", {"schema": SCHEMA}), tls=context) as there:
        url = f"https://127.0.0.1:{there.port}"
        ours = Settings(
            schema_registry_url=url,
            schema_registry_ca_location=str(path),
            schema_registry_certificate_location=str(path),
        )
        assert registry_of(ours).ask(42) == SCHEMA
        with pytest.raises(NoAnswer, match="CERTIFICATE_VERIFY_FAILED"):
            Registry(url).ask(42)
        nobody = replace(ours, schema_registry_certificate_location="")
        with pytest.raises(NoAnswer):
            registry_of(nobody).ask(42)
        assert len(there.asked) == 1


REFUSALS = {
    "an id that is none": as_json("200 OK", {"id": "7"}),
    "an id out of range": as_json("200 OK", {"id": 2**31}),
    "a list": as_json("200 OK", [7]),
    "another 404": as_json("404 Not Found", {"error_code": 404}),
    "a failure": as_json("500 Internal Server Error", {"error_code": 50001}),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_a_subject_without_an_answer_of_sense_is_no_new_one(name: str) -> None:
    """Nothing is registered where it isn't certain what is there."""
    with server(REFUSALS[name]) as there, pytest.raises(UnreachableError):
        registered(Registry(f"http://127.0.0.1:{there.port}"), "t-value", {"type": "string"})
    assert len(there.asked) == 1


@pytest.mark.parametrize(
    ("environ", "told"),
    [
        ({"TOTALS_FRAMING": "confluent"}, "needs DURABILL_SCHEMA_REGISTRY_URL"),
        ({"SEGMENTS_FRAMING": "confluent"}, "needs DURABILL_SCHEMA_REGISTRY_URL"),
        ({"SCHEMA_REGISTRY_URL": "registry:8081"}, "begins with http"),
        ({"SCHEMA_REGISTRY_PASSWORD": "s3cret"}, "without DURABILL_SCHEMA_REGISTRY_USERNAME"),
        ({"SCHEMA_REGISTRY_CA_LOCATION": "/no/such"}, "can't be read"),
        ({"SCHEMA_REGISTRY_KEY_LOCATION": "/dev/null"}, "without DURABILL_SCHEMA_REGISTRY_CERT"),
    ],
)
def test_settings_of_a_registry_that_cannot_be_meant(environ: dict[str, str], told: str) -> None:
    with pytest.raises(SettingsError) as raised:
        load_settings({f"DURABILL_{name}": value for name, value in environ.items()})
    assert [told in each for each in raised.value.problems] == [True]
    assert "s3cret" not in str(raised.value)


def test_a_certificate_that_is_none_is_told(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("no certificate")
    settings = Settings(
        schema_registry_url="https://registry",
        schema_registry_ca_location=str(tmp_path / "ca.pem"),
    )
    with pytest.raises(SettingsError, match="certificates"):
        registry_of(settings)
