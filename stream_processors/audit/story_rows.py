"""One record of an order's story: what it was, and what became of it."""

from dataclasses import dataclass

from durabill.schemas import Interval
from durabill.schemas.headers import RESENT_FROM
from durabill.schemas.text import human_ms, human_time, shown
from durabill.stream_processors.core.admission import Fate
from durabill.stream_processors.core.explain import Verdict
from durabill.stream_processors.core.intervals import IntervalSet

HEADER_CHARS_MAX = 300
"""Of what a stranger's header says, no more is kept."""


@dataclass(slots=True)
class Row:
    """One record of the log that is the order's, and what became of it.

    `append_ms` is when the broker appended it, `arrival_ms` what the partition's clock was then:
    what it is judged by. `verdict` is in words, `detail` says more of a dead letter. `life` counts
    the lives of the order's number; 0: none was going on. `phase` is the order's after the record.
    """

    partition: int
    offset: int
    append_ms: int
    arrival_ms: int
    number: int | None
    start_ms: int | None
    end_ms: int | None
    end_identifier: bool | None
    fate: str | None
    """The name of a `core.admission.Fate`; None: a dead letter."""

    verdict: str
    life: int
    reason: str | None
    detail: str
    gained_ms: int
    gained: tuple[Interval, ...]
    """Which milliseconds it added."""

    counted_before: tuple[Interval, ...]
    """Which of its milliseconds were counted already; both are empty where it doesn't count."""

    is_new_number: bool
    reopens: bool
    phase: str | None
    forwarded_to: int | None
    forwarded_from: str | None
    """Where a worker sent it on from: `partition/offset`, as far as the rules believe it."""

    resent_from: str | None
    """The dead letter that it was sent back from, as its header says."""

    is_opening: bool = False
    """Whether it is an opening that can be read, and no segment."""

    dead_letter: str | None = None
    """Where its dead letter is, `partition/offset` in their topic; None: it was not found."""

    @property
    def counts(self) -> bool:
        """Whether its order has taken it in."""
        return self.fate in _TAKEN_IN


_TAKEN_IN = (Fate.BEGINS.name, Fate.COUNTS.name)


def row_of(partition: int, verdict: Verdict) -> Row:
    """Return what became of a record as a row."""
    record, raw, source = verdict.record, verdict.raw, verdict.source
    _, number, start_ms, end_ms, is_end = (None,) * 5 if raw is None else raw
    before: list[tuple[int, int]] = []
    if verdict.fate in (Fate.BEGINS, Fate.COUNTS):
        assert raw is not None
        before = IntervalSet(verdict.gained).missing(*raw[2:4])
    resent = [value for name, value in record.headers if name == RESENT_FROM and value is not None]
    return Row(
        partition, record.offset, record.append_ms, verdict.arrival_ms,
        number, start_ms, end_ms, is_end,
        None if verdict.fate is None else verdict.fate.name, words_of(verdict),
        verdict.life, verdict.reason, verdict.detail,
        verdict.gained_ms, verdict.gained, tuple(Interval(*each) for each in before),
        verdict.is_new_number, verdict.reopens, verdict.phase, verdict.partition,
        None if source is None else f"{source[0]}/{source[1]}",
        _place_in(resent[-1]) if resent else None,
        verdict.opened is not None,
    )  # fmt: skip


def _place_in(header: bytes) -> str:
    """Return what a header says; no more of a stranger's than a place has (a topic's name: 249)."""
    text = header[: HEADER_CHARS_MAX + 1].decode(errors="replace")
    return text if len(text) <= HEADER_CHARS_MAX else f"{text[:HEADER_CHARS_MAX]}…"


def words_of(verdict: Verdict) -> str:
    """Return a verdict in words."""
    if verdict.fate is None:
        return f"dead letter: {verdict.reason}"
    if verdict.fate is Fate.FORWARDED:
        return f"sent on to partition {verdict.partition}"
    if verdict.fate is Fate.SEEN_BEFORE:
        return "passed over, came before"
    if verdict.fate is Fate.OPENED_BEFORE:
        return "opened before, for the same client"
    if verdict.fate is Fate.EXTENDS:
        assert verdict.opened is not None
        return f"extends its opening until {human_time(verdict.opened.accept_until_ms)}"
    if verdict.fate is Fate.OPENS:
        assert verdict.opened is not None
        client = f", client {shown(verdict.opened.client)}" if verdict.opened.client else ""
        return f"opens it, for tenant {verdict.opened.tenant}{client}"
    assert verdict.raw is not None
    length_ms, gained_ms = verdict.raw[3] - verdict.raw[2], verdict.gained_ms
    if not verdict.is_new_number:
        return f"repeat, adds {human_ms(gained_ms)}" if gained_ms else "repeat, adds nothing"
    if gained_ms < length_ms:
        return f"counted, less {human_ms(length_ms - gained_ms)} known already"
    return "counted"
