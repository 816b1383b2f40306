"""Lets a request in: who asks, whether its route's scope is theirs, and whether it is too often."""

import logging

from aiohttp import hdrs, web

from durabill.producers.gateway.auth.access import Access, Refused
from durabill.producers.gateway.auth.gcra import NS_PER_S, Policy, Taken
from durabill.producers.gateway.caller import Caller, has_caller, set_caller
from durabill.producers.gateway.damping import Damper
from durabill.producers.gateway.problems import ApiError
from durabill.producers.gateway.routes import route_of
from durabill.schemas.order_opened import DEFAULT_TENANT

log = logging.getLogger(__name__)

_LIMIT_NAME = '"caller"'
_TAKEN = web.RequestKey("durabill.taken", Taken)
_NOBODY: frozenset[str] = frozenset()


class Admission:
    """Says of each request who asks, or refuses it."""

    def __init__(self, access: Access, damper: Damper | None = None) -> None:
        self._access = access
        self._damper = Damper(log) if damper is None else damper
        policy: Policy | None = None if access.requests is None else access.requests.policy
        self._policy_text = (
            ""
            if policy is None
            else f"{_LIMIT_NAME};q={policy.quota};w={policy.window_ns // NS_PER_S}"
        )

    async def admit(self, request: web.Request, address: str) -> None:
        """Set the request's caller; raise ApiError(400, 401, 403, 429 or 503) for one refused.

        A route without a scope is open to all: its caller has no name and may do nothing else. What
        is no route has its 404 before anything is asked.
        """
        if has_caller(request):
            return  # before its body was sent, see `Expect`
        route = route_of(request)
        if route is None or (route.scope is None and not self._access.is_open):
            set_caller(request, Caller(DEFAULT_TENANT, address, _NOBODY))
            return
        shown = request.headers.getall(hdrs.AUTHORIZATION, ())
        try:
            caller = await self._access.caller(shown, address)
        except Refused as refused:
            if shown:
                text = "%s is not let in: %s %s"
                told = (address or "somebody", refused.reason, refused.detail)
                self._damper.warning("refused", text, *told)  # of all addresses, or it floods
            raise _answer_to(refused) from refused
        set_caller(request, caller)
        taken = self._access.count(caller)
        if taken is not None:
            request[_TAKEN] = taken
            if not taken.is_allowed:
                raise _too_often(taken)
        if route.scope is not None and route.scope not in caller.scopes:
            raise _out_of_scope(route.scope)

    def tell(self, request: web.Request, response: web.StreamResponse) -> None:
        """Say in an answer how much of the caller's limit is left."""
        taken = request.get(_TAKEN)
        if taken is not None:
            reset_s = -(-taken.reset_ns // NS_PER_S)
            response.headers["RateLimit-Policy"] = self._policy_text
            response.headers["RateLimit"] = f"{_LIMIT_NAME};r={taken.remaining};t={reset_s}"


def _answer_to(refused: Refused) -> ApiError:
    challenge = refused.challenge
    return ApiError(
        refused.status,
        refused.reason,
        refused.detail,
        retry_after_s=refused.retry_after_s,
        headers=None if challenge is None else {hdrs.WWW_AUTHENTICATE: challenge},
    )


def _too_often(taken: Taken) -> ApiError:
    detail = "this caller asks more often than it may, see RateLimit-Policy"
    return ApiError(429, "TOO_MANY_REQUESTS", detail, retry_after_s=taken.retry_after_s)


def _out_of_scope(scope: str) -> ApiError:
    challenge = f'Bearer error="insufficient_scope", scope="{scope}"'
    detail = f"this key or token is not for that: it needs the scope {scope}"
    return ApiError(403, "INSUFFICIENT_SCOPE", detail, headers={hdrs.WWW_AUTHENTICATE: challenge})
