"""Verdicts on writers' schemas: decided once, and recorded before anything rests on them.

A registry's answer depends on when it is asked. So a partition records each schema that it was
told, with the offset from which on it is known, and the offset up to which all other ids count as
unknown (`decided_to`). The record is an entry `partition/schemas` beside the checkpoint. A replay
uses it and asks nobody: the verdict on a segment is a function of its offset.
"""

import json
from collections.abc import Mapping
from typing import Any

import msgspec

from durabill.schemas import BadRecord, Reason, WriterSchemas
from durabill.schemas.codec import registry_framing, resolvable
from durabill.schemas.errors import StateError
from durabill.schemas.limits import SCHEMA_ID_MAX
from durabill.schemas.wire import RawSegment

SCHEMAS = "schemas"
"""The name of the entry."""


REFUSAL_MAX = 100
"""Characters of a refusal: one entry must have room for all ids that a registry knows."""


class KnownSchema(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a registry gave for an id, known from an offset on.

    `schema` is its JSON text, or empty where it can't be resolved to ours; `refusal` says why.
    """

    id: int
    from_offset: int
    schema: str = ""
    refusal: str = ""


class Verdicts(msgspec.Struct):
    """What is recorded of a partition."""

    decided_to: int = 0
    schemas: list[KnownSchema] = []


class RecordedSchemas(WriterSchemas):
    """The writers' schemas of one partition: `base`'s, and the recorded ones of registry ids."""

    def __init__(self, base: WriterSchemas, recorded: bytes | None = None) -> None:
        super().__init__()
        self._by_fingerprint = base._by_fingerprint
        self.reads_ids = False
        """Whether a registry's framing is read at all; this is a part of the terms in force."""
        self._verdicts = _decode(recorded)
        self._known: dict[int, list[tuple[int, Any]]] = {}
        self._own: list[tuple[int, int]] = []
        """The ids that stand for our own schema alone, each with its offset, the last first."""
        for each in self._verdicts.schemas:
            self._learn(each)

    @property
    def has_registry(self) -> bool:
        """Tell whether values in the Confluent framing are read."""
        return self.reads_ids

    def own_framing(self, offset: int) -> bytes | None:
        """Return the framing of the id of our own schema that was recorded last; see the base."""
        if not self.reads_ids:
            return None
        return next((registry_framing(each) for each, known in self._own if known <= offset), None)

    def undecided(self, ids: Mapping[int, int]) -> list[int]:
        """Return the ids (id -> its last offset in a chunk) that a registry must be asked for."""
        decided_to = self._verdicts.decided_to
        return [
            each
            for each, offset in ids.items()
            if offset >= decided_to and each not in self._known and 0 < each <= SCHEMA_ID_MAX
        ]

    def decide(self, found: Mapping[int, str | None], first_offset: int, next_offset: int) -> bytes:
        """Record the answers for all undecided ids of [first_offset, next_offset).

        Returns the entry that must be committed before a segment with one of these ids is judged.
        """
        for schema_id, schema in found.items():
            if schema is not None:
                known = _known(schema_id, first_offset, schema)
                self._verdicts.schemas.append(known)
                self._learn(known)
        if None in found.values():
            self._verdicts.decided_to = next_offset
        return msgspec.json.encode(self._verdicts)

    def _learn(self, known: KnownSchema) -> None:
        writer: Any
        try:
            writer = resolvable(json.loads(known.schema)) if known.schema else known.refusal
        except (ValueError, RecursionError) as error:  # an earlier version recorded these as well
            writer = str(error)
        if isinstance(writer, str):
            writer = BadRecord(Reason.UNKNOWN_SCHEMA, f"schema id {known.id}: {writer}")
        known_before = self._known.setdefault(known.id, [])
        known_before.append((known.from_offset, writer))
        self._own = [each for each in self._own if each[0] != known.id]
        if all(writer is None for _, writer in known_before):
            self._own.insert(0, (known.id, min(offset for offset, _ in known_before)))

    def _read_confluent(self, value: bytes, offset: int) -> RawSegment:
        schema_id = int.from_bytes(value[1:5], "big")
        for from_offset, writer in reversed(self._known.get(schema_id, ())):
            if from_offset <= offset:
                if isinstance(writer, BadRecord):
                    raise BadRecord(writer.reason, writer.detail)
                return self._read_with(writer, value)
        raise BadRecord(Reason.UNKNOWN_SCHEMA, f"schema id {schema_id}: no registry knows it")


def _known(schema_id: int, from_offset: int, schema: str) -> KnownSchema:
    try:
        resolvable(json.loads(schema))
    except (ValueError, RecursionError) as error:
        return KnownSchema(schema_id, from_offset, refusal=str(error)[:REFUSAL_MAX])
    return KnownSchema(schema_id, from_offset, schema)


def _decode(raw: bytes | None) -> Verdicts:
    if raw is None:
        return Verdicts()
    try:
        return msgspec.json.decode(raw, type=Verdicts)
    except msgspec.MsgspecError as error:
        raise StateError(f"the recorded schemas of a partition are damaged: {error}") from error
