"""Clusters that ask who comes and what they may do: the way in, and one right missing at a time."""

import json
import subprocess
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from durabill.deploy.connect import await_kafka, enter
from durabill.deploy.local.stack import HOST, find_free_ports
from durabill.deploy.topics import check_group, create_topics
from durabill.schemas.errors import AccessError, UnreachableError
from durabill.schemas.topics import Topics
from durabill.stream_processors.audit.seal.keys import make_key_file
from durabill.stream_processors.settings import Settings
from tests.broker.acl_kit import GuardedKafka, Right, guarded_kafka, role_rights
from tests.broker.test_cli import COMMAND, environment, eventually, start
from tests.broker.worker_kit import deployment
from tests.conftest import make_data_dir, remove_data_dir
from tests.waiting import HANG_S

APPLICATION = "durabill"
TOPICS = {
    "segments": "billing.segments",
    "totals": "billing.totals",
    "orders": "billing.orders",
    "dead_letters": "billing.dead-letters",
    "checkpoint": f"{APPLICATION}-checkpoint-changelog",
    "seal": "billing.seal-checkpoints",
}
ROLES = ("worker", "ledger", "gateway", "look", "seal", "audit")
WORKER_RIGHTS = role_rights("worker", APPLICATION, TOPICS)
# A transactional id shows what is missing when it is opened, so by a whole worker, below.
CHECKED = [each for each in WORKER_RIGHTS if each.kind != "transactional id"]
READ, LETTERS = Right("Read", "topic", "billing.segments"), TOPICS["dead_letters"]
NEEDS = {
    "ledger": role_rights("ledger", APPLICATION, TOPICS),
    "gateway": role_rights("gateway", APPLICATION, TOPICS),
    "seal": role_rights("seal", APPLICATION, TOPICS),
    "fleet": [READ, replace(READ, operation="Write"), Right("Describe", "group", "durabill-fleet")],
    "order": [READ, replace(READ, name=LETTERS), Right("Describe", "group", "durabill-look")],
    "totals": [replace(READ, name=TOPICS["totals"]), Right("Describe", "group", "durabill-look")],
    "archive": [READ, Right("Describe", "group", "durabill-look")],
    "letters": [
        replace(READ, name=LETTERS),
        Right("Describe", "group", "durabill-dead-letters"),
    ],
    "resend": [replace(READ, name=LETTERS), replace(READ, operation="Write")],
}
OTHERS = [(role, right) for role, rights in NEEDS.items() for right in rights]
PATIENCE_S = 90.0
WITHIN_S = 45.0
"""What is certain is told without waiting; on a machine that is busy that takes a while too."""


@pytest.fixture(scope="module")
def kafka() -> Iterator[GuardedKafka]:
    """The broker, with the topics, and a user for each role and for each right less."""
    folder = make_data_dir()
    less = {f"worker-{at}": without for at, without in enumerate(CHECKED)}
    less |= {f"{role}-{at}": without for at, (role, without) in enumerate(OTHERS)}
    apart = ("no-join", "no-fetch", "no-transaction")
    try:
        with guarded_kafka(folder, [*ROLES, *less, *apart, "nobody"]) as made:
            create_topics({"bootstrap.servers": made.plain}, Topics(**TOPICS), partitions=2)
            for role in ROLES:
                made.grant(role, role_rights(role, APPLICATION, TOPICS))
            for user, without in less.items():
                role = user.rpartition("-")[0]
                rights = WORKER_RIGHTS if role == "worker" else NEEDS[role]
                made.grant(user, [each for each in rights if each != without])
            yield made
    finally:
        remove_data_dir(folder)


def settings_of(kafka: GuardedKafka, user: str) -> Settings:
    return Settings(**kafka.login(user))  # type: ignore[arg-type]


# --- rights ------------------------------------------------------


@pytest.mark.parametrize("at", range(len(CHECKED)), ids=[str(each) for each in CHECKED])
def test_a_worker_names_the_right_that_is_missing(kafka: GuardedKafka, at: int) -> None:
    began_s = time.monotonic()
    with pytest.raises(AccessError) as raised:
        enter(settings_of(kafka, f"worker-{at}"), "worker", patience_s=PATIENCE_S)
    assert time.monotonic() < began_s + WITHIN_S
    (needed,) = (each for each in str(raised.value).splitlines() if "needs the right" in each)
    # On a topic that it may not describe without this one, it can't know of the others.
    assert str(CHECKED[at]) in needed
    assert needed.endswith(f" for the user worker-{at}.")
    assert f"--operation {CHECKED[at].operation}" in str(raised.value)


def test_the_other_roles_do_too(kafka: GuardedKafka) -> None:
    for at, (role, right) in enumerate(OTHERS):
        with pytest.raises(AccessError) as raised:
            enter(settings_of(kafka, f"{role}-{at}"), role)
        assert str(right) in str(raised.value), (role, right)


def test_topics_that_one_may_not_see_may_also_not_be_there(kafka: GuardedKafka) -> None:
    with pytest.raises(AccessError) as raised:
        enter(settings_of(kafka, "nobody"), "gateway")
    text = str(raised.value)
    assert "no topic billing.segments, or hides it" in text
    assert "Write on topic billing.segments" in text
    assert "the user nobody" in text


def test_every_role_works_with_its_rights_and_no_others(
    kafka: GuardedKafka, postgres_dsn: str, tmp_path: Path
) -> None:
    common = {"ledger_dsn": postgres_dsn, "settle_grace_s": "1", "idle_timeout_s": "2"}
    common |= {"data_dir": str(tmp_path), "gateway_port": "0", "worker_urls": "http://127.0.0.1:1"}
    look = {**common, **kafka.login("look")}

    def ran(*arguments: str, settings: Mapping[str, str] = look) -> list[Any]:
        done = subprocess.run(
            [*COMMAND, *arguments, "--json"],
            env=environment(**settings),
            capture_output=True,
            text=True,
            timeout=HANG_S,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    with ExitStack() as stack:
        for role in ("worker", "ledger", "gateway"):
            start(stack, tmp_path, {**common, **kafka.login(role)}, role, role)
        (report,) = ran("fleet", "--orders", "5", "--segments", "50", "--seed", "3")
        in_ledger = eventually("the ledger has all", lambda: ran("totals"))
        assert {each["service_order_number"] for each in in_ledger} <= {
            f"SO-3-{at}" for at in range(10)
        }
        ran("totals", "--check", report["truth_path"])
        letters = ran("dead-letters")
        if letters:
            place = f"{letters[0]['partition']}/{letters[0]['offset']}"
            assert "to" in ran("dead-letters", "resend", place)[0]
        assert ran("order", in_ledger[0]["service_order_number"])[0]["records"]
        (audited,) = ran("audit", settings={**common, **kafka.login("audit")})
        assert (audited["result"], audited["findings"]) == ("proven", [])
        make_key_file(tmp_path / "seal.key")
        sealer = {**common, **kafka.login("seal"), "seal_key_file": str(tmp_path / "seal.key")}
        assert ran("seal", "--once", settings=sealer)[0]["sealed"] >= len(in_ledger)
        assert ran("seal", "check", settings=sealer)[0]["result"] == "consistent"


# A worker that is started as a process is past the look ahead: this is what happens when a right is
# taken away later.
LATER = {
    "no-join": ("Read", "group"),
    "no-fetch": ("Read", "segments"),
    "no-transaction": ("Write", "transactional id"),
}


def lose_later(kafka: GuardedKafka, folder: Path, user: str) -> str:
    """Run a worker without one right; return its log once it has ended by itself."""
    operation, resource = LATER[user]
    with deployment(kafka.plain, folder, partitions=1) as deployed:
        names = dict(deployed.topics.by_role)
        rights = role_rights("worker", deployed.name, names)
        without = Right(operation, "topic", names["segments"]) if resource == "segments" else None
        kafka.grant(
            user,
            [
                each
                for each in rights
                if each != without and (each.operation, each.kind) != (operation, resource)
            ],
        )
        worker = deployed.start(**kafka.login(user))
        assert worker.wait(HANG_S) == 1, worker.log()
        return worker.log().replace(deployed.name, "NAME")


@pytest.fixture(scope="module")
def later(
    kafka: GuardedKafka, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Future[str]]]:
    """What each of these workers said; they run side by side."""
    folder = tmp_path_factory.mktemp("rights")
    with ThreadPoolExecutor(len(LATER)) as pool:
        yield {user: pool.submit(lose_later, kafka, folder, user) for user in LATER}


@pytest.mark.parametrize(
    ("user", "named"),
    [
        ("no-join", "Read on group NAME for the user no-join"),
        ("no-fetch", "Read on topic NAME.segments for the user no-fetch"),
        ("no-transaction", "Write on transactional id NAME-0 for the user no-transaction"),
    ],
)
def test_a_right_that_is_missing_later_is_named_as_well(
    later: dict[str, Future[str]], user: str, named: str
) -> None:
    log = later[user].result(HANG_S)
    assert f"Durabill needs the right {named}" in log, log
    assert "Traceback" not in log


def test_a_group_is_asked_without_what_crashes(kafka: GuardedKafka) -> None:
    settings = settings_of(kafka, "worker")
    check_group(settings.librdkafka(), application_id=APPLICATION, segments=TOPICS["segments"])


# --- the way in --------------------------------------------------


def refused(settings: Mapping[str, str], patience_s: float = PATIENCE_S) -> str:
    """Return what is said of a way in that doesn't lead in, within seconds."""
    began_s = time.monotonic()
    with pytest.raises(UnreachableError) as raised:
        await_kafka(Settings(**settings), patience_s=patience_s)  # type: ignore[arg-type]
    assert time.monotonic() < began_s + WITHIN_S
    return str(raised.value)


def test_a_wrong_password_is_told_in_kafkas_words(kafka: GuardedKafka) -> None:
    said = refused(kafka.login("worker", "guess"))
    assert "Authentication failed: Invalid username or password" in said
    assert "DURABILL_SASL_USERNAME (worker), DURABILL_SASL_PASSWORD" in said
    assert f"{kafka.sasl} (DURABILL_BOOTSTRAP_SERVERS)" in said
    assert "guess" not in said


def test_a_wrong_mechanism_is_told(kafka: GuardedKafka) -> None:
    said = refused({**kafka.login("worker"), "sasl_mechanism": "SCRAM-SHA-256"})
    assert "Unsupported SASL mechanism" in said
    assert "DURABILL_SASL_MECHANISM is SCRAM-SHA-256" in said


PROTOCOLS = (
    ("tls", "PLAINTEXT"),
    ("sasl", "PLAINTEXT"),
    ("plain", "SSL"),
    ("plain", "SASL_PLAINTEXT"),
    ("sasl_tls", "SASL_PLAINTEXT"),
)


def test_a_wrong_protocol_is_told(kafka: GuardedKafka) -> None:
    def try_it(case: tuple[str, str]) -> str:
        address, login = getattr(kafka, case[0]), kafka.login("worker")
        return refused({**login, "bootstrap_servers": address, "security_protocol": case[1]})

    with ThreadPoolExecutor(len(PROTOCOLS)) as pool:
        for case, said in zip(PROTOCOLS, pool.map(try_it, PROTOCOLS), strict=True):
            assert f"DURABILL_SECURITY_PROTOCOL is {case[1]}" in said, case


def test_certificates_are_checked_and_what_is_wrong_with_them_is_told(
    kafka: GuardedKafka, tmp_path: Path
) -> None:
    login = {**kafka.login("worker"), "security_protocol": "SASL_SSL"}
    login |= {"bootstrap_servers": kafka.sasl_tls, "ssl_ca_location": str(kafka.ca)}
    enter(Settings(**login), "worker")  # type: ignore[arg-type]

    said = refused({**login, "ssl_ca_location": ""})
    assert "certificate verify failed" in said
    assert "DURABILL_SSL_CA_LOCATION (not set" in said
    said = refused({**login, "bootstrap_servers": kafka.tls, "security_protocol": "SSL"})
    assert "bad certificate" in said
    assert "DURABILL_SSL_CERTIFICATE_LOCATION (not set)" in said
    nonsense = tmp_path / "ca.pem"
    nonsense.write_text("nonsense")
    said = refused({**login, "ssl_ca_location": str(nonsense)})
    assert f"DURABILL_SSL_CA_LOCATION ({nonsense}) can't be used" in said


def test_a_name_that_nobody_knows_ends_and_an_address_where_nobody_is_is_waited_for(
    capsys: pytest.CaptureFixture[str],
) -> None:
    said = refused({"bootstrap_servers": "no.such.host.invalid:9092"})
    assert "Failed to resolve 'no.such.host.invalid:9092'" in said
    assert "DURABILL_BOOTSTRAP_SERVERS" in said
    capsys.readouterr()
    absent = f"{HOST}:{find_free_ports(1)[0]}"
    said = refused({"bootstrap_servers": absent}, 3.0)
    assert "Connection refused" in said
    word = capsys.readouterr().err
    assert f"waiting for Kafka at {absent} (DURABILL_BOOTSTRAP_SERVERS)" in word
    assert "Connection refused" in word


COMMANDS = (
    ("worker",),
    ("ledger",),
    ("gateway",),
    ("seal",),
    ("seal", "check"),
    ("topics", "check"),
    ("topics", "create"),
    ("order", "SO-1"),
    ("totals",),
    ("dead-letters",),
    ("dead-letters", "resend", "0/0"),
    ("fleet", "--orders", "1"),
    ("archive", "--once", "--archive-dir", "never-made"),
)


def test_every_command_says_it_alike(kafka: GuardedKafka, tmp_path: Path) -> None:
    make_key_file(tmp_path / "seal.key")
    login = {**kafka.login("worker", "guess"), "data_dir": str(tmp_path)}
    login["seal_key_file"] = str(tmp_path / "seal.key")

    def ran(command: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
        # No ledger answers there: where one is needed, Kafka is asked first.
        more = {} if command == ("totals",) else {"ledger_dsn": "postgresql://nobody@127.0.0.1:1/x"}
        return subprocess.run(
            [*COMMAND, *command],
            env=environment(**login, **more),
            capture_output=True,
            text=True,
            timeout=HANG_S,
            check=False,
        )

    with ThreadPoolExecutor(4) as pool:
        for command, done in zip(COMMANDS, pool.map(ran, COMMANDS), strict=True):
            assert done.returncode == 1, (command, done.stderr)
            assert "Invalid username or password" in done.stderr, command
            assert "DURABILL_SASL_PASSWORD" in done.stderr, command
            assert "Traceback" not in done.stderr, command
            assert "%3|" not in done.stderr, command
