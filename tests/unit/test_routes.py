"""One table of routes: the router has what it has, and the description as well."""

import pytest
from aiohttp import web

from durabill.producers.gateway.openapi import openapi
from durabill.producers.gateway.routes import ROUTE_OF, ROUTES, Handler, bind
from durabill.producers.gateway.server import GatewayConfig, make_app

CONFIG = GatewayConfig({"bootstrap.servers": "127.0.0.1:1"})


async def nothing(_: web.Request) -> web.Response:
    """A handler."""
    return web.Response()


def test_router_and_description_have_every_row_and_nothing_else() -> None:
    rows = {(each.method, each.path) for each in ROUTES}
    routed = {
        (each.method, each.resource.canonical)
        for each in make_app(CONFIG).router.routes()
        if each.resource is not None
    }
    assert {each for each in routed if each[0] != "HEAD"} == rows
    assert {path for method, path in routed if method == "HEAD"} == {
        path for method, path in rows if method == "GET"
    }
    described = {
        (method.upper(), path)
        for path, item in openapi()["paths"].items()
        for method in item
        if method != "parameters"
    }
    assert described == rows


def test_the_description_names_the_scope_of_each_route() -> None:
    paths = openapi()["paths"]
    for route in ROUTES:
        told = paths[route.path][route.method.lower()]
        expected = None if route.scope is None else [{"bearer": [route.scope]}, {}]
        assert told.get("security") == expected
        assert ("401" in told["responses"]) == (route.scope is not None)


def test_operations_have_names_of_their_own() -> None:
    assert len(ROUTE_OF) == len(ROUTES)


def test_what_is_no_pair_is_refused() -> None:
    handlers: dict[str, Handler] = dict.fromkeys(ROUTE_OF, nothing)
    bind(web.UrlDispatcher(), handlers, None)
    del handlers["getTime"]
    with pytest.raises(ValueError, match="getTime"):
        bind(web.UrlDispatcher(), handlers, None)
    with pytest.raises(ValueError, match="getTide"):
        bind(web.UrlDispatcher(), dict.fromkeys([*ROUTE_OF, "getTide"], nothing), None)


def test_the_description_tells_which_scope_an_operation_needs() -> None:
    document = openapi()
    assert set(document["components"]["securitySchemes"]) == {"bearer"}
    for route in ROUTES:
        told = document["paths"][route.path][route.method.lower()].get("security")
        assert told == (None if route.scope is None else [{"bearer": [route.scope]}, {}])


def test_every_error_is_a_problem() -> None:
    for item in openapi()["paths"].values():
        for method, operation in item.items():
            for status, response in (
                operation["responses"].items() if method != "parameters" else ()
            ):
                is_problem = list(response["content"]) == ["application/problem+json"]
                assert is_problem == (int(status) >= 400)
