"""The one table of the gateway's routes: router, OpenAPI description and scopes are made from it.

A row says what a route is for, who may use it, and what it answers. `server.Gateway.handlers`
says, by the row's `operation`, what is called; `bind` refuses to serve where the two don't match.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from aiohttp import web

from durabill.producers.gateway.api import (
    Health,
    OrderAnswer,
    OrderGrant,
    OrderRequest,
    Segments,
    SegmentsAnswer,
    ServerTime,
)
from durabill.producers.gateway.client_reports import ClientsAnswer
from durabill.producers.gateway.key_sets import ReceiptKeys
from durabill.producers.gateway.problems import Problem, SegmentsProblem
from durabill.producers.gateway.upload_shapes import UploadRequest, UploadsAnswer

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Scope = Literal["report", "read", "admin"]


@dataclass(frozen=True, slots=True)
class Route:
    """One method of one path.

    `path` has its parameters in braces, as OpenAPI has. `scope` is what a caller must have, None
    where everybody may ask. `answers` has the shape of the body by status, or its content type
    where it has no shape of ours; `errors` the same of what comes besides `common_errors`.
    `body` is the shape of the request's body. `parameters` are names of `openapi.PARAMETERS`,
    besides those in the path.
    """

    method: Literal["GET", "POST", "PUT", "DELETE"]
    path: str
    operation: str
    summary: str
    answers: Mapping[int, Any]
    scope: Scope | None = None
    errors: Mapping[int, Any] = field(default_factory=dict)
    body: Any = None
    is_body_required: bool = True
    parameters: tuple[str, ...] = ()

    @property
    def common_errors(self) -> tuple[int, ...]:
        """The statuses that checks before the handler may give, and our own faults."""
        head = (400, 403, 500) if self.scope is None else (400, 401, 403, 429, 500, 503)
        return (*head, 408, 413, 415) if self.method in ("POST", "PUT") else head


ROUTES: tuple[Route, ...] = (
    Route(
        "POST",
        "/v1/orders",
        "startOrder",
        "Start a service: order number, server timestamp, report interval, lease",
        {201: OrderGrant},
        scope="report",
        errors=dict.fromkeys((409, 422, 429, 503), Problem),
        body=OrderRequest,
        is_body_required=False,
        parameters=("idempotency-key",),
    ),
    Route(
        "POST",
        "/v1/orders/{number}/lease",
        "renewLease",
        "Renew an order's lease, also one that has expired",
        {200: OrderGrant},
        scope="report",
        errors=dict.fromkeys((401, 422, 429), Problem),
        parameters=("lease",),
    ),
    Route(
        "GET",
        "/v1/orders/{number}",
        "getOrder",
        "The order's live interval table, or its total, in pages",
        {200: OrderAnswer},
        scope="read",
        errors=dict.fromkeys((404, 422, 429, 503), Problem),
        parameters=("limit", "after"),
    ),
    Route(
        "POST",
        "/v1/segments",
        "addUploads",
        "Upload segments of many orders: each has its own verdict, answered when Kafka has them",
        {200: UploadsAnswer},
        scope="report",
        errors=dict.fromkeys((401, 422, 429, 503), Problem),
        body=UploadRequest,
    ),
    Route(
        "POST",
        "/v1/orders/{number}/segments",
        "addSegments",
        "Upload one or many segments: all or nothing, answered when Kafka has acknowledged",
        {200: SegmentsAnswer},
        scope="report",
        errors={401: Problem, 422: SegmentsProblem, 429: Problem, 503: Problem},
        body=Segments,
        parameters=("lease",),
    ),
    Route(
        "GET",
        "/v1/clients",
        "getClients",
        "What the clients of this gateway say of themselves, the one that is worst off first",
        {200: ClientsAnswer},
        scope="admin",
        errors={429: Problem},
    ),
    Route(
        "GET",
        "/v1/receipt-keys",
        "getReceiptKeys",
        "The public keys that receipts are signed with, a JWK set",
        {200: ReceiptKeys},
    ),
    Route("GET", "/v1/time", "getTime", "The server's time", {200: ServerTime}),
    Route(
        "GET", "/healthz", "getHealth", "Is the process well?", {200: Health}, errors={503: Problem}
    ),
    Route(
        "GET", "/readyz", "getReadiness", "Is Kafka there?", {200: Health}, errors={503: Problem}
    ),
    Route("GET", "/openapi.json", "getOpenapi", "This description", {200: "application/json"}),
    Route("GET", "/docs", "getDocs", "This description, for people", {200: "text/html"}),
)
ROUTE_OF: Mapping[str, Route] = {each.operation: each for each in ROUTES}
"""The rows by their operation."""


def route_of(request: web.Request) -> Route | None:
    """Return the row that a request was routed by; None where there is no such route."""
    name = request.match_info.route.name
    return None if name is None else ROUTE_OF.get(name)


def bind(router: web.UrlDispatcher, handlers: Mapping[str, Handler], expects: Any) -> None:
    """Add every row to the router, with its handler; `expects` answers `Expect: 100-continue`.

    Raises ValueError unless each row has a handler, and each handler a row.
    """
    if handlers.keys() != ROUTE_OF.keys():
        odd = sorted(handlers.keys() ^ ROUTE_OF.keys())
        raise ValueError(f"a row without a handler, or a handler without a row: {', '.join(odd)}")
    for route in ROUTES:
        handler = handlers[route.operation]
        # Without a pattern of its own aiohttp's `{number}` takes no braces.
        path = route.path.replace("}", ":[^/]+}")
        resource = router.add_resource(path, name=route.operation)
        for method in ("GET", "HEAD") if route.method == "GET" else (route.method,):
            resource.add_route(method, handler, expect_handler=expects)
