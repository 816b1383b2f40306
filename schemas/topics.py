"""The topics that the contract speaks of."""

from collections.abc import Mapping
from dataclasses import dataclass

from durabill.schemas.errors import SettingsError

SEGMENTS_TOPIC = "billing.segments"
TOTALS_TOPIC = "billing.totals"
DEAD_LETTERS_TOPIC = "billing.dead-letters"


@dataclass(frozen=True)
class Topics:
    """The names of one deployment's topics; raises SettingsError unless they differ."""

    segments: str
    totals: str
    dead_letters: str
    checkpoint: str

    def __post_init__(self) -> None:
        names = self.by_role.values()
        if len(set(names)) < len(names):
            raise SettingsError([f"Each topic needs a name of its own: {', '.join(names)}."])

    @property
    def by_role(self) -> Mapping[str, str]:
        """Return role -> name: `segments`, `totals`, `dead_letters`, `checkpoint`."""
        return {
            "segments": self.segments,
            "totals": self.totals,
            "dead_letters": self.dead_letters,
            "checkpoint": self.checkpoint,
        }
