"""A broker that dies and comes back: under a worker's start, and under processes at work."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest
from confluent_kafka.admin import AdminClient, NewTopic

from durabill.deploy.local.kafka import LocalKafka
from durabill.deploy.topics import create_topics
from durabill.producers.gateway.server import GatewayConfig
from durabill.schemas import decode_segment
from durabill.schemas.topics import Topics
from tests.broker.gateway_kit import gateway, read_topic
from tests.broker.test_cli import start
from tests.broker.traffic_kit import traffic
from tests.broker.upload_kit import acknowledged, refused, uploading
from tests.broker.worker_kit import Worker, deployment
from tests.conftest import JARS_DIR, PROJECT_DIR, make_data_dir, remove_data_dir
from tests.waiting import HANG_S, wait_until

OUTAGE_S = 10.0
AWAY_S = 2.0
STARTS_S = (1.5, 2.5)
"""How long after a worker's start its broker is killed."""

FORGETFUL = """
import durabill.stream_processors.worker.membership as membership
membership.KnownTopics = lambda cluster, counts: cluster  # as Faust's own assignor
from aiokafka.cluster import ClusterMetadata
known = ClusterMetadata.partitions_for_topic
asked = []
def partitions_for_topic(self, topic):
    asked.append(topic)
    return None if len(asked) < 10 else known(self, topic)
ClusterMetadata.partitions_for_topic = partitions_for_topic
"""


@pytest.fixture(scope="module")
def kafka() -> Iterator[LocalKafka]:
    """A broker of these tests' own."""
    folder = make_data_dir()
    try:
        made = LocalKafka(folder, jars_dir=JARS_DIR)
        made.start()
        yield made
    finally:
        remove_data_dir(folder)


def address_of(kafka: LocalKafka) -> str:
    address = kafka.status().bootstrap_servers
    assert address is not None
    return address


def kill(kafka: LocalKafka) -> None:
    pid = kafka.status().pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)


def is_ready(worker: Worker) -> bool:
    try:
        return worker.get("/health/ready")[0] == 200
    except OSError:
        return False


NO_BROKERS = """
from aiokafka.cluster import ClusterMetadata
update = ClusterMetadata.update_metadata
answers = []
def update_metadata(self, metadata):
    answers.append(metadata)
    if len(answers) < 5:
        metadata.brokers = []  # as a controller that has heard of none for a while
    return update(self, metadata)
ClusterMetadata.update_metadata = update_metadata
"""

ROUTINE_ENDS = """
from aiokafka.client import AIOKafkaClient
async def coordinator_lookup(self, *_):
    raise AssertionError("made to fail")
AIOKafkaClient.coordinator_lookup = coordinator_lookup
"""

FIRST_LOOK = """
import sys
from durabill.deploy.topics import check_group
from durabill.stream_processors.kafka.rights import check_rights, rights_of
from durabill.stream_processors.settings import Settings
settings = Settings(bootstrap_servers=sys.argv[1])
kafka = settings.librdkafka()
check_rights(kafka, rights_of(settings, "worker"))
check_group(kafka, application_id="durabill", segments="billing.segments")
"""


def test_the_first_look_at_a_cluster_just_made_waits_for_its_coordinator(
    kafka: LocalKafka,
) -> None:
    admin = AdminClient({"bootstrap.servers": address_of(kafka), "log_level": "0"})
    admin.create_topics([NewTopic("other", 50, 1)])["other"].result(HANG_S)
    # In a process of its own, for it was SIGSEGV that ended it.
    command = [sys.executable, "-c", FIRST_LOOK, address_of(kafka)]
    looked = subprocess.run(
        command, cwd=PROJECT_DIR, capture_output=True, text=True, timeout=HANG_S, check=False
    )
    assert looked.returncode == 0, looked.stderr


def test_a_worker_whose_broker_dies_while_it_starts_joins_at_once_when_it_is_back(
    kafka: LocalKafka, tmp_path: Path
) -> None:
    for after_s in STARTS_S:
        with deployment(address_of(kafka), tmp_path) as deployed:
            worker = deployed.start()
            time.sleep(after_s)
            kill(kafka)
            time.sleep(AWAY_S)
            kafka.start()
            # Of what it had learned without a broker it would stay convinced for five minutes.
            wait_until(lambda: is_ready(worker), "it is ready")  # noqa: B023
            # Never without its partitions, for there is nobody else to have them.
            assert [*range(deployed.partitions)] == sorted(worker.next_offsets())
            deployed.send(traffic(1, orders=3, segments=5))
            deployed.wait_for_truth()


def test_a_worker_that_nobody_gave_partitions_is_not_ready(
    kafka: LocalKafka, tmp_path: Path
) -> None:
    with deployment(address_of(kafka), tmp_path) as deployed:
        worker = deployed.start(FORGETFUL)

        def says_why() -> bool:
            try:
                status, answer = worker.get("/health/ready")
            except OSError:
                return False
            return status == 503 and "nobody has 0, 1, 2, 3" in str(answer["problems"])

        wait_until(says_why, "it says that nobody has the partitions")


def test_a_worker_that_is_told_of_no_broker_waits_for_one(
    kafka: LocalKafka, tmp_path: Path
) -> None:
    with deployment(address_of(kafka), tmp_path) as deployed:
        worker = deployed.start_and_wait(NO_BROKERS)
        assert "waiting for Kafka: KafkaConnectionError: it answers" in worker.log()


def test_a_worker_ends_when_its_part_in_the_group_does(kafka: LocalKafka, tmp_path: Path) -> None:
    with deployment(address_of(kafka), tmp_path) as deployed:
        assert deployed.start(ROUTINE_ENDS).wait(120) == 70
        assert "made to fail" in deployed.workers[0].log()


def lines_of(path: Path, after: int) -> list[str]:
    return path.read_text(encoding="utf-8", errors="replace").splitlines()[after:]


@contextmanager
def poked(url: str) -> Iterator[None]:
    """Send the gateway a segment again and again meanwhile, whatever it answers."""
    ended = threading.Event()

    def poke() -> None:
        while not ended.wait(0.5):
            with suppress(OSError):
                now_ms = int(time.time() * 1000)
                bounds = {"start_ms": now_ms - 10, "end_ms": now_ms, "end_identifier": False}
                body = json.dumps({"business_data_number": 1, **bounds}).encode()
                urllib.request.urlopen(f"{url}/v1/orders/poked/segments", body, timeout=2).close()

    thread = threading.Thread(target=poke)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def test_an_outage_is_told_once_with_its_cause_and_once_when_it_is_over(
    kafka: LocalKafka, postgres_dsn: str, tmp_path: Path
) -> None:
    with ExitStack() as stack:
        deployed = stack.enter_context(deployment(address_of(kafka), tmp_path))
        settings = {
            "bootstrap_servers": address_of(kafka),
            "application_id": deployed.name,
            "segments_topic": deployed.segments,
            "totals_topic": deployed.totals,
            "orders_topic": deployed.orders,
            "dead_letters_topic": deployed.dead_letters,
            "data_dir": str(tmp_path),
            "gateway_port": "0",
            "ledger_dsn": postgres_dsn,
        }
        start(stack, tmp_path, settings, "worker", "worker")
        served = start(stack, tmp_path, settings, "gateway", "gateway")
        logs = {name: tmp_path / f"{name}.log" for name in ("worker", "gateway")}
        wait_until(
            lambda: "ready: partitions 0-3 of 4" in logs["worker"].read_text(), "it is at work"
        )
        before = {name: len(lines_of(path, 0)) for name, path in logs.items()}
        began_s = time.monotonic()
        kill(kafka)
        with poked(str(served["url"])):
            time.sleep(OUTAGE_S)
            kafka.start()
            time.sleep(3.0)
        for name, path in logs.items():
            wait_until(
                lambda: any("Kafka is back" in each for each in lines_of(path, before[name])),  # noqa: B023
                f"the {name} says that it is over",
            )
            said = lines_of(path, before[name])
            outage_s = time.monotonic() - began_s
            print(f"{name}: {len(said)} lines in {outage_s:.0f} s", *said, sep="\n")
            assert len(said) <= outage_s, name
            causes = re.compile("Connection refused|Connect call failed|Connection reset|closed")
            assert causes.search("\n".join(said[:2])), name
            assert not [each for each in said if each.startswith("%")], name


def test_nothing_is_acknowledged_that_a_frozen_broker_has_lost(kafka: LocalKafka) -> None:
    """Frozen for longer than a delivery may take, then thawed: what waited is given up, or not."""
    servers = {"bootstrap.servers": address_of(kafka)}
    create_topics(
        servers,
        Topics("frozen", "f-totals", "f-dead", "f-checkpoint", orders="f-orders"),
        partitions=4,
    )
    config = GatewayConfig(servers, "frozen", client_segments_max=10_000, delivery_timeout_ms=1_500)
    with ExitStack() as stack:
        url = stack.enter_context(gateway(config))
        clients = [stack.enter_context(uploading(url, f"C{at}")) for at in range(3)]
        wait_until(lambda: acknowledged(clients) > 1_000, "segments are acknowledged")
        before = acknowledged(clients)
        with frozen(kafka):
            wait_until(lambda: refused(clients) > 3, "nothing is acknowledged")
        wait_until(lambda: acknowledged(clients) > before + 1_000, "it goes on")
    places: dict[tuple[str, int], list[int]] = {}
    for record in read_topic(address_of(kafka), "frozen"):
        segment = decode_segment(record.value())
        name = segment.service_order_number, segment.business_data_number
        places.setdefault(name, []).append(record.offset() or 0)
    lost = [
        each
        for client in clients
        for each in client.acknowledged
        if not any(each.first <= at <= each.last for at in places.get(each[:2], []))
    ]
    assert lost == []


@contextmanager
def frozen(kafka: LocalKafka) -> Iterator[None]:
    pid = kafka.status().pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)
