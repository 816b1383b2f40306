"""One run: a cluster, a fleet, the faults of a seed, and the audit afterwards."""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass

from durabill.deploy.demo.processes import get_json
from durabill.deploy.local.stack import StackError
from durabill.schemas.errors import DurabillError
from durabill.stream_processors.settings import Settings
from tests.chaos.audit import Auditor
from tests.chaos.cluster import PARTITIONS, Cluster
from tests.chaos.faults import Injector
from tests.chaos.hostile import Hostile, Malice
from tests.chaos.live_audit import LiveAudits, not_proven
from tests.chaos.report import RunReport
from tests.chaos.schedule import (
    LONG,
    Form,
    Kind,
    Planner,
    Step,
    long_kinds,
    short_cluster_schedule,
    short_schedule,
)
from tests.chaos.traffic import Load, Pump
from tests.chaos.vitals import Vitals

SETTLE_GRACE_S = 2.0
IDLE_TIMEOUT_S = 5.0
SETTLES_IN_S = max(SETTLE_GRACE_S, IDLE_TIMEOUT_S) + 1.0
REST_S = 150.0
"""How long everything may take to come to rest once the last segment is in the log."""

HOSTILE_RATIO = 0.2
"""Hostile records a second, of what the fleet sends."""

_LOOK_S = 0.3


@dataclass(frozen=True, slots=True, kw_only=True)
class Chaos:
    """What is run: at least `segments` in `seconds`, a fleet of `orders` at a time.

    After the faults everybody goes on for `quiet_s`, to see how soon totals come with no fault on.
    Hostile orders have `pieces` pieces, and late floods `flood` segments.
    """

    seed: int
    brokers: int
    segments: int
    rate: float
    orders: int
    segments_per_order: int
    seconds: float
    quiet_s: float
    pieces: int
    flood: int
    form: Form | None
    """None is the short form, whose steps are fixed."""

    def steps(self) -> Iterator[tuple[int, Step]]:
        """Return the schedule, as pairs of round and step."""
        if self.form is None:
            steps = short_schedule() if self.brokers == 1 else short_cluster_schedule()
            return iter([(0, step) for step in steps])
        return Planner(self.seed, self.form).steps()

    def malice(self) -> Malice:
        """Return how much harm is done beside."""
        rate = HOSTILE_RATIO * self.rate
        return Malice(self.seed, rate, self.pieces, self.flood, SETTLES_IN_S)


def long_form(
    seed: int,
    *,
    segments: int,
    rate: float,
    seconds: float,
    down_s: float,
    brokers: int,
    without: frozenset[Kind] = frozenset(),
) -> Chaos:
    """Return a run with every kind of fault at least once, `without` aside."""
    kinds = long_kinds(brokers, without)
    per_order = 80
    return Chaos(
        seed=seed,
        brokers=brokers,
        segments=segments,
        rate=rate,
        orders=max(10, round(rate * 12 / per_order)),  # a fleet lasts for longer than idle orders
        segments_per_order=per_order,
        seconds=seconds,
        quiet_s=40.0,
        pieces=10_000,
        flood=500,
        form=Form(kinds, down_s, LONG.companion_ratio, LONG.calm_ratio),
    )


def short_form(seed: int, segments: int, rate: float, brokers: int = 1) -> Chaos:
    """Return the run that is part of the tests."""
    return Chaos(
        seed=seed,
        brokers=brokers,
        segments=segments,
        rate=rate,
        orders=max(10, round(rate * 8 / 60)),
        segments_per_order=60,
        seconds=0.0,
        quiet_s=6.0,
        pieces=300,
        flood=60,
        form=None,
    )


def run(chaos: Chaos, *, keep: bool, say: Callable[[str], None]) -> RunReport:
    """Run it and return what was done and found; everything is stopped by then."""
    report = RunReport(chaos.seed, chaos.brokers)
    settings = Settings(
        settle_grace_s=SETTLE_GRACE_S,
        idle_timeout_s=IDLE_TIMEOUT_S,
        checkpoint_interval_s=0.5,
        report_interval_s=1.0,
    )
    many = "a broker" if chaos.brokers == 1 else f"{chaos.brokers} brokers"
    say(f"seed {chaos.seed}: starting {many}, PostgreSQL, gateway, workers, ledger")
    with ExitStack() as exits:
        cluster = exits.enter_context(Cluster(settings, chaos.brokers, keep=keep, say=say))
        load = Load(chaos.seed, chaos.rate, chaos.orders, chaos.segments_per_order, SETTLES_IN_S)
        topic = cluster.settings.segments_topic
        pump = Pump(load, cluster.kafka, topic, cluster.gateway_url)
        exits.callback(pump.close)
        vitals = Vitals(cluster.settings, cluster.kafka, pump)
        exits.callback(vitals.close)
        hostile = Hostile(chaos.malice(), cluster.kafka, topic)
        exits.callback(hostile.close)
        live = LiveAudits(cluster.settings, cluster.began_s)
        exits.callback(live.close)
        for thread in (pump, vitals, hostile, live):
            thread.start()
        injector = Injector(cluster, vitals, say)
        try:
            _inject(chaos, injector, pump, report)
            hostile.close()
            if hostile.error:
                raise StackError(f"the hostile clients failed: {hostile.error}")
            _rest(cluster, pump, vitals, report, say)
            live.close()
            auditor = _audit(cluster, pump, vitals, report, say)
            _prove(live, auditor, report)
            report.injected = injector.injected
            report.note_latency(auditor.published, injector.calm_ms)
        except DurabillError as error:
            report.problems.append(str(error))
        live.close()
        report.note_live_audits(live.done)
        report.hostile_records = hostile.records
        report.took_s = round(time.monotonic() - cluster.began_s, 1)
        report.injected = injector.injected
        report.problems += injector.problems
        report.exits = cluster.exits
        report.sent = pump.sent
        report.lag_records_max = max((each.lag for each in vitals.samples), default=0)
        report.note_exits()
    return report


def _inject(chaos: Chaos, injector: Injector, pump: Pump, report: RunReport) -> None:
    """Carry out the schedule until all kinds have come and enough has been sent."""
    began_s = time.monotonic()
    _wait_until(lambda: pump.sent.segments > chaos.rate or bool(pump.error), 60)
    for turn, step in chaos.steps():
        enough = pump.sent.segments >= chaos.segments
        if turn and enough and time.monotonic() - began_s >= chaos.seconds:
            break
        if pump.error:
            break
        injector.run(step)
        report.steps += 1
    injector.wait_for_calm()
    _wait_until(lambda: bool(pump.error), chaos.quiet_s)
    _wait_until(lambda: pump.sent.segments >= chaos.segments or bool(pump.error), 3_600)


def _wait_until(condition: Callable[[], bool], timeout_s: float) -> bool:
    until_s = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > until_s:
            return False
        time.sleep(_LOOK_S)
    return True


def _rest(
    cluster: Cluster, pump: Pump, vitals: Vitals, report: RunReport, say: Callable[[str], None]
) -> None:
    """Have the fleet come to its end and the workers to rest: no lag, nothing unsettled."""
    say(f"{time.monotonic() - cluster.began_s:6.1f} s  the fleet comes to its end, orders settle")
    pump.finish()
    pump.join()
    if pump.error:
        raise StackError(f"the fleet failed: {pump.error}")
    began_s = time.monotonic()
    at_rest = _wait_until(lambda: _is_at_rest(cluster, vitals), REST_S)
    report.rest_s = round(time.monotonic() - began_s, 1)
    report.lag_records, _ = vitals.at_rest()
    if not at_rest:
        report.problems.append(
            f"not at rest within {REST_S:g} s: lag {report.lag_records}, "
            f"unsettled {_unsettled(cluster)}, {cluster.states()}"
        )


def _is_at_rest(cluster: Cluster, vitals: Vitals) -> bool:
    sample = vitals.samples[-1]
    return sample.answered and sample.lag == 0 and _unsettled(cluster) == []


def _unsettled(cluster: Cluster) -> list[str]:
    """Return the partitions without an owner, or with orders that wait for a deadline."""
    tasks = {}
    for worker in cluster.workers():
        status = get_json(f"{worker.url}/status")
        if status is not None:
            tasks.update(status["partitions"])
    everything = {str(each) for each in range(PARTITIONS)}
    waiting = (each for each, task in tasks.items() if task["oldest_deadline_ms"] is not None)
    return sorted({*(everything - tasks.keys()), *waiting})


def _audit(
    cluster: Cluster, pump: Pump, vitals: Vitals, report: RunReport, say: Callable[[str], None]
) -> Auditor:
    def tell(what: str) -> None:
        say(f"{time.monotonic() - cluster.began_s:6.1f} s  {what}")

    tell("stopping the workers, auditing")
    _stop([each.name for each in cluster.workers()], cluster, report)
    auditor = Auditor(cluster.settings, cluster.kafka, pump.sent)
    report.audit = auditor.audit
    auditor.read_log(lambda partition: None)
    auditor.check_totals()
    auditor.check_dead_letters()
    lag, committed = vitals.at_rest()
    report.lag_records = max(lag, report.lag_records)
    if lag:
        report.problems.append(f"the group's lag is {lag} with all workers stopped")
    auditor.check_checkpoint(committed)
    _wait_until(auditor.ledger_is_complete, REST_S)
    _stop(["ledger", "gateway"], cluster, report)
    auditor.check_ledger()
    tell(f"{len(report.audit.violations)} violations")
    return auditor


def _prove(live: LiveAudits, auditor: Auditor, report: RunReport) -> None:
    """Have the command prove all of it once more, now that nothing moves."""
    last = live.audit()
    if wrong := not_proven(last):
        report.problems.append(wrong)
    elif last.result["totals"] != auditor.audit.totals:
        report.problems.append(
            f"durabill audit has {last.result['totals']} totals, the oracle {auditor.audit.totals}"
        )
    live.done.append(last)


def _stop(names: Iterable[str], cluster: Cluster, report: RunReport) -> None:
    for name in names:
        process = cluster.processes[name]
        try:
            code = process.stop()
        except StackError as error:
            report.problems.append(str(error))
            process.kill()
            continue
        if code != 0:
            words = process.log_tail()
            report.problems.append(f"{name} ended with {code} when asked to:\n{words}")
