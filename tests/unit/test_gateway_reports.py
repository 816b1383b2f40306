"""Few reports lose nothing: an upload is acknowledged only where every record of it is in the log.

`Delivery` looks at an upload's last report, and at errors alone of the others. Here librdkafka is a
model: what an idempotent producer promises (see `gateway.delivery`), and everything that may go
wrong around it, in every order that Hypothesis thinks of.
"""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from confluent_kafka import TIMESTAMP_CREATE_TIME, TIMESTAMP_LOG_APPEND_TIME, KafkaError, Message
from hypothesis import given
from hypothesis import strategies as st

from durabill.producers.gateway.delivery import Delivery
from durabill.producers.sdk.stored import Stored

TIMED_OUT = KafkaError(KafkaError._MSG_TIMED_OUT)
STRANGERS = [-1] * 30  # records of others that come in between
REFUSED = KafkaError(KafkaError.TOPIC_AUTHORIZATION_FAILED)

Report = Callable[[KafkaError | None, Message], object]


def message(offset: int | None, *, partition: int = 1, append_ms: int = 7) -> Message:
    """What a report brings of a record; without an offset of a repeat that nobody remembers."""
    at = -1001 if offset is None else offset
    time = (TIMESTAMP_LOG_APPEND_TIME, append_ms)
    return Message(topic="t", partition=partition, offset=at, key=b"k", value=b"v", timestamp=time)


class Reports:
    """A producer that keeps who wants to hear of which record. `room` records fit in."""

    def __init__(self, room: int = 10**6) -> None:
        self.wanted: list[Report] = []
        self._room = room

    def produce(self, _topic: str, _value: bytes, _key: bytes, _by: int, report: Report) -> None:
        if len(self.wanted) == self._room:
            raise BufferError("full")
        self.wanted.append(report)


def produced(delivery: Delivery, reports: Reports) -> list[str]:
    done: list[str] = []
    producer: Any = reports
    delivery.produce(producer, "t", lambda: done.append("done"))
    return done


@pytest.mark.parametrize("wants_each", [False, True])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_delivery_is_stored_once_all_its_reports_are_good(count: int, wants_each: bool) -> None:
    delivery, reports = Delivery(b"k", [b"v"] * count, wants_each=wants_each), Reports()
    done = produced(delivery, reports)
    offsets = [10 + 3 * at for at in range(count)]  # others' records lie between
    for offset, report in zip(offsets, reports.wanted, strict=True):
        assert done == []
        report(None, message(offset, append_ms=offset))
    assert (done, delivery.is_stored, delivery.error) == (["done"], True, None)
    assert delivery.first == Stored(1, 10, 10)
    assert delivery.last == Stored(1, offsets[-1], offsets[-1])
    expected = [Stored(1, each, each) for each in offsets] if wants_each else None
    assert delivery.each == expected


@pytest.mark.parametrize("wants_each", [False, True])
@pytest.mark.parametrize("lost", range(4))
@pytest.mark.parametrize("error", [TIMED_OUT, REFUSED])
def test_one_that_is_lost_is_enough(lost: int, error: KafkaError, wants_each: bool) -> None:
    delivery, reports = Delivery(b"k", [b"v"] * 4, wants_each=wants_each), Reports()
    done = produced(delivery, reports)
    for at, report in enumerate(reports.wanted):
        report(error if at == lost else None, message(at))
    assert (done, delivery.is_stored, delivery.error) == (["done"], False, error)


@pytest.mark.parametrize("wants_each", [False, True])
@pytest.mark.parametrize(
    "places",
    [
        [message(None), message(2)],
        [message(1), message(None)],
        [message(1), message(1)],
        [message(5), message(4)],
        [message(1), message(2, partition=3)],
    ],
)
def test_what_nobody_knows_the_place_of_is_not_acknowledged(
    places: Sequence[Message], wants_each: bool
) -> None:
    """It is stored, and sent again all the same: no receipt could say where it is."""
    delivery, reports = Delivery(b"k", [b"v"] * 2, wants_each=wants_each), Reports()
    done = produced(delivery, reports)
    for place, report in zip(places, reports.wanted, strict=True):
        report(None, place)
    assert (done, delivery.is_stored) == (["done"], False)
    assert delivery.error is not None


def test_a_topic_with_the_time_of_clients() -> None:
    delivery, reports = Delivery(b"k", [b"v"]), Reports()
    produced(delivery, reports)
    time = (TIMESTAMP_CREATE_TIME, 5)
    reports.wanted[0](None, Message(topic="t", partition=0, offset=3, timestamp=time))
    assert delivery.last == Stored(0, 3, None)


@pytest.mark.parametrize("room", range(3))
def test_a_full_queue(room: int) -> None:
    """What fitted in may get there; nobody is told so, and late reports change nothing."""
    delivery, reports = Delivery(b"k", [b"v"] * 3), Reports(room)
    done = produced(delivery, reports)
    for at, report in enumerate(reports.wanted):
        report(None, message(at))
    assert (done, delivery.is_stored) == (["done"], False)
    assert isinstance(delivery.error, BufferError)


class Idempotent:
    """librdkafka's idempotent producer, one partition, and its broker, as far as records may go.

    Records are sent in batches, several under way at once. The broker takes a batch of the present
    epoch only where it continues what it has, and answers a repeat of what it has as stored. Its
    answers get lost, batches are refused for good, records run out of time. Where a gap would come
    of that, the next epoch begins once nothing is under way.
    """

    UNDER_WAY_MAX = 5

    def __init__(self, reports: Reports) -> None:
        self.log: list[int] = []
        self._wanted = reports.wanted
        self._fresh = list(range(len(reports.wanted)))
        self._again: list[list[int]] = []  # batches that are sent as they were
        self._under_way: list[list[int]] = []
        self._order = list(self._fresh)  # the records of this epoch
        self._appended = 0  # how many of them the broker has
        self._has_gap = False

    @property
    def is_over(self) -> bool:
        """Whether all has been reported."""
        return not (self._fresh or self._again or self._under_way)

    def send(self, size: int) -> None:
        """Send the next batch, unless too many are under way, or an epoch is about to begin."""
        if self._has_gap or len(self._under_way) == self.UNDER_WAY_MAX:
            return
        if self._again:
            self._under_way.append(self._again.pop(0))
        elif self._fresh:
            self._under_way.append(self._fresh[:size])
            del self._fresh[:size]

    def answer(self, *, is_heard: bool) -> None:
        """The broker looks at the first batch under way; its answer gets here, or is lost."""
        if not self._under_way:
            return
        batch = self._under_way.pop(0)
        place = self._order.index(batch[0])
        if place == self._appended:
            self.log += [*batch, *STRANGERS]
            self._appended += len(batch)
        if is_heard and place < self._appended:
            for each in batch:
                self._wanted[each](None, message(self.log.index(each)))
        else:  # lost, or out of order: once more, with all that was sent after it
            self._again = [batch, *self._under_way, *self._again]
            self._under_way.clear()
        self._settle()

    def refuse(self) -> None:
        """The broker refuses the first batch under way for good."""
        if self._under_way:
            self._give_up(self._under_way.pop(0), REFUSED)

    def age(self, count: int) -> None:
        """The time of the next records to send is over; some may be in the log already."""
        old = self._again.pop(0) if self._again else self._fresh[:count]
        del self._fresh[: len(old) if old == self._fresh[:count] else 0]
        if old:
            self._give_up(old, TIMED_OUT)

    def _give_up(self, records: list[int], error: KafkaError) -> None:
        for each in records:
            self._wanted[each](error, message(None))
        self._has_gap = True
        self._settle()

    def _settle(self) -> None:
        if self._has_gap and not self._under_way:
            self._has_gap = False
            self._fresh = [*(each for batch in self._again for each in batch), *self._fresh]
            self._again.clear()
            self._order, self._appended = list(self._fresh), 0


steps = st.one_of(
    st.tuples(st.just("send"), st.integers(1, 4)),
    st.tuples(st.just("answer"), st.booleans()),
    st.tuples(st.just("refuse"), st.none()),
    st.tuples(st.just("age"), st.integers(1, 3)),
)


@given(st.lists(st.integers(1, 6), min_size=1, max_size=4), st.lists(steps, max_size=60))
def test_no_upload_is_acknowledged_that_is_not_in_the_log(
    sizes: Sequence[int], script: Sequence[tuple[str, Any]]
) -> None:
    reports = Reports()
    deliveries = [Delivery(b"k", [b"v"] * size) for size in sizes]
    done = [produced(each, reports) for each in deliveries]
    model = Idempotent(reports)
    for step, argument in script:
        if step == "send":
            model.send(argument)
        elif step == "answer":
            model.answer(is_heard=argument)
        elif step == "refuse":
            model.refuse()
        else:
            model.age(argument)
    while not model.is_over:  # what is left goes well
        model.send(3)
        model.answer(is_heard=True)
    first = 0
    for delivery, size, ends in zip(deliveries, sizes, done, strict=True):
        own = set(range(first, first + size))
        assert ends == ["done"]
        if delivery.is_stored:
            assert own <= set(model.log)
            assert delivery.first is not None
            assert delivery.last is not None
            places = [model.log.index(each) for each in sorted(own)]
            assert (delivery.first.offset, delivery.last.offset) == (places[0], places[-1])
        first += size
