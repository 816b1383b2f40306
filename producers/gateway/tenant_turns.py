"""One after the other, and of each tenant one that waits: what a slow ledger is asked by.

The first in a row of all goes next. Whoever asks much stands in it once, and behind that in a row
of its own, so that everybody else waits for one of its questions at most.
"""

import asyncio
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field


@dataclass(slots=True)
class _Row:
    """One tenant's row, and how many stand in it."""

    count: int = 0
    first: asyncio.Lock = field(default_factory=asyncio.Lock)


class TenantTurns:
    """Belongs to one event loop. A tenant that asks for nothing takes no memory."""

    def __init__(self) -> None:
        self._turn = asyncio.Lock()
        self._rows: dict[Hashable, _Row] = {}

    def __len__(self) -> int:
        """Return how many tenants have a turn, or wait for one."""
        return len(self._rows)

    @asynccontextmanager
    async def turn(self, whose: Hashable) -> AsyncIterator[None]:
        """Wait for a turn, and have it around a block."""
        row = self._rows.setdefault(whose, _Row())
        row.count += 1
        try:
            async with row.first, self._turn:
                yield
        finally:
            row.count -= 1
            if not row.count:
                del self._rows[whose]
