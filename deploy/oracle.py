"""What the fleet's oracle is told of our settings: it shares no code with the engine."""

from durabill.producers.fleet.truth_order import Policy
from durabill.stream_processors.settings import Settings


def truth_policy(settings: Settings) -> Policy:
    """Return the settlement policy as the fleet's own oracle takes it."""
    return Policy(
        settle_grace_ms=settings.policy.settle_grace_ms,
        idle_timeout_ms=settings.policy.idle_timeout_ms,
        correction_window_ms=settings.policy.correction_window_ms,
        interim_interval_ms=settings.policy.interim_interval_ms,
        opened_only=settings.policy.opened_only,
    )
