"""What was injected and what was found, for people and as JSON."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from tests.chaos.audit import SHOWN_MAX, Audit
from tests.chaos.cluster import Exit
from tests.chaos.ends import unexplained
from tests.chaos.latency import Latency, Published, measure, windows
from tests.chaos.live_audit import LiveAudit
from tests.chaos.live_audit import violations as audit_violations
from tests.chaos.proofs import Injected
from tests.chaos.schedule import Kind
from tests.chaos.traffic import Sent


@dataclass(slots=True)
class RunReport:
    """One seed. `problems` are violations besides the audit's: unproven faults, hangs, lag."""

    seed: int
    brokers: int = 1
    took_s: float = 0.0
    steps: int = 0
    rest_s: float = 0.0
    lag_records: int = 0
    lag_records_max: int = 0
    sent: Sent = field(default_factory=Sent)
    hostile_records: int = 0
    latency: Latency = field(default_factory=Latency)
    injected: list[Injected] = field(default_factory=list)
    exits: list[Exit] = field(default_factory=list)
    audit: Audit = field(default_factory=Audit)
    live_audits: list[LiveAudit] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def violations(self) -> list[str]:
        """Return everything that is not as it must be."""
        return [*self.problems, *self.audit.violations]

    def note_exits(self) -> None:
        """Take it for a violation if a process ended by itself and no fault explains it."""
        self.problems += unexplained(self.exits, self.injected)

    def note_live_audits(self, audits: Iterable[LiveAudit]) -> None:
        """Take it for a violation if `durabill audit` raised an alarm, or ended in no way meant."""
        self.live_audits = list(audits)
        self.problems += audit_violations(self.live_audits)

    def note_latency(self, published: Iterable[Published], calm_ms: Sequence[int]) -> None:
        """Measure how late the fleet's totals came, and take it for a violation if grossly."""
        self.latency = measure(published, windows(self.injected, calm_ms))
        if self.latency.gross:
            cases = "\n  ".join(self.latency.gross[:SHOWN_MAX])
            many = len(self.latency.gross)
            self.problems.append(f"totals that came late with no fault on: {many}\n  {cases}")

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "seed": self.seed,
            "brokers": self.brokers,
            "took_s": self.took_s,
            "steps": self.steps,
            "records": self.sent.records,
            "segments": self.sent.segments,
            "segments_over_http": self.sent.over_http,
            "hostile_records": self.hostile_records,
            "latency": asdict(self.latency),
            "orders": len(self.sent.intended),
            "rest_s": self.rest_s,
            "lag_records": self.lag_records,
            "lag_records_max": self.lag_records_max,
            "faults": [each.as_json() for each in self.injected],
            "exits": [
                {"name": e.name, "at_s": e.at_s, "code": e.code, "last_words": e.last_words}
                for e in self.exits
            ],
            "found": self.audit.as_json(),
            "live_audits": [each.as_json() for each in self.live_audits],
            "problems": self.problems,
            "violations": len(self.violations),
        }


def text(reports: Sequence[RunReport]) -> str:
    """Return the report for people."""
    return "\n".join(_lines(reports))


def _lines(reports: Sequence[RunReport]) -> Iterator[str]:
    yield "What was injected"
    faults = [each for report in reports for each in report.injected]
    times = Counter(each.kind for each in faults)
    for kind in Kind:
        if times[kind]:
            own = [each for each in faults if each.kind is kind]
            proven = sum(each.is_proven for each in own)
            appended = sum(each.appended for each in own)
            yield (
                f"  {kind:<48} {times[kind]:>4} times, {proven} proven to have hit,"
                f" {appended:,} records appended meanwhile"
            )
    exits = Counter((each.name.partition("-")[0], each.code) for r in reports for each in r.exits)
    yield "What ended by itself and was restarted" if exits else "Nothing ended by itself."
    for (name, code), number in sorted(exits.items(), key=str):
        yield f"  {name:<10} with exit code {code}: {number} times"
    for report in reports:
        yield from _found(report)
    violations = sum(len(report.violations) for report in reports)
    segments = sum(report.sent.segments for report in reports)
    yield (
        f"{len(reports)} seeds, {segments:,} segments, {len(faults)} faults: "
        f"{violations or 'no'} violation{'' if violations == 1 else 's'}"
    )


def _found(report: RunReport) -> Iterator[str]:
    audit = report.audit
    yield (
        f"What was found with seed {report.seed} ({report.took_s:g} s, {report.steps} steps,"
        f" brokers: {report.brokers})"
    )
    yield (
        f"  {report.sent.segments:,} segments sent ({report.sent.over_http:,} over HTTP),"
        f" {report.hostile_records:,} hostile records beside them,"
        f" {audit.records:,} records in the log, {audit.orders:,} orders"
    )
    yield (
        f"  {audit.totals:,} totals, {audit.totals_repeated:,} repeats among them;"
        f" {audit.ledger_rows:,} in the ledger; {audit.checkpointed_orders:,} orders in the"
        " checkpoint"
    )
    yield (
        f"  {audit.dead_letters:,} dead letters ({audit.dead_letters_repeated:,} repeats),"
        f" {audit.sent_on:,} records sent on ({audit.sent_on_repeated:,} repeats)"
    )
    yield (
        f"  lag {report.lag_records} in the end, {report.lag_records_max:,} at most;"
        f" at rest {report.rest_s:g} s after the last segment"
    )
    ends = Counter(str(each.code) for each in report.live_audits)
    yield (
        f"  {len(report.live_audits)} runs of durabill audit meanwhile: {ends['0']} proved all,"
        f" {ends['2']} couldn't be carried out"
    )
    late = report.latency
    yield (
        f"  {late.quiet:,} totals of the fleet came while no fault was on: p50 {late.p50_ms} ms, "
        f"p99 {late.p99_ms} ms, at most {late.max_ms} ms after what settled them"
    )
    for violation in report.violations:
        yield f"  VIOLATION: {violation}"
    if report.violations:
        again = f"--seed {report.seed} --brokers {report.brokers}"
        yield f'  The same schedule again: make chaos ARGS="{again}"'
