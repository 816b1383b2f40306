"""Which rights on Kafka each process and command needs, and whether it has them.

What stands here is what docs/operations.md says; a broker that grants exactly this tests both.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from confluent_kafka import KafkaException, TopicCollection
from confluent_kafka.admin import AclOperation, AdminClient

from durabill.stream_processors.kafka.errors import (
    Right,
    answer_of,
    lacks_right,
    lacks_topic,
    patiently,
)
from durabill.stream_processors.kafka.group_offsets import sees_group
from durabill.stream_processors.kafka.options import (
    DEAD_LETTERS_GROUP,
    LOOK_GROUP,
    ledger_group,
    quiet,
)

if TYPE_CHECKING:
    from durabill.stream_processors.settings import Settings

_OPERATIONS = {
    "Read": AclOperation.READ,
    "Write": AclOperation.WRITE,
    "Describe": AclOperation.DESCRIBE,
    "DescribeConfigs": AclOperation.DESCRIBE_CONFIGS,
}


def rights_of(settings: "Settings", role: str) -> list[Right]:
    """Return the rights that a role needs: a worker all of them, a command those on what it reads.

    `check` is `durabill topics check`. A worker also needs Write on transactional ids that begin
    with the application id, which shows when it opens them.
    """
    names, group = settings.topics, settings.application_id
    everything: dict[str, tuple[str, ...]] = {
        names.segments: ("Read", "Write", "DescribeConfigs"),
        names.totals: ("Read", "Write", "DescribeConfigs"),
        names.orders: ("Read", "Write", "DescribeConfigs"),
        names.dead_letters: ("Write", "DescribeConfigs"),
        names.checkpoint: ("Read", "Write", "DescribeConfigs"),
    }
    topics: dict[str, dict[str, tuple[str, ...]]] = {
        "worker": everything,
        "check": dict.fromkeys([*everything, settings.seal_topic], ("DescribeConfigs",)),
        "seal": {names.totals: ("Read",), settings.seal_topic: ("Read", "Write")},
        "seal check": {names.totals: ("Read",), settings.seal_topic: ("Read",)},
        "ledger": {names.totals: ("Read",), names.orders: ("Read",)},
        "gateway": {names.segments: ("Write",)},
        "fleet": {names.segments: ("Read", "Write")},
        "order": {names.segments: ("Read",), names.dead_letters: ("Read",)},
        "audit": dict.fromkeys(everything, ("Read",)),
        "totals": {names.totals: ("Read",)},
        "leakage": dict.fromkeys((names.totals, names.orders, names.dead_letters), ("Read",)),
        "letters": {names.dead_letters: ("Read",)},
        "archive": {names.segments: ("Read",)},
        "resend": {names.dead_letters: ("Read",), names.segments: ("Write",)},
        "replay": {names.segments: ("Read",)},
    }
    groups: dict[str, tuple[tuple[str, str], ...]] = {
        "worker": (("Read", group),),
        "check": (("Describe", group),),
        "seal": (("Describe", LOOK_GROUP),),
        "seal check": (("Describe", LOOK_GROUP),),
        "ledger": (("Read", ledger_group(group)),),
        "gateway": (),
        "fleet": (("Describe", "durabill-fleet"),),
        "order": (("Describe", LOOK_GROUP), ("Describe", DEAD_LETTERS_GROUP)),
        "audit": (("Describe", LOOK_GROUP), ("Describe", DEAD_LETTERS_GROUP)),
        "totals": (("Describe", LOOK_GROUP),),
        "leakage": (("Describe", LOOK_GROUP), ("Describe", DEAD_LETTERS_GROUP)),
        "letters": (("Describe", DEAD_LETTERS_GROUP),),
        "archive": (("Describe", LOOK_GROUP),),
        "resend": (("Describe", DEAD_LETTERS_GROUP),),
        "replay": (("Describe", LOOK_GROUP),),
    }
    return [
        *(Right(each, "topic", name) for name, those in topics[role].items() for each in those),
        *(Right(each, "group", name) for each, name in groups[role]),
    ]


def check_rights(kafka: dict[str, Any], rights: Sequence[Right]) -> None:
    """Ask Kafka what we may do; raise AccessError with every right that is missing.

    A topic that isn't there is passed over where Kafka says so: others say better what to do. Read
    on a group is looked for as far as `sees_group` can tell.
    """
    topics = list(dict.fromkeys(each.name for each in rights if each.kind == "topic"))
    allowed = _topics(AdminClient(quiet(kafka)), kafka, topics)
    hidden = [name for name, operations in allowed.items() if operations == frozenset()]
    missing = [
        each
        for each in rights
        if each.kind == "topic"
        and (known := allowed[each.name]) is not None
        and _OPERATIONS[each.operation] not in known
    ]
    missing += [
        each
        for each in rights
        if each.kind == "group" and not sees_group(kafka, each.name, topics[0])
    ]
    if missing:
        raise lacks_right(kafka, *missing, hidden=hidden)


def _topics(
    admin: AdminClient, kafka: dict[str, Any], names: list[str]
) -> dict[str, frozenset[AclOperation] | None]:
    """Return what we may do with each topic: nothing where it is hidden, None where unknown."""

    def ask(timeout_s: float) -> dict[str, frozenset[AclOperation] | None]:
        asked = admin.describe_topics(
            TopicCollection(names), include_authorized_operations=True, request_timeout=timeout_s
        )
        found: dict[str, frozenset[AclOperation] | None] = {}
        for name, future in asked.items():
            try:
                operations = answer_of(future, timeout_s + 1).authorized_operations
                found[name] = None if operations is None else frozenset(operations)
            except KafkaException as error:
                if lacks_topic(error.args[0]):
                    found[name] = None
                elif error.args[0].code() == error.args[0].TOPIC_AUTHORIZATION_FAILED:
                    found[name] = frozenset()
                else:
                    raise
        return found

    return patiently(ask, "what we may do with the topics", kafka)
