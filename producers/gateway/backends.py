"""Whom the gateway asks about orders: the workers, and the ledger. Both may come later than it."""

import asyncio
import dataclasses
import json
import logging
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, Generic, TypeVar

import aiohttp
import msgspec
import psycopg
from psycopg import sql
from psycopg.rows import DictRow, dict_row
from yarl import URL

from durabill.producers.gateway.damping import Damper
from durabill.producers.gateway.kafka import BackendUnavailable
from durabill.producers.gateway.tenant_turns import TenantTurns
from durabill.producers.sdk.http_uplink import quote_order_number
from durabill.schemas import OrderTotal
from durabill.schemas.order_state import OrderState
from durabill.schemas.tenants import tenant_of
from durabill.schemas.web import Page

log = logging.getLogger(__name__)

NONE_KNOWN = "no worker is known to the gateway"
_CATCHING_UP = "the order's worker has not read all segments yet"
_NO_TOKEN = "the workers don't take the gateway's token"
_BROKEN = "a worker answered with an error"
_NO_ANSWER = "a worker did not answer"
_NOT_OWNED = "no worker that was asked owns the order's partition now"
_TELLS_MOST_FIRST = (_CATCHING_UP, _NO_TOKEN, _BROKEN, _NO_ANSWER, _NOT_OWNED)
"""Why workers couldn't say: of several reasons the first is told."""
_Found = TypeVar("_Found")
_STATE = msgspec.json.Decoder(OrderState)
_FOUND_KEPT_S = 1.0
_OTHERS_S = 0.1
"""How long the other workers are waited for once one has answered as the order's owner: one that
is cut off from Kafka doesn't know yet that the order is another's."""
_ANSWER_BYTES_MAX = 8 * 1024 * 1024


@dataclasses.dataclass(frozen=True, slots=True)
class Live:
    """What the workers say of an order: its owner's view, and why nobody can be sure of it.

    Both None: the owner was asked, and knows no such order.
    """

    state: OrderState | None = None
    unknown: str | None = None


class Finder(Generic[_Found]):
    """Looks something up that may appear, move or go: at most once a second, in a thread."""

    def __init__(self, find: Callable[[], _Found]) -> None:
        self._find = find
        self._mutex = asyncio.Lock()
        self._kept: tuple[float, _Found] | None = None  # until when, and what was found

    async def __call__(self) -> _Found:
        """Return what is there now, or was less than a second ago."""
        async with self._mutex:
            if self._kept is None or time.monotonic() >= self._kept[0]:
                found = await asyncio.to_thread(self._find)
                self._kept = time.monotonic() + _FOUND_KEPT_S, found
            return self._kept[1]


class WorkerPool:
    """The stream processor's workers. Each knows the orders of its own partitions alone.

    `find` returns their addresses, and is asked again and again; `token` is theirs, or empty.
    """

    def __init__(self, find: Callable[[], Sequence[str]], token: str, timeout_s: float) -> None:
        self._find = Finder(find)
        headers = {"authorization": f"Bearer {token}"} if token else {}
        self._http = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=timeout_s),
            headers=headers,
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
        )
        self._damper = Damper(log)

    async def live(self, number: str, page: Page, tenant: str | None = None) -> Live:
        """Return what the owner of an order says of it; all known workers are asked at once.

        With a `tenant` another's order is as one that the owner doesn't know.
        """
        urls = await self._find()
        if not urls:
            return Live(unknown=NONE_KNOWN)
        asked = {asyncio.create_task(self._ask(url, number, page, tenant)) for url in urls}
        answers: list[Live] = []
        timeout_s: float | None = None
        try:
            while asked:
                done, asked = await asyncio.wait(
                    asked, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED
                )
                answers += [each.result() for each in done]
                if not done:
                    break
                if any(each.unknown is None for each in answers):
                    timeout_s = _OTHERS_S
        finally:
            for each in asked:
                each.cancel()
        return _best(answers)

    async def _ask(self, url: str, number: str, page: Page, tenant: str | None) -> Live:
        path = f"{url.rstrip('/')}/orders/{quote_order_number(number)}?{page.query}"
        if tenant is not None:
            path += f"&tenant={tenant}"
        try:
            # No redirects: the token is for the workers alone.
            async with self._http.get(URL(path, encoded=True), allow_redirects=False) as response:
                body = await response.content.read(_ANSWER_BYTES_MAX)
                while not response.content.at_eof() and len(body) < _ANSWER_BYTES_MAX:
                    body += await response.content.read(_ANSWER_BYTES_MAX)
                live = _own(_judge(response.status, body), number, tenant)
            if live.unknown in (_NO_TOKEN, _BROKEN):
                why = f"{live.unknown} (status {response.status})"
                self._damper.warning(url, "the worker at %s: %s", url, why)
            return live
        except (aiohttp.ClientError, TimeoutError, ValueError, RecursionError) as error:
            cause = str(error) or type(error).__name__
            self._damper.warning(url, "the worker at %s can't be asked: %s", url, cause)
            return Live(unknown=_NO_ANSWER)

    async def close(self) -> None:
        """Close the connections."""
        await self._http.close()


def _judge(status: int, body: bytes) -> Live:
    """Return what one worker's answer means; raise ValueError for what no worker says.

    A 404 counts only if it speaks of orders.
    """
    if status == 200:
        try:
            return Live(state=_STATE.decode(body))
        except msgspec.ValidationError:
            return Live(unknown=_BROKEN)
    answer = json.loads(body)
    reason = answer.get("reason") if isinstance(answer, dict) else None
    match status, reason:
        case 404, "UNKNOWN_ORDER":
            return Live()
        case 421, "NOT_OWNED":
            return Live(unknown=_NOT_OWNED)
        case 503, "CATCHING_UP":
            return Live(unknown=_CATCHING_UP)
        case 401, _:
            return Live(unknown=_NO_TOKEN)
    return Live(unknown=_BROKEN)


def _own(live: Live, number: str, tenant: str | None) -> Live:
    """Return what a tenant may know: a worker of an older version doesn't look whose it is."""
    if live.state is None or tenant is None:
        return live
    opened = live.state.opened
    owner = tenant_of(number, None if opened is None else opened.tenant)
    return live if owner == tenant else Live()


def _best(answers: Sequence[Live]) -> Live:
    """Return the newest view; else that the owner knows none; else why nobody could say."""
    states = [each.state for each in answers if each.state is not None]
    if states:
        return Live(state=max(states, key=lambda state: state.source_offset))
    if any(each.unknown is None for each in answers):
        return Live()
    reasons = {each.unknown for each in answers}
    return Live(unknown=next(each for each in _TELLS_MOST_FIRST if each in reasons))


_FIELDS = sql.SQL(", ").join(sql.Identifier(each.name) for each in dataclasses.fields(OrderTotal))
_TOTAL_QUERY = sql.SQL(
    "SELECT {} FROM latest_order_totals WHERE service_order_number = %(number)s"
).format(_FIELDS)
# Another's order is left out by PostgreSQL, so that it takes no longer than one that isn't there.
_OWN_TOTAL_QUERY = sql.SQL(
    "SELECT {} FROM tenant_totals WHERE service_order_number = %(number)s"
    " AND coalesce(tenant, %(unopened)s) = %(tenant)s"
).format(_FIELDS)


_ATTRIBUTES_QUERY = sql.SQL(
    "SELECT attributes FROM orders WHERE service_order_number = %(number)s AND tenant = %(tenant)s"
    " AND client = %(client)s AND attributes <> '{}' ORDER BY source_offset DESC LIMIT 1"
)


class TotalsReader:
    """Reads totals over one connection, opened when needed and again after trouble.

    `find` returns where the ledger is, or None while that is unknown.
    """

    def __init__(self, find: Callable[[], str | None], timeout_s: float) -> None:
        self._find = Finder(find)
        self._timeout_s = timeout_s
        self._connection: psycopg.AsyncConnection[DictRow] | None = None
        self._turns = TenantTurns()
        self._damper = Damper(log)

    async def is_known(self) -> bool:
        """Tell whether there is a ledger to ask."""
        return bool(await self._find())

    async def total(
        self, number: str, tenant: str | None = None, *, whose: Hashable = None
    ) -> Mapping[str, Any] | None:
        """Return the latest total of an order, fields as in OrderTotal; None if there is none.

        With a `tenant` there is none for another's order. `whose` the question is decides when its
        turn comes. Raises BackendUnavailable.
        """
        if "\0" in number:  # no order number, and PostgreSQL's text can't hold it
            return None
        if tenant is None:
            return await self._ask(_TOTAL_QUERY, {"number": number}, whose)
        named = {"number": number, "tenant": tenant, "unopened": tenant_of(number, None)}
        return await self._ask(_OWN_TOTAL_QUERY, named, whose)

    async def attributes(
        self, number: str, tenant: str, client: str
    ) -> tuple[tuple[str, str], ...]:
        """Return those of the last opening of an order that has any, by the same client.

        None are there also where there is no ledger. Raises BackendUnavailable.
        """
        named = {"number": number, "tenant": tenant, "client": client}
        row = await self._ask(_ATTRIBUTES_QUERY, named, (tenant, None))
        return () if row is None else tuple(sorted(row["attributes"].items()))

    async def _ask(
        self, query: sql.Composed | sql.SQL, named: Mapping[str, str], whose: Hashable
    ) -> Mapping[str, Any] | None:
        """Return the one row of a query; None: there is none, or no ledger."""
        try:
            async with asyncio.timeout(self._timeout_s), self._turns.turn(whose):
                return await self._row(query, named)
        except (psycopg.Error, TimeoutError) as error:
            cause = str(error).strip() or type(error).__name__
            self._damper.warning(type(error).__name__, "the ledger can't be asked: %s", cause)
            raise BackendUnavailable("the ledger can't be asked now") from error

    async def _row(
        self, query: sql.Composed | sql.SQL, named: Mapping[str, str]
    ) -> Mapping[str, Any] | None:
        try:
            if self._connection is None or self._connection.closed:
                dsn = await self._find()
                if not dsn:
                    return None
                self._connection = await psycopg.AsyncConnection.connect(
                    dsn, autocommit=True, row_factory=dict_row
                )
            cursor = await self._connection.execute(query, named)
            return await cursor.fetchone()
        except BaseException:  # also a cancelled query: the connection's state is unknown then
            await self.close()
            raise

    async def close(self) -> None:
        """Close the connection."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()
