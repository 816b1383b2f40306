"""Makes sure that no worker runs before something of theirs is rebuilt, and that none can write.

First the group is asked whether it has members: that harms nobody. Then the transactional producer
of each partition is opened, as a new worker does: from then on Kafka refuses whatever a worker that
nobody knows of (frozen, cut off, out of the group) would still write.
"""

from collections.abc import Mapping, Sequence

from confluent_kafka import TopicPartition

from durabill.stream_processors.audit.errors import AuditError
from durabill.stream_processors.kafka.appending import Appender
from durabill.stream_processors.kafka.group_offsets import commit_from_outside, read_group_offsets
from durabill.stream_processors.kafka.options import LOOK_GROUP, quiet
from durabill.stream_processors.kafka.reading import read_bounds
from durabill.stream_processors.settings import Settings


def writer_id(settings: Settings, partition: int) -> str:
    """Return the transactional id by which a partition's owner writes."""
    return f"{settings.application_id}-{partition}"


def make_sure(settings: Settings, partitions: Sequence[int], *, dry_run: bool) -> None:
    """Raise AuditError if a worker is in the group; unless `dry_run`, no worker can write then.

    A group that has never committed can't be asked. Unless `dry_run` it gets an offset, the log's
    first, which is an answer too. From then on no worker starts without a checkpoint.
    """
    kafka, group = quiet(settings.librdkafka()), settings.application_id
    topic = settings.segments_topic
    offsets = read_group_offsets(kafka, group, topic, partitions)
    known = {each: offset for each, offset in offsets.items() if offset is not None}
    if not dry_run:
        bounds = read_bounds(kafka, LOOK_GROUP, topic, partitions)
        known = {each: known.get(each, bounds[each][0]) for each in partitions}
    if known and not commit(settings, known):
        raise AuditError(
            f"workers of the application id {group} are running. Stop all of them, and run this"
            " again; clients and gateways may go on. (One that was killed counts for some seconds.)"
        )
    if not dry_run:
        fence(settings, partitions)


def commit(settings: Settings, offsets: Mapping[int, int]) -> bool:
    """Set the group's offsets; False: it has members, and nothing was changed."""
    places = [
        TopicPartition(settings.segments_topic, partition, offset)
        for partition, offset in sorted(offsets.items())
    ]
    return commit_from_outside(quiet(settings.librdkafka()), settings.application_id, places)


def fence(settings: Settings, partitions: Sequence[int]) -> None:
    """Have Kafka refuse whatever a worker that has one of the partitions would still write."""
    for each in partitions:
        Appender(quiet(settings.librdkafka()), writer_id(settings, each)).close()
