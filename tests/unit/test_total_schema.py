"""The schema of totals as it grows: readers of the new one, totals of the one before."""

import io
import json
from dataclasses import replace
from typing import Any

import avro.io
import avro.schema
import fastavro
import pytest
from avro.compatibility import ReaderWriterCompatibilityChecker, SchemaCompatibilityType

from durabill.schemas import (
    TOTAL_SCHEMA,
    TOTAL_SCHEMA_V1,
    BadTotal,
    NumberRange,
    OrderTotal,
    Status,
    decode_total,
    encode_total,
    framed_total,
    plain_total,
    registry_framing,
    total_revision,
)
from tests.unit.test_schemas import TOTAL, body_by_apache, fields_of

OLD_TOTALS = [
    TOTAL,
    replace(TOTAL, status=Status.COMPLETE, missing_numbers=(), upper_bound_ms=30),
    replace(TOTAL, status=Status.ABANDONED, end_number=None, missing_numbers=(NumberRange(1, 3),)),
]


def old_body(total: OrderTotal) -> bytes:
    """Return the body that the version before wrote."""
    record = fields_of(total)
    del record["gap_ms"]
    return body_by_apache(TOTAL_SCHEMA_V1, record)


@pytest.mark.parametrize("total", OLD_TOTALS)
def test_totals_of_the_schema_before_are_read(total: OrderTotal) -> None:
    value = b"\xc3\x01" + bytes.fromhex("eb5f6a3c582dce54") + old_body(total)
    assert total == decode_total(value)
    assert total.revision == total_revision(value)
    with pytest.raises(BadTotal):
        decode_total(value[:-1])
    with pytest.raises(BadTotal):
        decode_total(value + b"\x00")


@pytest.mark.parametrize("total", OLD_TOTALS)
def test_readers_of_the_new_schema_resolve_totals_of_the_one_before(total: OrderTotal) -> None:
    expected = {**fields_of(total), "gap_ms": 0}
    body = old_body(total)
    old = avro.schema.parse(json.dumps(TOTAL_SCHEMA_V1))
    new = avro.schema.parse(json.dumps(TOTAL_SCHEMA))
    decoder = avro.io.BinaryDecoder(io.BytesIO(body))
    assert avro.io.DatumReader(old, new).read(decoder) == expected
    fastavros = fastavro.schemaless_reader(io.BytesIO(body), TOTAL_SCHEMA_V1, TOTAL_SCHEMA)
    assert fastavros == expected


def test_a_registry_takes_the_new_schema_as_backward_compatible() -> None:
    old = avro.schema.parse(json.dumps(TOTAL_SCHEMA_V1))
    new = avro.schema.parse(json.dumps(TOTAL_SCHEMA))
    checker: Any = ReaderWriterCompatibilityChecker
    found = checker().get_compatibility(reader=new, writer=old)
    assert SchemaCompatibilityType.compatible is found.compatibility


def test_status_of_a_later_version_is_not_taken_for_a_settlement() -> None:
    later = json.loads(json.dumps(TOTAL_SCHEMA))
    status = next(each["type"] for each in later["fields"] if each["name"] == "status")
    status["symbols"].append("DISPUTED")
    body = body_by_apache(later, {**fields_of(TOTAL), "status": "DISPUTED"})
    # By fastavro, as by Java's library; Apache's for Python has no defaults of enums yet.
    found: Any = fastavro.schemaless_reader(io.BytesIO(body), later, TOTAL_SCHEMA)
    assert found["status"] == "RUNNING"


def test_a_total_in_a_registrys_framing_is_the_same_total() -> None:
    plain = encode_total(TOTAL)
    framed = framed_total(plain, registry_framing(0x01020304))
    assert framed == bytes.fromhex("0001020304") + plain[10:]
    assert (decode_total(framed), total_revision(framed)) == (TOTAL, TOTAL.revision)
    assert plain_total(framed) == plain
    assert plain_total(plain) is plain
    for cut in range(len(framed)):
        with pytest.raises(BadTotal):
            decode_total(framed[:cut])
    with pytest.raises(BadTotal):
        decode_total(framed + b"\x00")
