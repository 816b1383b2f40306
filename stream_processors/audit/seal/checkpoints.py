"""Checkpoints of a sealed log: what is signed, in the form of C2SP's tlog-checkpoint. Pure.

Below origin, size and root stand lines of ours, which other tools pass over:

    offsets FIRST NEXT           the leaves are the records of the partition from FIRST on, to NEXT
    follows ORIGIN SIZE ROOT     the log before this one, and how it ended
    closed REASON ORIGIN         the last word of this log, and which one goes on

An origin names cluster, topic, the topic's id and the partition, so a recreated topic has another
log. A log that doesn't begin with the topic's first record has its first offset there as well.
"""

import base64
import re
from dataclasses import dataclass

from durabill.stream_processors.audit.seal.errors import Unreadable
from durabill.stream_processors.audit.seal.merkle import HASH_BYTES
from durabill.stream_processors.audit.seal.notes import PrivateKey, parse_note, sign

RECREATED = "topic-recreated"
RECORDS_LOST = "records-lost"
REBUILT = "totals-rebuilt"
REASONS = (RECREATED, RECORDS_LOST, REBUILT)

_PREFIX = "durabill-seal"
_PART = r"[A-Za-z0-9._-]+"
_ORIGIN = re.compile(rf"{_PREFIX}/({_PART})/({_PART})/({_PART})/(\d+)(?:/from-(\d+))?")
_NUMBER = re.compile(r"0|[1-9]\d{0,18}")


@dataclass(frozen=True, slots=True)
class Origin:
    """Which log: that of a partition of one topic, from an offset on."""

    cluster: str
    topic: str
    topic_id: str
    partition: int
    first_offset: int = 0

    def __str__(self) -> str:
        start = f"/from-{self.first_offset}" if self.first_offset else ""
        return f"{_PREFIX}/{self.cluster}/{self.topic}/{self.topic_id}/{self.partition}{start}"

    @property
    def folder(self) -> str:
        """Return where its files are, below the folder of all logs."""
        return str(self).removeprefix(_PREFIX + "/")


def parse_origin(text: str) -> Origin:
    """Return an origin by its text. Raises Unreadable."""
    found = _ORIGIN.fullmatch(text)
    if found is None or ".." in text.split("/") or "." in text.split("/"):
        raise Unreadable(f"{text!r} is no log of Durabill's")
    cluster, topic, topic_id, partition, first = found.groups()
    origin = Origin(cluster, topic, topic_id, int(partition), int(first or 0))
    if str(origin) != text:
        raise Unreadable(f"{text!r} is no log of Durabill's")
    return origin


@dataclass(frozen=True, slots=True)
class Follows:
    """The log before: its origin, and its last size and root."""

    origin: Origin
    size: int
    root: bytes


@dataclass(frozen=True, slots=True)
class Closed:
    """Why a log has ended, and which one goes on."""

    reason: str
    by: Origin


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What is signed of a log: `size` leaves, the records at [origin.first_offset, next_offset)."""

    origin: Origin
    size: int
    root: bytes
    next_offset: int
    follows: Follows | None = None
    closed: Closed | None = None

    def text(self) -> str:
        """Return the text that is signed."""
        lines = [str(self.origin), str(self.size), _encoded(self.root)]
        lines.append(f"offsets {self.origin.first_offset} {self.next_offset}")
        if self.follows is not None:
            before = self.follows
            lines.append(f"follows {before.origin} {before.size} {_encoded(before.root)}")
        if self.closed is not None:
            lines.append(f"closed {self.closed.reason} {self.closed.by}")
        return "".join(f"{line}\n" for line in lines)

    def signed(self, *keys: PrivateKey) -> str:
        """Return the checkpoint as a signed note."""
        return sign(self.text(), *keys)


def parse_checkpoint(text: str) -> Checkpoint:
    """Return a checkpoint by the text of its note. Raises Unreadable."""
    lines = text.removesuffix("\n").split("\n")
    if len(lines) < 4:
        raise Unreadable("it is no checkpoint of Durabill's: origin, size, root, offsets")
    origin = parse_origin(lines[0])
    size, root = _number(lines[1]), _hash(lines[2])
    words = {line.split(" ")[0]: line.split(" ")[1:] for line in lines[3:]}
    follows = closed = None
    try:
        _, next_text = words["offsets"]
        if before := words.get("follows"):
            follows = Follows(parse_origin(before[0]), _number(before[1]), _hash(before[2]))
        if end := words.get("closed"):
            closed = Closed(end[0], parse_origin(end[1]))
    except (KeyError, IndexError, ValueError) as error:
        raise Unreadable("the checkpoint's lines below its root can't be read") from error
    found = Checkpoint(origin, size, root, _number(next_text), follows, closed)
    if found.text() != text:
        raise Unreadable("the checkpoint isn't written as Durabill writes them")
    return found


def read_checkpoint(note: str) -> Checkpoint:
    """Return what a signed note says, whoever has signed it. Raises Unreadable."""
    return parse_checkpoint(parse_note(note).text)


def _number(text: str) -> int:
    if not _NUMBER.fullmatch(text):
        raise Unreadable(f"{text[:40]!r} is no number of a checkpoint")
    return int(text)


def _hash(text: str) -> bytes:
    try:
        raw = base64.b64decode(text, validate=True)
    except ValueError as error:
        raise Unreadable(f"{text[:60]!r} is no hash of a checkpoint") from error
    if len(raw) != HASH_BYTES:
        raise Unreadable(f"{text[:60]!r} is no hash of a checkpoint")
    return raw


def _encoded(root: bytes) -> str:
    return base64.b64encode(root).decode()
