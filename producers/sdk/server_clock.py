"""What time it is on the server, as an interval. Pure: instants are arguments.

Theory: a request leaves at t0 and its answer is here at t3, on the local clock; the server took it
in at Tr and answered at Ts, on its own. Nothing arrives before it was sent, so the server is ahead
of us by at least Ts - t3 and at most Tr - t0, whatever the two ways took. Local clocks drift, so
each bound is let out by the drift's rate times its age. Of one server's bounds the tightest count.

Servers differ. Each `clock_id` is a source with an interval of its own; what is known is the hull
of those heard lately, so the time told is within its bound of every one of them. A source that has
not been heard for a while is held by what was seen of its distance to the others (`_links_us`).

Bounds of a source that don't meet say that one of the two clocks moved. By less than `apart_us` the
stamps are taken to be so uneven, and are trusted less from then on. By more it is a step: all that
was known is forgotten, and a new epoch begins.

An answer that took more than `VAGUE_US` tells nothing to who knows better. Where nothing better is
known, it has to do. The next good one then sets the time, and by how much is kept, as for a step.

What an order was billed can be off by what was said at its start and at its end, and by what
happened to the clock in between: the growth of `doubt_us`, and that of `swapped_us`, which is not
more than any two servers can be apart, however many came and went. See `reading.Reading`.
"""

from dataclasses import dataclass
from math import ceil, floor, isfinite
from typing import NamedTuple

from durabill.schemas.limits import ARRIVES_FROM_MS, ARRIVES_UNTIL_MS, FUTURE_TOLERANCE_MS

TIMESTAMP_MAX_MS = 253_402_300_799_999
"""The end of the year 9999: a server whose time is later has no idea of the time."""
DRIFT_PPM = 600
"""How fast the local clock may drift away from a server's: 500 ppm for a bad crystal or a clock
that is being set slowly, and 100 ppm by which a gateway's own clock may be moved."""
DRIFT_PPM_MAX = 100_000
APART_US = 1_000_000
"""How far apart the clocks of two servers may be, and how uneven those of one: more is a step."""
VAGUE_US = 60_000_000
"""Longer than anybody waits for an answer whose machine doesn't sleep meanwhile."""
CLOCK_ID_CHARS_MAX = 200
_SOURCES_MAX = 8
_UNHEARD_SAMPLES_MAX = 16
_UNHEARD_MAX_US = 120_000_000
_NOISE_HALVES_US = 3_600_000_000
_AHEAD_MAX_US = (FUTURE_TOLERANCE_MS - 10_000) * 1_000
_COMPARED_US = 3_000_000  # of drift: a source that was heard so long ago is not comparable
_ROUNDED_US = 2  # what our own integers may be off by


@dataclass(frozen=True, slots=True)
class ServerStamps:
    """When a server took a request in and when it answered, in ms, by its clock `clock_id`.

    An older gateway says one instant, which is both, and names no clock. Raises ValueError for
    what no clock shows.
    """

    received_ms: float
    sent_ms: float
    clock_id: str = ""

    def __post_init__(self) -> None:
        stamps = (self.received_ms, self.sent_ms)
        if not all(isfinite(each) and 0 <= each <= TIMESTAMP_MAX_MS for each in stamps):
            raise ValueError(f"stamps are {stamps}, 0 to {TIMESTAMP_MAX_MS} allowed")
        if self.sent_ms < self.received_ms:
            raise ValueError(f"sent at {self.sent_ms}, before it was received")
        if len(self.clock_id) > CLOCK_ID_CHARS_MAX:
            raise ValueError(f"a clock_id of {len(self.clock_id)} characters")


class Step(NamedTuple):
    """The server's time was set, against the local clock, by `by_us`; `was_known` before."""

    by_us: int
    was_known: bool


@dataclass(slots=True)
class _Source:
    """A server's clock: the bounds of its offset, let out to the instant of the clock's birth.

    So bounds of different ages can be compared: they grow alike.
    """

    low_us: int
    high_us: int
    heard_us: int
    unheard: int = 0  # samples of others since

    def gap_us(self, other: "_Source", grown_us: int) -> int:
        """Return by how much two intervals miss each other, at most 0 where they meet."""
        low_us, high_us = max(self.low_us, other.low_us), min(self.high_us, other.high_us)
        return low_us - high_us - 2 * grown_us

    def far_us(self, other: "_Source", grown_us: int) -> int:
        """Return how far apart the two can be at most."""
        return max(self.high_us - other.low_us, other.high_us - self.low_us) + 2 * grown_us


class ServerClock:
    """The server's time, from the birth of the clock at `local_us` on. For one thread at a time.

    Without any sample it is the local clock itself, off by its drift since its birth.
    """

    def __init__(
        self, local_us: int, *, drift_ppm: int = DRIFT_PPM, apart_us: int = APART_US
    ) -> None:
        if not 0 <= drift_ppm <= DRIFT_PPM_MAX:
            raise ValueError(f"drift_ppm is {drift_ppm}, 0 to {DRIFT_PPM_MAX} allowed")
        self._drift_ppm = drift_ppm
        self._apart_us = apart_us
        self._birth_us = local_us
        self._sources: dict[str, _Source] = {}  # the one heard last stands last
        self._links_us: dict[frozenset[str], int] = {}  # how far apart two sources are at most
        self._hull_us = (0, 0)
        self._noise_us, self._noise_since_us = 0, local_us
        self._is_vague = False
        self.heard_us: int | None = None
        """When the last answer came that told something."""
        self.doubt_us = 0
        """How much what was told before is in doubt, in all: it only grows."""
        self.swapped_us, self.swap_max_us = 0, apart_us
        """The same of servers that are heard no more, and by how far any two can be apart."""
        self.jumped_us = 0
        """The sum of all steps, forwards and backwards."""
        self.skipped_us = 0
        """The same without the first answer: time of the server that nobody here measured."""
        self.epoch = 0
        """How many steps there were, the first answer among them."""

    @property
    def is_known(self) -> bool:
        """Whether a server has been heard."""
        return bool(self._sources)

    def at(self, local_us: int) -> tuple[int, int]:
        """Return the server's time at a local instant, and how far it may be off.

        It is the middle of the interval, or what is safe: never so late that a segment that ends
        then could lie in the server's future.
        """
        low_us, high_us = self._hull_us
        grown_us = self._grown_us(local_us) + _ROUNDED_US
        low_us, high_us = low_us - grown_us, high_us + grown_us
        offset_us = (low_us + high_us) // 2
        if self.is_known:
            offset_us = min(offset_us, low_us + _AHEAD_MAX_US)
        return local_us + offset_us, max(offset_us - low_us, high_us - offset_us)

    def learn(
        self, asked_us: int, answered_us: int, stamps: ServerStamps, *, unsure_us: int = 0
    ) -> Step | None:
        """Take in an answer that was asked for and had at these local instants.

        The time between them may be wrong by `unsure_us`. Returns the step that it showed. What
        can't be (a server that took longer than the exchange, or is in 1970) says nothing.
        """
        assert asked_us <= answered_us
        if not ARRIVES_FROM_MS <= stamps.received_ms <= stamps.sent_ms <= ARRIVES_UNTIL_MS:
            return None
        sample = self._sample(asked_us, answered_us, stamps, unsure_us)
        if sample is None:
            return None
        is_vague = -sample.gap_us(sample, self._grown_us(answered_us)) > VAGUE_US
        if self.is_known and is_vague and not self._is_vague:
            return None
        was_known, was_us = self.is_known, self.at(answered_us)[0]
        step = self._learn(stamps.clock_id, sample, is_vague=is_vague)
        if was_known and step is None and self._is_vague:
            self.jumped_us += self.at(answered_us)[0] - was_us
        self._is_vague, self.heard_us = is_vague, answered_us
        return step

    def _learn(self, clock_id: str, sample: _Source, *, is_vague: bool) -> Step | None:
        answered_us = sample.heard_us
        if not self.is_known:
            return self._step(clock_id, sample)
        self._calm(answered_us)
        known, grown_us = self._sources.get(clock_id), self._grown_us(answered_us)
        last = next(reversed(self._sources.values()))
        gap_us = 0 if known is None else known.gap_us(sample, grown_us)
        if max(gap_us, last.gap_us(sample, grown_us)) > self._apart_us:
            return self._step(clock_id, sample)
        if self._is_vague and not is_vague:
            others = self._sources.keys() - {clock_id}
            self.doubt_us += self._apart_us if others else 0
            self._sources, self._links_us = {}, {}
        if gap_us > 0:
            self._mistrust(gap_us, sample)
        elif known is not None:
            sample.low_us = max(sample.low_us, known.low_us)
            sample.high_us = min(sample.high_us, known.high_us)
        self._sources.pop(clock_id, None)
        for each in self._sources.values():
            each.unheard += 1
        self._sources[clock_id] = sample
        self._link(clock_id, answered_us)
        self._drop_unheard(answered_us)
        self._hull_us = self._hull(answered_us)
        return None

    def loosen(self, by_us: int) -> None:
        """Trust the local clock's past less: it has slept, and may have lost so much."""
        for each in self._sources.values():
            each.low_us -= by_us
            each.high_us += by_us
        low_us, high_us = self._hull_us
        self._hull_us = low_us - by_us, high_us + by_us

    def _grown_us(self, local_us: int) -> int:
        # A clock that is slow by r shows 1 - r of the time in which the server gains r.
        return (local_us - self._birth_us) * self._drift_ppm // (1_000_000 - self._drift_ppm)

    def _sample(
        self, asked_us: int, answered_us: int, stamps: ServerStamps, unsure_us: int
    ) -> _Source | None:
        received_us, sent_us = stamps.received_ms * 1_000, stamps.sent_ms * 1_000
        low_us = floor(sent_us) - answered_us - _resolution_us(stamps.sent_ms)
        high_us = ceil(received_us) - asked_us + _resolution_us(stamps.received_ms)
        sample = _Source(
            low_us + self._grown_us(answered_us), high_us - self._grown_us(asked_us), answered_us
        )
        if sample.gap_us(sample, self._grown_us(answered_us)) > 2 * unsure_us:
            return None
        sample.low_us -= self._noise_us + unsure_us
        sample.high_us += self._noise_us + unsure_us
        return sample

    def _step(self, clock_id: str, sample: _Source) -> Step:
        local_us, was_known = sample.heard_us, self.is_known
        before_us, bound_us = self.at(local_us)
        self._sources, self._links_us = {clock_id: sample}, {}
        self._hull_us = sample.low_us, sample.high_us
        after_us, new_bound_us = self.at(local_us)
        by_us = after_us - before_us
        self.doubt_us += bound_us + new_bound_us
        if was_known:
            self.doubt_us += abs(by_us)
            self.skipped_us += by_us
        self.jumped_us += by_us
        self.epoch += 1
        return Step(by_us, was_known)

    def _mistrust(self, gap_us: int, sample: _Source) -> None:
        self.loosen(gap_us)
        sample.low_us -= gap_us
        sample.high_us += gap_us
        self._noise_us += gap_us
        self._noise_since_us = sample.heard_us
        self.doubt_us += gap_us

    def _calm(self, local_us: int) -> None:
        if local_us - self._noise_since_us > _NOISE_HALVES_US:
            self._noise_us //= 2
            self._noise_since_us = local_us

    def _link(self, clock_id: str, local_us: int) -> None:
        heard, grown_us = self._sources[clock_id], self._grown_us(local_us)
        for other_id, other in self._sources.items():
            if other_id == clock_id:
                continue
            pair = frozenset((clock_id, other_id))
            near_us = max(heard.gap_us(other, grown_us), 0)
            far_us = heard.far_us(other, grown_us)
            known_us = self._links_us.get(pair)
            if known_us is None:
                known_us = far_us
                if grown_us - self._grown_us(other.heard_us) > _COMPARED_US:
                    known_us = min(far_us, self._apart_us)  # an assumption, by now
            self.doubt_us += max(near_us - known_us, 0)  # they move away from each other
            self._links_us[pair] = max(min(known_us, far_us), near_us)

    def _drop_unheard(self, local_us: int) -> None:
        for clock_id, source in list(self._sources.items())[:-1]:
            is_silent = source.unheard >= _UNHEARD_SAMPLES_MAX
            is_old = local_us - source.heard_us > _UNHEARD_MAX_US
            if (is_silent and is_old) or len(self._sources) > _SOURCES_MAX:
                del self._sources[clock_id]
                links_us = [
                    self._links_us.pop(frozenset((clock_id, other)), self._apart_us)
                    for other in self._sources
                ]
                self.swapped_us += min(links_us)  # an order may have started by it
                self.swap_max_us = max(self.swap_max_us, *links_us)

    def _hull(self, local_us: int) -> tuple[int, int]:
        heard_id, heard = next(reversed(self._sources.items()))
        low_us, high_us = heard.low_us, heard.high_us
        for clock_id, each in self._sources.items():
            link_us = self._links_us.get(frozenset((heard_id, clock_id)), 0)
            low_us = min(low_us, max(each.low_us, heard.low_us - link_us))
            high_us = max(high_us, min(each.high_us, heard.high_us + link_us))
        return low_us, high_us


def _resolution_us(stamp_ms: float) -> int:
    """Return how far a stamp may be off by rounding: whole ms are taken to be rounded."""
    return 1_000 if stamp_ms == int(stamp_ms) else 1
