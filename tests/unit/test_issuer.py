"""Where an issuer's keys come from: one fetch at a time, few of them, and none taken away."""

import asyncio
import http.server
import logging
import os
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from durabill.producers.gateway.auth.issuer import (
    REFETCH_PAUSE_S,
    IssuerAway,
    KeyFile,
    KeyUrl,
)
from durabill.producers.gateway.auth.issuer_keys import SET_BYTES_MAX, BadKeySet
from tests.broker.gateway_kit import answer, serving
from tests.unit.issuer_kit import Issuer
from tests.waiting import HANG_S

FIRST, SECOND = Issuer(kid="k1"), Issuer(kid="k2")


class Site:
    """A stand-in for an issuer's web server: says `body` with `status` to whoever asks."""

    def __init__(self) -> None:
        self.status, self.body = 200, FIRST.key_set()
        self.headers: dict[str, str] = {}
        self.asked = 0
        self.may_answer = threading.Event()
        self.may_answer.set()

    @contextmanager
    def served(self) -> Iterator[str]:
        site = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                site.asked += 1
                site.may_answer.wait(HANG_S)
                answer(self, site.status, site.body, "application/jwk-set+json", **site.headers)

            def log_message(self, format: str, *args: object) -> None:
                """Say nothing."""

        with serving(Handler) as url:
            yield url


class Clock:
    def __init__(self) -> None:
        self.now_s = 1_000.0

    def __call__(self) -> float:
        return self.now_s


def asked(url: str, ask: Callable[[KeyUrl, Clock], Awaitable[None]], **options: Any) -> None:
    """Run `ask` with keys at a URL, whose clock stands still until it is moved."""
    clock = Clock()

    async def run() -> None:
        source = KeyUrl(url, clock_s=clock, **options)
        try:
            await ask(source, clock)
        finally:
            await source.close()

    asyncio.run(run())


def test_an_unknown_key_is_asked_for_once_however_many_wait() -> None:
    site = Site()

    async def ask(source: KeyUrl, clock: Clock) -> None:
        keys = await source.keys()
        assert (keys.find("k2", "ES256"), site.asked) == (None, 1)
        site.body = SECOND.key_set()
        clock.now_s += REFETCH_PAUSE_S
        site.may_answer.clear()
        waiting = [asyncio.ensure_future(source.newer_keys(source.generation)) for _ in range(50)]
        while site.asked < 2:
            await asyncio.sleep(0.01)
        waiting[0].cancel()  # one who goes away doesn't end it for the others
        site.may_answer.set()
        found = await asyncio.gather(*waiting[1:])
        assert all(each is not None and each.find("k2", "ES256") for each in found)
        assert site.asked == 2

    with site.served() as url:
        asked(url, ask)


def test_fetches_are_few_whoever_they_are_for() -> None:
    """An attacker's unknown keys bring one fetch a pause, and that one brings all keys."""
    site = Site()

    async def ask(source: KeyUrl, clock: Clock) -> None:
        await source.keys()
        for at in range(100):
            assert await source.newer_keys(source.generation) is None
            clock.now_s += REFETCH_PAUSE_S / 10 if at < 99 else 0
        assert site.asked <= 1 + 10
        site.body = SECOND.key_set()
        clock.now_s += REFETCH_PAUSE_S
        before = source.generation
        assert await source.newer_keys(before) is not None
        assert (await source.keys()).find("k2", "ES256") is not None
        assert (await source.keys()).find("k1", "ES256") is None  # it was taken out of the set
        # Who saw the old keys has the new ones without another fetch.
        count = site.asked
        assert await source.newer_keys(before) is not None
        assert site.asked == count

    with site.served() as url:
        asked(url, ask)


@pytest.mark.parametrize(
    ("status", "body", "why"),
    [
        (500, b"", "status 500"),
        (404, b"", "status 404"),
        (200, b"<html>Log in</html>", "no JWK set"),
        (200, b'{"keys": []}', "no key"),
        (200, b" " * (SET_BYTES_MAX + 1), "more than"),
        (302, b"", "status 302"),
    ],
)
def test_keys_go_on_while_the_issuer_is_of_no_use(
    status: int, body: bytes, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    site = Site()

    async def ask(source: KeyUrl, clock: Clock) -> None:
        generation = (await source.keys(), source.generation)[1]
        site.status, site.body = status, body
        site.headers = {"location": "/elsewhere"}
        for _ in range(5):
            clock.now_s += REFETCH_PAUSE_S
            assert await source.newer_keys(generation) is None
        assert (await source.keys()).find("k1", "ES256") is not None
        site.status, site.body = 200, SECOND.key_set()
        clock.now_s += REFETCH_PAUSE_S
        assert await source.newer_keys(generation) is not None

    with site.served() as url, caplog.at_level(logging.ERROR):
        asked(url, ask)
    assert len(caplog.messages) == 1  # and not one a fetch
    assert why in caplog.messages[0]
    assert "those known go on" in caplog.messages[0]


def test_nobody_is_let_in_before_there_are_keys(caplog: pytest.LogCaptureFixture) -> None:
    async def ask(source: KeyUrl, clock: Clock) -> None:
        for _ in range(3):
            with pytest.raises(IssuerAway):
                await source.keys()
        assert source.fetches == 1
        clock.now_s += REFETCH_PAUSE_S
        with pytest.raises(IssuerAway):
            await source.keys()
        assert source.fetches == 2

    asked("http://127.0.0.1:9/jwks.json", ask)
    assert "none are known yet" in caplog.text


def test_an_issuer_that_says_nothing_is_waited_for_briefly() -> None:
    site = Site()
    site.may_answer.clear()

    async def ask(source: KeyUrl, _: Clock) -> None:
        turns = 0

        async def turn() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        beside = asyncio.ensure_future(turn())
        with pytest.raises(IssuerAway):
            await source.keys()
        beside.cancel()
        assert turns > 10  # nobody else waited
        site.may_answer.set()

    with site.served() as url:
        asked(url, ask, timeout_s=0.2)


def test_keys_are_fetched_again_and_again() -> None:
    site = Site()

    async def ask(source: KeyUrl, clock: Clock) -> None:
        watching = asyncio.ensure_future(source.watch())
        for count in (1, 2, 3):
            while source.fetches < count:
                clock.now_s += REFETCH_PAUSE_S
                await asyncio.sleep(0.01)
        watching.cancel()

    with site.served() as url:
        asked(url, ask, refresh_s=0.01)


def test_keys_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "jwks.json"
    with pytest.raises(BadKeySet, match="DURABILL_JWKS_FILE"):
        KeyFile(path)
    path.write_bytes(b"{}")
    with pytest.raises(BadKeySet, match="no JWK set"):
        KeyFile(path)
    path.write_bytes(FIRST.key_set())
    path.chmod(0o644)  # public keys may be read by everybody

    async def follow() -> None:
        source = KeyFile(path)
        generation = source.generation
        assert (await source.keys()).find("k1", "ES256") is not None
        assert await source.newer_keys(generation) is None
        (tmp_path / "new").write_bytes(SECOND.key_set())
        os.replace(tmp_path / "new", path)
        await source._file.look()
        newer = await source.newer_keys(generation)
        assert newer is not None
        assert newer.find("k2", "ES256") is not None
        await source.close()

    asyncio.run(follow())
