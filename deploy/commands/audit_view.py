"""Shows what an audit came to: the verdict, what was counted, the findings."""

from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from durabill.deploy.terminal import counted, plain, shown
from durabill.stream_processors.audit.findings import (
    MEANINGS,
    AuditResult,
    Finding,
    Kind,
    PartitionAccount,
)

FINDINGS_SHOWN = 40
NOTES_SHOWN = 12
_CELL_CHARS = 60


def show_result(result: AuditResult) -> None:
    """Show a result on standard output."""
    console = Console()
    for line in account_lines(result):
        print(plain(line))
    if result.findings:
        console.print(_by_kind(result))
        console.print(_findings(result.findings))
    print(plain(verdict_line(result)))


def verdict_line(result: AuditResult) -> str:
    """Return the last line: what is proven, and of how much."""
    totals = f"{result.proven:,} of {counted(result.totals, 'total')}"
    ledger = result.ledger
    rows = "" if ledger is None else f", {ledger.proven:,} of {counted(ledger.rows, 'ledger row')}"
    if result.openings:
        rows += f", {result.openings_proven:,} of {counted(result.openings, 'opening')}"
    if result.is_proven and not result.totals:
        return f"there is no total to prove, and nothing differs: {totals}{rows}"
    if result.is_proven:
        return f"proven: {totals}{rows}"
    findings = counted(len(result.findings), "finding")
    return f"differs: {findings}; proven are {totals}{rows}"


def account_lines(result: AuditResult) -> Iterator[str]:
    """Yield what was read, and what is told apart from findings."""
    parts = result.partitions
    yield (
        f"{counted(result.segments, 'segment')} in {counted(len(parts), 'partition')} of"
        f" {result.segments_topic}, replayed by {result.engine} in {result.elapsed_s:.1f} s"
        f" ({result.segments_per_cpu_s:,} a CPU-second)"
    )
    yield f"offsets: {_sums(parts, _OFFSETS)}"
    yield f"of the data: {_sums(parts, _DATA)}"
    apart = [(_sum(parts, name), what) for name, what in _APART.items()]
    if result.ledger is not None:
        apart.append((result.ledger.not_yet_recorded, "which the ledger has yet to record"))
        apart.append((result.ledger.set_aside, "which the ledger has set aside"))
    told = [_counted(number, what) for number, what in apart if number]
    if not_passed_on := _sum(parts, "openings_not_yet_published"):
        told.append(f"{counted(not_passed_on, 'opening')} which workers have yet to pass on")
    for what in ("total", "opening"):
        if of_others := _sum(parts, f"{what}s_of_other_logs"):
            told.append(f"{counted(of_others, what)} of a segments topic before this one")
    if told:
        yield f"told apart: {', '.join(told)}"
    for note in result.notes[:NOTES_SHOWN]:
        yield f"note: {note}"
    if len(result.notes) > NOTES_SHOWN:
        yield f"note: {len(result.notes) - NOTES_SHOWN} more notes; --json has all"


_OFFSETS = {
    "data": "data",
    "control": "markers",
    "aborted": "aborted",
    "unexplained": "unexplained",
}
_DATA = {"clock_marks": "clock marks", "dead_letters": "dead letters", "forwarded": "sent on"}


_OPEN = "which are still open"
_APART = {
    "open_orders": _OPEN,
    "newer_totals": "which are newer than the end",
    "not_yet_published": "which workers have yet to publish",
    "unprovable_totals": "which can't be proven",
}


def _counted(number: int, what: str) -> str:
    return f"{counted(number, 'order' if what == _OPEN else 'total')} {what}"


def _sum(parts: Sequence[PartitionAccount], name: str) -> int:
    return sum(getattr(each, name) for each in parts)


def _sums(parts: Sequence[PartitionAccount], names: dict[str, str]) -> str:
    return ", ".join(f"{_sum(parts, name):,} {words}" for name, words in names.items())


def _by_kind(result: AuditResult) -> Table:
    table = Table(title="Findings", title_justify="left", box=None)
    table.add_column("kind")
    table.add_column("count", justify="right")
    table.add_column("")
    for name, count in result.findings_by_kind.items():
        table.add_row(name, f"{count:,}", MEANINGS[Kind(name)])
    return table


def _findings(findings: Sequence[Finding]) -> Table:
    title = "Each of them"
    if len(findings) > FINDINGS_SHOWN:
        title = f"The first {FINDINGS_SHOWN} of {len(findings):,}; --csv FILE has all"
    table = Table(title=title, title_justify="left", box=None)
    for name in ("kind", "order", "revision", "field", "by the log", "found", "place"):
        table.add_column(name, overflow="fold")
    for each in findings[:FINDINGS_SHOWN]:
        number = shown(each.service_order_number) if each.service_order_number else ""
        revision = "" if each.revision is None else str(each.revision)
        texts = (
            each.kind.value,
            number,
            revision,
            each.field,
            each.expected,
            each.found,
            each.place,
        )
        table.add_row(*(Text(_short(plain(text))) for text in texts))
    return table


def _short(text: str) -> str:
    return text if len(text) <= _CELL_CHARS else f"{text[: _CELL_CHARS - 1]}…"
