"""Which policy is in force from which offset on: recorded for good, as a part of the log's truth.

Totals depend on terms that are not in the segments: the policy, whether registry ids are read, the
version of the rules. Each partition records them in an entry `partition/policy` beside its
checkpoint. The entry keeps every record that there ever was, oldest first. A record is in force
from the first record batch that begins at or after its offset.

A worker whose settings differ from the last record appends a record when it takes the partition
over. Its offset is the end of the committed log at that moment. The previous owner can't have
folded anything beyond it, so whatever it published is replayed under the terms that it was
published under. The record is committed before anything rests on it.
"""

from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

import msgspec

from durabill.schemas.errors import StateError
from durabill.stream_processors.core.order import Policy
from durabill.stream_processors.engine.batch import Chunk, headers_in

RULES = 4
"""The version of the rules of billing in this program; 1 was never recorded."""

RULES_READ = (2, 3, 4)
"""The versions that this program bills by where they are recorded.

2 reads no openings. 3 passes over those that come again, though they accept segments for longer.
"""

POLICY = "policy"
"""The name of the entry."""


class Terms(msgspec.Struct, frozen=True):
    """What totals depend on besides the log itself."""

    policy: Policy
    registry: bool = False
    """Whether values in the framing of a schema registry are read."""
    rules: int = RULES

    @property
    def reads_openings(self) -> bool:
        """Tell whether openings count; before version 3 their schema was unknown."""
        return self.rules > 2

    @property
    def extends_openings(self) -> bool:
        """Tell whether an opening that comes again can extend the one before; from version 4 on."""
        return self.rules > 3


class PolicyRecord(msgspec.Struct, frozen=True):
    """Terms, and the offset from which on they are in force."""

    from_offset: int
    terms: Terms


History = tuple[PolicyRecord, ...]
_decoder = msgspec.json.Decoder(History)


def encode_history(history: History) -> bytes:
    """Return the content of the entry (JSON, so that anybody can read it)."""
    return msgspec.json.encode(history)


def decode_history(raw: bytes | None) -> History:
    """Return the recorded history, empty if there is none.

    Raises StateError if it can't be read, and if a newer version of the program has recorded its
    rules: ours would bill otherwise.
    """
    if raw is None:
        return ()
    try:
        history = _decoder.decode(raw)
    except msgspec.MsgspecError as error:
        raise StateError(f"the recorded policy of a partition is damaged: {error}") from error
    newest = max((each.terms.rules for each in history), default=RULES)
    if newest > RULES:
        raise StateError(
            f"a newer version of Durabill has had this partition: it bills by version {newest} of"
            f" the rules, this one knows {RULES}. Run that version"
        )
    return history


def in_force(history: History, offset: int) -> Terms:
    """Return the terms for a record batch that begins at `offset`."""
    held = [each for each in history if each.from_offset <= offset]
    return (held[-1] if held else history[0]).terms


def from_here(history: History, offset: int) -> History:
    """Return the record in force for a batch that begins at `offset`, and all later records."""
    passed = sum(each.from_offset <= offset for each in history)
    return history[max(0, passed - 1) :]


def taken_over(
    history: History, wanted: Terms, *, next_offset: int, log_end: int, has_unseen_totals: bool
) -> History:
    """Return the history with which a new owner with `wanted` terms goes on.

    `next_offset` is where its replay starts, `log_end` where the committed log ends.
    `has_unseen_totals` tells whether totals were published since the checkpoint. Raises StateError
    where there are such totals and the rules have changed: only the program that published them
    can replay them.
    """
    if history and history[-1].terms == wanted:
        return history
    rules_before = history[-1].terms.rules if history else None
    if rules_before in RULES_READ:
        return (*history, PolicyRecord(log_end, wanted))
    if has_unseen_totals:
        raise StateError(
            "totals were published since the last checkpoint by another version of Durabill, whose"
            " rules this one can't replay. Start that version once more, stop it by SIGTERM"
            " once it has caught up, then start this one"
        )
    return (*history, PolicyRecord(next_offset, wanted))


def split(chunk: Chunk, history: History) -> list[tuple[Terms | None, Chunk]]:
    """Split a chunk where the terms change; each piece has its own terms, None without a batch."""
    first_batch = next(headers_in(chunk.data), None)
    if first_batch is None:
        return [(None, chunk)]
    begins = first_batch[1].base_offset
    changes = sorted({each.from_offset for each in history})
    if not any(begins < each < chunk.next_offset for each in changes):
        return [(in_force(history, begins), chunk)]
    starts: list[tuple[int, int]] = []  # (position in the data, base offset) of each piece
    crossed = -1
    for at, header in headers_in(chunk.data):
        passed = bisect_right(changes, header.base_offset)
        if passed != crossed:
            starts.append((at, header.base_offset))
            crossed = passed
    pieces: list[tuple[Terms | None, Chunk]] = []
    first = chunk.first_offset
    for place, (at, base) in enumerate(starts):
        is_last = place + 1 == len(starts)
        end = len(chunk.data) if is_last else starts[place + 1][0]
        after = chunk.next_offset if is_last else max(first, starts[place + 1][1])
        pieces.append((in_force(history, base), Chunk(first, after, chunk.data[at:end])))
        first = after
    return pieces


def describe_history(history: Sequence[PolicyRecord]) -> list[dict[str, Any]]:
    """Return the history as plain values for JSON."""
    plain: list[dict[str, Any]] = msgspec.to_builtins(history)
    return plain
