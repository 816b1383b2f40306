"""What the demo counts of the ledger's totals."""

import os
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest

from durabill.deploy.demo.report import DemoReport, _count, _next
from durabill.producers.fleet.run import FleetReport
from durabill.schemas import OrderTotal, Status
from durabill.stream_processors.core.order import Order, Policy
from tests.unit.test_order import segment


def totals_of(number: str, *statuses: Status) -> list[OrderTotal]:
    """Return an order's totals with these statuses, one a revision."""
    total = Order("SO1", 0).apply(segment(1, end=True), 2_000, 0, Policy())
    assert total is not None
    return [
        replace(
            total,
            service_order_number=number,
            revision=at,
            status=each,
            previous_digest=total.digest if at > 1 else "",
        )
        for at, each in enumerate(statuses, 1)
    ]


def test_what_an_order_gave_while_it_ran_on_is_no_correction() -> None:
    ledger = [
        *totals_of("SO1", Status.RUNNING, Status.RUNNING, Status.COMPLETE),
        *totals_of("SO2", Status.COMPLETE, Status.RUNNING, Status.COMPLETE, Status.INCOMPLETE),
        *totals_of("SO3", Status.RUNNING),
        *totals_of("SO4", Status.INCOMPLETE, Status.COMPLETE),
    ]
    report = DemoReport(seed=1)
    zeros = {each.name: 0 for each in fields(FleetReport)}
    fleet = FleetReport(**{**zeros, "final_statuses": {}, "dead_letters": {}})  # type: ignore[arg-type]
    _count(report, fleet, ledger, [])
    assert (report.orders, report.totals, report.revisions) == (4, 10, 3)
    assert report.statuses == {"COMPLETE": 2, "INCOMPLETE": 1, "ABANDONED": 0, "RUNNING": 1}


def test_where_the_command_is_not_on_the_path_the_report_puts_it_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "durabill").touch(mode=0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    report = DemoReport(seed=1, truth_path="truth.jsonl", report_path="audit.html")
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/usr/bin")
    assert "export PATH" not in "\n".join(_next(report, False, "d"))
    monkeypatch.setenv("PATH", "/usr/bin")  # as after `make demo`, outside of the environment
    assert f'  export PATH={tmp_path}:"$PATH"' in _next(report, False, "d")
