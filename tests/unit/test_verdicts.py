"""Verdicts on writers' schemas: what is recorded, what is asked for, and how long that may take."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import pytest

from durabill.schemas import (
    OWN_SCHEMA_ONLY,
    SEGMENT_SCHEMA,
    BadRecord,
    Reason,
    SegmentEvent,
    encode_segment,
    registry_framing,
)
from durabill.schemas.errors import StateError
from durabill.schemas.limits import SCHEMA_ID_MAX
from durabill.stream_processors.engine.verdicts import RecordedSchemas
from durabill.stream_processors.worker.registry import NoAnswer
from durabill.stream_processors.worker.schema_lookups import (
    ASKED_AT_ONCE_MAX,
    PATIENCE_PERIOD_S,
    PATIENCE_S,
    UNKNOWN_FOR_S,
    SchemaLookups,
)

OURS = json.dumps(SEGMENT_SCHEMA)
EVENT = SegmentEvent("SO1", 1, 1, 2, False)


def framed(schema_id: int) -> bytes:
    return encode_segment(EVENT, b"\0" + schema_id.to_bytes(4, "big"))


def schemas(recorded: bytes | None = None) -> RecordedSchemas:
    made = RecordedSchemas(OWN_SCHEMA_ONLY, recorded)
    made.reads_ids = True
    return made


def reason(writers: RecordedSchemas, schema_id: int, offset: int) -> Reason | None:
    """Return why a record with this id at this offset is bad, None if it is good."""
    try:
        assert writers.read(framed(schema_id), offset)[0] == b"SO1"
    except BadRecord as error:
        return error.reason
    return None


def test_what_must_be_asked_for() -> None:
    writers = schemas()
    ids = {0: 5, 1: 5, SCHEMA_ID_MAX: 5, SCHEMA_ID_MAX + 1: 5, 2**32 - 1: 5}
    assert writers.undecided(ids) == [1, SCHEMA_ID_MAX]  # the others can be no ids
    writers.decide({1: OURS, SCHEMA_ID_MAX: None}, 4, 6)
    assert writers.undecided(ids) == []
    assert writers.undecided({SCHEMA_ID_MAX: 6}) == [SCHEMA_ID_MAX]


def test_a_verdict_holds_from_its_offset_on_and_for_good() -> None:
    writers = schemas()
    first = writers.decide({7: None}, 0, 10)
    entry = writers.decide({7: OURS}, 10, 20)
    for each in (writers, schemas(entry)):
        assert [reason(each, 7, at) for at in (0, 9, 10, 10**6)] == [
            *(Reason.UNKNOWN_SCHEMA, Reason.UNKNOWN_SCHEMA, None, None)
        ]
        assert each.undecided({7: 9, 8: 9}) == []
        assert each.undecided({7: 10, 8: 10}) == [8]
    assert schemas(first).undecided({7: 10}) == [7]


def test_what_a_registry_knows_and_ours_does_not_resolve() -> None:
    for schema in ('{"type":"string"}', '"string"', "null", "[", "[" * 100_000):
        writers = schemas()
        entry = writers.decide({7: schema}, 0, 10)
        assert reason(writers, 7, 3) is reason(schemas(entry), 7, 3) is Reason.UNKNOWN_SCHEMA


def test_what_is_refused_takes_little_room_and_stays_refused() -> None:
    """Anybody can name all ids that a registry knows: they must fit an entry of 16 MiB."""
    huge = json.dumps({"type": "record", "name": "x" * 10_000, "fields": []})
    writers = schemas()
    entry = writers.decide(dict.fromkeys(range(1, 20_001), huge), 0, 10)
    assert len(entry) < 4 * 1024 * 1024  # so 80,000 fit
    assert reason(writers, 7, 3) is reason(schemas(entry), 7, 3) is Reason.UNKNOWN_SCHEMA
    assert schemas(entry).undecided({7: 3, 20_001: 3}) == [20_001]
    details = []
    for each in (writers, schemas(entry)):
        with pytest.raises(BadRecord) as caught:
            each.read(framed(7), 3)
        details.append(caught.value.detail)
    assert details[0] == details[1]
    assert details[0].startswith("schema id 7: xxx")


def test_what_the_version_before_has_recorded() -> None:
    recorded = json.dumps(
        {
            "decided_to": 0,
            "schemas": [
                {"id": 7, "from_offset": 2, "schema": '{"type":"string"}'},
                {"id": 8, "from_offset": 2, "schema": OURS},
            ],
        }
    ).encode()
    assert reason(schemas(recorded), 7, 3) is Reason.UNKNOWN_SCHEMA
    assert reason(schemas(recorded), 8, 3) is None


def test_framings_of_our_own_schema_are_told_where_they_hold() -> None:
    """The kernel reads what has this framing without a look at the id: it must be sure."""
    writers = schemas()
    assert writers.own_framing(100) is None
    newer = json.dumps({**SEGMENT_SCHEMA, "fields": [*SEGMENT_SCHEMA["fields"], MORE]})
    entry = writers.decide({7: OURS, 9: newer}, 10, 20)
    entry = writers.decide({8: OURS}, 30, 40)
    for each in (writers, schemas(entry)):
        found = [each.own_framing(at) for at in (0, 9, 10, 29, 30)]
        assert found == [None, None, *[registry_framing(7)] * 2, registry_framing(8)]
        each.reads_ids = False
        assert each.own_framing(30) is None


MORE = {"name": "vehicle", "type": "string", "default": ""}


def test_without_a_registry_in_force_it_is_no_avro() -> None:
    writers = RecordedSchemas(OWN_SCHEMA_ONLY, schemas().decide({7: OURS}, 0, 10))
    assert reason(writers, 7, 3) is Reason.NOT_AVRO


@pytest.mark.parametrize("raw", [b"", b"[]", b'{"schemas":[1]}'])
def test_a_damaged_record(raw: bytes) -> None:
    with pytest.raises(StateError, match="damaged"):
        schemas(raw)


class Desk:
    """A registry that answers by a script, on a clock by hand."""

    def __init__(self, answer: Callable[[int, float], str | None]) -> None:
        self.now_s = 0.0
        self.asked: list[int] = []
        self.told: list[str] = []
        self._answer = answer
        self.lookups = SchemaLookups(self._ask, lambda: self.now_s, self._sleep)

    async def _ask(self, schema_id: int) -> str | None:
        self.asked.append(schema_id)
        return self._answer(schema_id, self.now_s)

    async def _sleep(self, seconds: float) -> None:
        self.now_s += seconds

    def decide(self, *ids: int) -> Mapping[int, str | None]:
        work: Awaitable[Any] = self.lookups.decide(ids, self.told.append)
        return asyncio.run(work)  # type: ignore[arg-type]


def test_what_is_known_is_known_at_once() -> None:
    desk = Desk(lambda schema_id, now_s: f"schema {schema_id}")
    assert desk.decide(1, 2) == {1: "schema 1", 2: "schema 2"}
    assert (desk.now_s, desk.told) == (0.0, [])


def test_a_registry_that_is_away_is_waited_for() -> None:
    def answer(schema_id: int, now_s: float) -> str | None:
        if now_s < 3600:
            raise NoAnswer("away")
        return OURS

    desk = Desk(answer)
    assert desk.decide(1) == {1: OURS}
    assert 3600 <= desk.now_s < 3620
    assert "away" in desk.told[0]
    assert len(desk.asked) < 400


def test_a_registry_that_lags_is_asked_again() -> None:
    desk = Desk(lambda schema_id, now_s: OURS if now_s >= PATIENCE_S - 1 else None)
    assert desk.decide(1) == {1: OURS}
    assert PATIENCE_S - 1 <= desk.now_s <= PATIENCE_S


def test_its_word_is_taken_in_the_end() -> None:
    desk = Desk(lambda schema_id, now_s: None)
    assert desk.decide(1, 2) == {1: None, 2: None}
    assert PATIENCE_S - 1 < desk.now_s <= PATIENCE_S


def test_nobody_holds_a_partition_by_made_up_ids() -> None:
    desk = Desk(lambda schema_id, now_s: None)
    for schema_id in range(1, 500):
        desk.decide(schema_id)
    assert desk.now_s < PATIENCE_S * 1.3
    asked = len(desk.asked)
    desk.decide(499)  # its word is believed for a while
    assert len(desk.asked) == asked
    desk.now_s += PATIENCE_PERIOD_S
    before_s = desk.now_s
    desk.decide(1000)
    assert desk.now_s - before_s == pytest.approx(PATIENCE_S, abs=1)


def test_what_was_unknown_is_asked_for_again_later() -> None:
    """Soon: what comes once the registry has it is good, whoever asked for it too early."""
    desk = Desk(lambda schema_id, now_s: OURS if now_s > PATIENCE_S else None)
    assert desk.decide(1) == {1: None}
    desk.now_s += UNKNOWN_FOR_S
    assert desk.decide(1) == {1: OURS}
    assert desk.now_s < PATIENCE_S + 5


def test_a_chunk_full_of_ids_is_asked_for_in_part() -> None:
    desk = Desk(lambda schema_id, now_s: OURS)
    found = desk.decide(*range(1, ASKED_AT_ONCE_MAX + 3))
    assert len(desk.asked) == ASKED_AT_ONCE_MAX
    assert [each for each, schema in found.items() if schema is None] == [
        ASKED_AT_ONCE_MAX + 1,
        ASKED_AT_ONCE_MAX + 2,
    ]
