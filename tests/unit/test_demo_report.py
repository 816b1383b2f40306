"""What the demo counts of the ledger's totals."""

from dataclasses import fields, replace

from durabill.deploy.demo.report import DemoReport, _count
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
