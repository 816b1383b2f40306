"""A fuzzer that knows the OpenAPI description alone: every answer is one that it tells of.

schemathesis makes requests that fit the description and requests that don't; the dice are the same
in every run. For a longer one: `st run http://127.0.0.1:8080/openapi.json`.
"""

import copy
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
import requests
import schemathesis
from confluent_kafka.admin import AdminClient, NewTopic
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from schemathesis.config import SchemathesisConfig
from schemathesis.core.failures import FailureGroup

from durabill.producers.gateway.openapi import openapi
from durabill.producers.gateway.routes import ROUTE_OF, Route
from durabill.producers.gateway.server import GatewayConfig
from tests.broker.gateway_kit import gateway
from tests.waiting import HANG_S

EXAMPLES = 10
CONFIG = SchemathesisConfig.from_dict(
    # What is too large is refused for that, whatever else is wrong with it.
    {"checks": {"negative_data_rejection": {"expected-statuses": ["4xx", "503"]}}}
)
CHECKS = [
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
BY_ITSELF = "addUploads"
"""Refuses each bad segment by itself, with a verdict in a 200."""


@pytest.fixture(scope="module")
def base_url(bootstrap_servers: str) -> Iterator[str]:
    kafka: dict[str, Any] = {"bootstrap.servers": bootstrap_servers}
    topic = f"{uuid.uuid4().hex[:8]}.segments"
    admin = AdminClient(kafka)
    for made in admin.create_topics([NewTopic(topic, 4, 1)], operation_timeout=HANG_S).values():
        made.result(HANG_S)
    with gateway(GatewayConfig(kafka, topic)) as url:
        yield url
    for gone in admin.delete_topics([topic]).values():
        gone.result(HANG_S)


def operations(document: dict[str, Any]) -> dict[str, Any]:
    """Return what schemathesis makes of a description, by operation."""
    schema = schemathesis.openapi.from_dict(document, config=CONFIG)
    results: list[Any] = list(schema.get_all_operations())
    found = [each.ok() for each in results]
    return {each.definition.raw["operationId"]: each for each in found}


OPERATIONS = operations(openapi())


def test_the_description_is_openapi_and_has_all_operations() -> None:
    schemathesis.openapi.from_dict(openapi()).validate()
    assert OPERATIONS.keys() == ROUTE_OF.keys()


def has_input(route: Route) -> bool:
    """Tell whether a request can be wrong."""
    return "{" in route.path or bool(route.parameters) or route.body is not None


CASES = [
    pytest.param(route.operation, mode, id=f"{route.operation}-{mode.value}")
    for route in ROUTE_OF.values()
    for mode in GenerationMode
    if mode is GenerationMode.POSITIVE or has_input(route)
]


@pytest.mark.parametrize(("name", "mode"), CASES)
def test_every_answer_is_described(name: str, mode: GenerationMode, base_url: str) -> None:
    more = [] if name == BY_ITSELF else [negative_data_rejection]
    fuzz(OPERATIONS[name], mode, base_url, [*CHECKS, *more])


def test_an_answer_that_is_not_described_is_noticed(base_url: str) -> None:
    document = copy.deepcopy(openapi())
    del document["paths"]["/v1/orders"]["post"]["responses"]["400"]
    with pytest.raises(FailureGroup, match="Undocumented status code"):
        fuzz(operations(document)["startOrder"], GenerationMode.NEGATIVE, base_url, CHECKS)


def fuzz(operation: Any, mode: GenerationMode, base_url: str, checks: list[Any]) -> None:
    """Send some requests of an operation, and check each answer; none may be our own fault."""
    with requests.Session() as session:

        @settings(
            max_examples=EXAMPLES,
            derandomize=True,
            database=None,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy(mode))
        def run(case: Any) -> None:
            response = case.call(base_url=base_url, session=session, timeout=30)
            case.validate_response(response, checks=checks)
            assert response.status_code != 500

        run()
