"""What goes wrong in a history, and how often: drawn from its seed, each by its name."""

from dataclasses import dataclass, fields
from random import Random

from msgspec.structs import replace

from durabill.stream_processors.settings import Settings


@dataclass(frozen=True, slots=True)
class Faults:
    """Ratios between 0 and 1. What each is a share of stands beside it."""

    repeat: float = 0.0
    """Records that a client sends again."""
    reorder: float = 0.0
    """Records that overtake others by seconds."""
    delay: float = 0.0
    """Records that come when their order has settled, or may have."""
    drop: float = 0.0
    """Records that are lost on the way; most are sent again by the client, some never."""
    ahead: float = 0.0
    """Records that end long after they come, but not too long."""
    bad: float = 0.0
    """Records that break the contract."""
    misplaced: float = 0.0
    """Records in a wrong partition."""
    aborted: float = 0.0
    """Batches of clients' transactions that are aborted."""
    undecided: float = 0.0
    """Batches of clients' transactions that stay open for seconds."""
    stall: float = 0.0
    """Seconds in which a follower of a partition begins to lag, in the ISR."""
    leader: float = 0.0
    """Seconds in which a partition's leader changes."""
    reborn: float = 0.0
    """Orders whose number is used again after they were forgotten."""
    echo: float = 0.0
    """Empty ends that come again and again, each time with a later time."""
    slow: float = 0.0
    """Answers of brokers that take seconds."""
    outage: float = 0.0
    """Seconds in which no broker answers."""
    gave_up: float = 0.0
    """Transactions that the broker aborts of its own accord."""
    crash: float = 0.0
    """Lives of workers that end at some request, at any of their await points."""
    crash_step: float = 0.0
    """Lives of workers that end at a numbered step of the effect order."""
    freeze: float = 0.0
    """Lives of workers that freeze at some request, mostly for longer than their session."""
    cut_off: float = 0.0
    """Lives of workers that run on, but reach no broker for a while."""
    stop: float = 0.0
    """Lives of workers that end by a graceful stop."""
    night: float = 0.0
    """Long silences in which no worker runs; afterwards the whole log is there at once."""
    worker_clock: float = 0.0
    """Workers whose wall clock jumps, by seconds or hours."""
    broker_clock: float = 0.0
    """Partitions whose append clock jumps, also backwards."""


OPENINGS_SEED = 10**9
"""Openings have dice of their own, so that histories without any are what they were."""

MIXED_UP = 0.1
"""Workers that have the settings of another time, while these change."""

WORST = Faults(
    repeat=0.4,
    reorder=0.4,
    delay=0.3,
    drop=0.3,
    ahead=0.15,
    bad=0.3,
    misplaced=0.4,
    aborted=0.3,
    undecided=0.2,
    stall=0.4,
    leader=0.2,
    reborn=0.6,
    echo=0.3,
    slow=0.1,
    outage=0.15,
    gave_up=0.2,
    crash=0.9,
    crash_step=0.9,
    freeze=0.6,
    cut_off=0.4,
    stop=0.5,
    night=1.0,
    worker_clock=1.0,
    broker_clock=1.0,
)
"""As bad as it gets. A history has about half of the faults, each up to this ratio."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a history is made of; a function of its seed."""

    seed: int
    faults: Faults
    partitions: int
    workers: int
    orders: int
    traffic_s: float
    gap_s: float
    """A long silence in the middle, in which orders are forgotten; 0: none."""
    columns: bool
    """The batch path's table, or the plain one."""
    runs_max: int
    """How much goes into one transaction: with one, every block has a transaction of its own."""
    tick_s: float
    checkpoint_s: float
    settings: Settings
    later: Settings
    """What workers have that begin after `changes_s`; some have them earlier, and some too late."""
    changes_s: float
    hostile: int
    """How many orders are sent by somebody who means harm."""
    opened: float
    """Orders that are opened ahead of their segments, more or less."""

    def settings_at(self, now_s: float, dice: Random) -> Settings:
        """Return what a worker has that begins now."""
        is_late = now_s > self.changes_s
        return self.later if is_late != (dice.random() < MIXED_UP) else self.settings

    def describe(self) -> str:
        """Return it in a line or two."""
        of_faults = {each.name: getattr(self.faults, each.name) for each in fields(Faults)}
        on = ", ".join(f"{name} {ratio:.2f}" for name, ratio in of_faults.items() if ratio)
        policy = self.settings.policy
        return (
            f"seed {self.seed}: {self.workers} workers, {self.partitions} partitions,"
            f" {self.orders} orders, {self.traffic_s:.0f} s + {self.gap_s:.0f} s,"
            f" {'columns' if self.columns else 'plain'}, grace {policy.settle_grace_ms} ms,"
            f" idle {policy.idle_timeout_ms} ms, window {policy.correction_window_ms} ms,"
            f" interim {policy.interim_interval_ms} ms, {self.hostile} hostile orders,"
            f" {self.opened:.1f} opened{', no others' if policy.opened_only else ''}\n"
            f"faults: {on or 'none'}"
        )


def draw_plan(seed: int) -> Plan:
    """Return what the history with this seed is made of."""
    dice = Random(seed)
    ratios = {
        each.name: getattr(WORST, each.name) * dice.choice((0.0, 0.0, 0.3, 1.0))
        for each in fields(Faults)
    }
    partitions = dice.choice((1, 1, 2, 3))
    settings, other = _draw_settings(dice), _draw_settings(dice)
    openers = Random(seed + OPENINGS_SEED)
    opened = openers.choice((0.0, 0.0, 0.5, 1.0))
    if opened:
        settings, other = (_with_openings(each, openers) for each in (settings, other))
    is_changed = dice.random() < 0.4
    return Plan(
        seed=seed,
        faults=Faults(**ratios),
        partitions=partitions,
        workers=dice.choice((1, 1, 2, 3)),
        orders=dice.randint(1, 7),
        traffic_s=dice.choice((6.0, 12.0, 20.0)),
        gap_s=dice.choice((0.0, 0.0, 80.0)),
        columns=dice.random() < 0.4,
        runs_max=dice.choice((1, 1, 2, 6)),
        tick_s=dice.choice((0.3, 0.8, 1.5)),
        checkpoint_s=dice.choice((0.4, 1.0, 3.0)),
        settings=settings,
        later=other if is_changed else settings,
        changes_s=dice.uniform(1.0, 20.0),
        hostile=dice.choice((0, 0, 0, 1, 2)),
        opened=opened,
    )


def _draw_settings(dice: Random) -> Settings:
    return Settings(
        settle_grace_s=dice.choice((0.3, 2.0, 4.0)),
        idle_timeout_s=dice.choice((3.0, 6.0)),
        correction_window_s=dice.choice((4.0, 15.0)),
        interim_interval_s=dice.choice((0.0, 1.0, 2.5, 86_400.0)),
    )


def _with_openings(settings: Settings, dice: Random) -> Settings:
    return replace(settings, opened_only=dice.random() < 0.3)
