"""What a client is judged by: a table of features, and the matrix that comes of it. Pure."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from durabill.producers.conformance import judge, judge_trouble
from durabill.producers.conformance.exchange import Log


class Verdict(StrEnum):
    """What was seen of a feature."""

    PASS = "pass"
    FAIL = "fail"
    NOT_SEEN = "not seen"


@dataclass(frozen=True, slots=True)
class Feature:
    """What a client does: `says` as a sentence, `faults` what the script must do to see it.

    A client that conforms has all that are `is_required`; the others are advice.
    """

    name: str
    says: str
    judge: Callable[[Log], judge.Finding]
    faults: tuple[str, ...] = ()
    is_required: bool = True


_NO_WISH = ("cut", "login", "strange", "proxy_json", "proxy_page")

FEATURES: tuple[Feature, ...] = (
    Feature("form", "Requests have the contract's form", judge.form),
    Feature(
        "start_again",
        "A start whose answer was lost is repeated with the same Idempotency-Key",
        judge.start_again,
        ("start_lost",),
    ),
    Feature("numbers", "Segments are numbered 1, 2, 3 … without holes", judge.numbers),
    Feature("end", "The last segment alone has the end identifier", judge.end),
    Feature(
        "times",
        "Times begin with the order, don't overlap, and stay within the server's clock",
        judge.times,
    ),
    Feature("gapless", "A segment starts where the one before ended", judge.gapless, (), False),
    Feature(
        "clock_step",
        "A step of the server's clock adds no time to an order",
        judge.clock_step,
        ("step",),
    ),
    Feature("no_loss", "Every segment is sent until it is settled", judge.no_loss),
    Feature("same_bytes", "A segment that is sent again is the same", judge.same_bytes),
    Feature("settled", "What is settled isn't sent again", judge.settled),
    Feature(
        "lost_answer",
        "A lost answer is no acknowledgement",
        judge_trouble.sent_again("lost"),
        ("lost",),
    ),
    Feature("cut", "A cut connection is tried again", judge_trouble.sent_again("cut"), ("cut",)),
    Feature(
        "truncated",
        "An answer that breaks off is no acknowledgement",
        judge_trouble.sent_again("truncated"),
        ("truncated",),
    ),
    Feature("slow", "A slow answer is waited for", judge_trouble.waits_for_slow, ("slow",)),
    Feature(
        "login_page",
        "A login page with 200 is no acknowledgement",
        judge_trouble.sent_again("login"),
        ("login",),
    ),
    Feature(
        "strange_200",
        "A 200 of another form, or about other or fewer segments, is no acknowledgement",
        judge_trouble.sent_again("strange", "mixed", "short"),
        ("strange", "mixed", "short"),
    ),
    Feature(
        "proxy_error",
        "An error of a proxy refuses nothing for good",
        judge_trouble.sent_again("proxy_json", "proxy_page"),
        ("proxy_json", "proxy_page"),
    ),
    Feature("redirect", "Redirects aren't followed", judge_trouble.redirect, ("redirect",)),
    Feature(
        "retry_after",
        "Retry-After in seconds is kept to",
        judge_trouble.waits("start_busy", "busy", "busy_again", "limited"),
        ("start_busy", "busy", "busy_again", "limited"),
    ),
    Feature(
        "retry_after_date",
        "Retry-After as a date is kept to",
        judge_trouble.waits("busy_date"),
        ("busy_date",),
    ),
    Feature(
        "pauses",
        "What has failed isn't sent again at once, whoever said so",
        judge_trouble.pauses(*_NO_WISH),
        _NO_WISH,
    ),
    Feature(
        "jitter",
        "Waits have a jitter on top of the server's wish",
        judge_trouble.jitter,
        ("busy", "busy_again", "busy_date", "limited"),
    ),
    Feature(
        "token_renewed",
        "After a 401 the token is read anew, and the segments are sent again",
        judge_trouble.token_renewed,
        ("unauthorized",),
    ),
    Feature("halved", "After a 413 less is sent at once", judge_trouble.halved, ("too_large",)),
    Feature(
        "refused_by_itself",
        "A refused segment is set aside by itself, and the others go on",
        judge_trouble.refused_by_itself,
        ("refused",),
    ),
    Feature("lease", "Every upload shows its order's lease", judge.lease),
    Feature(
        "lease_renewed",
        "A lease that is over is renewed",
        judge_trouble.lease_renewed,
        ("lease_over",),
    ),
    Feature("batches", "What waits goes in one request", judge.batches, (), False),
    Feature(
        "many_orders", "One request has segments of several orders", judge.many_orders, (), False
    ),
    Feature("report", "Uploads say how the client stands", judge.report, (), False),
)
NAMES = tuple(each.name for each in FEATURES)


@dataclass(frozen=True, slots=True)
class Row:
    """What was seen of one feature; `note` says of a failure where."""

    feature: Feature
    verdict: Verdict
    note: str = ""


@dataclass(frozen=True, slots=True)
class Matrix:
    """What was seen of all features that were asked for."""

    rows: Sequence[Row]

    @property
    def conforms(self) -> bool:
        """Whether every required feature was seen and passed."""
        return all(row.verdict is Verdict.PASS for row in self.rows if row.feature.is_required)

    def as_json(self) -> dict[str, Any]:
        """Return it for machines."""
        return {
            "conforms": self.conforms,
            "features": [
                {
                    "name": row.feature.name,
                    "verdict": row.verdict.value,
                    "required": row.feature.is_required,
                    "note": row.note,
                }
                for row in self.rows
            ],
        }


def faults_for(names: Collection[str]) -> frozenset[str]:
    """Return what the script has to do so that these features are seen."""
    chosen = (each for each in FEATURES if each.name in names)
    return frozenset(fault for each in chosen for fault in each.faults)


def judged(log: Log, names: Collection[str]) -> Matrix:
    """Judge what was written down by these features, in the table's order."""
    rows = []
    for feature in FEATURES:
        if feature.name not in names:
            continue
        finding = feature.judge(log)
        if finding is None:
            rows.append(Row(feature, Verdict.NOT_SEEN))
        elif finding:
            rows.append(Row(feature, Verdict.FAIL, finding))
        else:
            rows.append(Row(feature, Verdict.PASS))
    return Matrix(rows)
