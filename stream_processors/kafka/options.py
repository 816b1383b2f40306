"""The options of every confluent-kafka client of the stream processors, each with its why.

`kafka` is always the connection: addresses and security, as `Settings.librdkafka` gives it. What
decides about loss, order or place stands after it here, so that no configuration can undo it. (The
worker's own consumer is Faust's: its options stand in `worker.app` and `worker.driver`. Producers
of segments have theirs in `producers.sdk`.)
"""

import logging
from collections.abc import Mapping
from typing import Any

from confluent_kafka import KafkaError

from durabill.schemas import PARTITIONER
from durabill.stream_processors.kafka.news import ConnectionNews

LOOK_GROUP = "durabill-look"
"""By this name commands read the log and the totals; nobody ever joins the group."""

DEAD_LETTERS_GROUP = "durabill-dead-letters"
"""By this name dead letters are read; nobody ever joins the group."""

TRANSACTION_TIMEOUT_S = 60

_STATISTICS_INTERVAL_MS = 1_000
_ANY_SIZE_BYTES = 1_000_000_000
"""The topic decides how large a record may be. With a second, smaller limit here a worker could
never go on where it has to write a larger block or dead letter."""

log = logging.getLogger("durabill.kafka")


def ledger_group(application_id: str) -> str:
    """Return the consumer group of an application's ledgers."""
    return f"{application_id}-ledger"


def quiet(kafka: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration of a client that says nothing by itself.

    For clients that nobody polls in between: what matters comes as an error. (Without a logger
    librdkafka would print some lines at any level.)
    """
    return {**kafka, "log_level": "0", "logger": log, "error_cb": _ignore}


def telling(kafka: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration of a client that is polled all the time: it tells how Kafka is.

    One such client in a process is enough. Of librdkafka's log lines only the worst go to our log.
    The rest is told as news: once that brokers fail, with the cause, and once that they answer
    again.
    """
    news = ConnectionNews()
    return {
        **kafka,
        "log_level": "2",
        "logger": log,
        "error_cb": news.on_error,
        "stats_cb": news.on_statistics,
        "statistics.interval.ms": _STATISTICS_INTERVAL_MS,
    }


def assigned_consumer(kafka: Mapping[str, Any], group: str) -> dict[str, Any]:
    """Return the configuration of a consumer that is assigned: it never joins, commits nothing.

    librdkafka asks for a group's coordinator all the same, so it goes by the name of the group that
    its process has a right on.
    """
    return {
        **quiet(kafka),
        "group.id": group,
        "enable.auto.commit": False,
        "enable.auto.offset.store": False,
        "isolation.level": "read_committed",  # an aborted transaction's records never were
        "enable.partition.eof": True,  # the end shows also where only markers lie before it
        "auto.offset.reset": "error",  # records that are gone must not go unnoticed
        "allow.auto.create.topics": False,  # topics are made by `durabill topics create` alone
        "fetch.wait.max.ms": 10,  # whoever reads to the end waits for the last answer
    }


def ledger_consumer(kafka: Mapping[str, Any], group: str) -> dict[str, Any]:
    """Return the configuration of the ledger's consumer, a member of its group."""
    return {
        # A killed ledger's partitions are free after 10 s; too short only costs a rebalance.
        "session.timeout.ms": 10_000,
        "heartbeat.interval.ms": 2_000,
        "queued.max.messages.kbytes": 16_384,  # bounds what is fetched ahead
        **kafka,
        "group.id": group,
        "isolation.level": "read_committed",  # an aborted transaction's totals never were
        "enable.auto.commit": False,  # offsets live in PostgreSQL
        "enable.auto.offset.store": False,
        "auto.offset.reset": "error",  # never skip or repeat in silence
        "enable.partition.eof": True,  # moves the offset past trailing transaction markers
        "partition.assignment.strategy": "range",  # eager: given whole, taken whole
        "check.crcs": True,  # a flipped bit must not become a bill
        "allow.auto.create.topics": False,
    }


def seal_consumer(kafka: Mapping[str, Any], group: str) -> dict[str, Any]:
    """Return the configuration of the sealer's consumer: assigned, and polled all the time."""
    return {
        **telling(assigned_consumer(kafka, group)),
        "check.crcs": True,  # a flipped bit must not be signed
        "fetch.wait.max.ms": 500,  # it waits for what comes, most of the time
        "queued.max.messages.kbytes": 32_768,  # bounds what is fetched ahead
    }


def checkpoint_producer(kafka: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration of what publishes the sealed log's checkpoints."""
    return {
        **_exact_producer(quiet(kafka)),
        "delivery.timeout.ms": 10_000,  # a checkpoint that is owed is tried again
        "allow.auto.create.topics": False,
    }


def transactional_producer(kafka: Mapping[str, Any], transactional_id: str) -> dict[str, Any]:
    """Return the configuration of what writes a partition's totals and checkpoint."""
    return {
        **quiet(kafka),
        "transactional.id": transactional_id,  # it fences every other producer of this id
        "acks": "all",  # a total that one broker alone has seen is not settled
        "enable.idempotence": True,  # a retry must not repeat or reorder revisions
        "transaction.timeout.ms": TRANSACTION_TIMEOUT_S * 1000,
        "compression.type": "lz4",
        "message.max.bytes": _ANY_SIZE_BYTES,  # a block of large orders may have any
        "linger.ms": 0,  # a commit flushes anyway
    }


def side_producer(kafka: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration of a worker's producer of dead letters and records sent on."""
    return {
        **_exact_producer(kafka),
        "compression.type": "lz4",
        "queue.buffering.max.messages": 200_000,  # one that is full holds the stream back
    }


def resending_producer(kafka: Mapping[str, Any], *, delivery_timeout_s: float) -> dict[str, Any]:
    """Return the configuration of what sends dead letters back into the segments topic."""
    return {
        **_exact_producer(kafka),
        "delivery.timeout.ms": int(delivery_timeout_s * 1000),
        "allow.auto.create.topics": False,
    }


def _exact_producer(kafka: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **kafka,
        "acks": "all",  # what one broker alone has seen can be lost with it
        "enable.idempotence": True,  # a retry must not repeat or reorder what goes out
        "partitioner": PARTITIONER,  # keys go where everybody's go
        "message.max.bytes": _ANY_SIZE_BYTES,  # a record may have any size that came in
        "linger.ms": 5,
    }


def _ignore(error: KafkaError) -> None:
    """Let an error that librdkafka tells in passing go: whoever asked gets it as well."""
