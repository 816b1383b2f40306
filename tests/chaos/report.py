"""What was injected and what was found, for people and as JSON."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.chaos.audit import Audit
from tests.chaos.cluster import Exit
from tests.chaos.faults import Injected
from tests.chaos.schedule import Kind
from tests.chaos.traffic import Sent


@dataclass(slots=True)
class RunReport:
    """One seed. `problems` are violations besides the audit's: unproven faults, hangs, lag."""

    seed: int
    took_s: float = 0.0
    steps: int = 0
    rest_s: float = 0.0
    lag_records: int = 0
    lag_records_max: int = 0
    sent: Sent = field(default_factory=Sent)
    injected: list[Injected] = field(default_factory=list)
    exits: list[Exit] = field(default_factory=list)
    audit: Audit = field(default_factory=Audit)
    problems: list[str] = field(default_factory=list)

    @property
    def violations(self) -> list[str]:
        """Return everything that is not as it must be."""
        return [*self.problems, *self.audit.violations]

    def note_exits(self) -> None:
        """Take it for a violation if a process ended by itself as if its work were done."""
        self.problems += [
            f"{each.name} ended with 0 by itself at {each.at_s} s"
            for each in self.exits
            if each.code == 0
        ]

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "seed": self.seed,
            "took_s": self.took_s,
            "steps": self.steps,
            "records": self.sent.records,
            "segments": self.sent.segments,
            "segments_over_http": self.sent.over_http,
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
    yield f"What was found with seed {report.seed} ({report.took_s:g} s, {report.steps} steps)"
    yield (
        f"  {report.sent.segments:,} segments sent ({report.sent.over_http:,} over HTTP),"
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
    for violation in report.violations:
        yield f"  VIOLATION: {violation}"
    if report.violations:
        yield f'  The same schedule again: make chaos ARGS="--seed {report.seed}"'
