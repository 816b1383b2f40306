"""Runs a planned fleet against a real topic, and works out what must come of it.

Theory of operation, in steps:
1. plan, and note where the topic ends now;
2. publish wave 1, keeping each record's receipt;
3. wait until every order of wave 1 has settled by the broker's time, and a margin more;
4. publish wave 2: what comes late, comes again, comes back;
5. read the topic back with a plain consumer until the copies of all records that were sent to
   a wrong partition are there too (a worker must be running for that);
6. work out the truth from the log, and check it against the plan: each planned record must lie
   at its receipt, be judged as planned, and each order must come to what was intended. So the
   truth rests on what was meant, and only the instants come from the broker;
7. write the truth file.
"""

import random
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from durabill.producers.fleet.contradictions import contradictions, unexplained
from durabill.producers.fleet.log import FleetLog
from durabill.producers.fleet.plan import Fault, FleetPlan, OrderPlan, Send, in_publishing_order
from durabill.producers.fleet.publish import FleetError, FleetSender, Progress, Receipt
from durabill.producers.fleet.truth import (
    LogTruth,
    read_log,
)
from durabill.producers.fleet.truth_file import (
    Comparison,
    compare,
    compare_dead_letters,
    write_truth,
)
from durabill.producers.fleet.truth_order import Policy

__all__ = [
    "Comparison",
    "FleetError",
    "FleetReport",
    "Progress",
    "compare",
    "compare_dead_letters",
    "run_fleet",
]

MARGIN_S = 1.0
"""Time between the last deadline of wave 1 and the first record of wave 2."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetReport:
    """What a run did. Times in seconds, or ms since the epoch by the broker.

    `segments` are the good records published, of which `repeats` brought a number again and
    `sent_over_http` went through the gateway. `sent_on` lay in a wrong partition, of which
    `not_forwarded` had no copy in the right one in time. `unexplained` lie in the log though
    they were sent once: a lost answer was asked for again. `publish_s` is the time spent in
    publishing, without the pause. All deadlines have passed at `settled_by_ms`.
    """

    orders: int
    segments: int
    records: int
    repeats: int
    sent_on: int
    not_forwarded: int
    unexplained: int
    totals: int
    final_statuses: dict[str, int]
    dead_letters: dict[str, int]
    publish_s: float
    records_per_s: float
    first_append_ms: int
    last_append_ms: int
    settled_by_ms: int
    sent_over_http: int = 0
    wall_s: float = 0.0
    truth_path: str = ""

    def as_json(self) -> dict[str, Any]:
        """Return the fields by name."""
        return asdict(self)


def run_fleet(
    plan: FleetPlan,
    kafka: Mapping[str, str],
    topic: str,
    policy: Policy,
    *,
    truth_path: Path,
    rate: float | None = None,
    compression: str = "lz4",
    gateway_url: str | None = None,
    http_share: float = 0.0,
    forwarding_timeout_s: float = 30.0,
    progress: Progress = lambda phase, done, total: None,
) -> FleetReport:
    """Publish the plan to `topic`, write the truth to `truth_path`, and report.

    `policy` must be the workers'. `rate` limits the records a second, `http_share` (0 to 1) of
    the orders go through the gateway. The copies of records in wrong partitions are waited for
    up to `forwarding_timeout_s`; without a worker give 0.
    Raises FleetError when a record can't be delivered, or the log isn't what was planned.
    """
    if policy.correction_window_ms != plan.window_ms:
        raise ValueError("the plan's window_ms is not the policy's correction window")
    began_s = time.monotonic()
    progress("plan", 0, plan.orders)
    log = FleetLog(kafka, topic)
    try:
        orders = plan.order_plans(random.Random, int(time.time() * 1000), log.partitions)
        sends = in_publishing_order(orders)
        sender = FleetSender(
            kafka,
            topic,
            rate=rate,
            compression=compression,
            gateway_url=gateway_url,
            http_orders=_http_orders(plan, orders, http_share if gateway_url else 0.0),
        )
        try:
            publish_s = _publish(sender, sends, policy, progress)
        finally:
            sender.close()
        receipts = sender.all_receipts()
        log.read(_wrongly_placed(sends, receipts), forwarding_timeout_s, progress)
    finally:
        log.close()
    progress("truth", 0, len(log.records))
    truth = _truth(log, policy, orders, sends, receipts)
    write_truth(
        truth_path,
        _settings(plan, policy, topic, log.partitions),
        ((order, truth.totals.get(order.number, [])) for order in orders),
        truth.dead_letters,
    )
    return replace(
        _report(plan, log, truth, sends, receipts, publish_s),
        sent_over_http=sender.sent_over_http,
        wall_s=round(time.monotonic() - began_s, 3),
        truth_path=str(truth_path),
    )


def _report(
    plan: FleetPlan,
    log: FleetLog,
    truth: LogTruth,
    sends: Sequence[Send],
    receipts: Sequence[Receipt],
    publish_s: float,
) -> FleetReport:
    segments = sum(send.segment is not None for send in sends)
    totals = [total for revisions in truth.totals.values() for total in revisions]
    return FleetReport(
        orders=plan.orders,
        segments=segments,
        records=len(sends),
        repeats=segments - len({_identity(send) for send in sends if send.segment is not None}),
        sent_on=len(truth.sent_on),
        not_forwarded=len(truth.sent_on - truth.forwarded),
        unexplained=unexplained(log.records, receipts, plan.order_prefix),
        totals=len(totals),
        final_statuses=dict(Counter(each[-1].status.value for each in truth.totals.values())),
        dead_letters=dict(Counter(letter.reason.value for letter in truth.dead_letters)),
        publish_s=round(publish_s, 3),
        records_per_s=round(len(sends) / publish_s, 1),
        first_append_ms=min((receipt.append_ms for receipt in receipts), default=0),
        last_append_ms=max((record.append_ms for record in log.records), default=0),
        settled_by_ms=max((total.settled_at_ms for total in totals), default=0),
    )


def _settings(plan: FleetPlan, policy: Policy, topic: str, partitions: int) -> dict[str, Any]:
    own = {**asdict(plan), "order_prefix": plan.order_prefix, "policy": asdict(policy)}
    return {**own, "topic": topic, "partitions": partitions}


def _identity(send: Send) -> tuple[str, int]:
    assert send.segment is not None
    return send.order_number, send.segment.business_data_number


def _http_orders(plan: FleetPlan, orders: Sequence[OrderPlan], share: float) -> frozenset[str]:
    roll = random.Random(f"{plan.order_prefix}http")
    return frozenset(order.number for order in orders if roll.random() < share)


def _publish(
    sender: FleetSender, sends: Sequence[Send], policy: Policy, progress: Progress
) -> float:
    """Publish wave after wave with the pause between them; return the seconds of publishing."""
    spent_s = 0.0
    for wave in sorted({send.wave for send in sends}):
        if wave > 1:
            # Delivery reports come after the append, so from here on the broker's time is later.
            _pause(max(policy.settle_grace_ms, policy.idle_timeout_ms) / 1000 + MARGIN_S, progress)
        of_wave = [send for send in sends if send.wave == wave]
        began_s = time.monotonic()

        def tick(done: int, wave: int = wave, total: int = len(of_wave)) -> None:
            progress(f"wave {wave}", done, total)

        sender.publish(of_wave, tick)
        spent_s += time.monotonic() - began_s
    return max(spent_s, 0.001)


def _pause(seconds: float, progress: Progress) -> None:
    began_s = time.monotonic()
    while (passed_s := time.monotonic() - began_s) < seconds:
        progress("settling", int(passed_s * 1000), int(seconds * 1000))
        time.sleep(min(0.2, seconds - passed_s))


def _wrongly_placed(sends: Sequence[Send], receipts: Sequence[Receipt]) -> set[bytes]:
    return {
        b"%d/%d" % (receipt.partition, receipt.offset)
        for send, receipt in zip(sends, receipts, strict=True)
        if send.fault is Fault.WRONG_PARTITION
    }


def _truth(
    log: FleetLog,
    policy: Policy,
    orders: Sequence[OrderPlan],
    sends: Sequence[Send],
    receipts: Sequence[Receipt],
) -> LogTruth:
    """Return the truth of our part of the log; raise FleetError if the log isn't the plan."""
    truth = read_log(log.records, policy, log.partitions)
    ours = {order.number for order in orders}
    truth.totals = {number: totals for number, totals in truth.totals.items() if number in ours}
    places = {(receipt.partition, receipt.offset) for receipt in receipts}
    truth.dead_letters = [letter for letter in truth.dead_letters if letter[1:] in places]
    truth.sent_on &= {b"%d/%d" % place for place in places}
    problems = contradictions(log.records, truth, orders, sends, receipts)
    if problems:
        first = "\n  ".join(problems[:10])
        raise FleetError(f"{len(problems)} contradictions between plan and log:\n  {first}")
    return truth
