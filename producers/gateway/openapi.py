"""The gateway's description for machines, OpenAPI 3.1, and its page for people."""

import re
from html import escape
from typing import Any

import msgspec

from durabill.producers.gateway.api import NO_CONTROLS
from durabill.producers.gateway.leases import LEASE_CHARS_MAX
from durabill.producers.gateway.problems import Problem
from durabill.producers.gateway.routes import ROUTES, Route
from durabill.producers.gateway.starts import KEY_CHARS_MAX
from durabill.schemas.web import PAGE_DEFAULT, PAGE_MAX, PROBLEM

PARAMETERS: dict[str, dict[str, Any]] = {
    "number": {
        "name": "number",
        "in": "path",
        "required": True,
        "description": "the service order number, percent-encoded; in UTF-8 at most 64 bytes",
        "schema": {"type": "string", "minLength": 1, "maxLength": 64, "pattern": NO_CONTROLS},
    },
    "limit": {
        "name": "limit",
        "in": "query",
        "description": "at most so many intervals, and so many ranges of missing numbers",
        "schema": {"type": "integer", "minimum": 1, "maximum": PAGE_MAX, "default": PAGE_DEFAULT},
    },
    "after": {
        "name": "after",
        "in": "query",
        "description": "the page after this one: what `next` of the page before says",
        "schema": {"type": "string", "pattern": r"^(-1|\d{1,19})\.\d{1,19}$"},
    },
    "lease": {
        "name": "Lease",
        "in": "header",
        "description": "the order's lease; needed where the gateway says so (LEASE_MISSING)",
        "schema": {"type": "string", "maxLength": LEASE_CHARS_MAX},
    },
    "idempotency-key": {
        "name": "Idempotency-Key",
        "in": "header",
        "description": "the same key gives the same order again; a new one for each start",
        "schema": {
            "type": "string",
            "minLength": 1,
            "maxLength": KEY_CHARS_MAX,
            "pattern": "^[!-~]+$",
        },
    },
}
_BEARER = {
    "type": "http",
    "scheme": "bearer",
    "description": "an API key, or an access token of RFC 9068; each route names the scope that it "
    "needs. Without authentication, as on the loopback, nothing is asked for",
}
_STATUS_TEXTS = {
    200: "done",
    201: "made",
    400: "the request can't be read",
    401: "who are you? See WWW-Authenticate: the lease, or its bearer, isn't one that is taken",
    403: "asked by a web page of somebody else, under a name that isn't this server's, or for what "
    "isn't yours",
    404: "no such order",
    408: "the body did not come in time",
    409: "this order number is in use",
    413: "the body is too large, or has too many segments: send them in parts",
    415: "the body is no plain application/json",
    422: "the rules are broken, nothing was stored. Some of them no schema can tell: a segment may "
    "not end before it starts, nor be empty unless it has the end identifier",
    429: "too much of this client or its tenant is under way, see Retry-After",
    500: "our fault",
    503: "not now, see Retry-After",
}
_RETRY_AFTER = {
    "retry-after": {
        "description": "so many seconds at least before the next try",
        "schema": {"type": "string", "pattern": r"^\d+$"},
    }
}
_HEADERS: dict[int, dict[str, Any]] = {
    401: {
        "www-authenticate": {
            "description": "how to say who asks, and what is wrong with what was said",
            "schema": {"type": "string"},
        }
    },
    429: _RETRY_AFTER,
    503: _RETRY_AFTER,
}


def openapi() -> dict[str, Any]:
    """Return the OpenAPI 3.1 description of the gateway, made from the table of routes."""
    named = [shape for route in ROUTES for shape in _shapes_of(route)]
    shapes = list(dict.fromkeys([*named, Problem]))
    schemas, components = msgspec.json.schema_components(
        shapes, ref_template="#/components/schemas/{name}"
    )
    # Whole numbers are taken as 2 and as 2.0, which JSON Schema calls an integer.
    for segment in ("SegmentRequest", "UploadSegment"):
        for name in ("business_data_number", "start_ms", "end_ms"):
            shape = components[segment]["properties"][name]
            del shape["anyOf"]
            shape["type"] = "integer"
    in_short = components["Upload"]["properties"]["segments"]["items"]["anyOf"][0]
    in_short["prefixItems"] = [{"type": "integer"}] * 3 + [{"type": "boolean"}]
    # What can't be read of it is ignored, so anything is taken.
    components["UploadRequest"]["properties"]["client"]["anyOf"].append({})
    schema_of = dict(zip(shapes, schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for route in ROUTES:
        item = paths.setdefault(route.path, {})
        if in_path := re.findall(r"\{(\w+)\}", route.path):
            item["parameters"] = [PARAMETERS[name] for name in in_path]
        item[route.method.lower()] = _operation(route, schema_of)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Durabill gateway",
            "version": "1",
            "description": "Takes the segments of metered services and gives their totals. Every "
            "error is a problem of RFC 9457, also the 404 and 405 of other paths and methods.",
        },
        "paths": paths,
        "components": {"schemas": components, "securitySchemes": {"bearer": _BEARER}},
    }


def _shapes_of(route: Route) -> list[Any]:
    told = (*route.answers.values(), *route.errors.values())
    answers = [shape for shape in told if not isinstance(shape, str)]
    return answers if route.body is None else [route.body, *answers]


def _operation(route: Route, schema_of: dict[Any, Any]) -> dict[str, Any]:
    responses: dict[str, Any] = {}
    for status, shape in route.answers.items():
        is_ours = not isinstance(shape, str)
        content = {"application/json": {"schema": schema_of[shape]}} if is_ours else {shape: {}}
        responses[str(status)] = {"description": _STATUS_TEXTS[status], "content": content}
    for status in sorted({*route.common_errors, *route.errors}):
        shape = route.errors.get(status, Problem)
        content = {PROBLEM: {"schema": schema_of[shape]}}
        responses[str(status)] = {"description": _STATUS_TEXTS[status], "content": content}
        if status in _HEADERS:
            responses[str(status)]["headers"] = _HEADERS[status]
    operation: dict[str, Any] = {
        "operationId": route.operation,
        "summary": route.summary,
        "responses": responses,
    }
    if route.scope is not None:
        # The second: nobody is asked who he is where authentication is off.
        operation["security"] = [{"bearer": [route.scope]}, {}]
    if route.parameters:
        operation["parameters"] = [PARAMETERS[name] for name in route.parameters]
    if route.body is not None:
        content = {"application/json": {"schema": schema_of[route.body]}}
        operation["requestBody"] = {"required": route.is_body_required, "content": content}
    return operation


_HTML = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto }}
code, pre {{ font: 14px/1.4 ui-monospace, monospace }}
pre {{ background: #8882; padding: .7rem; overflow: auto }}
h2 b {{ text-transform: uppercase; font-size: .8em; color: #05a }}
</style></head><body><h1>{title}</h1><p>{description} Machines read
<a href="openapi.json">openapi.json</a>.</p>{operations}<h1>Shapes</h1>{shapes}</body></html>
"""


def docs_page() -> str:
    """Return a self-contained HTML page that shows `openapi()`: it loads nothing from anywhere."""
    document = openapi()
    operations = [
        f"<h2><b>{method}</b> <code>{escape(path)}</code></h2><p>{escape(operation['summary'])}</p>"
        + _listed(operation)
        for path, item in document["paths"].items()
        for method, operation in item.items()
        if method != "parameters"
    ]
    shapes = [
        f'<h3 id="{name}">{name}</h3><pre>{_pretty(shape)}</pre>'
        for name, shape in document["components"]["schemas"].items()
    ]
    info = document["info"]
    return _HTML.format(
        title=escape(info["title"]),
        description=escape(info["description"]),
        operations="".join(operations),
        shapes="".join(shapes),
    )


def _listed(operation: dict[str, Any]) -> str:
    body = operation.get("requestBody")
    asked = f"<p>Body:</p><pre>{_pretty(body['content'])}</pre>" if body else ""
    items = []
    for status, response in operation["responses"].items():
        ((content_type, content),) = response["content"].items()
        name = content.get("schema", {}).get("$ref", content_type).rpartition("/schemas/")[2]
        shape = f'<a href="#{name}">{name}</a>' if "schema" in content else escape(name)
        items.append(f"<li>{status}: {response['description']}, {shape}</li>")
    return f"{asked}<ul>{''.join(items)}</ul>"


def _pretty(value: object) -> str:
    return escape(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())
