"""Reads what partitions have recorded beside their checkpoints: policies, schemas, how far."""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from confluent_kafka import KafkaException

from durabill.schemas.errors import DurabillError, StateError
from durabill.stream_processors.audit.replay import PartitionTerms
from durabill.stream_processors.engine.checkpoint import META, entry_key, meta_in
from durabill.stream_processors.engine.policies import (
    POLICY,
    PolicyRecord,
    Terms,
    decode_history,
)
from durabill.stream_processors.engine.verdicts import SCHEMAS
from durabill.stream_processors.kafka.options import quiet
from durabill.stream_processors.kafka.reading import Progress, read_topic
from durabill.stream_processors.settings import Settings, checkpoint_topic

NOT_RECORDED = "no worker has recorded a policy under this application id"


class RecordedTerms:
    """What the checkpoint topic has recorded of partitions; read when this is made.

    Where a partition has nothing under the application id, the previous one's counts, as for a
    worker that begins there. `why` says why nothing could be read; it is empty if something could.
    """

    def __init__(
        self, settings: Settings, partitions: Iterable[int], progress: Progress | None = None
    ) -> None:
        self._settings = settings
        self._own: dict[bytes, bytes] = {}
        self._previous: dict[bytes, bytes] = {}
        self.why = ""
        wanted = frozenset(partitions)
        try:
            self._own = read_entries(
                settings, settings.checkpoint_topic, wanted, (POLICY, SCHEMAS, META), progress
            )
        except (DurabillError, KafkaException) as error:
            # Nobody needs a right on the checkpoint to look at the log.
            self.why = f"the recorded policy can't be read: {_first_sentence(error)}"
        heirs = frozenset(each for each in wanted if entry_key(each, POLICY) not in self._own)
        if settings.previous_application_id and heirs:
            topic = checkpoint_topic(settings.previous_application_id)
            try:
                self._previous = read_entries(settings, topic, heirs, (POLICY, SCHEMAS), progress)
            except (DurabillError, KafkaException) as error:
                self.why = self.why or _first_sentence(error)

    def of(self, partition: int) -> PartitionTerms:
        """Return a partition's terms; the settings' where none could be read, with the reason."""
        entries = self._own if entry_key(partition, POLICY) in self._own else self._previous
        schemas = self._own.get(entry_key(partition, SCHEMAS))
        schemas = schemas or self._previous.get(entry_key(partition, SCHEMAS))
        why = self.why or NOT_RECORDED
        try:
            history = decode_history(entries.get(entry_key(partition, POLICY)))
        except StateError as error:
            history, why = (), str(error)
        if history:
            return PartitionTerms(history, schemas)
        terms = Terms(self._settings.policy, registry=bool(self._settings.schema_registry_url))
        return PartitionTerms((PolicyRecord(0, terms),), schemas, why)

    def has_checkpoint(self, partition: int) -> bool:
        """Tell whether a worker of this application id has ever had the partition."""
        return entry_key(partition, META) in self._own

    def published_to(self, partition: int) -> int | None:
        """Return the offset up to which all that the log gives has been published.

        None where there is no checkpoint to go by.
        """
        meta = meta_in(self._own, partition)
        return None if meta is None else meta.next_offset


def are_other(before: PartitionTerms, now: PartitionTerms, end_offset: int) -> bool:
    """Tell whether terms recorded by now decide a log up to an offset otherwise than those before.

    What is recorded for a later offset changes nothing.
    """
    histories = [
        [each for each in terms.history if each.from_offset < end_offset] for terms in (before, now)
    ]
    return histories[0] != histories[1] or before.schemas != now.schemas


def read_entries(
    settings: Settings,
    topic: str,
    partitions: Collection[int],
    names: Collection[str] | None = None,
    progress: Progress | None = None,
) -> dict[bytes, bytes]:
    """Return the latest content of a checkpoint topic's entries; None: of all names."""
    wanted = {entry_key(each, name) for each in partitions for name in names or ()}
    latest: dict[bytes, bytes | None] = {}
    kafka: Mapping[str, Any] = quiet(settings.librdkafka())
    for _, _, message in read_topic(
        kafka, topic, partitions=frozenset(partitions), progress=progress
    ):
        key, value = _bytes(message.key()), _bytes(message.value())
        if key is not None and (names is None or key in wanted):
            latest[key] = value
    return {key: value for key, value in latest.items() if value is not None}


def _bytes(content: str | bytes | None) -> bytes | None:
    return content.encode() if isinstance(content, str) else content


def _first_sentence(error: Exception) -> str:
    cause = error.args[0].str() if isinstance(error, KafkaException) else str(error)
    return cause.splitlines()[0].partition(". ")[0]
