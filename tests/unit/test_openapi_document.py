"""The HTTP contract for machines is made from the program, and docs/openapi.json is it."""

import json

from durabill.producers.gateway.openapi import openapi
from tests.unit.documents import text_of


def test_the_committed_document_is_the_program_s() -> None:
    made = json.loads(json.dumps(openapi()))
    assert json.loads(text_of("docs/openapi.json")) == made, "durabill openapi"
