"""Creates Durabill's topics, and checks those that somebody else created.

Which settings matter, and why:

    segments      message.timestamp.type=LogAppendTime: arrival is the broker's word. A must.
                  cleanup.policy=delete: a compacted one keeps one segment of each order.
                  retention.ms=-1: the log is the evidence (finite is fine for who has an archive).
    totals        cleanup.policy=delete and retention.ms=-1: every revision stays.
    orders        the same, and as many partitions as segments.
    dead letters  the same.
    max.message.bytes, everywhere: what a worker has to write must fit, or it could never go on.
    checkpoint    cleanup.policy=compact (only the last state of a block counts), blocks of up to
                  16 MiB. As many partitions as segments, as have the totals.
    seal          cleanup.policy=compact: the last checkpoint of each sealed log. One partition.
"""

import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from confluent_kafka import KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import (
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewTopic,
    ResourceType,
)

from durabill.schemas.errors import (
    OWN_APPLICATION_ID,
    AccessError,
    ContractError,
    UnreachableError,
)
from durabill.schemas.limits import CHECKPOINT_ENTRY_BYTES_MAX
from durabill.schemas.topics import Topics
from durabill.stream_processors.kafka.errors import (
    Right,
    answer_of,
    judged,
    patiently,
    user_of,
)
from durabill.stream_processors.kafka.group_offsets import read_committed_offsets
from durabill.stream_processors.kafka.options import quiet

MIB = 1024 * 1024
TIMEOUT_S = 30.0
SPREADS_S = 2.0

_KEPT = {
    "message.timestamp.type": "LogAppendTime",
    "retention.ms": "-1",
    "retention.bytes": "-1",
    "cleanup.policy": "delete",
}
_MESSAGE_BYTES_MIN: Mapping[str, tuple[int, str]] = {
    # Kafka's own default, and enough for `limits.FORWARD_BYTES_MAX`.
    "segments": (1_048_588, "records that are sent on"),
    "totals": (16 * MIB, "a total, which lists every interval and gap of an order,"),
    "orders": (1_048_588, "the opening of an order"),
    # Enough for `limits.LETTER_BYTES_MAX`.
    "dead_letters": (2 * MIB, "a rejected record"),
    "checkpoint": (CHECKPOINT_ENTRY_BYTES_MAX, "a block of orders"),
    "seal": (1_048_588, "a checkpoint of the sealed log"),
}
_SETTINGS: Mapping[str, Mapping[str, str]] = {
    "segments": _KEPT,
    "totals": _KEPT,
    "orders": _KEPT,
    "dead_letters": _KEPT,
    "checkpoint": {
        "cleanup.policy": "compact",
        "segment.bytes": str(64 * MIB),
        "min.cleanable.dirty.ratio": "0.2",
    },
    "seal": {"cleanup.policy": "compact"},
}
AS_MANY_PARTITIONS_AS_SEGMENTS = ("totals", "orders", "checkpoint")


@dataclass(frozen=True)
class TopicsCheck:
    """What `check_topics` found in topics that can be used.

    `partitions` is the count of segments, totals, orders and checkpoint. `warnings` are for the
    operator, each a whole sentence.
    """

    partitions: int
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class _Found:
    role: str
    name: str
    partitions: int
    settings: Mapping[str, str]


def topic_settings(role: str) -> dict[str, str]:
    """Return the settings that the topic of a role is made with, but for those of replicas."""
    return {**_SETTINGS[role], "max.message.bytes": str(_MESSAGE_BYTES_MIN[role][0])}


def create_topics(
    kafka: Mapping[str, Any],
    topics: Topics,
    *,
    partitions: int,
    replication_factor: int | None = None,
    alter: bool = False,
) -> TopicsCheck:
    """Create those of the topics that are missing, wait until they can be used, and check all.

    `kafka` is librdkafka's client configuration. `replication_factor` None: 3, or as many as there
    are brokers. Existing topics stay as they are, except that `alter` gives them our settings
    (never other partitions: that would move orders; and never smaller messages). Raises what
    `check_topics` raises; ContractError also when Kafka refuses to create or alter a topic.
    """
    admin = _admin(kafka)
    names = topics.by_role
    existing = _partition_counts(admin, kafka, names)
    missing = {role: name for role, name in names.items() if name not in existing}
    replication_factor, in_sync = _replicas(admin, replication_factor)
    settings = {role: {**topic_settings(role), **in_sync} for role in names}
    if alter:
        _alter(
            admin, kafka, {name: settings[role] for role, name in names.items() if name in existing}
        )
    made = [
        NewTopic(
            name, 1 if role == "seal" else partitions, replication_factor, config=settings[role]
        )
        for role, name in missing.items()
    ]
    if made:
        _await_created(kafka, admin.create_topics(made, operation_timeout=TIMEOUT_S))
        _await_leaders(admin, set(missing.values()))
    return check_topics(kafka, topics, partitions=partitions)


def has_topic(kafka: Mapping[str, Any], name: str) -> bool:
    """Tell whether Kafka has a topic of this name, or gets it within a second.

    Raises UnreachableError.
    """
    admin, until_s = _admin(kafka), time.monotonic() + 1
    while name not in _partition_counts(admin, kafka, {"": name}):
        if time.monotonic() > until_s:
            return False
        time.sleep(0.1)  # one that was just made, and that not all brokers know yet
    return True


def create_totals_topic(
    kafka: Mapping[str, Any], name: str, *, partitions: int, replication_factor: int | None = None
) -> None:
    """Make sure that there is a topic for totals besides the deployment's own, and that it will do.

    `replication_factor` None: as `create_topics`. Raises ContractError where a topic of this name
    has other partitions or settings, AccessError and UnreachableError as `create_topics`.
    """
    admin = _admin(kafka)
    if name not in _partition_counts(admin, kafka, {"totals": name}):
        replication_factor, in_sync = _replicas(admin, replication_factor)
        config = {**topic_settings("totals"), **in_sync}
        new = NewTopic(name, partitions, replication_factor, config=config)
        _await_created(kafka, admin.create_topics([new], operation_timeout=TIMEOUT_S))
        _await_leaders(admin, {name})
    count = _partition_counts(admin, kafka, {"totals": name})[name]
    found = _Found("totals", name, count, _settings(admin, kafka, [name])[name])
    wrong = [*_wrong_settings([found], _servers(kafka))]
    if count != partitions:
        wrong.append(
            f"- {name} has {count} partitions, and the segments have {partitions}; they must have"
            " the same. Use another topic name."
        )
    if wrong:
        raise ContractError("\n".join(["This topic can't be used:", *wrong]))


def check_topics(
    kafka: Mapping[str, Any],
    topics: Topics,
    *,
    partitions: int | None = None,
    is_archived: bool = False,
) -> TopicsCheck:
    """Return what a worker that starts on these topics must know.

    Raises ContractError with everything that is wrong at once, and the commands that put it right;
    AccessError where a topic is missing or hidden, UnreachableError where Kafka doesn't answer.
    `partitions`, where given, is the count that is expected of segments, totals, orders and
    checkpoint.
    Where `is_archived`, an archive has whatever the segments' retention takes.
    """
    admin = _admin(kafka)
    names = topics.by_role
    counts = _partition_counts(admin, kafka, names)
    until_s = time.monotonic() + SPREADS_S
    while missing := [name for name in names.values() if name not in counts]:
        if time.monotonic() > until_s:
            count = partitions or counts.get(topics.segments, 4)
            raise AccessError(
                f"Kafka has no topic {', '.join(missing)}, or hides it: that is what it does where "
                f"{user_of(kafka)} has no right on it. Create what is missing with: "
                f"durabill topics create --partitions {count}"
            )
        time.sleep(0.1)  # a broker that has just started may not know all of them yet
        counts = _partition_counts(admin, kafka, names)
    settings = _settings(admin, kafka, list(names.values()))
    found = [_Found(role, name, counts[name], settings[name]) for role, name in names.items()]
    wrong = [*_wrong_settings(found, _servers(kafka)), *_wrong_partitions(found, partitions)]
    if wrong:
        raise ContractError("\n".join(["These topics can't be used:", *wrong]))
    return TopicsCheck(counts[topics.segments], tuple(_warnings(found, is_archived)))


def check_group(kafka: Mapping[str, Any], *, application_id: str, segments: str) -> None:
    """Raise ContractError where the group of this name reads other topics than `segments`.

    A second deployment under one application id would share out the first one's partitions, and
    write over its checkpoints.
    """
    admin = _admin(kafka)
    what = f"the offsets of the group {application_id}"
    topics = patiently(lambda s: admin.list_topics(timeout=s), what, kafka).topics
    # Offsets are told for places that are named, so all are; those in a topic that is gone went
    # with it. (`list_consumer_group_offsets`, which asks for all, crashes on new clusters.)
    places = [
        TopicPartition(topic, partition)
        for topic, found in topics.items()
        if not topic.startswith("__") and topic != segments
        for partition in found.partitions
    ]
    known = read_committed_offsets(kafka, application_id, places) if places else []
    others = sorted({each.topic for each in known if each.offset >= 0})
    if others:
        raise ContractError(
            f"The application id {application_id} is in use for {', '.join(others)}: another "
            f"deployment, or this one before its segments topic was {segments}. "
            f"{OWN_APPLICATION_ID}."
        )


def _servers(kafka: Mapping[str, Any]) -> str:
    return str(kafka.get("bootstrap.servers", "(no bootstrap.servers)"))


def _admin(kafka: Mapping[str, Any]) -> AdminClient:
    return AdminClient(quiet(kafka))


def _replicas(admin: AdminClient, wanted: int | None) -> tuple[int, dict[str, str]]:
    """Return how many replicas a topic gets, and the settings that it has for them."""
    count = min(3, len(admin.list_topics(timeout=TIMEOUT_S).brokers)) if wanted is None else wanted
    return count, {"min.insync.replicas": "2"} if count >= 3 else {}


def _partition_counts(
    admin: AdminClient, kafka: Mapping[str, Any], names: Mapping[str, str]
) -> dict[str, int]:
    """Return the partition count of each of the named topics that exists."""
    try:
        topics = admin.list_topics(timeout=TIMEOUT_S).topics
    except KafkaException as error:
        raise UnreachableError(
            f"Kafka at {_servers(kafka)} does not answer ({error.args[0].str()}). Start one with "
            "`durabill kafka start`, or set DURABILL_BOOTSTRAP_SERVERS to one that runs."
        ) from error
    return {name: len(topics[name].partitions) for name in names.values() if name in topics}


def _settings(
    admin: AdminClient, kafka: Mapping[str, Any], names: list[str]
) -> dict[str, dict[str, str]]:
    resources = [ConfigResource(ResourceType.TOPIC, name) for name in names]

    def ask(timeout_s: float) -> dict[str, dict[str, str]]:
        asked = admin.describe_configs(resources, request_timeout=timeout_s)
        described = {each.name: answer_of(future, timeout_s + 1) for each, future in asked.items()}
        return {
            name: {key: str(entry.value) for key, entry in entries.items()}
            for name, entries in described.items()
        }

    rights = (Right("DescribeConfigs", "topic", name) for name in names)
    return patiently(ask, "the topics' settings", kafka, *rights)


def _alter(
    admin: AdminClient, kafka: Mapping[str, Any], wanted: Mapping[str, dict[str, str]]
) -> None:
    if not wanted:
        return
    now = _settings(admin, kafka, list(wanted))
    for name, ours in wanted.items():
        sizes = (int(each[name]["max.message.bytes"]) for each in (now, wanted))
        ours["max.message.bytes"] = str(max(sizes))
    resources = [
        ConfigResource(
            ResourceType.TOPIC,
            name,
            incremental_configs=[
                ConfigEntry(key, value, incremental_operation=AlterConfigOpType.SET)
                for key, value in settings.items()
            ],
        )
        for name, settings in wanted.items()
    ]
    try:
        for future in admin.incremental_alter_configs(resources).values():
            future.result(timeout=TIMEOUT_S)
    except KafkaException as error:
        rights = (Right("AlterConfigs", "topic", name) for name in wanted)
        refusal = judged(error.args[0], kafka, *rights)
        if isinstance(refusal, AccessError):
            raise refusal from error
        why = error.args[0].str()
        raise ContractError(f"The topics' settings can't be changed: {why}") from error
    except TimeoutError as error:
        raise UnreachableError("The topics' settings can't be changed: Kafka is silent.") from error
    # The controller has them now; the broker that answers our next question, a little later.
    deadline_s = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline_s:
        settings = _settings(admin, kafka, list(wanted))
        if all(want.items() <= settings[name].items() for name, want in wanted.items()):
            return
        time.sleep(0.05)
    raise UnreachableError(
        f"New settings of {', '.join(wanted)} took no effect in {TIMEOUT_S:g} s."
    )


def _await_created(kafka: Mapping[str, Any], futures: Mapping[str, Future[None]]) -> None:
    for name, future in futures.items():
        try:
            future.result(timeout=TIMEOUT_S + 5)
        except KafkaException as error:
            # Somebody else was faster, and the check below says whether theirs will do.
            if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                reason = error.args[0].str()
                refusal = judged(error.args[0], kafka, Right("Create", "topic", name))
                if isinstance(refusal, AccessError):
                    raise refusal from error
                raise ContractError(f"Kafka refuses to create topic {name}: {reason}") from error
        except TimeoutError as error:
            what = f"Kafka doesn't answer whether topic {name} is created."
            raise UnreachableError(what) from error


def _await_leaders(admin: AdminClient, names: set[str]) -> None:
    """Wait until each partition has a leader, which is a little after its topic's creation."""
    deadline_s = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline_s:
        topics = admin.list_topics(timeout=TIMEOUT_S).topics
        if all(
            name in topics
            and topics[name].partitions
            and all(p.leader >= 0 for p in topics[name].partitions.values())
            for name in names
        ):
            return
        time.sleep(0.05)
    raise UnreachableError(
        f"Topics {', '.join(sorted(names))} got no leader within {TIMEOUT_S:g} s."
    )


def _wrong_settings(found: list[_Found], servers: str) -> Iterator[str]:
    for topic in found:
        fixes: dict[str, str] = {}
        if topic.role == "segments":
            kind = topic.settings["message.timestamp.type"]
            if kind != "LogAppendTime":
                fixes["message.timestamp.type"] = "LogAppendTime"
                yield (
                    f"- {topic.name} has message.timestamp.type={kind}; billing goes by the "
                    "broker's clock, so it must be LogAppendTime. (Records that are in it already "
                    "keep their senders' time: if there are any, rather use a new topic.)"
                )
        policy = topic.settings["cleanup.policy"]
        wanted = _SETTINGS[topic.role]["cleanup.policy"]
        if policy != wanted:
            fixes["cleanup.policy"] = wanted
            why = "old entries pile up" if wanted == "compact" else "records would be forgotten"
            yield f"- {topic.name} has cleanup.policy={policy}; it must be {wanted}, or {why}."
        size = int(topic.settings["max.message.bytes"])
        needed, what = _MESSAGE_BYTES_MIN[topic.role]
        if size < needed:
            fixes["max.message.bytes"] = str(needed)
            yield f"- {topic.name} has max.message.bytes={size}; {what} may need {needed}."
        if fixes:
            config = ",".join(f"{key}={value}" for key, value in fixes.items())
            yield (
                "  To put it right: durabill topics create --alter\n"
                f"  or: kafka-configs.sh --bootstrap-server {servers} --alter --entity-type topics "
                f"--entity-name {topic.name} --add-config {config}"
            )


def _wrong_partitions(found: list[_Found], expected: int | None) -> Iterator[str]:
    segments = next(topic for topic in found if topic.role == "segments")
    if expected is not None and segments.partitions != expected:
        yield (
            f"- {segments.name} has {segments.partitions} partitions, not {expected}. A topic in "
            f"use must keep its count: ask for {segments.partitions}, or use other topic names."
        )
    for topic in found:
        if topic.role in AS_MANY_PARTITIONS_AS_SEGMENTS and topic.partitions != segments.partitions:
            yield (
                f"- {topic.name} has {topic.partitions} partitions and {segments.name} has "
                f"{segments.partitions}; they must have the same. Delete {topic.name} if it is "
                "empty and run `durabill topics create`, or use another topic name."
            )


def _warnings(found: list[_Found], is_archived: bool) -> Iterator[str]:
    for topic in found:
        if topic.role in ("checkpoint", "seal") or (topic.role == "segments" and is_archived):
            continue
        for key in ("retention.ms", "retention.bytes"):
            if topic.settings[key] != "-1":
                yield (
                    f"{topic.name} has {key}={topic.settings[key]}: older records are deleted, and "
                    "totals that rest on them can no longer be proven from the log."
                )
        if topic.role == "totals" and topic.settings["message.timestamp.type"] != "LogAppendTime":
            yield f"{topic.name} has message.timestamp.type=CreateTime; LogAppendTime is usual."
