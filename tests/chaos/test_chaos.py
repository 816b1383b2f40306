"""The short form of chaos, as part of the tests; `make chaos` is the long one."""

from tests.chaos.cluster import sweep
from tests.chaos.report import text
from tests.chaos.run import run, short_form
from tests.chaos.schedule import Kind

SEED = 1
SEGMENTS = 20_000
RATE = 650.0


def test_nothing_is_lost_and_nothing_comes_twice_whatever_dies() -> None:
    sweep()
    said: list[str] = []
    report = run(short_form(SEED, SEGMENTS, RATE), keep=False, say=said.append)
    shown = "\n".join([*said, text([report])])
    assert not report.violations, shown
    kinds = {each.kind for each in report.injected if each.is_proven}
    assert kinds == {
        Kind.FREEZE_WORKER,
        Kind.KILL_WORKER,
        Kind.KILL_LEDGER,
        Kind.KILL_POSTGRES,
        Kind.KILL_BROKER,
    }, shown
    found = report.audit
    assert report.sent.segments >= SEGMENTS
    assert report.sent.over_http > 0
    assert found.records >= report.sent.records
    assert found.totals == found.ledger_rows >= found.orders == found.checkpointed_orders > 0
    assert found.dead_letters > 0
    assert found.sent_on > 0
