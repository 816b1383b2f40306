"""Checks all sealed logs of a topic, and how they follow one another; for `audit` too."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from durabill.stream_processors.audit.seal.check import (
    LogCheck,
    SealFinding,
    Witnessed,
    check_log,
)
from durabill.stream_processors.audit.seal.checkpoints import (
    Checkpoint,
    Origin,
    read_checkpoint,
)
from durabill.stream_processors.audit.seal.errors import Unreadable
from durabill.stream_processors.audit.seal.folder import CHECKPOINT, LogFolder, log_folder, logs_in
from durabill.stream_processors.audit.seal.notes import PublicKey


@dataclass(frozen=True)
class SealedTopic:
    """The totals topic as it is now; `topic_id` as origins have it (see `sealer.TopicState`).

    `values(partition, offset)` yields (offset, value) of the partition's committed records from the
    offset on, in their order, up to that in `ends`; `firsts` are the first offsets that there are.
    `end_now(partition)` asks where the partition ends by now: a checkpoint that is newer than
    `ends` has to be of records that are there.
    """

    cluster: str
    name: str
    topic_id: str
    values: Callable[[int, int], Iterable[tuple[int, bytes | None]]]
    firsts: Mapping[int, int]
    ends: Mapping[int, int]
    end_now: Callable[[int], int]

    def has(self, origin: Origin) -> bool:
        """Tell whether a log is one of this topic as it is now."""
        ours = self.cluster, self.name, self.topic_id
        return ours == (origin.cluster, origin.topic, origin.topic_id)


@dataclass
class SealCheck:
    """What came of the check of all logs of a topic."""

    logs: list[LogCheck]
    others: list[SealFinding]
    """Findings that aren't about one log."""

    @property
    def findings(self) -> list[SealFinding]:
        """Return all findings."""
        return [*self.others, *(each for log in self.logs for each in log.findings)]

    @property
    def size(self) -> int:
        """Return how many totals the logs hold, by their newest checkpoints."""
        return sum(0 if each.checkpoint is None else each.checkpoint.size for each in self.logs)


def check_seal(
    folder: Path | None,
    topic: SealedTopic,
    keys: Sequence[PublicKey],
    witnessed: Sequence[Witnessed] = (),
) -> SealCheck:
    """Check every log of the topic, those of its predecessors too, against all checkpoints known.

    `folder` None: there is none, the checkpoints alone are checked. `witnessed` are the checkpoints
    that were published and those that somebody kept, read before this is called. Raises SealError
    where a file can't be read.
    """
    result = SealCheck([], [])
    by_origin: defaultdict[Origin, list[Witnessed]] = defaultdict(list)
    for each in witnessed:
        if each.trouble:
            result.others.append(
                SealFinding("row", "what its signed note says", each.trouble, each.place)
            )
        try:
            by_origin[read_checkpoint(each.note).origin].append(each)
        except Unreadable as error:
            result.others.append(
                SealFinding("checkpoint", "a signed checkpoint", str(error), each.place)
            )
    in_folder = [] if folder is None else [e for e in logs_in(folder) if e.topic == topic.name]
    for origin in dict.fromkeys([*in_folder, *by_origin]):
        is_there = origin in in_folder
        if folder is not None and not is_there:
            for each in by_origin[origin]:
                result.others.append(
                    SealFinding("log", f"the log of {origin}", "none in the folder", each.place)
                )
        files = log_folder(folder, origin) if folder is not None and is_there else None
        check = _check(topic, files, origin, keys, by_origin[origin])
        if check is not None:
            result.logs.append(check)
        elif folder is None:
            result.others.append(_unprovable(origin, by_origin[origin]))
    if folder is not None:
        result.others += _links(folder, in_folder)
    return result


def _check(
    topic: SealedTopic,
    files: LogFolder | None,
    origin: Origin,
    keys: Sequence[PublicKey],
    witnessed: Sequence[Witnessed],
) -> LogCheck | None:
    """Check a log by the topic where that has its records, else by itself; None: by nothing."""
    own = None if files is None else _readable(files)
    partition = origin.partition
    if not topic.has(origin) or (own is not None and own.closed is not None):
        return None if files is None else check_log(files, origin, keys, None, witnessed=witnessed)
    first, head = topic.firsts.get(partition, 0), 0
    if first > origin.first_offset:
        if own is None:
            return None
        left = sum(1 for at, _ in topic.values(partition, first) if at < own.next_offset)
        head = max(0, own.size - left)
    at: list[int | None] = [None]

    def values() -> Iterator[bytes | None]:
        for at[0], value in topic.values(partition, max(first, origin.first_offset)):
            yield value
        at[0] = None  # what comes then is the log's own

    return check_log(
        files,
        origin,
        keys,
        values(),
        head=head,
        end_offset=topic.ends.get(partition, 0),
        end_now=lambda: topic.end_now(partition),
        witnessed=witnessed,
        offset=lambda: at[0],
    )


def _readable(files: LogFolder) -> Checkpoint | None:
    try:
        return read_checkpoint(files.text(CHECKPOINT) or "")
    except Unreadable:
        return None  # told by the check of that log


def _unprovable(origin: Origin, notes: Sequence[Witnessed]) -> SealFinding:
    where = ", ".join(each.place for each in notes)
    return SealFinding("log", f"the log of {origin}", "neither its topic nor its folder", where)


def _links(folder: Path, origins: Sequence[Origin]) -> list[SealFinding]:
    """Return what is wrong with how logs follow one another.

    A rebuilt topic's logs follow those of a topic of another name.
    """
    found = []
    known: dict[Origin, Checkpoint] = {}
    for origin in logs_in(folder):
        checkpoint = _readable(log_folder(folder, origin))
        if checkpoint is not None:
            known[origin] = checkpoint
    for origin in (each for each in origins if each in known):
        checkpoint = known[origin]
        before, place = checkpoint.follows, f"{log_folder(folder, origin).folder}/{CHECKPOINT}"
        if before is not None:
            last = known.get(before.origin)
            ended = None if last is None else (last.size, last.root)
            if ended != (before.size, before.root):
                what = f"{before.origin} at {before.size}, root {before.root.hex()}"
                was = "no such log" if last is None else f"{last.size}, root {last.root.hex()}"
                found.append(SealFinding("follows", what, was, place))
        end = checkpoint.closed
        if end is not None and end.by not in known:
            found.append(SealFinding("closed", f"the log of {end.by}", "no such log", place))
    return found
