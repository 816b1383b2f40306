"""Writers' schemas by which a value of a few bytes could stop a worker are not read."""

from typing import Any

import pytest

from durabill.schemas import SEGMENT_SCHEMA
from durabill.schemas.codec import resolvable
from durabill.schemas.writer_bounds import DEPTH_MAX

EMPTY = {"type": "record", "name": "Empty", "fields": []}


def with_extra(of_type: Any) -> dict[str, Any]:
    """Return our schema with one more field, ahead of ours."""
    return {
        **SEGMENT_SCHEMA,
        "fields": [{"name": "extra", "type": of_type}, *SEGMENT_SCHEMA["fields"]],
    }


def nested(levels: int) -> Any:
    """Return a type with so many levels of JSON."""
    found: Any = "long"
    for _ in range(levels):
        found = {"type": "array", "items": found}
    return found


STOPPING: dict[str, tuple[Any, str]] = {
    "an array of nulls": ({"type": "array", "items": "null"}, "takes no bytes"),
    "an array of empty records": ({"type": "array", "items": EMPTY}, "takes no bytes"),
    "an array of records of nulls": (
        {
            "type": "array",
            "items": {
                **EMPTY,
                "fields": [
                    {"name": "a", "type": "null"},
                    {"name": "b", "type": EMPTY | {"name": "E"}},
                ],
            },
        },
        "takes no bytes",
    ),
    "an array of nothing fixed": (
        {"type": "array", "items": {"type": "fixed", "name": "F", "size": 0}},
        "takes no bytes",
    ),
    "one of them inside of a map": (
        {"type": "map", "values": ["long", {"type": "array", "items": "null"}]},
        "takes no bytes",
    ),
    "itself, or null": (["null", "billing.SegmentEvent"], "contains itself"),
    "another that contains itself": (
        {**EMPTY, "fields": [{"name": "next", "type": {"type": "array", "items": "Empty"}}]},
        "contains itself",
    ),
    "levels": (nested(DEPTH_MAX), "levels"),
    "far more levels": (nested(100_000), "levels"),
}


@pytest.mark.parametrize(("of_type", "why"), STOPPING.values(), ids=STOPPING)
def test_it_resolves_to_nothing(of_type: Any, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        resolvable(with_extra(of_type))


TAKEN: dict[str, Any] = {
    "a null": "null",
    "a map of nulls": {"type": "map", "values": "null"},
    "an array of nulls or longs": {"type": "array", "items": ["null", "long"]},
    "an array of enums": {
        "type": "array",
        "items": {"type": "enum", "name": "E", "symbols": ["A"]},
    },
    "one type twice": {
        **EMPTY,
        "fields": [
            {"name": "a", "type": {"type": "fixed", "name": "F", "size": 4}},
            {"name": "b", "type": {"type": "array", "items": "F"}},
        ],
    },
    "some levels": nested(100),
}


@pytest.mark.parametrize("of_type", TAKEN.values(), ids=TAKEN)
def test_others_are_read(of_type: Any) -> None:
    assert resolvable(with_extra(of_type)) is not None
