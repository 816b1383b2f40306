"""The short forms of chaos, as part of the tests; `make chaos` is the long one."""

from tests.chaos.cluster import sweep
from tests.chaos.report import RunReport, text
from tests.chaos.run import run, short_form
from tests.chaos.schedule import Kind

SEED = 1
RATE = 650.0


def run_short(brokers: int, segments: int) -> tuple[RunReport, str]:
    """Run it; return the report, and what to show of it."""
    sweep()
    said: list[str] = []
    report = run(short_form(SEED, segments, RATE, brokers), keep=False, say=said.append)
    return report, "\n".join([*said, text([report])])


def check(report: RunReport, shown: str, kinds: set[Kind], segments: int) -> None:
    """Nothing may be violated, and everything must have been there to be violated."""
    assert not report.violations, shown
    assert kinds == {each.kind for each in report.injected if each.is_proven}, shown
    found = report.audit
    assert report.sent.segments >= segments
    assert report.sent.over_http > 0
    assert report.hostile_records > 500
    assert found.records >= report.sent.records + report.hostile_records // 2
    assert found.totals == found.ledger_rows >= found.orders == found.checkpointed_orders > 0
    assert found.dead_letters > 0
    assert found.sent_on > 0


def test_nothing_is_lost_and_nothing_comes_twice_whatever_dies() -> None:
    report, shown = run_short(1, 20_000)
    kinds = {
        Kind.FREEZE_WORKER,
        Kind.KILL_WORKER,
        Kind.KILL_LEDGER,
        Kind.KILL_POSTGRES,
        Kind.KILL_BROKER,
    }
    check(report, shown, kinds, 20_000)


def test_neither_replicas_nor_coordinators_nor_clocks_move_a_total() -> None:
    report, shown = run_short(3, 10_000)
    kinds = {Kind.FREEZE_FOLLOWER, Kind.KILL_GROUP_COORDINATOR, Kind.CLOCK_OFF}
    check(report, shown, kinds, 10_000)
