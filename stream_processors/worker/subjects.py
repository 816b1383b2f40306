"""Subjects of a schema registry: under which id a schema of ours is known, and how it gets one.

A topic's values have the subject `TOPIC-value` (Confluent's TopicNameStrategy, which Kafka Connect
and ksqlDB look for). A schema is registered only where the registry calls it compatible with the
subject's latest version; a registry that sets compatibility to NONE calls everything so.
"""

import json
from collections.abc import Mapping
from enum import Enum
from typing import Any, NamedTuple
from urllib.parse import quote

from durabill.schemas.errors import ContractError, UnreachableError
from durabill.schemas.limits import SCHEMA_ID_MAX
from durabill.stream_processors.worker.registry import NoAnswer, Registry, RegistryAnswer

_NOT_THERE = (40401, 40402, 40403)
"""Confluent's codes for a subject, a version and a schema that a registry doesn't know."""


class State(Enum):
    """How a schema stands under a subject."""

    REGISTERED = "registered"
    NEW = "not registered yet"
    INCOMPATIBLE = "incompatible with the latest version"


class Standing(NamedTuple):
    """How a schema stands under a subject; it has an id where it is registered."""

    subject: str
    state: State
    schema_id: int | None = None
    why: str = ""


def value_subject(topic: str) -> str:
    """Return the subject of a topic's values."""
    return f"{topic}-value"


def look_up(registry: Registry, subject: str, schema: Mapping[str, Any]) -> Standing:
    """Return how a schema stands under a subject; nothing is changed.

    Raises UnreachableError where the registry doesn't say.
    """
    path, body = f"/subjects/{quote(subject, safe='')}", {"schema": json.dumps(schema)}
    answer = _call(registry, "POST", path, body)
    if answer.status == 200:
        return Standing(subject, State.REGISTERED, _id_in(registry, answer))
    _expect_absence(registry, answer)
    checked = f"/compatibility{path}/versions/latest?verbose=true"
    answer = _call(registry, "POST", checked, body)
    if answer.status != 200:
        _expect_absence(registry, answer)
        return Standing(subject, State.NEW)  # the subject's first version
    is_compatible = answer.content.get("is_compatible") if _is_object(answer) else None
    if not isinstance(is_compatible, bool):
        raise _no_answer(registry, answer.message)
    if is_compatible:
        return Standing(subject, State.NEW)
    messages = answer.content.get("messages")
    why = "; ".join(map(str, messages))[:1000] if isinstance(messages, list) else ""
    return Standing(subject, State.INCOMPATIBLE, why=why)


def registered(registry: Registry, subject: str, schema: Mapping[str, Any]) -> Standing:
    """Return a schema's standing with its id; register it where it is new and compatible.

    Raises ContractError where it is incompatible, or the registry refuses it; UnreachableError
    where it doesn't say.
    """
    standing = look_up(registry, subject, schema)
    if standing.state is State.INCOMPATIBLE:
        raise ContractError(
            f"The schema registry at {registry.address} has another schema under {subject}, with"
            f" which ours is not compatible ({standing.why or 'it does not say why'}). Somebody"
            " else uses the subject: give the topic another name, or delete that schema"
        )
    if standing.state is State.REGISTERED:
        return standing
    path, body = f"/subjects/{quote(subject, safe='')}/versions", {"schema": json.dumps(schema)}
    answer = _call(registry, "POST", path, body)
    if answer.status in (409, 422):
        raise ContractError(
            f"The schema registry at {registry.address} does not take our schema under {subject}:"
            f" {answer.message}"
        )
    if answer.status != 200:
        raise _no_answer(registry, answer.message)
    return Standing(subject, State.REGISTERED, _id_in(registry, answer))


def _call(registry: Registry, method: str, path: str, body: Any) -> RegistryAnswer:
    try:
        return registry.call(method, path, body)
    except NoAnswer as error:
        raise _no_answer(registry, str(error)) from error


def _id_in(registry: Registry, answer: RegistryAnswer) -> int:
    schema_id = answer.content.get("id") if _is_object(answer) else None
    if not isinstance(schema_id, int) or not 1 <= schema_id <= SCHEMA_ID_MAX:
        raise _no_answer(registry, f"{answer.message}, and no id of a schema in it")
    return schema_id


def _expect_absence(registry: Registry, answer: RegistryAnswer) -> None:
    if answer.status != 404 or answer.error_code not in _NOT_THERE:
        raise _no_answer(registry, answer.message)


def _is_object(answer: RegistryAnswer) -> bool:
    return isinstance(answer.content, dict)


def _no_answer(registry: Registry, why: str) -> UnreachableError:
    return UnreachableError(
        f"The schema registry at {registry.address} (DURABILL_SCHEMA_REGISTRY_URL) gives no answer"
        f" that can be used: {why}"
    )
