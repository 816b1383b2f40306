"""Writers of other ages and of a schema registry: what is resolved to our schema, what refused."""

import contextlib
import copy
import io
import json
from typing import Any

import fastavro
import pytest
from confluent_kafka.schema_registry import Schema, SchemaRegistryClient
from hypothesis import given
from hypothesis import strategies as st

from durabill.schemas import (
    SEGMENT_SCHEMA,
    BadRecord,
    Reason,
    SegmentEvent,
    WriterSchemas,
    decode_segment,
    encode_segment,
    schema_fingerprint,
)
from tests.unit.test_schemas import EXAMPLE, EXAMPLE_BYTES, body_by_apache, rejected


def own_schema() -> dict[str, Any]:
    """Return a copy of the segment's schema that may be changed."""
    return copy.deepcopy(SEGMENT_SCHEMA)


def own_record(**changes: Any) -> dict[str, Any]:
    """Return the worked example as a writer's record."""
    return {name: getattr(EXAMPLE, name) for name in SegmentEvent.__slots__} | changes


def body(schema: dict[str, Any], record: dict[str, Any]) -> bytes:
    """Return the Avro body that fastavro writes."""
    out = io.BytesIO()
    fastavro.schemaless_writer(out, fastavro.parse_schema(copy.deepcopy(schema)), record)
    return out.getvalue()


# -- writers of other ages --------------------------------------------------------------------


def test_the_same_record_is_refused_in_the_same_words() -> None:
    """The detail of a dead letter held an object's address, so that no replay repeated it."""
    writers = WriterSchemas()
    schema = own_schema() | {"doc": "v2"}
    schema["fields"].append({"name": "vehicle", "type": "string", "default": ""})
    writers.add(schema)
    value = b"\xc3\x01" + schema_fingerprint(schema) + b"\x06SO"
    details = set()
    for _ in range(2):
        with pytest.raises(BadRecord) as error:
            writers.read(value)
        details.add(error.value.detail)
    assert len(details) == 1
    assert "0x" not in details.pop()


def read_as_written_with(
    schema: dict[str, Any], record: dict[str, Any], write: Any = body
) -> SegmentEvent:
    """Return what a reader that was told of `schema` makes of `record`."""
    writers = WriterSchemas()
    writers.add(schema)
    return decode_segment(b"\xc3\x01" + schema_fingerprint(schema) + write(schema, record), writers)


@pytest.mark.parametrize("write", [body, body_by_apache])
def test_newer_writer_with_a_further_field(write: Any) -> None:
    schema = own_schema()
    schema["fields"].insert(2, {"name": "vehicle", "type": "string", "default": ""})
    assert read_as_written_with(schema, own_record(vehicle="tram 7"), write) == EXAMPLE


@pytest.mark.parametrize("write", [body, body_by_apache])
def test_older_writer_with_an_int_is_promoted(write: Any) -> None:
    schema = own_schema()
    schema["fields"][1]["type"] = "int"
    assert read_as_written_with(schema, own_record(), write) == EXAMPLE


@pytest.mark.parametrize("missing", range(5))
def test_older_writer_without_one_of_our_fields_is_refused(missing: int) -> None:
    # No field of ours has a default, so Avro's rules have no value for it.
    schema = own_schema()
    name = schema["fields"].pop(missing)["name"]
    with pytest.raises(ValueError, match=f"no {name}"):
        WriterSchemas().add(schema)


def test_writer_with_fields_in_another_order() -> None:
    schema = own_schema()
    schema["fields"].reverse()
    assert read_as_written_with(schema, own_record()) == EXAMPLE


def test_writer_in_another_namespace() -> None:
    schema = own_schema() | {"namespace": "com.example.billing"}
    assert read_as_written_with(schema, own_record()) == EXAMPLE


def test_writers_aliases_do_not_rename_its_fields() -> None:
    # Aliases are the reader's to give, and ours gives none.
    schema = own_schema()
    schema["fields"][2] |= {"name": "begin_ms", "aliases": ["start_ms"]}
    with pytest.raises(ValueError, match="no start_ms"):
        WriterSchemas().add(schema)


@pytest.mark.parametrize("branches", [["null", "long"], ["long", "null"]])
def test_union_is_read_where_it_holds_our_type(branches: list[str]) -> None:
    schema = own_schema()
    schema["fields"][2]["type"] = branches
    assert read_as_written_with(schema, own_record()) == EXAMPLE
    with pytest.raises(BadRecord) as error:
        read_as_written_with(schema, own_record(start_ms=None))
    assert error.value.reason is Reason.NOT_AVRO


@pytest.mark.parametrize(
    "changed",
    [
        {"name": "start_ms", "type": "float"},
        {"name": "start_ms", "type": ["null", "double"]},
        {"name": "end_identifier", "type": "int"},
        {"name": "service_order_number", "type": "long"},
        {"name": "business_data_number", "type": {"type": "array", "items": "long"}},
    ],
)
def test_type_that_cannot_become_ours_is_refused(changed: dict[str, Any]) -> None:
    schema = own_schema()
    at = [field["name"] for field in schema["fields"]].index(changed["name"])
    schema["fields"][at] = changed
    with pytest.raises(ValueError, match=changed["name"]):
        WriterSchemas().add(schema)


@pytest.mark.parametrize(
    "schema",
    [
        {},
        {"type": "enum", "name": "SegmentEvent", "symbols": ["A"]},
        {"type": "record"},
        {"type": "record", "name": "SegmentEvent", "fields": None},
        {"type": "record", "name": "SegmentEvent", "fields": [3]},
        {"type": "record", "name": "SegmentEvent", "fields": [{"name": "x"}]},
        {"type": "record", "name": "SegmentEvent", "fields": [{"name": "x", "type": "nothing"}]},
    ],
)
def test_broken_schema_is_refused(schema: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r".+"):
        WriterSchemas().add(schema)


def test_record_of_another_name_is_refused() -> None:
    with pytest.raises(ValueError, match="is not a SegmentEvent"):
        WriterSchemas().add(own_schema() | {"name": "Heartbeat"})


@given(st.binary(max_size=40))
def test_any_evolved_body_is_read_or_refused(tail: bytes) -> None:
    schema = own_schema()
    schema["fields"][2]["type"] = ["null", "long"]
    kind = {"type": "enum", "name": "Kind", "symbols": ["A", "B"]}
    schema["fields"].append({"name": "kind", "type": kind})
    schema["fields"].append({"name": "tags", "type": {"type": "map", "values": "string"}})
    writers = WriterSchemas()
    writers.add(schema)
    with contextlib.suppress(BadRecord):
        decode_segment(b"\xc3\x01" + schema_fingerprint(schema) + tail, writers)


# -- schema registry --------------------------------------------------------------------------


def registered(schema: dict[str, Any]) -> tuple[int, WriterSchemas]:
    """Return the id that a mock registry gave to `schema`, and a reader that asks it."""
    client = SchemaRegistryClient.new_client({"url": "mock://unit"})
    schema_id = client.register_schema("billing.segments-value", Schema(json.dumps(schema), "AVRO"))

    def lookup(asked_id: int) -> str:
        try:
            return str(client.get_schema(asked_id).schema_str)
        except Exception as error:  # the client's own tree of errors is not ours to know
            raise LookupError(str(error)) from error

    return schema_id, WriterSchemas(registry=lookup)


def framed(schema_id: int, data: bytes) -> bytes:
    """Return `data` in the Confluent framing."""
    return b"\x00" + schema_id.to_bytes(4, "big") + data


def test_confluent_framing_is_read() -> None:
    schema_id, writers = registered(own_schema())
    framing = framed(schema_id, b"")
    assert decode_segment(encode_segment(EXAMPLE, framing), writers) == EXAMPLE


def test_confluent_framing_of_an_evolved_schema() -> None:
    schema = own_schema()
    schema["fields"].append({"name": "vehicle", "type": "string", "default": ""})
    schema_id, writers = registered(schema)
    value = framed(schema_id, body(schema, own_record(vehicle="bus")))
    assert decode_segment(value, writers) == EXAMPLE


@pytest.mark.parametrize(
    ("at", "type_"),
    [
        (0, {"type": "string", "avro.java.string": "String"}),
        (2, {"type": "long", "logicalType": "timestamp-millis"}),
        (3, {"type": "long", "logicalType": "timestamp-micros"}),
    ],
)
def test_properties_of_other_writers_change_nothing(at: int, type_: dict[str, str]) -> None:
    schema = own_schema()
    schema["fields"][at]["type"] = type_
    schema["fields"].append({"name": "vehicle", "type": "string", "default": ""})
    schema_id, writers = registered(schema)
    value = framed(schema_id, EXAMPLE_BYTES[10:] + b"\x06bus")
    assert decode_segment(value, writers) == EXAMPLE


def test_confluent_framing_of_our_schema_is_as_strict() -> None:
    schema_id, writers = registered(own_schema())
    for tail in (
        EXAMPLE_BYTES[10:-1] + b"\x02",
        EXAMPLE_BYTES[10:] + b"\x00",
        EXAMPLE_BYTES[10:-1],
        b"\x06SO1" + b"\xff" * 9 + b"\x7f" + EXAMPLE_BYTES[15:],
    ):
        assert rejected(framed(schema_id, tail), writers) is Reason.NOT_AVRO


def test_id_that_the_registry_does_not_know_is_unknown_schema() -> None:
    _, writers = registered(own_schema())
    assert rejected(framed(4711, EXAMPLE_BYTES[10:]), writers) is Reason.UNKNOWN_SCHEMA


@pytest.mark.parametrize("answer", ["", "[]", '"string"', '{"type": "record", "name": "S"}'])
def test_answer_of_the_registry_that_is_no_schema_of_ours(answer: str) -> None:
    writers = WriterSchemas(registry=lambda _: answer)
    assert rejected(framed(1, EXAMPLE_BYTES[10:]), writers) is Reason.UNKNOWN_SCHEMA


def test_registry_is_asked_once_an_id() -> None:
    asked: list[int] = []

    def lookup(schema_id: int) -> str:
        asked.append(schema_id)
        return json.dumps(SEGMENT_SCHEMA)

    writers = WriterSchemas(registry=lookup)
    for _ in range(3):
        assert decode_segment(framed(7, EXAMPLE_BYTES[10:]), writers) == EXAMPLE
    assert asked == [7]


def test_confluent_framing_without_a_registry_is_not_avro() -> None:
    assert rejected(framed(1, EXAMPLE_BYTES[10:])) is Reason.NOT_AVRO


def test_confluent_framing_cut_short_is_not_avro() -> None:
    _, writers = registered(own_schema())
    assert rejected(b"\x00\x00\x00\x01", writers) is Reason.NOT_AVRO
