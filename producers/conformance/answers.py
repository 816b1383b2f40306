"""Answers: the gateway's own, and those of whoever else may stand in the way. Pure."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from http import HTTPStatus
from typing import Any

ELSEWHERE = "/conformance/elsewhere"
"""Where a redirect points: nothing there is a gateway."""


class Cut(StrEnum):
    """When the connection is cut."""

    NEVER = "never"
    BEFORE = "before the answer"
    WITHIN = "within the answer"


@dataclass(frozen=True, slots=True)
class Answer:
    """What goes out: after `delay_s`, whole or cut."""

    status: int
    body: bytes = b""
    content_type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)
    delay_s: float = 0.0
    cut: Cut = Cut.NEVER


def of_json(value: Any, status: int = 200) -> Answer:
    """Return a value as JSON."""
    return Answer(status, json.dumps(value).encode())


def problem(status: int, reason: str, detail: str, **headers: str) -> Answer:
    """Return an error of the gateway's own; in names of headers an underscore is a hyphen."""
    body = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        "reason": reason,
    }
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Answer(status, json.dumps(body).encode(), "application/problem+json", named)


def page(status: int, title: str, **headers: str) -> Answer:
    """Return a page of HTML, as a proxy or a captive portal has it."""
    text = f"<html><head><title>{title}</title></head><body><h1>{title}</h1></body></html>"
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Answer(status, text.encode(), "text/html", named)


def login_page() -> Answer:
    """Return what a captive portal says to everything."""
    return page(200, "Please log in")


def proxy_json() -> Answer:
    """Return an error in JSON that is no gateway's: it has no reason."""
    return of_json({"error": "Unprocessable Entity", "code": 422}, 422)
