"""An audit's page: the verdict first, what was audited, findings with what they mean."""

from dataclasses import replace
from pathlib import Path

import pytest

from durabill.stream_processors.audit.findings import (
    AuditResult,
    Finding,
    Kind,
    LedgerAccount,
    PartitionAccount,
    Scope,
)
from durabill.stream_processors.audit.html_report import report_of, write_report
from durabill.stream_processors.audit.html_words import ADVICE
from durabill.stream_processors.core.order import Policy
from durabill.stream_processors.engine.policies import PolicyRecord, Terms, describe_history
from tests.unit.story_kit import HOSTILE
from tests.unit.test_markup import Names

POLICIES = tuple(describe_history([PolicyRecord(0, Terms(Policy(30_000, 300_000, 60_000, 0)))]))
PROVEN = AuditResult(
    segments_topic="billing.segments",
    totals_topic="billing.totals",
    scope=Scope(),
    engine="columns",
    processes=2,
    began_at_ms=1_767_261_600_000,
    elapsed_s=12.3,
    cpu_s=2.0,
    partitions=tuple(
        PartitionAccount(
            each, end_offset=1_000, data=990, control=10, clock_marks=90, totals=7, proven=7,
            open_orders=3, policies=POLICIES,
        )
        for each in range(2)
    ),
)  # fmt: skip


def test_all_is_proven() -> None:
    page = report_of(replace(PROVEN, ledger=LedgerAccount("postgresql://db/x", 14, 14)))
    for text in (
        "Yes: all 14 totals are proven.",
        "computed anew from 1,800 records of the log",
        "topic billing.segments",
        "postgresql://db/x",
        "0 to 1,000",
        "Partitions 0, 1",
        "From offset 0 on: settle_grace 30.000 s, idle_timeout 5 min 00.000 s",
        "2026-01-01 10:00:00.000",
        "None.",
    ):
        assert text in page
    assert page.index("Yes: all") < page.index("What was audited")
    assert page == report_of(replace(PROVEN, ledger=LedgerAccount("postgresql://db/x", 14, 14)))


def test_findings_are_explained_and_capped() -> None:
    findings = tuple(
        Finding(kind, f"SO{kind}", 2, "duration_ms", "100", "200", "billing.totals/0/7")
        for kind in Kind
    )
    result = replace(PROVEN, findings=findings, notes=("a policy is not recorded",))
    page = report_of(result, findings_max=5)
    assert f"No: {len(Kind)} findings." in page
    assert f"The first 5 of {len(Kind)} findings." in page
    assert page.count("billing.totals/0/7") == 5
    assert "Note: a policy is not recorded." in page
    for kind in Kind:
        assert ADVICE[kind][0][:40].replace("'", "&#x27;") in page
    assert "The CSV file" not in report_of(result)


def test_an_audit_of_nothing_doesnt_say_yes() -> None:
    page = report_of(replace(PROVEN, partitions=()))
    assert "There is no total to prove." in page
    assert "Yes" not in page


def test_what_was_asked_for_is_told() -> None:
    scope = Scope("SO1", (1, 2), 1_767_261_600_000, 1_767_261_600_001, "0:5,1:7")
    page = report_of(replace(PROVEN, scope=scope))
    assert (
        "order SO1 only; partitions 1, 2 only; totals settled at 2026-01-01 10:00:00.000 or later;"
        " totals settled before 2026-01-01 10:00:00.001; the log as of 0:5,1:7"
    ) in page


def test_hostile_texts_do_nothing(tmp_path: Path) -> None:
    def result(text: str) -> AuditResult:
        finding = Finding(Kind.FIELD_DIFFERS, text, 1, text, text, text, text)
        account = replace(PROVEN.partitions[0], policy_assumed_because=text)
        return replace(PROVEN, findings=(finding,), notes=(text,), partitions=(account,))

    path = tmp_path / "audit.html"
    write_report(result(HOSTILE), path)
    page = path.read_text(encoding="utf-8")
    hostile, plain = Names(page), Names(report_of(result("x")))
    assert hostile.tags == plain.tags
    assert hostile.attributes == plain.attributes
    assert "\u202e" not in page


@pytest.mark.parametrize("kind", Kind)
def test_each_kind_has_its_words(kind: Kind) -> None:
    assert all(each.endswith(".") for each in ADVICE[kind])
