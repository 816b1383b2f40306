"""Who asks: every request has a caller, whatever found out who it is.

A middleware says so once a request's head is checked, before its handler runs; a handler asks with
`caller_of`. Without authentication everybody is the default tenant, and may do everything.
"""

from dataclasses import dataclass
from typing import Final

from aiohttp import web

REPORT: Final = "report"
READ: Final = "read"
ADMIN: Final = "admin"
ALL_SCOPES = frozenset({REPORT, READ, ADMIN})
"""What a caller may be allowed: to start orders and report segments, to read what its own orders
come to, and to read those of every tenant."""

DEFAULT_TENANT = "default"
"""The tenant of all orders where there is no authentication."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks: `tenant` is whose orders these are, `client` who of them, for people to read.

    `key_id` names what showed who it is (an API key's id, or a token's client), and is empty
    without authentication. None of it is a secret.
    """

    tenant: str
    client: str
    scopes: frozenset[str]
    key_id: str = ""

    @property
    def is_admin(self) -> bool:
        """Whether it may see the orders of every tenant."""
        return ADMIN in self.scopes

    @property
    def is_known(self) -> bool:
        """Whether anything has shown who it is."""
        return self.key_id != ""


_CALLER = web.RequestKey("durabill.caller", Caller)


def set_caller(request: web.BaseRequest, caller: Caller) -> None:
    """Say who asks. For the middleware."""
    request[_CALLER] = caller


def caller_of(request: web.BaseRequest) -> Caller:
    """Return who asks. For handlers, which run after the middleware alone."""
    return request[_CALLER]
