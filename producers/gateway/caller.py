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
    def sees_only(self) -> str | None:
        """The tenant whose orders it sees alone, None if it sees everybody's."""
        return None if ADMIN in self.scopes else self.tenant

    @property
    def is_known(self) -> bool:
        """Whether anything has shown who it is."""
        return self.key_id != ""

    @property
    def counted_as(self) -> tuple[str, str | None]:
        """Whom limits count it for: its tenant; where nothing has shown who it is, its address."""
        return self.tenant, None if self.is_known else self.client


_CALLER = web.RequestKey("durabill.caller", Caller)


def set_caller(request: web.BaseRequest, caller: Caller) -> None:
    """Say who asks. For the middleware."""
    request[_CALLER] = caller


def has_caller(request: web.BaseRequest) -> bool:
    """Tell whether it is known by now who asks."""
    return _CALLER in request


def caller_of(request: web.BaseRequest) -> Caller:
    """Return who asks. For handlers, which run after the middleware alone."""
    return request[_CALLER]
