"""The topics that the contract speaks of."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from durabill.schemas.errors import SettingsError

SEGMENTS_TOPIC = "billing.segments"
TOTALS_TOPIC = "billing.totals"
ORDERS_TOPIC = "billing.orders"
DEAD_LETTERS_TOPIC = "billing.dead-letters"
SEAL_TOPIC = "billing.seal-checkpoints"


@dataclass(frozen=True)
class Topics:
    """The names of one deployment's topics; raises SettingsError unless they differ.

    `seal` is "" where nobody asks for the topic of the sealed log's checkpoints, as a worker.
    """

    segments: str
    totals: str
    dead_letters: str
    checkpoint: str
    orders: str = field(kw_only=True)
    seal: str = field(default="", kw_only=True)

    def __post_init__(self) -> None:
        names = self.by_role.values()
        if len(set(names)) < len(names):
            raise SettingsError([f"Each topic needs a name of its own: {', '.join(names)}."])

    @property
    def by_role(self) -> Mapping[str, str]:
        """Return role -> name, `seal` only where somebody asks for it."""
        names = {
            "segments": self.segments,
            "totals": self.totals,
            "orders": self.orders,
            "dead_letters": self.dead_letters,
            "checkpoint": self.checkpoint,
        }
        return {**names, "seal": self.seal} if self.seal else names
