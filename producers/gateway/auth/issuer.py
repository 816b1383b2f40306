"""Where an issuer's public keys come from: its JWK set at a URL, or in a file.

Theory: the set is fetched at the start and every few minutes, so a key that was taken out of it is
gone here soon. A token that names a key we don't know may be signed with a new one, so the set is
fetched for it; but anybody can name keys that don't exist. So one fetch runs at a time, however
many wait for it, and none begins sooner than some seconds after the one before, whoever asks. That
starves nobody: each fetch brings all keys, so an attacker's fetch serves everybody else. Where the
issuer can't be reached, or says what is no set, the keys that were there before go on.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import aiohttp

from durabill.producers.gateway.auth.issuer_keys import (
    SET_BYTES_MAX,
    BadKeySet,
    IssuerKeys,
    read_key_set,
)
from durabill.producers.gateway.auth.watched_file import TOLD_AGAIN_S, UnsafeFile, WatchedFile

log = logging.getLogger(__name__)

REFRESH_S = 300.0
REFETCH_PAUSE_S = 10.0
"""Between the beginnings of two fetches, whoever they are for."""
FETCH_TIMEOUT_S = 5.0
_CHUNK_BYTES = 64 * 1024


class IssuerAway(Exception):
    """No key of the issuer is known yet, and it can't be asked now."""


class KeySource(Protocol):
    """Gives an issuer's keys. `generation` changes with them."""

    generation: int

    async def keys(self) -> IssuerKeys:
        """Return the keys as they are known; raise IssuerAway while none are."""

    async def newer_keys(self, than: int) -> IssuerKeys | None:
        """Return keys of a later generation, after having asked for them if that is allowed now.

        None where there are none.
        """

    async def watch(self) -> None:
        """Keep them up to date until cancelled."""

    async def close(self) -> None:
        """Let go of what it holds."""


class KeyFile:
    """The keys in a file, which is read again when it changes. Raises BadKeySet at the start."""

    def __init__(self, path: Path) -> None:
        self.generation = 1
        try:
            self._file = WatchedFile(
                path,
                "the issuer's JWK set",
                read_key_set,
                bytes_max=SET_BYTES_MAX,
                on_change=self._changed,
            )
        except (OSError, BadKeySet, UnsafeFile) as error:
            why = (error.strerror if isinstance(error, OSError) else None) or str(error)
            raise BadKeySet(f"DURABILL_JWKS_FILE={path} can't be used: {why}") from error

    async def keys(self) -> IssuerKeys:
        """Return what the file says."""
        return self._file.content

    async def newer_keys(self, than: int) -> IssuerKeys | None:
        """Return what the file says by now, if that is another set: it is looked at often."""
        return self._file.content if self.generation != than else None

    async def watch(self) -> None:
        """Look at the file again and again, until cancelled."""
        await self._file.watch()

    async def close(self) -> None:
        """Hold nothing."""

    def _changed(self, _: IssuerKeys) -> None:
        self.generation += 1


class KeyUrl:
    """The keys at a URL. Belongs to one event loop. `clock_s` is one that never steps back."""

    def __init__(
        self,
        url: str,
        *,
        refresh_s: float = REFRESH_S,
        pause_s: float = REFETCH_PAUSE_S,
        timeout_s: float = FETCH_TIMEOUT_S,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._url = url
        self._refresh_s, self._pause_s, self._timeout_s = refresh_s, pause_s, timeout_s
        self._clock_s = clock_s
        self._http: aiohttp.ClientSession | None = None
        self._known: IssuerKeys | None = None
        self._data = b""
        self._began_s = float("-inf")
        self._running: asyncio.Task[None] | None = None
        self._told_s = float("-inf")
        self.generation = 0
        self.fetches = 0

    async def keys(self) -> IssuerKeys:
        """Return the keys as they are known, waiting for the very first fetch."""
        if self._known is None:
            await self._fetched()
        if self._known is None:
            raise IssuerAway("the issuer of tokens can't be reached")
        return self._known

    async def newer_keys(self, than: int) -> IssuerKeys | None:
        """Return keys of a later generation; asks the issuer if the last time is long enough ago.

        Whoever comes while a fetch runs waits for that one.
        """
        if self.generation == than:
            await self._fetched()
        return self._known if self.generation != than else None

    async def watch(self) -> None:
        """Fetch at once and again and again, until cancelled."""
        while True:
            await self._fetched()
            pause_s = self._refresh_s if self._known is not None else self._pause_s
            await asyncio.sleep(pause_s)

    async def close(self) -> None:
        """End what is under way, and close the connections."""
        if self._running is not None:
            self._running.cancel()
            await asyncio.gather(self._running, return_exceptions=True)
        if self._http is not None:
            await self._http.close()

    async def _fetched(self) -> None:
        """Return after the fetch that runs, or after one that is begun now, if that is allowed."""
        if self._running is None or self._running.done():
            now_s = self._clock_s()
            if now_s - self._began_s < self._pause_s:
                return
            self._began_s = now_s
            self._running = asyncio.create_task(self._fetch())
        # One who goes away, or is cancelled, doesn't end the fetch that others wait for.
        await asyncio.shield(self._running)

    async def _fetch(self) -> None:
        self.fetches += 1
        try:
            data = await self._get()
            if data != self._data:
                self._known = await asyncio.to_thread(read_key_set, data)
                self._data = data
                self.generation += 1
                log.info("the issuer's keys at %s have been read", self._url)
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError, BadKeySet) as error:
            self._tell(error)

    async def _get(self) -> bytes:
        if self._http is None:
            # Redirects aren't followed, and proxies of the environment aren't used: the URL is it.
            timeout = aiohttp.ClientTimeout(total=self._timeout_s)
            self._http = aiohttp.ClientSession(
                timeout=timeout,
                auto_decompress=False,
                cookie_jar=aiohttp.DummyCookieJar(),  # nothing that it says is kept but keys
            )
        headers = {
            "accept": "application/jwk-set+json, application/json",
            "accept-encoding": "identity",  # nothing is unpacked
        }
        async with self._http.get(self._url, headers=headers, allow_redirects=False) as response:
            if response.status != 200:
                raise ValueError(f"status {response.status}")
            body = bytearray()
            async for chunk in response.content.iter_chunked(_CHUNK_BYTES):
                body += chunk
                if len(body) > SET_BYTES_MAX:
                    raise ValueError(f"it says more than {SET_BYTES_MAX} bytes")
        return bytes(body)

    def _tell(self, error: Exception) -> None:
        now_s = self._clock_s()
        if now_s - self._told_s >= TOLD_AGAIN_S:
            self._told_s = now_s
            goes_on = "none are known yet" if self._known is None else "those known go on"
            why = str(error) or type(error).__name__
            log.error("the issuer's keys can't be had at %s: %s; %s", self._url, why, goes_on)
