"""What an audit comes to: the findings, what was counted, and the one verdict."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from durabill.stream_processors.audit.kinds import MEANINGS as MEANINGS
from durabill.stream_processors.audit.kinds import Kind as Kind

FINDINGS_SHOWN_MAX = 1_000
"""How many findings the JSON has; the CSV file has all of them."""

TEXT_CHARS_MAX = 400
"""A longer value is cut in a finding: a total's intervals can be a megabyte of text."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One difference. What does not apply is empty or None.

    `expected` is what the log gives, `found` what was published; `place` says where it stands
    (topic/partition/offset, or a table of the ledger).
    """

    kind: Kind
    service_order_number: str = ""
    revision: int | None = None
    field: str = ""
    expected: str = ""
    found: str = ""
    place: str = ""

    def __post_init__(self) -> None:
        for name in ("expected", "found"):
            text = getattr(self, name)
            if len(text) > TEXT_CHARS_MAX:
                object.__setattr__(self, name, f"{text[:TEXT_CHARS_MAX]}… ({len(text)} characters)")


FINDING_COLUMNS = tuple(each.name for each in fields(Finding))
"""The columns of the CSV file, in this order."""


@dataclass(frozen=True, slots=True)
class PartitionAccount:
    """What became of every offset of one partition of the segments: [first_offset, end_offset).

    data + control + aborted + unexplained = end_offset - first_offset. Of the data `clock_marks`
    are the workers' own, `dead_letters` were rejected, `forwarded` were sent on.
    """

    partition: int
    first_offset: int = 0
    end_offset: int = 0
    data: int = 0
    control: int = 0
    aborted: int = 0
    unexplained: int = 0
    clock_marks: int = 0
    dead_letters: int = 0
    forwarded: int = 0
    totals: int = 0
    """Published totals that were compared."""
    proven: int = 0
    """Those of them that the log gives, byte for byte or field by field."""
    newer_totals: int = 0
    """Published totals that rest on what came after the end."""
    not_yet_published: int = 0
    """Totals that the log gives and that workers have yet to publish, by their checkpoint."""
    unprovable_totals: int = 0
    """Published totals whose orders may have begun in the part of the log that is gone."""
    totals_of_other_logs: int = 0
    """Published totals from before the segments topic was made anew: not compared."""
    open_orders: int = 0
    openings: int = 0
    """Records of the orders topic that were compared."""
    openings_proven: int = 0
    """Those of them that the log gives, byte for byte."""
    openings_not_yet_published: int = 0
    openings_of_other_logs: int = 0
    """Records of the orders topic from before the segments topic was made anew: not compared."""
    archived_to: int | None = None
    """Up to this offset the records came from the archive; None: from Kafka alone."""
    policies: tuple[dict[str, Any], ...] = ()
    """The recorded policies, each with the offset from which on it held."""
    policy_assumed_because: str = ""
    """Why the settings' policy was taken instead; empty where the recorded one held."""

    @property
    def segments(self) -> int:
        """Return how many records of clients were folded, rejected ones included."""
        return self.data - self.clock_marks


@dataclass(frozen=True, slots=True)
class LedgerAccount:
    """What was compared of the ledger; `source` is its DSN without the password."""

    source: str
    rows: int = 0
    proven: int = 0
    newer_rows: int = 0
    """Rows of totals that were published after the end of this audit."""
    not_yet_recorded: int = 0
    """Totals that the ledger has yet to read, by its own offsets."""
    set_aside: int = 0
    unreadable: int = 0
    orders: int = 0
    """Rows of the table of orders."""
    orders_proven: int = 0
    orders_not_yet_recorded: int = 0


@dataclass(frozen=True, slots=True)
class Scope:
    """What was asked for. Empty: everything."""

    service_order_number: str = ""
    partitions: tuple[int, ...] = ()
    from_ms: int | None = None
    to_ms: int | None = None
    as_of: str = ""


@dataclass(frozen=True, slots=True)
class AuditResult:
    """All that an audit has to say."""

    segments_topic: str
    totals_topic: str
    scope: Scope
    engine: str
    processes: int
    began_at_ms: int
    elapsed_s: float
    cpu_s: float
    partitions: tuple[PartitionAccount, ...]
    findings: tuple[Finding, ...] = ()
    ledger: LedgerAccount | None = None
    orders_topic: str = ""
    sealed: int | None = None
    """How many totals the sealed log has, None where it was not checked."""
    notes: tuple[str, ...] = ()
    """What could not be decided, or was assumed; in words."""

    @property
    def is_proven(self) -> bool:
        """Tell whether there is no finding."""
        return not self.findings

    @property
    def verdict(self) -> str:
        """Return "proven" or "differs"."""
        return "proven" if self.is_proven else "differs"

    @property
    def totals(self) -> int:
        """Return how many published totals were compared."""
        return self._sum("totals")

    @property
    def proven(self) -> int:
        """Return how many of them the log gives."""
        return self._sum("proven")

    @property
    def openings(self) -> int:
        """Return how many records of the orders topic were compared."""
        return self._sum("openings")

    @property
    def openings_proven(self) -> int:
        """Return how many of them the log gives."""
        return self._sum("openings_proven")

    @property
    def segments(self) -> int:
        """Return how many records of clients were folded."""
        return self._sum("segments")

    @property
    def segments_per_cpu_s(self) -> int:
        """Return the rate, by the CPU time of all processes together."""
        return round(self.segments / self.cpu_s) if self.cpu_s > 0 else 0

    @property
    def findings_by_kind(self) -> dict[str, int]:
        """Return how many findings there are of each kind that there is."""
        return kinds_of(self.findings)

    def _sum(self, name: str) -> int:
        return sum(getattr(each, name) for each in self.partitions)

    def as_json(self, findings_max: int = FINDINGS_SHOWN_MAX) -> dict[str, Any]:
        """Return everything as plain values; of the findings the first `findings_max`."""
        return {
            "result": self.verdict,
            "totals": self.totals,
            "proven": self.proven,
            "segments": self.segments,
            "cpu_s": round(self.cpu_s, 3),
            "elapsed_s": round(self.elapsed_s, 3),
            "segments_per_cpu_s": self.segments_per_cpu_s,
            "findings_by_kind": self.findings_by_kind,
            "findings_count": len(self.findings),
            "findings_shown_max": findings_max,
            "findings": [asdict(each) for each in self.findings[:findings_max]],
            "open_orders": self._sum("open_orders"),
            "newer_totals": self._sum("newer_totals"),
            "not_yet_published": self._sum("not_yet_published"),
            "unprovable_totals": self._sum("unprovable_totals"),
            "totals_of_other_logs": self._sum("totals_of_other_logs"),
            "openings": self.openings,
            "openings_proven": self.openings_proven,
            "openings_not_yet_published": self._sum("openings_not_yet_published"),
            "openings_of_other_logs": self._sum("openings_of_other_logs"),
            "dead_letters": self._sum("dead_letters"),
            "forwarded": self._sum("forwarded"),
            "clock_marks": self._sum("clock_marks"),
            "sealed": self.sealed,
            "ledger": None if self.ledger is None else asdict(self.ledger),
            "notes": list(self.notes),
            "segments_topic": self.segments_topic,
            "totals_topic": self.totals_topic,
            "orders_topic": self.orders_topic,
            "scope": asdict(self.scope),
            "engine": self.engine,
            "processes": self.processes,
            "began_at_ms": self.began_at_ms,
            "partitions": [{**asdict(each), "segments": each.segments} for each in self.partitions],
        }


def kinds_of(findings: Iterable[Finding]) -> dict[str, int]:
    """Return how many findings there are of each kind, in the order of `Kind`."""
    counts = Counter(each.kind for each in findings)
    return {kind.value: counts[kind] for kind in Kind if counts[kind]}


def in_order(findings: Iterable[Finding]) -> Sequence[Finding]:
    """Return findings sorted for people: by kind, then by order and revision."""
    kinds = list(Kind)
    return sorted(
        findings,
        key=lambda each: (
            kinds.index(each.kind),
            each.service_order_number,
            each.revision or 0,
            each.place,
            each.field,
        ),
    )
