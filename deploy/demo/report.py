"""What came of a demo: every total against the truth, and the numbers that a buyer asks for."""

import os
import shlex
import shutil
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from durabill.deploy.demo.processes import Stage
from durabill.deploy.demo.proof import Proof
from durabill.deploy.oracle import truth_policy
from durabill.deploy.terminal import human_ms, plain, shown
from durabill.producers.fleet.run import FleetReport, compare, compare_dead_letters
from durabill.producers.fleet.truth import DeadLetter, LogRecord, read_log
from durabill.schemas import OrderTotal, Reason, Status, decode_total
from durabill.stream_processors.dead_letters.letters import list_dead_letters
from durabill.stream_processors.kafka.options import quiet
from durabill.stream_processors.kafka.reading import partition_count, read_topic
from durabill.stream_processors.ledger.lookups import connected, read_totals
from durabill.stream_processors.ledger.lookups import status as ledger_status
from durabill.stream_processors.settings import Settings

PROBLEMS_MAX = 20
_OF_THE_PROOF = (
    "audited", "proven", "sealed", "archived", "archive_bytes",
    "report_path", "picture_path", "receipt_path",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Metered:
    """A service that the SDK metered, by its own account: what its total must be."""

    service_order_number: str
    duration_ms: int
    segments: int
    was_shown_live: bool


@dataclass(slots=True)
class DemoReport:
    """The demo in numbers; `problems` is empty where everything was right.

    `segments` are the good records published, `duplicates` and `overlap_ms` what the latest
    totals say was removed. `wrong_totals` counts revisions that are wrong, missing or must not
    be, in the topic and in the ledger. Latency runs from the append of the record that
    completed an order to the append of its total.
    """

    seed: int
    orders: int = 0
    segments: int = 0
    records: int = 0
    segments_over_http: int = 0
    duplicates: int = 0
    overlap_ms: int = 0
    totals: int = 0
    revisions: int = 0
    statuses: dict[str, int] = field(default_factory=dict)
    dead_letters: int = 0
    dead_letters_by_reason: dict[str, int] = field(default_factory=dict)
    sent_on: int = 0
    services_by_sdk: int = 0
    services_shown_live: int = 0
    totals_checked: int = 0
    wrong_totals: int = 0
    wrong_dead_letters: int = 0
    segments_per_s: float = 0.0
    p50_latency_ms: int = 0
    p99_latency_ms: int = 0
    wall_s: float = 0.0
    truth_path: str = ""
    audited: int = 0
    proven: int = 0
    sealed: int = 0
    archived: int = 0
    archive_bytes: int = 0
    report_path: str = ""
    picture_path: str = ""
    receipt_path: str = ""
    look_at: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """Return the fields by name."""
        return asdict(self)

    def note_proof(self, proof: Proof) -> None:
        """Take in what the audit found; whatever it didn't prove is a problem."""
        for name in _OF_THE_PROOF:
            setattr(self, name, getattr(proof, name))
        problems = list(proof.findings)
        if not proof.proven == proof.audited == proof.sealed == self.totals:
            problems.append(
                f"{self.totals} totals in the ledger: {proof.audited} audited, {proof.proven}"
                f" proven, {proof.sealed} sealed"
            )
        self.problems = [*self.problems, *problems][:PROBLEMS_MAX]


def make_report(
    stage: Stage, seed: int, fleet: FleetReport, truth_path: Path, services: Sequence[Metered]
) -> DemoReport:
    """Compare the totals topic, the ledger and the dead letters with the truth, field by field."""
    settings = stage.settings
    appended = _totals_topic(settings)
    topic = [total for total, _ in appended]
    with connected(settings.ledger_dsn) as connection:
        ledger = read_totals(connection, "", ())
    report = DemoReport(seed=seed, truth_path=str(truth_path))
    _count(report, fleet, ledger, services)
    _latency(report, appended)
    for name, totals in (("topic", topic), ("ledger", ledger)):
        result = compare(truth_path, totals)
        report.totals_checked += result.expected
        report.wrong_totals += result.errors
        report.problems += [f"{name}: {each}" for each in result.differences]
    if len(ledger) != len({(each.service_order_number, each.revision) for each in topic}):
        report.problems.append(f"{len(ledger)} totals in the ledger, {len(topic)} in the topic")
    _check_services(report, settings, services, topic, ledger)
    _check_dead_letters(report, settings, truth_path)
    _check_loose_ends(report, settings, fleet)
    report.look_at = _worth_a_look(ledger, services)
    report.problems = report.problems[:PROBLEMS_MAX]
    assert bool(report.problems) >= bool(report.wrong_totals or report.wrong_dead_letters)
    return report


def _totals_topic(settings: Settings) -> list[tuple[OrderTotal, int]]:
    """Return every total with the broker's append time in ms."""
    found = []
    for _, _, message in read_topic(quiet(settings.librdkafka()), settings.totals_topic):
        value = message.value()
        total = decode_total(value if isinstance(value, bytes) else None)
        found.append((total, message.timestamp()[1]))
    return found


def _latest(totals: Sequence[OrderTotal]) -> dict[str, OrderTotal]:
    latest: dict[str, OrderTotal] = {}
    for total in sorted(totals, key=lambda each: each.revision):
        latest[total.service_order_number] = total
    return latest


def _count(
    report: DemoReport,
    fleet: FleetReport,
    ledger: Sequence[OrderTotal],
    services: Sequence[Metered],
) -> None:
    latest = _latest(ledger)
    statuses = Counter(total.status.value for total in latest.values())
    by_sdk = sum(each.segments for each in services)
    report.orders = len(latest)
    report.segments = fleet.segments + by_sdk
    report.records = fleet.records + by_sdk
    report.segments_over_http = fleet.sent_over_http
    report.duplicates = sum(total.duplicates for total in latest.values())
    report.overlap_ms = sum(total.overlap_ms for total in latest.values())
    report.totals = len(ledger)
    # What an order gave while it ran on is no settlement, so the next one corrects nothing.
    settled = [each for each in ledger if each.status is not Status.RUNNING]
    report.revisions = len(settled) - len({each.service_order_number for each in settled})
    report.statuses = {status.value: statuses[status.value] for status in Status}
    report.sent_on = fleet.sent_on
    report.services_by_sdk = len(services)
    report.services_shown_live = sum(each.was_shown_live for each in services)
    report.segments_per_s = fleet.records_per_s


def _latency(report: DemoReport, appended: Sequence[tuple[OrderTotal, int]]) -> None:
    """Totals that a deadline settled aren't counted: nobody waits for them to the millisecond."""
    delays_ms = sorted(
        append_ms - total.settled_at_ms
        for total, append_ms in appended
        if total.status is Status.COMPLETE
    )
    if delays_ms:
        report.p50_latency_ms = delays_ms[(len(delays_ms) - 1) * 50 // 100]
        report.p99_latency_ms = delays_ms[(len(delays_ms) - 1) * 99 // 100]


def _check_services(
    report: DemoReport,
    settings: Settings,
    services: Sequence[Metered],
    topic: Sequence[OrderTotal],
    ledger: Sequence[OrderTotal],
) -> None:
    """Check the SDK's orders: against the log, by the fleet's oracle, and what the SDK metered."""
    numbers = frozenset(each.service_order_number for each in services)
    truth = read_log(
        _log_of(settings, numbers),
        truth_policy(settings),
        partition_count(quiet(settings.librdkafka()), settings.segments_topic),
    )
    for service in services:
        number = service.service_order_number
        must = truth.totals.get(number, [])
        report.totals_checked += 2 * len(must)
        for name, totals in (("topic", topic), ("ledger", ledger)):
            found = {each.revision: each for each in totals if each.service_order_number == number}
            if list(found.values()) != must:
                report.wrong_totals += 1
                report.problems.append(f"{name}: order {shown(number)} is {found}, must be {must}")
        last = must[-1] if must else None
        metered = (Status.COMPLETE, service.duration_ms, service.segments)
        if last is None or (last.status, last.duration_ms, last.segments) != metered:
            report.wrong_totals += 1
            report.problems.append(f"order {shown(number)}: metered {metered}, billed {last}")
        if not service.was_shown_live:
            report.problems.append(f"order {shown(number)} was not shown live while it ran")


def _log_of(settings: Settings, numbers: frozenset[str]) -> list[LogRecord]:
    """Return these orders' records; `append_ms` is the partition's clock there (the arrival)."""
    keys = {number.encode() for number in numbers}
    clocks_ms: dict[int, int] = {}
    found = []
    for partition, offset, message in read_topic(
        quiet(settings.librdkafka()), settings.segments_topic
    ):
        clock_ms = max(message.timestamp()[1], clocks_ms.get(partition, 0))
        clocks_ms[partition] = clock_ms
        key, value = message.key(), message.value()
        if key in keys:
            assert isinstance(key, bytes)
            assert isinstance(value, bytes)
            found.append(LogRecord(partition, offset, clock_ms, key, value, ()))
    return found


def _check_dead_letters(report: DemoReport, settings: Settings, truth_path: Path) -> None:
    letters = []
    for letter in list_dead_letters(quiet(settings.librdkafka()), settings.dead_letters_topic):
        origin = letter.origin
        if origin is None or letter.reason not in set(Reason):
            report.wrong_dead_letters += 1
            report.problems.append(f"dead letter without reason or origin: {letter}")
            continue
        letters.append(DeadLetter(Reason(letter.reason), origin[1], origin[2]))
    result = compare_dead_letters(truth_path, letters)
    report.dead_letters = len(letters)
    report.dead_letters_by_reason = dict(
        sorted(Counter(letter.reason.value for letter in letters).items())
    )
    report.wrong_dead_letters += result.errors
    report.problems += [f"dead letters: {each}" for each in result.differences]


def _check_loose_ends(report: DemoReport, settings: Settings, fleet: FleetReport) -> None:
    """Nothing may be lost on the way to its right partition, or lie aside in the ledger."""
    if fleet.not_forwarded:
        report.problems.append(f"{fleet.not_forwarded} records were not sent on")
    kept = ledger_status(settings.ledger_dsn)
    if kept.set_aside or kept.unreadable:
        report.wrong_totals += kept.set_aside + kept.unreadable
        report.problems.append(f"{kept.set_aside} totals set aside, {kept.unreadable} unreadable")


def _worth_a_look(ledger: Sequence[OrderTotal], services: Sequence[Metered]) -> list[str]:
    """Return a few order numbers: one corrected, one with gaps, one of the SDK."""
    latest = [each for each in _latest(ledger).values() if _can_be_typed(each.service_order_number)]
    chosen = [
        max(latest, key=lambda each: (each.revision, each.overlap_ms), default=None),
        max(
            (each for each in latest if each.status is Status.INCOMPLETE),
            key=lambda each: len(each.intervals),
            default=None,
        ),
    ]
    numbers = [each.service_order_number for each in chosen if each is not None]
    numbers += [each.service_order_number for each in services[:1]]
    return list(dict.fromkeys(numbers))


def print_report(report: DemoReport, *, keep: bool, data_dir: str, own_servers: bool) -> None:
    """Print the buyer's table, what went wrong if anything did, and where to look next."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table(title="What a buyer wants to see", box=box.SIMPLE, show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for name, value in _rows(report):
        table.add_row(name, value)
    console.print(table)
    if report.problems:
        console.print(f"[bold red]Something is wrong[/] (the same again: --seed {report.seed})")
        for problem in report.problems:
            console.print(f"  {plain(problem)}", markup=False)
        return
    if keep or own_servers:
        console.print("\n".join(_next(report, keep, data_dir)), markup=False, highlight=False)


def _rows(report: DemoReport) -> list[tuple[str, str]]:
    letters = ", ".join(f"{name} {count}" for name, count in report.dead_letters_by_reason.items())
    statuses = "\n".join(f"{status.value} {report.statuses[status.value]:,}" for status in Status)
    wrong = f"{report.wrong_totals} of {report.totals_checked:,}"
    return [
        ("segments in", f"{report.segments:,}"),
        ("  of them over HTTP", f"{report.segments_over_http:,}"),
        ("repeats removed", f"{report.duplicates:,}"),
        ("time counted twice removed", human_ms(report.overlap_ms)),
        ("sent on to their right partition", f"{report.sent_on:,}"),
        ("orders", f"{report.orders:,}"),
        ("  by status", statuses),
        ("totals, all revisions", f"{report.totals:,}"),
        ("  of them corrections", f"{report.revisions:,}"),
        ("services metered by the SDK", f"{report.services_by_sdk}"),
        ("  shown live while they ran", f"{report.services_shown_live}"),
        ("dead letters", f"{report.dead_letters:,}"),
        ("  by reason", letters.replace(", ", "\n")),
        ("wrong dead letters", f"{report.wrong_dead_letters}"),
        ("wrong totals, topic and ledger, any field", wrong),
        ("proven by the audit", f"{report.proven:,} of {report.audited:,}"),
        ("  sealed in a Merkle log, and signed", f"{report.sealed:,}"),
        ("records in the archive", f"{report.archived:,}"),
        ("  bytes each", f"{report.archive_bytes / max(report.archived, 1):.1f}"),
        ("segments a second (see --rate)", f"{report.segments_per_s:,.0f}"),
        ("latency to a COMPLETE total", f"p50 {report.p50_latency_ms} ms"),
        ("", f"p99 {report.p99_latency_ms} ms"),
        ("time for everything", f"{report.wall_s:g} s"),
    ]


def _next(report: DemoReport, keep: bool, data_dir: str) -> list[str]:
    lines = ["Where to look next:"]
    ours = Path(sys.executable).parent
    if Path(shutil.which("durabill") or "") != ours / "durabill":  # as after `make demo`
        lines.append(f'  export PATH={shlex.quote(str(ours))}:"$PATH"')
    lines.append(f"  export DURABILL_DATA_DIR={shlex.quote(data_dir)}")
    lines += [
        f"  export DURABILL_{name.upper()}_DIR={shlex.quote(f'{data_dir}/{name}.d')}"
        for name in ("seal", "archive")
    ]
    if not keep:
        lines.append("  durabill kafka start && durabill postgres start   # with the demo's data")
    lines += [f"  durabill order {_as_argument(number)}" for number in report.look_at]
    lines += [
        "  durabill audit && durabill leakage",
        "  durabill dead-letters --limit 10",
        "  durabill totals --status INCOMPLETE --limit 10",
        '  psql "$(durabill postgres start)" -c "SELECT * FROM ledger_status"',
        f"  less {_path(report.truth_path)}",
        "Open in a browser:",
        f"  {_path(report.report_path)}   # the audit, for finance",
        *([f"  {_path(report.picture_path)}   # an order"] if report.picture_path else []),
    ]
    if report.receipt_path:
        key = _path(str(Path(report.receipt_path).with_name("seal.pub")))
        lines += ["Check a receipt, without any server:"]
        lines += [f"  durabill verify {_path(report.receipt_path)} --key {key}"]
    stop = "durabill demo --stop" if keep else "durabill kafka stop; durabill postgres stop"
    unset = "unset DURABILL_DATA_DIR DURABILL_SEAL_DIR DURABILL_ARCHIVE_DIR"
    return [*lines, f"  {unset}; {stop}" if keep else f"  {stop}; {unset}"]


def _path(path: str) -> str:
    return shlex.quote(os.path.relpath(path))


def _can_be_typed(number: str) -> bool:
    return number.isascii() and shown(number) == number


def _as_argument(number: str) -> str:
    """Return an order number as a shell's argument, also one that looks like an option."""
    return ("-- " if number.startswith("-") else "") + shlex.quote(number)
