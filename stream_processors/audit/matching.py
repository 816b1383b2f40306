"""Matches the totals that the log gives with those that were published, one stream to the other.

What is equal, byte for byte, is done with at once, and forgotten. So memory holds only what one
stream has ahead of the other, and what differs. In the end `judge` says of each leftover what it
is: a finding, or not yet due to be there. Pure.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from durabill.schemas import OrderTotal, decode_total
from durabill.stream_processors.audit.differences import (
    differences,
    is_older,
    normal_form,
    summary,
    why_unreadable,
)
from durabill.stream_processors.audit.findings import Finding, Kind
from durabill.stream_processors.audit.grounds import Grounds
from durabill.stream_processors.audit.totals_log import Published


class _Overtaking(NamedTuple):
    """A right total that stands on the wrong side of others of its order, if these are right too.

    `passed_over` are their values.
    """

    record: Published
    value: bytes
    passed_over: tuple[bytes | None, ...]


class Matcher:
    """The two streams of one partition, each in its own order."""

    def __init__(self) -> None:
        self.computed: dict[bytes, list[bytes]] = defaultdict(list)
        """Order number -> totals that the log gives, not found among the published so far."""
        self.published: dict[bytes | None, list[Published]] = defaultdict(list)
        self.computed_count = 0
        self.published_count = 0
        self.proven = 0
        self._overtakings: list[_Overtaking] = []

    def add_computed(self, key: bytes, value: bytes) -> None:
        """Take in a total that the log gives."""
        self.computed_count += 1
        waiting = self.published.get(key)
        if waiting:
            for at, each in enumerate(waiting):
                if normal_form(each.value) == value:
                    self.proven += 1
                    if at:
                        self._overtake(each, value, [other.value for other in waiting[:at]])
                    del waiting[at]
                    if not waiting:
                        del self.published[key]
                    return
        self.computed[key].append(value)

    def add_published(self, record: Published) -> None:
        """Take in a record of the totals topic."""
        self.published_count += 1
        key, value = record.key, normal_form(record.value)
        waiting = None if key is None else self.computed.get(key)
        if waiting and key is not None and value in waiting:
            self.proven += 1
            if value != waiting[0]:
                self._overtake(record, value, waiting[: waiting.index(value)])
            waiting.remove(value)
            if not waiting:
                del self.computed[key]
            return
        self.published[key].append(record)

    def _overtake(self, record: Published, value: bytes, others: Sequence[bytes | None]) -> None:
        self._overtakings.append(_Overtaking(record, value, tuple(map(normal_form, others))))

    def out_of_order(self, place: str) -> Iterator[Finding]:
        """Yield a finding for each right total that was published before or after another wrongly.

        Whoever keeps an order's last total would bill another. To be called in the end.
        """
        for record, value, passed_over in self._overtakings:
            key = record.key or b""
            wrong: set[bytes | None] = set(self.computed.get(key, ()))
            wrong |= {normal_form(each.value) for each in self.published.get(key, ())}
            if wrong.issuperset(passed_over):
                continue
            total = decode_total(value)
            yield Finding(
                Kind.BROKEN_REVISION_CHAIN,
                total.service_order_number,
                total.revision,
                expected="an order's revisions one after the other",
                found="published in another sequence",
                place=f"{place}/{record.offset}",
            )


class Given(NamedTuple):
    """A total with the record that it came in, None for one that the log gives."""

    total: OrderTotal
    record: Published | None


@dataclass(slots=True)
class Judgement:
    """What has become of the leftovers."""

    findings: list[Finding] = field(default_factory=list)
    newer: int = 0
    not_yet_published: int = 0
    unprovable: int = 0
    proven: int = 0
    """Equal but for what the schema before could not say."""
    others: Counter[str] = field(default_factory=Counter)
    """Id of a log before ours -> how many of its totals there are."""


def judge(
    computed: Mapping[bytes, Sequence[bytes]],
    published: Mapping[bytes | None, Sequence[Published]],
    siblings: Mapping[bytes | None, Sequence[Published]],
    grounds: Grounds,
) -> Judgement:
    """Return what the leftovers are; `siblings` has all that was published of their orders."""
    result = Judgement()
    keys = sorted({*computed, *published}, key=lambda key: key or b"")
    for key in keys:
        records = _readable(published.get(key, ()), grounds, result)
        given = [Given(decode_total(value), None) for value in computed.get(key or b"", ())]
        if any(_is_unprovable(each.total, grounds) for each in (*records, *given)):
            result.unprovable += len(records)
            continue
        _judge_order(given, records, siblings.get(key, ()), grounds, result)
    return result


def _readable(records: Iterable[Published], grounds: Grounds, result: Judgement) -> list[Given]:
    """Return the records that are totals; the others are findings."""
    totals = []
    for record in records:
        if grounds.is_of_before(record):
            result.others[record.log_id] += 1
            continue
        why = why_unreadable(record.key, record.value, grounds.partition, grounds.partitions)
        if why is None:
            totals.append(Given(decode_total(record.value), record))
            continue
        number = (record.key or b"").decode("utf-8", "replace")
        place = _place(grounds, record)
        result.findings.append(
            Finding(Kind.TOTAL_WITHOUT_EVIDENCE, number, None, "", "no such record", why, place)
        )
    return totals


def _is_unprovable(total: OrderTotal, grounds: Grounds) -> bool:
    return (
        total.started_ms < grounds.provable_from_ms
        or total.source_offset < grounds.provable_from_offset
    )


def _judge_order(
    computed: list[Given],
    published: list[Given],
    siblings: Sequence[Published],
    grounds: Grounds,
    result: Judgement,
) -> None:
    left = list(computed)
    for each in published:
        match = _counterpart(each.total, left)
        if match is not None:
            left.remove(match)
            found = list(_compared(match.total, each, grounds))
            result.findings += found
            result.proven += not found
        else:
            _judge_extra(each, siblings, grounds, result)
    for missing in left:
        total = missing.total
        if not grounds.was_given(total):
            result.not_yet_published += 1
            continue
        result.findings.append(
            Finding(
                Kind.MISSING_TOTAL,
                total.service_order_number,
                total.revision,
                expected=summary(total),
                found="nothing",
                place=f"{grounds.topic}/{grounds.partition}",
            )
        )


def _counterpart(total: OrderTotal, computed: list[Given]) -> Given | None:
    """Return what the log gives in place of a published total: of several lives the likeliest."""
    same = [each for each in computed if each.total.revision == total.revision]
    same.sort(
        key=lambda each: (
            each.total.source_offset != total.source_offset,
            each.total.settled_at_ms != total.settled_at_ms,
        )
    )
    return same[0] if same else None


def _compared(expected: OrderTotal, found: Given, grounds: Grounds) -> Iterator[Finding]:
    assert found.record is not None, "what was published has a record"
    older = is_older(found.record.value)
    place = _place(grounds, found.record)
    return differences(expected, found.total, place, is_older_schema=older)


def _judge_extra(
    each: Given, siblings: Sequence[Published], grounds: Grounds, result: Judgement
) -> None:
    """Judge a published total that the log doesn't give."""
    total, record = each.total, each.record
    assert record is not None, "what was published has a record"
    twin = _twin(total, record, siblings)
    if twin is None and _is_newer(total, record, grounds):
        result.newer += 1
        return
    kind, expected = Kind.TOTAL_WITHOUT_EVIDENCE, "no such total"
    if twin is not None:
        kind, expected = Kind.PUBLISHED_TWICE, f"once, as at offset {twin.offset}"
    result.findings.append(
        Finding(
            kind,
            total.service_order_number,
            total.revision,
            "" if twin is None else _first_difference(total, twin),
            expected,
            summary(total),
            _place(grounds, record),
        )
    )


def _twin(total: OrderTotal, record: Published, siblings: Sequence[Published]) -> Published | None:
    """Return another record of the same revision: one with the same content if there is one."""
    same = [
        each
        for each in siblings
        if each.offset != record.offset and _revision(each) == total.revision
    ]
    equal = [each for each in same if normal_form(each.value) == normal_form(record.value)]
    return next(iter(equal or same), None)


def _revision(record: Published) -> int | None:
    if why_unreadable(record.key, record.value, 0, 1) is not None:
        return None
    return decode_total(record.value).revision


def _first_difference(total: OrderTotal, twin: Published) -> str:
    found = differences(decode_total(twin.value), total, "")
    return next((each.field for each in found), "")


def _is_newer(total: OrderTotal, record: Published, grounds: Grounds) -> bool:
    """Tell whether a total rests, by its own word, on what came after the end."""
    may_be = grounds.may_all_be_newer or record.offset >= grounds.totals_end
    return may_be and (
        total.source_offset >= grounds.end_offset or total.settled_at_ms > grounds.clock_ms
    )


def _place(grounds: Grounds, record: Published) -> str:
    return f"{grounds.topic}/{grounds.partition}/{record.offset}"
