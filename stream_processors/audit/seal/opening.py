"""Opens the logs of a topic: which log a partition has, and what it has to come out as."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from durabill.stream_processors.audit.seal.checkpoints import Origin, parse_checkpoint
from durabill.stream_processors.audit.seal.errors import NotVerified, SealError, Unreadable
from durabill.stream_processors.audit.seal.folder import OnStep
from durabill.stream_processors.audit.seal.growing import GrowingLog, newest_origin, open_log
from durabill.stream_processors.audit.seal.keys import KeyFile
from durabill.stream_processors.audit.seal.notes import parse_note
from durabill.stream_processors.audit.seal.source import TopicState

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SealPlan:
    """What a sealer works on: the topic, where it writes, the key, where it publishes."""

    kafka: Mapping[str, Any]
    totals_topic: str
    folder: Path
    keys: KeyFile
    checkpoints_topic: str
    dsn: str = ""
    interval_s: float = 10.0


def open_partition(
    plan: SealPlan, state: TopicState, partition: int, first: int, on_step: OnStep
) -> tuple[GrowingLog, list[GrowingLog]]:
    """Return a partition's log, and those that were closed for it; `first` is its first offset."""
    topic = plan.totals_topic
    origin = newest_origin(plan.folder, state.cluster, topic, state.topic_id, partition)
    log = GrowingLog(plan.folder, origin, plan.keys, on_step)
    is_there = log.resume()
    if log.next_offset < first:
        if is_there:
            _log.warning(
                "%s: the records at [%d, %d) are gone, unsealed: another log begins at %d",
                *(origin, log.next_offset, first, first),
            )
        origin = Origin(state.cluster, topic, state.topic_id, partition, first)
    log, closed = open_log(plan.folder, origin, plan.keys, on_step)
    for each in closed:
        end = each.checkpoint.closed
        assert end is not None, "just closed"
        _log.warning("%s is closed at %d: %s", each.origin, each.checkpoint.size, end.reason)
    return log, closed


def expect(plan: SealPlan, log: GrowingLog, note: str | None) -> None:
    """Have a log come out as it was published, where the folder is behind that.

    Raises SealError where another log of the same size was published.
    """
    if note is None:
        return
    try:
        parsed = parse_note(note)
        parsed.signer(plan.keys.trusted)
        published = parse_checkpoint(parsed.text)
    except (Unreadable, NotVerified) as error:
        _log.warning(
            "%s: the checkpoint in %s is not ours: %s",
            *(log.origin, plan.checkpoints_topic, error),
        )
        return
    own = log.checkpoint
    if published.origin != log.origin or published.size < own.size:
        return
    if published.size > own.size:
        _log.warning(
            "%s: the folder has %d records, %d were sealed before: they are sealed again",
            *(log.origin, own.size, published.size),
        )
        log.expected = published
    elif published.root != own.root:
        raise SealError(
            f"{log.origin}: another checkpoint of size {own.size} was published than the folder"
            " has: two sealers have signed different logs with one key, or the folder was"
            " altered. Nothing is signed. Keep both, and run durabill audit"
        )
