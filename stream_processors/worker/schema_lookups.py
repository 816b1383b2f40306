"""Looks up the schemas of registry ids in the background, however long that takes.

A partition with an undecided id is held until the id is decided. A registry that doesn't answer
holds it for as long as that lasts. A registry that answers "no such id" may lag behind the one that
issued the id, so it is asked again for a while before its answer counts. Anybody can write an id
that doesn't exist, so that patience is a budget: nobody can hold a partition for long.
"""

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import Future

from durabill.stream_processors.worker.clock import elapsed_s
from durabill.stream_processors.worker.registry import NoAnswer, Registry

log = logging.getLogger("durabill.worker")

Ask = Callable[[int], Awaitable[str | None]]
"""Returns the schema of an id, None if there is none; raises NoAnswer."""

PATIENCE_S = 10.0
"""How long "no such id" is doubted, in total, within PATIENCE_PERIOD_S."""

PATIENCE_PERIOD_S = 60.0
UNKNOWN_FOR_S = 2.0
"""How long an accepted "no such id" is kept, so that the next chunk doesn't ask again."""

ASK_AGAIN_S = 0.5
RETRY_S_MAX = 10.0
ASKED_AT_ONCE_MAX = 1000
"""How many ids of one chunk are asked for; all further ones count as unknown."""

ASKED_BESIDE_MAX = 2
"""Questions to the registry that are waited for at once."""


class SchemaLookups:
    """Decides registry ids for one worker."""

    def __init__(
        self,
        ask: Ask,
        clock_s: Callable[[], float] = elapsed_s,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._ask = ask
        self._clock_s = clock_s
        self._sleep = sleep
        self._unknown: dict[int, float] = {}
        self._patience_s = PATIENCE_S
        self._refilled_s = clock_s()

    async def decide(
        self, ids: Iterable[int], tell: Callable[[str], None]
    ) -> dict[int, str | None]:
        """Return the schema of each id, None where there is none; `tell` is told why it waits."""
        wanted = list(ids)
        found: dict[int, str | None] = dict.fromkeys(wanted[ASKED_AT_ONCE_MAX:])
        doubtful = []
        for each in wanted[:ASKED_AT_ONCE_MAX]:
            asked_s = self._unknown.get(each)
            if asked_s is not None and self._clock_s() < asked_s + UNKNOWN_FOR_S:
                found[each] = None
                continue
            found[each] = await self._insist(each, tell)
            if found[each] is None:
                doubtful.append(each)
        await self._doubt(doubtful, found, tell)
        return found

    async def _doubt(
        self, doubtful: list[int], found: dict[int, str | None], tell: Callable[[str], None]
    ) -> None:
        """Ask again for ids that the registry didn't know, as long as there is patience left."""
        began_s = self._clock_s()
        refill_s = (began_s - self._refilled_s) * PATIENCE_S / PATIENCE_PERIOD_S
        patience_s = self._patience_s = min(PATIENCE_S, self._patience_s + refill_s)
        self._refilled_s = began_s
        while doubtful and self._clock_s() + ASK_AGAIN_S - began_s <= patience_s:
            tell(f"the schema registry doesn't know id {doubtful[0]}; perhaps it lags")
            await self._sleep(ASK_AGAIN_S)
            for each in doubtful:
                found[each] = await self._insist(each, tell)
            doubtful = [each for each in doubtful if found[each] is None]
        self._patience_s = max(0.0, patience_s - (self._clock_s() - began_s))
        if len(self._unknown) > ASKED_AT_ONCE_MAX:
            self._unknown.clear()
        self._unknown |= dict.fromkeys(doubtful, self._clock_s())

    async def _insist(self, schema_id: int, tell: Callable[[str], None]) -> str | None:
        """Ask until there is an answer."""
        pause_s = ASK_AGAIN_S
        while True:
            try:
                return await self._ask(schema_id)
            except NoAnswer as error:
                tell(f"the schema registry doesn't say what id {schema_id} is: {error}")
                await self._sleep(pause_s)
                pause_s = min(2 * pause_s, RETRY_S_MAX)


def ask_beside(registry: Registry) -> Ask:
    """Return a function that asks a registry in its own threads: a slow one blocks no others.

    Nobody waits for them when the process ends, or one that never answers would hold it up.
    """
    places = asyncio.Semaphore(ASKED_BESIDE_MAX)

    async def ask(schema_id: int) -> str | None:
        asked: Future[str | None] = Future()
        asked.set_running_or_notify_cancel()  # from now on nobody can cancel it

        def run() -> None:
            try:
                asked.set_result(registry.ask(schema_id))
            except Exception as error:
                asked.set_exception(error)

        async with places:
            threading.Thread(target=run, name="schema-registry", daemon=True).start()
            return await asyncio.wrap_future(asked)

    return ask


async def no_registry(schema_id: int) -> str | None:
    """Raise NoAnswer: the recorded terms need a registry, and the settings name none."""
    raise NoAnswer(
        "DURABILL_SCHEMA_REGISTRY_URL is not set, but so far records were judged with a registry"
    )
