"""Sends dead letters back into the segments topic, as they were or repaired."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, NoReturn

from confluent_kafka import KafkaError, Message, Producer

from durabill.schemas import SegmentEvent, encode_segment
from durabill.schemas.headers import FORWARDED_FROM, RESENT_FROM
from durabill.schemas.limits import FORWARD_BYTES_MAX
from durabill.stream_processors.dead_letters.letters import (
    ANSWER_S,
    DeadLetter,
    DeadLetterError,
    find_dead_letter,
)
from durabill.stream_processors.engine.batch import Record
from durabill.stream_processors.kafka.options import resending_producer

_SENT_AT_ONCE = 500
_Outcome = tuple[KafkaError | None, Message] | None


@dataclass(frozen=True, slots=True)
class Resent:
    """Where a record that was sent back has landed; Kafka has acknowledged it."""

    topic: str
    partition: int
    offset: int


def resend(
    kafka: Mapping[str, Any],
    topic: str,
    partition: int,
    offset: int,
    *,
    segments_topic: str,
    repaired: SegmentEvent | None = None,
    answer_s: float = ANSWER_S,
) -> Resent:
    """Send the dead letter at `offset` back into the segments topic; return where it landed.

    With `repaired` that segment goes instead of the original bytes, under its order number as the
    key. The record's own headers stay but for `forwarded_from` (none if they make the record
    too large to be sent on), a dead letter's own are dropped, and `resent_from` says where it came
    from. Sending one twice does no harm: a repeated segment is a duplicate. Raises DeadLetterError
    when there is no such dead letter, it has been cut and is not repaired, or Kafka has not
    acknowledged it in `answer_s` seconds (it may have arrived); AccessError when a topic is not
    there.
    """
    letter = find_dead_letter(kafka, topic, partition, offset, answer_s=answer_s)
    return next(send_back(kafka, topic, [letter], segments_topic, repaired, answer_s))[1]


def send_back(
    kafka: Mapping[str, Any],
    topic: str,
    letters: Iterable[DeadLetter],
    segments_topic: str,
    repaired: SegmentEvent | None = None,
    answer_s: float = ANSWER_S,
) -> Iterator[tuple[DeadLetter, Resent]]:
    """Send letters of `topic` as `resend` does, by one producer; yield where each landed."""
    producer = Producer(resending_producer(kafka, delivery_timeout_s=answer_s))
    waiting = iter(letters)
    while batch := list(islice(waiting, _SENT_AT_ONCE)):
        outcomes: list[_Outcome] = [None] * len(batch)
        for at, letter in enumerate(batch):
            key, value, headers = _record_of(letter, topic, repaired)
            note = partial(_note, outcomes, at)
            producer.produce(segments_topic, value, key, headers=headers, on_delivery=note)
        producer.flush(answer_s + 1)
        for letter, outcome in zip(batch, outcomes, strict=True):
            yield letter, _landed(segments_topic, outcome, answer_s)


def _note(outcomes: list[_Outcome], at: int, error: KafkaError | None, message: Message) -> None:
    outcomes[at] = error, message


def _record_of(
    letter: DeadLetter, topic: str, repaired: SegmentEvent | None
) -> tuple[bytes | None, bytes | None, list[tuple[str, str | bytes | None]]]:
    """Return the key, value and headers that go back."""
    partition, offset = letter.partition, letter.offset
    key, value = letter.key, letter.value
    if letter.is_cut and repaired is None:
        raise DeadLetterError(
            f"{topic}/{partition}/{offset} is a part of a record that was too large; the whole is"
            f" {letter.source_topic}/{letter.source_partition}/{letter.source_offset}. Send a"
            " repaired segment in its place"
        )
    if repaired is not None:
        key, value = repaired.service_order_number.encode(), encode_segment(repaired)
    # Not `forwarded_from` either: a record that says it was sent on before may be passed over.
    headers = [each for each in letter.headers if each[0] not in (RESENT_FROM, FORWARDED_FROM)]
    if letter.is_cut or Record(0, 0, key, value, tuple(headers)).size > FORWARD_BYTES_MAX:
        headers = []
    headers.append((RESENT_FROM, f"{topic}/{partition}/{offset}".encode()))
    return key, value, [*headers]


def _landed(topic: str, outcome: _Outcome, answer_s: float) -> Resent:
    if outcome is None:
        _undelivered(topic, f"no acknowledgement in {answer_s:g} s")
    error, message = outcome
    partition, offset = message.partition(), message.offset()
    if error is not None or partition is None or offset is None:
        _undelivered(topic, str(error))
    return Resent(topic, partition, offset)


def _undelivered(topic: str, why: str) -> NoReturn:
    raise DeadLetterError(f"{topic}: {why}; it may have arrived, and sending it again does no harm")
