"""Asks a Confluent-compatible schema registry for the schema of an id.

There are three outcomes: the schema; the registry's own answer that it has no such id (HTTP 404
with its error code 40403); and no answer, which is everything else: it is unreachable or slow,
another server is at that address, a proxy sent a page. Only the first two decide about a record.
"""

import json
import time
from typing import Any

import urllib3

ANSWER_BYTES_MAX = 4 * 1024 * 1024
PATIENCE_S = 5.0
"""How long a whole question may take."""

NO_SUCH_SCHEMA = 40403
"""Confluent's error code for an id that the registry doesn't know."""

"""Ids are positive 32-bit integers; a registry can't be asked for others."""


class NoAnswer(Exception):
    """The registry gave no answer; the text tells what happened instead."""


class Registry:
    """A registry at `url`; user and password in the URL are sent as basic authentication."""

    def __init__(self, url: str, patience_s: float = PATIENCE_S) -> None:
        parsed = urllib3.util.parse_url(url)
        self._base = parsed._replace(auth=None).url.rstrip("/")
        self._patience_s = patience_s
        self._headers = {"Accept": "application/vnd.schemaregistry.v1+json, application/json"}
        if parsed.auth:
            self._headers |= urllib3.make_headers(basic_auth=parsed.auth)
        self._http = urllib3.PoolManager(num_pools=1, maxsize=2, retries=False)

    @property
    def address(self) -> str:
        """Return the URL without user and password."""
        return self._base

    def ask(self, schema_id: int) -> str | None:
        """Return the schema (JSON text) of an id, None if there is none; raise NoAnswer.

        Blocks for `patience_s` at the most.
        """
        until_s = time.monotonic() + self._patience_s
        try:
            response = self._http.request(
                "GET",
                f"{self._base}/schemas/ids/{schema_id}",
                headers=self._headers,
                timeout=urllib3.Timeout(total=self._patience_s),
                preload_content=False,
                redirect=False,
            )
            try:
                body = _read(response, until_s)
            finally:
                response.close()
        except urllib3.exceptions.HTTPError as error:
            raise NoAnswer(f"{type(error).__name__}: {error}") from error
        return _judge(response.status, body)


def _read(response: urllib3.BaseHTTPResponse, until_s: float) -> bytes:
    body = bytearray()
    while piece := response.read1(65536):
        body += piece
        if len(body) > ANSWER_BYTES_MAX:
            raise NoAnswer(f"an answer of more than {ANSWER_BYTES_MAX} bytes")
        if time.monotonic() > until_s:
            raise NoAnswer("the answer took too long")
    return bytes(body)


def _judge(status: int, body: bytes) -> str | None:
    try:
        answer: Any = json.loads(body)
        json.dumps(answer, ensure_ascii=False).encode()  # lone surrogates can't be recorded
    except (ValueError, RecursionError):
        raise NoAnswer(f"status {status} and no JSON; is it a schema registry?") from None
    if status == 404 and isinstance(answer, dict) and answer.get("error_code") == NO_SUCH_SCHEMA:
        return None
    if status != 200 or not isinstance(answer, dict) or not isinstance(answer.get("schema"), str):
        raise NoAnswer(f"status {status}; is it a schema registry?")
    kind = answer.get("schemaType", "AVRO")
    if kind != "AVRO":
        return json.dumps({"type": f"a schema of type {kind}"})
    schema: str = answer["schema"]
    return schema
