"""The gateway's description for machines, OpenAPI 3.1, and its page for people."""

from html import escape
from typing import Any

import msgspec

from durabill.producers.gateway.api import (
    NO_CONTROLS,
    Health,
    OrderAnswer,
    OrderGrant,
    OrderRequest,
    SegmentRequest,
    Segments,
    SegmentsAnswer,
    ServerTime,
)
from durabill.producers.gateway.problems import Problem, SegmentsProblem
from durabill.schemas.web import PAGE_DEFAULT, PAGE_MAX, PROBLEM

_SHAPES = (
    OrderRequest,
    OrderGrant,
    SegmentRequest,
    SegmentsAnswer,
    ServerTime,
    OrderAnswer,
    Health,
    Problem,
    SegmentsProblem,
    Segments,
)
_NUMBER = {
    "name": "number",
    "in": "path",
    "required": True,
    "description": "the service order number, percent-encoded; in UTF-8 at most 64 bytes",
    "schema": {"type": "string", "minLength": 1, "maxLength": 64, "pattern": NO_CONTROLS},
}
_PAGE = [
    {
        "name": "limit",
        "in": "query",
        "description": "at most so many intervals, and so many ranges of missing numbers",
        "schema": {
            "type": "integer",
            "minimum": 1,
            "maximum": PAGE_MAX,
            "default": PAGE_DEFAULT,
        },
    },
    {
        "name": "after",
        "in": "query",
        "description": "the page after this one: what `next` of the page before says",
        "schema": {"type": "string", "pattern": r"^(-1|\d{1,19})\.\d{1,19}$"},
    },
]


def openapi() -> dict[str, Any]:
    """Return the OpenAPI 3.1 description of the gateway."""
    schemas, components = msgspec.json.schema_components(
        _SHAPES, ref_template="#/components/schemas/{name}"
    )
    # Whole numbers are taken as 2 and as 2.0, which JSON Schema calls an integer.
    for name in ("business_data_number", "start_ms", "end_ms"):
        shape = components["SegmentRequest"]["properties"][name]
        del shape["anyOf"]
        shape["type"] = "integer"
    one_or_many = schemas[-1]
    order = {
        "post": _operation(
            "startOrder",
            "Start a service: order number, server timestamp, report interval",
            {201: "OrderGrant"} | dict.fromkeys((*_BODY_STATUSES, 422), "Problem"),
            body={"$ref": "#/components/schemas/OrderRequest"},
            body_required=False,
        )
    }
    one = {
        "parameters": [_NUMBER],
        "get": _operation(
            "getOrder",
            "The order's live interval table, or its total, in pages",
            {200: "OrderAnswer"} | dict.fromkeys((403, 404, 422, 503), "Problem"),
            parameters=_PAGE,
        ),
    }
    errors = dict.fromkeys((*_BODY_STATUSES, 429, 503), "Problem")
    answers = {200: "SegmentsAnswer", 422: "SegmentsProblem"} | errors
    segments = {
        "parameters": [_NUMBER],
        "post": _operation(
            "addSegments",
            "Upload one or many segments: all or nothing, answered when Kafka has acknowledged",
            answers,
            body=one_or_many,
        ),
    }
    time = _operation("getTime", "The server's time", {200: "ServerTime"})
    live = _operation("getHealth", "Is the process well?", {200: "Health", 503: "Problem"})
    ready = _operation("getReadiness", "Is Kafka there?", {200: "Health", 503: "Problem"})
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Durabill gateway",
            "version": "1",
            "description": "Takes the segments of metered services and gives their totals.",
        },
        "paths": {
            "/v1/orders": order,
            "/v1/orders/{number}": one,
            "/v1/orders/{number}/segments": segments,
            "/v1/time": {"get": time},
            "/healthz": {"get": live},
            "/readyz": {"get": ready},
        },
        "components": {"schemas": components},
    }


_BODY_STATUSES = (400, 403, 408, 413, 415)
_STATUS_TEXTS = {
    200: "done",
    201: "made",
    400: "the body can't be read",
    403: "asked by a web page of somebody else, or under a name that isn't this server's",
    404: "no such order",
    408: "the body did not come in time",
    413: "the body is too large, or has too many segments: send them in parts",
    415: "the body is no plain application/json",
    422: "the rules are broken, nothing was stored. Some of them no schema can tell: a segment may "
    "not end before it starts, nor be empty unless it has the end identifier",
    429: "too many segments of this client wait for Kafka, see Retry-After",
    503: "not now, see Retry-After",
}


def _operation(
    name: str,
    summary: str,
    answers: dict[int, str],
    *,
    body: dict[str, Any] | None = None,
    body_required: bool = True,
    parameters: list[dict[str, Any]] | None = None,
) -> dict[str, Any]:
    def content(schema: dict[str, Any], kind: str = "application/json") -> dict[str, Any]:
        return {kind: {"schema": schema}}

    responses = {
        str(status): {
            "description": _STATUS_TEXTS[status],
            "content": content(
                {"$ref": f"#/components/schemas/{shape}"},
                PROBLEM if status >= 400 else "application/json",
            ),
        }
        for status, shape in answers.items()
    }
    operation: dict[str, Any] = {"operationId": name, "summary": summary, "responses": responses}
    if parameters is not None:
        operation["parameters"] = parameters
    if body is not None:
        operation["requestBody"] = {"required": body_required, "content": content(body)}
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
        (content,) = response["content"].values()
        name = content["schema"]["$ref"].rpartition("/")[2]
        items.append(f'<li>{status}: {response["description"]}, <a href="#{name}">{name}</a></li>')
    return f"{asked}<ul>{''.join(items)}</ul>"


def _pretty(value: object) -> str:
    return escape(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())
