"""What holds for every request to the gateway: who may ask, in which form, and errors' one form.

The checks need the head alone, so what they refuse costs no more than its head. Then it is found
out who asks (`admission`), before a byte of the body is read:
  1. the Host is a name of this server (403), see `schemas.web`
  2. no web page of somebody else asks (403): its browser says so
  3. a body is application/json (415), which no web page can send here without asking first,
     and is sent as it is (415): nothing is ever unpacked
  4. its stated length is within the limit (413)
"""

import logging
from typing import Any

import msgspec
from aiohttp import HttpVersion10, hdrs, web

from durabill.producers.gateway.admission import Admission
from durabill.producers.gateway.problems import ApiError
from durabill.producers.gateway.routes import Handler
from durabill.producers.gateway.web_server import BodyFailed, Connection
from durabill.schemas.web import (
    CROSS_ORIGIN,
    OUR_FAULT,
    PROBLEM,
    SERVER_NAME,
    UNEXPECTED,
    AllowedHosts,
    is_same_origin,
    names_another,
    reason_of,
)

log = logging.getLogger(__name__)

Response = web.StreamResponse

_JSON = "application/json"
_NO_STORE = {hdrs.CACHE_CONTROL: "no-store"}
_PLAIN = ("", "identity")


def json_answer(value: Any, status: int = 200) -> web.Response:
    """Return a value as a JSON answer, which no cache on the way may keep.

    A time that is told again later looks like a clock that was set; a lease is a secret.
    """
    body = msgspec.json.encode(value)
    return web.Response(body=body, status=status, content_type=_JSON, headers=_NO_STORE)


def error_answer(error: ApiError) -> web.Response:
    """Return an error in the form of all errors, which no cache on the way may keep either."""
    return web.Response(
        body=msgspec.json.encode(error.problem),
        status=error.status,
        content_type=PROBLEM,
        headers=_NO_STORE | error.headers,
    )


def connection_of(request: web.BaseRequest) -> Connection:
    """Return the connection that a request came in by."""
    connection = request.protocol
    assert isinstance(connection, Connection)
    return connection


async def read_body(request: web.Request) -> bytes | bytearray:
    """Return a request's body; raise ApiError(400, 408 or 413)."""
    try:
        return await connection_of(request).read_body(request)
    except BodyFailed as failed:
        raise ApiError(failed.status, failed.reason, failed.detail) from failed


class Gate:
    """Checks heads, and gives every error the same JSON form; `middleware` and `expects` use it."""

    def __init__(self, hosts: AllowedHosts, admission: Admission, body_bytes_max: int) -> None:
        self._hosts = hosts
        self._admission = admission
        self._body_bytes_max = body_bytes_max

    def check(self, request: web.BaseRequest) -> None:
        """Raise ApiError for a request that is refused by its head."""
        headers = request.headers
        self._check_host(request)
        origin = headers.get(hdrs.ORIGIN)
        if origin is not None and not is_same_origin(origin, headers.get(hdrs.HOST, "")):
            raise ApiError(*CROSS_ORIGIN)
        if request.method in (hdrs.METH_GET, hdrs.METH_HEAD):
            return
        if headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            raise ApiError(*CROSS_ORIGIN)
        codings = headers.getall(hdrs.CONTENT_ENCODING, ())
        if codings and any(each.strip().lower() not in _PLAIN for each in codings):
            detail = "send the body as it is, without a content encoding"
            raise ApiError(415, "CONTENT_ENCODING", detail)
        kind = headers.get(hdrs.CONTENT_TYPE)
        has_kind = kind is not None or request.can_read_body
        if kind != _JSON and has_kind and not _is_json(kind or ""):
            raise ApiError(415, "CONTENT_TYPE", f"a body is sent with content-type: {_JSON}")
        if (request.content_length or 0) > self._body_bytes_max:
            detail = f"a body has at most {self._body_bytes_max} bytes"
            raise ApiError(413, "REQUEST_ENTITY_TOO_LARGE", detail)

    def _check_host(self, request: web.BaseRequest) -> None:
        hosts = request.headers.getall(hdrs.HOST, ())
        if not hosts and request.version <= HttpVersion10:
            return  # no browser asks like this, a load balancer may
        if len(hosts) != 1:
            raise ApiError(400, "BAD_HOST", "a request has one host header")
        if names_another(request.raw_path, hosts[0]):
            raise ApiError(400, "BAD_HOST", "the request's target names another host")
        connection = connection_of(request)
        if hosts[0] == connection.good_host:
            return
        if not self._hosts.allows(hosts[0], connection.local_address):
            detail = "this server has another name (DURABILL_GATEWAY_ALLOWED_HOSTS lists more)"
            raise ApiError(403, "HOST_NOT_ALLOWED", detail)
        connection.good_host = hosts[0]

    async def expects(self, request: web.Request) -> Response | None:
        """Answer `Expect: 100-continue`: with an error at once, before the body is sent."""
        connection_of(request).request_begins()
        try:
            self.check(request)
            await self._admission.admit(request, connection_of(request).client)
            if request.headers.get(hdrs.EXPECT, "").lower() != "100-continue":
                raise ApiError(*UNEXPECTED)
        except ApiError as error:
            connection_of(request).request_ends(has_unread_body=True)
            response = error_answer(error)
            self._finish(request, response)
            response.force_close()
            return response
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0  # the answer itself has not begun
        return None

    @property
    def middleware(self) -> Any:
        """Return the aiohttp middleware that does all this around a handler."""

        @web.middleware
        async def guard(request: web.Request, handler: Handler) -> Response:
            connection = connection_of(request)
            connection.request_begins()
            try:
                response = await self._answer(request, handler)
            finally:
                connection.request_ends(has_unread_body=not request.content.is_eof())
            self._finish(request, response)
            return response

        return guard

    def _finish(self, request: web.Request, response: Response) -> None:
        response.headers[hdrs.SERVER] = SERVER_NAME  # aiohttp would tell its version
        self._admission.tell(request, response)

    async def _answer(self, request: web.Request, handler: Handler) -> Response:
        try:
            self.check(request)
            await self._admission.admit(request, connection_of(request).client)
            return await handler(request)
        except ApiError as error:
            return error_answer(error)
        except web.HTTPException as error:
            return _foreign(error)
        except Exception:
            log.exception("%s %s failed", request.method, request.rel_url.raw_path)
            return error_answer(ApiError(*OUR_FAULT))


def _is_json(content_type: str) -> bool:
    kind, _, parameters = content_type.partition(";")
    charset = parameters.strip().lower().removeprefix("charset=").strip('"')
    return kind.strip().lower() == _JSON and charset in ("", "utf-8", "utf8")


def _foreign(error: web.HTTPException) -> web.Response:
    """Return aiohttp's own error (404, 405) in our form."""
    headers = {}
    if isinstance(error, web.HTTPMethodNotAllowed):
        headers["allow"] = error.headers["allow"]
    detail = error.text or error.reason
    return error_answer(ApiError(error.status, reason_of(error.status), detail, headers=headers))
