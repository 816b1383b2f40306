"""The Kafka contract for machines is made from the program, and docs/asyncapi.json is it."""

import json
import shutil
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest

from durabill.deploy.asyncapi import CHANNELS, INTERNAL_ROLES, MESSAGES, asyncapi
from durabill.deploy.topics import topic_settings
from durabill.schemas.errors import Reason
from durabill.stream_processors.settings import Settings
from tests.contract.clients_kit import CannotBuild, built, run, tool
from tests.unit.documents import text_of

TOPICS = Settings().all_topics
DOCUMENT = asyncapi(TOPICS)


def test_the_committed_document_is_the_program_s() -> None:
    assert json.loads(text_of("docs/asyncapi.json")) == DOCUMENT, "durabill asyncapi"


def test_every_topic_is_there_but_the_internal_one() -> None:
    assert CHANNELS.keys() == TOPICS.by_role.keys() - set(INTERNAL_ROLES)
    addresses = {role: each["address"] for role, each in DOCUMENT["channels"].items()}
    assert addresses == {role: TOPICS.by_role[role] for role in CHANNELS}
    for role, each in DOCUMENT["channels"].items():
        told = each["bindings"]["kafka"]["topicConfiguration"]
        assert told.keys() == topic_settings(role).keys()


def references(value: Any) -> set[str]:
    """Return all that a document refers to."""
    if isinstance(value, dict):
        own = {value["$ref"]} if "$ref" in value else set[str]()
        return own.union(*(references(each) for each in value.values()))
    return set[str]().union(*map(references, value)) if isinstance(value, list) else set()


def test_what_is_referred_to_is_there() -> None:
    for reference in references(DOCUMENT):
        place: Any = DOCUMENT
        for part in reference.removeprefix("#/").split("/"):
            place = place[part]
        assert place
    used = {each for channel in CHANNELS.values() for each in (*channel.takes, *channel.gives)}
    assert used == {each.name for each in MESSAGES}


def test_every_schema_and_every_reason_is_told() -> None:
    schemas = (Path(__file__).resolve().parents[2] / "schemas").glob("*.avsc")
    known = {json.loads(path.read_text())["name"] for path in schemas}
    payloads = [each["payload"] for each in DOCUMENT["components"]["messages"].values()]
    assert {each["schema"]["name"] for each in payloads if "schema" in each} == known
    letter = DOCUMENT["components"]["messages"]["DeadLetter"]
    assert letter["headers"]["properties"]["reason"]["enum"] == [each.value for each in Reason]


@pytest.mark.slow  # npm fetches AsyncAPI's own JSON schema, the first time
def test_it_is_asyncapi_by_asyncapi_s_own_schema() -> None:
    def make(folder: Path) -> None:
        run([tool("npm"), "ci", "--no-audit", "--no-fund", "--ignore-scripts"], folder)

    try:
        sources = Path(__file__).resolve().parents[1] / "contract" / "asyncapi"
        folder = built(sources, "", make)
    except CannotBuild as error:
        pytest.skip(
            f"AsyncAPI's schema can't be had here, the structure alone was checked: {error}"
        )
    path = folder / "node_modules" / "@asyncapi" / "specs" / "schemas" / "3.0.0-without-$id.json"
    validator = jsonschema_rs.validator_for(json.loads(path.read_text(encoding="utf-8")))
    assert [str(each) for each in validator.iter_errors(DOCUMENT)] == []
    broken = json.loads(json.dumps(DOCUMENT))
    broken["operations"]["sendOrderTotal"]["action"] = "shout"
    assert not validator.is_valid(broken)


def test_npm_is_asked_for_only_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(CannotBuild, match="npm is not installed"):
        tool("npm")
