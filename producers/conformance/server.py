"""Plays the gateway over HTTP on the loopback, until the client is done or it is told to stop."""

import asyncio
import os
import signal
import threading
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from email.utils import formatdate
from pathlib import Path
from random import Random

from aiohttp import web

from durabill.producers.conformance.answers import Answer, Cut, problem
from durabill.producers.conformance.exchange import Exchange, Log
from durabill.producers.conformance.features import FEATURES, Matrix, faults_for, judged
from durabill.producers.conformance.player import Player, Rules
from durabill.producers.conformance.script import Script

BEHIND_MS = 37 * 60_000
"""So far the played server is behind this machine: who takes his own clock for it is seen."""
GRACE_S = 0.5
"""After all is settled: whether the client knows it shows by what it sends then."""
_END_S = 30.0
"""After that the client has that long to end."""
_BODY_BYTES_MAX = 1 << 20
_STDERR = 2
"""Where a client's own output goes: standard output has the matrix alone."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """What a client is asked to do, and what of it is judged.

    `orders` services, each of `segments` segments of `interval_ms`, and the token in `token_file`,
    where any is asked for.
    """

    orders: int
    segments: int
    interval_ms: int
    token_file: Path
    seed: int = 0
    features: Collection[str] = tuple(each.name for each in FEATURES)

    @property
    def has_tokens(self) -> bool:
        """Whether a client must show a token."""
        return "token_renewed" in self.features

    @property
    def has_leases(self) -> bool:
        """Whether a client must show leases."""
        return "lease" in self.features or "lease_over" in faults_for(self.features)

    def environment(self, base_url: str) -> dict[str, str]:
        """Return what the client is told, as variables of its environment."""
        told = {
            "BASE_URL": base_url,
            "ORDERS": str(self.orders),
            "SEGMENTS": str(self.segments),
            "INTERVAL_MS": str(self.interval_ms),
        }
        return {**told, "TOKEN_FILE": str(self.token_file)} if self.has_tokens else told


async def play(
    scenario: Scenario,
    on_ready: Callable[[dict[str, str]], None],
    *,
    command: Sequence[str] = (),
    host: str = "127.0.0.1",
    port: int = 0,
    timeout_s: float = 120.0,
) -> Matrix:
    """Play to a client until it is done, SIGTERM or SIGINT comes, or the time is over; judge it.

    `command` is the client, started here with its variables, which `on_ready` is told as well.
    When it ends, the play ends; when the play ends, it is ended. Raises OSError for a port that is
    taken, or a command that can't be started.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
    ready = loop.create_future()
    stage = Stage(scenario)
    serving = asyncio.create_task(stage.run(stop, ready.set_result, host=host, port=port))
    await asyncio.wait([serving, ready], return_when=asyncio.FIRST_COMPLETED)
    if serving.done():
        serving.result()
    variables = scenario.environment(ready.result())
    on_ready(variables)
    try:
        async with asyncio.timeout(timeout_s):
            if command:
                await _with_client(command, variables, serving, stop, stage.log)
            await serving
    except TimeoutError:
        stop.set()
        await serving
    return stage.matrix()


async def _with_client(
    command: Sequence[str],
    variables: dict[str, str],
    serving: asyncio.Task[None],
    stop: asyncio.Event,
    log: Log,
) -> None:
    try:
        environment = {**os.environ, **variables}
        client = await asyncio.create_subprocess_exec(*command, env=environment, stdout=_STDERR)
    except OSError:
        stop.set()
        await serving
        raise
    ended = asyncio.create_task(client.wait())
    try:
        await asyncio.wait([serving, ended], return_when=asyncio.FIRST_COMPLETED)
        await asyncio.wait([ended], timeout=_END_S)
    finally:
        stop.set()
        if client.returncode is None:
            client.kill()
            await client.wait()
        log.exit_code = await ended


def _server_ms() -> float:
    return time.time() * 1000 - BEHIND_MS


class Stage:
    """One play: serve with `run`, then ask for the `matrix`."""

    def __init__(self, scenario: Scenario) -> None:
        self._scenario = scenario
        self.log = Log(scenario.orders, wanted_ms=scenario.segments * scenario.interval_ms)
        self._player = Player(
            self.log,
            Script(Random(scenario.seed), faults_for(scenario.features)),
            Rules(scenario.interval_ms, scenario.has_tokens, scenario.has_leases),
            monotonic_s=time.monotonic,
            wall_ms=_server_ms,
            on_token=self._write_token,
        )
        self._done = asyncio.Event()

    async def run(
        self,
        stop: asyncio.Event,
        on_ready: Callable[[str], None],
        *,
        host: str = "127.0.0.1",
        port: int = 0,
    ) -> None:
        """Serve until all orders are settled, or `stop` is set. Raises OSError for a taken port."""
        runner = web.ServerRunner(web.Server(self._serve), shutdown_timeout=0.1)
        await runner.setup()
        try:
            site = web.TCPSite(runner, host, port)
            await site.start()
            bound: int = runner.addresses[0][1]
            on_ready(f"http://{f'[{host}]' if ':' in host else host}:{bound}")
            waits = [asyncio.create_task(each.wait()) for each in (stop, self._done)]
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            if not stop.is_set():
                with suppress(TimeoutError):
                    await asyncio.wait_for(stop.wait(), GRACE_S)
            for each in waits:
                each.cancel()
        finally:
            await runner.cleanup()

    @property
    def is_done(self) -> bool:
        """Whether all orders are settled."""
        return self._done.is_set()

    def matrix(self) -> Matrix:
        """Return what was seen so far."""
        return judged(self.log, self._scenario.features)

    async def _serve(self, request: web.BaseRequest) -> web.StreamResponse:
        body = b""
        while request.body_exists and not request.content.at_eof():
            body += await request.content.read(_BODY_BYTES_MAX)
            if len(body) > _BODY_BYTES_MAX:
                said = problem(413, "REQUEST_ENTITY_TOO_LARGE", "a body has at most 1 MiB")
                return await self._respond(request, said)
        headers = {name.lower(): value for name, value in request.headers.items()}
        exchange, answer = self._player.answer(
            request.method, request.rel_url.raw_path, headers, body
        )
        if answer.delay_s:
            await asyncio.sleep(answer.delay_s)
        response = await self._respond(request, answer)
        self._written(exchange)
        return response

    def _written(self, exchange: Exchange) -> None:
        exchange.answered_s = time.monotonic()
        if exchange.has_settled and self.log.is_done():
            self._done.set()

    async def _respond(self, request: web.BaseRequest, answer: Answer) -> web.StreamResponse:
        date = formatdate(_server_ms() / 1000, usegmt=True)
        headers = {"content-type": answer.content_type, "date": date, **answer.headers}
        transport = request.transport
        if answer.cut is Cut.NEVER or transport is None:
            return web.Response(status=answer.status, body=answer.body, headers=headers)
        if answer.cut is Cut.BEFORE:
            transport.abort()
            return web.Response()
        response = web.StreamResponse(status=answer.status, headers=headers)
        response.content_length = len(answer.body)
        await response.prepare(request)
        await response.write(answer.body[: len(answer.body) // 2])
        transport.close()
        return response

    def _write_token(self, token: str) -> None:
        if not self._scenario.has_tokens:
            return
        path = self._scenario.token_file
        draft = path.with_name(f"{path.name}.new")
        draft.write_text(token)
        os.replace(draft, path)  # a client reads the old one or the new one, never a half
