"""What clients send in a history: orders' segments, and all that goes wrong on their way."""

from dataclasses import dataclass, replace
from random import Random

from durabill.schemas import SEGMENT_HEADER, OrderOpened, encode_opening, partition_for
from durabill.schemas.headers import FORWARDED_FROM
from durabill.schemas.wire import zigzag
from tests.property.batches import Entry
from tests.sim.faults import OPENINGS_SEED, Plan

BASE_MS = 1_700_000_000_000
"""The wall clock as a history begins."""

OPEN_S_MAX = 7.0
GRAIN_MS = 100
"""All clocks move in steps of this, so that deadlines are met to the millisecond."""


@dataclass(frozen=True, slots=True)
class Sending:
    """A record batch as it reaches the broker."""

    at_s: float
    partition: int
    entries: tuple[Entry, ...]
    aborted: bool = False
    open_s: float | None = None
    """For how long it belongs to an open transaction; None: to none."""


@dataclass(frozen=True, slots=True)
class Packet:
    """One record on its way."""

    at_s: float
    partition: int
    entry: Entry


@dataclass(frozen=True, slots=True)
class Segment:
    """What a client reports, right or wrong."""

    number: str
    business_data_number: int
    start_ms: int
    end_ms: int
    end: bool

    def encode(self) -> bytes:
        """Return it as a record's value."""
        name = self.number.encode()
        longs = (self.business_data_number, self.start_ms, self.end_ms)
        body = zigzag(len(name)) + name + b"".join(map(zigzag, longs))
        return SEGMENT_HEADER + body + bytes([self.end])


HARMS = ("islands", "numbers", "flood", "repeats", "far end", "forged")
BAD_KINDS = (
    "null", "garbage", "schema", "cut", "key", "no key", "number", "times", "future", "long", "late"
)  # fmt: skip


class Clients:
    """All producers of a history."""

    def __init__(self, plan: Plan, dice: Random) -> None:
        self._plan = plan
        self._faults = plan.faults
        self._dice = dice
        self._packets: list[Packet] = []
        self._openers = Random(plan.seed + OPENINGS_SEED)

    def sendings(self) -> list[Sending]:
        """Return everything that reaches the brokers, in its order."""
        plan, dice = self._plan, self._dice
        for order in range(plan.orders):
            number = f"SO-{order}" if order % 4 < 3 else f"too-long-for-a-row-{order:040}"
            after_gap = plan.gap_s > 0 and dice.random() < 0.4
            if self._openers.random() < plan.opened:
                self._open(number)
            self._live(number, plan.gap_s if after_gap else 0.0)
            if plan.gap_s and not after_gap and dice.random() < self._faults.reborn:
                self._live(number, plan.gap_s)
        for order in range(plan.hostile):
            self._packets += hostile_packets(plan, Random(plan.seed * 10 + order), order)
        return self._batches()

    def _open(self, number: str) -> None:
        """Send openings of an order: ahead of its segments, or in their midst, or once more."""
        openers, half_s = self._openers, self._plan.traffic_s / 2
        client = "a"
        at_s = openers.choice((0.0, 0.0, 0.0, openers.uniform(0.0, half_s)))
        for _ in range(openers.choice((1, 1, 2, 3))):
            begin_ms = _ms(at_s) + openers.choice((-10_000, 0, 0, 400, 70_000))
            until_ms = max(begin_ms, _ms(at_s) + openers.choice((0, 300, 6_000, 20_000, 90_000)))
            opened = OrderOpened(number, "t", client, "", (), begin_ms, 10_000, until_ms)
            entry = (number.encode(), encode_opening(opened), ())
            partition = partition_for(entry[0], self._plan.partitions)
            if openers.random() < self._faults.misplaced:
                partition = openers.randrange(self._plan.partitions)
            self._packets.append(Packet(at_s, partition, entry))
            at_s += openers.choice((0.1, 1.0, half_s, self._plan.gap_s))
            client = openers.choice(("a", "a", "b"))

    def _live(self, number: str, gap_s: float) -> None:
        """Send the segments of an order."""
        dice, faults = self._dice, self._faults
        half_s = self._plan.traffic_s / 2
        start_s = round(dice.uniform(0, half_s) + (half_s + gap_s if gap_s else 0), 1)
        last, has_end = dice.randint(1, 6), dice.random() < 0.85
        at_s = start_s
        for each in range(1, last + 1):
            end = has_end and each == last
            length_s = dice.choice((0.1, 0.5, 1.0)) if not (end and dice.random() < 0.3) else 0.0
            early_s = dice.choice((0.0, 0.0, 0.0, 0.2)) if each > 1 else 0.0
            # A client may be ahead of the server; so far that it still has to be believed.
            ahead_s = 50.0 if dice.random() < faults.ahead else 0.0
            start_ms, end_ms = _ms(at_s - early_s), _ms(at_s + length_s + ahead_s)
            event = Segment(number, each, start_ms, end_ms, end)
            at_s += length_s + dice.choice((0.0, 0.0, 0.1, 0.8))
            self._send(at_s, event)
            if dice.random() < faults.bad:
                self._add(at_s, self._bad(event, at_s))
        if has_end and self._plan.gap_s and dice.random() < faults.echo:
            self._echo(number, last, at_s)

    def _send(self, at_s: float, event: Segment) -> None:
        dice, faults = self._dice, self._faults
        if dice.random() < faults.drop:
            if dice.random() < 0.25:
                return
            at_s += dice.uniform(0.3, 3.0)
        if dice.random() < faults.reorder:
            at_s += dice.uniform(0.2, 2.5)
        if dice.random() < faults.delay:
            at_s += dice.choice((2.0, 4.0, 6.0, 9.0, 14.0))
        entry = (event.number.encode(), event.encode(), _headers(dice))
        self._add(at_s, entry)
        while dice.random() < faults.repeat:
            later_s = dice.choice((0.0, 0.1, 1.0, 3.0, 8.0, 15.0, self._plan.gap_s))
            self._add(at_s + later_s, entry)

    def _echo(self, number: str, last: int, at_s: float) -> None:
        """Send the end again, empty and later: no evidence, but while it may come it is known."""
        dice = self._dice
        later_s = at_s + dice.uniform(20.0, 60.0)
        end_ms = _ms(later_s + 50.0)
        value = Segment(number, last, end_ms, end_ms, True).encode()
        for _ in range(dice.randint(1, 3)):
            self._add(later_s, (number.encode(), value, ()))
            later_s += dice.uniform(5.0, 25.0)

    def _add(self, at_s: float, entry: Entry) -> None:
        dice, partitions = self._dice, self._plan.partitions
        partition = partition_for(entry[0] or b"", partitions)
        if dice.random() < self._faults.misplaced:
            partition = dice.randrange(partitions)
        self._packets.append(Packet(at_s + dice.uniform(0.0, 0.05), partition, entry))

    def _bad(self, event: Segment, at_s: float) -> Entry:
        """Return a record that breaks the contract."""
        dice = self._dice
        kind = dice.choice(BAD_KINDS)
        key = event.number.encode()
        good = event.encode()
        start_ms, end_ms = event.start_ms, event.end_ms
        if kind == "future":
            start_ms = end_ms = _ms(at_s) + 75_000
        elif kind == "late":
            end_ms = _ms(at_s) - 90_000
            start_ms = end_ms - 10
        elif kind == "long":
            start_ms = end_ms - 86_400_001
        elif kind == "times":
            start_ms, end_ms = end_ms + 1, start_ms
        number = 0 if kind == "number" else event.business_data_number
        odd = Segment(event.number, number, start_ms, end_ms, True)
        values: dict[str, bytes | None] = {
            "null": None,
            "garbage": dice.randbytes(dice.randint(0, 30)),
            "schema": good[:2] + b"\0" * 8 + good[10:],
            "cut": good[:-2],
            "key": good,
            "no key": good,
        }
        value = values[kind] if kind in values else odd.encode()
        keys: dict[str, bytes | None] = {"key": b"another", "no key": None}
        return keys.get(kind, key), value, ()

    def _open_s(self) -> float:
        """Draw for how long a transaction is open."""
        if self._dice.random() < self._faults.undecided:
            return self._dice.choice((1.0, 3.0, OPEN_S_MAX))
        return self._dice.uniform(0.0, 0.05)

    def _batches(self) -> list[Sending]:
        """Cut the records into batches, as they happen to come together."""
        dice, faults = self._dice, self._faults
        sendings: list[Sending] = []
        waiting: dict[int, list[Packet]] = {}
        for packet in sorted(self._packets, key=lambda each: each.at_s):
            batch = waiting.setdefault(packet.partition, [])
            batch.append(packet)
            if dice.random() < 0.7:
                del waiting[packet.partition]
                sendings.append(_sending(batch))
                if dice.random() < faults.aborted:
                    open_s = self._open_s()
                    sendings[-1] = replace(_sending(batch), aborted=True, open_s=open_s)
                    later_s = open_s + dice.uniform(0.1, 1.0)
                    sendings.append(_sending(batch, later_s=later_s))
                elif dice.random() < faults.undecided:
                    sendings[-1] = replace(sendings[-1], open_s=self._open_s())
        sendings += [_sending(batch) for batch in waiting.values()]
        return sorted(sendings, key=lambda each: each.at_s)


def hostile_packets(plan: Plan, dice: Random, order: int) -> list[Packet]:
    """Return what somebody sends of an order who means harm."""
    number = f"harm-{order}"
    at_s, count = round(dice.uniform(0.0, plan.traffic_s / 2), 1), dice.randint(10, 16)
    places = list(range(count))
    dice.choice((places.sort, places.reverse, lambda: dice.shuffle(places)))()

    def piece(place: int, number_in: int = 1, end: bool = False) -> Segment:
        start_ms = _ms(at_s) + 20 * place
        return Segment(number, number_in, start_ms, start_ms + 10, end)

    def soon() -> float:
        return at_s + 0.3 + dice.uniform(0.0, 2.0)

    harm = dice.choice(HARMS)
    sent: list[tuple[float, Segment]] = [(at_s + 0.2, piece(0, 1, harm == "flood"))]
    if harm == "islands":
        sent += [(at_s + 0.3 + 0.05 * at, piece(place)) for at, place in enumerate(places)]
    elif harm == "numbers":
        sent += [(soon(), piece(0, 2 * place + 1, dice.random() < 0.1)) for place in places]
    elif harm == "flood":
        bursts = sorted(dice.uniform(0.4, 3.5) for _ in range(3))
        sent += [(at_s + dice.choice(bursts), piece(place)) for place in places]
    elif harm == "repeats":
        sent += [(at_s + 0.4 * place, piece(0)) for place in range(20)]
    elif harm == "far end":
        sent += [(soon(), piece(place, 2**62 + place, True)) for place in (0, 2, 5)]
    else:
        sent += [(soon(), piece(place, 1 + place // 2)) for place in places]
    headers = ((FORWARDED_FROM, b"999/%d" % order),) if harm == "forged" else ()
    key = number.encode()
    partition = partition_for(key, plan.partitions)
    return [Packet(at_s, partition, (key, each.encode(), headers)) for at_s, each in sent]


def _sending(batch: list[Packet], *, later_s: float = 0.0) -> Sending:
    entries = tuple(each.entry for each in batch)
    return Sending(batch[-1].at_s + later_s, batch[0].partition, entries)


def _ms(at_s: float) -> int:
    return BASE_MS + round(at_s * 1000)


def _headers(dice: Random) -> tuple[tuple[str, bytes | None], ...]:
    return (("trace", b"x"), ("null", None)) if dice.random() < 0.1 else ()
