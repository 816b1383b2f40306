"""What the workers of a deployment say, put together: who has which partition, and what is wrong.

Pure: answers come in as they were read, a `Report` goes out; `status` asks and shows.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from durabill.schemas.text import counted
from durabill.stream_processors.engine.policies import PolicyRecord, Terms, describe_history

_UNITS = ((86_400_000, "d"), (3_600_000, "h"), (60_000, "m"), (1_000, "s"), (1, "ms"))


class TaskStatus(msgspec.Struct, frozen=True):
    """What a worker says of one of its partitions; see `worker.processor.Processor.status`."""

    next_offset: int
    lag: int
    orders: int
    unpublished_s: float = 0.0
    checkpointed_offset: int | None = None
    clock_marks: int = 0
    held: str | None = None
    is_broken: bool = False
    waiting_for_transaction_s: float = 0.0
    policy: tuple[PolicyRecord, ...] = ()
    """The record in force at `next_offset`, and those that follow it."""
    oldest_deadline_ms: int | None = None
    openings_passed_on: int = 0
    """To the orders topic, in this process's life, as the next two."""
    openings_repeated: int = 0
    openings_extended: int = 0
    openings_waiting: int = 0
    """Orders that were opened and have no segment yet."""
    strays: int = 0
    """Records of the totals or the orders topic that are no worker's."""


class WorkerStatus(msgspec.Struct, frozen=True):
    """What a worker says of itself. Of an older version it may lack what has a default."""

    application_id: str
    partitions: dict[int, TaskStatus]
    last_checkpoint_ms: int | None = None
    now_ms: int | None = None
    """The worker's own clock, which may show anything."""
    partition_count: int | None = None


class Readiness(msgspec.Struct, frozen=True):
    """What a worker answers to `/health/ready`."""

    ready: bool
    problems: list[str] = []


@dataclass(frozen=True)
class Answer:
    """One worker's answer, or why there is none."""

    url: str
    status: WorkerStatus | None = None
    readiness: Readiness | None = None
    why_not: str = ""

    @property
    def is_ready(self) -> bool:
        """Tell whether it says that it is at work."""
        return self.readiness is not None and self.readiness.ready

    @property
    def checkpoint_age_ms(self) -> int | None:
        """Return how old its last checkpoint is by its own clock; None if it has written none."""
        told = self.status
        if told is None or told.last_checkpoint_ms is None or told.now_ms is None:
            return None
        return max(0, told.now_ms - told.last_checkpoint_ms)


@dataclass(frozen=True)
class Owned:
    """A partition, as its owner sees it."""

    partition: int
    owner: str
    task: TaskStatus


@dataclass(frozen=True)
class Report:
    """The whole deployment. `problems` is empty if all is well; each is one line, as a note is.

    Notes are of what somebody should look at, and what stands in nobody's way.
    """

    application_id: str
    answers: list[Answer]
    partition_count: int | None
    partitions: list[Owned] = field(default_factory=list)
    unowned: list[int] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """Return it as plain values."""
        return {
            "application_id": self.application_id,
            "ok": not self.problems,
            "problems": self.problems,
            "notes": self.notes,
            "partition_count": self.partition_count,
            "unowned": self.unowned,
            "workers": [_worker_as_json(each) for each in self.answers],
            "partitions": [_partition_as_json(each) for each in self.partitions],
        }


def read_answer(
    url: str, status: Any, readiness: Any, why_not: str = "", *, why_no_readiness: str = ""
) -> Answer:
    """Return a worker's answer from the JSON of its two pages (None: `why_not` says why)."""
    if status is None:
        return Answer(url, why_not=why_not)
    try:
        told = msgspec.convert(status, WorkerStatus, str_keys=True)
    except msgspec.ValidationError as error:
        return Answer(url, why_not=f"what it answers is no worker's status: {error}")
    try:
        ready = msgspec.convert(readiness, Readiness)
    except msgspec.ValidationError:
        ready = Readiness(ready=False, problems=[why_no_readiness or "it doesn't say why"])
    return Answer(url, told, ready)


def make_report(
    application_id: str,
    answers: Sequence[Answer],
    partition_count: int | None,
    *,
    problems: Sequence[str] = (),
) -> Report:
    """Put the answers together. `partition_count` is Kafka's word, None where it can't be asked.

    `problems` are those that are known already, and come first.
    """
    ours = [each for each in answers if _is_of(each, application_id)]
    counts = [each.status.partition_count for each in ours if each.status is not None]
    if partition_count is None:
        partition_count = max((each for each in counts if each is not None), default=None)
    owned = [
        Owned(partition, each.url, task)
        for each in ours
        if each.status is not None
        for partition, task in each.status.partitions.items()
    ]
    owned.sort(key=lambda each: (each.partition, each.owner))
    owners: dict[int, list[str]] = {}
    for each in owned:
        owners.setdefault(each.partition, []).append(each.owner)
    unowned = [each for each in range(partition_count or 0) if each not in owners]
    found = [
        *problems,
        *_of_workers(application_id, answers),
        *(_held(each) for each in owned if each.task.held or each.task.is_broken),
        *_of_owners(owners, unowned, answers),
        *_of_policies(ours),
    ]
    notes = [_strays(each) for each in owned if each.task.strays]
    return Report(application_id, list(answers), partition_count, owned, unowned, found, notes)


def _is_of(answer: Answer, application_id: str) -> bool:
    return answer.status is not None and answer.status.application_id == application_id


def _of_workers(application_id: str, answers: Sequence[Answer]) -> list[str]:
    if not answers:
        return ["no worker is known: start one, or name them in DURABILL_WORKER_URLS"]
    lines = []
    for each in answers:
        if each.status is None:
            lines.append(f"worker {each.url} can't be asked: {each.why_not}")
        elif not _is_of(each, application_id):
            other = each.status.application_id
            lines.append(f"worker {each.url} has another application id: {other}")
        elif not each.is_ready:
            lines.append(f"worker {each.url} isn't ready: {_why_unready(each)}")
    return lines


def _why_unready(answer: Answer) -> str:
    """Return the reasons; what holds a partition is told in whole on a line of its own."""
    assert answer.status is not None
    assert answer.readiness is not None
    held = {
        f"partition {partition} is held: {task.held}": f"partition {partition} is held"
        for partition, task in answer.status.partitions.items()
    }
    reasons = [held.get(each, each) for each in answer.readiness.problems]
    return "; ".join(reasons) or "it doesn't say why"


def _held(owned: Owned) -> str:
    task = owned.task
    what = "is stopped" if task.is_broken else "is held"
    return f"partition {owned.partition} {what} at offset {task.next_offset}: {task.held}"


def _strays(owned: Owned) -> str:
    return (
        f"partition {owned.partition}: of what its worker has met in the totals and orders topics,"
        f" {counted(owned.task.strays, 'record')} no worker has written, and it was passed over."
        " Find out who else may write there; `durabill audit` tells of each"
    )


def _of_owners(
    owners: dict[int, list[str]], unowned: list[int], answers: Sequence[Answer]
) -> list[str]:
    lines = [
        f"partition {partition} is claimed by {' and '.join(those)}: one of them has lost it and"
        " doesn't know yet"
        for partition, those in owners.items()
        if len(those) > 1
    ]
    if unowned:
        silent = any(each.status is None for each in answers)
        perhaps = " (a worker that can't be asked may have them)" if silent else ""
        several = "partitions" if len(unowned) > 1 else "partition"
        lines.append(f"nobody has {several} {', '.join(map(str, unowned))}{perhaps}")
    return lines


def _of_policies(answers: Sequence[Answer]) -> list[str]:
    """Say in one line that workers were given different settings: each bills by its own."""
    told: dict[Terms, list[str]] = {}
    for each in answers:
        tasks = each.status.partitions.values() if each.status is not None else ()
        for terms in dict.fromkeys(task.policy[-1].terms for task in tasks if task.policy):
            told.setdefault(terms, []).append(each.url)
    if len(told) < 2:
        return []
    sides = [f"{' and '.join(urls)} by {short_terms(terms)}" for terms, urls in told.items()]
    return [
        f"workers of this group have different policies: {'; '.join(sides)}. Give all of them the"
        " same settings: a partition is billed by its owner's from where that took it over"
    ]


def short_terms(terms: Terms) -> str:
    """Return terms in a few words: grace/idle/window/interim, and what else there is."""
    policy = terms.policy
    waits_ms = (policy.settle_grace_ms, policy.idle_timeout_ms, policy.correction_window_ms)
    interim = short_ms(policy.interim_interval_ms) if policy.interim_interval_ms else "never"
    registry = " registry" if terms.registry else ""
    opened = " opened only" if policy.opened_only else ""
    return "/".join([*map(short_ms, waits_ms), interim]) + registry + opened


def short_ms(duration_ms: int) -> str:
    """Return a duration in the largest unit that it is a whole number of: 90s, 5m, 1d."""
    if not duration_ms:
        return "0s"
    unit_ms, name = next(each for each in _UNITS if duration_ms % each[0] == 0)
    return f"{duration_ms // unit_ms}{name}"


def short_policy(task: TaskStatus) -> str:
    """Return the policy in force, since which offset, and what follows it."""
    records = [f"{short_terms(each.terms)} @{each.from_offset}" for each in task.policy]
    return ", then ".join(records)


def _worker_as_json(each: Answer) -> dict[str, Any]:
    told, ready = each.status, each.readiness
    return {
        "url": each.url,
        "asked": told is not None,
        "why_not": each.why_not or None,
        "ready": each.is_ready,
        "problems": [] if ready is None else ready.problems,
        "application_id": None if told is None else told.application_id,
        "last_checkpoint_age_ms": each.checkpoint_age_ms,
        "partitions": [] if told is None else sorted(told.partitions),
    }


def _partition_as_json(each: Owned) -> dict[str, Any]:
    task = msgspec.structs.asdict(each.task)
    policy = list(describe_history(each.task.policy))
    return {"partition": each.partition, "owner": each.owner, **task, "policy": policy}
