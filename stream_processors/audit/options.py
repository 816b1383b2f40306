"""What can be asked of an audit."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from durabill.stream_processors.audit.replay import Engine


@dataclass(frozen=True, slots=True)
class AuditOptions:
    """What is asked for; nothing given: everything there is."""

    order: str = ""
    partitions: tuple[int, ...] = ()
    from_ms: int | None = None
    to_ms: int | None = None
    as_of_ms: int | None = None
    """Replay no further than to what was appended before."""
    as_of_offsets: Mapping[int, int] = field(default_factory=dict)
    """Partition -> the offset to replay no further than to."""
    as_of: str = ""
    """The same as it was given."""
    engine: Engine = Engine.COLUMNS
    processes: int | None = None
    """None: one a core, where that is worth it."""
    with_ledger: bool = True
    with_archive: bool = True
    from_archive: bool = False
    """Read from the archive what both have."""
    archive_key: str = ""
    archive_trusted: Path | None = None
    seal_key: str = ""
    trusted: tuple[Path, ...] = ()
    """Checkpoints of the sealed log, or receipts, that somebody kept."""
