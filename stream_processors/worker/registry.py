"""Talks to a Confluent-compatible schema registry: for the schema of an id, and by `subjects`.

Asked for an id, there are three outcomes: the schema; the registry's own answer that it has no such
id (HTTP 404 with its error code 40403); and no answer, which is everything else: it is unreachable
or slow, another server is at that address, a proxy sent a page. Only the first two decide about a
record.
"""

import json
import ssl
import time
from base64 import b64encode
from typing import Any, NamedTuple
from urllib.parse import unquote

import urllib3

from durabill.schemas.errors import SettingsError
from durabill.stream_processors.settings import Settings

ANSWER_BYTES_MAX = 4 * 1024 * 1024
PATIENCE_S = 5.0
"""How long a whole question may take."""

NO_SUCH_SCHEMA = 40403
"""Confluent's error code for an id that the registry doesn't know."""

_NO_ACCESS = (401, 403)
_JSON = "application/vnd.schemaregistry.v1+json"


class NoAnswer(Exception):
    """The registry gave no answer; the text tells what happened instead."""


class RegistryAnswer(NamedTuple):
    """What a registry answered: the HTTP status, and the JSON value."""

    status: int
    content: Any

    @property
    def error_code(self) -> int | None:
        """Return the registry's own code of an error."""
        code = self.content.get("error_code") if isinstance(self.content, dict) else None
        return code if isinstance(code, int) else None

    @property
    def message(self) -> str:
        """Return what it says about an error."""
        said = self.content.get("message") if isinstance(self.content, dict) else None
        return f"status {self.status}" + (f", {said[:500]}" if isinstance(said, str) else "")


class Registry:
    """A registry at `url`, asked over HTTP or HTTPS; each question takes `patience_s` at the most.

    `username` and `password` are sent as basic authentication (RFC 7617); so are those in the URL,
    where they are easily shown to others. `tls` has the authorities to trust, and our certificate.
    """

    def __init__(
        self,
        url: str,
        *,
        username: str = "",
        password: str = "",
        tls: ssl.SSLContext | None = None,
        patience_s: float = PATIENCE_S,
    ) -> None:
        parsed = urllib3.util.parse_url(url)
        self._base = parsed._replace(auth=None).url.rstrip("/")
        self._patience_s = patience_s
        self._headers = {"Accept": f"{_JSON}, application/json"}
        given = f"{username}:{password}" if username else unquote(parsed.auth or "")
        if given:
            self._headers["authorization"] = f"Basic {b64encode(given.encode()).decode()}"
        self._http = urllib3.PoolManager(num_pools=1, maxsize=2, retries=False, ssl_context=tls)

    @property
    def address(self) -> str:
        """Return the URL without user and password."""
        return self._base

    def ask(self, schema_id: int) -> str | None:
        """Return the schema (JSON text) of an id, None if there is none; raise NoAnswer."""
        return _judge(self.call("GET", f"/schemas/ids/{schema_id}"))

    def call(self, method: str, path: str, body: Any = None) -> RegistryAnswer:
        """Return the answer to a request; raise NoAnswer where there is none in JSON."""
        until_s = time.monotonic() + self._patience_s
        headers = self._headers if body is None else {**self._headers, "Content-Type": _JSON}
        try:
            response = self._http.request(
                method,
                self._base + path,
                body=None if body is None else json.dumps(body).encode(),
                headers=headers,
                timeout=urllib3.Timeout(total=self._patience_s),
                preload_content=False,
                redirect=False,
            )
            try:
                content = _read(response, until_s)
            finally:
                response.close()
        except urllib3.exceptions.HTTPError as error:
            raise NoAnswer(f"{type(error).__name__}: {error}") from error
        if response.status in _NO_ACCESS:
            who = "the user that it was given" if "authorization" in self._headers else "nobody"
            raise NoAnswer(
                f"status {response.status}: it lets {who} in (DURABILL_SCHEMA_REGISTRY_USERNAME and"
                " DURABILL_SCHEMA_REGISTRY_PASSWORD)"
            )
        return RegistryAnswer(response.status, _parsed(response.status, content))


def registry_of(settings: Settings) -> Registry:
    """Return the registry that the settings name, with its user and certificates.

    Raises SettingsError for a certificate that can't be used.
    """
    try:
        tls = _tls_context(settings)
    except (OSError, ssl.SSLError) as error:
        raise SettingsError(
            [f"The certificates for the schema registry (DURABILL_SCHEMA_REGISTRY_…): {error}"]
        ) from error
    return Registry(
        settings.schema_registry_url,
        username=settings.schema_registry_username,
        password=settings.schema_registry_password,
        tls=tls,
    )


def _tls_context(settings: Settings) -> ssl.SSLContext | None:
    authorities = settings.schema_registry_ca_location
    certificate = settings.schema_registry_certificate_location
    if not authorities and not certificate:
        return None
    context = ssl.create_default_context(cafile=authorities or None)
    if certificate:
        context.load_cert_chain(certificate, settings.schema_registry_key_location or None, "")
    return context


def _read(response: urllib3.BaseHTTPResponse, until_s: float) -> bytes:
    body = bytearray()
    while piece := response.read1(65536):
        body += piece
        if len(body) > ANSWER_BYTES_MAX:
            raise NoAnswer(f"an answer of more than {ANSWER_BYTES_MAX} bytes")
        if time.monotonic() > until_s:
            raise NoAnswer("the answer took too long")
    return bytes(body)


def _parsed(status: int, body: bytes) -> Any:
    try:
        answer: Any = json.loads(body)
        json.dumps(answer, ensure_ascii=False).encode()  # lone surrogates can't be recorded
    except (ValueError, RecursionError):
        raise NoAnswer(f"status {status} and no JSON; is it a schema registry?") from None
    return answer


def _judge(answer: RegistryAnswer) -> str | None:
    content = answer.content
    if answer.status == 404 and answer.error_code == NO_SUCH_SCHEMA:
        return None
    if (
        answer.status != 200
        or not isinstance(content, dict)
        or not isinstance(content.get("schema"), str)
    ):
        raise NoAnswer(f"status {answer.status}; is it a schema registry?")
    kind = content.get("schemaType", "AVRO")
    if kind != "AVRO":
        return json.dumps({"type": f"a schema of type {kind}"})
    schema: str = content["schema"]
    return schema
