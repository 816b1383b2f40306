"""How far an archive reaches beside Kafka's log: for the topics' check, and for a worker's error.

Reads the manifest alone, so it needs none of the packages that archiving needs.
"""

from pathlib import Path
from typing import Any, NamedTuple

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from durabill.schemas.errors import ContractError, DurabillError, SegmentsLost
from durabill.stream_processors.audit.archive.folder import ArchiveFolder
from durabill.stream_processors.audit.archive.manifest import LOG_FIELDS, ArchiveOf, Reach
from durabill.stream_processors.kafka.errors import Right, patiently
from durabill.stream_processors.kafka.options import LOOK_GROUP, quiet
from durabill.stream_processors.kafka.reading import read_bounds
from durabill.stream_processors.kafka.topic_ids import find_topic_ids
from durabill.stream_processors.settings import Settings

OFFSETS_PER_FILE = 1_000_000


def live_log(settings: Settings, offsets_per_file: int = OFFSETS_PER_FILE) -> ArchiveOf:
    """Return which log the segments topic is, as an archive's entry 0 says it."""
    kafka: dict[str, Any] = quiet(settings.librdkafka())
    topic = settings.segments_topic
    admin = AdminClient(kafka)
    right = Right("Describe", "topic", topic)
    metadata = patiently(
        lambda timeout_s: admin.list_topics(topic, timeout=timeout_s), "the cluster", kafka, right
    )
    if not metadata.cluster_id:
        raise ContractError(
            "this Kafka doesn't tell its cluster's id, by which logs are told apart"
        )
    return ArchiveOf(
        cluster_id=metadata.cluster_id,
        topic=topic,
        topic_id=find_topic_ids(kafka, topic)[topic],
        partitions=len(metadata.topics[topic].partitions),
        offsets_per_file=offsets_per_file,
    )


class Coverage(NamedTuple):
    """Whether an archive has all that Kafka's log lacks, and what to say of it."""

    is_whole: bool
    words: tuple[str, ...]


def coverage(settings: Settings) -> Coverage:
    """Return whether the archive of the settings covers what retention takes from the segments."""
    root = settings.archive_dir
    if not root:
        return Coverage(is_whole=False, words=())
    try:
        manifest = ArchiveFolder(Path(root)).manifest()
        live = live_log(settings)
        kafka = quiet(settings.librdkafka())
        bounds = read_bounds(kafka, LOOK_GROUP, live.topic, range(live.partitions))
    except (DurabillError, KafkaException) as error:
        word = f"how far the archive in {root} reaches can't be told: {error}"
        return Coverage(is_whole=False, words=(word,))
    for name, meaning in LOG_FIELDS.items():
        if getattr(manifest.of, name) != getattr(live, name):
            word = (
                f"the archive in {root} (DURABILL_ARCHIVE_DIR) is of another log: its {meaning} is"
                f" {getattr(manifest.of, name)}, here it is {getattr(live, name)}"
            )
            return Coverage(is_whole=False, words=(word,))
    return compared(root, live.topic, manifest.reach(), bounds)


def compared(
    root: str, topic: str, reach: dict[int, Reach], bounds: dict[int, tuple[int, int]]
) -> Coverage:
    """Return what an archive covers of a log with these bounds."""
    holes, behind = [], 0
    for partition, each in sorted(reach.items()):
        first, end = bounds[partition]
        if not each.files and first > 0:
            holes.append(f"{topic}/{partition} from 0 to {first - 1}")
        elif each.files and each.first_offset > 0:
            holes.append(f"{topic}/{partition} from 0 to {each.first_offset - 1}")
        if each.files and each.next_offset < first:
            holes.append(f"{topic}/{partition} from {each.next_offset} to {first - 1}")
        behind += max(0, end - max(first, each.next_offset))
    if holes:
        more = f" and {len(holes) - 3} more" if len(holes) > 3 else ""
        word = (
            f"neither Kafka nor the archive in {root} has {', '.join(holes[:3])}{more}: totals that"
            " rest on these offsets can no longer be proven"
        )
        return Coverage(is_whole=False, words=(word,))
    word = f"the archive in {root} has all that Kafka has deleted of {topic}"
    if behind:
        word += f", and is {behind:,} offsets behind its end"
    return Coverage(is_whole=True, words=(word,))


def word_of_lost(settings: Settings, lost: SegmentsLost) -> str:
    """Return what to say of the archive where a worker's next segments are gone; "": nothing."""
    root = settings.archive_dir
    if not root:
        return ""
    try:
        reach = ArchiveFolder(Path(root)).manifest().reach().get(lost.partition)
    except DurabillError as error:
        return f"whether the archive in {root} has the lost segments can't be told: {error}"
    if reach is not None and reach.first_offset <= lost.next_offset < reach.next_offset:
        return (
            f"the archive in {root} has {lost.topic}/{lost.partition} up to offset"
            f" {reach.next_offset - 1}, the lost segments among them. Stop the workers, and build"
            " the checkpoint from it: durabill rebuild checkpoint"
        )
    end = (
        "nothing" if reach is None or not reach.files else f"offsets up to {reach.next_offset - 1}"
    )
    return f"the archive in {root} doesn't have them: of that partition it has {end}"
