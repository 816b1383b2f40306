"""What one partition's audit is asked, and what it answers.

A job is all that the task needs to know, and an outcome all that it found, so that both can go from
one process to another. The ends of the log and of the totals are in the job: they were taken before
anything was read, the totals' first. So whatever is among those totals has its evidence in the log.
"""

from array import array
from dataclasses import dataclass, field
from hashlib import blake2b

from durabill.schemas import Reason
from durabill.stream_processors.audit.findings import Finding, PartitionAccount
from durabill.stream_processors.audit.ledger_walk import LedgerView
from durabill.stream_processors.audit.replay import Engine, LogSource, PartitionTerms
from durabill.stream_processors.audit.scope import EVERYTHING, TotalsScope
from durabill.stream_processors.core.admission import Place
from durabill.stream_processors.settings import Settings

REASONS = tuple(Reason)
PRINT_BYTES = 16


@dataclass(frozen=True, slots=True)
class PartitionJob:
    """What is to be audited of one partition, and by what."""

    settings: Settings
    place: Place
    terms: PartitionTerms
    first_offset: int
    """Where the log on Kafka begins."""
    end_offset: int
    """Where the replay ends: the end of the committed log as it was, or what was asked for."""
    totals_first: int
    totals_end: int
    scope: TotalsScope = EVERYTHING
    engine: Engine = Engine.COLUMNS
    is_as_of: bool = False
    """Whether the end is an earlier one than that of the log."""
    has_checkpoint: bool = False
    ledger: LedgerView | None = None
    begins: int | None = None
    """Where the log begins with the archive's part before Kafka's; None: without one."""
    from_archive: bool = False
    """Whether what both have comes from the archive."""
    orders: tuple[int, int] = (0, 0)
    """What the orders topic held when its end was taken."""
    has_orders: bool = False
    """Whether there is an orders topic that may be read."""
    log_id: str = ""
    """The id of the segments topic, "" where the broker has none."""


@dataclass(slots=True)
class PartitionOutcome:
    """What the audit of one partition has found; offsets are of the segments."""

    account: PartitionAccount
    findings: list[Finding]
    rejected: "array[int]" = field(default_factory=lambda: array("q"))
    reasons: "array[int]" = field(default_factory=lambda: array("b"))
    """Of each of them, its place among `REASONS`."""
    forwarded: "array[int]" = field(default_factory=lambda: array("q"))
    forwarded_to: "array[int]" = field(default_factory=lambda: array("i"))
    rejected_prints: bytearray = field(default_factory=bytearray)
    forwarded_prints: bytearray = field(default_factory=bytearray)
    """Of each of them, `print_of` its key and value."""
    ledger: tuple[int, int, int, int] = (0, 0, 0, 0)
    """Rows, those proven, totals that the ledger has yet to record, rows that were set aside."""
    order_rows: tuple[int, int, int] = (0, 0, 0)
    """Of the table of orders: rows, those proven, openings that the ledger has yet to record."""
    has_worked: bool = True
    """Whether any worker has ever had the partition, by its checkpoint or its totals."""
    has_leftovers: bool = False
    """Whether the two streams were not the same to the last."""
    cpu_s: float = 0.0
    notes: list[str] = field(default_factory=list)


def notes_of(job: PartitionJob, source: LogSource, *, has_worked: bool) -> list[str]:
    """Return what could not be decided, or was assumed."""
    where = f"{job.settings.segments_topic}/{job.place.partition}"
    begins, assumed = job.terms.history[0].from_offset, job.terms.assumed_because
    notes = []
    if assumed:
        notes.append(f"{where}: the policy of the settings is assumed: {assumed}")
    elif begins > source.first_offset:
        notes.append(
            f"{where}: no policy is recorded for what comes before offset {begins}, which is older"
            " than such records; totals that rest on it and differ are not called wrong"
        )
    if source.end_offset < job.end_offset:
        notes.append(
            f"{where}: offset {job.end_offset} is inside a record batch: it is replayed up to"
            f" {source.end_offset}, where that begins"
        )
    if not job.has_checkpoint and has_worked:
        notes.append(
            f"{where}: no checkpoint under the application id {job.settings.application_id}: a"
            " total that workers have yet to publish can't be told from a missing one"
        )
    return notes


def print_of(key: bytes | None, value: bytes | None) -> bytes:
    """Return a hash of a record's key and value, by which a copy of it is known."""
    found = blake2b(digest_size=PRINT_BYTES)
    for each in (key, value):
        found.update(b"-" if each is None else b"%d:" % len(each))
        found.update(each or b"")
    return found.digest()
