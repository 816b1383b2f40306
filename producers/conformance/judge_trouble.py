"""How it is judged what a client does after the script's trouble. Pure; see `judge`."""

from collections.abc import Collection, Iterator
from http import HTTPStatus
from itertools import pairwise

from durabill.producers.conformance.exchange import Exchange, Kind, Log, Sent, Told
from durabill.producers.conformance.judge import EARLY_S, Finding, Judge
from durabill.producers.conformance.script import DOWN_REQUESTS

JITTER_MIN_S = 0.01
PAUSE_MIN_S = 0.02
"""No client that waits does so for less; a request and its answer take a tenth of it."""
HASTY_MAX = 1
LONGER = 1.5
TOKEN_TRIES, TOKEN_TRIES_S = 5, 0.5
"""Nobody who waits longer each time tries a token so often in so short a time."""
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
    """While an answer is on its way, a slow one above all, nothing of it is sent again."""
    for each in log.uploads:
        again = log.next_with(each, each.keys)
        if again is not None and (each.answered_s is None or again.came_s < each.answered_s):
            return "it was sent again before the answer came"
    return "" if log.with_fault("slow") else None


def redirect(*faults: str) -> Judge:
    """Return the judge of this: nothing goes where these point, and the segments come again."""

    def judge(log: Log) -> Finding:
        if any(each.kind is Kind.ELSEWHERE for each in log.exchanges):
            return "it was followed"
        return sent_again(*faults)(log)

    return judge


def pauses(*faults: str) -> Judge:
    """Return the judge of this: after these faults the client doesn't come at once.

    It is measured from the request on, so a busy machine makes nobody look hasty. A part of what
    had an error may come at once: it may be about the others. One try at once is nobody's habit:
    a service may just have ended, and its user waits for the last segment.
    """

    def judge(log: Log) -> Finding:
        hasty = []
        for each in log.with_fault(*faults):
            again = log.again(each)
            if again is None or again.came_s - each.came_s >= PAUSE_MIN_S:
                continue
            is_part = len(again.segments) < len(each.segments)
            if not (is_part and (each.status or 0) >= HTTPStatus.BAD_REQUEST):
                hasty.append(each.fault)
        if len(hasty) > HASTY_MAX:
            return f"after `{hasty[0]}` and `{hasty[1]}` it was sent again at once"
        return _not_yet_again(log) or _if_all_seen(log, faults)

    return judge


def _not_yet_again(log: Log) -> str:
    """Return what is wrong where a segment came at once that was told to come later."""
    for each in log.uploads:
        later = {
            segment.key
            for at, (segment, told) in enumerate(_fates(each))
            if told is Told.LATER and not each.reasons.get(at, "").startswith("LEASE_")
        }
        again = log.next_with(each, later)
        if again is not None and again.came_s - each.came_s < PAUSE_MIN_S:
            return "what was told to come later (`final` is false) was sent again at once"
    return ""


def backoff(log: Log) -> Finding:
    """While nothing works pauses get longer."""
    down = log.with_fault("down")
    came_s = [each.came_s for each in down]
    if len(down) == DOWN_REQUESTS and (again := log.next_with(down[-1], down[-1].keys)):
        came_s.append(again.came_s)
    if len(came_s) <= DOWN_REQUESTS:
        return None
    pauses_s = [after - before for before, after in pairwise(came_s)]
    if max(pauses_s[1:]) < LONGER * min(pauses_s[:-1]):
        told = ", ".join(f"{each * 1000:.0f}" for each in pauses_s)
        return f"its pauses were {told} ms"
    return ""


def waits(*faults: str) -> Judge:
    """Return the judge of this: after each of these faults the client comes no sooner than told."""

    def judge(log: Log) -> Finding:
        for each in log.with_fault(*faults):
            if log.again(each) is None:
                return f"after `{each.fault}` it never came again"
            assert each.not_before_s is not None
            early_s = max(
                (each.not_before_s - other.came_s for other in _after(log, each)), default=0
            )
            if early_s > EARLY_S:
                return f"after `{each.fault}` it came {early_s * 1000:.0f} ms too soon"
        return _if_all_seen(log, faults)

    return judge


def _after(log: Log, exchange: Exchange) -> list[Exchange]:
    """Return what had to wait: the next try, and of an upload whatever is uploaded then.

    What was on its way when the answer went is not meant.
    """
    again = log.again(exchange)
    told_s = exchange.answered_s
    if exchange.kind is not Kind.UPLOAD or told_s is None:
        return [] if again is None else [again]
    others = (each for each in log.later(exchange) if each.kind is Kind.UPLOAD)
    return [each for each in others if each is again or each.came_s > told_s + EARLY_S]


def jitter(log: Log) -> Finding:
    """Waits are not all of the same length on top of the wish."""
    extras_s = []
    for each in log.exchanges:
        again = None if each.not_before_s is None else log.again(each)
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
    tries: list[Exchange] = []
    for each in log.exchanges:
        if each.status != HTTPStatus.UNAUTHORIZED:
            continue
        tries = [*tries, each] if not tries or tries[-1].token == each.token else [each]
        if len(tries) >= TOKEN_TRIES and each.came_s - tries[-TOKEN_TRIES].came_s < TOKEN_TRIES_S:
            return "it went on at once with a token that wasn't taken"
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
        for failed in log.with_fault("renewal_login", "renewal_busy"):
            if log.again(failed) is None:
                return f"after `{failed.fault}` it wasn't asked for again"
        came = {key for later in log.later(each) for key in later.keys}
        if any(told is Told.LATER and segment.key not in came for segment, told in _fates(each)):
            return "what was sent with the lease that is over never came again"
    return _if_all_seen(log, ("lease_over", "renewal_login"))


def _fates(exchange: Exchange) -> Iterator[tuple[Sent, Told]]:
    return zip(exchange.segments, exchange.told, strict=True)
