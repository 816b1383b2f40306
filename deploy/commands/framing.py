"""`durabill schemas`, and which framing processes write: Avro's own, or that of a registry."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import typer

from durabill.deploy.commands.common import AS_JSON, REGISTRY, with_settings
from durabill.deploy.terminal import emit, say

if TYPE_CHECKING:
    from durabill.stream_processors.settings import Settings
    from durabill.stream_processors.worker.subjects import Standing

schemas_app = typer.Typer(
    no_args_is_help=True,
    help="Our schemas in a registry, for Kafka Connect and ksqlDB: `durabill schemas check`.",
)


def totals_framing(settings: "Settings") -> bytes:
    """Return what a total's value begins with; registers the schema where ids are asked for."""
    from durabill.schemas import TOTAL_HEADER, TOTAL_SCHEMA

    if settings.totals_framing != "confluent":
        return TOTAL_HEADER
    return _framing(settings, settings.totals_topic, TOTAL_SCHEMA)


def segments_framing(settings: "Settings") -> bytes:
    """Return what a segment's value begins with; registers the schema where ids are asked for."""
    from durabill.schemas import SEGMENT_HEADER, SEGMENT_SCHEMA

    if settings.segments_framing != "confluent":
        return SEGMENT_HEADER
    return _framing(settings, settings.segments_topic, SEGMENT_SCHEMA)


def _framing(settings: "Settings", topic: str, schema: Mapping[str, Any]) -> bytes:
    from durabill.schemas import registry_framing
    from durabill.stream_processors.worker.registry import registry_of
    from durabill.stream_processors.worker.subjects import registered, value_subject

    standing = registered(registry_of(settings), value_subject(topic), schema)
    assert standing.schema_id is not None
    return registry_framing(standing.schema_id)


@schemas_app.command("check")
@with_settings(*REGISTRY, "segments_topic", "totals_topic")
def check(settings: "Settings", as_json: AS_JSON = False) -> None:
    """Say which of our schemas the registry has, and whether it would take the others.

    Changes nothing. Exit code 1 if a schema is incompatible with what is registered.

        durabill schemas check --schema-registry-url https://registry.example
    """
    from durabill.stream_processors.worker.registry import registry_of
    from durabill.stream_processors.worker.subjects import State, look_up

    settings.require("schema_registry_url")
    registry = registry_of(settings)
    found = [look_up(registry, *each) for each in _subjects(settings)]
    _tell(found, as_json)
    if any(each.state is State.INCOMPATIBLE for each in found):
        raise typer.Exit(1)


@schemas_app.command("register")
@with_settings(*REGISTRY, "segments_topic", "totals_topic")
def register(settings: "Settings", as_json: AS_JSON = False) -> None:
    """Register our schemas, each under its topic's subject, where they are compatible.

    Workers and gateways that write a registry's framing do this themselves when they start; where
    they may not, do it beforehand by a user who may. Doing it again changes nothing.

        durabill schemas register --schema-registry-url https://registry.example
    """
    from durabill.stream_processors.worker.registry import registry_of
    from durabill.stream_processors.worker.subjects import registered

    settings.require("schema_registry_url")
    registry = registry_of(settings)
    _tell([registered(registry, *each) for each in _subjects(settings)], as_json)


def _subjects(settings: "Settings") -> list[tuple[str, Mapping[str, Any]]]:
    from durabill.schemas import SEGMENT_SCHEMA, TOTAL_SCHEMA
    from durabill.stream_processors.worker.subjects import value_subject

    return [
        (value_subject(settings.segments_topic), SEGMENT_SCHEMA),
        (value_subject(settings.totals_topic), TOTAL_SCHEMA),
    ]


def _tell(standings: "list[Standing]", as_json: bool) -> None:
    if as_json:
        subjects = [
            {
                "subject": each.subject,
                "state": each.state.name.lower(),
                "schema_id": each.schema_id,
                "why": each.why,
            }
            for each in standings
        ]
        emit({"subjects": subjects})
        return
    for each in standings:
        known = "" if each.schema_id is None else f", id {each.schema_id}"
        print(f"{each.subject}: {each.state.value}{known}")
        if each.why:
            say(f"  {each.why}")
