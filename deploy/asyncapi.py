"""The Kafka contract for machines: AsyncAPI 3.0, made from the topics' own tables.

Names come from `schemas.topics`, settings from `deploy.topics`, shapes from the schemas that the
codecs read, reasons and headers from where the rules have them. What is said here besides is who
writes which record into which topic, and how it is keyed.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from durabill.deploy.topics import AS_MANY_PARTITIONS_AS_SEGMENTS, topic_settings
from durabill.schemas import CLOCK_MARK_SCHEMA, SEGMENT_SCHEMA, TOTAL_SCHEMA, headers
from durabill.schemas.codec import MARKER, schema_fingerprint
from durabill.schemas.errors import Reason
from durabill.schemas.order_opened import OPENING_SCHEMA
from durabill.schemas.topics import Topics

INTERNAL_ROLES = ("checkpoint",)
"""Topics that no contract speaks of: their bytes are the workers' own."""

_AVRO = "application/vnd.apache.avro;version=1.9.0"
_ORDER_KEY = "the service order number in UTF-8, the very bytes that the value holds"
_WHOLE = r"^\d+$"


@dataclass(frozen=True, slots=True)
class Message:
    """A kind of record. `schema` is of Avro; where it is None, `payload` describes the bytes."""

    name: str
    says: str
    key: str
    schema: dict[str, Any] | None = None
    payload: str = ""
    headers: Mapping[str, dict[str, Any]] | None = None


@dataclass(frozen=True, slots=True)
class Channel:
    """A topic: what it is for, what Durabill takes from it, and what Durabill writes into it."""

    says: str
    takes: tuple[str, ...]
    gives: tuple[str, ...]


def _text(says: str, **more: Any) -> dict[str, Any]:
    return {"type": "string", "description": says, **more}


_DEAD_LETTER_HEADERS = {
    headers.REASON: _text("why it was rejected", enum=[each.value for each in Reason]),
    headers.DETAIL: _text("a sentence for people"),
    headers.SOURCE_TOPIC: _text("the topic that the rejected record lies in"),
    headers.SOURCE_PARTITION: _text("its partition, in digits", pattern=_WHOLE),
    headers.SOURCE_OFFSET: _text("its offset, in digits", pattern=_WHOLE),
    headers.CUT_KEY: _text("of a key that was too large: its size and SHA-256"),
    headers.CUT_VALUE: _text("of a value that was too large: its size and SHA-256"),
    headers.CUT_HEADERS: _text("how many headers were left out", pattern=_WHOLE),
    headers.CUT_BATCH: _text("of a batch that can't be read: its size and SHA-256"),
}
_SEGMENTS_TOPIC_ID = _text("the id of the segments topic, where it has one")
MESSAGES: tuple[Message, ...] = (
    Message(
        "SegmentEvent",
        "One segment of business data. Clients may add headers, but none of ours",
        _ORDER_KEY,
        SEGMENT_SCHEMA,
        headers={
            headers.FORWARDED_FROM: _text("a worker sent it on: PARTITION/OFFSET of where it lay"),
            headers.RESENT_FROM: _text(
                "it was sent back: TOPIC/PARTITION/OFFSET of its dead letter"
            ),
        },
    ),
    Message("OrderOpened", "Opens an order ahead of its segments", _ORDER_KEY, OPENING_SCHEMA),
    Message(
        "ClockMark",
        "Tells the time in a silent partition. Workers and gateways alone write it; pass it over",
        "none",
        CLOCK_MARK_SCHEMA,
    ),
    Message(
        "OrderTotal",
        "A revision of what an order comes to",
        _ORDER_KEY,
        TOTAL_SCHEMA,
        headers={headers.SEGMENTS_TOPIC_ID: _SEGMENTS_TOPIC_ID},
    ),
    Message(
        "OpenedOrder",
        "The opening of an order as it was accepted",
        _ORDER_KEY,
        OPENING_SCHEMA,
        headers={
            headers.SOURCE_OFFSET: _text("the opening's offset", pattern=_WHOLE),
            headers.SEGMENTS_TOPIC_ID: _SEGMENTS_TOPIC_ID,
        },
    ),
    Message(
        "DeadLetter",
        "A rejected record. Its own headers come first, then ours",
        "as it came, or null",
        payload="the rejected record's value as it came; of one that was too large, its beginning",
        headers=_DEAD_LETTER_HEADERS,
    ),
    Message(
        "SealCheckpoint",
        "The newest signed checkpoint of one sealed log",
        "the log's origin",
        payload="a signed note of C2SP's tlog-checkpoint, in UTF-8",
    ),
)
CHANNELS: Mapping[str, Channel] = {
    "segments": Channel(
        "What clients report: openings and segments. Its order within a partition is the evidence",
        ("SegmentEvent", "OrderOpened"),
        ("SegmentEvent", "OrderOpened", "ClockMark"),
    ),
    "totals": Channel("What orders come to; read it committed", (), ("OrderTotal",)),
    "orders": Channel("Accepted openings, each once; read it committed", (), ("OpenedOrder",)),
    "dead_letters": Channel("What was rejected, and why", (), ("DeadLetter",)),
    "seal": Channel("Signed checkpoints of the sealed logs of totals", (), ("SealCheckpoint",)),
}
"""Each topic of the contract, by its role in `Topics`."""


def asyncapi(topics: Topics) -> dict[str, Any]:
    """Return the AsyncAPI 3.0 description of a deployment's topics."""
    named = {role: name for role, name in topics.by_role.items() if role not in INTERNAL_ROLES}
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Durabill",
            "version": "1",
            "description": "Takes the segments of metered services from Kafka, and writes their "
            "totals to it. docs/contract.md has the rules. A value is the bytes of `x-header-hex`, "
            "then its Avro body. A record's partition is (murmur2(key) & 0x7fffffff) % partitions, "
            "as in Kafka's Java client.",
            "license": {"name": "Apache-2.0"},
        },
        "defaultContentType": "avro/binary",
        "channels": {role: _channel(role, name) for role, name in named.items()},
        "operations": dict(_operation(*each) for each in _directions(named)),
        "components": {"messages": {each.name: _message(each) for each in MESSAGES}},
    }


def _channel(role: str, name: str) -> dict[str, Any]:
    channel = CHANNELS[role]
    settings = topic_settings(role)
    configuration: dict[str, Any] = {
        key: int(value) if value.lstrip("-").isdigit() else value for key, value in settings.items()
    }
    configuration["cleanup.policy"] = [settings["cleanup.policy"]]
    kafka: dict[str, Any] = {"topicConfiguration": configuration, "bindingVersion": "0.5.0"}
    says = channel.says
    if role in AS_MANY_PARTITIONS_AS_SEGMENTS:
        says += ". It has as many partitions as the segments; an order has the same in both"
    if role == "seal":
        kafka["partitions"] = 1
    messages = dict.fromkeys((*channel.takes, *channel.gives))
    return {
        "address": name,
        "description": f"{says}.",
        "messages": {each: {"$ref": f"#/components/messages/{each}"} for each in messages},
        "bindings": {"kafka": kafka},
    }


def _directions(named: Mapping[str, str]) -> list[tuple[str, str, str]]:
    """Return (role, "receive" or "send", message), as Durabill sees it."""
    return [
        (role, action, message)
        for role in named
        for action, messages in (("receive", CHANNELS[role].takes), ("send", CHANNELS[role].gives))
        for message in messages
    ]


def _operation(role: str, action: str, message: str) -> tuple[str, dict[str, Any]]:
    return f"{action}{message}", {
        "action": action,
        "channel": {"$ref": f"#/channels/{role}"},
        "messages": [{"$ref": f"#/channels/{role}/messages/{message}"}],
    }


def _message(message: Message) -> dict[str, Any]:
    out: dict[str, Any] = {"name": message.name, "summary": f"{message.says}."}
    if message.schema is None:
        out["contentType"] = "application/octet-stream"
        out["payload"] = {"type": "string", "format": "binary", "description": message.payload}
    else:
        out["contentType"] = "avro/binary"
        out["payload"] = {"schemaFormat": _AVRO, "schema": message.schema}
        # The value begins with these bytes: Avro's single-object encoding.
        out["x-header-hex"] = (MARKER + schema_fingerprint(message.schema)).hex()
    if message.headers:
        out["headers"] = {"type": "object", "properties": dict(message.headers)}
    key = {"type": "string", "description": message.key}
    out["bindings"] = {"kafka": {"key": key, "bindingVersion": "0.5.0"}}
    return out
