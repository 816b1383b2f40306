"""An audit's result as one page that finance can read, print and keep: the verdict comes first.

The page is one file without scripts, and loads nothing. The same result gives the same page, byte
for byte. Of many findings the first ones are in it, and it says how many there are.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from durabill.schemas.text import counted, human_ms, human_time, shown
from durabill.stream_processors.audit.findings import (
    AuditResult,
    Finding,
    Kind,
    LedgerAccount,
    PartitionAccount,
)
from durabill.stream_processors.audit.html_words import ADVICE, CANNOT_BE_PROVEN, GLOSSARY
from durabill.stream_processors.audit.markup import (
    PAGE_STYLE,
    Content,
    Markup,
    element,
    joined,
    page,
    table,
)
from durabill.stream_processors.audit.report_file import write_report_file

FINDINGS_SHOWN = 500
"""So many findings are on the page; the CSV file has all of them."""


def write_report(result: AuditResult, path: Path) -> None:
    """Write the page, as a whole or not at all. Raises OSError that names `path`."""
    write_report_file(path, report_of(result))


def report_of(result: AuditResult, findings_max: int = FINDINGS_SHOWN) -> str:
    """Return the page, with at most `findings_max` findings."""
    return page(
        f"Audit: {result.verdict}",
        PAGE_STYLE,
        element("p", "Durabill: audit of the totals by the log", class_="muted"),
        element("h1", "Are the bills right?"),
        _verdict(result),
        element("h2", "What was audited"),
        *_scope(result),
        element("h2", "What was counted"),
        *_counts(result),
        *_findings(result, findings_max),
        element("h2", "What this audit can't decide"),
        *(element("p", f"Note: {note}.", class_="bad-text") for note in result.notes),
        *_undecided(result),
        element("ul", *(element("li", each) for each in CANNOT_BE_PROVEN)),
        element("h2", "Policies that held"),
        *_policies(result),
        element("h2", "What the words mean"),
        element("dl", *(_word(name, meaning) for name, meaning in GLOSSARY)),
        element(
            "footer",
            f"Made by durabill audit: engine {result.engine},"
            f" {counted(result.processes, 'process', 'processes')}, {result.cpu_s:,.1f} s of CPU."
            " All times are UTC. Anybody who can read the log can repeat this audit and compare.",
        ),
    )


def _word(name: str, meaning: str) -> Markup:
    return joined(element("dt", name), element("dd", meaning), by="")


def _verdict(result: AuditResult) -> Markup:
    totals = counted(result.totals, "total")
    if result.is_proven:
        big = f"Yes: all {totals} are proven." if result.totals else "There is no total to prove."
        words = (
            f"Each was computed anew from {counted(result.segments, 'record')} of the log, and"
            " every field is what was published."
        )
        return element(
            "div",
            element("p", big, class_="big"),
            element("p", words if result.totals else "Nothing contradicts the log either."),
            class_="box good" if result.totals else "box doubt",
        )
    kinds = result.findings_by_kind
    return element(
        "div",
        element("p", f"No: {counted(len(result.findings), 'finding')}.", class_="big"),
        element(
            "p",
            f"{result.proven:,} of {totals} are proven by {counted(result.segments, 'record')} of"
            " the log. Where the rest differs from it stands below, one by one.",
        ),
        element(
            "p",
            "; ".join(f"{_name(Kind(kind))}: {count:,}" for kind, count in kinds.items()) + ".",
        ),
        class_="box bad",
    )


def _name(kind: Kind) -> str:
    return kind.value.replace("_", " ")


def _scope(result: AuditResult) -> list[Markup]:
    scope = result.scope
    asked = []
    if scope.service_order_number:
        asked.append(f"order {shown(scope.service_order_number)} only")
    if scope.partitions:
        asked.append(f"partitions {', '.join(map(str, scope.partitions))} only")
    if scope.from_ms is not None:
        asked.append(f"totals settled at {human_time(scope.from_ms)} or later")
    if scope.to_ms is not None:
        asked.append(f"totals settled before {human_time(scope.to_ms)}")
    if scope.as_of:
        asked.append(f"the log as of {scope.as_of}")
    facts: list[tuple[Content, ...]] = [
        ("Records of clients", f"topic {result.segments_topic}"),
        ("Published totals", f"topic {result.totals_topic}"),
        ("Orders that were opened", f"topic {result.orders_topic}"),
        ("Ledger", "not looked at" if result.ledger is None else result.ledger.source),
        ("Asked for", "; ".join(asked) or "everything"),
        ("Began at", human_time(result.began_at_ms)),
        ("Took", human_ms(round(result.elapsed_s * 1000))),
    ]
    archived = [each for each in result.partitions if each.archived_to is not None]
    if archived:
        words = f"read for {counted(len(archived), 'partition')}, joined to the topic"
        facts.append(("Archive", words))
    rows: list[tuple[Content, ...]] = [
        (
            each.partition,
            f"{each.first_offset:,} to {each.end_offset:,}",
            f"{each.segments:,}",
            f"{each.clock_marks:,}",
            f"{each.control + each.aborted:,}",
            f"{each.unexplained:,}",
            f"{each.dead_letters:,}",
            f"{each.forwarded:,}",
            f"{each.totals:,}",
            f"{each.proven:,}",
            f"{each.openings:,}",
        )
        for each in result.partitions
    ]
    names = (
        *("partition", "offsets", "records", "clock marks", "control, aborted", "unexplained"),
        *("dead letters", "sent on", "totals", "proven", "openings"),
    )
    return [
        table(("", ""), facts, class_="facts"),
        element("h3", "Every offset of the log is accounted for"),
        table(names, rows, right=tuple(range(11))),
    ]


def _counts(result: AuditResult) -> list[Markup]:
    facts: list[tuple[Content, ...]] = [
        ("Records of clients, computed anew", f"{result.segments:,}"),
        ("Totals compared", f"{result.totals:,}"),
        ("Totals proven", f"{result.proven:,}"),
        ("Openings compared", f"{result.openings:,}"),
        ("Openings proven", f"{result.openings_proven:,}"),
        ("Findings", f"{len(result.findings):,}"),
        ("Rate", f"{result.segments_per_cpu_s:,} records per second of CPU"),
    ]
    if result.ledger is not None:
        facts += _ledger(result.ledger)
    return [table(("", ""), facts, class_="facts")]


def _ledger(ledger: LedgerAccount) -> list[tuple[Content, ...]]:
    return [
        ("Rows of the ledger compared", f"{ledger.rows:,}"),
        ("Rows proven", f"{ledger.proven:,}"),
        ("Rows newer than this audit", f"{ledger.newer_rows:,}"),
        ("Totals that the ledger has yet to read", f"{ledger.not_yet_recorded:,}"),
        ("Set aside as a second, different total", f"{ledger.set_aside:,}"),
        ("Records that are no totals", f"{ledger.unreadable:,}"),
        ("Rows of orders compared", f"{ledger.orders:,}"),
        ("Rows of orders proven", f"{ledger.orders_proven:,}"),
        ("Openings that the ledger has yet to read", f"{ledger.orders_not_yet_recorded:,}"),
    ]


def _findings(result: AuditResult, findings_max: int) -> list[Markup]:
    if not result.findings:
        return [element("h2", "Findings"), element("p", "None.")]
    kinds: list[tuple[Content, ...]] = []
    for name, count in result.findings_by_kind.items():
        means, to_do = ADVICE[Kind(name)]
        kinds.append((element("b", _name(Kind(name)), class_="n"), f"{count:,}", means, to_do))
    shown_ones = result.findings[:findings_max]
    found = [
        element("h2", "Findings by kind"),
        table(("kind", "how many", "what it means", "what to do"), kinds, right=(1,)),
        element("h2", "Findings one by one"),
    ]
    if len(shown_ones) < len(result.findings):
        words = (
            f"The first {len(shown_ones):,} of {len(result.findings):,} findings. The CSV file of"
            " the audit has all of them."
        )
        found.append(element("p", words, class_="bad-text"))
    names = ("kind", "order", "revision", "field", "by the log", "as published", "where")
    rows = [_finding(each) for each in shown_ones]
    found.append(table(names, rows, right=(2,), wrap=(1, 4, 5, 6)))
    return found


def _finding(each: Finding) -> tuple[Content, ...]:
    return (
        element("span", _name(each.kind), class_="n"),
        shown(each.service_order_number) if each.service_order_number else "",
        each.revision,
        each.field,
        each.expected,
        each.found,
        each.place,
    )


def _undecided(result: AuditResult) -> list[Markup]:
    def together(name: str) -> int:
        return sum(getattr(each, name) for each in result.partitions)

    rows: list[tuple[Content, ...]] = [
        (f"{together('open_orders'):,}", "orders go on, or wait for what is missing: no total yet"),
        (f"{together('newer_totals'):,}", "totals rest on records after the end of this audit"),
        (f"{together('not_yet_published'):,}", "totals that the workers have yet to publish"),
        (
            f"{together('openings_not_yet_published'):,}",
            "openings that the workers have yet to pass on",
        ),
        *(
            (
                f"{together(f'{what}_of_other_logs'):,}",
                f"{what} of a segments topic before this one, which can't be compared",
            )
            for what in ("totals", "openings")
        ),
        (
            f"{together('unprovable_totals'):,}",
            "totals of orders that may have begun in a part of the log that is gone",
        ),
    ]
    return [table(("how many", "what"), rows, right=(0,))]


def _policies(result: AuditResult) -> list[Markup]:
    groups: dict[tuple[tuple[str, ...], str], list[int]] = {}
    for each in result.partitions:
        groups.setdefault((_policy_lines(each), each.policy_assumed_because), []).append(
            each.partition
        )
    found = []
    for (lines, why), partitions in groups.items():
        found.append(element("h3", f"Partitions {', '.join(map(str, partitions))}"))
        found += [element("p", line) for line in lines]
        if why:
            words = f"This policy is assumed from the settings: {why}."
            found.append(element("p", words, class_="bad-text"))
    return found


def _policy_lines(account: PartitionAccount) -> tuple[str, ...]:
    """Return a line for each policy: from which offset on it held, and its times."""
    lines = []
    for record in account.policies:
        leaves = dict(_leaves(record))
        from_offset = leaves.pop("from_offset", 0)
        terms = ", ".join(
            f"{name.removesuffix('_ms')} {human_ms(value)}"
            if name.endswith("_ms") and isinstance(value, int)
            else f"{name} {value}"
            for name, value in leaves.items()
            if value is not False
        )
        lines.append(f"From offset {from_offset} on: {terms}")
    return tuple(lines)


def _leaves(value: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, each in value.items():
        if isinstance(each, Mapping):
            yield from _leaves(each)
        else:
            yield name, each
