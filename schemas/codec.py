"""Encoding and decoding of the contract's records, and the schemas that writers used.

The wire form is Avro's single-object encoding (Avro specification, "Single-object encoding"):
C3 01, the CRC-64-AVRO fingerprint of the writer's schema in little-endian order, the body.
Where a schema registry is configured the Confluent framing is read too: 00, the schema's
4-byte big-endian id, the body. Bodies of older and newer writer schemas are resolved to ours
by Avro's rules; a schema that cannot be resolved is refused when it is added.
"""

import json
from collections.abc import Callable, Mapping
from importlib import resources
from io import BytesIO
from typing import Any

import fastavro
from fastavro.schema import fingerprint, parse_schema, to_parsing_canonical_form

from durabill.schemas.errors import BadRecord, Reason
from durabill.schemas.records import SegmentEvent
from durabill.schemas.wire import RawSegment, read_segment_body
from durabill.schemas.writer_bounds import check_bounded, check_canonical

MARKER = b"\xc3\x01"
HEADER_SIZE = 10
FRAMING_SIZE = 5
"""Of the Confluent framing: 00, and the schema's id."""

UNREADABLE = (EOFError, ValueError, LookupError, OverflowError, TypeError, RecursionError)
RegistryLookup = Callable[[int], str]
"""Given a schema id, returns the writer's schema as JSON; raises LookupError if unknown."""


def load_schema(name: str) -> dict[str, Any]:
    """Return a schema of this folder as a dict."""
    text = resources.files("durabill.schemas").joinpath(name).read_text(encoding="utf-8")
    schema: dict[str, Any] = json.loads(text)
    return schema


SEGMENT_SCHEMA = load_schema("segment_event.avsc")


def schema_fingerprint(schema: Mapping[str, Any]) -> bytes:
    """Return the 8 bytes that stand for `schema` in a single-object header (little-endian)."""
    return bytes.fromhex(fingerprint(to_parsing_canonical_form(dict(schema)), "CRC-64-AVRO"))


SEGMENT_HEADER = MARKER + schema_fingerprint(SEGMENT_SCHEMA)
_SEGMENT = parse_schema(SEGMENT_SCHEMA)


def _canonical(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return Avro's Parsing Canonical Form of a schema: all that its bodies depend on.

    It has no logical types, which would turn longs into datetimes, and no writer's properties.
    """
    form: dict[str, Any] = json.loads(to_parsing_canonical_form(dict(schema)))
    return form


def _with_raw_order_number(canonical: Mapping[str, Any]) -> Any:
    """Return the schema with the order number as bytes: the same on the wire, never undecodable.

    Bytes that are no UTF-8 must come out as a BAD_ORDER_NUMBER, not as a reader's exception.
    """
    fields = [
        {**field, "type": "bytes"}
        if (field["name"], field["type"]) == ("service_order_number", "string")
        else field
        for field in canonical["fields"]
    ]
    return parse_schema({**canonical, "fields": fields})


_SEGMENT_READER = _with_raw_order_number(_canonical(SEGMENT_SCHEMA))
_WRITER_TYPES = {
    "service_order_number": {"string", "bytes"},
    "business_data_number": {"long", "int"},
    "start_ms": {"long", "int"},
    "end_ms": {"long", "int"},
    "end_identifier": {"boolean"},
}
"""What a writer's field may be to resolve to ours (Avro specification, "Schema Resolution")."""


class WriterSchemas:
    """The schemas that writers of segments may have used, by fingerprint and by registry id.

    Knows the contract's own. `add` takes further ones (Avro JSON as a dict) and raises
    ValueError for one that Avro's rules can't resolve to ours. `registry`, if given, is asked
    for ids of the Confluent framing; its answers are kept for good, as ids never change meaning.
    """

    def __init__(self, registry: RegistryLookup | None = None) -> None:
        self._by_fingerprint: dict[bytes, Any] = {}
        self._by_id: dict[int, Any] = {}
        self._registry = registry
        self.reads_openings = True
        """Whether a `billing.OrderOpened` among the segments is one; else its schema is unknown."""
        self.extends_openings = True
        """Whether one that comes again can have its order's segments accepted for longer."""

    def add(self, schema: Mapping[str, Any]) -> None:
        """Accept bodies written with `schema`; raise ValueError if they can't become ours."""
        self._by_fingerprint[schema_fingerprint(schema)] = resolvable(schema)

    @property
    def has_others(self) -> bool:
        """Tell whether any fingerprint but the contract's own is known."""
        return bool(self._by_fingerprint)

    @property
    def has_registry(self) -> bool:
        """Tell whether values in the Confluent framing can be read."""
        return self._registry is not None

    def own_framing(self, offset: int) -> bytes | None:
        """Return a framing in which, from `offset` on, values are read by our own schema.

        There may be others, whose values are read as well; None: no such framing is known.
        """
        own = (each for each, writer in self._by_id.items() if writer is None)
        return next(map(registry_framing, own), None)

    def read(self, value: bytes | None, offset: int = -1) -> RawSegment:
        """Return the raw fields of a segment's record value.

        `offset` is the record's; only those who record their verdicts by offset look at it.

        Raises BadRecord(NOT_AVRO) or BadRecord(UNKNOWN_SCHEMA).
        """
        if value is None:
            raise BadRecord(Reason.NOT_AVRO, "the value is null")
        if value.startswith(SEGMENT_HEADER):
            return read_segment_body(value, HEADER_SIZE)
        if value.startswith(MARKER) and len(value) >= HEADER_SIZE:
            writer = self._by_fingerprint.get(value[2:HEADER_SIZE])
            if writer is None:
                detail = f"no schema with fingerprint {value[2:HEADER_SIZE].hex()} is known"
                raise BadRecord(Reason.UNKNOWN_SCHEMA, detail)
            return _read_evolved(writer, value, HEADER_SIZE)
        if value.startswith(b"\x00") and len(value) >= 5 and self.has_registry:
            return self._read_confluent(value, offset)
        raise BadRecord(Reason.NOT_AVRO, f"{len(value)} bytes without the C3 01 marker")

    def _read_confluent(self, value: bytes, offset: int) -> RawSegment:
        assert self._registry is not None
        schema_id = int.from_bytes(value[1:5], "big")
        if schema_id not in self._by_id:
            try:
                self._by_id[schema_id] = resolvable(json.loads(self._registry(schema_id)))
            except (LookupError, ValueError) as error:
                detail = f"schema id {schema_id}: {error}"
                raise BadRecord(Reason.UNKNOWN_SCHEMA, detail) from error
        return self._read_with(self._by_id[schema_id], value)

    @staticmethod
    def _read_with(writer: Any, value: bytes) -> RawSegment:
        """Read a value in the Confluent framing by its writer's schema (see `resolvable`)."""
        return _read_evolved(writer, value, FRAMING_SIZE)


def resolvable(schema: Mapping[str, Any]) -> Any:
    """Return the parsed writer schema, or raise ValueError if it can't be resolved to ours.

    None stands for our own schema, whose bodies are read strictly.
    """
    if not isinstance(schema, Mapping) or schema.get("type") != "record":
        raise ValueError("a writer schema of segments must be an Avro record")
    check_bounded(schema)
    try:
        canonical = _canonical(schema)
        check_canonical(canonical)
        writer = _with_raw_order_number(canonical)
    except (fastavro.schema.SchemaParseException, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"no valid Avro schema: {error!r}") from error
    if canonical["name"].rpartition(".")[2] != SEGMENT_SCHEMA["name"]:
        raise ValueError(f"{canonical['name']} is not a {SEGMENT_SCHEMA['name']}")
    found = {each["name"]: each["type"] for each in canonical["fields"]}
    for name, types in _WRITER_TYPES.items():
        if name not in found:
            raise ValueError(f"{canonical['name']} has no {name}, which has no default")
        branches = found[name] if isinstance(found[name], list) else [found[name]]
        if not any(isinstance(each, str) and each in types for each in branches):
            raise ValueError(f"{canonical['name']} has a {name} of type {json.dumps(found[name])}")
    return None if canonical == _canonical(SEGMENT_SCHEMA) else writer


def _read_evolved(writer: Any, value: bytes, at: int) -> RawSegment:
    if writer is None:
        return read_segment_body(value, at)
    body = BytesIO(value)
    body.seek(at)
    try:
        record: Any = fastavro.schemaless_reader(body, writer, _SEGMENT_READER)
    except (*UNREADABLE, fastavro.read.SchemaResolutionError) as error:
        raise BadRecord(
            Reason.NOT_AVRO, f"the body can't be read: {type(error).__name__}"
        ) from error
    if body.tell() != len(value):
        raise BadRecord(Reason.NOT_AVRO, f"{len(value) - body.tell()} bytes follow the record")
    return (
        record["service_order_number"],
        record["business_data_number"],
        record["start_ms"],
        record["end_ms"],
        record["end_identifier"],
    )


OWN_SCHEMA_ONLY = WriterSchemas()


def to_segment(raw: RawSegment) -> SegmentEvent:
    """Make the value of what was read; raise BadRecord where it breaks the contract."""
    order, business_data_number, start_ms, end_ms, end_identifier = raw
    try:
        number = order.decode()
    except UnicodeDecodeError as error:
        raise BadRecord(Reason.BAD_ORDER_NUMBER, "is no UTF-8") from error
    return SegmentEvent(number, business_data_number, start_ms, end_ms, end_identifier)


def registry_framing(schema_id: int) -> bytes:
    """Return the Confluent framing of values whose schema has this id in a registry."""
    return b"\0" + schema_id.to_bytes(4, "big")


def encode_segment(event: SegmentEvent, framing: bytes = SEGMENT_HEADER) -> bytes:
    """Return the record value of a segment; `framing` is 00 + id (4 bytes) where a registry is."""
    out = BytesIO()
    out.write(framing)
    record = {name: getattr(event, name) for name in SegmentEvent.__slots__}
    fastavro.schemaless_writer(out, _SEGMENT, record)
    return out.getvalue()


def decode_segment(value: bytes | None, writers: WriterSchemas = OWN_SCHEMA_ONLY) -> SegmentEvent:
    """Return the segment in a record value; raise BadRecord with the first reason that holds."""
    return to_segment(writers.read(value))
