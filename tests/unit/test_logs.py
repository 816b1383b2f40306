"""What a process says while Kafka is away: each thing once, with its cause, and seldom again."""

import io
import json
import logging

import pytest
from confluent_kafka import KafkaError

from durabill.deploy.logs import REPEAT_AFTER_S, REPEATS_PAUSE_S, Damping, OneLine
from durabill.stream_processors.kafka.news import ConnectionNews


class Clock:
    """A clock that stands still until it is moved."""

    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def shown(clock: Clock) -> tuple[logging.Logger, io.StringIO]:
    """A logger, and what is shown of what it is told."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.addFilter(Damping(clock))
    logger = logging.Logger("aiokafka.client")
    logger.addHandler(handler)
    return logger, stream


def test_a_repeat_is_shown_after_its_time_with_the_count_of_those_left_out(
    clock: Clock, shown: tuple[logging.Logger, io.StringIO]
) -> None:
    logger, stream = shown
    for at in range(20):
        logger.error("Unable to connect to 10.0.0.%d:9092: [Errno 111] refused (try %d)", at, at)
        clock.now_s += REPEAT_AFTER_S / 20 - 0.001
    assert (stream.getvalue().splitlines()) == [
        "Unable to connect to 10.0.0.0:9092: [Errno 111] refused (try 0)"
    ]
    clock.now_s = 100.0 + REPEAT_AFTER_S
    logger.error("Unable to connect to 10.0.0.%d:9092: [Errno 111] refused (try %d)", 7, 20)
    assert stream.getvalue().splitlines()[1:] == [
        "Unable to connect to 10.0.0.7:9092: [Errno 111] refused (try 20)"
        " (19 more like it left out)"
    ]
    logger.error("Unable to connect to 10.0.0.%d:9092: [Errno 111] refused (try %d)", 7, 21)
    assert len(stream.getvalue().splitlines()) == 2


def test_what_differs_in_words_logger_or_level_is_no_repeat(
    shown: tuple[logging.Logger, io.StringIO],
) -> None:
    logger, stream = shown
    logger.error("connection refused")
    logger.error("connection reset")
    logger.warning("connection refused")
    assert len(stream.getvalue().splitlines()) == 3


def test_repeats_of_many_kinds_are_one_line_a_second(
    clock: Clock, shown: tuple[logging.Logger, io.StringIO]
) -> None:
    logger, stream = shown
    kinds = [chr(ord("a") + at) * 3 for at in range(10)]
    for _ in range(2):
        for kind in kinds:
            logger.error(kind)
    assert kinds == stream.getvalue().splitlines()
    clock.now_s += REPEAT_AFTER_S
    for kind in kinds:
        logger.error(kind)
    assert len(stream.getvalue().splitlines()) == 11
    clock.now_s += REPEATS_PAUSE_S
    for kind in kinds:
        logger.error(kind)
    assert stream.getvalue().splitlines()[-1] == "bbb (2 more like it left out)"
    assert len(stream.getvalue().splitlines()) == 12


def test_the_worst_and_what_must_be_seen_whole_are_never_left_out(
    shown: tuple[logging.Logger, io.StringIO],
) -> None:
    logger, stream = shown
    for _ in range(3):
        logger.critical("it ends")
        logger.warning("order 7 is set aside", extra={"undamped": True})
    assert len(stream.getvalue().splitlines()) == 6


def test_what_we_tell_in_passing_is_not_damped(clock: Clock) -> None:
    damping = Damping(clock)
    for level, times in ((logging.INFO, 3), (logging.WARNING, 1)):
        record = logging.LogRecord("durabill.worker", level, "", 0, "partitions [0]", None, None)
        assert times == sum(damping.filter(record) for _ in range(3))


def test_a_line_with_wrong_arguments_is_left_to_the_formatter(clock: Clock) -> None:
    record = logging.LogRecord("mode", logging.ERROR, "", 0, "%d of %d", (1,), None)
    assert Damping(clock).filter(record)


def test_a_strangers_text_makes_no_line_of_its_own() -> None:
    text = "order %s"
    record = logging.LogRecord("x", logging.INFO, "", 0, text, ("a\u202eb\u2028c\nERROR d",), None)
    assert (OneLine("%(name)s %(message)s").format(record).split("\n")) == [
        "x order a\\u202eb\\u2028c",
        "  ERROR d",
    ]


def test_a_rebalance_is_no_trouble(clock: Clock) -> None:
    def is_shown(text: str) -> bool:
        record = logging.LogRecord("aiokafka", logging.WARNING, "", 0, text, None, None)
        return Damping(clock).filter(record)

    assert not is_shown("Heartbeat failed for group g because it is rebalancing")
    assert is_shown("Heartbeat failed for group g: coordinator is not valid")


# --- the news of Kafka ---------------------------------------------


def statistics(**states: str) -> str:
    names = {name.replace("_", "/"): state for name, state in states.items()}
    return json.dumps({"brokers": {f"k:1/{name}": {"state": each} for name, each in names.items()}})


def refused(broker: str) -> KafkaError:
    return KafkaError(KafkaError._TRANSPORT, f"{broker}: Connect to k failed: Connection refused")


def test_kafka_is_away_once_with_the_cause_and_back_once(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    news = ConnectionNews(clock)
    news.on_statistics(statistics(bootstrap="UP", **{"1": "UP"}))
    news.on_error(KafkaError(KafkaError._ALL_BROKERS_DOWN, "1/1 brokers are down"))
    for _ in range(3):
        news.on_error(refused("sasl_ssl://k:1/1"))
        news.on_error(refused("sasl_ssl://k:1/bootstrap"))
    assert (caplog.messages) == [
        "Kafka is away: sasl_ssl://k:1/1: Connect to k failed: Connection refused"
    ]
    news.on_statistics(statistics(bootstrap="DOWN", **{"1": "APIVERSION_QUERY"}))
    assert len(caplog.messages) == 1
    clock.now_s += 17
    news.on_statistics(statistics(bootstrap="DOWN", **{"1": "UP"}))
    news.on_statistics(statistics(bootstrap="DOWN", **{"1": "UP"}))
    assert caplog.messages[1:] == ["Kafka is back, after 17 s"]


def test_one_of_two_brokers_that_answers_is_not_the_one_that_failed(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    news = ConnectionNews(clock)
    news.on_error(refused("k:1/2"))
    news.on_statistics(statistics(**{"1": "UP", "2": "CONNECT"}))
    assert len(caplog.messages) == 1
    news.on_statistics(statistics(**{"1": "UP", "2": "UP"}))
    assert len(caplog.messages) == 2
    news.on_error(refused("k:1/2"))
    news.on_statistics(statistics(**{"1": "UP"}))  # it is no broker of the cluster any more
    assert len(caplog.messages) == 4


def test_a_crash_of_fausts_is_told_without_its_traceback_for_the_worker_tells_it(
    clock: Clock,
) -> None:
    for text, kept in (("[^---Fetcher]: Crashed reason=KeyError(1)", False), ("of ours", True)):
        error = (KeyError, KeyError(1), None)
        record = logging.LogRecord("faust", logging.ERROR, "", 0, text, None, error)
        assert Damping(clock).filter(record)
        assert kept == (record.exc_info is not None)
