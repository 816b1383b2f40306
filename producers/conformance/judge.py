"""How each feature is judged, by what was written down alone. Pure.

A judgement is None where nothing of the kind was seen, "" where all was well, and otherwise the
first thing that was wrong, for people. What is judged by the script's trouble stands in
`judge_trouble`.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable
from itertools import pairwise
from signal import SIGKILL

from durabill.producers.conformance.exchange import Exchange, Log, Opened, Sent

Finding = str | None
Judge = Callable[[Log], Finding]

EARLY_S = 0.05
"""So much earlier than the wish still keeps to it: timers of clients are no better."""
TIME_TOLERANCE_MS = 1_000
"""So far a client's idea of the server's time may be off."""
STEP_TOLERANCE_MS = 60_000
"""So far a client's idea of a step may be off: it may learn of it late."""


def form(log: Log) -> Finding:
    """No request was of another form than the contract's."""
    if not log.exchanges:
        return None
    return next((each.wrong for each in log.exchanges if each.wrong), "")


def start_again(log: Log) -> Finding:
    """After a lost answer, or somebody else's, the same order is asked for."""
    faults = {"start_lost", "start_login", "start_proxy"}
    lost = log.with_fault(*faults)
    for each in lost:
        if not each.idempotency_key:
            return "a start without an Idempotency-Key"
        if log.again(each) is None:
            return f"after `{each.fault}` it wasn't asked for again with the same Idempotency-Key"
    return "" if {each.fault for each in lost} == faults else None


def numbers(log: Log) -> Finding:
    """Numbers of each order are 1 to n."""
    orders = _by_order(log)
    for order, segments in orders.items():
        known = sorted({each.number for each in segments})
        if known != list(range(1, len(known) + 1)):
            missing = next(at for at in range(1, known[-1] + 1) if at not in known)
            return f"order {order}: number {missing} never came"
    return "" if orders else None


def end(log: Log) -> Finding:
    """Each order has one segment with the end identifier: the last one, when it is time."""
    orders = _by_order(log)
    for order, segments in orders.items():
        ends = {each.number for each in segments if each.is_last}
        last = max(each.number for each in segments)
        if ends != {last}:
            on = ", ".join(map(str, sorted(ends))) or "no segment"
            return f"order {order}: the end identifier is on {on}, and the last number is {last}"
        if (ran_ms := _sum_ms(segments)) < log.wanted_ms - TIME_TOLERANCE_MS:
            return f"order {order}: it ends after {ran_ms} ms, {log.wanted_ms} expected"
    return "" if orders else None


def times(log: Log) -> Finding:
    """Nothing begins before the order, ends after now, overlaps, or is more than has passed."""
    if not log.uploads:
        return None
    for each in log.uploads:
        for segment in each.segments:
            opened = log.orders.get(segment.order)
            if opened is None:
                continue  # `form` tells
            said = f"order {segment.order}, number {segment.number}"
            if segment.start_ms < opened.server_timestamp_ms:
                return f"{said}: starts before the order's server timestamp"
            passed_ms = (each.came_s - opened.opened_s) * 1000
            latest_ms = passed_ms + TIME_TOLERANCE_MS + _base_ms(log, each, segment, opened)
            if segment.end_ms > latest_ms:
                return f"{said}: ends {segment.end_ms - latest_ms:.0f} ms too late to have been"
    return _overlap(log) or _too_much(log)


def _base_ms(log: Log, each: Exchange, segment: Sent, opened: Opened) -> int:
    """Return when the order began, on the scale that the segment is on: that may have stepped."""
    stepped_ms = opened.server_timestamp_ms + log.step_ms
    has_stepped = log.stepped_s is not None and each.came_s > log.stepped_s > opened.opened_s
    is_on_it = has_stepped and segment.start_ms > stepped_ms - TIME_TOLERANCE_MS
    return stepped_ms if is_on_it else opened.server_timestamp_ms


def _overlap(log: Log) -> str:
    for order, segments in _by_order(log).items():
        unique = sorted({(each.start_ms, each.end_ms, each.number) for each in segments})
        for (_, end_ms, before), (start_ms, _, number) in pairwise(unique):
            if start_ms < end_ms and before != number:
                within = f"{end_ms - start_ms} ms before {before} ends"
                return f"order {order}: number {number} starts {within}"
    return ""


def clock_step(log: Log) -> Finding:
    """Orders that ran when the server's clock stepped come to no more than has passed."""
    if log.stepped_s is None:
        return None
    stepped_s = log.stepped_s
    went_on = {
        segment.order
        for each in log.uploads
        for segment in each.segments
        if each.came_s > stepped_s
    }
    before = {order for order, opened in log.orders.items() if opened.opened_s < stepped_s}
    return _too_much(log) if went_on & before else None


def _too_much(log: Log) -> str:
    for order, segments in _by_order(log).items():
        opened = log.orders.get(order)
        if opened is None:
            continue
        sum_ms = _sum_ms(segments)
        last_s = max(each.came_s for each in log.uploads if order in each.orders)
        passed_ms = (last_s - opened.opened_s) * 1000 + TIME_TOLERANCE_MS
        if sum_ms > passed_ms:
            return f"order {order}: {sum_ms} ms reported, at most {passed_ms:.0f} ms can have been"
    return ""


def _sum_ms(segments: Iterable[Sent]) -> int:
    return sum(
        each.end_ms - each.start_ms for each in {each.key: each for each in segments}.values()
    )


def gapless(log: Log) -> Finding:
    """Each segment starts where the one before ended, or goes along with a step of the clock.

    The first one starts with the order.
    """
    orders = _by_order(log)
    for order, segments in orders.items():
        at = {each.number: each for each in segments}
        opened = log.orders.get(order)
        if opened is not None and 1 in at:
            late_ms = at[1].start_ms - opened.server_timestamp_ms
            if late_ms and not _is_step(log, late_ms):
                return f"order {order}: number 1 starts {late_ms} ms after the order"
        for number, each in at.items():
            before = at.get(number - 1)
            if before is not None and before.end_ms != each.start_ms:
                apart_ms = each.start_ms - before.end_ms
                if _is_step(log, apart_ms):
                    continue
                return f"order {order}: number {number} starts {apart_ms} ms after {number - 1}"
    return "" if orders else None


def _is_step(log: Log, apart_ms: int) -> bool:
    return bool(log.step_ms) and abs(apart_ms - log.step_ms) < STEP_TOLERANCE_MS


def no_loss(log: Log) -> Finding:
    """All orders were brought to their end, and the client knows of every segment's fate."""
    ended, settled_at = log.orders_ended(), log.settled()
    if len(ended) < log.orders_wanted:
        return f"{len(ended)} of {log.orders_wanted} orders have ended"
    for order in log.orders:
        if order not in ended:
            return f"order {order} was opened and not ended"
    for order, last in ended.items():
        for number in range(1, last + 1):
            if (order, number) not in settled_at:
                return f"order {order}: number {number} was never settled"
    return ""


def same_bytes(log: Log) -> Finding:
    """Whatever came twice came the same."""
    first: dict[tuple[str, int], Sent] = {}
    twice = 0
    for each in log.uploads:
        for segment in each.segments:
            before = first.setdefault(segment.key, segment)
            if before is not segment:
                twice += 1
            if before != segment:
                return f"order {segment.order}: number {segment.number} came in two forms"
    return "" if twice else None


def settled(log: Log) -> Finding:
    """What was told to be settled didn't come again."""
    known = log.settled()
    for each in log.uploads:
        for segment in each.segments:
            told_s = known.get(segment.key)
            if told_s is not None and each.came_s > told_s + EARLY_S:
                return f"order {segment.order}: number {segment.number} came again after its answer"
    return "" if known else None


def lease(log: Log) -> Finding:
    """Every upload has a lease of each of its orders, and every renewal has."""
    if not any(each.orders for each in log.uploads):
        return None
    for each in log.exchanges:
        for order in sorted(each.without_lease):
            return f"order {order}: its lease wasn't shown"
        for order in sorted(each.foreign_lease):
            return f"order {order}: a lease was shown that was never given for it"
    return ""


def ends_itself(log: Log) -> Finding:
    """The client that was started here has ended by itself, and well."""
    if log.exit_code is None:
        return None
    if log.exit_code < 0:
        return "it had to be ended" if log.exit_code == -SIGKILL else f"signal {-log.exit_code}"
    return f"its exit code is {log.exit_code}" if log.exit_code else ""


def batches(log: Log) -> Finding:
    """Some request has several segments."""
    return "" if any(len(each.segments) > 1 for each in log.uploads) else None


def many_orders(log: Log) -> Finding:
    """Some request has several orders."""
    return "" if any(len(each.orders) > 1 for each in log.uploads) else None


def report(log: Log) -> Finding:
    """Some upload says how the client stands."""
    return "" if any(each.report for each in log.uploads) else None


def _by_order(log: Log) -> dict[str, list[Sent]]:
    orders: dict[str, list[Sent]] = defaultdict(list)
    for each in log.uploads:
        for segment in each.segments:
            orders[segment.order].append(segment)
    return orders
