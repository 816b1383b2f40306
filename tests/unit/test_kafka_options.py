"""What clients are made with: nothing that a configuration says may cost or repeat a record."""

from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer

from durabill.stream_processors.kafka import options
from durabill.stream_processors.kafka.errors import answer_of, passes
from durabill.stream_processors.kafka.topic_ids import topic_ids

CARELESS = {
    "bootstrap.servers": "127.0.0.1:1",
    "acks": "1",
    "enable.idempotence": "false",
    "enable.auto.commit": "true",
    "isolation.level": "read_uncommitted",
    "auto.offset.reset": "latest",
    "partitioner": "random",
}


@pytest.mark.parametrize(
    "config",
    [
        options.side_producer(CARELESS),
        options.resending_producer(CARELESS, delivery_timeout_s=30),
        options.transactional_producer(CARELESS, "durabill-0"),
        options.checkpoint_producer(CARELESS),
    ],
)
def test_no_producer_loses_or_repeats(config: dict[str, Any]) -> None:
    assert (config["acks"], config["enable.idempotence"]) == ("all", True)
    of_producers = {key: value for key, value in config.items() if key not in CONSUMERS_ONLY}
    Producer({**of_producers, "error_cb": lambda error: None, "log_level": "0"})


CONSUMERS_ONLY = ("enable.auto.commit", "isolation.level", "auto.offset.reset")


@pytest.mark.parametrize(
    "make", [options.assigned_consumer, options.ledger_consumer, options.seal_consumer]
)
def test_no_consumer_skips_or_sees_what_was_aborted(make: Any) -> None:
    config = make({"bootstrap.servers": "127.0.0.1:1", **CARELESS}, "group")
    found = [config[key] for key in CONSUMERS_ONLY]
    assert found == [False, "read_committed", "error"]
    of_consumers = {key: config[key] for key in config if key not in ("acks", "partitioner")}
    del of_consumers["enable.idempotence"]
    Consumer({**of_consumers, "error_cb": lambda error: None, "log_level": "0"}).close()


def test_an_answer_that_is_late_is_an_error_that_passes() -> None:
    with pytest.raises(KafkaException) as raised:
        answer_of(Future(), 0.01)
    assert passes(raised.value.args[0])
    assert not passes(KafkaError(KafkaError.INVALID_MSG))


@pytest.mark.parametrize(("told", "known"), [("abc", "abc"), (None, ""), ("A" * 22, "")])
def test_a_broker_that_knows_no_ids_gives_none(told: str | None, known: str) -> None:
    answer: Future[Any] = Future()
    answer.set_result(SimpleNamespace(topic_id=told))
    admin: Any = SimpleNamespace(describe_topics=lambda *_, **__: {"segments": answer})
    assert {"segments": known} == topic_ids(admin, ["segments"], 1)
