"""`durabill order` asks all workers for the live state, as the gateway does."""

import http.server
import json
from contextlib import ExitStack
from typing import Any

import pytest

from durabill.deploy.commands.ask_workers import ask_workers
from durabill.schemas.order_state import OrderState
from durabill.schemas.web import problem
from tests.broker.gateway_kit import answer, serving
from tests.state_kit import a_state, as_json

TOKEN = "a-token-of-the-workers"
STATE = a_state("a/b")


def worker(status: int, body: Any) -> type[http.server.BaseHTTPRequestHandler]:
    """A stand-in that gives this answer to whoever has the token."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            assert self.path == "/orders/a%2Fb?limit=10000"
            if self.headers["authorization"] == f"Bearer {TOKEN}":
                answer(self, status, json.dumps(body).encode())
            else:
                answer(self, 401, json.dumps(refusal("TOKEN_NEEDED")).encode())

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    return Handler


def refusal(reason: str) -> dict[str, Any]:
    return problem(404, reason, f"it is {reason}")


OWNER = worker(200, as_json(STATE))
OLDER = worker(200, as_json(STATE) | {"source_offset": 3})
UNKNOWN = worker(404, refusal("UNKNOWN_ORDER"))
OTHER = worker(421, refusal("NOT_OWNED"))
BEHIND = worker(503, refusal("CATCHING_UP"))
NO_WORKER = worker(404, "Not Found")
ANOTHER = worker(200, {"phase": "OPEN"})
Handlers = list[type[http.server.BaseHTTPRequestHandler]]


@pytest.mark.parametrize(
    ("handlers", "state", "why"),
    [
        ([OTHER, OWNER, BEHIND], STATE, ""),
        ([OLDER, OWNER, OLDER], STATE, ""),
        ([OTHER, UNKNOWN, BEHIND], None, "does not know it"),
        ([OTHER, BEHIND], None, "it is CATCHING_UP"),
        ([NO_WORKER], None, "status 404"),
        ([ANOTHER], None, "no worker of this version"),
    ],
)
def test_the_owner_decides(handlers: Handlers, state: OrderState | None, why: str) -> None:
    with ExitStack() as stack:
        urls = [stack.enter_context(serving(each)) for each in handlers]
        found, reason = ask_workers([*urls, "http://127.0.0.1:1/"], TOKEN, "a/b")
    assert state == found
    assert why in reason
    assert bool(why) == bool(reason)


def test_a_token_that_is_missing_is_told() -> None:
    with serving(OWNER) as url:
        found, reason = ask_workers([url], "", "a/b")
    assert found is None
    assert "DURABILL_WORKER_TOKEN" in reason
    assert ask_workers([], TOKEN, "a/b") == (None, "no worker is known (DURABILL_WORKER_URLS)")
