"""Tells what became of dead letters that were sent back, so that each origin is sent once.

A record that is sent back says in its header `resent_from` which dead letter it was. If it is
rejected again, its own dead letter still has that header: so dead letters make trees, and the first
letter of a tree is the *origin* of all others in it. Of a tree only the newest letter counts. What
was sent back and not rejected since is found in the segments topic, by the same header.

The log alone is asked: three times the dead letters, once the segments since the first letter in
question. Memory goes with the number of records that were sent back, not with that of letters (but
for 60 bytes of each, to pass over a crashed worker's repeats).
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from durabill.schemas.headers import RESENT_FROM, headers_in
from durabill.schemas.wire import Headers
from durabill.stream_processors.dead_letters.letters import (
    DeadLetter,
    Origins,
    read_letters,
    read_records,
)

Place = tuple[int, int]
"""Partition and offset."""

Record = tuple[str, int, int]
"""Topic, partition and offset."""

_PLACE = re.compile(r"(.*)/([0-9]{1,9})/([0-9]{1,18})", re.DOTALL)
_CLOCKS_DIFFER_MS = 600_000  # the two topics' append times may be of two brokers


class State(StrEnum):
    """Where an origin stands."""

    NEW = "NEW"
    """It was never sent back."""
    SENT_BACK = "SENT_BACK"
    """It was sent back, and not rejected since: it counts, or a worker is about to judge it."""
    REJECTED_AGAIN = "REJECTED_AGAIN"
    """Whenever it was sent back, it became a dead letter again."""
    CUT = "CUT"
    """It was too large to be kept whole: only a repaired segment can go in its place."""


@dataclass(frozen=True, slots=True)
class Reviewed:
    """An origin's newest dead letter, which has the newest reason, and where the origin stands."""

    letter: DeadLetter
    state: State


class _Trees:
    """Dead letters that were sent back, and what came of them."""

    def __init__(self, kafka: Mapping[str, Any], topic: str, segments_topic: str) -> None:
        self._kafka, self._topic, self._segments_topic = kafka, topic, segments_topic
        self._parents: dict[Place, Place] = {}
        self._by_record: dict[Record, Place] = {}  # a crash may have made two letters of one
        self._same: dict[Place, Place] = {}
        self._reasons: dict[Place, str] = {}
        self._newest: dict[Place, Place] = {}
        self._accepted: set[Place] = set()

    def gather(self, reason: str) -> bool:
        """Read the topics; return False where no letter has the reason."""
        links: dict[Place, Place] = {}
        first_ms: int | None = None
        for letter in read_letters(self._kafka, self._topic):
            parent = _sent_from(letter.headers, self._topic)
            if parent is not None:
                links[letter.place] = parent
            if parent is not None or letter.reason == reason:
                first_ms = min(letter.append_ms, first_ms or letter.append_ms)
        if first_ms is None:
            return False
        sent = self._find_sent(max(0, first_ms - _CLOCKS_DIFFER_MS))
        if links or sent:
            self._judge(links, sent)
        return True

    def _find_sent(self, since_ms: int) -> dict[Place, Place]:
        """Return the records of the segments topic that were sent back, and the letter each was."""
        sent: dict[Place, Place] = {}
        records = read_records(self._kafka, self._segments_topic, since_ms)
        for partition, offset, message in records:
            letter = _sent_from(headers_in(message), self._topic)
            if letter is not None:
                sent[partition, offset] = letter
        return sent

    def _judge(self, links: dict[Place, Place], sent: dict[Place, Place]) -> None:
        members = {*links, *links.values(), *sent.values()}
        keys: dict[Place, bytes | None] = {}
        ages: dict[Place, tuple[int, Place]] = {}
        # Read after the segments, so that whatever is a dead letter by now is known as one.
        for letter in read_letters(self._kafka, self._topic):
            record = letter.origin
            if record is not None and record[0] == self._segments_topic:
                sent.pop(record[1:], None)
            if letter.place in members:
                self._reasons[letter.place] = letter.reason
                keys[letter.place] = letter.key
                ages[letter.place] = letter.append_ms, letter.place
                if record is not None and letter.place not in links:
                    self._same[letter.place] = self._by_record.setdefault(record, letter.place)
        # A parent that is gone, or of another order, is none: the letter is an origin of its own.
        self._parents = {
            child: parent
            for child, parent in links.items()
            if parent in keys and child in keys and keys[parent] == keys[child]
        }
        for place in sorted({*self._parents, *self._parents.values()}, key=ages.__getitem__):
            self._newest[self._climb(place)] = place
        self._accepted = {self._climb(letter) for letter in sent.values()}

    def _climb(self, place: Place) -> Place:
        passed = {place}  # headers are the sender's word: a circle of them has an end too
        while (parent := self._parents.get(place)) is not None and parent not in passed:
            place = parent
            passed.add(place)
        return self._same.get(place, place)

    def state(self, letter: DeadLetter, reason: str) -> State | None:
        """Return where the letter's origin stands; None where another letter tells it."""
        place = letter.place
        if place in self._parents:
            origin = self._climb(place)
        elif place not in self._reasons and _sent_from(letter.headers, self._topic) is not None:
            return None  # it came while we were reading
        else:
            origin = place
            if letter.origin is not None:
                origin = self._by_record.get(letter.origin, place)
        if origin in self._newest and place != self._newest[origin]:
            return None
        if reason not in (letter.reason, self._reasons.get(origin)):
            return None
        if origin in self._accepted:
            return State.SENT_BACK
        if letter.is_cut:
            return State.CUT
        return State.REJECTED_AGAIN if origin in self._newest else State.NEW


def review(
    kafka: Mapping[str, Any], topic: str, *, segments_topic: str, reason: str
) -> Iterator[Reviewed]:
    """Yield every origin which was rejected for `reason`, first or last, once.

    Raises what `list_dead_letters` raises.
    """
    trees = _Trees(kafka, topic, segments_topic)
    if not trees.gather(reason):
        return
    seen = Origins()
    for letter in read_letters(kafka, topic):
        state = trees.state(letter, reason)
        if state is not None and seen.add(letter.origin):
            yield Reviewed(letter, state)


def _sent_from(headers: Headers, topic: str) -> Place | None:
    """Return the place in `topic` that a record says it was sent back from."""
    for name, value in reversed(headers):
        if name == RESENT_FROM and value is not None:
            found = _PLACE.fullmatch(value.decode(errors="replace"))
            return (int(found[2]), int(found[3])) if found and found[1] == topic else None
    return None
