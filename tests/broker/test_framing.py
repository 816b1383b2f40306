"""Totals and segments in a registry's framing, by Apicurio and Confluent's own client."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka.schema_registry import SchemaRegistryClient, record_subject_name_strategy
from confluent_kafka.schema_registry.avro import AvroDeserializer, AvroSerializer
from confluent_kafka.serialization import MessageField, SerializationContext

from durabill.producers.sdk.kafka_uplink import KafkaUplink
from durabill.schemas import (
    SEGMENT_SCHEMA,
    TOTAL_SCHEMA,
    SegmentEvent,
    decode_total,
    encode_segment,
    registry_framing,
)
from durabill.schemas.errors import ContractError
from durabill.stream_processors.worker.registry import Registry
from durabill.stream_processors.worker.subjects import State, look_up, registered, value_subject
from tests.broker.apicurio_kit import apicurio
from tests.broker.test_cli import run
from tests.broker.traffic_kit import Pair, now_ms, segment
from tests.broker.worker_kit import Deployment, deployment
from tests.waiting import wait_until

OTHERS = {
    "type": "record",
    "name": "OrderTotal",
    "namespace": "billing",
    "fields": [{"name": "service_order_number", "type": "int"}],
}


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with apicurio(tmp_path_factory.mktemp("apicurio")) as url:
        yield url


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[SchemaRegistryClient]:
    """Confluent's own client of it."""
    with SchemaRegistryClient({"url": url}) as client:
        yield client


@pytest.fixture
def deployed(bootstrap_servers: str, tmp_path: Path) -> Iterator[Deployment]:
    with deployment(bootstrap_servers, tmp_path, partitions=2, idle_timeout_s=60) as made:
        yield made


def serialized(client: SchemaRegistryClient, topic: str, event: SegmentEvent) -> Pair:
    """A segment as Confluent's serializer writes it, under a subject of its own."""
    write = AvroSerializer(
        client,
        json.dumps(SEGMENT_SCHEMA),
        conf={"subject.name.strategy": record_subject_name_strategy},
    )
    fields = {name: getattr(event, name) for name in SegmentEvent.__slots__}
    value = write(fields, SerializationContext(topic, MessageField.VALUE))
    assert value is not None
    return event.service_order_number.encode(), value


def test_totals_and_segments_go_through_a_registry_and_are_proven(
    deployed: Deployment, url: str, client: SchemaRegistryClient
) -> None:
    """One topic takes a serializer's segments, framed ones and plain ones; totals are read."""
    worker = deployed.start_and_wait(schema_registry_url=url, totals_framing="confluent")
    at_ms = now_ms() - 1_000
    segments = [
        SegmentEvent("SO1", each, at_ms + each * 100, at_ms + each * 100 + 100, each == 3)
        for each in (1, 2, 3)
    ]
    framing = registry_framing(
        registered(Registry(url), value_subject(deployed.segments), SEGMENT_SCHEMA).schema_id or 0
    )
    deployed.send(
        [
            serialized(client, deployed.segments, segments[0]),
            (b"SO1", encode_segment(segments[1])),
        ]
    )
    uplink = KafkaUplink(deployed.kafka, deployed.segments, framing=framing)
    assert uplink.send([segments[2]]).accepted == [0]
    wait_until(lambda: len(deployed.found_totals()) == 1, "the order is complete")
    message = deployed.found_totals()[0]
    value = message.value()
    assert isinstance(value, bytes)
    read = AvroDeserializer(client)
    record = read(value, SerializationContext(deployed.totals, MessageField.VALUE))
    assert isinstance(record, dict)
    assert (record["status"], record["duration_ms"], record["segments"]) == ("COMPLETE", 300, 3)
    assert decode_total(value).duration_ms == 300
    versions = client.get_versions(value_subject(deployed.totals))
    assert versions == [1]

    worker.kill()  # a total that is framed is known for the one that the replay gives again
    worker = deployed.start_and_wait(schema_registry_url=url, checkpoint_interval_s=600)
    deployed.send([segment("SO2", 1, at_ms, at_ms + 100, end=True)])
    wait_until(lambda: len(deployed.found_totals()) == 2, "plain totals beside framed ones")
    assert worker.stop() == 0
    audited = run(
        "audit",
        *("--bootstrap-servers", deployed.bootstrap_servers, "--application-id", deployed.name),
        *("--segments-topic", deployed.segments, "--totals-topic", deployed.totals),
        *("--dead-letters-topic", deployed.dead_letters, "--schema-registry-url", url, "--json"),
    )
    assert audited.returncode == 0, audited.stdout + audited.stderr
    told = json.loads(audited.stdout.splitlines()[-1])
    assert (told["proven"], told["findings_count"]) == (2, 0), told


def test_a_schema_is_registered_only_where_it_is_compatible(
    url: str, client: SchemaRegistryClient
) -> None:
    registry = Registry(url)
    subject = value_subject("framing.taken")
    assert look_up(registry, subject, TOTAL_SCHEMA).state is State.NEW
    first = registered(registry, subject, TOTAL_SCHEMA)
    assert first == registered(registry, subject, TOTAL_SCHEMA), "again changes nothing"
    assert client.get_versions(subject) == [1]

    taken = value_subject("framing.others")
    registered(registry, taken, OTHERS)
    client.set_compatibility(subject_name=taken, level="BACKWARD")
    assert look_up(registry, taken, TOTAL_SCHEMA).state is State.INCOMPATIBLE
    with pytest.raises(ContractError, match="not compatible"):
        registered(registry, taken, TOTAL_SCHEMA)
    assert client.get_versions(taken) == [1]


def test_the_command_says_what_is_registered_and_registers(url: str) -> None:
    flags = (
        *("--schema-registry-url", url, "--json"),
        *("--segments-topic", "framing.cli.segments", "--totals-topic", "framing.cli.totals"),
    )

    def states(command: str) -> list[str]:
        ran = run("schemas", command, *flags)
        assert ran.returncode == 0, ran.stderr
        return [each["state"] for each in json.loads(ran.stdout)["subjects"]]

    assert states("check") == ["new", "new"]
    assert states("register") == ["registered", "registered"]
    assert states("check") == ["registered", "registered"]
