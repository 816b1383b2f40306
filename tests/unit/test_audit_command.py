"""`durabill audit`: times, places, files and words, without a log."""

from pathlib import Path

import pytest
import typer

from durabill.deploy.commands.audit import _instant, _offsets, _writing, csv_of
from durabill.deploy.commands.audit_view import account_lines, verdict_line
from durabill.schemas import encode_total
from durabill.stream_processors.audit.errors import AuditError
from durabill.stream_processors.audit.findings import (
    AuditResult,
    Finding,
    Kind,
    LedgerAccount,
    PartitionAccount,
    Scope,
)
from durabill.stream_processors.audit.report_file import write_report_file
from durabill.stream_processors.audit.scope import TotalsScope
from tests.broker.ledger_kit import a_total


def result(*findings: Finding, totals: int = 3) -> AuditResult:
    parts = tuple(
        PartitionAccount(
            each,
            0,
            10,
            data=8,
            control=2,
            clock_marks=1,
            totals=totals,
            proven=totals,
            open_orders=1,
        )
        for each in range(2)
    )
    ledger = LedgerAccount("me@db/ledger", rows=6, proven=6, not_yet_recorded=1)
    scope = Scope()
    return AuditResult(
        *("segments", "totals", scope, "columns", 1, 0, 1.0, 0.5, parts, findings, ledger)
    )


def test_times_are_utc_where_no_zone_is_given() -> None:
    assert _instant("--from", "2026-03-01") == 1_772_323_200_000
    assert _instant("--from", "2026-03-01T01:00:00+01:00") == 1_772_323_200_000
    assert _instant("--from", "1772323200000") == 1_772_323_200_000
    assert _instant("--from", "") is None
    with pytest.raises(typer.BadParameter, match="--from takes a time"):
        _instant("--from", "yesterday")


def test_places_are_told_from_times() -> None:
    assert _offsets("0:12,3:4") == {0: 12, 3: 4}
    assert _offsets("2026-03-01T12:30:00") == {}


def test_a_scope_takes_what_was_settled_in_it_and_what_nobody_can_read() -> None:
    total = a_total()
    key, value = b"SO1", encode_total(total)
    at_ms = total.settled_at_ms
    assert TotalsScope(from_ms=at_ms, to_ms=at_ms + 1).has(key, value)
    assert not TotalsScope(to_ms=at_ms).has(key, value)
    assert not TotalsScope(from_ms=at_ms + 1).has(key, value)
    assert TotalsScope(from_ms=at_ms + 1).has(key, b"junk")
    assert TotalsScope(order="SO1").has(key, value)
    assert not TotalsScope(order="SO2").has(key, b"junk")


def test_the_verdict_says_of_how_much() -> None:
    assert verdict_line(result()) == "proven: 6 of 6 totals, 6 of 6 ledger rows"
    nothing = verdict_line(result(totals=0))  # as for a month before the first order
    assert nothing.startswith("there is no total to prove, and nothing differs: 0 of 0 totals")
    differs = result(Finding(Kind.MISSING_TOTAL, "SO1", 1))
    assert verdict_line(differs).startswith("differs: 1 finding; proven are 6 of 6 totals")
    assert any("2 orders which are still open" in line for line in account_lines(result()))


def test_json_has_what_scripts_rely_on_and_tells_its_cap() -> None:
    many = result(*(Finding(Kind.MISSING_TOTAL, f"SO{each}", 1) for each in range(3)))
    found = many.as_json(findings_max=2)
    assert (found["result"], found["totals"], found["proven"]) == ("differs", 6, 6)
    assert (found["segments"], found["cpu_s"], found["segments_per_cpu_s"]) == (14, 0.5, 28)
    assert found["findings_by_kind"] == {"missing_total": 3}
    assert (found["findings_count"], found["findings_shown_max"]) == (3, 2)
    assert [each["service_order_number"] for each in found["findings"]] == ["SO0", "SO1"]


def test_no_order_number_becomes_a_formula_of_a_spreadsheet(tmp_path: Path) -> None:
    numbers = "=1+1", "+49", "-SO", "@x", "SO"
    lines = csv_of(
        result(*(Finding(Kind.FIELD_DIFFERS, each, 1, expected="-5") for each in numbers))
    ).splitlines()
    assert [line.split(",")[1] for line in lines[1:]] == ["'=1+1", "'+49", "'-SO", "'@x", "SO"]
    assert all(line.split(",")[4] == "-5" for line in lines[1:])


def test_a_report_that_cant_be_written_is_no_difference(tmp_path: Path) -> None:
    with pytest.raises(AuditError) as error, _writing():
        write_report_file(tmp_path / "nowhere" / "all.csv", "")
    assert error.value.exit_code == 2
    assert "there is no such folder" in str(error.value)
