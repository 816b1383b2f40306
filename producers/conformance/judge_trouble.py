"""How it is judged what a client does after the script's trouble. Pure; see `judge`."""

from collections.abc import Collection, Iterator

from durabill.producers.conformance.exchange import Exchange, Kind, Log, Sent, Told
from durabill.producers.conformance.judge import EARLY_S, Finding, Judge

JITTER_MIN_S = 0.01
PAUSE_MIN_S = 0.02
"""No client that waits does so for less; a request and its answer take a tenth of it."""
_JITTER_WAITS = 3


def sent_again(*faults: str) -> Judge:
    """Return the judge of this: after each of these faults all segments come again."""

    def judge(log: Log) -> Finding:
        for each in log.with_fault(*faults):
            if wrong := _not_again(log, each):
                return f"after `{each.fault}`: {wrong}"
        return _if_all_seen(log, faults)

    return judge


def _if_all_seen(log: Log, faults: Collection[str]) -> Finding:
    return "" if {each.fault for each in log.with_fault(*faults)} == set(faults) else None


def _not_again(log: Log, exchange: Exchange) -> str:
    later = {key for each in log.later(exchange) for key in each.keys}
    lost = sorted(exchange.keys - later)
    return f"order {lost[0][0]}: number {lost[0][1]} never came again" if lost else ""


def waits_for_slow(log: Log) -> Finding:
    """While a slow answer is on its way nothing of it is sent again."""
    slow = log.with_fault("slow")
    for each in slow:
        again = log.next_with(each, each.keys)
        if again is not None and (each.answered_s is None or again.came_s < each.answered_s):
            return "it was sent again before the answer came"
    return "" if slow else None


def redirect(log: Log) -> Finding:
    """Nothing went where the redirect pointed, and the segments came again."""
    if not log.with_fault("redirect"):
        return None
    if any(each.kind is Kind.ELSEWHERE for each in log.exchanges):
        return "it was followed"
    return sent_again("redirect")(log)


def pauses(*faults: str) -> Judge:
    """Return the judge of this: after each of these faults the client doesn't come at once.

    It is measured from the request on, so a busy machine makes nobody look hasty.
    """

    def judge(log: Log) -> Finding:
        for each in log.with_fault(*faults):
            again = log.next_with(each, each.keys)
            if again is not None and again.came_s - each.came_s < PAUSE_MIN_S:
                return f"after `{each.fault}` it was sent again at once"
        return _if_all_seen(log, faults)

    return judge


def waits(*faults: str) -> Judge:
    """Return the judge of this: after each of these faults the client comes no sooner than told."""

    def judge(log: Log) -> Finding:
        for each in log.with_fault(*faults):
            again = _again(log, each)
            if again is None:
                return f"after `{each.fault}` it never came again"
            assert each.not_before_s is not None
            early_s = each.not_before_s - again.came_s
            if early_s > EARLY_S:
                return f"after `{each.fault}` it came {early_s * 1000:.0f} ms too soon"
        return _if_all_seen(log, faults)

    return judge


def _again(log: Log, exchange: Exchange) -> Exchange | None:
    if exchange.kind is Kind.UPLOAD:
        return log.next_with(exchange, exchange.keys)
    starts = (each for each in log.later(exchange) if each.kind is Kind.START)
    key = exchange.idempotency_key
    return next((each for each in starts if not key or each.idempotency_key == key), None)


def jitter(log: Log) -> Finding:
    """Waits are not all of the same length on top of the wish."""
    extras_s = []
    for each in log.exchanges:
        again = None if each.not_before_s is None else _again(log, each)
        if again is not None and each.not_before_s is not None:
            extras_s.append(again.came_s - each.not_before_s)
    if len(extras_s) < _JITTER_WAITS:
        return None
    spread_s = max(extras_s) - min(extras_s)
    if spread_s < JITTER_MIN_S:
        return f"all waits were the same, within {spread_s * 1000:.0f} ms"
    return ""


def token_renewed(log: Log) -> Finding:
    """After the 401 the same segments come with the next token."""
    for each in log.with_fault("unauthorized"):
        later = [other for other in log.later(each) if other.keys & each.keys]
        renewed = {key for other in later if other.token != each.token for key in other.keys}
        if each.keys - renewed:
            return "segments never came with the new token"
    return "" if log.with_fault("unauthorized") else None


def halved(log: Log) -> Finding:
    """What comes next of the segments that were too many is few enough."""
    for each in log.with_fault("too_large"):
        again = log.next_with(each, each.keys)
        if again is None:
            return "they never came again"
        assert each.limit is not None
        if len(again.segments) > each.limit:
            return f"{len(again.segments)} came after {len(each.segments)}, half of it expected"
    return "" if log.with_fault("too_large") else None


def refused_by_itself(log: Log) -> Finding:
    """The refused segment comes no more; what came with it is settled."""
    refused = log.with_fault("refused")
    known = log.settled()
    for each in refused:
        bad = {segment.key for segment, told in _fates(each) if told is Told.REFUSED}
        if any(other.keys & bad for other in log.later(each)):
            return "the refused segment came again"
        if each.keys - known.keys():
            return "what came with the refused segment was never settled"
    return "" if refused else None


def lease_renewed(log: Log) -> Finding:
    """After a lease is over the order goes on with another one."""
    over = log.with_fault("lease_over")
    for each in over:
        if not any(later.kind is Kind.LEASE for later in log.later(each)):
            return "no new lease was asked for"
        came = {key for later in log.later(each) for key in later.keys}
        if any(told is Told.LATER and segment.key not in came for segment, told in _fates(each)):
            return "what was sent with the lease that is over never came again"
    return "" if over else None


def _fates(exchange: Exchange) -> Iterator[tuple[Sent, Told]]:
    return zip(exchange.segments, exchange.told, strict=True)
