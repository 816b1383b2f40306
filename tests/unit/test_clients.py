"""Kafka's errors, judged: what passes, what is a right that we lack, and what librdkafka is on."""

import logging
from collections.abc import Callable

import pytest
from aiokafka.errors import GroupAuthorizationFailedError, TopicAuthorizationFailedError
from confluent_kafka import KafkaError, KafkaException

from durabill.deploy.commands.run import warn_of_policy
from durabill.deploy.connect import is_certain, kind_of
from durabill.schemas.errors import AccessError, UnreachableError
from durabill.stream_processors.kafka import errors
from durabill.stream_processors.kafka.errors import Right, explained, judged, patiently
from durabill.stream_processors.settings import Settings

KAFKA = {
    "bootstrap.servers": "k:9",
    "security.protocol": "SASL_SSL",
    "sasl.username": "ada",
    "sasl.password": "s3cret",
}
READ, JOIN = Right("Read", "topic", "segments"), Right("Read", "group", "billing")
COORDINATOR = (
    KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
    KafkaError.COORDINATOR_NOT_AVAILABLE,
    KafkaError.NOT_COORDINATOR,
)


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(errors, "_PAUSE_S", 0.001)
    monkeypatch.setattr(errors, "WORD_AFTER_S", 0.0)


def failing(*codes: int) -> Callable[[float], str]:
    """A question that is answered with these errors, and then with `there`."""
    left = list(codes)

    def ask(timeout_s: float) -> str:
        if left:
            raise KafkaException(KafkaError(left.pop(0)))
        return "there"

    return ask


@pytest.mark.parametrize("code", [*COORDINATOR, KafkaError._DESTROY_BROKER])
def test_a_coordinator_that_loads_or_moves_is_waited_for_with_a_word(
    code: int, caplog: pytest.LogCaptureFixture
) -> None:
    assert patiently(failing(code, code), "the group billing", KAFKA, JOIN) == "there"
    (said,) = caplog.messages  # not at each try
    assert said.startswith("waiting for the group billing: ")


@pytest.mark.parametrize(
    ("code", "named"),
    [
        (KafkaError.TOPIC_AUTHORIZATION_FAILED, READ),
        (KafkaError.GROUP_AUTHORIZATION_FAILED, JOIN),
    ],
)
def test_a_refusal_names_the_right_at_once_and_no_password(code: int, named: Right) -> None:
    with pytest.raises(AccessError) as raised:
        patiently(failing(code), "it", KAFKA, READ, JOIN)
    text = str(raised.value)
    assert f"needs the right {named} for the user ada." in text
    assert f"--operation Read --{named.kind} {named.name}" in text
    assert "s3cret" not in text


def test_patience_ends_with_the_address_and_the_cause() -> None:
    always = failing(*[KafkaError._TRANSPORT] * 10_000)
    with pytest.raises(UnreachableError, match=r"the ids: Kafka at k:9 \(DURABILL_BOOTSTRAP_SERV"):
        patiently(always, "the ids", KAFKA, patience_s=0.05)


def test_a_topic_may_be_unknown_for_a_moment_and_then_is_missing_or_hidden(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    unknown = KafkaError.UNKNOWN_TOPIC_OR_PART
    assert patiently(failing(unknown, unknown), "it", KAFKA, READ) == "there"
    monkeypatch.setattr(errors, "TOPIC_SPREADS_S", 0.02)
    with pytest.raises(AccessError, match="no topic segments, or hides it") as raised:
        patiently(failing(*[unknown] * 10_000), "it", KAFKA, READ)
    assert "Read on topic segments" in str(raised.value)


def test_what_is_no_matter_of_rights_comes_as_it_is() -> None:
    error = judged(KafkaError(KafkaError.INVALID_MSG), KAFKA, READ)
    assert isinstance(error, KafkaException)
    bug = AssertionError("ours")
    assert bug is explained(bug, KAFKA, READ)


def test_aiokafkas_refusals_are_named_too() -> None:
    other = Right("Write", "topic", "segments")
    text = str(explained(TopicAuthorizationFailedError({"segments"}), KAFKA, other, READ, JOIN))
    assert "needs the right Read on topic segments for the user ada." in text
    text = str(explained(GroupAuthorizationFailedError("billing"), KAFKA, other, READ, JOIN))
    assert "needs the right Read on group billing for the user ada." in text


REFUSED = "Connect to ipv4#127.0.0.1:1 failed: Connection refused"
NO_NAME = "Failed to resolve 'k:9': Name or service not known"
BAD_PASSWORD = "SASL authentication error: Authentication failed: Invalid username or password"


@pytest.mark.parametrize(
    ("causes", "addresses", "after_s", "certain"),
    [
        ({}, 1, 60.0, False),
        ({"a:1": REFUSED}, 1, 60.0, False),
        ({"a:1": BAD_PASSWORD}, 1, 0.9, False),
        ({"a:1": BAD_PASSWORD}, 1, 1.1, True),
        ({"a:1": BAD_PASSWORD}, 2, 1.1, False),  # the other may still answer
        ({"a:1": BAD_PASSWORD, "b:1": REFUSED}, 2, 60.0, False),
        ({"a:1": NO_NAME, "b:1": NO_NAME}, 2, 2.9, False),
        ({"a:1": NO_NAME, "b:1": NO_NAME}, 2, 3.1, True),
    ],
)
def test_waiting_ends_early_only_where_it_cannot_help(
    causes: dict[str, str], addresses: int, after_s: float, certain: bool
) -> None:
    assert certain == is_certain(causes, addresses, after_s)


def test_each_kind_of_trouble_names_its_setting() -> None:
    settings = Settings(security_protocol="SASL_SSL", sasl_username="ada", sasl_password="s3cret")
    for cause, name in (
        (REFUSED, "BOOTSTRAP_SERVERS"),
        (NO_NAME, "BOOTSTRAP_SERVERS"),
        (BAD_PASSWORD, "SASL_PASSWORD"),
        ("SSL handshake failed: certificate verify failed", "SSL_CA_LOCATION"),
        ("ssl/tls alert bad certificate: SSL alert number 42", "SSL_CERTIFICATE_LOCATION"),
        ("tlsv13 alert certificate required", "SSL_CERTIFICATE_LOCATION"),
        ("Disconnected: connection closed by peer", "SECURITY_PROTOCOL"),
        ("Broker: Unsupported SASL mechanism", "SASL_MECHANISM"),
    ):
        advice = kind_of(cause).advice(settings)
        assert f"DURABILL_{name}" in advice, cause
        assert "s3cret" not in advice


@pytest.mark.parametrize(("report_s", "warned"), [(9.9, False), (10, False), (10.1, True)])
def test_a_report_interval_beyond_the_idle_timeout_is_told_loudly(
    report_s: float, warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    warn_of_policy(Settings(report_interval_s=report_s, idle_timeout_s=10))
    assert warned == bool(caplog.records)
    if warned:
        assert caplog.records[0].levelno == logging.WARNING
        assert "DURABILL_REPORT_INTERVAL_S (10.1 s)" in caplog.messages[0]
        assert "DURABILL_IDLE_TIMEOUT_S (10 s)" in caplog.messages[0]
