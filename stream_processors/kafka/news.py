"""Tells news of the brokers: that they can't be reached, and that they can again."""

import json
import logging
import time
from collections.abc import Callable

from confluent_kafka import KafkaError

log = logging.getLogger("durabill.kafka")


class ConnectionNews:
    """Tells once when brokers can't be reached, with the cause, and once when they can again.

    librdkafka tells errors as they come, but never that they are over: its statistics do. Its
    callbacks come from one thread, the one that polls.
    """

    def __init__(self, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._clock_s = clock_s
        self._failed: dict[str, str] = {}
        self._since_s = 0.0

    def on_error(self, error: KafkaError) -> None:
        """Take note of librdkafka's error (its `error_cb`)."""
        broker, _, cause = error.str().partition(": ")
        if error.code() == KafkaError._ALL_BROKERS_DOWN or not cause:
            return
        if not self._failed:
            self._since_s = self._clock_s()
            log.warning("Kafka is away: %s", error.str())
        self._failed[broker.rpartition("://")[2]] = cause

    def on_statistics(self, text: str) -> None:
        """Look in librdkafka's statistics (its `stats_cb`) for brokers that failed before."""
        if not self._failed:
            return
        brokers = json.loads(text)["brokers"]
        up = {name.rpartition("://")[2] for name, each in brokers.items() if each["state"] == "UP"}
        known = {name.rpartition("://")[2] for name in brokers}
        # Of the addresses to start from, one that works is enough.
        waits = {each for each in self._failed if each in known and not each.endswith("/bootstrap")}
        if up and waits <= up:
            self._failed.clear()
            log.info("Kafka is back, after %.0f s", self._clock_s() - self._since_s)
