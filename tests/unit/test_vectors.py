"""The committed test vectors are what the plain core says, and what others say of their bytes."""

import base64
import hashlib
import io
import json
from typing import Any

import fastavro
import kafka.partitioner.default
import pytest
from joserfc import jws
from joserfc.errors import BadSignatureError
from joserfc.jwk import KeySet

from durabill.schemas import CLOCK_MARK_SCHEMA, SEGMENT_SCHEMA, TOTAL_SCHEMA
from durabill.schemas.order_opened import OPENING_SCHEMA
from tests.vectors import FOLDER, files


def vectors(name: str) -> Any:
    return json.loads((FOLDER / name).read_text(encoding="utf-8"))


def avro(schema: Any, value_hex: str) -> Any:
    """Return what fastavro reads of a value; its header is the fingerprint that fastavro gives."""
    parsed = fastavro.parse_schema(schema)
    canonical = fastavro.schema.to_parsing_canonical_form(schema)
    fingerprint = fastavro.schema.fingerprint(canonical, "CRC-64-AVRO")
    value = bytes.fromhex(value_hex)
    assert value[:2] == b"\xc3\x01"
    assert value[2:10] == int(fingerprint, 16).to_bytes(8, "big")
    body = io.BytesIO(value[10:])
    found = fastavro.schemaless_reader(body, parsed, None)
    assert not body.read()
    return found


def test_the_files_are_what_the_core_says() -> None:
    made = files()
    assert {path.name for path in FOLDER.iterdir()} == made.keys()
    for name, content in made.items():
        assert (FOLDER / name).read_text(encoding="utf-8") == content, "run python -m tests.vectors"


def test_fastavro_and_kafka_python_read_the_segments_so() -> None:
    file = vectors("segments.json")
    for each in file["segments"]:
        assert avro(SEGMENT_SCHEMA, each["value_hex"]) == each["segment"]
        key = bytes.fromhex(each["key_hex"])
        assert key.decode() == each["segment"]["service_order_number"]
        hashed = kafka.partitioner.default.murmur2(key)
        assert f"{hashed & 0xFFFFFFFF:08x}" == each["murmur2"]
        for count, partition in each["partitions"].items():
            assert (hashed & 0x7FFFFFFF) % int(count) == partition
    large = file["beyond_2_53"]
    found = avro(SEGMENT_SCHEMA, large["value_hex"])
    numbers = ("business_data_number", "start_ms", "end_ms")
    assert {**found, **{name: str(found[name]) for name in numbers}} == large["segment"]


def test_fastavro_reads_openings_and_clock_marks_so() -> None:
    for each in vectors("openings.json")["openings"]:
        assert avro(OPENING_SCHEMA, each["value_hex"]) == each["opening"]
    for each in vectors("clock_marks.json")["clock_marks"]:
        assert avro(CLOCK_MARK_SCHEMA, each["value_hex"]) == each["clock_mark"]


HISTORIES = vectors("orders.json")["histories"]


@pytest.mark.parametrize("history", HISTORIES, ids=[each["name"] for each in HISTORIES])
def test_totals_are_what_the_segments_come_to(history: Any) -> None:
    """By hand: the accepted records' union as a set of milliseconds, and the digest's lines."""
    for given in history["totals"]:
        total = given["total"]
        assert avro(TOTAL_SCHEMA, given["value_hex"]) == total
        covered: set[int] = set()
        numbers: set[int] = set()
        ends: set[int] = set()
        for segment in own_segments(history, total):
            covered |= set(range(segment["start_ms"], segment["end_ms"]))
            numbers.add(segment["business_data_number"])
            if segment["end_identifier"]:
                ends.add(segment["business_data_number"])
        assert total["duration_ms"] == len(covered)
        assert total["segments"] == len(numbers)
        assert total["digest"] == digest(total, covered, numbers, ends)


def own_segments(history: Any, total: Any) -> list[Any]:
    """Return the accepted segments that a total has seen: of its order's life then."""
    key = total["service_order_number"].encode().hex()
    opening = vectors("openings.json")["header_hex"]
    refused = {each["offset"] for each in history["dead_letters"]}
    accepted = [
        avro(SEGMENT_SCHEMA, each["value_hex"])
        for each in history["records"][: total["source_offset"] + 1]
        if each["key_hex"] == key
        and each["offset"] not in refused
        and not each["value_hex"].startswith(opening)
    ]
    return accepted[-(total["segments"] + total["duplicates"]) :]  # before them: lives forgotten


def ranges(members: set[int]) -> list[tuple[int, int]]:
    """Return the runs of a set, both ends included."""
    runs: list[tuple[int, int]] = []
    for each in sorted(members):
        if runs and runs[-1][1] == each - 1:
            runs[-1] = (runs[-1][0], each)
        else:
            runs.append((each, each))
    return runs


def digest(total: Any, covered: set[int], numbers: set[int], ends: set[int]) -> str:
    """Return the digest by the contract's five lines."""
    lines = [
        "durabill-evidence-1",
        total["service_order_number"],
        ",".join(f"{first}-{last + 1}" for first, last in ranges(covered)),
        ",".join(f"{first}-{last}" for first, last in ranges(numbers)),
        str(max(ends)) if ends else "-",
    ]
    return hashlib.sha256("".join(f"{each}\n" for each in lines).encode()).hexdigest()


RECEIPTS = vectors("receipts.json")


@pytest.mark.parametrize("case", RECEIPTS["receipts"], ids=lambda each: each["what"])
def test_receipts_are_checked_as_the_contract_says(case: Any) -> None:
    """By docs/http.md alone, with somebody else's library for the signature."""
    token, statement, *steps = case["receipt"].split("~")
    keys = KeySet.import_key_set(RECEIPTS["keys"])
    try:
        signed = jws.deserialize_compact(token, keys, algorithms=["Ed25519"])
    except BadSignatureError:
        assert case["verdict"] == "NOT_SIGNED"
        return
    assert json.loads(signed.payload) == case["payload"]
    found = hashlib.sha256(b"\0" + from64(statement)).digest()
    for step in steps:
        left, right = (from64(step[1:]), found) if step[0] == "L" else (found, from64(step[1:]))
        found = hashlib.sha256(b"\1" + left + right).digest()
    if base64.urlsafe_b64encode(found).rstrip(b"=").decode() != case["payload"]["root"]:
        assert case["verdict"] == "NOT_SIGNED"
        return
    assert json.loads(from64(statement)) == case["statement"]
    (upload,) = case["statement"]["uploads"]
    key = upload["ord"].encode().hex()
    values = [
        bytes.fromhex(each["value_hex"])
        for each in case["records"]
        if each["key_hex"] == key and upload["off"][0] <= each["offset"] <= upload["off"][1]
    ]
    is_right = hashlib.sha256(b"".join(values)).hexdigest() == upload["sha256"]
    assert case["verdict"] == ("PROVEN" if is_right else "NOT_PROVEN")
    if is_right:
        numbers = {avro(SEGMENT_SCHEMA, each.hex())["business_data_number"] for each in values}
        assert [list(each) for each in ranges(numbers)] == upload["num"]
        assert len(values) == upload["cnt"]


def from64(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def test_every_kind_of_end_and_every_reason_of_a_record_is_there() -> None:
    statuses = {given["total"]["status"] for each in HISTORIES for given in each["totals"]}
    assert statuses == {"COMPLETE", "INCOMPLETE", "ABANDONED", "RUNNING"}
    names = ("segments.json", "openings.json", "clock_marks.json")
    reasons = {each["verdict"] for name in names for each in vectors(name)["bad"]}
    reasons |= {letter["reason"] for each in HISTORIES for letter in each["dead_letters"]}
    assert reasons == {
        "NOT_AVRO",
        "UNKNOWN_SCHEMA",
        "KEY_MISMATCH",
        "BAD_ORDER_NUMBER",
        "BAD_BUSINESS_DATA_NUMBER",
        "BAD_TIME_SEQUENCE",
        "IN_THE_FUTURE",
        "TOO_LONG",
        "TOO_LATE",
        "ALREADY_OPENED",
        "NOT_OPENED",
        "BEFORE_OPENING",
    }
