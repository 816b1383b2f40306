"""Rate limits: the generic cell rate algorithm, one number a key. Pure.

Theory: a key may take `quota` at once, and gets one back each `window_ns / quota`. All that is kept
is when the key would have its whole quota back (the theoretical arrival time of ATM's policer). It
is moved on by each thing taken, and nothing is taken that would move it further than a whole window
ahead. That is a bucket of `quota` tokens, refilled evenly, without a timer.

Limits are those of one process: gateways don't share them.
"""

from dataclasses import dataclass
from typing import NamedTuple

NS_PER_S = 1_000_000_000
KEYS_MAX = 100_000


class Taken(NamedTuple):
    """Whether it was allowed, what is left, when all is back, and when the next may be taken."""

    is_allowed: bool
    remaining: int
    reset_ns: int
    retry_ns: int

    @property
    def retry_after_s(self) -> int:
        """Return whole seconds after which it is worth trying again, 1 at least."""
        return max(1, -(-self.retry_ns // NS_PER_S))


@dataclass(frozen=True, slots=True)
class Policy:
    """So many in so long a time. Raises ValueError for what is no limit."""

    quota: int
    window_ns: int

    def __post_init__(self) -> None:
        if not 1 <= self.quota <= self.window_ns:
            raise ValueError(f"{self.quota} in {self.window_ns} ns is no rate limit")

    @property
    def interval_ns(self) -> int:
        """After which a key gets one back."""
        return self.window_ns // self.quota


class Gcra:
    """The limits of all keys under one policy. `now_ns` is a clock's that never steps back.

    It remembers `keys_max` keys; beyond that it forgets whoever has asked longest ago.
    """

    def __init__(self, policy: Policy, keys_max: int = KEYS_MAX) -> None:
        self.policy = policy
        self._interval_ns = policy.interval_ns
        self._burst_ns = policy.interval_ns * policy.quota
        self._keys_max = keys_max
        self._full_at_ns: dict[str, int] = {}  # in the sequence in which they asked last

    def __len__(self) -> int:
        return len(self._full_at_ns)

    def take(self, key: str, now_ns: int, count: int = 1) -> Taken:
        """Take so many of a key's quota, all or none."""
        return self._taken(key, now_ns, count, is_kept=True)

    def look(self, key: str, now_ns: int, count: int = 1) -> Taken:
        """Return what `take` would, and take nothing."""
        return self._taken(key, now_ns, count, is_kept=False)

    def _taken(self, key: str, now_ns: int, count: int, *, is_kept: bool) -> Taken:
        before_ns = max(self._full_at_ns.get(key, 0), now_ns)
        full_at_ns = before_ns + count * self._interval_ns
        over_ns = full_at_ns - now_ns - self._burst_ns
        if over_ns > 0:
            full_at_ns = before_ns
        elif is_kept:
            self._full_at_ns.pop(key, None)
            self._full_at_ns[key] = full_at_ns
            if len(self._full_at_ns) > self._keys_max:
                del self._full_at_ns[next(iter(self._full_at_ns))]
        reset_ns = full_at_ns - now_ns
        remaining = (self._burst_ns - reset_ns) // self._interval_ns
        return Taken(over_ns <= 0, remaining, reset_ns, max(0, over_ns))
