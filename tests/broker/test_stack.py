"""The local stack against the real thing: processes, ports, jars, topics."""

import signal
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest
from confluent_kafka import Consumer, Producer
from confluent_kafka.admin import AdminClient, NewTopic

import durabill.deploy.local.jars
from durabill.deploy.local.jars import Jar, ensure_jars, locked_jars
from durabill.deploy.local.kafka import LocalKafka
from durabill.deploy.local.postgres import LocalPostgres
from durabill.deploy.local.stack import (
    HOST,
    NO_SYSTEM_TOOLS,
    Daemon,
    StackError,
    birth_mark,
    find_free_ports,
    port_is_free,
)
from durabill.deploy.topics import TopicsCheck, check_topics, create_topics
from durabill.schemas.errors import AccessError, ContractError, UnreachableError
from tests.broker.test_postgres import open_to_others
from tests.conftest import JARS_DIR, PROJECT_DIR, Topics
from tests.waiting import HANG_S, wait_until


def create_topic(address: str, name: str, partitions: int = 1, **config: str) -> None:
    admin = AdminClient({"bootstrap.servers": address})
    settings = {key.replace("_", "."): value for key, value in config.items()}
    admin.create_topics([NewTopic(name, partitions, 1, config=settings)])[name].result(HANG_S)
    # The controller has it, the broker will know in a moment.
    wait_until(lambda: name in admin.list_topics(timeout=HANG_S).topics, "the broker knows it")


def produce_one(address: str, topic: str, value: bytes, codec: str = "none") -> None:
    producer = Producer({"bootstrap.servers": address, "compression.type": codec})
    producer.produce(topic, value)
    assert producer.flush(HANG_S) == 0


def consume_one(address: str, topic: str) -> bytes | None:
    consumer = Consumer(
        {"bootstrap.servers": address, "group.id": "t", "auto.offset.reset": "earliest"}
    )
    try:
        consumer.subscribe([topic])
        message = consumer.poll(HANG_S)
        assert message is not None
        assert message.error() is None
        return message.value()
    finally:
        consumer.close()


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind((HOST, 0))
        listener.listen()
        yield listener.getsockname()[1]


@pytest.fixture
def daemon(data_dir: Path) -> Iterator[Daemon]:
    home = data_dir / "home"
    home.mkdir()
    made = Daemon("Sleeper", home)
    yield made
    made.stop([(signal.SIGKILL, 5.0)])


# --- the servers -------------------------------------------------


def test_kafka_starts_once_stops_from_another_process_and_keeps_address_and_records(
    data_dir: Path,
) -> None:
    kafka = LocalKafka(data_dir, jars_dir=JARS_DIR)
    assert (kafka.status().running, kafka.status().bootstrap_servers) == (False, None)
    address = kafka.start()
    first = kafka.status()
    assert (first.running, first.bootstrap_servers) == (True, address)
    assert open_to_others(data_dir) == []

    again = LocalKafka(data_dir, jars_dir=JARS_DIR)
    assert again.start() == address
    assert again.status() == first
    with pytest.raises(StackError, match=f"runs already, at {address}"):
        LocalKafka(data_dir, find_free_ports(1)[0], jars_dir=JARS_DIR).start()

    create_topic(address, "kept")
    produce_one(address, "kept", b"record")
    code = (
        "import sys, pathlib; from durabill.deploy.local.kafka import LocalKafka;"
        " LocalKafka(pathlib.Path(sys.argv[1])).stop()"
    )
    subprocess.run([sys.executable, "-c", code, str(data_dir)], cwd=PROJECT_DIR, check=True)
    stopped = kafka.status()
    assert (stopped.running, stopped.pid, stopped.bootstrap_servers) == (False, None, address)
    assert port_is_free(int(address.partition(":")[2]))

    assert kafka.start() == address
    assert consume_one(address, "kept") == b"record"
    kafka.stop()
    kafka.stop()
    assert not kafka.status().running


def test_both_run_from_pip_packages_alone(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(NO_SYSTEM_TOOLS, "1")
    said: list[str] = []
    # Kept in the project, so that it is the first run only that downloads them.
    kafka = LocalKafka(data_dir, jars_dir=JARS_DIR.with_name("jars-from-pip"), say=said.append)
    postgres = LocalPostgres(data_dir, fsync=False, say=said.append)
    address = kafka.start()
    assert not [line for line in said if "Maven" in line]
    create_topic(address, "codecs")
    for codec in ("zstd", "snappy"):  # native libraries, which a cut-down Java may not load
        produce_one(address, "codecs", b"record", codec)
    assert consume_one(address, "codecs") == b"record"
    with psycopg.connect(postgres.start()) as connection:
        row = connection.execute("SHOW server_version_num").fetchone()
        assert row is not None
        assert int(row[0]) >= 180_000  # the wheel's, which no Debian of today has
    kafka.stop()
    postgres.stop()
    assert (kafka.status().running, postgres.status().running) == (False, False)


@pytest.mark.parametrize("server", [LocalKafka, LocalPostgres])
def test_given_port_in_use_is_refused(
    server: type[LocalKafka | LocalPostgres], data_dir: Path, taken_port: int
) -> None:
    local = server(data_dir, taken_port)
    with pytest.raises(StackError, match=f"Port {taken_port} .* is in use by another program"):
        local.start()
    assert not local.status().running
    assert not (data_dir / "jars").exists(), "nothing was fetched for it"


@pytest.mark.parametrize("port", [0, -5, 65_536, 99_999])
@pytest.mark.parametrize("server", [LocalKafka, LocalPostgres])
def test_a_port_that_is_none_is_refused(
    server: type[LocalKafka | LocalPostgres], data_dir: Path, port: int
) -> None:
    with pytest.raises(StackError, match=rf"cannot take port {port}: ports are 1 to 65535"):
        server(data_dir, port).start()


# --- processes ---------------------------------------------------


def test_death_before_ready_is_noticed_and_told_with_the_end_of_the_log(daemon: Daemon) -> None:
    daemon.spawn([sys.executable, "-c", "print('line 1\\nno such disk'); raise SystemExit(3)"])
    with pytest.raises(StackError, match=r"(?s)Sleeper ended before .*server\.log.*no such disk"):
        daemon.wait_until_ready(lambda: False, timeout_s=HANG_S)


def test_kafka_that_dies_at_start_tells_why_and_leaves_nothing(data_dir: Path) -> None:
    kafka = LocalKafka(data_dir, jars_dir=JARS_DIR)
    kafka.start()
    kafka.stop()
    meta = data_dir / "kafka" / "logs" / "meta.properties"
    meta.write_text(meta.read_text().replace("node.id=1", "node.id=2"))
    with pytest.raises(StackError, match=r"(?s)Kafka ended before it was ready.*Stored node id 2"):
        kafka.start()
    assert not kafka.status().running


def test_not_ready_in_time_is_told(daemon: Daemon) -> None:
    daemon.spawn(["sleep", "60"])
    with pytest.raises(StackError, match=r"not ready within 0\.2 s.*log .* is empty"):
        daemon.wait_until_ready(lambda: False, timeout_s=0.2)
    assert daemon.pid() is not None


def test_interrupted_start_leaves_no_process(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pids: list[int] = []

    def interrupt(daemon: Daemon, *_: object) -> None:
        pids.append(daemon.pid() or 0)
        raise KeyboardInterrupt

    monkeypatch.setattr(Daemon, "wait_until_ready", interrupt)
    postgres = LocalPostgres(data_dir, fsync=False)
    with pytest.raises(KeyboardInterrupt):
        postgres.start()
    assert birth_mark(pids[0]) is None
    assert not postgres.status().running


def test_process_that_ignores_the_first_signal_gets_the_next(daemon: Daemon) -> None:
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', "
    daemon.spawn([sys.executable, "-c", code + "flush=True); time.sleep(60)"])
    daemon.wait_until_ready(lambda: "deaf" in daemon.log_path.read_text(), timeout_s=HANG_S)
    assert daemon.stop([(signal.SIGTERM, 0.2), (signal.SIGKILL, 5.0)])
    assert daemon.pid() is None
    assert not daemon.stop([(signal.SIGTERM, 0.2)])


STOPPED_ELSEWHERE = """
import subprocess, sys
from pathlib import Path
from durabill.deploy.local.stack import Daemon
home = Path(sys.argv[1])
daemon = Daemon("Sleeper", home)
pid = daemon.spawn(["sleep", "60"])
stop = "import signal, sys, pathlib; from durabill.deploy.local.stack import Daemon;"
stop += "Daemon('Sleeper', pathlib.Path(sys.argv[1])).stop([(signal.SIGKILL, 5.0)])"
subprocess.run([sys.executable, "-c", stop, home], check=True)
assert not Daemon("Sleeper", home).stop([])
assert not Path("/proc", str(pid)).exists(), "a zombie"
"""


def test_a_child_that_another_process_stopped_is_reaped(data_dir: Path) -> None:
    home = data_dir / "home"
    home.mkdir()
    command = [sys.executable, "-W", "always", "-c", STOPPED_ELSEWHERE, str(home)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=HANG_S, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")  # no "subprocess is still running" at the end


def test_recycled_pid_is_neither_taken_for_ours_nor_killed(data_dir: Path) -> None:
    kafka = LocalKafka(data_dir)
    home = data_dir / "kafka"
    home.mkdir()
    foreign = subprocess.Popen(["sleep", "60"])
    try:
        mark = birth_mark(foreign.pid)
        assert mark is not None
        record = home / "process.json"
        record.write_text(f'{{"pid": {foreign.pid}, "birth_mark": "{mark}0"}}')
        assert not kafka.status().running
        kafka.stop()
        assert foreign.poll() is None
        assert not record.exists()
    finally:
        foreign.kill()
        foreign.wait()


# --- jars --------------------------------------------------------


def test_lock_names_each_jar_once_with_a_sum() -> None:
    jars = locked_jars()
    assert len({jar.filename for jar in jars}) == len(jars) > 40
    assert all(len(jar.sha256) == 64 and int(jar.sha256, 16) for jar in jars)
    assert "org.apache.kafka:kafka_2.13:4.1.1" in [jar.coordinate for jar in jars]


def test_damaged_jar_is_fetched_again_and_an_altered_download_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = b"good"
    sha256 = "770e607624d689265ca6c44884d0807d9b054d23c473c106c72be9de08b7376c"
    jar = Jar("g", "a", "1", sha256)
    served = {"content": good}

    def fetch(jars: list[Jar], work: Path, _: object) -> list[tuple[Jar, Path]]:
        assert jars == [jar]
        (work / "download").write_bytes(served["content"])
        return [(jar, work / "download")]

    monkeypatch.setattr(durabill.deploy.local.jars, "locked_jars", lambda: (jar,))
    monkeypatch.setattr(durabill.deploy.local.jars, "_fetch", fetch)
    (path,) = ensure_jars(tmp_path)
    assert path.read_bytes() == good
    path.write_bytes(b"damaged")
    ensure_jars(tmp_path)
    assert path.read_bytes() == good

    path.unlink()
    served["content"] = b"altered"
    with pytest.raises(StackError, match=r"g:a:1 as fetched is not the file"):
        ensure_jars(tmp_path)
    assert not path.exists()


# --- topics ------------------------------------------------------


def test_created_topics_pass_and_creating_again_changes_nothing(
    bootstrap_servers: str, topics: Topics
) -> None:
    kafka = {"bootstrap.servers": bootstrap_servers}
    assert check_topics(kafka, topics) == TopicsCheck(4, ())
    assert create_topics(kafka, topics, partitions=4) == TopicsCheck(4, ())
    with pytest.raises(ContractError, match="has 4 partitions, not 8"):
        create_topics(kafka, topics, partitions=8)


def test_segments_with_senders_time_are_refused_until_altered(
    bootstrap_servers: str, topics: Topics
) -> None:
    kafka = {"bootstrap.servers": bootstrap_servers}
    name = f"{uuid.uuid4().hex[:8]}.segments"
    create_topic(bootstrap_servers, name, 4, message_timestamp_type="CreateTime")
    names = replace(topics, segments=name)
    with pytest.raises(ContractError) as caught:
        check_topics(kafka, names)
    text = str(caught.value)
    assert f"{name} has message.timestamp.type=CreateTime" in text
    assert "durabill topics create --alter" in text
    assert f"--bootstrap-server {bootstrap_servers} --alter" in text
    assert f"--entity-name {name} --add-config message.timestamp.type=LogAppendTime" in text

    with pytest.raises(ContractError, match="CreateTime"):
        create_topics(kafka, names, partitions=4)
    assert create_topics(kafka, names, partitions=4, alter=True) == TopicsCheck(4, ())


def test_everything_wrong_is_told_at_once(bootstrap_servers: str, topics: Topics) -> None:
    kafka = {"bootstrap.servers": bootstrap_servers}
    mark = uuid.uuid4().hex[:8]
    create_topic(bootstrap_servers, f"{mark}.totals", 3, cleanup_policy="compact")
    create_topic(bootstrap_servers, f"{mark}.checkpoint", 2)
    names = replace(topics, totals=f"{mark}.totals", checkpoint=f"{mark}.checkpoint")
    with pytest.raises(ContractError) as caught:
        check_topics(kafka, names)
    text = str(caught.value)
    assert f"{mark}.totals has 3 partitions and {topics.segments} has 4" in text
    assert f"{mark}.checkpoint has 2 partitions and {topics.segments} has 4" in text
    assert f"{mark}.totals has cleanup.policy=compact" in text
    assert f"{mark}.checkpoint has cleanup.policy=delete" in text
    assert f"{mark}.checkpoint has max.message.bytes=1048588" in text


def test_finite_retention_is_a_warning(bootstrap_servers: str, topics: Topics) -> None:
    name = f"{uuid.uuid4().hex[:8]}.segments"
    create_topic(
        bootstrap_servers, name, 4, message_timestamp_type="LogAppendTime", retention_ms="1000"
    )
    names = replace(topics, segments=name)
    checked = check_topics({"bootstrap.servers": bootstrap_servers}, names)
    (warning,) = checked.warnings
    assert warning.startswith(f"{name} has retention.ms=1000")
    kafka = {"bootstrap.servers": bootstrap_servers}
    assert check_topics(kafka, names, is_archived=True).warnings == ()


def test_missing_topics_and_absent_kafka_are_told(
    bootstrap_servers: str, topics: Topics, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = replace(topics, totals="nobody.made.this")
    with pytest.raises(AccessError, match=r"no topic nobody\.made\.this.*topics create --part.* 4"):
        check_topics({"bootstrap.servers": bootstrap_servers}, names)
    monkeypatch.setattr("durabill.deploy.topics.TIMEOUT_S", 1.0)
    absent = f"{HOST}:{find_free_ports(1)[0]}"
    with pytest.raises(UnreachableError, match=f"{absent} does not answer.*durabill kafka start"):
        check_topics({"bootstrap.servers": absent, "log_level": "0"}, names)
